"""Engines: plans in play, their resets and their random streams.

An `Engine` holds n plans side by side for a Gymnasium environment. It carries out edits, counts
steps, and ends and restarts episodes. `PureEngine` does so for any `PlanDomain` through its pure
functions alone, so a new domain needs no engine of its own. The compiled engines of this package
(`plan_envs.engines` knows them) agree with `PureEngine` in every number; a law test compares them
step by step.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import (
    DeadEnd,
    DomainSpec,
    Int8Array,
    PlanDomain,
    RewardKind,
    absorbs_dead,
    edit_reward,
    is_shaped,
    potential,
)

NEVER: Final = 0
NEXT_STEP: Final = 1
SAME_STEP: Final = 2
"""Autoreset modes, as `gymnasium.vector.AutoresetMode` means them (NEVER = DISABLED)."""

OUT_OF_RANGE: Final = 1
FINISHED: Final = 2
ILLEGAL: Final = 3
"""Reasons for which an engine refuses a step; it then changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How episodes run: the arguments of the environments that a domain does not know."""

    gamma: float = 0.99
    """Discount of the shaping, in (0, 1]."""
    reward: RewardKind = "shaped"
    dead_end: DeadEnd = "absorb"
    limit: int = 0
    """Edits after which an episode is truncated; 0 = no limit."""
    refuse_illegal: bool = False
    """Refuse illegal edits rather than count them as edits that change nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        is_shaped(self.reward)
        absorbs_dead(self.dead_end)
        if self.limit < 0:
            raise ValueError(f"limit must be >= 0, got {self.limit}")


class Refusal(Exception):  # noqa: N818 (the environments turn it into an error)
    """A step that an engine refused, and why."""

    def __init__(self, reason: int, env: int) -> None:
        """`reason` is OUT_OF_RANGE, FINISHED or ILLEGAL, `env` the first environment concerned."""
        super().__init__(reason, env)
        self.reason, self.env = reason, env


