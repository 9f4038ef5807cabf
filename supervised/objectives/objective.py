"""What the two ways of training share: one step of either, its figures, losses and carried batch.

`trm_objective.ActObjective` and `dis.DisObjective` are `Objective`s; `trainer` asks one for a step,
goes backward, and lets the optimisers act when the step is complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from supervised.data_sets.datasets import TokenBatch
from trm.nn.recursion import Latents
from trm.nn.stablemax import IGNORE, masked_mean, stablemax_cross_entropy

LossKind = Literal["stablemax", "softmax"]
"""Which probabilities the cross-entropy is of; the papers train with StableMax."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One supervision step of a batch, before its backward pass."""

    loss: Float[Tensor, ""]
    """Mean over the batch of the losses of its samples."""
    puzzle: Int[Tensor, " batch"]
    """Puzzle identifiers whose rows the step read."""
    rows: Float[Tensor, "batch channel"]
    """These rows, a leaf: their gradient gathers in it."""
    complete: bool = True
    """Whether the optimisers act after the backward pass; else gradients go on gathering."""


@runtime_checkable
class Objective(Protocol):
    """Draws samples and says what to minimise."""

    figures: "Figures"

    def step(self) -> Step:
        """The next supervision step; draws samples where slots are free."""
        ...

    def state(self) -> dict[str, Any]:
        """The carried batch and figures, all that resuming needs beside weights and streams."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        ...


class Figures:
    """Sums of what steps report, as tensors, so that nothing waits for the device between logs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(
        self, name: str, values: Tensor, *, where: Bool[Tensor, " batch"] | None = None
    ) -> None:
        """Add values of a batch, or those of the samples `where` alone."""
        values = values.detach().double()
        if where is not None:
            values, count = torch.where(where, values, 0.0), where.sum()
        else:
            count = torch.tensor(values.numel(), device=values.device)
        total = values.sum()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts[name] + count if name in self._counts else count

    def take(self) -> dict[str, float]:
        """Means since the last call; a figure without any value is left out."""
        counts = {name: int(count) for name, count in self._counts.items()}
        means = {name: float(self._sums[name]) / n for name, n in counts.items() if n}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """From a checkpoint."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = {name: value.to(device) for name, value in state["counts"].items()}


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


def batch_state(batch: TokenBatch) -> dict[str, Tensor]:
    """A batch as tensors by name."""
    return {name: getattr(batch, name) for name in ("inputs", "labels", "puzzle", "example")}


def batch_of(state: Mapping[str, Tensor], device: torch.device) -> TokenBatch:
    """The batch that `batch_state` was given."""
    return TokenBatch(**state).to(device)


def latents_state(latents: Latents) -> dict[str, Tensor]:
    """Latents as tensors by name."""
    return {"z_h": latents.z_h, "z_l": latents.z_l}


def latents_of(state: Mapping[str, Tensor], device: torch.device) -> Latents:
    """The latents that `latents_state` was given."""
    return Latents(z_h=state["z_h"].to(device), z_l=state["z_l"].to(device))
