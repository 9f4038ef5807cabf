"""Sudoku instances: seeded generation, exact solving, files, disjoint splits.

Puzzles leave here as an `InstanceSet` for the environments and the trainers. The kernels are in
`plan_envs.sudoku.generation` and `plan_envs.sudoku.search`. Generation depends on (seed, split,
options, index) alone, so the first k instances of a set do not depend on its size, and seeds may
run in parallel.
"""

import os
from array import array
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plan_envs.checks import as_puzzles, as_range
from plan_envs.domain import Int8Array
from plan_envs.instances import (
    SPLITS,
    InstanceSet,
    check_request,
    csv_rating,
    csv_rows,
    fill_in_chunks,
    packaged_lines,
    stream_key,
)
from plan_envs.sudoku import generation, search
from plan_envs.sudoku.search import box_shape, tables_of
from plan_envs.sudoku.text import (
    format_line,
    parse_puzzle,
    puzzle_side,
    read_puzzles,
    values_of,
    written_board,
)
from plan_envs.texts import read_text, shorten

DEFAULT_GIVENS: dict[int, tuple[int, int]] = {4: (5, 7), 6: (12, 14), 9: (26, 28), 16: (120, 130)}
"""side -> range of givens when a caller names neither givens nor blanks."""

MIN_GIVENS: dict[int, int] = {4: 4, 6: 8, 9: 17, 16: 55}
"""side -> fewest givens of a unique puzzle (proven for 4, 6 and 9; for 16 the fewest that anybody
has found)."""

_CHUNK = 256
"""Puzzles a kernel call, so that Ctrl-C gets through between calls."""


def sudoku_instances(
    *,
    side: int = 9,
    split: str = "train",
    num: int = 1000,
    seed: int = 0,
    givens: tuple[int, int] | None = None,
    blanks: tuple[int, int] | None = None,
    unique: bool = True,
    progress: bool = False,
) -> InstanceSet:
    """Seeded Sudoku puzzles; equal (side, split, seed, range, unique) give equal puzzles.

    Name at most one of `givens` and `blanks`: an inclusive range from which each puzzle's count is
    drawn uniformly. With neither, `DEFAULT_GIVENS`. With `unique=True` a random solved grid loses
    digits in random order as long as one solution remains; when digging stalls above the drawn
    count it starts again in another order, and after ten orders on another grid. With
    `unique=False` the blanks are placed at random on a solved grid (the paper's 4x4 task), and a
    puzzle may have several solutions; `solutions` holds the grid it was made from. Puzzles may
    repeat on 4x4.

    Splits are disjoint up to symmetry (relabelling digits, permuting rows in a band, bands, columns
    in a stack, stacks, and transposing where boxes are square): the split is a function of a
    symmetry-invariant hash of the solved grid, with shares of about 8:1:1. There are only two
    classes of 4x4 grids, so 4x4 is split by the canonical form of the puzzle itself. A 4x4 puzzle
    with one blank belongs to one of so few classes that a split may lack it: its share of the range
    then goes to the other counts, and a range without any puzzle is refused. 6x6 has 49 classes of
    grids, 40 of which the hash tells apart.

    9x9 with few givens: digging takes 0.2 ms a puzzle at 26-28 givens, 17 ms at 22, 64 ms at 21 and
    4 s at 20. Unique puzzles with 17-20 givens are therefore random images of 63 known puzzles with
    17 givens (51, 4 and 8 in the splits; see `sudoku_seventeen.txt`), plus random digits of the
    solution: 10^12 images of each, but few classes, and the public benchmarks hold images of them
    too (Sudoku-Extreme's test set does), so a model trained on 17-20 givens may claim no result
    there.

    Args:
        side: 4, 6 (boxes of 2 rows x 3 columns), 9 or 16.
        split: "train", "validation" or "test".
        num: number of puzzles.
        seed: non-negative; each (seed, split, options) has its own random streams, one a puzzle.
        givens: inclusive range of the number of givens.
        blanks: inclusive range of the number of blanks.
        unique: keep exactly one solution.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: for a value out of range, or a count that bounded effort did not reach.
    """
    box_shape(side)
    check_request(split, num, seed)
    low, high = _givens_range(side, givens=givens, blanks=blanks, unique=unique)
    cells = side * side
    stream = stream_key(f"sudoku/{side}/{split}/{seed}/{low}-{high}/{bool(unique)}")
    patterns, pattern_solutions = _patterns(side, split)
    instances, solutions = np.zeros((2, num, cells), np.int8)
    terms = (np.uint64(stream), SPLITS.index(split), low, high, unique, _MAX_ATTEMPTS[side])
    failed = fill_in_chunks(
        generation.generate,
        (instances, solutions),
        (*terms, patterns, pattern_solutions, tables_of(side)),
        chunk=_CHUNK,
        label=f"puzzles {side}x{side} {split}",
        shown=progress,
    )
    if failed >= 0:
        raise ValueError(
            f"no {side}x{side} puzzle of split {split!r} with {low}-{high} givens "
            f"(unique={unique}) found in {_MAX_ATTEMPTS[side]} attempts "
            f"(puzzle {failed} of seed {seed}); widen the range"
        )
    return InstanceSet.of(f"sudoku{side}x{side}:{split}:seed{seed}", instances, solutions)


