"""Queens boards: solutions, symmetry classes, completions, seeded instances, files.

Boards leave here as an `InstanceSet`. Everything depends on (n, split, seed, options, index) alone,
so the first k instances of a set do not depend on its size. The kernels are in
`plan_envs.queens.generation` and `plan_envs.queens.search`. Boards are int8 vectors of n * n
squares, 1 = queen.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.checks import as_puzzles, as_range
from plan_envs.domain import Int8Array, one_of
from plan_envs.instances import (
    SPLITS,
    InstanceSet,
    Split,
    check_request,
    content_keys,
    csv_rows,
    fill_in_chunks,
    stream_key,
)
from plan_envs.queens import generation, search
from plan_envs.queens.text import read_board, read_boards
from plan_envs.texts import read_text, shorten, signs_of_line

Holdout = Literal["classes", "instances"]

SIDES: Final = range(4, 33)
"""Sizes of the board; smaller ones have no or trivial solutions."""

ENUMERATED: Final = range(4, 13)
"""Sizes of which all solutions are kept in memory."""

_NUM_SOLUTIONS: Final = {4: 2, 5: 10, 6: 4, 7: 40, 8: 92, 9: 352, 10: 724, 11: 2680, 12: 14200}
_CHUNK: Final = 64
"""Instances a kernel call, so that Ctrl-C gets through between calls."""
_ATTEMPTS: Final = 100


def queens_instances(
    *,
    n: int = 8,
    split: str = "train",
    num: int = 1000,
    seed: int = 0,
    given: tuple[int, int] | int | None = None,
    holdout: Holdout = "classes",
    progress: bool = False,
) -> InstanceSet:
    """Seeded boards with some queens given; equal (n, split, seed, given, holdout) give equal sets.

    Each board keeps `given` queens, their number drawn uniformly from the range, of a random
    solution: for n <= 12 a uniform one of the split, for larger n one found by local search. An
    instance may have several completions (`count_completions`), and few givens on a small board
    repeat. ratings = rows without a queen.

    Splits are disjoint up to the eight symmetries of the board, in one of two ways:

    - "classes": the symmetry classes of solutions are dealt to the splits. For n <= 12 an instance
      belongs to a split only if *all* its completions lie in classes of that split, so no training
      episode can reach a board of a class that is held out; instances with completions in several
      splits (few givens) belong to none, and their share of `given` goes to the other numbers of
      givens. Validation and test have a tenth of the classes each, rounded up: 2 of the 12 classes
      of 8x8, train 8. For n > 12 completions cannot be enumerated: the classes of the solutions
      that instances were made from are disjoint, and so are the instances, up to symmetry; an
      instance with few givens may have other completions in another split's classes.
    - "instances": the instances are dealt to the splits by a hash of their canonical image, about
      8:1:1; test instances are new up to symmetry, their solutions may not be, and a training
      episode may pass through the board of one. Boards with few queens are few: of the ten of 8x8
      with a single one, nine are in train, one in validation and none in test.

    Args:
        n: rows of the board, 4..32.
        split: "train", "validation" or "test".
        num: number of instances.
        seed: non-negative; each (seed, split, options) has its own random streams, one an instance.
        given: inclusive range of the number of given queens, or that number; None = (1, n - 1).
        holdout: how the splits are kept apart.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: for a value out of range, a split without any instance of the range, or
            holdout="classes" on 4x4, 5x5 and 6x6, which have fewer than three classes.
    """
    _check_side(n)
    check_request(split, num, seed)
    one_of("holdout", holdout, "classes", "instances")
    low, high = _given_range(given, n)
    share = SPLITS.index(split)
    by_classes = holdout == "classes"
    pool, own = np.empty((0, n), np.int64), np.empty(0, np.uint64)
    members = np.empty((n, n, 0), np.uint64)
    if n in ENUMERATED:
        atlas = _atlas(n)
        pool, members = atlas.columns, atlas.members
        if by_classes:
            split_of = split_of_classes(n)
            splits = np.array([SPLITS.index(split_of[key]) for key in atlas.keys.tolist()])
            pool, own = pool[splits == share], _bitset(splits == share)
    stream = stream_key(f"queens/{n}/{split}/{seed}/{low}-{high}/{holdout}")
    instances, solutions = np.zeros((2, num, n * n), np.int8)
    terms = (share, (low, high), by_classes, _ATTEMPTS)
    failed = fill_in_chunks(
        generation.generate,
        (instances, solutions),
        (np.uint64(stream), terms, n, pool, own, members, dihedral_cells(n)),
        chunk=_CHUNK,
        label=f"queens {n}x{n} {split}",
        shown=progress,
    )
    if failed >= 0:
        raise ValueError(
            f"no {n}x{n} board of split {split!r} with {low}-{high} given queens "
            f"(holdout={holdout!r}) found; widen the range"
        )
    return InstanceSet.of(
        f"queens{n}x{n}:{split}:seed{seed}", instances, solutions, n - instances.sum(axis=1)
    )


def enumerate_solutions(n: int) -> Int8Array:
    """All solutions, shape [num, cell], ascending by the columns of the rows; n from 4 to 12."""
    _check_side(n)
    if n not in ENUMERATED:
        raise ValueError(f"n must lie in 4..12 for all solutions to be kept, got {n}")
    boards: Int8Array = _atlas(n).boards.copy()
    return boards


def count_completions(
    instances: Int8Array, *, n: int, limit: int | None = None
) -> NDArray[np.int64]:
    """Number of solutions that keep the given queens, exact but at most `limit`, shape [num].

    Attacking givens have none. A nearly blank board of more than 12 rows takes for ever without
    `limit`.
    """
    most = limit or np.iinfo(np.int64).max
    grid = _boards(instances, n).reshape(-1, n, n)
    columns = np.where(grid.any(axis=2), grid.argmax(axis=2), -1)
    counts = np.zeros(len(grid), np.int64)
    for start in range(0, len(grid), _CHUNK):
        rows = slice(start, start + _CHUNK)
        search.complete_all(columns[rows], n, most, counts[rows])
    counts[(grid.sum(axis=2) > 1).any(axis=1)] = 0  # two queens in a row
    return counts


def symmetry_class(boards: Int8Array, *, n: int) -> NDArray[np.uint64]:
    """A stable key of every board, equal for boards that a symmetry maps to one another, [num].

    For solutions it names their class (8x8 has 12), for instances their form up to symmetry.
    """
    return content_keys(canonical_boards(boards, n=n))


def canonical_boards(boards: Int8Array, *, n: int) -> Int8Array:
    """The lexicographically smallest of the eight images of every board, shape [num, cell]."""
    boards = _boards(boards, n)
    smallest = np.empty_like(boards)
    search.images(boards, dihedral_cells(n), smallest)
    return smallest


def split_of_classes(n: int) -> dict[int, Split]:
    """Key of every symmetry class of solutions -> its split under holdout="classes", n <= 12.

    Classes in the order of their keys, which are hashes; the last two tenths, each rounded up, are
    validation and test.

    Raises:
        ValueError: for n without three classes (4, 5 and 6), or too large to be enumerated.
    """
    _check_side(n)
    if n not in ENUMERATED:
        raise ValueError(f"n must lie in 4..12 for all classes to be known, got {n}")
    keys = np.unique(_atlas(n).keys).tolist()
    if len(keys) < 3:
        raise ValueError(
            f"holdout='classes' needs three symmetry classes of solutions, {n}x{n} has "
            f"{len(keys)}: use holdout='instances'"
        )
    held = -(-len(keys) // 10)
    names = np.repeat(SPLITS, [len(keys) - 2 * held, held, held]).tolist()
    return dict(zip(keys, names, strict=True))


def read_queens_csv(
    path: str | os.PathLike[str],
    *,
    given: tuple[int, int] | int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> InstanceSet:
    """Read solved boards from a CSV file with a column `board`: squares, or FEN, as `read_board`.

    The boards are the solutions; the instances are made from them, each with `given` random queens.

    Args:
        path: file to read.
        given: inclusive range of the number of given queens, or that number; None = (1, n - 1).
        seed: of the choice of queens.
        limit: read at most so many boards.

    Raises:
        ValueError: one line that names file, line, field and value of the first malformed row.
    """
    boards: list[Int8Array] = []
    for line, row in csv_rows(Path(path), limit, "column board"):
        place = f"{path}:{line}: board"
        board = _csv_board(row["board"] or "", place)
        if boards and board.size != boards[0].size:
            raise ValueError(
                f"{place} must have {boards[0].size} squares as the first, got {board.size}"
            )
        boards.append(board)
    if not boards:
        raise ValueError(f"{path}: no boards")
    return _hiding_queens(Path(path).name, np.stack(boards), given, seed)


def read_queens_text(
    path: str | os.PathLike[str],
    *,
    n: int,
    given: tuple[int, int] | int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> InstanceSet:
    """Read the boards of a text file, in any form that `read_board` reads.

    Boards that lack queens are instances as they stand, and are completed by search; if every board
    is solved, instances are made from them as `read_queens_csv` does.

    Args:
        path: file to read: a board a line, or boards one after another.
        n: rows and columns.
        given: as of `read_queens_csv`, for solved boards.
        seed: of the choice of queens.
        limit: keep at most so many boards.

    Raises:
        ValueError: one line that names file and line of the first board that cannot be read, has
            attacking queens, or no completion.
    """
    try:
        lines, boards = read_boards(read_text(Path(path)), n)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    boards = boards[:limit]
    solutions = boards.copy()
    for line, board, solution in zip(lines, boards, solutions, strict=False):
        grid = board.reshape(n, n)
        columns = np.where(grid.any(axis=1), grid.argmax(axis=1), -1).astype(np.int64)
        found = np.empty((1, n), np.int64)
        if (grid.sum(axis=1) > 1).any() or search.complete(columns, n, 1, found) < 1:
            raise ValueError(f"{path}:{line}: no way to place {n} queens keeps those of the board")
        solution[:] = _boards_of(found, n)[0]
    if np.array_equal(boards, solutions):
        return _hiding_queens(Path(path).name, solutions, given, seed)
    return InstanceSet.of(Path(path).name, boards, solutions, n - boards.sum(axis=1))


def _hiding_queens(
    name: str, solutions: Int8Array, given: tuple[int, int] | int | None, seed: int
) -> InstanceSet:
    """Instances that keep some queens of solved boards."""
    n = round(solutions.shape[1] ** 0.5)
    low, high = _given_range(given, n)
    instances = keep_queens(solutions, (low, high), np.random.default_rng(seed))
    return InstanceSet.of(name, instances, solutions, n - instances.sum(axis=1))


def keep_queens(
    solutions: Int8Array, given: tuple[int, int], rng: np.random.Generator
) -> Int8Array:
    """Solved boards with a random number of their queens, from the inclusive range; [num, cell]."""
    n = round(solutions.shape[1] ** 0.5)
    kept = rng.integers(given[0], given[1] + 1, len(solutions))
    ranks = np.argsort(np.argsort(rng.random((len(solutions), n)), axis=1), axis=1)
    boards: Int8Array = solutions * np.repeat(ranks < kept[:, None], n, axis=1)
    return boards


@cache
def dihedral_cells(n: int) -> NDArray[np.int64]:
    """The eight symmetries of the board, shape [symmetry, cell]: new[i] = old[cells[i]].

    0..3 are quarter turns against the clock, 4..7 the same after transposing; 0 is the identity.
    """
    board = np.arange(n * n, dtype=np.int64).reshape(n, n)
    turned = [np.rot90(base, turns).ravel() for base in (board, board.T) for turns in range(4)]
    table = np.stack(turned)
    table.flags.writeable = False
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class _Atlas:
    """All solutions of one size."""

    columns: NDArray[np.int64]
    """Shape [num, row]: column of each row's queen."""
    boards: Int8Array
    """Shape [num, cell]."""
    keys: NDArray[np.uint64]
    """Shape [num]: symmetry class."""
    members: NDArray[np.uint64]
    """Shape [row, column, word]: the set of the solutions with a queen there."""


