"""Edit values: Q(s, a) of every legal edit, and what the evaluator's edit head learns of it.

The paper's Q reads the value of the successor. A successor does not show whether the edit that led
to it was forced or guessed, the state before does: the other variants read the evaluator's edit
head at the state before, as a correction of Q in the units of the value head, or as Q itself, which
is then learned from certificates. Input: states, a value function and rollouts; output: Q for
`algorithm.py`, and a loss for the regression there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import DeadEnd
from trm.compute.workers import Workers
from trm.experiments.states import all_edit_logits, latents_through
from trm.nn.model import Encoding, StateBatch
from upi_trm.advantage import Lookahead, SuccessorValue, look_ahead
from upi_trm.certificates import Certificates
from upi_trm.evaluator import EvaluatorConfig, ValueFunction, bootstrapped, shaped_value
from upi_trm.rollout import Transitions, Visits

FIRST_CERTIFICATES = 2
"""Starts with a certificate before anything is improved."""

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

    @property
    def ready(self) -> bool:
        """Whether there is anything to improve the policy with."""
        return True

    def follow(self, fresh: Transitions) -> dict[str, float]:
        """Take out of a rollout what is learned beside its transitions; figures of it."""
        return {}

    def state(self) -> dict[str, Any]:
        """What was taken, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""

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


@dataclass(frozen=True, kw_only=True)
class CertifiedValues(EditValues):
    """Q_n(s, a) = sigmoid(e(s, a)) - Phi(s), e the evaluator's edit head on z^(n).

    It is learned by binary cross-entropy on every legal edit of states on the way to certificates,
    after each of several unrolls (deep supervision). Success is a product of (1 - error) over the
    edits, so what matters is which edit is certain.
    """

    certificates: Certificates
    workers: Workers

    def __call__(self, visits: Visits, view: StateBatch) -> Lookahead:
        """The head's Q of undecided edits; what the checker decides is as it is."""
        ahead = self.look_ahead(visits, None, view)
        success = torch.sigmoid(all_edit_logits(self.value.model, view).to(ahead.q.dtype))
        phi = visits.phi(self.value.domain, self.value.device)
        return replace(ahead, q=torch.where(ahead.undecided, success - phi[:, None], ahead.q))

    @property
    def ready(self) -> bool:
        """Every process has two certificates."""
        return not self.workers.any(len(self.certificates) < FIRST_CERTIFICATES)

    def follow(self, fresh: Transitions) -> dict[str, float]:
        """Keep the certificates of a rollout; how many starts have one."""
        self.certificates.follow(fresh)
        return {"certified": float(len(self.certificates))}

    def state(self) -> dict[str, Any]:
        """The certificates."""
        return self.certificates.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up certificates."""
        self.certificates.load_state(state)

    def losses(self, reading: Reading, lesson: Lesson) -> dict[str, Float[Tensor, ""]]:
        """Certified loss on fresh states of certificates."""
        if not self.ready:
            return {}
        value, config = self.value, self.config
        drawn = self.certificates.draw(config.certified_states)
        states = drawn.boards.batch(value.domain, value.device)
        right = torch.from_numpy(drawn.right).to(value.device)
        encoding, latents = latents_through(value.model, states, config.supervised_unrolls)
        rng = self.certificates.generator
        if rng.random() < config.unroll_on:
            goes_on = replace(encoding, start=latents[-1].detach())
            more = int(rng.integers(1, value.model.config.depth + 1))
            latents.append(value.model.recur(goes_on, depth=more))
        legal = states.mask > 0
        logits = [value.model.edit_logits(z, encoding, states) for z in latents]
        losses = [certified_loss(one, right, legal) for one in logits]
        sure = torch.sigmoid(logits[-1].detach()).amax(dim=1)
        drawn.doubt((1.0 - sure).float().cpu().numpy())
        return {"edit_loss": torch.stack(losses).mean()}


def certified_loss(
    logits: Float[Tensor, "batch action"],
    right: Bool[Tensor, "batch action"],
    legal: Bool[Tensor, "batch action"],
) -> Float[Tensor, ""]:
    """Binary cross-entropy on all legal edits, once with equal weights, once with the policy's.

    Args:
        logits: e(s, a).
        right: the edit agrees with a certificate.
        legal: edits that the mask allows; the others count nothing.
    """
    each = nn.functional.binary_cross_entropy_with_logits(
        logits.masked_fill(~legal, 0.0), right.to(logits.dtype), reduction="none"
    )
    each = each.masked_fill(~legal, 0.0)
    policy = torch.softmax(logits.detach(), dim=1)
    return each.sum() / legal.sum().clamp_min(1) + (policy * each).sum(dim=1).mean()


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
