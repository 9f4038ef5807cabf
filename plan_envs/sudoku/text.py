"""Sudoku as text: every way in which people write puzzles, read as int8 boards, and one line back.

A text is read in three steps. Containers (SadMan's sections, OpenSudoku's XML, HoDoKu's library
lines) give lines; lines give boards of signs (`plan_envs.texts`); then the whole text decides what
the signs mean: one sign for blanks and one alphabet of digits. Two ways that fit are an error that
names both.
"""

import re
import string
from collections.abc import Callable, Sequence
from typing import Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.search import box_shape, tables_of
from plan_envs.texts import (
    BLANKS,
    EMPTY,
    Line,
    boards_of_lines,
    content_lines,
    shorten,
    signs_of_line,
    without_dashes,
)

Signs = NDArray[np.uint8]
"""Boards as they are written, shape [num, cell]: ASCII in capitals, or `_NUMBER` + a number."""

FORMATS: Final = {
    "one line (`.sdm`: one a line), a comment may follow": "12.4341221434321 # mine, 7.2",
    "rows, in lines or parted by `/` or `,`": "12.4/3412/2143/4321",
    "cells parted by blanks or commas, also in brackets": "[1,2,0,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]",
    "a drawn grid, with ASCII or box-drawing signs": "12 | .4\n34 | 12\n---+---\n21 | 43\n43 | 21",
    "a grid with a bar between cells, nothing for a blank": (
        "+-+-+-+-+\n|1|2| |4|\n|3|4|1|2|\n|2|1|4|3|\n|4|3|2|1|\n+-+-+-+-+"
    ),
    "Simple Sudoku's and HoDoKu's clipboards": (
        "*-----*\n|12|.4|\n|34|12|\n|--+--|\n|21|43|\n|43|21|\n*-----*"
    ),
    "grids of candidates; a cell with several is blank": "1 2 34 4\n3 4 1 2\n2 1 4 3\n4 3 2 1",
    "HoDoKu's library; what was placed (`+5`) is no given": ":0000:x:12.43412+2143432+1:::",
    "SadMan's `.sdk`": "#AMe\n[Puzzle]\n12.4\n3412\n2143\n4321",
    "OpenSudoku's XML": "<opensudoku><game data='1204341221434321'/></opensudoku>",
}
"""What `parse_puzzle` reads -> an example, for the page of the environment."""

_NUMBER = 0x80
"""Added to a number that is written in decimal, so that "12" is one sign."""
_CAPITALS = bytes.maketrans(string.ascii_lowercase.encode(), string.ascii_uppercase.encode())
_BLANK_SIGNS = frozenset((EMPTY + BLANKS).upper().encode())
_HODOKU = re.compile(r":[^:]*:[^:]*:([^:]+):.*")
_SECTION = re.compile(r"\s*\[\s*([A-Za-z]{3,})\s*\]\s*")


def parse_puzzle(text: str, *, side: int | None = None) -> Int8Array:
    """Read one puzzle, shape [1, cell].

    It is a line, rows (in lines, or parted by "/" or ","), a drawn grid, or what SadMan, HoDoKu,
    Simple Sudoku and OpenSudoku write. Blanks are one of `. _ 0 - * ? x`. 16x16 has the digits 1-9
    and A-G, 0-9 and A-F, A-P, or the numbers 1-16; 9x9 may show candidates, and a cell with several
    of them is blank.

    Args:
        text: the puzzle; its length gives the side.
        side: expected side.

    Raises:
        ValueError: one line that names the sign and its place, or the number of cells, that is
            wrong, or two ways to read the text.
    """
    lines, boards = read_puzzles(text, side=side)
    if len(lines) > 1:
        raise ValueError(f"the text holds {len(lines)} puzzles, not one")
    return boards