@cache
def _atlas(n: int) -> _Atlas:
    columns = np.empty((_NUM_SOLUTIONS[n], n), np.int64)
    blank = np.full(n, -1, np.int64)
    found = search.complete(blank, n, len(columns) + 1, columns)
    assert found == len(columns), f"{found} solutions of {n}x{n}"
    columns = columns[np.lexsort(columns.T[::-1])]
    boards = _boards_of(columns, n)
    members = np.stack(
        [[_bitset(columns[:, row] == column) for column in range(n)] for row in range(n)]
    )
    return _Atlas(columns=columns, boards=boards, keys=symmetry_class(boards, n=n), members=members)


def _bitset(chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """64 flags a word, shape [word]; the flags behind the last are False."""
    padded = np.zeros(-(-len(chosen) // 64) * 64, np.bool_)
    padded[: len(chosen)] = chosen
    words: NDArray[np.uint64] = np.packbits(padded, bitorder="little").view(np.uint64)
    return words


def _boards_of(columns: NDArray[np.int64], n: int) -> Int8Array:
    """Boards of lists of columns, -1 = no queen; shape [num, cell]."""
    boards: Int8Array = (columns[:, :, None] == np.arange(n)).astype(np.int8)
    return boards.reshape(len(columns), n * n)


def _boards(boards: Int8Array, n: int) -> Int8Array:
    """Boards as a contiguous int8 array [num, cell], shape and range checked."""
    _check_side(n)
    return as_puzzles(boards, n * n, 1)


def _check_side(n: int) -> None:
    if n not in SIDES:
        raise ValueError(f"n must lie in {SIDES[0]}..{SIDES[-1]}, got {n!r}")


def _given_range(given: tuple[int, int] | int | None, n: int) -> tuple[int, int]:
    """The range of given queens that a caller asks for, checked."""
    if given is None:
        return 1, n - 1
    pair = (given, given) if isinstance(given, int | np.integer) else given
    return as_range("given", pair, least=0, most=n - 1)


def _csv_board(text: str, place: str) -> Int8Array:
    """One solved board of a file."""
    shown = shorten(text)
    signs = signs_of_line(text)
    n = round(len(signs) ** 0.5)
    if "/" in text:
        n = text.count("/") + 1
    elif n * n != len(signs) or n not in SIDES:
        raise ValueError(
            f"{place} must have n * n squares with n in 4..32, got {len(signs)}: {shown!r}"
        )
    _check_side(n)
    try:
        board = read_board(text, n)
    except ValueError as error:
        raise ValueError(f"{place} must hold Q and '.' only, got {shown!r}: {error}") from None
    if board.sum() != n or count_completions(board[None], n=n)[0] != 1:
        raise ValueError(f"{place} must hold {n} queens that do not attack, got {shown!r}")
    return board
