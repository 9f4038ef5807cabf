"""Mazes as text: rows of walls and free cells with S and G, read as int8 boards, and one line back.

Here "#" is a wall, so comments are lines that begin with ";" or "//", and there are no frames.
"""

from typing import Final

import numpy as np

from plan_envs.domain import Int8Array
from plan_envs.maze.kernels import FREE, GOAL, START, WALL
from plan_envs.texts import EMPTY

FORMATS: Final = {
    "one line of size * size signs": "S.##.#G..",
    "rows, also with their trailing blanks lost": "S #\n# #\nG",
    "rows parted by `/` or `,`": "S.#/#.#/G..",
    "0 for free cells and 1 for walls": "S01\n101\nG00",
    "block signs": "S \u2588\n\u2588 \u2588\nG",
}
"""What `read_maze` reads -> an example, for the page of the environment."""

_WALLS: Final = "#1\u2588\u2593\u25a0\u2b1b"
_FREES: Final = " .0_-\u2591\u25a1\u2b1c"
"""Signs for walls and for free cells, blocks included; a maze uses one of each."""

VALUES: Final = {
    **dict.fromkeys(_WALLS, WALL),
    **dict.fromkeys(_FREES, FREE),
    **dict.fromkeys("Ss2", START),
    **dict.fromkeys("Gg3", GOAL),
}
"""Sign -> the value of an instance."""

_COMMENTS: Final = (";", "//")


def read_maze(text: str, size: int) -> Int8Array:
    """Read one maze, shape [cell].

    Args:
        text: size * size characters in one line, or rows (in lines, or parted by "/" or ","). A
            wall is `#`, 1 or a block, a free cell a blank or one of `. 0 _ -`, S is the start and G
            the goal (2 and 3 beside 0 and 1). Rows may have lost their trailing blanks.
        size: rows and columns.

    Raises:
        ValueError: one line that names the row and column, or the number of characters, that is
            wrong.
    """
    return _board_of([line for _, line in _rows_of(text, size)], size)


def read_mazes(text: str, size: int) -> tuple[list[int], Int8Array]:
    """All mazes of a text: the line of each, and boards [num, cell].

    They stand one a line, or as rows with empty lines between mazes; a text of one maze may have
    empty lines for free rows.

    Raises:
        ValueError: as `read_maze`.
    """
    lines = [row for row in _lines_of(text) if _may_be_row(row[1], size)]
    if lines and all(len(line) >= size * size for _, line in lines):
        mazes = [[line] for line in lines]
    elif len(lines) > size and len(lines) % size == 0:
        mazes = [lines[start : start + size] for start in range(0, len(lines), size)]
        for maze in mazes:
            if maze[-1][0] - maze[0][0] != size - 1:
                raise ValueError(
                    f"line {maze[0][0]}: a maze of {size} rows has an empty line in it"
                )
    else:
        mazes = [_rows_of(text, size)]
    boards = []
    for maze in mazes:
        try:
            boards.append(_board_of([line for _, line in maze], size))
        except ValueError as error:
            place = f"line {maze[0][0]}: " if len(mazes) > 1 else ""
            raise ValueError(f"{place}{error}") from None
    return [maze[0][0] if maze else 1 for maze in mazes], np.stack(boards)


def guess_size(text: str) -> int:
    """Rows of the maze that a text was meant to be."""
    lines = [line for _, line in _lines_of(text) if line.strip()]
    for mark in "/,":
        if len(lines) == 1 and mark in lines[0]:
            return lines[0].count(mark) + 1
    return round(len(lines[0]) ** 0.5) if len(lines) == 1 else len(lines)


def _lines_of(text: str) -> list[tuple[int, str]]:
    """(number, line) of all lines that are no comments, blanks kept."""
    lines = enumerate(text.removeprefix("\ufeff").splitlines(), 1)
    return [(number, line) for number, line in lines if not line.startswith(_COMMENTS)]


def _rows_of(text: str, size: int) -> list[tuple[int, str]]:
    """The lines of the one maze in a text; empty ones around it go while there are too many."""
    lines = _lines_of(text)
    first, last = 0, len(lines)
    while last - first > size and not _may_be_row(lines[last - 1][1], size):
        last -= 1
    while last - first > size and not _may_be_row(lines[first][1], size):
        first += 1
    rows = lines[first:last]
    filled = [row for row in rows if row[1]]
    return filled if len(filled) == 1 and len(filled[0][1]) > size else rows


def _may_be_row(line: str, size: int) -> bool:
    """Whether a line is no empty one: something stands there, or the blanks of a free row."""
    return bool(line.strip()) or len(line) == size


def _board_of(rows: list[str], size: int) -> Int8Array:
    """A board from its rows, or from its only line."""
    if len(rows) == 1:
        rows = _rows_of_line(rows[0], size)
    if len(rows) != size:
        raise ValueError(f"a {size}x{size} maze has {size} rows, got {len(rows)}")
    free = {sign for row in rows for sign in row if VALUES.get(sign) == FREE}
    if free <= {EMPTY}:
        rows = [row.rstrip(EMPTY).ljust(size) for row in rows]
    board = np.zeros((size, size), np.int8)
    used: dict[int, str] = {}
    for row, line in enumerate(rows):
        if len(line) != size:
            raise ValueError(
                f"row {row + 1} of a {size}x{size} maze has {size} characters, got {len(line)}"
            )
        for column, sign in enumerate(line):
            value = VALUES.get(sign)
            place = f"{sign!r} at row {row + 1}, column {column + 1} is"
            if value is None:
                raise ValueError(
                    f"{place} none of '#' (wall), ' ' or '.' (free), 'S' (start), 'G' (goal)"
                )
            if used.setdefault(value, sign) != sign:
                kind = ("free cells", "walls", "starts", "goals")[value]
                raise ValueError(f"{place} a second sign for {kind} beside {used[value]!r}")
            board[row, column] = value
    return board.reshape(-1)


def _rows_of_line(line: str, size: int) -> list[str]:
    """The rows of a maze that stands in one line."""
    for mark in "/,":
        if line.count(mark) == size - 1:
            return line.split(mark)
    if len(line) != size * size:
        raise ValueError(f"a {size}x{size} maze has {size * size} characters, got {len(line)}")
    return [line[row * size : row * size + size] for row in range(size)]
