"""The greedy policy of a learner or of its checkpoint: one network, or the explicit mixture.

Evaluation while training takes it from the learner, `policy.load_policy` from a run's weights; what
it is, the recipe says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.evaluation import Policy
from trm.device import Placement
from trm.model import TinyRecursiveModel
from upi_trm.chain import MixturePolicy
from upi_trm.evaluator import model_shape
from upi_trm.learner import LearnerConfig, UpiLearner, part_of
from upi_trm.rollout import GreedyPolicy, to_states


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
    return _greedy(learner.deployed, placement)


def load_greedy_policy(
    domain: PlanDomain,
    config: LearnerConfig,
    weights: Mapping[str, Tensor],
    placement: Placement,
) -> Policy:
    """What a checkpoint deploys.

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
        return _greedy(chain.to(placement.torch_device).eval(), placement)
    model = build()
    part = "policy" if config.improvement.average_rate is None else "average"
    model.load_state_dict(part_of(weights, part))
    return _greedy(model.to(placement.torch_device).eval(), placement)


def _greedy(model: TinyRecursiveModel | MixturePolicy, placement: Placement) -> Policy:
    if isinstance(model, MixturePolicy):
        return GreedyMixture(model, placement)
    return GreedyPolicy(model, placement)
