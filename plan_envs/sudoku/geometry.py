"""Rows, columns and boxes of Sudoku: which cells share a unit, for every side that there is.

The rules, the engine and the exact search look up these tables.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

BOX_SHAPES: Final = {4: (2, 2), 6: (2, 3), 9: (3, 3), 16: (4, 4)}
"""Side -> rows and columns of a box."""


@cache
def units_of(side: int) -> NDArray[np.int32]:
    """Row, column and box of each cell, shape [cell, 3]."""
    box_rows, box_columns = BOX_SHAPES[side]
    row, column = np.divmod(np.arange(side * side, dtype=np.int32), np.int32(side))
    box = row // box_rows * (side // box_columns) + column // box_columns
    return np.stack([row, column, box], axis=1).astype(np.int32)


@cache
def peers_of(side: int) -> NDArray[np.uint8]:
    """The cells that share a row, column or box with each cell, ascending, shape [cell, peer].

    The cells are unsigned, because numba then omits its test for negative indices; 16x16 just fits.
    """
    units = units_of(side)
    related = (units[:, None, :] == units[None, :, :]).any(axis=-1)
    np.fill_diagonal(related, False)
    return np.stack([np.flatnonzero(mates) for mates in related]).astype(np.uint8)
