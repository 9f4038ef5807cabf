"""Gymnasium shells over a `PlanDomain`: `PlanEditEnv` and the native `PlanEditVectorEnv`.

They hold no rules: a `Task` says which domain and which instances, an `Engine` keeps the plans, and
the shells translate to Gymnasium's conventions (ENVIRONMENTS.md, B): fresh arrays, Python scalars,
seeds, autoreset, rendering. Vector environment i equals a single environment seeded with seed + i.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from plan_envs.catalogue import Task, pool_of, resolve_task
from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, PlanDomain, Successors
from plan_envs.engine import FINISHED, OUT_OF_RANGE
from plan_envs.instances import InstanceSet

Observation = dict[str, Int8Array]
"""Keys instance, plan, action_mask."""
Illegal = Literal["noop", "raise"]

RENDER: Final = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 8}


def read_instance(domain: PlanDomain, value: Any, dead_end: DeadEnd = "absorb") -> Int8Array:
    """An instance to start from, given as cells or as the domain's text; int8 [cell].

    A domain may have `read_instance(text)`, and `why_invalid(instance)`, which explains a conflict.

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


ONLY = np.zeros(1, np.int64)


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


def task_of(task: str | Task, options: dict[str, Any]) -> Task:
    if isinstance(task, Task):
        if options:
            raise ValueError(f"options {sorted(options)} belong into the Task, not beside it")
        return task
    return resolve_task(task, **options)


def instances_of(task: Task, instances: InstanceSet | None, split: str) -> InstanceSet:
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


def refuses(illegal: Illegal) -> bool:
    if illegal not in ("noop", "raise"):
        raise ValueError(f"illegal must be 'noop' or 'raise', got {illegal!r}")
    return illegal == "raise"


def limit_of(max_episode_steps: int | None) -> int:
    """Gymnasium's -1 and None mean no limit, 0 for the engine."""
    if max_episode_steps is None or max_episode_steps == -1:
        return 0
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be >= 1, or -1, got {max_episode_steps}")
    return max_episode_steps


def checked_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER["render_modes"]:  # type: ignore[operator]
        raise ValueError(
            f"render_mode must be one of {RENDER['render_modes']}, got {render_mode!r}"
        )
    return render_mode


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


def start_plans(domain: PlanDomain, instances: Int8Array, plans: Any) -> Int8Array:
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


def observation_space(spec: DomainSpec) -> spaces.Dict:
    return spaces.Dict(
        {
            "instance": spaces.Box(0, spec.num_instance_values, (spec.observed_size,), np.int8),
            "plan": spaces.Box(0, spec.num_values, (spec.num_cells,), np.int8),
            "action_mask": spaces.MultiBinary(spec.num_actions),
        }
    )


def stream_seeds(generator: np.random.Generator) -> NDArray[np.uint64]:
    """First states of the two streams of an environment: instances and legal actions."""
    words: NDArray[np.uint64] = generator.integers(0, 2**64 - 1, 2, np.uint64, endpoint=True)
    return words


def error_of(reason: int, action: Any, where: str) -> Exception:
    if reason == FINISHED:
        return ResetNeeded(f"the episode{where} has ended or not begun: call reset() before step()")
    if reason == OUT_OF_RANGE:
        return ValueError(f"action {action}{where} is outside the action space")
    return ValueError(f"action {action}{where} is illegal")


def sample(engine: Any, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """A legal action an environment, -1 where there is none."""
    if rng is None:
        sampled: NDArray[np.int64] = engine.sample()
        return sampled
    keys = rng.random(engine.masks.shape) * engine.masks
    return np.where(engine.masks.any(axis=1), keys.argmax(axis=1), -1)


def engine_successors(env: Any, engine: Any, with_plans: bool) -> Successors:
    return env.task.domain.successors(
        engine.instances,
        engine.plans,
        gamma=env.engine_options.gamma,
        reward=env.engine_options.reward,
        dead_end=env.engine_options.dead_end,
        with_plans=with_plans,
    )


_STATE_DTYPES: Final = {
    "instance": np.int8,
    "plan": np.int8,
    "stream": np.uint64,
    "sampler": np.uint64,
    "steps": np.int64,
    "finished": np.bool_,
    "seeded": np.bool_,
}


def engine_state(engine: Any, *, seeded: bool | NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    num_envs = len(engine.plans)
    return {
        "instance": engine.instances.copy(),
        "plan": engine.plans.copy(),
        "stream": engine.streams.copy(),
        "sampler": engine.samplers.copy(),
        "steps": engine.steps.copy(),
        "finished": engine.finished.astype(np.bool_),
        "seeded": np.broadcast_to(seeded, num_envs).copy(),
    }


def load_engine_state(domain: PlanDomain, engine: Any, state: Mapping[str, NDArray[Any]]) -> Any:
    """Restore an engine; returns which environments have seeded streams."""
    num_envs = len(engine.plans)
    boards = {"instance": engine.instances.shape, "plan": engine.plans.shape}
    if set(state) != set(_STATE_DTYPES):
        raise ValueError(f"state must have the keys {sorted(_STATE_DTYPES)}, got {sorted(state)}")
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
    return values["seeded"].copy()


def render_plan(domain: PlanDomain, mode: str, instance: Int8Array, plan: Int8Array) -> Any:
    from plan_envs import rendering

    if mode == "ansi":
        return rendering.render_ansi(domain, instance, plan)
    return rendering.render_rgb(domain, instance, plan)
