"""The policy of a learner or of its checkpoint: a network, a mixture, or one that remembers.

Greedy for evaluations: while training it comes from the learner, in `policy.load_policy` from a
run's weights. As edit probabilities for the search and the samples of `search.py`. What it is, the
recipe says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.evaluation import Policy
from trm.compute.device import Placement
from trm.experiments.states import (
    EditPolicy,
    GreedyPolicy,
    model_shape,
    policy_probabilities,
    to_states,
)
from trm.nn.model import StateBatch, TinyRecursiveModel
from upi_trm.chain import MixturePolicy
from upi_trm.learner import LearnerConfig, UpiLearner, part_of
from upi_trm.persistent_z import GreedyPersistent


@dataclass(frozen=True)
class GreedyMixture:
    """The most probable edit of an explicit mixture, the first one on a tie."""

    model: MixturePolicy
    placement: Placement

    def __call__(
        self,
        instances: Int8Array,
        plans: Int8Array,
        mask: Int8Array,
        rng: np.random.Generator,
    ) -> NDArray[np.int32]:
        """Shapes [batch, observed], [batch, cell], [batch, action] -> actions, shape [batch]."""
        states = to_states(instances, plans, mask, self.placement.torch_device)
        with self.placement.autocast():
            chosen = self.model.probabilities(states).argmax(dim=1)
        actions: NDArray[np.int32] = chosen.cpu().numpy().astype(np.int32)
        return actions


def greedy_policy(learner: UpiLearner, placement: Placement) -> Policy:
    """What a learner would deploy now; follows the learner's weights."""
    return _greedy(learner.deployed, learner.domain, placement)


def load_greedy_policy(
    domain: PlanDomain,
    config: LearnerConfig,
    weights: Mapping[str, Tensor],
    placement: Placement,
) -> Policy:
    """What a checkpoint deploys, greedy; arguments and errors as of `load_deployed`."""
    return _greedy(load_deployed(domain, config, weights, placement), domain, placement)


def load_edit_policy(
    domain: PlanDomain,
    config: LearnerConfig,
    weights: Mapping[str, Tensor],
    placement: Placement,
) -> EditPolicy:
    """The probabilities of what a checkpoint deploys; arguments and errors as of `load_deployed`.

    Raises:
        ValueError: a latent that persists, whose policy depends on more than the state.
    """
    model = load_deployed(domain, config, weights, placement)
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

    if not config.improvement.distil:
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
    if not config.improvement.distil:
        return "chain"
    return "policy" if config.improvement.average_rate is None else "average"


def _greedy(model: nn.Module, domain: PlanDomain, placement: Placement) -> Policy:
    if isinstance(model, MixturePolicy):
        return GreedyMixture(model, placement)
    assert isinstance(model, TinyRecursiveModel)
    if model.config.latent == "persistent":
        return GreedyPersistent(model, domain, placement)
    return GreedyPolicy(model, placement)
