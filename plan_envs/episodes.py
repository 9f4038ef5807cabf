"""What both Gymnasium environments share: `PlanEditing`, and the meaning of their arguments.

`PlanEditEnv` and `PlanEditVectorEnv` hold no rules. A `Task` says which domain and which instances,
an engine keeps the plans in play, and the environments translate to Gymnasium's conventions: fresh
arrays, Python scalars, autoreset, rendering. Here the task, the pool, the engine, the seeds and the
saved states come together.
"""

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from plan_envs.catalogue import Task, pool_of, resolve_task
from plan_envs.checks import ArgumentError, as_integers
from plan_envs.domain import (
    DeadEnd,
    DomainSpec,
    Int8Array,
    PlanDomain,
    RewardKind,
    Successors,
    one_of,
)
from plan_envs.engine import FINISHED, OUT_OF_RANGE, EngineOptions
from plan_envs.engines import make_engine
from plan_envs.instances import InstanceSet

Observation = dict[str, Int8Array]
"""Keys instance, plan, action_mask."""
Illegal = Literal["noop", "raise"]

RENDER_MODES: Final = ("ansi", "rgb_array", "human")
RENDER: Final = {"render_modes": list(RENDER_MODES), "render_fps": 8}

_STATE_DTYPES: Final = {
    "instance": np.int8,
    "plan": np.int8,
    "stream": np.uint64,
    "sampler": np.uint64,
    "steps": np.int64,
    "finished": np.bool_,
    "seeded": np.bool_,
}
"""The arrays of a saved state."""


class PlanEditing:
    """Plans of n environments in play, and all that decides how an episode starts and runs."""

    task: Task
    instances: InstanceSet
    """The pool that resets draw from."""
    engine_options: EngineOptions
    render_mode: str | None
    _ends_at_horizon: ClassVar[bool] = False
    """What `max_episode_steps=None` means: truncate at the domain's horizon, or not at all."""

    def __init__(
        self,
        task: str | Task,
        num_envs: int,
        *,
        instances: InstanceSet | None = None,
        split: str = "train",
        illegal: Illegal = "noop",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        **options: Any,
    ) -> None:
        """Open the pool and make the engine; `PlanEditEnv` says what the arguments mean.

        Raises:
            ValueError: for an unknown split or word, or instances that cannot be played.
        """
        if options and isinstance(task, Task):
            raise ArgumentError(f"options {sorted(options)} belong into the Task, not beside it")
        self.task = task if isinstance(task, Task) else resolve_task(task, **options)
        limit = max_episode_steps
        if limit is None:
            limit = self.task.domain.spec.horizon if self._ends_at_horizon else -1
        if limit < 1 and limit != -1:
            raise ValueError(f"max_episode_steps must be >= 1, or -1, got {limit}")
        self.engine_options = EngineOptions(
            gamma=gamma,
            reward=reward,
            dead_end=dead_end,
            limit=max(limit, 0),
            refuse_illegal=one_of("illegal", illegal, "noop", "raise") == "raise",
        )
        if render_mode is not None:
            one_of("render_mode", render_mode, *RENDER_MODES)
        self.render_mode = render_mode
        self.instances = _instances_of(self.task, instances, split)
        boards = self.instances.instances
        self._engine = make_engine(self.task.domain, num_envs, boards, self.engine_options)
        self._seeded = np.zeros(num_envs, np.bool_)

    def successors(self, *, with_plans: bool = True) -> Successors:
        """Every legal edit of the current plans with its outcome; rewards as `step` gives them."""
        options, engine = self.engine_options, self._engine
        return self.task.domain.successors(
            engine.instances,
            engine.plans,
            gamma=options.gamma,
            reward=options.reward,
            dead_end=options.dead_end,
            with_plans=with_plans,
        )

    def get_state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything that `set_state` restores: plans, counters, random streams."""
        live = {**self._live_state(), "seeded": self._seeded}
        return {name: array.astype(_STATE_DTYPES[name]) for name, array in live.items()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> tuple[Observation, dict[str, Any]]:
        """Continue from a state of `get_state`; returns what `reset` would.

        Raises:
            ValueError: names the entry that does not fit this environment.
        """
        live = self._live_state()
        if set(state) != set(_STATE_DTYPES):
            raise ValueError(
                f"state must have the keys {sorted(_STATE_DTYPES)}, got {sorted(state)}"
            )
        values = {key: np.asarray(state[key]) for key in _STATE_DTYPES}
        for key, dtype in _STATE_DTYPES.items():
            shape, value = live.get(key, self._seeded).shape, values[key]
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"state[{key!r}] must be {np.dtype(dtype)} of shape {list(shape)}, "
                    f"got {value.dtype} of shape {list(value.shape)}"
                )
        instances, plans = values["instance"], values["plan"]
        domain, spec = self.task.domain, self.task.domain.spec
        as_integers("state['instance']", instances, spec.num_instance_values)
        as_integers("state['plan']", plans, spec.num_values)
        domain.check(instances, plans)  # refuses what else is no plan
        if not _belong(domain, instances, plans):
            raise ValueError("state['plan'] does not belong to state['instance']")
        stuck = ~domain.action_mask(instances, plans).any(axis=1)
        if (stuck & ~values["finished"]).any():
            raise ValueError("state['plan'] has no legal edit, but state['finished'] is False")
        if (values["steps"] < 0).any():
            raise ValueError(f"state['steps'] must be >= 0, got {values['steps'].min()}")
        self._engine.load(np.arange(len(plans)), instances, plans)
        self._engine.masks[stuck] = 1  # as an engine leaves them; see `Engine`
        for key in ("stream", "sampler", "steps", "finished"):
            live[key][:] = values[key]
        self._seeded = values["seeded"].copy()
        return self._observe()

    def _observe(self) -> tuple[Observation, dict[str, Any]]:
        """Observation and info of the current states."""
        raise NotImplementedError

    def _live_state(self) -> dict[str, NDArray[Any]]:
        """The engine's own arrays by their names in a state."""
        engine = self._engine
        return {
            "instance": engine.instances,
            "plan": engine.plans,
            "stream": engine.streams,
            "sampler": engine.samplers,
            "steps": engine.steps,
            "finished": engine.finished,
        }

    def _seed_streams(self, env: int, generator: np.random.Generator) -> None:
        """Seed the two streams of an environment: that of its instances, that of `_sample`."""
        words = generator.integers(0, 2**64 - 1, 2, np.uint64, endpoint=True)
        self._engine.streams[env], self._engine.samplers[env] = words
        self._seeded[env] = True

    def _sample(self, rng: np.random.Generator | None) -> NDArray[np.int64]:
        """A legal action for every environment, -1 where the episode is over."""
        if rng is None:
            return self._engine.sample()
        masks = self._engine.masks
        keys = rng.random(masks.shape) * masks
        return np.where(self._engine.finished == 0, keys.argmax(axis=1), -1)


