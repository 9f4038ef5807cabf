"""Sudoku of side 4, 6, 9 and 16 as a plan-editing MDP (UPI-TRM Sec. 2): rules, checker, edits.

An instance is a board of givens, a plan is that board with more cells filled; int8, 0 = blank, else
the digit. `Sudoku` fulfils `plan_envs.domain.PlanDomain`: pure functions over batches, one or two
numba calls each (`plan_envs.sudoku.kernels`). Instances come from `plan_envs.sudoku.instances`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.cells import CellSymmetry
from plan_envs.checks import check_choices
from plan_envs.compiled.kernel_domain import KernelDomain
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.sudoku import kernels
from plan_envs.sudoku.geometry import BOX_SHAPES, peers_of, units_of
from plan_envs.sudoku.instances import count_solutions
from plan_envs.sudoku.text import format_line, parse_puzzle

Codec = Literal["digits", "tokens"]
EditSet = Literal["fill", "overwrite", "full"]
MaskRule = Literal["givens", "constraint"]

KIND_NAMES: Final = ("write", "erase", "pad", "stop")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""

_EDIT_SETS: Final = {
    "fill": kernels.FILL,
    "overwrite": kernels.OVERWRITE,
    "full": kernels.FULL,
}

Rules = tuple[int, int, int, bool, bool]
"""What kernels know of a domain: side, rows of a box, edit set, constraint mask?, tokens codec?"""


@dataclass(frozen=True)
class Sudoku(KernelDomain):
    """Sudoku as pure functions over batches; `PlanDomain` says what each function promises.

    The instance holds the givens, the plan the givens and what was written so far. Any valid
    completion solves a puzzle: those of the 4x4 tasks, solved grids with random blanks as in the
    paper, may have several solutions, the others have exactly one.

    Score = filled cells - 2 x violations - 5 x zero-candidate cells. A violation is an unordered
    pair of equal digits that share a row, column or box, counted once; a zero-candidate cell is a
    blank whose peers show every digit. A plan is dead only under fill edits, where neither fault
    can ever be undone.

    Actions, `digits` codec: cell * side + digit - 1. `tokens` codec: cell * (side + 2) + token with
    token 0 = PAD (never legal), 1 = blank, digit + 1; the last action is STOP. An edit that changes
    nothing is never legal; STOP is legal under full edits while the plan is not solved.

    Args:
        side: 4 (boxes of 2 x 2), 6 (2 rows x 3 columns), 9 or 16.
        codec: "digits" or "tokens"; None = tokens for side 4, digits otherwise.
        edits: "fill" (blank cells), "overwrite" (any cell that is not given), "full" (overwrite,
            erase and STOP; needs tokens); None = full for side 4, fill otherwise.
        mask: "givens" (every edit of the set) or "constraint" (of these, digits that no peer
            shows); None = givens for side 4, constraint otherwise.

    Raises:
        ValueError: for an unknown side or option, or full edits with the digits codec.
    """

    side: int = 9
    codec: Codec | None = None
    edits: EditSet | None = None
    mask: MaskRule | None = None

    _kernels: ClassVar[Any] = kernels
    _spare: ClassVar[int] = kernels.TABLE_SIDE

    def __post_init__(self) -> None:
        """Fill in the defaults of the side and check the options."""
        if self.side not in BOX_SHAPES:
            raise ValueError(f"side must be one of {sorted(BOX_SHAPES)}, got {self.side!r}")
        small = self.side == 4
        defaults = {
            "codec": "tokens" if small else "digits",
            "edits": "full" if small and self.codec != "digits" else "fill",
            "mask": "givens" if small else "constraint",
        }
        choices = {
            "codec": ("digits", "tokens"),
            "edits": tuple(_EDIT_SETS),
            "mask": ("givens", "constraint"),
        }
        for field, default in defaults.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, default)
        check_choices(self, choices)
        if self.edits == "full" and self.codec != "tokens":
            raise ValueError("edits='full' needs codec='tokens', got codec='digits'")

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the constraint groups cell, row, column and box."""
        assert self.codec is not None
        return _spec(self.side, self.codec)

    def read_instance(self, text: str) -> Int8Array:
        """Read a puzzle in any form of `plan_envs.sudoku.text`, shape [cell].

        Raises:
            ValueError: one line that says what is wrong, and where.
        """
        board: Int8Array = parse_puzzle(text, side=self.side)[0]
        return board

    def write_instance(self, instance: Int8Array) -> str:
        """One line that `read_instance` reads back."""
        return format_line(instance, self.side)

    def solvable(self, instance: Int8Array) -> bool:
        """Whether a puzzle has a solution; True for 16x16, where finding out may take long."""
        return self.side > 9 or bool(count_solutions(instance[None], side=self.side, limit=1)[0])

    def why_invalid(self, instance: Int8Array) -> str | None:
        """Say which givens conflict; None if none do."""
        for cell, peers in enumerate(peers_of(self.side)):
            for peer in peers[instance[peers] == instance[cell]]:
                if instance[cell]:
                    places = [
                        f"row {c // self.side + 1}, column {c % self.side + 1}"
                        for c in (cell, peer)
                    ]
                    return f"digit {instance[cell]} stands at {places[0]} and at {places[1]}"
        return None

    def distance(self, instances: Int8Array) -> NDArray[np.int64]:
        """Blank cells, shape [batch]."""
        blanks: NDArray[np.int64] = (self._instances(instances) == 0).sum(axis=1)
        return blanks

    def random_symmetry(self, rng: np.random.Generator) -> CellSymmetry:
        """Permute bands, rows, stacks, columns and digits, and transpose where boxes are square.

        All symmetries are equally likely; PAD, blank and STOP stay what they are.
        """
        side = self.side
        height, width = BOX_SHAPES[side]
        lines = [_random_lines(side, size, rng) for size in (height, width)]
        grid = np.arange(side * side, dtype=np.int64).reshape(side, side)
        if height == width and rng.integers(2):
            grid = grid.T
        return CellSymmetry(
            spec=self.spec,
            cells=grid[np.ix_(*lines)].ravel(),
            values=np.append(0, 1 + rng.permutation(side)).astype(np.int8),
            renames_instances=True,
        )

    @property
    def kernel_rules(self) -> tuple[Rules, NDArray[np.uint8]]:
        """The options as numbers, and the peers of every cell."""
        return self.rules, peers_of(self.side)

    def _scratch(self, batch: int) -> tuple[NDArray[Any], ...]:
        """Legal digits, and facts (filled, violations, zero-candidate cells, keeps the givens)."""
        return np.empty((batch, self.side**2), np.uint16), np.empty((batch, 4), np.int32)

    @property
    def rules(self) -> Rules:
        """The options as numbers, for the kernels."""
        assert self.edits is not None
        return (
            self.side,
            BOX_SHAPES[self.side][0],
            _EDIT_SETS[self.edits],
            self.mask == "constraint",
            self.codec == "tokens",
        )


