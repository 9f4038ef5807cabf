"""Target generators of Deep Improvement Supervision: paths y_0, ..., y_N that end in the label.

Frame s is what supervision step s is trained on, frame 0 what a step before the first would have
shown (DIS Eq. 14, Sec. 4.4). Input: a `TokenBatch`; output: frames [N + 1, batch, position] of
token ids, `IGNORE` where a position is not supervised. All frames keep the label's own `IGNORE`.
Deviation from the authors' code: positions that the label does not supervise are never supervised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from supervised.data_sets.codecs import PAD, BoardCodec
from supervised.data_sets.datasets import TokenBatch
from trm.nn.stablemax import IGNORE

CorruptedAs = Literal["mask", "input", "ignored", "random"]
"""What a corrupted position shows: the padding token, which no label is; the input's token; nothing
to learn from; or any token but padding."""


Frames = Int[Tensor, "frame batch position"]

TargetGenerator = Callable[[TokenBatch, int, torch.Generator], Frames]
"""Phi of DIS Eq. 14: (batch, N, generator) -> frames 0..N of every sample; the last is the label.

The frames are where the batch is; the generator is on the CPU.
"""


def final_targets(batch: TokenBatch, steps: int, generator: torch.Generator) -> Frames:
    """The label at every step: the control that the paper lacks."""
    return batch.labels.expand(steps + 1, -1, -1).clone()


def corruption_rate(step: int, *, steps: int, initial: float, power: float) -> float:
    """beta_s = initial (1 - s / N)^power: falls from `initial` at step 0 to 0 at step N."""
    return float(initial * (1 - step / steps) ** power)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """q_beta (DIS Eq. 15): every supervised position is corrupted with probability beta_s.

    Independent: new draws at every step, as the equation says; in expectation alone the targets
    come closer. Nested: one uniform draw u a position, corrupted while u < beta_s, so that along a
    path corruption only ever goes; what a corrupted position shows stays too. `initial` and `power`
    are those of `corruption_rate`.
    """

    nested: bool
    shown: CorruptedAs
    vocab_size: int
    initial: float = 1.0
    power: float = 1.0

    def __call__(self, batch: TokenBatch, steps: int, generator: torch.Generator) -> Frames:
        """A `TargetGenerator`."""
        labels, supervised = batch.labels, batch.labels != IGNORE
        frames = []
        draws = self._draw(batch, generator)
        for step in range(steps + 1):
            if step and not self.nested:
                draws = self._draw(batch, generator)
            rate = corruption_rate(step, steps=steps, initial=self.initial, power=self.power)
            uniform, replaced = draws
            frames.append(torch.where((uniform < rate) & supervised, replaced, labels))
        return torch.stack(frames)

    def _draw(self, batch: TokenBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A uniform number for each position, and what it shows when corrupted."""
        labels = batch.labels
        uniform = torch.rand(labels.shape, generator=generator).to(labels.device)
        if self.shown == "input":
            return uniform, batch.inputs
        if self.shown == "random":
            tokens = torch.randint(1, self.vocab_size, labels.shape, generator=generator)
            return uniform, tokens.to(labels.device)
        return uniform, torch.full_like(labels, PAD if self.shown == "mask" else IGNORE)


Order = Callable[[TokenBatch, torch.Generator], Float[Tensor, "batch position"]]
"""A number for each position; those with lower ones are edited first."""


def random_order(batch: TokenBatch, generator: torch.Generator) -> Float[Tensor, "batch position"]:
    """Any order alike: what the authors' code runs."""
    return torch.rand(batch.labels.shape, generator=generator).to(batch.labels.device)


@dataclass(frozen=True)
class InputPath:
    """A path from the input to the label: frame s shows the first s / N of the edits that it takes.

    With `random_order` this is what the authors' code runs (REFERENCE.md C2), with `SolverOrder`
    a path of programmable edits (DIS Sec. 4.4, generator 1). Nested, hence monotone.
    """

    order: Order

    def __call__(self, batch: TokenBatch, steps: int, generator: torch.Generator) -> Frames:
        """A `TargetGenerator`."""
        inputs, labels = batch.inputs, batch.labels
        differs = (inputs != labels) & (labels != IGNORE)
        keys = self.order(batch, generator).masked_fill(~differs, float("inf"))
        rank = keys.argsort(dim=1).argsort(dim=1)
        edits = differs.sum(dim=1, keepdim=True)
        frames = []
        for step in range(steps + 1):
            todo = differs & (rank >= step * edits // steps)
            frames.append(torch.where(todo, inputs, labels))
        return torch.stack(frames)


class SolverOrder:
    """Constraint-consistent moves: always where the rules leave fewest choices, then at random.

    The choices are those of the first kind of constraint group (Sudoku: digits of a cell, N-Queens:
    squares of a row). In a maze only the path's next cell is legal: the order is the path's.
    """

    def __init__(self, codec: BoardCodec) -> None:
        """`codec` reads boards, its domain says what is legal."""
        self.codec = codec
        spec = codec.domain.spec
        self._cell = np.maximum(spec.action_cell, 0)
        self._value = spec.action_value
        self._writes = spec.action_cell >= 0
        self._group = None
        if spec.groups:
            labels = next(iter(spec.groups.values()))
            self._group = labels[self._cell * spec.num_values + np.maximum(self._value, 1) - 1]

    def __call__(
        self, batch: TokenBatch, generator: torch.Generator
    ) -> Float[Tensor, "batch position"]:
        """The move at which each position is edited; inf where it never is."""
        inputs, labels = batch.inputs.cpu().numpy(), batch.labels.cpu().numpy()
        domain = self.codec.domain
        instances, solutions = self.codec.decode(inputs, np.where(labels == IGNORE, PAD, labels))
        plans = domain.initial(instances)
        ties = torch.rand(batch.labels.shape, generator=generator).numpy()
        order = np.full(inputs.shape, np.inf, np.float32)
        every = np.arange(len(inputs))
        target = solutions[:, self._cell]
        wanted = self._writes & (target != 0)
        if self._group is not None:  # a path's cells say where it goes on, which no edit writes
            wanted &= target == self._value
        for move in range(inputs.shape[1]):
            legal = domain.action_mask(instances, plans) == 1
            moves = legal & wanted & np.isinf(order)[:, self._cell]
            going = moves.any(axis=1)
            if not going.any():
                break
            cost = np.where(moves, self._choices(legal) + ties[:, self._cell], np.inf)
            action = cost.argmin(axis=1)
            order[every[going], self._cell[action][going]] = move
            edited = domain.edit(instances, plans, action.astype(np.int32))
            plans = np.where(going[:, None], edited, plans)
        return torch.from_numpy(order).to(batch.labels.device)

    def _choices(self, legal: NDArray[Any]) -> NDArray[Any]:
        """The number of legal actions in the group of each action, 0 without groups."""
        if self._group is None:
            return np.zeros(legal.shape, np.float32)
        membership = np.zeros((legal.shape[1], int(self._group.max()) + 1), np.float32)
        membership[np.arange(legal.shape[1]), self._group] = self._writes
        counts = legal.astype(np.float32) @ membership
        return counts[:, self._group]
