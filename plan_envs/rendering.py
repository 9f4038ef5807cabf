"""Drawings of a plan: coloured text for a terminal, an RGB frame for a window or a video.

A `Picture` says what every cell shows and in which colours. A domain with a method
`picture(instance, plan)` makes its own; for the others `default_picture` makes one from
`DomainSpec` alone: rules between boxes come from the group "box", conflicts from any constraint
group. One code draws all pictures as text and as frames; the environments call it in `render()`.
"""

import os
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array, PlanDomain

PAPER: Final = (255, 255, 255)
"""The ground of a blank cell, and of everything around the grid."""
GIVEN_PAPER: Final = (238, 238, 232)
CONFLICT_PAPER: Final = (252, 218, 214)
GIVEN_INK: Final = (24, 24, 24)
EDIT_INK: Final = (20, 84, 190)
CONFLICT_INK: Final = (190, 24, 24)
BLANK_INK: Final = (176, 176, 176)

_THIN, _THICK = (176, 176, 176), (40, 40, 40)
_RESET = "\x1b[0m"
_LEAST_PIXELS: Final = 2
"""A cell of a frame is never smaller; the frame grows instead."""
_LEAST_TEXT: Final = 7
"""Cells smaller than this many pixels show their paper alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What to draw, cell by cell; a domain's `picture(instance, plan)` may return one.

    It may be larger than the plan's grid: ARC shows its demonstrations beside the canvas.
    """

    symbols: NDArray[np.str_]
    """Shape [row, column]: one character a cell, or a short word; "" or " " for none. Text without
    colours shows nothing else, so walls and colours need symbols too: where the ink equals the
    paper, a symbol is seen in such text only. "." is a blank cell; frames leave it out."""
    ink: NDArray[np.uint8]
    """Shape [row, column, 3]: colour of the symbol."""
    paper: NDArray[np.uint8]
    """Shape [row, column, 3]: colour of the ground. A cell without symbol whose ink equals its
    paper lies outside the grids: frames draw no lines around it."""
    bold: NDArray[np.bool_]
    """Shape [row, column]."""
    rule_below: NDArray[np.bool_]
    """Shape [row, column]: a thick line under the cell."""
    rule_right: NDArray[np.bool_]
    """Shape [row, column]: a thick line right of the cell."""
    origin: tuple[int, int] = (0, 0)
    """Row and column at which the plan's first cell is drawn."""
    extent: tuple[int, int] | None = None
    """Rows and columns of the plan that are drawn from there on; None = all that there are."""


def render_ansi(
    domain: PlanDomain | DomainSpec, instance: Int8Array, plan: Int8Array, *, color: bool = True
) -> str:
    """Draw a plan as text, each cell two characters wide so that it looks square.

    Where a picture has words, each cell is one character wider than the longest.

    Args:
        domain: the rules; a bare `DomainSpec` gives the default picture.
        instance: shape [instance]; its observed part will do.
        plan: shape [cell].
        color: 24-bit ANSI colours of ink and paper; False for the symbols alone.
    """
    return draw_text(picture_of(domain, instance, plan), color=color)


def render_rgb(
    domain: PlanDomain | DomainSpec, instance: Int8Array, plan: Int8Array, *, size: int = 576
) -> NDArray[np.uint8]:
    """Draw a plan as an image with pygame, without opening a window.

    Args:
        domain: the rules; a bare `DomainSpec` gives the default picture.
        instance: shape [instance]; its observed part will do.
        plan: shape [cell].
        size: pixels of each side; more where the cells would become smaller than 2 pixels.

    Returns:
        uint8 array [side, side, 3], the grid in its middle.

    Raises:
        ImportError: if pygame is not installed; the message names the extra.
    """
    return draw_frame(picture_of(domain, instance, plan), size=size)


