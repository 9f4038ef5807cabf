"""Texts of puzzles: what the readers of all domains share.

A text comes from a file, from stdin, from a field of a table or from Python. Here it becomes the
lines that hold cells: without a byte order mark, comments and the lines of a drawn frame. What a
cell means is decided by the domain's own reader (`plan_envs.sudoku.text`, `plan_envs.queens.text`,
`plan_envs.maze.text`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trm.bounded import TEXT

BLANKS: Final = "._0-*?x"
"""Signs that people write for an empty cell; a text uses one of them."""

EMPTY: Final = " "
"""The sign of a cell between two bars in which nothing is written."""

LARGEST_TEXT: Final = TEXT.size
"""Bytes of the largest file that is read as text."""

_COMMENT_LINES: Final = (";", "//")
_BARS: Final = re.compile("[|\u2502\u2503\u2551\u2506\u250a]")
_BOX_DRAWING: Final = frozenset(map(chr, range(0x2500, 0x2580)))
_FRAME_SIGNS: Final = frozenset("|-+=*.:'`") | _BOX_DRAWING
_ONLY_FRAME_SIGNS: Final = frozenset("+=:'`") | _BOX_DRAWING - set(_BARS.pattern)
_SEPARATORS: Final = re.compile("[\\s,;/|\\[\\]()'\"\u2500-\u257f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line with cells."""

    number: int
    """Its place in the text, from 1."""
    text: str
    """What is written there, without a comment."""
    maybe_frame: bool = False
    """True for a line of dashes, which is a frame or a row of blanks."""


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        ValueError: one line that names the file, which is too large or no UTF-8.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        return read_stream(file, str(path))


def read_stream(stream: BinaryIO, source: str) -> str:
    """The text of a stream, such as that of stdin, without a byte order mark.

    Raises:
        ValueError: one line that names the source, which is too large or no UTF-8.
    """
    data = stream.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise ValueError(f"{source}: larger than {LARGEST_TEXT >> 20} MiB")
    return decode(data, source)


def decode(data: bytes, source: str) -> str:
    """The text that the bytes of `source` are, without a byte order mark.

    Raises:
        ValueError: names the source and the first byte that is no UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not text (byte {error.start} is not UTF-8)") from None


def content_lines(text: str) -> list[Line]:
    """The lines that hold cells, in order.

    Left out are what follows a "#", lines that begin with ";" or "//", empty lines, and frames:
    lines of nothing but the signs that frames are drawn with.
    """
    found = []
    for number, whole in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = whole.partition("#")[0].strip()
        if not line or line.startswith(_COMMENT_LINES):
            continue
        marks = set("".join(_BARS.sub("", line).split()))
        if marks <= _FRAME_SIGNS and (marks & _ONLY_FRAME_SIGNS or len(marks) > 1):
            continue
        found.append(Line(number=number, text=line, maybe_frame=marks == {"-"}))
    return found


def without_dashes(lines: Sequence[Line]) -> list[list[Line]]:
    """The ways to read lines of dashes: as frames, and as rows of blanks.

    Where a dash stands among other cells it is the sign for a blank, so there is one way only.
    """
    others = [line for line in lines if not line.maybe_frame]
    if len(others) == len(lines) or any("-" in line.text for line in others):
        return [list(lines)]
    return [others, list(lines)]


def cells_of_line(text: str, side: int) -> list[str]:
    """The cells of a line: a row has `side` of them, a whole board side * side.

    Cells are single signs, or the words between blanks where these are so many and could be numbers
    or candidates; a line of `side` fields between bars has a cell in each, `EMPTY` where nothing is
    written. What follows a whole board is a comment. Any other number of cells is for the caller to
    refuse.
    """
    fields = [field.strip() for field in _BARS.split(text)]
    if len(fields) > side:  # the bars at the ends enclose no cell
        fields = fields[not fields[0] : len(fields) - (not fields[-1])]
    if len(fields) == side and all(len(field) <= (1 if side < 10 else 2) for field in fields):
        return [field or EMPTY for field in fields]
    words = _words(text)
    signs = list("".join(words))
    whole = side * side
    if len(signs) in (side, whole):
        return signs
    if len(words) in (side, whole) and all(_is_cell(word, side) for word in words):
        return words
    if words and len(words[0]) == whole and all(len(word) != whole for word in words[1:]):
        return list(words[0])
    return signs


def signs_of_line(text: str) -> str:
    """Every sign of a line but those that separate cells."""
    return "".join(_words(text))


def _is_cell(word: str, side: int) -> bool:
    """Whether a word can be one cell: a sign, a number of two digits, or ascending candidates."""
    if len(word) == 1 or not word.isdecimal():
        return len(word) == 1
    return len(word) == 2 if side > 9 else len(word) <= side and "".join(sorted(word)) == word


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text) if word]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """The cells of one board as they are written."""

    line: int
    """Where the board begins."""
    cells: list[str]
    """side * side of them, row by row."""


def boards_of_lines(lines: Sequence[Line], side: int) -> list[Cells]:
    """The boards that the lines hold: one a line, or `side` rows each.

    Raises:
        ValueError: says how many cells there are, and which line has another number of them.
    """
    boards: list[Cells] = []
    rows: list[list[str]] = []
    first = 0
    for line in lines:
        cells = cells_of_line(line.text, side)
        if not cells:
            continue  # a line that only draws
        if len(cells) == side * side and not rows:
            boards.append(Cells(line=line.number, cells=cells))
        elif len(cells) == side:
            first = first if rows else line.number
            rows.append(cells)
        else:
            raise ValueError(_wrong_count(lines, side, odd=(line.number, len(cells))))
        if len(rows) == side:
            boards.append(Cells(line=first, cells=[cell for row in rows for cell in row]))
            rows = []
    if rows or not boards:
        raise ValueError(_wrong_count(lines, side, rows=len(rows)))
    return boards


def _wrong_count(
    lines: Sequence[Line], side: int, *, odd: tuple[int, int] = (0, 0), rows: int = 0
) -> str:
    """What is wrong with the number of cells, for an error."""
    total = sum(len(cells_of_line(line.text, side)) for line in lines)
    reason = f"a {side}x{side} puzzle has {side * side} cells, got {total}"
    if rows:
        return f"{reason}: {rows} of {side} rows"
    if len(lines) > 1:
        return f"{reason}: line {odd[0]} has {odd[1]} cells"
    return f"{reason}: {shorten(lines[0].text if lines else '')!r}"


def shorten(text: str) -> str:
    """At most 100 characters of a text, for an error."""
    return text if len(text) <= 100 else text[:97] + "..."