_MAX_ATTEMPTS = {4: 20_000, 6: 20_000, 9: 20_000, 16: 100}


def count_solutions(instances: Int8Array, *, side: int, limit: int = 2) -> NDArray[np.int64]:
    """Number of solutions of every puzzle, counting no further than `limit`; exact, shape [num].

    Conflicting givens have none. Search with naked and hidden singles, branching on a cell with the
    fewest candidates.
    """
    counts, _ = _solve_batch(_boards(instances, side), limit, side)
    return counts


def solve(instances: Int8Array, *, side: int) -> Int8Array:
    """The first solution of every puzzle, shape [num, cell].

    Raises:
        ValueError: names the first puzzle that has no solution.
    """
    boards = _boards(instances, side)
    counts, solutions = _solve_batch(boards, 1, side)
    if (counts == 0).any():
        index = int(np.flatnonzero(counts == 0)[0])
        reason = _conflict(boards[index], side) or "no solution"
        raise ValueError(f"puzzle {index} cannot be solved: {reason}")
    return solutions


def split_of(solutions: Int8Array, *, side: int, instances: Int8Array | None = None) -> list[str]:
    """The split of each solved grid (4x4: of each puzzle, so `instances` is needed there)."""
    boards = instances if side == 4 else solutions
    if boards is None:
        raise ValueError("4x4 is split by puzzle: pass instances")
    shares = generation.shares(_boards(boards, side), tables_of(side))
    return [SPLITS[share] for share in shares]


def read_sudoku_csv(
    path: str | os.PathLike[str],
    *,
    side: int | None = None,
    limit: int | None = None,
    require_unique: bool = True,
) -> InstanceSet:
    """Read puzzles from a CSV file with columns `source,question,answer,rating`.

    This is the format of the public Sudoku-Extreme sets. Blanks are '.' or '0'. `answer` and
    `rating` may be empty or missing: answers are then solved for, ratings are the number of blanks.

    Args:
        path: file to read.
        side: expected side; None = that of the first row.
        limit: read at most so many rows.
        require_unique: refuse puzzles with several solutions, which takes 0.5 ms a puzzle for the
            hardest 9x9; else answers are only checked to solve their question.

    Raises:
        ValueError: one line that names file, line, field and value of the first malformed row.
    """
    side, questions, answers, ratings, lines = _csv_rows(Path(path), side=side, limit=limit)
    _complete(path, questions, answers, lines, side, require_unique)
    return InstanceSet.of(Path(path).name, questions, answers, ratings)


def read_sudoku_text(
    path: str | os.PathLike[str],
    *,
    side: int | None = None,
    limit: int | None = None,
    require_unique: bool = True,
) -> InstanceSet:
    """Read the puzzles of a text file, in any form that `parse_puzzle` reads, and solve them.

    Args:
        path: file to read: one puzzle a line (`.sdm`), or drawn ones one after another.
        side: their side; None = what the text looks like, which must then hold one puzzle.
        limit: keep at most so many puzzles.
        require_unique: refuse puzzles with several solutions.

    Raises:
        ValueError: one line that names file, line and value of the first malformed puzzle.
    """
    try:
        lines, questions = read_puzzles(read_text(Path(path)), side=side)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    questions = questions[:limit]
    answers = np.zeros_like(questions)
    side = round(questions.shape[1] ** 0.5)
    _complete(path, questions, answers, np.array(lines), side, require_unique)
    return InstanceSet.of(Path(path).name, questions, answers)


def _complete(
    path: str | os.PathLike[str],
    questions: Int8Array,
    answers: Int8Array,
    lines: NDArray[np.int64],
    side: int,
    require_unique: bool,
) -> None:
    """Solve for the answers that are zeros, and check the others; all arrays are [num, ...].

    Raises:
        ValueError: names the line of the first puzzle that cannot be solved, or whose answer does
            not solve it.
    """
    missing = ~np.any(answers, axis=1)
    asked = np.flatnonzero(missing | require_unique)
    counts, solved = _solve_batch(questions[asked], 2 if require_unique else 1, side)
    for i in np.flatnonzero(counts != 1)[:1]:
        question = questions[asked[i]]
        reason = "several solutions" if counts[i] else _conflict(question, side) or "no solution"
        raise _refused(path, lines[asked[i]], f"question has {reason}", question, side)
    answers[missing] = solved[missing[asked]]
    good = np.asarray(search.valid_completion(questions, answers, tables_of(side)))
    for i in np.flatnonzero(~good)[:1]:
        conflict = _conflict(questions[i], side)
        if conflict is not None:
            raise _refused(path, lines[i], f"question has {conflict}", questions[i], side)
        raise _refused(path, lines[i], "answer does not solve the question", answers[i], side)