def read_instance(domain: PlanDomain, value: Any, dead_end: DeadEnd = "absorb") -> Int8Array:
    """An instance to start from, int8 [instance].

    A domain may have `read_instance(text)`, and `why_invalid(instance)`, which explains a conflict.
    Under `dead_end="absorb"` an instance that begins dead is refused.

    Raises:
        ValueError: says what is wrong: length, range, conflicting givens, or a plan that has ended.
    """
    spec = domain.spec
    if isinstance(value, str):
        reader = getattr(domain, "read_instance", None)
        if reader is None:
            raise ValueError(f"instance must be an array of cells for {spec.name}, got {value!r}")
        board = np.asarray(reader(value))
    else:
        board = np.asarray(value)
    if board.shape == spec.grid_shape:
        board = board.reshape(-1)
    if board.shape != (spec.instance_size,):
        raise ValueError(f"instance must have {spec.instance_size} cells, got shape {board.shape}")
    board = as_integers("instance", board, spec.num_instance_values).astype(np.int8)
    reason = _why_not_playable(domain, board, dead_end)
    if reason is not None:
        raise ValueError(f"instance {reason}")
    return board


def read_plans(domain: PlanDomain, value: Any, shape: tuple[int, ...]) -> Int8Array:
    """Plans of a caller as int8, if they have this shape and the values of plans.

    Raises:
        ValueError: names the shape and type, or the value.
    """
    plans = np.asarray(value)
    if plans.shape != shape or plans.dtype.kind not in "iu":
        raise ValueError(
            f"plan must be integers of shape {list(shape)}, got {plans.dtype} {list(plans.shape)}"
        )
    return as_integers("plan", plans, domain.spec.num_values).astype(np.int8)


