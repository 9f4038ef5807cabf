"""Gymnasium shells over a `PlanDomain`: `PlanEditEnv` and the native `PlanEditVectorEnv`.

They hold no rules: a `Task` says which domain and which instances, an `Engine` keeps the plans, and
the shells translate to Gymnasium's conventions (ENVIRONMENTS.md, B): fresh arrays, Python scalars,
seeds, autoreset, rendering. Vector environment i equals a single environment seeded with seed + i.
"""

import operator
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from plan_envs.catalogue import Task, pool_of, resolve_task
from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, PlanDomain, RewardKind, Successors
from plan_envs.engine import (
    FINISHED,
    NEVER,
    NEXT_STEP,
    OUT_OF_RANGE,
    SAME_STEP,
    EngineOptions,
    Finals,
    Refusal,
    StepArrays,
    make_engine,
)
from plan_envs.instances import InstanceSet

Observation = dict[str, Int8Array]
"""Keys instance, plan, action_mask."""
Illegal = Literal["noop", "raise"]

_RENDER: Final = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 8}
_AUTORESET: Final = {
    AutoresetMode.DISABLED: NEVER,
    AutoresetMode.NEXT_STEP: NEXT_STEP,
    AutoresetMode.SAME_STEP: SAME_STEP,
}
_VECTOR_METADATA: Final = {**_RENDER, "autoreset_mode": AutoresetMode.NEXT_STEP}
_INFO_KEYS: Final = ("action_mask", "score", "solved", "violations", "illegal_action")