def _refused(
    path: str | os.PathLike[str], line: int, reason: str, board: Int8Array, side: int
) -> ValueError:
    return ValueError(f"{path}:{line}: {reason}: {format_line(board, side)!r}")


def _givens_range(
    side: int, *, givens: tuple[int, int] | None, blanks: tuple[int, int] | None, unique: bool
) -> tuple[int, int]:
    """The range of givens that a caller asks for, checked."""
    if givens is not None and blanks is not None:
        raise ValueError(f"name one of givens and blanks, got givens={givens} and blanks={blanks}")
    cells = side * side
    least = MIN_GIVENS[side] if unique else 0
    suffix = f"of a {side}x{side} puzzle with unique={unique}"
    if blanks is not None:
        low, high = as_range(f"blanks {suffix}", blanks, least=1, most=cells - least)
        return cells - high, cells - low
    asked = DEFAULT_GIVENS[side] if givens is None else givens
    return as_range(f"givens {suffix}", asked, least=least, most=cells - 1)


@cache
def _patterns(side: int, split: str) -> tuple[Int8Array, Int8Array]:
    """The known puzzles with fewest givens of a split, with solutions (9x9 only)."""
    if side != 9:
        return np.zeros((0, side * side), np.int8), np.zeros((0, side * side), np.int8)
    lines = packaged_lines("sudoku_seventeen.txt")
    puzzles = np.concatenate([parse_puzzle(line) for line in lines])
    solved = solve(puzzles, side=9)
    mine = np.array(split_of(solved, side=9)) == split
    return puzzles[mine], solved[mine]


def _csv_rows(
    path: Path, *, side: int | None, limit: int | None
) -> tuple[int, Int8Array, Int8Array, NDArray[np.float32], NDArray[np.int64]]:
    """(side, questions, answers, ratings, lines) of a puzzle file; a missing answer is zeros.

    The characters are checked here, the mathematics by the caller. All questions and answers
    together decide what the signs mean.
    """
    written = (bytearray(), bytearray())
    ratings, lines = array("f"), array("q")
    answered = array("q")
    for line, row in csv_rows(path, limit):
        place = f"{path}:{line}"
        question = _csv_signs(row["question"] or "", side, f"{place}: question")
        side = side or round(len(question) ** 0.5)
        written[0].extend(question)
        if answer := row.get("answer") or "":
            written[1].extend(_csv_signs(answer, side, f"{place}: answer"))
            answered.append(len(lines))
        ratings.append(csv_rating(row.get("rating") or "", place))
        lines.append(line)
    if side is None or not lines:
        raise ValueError(f"{path}: no puzzles")
    fields = ["question"] * len(lines) + ["answer"] * len(answered)
    rows = [*range(len(lines)), *answered]
    signs = np.frombuffer(written[0] + written[1], np.uint8).reshape(-1, side * side)
    boards = values_of(signs, side, lambda row: f"{path}:{lines[rows[row]]}: {fields[row]}: ")
    questions, found = boards[: len(lines)], boards[len(lines) :]
    for row in np.flatnonzero((found == 0).any(axis=1))[:1]:
        place = f"{path}:{lines[answered[row]]}"
        raise ValueError(f"{place}: answer has blanks: {format_line(found[row], side)!r}")
    answers = np.zeros_like(questions)
    answers[np.array(answered, np.int64)] = found
    given = np.array(ratings)
    blanks = (questions == 0).sum(axis=1, dtype=np.float32)
    return side, questions, answers, np.where(np.isnan(given), blanks, given), np.array(lines)


def _csv_signs(text: str, side: int | None, place: str) -> bytes:
    """A board as it is written; most are one sign a cell, which needs no closer look."""
    try:
        return written_board(text, side or puzzle_side(text))
    except ValueError as error:
        raise ValueError(f"{place}: {error} in {shorten(text)!r}") from None


def _boards(boards: Int8Array, side: int) -> Int8Array:
    """Boards as a contiguous int8 array [num, cell], shape and range checked."""
    box_shape(side)
    return as_puzzles(boards, side * side, side)


def _solve_batch(boards: Int8Array, limit: int, side: int) -> tuple[NDArray[np.int64], Int8Array]:
    """Solutions counted up to `limit` and the first solution of every board."""
    counts = np.zeros(len(boards), np.int64)
    solutions = np.zeros_like(boards)
    for start in range(0, len(boards), _CHUNK):
        rows = slice(start, start + _CHUNK)
        counts[rows], solutions[rows] = search.solve_batch(boards[rows], limit, tables_of(side))
    return counts, solutions


def _conflict(board: Int8Array, side: int) -> str | None:
    """Which digit a row, column or box shows twice, in words; None if none does."""
    units = tables_of(side).units
    for index, unit in enumerate(units):
        digits, counts = np.unique(board[unit][board[unit] > 0], return_counts=True)
        if (counts > 1).any():
            kind, place = ("row", "column", "box")[index // side], index % side + 1
            return f"conflicting givens ({digits[counts > 1][0]} twice in {kind} {place})"
    return None
