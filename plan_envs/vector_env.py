"""The Gymnasium environment of many plans at once, equal to as many single ones.

It follows the conventions of Gymnasium's `SyncVectorEnv`; `plan_envs.episodes` says what it shares
with the single environment.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from plan_envs import episodes
from plan_envs.catalogue import Task
from plan_envs.checks import ArgumentError, as_choices, read_only
from plan_envs.domain import Int8Array, one_of
from plan_envs.engine import NEVER, NEXT_STEP, SAME_STEP, Finals, Refusal, StepArrays
from plan_envs.episodes import RENDER, RENDER_MODES, Observation, PlanEditing

_AUTORESET: Final = {
    AutoresetMode.DISABLED: NEVER,
    AutoresetMode.NEXT_STEP: NEXT_STEP,
    AutoresetMode.SAME_STEP: SAME_STEP,
}

METHODS: Final = ("action_masks", "sample_legal", "render")
"""Methods of a single environment that the vector environment has for all at once."""
_BATCHED: Final = {
    "action_space": "single_action_space",
    "observation_space": "single_observation_space",
}
"""Attributes of a single environment that have another name here."""
_FIXED: Final = frozenset(
    (
        *("task", "instances", "engine_options", "autoreset_mode", "num_envs", "metadata"),
        *_BATCHED,
        *_BATCHED.values(),
    )
)
_RENDER_MODES: Final = tuple(mode for mode in RENDER_MODES if mode != "human")

_Buffers = tuple[StepArrays, StepArrays]

_INFO_KEYS: Final = ("action_mask", "score", "solved", "violations", "illegal_action")


class PlanEditVectorEnv(PlanEditing, VectorEnv[Any, Any, Any]):
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
        copy: False reuses the arrays that `step` returns; observations are then read-only.
    """

    metadata: dict[str, Any] = {**RENDER, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    _ends_at_horizon = True

    def __init__(
        self,
        task: str | Task = "sudoku9x9",
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        **arguments: Any,
    ) -> None:
        """See the class docstring."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be >= 1, got {num_envs}")
        PlanEditing.__init__(self, task, num_envs, **arguments)
        spec = self.task.domain.spec
        if self.render_mode == "human":
            raise ValueError("render_mode 'human' shows one plan: use PlanEditEnv, or 'rgb_array'")
        self.autoreset_mode = mode = AutoresetMode(autoreset_mode)
        self.metadata = {**RENDER, "autoreset_mode": mode}
        self.num_envs = num_envs
        self.single_observation_space = episodes.observation_space(spec)
        self.single_action_space = spaces.Discrete(spec.num_actions)
        self.observation_space = spaces.Dict(
            {
                name: _batched(space, num_envs)
                for name, space in self.single_observation_space.spaces.items()
            }
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._autoreset = _AUTORESET[mode]
        self._buffers: _Buffers | None = None
        if not copy:
            self._reuse_buffers()
        self._everyone = np.ones(num_envs, np.bool_)

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
        index = np.flatnonzero(chosen)
        start = self._read_starts(options, index)
        self._seed(seed, chosen)
        if start is None:
            self._engine.draw(index)
        else:
            self._engine.load(index, *start)
        return self._observe(chosen)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Make one edit in every environment."""
        actions = as_choices(actions, self.num_envs)
        out, shown = self._arrays()
        try:
            finals = self._engine.step(actions, self._autoreset, out)
        except Refusal as refusal:
            where = f" in environment {refusal.env}"
            raise episodes.error_of(refusal.reason, actions[refusal.env], where) from None
        infos = _infos(shown, self._everyone.copy())
        if finals is not None:
            infos.update(_final_infos(finals, self.num_envs))
        return _observation(shown), out.reward, out.terminated, out.truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """The masks of the current observation as bool [n, action]."""
        return self._engine.masks.copy().view(np.bool_)

    def sample_legal(self, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Draw legal actions uniformly, from the environments' own streams unless `rng` is given.

        An environment whose episode is over gets action 0, which NEXT_STEP ignores.
        """
        return np.maximum(self._sample(rng), 0)

    def render(self) -> tuple[Any, ...] | None:
        """A frame for each environment."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode, e.g. render_mode='ansi'")
            return None
        domain, mode = self.task.domain, self.render_mode
        boards = zip(self._engine.instances, self._engine.plans, strict=True)
        return tuple(
            episodes.render_plan(domain, mode, instance, plan) for instance, plan in boards
        )

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What every environment answers to a method of `METHODS`, or its attribute of that name.

        As `SyncVectorEnv` has it. The environments share their attributes, so each has the same.

        Raises:
            AttributeError: for another method: environments of a vector have none of their own.
        """
        if name in METHODS:
            rows = getattr(self, name)(*args, **kwargs)
            return (None,) * self.num_envs if rows is None else tuple(rows)
        value = getattr(self, _BATCHED.get(name, name))
        if callable(value):
            raise AttributeError(
                f"environments of a vector have no method {name!r}; there are {', '.join(METHODS)}"
            )
        return (value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment; see `call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute that all environments share, e.g. `render_mode`.

        Args:
            name: the attribute.
            values: its value, or a list or tuple with the same value for each environment.

        Raises:
            ValueError: for values that differ, or for what is fixed when environments are made.
        """
        given = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(given) != self.num_envs or any(value != given[0] for value in given):
            raise ValueError(f"{name} must have one value for all {self.num_envs} environments")
        if name in _FIXED:
            raise ValueError(f"{name} is fixed when the environments are made")
        if name == "render_mode" and given[0] is not None:
            one_of(name, given[0], *_RENDER_MODES)
        setattr(self, name, given[0])

    def _arrays(self) -> _Buffers:
        """Arrays for the engine to fill, and the same as callers see them."""
        if self._buffers is not None:
            return self._buffers
        fresh = StepArrays.empty(self.num_envs, self.task.domain.spec)
        return fresh, fresh

    def _reuse_buffers(self) -> None:
        """Make the arrays that every step fills; callers see views of boards and masks.

        The engine writes instances when they change only, so what a caller wrote there would stay.
        """
        out = StepArrays.empty(self.num_envs, self.task.domain.spec)
        boards = {name: read_only(board) for name, board in _observation(out).items()}
        self._buffers = out, out._replace(**boards)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make buffers of their own."""
        return {**vars(self), "_buffers": self._buffers is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        vars(self).update(state, _buffers=None)
        if state["_buffers"]:
            self._reuse_buffers()

    def _observe(
        self, fresh: NDArray[np.bool_] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        out, shown = self._arrays()
        self._engine.observe(out)
        return _observation(shown), _infos(shown, self._everyone.copy() if fresh is None else fresh)

    def _seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Seed the streams of the chosen environments that have a seed, or no stream yet."""
        seeds: list[int | None]
        if seed is None or isinstance(seed, int | np.integer):
            first = None if seed is None else int(seed)
            super().reset(seed=first)
            seeds = [None if first is None else first + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must have {self.num_envs} entries, got {len(seeds)}")
        for i in np.flatnonzero(chosen).tolist():
            if seeds[i] is not None or not self._seeded[i]:
                self._seed_streams(i, seeding.np_random(seeds[i])[0])

    def _read_starts(
        self, options: dict[str, Any], index: NDArray[np.int64]
    ) -> tuple[Int8Array, Int8Array] | None:
        """Instances and plans from which environments `index` start; None = draw from the pool."""
        instance, plan = episodes.start_options(options)
        if instance is None:
            return None
        domain = self.task.domain
        boards = self._read_instances(instance, index)
        if plan is None:
            return boards, domain.initial(boards)
        starts = episodes.read_plans(domain, plan, (self.num_envs, domain.spec.num_cells))[index]
        episodes.check_starts(domain, boards, starts)
        return boards, starts

    def _read_instances(self, value: Any, index: NDArray[np.int64]) -> Int8Array:
        """The instances of environments `index`."""
        domain, dead_end = self.task.domain, self.engine_options.dead_end
        if isinstance(value, str) or np.ndim(value) != 2:
            board = episodes.read_instance(domain, value, dead_end)
            return np.repeat(board[None], len(index), axis=0)
        if len(value) != self.num_envs:
            raise ValueError(f"instance must have {self.num_envs} rows, got {len(value)}")
        return np.stack([episodes.read_instance(domain, value[env], dead_end) for env in index])


def _checked_reset_mask(mask: Any, num_envs: int) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise ArgumentError(f"options['reset_mask'] must be a bool array, got {mask!r}")
    if mask.shape != (num_envs,):
        raise ValueError(f"options['reset_mask'] must have shape ({num_envs},), got {mask.shape}")
    if not mask.any():
        raise ValueError("options['reset_mask'] must contain a True")
    return mask


def _batched(space: Any, num_envs: int) -> Any:
    """`batch_space`, but a Box whose bounds are views: those of 1024 ARC instances take 100 MB."""
    if not isinstance(space, spaces.Box):
        return batch_space(space, num_envs)
    batched = deepcopy(space)
    batched._shape = (num_envs, *space.shape)
    for name in ("low", "high", "bounded_below", "bounded_above"):
        setattr(batched, name, np.broadcast_to(getattr(space, name), batched._shape))
    return batched


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
