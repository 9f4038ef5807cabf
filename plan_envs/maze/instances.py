"""Maze instances: seeded generation with long shortest paths, the public file, disjoint splits.

An `InstanceSet` for `plan_envs.maze.rules.Maze` leaves here. Its solutions are the paths of the
public set's breadth-first search as plans, and its ratings count the cells on the path, start and
goal included, as the public set's do. Each maze has a random stream of its own, so the first k
mazes of a set do not depend on its size.
"""

import math
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from plan_envs.checks import as_puzzles, as_range
from plan_envs.domain import Int8Array
from plan_envs.instances import (
    SPLITS,
    InstanceSet,
    check_request,
    csv_rating,
    csv_rows,
    fill_in_chunks,
    stream_key,
)
from plan_envs.maze import generation
from plan_envs.maze.kernels import FREE, GOAL, START, WALL
from plan_envs.maze.rules import Maze
from plan_envs.maze.text import VALUES, guess_size, read_mazes
from plan_envs.texts import read_text

DEFAULT_PATH: Final[dict[int, int]] = {30: 110}
"""size -> least number of cells on the shortest path when a caller names none: that of the public
set; other sizes take `size + size // 5`."""

_CHUNK: Final = 16
"""Mazes a kernel call, so that Ctrl-C gets through between calls."""


def maze_instances(
    *,
    size: int = 30,
    split: str = "train",
    num: int = 1000,
    seed: int = 0,
    path: tuple[int, int | None] | None = None,
    walls: tuple[float, float] = (0.28, 0.45),
    progress: bool = False,
) -> InstanceSet:
    """Seeded mazes of independent walls; equal (size, split, seed, path, walls) give equal mazes.

    The model is plain rejection: draw a share of walls uniformly, make each cell a wall with that
    probability, draw start and goal among the free cells, and keep the maze if its shortest path
    fits and it belongs to the split. At 30x30 with 110 cells this keeps 1 in 10^5. To be faster,
    the t-th wall pattern of a maze is tried with k = 1 + t // 64 pairs of start and goal instead
    of one (8 k for the splits that hold a tenth), and a pattern in which no pair can fit is dropped
    unseen. Given the pattern, the pair is therefore that of plain rejection. A pattern in which a
    share r of the pairs fits counts 1 - (1 - r)^k instead of r, so those with r above about 1 / k
    come out less often than they should. Where 1 in 20 fits, as at 10x10 with 12 cells, k stays at
    1 or 2; at 30x30 with 110 cells it is about 40 in the end, which keeps nearly all: r has mean
    0.014 and 95th percentile 0.041 in 400 mazes of ours, 0.015 and 0.049 in 400 public ones.

    Splits are disjoint up to the eight symmetries of the square and the exchange of start and goal:
    the split is a function of a hash that is invariant to these, with shares of 8:1:1. Mazes may
    repeat on very small sizes.

    Args:
        size: rows and columns, 3-64.
        split: "train", "validation" or "test".
        num: number of mazes.
        seed: non-negative; each (seed, split, options) has its own random streams, one a maze.
        path: inclusive range of the cells on the shortest path, start and goal included; None as
            its end means no bound; None = (110, None) at size 30, (12, None) at size 10.
        walls: range of the share of walls, in [0, 1).
        progress: show a progress bar on stderr.

    Returns:
        The mazes; solutions are the label paths (see `Maze`), ratings the cells on them.

    Raises:
        ValueError: for a value out of range, or a path that bounded effort did not find.
    """
    domain = Maze(size)
    check_request(split, num, seed)
    low, high = _path_range(size, path)
    below_1 = math.nextafter(1.0, 0.0)
    least, most = as_range("walls", walls, least=0, most=below_1, convert=float)
    stream = np.uint64(stream_key(f"maze/{size}/{split}/{seed}/{low}-{high}/{least}-{most}"))
    instances = np.zeros((num, size * size), np.int8)
    failed = fill_in_chunks(
        generation.generate,
        (instances,),
        (stream, SPLITS.index(split), (low, high), (least, most)),
        chunk=_CHUNK,
        label=f"mazes {size}x{size} {split}",
        shown=progress,
    )
    if failed >= 0:
        raise ValueError(
            f"no {size}x{size} maze of split {split!r} with path={(low, high)} and "
            f"walls={(least, most)} found in {generation.MAX_PATTERNS} wall patterns "
            f"(maze {failed} of seed {seed}); widen the ranges"
        )
    solutions, edits = domain.label_paths(instances)
    name = f"maze{size}x{size}:{split}:seed{seed}"
    return InstanceSet.of(name, instances, solutions, edits + 1)


def split_of(instances: Int8Array, *, size: int) -> list[str]:
    """The split of each maze, shape [num]; equal for a maze and its images."""
    instances = as_puzzles(instances, size * size, GOAL)
    return [SPLITS[generation.split_of(instance, size)] for instance in instances]


