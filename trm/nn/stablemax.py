"""StableMax: what the TRM family puts in place of softmax, and the divergences built on it.

s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, p = s / sum s (REFERENCE.md A; TRM's loss). Tails are
heavy: a logit that leads by 100 still leaves a cross-entropy of about 1e-3. Everything is computed
in float64, whatever the dtype of the logits, and gradients come back in theirs. Input: the token
logits of a model; output: per-token values, which `masked_mean` reduces to one number an example.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

IGNORE = -100
"""Label of a token that is not supervised."""


def stablemax_log_probabilities(
    logits: Float[Tensor, "*batch vocab"],
) -> Float[Tensor, "*batch vocab"]:
    """Log-probabilities log p over the last axis, float64.

    log s(x) = log(1 + x) for x >= 0 and -log(1 - x) below, so that neither branch can overflow.
    """
    x = logits.to(torch.float64)
    # Each branch sees only its own side: the other's gradient must not turn 0 into 0 * inf.
    log_s = torch.where(x < 0, -torch.log1p(-x.clamp_max(0)), torch.log1p(x.clamp_min(0)))
    return log_s - torch.logsumexp(log_s, dim=-1, keepdim=True)


def stablemax_probabilities(
    logits: Float[Tensor, "*batch vocab"],
) -> Float[Tensor, "*batch vocab"]:
    """Probabilities p over the last axis, float64; rows sum to 1 and no entry is 0."""
    return stablemax_log_probabilities(logits).exp()


def stablemax_cross_entropy(
    logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """-log p[label] of every token, float64, in nats; 0 where the label is `IGNORE`.

    A label that is neither `IGNORE` nor a token of the vocabulary fails in torch's `gather`.
    """
    supervised = labels != IGNORE
    index = torch.where(supervised, labels, 0).long()
    chosen = stablemax_log_probabilities(logits).gather(-1, index[..., None]).squeeze(-1)
    return torch.where(supervised, -chosen, 0.0)


def kl_divergence(
    log_p: Float[Tensor, "*batch vocab"], log_q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) = sum_v p (log p - log q), in nats, of log-probabilities over the last axis."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def js_divergence(
    log_p: Float[Tensor, "*batch vocab"], log_q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence, symmetric, in [0, ln 2] nats (rounding clamped away)."""
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2.0)
    half_sum = 0.5 * (kl_divergence(log_p, log_middle) + kl_divergence(log_q, log_middle))
    return half_sum.clamp(0.0, math.log(2.0))


def masked_mean(
    values: Num[Tensor, "*batch position"], mask: Bool[Tensor, "*batch position"]
) -> Float[Tensor, "*batch"]:
    """Mean over the positions where `mask` is True; 0 for a row without any.

    This is the reduction of TRM's loss: a mean over the supervised tokens of an example, so that
    every example weighs the same however many tokens it has.
    """
    count = mask.sum(dim=-1).clamp_min(1)
    return torch.where(mask, values, 0).sum(dim=-1) / count