def read_puzzles(text: str, *, side: int | None = None) -> tuple[list[int], Int8Array]:
    """All puzzles of a text: the line of each (the number of each in XML), and boards [num, cell].

    Raises:
        ValueError: as `parse_puzzle`.
    """
    lines = _lines_of(text)
    if side is None:
        side = _side_of(lines)
    box_shape(side)
    found, wrong = [], []
    for some in without_dashes(lines):
        try:
            found.append(_read_lines(some, side))
        except ValueError as error:
            wrong.append(error)
    if not found:
        raise wrong[-1 if all(line.maybe_frame for line in lines) else 0]
    if len(found) > 1 and not np.array_equal(found[0][1], found[1][1]):
        raise ValueError("the lines of dashes can be read as frames and as rows of blanks")
    return found[0]


def puzzle_side(text: str) -> int:
    """The side of the one puzzle in a text.

    Raises:
        ValueError: it has the cells of no side; names their number.
    """
    return _side_of(_lines_of(text))


def written_board(text: str, side: int) -> bytes:
    """The signs of the one puzzle in a text, for `values_of`.

    Raises:
        ValueError: names the number of cells, or the cell that is no sign.
    """
    if len(text) == side * side:
        return signs_of(text, side)  # the usual case: a sign a cell
    boards = boards_of_lines(_lines_of(text), side)
    if len(boards) > 1:
        raise ValueError(f"the text holds {len(boards)} puzzles, not one")
    return signs_of(boards[0].cells, side)


def guess_side(text: str) -> int | None:
    """The side of the puzzle that a text was meant to be: that of its rows, or the nearest one."""
    return _nearest_side(_lines_of(text))


def _read_lines(lines: Sequence[Line], side: int) -> tuple[list[int], Int8Array]:
    """What `read_puzzles` returns, of lines that are no frames."""
    boards = boards_of_lines(lines, side)
    places = [board.line for board in boards]

    def place(row: int) -> str:
        return f"line {places[row]}: " if len(places) > 1 else ""

    written = [signs_of(board.cells, side, place(row)) for row, board in enumerate(boards)]
    signs = np.frombuffer(b"".join(written), np.uint8).reshape(len(boards), -1)
    return places, values_of(signs, side, place)


def format_line(plan: Int8Array, side: int) -> str:
    """One line that reads back as the board.

    Symbols with '.' for blanks, as puzzle files have them; numbers with 0 for blanks where symbols
    would fit several alphabets, as those of a 16x16 board without a 16 do.
    """
    box_shape(side)
    values = np.asarray(plan).reshape(-1)
    symbols = np.frombuffer(b"." + _alphabets(side)[0], np.uint8)[values]
    if side > 9 and values.any():
        if len(_fitting(symbols[None], set(symbols.tolist()), side)) > 1:
            return " ".join(map(str, values))
    return symbols.tobytes().decode()


# ---- what the signs mean


def signs_of(cells: Sequence[str], side: int, place: str = "") -> bytes:
    """The cells of a board as signs, one byte each; candidates become `EMPTY`.

    Raises:
        ValueError: names the cell that is no sign, no number and no candidates.
    """
    line = "".join(cells)
    if len(line) == len(cells) and line.isascii():
        return line.encode().translate(_CAPITALS)
    return b"".join(_sign_of(cell, k, side, place) for k, cell in enumerate(cells))


def _sign_of(cell: str, index: int, side: int, place: str) -> bytes:
    if len(cell) == 1 and cell.isascii():
        return cell.encode().translate(_CAPITALS)
    digits = cell if cell.isascii() and cell.isdecimal() else ""
    if side > 9 and len(digits) == 2 and 0 < int(digits) <= side:
        return bytes([_NUMBER + int(digits)]) if int(digits) > 9 else digits[-1].encode()
    if side <= 9 and digits and len(set(digits)) == len(digits):
        if all(1 <= int(digit) <= side for digit in digits):
            return EMPTY.encode()
    raise ValueError(place + _unknown(cell, index, side))


