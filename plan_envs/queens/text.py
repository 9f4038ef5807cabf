"""Boards of queens as text: squares, the columns of the rows, or FEN, read as int8 boards.

The lines with squares come from `plan_envs.texts`; here they become boards, 1 = queen.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from plan_envs.domain import Int8Array
from plan_envs.texts import (
    BLANKS,
    EMPTY,
    Line,
    cells_of_line,
    content_lines,
    shorten,
    without_dashes,
)

FORMATS: Final = {
    "squares in one line, in rows, or parted by `/`, `,` or blanks": "_ Q _ _/____/____/__Q_",
    "a drawn board, nothing for no queen": (
        "+-+-+-+-+\n| |Q| | |\n| | | | |\n| | | | |\n| | |Q| |\n+-+-+-+-+"
    ),
    "FEN": "1Q2/4/4/2Q1 w - - 0 1",
    "0 and 1": "0100\n0000\n0000\n0010",
    "the columns of the rows, 0 or `.` for no queen; parted by blanks above 9": "2003",
}
"""What `read_board` reads -> an example, for the page of the environment."""

_QUEENS: Final = "Qq\u2655\u265b"
_BLANKS: Final = (*BLANKS, "X", EMPTY)
_FEN: Final = re.compile(r"[0-9A-Za-z]+(/[0-9A-Za-z]+)+")


def read_board(text: str, n: int) -> Int8Array:
    """Read one board, shape [cell].

    It is squares (in one line, in rows, or drawn), the columns of the rows, or FEN. A queen is Q,
    or 1 where every other square is 0; other squares are one of `. _ 0 - * ? x`. Columns count from
    1, with 0 or '.' for no queen: "15863724", parted by blanks or commas above 9.

    Raises:
        ValueError: one line that names the square, or the number of squares, that is wrong.
    """
    lines, boards = read_boards(text, n)
    if len(lines) > 1:
        raise ValueError(f"the text holds {len(lines)} boards, not one")
    board: Int8Array = boards[0]
    return board


def read_boards(text: str, n: int) -> tuple[list[int], Int8Array]:
    """All boards of a text: the line of each, and boards [num, cell].

    Raises:
        ValueError: as `read_board`.
    """
    found, wrong = [], []
    for lines in without_dashes(content_lines(text)):
        try:
            found.append(_read_lines(lines, n))
        except ValueError as error:
            wrong.append(error)
    if not found:
        raise wrong[-1]
    if len(found) > 1 and not np.array_equal(found[0][1], found[1][1]):
        raise ValueError("the lines of dashes can be read as frames and as rows without a queen")
    return found[0]


def _read_lines(lines: Sequence[Line], n: int) -> tuple[list[int], Int8Array]:
    """The boards of lines: one a line, or n rows of squares each."""
    places: list[int] = []
    boards: list[Int8Array] = []
    rows: list[str] = []
    squares_only = _are_squares(lines, n)
    for line in lines:
        squares = _squares_of_fen(line.text, n) or cells_of_line(line.text, n)
        if not squares:
            continue  # a line that only draws
        place = f"line {line.number}: " if places else ""
        if not rows:
            places.append(line.number)
        if len(squares) == n * n:
            boards.append(_board_of(squares, n, place))
        elif "/" in line.text:  # parts rows, never columns
            raise ValueError(place + _wrong_count([line], n))
        elif len(squares) == n and (squares_only or not _has_number(squares)):
            rows += squares
        elif len(squares) == n:
            boards.append(_board_of_columns(squares, n, place))
        else:
            raise ValueError(place + _wrong_count(lines, n))
        if len(rows) == n * n:
            boards.append(_board_of(rows, n, place))
            rows = []
    if rows and len(lines) == 1:
        boards.append(_board_of_columns(rows, n, ""))
    elif rows or not boards:
        raise ValueError(_wrong_count(lines, n))
    return places, np.stack(boards)


def _are_squares(lines: Sequence[Line], n: int) -> bool:
    """Whether lines of n signs are rows, not columns: queens, or a whole matrix of 0 and 1."""
    signs = [cells_of_line(line.text, n) for line in lines if not _squares_of_fen(line.text, n)]
    present = {sign for row in signs for sign in row}
    return bool(present & set(_QUEENS)) or (len(signs) % n == 0 and present <= {"0", "1"})


def _has_number(words: Sequence[str]) -> bool:
    return any(word.isdecimal() for word in words)


def _squares_of_fen(text: str, n: int) -> list[str]:
    """The squares of FEN, "3Q4/8/...", whose numbers count empty ones; [] for other texts."""
    words = text.split()
    if not words or not _FEN.fullmatch(words[0]):
        return []
    squares: list[str] = []
    rows = words[0].split("/")
    for row in rows:
        parts = re.findall(r"[1-9]\d*|." if n > 9 else ".", row)
        width = sum(int(part) if part.isdecimal() else 1 for part in parts)
        if width != n or "0" in parts:
            return []
        for part in parts:
            squares += [EMPTY] * int(part) if part.isdecimal() else [part]
    return squares if len(rows) == n else []


def _board_of(squares: Sequence[str], n: int, place: str) -> Int8Array:
    """A board from signs for queens and one sign for the other squares."""
    if set(squares) <= {"0", "1"}:
        return np.array([sign == "1" for sign in squares], np.int8)
    blank = ""
    for index, sign in enumerate(squares):
        where = f"{place}row {index // n + 1}, column {index % n + 1}"
        if sign in _QUEENS:
            continue
        if sign not in _BLANKS:
            raise ValueError(f"{where} must be Q or '.', got {shorten(sign)!r}")
        if blank and sign.lower() != blank:
            raise ValueError(f"{where}: {sign!r} is a second sign for no queen beside {blank!r}")
        blank = sign.lower()
    return np.array([sign in _QUEENS for sign in squares], np.int8)


def _board_of_columns(words: Sequence[str], n: int, place: str) -> Int8Array:
    """A board from the column of each row's queen."""
    board = np.zeros((n, n), np.int8)
    for row, word in enumerate(words):
        plain = word.isascii() and word.isdecimal() and len(word) < 4
        column = 0 if word == "." else int(word) if plain else -1
        if not 0 <= column <= n:
            raise ValueError(
                f"{place}the column of row {row + 1} must be 1..{n}, 0 or '.', "
                f"got {shorten(word)!r}"
            )
        if column:
            board[row, column - 1] = 1
    return board.reshape(-1)


def _wrong_count(lines: Sequence[Line], n: int) -> str:
    shown = shorten(" ".join(line.text for line in lines[:n]))
    return f"a {n}x{n} board is {n * n} squares or {n} columns, got {shown!r}"