def picture_of(domain: PlanDomain | DomainSpec, instance: Int8Array, plan: Int8Array) -> Picture:
    """The domain's own picture of a plan, else the default one."""
    spec = domain if isinstance(domain, DomainSpec) else domain.spec
    instance = _board("instance", instance, spec.instance_size, spec.observed_size)
    plan = _board("plan", plan, spec.num_cells)
    own = getattr(domain, "picture", None)
    if own is None:
        return default_picture(spec, instance, plan)
    picture: Picture = own(instance, plan)
    return picture


def default_picture(spec: DomainSpec, instance: Int8Array, plan: Int8Array) -> Picture:
    """Givens bold and black, edits blue, conflicts on red; rules between boxes.

    A given is a cell where the first board of the instance shows the plan's value.
    """
    shape = spec.grid_shape
    filled = plan != 0
    given = filled & (instance[: spec.num_cells] == plan)
    conflict = conflicts(spec, plan)
    ink = np.full((spec.num_cells, 3), BLANK_INK, np.uint8)
    ink[filled] = EDIT_INK
    ink[conflict] = CONFLICT_INK
    ink[given] = GIVEN_INK
    paper = np.full((spec.num_cells, 3), PAPER, np.uint8)
    paper[given] = GIVEN_PAPER
    paper[conflict] = CONFLICT_PAPER
    below, right = _walls(spec)
    return Picture(
        symbols=np.array([spec.symbols[value] for value in plan.tolist()]).reshape(shape),
        ink=ink.reshape(*shape, 3),
        paper=paper.reshape(*shape, 3),
        bold=given.reshape(shape),
        rule_below=below,
        rule_right=right,
    )


def draw_text(picture: Picture, *, color: bool = True, numbered: bool = False) -> str:
    """A picture as lines of text: `|`, `-` and `+` are thick lines; see `render_ansi`.

    `color` adds 24-bit ANSI colours, `numbered` the numbers of rows and columns, at the border.
    """
    rows, columns = picture.symbols.shape
    upright = [bool(line.any()) for line in picture.rule_right.T]
    flat = [bool(line.any()) for line in picture.rule_below]
    top, left = picture.origin
    height, width = (picture.extent or (rows, columns)) if numbered else (0, 0)
    margin = " " * 3 if numbered else ""
    letters = max(1, *map(len, picture.symbols.ravel().tolist()))
    lines = [margin + line for line in _column_numbers(width, left, upright, letters)]
    for row in range(rows):
        number = row - top + 1
        label = f"{number:2} " if 1 <= number <= height else margin
        shown: list[tuple[str, _Style]] = []
        ruled: list[tuple[str, _Style]] = []
        for column in range(columns):
            symbol = str(picture.symbols[row, column]).rjust(letters)
            ink, paper = (tuple(c[row, column].tolist()) for c in (picture.ink, picture.paper))
            shown.append((symbol + " ", (ink, paper, bool(picture.bold[row, column]))))
            rule = "-" if picture.rule_below[row, column] else " "
            ruled.append((rule * (letters + 1), _GROUND))
            if upright[column]:
                shown.append(("| " if picture.rule_right[row, column] else "  ", _GROUND))
                ruled.append((_corner(picture, row, column), _GROUND))
        lines.append(label + _line(shown, color))
        if flat[row]:
            lines.append(margin + _line(ruled, color))
    return "\n".join(lines)


def _corner(picture: Picture, row: int, column: int) -> str:
    """Two characters at the lower right corner of a cell."""
    before, after = picture.rule_below[row, column : column + 2].tolist() + [False] * (
        column + 1 == picture.rule_below.shape[1]
    )
    upright = bool(picture.rule_right[row : row + 2, column].any())
    if before or after:
        return ("+" if upright else "-" if before else " ") + ("-" if after else " ")
    return "| " if upright and picture.rule_right[row, column] else "  "


