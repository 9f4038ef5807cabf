"""Drawings of a plan: coloured text for a terminal, an RGB frame for a window or a video.

Both are built from `DomainSpec` alone: rules between boxes come from the group "box" where a
domain has one, conflicts from any constraint group. Givens are bold (black in the frame), edits
blue, conflicts red (in the frame on a red ground, where a given among them stays black). The
environments call these functions in `render()`.
"""

import os
import string
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array

_SYMBOLS = "." + string.digits[1:] + string.ascii_uppercase

_RESET, _BOLD, _BLUE, _RED = "\x1b[0m", "\x1b[1m", "\x1b[34m", "\x1b[31m"

_PAPER, _GIVEN_PAPER, _CONFLICT_PAPER = (255, 255, 255), (238, 238, 232), (252, 218, 214)
_GIVEN_INK, _EDIT_INK, _CONFLICT_INK = (24, 24, 24), (20, 84, 190), (190, 24, 24)
_THIN, _THICK = (176, 176, 176), (40, 40, 40)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What to draw, cell by cell; a domain's `picture(instance, plan)` may return one.

    The grid may be larger than the plan's (ARC shows its demonstrations beside the canvas).
    """

    symbols: NDArray[np.str_]
    """Shape [row, column]: one character a cell, "" or " " for none."""
    ink: NDArray[np.uint8]
    """Shape [row, column, 3]: colour of the symbol."""
    paper: NDArray[np.uint8]
    """Shape [row, column, 3]: colour of the ground."""
    bold: NDArray[np.bool_]
    """Shape [row, column]."""
    rule_below: NDArray[np.bool_]
    """Shape [row, column]: a thick line under the cell."""
    rule_right: NDArray[np.bool_]
    """Shape [row, column]: a thick line right of the cell."""


def render_ansi(
    spec: DomainSpec, instance: Int8Array, plan: Int8Array, *, color: bool = True
) -> str:
    """Draw a plan as text, '.' = blank, values above 9 as letters.

    Args:
        spec: the domain.
        instance: givens, shape [cell].
        plan: shape [cell].
        color: ANSI escapes: givens bold, edits blue, conflicting cells red; plain text if False.
    """
    rows, columns = spec.grid_shape
    instance, plan = _board(spec, "instance", instance), _board(spec, "plan", plan)
    conflicts = _conflicts(spec, plan)
    below, right = _walls(spec)
    texts = []
    for cell in range(spec.num_cells):
        text = _symbol(plan[cell])
        style = ""
        if plan[cell]:
            given = instance[cell] == plan[cell]
            hue = _RED if conflicts[cell] else "" if given else _BLUE
            style = (_BOLD if given else "") + hue
        texts.append(f"{style}{text}{_RESET}" if color and style else text)
    lines = []
    for row in range(rows):
        line = []
        rule = []
        for column in range(columns):
            cell = row * columns + column
            line.append(texts[cell] + (" |" if right[cell] else ""))
            rule.append("--+" if right[cell] else "-")
        lines.append(" ".join(line))
        if below[row * columns : (row + 1) * columns].any():
            lines.append("-".join(rule))
    return "\n".join(lines)


def render_rgb(
    spec: DomainSpec, instance: Int8Array, plan: Int8Array, *, size: int = 576
) -> NDArray[np.uint8]:
    """Draw a plan as an image with pygame, without opening a window.

    Args:
        spec: the domain.
        instance: givens, shape [cell].
        plan: shape [cell].
        size: pixels of the longer side of the image.

    Returns:
        uint8 array [height, width, 3].

    Raises:
        ImportError: if pygame is not installed; the message names the extra.
    """
    pygame = _pygame()
    rows, columns = spec.grid_shape
    instance, plan = _board(spec, "instance", instance), _board(spec, "plan", plan)
    if size < 12 * max(rows, columns):
        raise ValueError(f"size must be at least {12 * max(rows, columns)} pixels, got {size}")
    conflicts = _conflicts(spec, plan)
    margin = max(4, size // 48)
    pitch = (size - 2 * margin) / max(rows, columns)
    height, width = (round(pitch * lines) + 2 * margin for lines in (rows, columns))
    surface = pygame.Surface((width, height))
    surface.fill(_PAPER)
    font = pygame.font.Font(None, max(10, round(pitch * 0.86)))
    edge = [round(margin + pitch * line) for line in range(max(rows, columns) + 1)]
    for cell in range(spec.num_cells):
        row, column = divmod(cell, columns)
        left, top = edge[column], edge[row]
        box = pygame.Rect(left, top, edge[column + 1] - left, edge[row + 1] - top)
        given = instance[cell] != 0 and instance[cell] == plan[cell]
        if conflicts[cell]:
            surface.fill(_CONFLICT_PAPER, box)
        elif given:
            surface.fill(_GIVEN_PAPER, box)
        if plan[cell]:
            ink = _GIVEN_INK if given else _CONFLICT_INK if conflicts[cell] else _EDIT_INK
            text = font.render(_symbol(plan[cell]), True, ink)
            bounds = text.get_bounding_rect()
            surface.blit(text, _centred(bounds, box))
    _draw_rules(pygame, surface, spec, edge, thick=min(max(2, round(pitch / 16)), 5))
    return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1), np.uint8)


def _draw_rules(
    pygame: Any, surface: Any, spec: DomainSpec, edge: list[int], *, thick: int
) -> None:
    """Thin lines between cells, then thick ones between boxes and around the grid."""
    rows, columns = spec.grid_shape
    below, right = _walls(spec)
    for line in range(1, rows):
        pygame.draw.line(surface, _THIN, (edge[0], edge[line]), (edge[columns], edge[line]))
    for line in range(1, columns):
        pygame.draw.line(surface, _THIN, (edge[line], edge[0]), (edge[line], edge[rows]))
    for cell in range(spec.num_cells):
        row, column = divmod(cell, columns)
        left, top, far, low = edge[column], edge[row], edge[column + 1], edge[row + 1]
        if below[cell]:
            surface.fill(_THICK, (left, low - thick // 2, far - left + 1, thick))
        if right[cell]:
            surface.fill(_THICK, (far - thick // 2, top, thick, low - top + 1))
    frame = (
        edge[0] - thick // 2,
        edge[0] - thick // 2,
        edge[columns] - edge[0] + thick,
        edge[rows] - edge[0] + thick,
    )
    pygame.draw.rect(surface, _THICK, frame, width=thick)


def _centred(bounds: Any, box: Any) -> tuple[int, int]:
    """Where to put a text so that its visible pixels lie in the middle of the box."""
    return box.centerx - bounds.centerx, box.centery - bounds.centery


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


def _symbol(value: Any) -> str:
    return _SYMBOLS[value] if value < len(_SYMBOLS) else "?"


def _board(spec: DomainSpec, name: str, board: Int8Array) -> Int8Array:
    flat: Int8Array = np.asarray(board, np.int8).reshape(-1)
    if flat.size != spec.num_cells:
        raise ValueError(f"{name} must have {spec.num_cells} cells, got {flat.size}")
    return flat


def _conflicts(spec: DomainSpec, plan: Int8Array) -> NDArray[np.bool_]:
    """Cells whose value shares a constraint group with an equal label elsewhere, shape [cell]."""
    filled = np.flatnonzero(plan)
    variables = filled * spec.num_values + plan[filled] - 1
    conflict = np.zeros(spec.num_cells, np.bool_)
    for labels in spec.groups.values():
        _, label, count = np.unique(labels[variables], return_inverse=True, return_counts=True)
        conflict[filled] |= count[label] > 1
    return conflict


def _walls(spec: DomainSpec) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells with a box border below and right of them, outer frame left out; shape [cell]."""
    rows, columns = spec.grid_shape
    below = np.zeros((rows, columns), np.bool_)
    right = np.zeros((rows, columns), np.bool_)
    if "box" in spec.groups:
        box = spec.groups["box"].reshape(rows, columns, spec.num_values)[:, :, 0]
        below[:-1] = box[1:] != box[:-1]
        right[:, :-1] = box[:, 1:] != box[:, :-1]
    return below.ravel(), right.ravel()
