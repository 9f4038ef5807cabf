"""How much a teacher's targets depend on the step that they are taken from (TRM-Planner, Table 6).

If the last step were always the best one, there would be nothing to plan. Input: a model and its
training examples, unrolled without noise; `upi-trm supervised diagnose` shows the figures.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from supervised.data_sets.datasets import TokenDataset
from supervised.planner.planner import Advance, step_quality, teacher_on
from trm.nn.recursion import Latents
from trm.nn.token_model import TokenModel


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSensitivity:
    """The figures of Table 6, and what loss and exactness do over the steps."""

    num_examples: int
    steps: int
    """T_max."""
    share_not_last: float
    """Pr[t* != T_max], t* being the first step of the least loss."""
    median_step: float
    """Median of t*."""
    quartiles: tuple[float, float]
    """Ends of the interquartile range of t*."""
    mean_gap: float
    """Mean of Delta, the loss at T_max minus the least loss, nats."""
    median_gap: float
    share_exact_elsewhere: float
    """Examples that some step solves, but not the last one."""
    loss_by_step: tuple[float, ...]
    """Mean loss after each step."""
    exact_by_step: tuple[float, ...]
    """Share of exact examples after each step."""


def measure_sensitivity(
    model: TokenModel, dataset: TokenDataset, *, num: int, seed: int, batch_size: int = 256
) -> TargetSensitivity:
    """The figures of a model on a sample of its training examples.

    Args:
        model: in evaluation mode; T_max is its number of supervision steps.
        dataset: the examples.
        num: how many are drawn; all, if there are fewer.
        seed: draws them.
        batch_size: examples that the model sees at once.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(dataset), size=min(num, len(dataset)), replace=False))
    found = []
    for first in range(0, len(chosen), batch_size):
        batch = dataset.batch(chosen[first : first + batch_size]).to(model.start_h.device)
        start, advance = teacher_on(model, batch.inputs, batch.puzzle)
        found.append(unrolled_quality(start, advance, batch.labels, model.schedule.supervision))
    losses, exact = zip(*found, strict=True)
    return target_sensitivity(torch.cat(losses), torch.cat(exact))


@torch.no_grad()
def unrolled_quality(
    start: Latents, advance: Advance, labels: Int[Tensor, "batch position"], steps: int
) -> tuple[Float[Tensor, "batch step"], Bool[Tensor, "batch step"]]:
    """Loss and exactness of every step of an unroll without noise."""
    latents, found = start, []
    for number in range(1, steps + 1):
        output = advance(latents, number)
        latents = output.latents
        found.append(step_quality(output.logits, labels))
    losses, exact = zip(*found, strict=True)
    return torch.stack(losses, dim=1), torch.stack(exact, dim=1)


def target_sensitivity(
    loss: Float[Tensor, "example step"], exact: Bool[Tensor, "example step"]
) -> TargetSensitivity:
    """The figures of Table 6, and what loss and exactness do over the steps."""
    losses, solved = loss.cpu().double().numpy(), exact.cpu().numpy()
    best = losses.argmin(axis=1) + 1
    gap = losses[:, -1] - losses.min(axis=1)
    low, high = np.quantile(best, [0.25, 0.75])
    steps = losses.shape[1]
    return TargetSensitivity(
        num_examples=len(losses),
        steps=steps,
        share_not_last=float((best != steps).mean()),
        median_step=float(np.median(best)),
        quartiles=(float(low), float(high)),
        mean_gap=float(gap.mean()),
        median_gap=float(np.median(gap)),
        share_exact_elsewhere=float((solved.any(axis=1) & ~solved[:, -1]).mean()),
        loss_by_step=tuple(float(value) for value in losses.mean(axis=0)),
        exact_by_step=tuple(float(value) for value in solved.mean(axis=0)),
    )
