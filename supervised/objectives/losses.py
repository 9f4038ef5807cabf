"""Token losses of one supervision step, and how many of its tokens are right.

Training objectives and evaluations share them. Input: token logits or predictions and labels with
`IGNORE` where a position is not supervised; output: one number a sample.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.stablemax import (
    IGNORE,
    masked_mean,
    stablemax_cross_entropy,
    stablemax_probabilities,
)
from trm.nn.token_model import StepOutput

LossKind = Literal["stablemax", "softmax", "bce"]
"""The probabilities that the cross-entropy is of: over the vocabulary by StableMax, as the papers
train, or by softmax; or, `bce`, a probability of its own, sigmoid, for each (token, value)."""


def sample_losses(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch position"],
    *,
    kind: LossKind,
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy over the supervised tokens of each sample, 0 where there is none.

    That of `bce` is summed over the vocabulary.
    """
    if kind == "stablemax":
        token = stablemax_cross_entropy(logits, labels)
    elif kind == "bce":
        right = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
        token = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), right.float(), reduction="none"
        ).sum(dim=-1)
    else:
        token = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
        )
    return masked_mean(token, labels != IGNORE)


def step_losses(
    out: StepOutput, labels: Int[Tensor, "batch position"], *, kind: LossKind
) -> Float[Tensor, " batch"]:
    """`sample_losses` of a supervision step: mean over all that it read, the early ones too."""
    read = (out.logits, *out.early_logits)
    losses = [sample_losses(logits, labels, kind=kind) for logits in read]
    return torch.stack(losses).mean(dim=0) if len(losses) > 1 else losses[0]


def probabilities(
    logits: Float[Tensor, "batch position vocab"], *, kind: LossKind
) -> Float[Tensor, "batch position vocab"]:
    """What a model that was trained with a loss says of each (token, value)."""
    if kind == "stablemax":
        return stablemax_probabilities(logits)
    return logits.sigmoid() if kind == "bce" else logits.softmax(dim=-1)


def exact(
    predicted: Int[Tensor, "batch position"], labels: Int[Tensor, "batch position"]
) -> Bool[Tensor, " batch"]:
    """Whether every supervised token is right."""
    return ((predicted == labels) | (labels == IGNORE)).all(dim=1)


def token_accuracy(
    predicted: Int[Tensor, "batch position"], labels: Int[Tensor, "batch position"]
) -> Float[Tensor, " batch"]:
    """Share of the supervised tokens of each sample that are right."""
    return masked_mean((predicted == labels).float(), labels != IGNORE)
