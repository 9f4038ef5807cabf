"""ARC as tokens: grids on canvases of 30 x 30, puzzle identifiers, and data sets of pairs.

On disk lie the plain pairs and, for every task, a list of distinct symmetries (dihedral, colours
1..9 permuted); images and random translations are made when a batch is drawn, so ARC-1 takes
megabytes where the reference stores 400,000 puzzles. Each (task, symmetry) is a puzzle identifier:
demonstrations teach it, test inputs are asked under it (REFERENCE.md, section B). The folders come
from `arc_plan`; `supervised.measures.arc_voting` maps predictions back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int, Int8, Integer
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.arc.grids import LARGEST, NUM_COLOURS, translate
from plan_envs.arc.rules import Arc
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.domain import Int8Array, Verdict
from supervised.data_sets.codecs import PAD, Tokens
from supervised.data_sets.datasets import (
    DatasetInfo,
    TokenBatch,
    check_indices,
    check_tokens,
    read_array,
    read_split,
    token_batch,
)

EOS: Final = 1
"""Marks the row under a grid and the column to its right, where the canvas has them."""

FIRST_COLOUR: Final = 2
"""Token of colour 0; below are 0 = PAD and 1 = EOS (REFERENCE.md A)."""

CELLS: Final = LARGEST * LARGEST
"""Positions of an example: a canvas of 30 x 30."""

VOCABULARY: Final = FIRST_COLOUR + NUM_COLOURS
"""Padding, EOS and the colours, 2..11."""

RULES: Final = Arc(LARGEST, 0)
"""Boards of 30 x 30 without demonstrations."""

NO_KEY: Final = bytes(16)
"""Key of a pair whose output is not known."""


def encode_boards(boards: Int8[np.ndarray, "batch 900"]) -> Tokens:
    """Tokens of boards, [batch, 900]: colour + 2, EOS under and to the right of the grid, else PAD.

    Args:
        boards: colour + 1 inside of a rectangle that may lie anywhere, 0 outside.
    """
    inside = boards.reshape(-1, LARGEST, LARGEST) > 0
    beside = np.zeros_like(inside)
    beside[:, 1:] |= inside[:, :-1]
    beside[:, :, 1:] |= inside[:, :, :-1]
    tokens = np.where(inside, boards.reshape(inside.shape) + 1, np.where(beside, EOS, PAD))
    return tokens.astype(np.uint8).reshape(-1, CELLS)


def decode_tokens(tokens: Integer[np.ndarray, "*batch 900"]) -> Int8[np.ndarray, "*batch 900"]:
    """Boards of tokens: colour + 1, and 0 for PAD, EOS and what is not supervised."""
    values = np.asarray(tokens)
    boards: Int8Array = np.where(values > EOS, values - 1, 0).astype(np.int8)
    return boards


def crop(tokens: Int[np.ndarray, "batch 900"]) -> Int8[np.ndarray, "batch 900"]:
    """The grids that predictions show, as boards (`Query.board`).

    A grid is the largest rectangle at the top left that holds nothing but colours; of equally large
    ones the one with fewest rows. So EOS and PAD end a grid alike, what lies beyond does not
    count, and a prediction whose first cell is no colour is empty (all zero).
    """
    canvases = tokens.reshape(-1, LARGEST, LARGEST)
    coloured = (canvases >= FIRST_COLOUR) & (canvases < FIRST_COLOUR + NUM_COLOURS)
    leading = np.cumprod(coloured, axis=2).sum(axis=2)
    width = np.minimum.accumulate(leading, axis=1)
    height = 1 + (width * np.arange(1, LARGEST + 1)).argmax(axis=1)
    width = np.take_along_axis(width, height[:, None] - 1, axis=1)
    place = np.arange(LARGEST)
    inside: Bool[np.ndarray, "batch 30 30"] = (place < height[:, None])[:, :, None] & (
        place < width
    )[:, None, :]
    return np.where(inside, canvases - (FIRST_COLOUR - 1), 0).astype(np.int8).reshape(-1, 900)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcIdentifiers:
    """Puzzle identifiers: 0 is blank, then those of each task, one a symmetry."""

    tasks: tuple[str, ...]
    """Ids of all tasks."""
    offsets: NDArray[np.int64]
    """Shape [task + 1]: task t has the symmetries offsets[t] .. offsets[t + 1] - 1."""
    table: NDArray[np.uint8]
    """Shape [symmetry, 11]: dihedral number, then the images of colours 0..9."""

    @classmethod
    def open(cls, folder: str | Path) -> "ArcIdentifiers":
        """Read the identifiers of a data set.

        Raises:
            ValueError: names a file that is missing or does not fit.
        """
        folder = Path(folder)
        names = ("tasks", "offsets", "symmetries")
        tasks, offsets, table = (read_array(folder / f"{name}.npy") for name in names)
        if offsets.shape != (len(tasks) + 1,) or table.shape != (int(offsets[-1]), 11):
            raise ValueError(
                f"{folder}: {len(tasks)} tasks, offsets of shape {list(offsets.shape)} and "
                f"symmetries of shape {list(table.shape)} do not fit together"
            )
        return cls(tasks=tuple(str(task) for task in tasks), offsets=offsets, table=table)

    def __len__(self) -> int:
        """Identifiers, the blank one included."""
        return 1 + len(self.table)

    def symmetry(self, puzzle: int) -> ArcSymmetry:
        """The symmetry of an identifier; the blank one has the identity."""
        if puzzle == 0:
            return ArcSymmetry(LARGEST, 0)
        dihedral, *colours = (int(value) for value in self.table[puzzle - 1])
        return ArcSymmetry(LARGEST, dihedral, tuple(colours))

    def symmetries(self, task: str) -> list[ArcSymmetry]:
        """All symmetries of a task by their numbers; number 0 is the identity."""
        first, last = self._range(task)
        return [self.symmetry(1 + k) for k in range(first, last)]

    def puzzle(self, task: str, augmentation: int) -> int:
        """The identifier of a task under its symmetry of that number.

        Raises:
            ValueError: for an unknown task, or a number that it does not have.
        """
        first, last = self._range(task)
        if not 0 <= augmentation < last - first:
            raise ValueError(
                f"augmentation of task {task} must lie in 0..{last - first - 1}, got {augmentation}"
            )
        return 1 + first + augmentation

    def _range(self, task: str) -> tuple[int, int]:
        if task not in self.tasks:
            raise ValueError(f"task {task!r} is not in the data set")
        index = self.tasks.index(task)
        return int(self.offsets[index]), int(self.offsets[index + 1])


class ArcDataset:
    """Pairs of ARC tasks: the input grid is the input, the output grid the label.

    Drawn with a generator, an example appears under a random symmetry of its task, and in the
    training split at a random place of the canvas, all but one in as many as its task has pairs (as
    the reference shifts all pairs of a puzzle but one). Without one it appears as stored, at the
    top left, under the identity.

    Args:
        folder: the data set's.
        split: "train", "validation" or "test".
        info: what `read_info` says of the folder.

    Raises:
        ValueError: names a file and what is wrong with it.
    """

    def __init__(self, folder: str | Path, split: str, info: DatasetInfo) -> None:
        folder = Path(folder)
        arrays = read_split(folder, split, info, ("inputs", "labels", "task", "pair", "keys"))
        for name in ("inputs", "labels"):
            check_tokens(arrays[name], info, name=f"{folder / split}: {name}")
        self.identifiers: Final = ArcIdentifiers.open(folder)
        if len(self.identifiers) != info.num_puzzles:
            raise ValueError(
                f"{folder}: {len(self.identifiers)} identifiers, not {info.num_puzzles}"
            )
        self.info, self._split = info, split
        self._inputs, self._labels = arrays["inputs"], arrays["labels"]
        self._task, self._pair = arrays["task"].astype(np.int64), arrays["pair"]
        self._counts = np.diff(self.identifiers.offsets)
        self._pairs = np.bincount(self._task, minlength=len(self.identifiers.tasks))
        self._arrays = arrays

    def __len__(self) -> int:
        """Pairs of the split, not counting images."""
        return len(self._inputs)

    def task_of(self, example: int) -> tuple[str, int]:
        """The task of an example, and the pair's number in it (demonstrations, then tests)."""
        return self.identifiers.tasks[self._task[example]], int(self._pair[example])

    def batch(
        self, indices: Sequence[int] | NDArray[Any], generator: np.random.Generator | None = None
    ) -> TokenBatch:
        """The examples at `indices`; see `TokenDataset.batch`."""
        chosen = check_indices(indices, len(self))
        task = self._task[chosen]
        numbers = np.zeros(len(chosen), np.int64)
        if generator is not None:
            numbers = generator.integers(self._counts[task])
        boards = self._images(chosen, numbers)
        if generator is not None and self._split == "train":
            boards = _moved(boards, generator, share=1 - 1 / self._pairs[task])
        tokens = encode_boards(boards.reshape(-1, CELLS)).reshape(boards.shape)
        puzzle = 1 + self.identifiers.offsets[task] + numbers
        return token_batch(tokens[:, 0], tokens[:, 1], puzzle, chosen)

    def marks(self) -> list["Mark"]:
        """What tells the pairs of the split from those of another."""
        return marks_of(self.identifiers.tasks, self._arrays)

    def verdict(self, batch: TokenBatch, predicted: Int[Tensor, "batch position"]) -> Verdict:
        """`solved` where the predicted grid is the label's; see `crop` for the grid."""
        tokens = predicted.cpu().numpy().copy()
        inputs, targets = (
            decode_tokens(part.cpu().numpy()).reshape(-1, LARGEST, LARGEST)
            for part in (batch.inputs, batch.labels)
        )
        down, right = (targets.any(axis=axis).argmax(axis=1) for axis in (2, 1))
        canvases = tokens.reshape(-1, LARGEST, LARGEST)
        for row in np.flatnonzero(down + right):  # a training pair somewhere on its canvas
            for some in (inputs, targets, canvases):
                some[row] = np.roll(some[row], (-down[row], -right[row]), axis=(0, 1))
        instances = np.concatenate([inputs, targets], axis=1).reshape(-1, 2 * CELLS)
        return RULES.check(np.ascontiguousarray(instances), crop(tokens.astype(np.int64)))

    def _images(self, chosen: NDArray[np.int64], numbers: NDArray[np.int64]) -> Int8Array:
        """Input and label boards under symmetries, [batch, 2, 900]."""
        pairs = np.stack([self._inputs[chosen], self._labels[chosen]], axis=1)
        boards = decode_tokens(pairs)
        first = self.identifiers.offsets[self._task[chosen]]
        for row in np.flatnonzero(numbers):
            symmetry = self.identifiers.symmetry(int(1 + first[row] + numbers[row]))
            boards[row] = symmetry.plans(boards[row])
        return boards


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What tells a pair from others."""

    task: str
    """Id of its task."""
    key: bytes
    """`example_key`: equal for its images; zeros where the output is not known."""
    exact: bytes
    """Its tokens."""


def known_among(pairs: Sequence[Mark], others: Sequence[Mark]) -> list[bool]:
    """Which pairs are among the others: exactly, or as an image that belongs to another task.

    Pairs whose output is not known are among none.
    """
    exact = {other.exact for other in others}
    owners: dict[bytes, set[str]] = {}
    for other in others:
        owners.setdefault(other.key, set()).add(other.task)
    return [
        pair.key != NO_KEY
        and (pair.exact in exact or bool(owners.get(pair.key, set()) - {pair.task}))
        for pair in pairs
    ]


def marks_of(ids: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> list[Mark]:
    """The marks of the pairs of a split.

    Args:
        ids: of all tasks of the data set.
        arrays: the split's "task", "keys", "inputs" and "labels".
    """
    columns = (arrays[name] for name in ("task", "keys", "inputs", "labels"))
    return [
        Mark(task=ids[task], key=key.tobytes(), exact=grid.tobytes() + output.tobytes())
        for task, key, grid, output in zip(*columns, strict=True)
    ]


def _moved(
    boards: Int8Array, generator: np.random.Generator, *, share: NDArray[np.float64]
) -> Int8Array:
    """A share of the pairs somewhere on their canvases, input and label alike; [batch, 2, 900]."""
    grids = boards.reshape(-1, 2, LARGEST, LARGEST) > 0
    moving = generator.random(len(boards)) < share
    shifts = []
    for axis in (3, 2):
        extent = grids.any(axis=axis).sum(axis=2).max(axis=1)
        shifts.append(np.where(moving, generator.integers(LARGEST - extent + 1), 0).repeat(2))
    moved = translate(boards.reshape(-1, CELLS), size=LARGEST, down=shifts[0], right=shifts[1])
    return moved.reshape(boards.shape)
