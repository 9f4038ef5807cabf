"""The policy of a learner or of its checkpoint: a network, a mixture, or one that remembers.

The recipe says which; `improvement.deploy: improved` is the evaluator, played by its edit head.
`load_deployed` makes it from the weights of a checkpoint; a learner in training has it as
`UpiLearner.deployed`. Evaluations play `greedy_policy` of it, the search and the samples read
`edit_policy`.
"""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from plan_envs.domain import PlanDomain
from plan_envs.evaluation import Policy
from trm.compute.device import Placement
from trm.experiments.states import (
    EditPolicy,
    GreedyPolicy,
    edit_logits,
    model_shape,
    policy_probabilities,
)
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.runs.checkpoints import part_of
from upi_trm.chain import MixturePolicy
from upi_trm.learner import LearnerConfig
from upi_trm.persistent_z import GreedyPersistent


def greedy_policy(
    model: TinyRecursiveModel | MixturePolicy, domain: PlanDomain, placement: Placement
) -> Policy:
    """The most probable edit of what is deployed; follows its weights."""
    if isinstance(model, MixturePolicy):
        return GreedyPolicy(model.probabilities, placement)
    if model.config.latent == "persistent":
        return GreedyPersistent(model, domain, placement)
    return GreedyPolicy(partial(edit_logits, model), placement)


def edit_policy(model: TinyRecursiveModel | MixturePolicy, placement: Placement) -> EditPolicy:
    """The probabilities of what is deployed.

    Raises:
        ValueError: a latent that persists, whose policy depends on more than the state.
    """
    if isinstance(model, TinyRecursiveModel) and model.config.latent == "persistent":
        raise ValueError(
            "model.latent is 'persistent': the policy depends on the edits before, so that it"
            " cannot go back to a plan or play one episode several times"
        )

    def probabilities(states: StateBatch) -> Float[Tensor, "batch action"]:
        with placement.autocast():
            if isinstance(model, MixturePolicy):
                return model.probabilities(states)
            return policy_probabilities(model, states)

    return probabilities


def load_deployed(
    domain: PlanDomain,
    config: LearnerConfig,
    weights: Mapping[str, Tensor],
    placement: Placement,
) -> TinyRecursiveModel | MixturePolicy:
    """The network or the mixture that a checkpoint deploys.

    Args:
        domain: the rules it was trained on.
        config: its recipe.
        weights: of the checkpoint, every network.
        placement: where it computes.

    Raises:
        RuntimeError: weights that do not fit the recipe, as torch says it.
    """
    shape = model_shape(domain.spec)

    def build() -> TinyRecursiveModel:
        return TinyRecursiveModel(shape, config.model, generator=torch.Generator())

    if deployed_part(config) == "chain":
        parts = part_of(weights, "chain")
        if "shares" not in parts:
            raise RuntimeError("no weights of a mixture of networks, chain.shares")
        chain = MixturePolicy(build(), length=config.improvement.chain_length)
        chain.load_weights(parts, build)
        return chain.to(placement.torch_device).eval()
    model = build()
    model.load_state_dict(part_of(weights, deployed_part(config)))
    return model.to(placement.torch_device).eval()


def deployed_part(config: LearnerConfig) -> str:
    """The name, in a checkpoint, of the single network or the mixture that is deployed."""
    if config.improvement.deploy == "improved":
        return "evaluator"
    if not config.improvement.distil:
        return "chain"
    return "policy" if config.improvement.average_rate is None else "average"
