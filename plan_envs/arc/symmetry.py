"""The symmetries of ARC: turns, reflections and permuted colours."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc import kernels
from plan_envs.arc.grids import NUM_COLOURS
from plan_envs.checks import as_boards
from plan_envs.domain import Int8Array


@dataclass(frozen=True)
class ArcSymmetry:
    """A dihedral map of every grid with a permutation of the colours, the same on all boards.

    Grids stay at the top left of their boards, so a map acts on each grid's own rectangle. Tasks
    and labels have all these symmetries. Of the *editor* only transpositions that keep colour 0 are
    symmetries, because a canvas grows below and on the right, with colour 0: only these have
    `actions`. A flip also changes the agreement of a canvas with a target of another size; whether
    the canvas is the target, no symmetry changes.

    Args:
        size: rows and columns of a board.
        dihedral: 0..7; bit 0 = transpose, then bit 1 = flip the rows, bit 2 = flip the columns.
        colours: image of each colour 0..9.
    """

    size: int
    dihedral: int
    colours: tuple[int, ...] = tuple(range(NUM_COLOURS))

    def __post_init__(self) -> None:
        if self.dihedral not in range(8):
            raise ValueError(f"dihedral must lie in 0..7, got {self.dihedral!r}")
        if sorted(self.colours) != list(range(NUM_COLOURS)):
            raise ValueError(f"colours must be a permutation of 0..9, got {self.colours!r}")

    @property
    def transposes(self) -> bool:
        """Rows become columns."""
        return bool(self.dihedral & 1)

    def instances(self, instances: Int8Array) -> Int8Array:
        """Images of instances, board by board; shape [batch, instance]."""
        boards = np.ascontiguousarray(instances, np.int8)
        return self.plans(boards.reshape(-1, self.size**2)).reshape(boards.shape)

    def plans(self, plans: Int8Array) -> Int8Array:
        """Images of plans or solutions, shape [batch, cell]."""
        boards = canvases("plans", plans, self.size)
        images = np.empty_like(boards)
        table = np.array([0, *(colour + 1 for colour in self.colours)], np.int8)
        flips = bool(self.dihedral & 2), bool(self.dihedral & 4)
        kernels.transform_boards(boards, self.size, self.transposes, *flips, table, images)
        return images

    def actions(self) -> NDArray[np.int32]:
        """The image of every action, shape [action].

        Raises:
            ValueError: if the symmetry flips, or moves colour 0: then where a paint goes depends on
                the canvas, and growing or shrinking has no image.
        """
        if self.dihedral > 1 or self.colours[0] != 0:
            raise ValueError(
                f"only transpositions that keep colour 0 map every action; this symmetry has "
                f"dihedral={self.dihedral}, colours={self.colours}"
            )
        cells = np.arange(self.size**2).reshape(self.size, self.size)
        resizes = NUM_COLOURS * cells.size + np.arange(2 * self.size + 1)  # the last one submits
        if self.transposes:
            cells = cells.T
            resizes[:-1] = np.roll(resizes[:-1], self.size)
        paints = cells.reshape(-1, 1) * NUM_COLOURS + np.array(self.colours)
        return np.concatenate([paints.ravel(), resizes]).astype(np.int32)

    def inverse(self) -> Self:
        """The symmetry that undoes this one; transposed, a flip of rows is one of columns."""
        dihedral = self.dihedral
        if self.transposes:
            dihedral = 1 | (dihedral & 2) << 1 | (dihedral & 4) >> 1
        colours = tuple(int(colour) for colour in np.argsort(self.colours))
        return type(self)(self.size, dihedral, colours)


def canvases(name: str, boards: Int8Array, size: int) -> Int8Array:
    """Boards that show a rectangle of colours at the top left and nothing else, checked.

    Raises:
        ValueError: names the argument and the first row that is no canvas.
    """
    boards = as_boards(name, boards, size * size)
    wrong = kernels.first_malformed(boards, size)
    if wrong >= 0:
        raise ValueError(
            f"{name} must hold 1..{NUM_COLOURS} in a rectangle at the top left of the board and 0 "
            f"elsewhere; row {wrong} does not"
        )
    return boards
