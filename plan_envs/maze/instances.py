"""Maze instances: seeded generation with long shortest paths, the public file, disjoint splits.

Output: an `InstanceSet` for `plan_envs.maze.rules.Maze`, whose solutions are the paths of the public
set's breadth-first search as plans, and whose ratings count cells on the path, start and goal
included, as the public set's do. One random stream a maze, so the first k mazes of a set do not
depend on its size.
"""

import csv
import operator
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import GAMMA, below, copy_bytes, popcount, split_of_word
from plan_envs.domain import Int8Array
from plan_envs.instances import SPLITS, InstanceSet, mix, progress_bar, stream_key
from plan_envs.maze.kernels import (
    BLOCKED,
    FREE,
    GOAL,
    START,
    UNSEEN,
    WALL,
    flood,
    framed,
    scratch,
)
from plan_envs.maze.rules import MAZE_SYMBOLS, SIZES, Maze

DEFAULT_PATH: Final[dict[int, int]] = {30: 110}
"""size -> least number of cells on the shortest path when a caller names none: that of the public
set; other sizes take `size + size // 5`."""

_MAX_PATTERNS: Final = 1 << 18
"""Wall patterns tried for one maze: half a second at 30x30."""
_PATIENCE: Final = 64
"""Wall patterns after which each one is tried with one more pair of start and goal."""
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
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if num < 0:
        raise ValueError(f"num must be >= 0, got {num}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    low, high = _path_range(size, path)
    least, most = _wall_range(walls)
    stream = np.uint64(stream_key(f"maze/{size}/{split}/{seed}/{low}-{high}/{least}-{most}"))
    instances = np.zeros((num, size * size), np.int8)
    with progress_bar(num, f"mazes {size}x{size} {split}", shown=progress) as advance:
        for start in range(0, num, _CHUNK):
            stop = min(start + _CHUNK, num)
            failed = _generate(
                instances, start, stop, stream, SPLITS.index(split), (low, high), (least, most)
            )
            if failed >= 0:
                raise ValueError(
                    f"no {size}x{size} maze of split {split!r} with path={(low, high)} and "
                    f"walls={(least, most)} found in {_MAX_PATTERNS} wall patterns "
                    f"(maze {failed} of seed {seed}); widen the ranges"
                )
            advance(stop - start)
    solutions, edits = domain.label_paths(instances)
    name = f"maze{size}x{size}:{split}:seed{seed}"
    return InstanceSet.of(name, instances, solutions, edits + 1)


def split_of(instances: Int8Array, *, size: int) -> list[str]:
    """The split of each maze, shape [num]; equal for a maze and its images."""
    instances = np.require(instances, np.int8, ("C", "W"))
    if instances.ndim != 2 or instances.shape[1] != size * size:
        raise ValueError(f"instances must have shape [num, {size * size}], got {instances.shape}")
    return [SPLITS[_split_of(instance, size)] for instance in instances]


def read_maze_csv(
    path: str | os.PathLike[str], *, size: int | None = None, limit: int | None = None
) -> InstanceSet:
    """Read mazes from a CSV file with columns `source,question,answer,rating`.

    This is the format of the public Maze-30x30-Hard set: '#' wall, ' ' or '.' free, 'S' start, 'G'
    goal, and in the answer 'o' on the path. `answer` and `rating` may be empty or missing; ratings
    are then the cells on a shortest path. Solutions are the label paths (see `Maze`), which the
    public answers equal; an answer that is another shortest path is accepted and not kept.

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
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if reader.fieldnames is None or "question" not in reader.fieldnames:
                raise ValueError(
                    f"{path}:1: header must name the columns source,question,answer,rating, "
                    f"got {reader.fieldnames}"
                )
            for row in reader:
                if limit is not None and len(mazes) >= limit:
                    break
                place = f"{path}:{reader.line_num}"
                if None in row:
                    raise ValueError(f"{place}: more fields than the header, got {row[None]}")
                question = row["question"] or ""
                domain = domain or Maze(_size_of(question, place))
                mazes.append(_csv_maze(domain, question, place))
                paths.append((place, row.get("answer") or ""))
                ratings.append(_csv_rating(row.get("rating") or "", place))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}:{reader.line_num + 1}: not readable as CSV: {error}"
            ) from error
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


def _path_range(size: int, path: Any) -> tuple[int, int]:
    """The range of path lengths that a caller asks for, checked."""
    cells = size * size
    if path is None:
        return DEFAULT_PATH.get(size, size + size // 5), cells
    try:
        low, high = path
        low = operator.index(low)
        high = cells if high is None else operator.index(high)
    except (TypeError, ValueError):
        raise ValueError(f"path must be a pair (low, high), got {path!r}") from None
    if not 2 <= low <= high <= cells:
        raise ValueError(
            f"path of a {size}x{size} maze must be (low, high) with 2 <= low <= high <= {cells}, "
            f"got {tuple(path)}"
        )
    return low, high


def _wall_range(walls: Any) -> tuple[float, float]:
    try:
        least, most = (float(share) for share in walls)
    except (TypeError, ValueError):
        raise ValueError(f"walls must be a pair (low, high), got {walls!r}") from None
    if not 0 <= least <= most < 1:
        raise ValueError(
            f"walls must be (low, high) with 0 <= low <= high < 1, got {(least, most)}"
        )
    return least, most


def _size_of(question: str, place: str) -> int:
    size: int = round(len(question) ** 0.5)
    if size * size != len(question) or size not in SIZES:
        raise ValueError(
            f"{place}: question: a maze has size * size characters with size "
            f"{SIZES[0]}-{SIZES[-1]}, got {len(question)}"
        )
    return size


def _csv_maze(domain: Maze, question: str, place: str) -> Int8Array:
    try:
        instance = domain.read_instance(question)
    except ValueError as error:
        raise ValueError(f"{place}: question: {error}") from None
    for name, symbol in (("start", "S"), ("goal", "G")):
        if question.count(symbol) != 1:
            raise ValueError(f"{place}: question has {question.count(symbol)} {name}s, not one")
    return instance


def _csv_rating(text: str, place: str) -> float:
    if not text:
        return float("nan")
    try:
        rating = float(text)
    except ValueError:
        rating = float("nan")
    if not np.isfinite(rating):
        raise ValueError(f"{place}: rating must be a finite number, got {text!r}")
    return rating


def _why_wrong(domain: Maze, instance: Int8Array, answer: str, distance: int) -> str | None:
    """What is wrong with an answer; None for a shortest path, or no answer."""
    if not answer:
        return None
    if len(answer) != len(instance):
        return f"has {len(answer)} characters, the question {len(instance)}"
    signs = np.array(list(answer))
    walked = signs == "o"
    expected = np.array(list(MAZE_SYMBOLS))[instance]
    changed = (signs != expected) & ~(walked & (instance == FREE))
    changed &= ~((signs == ".") & (instance == FREE))
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


@njit(cache=True)
def _word(key: Any, counter: Any) -> Any:
    """Output number `counter` of splitmix64 from the state `key`."""
    return mix(key + np.uint64(counter + 1) * GAMMA)


@njit(cache=True)
def _draw_walls(key: Any, counter: Any, share: Any, free: Any) -> None:
    """Free cells as bits, rows 1..size of `free`; each a wall with the share, in steps of 2**-16.

    A bit that goes through the binary digits of p from the last to the first, ORed with a random
    bit at a 1 and ANDed at a 0, ends as 1 with probability p.
    """
    size = len(free) - 2
    digits = np.int64(share * 65536.0)
    walls = np.zeros(size, np.uint64)
    for digit in range(16):
        either = (digits >> digit) & 1
        for row in range(size):
            word = _word(key, counter + digit * size + row)
            walls[row] = walls[row] | word if either else walls[row] & word
    row_bits = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - size)
    free[:] = 0
    for row in range(size):
        free[row + 1] = ~walls[row] & row_bits


@njit(cache=True)
def _may_fit(free: Any, edits: Any, rows: Any) -> Any:
    """Whether some component may hold a pair of cells `edits` apart; never wrongly False.

    A component holds none if all its cells are less than edits / 2 from one of them: from a root
    near the middle of the maze, or from the middle of a path between two far cells. The rest of the
    free cells holds none if it has no more than `edits` cells.
    """
    left, component, reached, other, front, spare = rows
    half, one = (edits + 1) // 2, np.uint64(1)
    _copy(free, left)
    for r in range(1, len(free) - 1):  # cells without neighbours are many, and never in a pair
        left[r] &= (free[r] << one) | (free[r] >> one) | free[r - 1] | free[r + 1]
    while _count(left) > edits:
        row, bit = _root(left)
        for r in range(len(front)):
            front[r] = bit if r == row else np.uint64(0)
        _copy(left, component)
        levels = _wave(left, front, spare, edits)
        if levels == edits:
            return True
        for r in range(len(left)):
            component[r] &= ~left[r]
        if levels < half:
            continue
        _keep_one(front)
        _copy(front, reached)
        far = _wave_within(component, front, other, spare, edits)
        if far >= edits:
            return True
        _keep_one(front)
        _wave_within(component, reached, other, spare, far // 2)
        _wave_within(component, front, other, spare, far - far // 2)
        for r in range(len(front)):
            front[r] &= reached[r]
        _keep_one(front)
        if _wave_within(component, front, other, spare, half) >= half:
            return True
    return False


@njit(cache=True)
def _copy(rows: Any, target: Any) -> None:
    """Copy rows; slices would take numba longer to compile than all the rest."""
    for row in range(len(rows)):
        target[row] = rows[row]


@njit(cache=True)
def _count(rows: Any) -> Any:
    """Number of bits set."""
    count = 0
    for word in rows:
        count += popcount(np.uint32(word)) + popcount(np.uint32(word >> np.uint64(32)))
    return count


@njit(cache=True)
def _root(left: Any) -> Any:
    """(row, bit) of a cell near the middle: rows from there outwards."""
    size = len(left) - 2
    for k in range(size):
        row = 1 + size // 2 + (k // 2 if k % 2 == 0 else -(k // 2 + 1))
        row = min(max(row, 1), size)
        if left[row]:
            right = left[row] >> np.uint64(size // 2) << np.uint64(size // 2)
            return row, _lowest(right if right else left[row])
    return 0, np.uint64(0)


@njit(cache=True)
def _lowest(word: Any) -> Any:
    """The lowest bit of a word, alone."""
    return word & (~word + np.uint64(1))


@njit(cache=True)
def _keep_one(front: Any) -> None:
    """Leave one cell of a front."""
    found = False
    for row in range(len(front)):
        front[row] = np.uint64(0) if found else _lowest(front[row])
        found |= front[row] != 0


@njit(cache=True)
def _wave_within(component: Any, front: Any, left: Any, spare: Any, most: Any) -> Any:
    """`_wave` within a component, which stays as it is."""
    _copy(component, left)
    return _wave(left, front, spare, most)


@njit(cache=True)
def _wave(left: Any, front: Any, spare: Any, most: Any) -> Any:
    """Flood `left` from a front, at most so many levels: their number.

    Rows move as words of bits, those of a frame stay 0. What was reached leaves `left`, the last
    level stays in `front`. Unsigned places let the loops run on vectors.
    """
    one, two = np.uint64(1), np.uint64(2)
    size = np.uint64(len(left) - 2)
    for row in range(size):
        left[row + one] &= ~front[row + one]
    levels = 0
    while levels < most:
        any_cell = np.uint64(0)
        for row in range(size):
            word = front[row + one]
            word = (word << one) | (word >> one) | front[row] | front[row + two]
            word &= left[row + one]
            spare[row + one] = word
            any_cell |= word
        if any_cell == 0:
            break
        levels += 1
        for row in range(size):
            word = spare[row + one]
            front[row + one] = word
            left[row + one] &= ~word
    return levels


@njit(cache=True)
def _spread(template: Any, width: Any, edits: Any, space: Any, reach: Any) -> Any:
    """Distances of all cells from a middle of their component; False if no pair can fit.

    The middle is that of a path between two far cells. Cells s and t of a component are at most
    reach[s] + reach[t] apart.
    """
    distance, queue = space
    copy_bytes(reach, 0, template, 0, 2 * len(template))
    possible = False
    for cell in range(len(template)):
        if reach[cell] != UNSEEN:
            continue
        num = flood(template, width, cell, distance, queue)
        num = flood(template, width, queue[num - 1], distance, queue)
        middle = queue[num - 1]
        for _ in range(distance[middle] // 2):
            for other in (middle + width, middle - 1, middle + 1, middle - width):
                if distance[other] == distance[middle] - 1:
                    middle = other
                    break
        num = flood(template, width, middle, distance, queue)
        for k in range(num):
            reach[queue[k]] = distance[queue[k]]
        possible |= 2 * distance[queue[num - 1]] >= edits
    return possible


@njit(cache=True)
def _generate(
    instances: Any, first: Any, last: Any, stream: Any, split: Any, path: Any, walls: Any
) -> Any:
    """Fill rows first..last - 1; -1, or the row for which no maze was found."""
    size = round(np.sqrt(instances.shape[1]))
    width = size + 2
    template, distance, queue = scratch(size)
    space = (distance, queue)
    reach = np.empty_like(template)
    cells = np.empty(size * size, np.int32)
    words = np.zeros((7, size + 2), np.uint64)
    free = words[0]
    rows = (words[1], words[2], words[3], words[4], words[5], words[6])
    shortest, longest = path[0] - 1, path[1] - 1
    for index in range(first, last):
        key = _word(stream, index)
        counter = 0
        found = False
        for attempt in range(_MAX_PATTERNS):
            share = walls[0] + (walls[1] - walls[0]) * (_word(key, counter) >> np.uint64(11)) * (
                1.0 / 9007199254740992.0
            )
            _draw_walls(key, counter + 1, share, free)
            counter += 1 + 16 * size
            if not _may_fit(free, shortest, rows):
                continue
            num = 0
            template[:] = BLOCKED
            for row in range(size):
                for column in range(size):
                    if (free[row + 1] >> np.uint64(column)) & np.uint64(1):
                        template[(row + 1) * width + column + 1] = UNSEEN
                        cells[num] = row * size + column
                        num += 1
            if num < 2 or not _spread(template, width, shortest, space, reach):
                continue
            tries = (1 + attempt // _PATIENCE) * (1 if split == 0 else 8)
            for _ in range(tries):
                one = below(_word(key, counter), num)
                other = below(_word(key, counter + 1), num - 1)
                other += other >= one
                counter += 2
                start, goal = framed(cells[one], size), framed(cells[other], size)
                if reach[start] + reach[goal] < shortest:
                    continue
                flood(template, width, start, distance, queue)
                if not shortest <= distance[goal] <= longest:
                    continue
                maze = instances[index]
                maze[:] = WALL
                for k in range(num):
                    maze[cells[k]] = FREE
                maze[cells[one]], maze[cells[other]] = START, GOAL
                if _split_of(maze, size) == split:
                    found = True
                    break
            if found:
                break
        if not found:
            return index
    return -1


@njit(cache=True)
def _split_of(maze: Any, size: Any) -> Any:
    """Index of the split of a maze: the least hash of its eight images, start and goal alike."""
    least = np.uint64(0xFFFFFFFFFFFFFFFF)
    end = size - 1
    for number in range(8):
        word = np.uint64(size)
        for row in range(size):
            for column in range(size):
                r = end - row if number & 1 else row
                c = end - column if number & 2 else column
                value = maze[c * size + r] if number & 4 else maze[r * size + c]
                word = (word ^ np.uint64(min(value, START))) * np.uint64(0x100000001B3)
        least = min(least, _word(word, 0))
    return split_of_word(least)
