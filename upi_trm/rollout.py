"""Parallel rollouts: E plans edited side by side by the current policy (UPI-TRM Sec. 3).

Input: a `PlanEditVectorEnv` and edit probabilities. Output: `Transitions`, which `trainer.py`
replays for the value regression and looks ahead from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Int8Array
from plan_envs.gym_envs import PlanEditVectorEnv
from trm.device import Placement
from trm.model import StateBatch, TinyRecursiveModel
from upi_trm.curriculum import Curriculum, Starts
from upi_trm.improvement import edit_logits, sample_edits

EditPolicy = Callable[[StateBatch], Float[Tensor, "batch action"]]
"""States -> probabilities over edits, zero where illegal."""


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


def to_states(
    instances: Int8Array, plans: Int8Array, masks: Int8Array, device: torch.device
) -> StateBatch:
    """What learners see of instances, plans and masks -> a batch of states on the device."""
    return StateBatch(
        instance=torch.from_numpy(np.ascontiguousarray(instances)).to(device),
        plan=torch.from_numpy(np.ascontiguousarray(plans)).to(device),
        mask=torch.from_numpy(np.ascontiguousarray(masks)).to(device),
    )


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


@dataclass(frozen=True)
class GreedyPolicy:
    """The most probable edit of pi_phi, the first one on a tie; draws no random numbers."""

    model: TinyRecursiveModel
    placement: Placement
    chunk: int = 1024

    @torch.no_grad()
    def __call__(
        self,
        instances: Int8Array,
        plans: Int8Array,
        mask: Int8Array,
        rng: np.random.Generator,
    ) -> NDArray[np.int32]:
        """Shapes [batch, observed], [batch, cell], [batch, action] -> actions, shape [batch]."""
        device = self.placement.torch_device
        actions = []
        for start in range(0, len(plans), self.chunk):
            part = slice(start, start + self.chunk)
            states = to_states(instances[part], plans[part], mask[part], device)
            with self.placement.autocast():
                actions.append(edit_logits(self.model, states).argmax(dim=1).cpu().numpy())
        return np.concatenate(actions).astype(np.int32)
