"""N-Queens as a plan-editing MDP (UPI-TRM Sec. 2): rules, checker, edits, symmetries.

An instance is a board with some queens given, a plan is that board with further queens; int8, 1 =
queen. `Queens` fulfils `plan_envs.domain.PlanDomain`: pure functions over batches, one or two numba
calls each (`plan_envs.queens.kernels`). Instances come from `plan_envs.queens.instances`.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.cells import CellSymmetry
from plan_envs.checks import check_choices
from plan_envs.compiled.kernel_domain import KernelDomain
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.queens import kernels
from plan_envs.queens.instances import SIDES, count_completions, dihedral_cells
from plan_envs.queens.text import read_board
from plan_envs.rendering import CONFLICT_PAPER, EDIT_INK, Picture, conflicts, default_picture

EditSet = Literal["fill", "full"]
MaskRule = Literal["givens", "constraint"]

KIND_NAMES: Final = ("place", "remove", "stop")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""

_KEEP_ROWS: Final = (0, 2, 5, 7)
"""Identity, half turn and the two mirrors, by index."""

_LIGHT, _DARK = (240, 236, 226), (208, 198, 178)


@dataclass(frozen=True)
class Queens(KernelDomain):
    """N-Queens as pure functions over batches; `PlanDomain` says what each function promises.

    The instance holds the given queens, the plan these and the ones placed so far; any way to
    complete the board solves it.

    Score = queens - 2 x violations - 5 x starved rows. A violation is an unordered pair of queens
    in one row, column or diagonal, at any distance, whether or not others stand between them. A
    starved row has no queen and no square that is free of attack. Solved: n queens, no violation,
    the given ones among them. A plan is dead only under fill edits, where neither fault can ever be
    undone.

    Actions: row * n + column places a queen. Under full edits n * n + row * n + column removes one
    that is not given, and the last action, 2 * n * n, is STOP, legal while the plan is not solved.
    An edit that changes nothing is never legal.

    Args:
        n: rows and columns, 4..32.
        edits: "fill" (place) or "full" (place, remove and STOP).
        mask: "constraint" (squares that no queen attacks) or "givens" (any empty square).

    Raises:
        ValueError: for a size out of range or an unknown option.
    """

    n: int = 8
    edits: EditSet = "fill"
    mask: MaskRule = "constraint"

    _kernels: ClassVar[Any] = kernels

    def __post_init__(self) -> None:
        if self.n not in SIDES:
            raise ValueError(f"n must lie in {SIDES[0]}..{SIDES[-1]}, got {self.n!r}")
        check_choices(self, {"edits": ("fill", "full"), "mask": ("givens", "constraint")})

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the constraint groups row, column, diagonal, antidiagonal."""
        return _spec(self.n, self.edits)

    def read_instance(self, text: str) -> Int8Array:
        """Read a board in any form of `plan_envs.queens.text`, shape [cell].

        Raises:
            ValueError: one line that names the square, or the number of squares, that is wrong.
        """
        return read_board(text, self.n)

    def write_instance(self, instance: Int8Array) -> str:
        """The column of each row's queen, 0 for none, as `read_instance` reads it back."""
        rows = np.asarray(instance).reshape(self.n, self.n)
        columns = np.where(rows.any(axis=1), rows.argmax(axis=1) + 1, 0)
        return (" " if self.n > 9 else "").join(map(str, columns))

    def solvable(self, instance: Int8Array) -> bool:
        """Whether the board has a completion; True above n = 12, where that may take long."""
        return self.n > 12 or bool(count_completions(instance[None], n=self.n, limit=1)[0])

    def why_invalid(self, instance: Int8Array) -> str | None:
        """Say which given queens attack each other; None if none do."""
        places = np.argwhere(np.asarray(instance).reshape(self.n, self.n) > 0)
        for k, one in enumerate(places):
            for other in places[k + 1 :]:
                down, right = other - one
                if down == 0 or right == 0 or abs(down) == abs(right):
                    return (
                        f"the queens at row {one[0] + 1}, column {one[1] + 1} and at "
                        f"row {other[0] + 1}, column {other[1] + 1} attack each other"
                    )
        return None

    def distance(self, instances: Int8Array) -> NDArray[np.int64]:
        """Queens that are missing, shape [batch]."""
        missing: NDArray[np.int64] = self.n - self._instances(instances).sum(axis=1, dtype=np.int64)
        return missing

    def random_symmetry(self, rng: np.random.Generator) -> CellSymmetry:
        """One of the four symmetries that keep the score; see `symmetry`."""
        return self.symmetry(_KEEP_ROWS[rng.integers(4)])

    def symmetry(self, index: int) -> CellSymmetry:
        """One of the eight symmetries of the board, in the order of `dihedral_cells`.

        All of them map solutions to solutions and commute with mask, edit, violations and solved.
        The four that map rows to rows (0, 2, 5, 7) also keep score and dead; the others turn
        starved rows, which cost points, into starved columns, which do not.
        """
        return CellSymmetry(
            spec=self.spec,
            cells=dihedral_cells(self.n)[index],
            values=np.arange(2, dtype=np.int8),
            renames_instances=True,
        )

    def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
        """A chessboard: given queens black and bold, placed ones blue, attacking ones on red."""
        plain = default_picture(self.spec, np.asarray(instance), np.asarray(plan))
        row, column = np.indices(self.spec.grid_shape)
        paper = np.where(((row + column) % 2 == 0)[..., None], _LIGHT, _DARK).astype(np.uint8)
        attacked = conflicts(self.spec, plan).reshape(self.spec.grid_shape)
        paper[attacked] = CONFLICT_PAPER
        ink = plain.ink.copy()
        ink[plain.symbols == "."] = EDIT_INK
        return replace(plain, paper=paper, ink=ink)

    @property
    def rules(self) -> tuple[int, bool, bool]:
        """(n, full edits?, constraint mask?), for the kernels."""
        return self.n, self.edits == "full", self.mask == "constraint"

    @property
    def kernel_rules(self) -> tuple[tuple[int, bool, bool]]:
        """The options alone: squares attack each other by arithmetic."""
        return (self.rules,)

    def _scratch(self, batch: int) -> tuple[NDArray[Any], ...]:
        """Legal placements of each row as bits."""
        return (np.empty((batch, self.n), np.int64),)


@cache
def _spec(n: int, edits: EditSet) -> DomainSpec:
    cells = n * n
    cell = np.arange(cells, dtype=np.int32)
    value, kind = np.ones(cells, np.int32), np.zeros(cells, np.int32)
    row, column = np.divmod(cell, np.int32(n))
    full = edits == "full"
    return DomainSpec(
        name=f"queens{n}x{n}",
        num_cells=cells,
        num_values=1,
        grid_shape=(n, n),
        num_actions=2 * cells + 1 if full else cells,
        horizon=2 * n if full else n,
        max_score=float(n),
        action_cell=np.concatenate([cell, cell, [-1]], dtype=np.int32) if full else cell,
        action_value=np.append(value, np.zeros(cells + 1, np.int32)) if full else value,
        action_kind=np.concatenate([kind, kind + 1, [2]], dtype=np.int32) if full else kind,
        kind_names=KIND_NAMES,
        groups={
            "row": row,
            "column": column,
            "diagonal": column - row + np.int32(n - 1),
            "antidiagonal": row + column,
        },
        at_most_one=("diagonal", "antidiagonal"),
        symbols=".Q",
    )
