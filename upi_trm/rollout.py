"""Parallel rollouts: E plans edited side by side by the current policy (UPI-TRM Sec. 3).

Input: a `PlanEditVectorEnv` and edit probabilities. Output: `Transitions`, which `trainer.py`
replays for the value regression and looks ahead from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plan_envs.domain import Int8Array
from plan_envs.vector_env import PlanEditVectorEnv
from trm.experiments.states import EditPolicy, sample_edits, to_states
from upi_trm.curriculum import Curriculum, Starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Edits of E plans over T steps; arrays of shape [step, plan, ...]."""

    instance: Int8Array
    """Full instances, hidden boards included, shape [step, plan, instance]."""
    plan: Int8Array
    """Plan before the edit, shape [step, plan, cell]."""
    next_plan: Int8Array
    """Plan after the edit and before any reset, shape [step, plan, cell]."""
    score: NDArray[np.float32]
    """Score before the edit."""
    next_score: NDArray[np.float32]
    """Score after the edit."""
    action: NDArray[np.int32]
    reward: NDArray[np.float32]
    """Folded reward (`plan_envs.domain.edit_reward`)."""
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    solved: NDArray[np.bool_]
    """The edit solved the plan."""
    advantage: NDArray[np.float32]
    """Centred advantage of the edit under the policy that made it; 0 where it was not looked up."""


class Roller:
    """Keeps E plans going between iterations; finished ones restart on an instance drawn anew."""

    def __init__(self, env: PlanEditVectorEnv, curriculum: Curriculum, *, seed: int) -> None:
        """`env` must use AutoresetMode.DISABLED: truncation bootstraps from the last state."""
        self.env, self.curriculum = env, curriculum
        self.starts = curriculum.draw(env.num_envs)
        options = {"instance": self.starts.instances, "plan": self.starts.plans}
        self.observation, self.info = env.reset(seed=seed, options=options)

    def collect(
        self, policy: EditPolicy, *, steps: int, generator: torch.Generator, device: torch.device
    ) -> Transitions:
        """Edit every plan `steps` times with actions sampled from `policy`."""
        rows: list[dict[str, Any]] = []
        for _ in range(steps):
            before, before_info = self.observation, self.info
            states = to_states(before["instance"], before["plan"], before["action_mask"], device)
            probability = policy(states).cpu()
            action = sample_edits(probability, generator).numpy()
            after, reward, terminated, truncated, info = self.env.step(action)
            done = terminated | truncated
            rows.append(
                {
                    "instance": self.starts.instances.copy(),
                    "plan": before["plan"],
                    "next_plan": after["plan"],
                    "score": before_info["score"].astype(np.float32),
                    "next_score": info["score"].astype(np.float32),
                    "action": action.astype(np.int32),
                    "reward": reward.astype(np.float32),
                    "terminated": terminated,
                    "truncated": truncated,
                    "solved": info["solved"] & terminated,
                }
            )
            self.observation, self.info = after, info
            if done.any():
                self._restart(done, info["solved"])
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return Transitions(**stacked, advantage=np.zeros_like(stacked["reward"]))

    def _restart(self, done: NDArray[np.bool_], solved: NDArray[np.bool_]) -> None:
        self.curriculum.update(self.starts.distance[done], solved[done])
        drawn = self.curriculum.draw(int(done.sum()))
        self.starts.instances[done] = drawn.instances
        self.starts.plans[done] = drawn.plans
        self.starts.distance[done] = drawn.distance
        options = {"instance": self.starts.instances, "plan": self.starts.plans}
        self.observation, self.info = self.env.reset(options={"reset_mask": done, **options})

    def state(self) -> dict[str, Any]:
        """Environment and curriculum, for a checkpoint."""
        return {
            "env": self.env.get_state(),
            "curriculum": self.curriculum.state(),
            "starts": self.starts._asdict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.observation, self.info = self.env.set_state(state["env"])
        self.starts = Starts(**{name: rows.copy() for name, rows in state["starts"].items()})
        self.curriculum.load_state(state["curriculum"])


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The `rollout` section of a recipe."""

    plans: int = 64
    """E: plans edited in parallel, at least 2."""
    steps: int = 8
    """Edits of each plan in one iteration."""

    def __post_init__(self) -> None:
        """Check ranges: an iteration needs a state to distil on and one to measure on."""
        for name, least in (("plans", 2), ("steps", 1)):
            if getattr(self, name) < least:
                given = getattr(self, name)
                raise ValueError(f"rollout.{name} must be at least {least}, got {given}")


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """[step, plan, ...] -> [step * plan, ...]."""
    return array.reshape(-1, *array.shape[2:])
