"""What both Gymnasium environments share: `Episodes`, and the meaning of their arguments.

`PlanEditEnv` and `PlanEditVectorEnv` hold no rules. A `Task` says which domain and which instances,
an engine keeps the plans in play, and the environments translate to Gymnasium's conventions: fresh
arrays, Python scalars, autoreset, rendering. Here the task, the pool, the engine, the seeds and the
saved states come together.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from plan_envs.catalogue import Task, pool_of, resolve_task
from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, PlanDomain, Successors
from plan_envs.engine import FINISHED, OUT_OF_RANGE, Engine, EngineOptions
from plan_envs.engines import make_engine
from plan_envs.instances import InstanceSet

Observation = dict[str, Int8Array]
"""Keys instance, plan, action_mask."""
Illegal = Literal["noop", "raise"]

RENDER: Final = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 8}

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


class Episodes:
    """Plans of n environments in play, and all that decides how an episode starts and runs."""

    task: Task
    instances: InstanceSet
    """The pool that resets draw from."""
    options: EngineOptions
    engine: Engine
    seeded: NDArray[np.bool_]
    """Shape [n]: whether the random streams of an environment have been seeded."""

    def __init__(
        self,
        task: Task,
        num_envs: int,
        instances: InstanceSet | None,
        split: str,
        options: EngineOptions,
    ) -> None:
        """Open the pool and make the engine.

        Args:
            task: the domain and its instances.
            num_envs: plans side by side.
            instances: the pool; None = the task's shared pool of the split.
            split: "train", "validation" or "test".
            options: how episodes run.

        Raises:
            ValueError: for an unknown split, or instances that cannot be played.
        """
        self.task, self.options = task, options
        self.instances = _instances_of(task, instances, split)
        self.engine = make_engine(task.domain, num_envs, self.instances.instances, options)
        self.seeded = np.zeros(num_envs, np.bool_)

    def seed(self, env: int, generator: np.random.Generator) -> None:
        """Seed the two streams of an environment: that of its instances, that of `sample`."""
        words = generator.integers(0, 2**64 - 1, 2, np.uint64, endpoint=True)
        self.engine.streams[env], self.engine.samplers[env] = words
        self.seeded[env] = True

    def start(self, index: NDArray[np.int64], instances: Int8Array, plans: Any) -> None:
        """Begin episodes on given instances.

        Args:
            index: the environments, shape [chosen].
            instances: shape [chosen, instance].
            plans: the plans to start from, [chosen, cell]; None = the initial ones.

        Raises:
            ValueError: if a plan does not belong to its instance, or is solved already.
        """
        self.engine.load(index, instances, _start_plans(self.task.domain, instances, plans))

    def sample(self, rng: np.random.Generator | None) -> NDArray[np.int64]:
        """A legal action for every environment, -1 where there is none."""
        if rng is None:
            return self.engine.sample()
        masks = self.engine.masks
        keys = rng.random(masks.shape) * masks
        return np.where(masks.any(axis=1), keys.argmax(axis=1), -1)

    def successors(self, with_plans: bool) -> Successors:
        """Every legal edit of the current plans with its outcome; rewards as a step gives them."""
        return self.task.domain.successors(
            self.engine.instances,
            self.engine.plans,
            gamma=self.options.gamma,
            reward=self.options.reward,
            dead_end=self.options.dead_end,
            with_plans=with_plans,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything that `load_state` restores: plans, counters, random streams."""
        engine = self.engine
        return {
            "instance": engine.instances.copy(),
            "plan": engine.plans.copy(),
            "stream": engine.streams.copy(),
            "sampler": engine.samplers.copy(),
            "steps": engine.steps.copy(),
            "finished": engine.finished.astype(np.bool_),
            "seeded": self.seeded.copy(),
        }

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned.

        Raises:
            ValueError: names the entry that does not fit these environments.
        """
        engine, domain = self.engine, self.task.domain
        num_envs = len(engine.plans)
        boards = {"instance": engine.instances.shape, "plan": engine.plans.shape}
        if set(state) != set(_STATE_DTYPES):
            raise ValueError(
                f"state must have the keys {sorted(_STATE_DTYPES)}, got {sorted(state)}"
            )
        values = {}
        for key, dtype in _STATE_DTYPES.items():
            shape = boards.get(key, (num_envs,))
            values[key] = np.asarray(state[key])
            if values[key].shape != shape or values[key].dtype != dtype:
                raise ValueError(
                    f"state[{key!r}] must be {np.dtype(dtype)} of shape {list(shape)}, "
                    f"got {values[key].dtype} of shape {list(values[key].shape)}"
                )
        instances, plans = values["instance"], values["plan"]
        domain.check(instances, plans)  # refuses values out of range
        keeps = getattr(domain, "keeps_instance", None)
        if keeps is not None and not keeps(instances, plans).all():
            raise ValueError("state['plan'] does not belong to state['instance']")
        engine.load(np.arange(num_envs), instances, plans)
        engine.streams[:], engine.samplers[:] = values["stream"], values["sampler"]
        engine.steps[:], engine.finished[:] = values["steps"], values["finished"]
        self.seeded = values["seeded"].copy()


def task_of(task: str | Task, options: dict[str, Any]) -> Task:
    """A task, or the task of that name or environment id with these options."""
    if not isinstance(task, Task):
        return resolve_task(task, **options)
    if options:
        raise ValueError(f"options {sorted(options)} belong into the Task, not beside it")
    return task


def limit_of(max_episode_steps: int | None) -> int:
    """Gymnasium's -1 and None mean no limit, 0 for the engine."""
    if max_episode_steps is None or max_episode_steps == -1:
        return 0
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be >= 1, or -1, got {max_episode_steps}")
    return max_episode_steps


