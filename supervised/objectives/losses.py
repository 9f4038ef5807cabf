"""Token losses of one supervision step, and how many of its tokens are right.

Training objectives and evaluations share them. Input: token logits or predictions and labels with
`IGNORE` where a position is not supervised; output: one number a sample.
"""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.stablemax import IGNORE, masked_mean, stablemax_cross_entropy

LossKind = Literal["stablemax", "softmax"]
"""The probabilities that the cross-entropy is of; the papers train with StableMax."""


def sample_losses(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch position"],
    *,
    kind: LossKind,
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy over the supervised tokens of each sample, 0 where there is none."""
    if kind == "stablemax":
        token = stablemax_cross_entropy(logits, labels)
    else:
        token = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
        )
    return masked_mean(token, labels != IGNORE)


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
