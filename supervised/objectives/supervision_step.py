"""What ACT and DIS share: a supervision step, the batch that is carried along, reported figures.

`supervised.trainer` asks an `act.ActObjective` or a `dis.DisObjective` for a `Step`, goes backward,
and lets the optimisers act when the step is complete; a checkpoint holds the objective's state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from supervised.data_sets.datasets import TokenBatch
from trm.nn.recursion import Latents
from trm.nn.token_model import TokenModel


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


class Figures:
    """Sums of what steps report, as tensors, so that nothing waits for the device between logs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(
        self, name: str, values: Tensor, *, where: Bool[Tensor, " batch"] | None = None
    ) -> None:
        """Add the values of a batch; only those of the samples `where`, if it is given."""
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
        """What a checkpoint keeps."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up a state."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = {name: value.to(device) for name, value in state["counts"].items()}


class CarriedBatch:
    """The samples that are carried from step to step, their latents, and what was reported of them.

    Args:
        model: gives the initial latents and the device.
        size: number of samples; there are none at first.
    """

    def __init__(self, model: TokenModel, size: int) -> None:
        self.samples: TokenBatch | None = None
        self.latents: Latents = model.start(size)
        self.figures = Figures()
        self._device = model.start_h.device

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "batch": None if self.samples is None else self.samples.parts(),
            "latents": {"z_h": self.latents.z_h, "z_l": self.latents.z_l},
            "figures": self.figures.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        batch, latents = state["batch"], state["latents"]
        self.samples = None if batch is None else TokenBatch(**batch).to(self._device)
        self.latents = Latents(**{name: z.to(self._device) for name, z in latents.items()})
        self.figures.load_state(state["figures"], self._device)
