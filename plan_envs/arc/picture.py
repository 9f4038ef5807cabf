"""The picture of an ARC task: its demonstrations, its test input and the canvas, side by side."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc.grids import PALETTE
from plan_envs.domain import Int8Array
from plan_envs.rendering import Picture

_GROUND: Final = (244, 244, 246)
"""Paper around the grids, in a picture."""


def draw(pairs: list[tuple[Int8Array, Int8Array]], *, edited: NDArray[np.bool_]) -> Picture:
    """Lay out pairs of grids line by line; the last pair's second grid is the canvas."""
    shape, places = _lay_out([(first.shape, second.shape) for first, second in pairs])
    symbols = np.full(shape, " ")
    paper = np.full((*shape, 3), _GROUND, np.uint8)
    ink = paper.copy()
    bold, below, beside = np.zeros((3, *shape), np.bool_)
    for pair, corners in zip(pairs, places, strict=True):
        for grid, (top, left) in zip(pair, corners, strict=True):
            place = slice(top, top + grid.shape[0]), slice(left, left + grid.shape[1])
            symbols[place] = (grid - 1).astype(str)
            paper[place] = ink[place] = np.array(PALETTE, np.uint8)[grid - 1]
    canvas, (top, left) = pairs[-1][1], places[-1][1]
    rows, columns = canvas.shape
    inside = slice(top, top + rows), slice(left, left + columns)
    bold[inside] = edited
    bright = np.array(PALETTE).sum(axis=1) > 380
    contrast = np.where(bright[canvas - 1], 0, 255).astype(np.uint8)
    ink[inside] = np.where(edited[..., None], contrast[..., None], paper[inside])
    below[[top - 1, top + rows - 1], left : left + columns] = True
    beside[top : top + rows, [left - 1, left + columns - 1]] = True
    return Picture(
        symbols=symbols,
        ink=ink,
        paper=paper,
        bold=bold,
        rule_below=below,
        rule_right=beside,
        origin=(top, left),
        extent=(rows, columns),
    )


_Corner = tuple[int, int]
"""Row and column."""


def _lay_out(
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[tuple[int, int], list[tuple[_Corner, _Corner]]]:
    """(shape of the picture, corners of each pair's grids), a cell apart and as square as can be.

    All first grids get the room of the largest, and so do all second ones.
    """
    first, second = (np.array([pair[side] for pair in shapes]).max(axis=0) for side in (0, 1))
    layouts: list[tuple[tuple[int, int], list[tuple[_Corner, _Corner]]]] = []
    for axis in (1, 0):  # the second grid right of the first, or below it
        room = np.maximum(first, second) + 1
        room[axis] = first[axis] + second[axis] + 3
        shift = np.zeros(2, np.int64)
        shift[axis] = first[axis] + 1
        for columns in range(1, len(shapes) + 1):
            lines = -(-len(shapes) // columns)
            shape = lines * int(room[0]) + 1, columns * int(room[1]) + 1
            corners = np.stack(np.divmod(range(len(shapes)), columns), axis=1) * room + 1
            places = zip(corners.tolist(), (corners + shift).tolist(), strict=True)
            layouts.append((shape, [((a, b), (c, d)) for (a, b), (c, d) in places]))
    return min(layouts, key=lambda layout: max(layout[0]))
