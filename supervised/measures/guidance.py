"""Guided logits of a supervision step, and what the step gains (DIS Sec. 3, 4, App. A).

Every supervision step has two readouts: the reference logits l_u before it and the conditional
logits l_c after it. All statements are about softmax, as the paper's are, although models are
trained with StableMax. Input: logits of `trm.nn.token_model`; output goes to `evaluation`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trm.nn.stablemax import IGNORE


def guided_logits(
    reference: Float[Tensor, "*batch vocab"],
    conditional: Float[Tensor, "*batch vocab"],
    *,
    weight: float,
) -> Float[Tensor, "*batch vocab"]:
    """l_w = l_u + w (l_c - l_u) (Eq. 6); w = 1 is the model as it is, w = 0 the step undone."""
    if weight == 1.0:
        return conditional
    return reference + weight * (conditional - reference)


def advantage_margin(
    reference: Float[Tensor, "batch position vocab"],
    conditional: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch position"],
    *,
    weight: float = 1.0,
) -> Float[Tensor, "batch position"]:
    """Delta[y] - E_{a ~ pi_w} Delta[a] with Delta = l_c - l_u (Prop. 4.1), 0 where not supervised.

    It is -dL/dw of the softmax cross-entropy L(w) of the label under l_w: where it is positive, a
    little more guidance makes the label more likely.

    Args:
        reference: l_u, logits before the step.
        conditional: l_c, logits after the step.
        labels: tokens, `IGNORE` where not supervised.
        weight: w.
    """
    residual = (conditional - reference).double()
    policy = (reference.double() + weight * residual).softmax(dim=-1)
    supervised = labels != IGNORE
    index = torch.where(supervised, labels, 0)
    of_label = residual.gather(-1, index[..., None]).squeeze(-1)
    return torch.where(supervised, of_label - (policy * residual).sum(dim=-1), 0.0)


def hamming_distance(
    predicted: Int[Tensor, "batch position"], labels: Int[Tensor, "batch position"]
) -> Int[Tensor, " batch"]:
    """Wrong supervised tokens of each sample: V_s of Lemma A.2 for predictions after step s."""
    return ((predicted != labels) & (labels != IGNORE)).sum(dim=1)