def _random_lines(side: int, height: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of rows that keeps bands together."""
    lines = [band * height + rng.permutation(height) for band in rng.permutation(side // height)]
    return np.concatenate(lines).astype(np.int64)


@cache
def _spec(side: int, codec: Codec) -> DomainSpec:
    cells = side * side
    digits = np.arange(side, dtype=np.int32)
    every_cell = np.arange(cells, dtype=np.int32)
    if codec == "digits":
        cell = np.repeat(every_cell, side)
        value = np.tile(digits + 1, cells)
        kind = np.zeros(cells * side, np.int32)
    else:
        cell = np.append(np.repeat(every_cell, side + 2), -1)
        value = np.append(np.tile(np.append([0, 0], digits + 1), cells), 0)
        kind = np.append(np.tile([2, 1] + [0] * side, cells), 3)
    groups = {"cell": np.repeat(every_cell, side)}
    for name, unit in zip(("row", "column", "box"), units_of(side).T, strict=True):
        groups[name] = (unit[:, None] * np.int32(side) + digits).ravel()
    return DomainSpec(
        name=f"sudoku{side}x{side}",
        num_cells=cells,
        num_values=side,
        grid_shape=(side, side),
        num_actions=len(cell),
        horizon=16 if side == 4 else cells,
        max_score=float(cells),
        action_cell=cell.astype(np.int32),
        action_value=value.astype(np.int32),
        action_kind=kind.astype(np.int32),
        kind_names=KIND_NAMES,
        groups=groups,
    )
