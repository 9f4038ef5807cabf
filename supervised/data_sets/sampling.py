"""What trainers draw: an endless, shuffled stream of samples, taken on demand.

Every pass visits each example once, in a new order. Several processes share the order and take
every world-th example each, so that no two see the same one in a pass. Input: a `TokenDataset` and
generators; output: `TokenBatch`es for `supervised.objectives`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from supervised.data_sets.datasets import TokenBatch, TokenDataset
from trm.nn.variable_tokens import BLANK, FIRST_VALUE


@dataclass(frozen=True)
class Reveal:
    """Shows a share of the label's values in a sample's blanks, drawn for each from 0 to `most`."""

    most: float
    rng: np.random.Generator

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with other inputs."""
        labels, size = batch.labels, batch.inputs.shape
        share = self.most * self.rng.random((size[0], 1), np.float32)
        drawn = torch.from_numpy(self.rng.random(size, np.float32) < share)
        shown = drawn & (batch.inputs == BLANK) & (labels >= FIRST_VALUE)
        return replace(batch, inputs=torch.where(shown, labels, batch.inputs))


class SampleStream:
    """Samples one after the other, in shuffled passes."""

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        order: np.random.Generator,
        images: np.random.Generator | None = None,
        reveal: "Reveal | None" = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """A stream over a data set.

        Args:
            dataset: at least `world` examples.
            order: shuffles each pass; must be in the same state in every process.
            images: draws an image of each sample under the rules' symmetries; None = as stored.
            reveal: writes a part of each sample's label into its input.
            rank: this process.
            world: number of processes.
        """
        if len(dataset) < world:
            raise ValueError(f"data: {len(dataset)} examples are too few for {world} processes")
        self.dataset, self._order, self._images = dataset, order, images
        self._reveal = reveal
        self._rank, self._world = rank, world
        self._pass: NDArray[np.int64] = np.zeros(0, np.int64)
        self._position = 0
        self.drawn = 0
        """Samples that this process took so far, each a pass of one sample through the trainer."""

    def take(self, count: int) -> TokenBatch:
        """The next `count` samples."""
        chosen = []
        while count > 0:
            if self._position == len(self._pass):
                share = len(self.dataset) // self._world * self._world
                whole = self._order.permutation(len(self.dataset))[:share]
                self._pass, self._position = whole[self._rank :: self._world], 0
            part = self._pass[self._position : self._position + count]
            chosen.append(part)
            self._position += len(part)
            self.drawn += len(part)
            count -= len(part)
        batch = self.dataset.batch(np.concatenate(chosen or [self._pass[:0]]), self._images)
        return batch if self._reveal is None else self._reveal(batch)

    def state(self) -> dict[str, Any]:
        """How far the stream is; whoever made the generators saves them."""
        return {"pass": self._pass, "position": self._position, "drawn": self.drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._pass, self._position = np.asarray(state["pass"]), state["position"]
        self.drawn = state["drawn"]
