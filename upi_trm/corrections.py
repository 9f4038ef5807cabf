"""Q(s, a) with what the edit head reads of the edit."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def corrected_values(
    q: Float[Tensor, "*edits"],
    correction: Float[Tensor, "*edits"],
    phi: Float[Tensor, "*states"],
    *,
    gamma: float,
    value: Literal["success", "score"],
) -> Float[Tensor, "*edits"]:
    """Q(s, a) = r + gamma U_n(s') of undecided edits with the correction c(s, a) in it.

    An undecided edit has r = gamma Phi(s') - Phi(s), so q + Phi(s) = gamma P(solve | s'): a success
    evaluator gives gamma sigmoid(logit P + c) - Phi(s), another q + c.

    Args:
        q: r + gamma U_n(s').
        correction: c(s, a), what the evaluator's edit head says at s.
        phi: Phi(s), broadcast over the edits.
        gamma: discount.
        value: what the evaluator's head means.
    """
    raw = _head_units(q, phi, gamma=gamma, value=value) + correction
    return raw if value == "score" else gamma * torch.sigmoid(raw) - phi


def state_edit_value(
    state_value: Float[Tensor, "*states"],
    phi: Float[Tensor, "*states"],
    *,
    gamma: float,
    value: Literal["success", "score"],
) -> Float[Tensor, "*states"]:
    """Q of every undecided edit where nothing tells them apart: what their state is worth.

    The head says the same of it as of the state: `corrected_values` of it gives gamma sigmoid(logit
    P(solve | s) + c) - Phi(s), or U_n(s) + c.

    Args:
        state_value: U_n(s).
        phi: Phi(s).
        gamma: discount.
        value: what the evaluator's head means.
    """
    return state_value if value == "score" else gamma * (state_value + phi) - phi


def correction_loss(
    q: Float[Tensor, " batch"],
    correction: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    phi: Float[Tensor, " batch"],
    *,
    gamma: float,
    value: Literal["success", "score"],
) -> Float[Tensor, ""]:
    """Regression of corrected edit values on the returns of the edits made, as `value_loss`."""
    raw = _head_units(q, phi, gamma=gamma, value=value) + correction
    if value == "score":
        return nn.functional.mse_loss(raw, target)
    success = ((target + phi) / gamma).clamp(0.0, 1.0)
    return nn.functional.binary_cross_entropy_with_logits(raw, success)


def _head_units(
    q: Float[Tensor, "*edits"],
    phi: Float[Tensor, "*states"],
    *,
    gamma: float,
    value: Literal["success", "score"],
) -> Float[Tensor, "*edits"]:
    """Q = r + gamma U_n(s') as the evaluator's head would say it of s'."""
    if value == "score":
        return q
    return ((q + phi) / gamma).clamp(1e-6, 1 - 1e-6).logit()