def refuses(illegal: Illegal) -> bool:
    """True when illegal edits raise, False when they count as edits without effect."""
    if illegal not in ("noop", "raise"):
        raise ValueError(f"illegal must be 'noop' or 'raise', got {illegal!r}")
    return illegal == "raise"


def read_instance(domain: PlanDomain, value: Any, dead_end: DeadEnd = "absorb") -> Int8Array:
    """An instance to start from, int8 [instance].

    A domain may have `read_instance(text)`, and `why_invalid(instance)`, which explains a conflict.

    Args:
        domain: the rules.
        value: the instance as integers, or as the domain's text.
        dead_end: under "absorb" an instance that begins dead is refused.

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
    if not np.issubdtype(board.dtype, np.integer):
        raise ValueError(f"instance must hold integers, got {board.dtype}")
    most = spec.num_instance_values
    outside = board[(board < 0) | (board > most)]
    if len(outside):
        raise ValueError(f"instance must hold 0..{most}, got {outside[0]}")
    board = board.astype(np.int8)
    reason = _why_not_playable(domain, board, dead_end)
    if reason is not None:
        raise ValueError(f"instance {reason}")
    return board


def start_options(options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """`options["instance"]` and `options["plan"]`, None where absent; others are refused."""
    if not options:
        return None, None
    unknown = sorted(set(options) - {"instance", "plan"})
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; there are 'instance' and 'plan'")
    if "instance" not in options:
        raise ValueError("reset needs the option 'instance' beside 'plan'")
    return options["instance"], options.get("plan")


def checked_mode(render_mode: str | None) -> str | None:
    """The render mode, if there is such a one.

    Raises:
        ValueError: for an unknown mode.
    """
    if render_mode is not None and render_mode not in RENDER["render_modes"]:  # type: ignore[operator]
        raise ValueError(
            f"render_mode must be one of {RENDER['render_modes']}, got {render_mode!r}"
        )
    return render_mode


def observation_space(spec: DomainSpec) -> spaces.Dict:
    """The observations of one environment; the spec says their sizes and largest values."""
    return spaces.Dict(
        {
            "instance": spaces.Box(0, spec.num_instance_values, (spec.observed_size,), np.int8),
            "plan": spaces.Box(0, spec.num_values, (spec.num_cells,), np.int8),
            "action_mask": spaces.MultiBinary(spec.num_actions),
        }
    )


def error_of(reason: int, action: Any, where: str) -> Exception:
    """The error that a refused step raises.

    Args:
        reason: OUT_OF_RANGE, FINISHED or ILLEGAL of `plan_envs.engine`.
        action: the refused action.
        where: " in environment i", or nothing.
    """
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
    if boards.shape[1] != domain.spec.instance_size:
        raise ValueError(
            f"instances {instances.name!r} have {boards.shape[1]} cells, "
            f"{domain.spec.name} has {domain.spec.instance_size}"
        )
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


def _start_plans(domain: PlanDomain, instances: Int8Array, plans: Any) -> Int8Array:
    """The initial plans, or the given ones if they belong to the instances and are not solved."""
    if plans is None:
        return domain.initial(instances)
    plans = np.asarray(plans)
    shape = (len(instances), domain.spec.num_cells)
    if plans.shape != shape or not np.issubdtype(plans.dtype, np.integer):
        raise ValueError(
            f"plan must be integers of shape {list(shape)}, got {plans.dtype} {list(plans.shape)}"
        )
    boards: Int8Array = plans.astype(np.int8)
    verdict = domain.check(instances, boards)  # refuses values out of range
    keeps = getattr(domain, "keeps_instance", None)
    if keeps is not None and not keeps(instances, boards).all():
        raise ValueError("plan does not belong to the instance")
    if verdict.solved.any():
        raise ValueError("plan is solved already")
    return boards