def values_of(signs: Signs, side: int, place: Callable[[int], str] = lambda _: "") -> Int8Array:
    """The values of boards, all of which one sign for blanks and one alphabet must fit.

    Args:
        signs: shape [num, cell].
        side: rows of a board.
        place: what to write in front of an error in a board, by its row.

    Returns:
        Shape [num, cell], 0 = blank.

    Raises:
        ValueError: names the sign that does not fit, or two alphabets that do.
    """
    present = set(np.flatnonzero(np.bincount(signs.reshape(-1), minlength=256)).tolist())
    readings: dict[bytes, tuple[str, Int8Array]] = {}
    for alphabet in _fitting(signs, present, side):
        table = np.zeros(256, np.int8)
        table[list(alphabet)] = np.arange(1, side + 1)
        boards: Int8Array = table[signs]
        described = _described(present - set(alphabet), alphabet)
        readings.setdefault(boards.tobytes(), (described, boards))
    found = list(readings.values())
    if not found:
        raise ValueError(_misfit(signs, present, side, place))
    if len(found) > 1:
        good = [reading for reading in found if _consistent(reading[1], side)]
        found = good or found[:1]
    if len(found) > 1:
        raise ValueError(f"the digits can be read as {found[0][0]} and as {found[1][0]}")
    return found[0][1]


def _alphabets(side: int) -> list[bytes]:
    """The digits 1..side of every alphabet; the first is ours."""
    digits, letters = string.digits.encode(), string.ascii_uppercase.encode()
    ours = (digits[1:] + letters)[:side]
    if side <= 9:
        return [ours]
    numbers = digits[1:] + bytes(range(_NUMBER + 10, _NUMBER + side + 1))
    return [ours, (digits + letters)[:side], letters[:side], numbers]


def _fitting(signs: Signs, present: set[int], side: int) -> list[bytes]:
    """The alphabets that leave nothing but blanks over, of one kind in every board."""
    fitting = []
    for alphabet in _alphabets(side):
        blanks = present - set(alphabet)
        if blanks <= _BLANK_SIGNS and not _second_blanks(signs, blanks).any():
            fitting.append(alphabet)
    return fitting


def _second_blanks(signs: Signs, blanks: set[int]) -> NDArray[np.bool_]:
    """Which boards have more than one of these signs, shape [num]."""
    kinds = [(signs == sign).any(axis=1) for sign in blanks]
    several: NDArray[np.bool_] = np.sum([*kinds, np.zeros(len(signs), np.bool_)], axis=0) > 1
    return several


def _described(blanks: set[int], alphabet: bytes) -> str:
    """A way to read digits, in words."""
    if alphabet[-1] >= _NUMBER:
        name = f"the numbers 1-{len(alphabet)}"
    elif alphabet[:1].isdigit():
        name = f"{chr(alphabet[0])}-9 and A-{chr(alphabet[-1])}"
    else:
        name = f"A-{chr(alphabet[-1])}"
    return name + "".join(f" with {chr(sign)!r} for blanks" for sign in sorted(blanks)[:1])


def _consistent(boards: Int8Array, side: int) -> bool:
    """Whether no row, column or box of any board shows a digit twice."""
    units = np.sort(boards[:, tables_of(side).units], axis=-1)
    return not ((units[..., 1:] == units[..., :-1]) & (units[..., 1:] > 0)).any()


def _misfit(signs: Signs, present: set[int], side: int, place: Callable[[int], str]) -> str:
    """Which sign no alphabet has, or which is a second one for blanks."""
    alphabet = set(min(_alphabets(side), key=lambda some: len(present - _BLANK_SIGNS - set(some))))
    unknown = present - _BLANK_SIGNS - alphabet
    if unknown:
        row, cell = divmod(int(np.isin(signs, list(unknown)).argmax()), side * side)
        return place(row) + _unknown(_shown(int(signs[row, cell])), cell, side)
    blanks = present - alphabet
    row = int(_second_blanks(signs, blanks).argmax())
    written = [int(sign) for sign in signs[row] if sign in blanks]
    usual, rare = max(written, key=written.count), min(written, key=written.count)
    rare = rare if rare != usual else next(sign for sign in written if sign != usual)
    second = _at(_shown(rare), signs[row].tolist().index(rare), side)
    return place(row) + f"{second} is a second sign for blanks beside {_shown(usual)!r}"


def _shown(sign: int) -> str:
    return str(sign - _NUMBER) if sign > _NUMBER else "x" if sign == ord("X") else chr(sign)