def check_starts(domain: PlanDomain, instances: Int8Array, plans: Int8Array) -> None:
    """Refuse plans from which no episode on their instances can go on.

    Raises:
        ValueError: if a plan does not belong to its instance, is solved, or has no legal edit.
    """
    verdict = domain.check(instances, plans)
    if not _belong(domain, instances, plans):
        raise ValueError("plan does not belong to the instance")
    if verdict.solved.any():
        raise ValueError("plan is solved already")
    if not domain.action_mask(instances, plans).any(axis=1).all():
        raise ValueError("plan has no legal edit")


def start_options(options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """`options["instance"]` and `options["plan"]`, None where absent; others are refused."""
    if not options:
        return None, None
    unknown = sorted(map(str, set(options) - {"instance", "plan"}))
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; there are 'instance' and 'plan'")
    if "instance" not in options:
        raise ValueError("reset needs the option 'instance' beside 'plan'")
    return options["instance"], options.get("plan")


def observation_space(spec: DomainSpec) -> spaces.Dict:
    """The observations of one environment; the spec says their sizes and largest values."""
    return spaces.Dict(
        {
            "instance": spaces.Box(0, spec.num_instance_values, (spec.observed_size,), np.int8),
            "plan": spaces.Box(0, spec.num_values, (spec.num_cells,), np.int8),
            "action_mask": spaces.MultiBinary(spec.num_actions),
        }
    )


def step_error(action: Any, error: Exception) -> Exception:
    """What to raise for an action with which the call of the engine's kernel ended in `error`."""
    try:
        number = operator.index(action)
    except TypeError:
        return ArgumentError(f"action must be an integer, got {action!r}")
    return error if -(2**63) <= number < 2**63 else error_of(OUT_OF_RANGE, number, "")


def error_of(reason: int, action: Any, where: str) -> Exception:
    """The error that a refused step raises; `where` says " in environment i", or nothing."""
    if reason == FINISHED:
        return ResetNeeded(f"the episode{where} has ended or not begun: call reset() before step()")
    if reason == OUT_OF_RANGE:
        return ValueError(f"action {action}{where} is outside the action space")
    return ValueError(f"action {action}{where} is illegal")


def render_plan(domain: PlanDomain, mode: str, instance: Int8Array, plan: Int8Array) -> Any:
    """A plan as text (mode "ansi") or as an image [row, column, 3] (the other modes)."""
    from plan_envs import rendering

    if mode == "ansi":
        return rendering.render_ansi(domain, instance, plan)
    return rendering.render_rgb(domain, instance, plan)


def _instances_of(task: Task, instances: InstanceSet | None, split: str) -> InstanceSet:
    """The given instances, checked once, or the task's shared pool."""
    if instances is None:
        return pool_of(task, split)
    boards, domain = instances.instances, task.domain
    if len(boards) == 0:
        raise ValueError(f"instances {instances.name!r} are empty")
    instances.check_fits(domain.spec)
    plans = domain.initial(boards)
    verdict = domain.check(boards, plans)
    suspect = (verdict.violations > 0) | verdict.solved | verdict.dead
    for row in np.flatnonzero(suspect):
        reason = _why_not_playable(domain, boards[row], "absorb")
        if reason is not None:
            raise ValueError(f"instances {instances.name!r}: row {row} {reason}")
    return instances


def _why_not_playable(domain: PlanDomain, board: Int8Array, dead_end: DeadEnd) -> str | None:
    """What is wrong with an instance as a start, None if an episode can begin there."""
    boards = board[None]
    reason: str | None = getattr(domain, "why_invalid", lambda _: None)(board)
    if reason is not None:
        return f"cannot be played: {reason}"
    plans = domain.initial(boards)
    verdict = domain.check(boards, plans)
    if verdict.solved[0]:
        return "is solved already"
    if verdict.dead[0] and dead_end == "absorb":
        return "has no solution: the checker calls it dead"
    if not domain.action_mask(boards, plans).any():
        return "has no legal edit"
    return None


def _belong(domain: PlanDomain, instances: Int8Array, plans: Int8Array) -> bool:
    """Whether all plans belong to their instances, as far as the domain can say."""
    keeps = getattr(domain, "keeps_instance", None)
    return keeps is None or bool(keeps(instances, plans).all())
