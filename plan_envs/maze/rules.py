"""Mazes as a plan-editing MDP (UPI-TRM Sec. 2): the plan is a path that grows cell by cell.

An instance is a square of walls and free cells with a start and a goal, a plan an ordered path from
the start to its head. `Maze` fulfils `plan_envs.domain.PlanDomain`: pure functions over batches,
one or two numba calls each (`plan_envs.maze.kernels`). Instances come from
`plan_envs.maze.instances`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.cells import CellSymmetry, neighbours_of
from plan_envs.checks import check_choices
from plan_envs.compiled.kernel_domain import KernelDomain
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.evaluation import Policy
from plan_envs.instances import InstanceSet
from plan_envs.maze import kernels
from plan_envs.maze.kernels import DOWN, FREE, GOAL, HEAD, LEFT, RIGHT, START, UP, WALL
from plan_envs.maze.text import read_maze
from plan_envs.rendering import Picture

EditSet = Literal["fill", "full"]
Shaping = Literal["none", "geodesic"]

KIND_NAMES: Final = ("extend", "undo")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""
SIZES: Final = range(3, 65)
"""Sides that a maze may have."""
MAZE_SYMBOLS: Final = " #SG"
"""One character for each value of an instance, as the public files write it; '.' is free too."""

Rules = tuple[int, bool, bool]
"""What kernels know of a domain: size, undo?, geodesic score?"""


@dataclass(frozen=True)
class Maze(KernelDomain):
    """Square mazes as pure functions over batches; `PlanDomain` says what each function promises.

    Instance: 0 = free, 1 = wall, 2 = start, 3 = goal. Plan: 0 = not on the path, 1-4 = the path
    leaves this cell up, down, left, right, 5 = head, where the path ends. It starts with the head
    on the start, and is solved with the head on the goal.

    Actions: row * size + column extends the path to that cell, legal for the free unmarked
    neighbours of the head. Under `edits="full"` the last action, size * size, is undo: the head
    steps back; legal while the path is longer than the start. A solved plan has no legal edit.

    Score: with `shaping="none"` 1 for a solved plan and 0 else, so that shaped and sparse rewards
    coincide. With "geodesic" 1 - d(head, goal) / d(start, goal), not below 0, where d is the
    distance in the maze regardless of the path: this looks at the solution. A plan that is no path
    from the start through free cells has one violation, score 0 and no legal edit. A plan is dead
    when it is not solved and has no legal edit left: under fill edits, a path that is stuck.

    `Verdict.details`: `valid` (solved), `shortest` (solved, and no longer than a shortest path) and
    `label` (the very path of the public set's answers: breadth-first search from the start that
    visits neighbours in the order down, left, right, up and keeps first parents). Mazes with open
    areas have many shortest paths, so `label` grades the tie-break, `shortest` the path.

    Args:
        size: rows and columns, 3-64.
        edits: "fill" (extend only) or "full" (extend and undo).
        shaping: "none" or "geodesic".

    Raises:
        ValueError: for a size or an option out of range.
    """

    size: int = 30
    edits: EditSet = "fill"
    shaping: Shaping = "none"

    _kernels: ClassVar[Any] = kernels
    _details: ClassVar[tuple[str, ...]] = ("valid", "shortest", "label")

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must lie in {SIZES[0]}-{SIZES[-1]}, got {self.size!r}")
        check_choices(self, {"edits": ("fill", "full"), "shaping": ("none", "geodesic")})

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the neighbours up, down, left and right of every cell."""
        return _spec(self.size, self.edits == "full")

    @property
    def rules(self) -> Rules:
        """The options as numbers, for the kernels."""
        return self.size, self.edits == "full", self.shaping == "geodesic"

    @property
    def kernel_rules(self) -> tuple[Rules, NDArray[np.int32]]:
        """The options as numbers, and the neighbours of every cell."""
        return self.rules, neighbours_of(self.size)

    def _scratch(self, batch: int) -> tuple[NDArray[Any], ...]:
        """Start, goal, head and length of every path."""
        return (np.empty((batch, 4), np.int32),)

    def initial(self, instances: Int8Array) -> Int8Array:
        """The head on the start, nothing else marked; shape [batch, cell]."""
        instances = self._instances(instances)
        plans: Int8Array = np.where(instances == START, HEAD, 0).astype(np.int8)
        return plans

    def read_instance(self, text: str) -> Int8Array:
        """Read a maze in any form of `plan_envs.maze.text`, shape [cell].

        Raises:
            ValueError: names the row and column, or the number of characters, that is wrong.
        """
        return read_maze(text, self.size)

    def write_instance(self, instance: Int8Array) -> str:
        """One line of '#', '.', 'S' and 'G', as `read_instance` reads it back."""
        return "".join(np.array(list("." + MAZE_SYMBOLS[1:]))[np.asarray(instance)])

    def why_invalid(self, instance: Int8Array) -> str | None:
        """Say what makes a maze unplayable; None if nothing does."""
        instance = self._instances(np.asarray(instance)[None])
        for name, value in (("start", START), ("goal", GOAL)):
            count = int((instance == value).sum())
            if count != 1:
                return f"has {count or 'no'} {name}{'s' if count > 1 else ''}"
        if self.distance(instance)[0] < 0:
            return "has a goal that cannot be reached from the start"
        return None

    def keeps_instance(self, instances: Int8Array, plans: Int8Array) -> NDArray[np.bool_]:
        """Which plans are paths from the start through free cells, shape [batch]."""
        kept: NDArray[np.bool_] = self.check(instances, plans).violations == 0
        return kept

    def distance(self, instances: Int8Array) -> NDArray[np.int64]:
        """Edits of a shortest path, shape [batch]; -1 where the goal cannot be reached."""
        return self.label_paths(instances)[1]

    def label_paths(self, instances: Int8Array) -> tuple[Int8Array, NDArray[np.int64]]:
        """The public set's path of every maze as a plan, and its number of edits (-1 = no path)."""
        instances = self._instances(instances)
        plans = np.empty_like(instances)
        edits = np.empty(len(instances), np.int64)
        kernels.write_labels(instances, self.size, plans, edits)
        return plans, edits

    def advance(
        self,
        instances: Int8Array,
        solutions: Int8Array,
        distance: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Int8Array:
        """Paths along the solution, so long that `distance` edits are left, at least one.

        The solution determines them, `rng` is not used. See `KernelDomain.advance`.
        """
        instances, solutions = self._pair(instances, solutions)
        plans = self.initial(instances)
        distance = np.require(distance, np.int64, "C")
        kernels.walk_along(instances, solutions, distance, neighbours_of(self.size), plans)
        return plans

    def random_symmetry(self, rng: np.random.Generator) -> CellSymmetry:
        """One of the eight symmetries of the square, uniformly."""
        return self.symmetry(int(rng.integers(8)))

    def symmetry(self, number: int) -> CellSymmetry:
        """Symmetry 0-7: bit 0 mirrors rows, bit 1 columns, bit 2 transposes afterwards.

        It turns the arrows of a path, too. It commutes with mask, edit, score, `valid` and
        `shortest`; `label` is a tie-break in a fixed order of directions, so it does not.
        """
        cells = np.arange(self.size**2, dtype=np.int64).reshape(self.size, self.size)
        values = np.arange(HEAD + 1, dtype=np.int8)
        if number & 1:
            cells, values = cells[::-1], values[[0, DOWN, UP, LEFT, RIGHT, HEAD]]
        if number & 2:
            cells, values = cells[:, ::-1], _MIRRORED[values]
        if number & 4:
            cells, values = cells.T, _TRANSPOSED[values]
        return CellSymmetry(
            spec=self.spec, cells=cells.ravel(), values=values, renames_instances=False
        )

    def reference_policies(self, instances: InstanceSet) -> dict[str, Policy]:
        """Policies that tables show beside a learned one.

        "nearest-to-goal" extends the path to the neighbour nearest to the goal by straight line,
        ties drawn uniformly, and steps back only where it must. "oracle" follows the label path,
        and steps back to it where it may.
        """
        return {"nearest-to-goal": self._nearest_to_goal, "oracle": self._follow_label}

    def _nearest_to_goal(
        self, boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        rows = np.arange(len(boards))[:, None]
        around = neighbours_of(self.size)[(plans == HEAD).argmax(axis=1)]
        goal = np.stack(np.divmod((boards == GOAL).argmax(axis=1), self.size))[:, :, None]
        apart = ((np.stack(np.divmod(around, self.size)) - goal) ** 2).sum(axis=0)
        legal = (around >= 0) & (mask[rows, around] == 1)
        best = np.where(legal, apart + rng.random(apart.shape) / 2, np.inf).argmin(axis=1)
        actions: NDArray[np.int32] = np.where(
            legal.any(axis=1), around[rows[:, 0], best], self.size**2
        )
        return actions.astype(np.int32)

    def _follow_label(
        self, boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        rows = np.arange(len(boards))
        labels, _ = self.label_paths(boards)
        head = (plans == HEAD).argmax(axis=1)
        following = neighbours_of(self.size)[head, labels[rows, head] - 1]
        along = (labels[rows, head] % HEAD > 0) & (mask[rows, following] == 1)
        back = mask[:, -1] == 1 if self.edits == "full" else np.zeros(len(rows), np.bool_)
        other = np.where(back, self.size**2, mask.argmax(axis=1))
        return np.where(along, following, other).astype(np.int32)

    def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
        """Dark walls, the letters S and G, the path in blue with arrows; red where it is stuck."""
        instance, plan = np.asarray(instance)[None], np.asarray(plan)[None]
        verdict = self.check(instance, plan)
        grid = (self.size, self.size)
        maze, path = instance.reshape(grid), plan.reshape(grid)
        hue = 2 if verdict.dead[0] else 1 if verdict.solved[0] else 0
        symbols = np.array(list(MAZE_SYMBOLS))[maze]
        marked = path > 0
        arrow = marked & (maze == FREE)
        symbols[arrow] = np.array(list(self.spec.symbols))[path[arrow]]
        ink = np.full((*grid, 3), _INK, np.uint8)
        paper = np.full((*grid, 3), _PAPER, np.uint8)
        ink[maze == WALL], paper[maze == WALL] = _WALL_INK, _WALL
        ink[marked], paper[marked] = _PATH_INK[hue], _PATH_PAPER[hue]
        ends = (maze == START) | (maze == GOAL)
        ink[ends & (path != HEAD)], paper[ends & (path != HEAD)] = _INK, _ENDS
        none = np.zeros(grid, np.bool_)
        return Picture(
            symbols=symbols,
            ink=ink,
            paper=paper,
            bold=ends | (path == HEAD),
            rule_below=none,
            rule_right=none.copy(),
        )


_PAPER: Final = (255, 255, 255)
_INK: Final = (24, 24, 24)
_WALL: Final = (62, 64, 72)
_WALL_INK: Final = (80, 82, 91)
_ENDS: Final = (255, 224, 140)
_PATH_PAPER: Final = ((206, 224, 250), (206, 240, 212), (252, 214, 208))
_PATH_INK: Final = ((20, 84, 190), (18, 112, 48), (190, 24, 24))
"""Colours of a path on its way, of one that has reached the goal, and of one that is stuck."""

_MIRRORED: Final = np.array([0, UP, DOWN, RIGHT, LEFT, HEAD], np.int8)
_TRANSPOSED: Final = np.array([0, LEFT, RIGHT, UP, DOWN, HEAD], np.int8)
"""Values of a plan -> those of its image with mirrored columns, and of its transpose."""


@cache
def _spec(size: int, undo: bool) -> DomainSpec:
    cells = size * size
    return DomainSpec(
        name=f"maze{size}x{size}",
        num_cells=cells,
        num_values=HEAD,
        grid_shape=(size, size),
        num_actions=cells + undo,
        horizon=cells,
        max_score=1.0,
        action_cell=np.append(np.arange(cells), [-1] * undo).astype(np.int32),
        action_value=np.append(np.full(cells, HEAD), [0] * undo).astype(np.int32),
        action_kind=np.append(np.zeros(cells), [1] * undo).astype(np.int32),
        kind_names=KIND_NAMES,
        neighbours=neighbours_of(size),
        num_instance_values=GOAL,
        symbols=".^v<>@",
    )
