"""What a checkpoint of a baseline says of states: probabilities, V and Q as far as it has them.

`baselines.plugin` hands it to the Python API and to the replay viewer (`learners.Insight`).
Actor-critics have probabilities and V(s), DQN has Q(s, a), and V(s) where it is dueling.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.masked_sb3 import dueling_values
from baselines.recipe import BaselineRecipe
from plan_envs.domain import PlanDomain
from trm.compute.device import Placement
from trm.experiments.learners import Networks
from trm.experiments.states import (
    Boards,
    Deepening,
    all_edit_logits,
    edit_logits,
    policy_probabilities,
    readings_by_depth,
)
from trm.nn.model import StateBatch


@dataclass(frozen=True, kw_only=True)
class Sb3Insight:
    """The networks of a checkpoint (`learners.Insight`)."""

    domain: PlanDomain
    recipe: BaselineRecipe
    networks: Networks
    placement: Placement

    @property
    def quantities(self) -> frozenset[str]:
        """Those of an actor-critic, or of DQN."""
        if self.recipe.dqn is None:
            return frozenset({"probabilities", "values", "deepen"})
        return frozenset({"edit_values", *({"values"} if self.recipe.dqn.dueling else ())})

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Policy and critic."""
        return self.networks.policy, self.networks.evaluator

    def readings(self, states: StateBatch) -> dict[str, Tensor]:
        """pi(a | s) and V(s) of an actor-critic; Q(s, a) of DQN, and V(s) if it is dueling."""
        found = {"values": self._values(states)} if "values" in self.quantities else {}
        logits, legal = edit_logits(self.networks.policy, states), states.mask > 0
        if self.recipe.dqn is None:
            return {"probabilities": torch.softmax(logits, dim=1), **found}
        if self.recipe.dqn.dueling:
            logits = dueling_values(found["values"][:, None], logits, legal)
        return {**found, "edit_values": logits.masked_fill(~legal, torch.nan)}

    def probabilities(self, states: StateBatch) -> Float[Tensor, "batch action"]:
        """pi(a | s)."""
        with self.placement.autocast():
            return policy_probabilities(self.networks.policy, states)

    @torch.no_grad()
    def values(self, boards: Boards) -> NDArray[np.float32]:
        """V(s) of the critic, or of a dueling Q-network."""
        with self.placement.autocast():
            return _array(self._values(self._states(boards)))

    @torch.no_grad()
    def edit_values(self, boards: Boards) -> NDArray[np.float32]:
        """Q(s, a) of DQN."""
        assert self.recipe.dqn is not None
        states = self._states(boards)
        legal = states.mask > 0
        with self.placement.autocast():
            q = all_edit_logits(self.networks.policy, states)
            if self.recipe.dqn.dueling:
                q = dueling_values(self._values(states)[:, None], q, legal)
        return _array(q.masked_fill(~legal, torch.nan))

    def deepen(self, boards: Boards, *, depth: int) -> Deepening:
        """V, pi and the critic's moves for n = 0, ..., `depth`; nothing is certified."""
        states = self._states(boards)
        with self.placement.autocast():
            values, _, moves = readings_by_depth(self.networks.evaluator, states, depth=depth)
            _, logits, _ = readings_by_depth(self.networks.policy, states, depth=depth)
        return Deepening(
            values=_array(values),
            probabilities=_array(torch.softmax(logits.float(), dim=-1)),
            moves=_array(moves),
            modulus=None,
            trained_depth=self.networks.model.depth,
        )

    def _states(self, boards: Boards) -> StateBatch:
        return boards.batch(self.domain, self.placement.torch_device)

    def _values(self, states: StateBatch) -> Float[Tensor, " batch"]:
        model = self.networks.evaluator
        encoding = model.encode(states)
        return model.value(model.recur(encoding), encoding)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.float().cpu().numpy()
    return found
