"""Edit values: Q(s, a) of every legal edit, and what the evaluator's edit head learns of it.

The paper's Q reads the value of the successor. A successor does not show whether the edit that led
to it was forced or guessed, the state before does: two variants let the evaluator's edit head,
which reads the state before, correct Q in the units of the value head. Input: states, a value
function and rollouts; output: Q for `algorithm.py`, and a loss for the regression there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import DeadEnd
from trm.experiments.states import all_edit_logits
from trm.nn.model import Encoding, StateBatch
from upi_trm.advantage import Lookahead, SuccessorValue, look_ahead
from upi_trm.evaluator import EvaluatorConfig, ValueFunction, bootstrapped, shaped_value
from upi_trm.rollout import Transitions, Visits

Lesson = Float[Tensor, "row edit"]
"""Three rows for the edits made: the edit, r + gamma V_bar(s') (NaN where the checker decides), its
return; no rows where nothing is learned of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A minibatch of the regression, as the evaluator reads it."""

    states: StateBatch
    encoding: Encoding
    z: Float[Tensor, "row channel"]
    raw: Float[Tensor, " batch"]
    """What the value head says, without gradient."""
    phi: Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class EditValues:
    """Q(s, a) of every legal edit, and what must be learned for it beside U_n.

    This one is the paper's, Q(s, a) = r + gamma U_n(s').
    """

    value: ValueFunction
    config: EvaluatorConfig
    dead_end: DeadEnd

    def __call__(self, visits: Visits, view: StateBatch) -> Lookahead:
        """One pass of the evaluator over the undecided successors."""
        return self.look_ahead(visits, self.value.of_successors(view), view)

    def look_ahead(
        self, visits: Visits, value: SuccessorValue | None, view: StateBatch
    ) -> Lookahead:
        """The lookahead with another value function, or with none."""
        return look_ahead(
            self.value.domain,
            visits,
            value,
            gamma=self.config.gamma,
            dead_end=self.dead_end,
            device=self.value.device,
            by_parent=view.start is not None,
        )

    def reads(self, pasts: Sequence[Transitions]) -> Bool[NDArray[np.bool_], "_ plan"]:
        """Where the K-step targets bootstrap."""
        terminated, truncated = (
            torch.from_numpy(np.concatenate([getattr(past, name) for past in pasts]))
            for name in ("terminated", "truncated")
        )
        read: NDArray[np.bool_] = bootstrapped(
            terminated, truncated, k_steps=self.config.k_steps
        ).numpy()
        return read

    def lessons(
        self,
        past: Transitions,
        next_value: Float[Tensor, "step plan"],
        target: Float[Tensor, "step plan"],
    ) -> Lesson:
        """The edit head is not used."""
        return target.new_zeros(0, target.numel())

    def losses(self, reading: Reading, lesson: Lesson) -> dict[str, Float[Tensor, ""]]:
        """The edit head is not used."""
        return {}


@dataclass(frozen=True, kw_only=True)
class CorrectedValues(EditValues):
    """Q(s, a) with a correction c(s, a) in the units of the value head.

    Without `of_state` the correction is to r + gamma U_n(s'); with it, it is to what the state
    itself is worth, so that no successor is evaluated.
    """

    of_state: bool

    def __call__(self, visits: Visits, view: StateBatch) -> Lookahead:
        """Q of undecided edits is corrected; what the checker decides is as it is."""
        value, config = self.value, self.config
        phi = visits.phi(value.domain, value.device)
        if self.of_state:
            ahead = self.look_ahead(visits, None, view)
            own = value(view, visits.score)
            base = state_edit_value(own, phi, config)
            before = base[:, None].expand_as(ahead.q)
        else:
            ahead = super().__call__(visits, view)
            before = ahead.q
        q = corrected_values(before, all_edit_logits(value.model, view), phi[:, None], config)
        return replace(ahead, q=torch.where(ahead.undecided, q, ahead.q))

    def reads(self, pasts: Sequence[Transitions]) -> Bool[NDArray[np.bool_], "_ plan"]:
        """A correction to r + gamma V_bar(s') is learned from V_bar after every edit."""
        if self.of_state:
            return super().reads(pasts)
        read: NDArray[np.bool_] = ~np.concatenate([past.terminated for past in pasts])
        return read

    def lessons(
        self,
        past: Transitions,
        next_value: Float[Tensor, "step plan"],
        target: Float[Tensor, "step plan"],
    ) -> Lesson:
        """Edits, r + gamma V_bar(s') and returns.

        The target of a state has the advantage of the edit made taken out of it as a control
        variate; the return of the edit has it back.
        """
        config, device = self.config, target.device

        def tensor(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device)

        q = tensor(past.reward) + config.gamma * next_value
        q = q.masked_fill(tensor(past.terminated), torch.nan)
        if config.control_variate:
            target = target + tensor(past.advantage)
        return torch.stack([tensor(past.action).to(target.dtype), q, target]).flatten(1)

    def losses(self, reading: Reading, lesson: Lesson) -> dict[str, Float[Tensor, ""]]:
        """Mean loss of the corrected values of the undecided edits made."""
        correction = self.value.model.edit_logits(reading.z, reading.encoding, reading.states)
        undecided = ~lesson[1].isnan()
        edit, q, target = lesson[:, undecided]
        phi = reading.phi[undecided]
        if self.of_state:
            own = shaped_value(reading.raw[undecided].to(phi.dtype), phi, value=self.config.value)
            q = state_edit_value(own, phi, self.config)
        of_edit = correction[undecided].gather(1, edit.long()[:, None]).squeeze(1)
        loss = correction_loss(q, of_edit, target, phi, self.config)
        return {"edit_loss": loss if len(q) else correction.sum() * 0.0}


def make_edit_values(
    value: ValueFunction, config: EvaluatorConfig, dead_end: DeadEnd
) -> EditValues:
    """The edit values that a recipe asks for."""
    if config.edit_values == "successor":
        return EditValues(value=value, config=config, dead_end=dead_end)
    of_state = config.edit_values == "state"
    return CorrectedValues(value=value, config=config, dead_end=dead_end, of_state=of_state)


def corrected_values(
    q: Float[Tensor, "*edits"],
    correction: Float[Tensor, "*edits"],
    phi: Float[Tensor, "*states"],
    config: EvaluatorConfig,
) -> Float[Tensor, "*edits"]:
    """Q(s, a) = r + gamma U_n(s') of undecided edits with the correction c(s, a) in it.

    An undecided edit has r = gamma Phi(s') - Phi(s), so q + Phi(s) = gamma P(solve | s'): a success
    evaluator gives gamma sigmoid(logit P + c) - Phi(s), another q + c.

    Args:
        q: r + gamma U_n(s').
        correction: c(s, a), what the evaluator's edit head says at s.
        phi: Phi(s), broadcast over the edits.
        config: gamma, and what the evaluator's head means.
    """
    raw = _head_units(q, phi, config) + correction
    return raw if config.value == "score" else config.gamma * torch.sigmoid(raw) - phi


def state_edit_value(
    state_value: Float[Tensor, "*states"],
    phi: Float[Tensor, "*states"],
    config: EvaluatorConfig,
) -> Float[Tensor, "*states"]:
    """Q of every undecided edit where nothing tells them apart: what their state is worth.

    The head says the same of it as of the state: `corrected_values` of it gives gamma sigmoid(logit
    P(solve | s) + c) - Phi(s), or U_n(s) + c. `state_value` is U_n(s).
    """
    if config.value == "score":
        return state_value
    return config.gamma * (state_value + phi) - phi


def correction_loss(
    q: Float[Tensor, " batch"],
    correction: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    phi: Float[Tensor, " batch"],
    config: EvaluatorConfig,
) -> Float[Tensor, ""]:
    """Regression of corrected edit values on the returns of the edits made, as `value_loss`."""
    raw = _head_units(q, phi, config) + correction
    if config.value == "score":
        return nn.functional.mse_loss(raw, target)
    success = ((target + phi) / config.gamma).clamp(0.0, 1.0)
    return nn.functional.binary_cross_entropy_with_logits(raw, success)


def _head_units(
    q: Float[Tensor, "*edits"],
    phi: Float[Tensor, "*states"],
    config: EvaluatorConfig,
) -> Float[Tensor, "*edits"]:
    """Q = r + gamma U_n(s') as the evaluator's head would say it of s'."""
    if config.value == "score":
        return q
    return ((q + phi) / config.gamma).clamp(1e-6, 1 - 1e-6).logit()
