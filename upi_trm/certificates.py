"""Certificates: plans that the checker called solved, and what they say of the states before.

Where groups are filled in any order (Sudoku, N-Queens), an edit is right that writes what a
certificate has; elsewhere (mazes) it is the next edit of a certificate that begins alike. Where
edits only fill and an instance has one completion these labels are the exact Q*; where it has
several they mean "agrees with a solution found", and all shortest certificates of a start speak
together. A certificate reaches no farther back than the start of its episode: one that began on an
easier copy of a puzzle says nothing of the puzzle itself. Input: `Transitions`; output: states with
labels.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, PlanDomain
from trm.experiments.search import filled_groups
from trm.experiments.states import Boards
from upi_trm.rollout import Transitions

MOST_TOGETHER = 16
"""Certificates that are kept of one start."""
OWN_ORDER = 0.5
"""Share of drawn states that follow the order of the episode; the others are random sub-plans."""
BY_DOUBT = 0.7
"""Share of the former that are drawn, over all certificates, by the doubt about the best edit."""
_NEW = 1.0
_LEAST_DOUBT = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """States on the way to certificates, and which edits are right there."""

    boards: Boards
    right: Bool[NDArray[np.bool_], "state action"]
    """The edit is legal and agrees with a certificate."""
    place: list[tuple["_Solved", int, int] | None]
    """Where the doubt of each state is kept; None for a random sub-plan."""

    def doubt(self, doubt: NDArray[np.float32]) -> None:
        """Remember how much doubt there was about each state, in [0, 1]; shape [state]."""
        for place, value in zip(self.place, doubt.tolist(), strict=True):
            if place is not None:
                solved, which, edits = place
                solved.doubt[which][edits] = value


@dataclass(slots=True)
class _Solved:
    """The shortest certificates of one start."""

    instance: Int8Array
    start: Int8Array
    plans: list[Int8Array] = field(default_factory=list)
    actions: list[NDArray[np.int32]] = field(default_factory=list)
    doubt: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, plan: Int8Array, actions: NDArray[np.int32]) -> None:
        """Keep a certificate if none is shorter."""
        shortest = len(self.actions[0]) if self.actions else len(actions)
        if len(actions) < shortest:
            self.plans, self.actions, self.doubt = [], [], []
        known = any(np.array_equal(plan, one) for one in self.plans)
        if len(actions) <= shortest and not known and len(self.plans) < MOST_TOGETHER:
            self.plans.append(plan)
            self.actions.append(actions)
            self.doubt.append(np.full(len(actions), _NEW, np.float32))


class Certificates:
    """A bounded memory of certificates; the start that was certified first is forgotten first."""

    def __init__(
        self, domain: PlanDomain, *, capacity: int, plans: int, generator: np.random.Generator
    ) -> None:
        """`capacity` starts are remembered; `plans` are followed side by side."""
        self.domain, self.capacity, self.generator = domain, capacity, generator
        self._any_order = filled_groups(domain.spec) is not None
        self._solved: OrderedDict[bytes, _Solved] = OrderedDict()
        self._trails = [_Trail.fresh(domain) for _ in range(plans)]

    def __len__(self) -> int:
        """Number of starts that have a certificate."""
        return len(self._solved)

    def follow(self, fresh: Transitions) -> None:
        """Take the certificates out of a rollout that goes on where the last one ended.

        The way to a solved plan is traced back through the edits that were made, so that a rollout
        may go back to plans it has met (a search).
        """
        for row in range(len(fresh.action)):
            for slot, trail in enumerate(self._trails):
                plan = fresh.plan[row, slot]
                trail.restart_unless_met(fresh.instance[row, slot], plan)
                after = fresh.next_plan[row, slot]
                trail.walk(plan, int(fresh.action[row, slot]), after)
                if fresh.solved[row, slot]:
                    self.add(trail.instance, trail.start, after, trail.way_to(after))

    def add(
        self, instance: Int8Array, start: Int8Array, plan: Int8Array, actions: NDArray[np.int32]
    ) -> None:
        """Keep a plan that the checker called solved, and the edits that led to it from `start`."""
        key = instance.tobytes() + start.tobytes()
        if key not in self._solved:
            self._solved[key] = _Solved(instance.copy(), start.copy())
            if len(self._solved) > self.capacity:
                self._solved.popitem(last=False)
        self._solved[key].add(plan.copy(), actions)

    def draw(self, count: int) -> Lesson:
        """States on the way to certificates, with the edits that are right there.

        Half follow the order of their episode, most of them drawn by doubt: a state that no edit is
        certain at is rare and says most. The others are random sub-plans, few edits more often than
        many, where a domain fills groups in any order.

        Raises:
            ValueError: nothing is certified yet.
        """
        if not self._solved:
            raise ValueError("no plan has been certified yet")
        rng, every = self.generator, list(self._solved.values())
        chosen, which, paths, place = [], [], [], []
        doubtful = self._doubtful(every, count)
        for _ in range(count):
            own = not self._any_order or rng.random() < OWN_ORDER
            if own and rng.random() < BY_DOUBT:
                solved, index, edits = next(doubtful)
            else:
                solved = every[int(rng.integers(len(every)))]
                index = int(rng.integers(len(solved.plans)))
                edits = int(len(solved.actions[index]) * rng.random() ** 1.5)
            path = solved.actions[index] if own else rng.permutation(solved.actions[index])
            chosen.append(solved)
            which.append(index)
            paths.append(path[:edits])
            place.append((solved, index, edits) if own else None)
        boards = self._replayed(chosen, paths)
        done = [len(path) for path in paths]
        return Lesson(boards=boards, right=self._right(boards, chosen, which, done), place=place)

    def _doubtful(self, every: list[_Solved], count: int) -> Iterator[tuple[_Solved, int, int]]:
        """States of episodes, drawn by the doubt about them over all certificates."""
        kept = [(one, index) for one in every for index in range(len(one.plans))]
        doubts = [one.doubt[index] for one, index in kept]
        ends = np.cumsum([len(doubt) for doubt in doubts])
        mass = np.cumsum(np.concatenate(doubts).astype(np.float64) + _LEAST_DOUBT)
        at = np.searchsorted(mass, self.generator.random(count) * mass[-1], side="right")
        for state, row in zip(at.tolist(), np.searchsorted(ends, at, side="right"), strict=True):
            yield *kept[row], state - int(ends[row]) + len(doubts[row])

    def _replayed(self, chosen: list[_Solved], paths: list[NDArray[np.int32]]) -> Boards:
        instances = np.stack([one.instance for one in chosen])
        plans = np.stack([one.start for one in chosen])
        lengths = np.array([len(path) for path in paths])
        for step in range(int(lengths.max())):
            rows = np.flatnonzero(lengths > step)
            actions = np.array([paths[row][step] for row in rows], np.int32)
            plans[rows] = self.domain.edit(instances[rows], plans[rows], actions)
        return Boards(instances=instances, plans=plans)

    def _right(
        self, boards: Boards, chosen: list[_Solved], which: list[int], done: list[int]
    ) -> Bool[NDArray[np.bool_], "state action"]:
        spec = self.domain.spec
        cell, value = spec.action_cell, spec.action_value
        right = np.zeros((len(boards), spec.num_actions), np.bool_)
        for row, (solved, index, edits) in enumerate(zip(chosen, which, done, strict=True)):
            if self._any_order:
                plan, finals = boards.plans[row], np.stack(solved.plans)
                agrees = ((plan == 0) | (finals == plan)).all(axis=1)
                agrees[index] = True
                written = (finals[agrees][:, cell] == value).any(axis=0)
                right[row] = written & (value > 0) & (cell >= 0) & (plan[cell] != value)
            else:
                paths = np.stack(solved.actions)
                same = (paths[:, :edits] == paths[index, :edits]).all(axis=1)
                right[row, paths[same, edits]] = True
        right &= self.domain.action_mask(boards.instances, boards.plans) != 0
        return right

    def state(self) -> dict[str, Any]:
        """Everything but the generator, for a checkpoint."""
        return {
            "solved": [
                {
                    "instance": one.instance,
                    "start": one.start,
                    "plans": np.stack(one.plans),
                    "actions": np.stack(one.actions),
                    "doubt": np.stack(one.doubt),
                }
                for one in self._solved.values()
            ],
            "trails": [trail.state() for trail in self._trails],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self._solved.clear()
        for one in state["solved"]:
            solved = _Solved(one["instance"], one["start"])
            solved.plans = list(one["plans"])
            solved.actions, solved.doubt = list(one["actions"]), list(one["doubt"])
            self._solved[solved.instance.tobytes() + solved.start.tobytes()] = solved
        self._trails = [_Trail.from_state(one) for one in state["trails"]]


@dataclass(slots=True)
class _Trail:
    """The plans that one slot of a rollout met since its start, each with the edit before it."""

    instance: Int8Array
    start: Int8Array
    came: dict[bytes, tuple[Int8Array, int]] = field(default_factory=dict)

    @staticmethod
    def fresh(domain: PlanDomain) -> "_Trail":
        spec = domain.spec
        return _Trail(
            np.full(spec.instance_size, -1, np.int8), np.full(spec.num_cells, -1, np.int8)
        )

    def restart_unless_met(self, instance: Int8Array, plan: Int8Array) -> None:
        met = np.array_equal(plan, self.start) or plan.tobytes() in self.came
        if not (met and np.array_equal(instance, self.instance)):
            self.instance, self.start, self.came = instance.copy(), plan.copy(), {}

    def walk(self, plan: Int8Array, action: int, after: Int8Array) -> None:
        if not np.array_equal(after, self.start):
            self.came.setdefault(after.tobytes(), (plan.copy(), action))

    def way_to(self, plan: Int8Array) -> NDArray[np.int32]:
        """The edits from the start to a plan that was met."""
        return np.array([action for _, action in self._back(plan)][::-1], np.int32)

    def _back(self, plan: Int8Array) -> Iterator[tuple[Int8Array, int]]:
        while not np.array_equal(plan, self.start):
            plan, action = self.came[plan.tobytes()]
            yield plan, action

    def state(self) -> dict[str, Any]:
        keys = [np.frombuffer(key, np.int8) for key in self.came]
        shape = (len(keys), len(self.start))
        return {
            "instance": self.instance,
            "start": self.start,
            "met": np.array(keys, np.int8).reshape(shape),
            "before": np.array([plan for plan, _ in self.came.values()], np.int8).reshape(shape),
            "actions": np.array([action for _, action in self.came.values()], np.int32),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "_Trail":
        rows = zip(state["met"], state["before"], state["actions"].tolist(), strict=True)
        came = {met.tobytes(): (before, action) for met, before, action in rows}
        return _Trail(state["instance"], state["start"], came)
