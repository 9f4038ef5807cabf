"""Domains whose functions are numba kernels: `PlanDomain` up to the rules of a puzzle.

`KernelDomain` checks what a caller hands over, allocates the results and calls the kernels of the
domain's module, which all have the same names and the same order of arguments. A domain adds its
options, its `spec` and the kernels.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.cells import choose_cells
from plan_envs.checks import as_actions, as_boards, check_batch
from plan_envs.domain import (
    DeadEnd,
    DomainSpec,
    Int8Array,
    RewardKind,
    Successors,
    Verdict,
    absorbs_dead,
    is_shaped,
)


class KernelDomain(ABC):
    """A `PlanDomain` by the kernels of a module.

    An instance is a board that plans complete, unless a domain replaces `initial`,
    `keeps_instance` and `advance`.

    The module has the following functions. `rules` stands for what `kernel_rules` returns and
    `scratch` for what `_scratch` returns, both spread out into arguments.

    - `write_masks(instances, plans, *rules, masks)`.
    - `apply_edits(instances, plans, *rules, actions)` changes the plans; an action that is illegal
      leaves its row unchanged.
    - `check_plans(instances, plans, *rules, verdict)` with the arrays score, violations, solved and
      dead, followed by one array for each of `_details`.
    - `count_successors(instances, plans, *rules, *scratch, offsets)` fills the scratch arrays and
      the offsets of `Successors`.
    - `write_successors(instances, plans, *rules, *scratch, terms, offsets, outcomes)` with `terms`
      = (gamma, shaped rewards?, do dead ends absorb?), and as outcomes the arrays state, action,
      plan, score, reward, solved, dead and terminated of `Successors`.
    """

    _kernels: ClassVar[Any]
    """The module of the kernels."""
    _details: ClassVar[tuple[str, ...]] = ()
    """The names of `Verdict.details`."""
    _spare: ClassVar[int] = 0
    """Elements that `write_successors` may write behind the last successor."""

    @property
    @abstractmethod
    def spec(self) -> DomainSpec:
        """Sizes, action table and constraint groups; see `DomainSpec`."""

    @property
    @abstractmethod
    def kernel_rules(self) -> tuple[Any, ...]:
        """The options as numbers, and the tables that the kernels look up."""

    def _scratch(self, batch: int) -> tuple[NDArray[Any], ...]:
        """Arrays that `count_successors` leaves to `write_successors`."""
        return ()

    def initial(self, instances: Int8Array) -> Int8Array:
        """The first board of every instance, copied; shape [batch, cell]."""
        return self._instances(instances)[:, : self.spec.num_cells].copy()

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        """Legal edits, int8 [batch, action]."""
        instances, plans = self._pair(instances, plans)
        masks = np.empty((len(plans), self.spec.num_actions), np.int8)
        self._kernels.write_masks(instances, plans, *self.kernel_rules, masks)
        return masks

    def edit(self, instances: Int8Array, plans: Int8Array, actions: NDArray[np.int32]) -> Int8Array:
        """The plans after one edit a row; illegal actions and STOP leave their row unchanged."""
        instances, plans = self._pair(instances, plans)
        actions = as_actions(actions, len(plans), self.spec.num_actions)
        edited = plans.copy()
        self._kernels.apply_edits(instances, edited, *self.kernel_rules, actions)
        return edited

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        """Score the plans; the class docstring says how."""
        instances, plans = self._pair(instances, plans)
        batch = len(plans)
        score, *details = np.empty((1 + len(self._details), batch), np.float32)
        violations = np.empty(batch, np.int32)
        solved, dead = np.empty((2, batch), np.bool_)
        figures = (score, violations, solved, dead, *details)
        self._kernels.check_plans(instances, plans, *self.kernel_rules, figures)
        return Verdict(
            score=score,
            violations=violations,
            solved=solved,
            dead=dead,
            details=dict(zip(self._details, details, strict=True)),
        )

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
        """Every legal edit of every plan with its outcome, from differences; see `PlanDomain`."""
        instances, plans = self._pair(instances, plans)
        rules, scratch = self.kernel_rules, self._scratch(len(plans))
        offsets = np.empty(len(plans) + 1, np.int64)
        self._kernels.count_successors(instances, plans, *rules, *scratch, offsets)
        found = empty_successors(
            offsets, self.spec.num_cells, with_plans=with_plans, spare=self._spare
        )
        terms = (float(gamma), is_shaped(reward), absorbs_dead(dead_end))
        outcomes = tuple(getattr(found, name) for name in _OUTCOMES)
        self._kernels.write_successors(instances, plans, *rules, *scratch, terms, offsets, outcomes)
        return found

    def is_stop(self, actions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """True for STOP, which is the last action where the rules have it; shape [batch]."""
        spec, actions = self.spec, np.asarray(actions)
        if spec.kind_names[spec.action_kind[-1]] not in ("stop", "submit"):
            return np.zeros(actions.shape, np.bool_)
        stopped: NDArray[np.bool_] = actions == spec.num_actions - 1
        return stopped

    def keeps_instance(self, instances: Int8Array, plans: Int8Array) -> NDArray[np.bool_]:
        """Whether each plan shows everything that its instance gives, shape [batch]."""
        instances, plans = self._pair(instances, plans)
        kept: NDArray[np.bool_] = ((instances == 0) | (instances == plans)).all(axis=1)
        return kept

    def advance(
        self,
        instances: Int8Array,
        solutions: Int8Array,
        distance: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Int8Array:
        """Plans with so much of the solution filled in that at most `distance` edits are left.

        Args:
            instances: what is given, shape [batch, cell].
            solutions: a completion of each, shape [batch, cell].
            distance: cells of the solution to be left out, shape [batch].
            rng: draws the cells that are filled in, uniformly.
        """
        instances, solutions = self._pair(instances, solutions)
        hidden = (solutions > 0) & (instances == 0)
        left = choose_cells(hidden, distance, rng)
        return np.ascontiguousarray(np.where(hidden & ~left, solutions, instances))

    def _instances(self, instances: Int8Array) -> Int8Array:
        """The instances, checked."""
        spec = self.spec
        return as_boards("instances", instances, spec.instance_size, spec.num_instance_values)

    def _plans(self, plans: Int8Array) -> Int8Array:
        """The plans, checked."""
        return as_boards("plans", plans, self.spec.num_cells, self.spec.num_values)

    def _pair(self, instances: Int8Array, plans: Int8Array) -> tuple[Int8Array, Int8Array]:
        """Instances and plans of the same number, checked."""
        check_batch(instances, plans)
        return self._instances(instances), self._plans(plans)


_OUTCOMES: Final = ("state", "action", "plan", "score", "reward", "solved", "dead", "terminated")
_VECTORS: Final = {
    "state": np.dtype(np.int32),
    "action": np.dtype(np.int32),
    "score": np.dtype(np.float32),
    "reward": np.dtype(np.float32),
    "solved": np.dtype(np.bool_),
    "dead": np.dtype(np.bool_),
    "terminated": np.dtype(np.bool_),
}


def empty_successors(
    offsets: NDArray[np.int64], cells: int, *, with_plans: bool, spare: int = 0
) -> Successors:
    """Room for as many successors as `offsets` counts, to be filled in.

    All arrays lie in one fresh block of memory. With an allocation for each, glibc hands the pages
    back to the operating system at every call; the page faults then cost as much as the successors.

    Args:
        offsets: shape [batch + 1]; the last one is the number of successors.
        cells: cells of a plan.
        with_plans: whether the successors hold plans.
        spare: elements that may be written behind the last one of each vector.
    """
    total = int(offsets[-1])
    length = (total + spare + 15) // 16 * 16
    num_plans = total if with_plans else 0
    end = length * sum(dtype.itemsize for dtype in _VECTORS.values())
    block = np.empty(end + num_plans * cells, np.uint8)
    arrays: dict[str, NDArray[Any]] = {}
    begin = 0
    for name, dtype in _VECTORS.items():
        arrays[name] = np.ndarray(total, dtype, block, begin)
        begin += length * dtype.itemsize
    plan: Int8Array = np.ndarray((num_plans, cells), np.int8, block, end)
    return Successors(offsets=offsets, plan=plan, **arrays)
