"""Which puzzle a text was meant to be, from its signs and its length.

`upi-trm solve` asks when no model can read a text, so that it can say what is wrong with the text
as the puzzle that it looks like.
"""

import re
from typing import Final

from plan_envs.arc.rules import Arc
from plan_envs.domain import PlanDomain
from plan_envs.maze.rules import SIZES, Maze
from plan_envs.maze.text import VALUES, guess_size
from plan_envs.queens.instances import SIDES
from plan_envs.queens.rules import Queens
from plan_envs.repair.rules import Repair
from plan_envs.sudoku.rules import Sudoku
from plan_envs.sudoku.text import guess_side
from plan_envs.texts import content_lines, signs_of_line

_QUEENS: Final = frozenset("Qq\u2655\u265b")
_WALLS: Final = frozenset("#\u2588\u2593\u25a0\u2b1b")
_TEST: Final = re.compile(r"\[[^\]]*\]\s*(->|\u2192)")
"""A list and the arrow behind it: a unit test of a program."""
_FEN: Final = re.compile(r"\d+(/\d+){3,}(\s.*)?", re.DOTALL)


def guess_domain(text: str) -> PlanDomain | None:
    """The rules that a text was most likely written for; None if it looks like no puzzle."""
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        return Arc()
    if _TEST.search(text):
        return Repair()
    if _is_maze(text):
        size = guess_size(text)
        return Maze(size) if size in SIZES else None
    lines = [signs_of_line(line.text) for line in content_lines(text)]
    signs = "".join(lines)
    if (
        _QUEENS & set(signs)
        or _FEN.fullmatch(text.strip())
        or (len(signs) < 13 and signs.isdigit())
    ):
        return _guess_queens(text, lines)
    try:
        side = guess_side(text)
    except ValueError:  # a container that cannot be opened
        side = 9
    return None if side is None else Sudoku(side)


def _is_maze(text: str) -> bool:
    """Whether four in five signs are those of a maze, walls and a start or a goal among them."""
    signs = [sign for sign in text if sign not in "\r\n/,;"]
    known = sum(sign in VALUES for sign in signs)
    walls = _WALLS & set(signs) or {"S", "G"} <= set(signs)
    return bool(walls) and bool(set("SG") & set(signs)) and known >= 0.8 * len(signs)


def _guess_queens(text: str, lines: list[str]) -> PlanDomain | None:
    signs = "".join(lines)
    n = len(lines) if len(lines) > 1 else round(len(signs) ** 0.5)
    words = text.split()
    if "/" in words[0]:
        n = words[0].count("/") + 1
    elif len(lines) == 1 and signs.isdigit() and len(signs) < 33:
        n = len(words) if len(words) > 1 else len(signs)
    return Queens(n) if n in SIDES else None
