"""The contract that every puzzle domain fulfils, and the reward arithmetic that all share.

A plan-editing MDP (UPI-TRM Sec. 2) has states s = (x, y): the instance x never changes, the plan y
is edited one action at a time, a checker scores it. A `PlanDomain` is a set of pure functions over
batches of small integer arrays. The environments, the trainers and the evaluation use these
functions alone.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Int8Array = NDArray[np.int8]
"""Boards, plans and masks: dtype int8, C-contiguous."""

RewardKind = Literal["shaped", "sparse"]
DeadEnd = Literal["absorb", "continue"]

C_MAX = 1.0
"""Upper end of the potential, C_max in UPI-TRM Sec. 2: Phi lies in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainSpec:
    """Plain integers and arrays from which spaces, models and renderers are built.

    A plan is a flat vector of `num_cells` integers, 0 = blank, 1..`num_values` = a value.
    A *variable* is a pair (cell, value) with index `cell * num_values + value - 1`.

    An instance is a flat vector of `instance_layers` boards of `num_cells` integers in
    0..`num_instance_values`, which learners see (Sudoku: one board, the givens), followed by
    `hidden_layers` boards that only the checker reads (ARC: the target).
    """

    name: str
    """Short name such as "sudoku9x9"."""
    num_cells: int
    """Cells of a plan, flattened row by row."""
    num_values: int
    """Values that a cell may take besides blank."""
    grid_shape: tuple[int, int]
    """Rows and columns for drawing; rows * columns = num_cells."""
    num_actions: int
    """Size of the discrete action space."""
    horizon: int
    """Edits after which an episode is truncated."""
    max_score: float
    """Score of a solved plan; Phi = clip(score, 0, max_score) / max_score."""
    action_cell: NDArray[np.int32]
    """Shape [action]: the cell an action edits, -1 when it edits none."""
    action_value: NDArray[np.int32]
    """Shape [action]: the value 1..num_values it writes, 0 when it writes none; for an action
    without a cell its parameter, if it has one (ARC: the height that it sets)."""
    action_kind: NDArray[np.int32]
    """Shape [action]: index into `kind_names`; actions of one kind share a head's weights."""
    kind_names: tuple[str, ...]
    """Names of the kinds, e.g. ("write", "erase", "pad", "stop")."""
    groups: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """Constraint groups as partitions of the variables: name -> label per variable, shape
    [num_cells * num_values]. Two variables with the same label constrain one another; a singleton
    label means "in no group". The first kind names what is filled one by one (Sudoku: cells,
    N-Queens: rows)."""
    at_most_one: tuple[str, ...] = ()
    """The kinds of groups that a solution may leave empty (N-Queens: the diagonals); each group of
    the other kinds holds exactly one variable of a solution."""
    neighbours: NDArray[np.int32] | None = None
    """Shape [cell, direction]: the cells next to each cell, -1 where there is none, for domains in
    which nearness matters (Maze, ARC); None for the others."""
    instance_layers: int = 1
    """Boards of an instance that learners see."""
    hidden_layers: int = 0
    """Boards of an instance that only the checker reads."""
    num_instance_values: int = 0
    """Largest integer of an instance; 0 means `num_values`."""
    symbols: str | tuple[str, ...] = ""
    """One character for each of 0..num_values, or a short word (Repair), for texts and pictures; ""
    means ".123..."."""

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on `num_values`; protect the tables, which all share."""
        for table in (
            *(self.action_cell, self.action_value, self.action_kind, *self.groups.values()),
            *(() if self.neighbours is None else (self.neighbours,)),
        ):
            table.flags.writeable = False
        if not self.num_instance_values:
            object.__setattr__(self, "num_instance_values", self.num_values)
        if not self.symbols:
            signs = "." + string.digits[1:] + string.ascii_uppercase
            object.__setattr__(self, "symbols", signs[: self.num_values + 1])

    @property
    def observed_size(self) -> int:
        """Integers of an instance that learners see."""
        return self.instance_layers * self.num_cells

    @property
    def instance_size(self) -> int:
        """Integers of an instance."""
        return (self.instance_layers + self.hidden_layers) * self.num_cells


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the checker says of a batch of plans; every array has shape [batch]."""

    score: NDArray[np.float32]
    """Domain points, as tables report them (Sudoku: filled - 2 x violations - 5 x zero-candidate
    cells)."""
    violations: NDArray[np.int32]
    """Violated constraints (Sudoku: unordered pairs of equal digits in a row, column or box, each
    pair once)."""
    solved: NDArray[np.bool_]
    """The plan is a valid completion that keeps the instance."""
    dead: NDArray[np.bool_]
    """No sequence of edits of this domain's edit set can repair the plan (only what the checker can
    see at once)."""
    details: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further figures by name, each of shape [batch], whose means evaluations report (Maze: valid,
    shortest and label, ARC: exact and agreement, each in 0..1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Successors:
    """Every legal action of every state in CSR form: state i has offsets[i]:offsets[i + 1]."""

    offsets: NDArray[np.int64]
    """Shape [batch + 1]."""
    state: NDArray[np.int32]
    """Shape [total]: index of the state a row belongs to."""
    action: NDArray[np.int32]
    """Shape [total]: the legal action, ascending within a state."""
    plan: Int8Array
    """Shape [total, cell]: the edited plan; shape [0, cell] when `with_plans=False`."""
    score: NDArray[np.float32]
    """Shape [total]: score of the edited plan."""
    reward: NDArray[np.float32]
    """Shape [total]: folded reward of the edit (see `edit_reward`)."""
    solved: NDArray[np.bool_]
    """Shape [total]."""
    dead: NDArray[np.bool_]
    """Shape [total]: the checker sees that the plan cannot be repaired any more."""
    terminated: NDArray[np.bool_]
    """Shape [total]: the edit enters the absorbing state (solved, STOP, no legal edit left, and
    dead when dead ends absorb)."""


@runtime_checkable
class PlanDomain(Protocol):
    """A puzzle as pure functions over batches: no random numbers, no hidden state.

    `instances` are int8 arrays of shape [batch, instance], `plans` of shape [batch, cell] (see
    `DomainSpec`). Functions never modify their arguments.

    A domain may also have any of the following methods. Without one of them, what needs it says so
    or is left out.

    - `make_engine(num_envs, pool, options) -> Engine`: a faster engine (`plan_envs.engine`).
    - `read_instance(text) -> instance [instance]`: an instance written as text.
    - `write_instance(instance) -> str`: one line that `read_instance` reads back.
    - `why_invalid(instance) -> str | None`: what makes an instance unplayable, in words.
    - `solvable(instance) -> bool`: whether there is a solution, where that is quickly found.
    - `keeps_instance(instances, plans) -> bool [batch]`: whether a plan belongs to its instance
      (Sudoku: it keeps the givens).
    - `distance(instances) -> int [batch]`: edits that a solution takes, and
      `advance(instances, solutions, distance, rng) -> plans`: plans on the way to the solution from
      which at most `distance` [batch] edits are left, for curricula.
    - `random_symmetry(rng) -> Symmetry`.
    - `reference_policies(instances) -> dict[str, Policy]`: further policies that tables show beside
      a learned one (`plan_envs.evaluation`).
    - `picture(instance, plan) -> Picture`: how to draw a plan (`plan_envs.rendering`).
    """

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and constraint groups."""

    def initial(self, instances: Int8Array) -> Int8Array:
        """The plan an episode starts from, shape [batch, cell]; for most domains the givens."""

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        """Legal edits, shape [batch, action], 1 = legal. A dead or solved plan may have none."""

    def edit(self, instances: Int8Array, plans: Int8Array, actions: NDArray[np.int32]) -> Int8Array:
        """The plan after one edit a row; a forbidden action leaves its row unchanged."""

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        """Score the plans."""

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
        """Every legal edit of every plan with its outcome, in one call."""

    def is_stop(self, actions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which actions end the episode by themselves, shape [batch]."""


@runtime_checkable
class Symmetry(Protocol):
    """A symmetry of a domain: it commutes with mask, edit and checker (a law test shows it)."""

    def instances(self, instances: Int8Array) -> Int8Array:
        """Images of instances, shape [batch, instance]."""

    def plans(self, plans: Int8Array) -> Int8Array:
        """Images of plans or solutions, shape [batch, cell]."""

    def actions(self) -> NDArray[np.int32]:
        """The image of every action, shape [action]."""

    def inverse(self) -> Self:
        """The symmetry that undoes this one."""


def one_of(name: str, value: str, *choices: str) -> str:
    """The value of an argument.

    Raises:
        ValueError: if it is none of its choices; names the argument.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    return value


def is_shaped(reward: RewardKind) -> bool:
    """True for shaped rewards and False for sparse ones; another word is refused."""
    return one_of("reward", reward, "shaped", "sparse") == "shaped"


def absorbs_dead(dead_end: DeadEnd) -> bool:
    """True when entering a dead plan ends the episode, False when play goes on."""
    return one_of("dead_end", dead_end, "absorb", "continue") == "absorb"


def potential(score: NDArray[Any], max_score: float) -> NDArray[np.float64]:
    """Phi(s) = clip(score, 0, max_score) / max_score, in [0, C_max] (UPI-TRM Sec. 2)."""
    return np.clip(np.asarray(score, np.float64), 0.0, max_score) / max_score


def edit_reward(
    phi: NDArray[Any],
    next_phi: NDArray[Any],
    *,
    solved: NDArray[np.bool_],
    absorbed: NDArray[np.bool_],
    gamma: float,
    reward: RewardKind = "shaped",
) -> NDArray[np.float64]:
    """Folded reward of an edit, r = r0 + gamma Phi(s') - Phi(s) (UPI-TRM Sec. 2).

    Learners bootstrap absorption with 0. In the paper Phi(s_abs) = C_max and V(s_abs) = -C_max; we
    fold the constant gamma * V(s_abs) into the last reward, r0 + gamma C_max - Phi(s) - gamma C_max
    = r0 - Phi(s), so that V(s_abs) = 0 gives the same returns (a law test shows it). r0 = 1 on
    entering a solved plan, 0 on every other absorption.

    Args:
        phi: potential before the edit, shape [batch].
        next_phi: potential after the edit, shape [batch]; ignored where absorbed.
        solved: the edited plan is solved.
        absorbed: the edit enters the absorbing state.
        gamma: discount in (0, 1].
        reward: "shaped", or "sparse" for r0 alone.

    Returns:
        float64 rewards, shape [batch].
    """
    base: NDArray[np.float64] = np.where(solved & absorbed, 1.0, 0.0)
    if reward == "sparse":
        return base
    shaping: NDArray[np.float64] = np.where(absorbed, 0.0, gamma * np.asarray(next_phi)) - phi
    return base + shaping
