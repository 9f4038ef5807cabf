"""Grids of ARC and the boards that hold them.

A grid has colours 0..9 and any size up to 30 x 30. A board is a square that shows a grid at its top
left as colour + 1, with 0 around it.
"""

from typing import Any, Final

import numpy as np

from plan_envs.checks import as_boards
from plan_envs.domain import Int8Array

NUM_COLOURS: Final = 10

LARGEST: Final = 30
"""No grid of ARC has more rows or columns."""

MOST_DEMONSTRATIONS: Final = 10
"""No task of ARC-AGI-1 or ARC-AGI-2 has more."""

PALETTE: Final = (
    (0, 0, 0),
    (0, 116, 217),
    (255, 65, 54),
    (46, 204, 64),
    (255, 220, 0),
    (170, 170, 170),
    (240, 18, 190),
    (255, 133, 27),
    (127, 219, 255),
    (135, 12, 37),
)
"""The colours 0..9 as the official ARC pages show them."""


def translate(boards: Int8Array, *, size: int, down: Any, right: Any) -> Int8Array:
    """Shift what each board shows, as supervised training augments ARC; -down, -right undo it.

    A shifted grid is no canvas any more, so the result is for learners that read boards as pictures
    (give a pair's input and output the same shift); the editor cannot start from it.

    Args:
        boards: shape [batch, cell].
        size: rows and columns of a board.
        down: rows, one number or one a board; negative = up.
        right: columns, likewise.

    Raises:
        ValueError: if a coloured cell would leave its board.
    """
    boards = as_boards("boards", boards, size * size)
    down, right = np.broadcast_to(down, len(boards)), np.broadcast_to(right, len(boards))
    which, cell = np.nonzero(boards)
    row, column = cell // size + down[which], cell % size + right[which]
    outside = (row < 0) | (row >= size) | (column < 0) | (column >= size)
    if outside.any():
        first = int(which[outside.argmax()])
        raise ValueError(
            f"board {first} cannot move down {down[first]} and right {right[first]}: "
            f"a cell would leave the {size}x{size} board"
        )
    moved = np.zeros_like(boards)
    moved[which, row * size + column] = boards[which, cell]
    return moved


def board_of(grid: Any, size: int, *, name: str = "grid") -> Int8Array:
    """A grid of colours 0..9 as a flat board: colour + 1 at the top left, 0 elsewhere; [cell].

    Raises:
        ValueError: names the grid, if it does not fit or holds other numbers.
    """
    colours = np.asarray(grid)
    if colours.ndim != 2 or not colours.size:
        raise ValueError(f"{name} must have rows and columns, got shape {list(colours.shape)}")
    height, width = colours.shape
    if max(height, width) > size:
        raise ValueError(f"{name} has {height}x{width} cells, more than {size}x{size}")
    if colours.min() < 0 or colours.max() >= NUM_COLOURS:
        raise ValueError(f"{name} must hold 0..9, got {colours.min()}..{colours.max()}")
    board = np.zeros((size, size), np.int8)
    board[:height, :width] = colours + 1
    return board.reshape(-1)


def grid_of(board: Int8Array, size: int) -> Int8Array:
    """The grid of colours 0..9 that a board shows, int8 [row, column]; (0, 0) when it is empty."""
    colours: Int8Array = crop(np.asarray(board, np.int8).reshape(size, size)) - np.int8(1)
    return colours


def extent_of(board: Int8Array) -> tuple[slice, slice]:
    """Rows and columns of a board's grid."""
    return slice(int((board[:, 0] > 0).sum())), slice(int((board[0] > 0).sum()))


def crop(board: Int8Array) -> Int8Array:
    """The grid of a board [row, column], colours as 1..10."""
    return board[extent_of(board)]