def _column_numbers(num: int, left: int, upright: list[bool], letters: int) -> list[str]:
    """One line of numbers above the columns, or two where they have two digits."""
    lines = []
    pad = " " * (letters - 1)
    for digits in (10, 1) if num > 9 else (1,):
        line = ""
        for column, ruled in enumerate(upright):
            number = column - left + 1
            shown = digits <= number <= num
            digit = str(number // digits % 10) if shown else " "
            line += pad + digit + "   "[: 3 if ruled else 1]
        lines.append(line.rstrip())
    return lines if num else []


_Style = tuple[tuple[int, ...], tuple[int, ...], bool]
"""Ink, paper, bold."""

_GROUND: Final[_Style] = (_THICK, PAPER, False)


def _line(parts: list[tuple[str, _Style]], color: bool) -> str:
    """A line of text, escapes where the style changes; its last cell is without its space."""
    if not color:
        return "".join(text for text, _ in parts)[:-1].rstrip()
    line = ""
    for (ink, paper, bold), run in groupby(parts, key=itemgetter(1)):
        codes = ["1"] * bold + ["38;2", *map(str, ink), "48;2", *map(str, paper)]
        line += f"\x1b[{';'.join(codes)}m{''.join(text for text, _ in run)}{_RESET}"
    return line


def draw_frame(picture: Picture, *, size: int = 576) -> NDArray[np.uint8]:
    """A picture as a square image; see `render_rgb`."""
    pygame = _pygame()
    rows, columns = picture.symbols.shape
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    margin = max(4, size // 48)
    pitch = max((size - 2 * margin) / max(rows, columns), float(_LEAST_PIXELS))
    side = max(size, round(pitch * max(rows, columns)) + 2 * margin)
    surface = pygame.Surface((side, side))
    outside = (picture.ink == picture.paper).all(axis=2) & (np.char.strip(picture.symbols) == "")
    surface.fill(tuple(picture.paper[0, 0].tolist()) if outside[0, 0] else PAPER)
    across = [round((side - pitch * columns) / 2 + pitch * line) for line in range(columns + 1)]
    down = [round((side - pitch * rows) / 2 + pitch * line) for line in range(rows + 1)]
    words = np.unique(picture.symbols).tolist()
    fonts = {word: _font(pygame, word, pitch) for word in words}
    for row in range(rows):
        for column in range(columns):
            symbol = str(picture.symbols[row, column])
            ink, paper = (tuple(c[row, column].tolist()) for c in (picture.ink, picture.paper))
            left, top = across[column], down[row]
            box = pygame.Rect(left, top, across[column + 1] - left, down[row + 1] - top)
            surface.fill(paper, box)
            if symbol.strip(" .") and ink != paper and pitch >= _LEAST_TEXT:
                _draw_symbol(pygame, surface, fonts[symbol], symbol, ink, box)
    thick = min(max(2, round(pitch / 16)), 5) if pitch >= _LEAST_TEXT else 1
    if pitch >= _LEAST_TEXT:
        _draw_thin_lines(surface, outside, across, down)
    _draw_rules(pygame, surface, picture, across, down, thick=thick, framed=not outside.any())
    return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1), np.uint8)


def _font(pygame: Any, word: str, pitch: float) -> Any:
    """The font for a symbol in cells of `pitch` pixels; smaller for a word that would not fit."""
    size = max(8, round(pitch * 0.86))
    font = pygame.font.Font(None, size)
    room = 0.86 * pitch / max(1, font.size(word)[0])
    if len(word) == 1 or room >= 1:
        return font
    return pygame.font.Font(None, max(8, round(size * room)))


_ARROWS: Final = {
    "^": ((0.5, 0.2), (0.82, 0.72), (0.18, 0.72)),
    "v": ((0.5, 0.8), (0.82, 0.28), (0.18, 0.28)),
    "<": ((0.2, 0.5), (0.72, 0.18), (0.72, 0.82)),
    ">": ((0.8, 0.5), (0.28, 0.18), (0.28, 0.82)),
}
"""Corners of symbols that are drawn as triangles, in a unit square."""


