"""Generalised advantage estimates: the alternative to exact lookahead (Schulman et al. 2016).

They follow the edits that the rollout made and are centred only approximately; the defect is
measured. Input: a rollout and U_n; output: advantages for a policy gradient.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from upi_trm.advantage import Advantages, Estimate, PerEdit, Sample, centring_defect
from upi_trm.edit_values import EditValues
from upi_trm.evaluator import ValueFunction
from upi_trm.improvement import GAE_DECAY
from upi_trm.rollout import Transitions, Visits


@dataclass(frozen=True, kw_only=True)
class GaeAdvantages:
    """A_hat of the edits made, zero elsewhere, as a way to have advantages (phase 2)."""

    value: ValueFunction
    edit_values: EditValues
    """One-step values, by which the centring defect is measured on the held-out states."""
    gamma: float

    def __call__(self, fresh: Transitions, at: Sample, policy: PerEdit) -> Estimate:
        """Advantages at the states `at` of the rollout `fresh`."""
        every = Visits.of([fresh])
        value, device = self.value, self.value.device
        _, before = every.views(value.domain, device)

        def tensor(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device)

        advantage = gae(
            tensor(fresh.reward),
            value(before, every.score).view(fresh.action.shape),
            value.of_next_states(fresh, np.ones(fresh.action.shape, np.bool_)),
            tensor(fresh.terminated),
            tensor(fresh.truncated),
            gamma=self.gamma,
            decay=GAE_DECAY,
        )
        order = tensor(at.order)
        edits = tensor(fresh.action.ravel()[at.order]).long()
        made = nn.functional.one_hot(edits, policy.shape[1]).float()
        of_edit = advantage.flatten()[order][:, None] * made
        return Estimate(
            found=Advantages(
                advantage=of_edit, weighted=of_edit, success=torch.full_like(of_edit, torch.nan)
            ),
            weight=torch.ones(len(order), device=device),
            fresh=fresh,
            metrics={"centring_defect": self._defect(at, policy)},
            exact=False,
        )

    def _defect(self, at: Sample, policy: PerEdit) -> float:
        """Largest |E_{a~pi}[r + gamma U_n(s') - U_n(s)]|: what GAE takes for zero."""
        few = slice(0, at.num_held_out)
        visits, view = at.visits.select(few), at.value_view.select(few)
        ahead = self.edit_values(visits, view)
        value = self.value(view, visits.score)
        error = torch.where(ahead.mask, ahead.q - value[:, None], torch.zeros_like(ahead.q))
        return float(centring_defect(error, policy[few]).max())


def gae(
    reward: Float[Tensor, "step plan"],
    value: Float[Tensor, "step plan"],
    next_value: Float[Tensor, "step plan"],
    terminated: Bool[Tensor, "step plan"],
    truncated: Bool[Tensor, "step plan"],
    *,
    gamma: float,
    decay: float,
) -> Float[Tensor, "step plan"]:
    """Generalised advantage estimates of the edits made: sum_k (gamma lambda)^k delta_{t+k}.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), V = 0 after absorption; a truncated episode
    bootstraps with the value of the state that was cut off. Centring is only approximate: see
    `centring_defect`.
    """
    after = torch.where(terminated, torch.zeros_like(next_value), next_value)
    delta = reward + gamma * after - value
    carries = (~(terminated | truncated)).to(delta.dtype)
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * decay * carries[t] * running
        advantage[t] = running
    return advantage
