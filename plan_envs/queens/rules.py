"""N-Queens as a plan-editing MDP (UPI-TRM Sec. 2): rules, checker, edits, symmetries.

An instance is a board with some queens given, a plan is that board with further queens; int8, 1 =
queen. `Queens` fulfils `plan_envs.domain.PlanDomain`: pure functions over batches, one or two numba
calls each (`queens_kernels`). Instances come from `plan_envs.queens.instances`, whose public names are
here too.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.boards import (
    absorbs_dead,
    as_actions,
    as_boards,
    check_batch,
    check_choices,
    choose_cells,
    empty_successors,
    is_shaped,
    outcome_arrays,
    with_fixed_tables,
)
from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, RewardKind, Successors, Verdict
from plan_envs.queens import kernels
from plan_envs.queens.instances import (
    SIDES,
    canonical_boards,
    count_completions,
    dihedral_cells,
    enumerate_solutions,
    queens_instances,
    read_queens_csv,
    solve_queens,
    split_of_classes,
    symmetry_class,
)
from plan_envs.rendering import CONFLICT_INK, CONFLICT_PAPER, EDIT_INK, GIVEN_INK, Picture

__all__ = [
    "KIND_NAMES",
    "Queens",
    "QueensSymmetry",
    "canonical_boards",
    "count_completions",
    "enumerate_solutions",
    "queens_instances",
    "read_queens_csv",
    "solve_queens",
    "split_of_classes",
    "symmetry_class",
]

EditSet = Literal["fill", "full"]
MaskRule = Literal["givens", "constraint"]

KIND_NAMES: Final = ("place", "remove", "stop")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""

_KEEP_ROWS: Final = (0, 2, 5, 7)
"""Identity, half turn and the two mirrors, by index."""

_LIGHT, _DARK = (240, 236, 226), (208, 198, 178)


@dataclass(frozen=True)
class Queens:
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

    def __post_init__(self) -> None:
        """Check the options."""
        if self.n not in SIDES:
            raise ValueError(f"n must lie in {SIDES[0]}..{SIDES[-1]}, got {self.n!r}")
        check_choices(self, {"edits": ("fill", "full"), "mask": ("givens", "constraint")})

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the constraint groups row, column, diagonal, antidiagonal."""
        return _spec(self.n, self.edits)

    def initial(self, instances: Int8Array) -> Int8Array:
        """The given queens themselves, copied; shape [batch, cell]."""
        return self._boards("instances", instances).copy()

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        """Legal edits, int8 [batch, action]."""
        instances, plans = self._pair(instances, plans)
        masks = np.empty((len(plans), self.spec.num_actions), np.int8)
        kernels.write_masks(instances, plans, *self.rules, masks)
        return masks

    def edit(self, instances: Int8Array, plans: Int8Array, actions: NDArray[np.int32]) -> Int8Array:
        """The plans after one edit a row; illegal actions and STOP leave their row unchanged."""
        instances, plans = self._pair(instances, plans)
        actions = as_actions(actions, len(plans), self.spec.num_actions)
        edited = plans.copy()
        kernels.apply_edits(instances, edited, actions, self.n, self.mask == "constraint")
        return edited

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        """Score the plans; see the class docstring for the rules."""
        instances, plans = self._pair(instances, plans)
        batch = len(plans)
        score = np.empty(batch, np.float32)
        violations = np.empty(batch, np.int32)
        solved, dead = np.empty((2, batch), np.bool_)
        full = self.edits == "full"
        kernels.check_plans(instances, plans, self.n, full, score, violations, solved, dead)
        return Verdict(score=score, violations=violations, solved=solved, dead=dead)

    def successors(
        self,
        instances: Int8Array,
        plans: Int8Array,
        *,
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        with_plans: bool = True,
    ) -> Successors:
        """Every legal edit of every plan with its outcome, from differences alone."""
        instances, plans = self._pair(instances, plans)
        batch, cells = plans.shape
        legal = np.empty((batch, self.n), np.int64)
        offsets = np.zeros(batch + 1, np.int64)
        kernels.count_successors(instances, plans, *self.rules, legal, offsets)
        found = empty_successors(offsets, cells, with_plans=with_plans)
        terms = (float(gamma), is_shaped(reward), absorbs_dead(dead_end))
        kernels.write_successors(
            instances, plans, *self.rules, legal, terms, offsets, *outcome_arrays(found)
        )
        return found

    def is_stop(self, actions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """True for STOP; fill edits have none."""
        stopped: NDArray[np.bool_] = np.asarray(actions) == 2 * self.n**2
        return stopped

    def read_instance(self, text: str) -> Int8Array:
        """Read a board of Q and '.' (rows or one line), or the columns of the rows; shape [cell].

        Columns count from 1, 0 or '.' = no queen: "15863724", with spaces between them above 9.
        """
        tokens = re.split(r"[\s,]+", text.strip())
        squares = "".join(tokens)
        cells = self.n**2
        if len(squares) == cells:
            wrong = set(squares) - set("Qq.")
            if wrong:
                place = min(squares.index(symbol) for symbol in wrong)
                raise ValueError(
                    f"row {place // self.n + 1}, column {place % self.n + 1} must be Q or '.', "
                    f"got {squares[place]!r}"
                )
            board: Int8Array = (np.array(list(squares)) != ".").astype(np.int8)
            return board
        columns = tokens if len(tokens) > 1 else list(squares)
        if len(columns) != self.n:
            raise ValueError(
                f"a {self.n}x{self.n} board is {cells} squares or {self.n} columns, "
                f"got {text.strip()[:100]!r}"
            )
        board = np.zeros(cells, np.int8)
        for row, symbol in enumerate(columns):
            column = 0 if symbol == "." else int(symbol) if symbol.isdecimal() else -1
            if not 0 <= column <= self.n:
                raise ValueError(
                    f"the column of row {row + 1} must be 1..{self.n}, 0 or '.', got {symbol!r}"
                )
            if column:
                board[row * self.n + column - 1] = 1
        return board

    def write_instance(self, instance: Int8Array) -> str:
        """The column of each row's queen, 0 for none, as `read_instance` reads it back."""
        rows = np.asarray(instance).reshape(self.n, self.n)
        columns = np.where(rows.any(axis=1), rows.argmax(axis=1) + 1, 0)
        return (" " if self.n > 9 else "").join(map(str, columns))

    def solvable(self, instance: Int8Array) -> bool:
        """Whether the board has a completion; True above n = 12, where that may take long."""
        from plan_envs.queens.instances import count_completions

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

    def keeps_instance(self, instances: Int8Array, plans: Int8Array) -> NDArray[np.bool_]:
        """Whether each plan holds the given queens, shape [batch]."""
        instances, plans = self._pair(instances, plans)
        kept: NDArray[np.bool_] = np.all(plans >= instances, axis=1)
        return kept

    def distance(self, instances: Int8Array) -> NDArray[np.int64]:
        """Queens that are missing, shape [batch]."""
        missing: NDArray[np.int64] = self.n - self._boards("instances", instances).sum(
            axis=1, dtype=np.int64
        )
        return missing

    def advance(
        self,
        instances: Int8Array,
        solutions: Int8Array,
        distance: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Int8Array:
        """Plans with so many of the solution's queens that at most `distance` are missing.

        Args:
            instances: shape [batch, cell].
            solutions: a completion of each.
            distance: queens to be left to place, shape [batch].
            rng: draws the queens that are placed, uniformly.
        """
        instances, solutions = self._pair(instances, solutions)
        hidden = (solutions > 0) & (instances == 0)
        left = choose_cells(hidden, distance, rng)
        return np.ascontiguousarray(np.where(hidden & ~left, solutions, instances))

    def random_symmetry(self, rng: np.random.Generator) -> "QueensSymmetry":
        """One of the four symmetries that keep the score; see `QueensSymmetry`."""
        return QueensSymmetry(domain=self, index=_KEEP_ROWS[rng.integers(4)])

    def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
        """A chessboard: given queens black and bold, placed ones blue, attacking ones on red."""
        instance, plan = np.asarray(instance), np.asarray(plan)
        given, queens = instance > 0, plan > 0
        attacked = np.zeros(len(plan), np.bool_)
        for labels in self.spec.groups.values():
            attacked |= (
                queens & (np.bincount(labels[queens], minlength=labels.max() + 1) > 1)[labels]
            )
        shape = self.spec.grid_shape
        row, column = np.indices(shape)
        ink = np.full((len(plan), 3), EDIT_INK, np.uint8)
        ink[attacked] = CONFLICT_INK
        ink[given] = GIVEN_INK
        paper = np.where(((row + column) % 2 == 0)[..., None], _LIGHT, _DARK).astype(np.uint8)
        paper[attacked.reshape(shape)] = CONFLICT_PAPER
        none = np.zeros(shape, np.bool_)
        return Picture(
            symbols=np.where(queens, "Q", ".").reshape(shape),
            ink=ink.reshape(*shape, 3),
            paper=paper,
            bold=(given & queens).reshape(shape),
            rule_below=none,
            rule_right=none.copy(),
        )

    @property
    def rules(self) -> tuple[int, bool, bool]:
        """(n, full edits?, constraint mask?), for the kernels."""
        return self.n, self.edits == "full", self.mask == "constraint"

    def _boards(self, name: str, boards: Int8Array) -> Int8Array:
        return as_boards(name, boards, self.n**2, 1)

    def _pair(self, instances: Int8Array, plans: Int8Array) -> tuple[Int8Array, Int8Array]:
        check_batch(instances, plans)
        return self._boards("instances", instances), self._boards("plans", plans)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueensSymmetry:
    """One of the eight symmetries of the board.

    All of them map solutions to solutions and commute with mask, edit, violations and solved. The
    four that map rows to rows (`keeps_rows`) also keep score and dead, and so fulfil
    `plan_envs.domain.Symmetry`; the others turn starved rows, which cost points, into starved
    columns, which do not.
    """

    domain: Queens
    index: int
    """0..3: quarter turns against the clock, 4..7: the same after transposing; 0 is the
    identity."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.index < 8:
            raise ValueError(f"index must lie in 0..7, got {self.index}")

    @property
    def keeps_rows(self) -> bool:
        """Rows become rows, and scores stay."""
        return self.index in _KEEP_ROWS

    @classmethod
    def random(cls, domain: Queens, rng: np.random.Generator) -> "QueensSymmetry":
        """A uniformly random one of all eight."""
        return cls(domain=domain, index=int(rng.integers(8)))

    def instances(self, instances: Int8Array) -> Int8Array:
        """Images of instances, shape [batch, cell]."""
        return self.plans(instances)

    def plans(self, plans: Int8Array) -> Int8Array:
        """Images of plans or solutions, shape [batch, cell]."""
        return np.ascontiguousarray(plans[:, self._cells])

    def actions(self) -> NDArray[np.int32]:
        """The image of every action, shape [action]."""
        cells = self.domain.n**2
        place = np.argsort(self._cells).astype(np.int32)
        if self.domain.edits == "fill":
            return place
        return np.concatenate([place, cells + place, [2 * cells]], dtype=np.int32)

    def inverse(self) -> "QueensSymmetry":
        """The symmetry that undoes this one: turns turn back, reflections undo themselves."""
        undone = -self.index % 4 if self.index < 4 else self.index
        return QueensSymmetry(domain=self.domain, index=undone)

    @property
    def _cells(self) -> NDArray[np.int64]:
        """Shape [cell]: new[i] comes from old[cells[i]]."""
        cells: NDArray[np.int64] = dihedral_cells(self.domain.n)[self.index]
        return cells


@cache
def _spec(n: int, edits: EditSet) -> DomainSpec:
    cells = n * n
    cell = np.arange(cells, dtype=np.int32)
    value, kind = np.ones(cells, np.int32), np.zeros(cells, np.int32)
    row, column = np.divmod(cell, np.int32(n))
    full = edits == "full"
    spec = DomainSpec(
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
    return with_fixed_tables(spec)