def read_maze_csv(
    path: str | os.PathLike[str], *, size: int | None = None, limit: int | None = None
) -> InstanceSet:
    """Read mazes from a CSV file with columns `source,question,answer,rating`.

    This is the format of the public Maze-30x30-Hard set: '#' wall, ' ' or '.' free, 'S' start, 'G'
    goal (or the other signs of `plan_envs.maze.text`), and in the answer 'o' on the path. `answer`
    and `rating` may be empty or missing; ratings are then the cells on a shortest path. Solutions
    are the label paths (see `Maze`), which the public answers equal; an answer that is another
    shortest path is accepted and not kept.

    Args:
        path: file to read.
        size: expected size; None = that of the first row.
        limit: read at most so many rows.

    Raises:
        ValueError: one line that names file, line, field and value of the first malformed row.
    """
    mazes: list[Int8Array] = []
    paths: list[tuple[str, str]] = []
    ratings: list[float] = []
    domain = None if size is None else Maze(size)
    for line, row in csv_rows(Path(path), limit):
        place = f"{path}:{line}"
        question = row["question"] or ""
        domain, maze = _csv_maze(domain, question, place)
        mazes.append(maze)
        paths.append((place, row.get("answer") or ""))
        ratings.append(csv_rating(row.get("rating") or "", place))
    if domain is None or not mazes:
        raise ValueError(f"{path}: no mazes")
    instances = np.stack(mazes)
    solutions, edits = domain.label_paths(instances)
    for instance, (place, answer), distance in zip(instances, paths, edits, strict=True):
        if distance < 0:
            raise ValueError(f"{place}: question has a goal that cannot be reached from the start")
        reason = _why_wrong(domain, instance, answer, int(distance))
        if reason is not None:
            raise ValueError(f"{place}: answer {reason}")
    given = np.array(ratings)
    return InstanceSet.of(
        Path(path).name, instances, solutions, np.where(np.isnan(given), edits + 1, given)
    )


def read_maze_text(
    path: str | os.PathLike[str], *, size: int, limit: int | None = None
) -> InstanceSet:
    """Read the mazes of a text file, in any form that `read_mazes` reads.

    Args:
        path: file to read.
        size: rows and columns.
        limit: keep at most so many mazes.

    Raises:
        ValueError: one line that names file and line of the first maze that cannot be read or
            played.
    """
    domain = Maze(size)
    try:
        lines, instances = read_mazes(read_text(Path(path)), size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    instances = instances[:limit]
    for line, instance in zip(lines, instances, strict=False):
        reason = domain.why_invalid(instance)
        if reason is not None:
            raise ValueError(f"{path}:{line}: the maze {reason}")
    solutions, edits = domain.label_paths(instances)
    return InstanceSet.of(Path(path).name, instances, solutions, edits + 1)


def _path_range(size: int, path: Any) -> tuple[int, int]:
    """The range of path lengths that a caller asks for, checked."""
    cells = size * size
    if path is None:
        return DEFAULT_PATH.get(size, size + size // 5), cells
    if isinstance(path, tuple | list) and path[1:] in ((None,), [None]):
        path = (path[0], cells)
    return as_range("path", path, least=2, most=cells)


def _csv_maze(domain: Maze | None, question: str, place: str) -> tuple[Maze, Int8Array]:
    """A maze of a file, and the domain of its size."""
    try:
        domain = domain or Maze(guess_size(question))
        instance = domain.read_instance(question)
    except ValueError as error:
        raise ValueError(f"{place}: question: {error}") from None
    for name, value in (("start", START), ("goal", GOAL)):
        count = int((instance == value).sum())
        if count != 1:
            raise ValueError(f"{place}: question has {count} {name}s, not one")
    return domain, instance


def _why_wrong(domain: Maze, instance: Int8Array, answer: str, distance: int) -> str | None:
    """What is wrong with an answer; None for a shortest path, or no answer."""
    if not answer:
        return None
    if len(answer) != len(instance):
        return f"has {len(answer)} characters, the question {len(instance)}"
    signs = np.array(list(answer))
    walked = signs == "o"
    values = np.array([VALUES.get(sign, -1) for sign in answer])
    changed = (values != instance) & ~(walked & (instance == FREE))
    if changed.any():
        row, column = divmod(int(changed.argmax()), domain.size)
        return f"changes the maze at row {row + 1}, column {column + 1}"
    # cells that are not on the path become walls: the goal must be reached, and no cell be left
    narrow = np.where(walked | (instance >= START), instance, WALL).astype(np.int8)
    length = int(domain.distance(narrow[None])[0])
    if length < 0 or length != walked.sum() + 1:
        return f"is no path from the start to the goal: {int(walked.sum())} cells 'o'"
    if length > distance:
        return f"takes {length + 1} cells, the shortest path {distance + 1}"
    return None
