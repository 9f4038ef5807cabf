"""Every way in which people write Sudoku, for tests that read it back."""

from collections.abc import Callable
from typing import Final

import numpy as np

from plan_envs.domain import Int8Array
from plan_envs.sudoku.geometry import BOX_SHAPES

Cells = list[str]
"""side * side cells as they are written."""

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def alphabets(side: int) -> dict[str, list[str]]:
    """The digits 1..side in every alphabet."""
    ours = {"ours": list(("123456789" + LETTERS)[:side])}
    if side <= 9:
        return ours
    return {
        **ours,
        "hex": list(("0123456789" + LETTERS)[:side]),
        "letters": list(LETTERS[:side]),
        "numbers": [str(value) for value in range(1, side + 1)],
    }


def cells_of(board: Int8Array, alphabet: list[str], blank: str) -> Cells:
    """The cells of a board."""
    return [alphabet[value - 1] if value else blank for value in board.tolist()]


def rows_of(cells: Cells) -> list[Cells]:
    """The cells of each row."""
    side = round(len(cells) ** 0.5)
    return [cells[start : start + side] for start in range(0, side * side, side)]


def _boxed(cells: Cells, bar: str, rule: Callable[[list[int]], str], edges: bool) -> str:
    """Rows with bars between boxes and rules between bands; cells of equal width."""
    rows = rows_of(cells)
    height, width = BOX_SHAPES[len(rows)]
    wide = max(map(len, cells))
    joiner = " " if wide > 1 else ""
    lines = []
    widths = [width * wide + (width - 1) * len(joiner)] * (len(rows) // width)
    for index, row in enumerate(rows):
        if index % height == 0 and (edges or index):
            lines.append(rule(widths))
        parts = [
            joiner.join(cell.rjust(wide) for cell in row[start : start + width])
            for start in range(0, len(row), width)
        ]
        lines.append(bar + bar.join(parts) + bar if edges else bar.join(parts))
    return "\n".join([*lines, rule(widths)] if edges else lines)


def _joined(cells: Cells, between_rows: str, between_cells: str = "") -> str:
    return between_rows.join(between_cells.join(row) for row in rows_of(cells))


SINGLE: Final[dict[str, Callable[[Cells], str]]] = {
    "line": "".join,
    "rows": lambda c: _joined(c, "\n"),
    "rows with a mark and ends of Windows": lambda c: "\ufeff" + _joined(c, "\r\n") + "\r\n",
    "slashes": lambda c: _joined(c, "/"),
    "commas between rows": lambda c: _joined(c, ","),
    "a comment behind": lambda c: "".join(c) + " # mine 7.2",
    "a comment without a sign": lambda c: "".join(c) + " 7.2 mine",
    "fields behind": lambda c: "".join(c) + ";11.9;11.9;2.6;",
    "comments around": lambda c: "# mine\n; of 2020\n" + _joined(c, "\n") + "\n// end",
    "SadMan": lambda c: "#ASomebody\n#DMine\n[Puzzle]\n" + _joined(c, "\n") + "\n[State]\n12\n",
    "dashes between": lambda c: _boxed(c, "|", lambda w: "+".join("-" * n for n in w), False),
    "double lines": lambda c: _boxed(c, "|", lambda w: "=" * (sum(w) + 2), False),
}
"""Ways for cells of one sign each."""

ANY: Final[dict[str, Callable[[Cells], str]]] = {
    "blanks between": lambda c: _joined(c, "\n", " "),
    "one line of words": lambda c: " ".join(c),
    "commas between cells": lambda c: _joined(c, "\n", ","),
    "Python": lambda c: "[[" + _joined(c, "],\n [", ", ") + "]]",
    "Simple Sudoku": lambda c: _boxed(
        c, "|", lambda w: "*" + "-" * (sum(w) + len(w) - 1) + "*", True
    ),
    "inner rules": lambda c: _boxed(
        c, "|", lambda w: "|" + "+".join("-" * n for n in w) + "|", True
    ),
    "HoDoKu": lambda c: _boxed(c, "|", lambda w: "." + ".".join("-" * n for n in w) + ".", True),
    "HoDoKu below": lambda c: _boxed(
        c, "|", lambda w: "'" + "'".join("-" * n for n in w) + "'", True
    ),
    "box drawing": lambda c: _boxed(
        c, "\u2502", lambda w: "\u253c" + "\u253c".join("\u2500" * n for n in w) + "\u253c", True
    ),
    "a bar between cells": lambda c: "\n".join(
        "+---" * len(row) + "+\n| " + " | ".join(row) + " |" for row in rows_of(c)
    ),
}
"""Ways for cells of any width."""

SMALL: Final[dict[str, Callable[[Cells], str]]] = {
    "OpenSudoku": lambda c: f'<opensudoku><game data="{"".join(c)}" note=""/></opensudoku>',
    "OpenSudoku 2": lambda c: _opensudoku(c, 2, "0|"),
    "OpenSudoku 4": lambda c: _opensudoku(c, 4, "0|12|"),
    "HoDoKu's library": lambda c: f":0100:5:{''.join(c)}:::",
}
"""Ways for digits with 0 (OpenSudoku) or any sign for blanks."""


def _opensudoku(cells: Cells, version: int, notes: str) -> str:
    """Givens are not editable; a blank is, and may hold what somebody wrote there."""
    data = "".join(
        f"{cell}|{notes}0|" if cell != "0" else f"{index % 3}|{notes}1|"
        for index, cell in enumerate(cells)
    )
    return f'<opensudoku version="2"><game data="version: {version}&#10;{data}"/></opensudoku>'


def board_of(seed: int, side: int, givens: float) -> Int8Array:
    """A solved grid with relabelled digits of which a share is given, and every digit somewhere."""
    rng = np.random.default_rng(seed)
    height, width = BOX_SHAPES[side]
    row, column = np.indices((side, side))
    grid = (width * (row % height) + row // height + column) % side
    solved = (1 + rng.permutation(side))[grid].reshape(-1)
    kept = rng.random(side * side) < givens
    kept[:side] = True
    kept[-1] = False  # no board is complete
    board: Int8Array = np.where(kept, solved, 0).astype(np.int8)
    return board