def _draw_symbol(
    pygame: Any, surface: Any, font: Any, symbol: str, ink: tuple[int, ...], box: Any
) -> None:
    """A symbol in the middle of its cell."""
    if symbol in _ARROWS:
        corners = [(box.x + x * box.w, box.y + y * box.h) for x, y in _ARROWS[symbol]]
        pygame.draw.polygon(surface, ink, corners)
        return
    text = font.render(symbol, True, ink)
    bounds = text.get_bounding_rect()
    surface.blit(text, (box.centerx - bounds.centerx, box.centery - bounds.centery))


def _draw_thin_lines(
    surface: Any, outside: NDArray[np.bool_], across: list[int], down: list[int]
) -> None:
    """Lines between neighbouring cells, of which at least one lies in the grid."""
    inside = np.pad(~outside, 1)
    rows, columns = outside.shape
    for row in range(rows + 1):
        for column in range(columns + 1):
            if inside[row, column + 1] or inside[row + 1, column + 1]:
                if column < columns and (0 < row < rows or outside.any()):
                    width = across[column + 1] - across[column] + 1
                    surface.fill(_THIN, (across[column], down[row], width, 1))
            if inside[row + 1, column] or inside[row + 1, column + 1]:
                if row < rows and (0 < column < columns or outside.any()):
                    height = down[row + 1] - down[row] + 1
                    surface.fill(_THIN, (across[column], down[row], 1, height))


def _draw_rules(
    pygame: Any,
    surface: Any,
    picture: Picture,
    across: list[int],
    down: list[int],
    *,
    thick: int,
    framed: bool,
) -> None:
    """The thick lines, and a frame around a grid that fills the picture."""
    for row, column in np.argwhere(picture.rule_below).tolist():
        left, width = across[column], across[column + 1] - across[column] + 1
        surface.fill(_THICK, (left, down[row + 1] - thick // 2, width, thick))
    for row, column in np.argwhere(picture.rule_right).tolist():
        top, height = down[row], down[row + 1] - down[row] + 1
        surface.fill(_THICK, (across[column + 1] - thick // 2, top, thick, height))
    if framed:
        left, top = across[0] - thick // 2, down[0] - thick // 2
        width, height = across[-1] - across[0] + thick, down[-1] - down[0] + thick
        pygame.draw.rect(surface, _THICK, (left, top, width, height), width=thick)


def _pygame() -> Any:
    """Import pygame on first use; fonts are initialised, no display is opened."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise ImportError(
            "rgb frames need pygame, which is not installed: pip install upi-trm[render]"
        ) from error
    if not pygame.font.get_init():
        pygame.font.init()
    return pygame


def _board(name: str, board: Int8Array, *sizes: int) -> Int8Array:
    flat: Int8Array = np.asarray(board, np.int8).reshape(-1)
    if flat.size not in sizes:
        raise ValueError(f"{name} must have {sizes[0]} cells, got {flat.size}")
    return flat


def conflicts(spec: DomainSpec, plan: Int8Array) -> NDArray[np.bool_]:
    """Cells whose value shares a constraint group with an equal label elsewhere, shape [cell]."""
    filled = np.flatnonzero(plan)
    variables = filled * spec.num_values + plan[filled] - 1
    conflict = np.zeros(spec.num_cells, np.bool_)
    for labels in spec.groups.values():
        _, label, count = np.unique(labels[variables], return_inverse=True, return_counts=True)
        conflict[filled] |= count[label] > 1
    return conflict


def _walls(spec: DomainSpec) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells with a box border below and right of them, outer frame left out."""
    rows, columns = spec.grid_shape
    below = np.zeros((rows, columns), np.bool_)
    right = np.zeros((rows, columns), np.bool_)
    if "box" in spec.groups:
        box = spec.groups["box"].reshape(rows, columns, spec.num_values)[:, :, 0]
        below[:-1] = box[1:] != box[:-1]
        right[:, :-1] = box[:, 1:] != box[:, :-1]
    return below, right
