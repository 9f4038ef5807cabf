"""Target generators of Deep Improvement Supervision: paths y_0, ..., y_N that end in the label.

Frame s is what supervision step s is trained on, frame 0 what a step before the first would have
shown (DIS Eq. 14, Sec. 4.4). Input: a `TokenBatch`; output: frames [N + 1, batch, position] of
token ids, `IGNORE` where a position is not supervised. All frames keep the label's own `IGNORE`.
Deviation from the authors' code: positions that the label does not supervise are never supervised.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from supervised.data_sets.codecs import PAD, BoardCodec
from supervised.data_sets.datasets import TokenBatch, TokenDataset
from trm.nn.stablemax import IGNORE

CorruptedAs = Literal["mask", "input", "ignored", "random"]
"""What a corrupted position shows: the padding token, which no label is; the input's token; nothing
to learn from; or any token but padding."""


@runtime_checkable
class TargetGenerator(Protocol):
    """Phi of DIS Eq. 14."""

    def frames(
        self, batch: TokenBatch, steps: int, generator: torch.Generator
    ) -> Int[Tensor, "frame batch position"]:
        """Frames 0..steps of every sample; the last one is the label.

        Args:
            batch: on the CPU or a device, where the frames will be too.
            steps: N.
            generator: on the CPU.
        """
        ...


class FinalTargets:
    """The label at every step: the control that the paper lacks."""

    def frames(
        self, batch: TokenBatch, steps: int, generator: torch.Generator
    ) -> Int[Tensor, "frame batch position"]:
        """See `TargetGenerator`."""
        return batch.labels.expand(steps + 1, -1, -1).clone()


def corruption_rate(step: int, *, steps: int, initial: float, power: float) -> float:
    """beta_s = initial (1 - s / N)^power: falls from `initial` at step 0 to 0 at step N."""
    return float(initial * (1 - step / steps) ** power)


class Corruption:
    """q_beta (DIS Eq. 15): every supervised position is corrupted with probability beta_s.

    Independent: new draws at every step, as the equation says; in expectation alone the targets
    come closer. Nested: one uniform draw u a position, corrupted while u < beta_s, so that along a
    path corruption only ever goes; what a corrupted position shows stays too.
    """

    def __init__(
        self,
        *,
        nested: bool,
        shown: CorruptedAs,
        vocab_size: int,
        initial: float = 1.0,
        power: float = 1.0,
    ) -> None:
        """See `corruption_rate`."""
        self.nested, self.shown, self.vocab_size = nested, shown, vocab_size
        self.initial, self.power = initial, power

    def frames(
        self, batch: TokenBatch, steps: int, generator: torch.Generator
    ) -> Int[Tensor, "frame batch position"]:
        """See `TargetGenerator`."""
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


class InputPath:
    """A path from the input to the label: frame s shows the first s / N of the edits that it takes.

    With `random_order` this is what the authors' code runs (REFERENCE.md C2), with `SolverOrder`
    a path of programmable edits (DIS Sec. 4.4, generator 1). Nested, hence monotone.
    """

    def __init__(self, order: Order) -> None:
        """`order` says which edits come first."""
        self.order = order

    def frames(
        self, batch: TokenBatch, steps: int, generator: torch.Generator
    ) -> Int[Tensor, "frame batch position"]:
        """See `TargetGenerator`."""
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


class FileTargets:
    """Targets that somebody else wrote, e.g. plans of a language model (generator 2).

    One JSON object a line: `{"example": 3, "targets": [[...], ...]}`, each target the tokens of all
    positions, the last one the label. Other numbers of targets than N are spread over the N steps.
    A token that the vocabulary lacks becomes the input's (the projection on the output space).
    """

    def __init__(self, path: Path, dataset: TokenDataset) -> None:
        """Read and check a file against the data set that it belongs to.

        Raises:
            ValueError: names file, line and what is wrong: an example that is missing, twice or not
                in the data set, a wrong length, a path that does not end in its label.
        """
        self.path = path
        self._paths: dict[int, Tensor] = {}
        for number, example, targets in _read_lines(path):
            where = f"{path}, line {number}: example {example}"
            if not 0 <= example < len(dataset):
                raise ValueError(f"{where} is none of the {len(dataset)} of the data set")
            if example in self._paths:
                raise ValueError(f"{where} is listed twice")
            batch = dataset.batch([example])
            for target in targets:
                if len(target) != batch.inputs.shape[1]:
                    raise ValueError(
                        f"{where}: a target has {len(target)} tokens, not {batch.inputs.shape[1]}"
                    )
            frames = torch.tensor(targets, dtype=torch.long)
            known = (frames >= 0) & (frames < dataset.info.vocab_size)
            frames = torch.where(known, frames, batch.inputs)
            supervised = batch.labels != IGNORE
            if bool(((frames[-1] != batch.labels) & supervised).any()):
                raise ValueError(f"{where}: the last target is not the label")
            self._paths[example] = frames.masked_fill(~supervised, IGNORE)
        missing = sorted(set(range(len(dataset))) - set(self._paths))
        if missing:
            raise ValueError(f"{path}: no targets for example {missing[0]}")

    def frames(
        self, batch: TokenBatch, steps: int, generator: torch.Generator
    ) -> Int[Tensor, "frame batch position"]:
        """See `TargetGenerator`; frame 0 is the input.

        Raises:
            ValueError: for an image of an example: the file knows examples as stored alone.
        """
        columns = []
        for row, example in enumerate(batch.example.tolist()):
            path = self._paths[example]
            index = [-(-step * len(path) // steps) - 1 for step in range(1, steps + 1)]
            columns.append(path[index])
            if not torch.equal(path[-1], batch.labels[row].cpu()):
                raise ValueError(
                    f"{self.path}: example {example} is an image under a symmetry; targets from a"
                    " file need data.augment false"
                )
        later = torch.stack(columns, dim=1).to(batch.inputs.device)
        first = torch.where(batch.labels == IGNORE, IGNORE, batch.inputs)
        return torch.cat((first[None], later))


def _read_lines(path: Path) -> Sequence[tuple[int, int, list[list[int]]]]:
    """Line number, example and targets of every line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            example, targets = record["example"], record["targets"]
            whole = isinstance(example, int) and all(
                isinstance(token, int) for target in targets for token in target
            )
            if not whole or not targets:
                raise TypeError("expected an integer and lists of integers")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"example": N, "targets": [[...], ...]}}'
                f" ({error})"
            ) from None
        records.append((number, example, targets))
    return records
