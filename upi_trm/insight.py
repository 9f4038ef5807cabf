"""What a checkpoint of this learner says of states: probabilities, U_n, Q, and all of it by depth.

`plugin.py` hands it to the Python API and to the replay viewer (`learners.Insight`). Everything is
read with the parts that `UpiLearner` makes of the recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import PlanDomain
from trm.compute.device import Placement
from trm.experiments.states import Boards, Deepening, edit_logits, readings_by_depth
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.runs.checkpoints import part_of
from upi_trm.advantage import PerEdit
from upi_trm.chain import MixturePolicy
from upi_trm.deployment import deployed_part, edit_policy, load_deployed
from upi_trm.edit_values import corrected_values, state_edit_value
from upi_trm.evaluator import shaped_value
from upi_trm.learner import LearnerConfig, UpiLearner
from upi_trm.rollout import Visits


@dataclass(frozen=True, kw_only=True)
class UpiInsight:
    """The evaluator of a learner and a deployed policy (`learners.Insight`)."""

    learner: UpiLearner
    """Of its networks only the evaluator is read."""
    policy: TinyRecursiveModel | MixturePolicy
    placement: Placement

    @staticmethod
    def of(
        domain: PlanDomain,
        config: LearnerConfig,
        weights: Mapping[str, Tensor],
        placement: Placement,
    ) -> "UpiInsight":
        """Of the weights of a checkpoint; arguments and errors as of `deployment.load_deployed`."""
        learner = UpiLearner.to_study(domain, config, placement.torch_device)
        learner.evaluator.load_state_dict(part_of(weights, "evaluator"))
        learner.evaluator.eval()
        if deployed_part(config) == "evaluator":
            policy: TinyRecursiveModel | MixturePolicy = learner.evaluator
        else:
            policy = load_deployed(domain, config, weights, placement)
        return UpiInsight(learner=learner, policy=policy, placement=placement)

    @property
    def domain(self) -> PlanDomain:
        """The rules."""
        return self.learner.domain

    @property
    def config(self) -> LearnerConfig:
        """The recipe."""
        return self.learner.config

    @property
    def quantities(self) -> frozenset[str]:
        """A persistent latent depends on more than the state; a mixture has no depth of its own."""
        if self.config.model.latent == "persistent":
            return frozenset()
        single = {"deepen"} if isinstance(self.policy, TinyRecursiveModel) else set()
        return frozenset({"probabilities", "values", "edit_values", *single})

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The deployed policy and the evaluator."""
        return self.policy, self.learner.evaluator

    def readings(self, states: StateBatch) -> dict[str, Tensor]:
        """pi(a | s), what the value head says, and Q where the edit head says it by itself."""
        evaluator, config = self.learner.evaluator, self.config.evaluator
        encoding = evaluator.encode(states)
        z = evaluator.recur(encoding)
        raw, head = evaluator.value(z, encoding), evaluator.edit_logits(z, encoding, states)
        no_phi = torch.zeros_like(raw)
        value = shaped_value(raw, no_phi, value=config.value)
        if isinstance(self.policy, MixturePolicy):
            pi = _sum_of_shares(self.policy, states)
        else:
            own = self.policy is evaluator
            pi = torch.softmax(head if own else edit_logits(self.policy, states), dim=1)
        found = {"probabilities": pi, "values": value}
        if config.edit_values == "certified":
            found["edit_values"] = torch.sigmoid(head)
        elif config.edit_values == "state":
            base = state_edit_value(value, no_phi, config)[:, None].expand_as(head)
            found["edit_values"] = corrected_values(base, head, no_phi[:, None], config)
        illegal = states.mask == 0
        return {
            name: one.masked_fill(illegal, torch.nan) if name == "edit_values" else one
            for name, one in found.items()
        }

    def probabilities(self, states: StateBatch) -> PerEdit:
        """pi(a | s) of the deployed policy."""
        return edit_policy(self.policy, self.placement)(states)

    @torch.no_grad()
    def values(self, boards: Boards) -> NDArray[np.float32]:
        """U_n(s)."""
        visits = self._visits(boards)
        with self.placement.autocast():
            states = visits.batch(self.domain, self._device)
            return _array(self.learner.parts.value(states, visits.score))

    @torch.no_grad()
    def edit_values(self, boards: Boards) -> NDArray[np.float32]:
        """Q(s, a) as improvement reads it in training, where dead ends absorb."""
        visits = self._visits(boards)
        with self.placement.autocast():
            states = visits.batch(self.domain, self._device)
            found = self.learner.parts.edit_values(visits, states)
        return _array(found.q.masked_fill(~found.mask, torch.nan))

    @torch.no_grad()
    def deepen(self, boards: Boards, *, depth: int) -> Deepening:
        """U_n, pi_n and the evaluator's moves for n = 0, ..., `depth`."""
        assert isinstance(self.policy, TinyRecursiveModel)
        states = boards.batch(self.domain, self._device)
        phi = boards.phi(self.domain, self._device)
        with self.placement.autocast():
            raw, _, moves = readings_by_depth(self.learner.evaluator, states, depth=depth)
            _, logits, _ = readings_by_depth(self.policy, states, depth=depth)
        value = self.config.evaluator.value
        return Deepening(
            values=_array(torch.stack([shaped_value(one, phi, value=value) for one in raw])),
            probabilities=_array(torch.softmax(logits.float(), dim=-1)),
            moves=_array(moves),
            modulus=self._modulus(),
            trained_depth=self.config.model.depth,
        )

    @property
    def _device(self) -> torch.device:
        return self.placement.torch_device

    def _visits(self, boards: Boards) -> Visits:
        none = np.zeros((len(boards), 0, 0), np.float32)
        return Visits(
            instances=boards.instances,
            plans=boards.plans,
            score=self.domain.check(boards.instances, boards.plans).score,
            policy_start=none,
            evaluator_start=none,
        )

    def _modulus(self) -> float | None:
        bound = self.learner.certificates[0].bound() if self.learner.certificates else 1.0
        return bound if bound < 1 else None


def _sum_of_shares(policy: MixturePolicy, states: StateBatch) -> PerEdit:
    """`MixturePolicy.probabilities` as operations on tensors alone."""
    parts = [
        policy.shares[j] * torch.softmax(edit_logits(cast(TinyRecursiveModel, network), states), 1)
        for j, network in enumerate(policy.networks)
    ]
    return torch.stack(parts).sum(dim=0)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.float().cpu().numpy()
    return found