class StepArrays(NamedTuple):
    """Outcome of one step of n environments; observations follow a reset if there was one.

    A tuple, since kernels take it as it is, and making a dataclass takes 1 us of every step.
    """

    instance: Int8Array
    """Shape [n, observed]: what learners see of the instances."""
    plan: Int8Array
    """Shape [n, cell]."""
    action_mask: Int8Array
    """Shape [n, action]."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    score: NDArray[np.float64]
    violations: NDArray[np.int64]
    solved: NDArray[np.bool_]
    illegal_action: NDArray[np.bool_]

    @classmethod
    def empty(cls, num_envs: int, spec: DomainSpec) -> Self:
        """Fresh arrays, all in one block of memory: copy what outlives a step by far.

        Apart, the boards are so large that glibc returns their pages to the operating system when
        they are freed, and the page faults of the next step cost more than the step (Maze30: 3x).
        """
        size, layout = _layout(num_envs, spec.observed_size, spec.num_cells, spec.num_actions)
        block = np.empty(size, np.int8)
        return cls(*[np.ndarray(shape, dtype, block, start) for shape, dtype, start in layout])

    def at(self, index: slice | NDArray[np.int64]) -> Self:
        """The rows at `index`."""
        rows: list[Any] = [array[index] for array in self]
        return type(self)(*rows)


_Piece = tuple[tuple[int, ...], Any, int]
"""Shape, dtype and first byte of an array in its block."""


@cache
def _layout(
    num_envs: int, observed: int, cells: int, actions: int
) -> tuple[int, tuple[_Piece, ...]]:
    """Bytes of a block for `StepArrays`, and its pieces; each begins at a multiple of 64."""
    boards = {"instance": observed, "plan": cells, "action_mask": actions}
    dtypes = {"reward": np.float64, "score": np.float64, "violations": np.int64}
    pieces, start = [], 0
    for name in StepArrays._fields:
        shape = (num_envs, boards[name]) if name in boards else (num_envs,)
        dtype = np.int8 if name in boards else dtypes.get(name, np.bool_)
        pieces.append((shape, np.dtype(dtype), start))
        start += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64
    return start, tuple(pieces)


class Engine(Protocol):
    """Plans of n environments in play; each environment has its own two random streams.

    A mask is never empty once the environment was reset: a live plan has a legal edit, and where an
    episode ends with a plan that has none, its mask is all ones. A learner that masks logits then
    meets no empty choice; it can do no harm, since no engine takes an action there.
    """

    instances: Int8Array
    """Live, shape [n, instance]; read only for callers, like `plans` and `masks`."""
    plans: Int8Array
    """Live, shape [n, cell]."""
    masks: Int8Array
    """Live legal edits, shape [n, action]."""
    streams: NDArray[np.uint64]
    """Live splitmix64 states that choose instances, shape [n]."""
    samplers: NDArray[np.uint64]
    """Live splitmix64 states of `sample`, shape [n]."""
    steps: NDArray[np.int64]
    """Live, edits since the reset, shape [n]."""
    finished: NDArray[np.int64]
    """Live, 1 = the episode has ended (or none began) and was not reset, shape [n]."""

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> "Finals | None":
        """Take one action in every environment.

        Args:
            actions: shape [n].
            autoreset: NEVER refuses finished environments; NEXT_STEP resets them instead of
                taking their action; SAME_STEP resets an environment as soon as it finishes.
            out: filled with the outcome.

        Returns:
            Under SAME_STEP, what finished before its reset; None when nothing did.

        Raises:
            Refusal: and then nothing has changed.
        """

    def step_one(self, action: int) -> tuple[float, bool, bool, int, float, int, bool]:
        """Step the engine's only environment, without autoreset.

        Returns:
            (reward, terminated, truncated, code, score, violations, solved) with code 0 = legal,
            1 = illegal and without effect, 1 + reason = refused, nothing has changed.
        """

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where the episode is over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finals:
    """Final states of the environments that finished in a step under SAME_STEP."""

    index: NDArray[np.int64]
    """The environments, ascending, shape [final]."""
    arrays: StepArrays
    """Their outcome before the reset, shape [final, ...]."""


class PureEngine:
    """An engine for any domain, from its pure functions; all randomness is in the streams."""

    def __init__(
        self, domain: PlanDomain, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        spec = domain.spec
        self.domain, self.options = domain, options
        self.pool = np.ascontiguousarray(pool, np.int8)
        self.instances = np.zeros((num_envs, spec.instance_size), np.int8)
        self.plans = np.zeros((num_envs, spec.num_cells), np.int8)
        self.masks = np.zeros((num_envs, spec.num_actions), np.int8)
        self.streams = np.zeros(num_envs, np.uint64)
        self.samplers = np.zeros(num_envs, np.uint64)
        self.steps = np.zeros(num_envs, np.int64)
        self.finished = np.ones(num_envs, np.int64)

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        self.instances[index], self.plans[index] = instances, plans
        self.masks[index] = self.domain.action_mask(instances, plans)
        self.steps[index] = self.finished[index] = 0

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        self.streams[index], words = splitmix(self.streams[index])
        instances = self.pool[below(words, np.full(len(index), len(self.pool)))]
        self.load(index, instances, self.domain.initial(instances))

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`."""
        spec = self.domain.spec
        live = ~((self.finished == 1) & (autoreset == NEXT_STEP))
        self._refuse(actions, autoreset, live)
        edits = np.where(live, actions, 0).astype(np.int32)
        legal = self.masks[np.arange(len(edits)), edits] == 1
        before = self.domain.check(self.instances, self.plans)
        edited = self.domain.edit(self.instances, self.plans, edits)
        self.plans[live] = edited[live]
        after = self.domain.check(self.instances, self.plans)
        self.masks[:] = self.domain.action_mask(self.instances, self.plans)
        lost = after.dead & (self.options.dead_end == "absorb")
        stuck = ~self.masks.any(axis=1)
        absorbed = legal & (after.solved | self.domain.is_stop(edits) | lost | stuck)
        self.masks[absorbed & stuck] = 1
        reward = edit_reward(
            potential(before.score, spec.max_score),
            potential(after.score, spec.max_score),
            solved=after.solved,
            absorbed=absorbed,
            gamma=self.options.gamma,
            reward=self.options.reward,
        )
        self.steps += live
        timeout = (self.steps >= self.options.limit) & (self.options.limit > 0)
        self.finished[:] = live & (absorbed | timeout)
        outcome = StepArrays.empty(len(actions), spec)
        self.observe(outcome)
        outcome.reward[:] = np.where(live, reward, 0.0)
        outcome.terminated[:] = absorbed & live
        outcome.truncated[:] = timeout & live
        outcome.illegal_action[:] = ~legal & live
        ending = np.flatnonzero(self.finished)
        finals = None
        if autoreset == SAME_STEP and len(ending):
            finals = Finals(index=ending, arrays=outcome.at(ending))
            self.draw(ending)
        self.draw(np.flatnonzero(~live))
        self.observe(out)
        for name in ("reward", "terminated", "truncated"):
            getattr(out, name)[:] = getattr(outcome, name)
        out.illegal_action[:] = outcome.illegal_action & (self.steps > 0)
        return finals

    def step_one(self, action: int) -> tuple[float, bool, bool, int, float, int, bool]:
        """Step the only environment; see `Engine.step_one`."""
        out = StepArrays.empty(1, self.domain.spec)
        try:
            self.step(np.array([action], np.int64), NEVER, out)
        except Refusal as refusal:
            return 0.0, False, False, 1 + refusal.reason, 0.0, 0, False
        reward, score = float(out.reward[0]), float(out.score[0])
        ended, late, solved = (bool(v[0]) for v in (out.terminated, out.truncated, out.solved))
        return (
            reward,
            ended,
            late,
            int(out.illegal_action[0]),
            score,
            int(out.violations[0]),
            solved,
        )

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        verdict = self.domain.check(self.instances, self.plans)
        out.instance[:] = self.instances[:, : self.domain.spec.observed_size]
        out.plan[:], out.action_mask[:] = self.plans, self.masks
        out.score[:], out.violations[:] = verdict.score, verdict.violations
        out.solved[:] = verdict.solved
        out.reward[:] = 0.0
        for flags in (out.terminated, out.truncated, out.illegal_action):
            flags[:] = False

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where the episode is over."""
        self.samplers[:], words = splitmix(self.samplers)
        ranks = self.masks.cumsum(axis=1, dtype=np.int64)
        totals = ranks[:, -1]
        chosen = below(words, np.maximum(totals, 1))
        actions = (ranks <= chosen[:, None]).sum(axis=1)
        return np.where((totals > 0) & (self.finished == 0), actions, -1)

    def _refuse(self, actions: NDArray[np.int64], autoreset: int, live: NDArray[np.bool_]) -> None:
        """Raise `Refusal` for the first environment whose action must not be taken."""
        outside = (actions < 0) | (actions >= self.masks.shape[1])
        legal = self.masks[np.arange(len(actions)), np.where(outside, 0, actions)] == 1
        over = (self.finished == 1) & (autoreset == NEVER)
        illegal = ~legal & self.options.refuse_illegal
        reasons = np.select(
            [~live, over, outside, illegal], [0, FINISHED, OUT_OF_RANGE, ILLEGAL], 0
        )
        wrong = np.flatnonzero(reasons)
        if len(wrong):
            raise Refusal(int(reasons[wrong[0]]), int(wrong[0]))


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix(states: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(next states, 64 random bits each) of splitmix64 (Steele, Lea, Flood 2014), modulo 2**64."""
    states = states + _GAMMA
    words = (states ^ (states >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return states, words ^ (words >> np.uint64(31))


def below(words: NDArray[np.uint64], bounds: NDArray[Any]) -> NDArray[np.int64]:
    """Uniform integers in 0..bounds - 1 from the upper halves of random words."""
    scaled = (words >> np.uint64(32)) * bounds.astype(np.uint64) >> np.uint64(32)
    return scaled.astype(np.int64)