class PlanEditEnv(gym.Env[Any, Any]):
    """Edit a plan until a checker accepts it.

    ## Description

    A plan-editing MDP (UPI-TRM Sec. 2): the instance x is given and never changes, the plan y
    starts as the instance, each step edits one cell of y, and a checker scores the result. For
    Sudoku the plan is a partly filled board and an edit writes a digit; `task` chooses the puzzle.

    ## Action Space

    `Discrete(num_actions)`; which action means what is the domain's (for Sudoku see
    `plan_envs.sudoku.Sudoku`; `env.unwrapped.task.domain.spec` has it as tables). 9x9: cell * 9 +
    digit - 1, 729 actions. 4x4: cell * 6 + token (0 PAD, 1 blank, digit + 1) and STOP = 96.

    An illegal action leaves the plan unchanged, costs one step and sets `info["illegal_action"]`;
    with `illegal="raise"` it raises `ValueError` instead. A number out of range always raises.

    ## Observation Space

    `Dict` of int8 vectors: `instance` and `plan` (0 = blank, else the value), `action_mask` (1 =
    legal). Arrays are fresh each step; with `copy=False` they are views that the next step changes.

    ## Rewards

    r = r0 + gamma Phi(s') - Phi(s) with r0 = 1 on entering a solved plan, else 0, and Phi =
    clip(score, 0, max_score) / max_score. On absorption the paper's gamma V(s_abs) = -gamma C_max
    is already folded in: the last reward is r0 - Phi(s), and learners bootstrap absorption with 0.
    `reward="sparse"` gives r0 alone. Sudoku's score: filled cells - 2 x violations (unordered pairs
    of equal digits in a row, column or box) - 5 x blank cells without a candidate.

    ## Starting State

    An instance drawn uniformly from the pool, with the plan equal to its givens. Each environment
    draws from its own stream, seeded by `reset(seed=...)`; later resets continue the stream.

    ## Episode End

    - Termination: the plan is solved; STOP (where the edit set has it); no legal edit is left; the
      plan is dead (fill edits: a blank cell without candidate, or a violation) unless
      `dead_end="continue"`.
    - Truncation: the horizon, 16 edits for 4x4 and side x side otherwise. `gymnasium.make` adds the
      limit; an environment that is built directly has none unless `max_episode_steps` is given.

    Stepping an environment that has ended raises `gymnasium.error.ResetNeeded`.

    ## Information

    `reset` and `step` return the same keys: `action_mask` (the same array as in the observation),
    `score` (float, in points), `solved` (bool), `violations` (int), `illegal_action` (bool).

    ## Arguments

    ```python
    gym.make("PlanEdit/Sudoku9x9-v0", reward="sparse", givens=(30, 32))
    env.reset(seed=1, options={"instance": "530070000600195000098000060800060003..."})
    ```

    - `task`: a task's name, environment id or `Task`; the ids set it.
    - `instances`: an `InstanceSet` to draw from; default: the task's shared pool of `split`.
    - `split`: "train", "validation" or "test".
    - `gamma`: discount of the shaping.
    - `reward`: "shaped" or "sparse".
    - `dead_end`: "absorb", or "continue" until no legal edit is left (the paper's protocol).
    - `illegal`: "noop" or "raise".
    - `copy`: False returns views that later steps change.
    - `max_episode_steps`: truncate after this many steps; None or -1 = no limit of its own.
    - further options go to the task: for Sudoku `codec`, `edits`, `mask`, `side`, `givens`,
      `blanks`, `unique`.

    `reset(options={"instance": ...})` chooses the instance: an array of cells or a puzzle's text;
    `"plan"` beside it chooses the plan to start from.

    ## Version History

    - v0: first version.
    """

    metadata: dict[str, Any] = _RENDER

    def __init__(
        self,
        task: str | Task = "sudoku9x9",
        *,
        instances: InstanceSet | None = None,
        split: str = "train",
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        illegal: Illegal = "noop",
        copy: bool = True,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class docstring, Arguments."""
        self.task = _task_of(task, options)
        self.instances = _instances_of(self.task, instances, split)
        self.engine_options = EngineOptions(
            gamma=gamma,
            reward=reward,
            dead_end=dead_end,
            limit=_limit_of(max_episode_steps),
            refuse_illegal=_refuses(illegal),
        )
        self.render_mode = _checked_mode(render_mode)
        spec = self.task.domain.spec
        self.observation_space = _observation_space(spec)
        self.action_space = spaces.Discrete(spec.num_actions)
        self._copy = copy
        self._seeded = False
        self._window: _Window | None = None
        self._engine = make_engine(
            self.task.domain, 1, self.instances.instances, self.engine_options
        )
        self._state = StepArrays.empty(1, spec)
        self._bind()

    def _bind(self) -> None:
        """Take the engine's live boards and its step function, to save look-ups in `step`."""
        engine = self._engine
        self._instance = engine.instances[0, : self.task.domain.spec.observed_size]
        self._plan = engine.plans[0]
        self._mask: Int8Array = engine.masks[0]
        self._live = {"instance": self._instance, "plan": self._plan, "action_mask": self._mask}
        self._step_one = engine.step_one

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what `_bind` and `render` make anew."""
        bound = {"_instance", "_plan", "_mask", "_live", "_step_one"}
        state = {name: value for name, value in vars(self).items() if name not in bound}
        return {**state, "_window": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        vars(self).update(state)
        self._bind()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start on an instance of the pool, or on `options["instance"]`, at `options["plan"]`."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._engine.streams[0], self._engine.samplers[0] = _stream_seeds(self.np_random)
            self._seeded = True
        chosen, plan = _start_options(options)
        if chosen is None:
            self._engine.draw(_ONLY)
        else:
            board = read_instance(self.task.domain, chosen, self.engine_options.dead_end)[None]
            start = None if plan is None else np.asarray(plan)[None]
            self._engine.load(_ONLY, board, _start_plans(self.task.domain, board, start))
        if self.render_mode == "human":
            self.render()
        return self._observe()

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one edit."""
        reward, terminated, truncated, code, score, violations, solved = self._step_one(
            operator.index(action)
        )
        if code > 1:
            raise _error_of(code - 1, action, "")
        if self._copy:
            mask = self._mask.copy()
            observation = {
                "instance": self._instance.copy(),
                "plan": self._plan.copy(),
                "action_mask": mask,
            }
        else:
            mask = self._mask
            observation = self._live.copy()
        if self.render_mode == "human":
            self.render()
        return (
            observation,
            reward,
            terminated,
            truncated,
            {
                "action_mask": mask,
                "score": score,
                "solved": solved,
                "violations": violations,
                "illegal_action": code == 1,
            },
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal edits of the current plan, bool [action] (what MaskablePPO asks for)."""
        masks: NDArray[np.bool_] = self._mask.copy().view(np.bool_)
        return masks

    def sample_legal(self, rng: np.random.Generator | None = None) -> int:
        """Draw a legal action uniformly, from the environment's own stream unless `rng` is given.

        Raises:
            ResetNeeded: if the current plan has no legal edit.
        """
        action = int(_sample(self._engine, rng)[0])
        if action < 0:
            raise ResetNeeded("the plan has no legal edit: call reset()")
        return action

    def successors(self, *, with_plans: bool = True) -> Successors:
        """Every legal edit of the current plan with its outcome; rewards as `step` gives them."""
        return _successors(self, self._engine, with_plans)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything that `set_state` restores: plan, counters, random streams."""
        return _get_state(self._engine, seeded=self._seeded)

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> tuple[Observation, dict[str, Any]]:
        """Continue from a state of `get_state`; returns what `reset` would.

        Raises:
            ValueError: names the entry that does not fit this environment.
        """
        self._seeded = _set_state(self.task.domain, self._engine, state)
        return self._observe()

    def render(self) -> Any:
        """The plan as text, image or in a window, as `render_mode` says."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode, e.g. gym.make(id, render_mode='ansi')")
            return None
        frame = _render(self.task.domain, self.render_mode, self._instance, self._plan)
        if self.render_mode != "human":
            return frame
        if self._window is None:
            self._window = _Window(self.task.name, fps=self.metadata["render_fps"])
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _observe(self) -> tuple[Observation, dict[str, Any]]:
        self._engine.observe(self._state)
        mask = self._mask.copy() if self._copy else self._mask
        observation = {"instance": self._instance, "plan": self._plan, "action_mask": mask}
        if self._copy:
            observation["instance"] = self._instance.copy()
            observation["plan"] = self._plan.copy()
        return observation, {
            "action_mask": mask,
            "score": float(self._state.score[0]),
            "solved": bool(self._state.solved[0]),
            "violations": int(self._state.violations[0]),
            "illegal_action": False,
        }


class PlanEditVectorEnv(VectorEnv[Any, Any, Any]):
    """Many plans edited side by side in one call; see `PlanEditEnv` for the MDP.

    Everything is a batch of what `PlanEditEnv` gives, by the conventions of Gymnasium's
    `SyncVectorEnv` in all three autoreset modes, so that environment i equals a single environment
    with seed + i and `max_episode_steps` as its time limit (`plan_envs.testing.check_vector_env`
    shows it). Infos have the keys of `PlanEditEnv`, each with its mask `_key`; after a reset with
    `options["reset_mask"]` they hold the current values of every environment and the masks tell
    which were reset.

    Args:
        task: as for `PlanEditEnv`, like every argument that is not named here.
        num_envs: number of plans.
        max_episode_steps: edits after which an episode is truncated; None = the domain's horizon,
            -1 = no limit.
        autoreset_mode: NEXT_STEP (the step after the last one resets and ignores the action),
            SAME_STEP (the last step returns the reset observation, and the last one in
            `infos["final_obs"]`) or DISABLED (reset with `options={"reset_mask": done}`).
        copy: False reuses the arrays that `step` returns.
    """

    metadata: dict[str, Any] = _VECTOR_METADATA

    def __init__(
        self,
        task: str | Task = "sudoku9x9",
        *,
        num_envs: int = 1,
        instances: InstanceSet | None = None,
        split: str = "train",
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        illegal: Illegal = "noop",
        copy: bool = True,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class docstring."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be >= 1, got {num_envs}")
        self.task = _task_of(task, options)
        self.instances = _instances_of(self.task, instances, split)
        spec = self.task.domain.spec
        limit = spec.horizon if max_episode_steps is None else max_episode_steps
        self.engine_options = EngineOptions(
            gamma=gamma,
            reward=reward,
            dead_end=dead_end,
            limit=_limit_of(limit),
            refuse_illegal=_refuses(illegal),
        )
        mode = AutoresetMode(autoreset_mode)
        self.metadata = {**_RENDER, "autoreset_mode": mode}
        self.render_mode = _checked_mode(render_mode)
        if self.render_mode == "human":
            raise ValueError("render_mode 'human' shows one plan: use PlanEditEnv, or 'rgb_array'")
        self.num_envs = num_envs
        self.single_observation_space = _observation_space(spec)
        self.single_action_space = spaces.Discrete(spec.num_actions)
        self.observation_space = spaces.Dict(
            {
                name: _batched(space, num_envs)
                for name, space in self.single_observation_space.spaces.items()
            }
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._autoreset = _AUTORESET[mode]
        self._buffers = None if copy else StepArrays.empty(num_envs, spec)
        self._everyone = np.ones(num_envs, np.bool_)
        self._seeded = np.zeros(num_envs, np.bool_)
        pool = self.instances.instances
        self._engine = make_engine(self.task.domain, num_envs, pool, self.engine_options)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset every environment, or those of `options["reset_mask"]`.

        Args:
            seed: an int seeds environment i with seed + i; a list gives each its seed, None in it
                continues that environment's stream.
            options: "reset_mask" (bool [n]), "instance" (one for all, or [n, instance]) and with it
                "plan" ([n, cell]), the plans to start from instead of the initial ones.
        """
        options = dict(options or {})
        chosen = self._everyone.copy()
        if "reset_mask" in options:
            chosen = _checked_reset_mask(options.pop("reset_mask"), self.num_envs)
        self._seed(seed, chosen)
        index = np.flatnonzero(chosen)
        instance, plan = _start_options(options)
        if instance is None:
            self._engine.draw(index)
        else:
            boards = self._read_instances(instance, index)
            start = None if plan is None else np.asarray(plan)[index]
            self._engine.load(index, boards, _start_plans(self.task.domain, boards, start))
        return self._observe(chosen)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Make one edit in every environment."""
        actions = np.require(actions, np.int64, ("C", "W"))
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {actions.shape}")
        out = self._arrays()
        try:
            finals = self._engine.step(actions, self._autoreset, out)
        except Refusal as refusal:
            where = f" in environment {refusal.env}"
            raise _error_of(refusal.reason, actions[refusal.env], where) from None
        infos = _infos(out, self._everyone.copy())
        if finals is not None:
            infos.update(_final_infos(finals, self.num_envs))
        return _observation(out), out.reward, out.terminated, out.truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal edits of the current plans, bool [n, action]."""
        return self._engine.masks.copy().view(np.bool_)

    def sample_legal(self, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Draw legal actions uniformly, from the environments' own streams unless `rng` is given.

        A finished plan without legal edit gets action 0, which NEXT_STEP ignores.
        """
        return np.maximum(_sample(self._engine, rng), 0)

    def successors(self, *, with_plans: bool = True) -> Successors:
        """Every legal edit of the current plans with its outcome; rewards as `step` gives them."""
        return _successors(self, self._engine, with_plans)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything that `set_state` restores: plans, counters, random streams."""
        return _get_state(self._engine, seeded=self._seeded)

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> tuple[Observation, dict[str, Any]]:
        """Continue from a state of `get_state`; returns what `reset` would.

        Raises:
            ValueError: names the entry that does not fit this environment.
        """
        self._seeded = _set_state(self.task.domain, self._engine, state)
        return self._observe(self._everyone.copy())

    def render(self) -> tuple[Any, ...] | None:
        """A frame for each environment."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode, e.g. render_mode='ansi'")
            return None
        domain, mode = self.task.domain, self.render_mode
        boards = zip(self._engine.instances, self._engine.plans, strict=True)
        return tuple(_render(domain, mode, instance, plan) for instance, plan in boards)

    def _arrays(self) -> StepArrays:
        if self._buffers is not None:
            return self._buffers
        return StepArrays.empty(self.num_envs, self.task.domain.spec)

    def _observe(self, fresh: NDArray[np.bool_]) -> tuple[Observation, dict[str, Any]]:
        out = self._arrays()
        self._engine.observe(out)
        return _observation(out), _infos(out, fresh)

    def _seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Seed the streams of the chosen environments that have a seed, or no stream yet."""
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            first = None if seed is None else int(seed)
            seeds = [None if first is None else first + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must have {self.num_envs} entries, got {len(seeds)}")
        for i in np.flatnonzero(chosen):
            if seeds[i] is not None or not self._seeded[i]:
                generator, _ = seeding.np_random(seeds[i])
                self._engine.streams[i], self._engine.samplers[i] = _stream_seeds(generator)
                self._seeded[i] = True

    def _read_instances(self, value: Any, index: NDArray[np.int64]) -> Int8Array:
        """The instances of environments `index`."""
        domain, dead_end = self.task.domain, self.engine_options.dead_end
        if not isinstance(value, str) and np.ndim(value) == 2:
            if len(value) != self.num_envs:
                raise ValueError(f"instance must have {self.num_envs} rows, got {len(value)}")
            return np.stack([read_instance(domain, value[env], dead_end) for env in index])
        board = read_instance(domain, value, dead_end)
        return np.repeat(board[None], len(index), axis=0)


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


_ONLY = np.zeros(1, np.int64)


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


def _task_of(task: str | Task, options: dict[str, Any]) -> Task:
    if isinstance(task, Task):
        if options:
            raise ValueError(f"options {sorted(options)} belong into the Task, not beside it")
        return task
    return resolve_task(task, **options)


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


def _refuses(illegal: Illegal) -> bool:
    if illegal not in ("noop", "raise"):
        raise ValueError(f"illegal must be 'noop' or 'raise', got {illegal!r}")
    return illegal == "raise"


def _limit_of(max_episode_steps: int | None) -> int:
    """Gymnasium's -1 and None mean no limit, 0 for the engine."""
    if max_episode_steps is None or max_episode_steps == -1:
        return 0
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be >= 1, or -1, got {max_episode_steps}")
    return max_episode_steps


def _checked_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in _RENDER["render_modes"]:  # type: ignore[operator]
        raise ValueError(
            f"render_mode must be one of {_RENDER['render_modes']}, got {render_mode!r}"
        )
    return render_mode


def _checked_reset_mask(mask: Any, num_envs: int) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] must be a bool array, got {mask!r}")
    if mask.shape != (num_envs,):
        raise ValueError(f"options['reset_mask'] must have shape ({num_envs},), got {mask.shape}")
    if not mask.any():
        raise ValueError("options['reset_mask'] must contain a True")
    return mask


def _start_options(options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """`options["instance"]` and `options["plan"]`, None where absent; others are refused."""
    if not options:
        return None, None
    unknown = sorted(set(options) - {"instance", "plan"})
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; there are 'instance' and 'plan'")
    if "instance" not in options:
        raise ValueError("reset needs the option 'instance' beside 'plan'")
    return options["instance"], options.get("plan")


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


def _observation_space(spec: DomainSpec) -> spaces.Dict:
    return spaces.Dict(
        {
            "instance": spaces.Box(0, spec.num_instance_values, (spec.observed_size,), np.int8),
            "plan": spaces.Box(0, spec.num_values, (spec.num_cells,), np.int8),
            "action_mask": spaces.MultiBinary(spec.num_actions),
        }
    )


def _batched(space: Any, num_envs: int) -> Any:
    """`batch_space`, but a Box whose bounds are views: those of 1024 ARC instances take 100 MB."""
    if not isinstance(space, spaces.Box):
        return batch_space(space, num_envs)
    batched = deepcopy(space)
    batched._shape = (num_envs, *space.shape)
    for name in ("low", "high", "bounded_below", "bounded_above"):
        setattr(batched, name, np.broadcast_to(getattr(space, name), batched._shape))
    return batched


def _stream_seeds(generator: np.random.Generator) -> NDArray[np.uint64]:
    """First states of the two streams of an environment: instances and legal actions."""
    words: NDArray[np.uint64] = generator.integers(0, 2**64 - 1, 2, np.uint64, endpoint=True)
    return words


def _error_of(reason: int, action: Any, where: str) -> Exception:
    if reason == FINISHED:
        return ResetNeeded(f"the episode{where} has ended or not begun: call reset() before step()")
    if reason == OUT_OF_RANGE:
        return ValueError(f"action {action}{where} is outside the action space")
    return ValueError(f"action {action}{where} is illegal")


def _observation(out: StepArrays) -> Observation:
    return {"instance": out.instance, "plan": out.plan, "action_mask": out.action_mask}


def _infos(out: StepArrays, present: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "action_mask": out.action_mask,
        "_action_mask": present,
        "score": out.score,
        "_score": present,
        "solved": out.solved,
        "_solved": present,
        "violations": out.violations,
        "_violations": present,
        "illegal_action": out.illegal_action,
        "_illegal_action": present,
    }


def _final_infos(finals: Finals, num_envs: int) -> dict[str, Any]:
    """`final_obs` (object array) and `final_info` as `SyncVectorEnv` lays them out."""
    present = np.zeros(num_envs, np.bool_)
    present[finals.index] = True
    observations = np.full(num_envs, None, dtype=object)
    ended = finals.arrays
    rows = zip(finals.index.tolist(), ended.instance, ended.plan, ended.action_mask, strict=True)
    for env, instance, plan, mask in rows:
        observations[env] = {"instance": instance, "plan": plan, "action_mask": mask}
    info: dict[str, Any] = {}
    for key in _INFO_KEYS:
        values = getattr(ended, key)
        info[key] = np.zeros((num_envs, *values.shape[1:]), values.dtype)
        info[key][finals.index] = values
        info[f"_{key}"] = present
    return {
        "final_obs": observations,
        "_final_obs": present,
        "final_info": info,
        "_final_info": present,
    }


def _sample(engine: Any, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """A legal action an environment, -1 where there is none."""
    if rng is None:
        sampled: NDArray[np.int64] = engine.sample()
        return sampled
    keys = rng.random(engine.masks.shape) * engine.masks
    return np.where(engine.masks.any(axis=1), keys.argmax(axis=1), -1)


def _successors(env: PlanEditEnv | PlanEditVectorEnv, engine: Any, with_plans: bool) -> Successors:
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


def _get_state(engine: Any, *, seeded: bool | NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
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


def _set_state(domain: PlanDomain, engine: Any, state: Mapping[str, NDArray[Any]]) -> Any:
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


def _render(domain: PlanDomain, mode: str, instance: Int8Array, plan: Int8Array) -> Any:
    from plan_envs import rendering

    if mode == "ansi":
        return rendering.render_ansi(domain, instance, plan)
    return rendering.render_rgb(domain, instance, plan)


class _Window:
    """A pygame window that shows frames at a given rate."""

    def __init__(self, title: str, *, fps: int) -> None:
        import pygame

        self._pygame: Any = pygame
        self._fps, self._title = fps, title
        self._screen: Any = None
        self._clock = pygame.time.Clock()

    def show(self, frame: NDArray[np.uint8]) -> None:
        pygame = self._pygame
        if self._screen is None:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            self._screen = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
        surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None