def _at(sign: str, cell: int, side: int) -> str:
    return f"{sign!r} at row {cell // side + 1}, column {cell % side + 1}"


def _unknown(sign: str, cell: int, side: int) -> str:
    return (
        f"{_at(shorten(sign), cell, side)} is no blank ({' '.join(BLANKS)}) "
        f"and no digit of a {side}x{side} puzzle"
    )


# ---- containers


def _side_of(lines: Sequence[Line]) -> int:
    """The side of the one puzzle that the lines hold; the largest first, as rows look like boards.

    Raises:
        ValueError: the lines hold no puzzle of any side.
    """
    for side in sorted(BOX_SHAPES, reverse=True):
        for some in without_dashes(lines):
            try:
                if len(boards_of_lines(some, side)) == 1:
                    return side
            except ValueError:
                continue
    nearest = _nearest_side(lines)
    if nearest is None:
        sizes = ", ".join(str(side * side) for side in BOX_SHAPES)
        total = sum(len(signs_of_line(line.text)) for line in lines)
        shown = shorten(lines[0].text if lines else "")
        raise ValueError(f"a puzzle has {sizes} cells, got {total}: {shown!r}")
    return nearest


def _nearest_side(lines: Sequence[Line]) -> int | None:
    """The side of most rows or lines, else the one whose number of cells is within a tenth."""
    widths = [len(signs_of_line(line.text)) for line in lines if not line.maybe_frame]
    usual = max(widths, key=widths.count, default=0)
    if widths.count(usual) > 1:
        for side, width in (*((s, s) for s in BOX_SHAPES), *((s, s * s) for s in BOX_SHAPES)):
            if usual == width:
                return side
    near = min(BOX_SHAPES, key=lambda side: abs(side * side - sum(widths)))
    return near if abs(near * near - sum(widths)) <= near * near / 10 else None


def _lines_of(text: str) -> list[Line]:
    """The lines with cells, out of whatever they are packed in."""
    if text.removeprefix("\ufeff").lstrip().startswith("<"):
        return _lines_of_xml(text)
    heads = {
        number: found[1].lower()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := _SECTION.fullmatch(line.removeprefix("\ufeff")))
    }
    lines = [line for line in content_lines(text) if line.number not in heads]
    if "puzzle" in heads.values():
        start = next(number for number, head in heads.items() if head == "puzzle")
        end = min((number for number in heads if number > start), default=len(text))
        lines = [line for line in lines if start < line.number < end]
    return [_without_library(line) for line in lines]


def _without_library(line: Line) -> Line:
    """The givens of a line of HoDoKu's library, where "+5" is placed and not given."""
    found = _HODOKU.fullmatch(line.text)
    if not found:
        return line
    return Line(number=line.number, text=re.sub(r"\+\d", ".", found[1]))


def _lines_of_xml(text: str) -> list[Line]:
    """The games of OpenSudoku's XML, a line each; documents that define entities are refused.

    Raises:
        ValueError: one line that says what is wrong with the XML.
    """
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):
        raise ValueError("not read as XML: it declares a document type or entities")
    try:
        root = ElementTree.fromstring(text.removeprefix("\ufeff").strip())
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"not readable as XML: {error}") from None
    games = [game.get("data") or (game.text or "") for game in root.iter("game")]
    if not games:
        raise ValueError("the XML holds no <game> with puzzles")
    return [Line(number=k, text=_givens_of_game(data)) for k, data in enumerate(games, 1)]


def _givens_of_game(data: str) -> str:
    """The givens of a game: plain, or "version: n" with value|notes|editable| for every cell."""
    found = re.fullmatch(r"\s*version:\s*(\d)\s+(.*)", data, re.DOTALL)
    if not found:
        return data.strip()
    fields = [field for field in found[2].strip().split("|") if field]
    width = 4 if int(found[1]) >= 4 else 3
    values, editable = fields[::width], fields[width - 1 :: width]
    return "".join(
        value if fixed == "0" else "0" for value, fixed in zip(values, editable, strict=False)
    )
