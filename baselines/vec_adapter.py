"""`PlanEditVecEnv`: a native `PlanEditVectorEnv` as a VecEnv of stable-baselines3.

SB3 has no adapter for Gymnasium's vector environments; its `DummyVecEnv` steps one environment
after the other and copies everything twice. Here all plans are edited in one call of their engine,
and only episodes that end cost anything in Python. Input: a vector environment under SAME_STEP;
output: what SB3's algorithms, sb3-contrib's MaskablePPO and VecEnv wrappers expect.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from plan_envs.checks import as_choices
from plan_envs.domain import Int8Array
from plan_envs.engine import ILLEGAL, SAME_STEP, Finals, Refusal, StepArrays
from plan_envs.vector_env import METHODS, PlanEditVectorEnv

Indices = int | Iterable[int] | None

_SCALARS = ("score", "solved", "violations", "illegal_action")
"""What the checker says of a plan, as environments put it into their infos."""


class PlanEditVecEnv(VecEnv):
    """Many plans edited side by side, by SB3's conventions.

    Environment i equals a `PlanEditEnv` seeded with seed + i inside a `DummyVecEnv`. Rewards are
    float32, as there. When an episode ends its environment is reset in the same step and its info
    holds `terminal_observation`, `TimeLimit.truncated` (the horizon, not an absorption), `episode`
    (`r`, `l`, `t` as of `Monitor`), `is_success` and the checker's last word (`score`, `solved`,
    `violations`, `illegal_action`); the infos of episodes that go on, which no algorithm reads, are
    empty. `env_method("action_masks")` answers for all environments in
    one call. Arrays are fresh at each step.

    Args:
        vector_env: the environments, with autoreset SAME_STEP; this class takes it over.
    """

    def __init__(self, vector_env: PlanEditVectorEnv) -> None:
        """See the class docstring."""
        if vector_env.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            mode = vector_env.metadata["autoreset_mode"].value
            raise ValueError(f"vector_env must have autoreset_mode 'SameStep', got {mode!r}")
        self.vector_env = vector_env
        self._engine = vector_env._engine
        spec = vector_env.task.domain.spec
        num_envs = vector_env.num_envs
        self._out = StepArrays.empty(num_envs, spec)
        self._actions: NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self.episode_returns = np.zeros(num_envs, np.float32)
        """Rewards since each environment's last reset."""
        self.episode_lengths = np.zeros(num_envs, np.int64)
        self._start = time.time()
        super().__init__(
            num_envs, vector_env.single_observation_space, vector_env.single_action_space
        )

    def reset(self) -> dict[str, Int8Array]:
        """Reset every environment, by the seeds that were set before.

        Raises:
            ValueError: reset options were set, which only the vector environment itself takes.
        """
        if any(self._options):
            raise ValueError("reset options must be given to the reset of `vector_env`")
        observation, infos = self.vector_env.reset(
            seed=None if self._seeds[0] is None else self._seeds
        )
        self._reset_seeds()
        self.episode_returns[:] = 0
        self.episode_lengths[:] = 0
        self.reset_infos = [
            {key: infos[key][env] for key in ("action_mask", *_SCALARS)}
            for env in range(self.num_envs)
        ]
        return dict(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions, n integers."""
        self._actions = as_choices(np.asarray(actions).reshape(-1), self.num_envs)

    def step_wait(
        self,
    ) -> tuple[dict[str, Int8Array], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Make one edit in every environment and reset those that ended."""
        out = self._out
        try:
            finals = self._engine.step(self._actions, SAME_STEP, out)
        except Refusal as refusal:
            action = self._actions[refusal.env]
            what = "illegal" if refusal.reason == ILLEGAL else "outside the action space"
            raise ValueError(f"action {action} in environment {refusal.env} is {what}") from None
        rewards = out.reward.astype(np.float32)
        self.episode_returns += rewards
        self.episode_lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if finals is not None:
            self._end_episodes(finals, infos)
        return self._observation(), rewards, out.terminated | out.truncated, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the vector environment, which all environments share.

        Raises:
            AttributeError: there is none of this name.
        """
        value = getattr(self.vector_env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the vector environment, for all environments at once."""
        if indices is not None:
            raise ValueError(f"{attr_name} is shared by all environments: indices must be None")
        setattr(self.vector_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> Any:
        """`action_masks`, `sample_legal` or `render` of the environments, as one array or list.

        Raises:
            AttributeError: for another method: environments of a vector have no methods of their
                own.
        """
        if method_name not in METHODS:
            raise AttributeError(
                f"environments of a vector have no method {method_name!r}; there are"
                f" {', '.join(METHODS)}"
            )
        answers = getattr(self.vector_env, method_name)(*method_args, **method_kwargs)
        if indices is None:
            return answers
        chosen = list(self._get_indices(indices))
        return answers[chosen] if isinstance(answers, np.ndarray) else [answers[i] for i in chosen]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """True for `Monitor`, whose episode statistics are in the infos; no other wrapper is."""
        wrapped = issubclass(Monitor, wrapper_class)
        return [wrapped for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Any]:
        """A picture of each plan, where the render mode is rgb_array."""
        return self.vector_env.render() or ()

    def get_state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything that `set_state` restores."""
        return {
            **self.vector_env.get_state(),
            "episode_returns": self.episode_returns.copy(),
            "episode_lengths": self.episode_lengths.copy(),
        }

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> dict[str, Int8Array]:
        """Continue from a state of `get_state`; returns the observation.

        Raises:
            ValueError: the state does not fit these environments.
        """
        rest = dict(state)
        self.episode_returns = rest.pop("episode_returns").copy()
        self.episode_lengths = rest.pop("episode_lengths").copy()
        observation, _ = self.vector_env.set_state(rest)
        return dict(observation)

    def _observation(self) -> dict[str, Int8Array]:
        out = self._out
        return {
            "instance": out.instance.copy(),
            "plan": out.plan.copy(),
            "action_mask": out.action_mask.copy(),
        }

    def _end_episodes(self, finals: Finals, infos: list[dict[str, Any]]) -> None:
        """Fill the infos of the environments that ended, and begin their statistics anew."""
        ended, index = finals.arrays, finals.index
        seconds = round(time.time() - self._start, 6)
        columns = zip(
            index.tolist(),
            ended.instance,
            ended.plan,
            ended.action_mask,
            (ended.truncated & ~ended.terminated).tolist(),
            self.episode_returns[index].tolist(),
            self.episode_lengths[index].tolist(),
            *(getattr(ended, name).tolist() for name in _SCALARS),
            strict=True,
        )
        for env, instance, plan, mask, cut, total, length, score, solved, wrong, illegal in columns:
            infos[env] = {
                "terminal_observation": {"instance": instance, "plan": plan, "action_mask": mask},
                "TimeLimit.truncated": cut,
                "episode": {"r": total, "l": length, "t": seconds},
                "is_success": solved,
                "score": score,
                "solved": solved,
                "violations": wrong,
                "illegal_action": illegal,
            }
        self.episode_returns[index] = 0
        self.episode_lengths[index] = 0
