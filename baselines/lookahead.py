"""UPI-TRM's exact lookahead inside PPO: what the ablation puts in the place of GAE.

`ExactAdvantages` is a callback: at the end of a rollout it replaces the advantages in SB3's buffer
by A(s, a) = Q(s, a) - E_{b~pi}[Q(s, b)], Q(s, a) = r + gamma V(s') over every legal edit (UPI-TRM
Eq. 9, Sec. 3, phase 2), with the critic that collected the rollout. The critic's own targets, the
lambda-returns, stay, and so do SB3's collecting and training.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from baselines.vec_adapter import PlanEditVecEnv

_CHUNK = 4096
"""States in one pass of the network."""


class ExactAdvantages(BaseCallback):
    """Advantages by looking one edit ahead, for PPO and MaskablePPO.

    An edit that ends an episode counts with its folded reward, one that the horizon cuts off with
    V(s'), as everywhere.
    """

    def __init__(self, env: PlanEditVecEnv) -> None:
        """Look ahead in `env`, by its rewards and rules."""
        super().__init__()
        self._env = env

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        states = {key: _joined(array) for key, array in buffer.observations.items()}
        actions = _joined(buffer.actions).reshape(-1).astype(np.int64)
        advantage = self.advantages(states)[np.arange(len(actions)), actions]
        buffer.advantages[:] = advantage.reshape(buffer.advantages.shape)

    def advantages(self, states: dict[str, NDArray[Any]]) -> Float[np.ndarray, "batch action"]:
        """A(s, a) of every legal edit, 0 at the others; E_{a~pi}[A] = 0 up to rounding.

        Args:
            states: observations, one a row.
        """
        domain = self._env.vector_env.task.domain
        options = self._env.vector_env.engine_options
        instances, plans = (states[key].astype(np.int8) for key in ("instance", "plan"))
        found = domain.successors(
            instances,
            plans,
            gamma=options.gamma,
            reward=options.reward,
            dead_end=options.dead_end,
        )
        values = found.reward.astype(np.float32)
        live = np.flatnonzero(~found.terminated)
        if len(live):
            next_instances, next_plans = instances[found.state[live]], found.plan[live]
            following = {
                "instance": next_instances,
                "plan": next_plans,
                "action_mask": domain.action_mask(next_instances, next_plans),
            }
            values[live] += options.gamma * self._over_chunks(following, self._value)
        q = np.zeros(states["action_mask"].shape, np.float32)
        q[found.state, found.action] = values
        policy = self._over_chunks(states, self._policy)
        centred = q - (policy * q).sum(axis=1, keepdims=True)
        return np.where(states["action_mask"] > 0, centred, np.float32(0))

    @torch.no_grad()
    def _over_chunks(self, states: dict[str, NDArray[Any]], network: Any) -> NDArray[np.float32]:
        device, count = self.model.device, len(states["plan"])
        answers = [
            network(
                {
                    key: torch.as_tensor(array[start : start + _CHUNK], device=device)
                    for key, array in states.items()
                }
            )
            for start in range(0, count, _CHUNK)
        ]
        joined: NDArray[np.float32] = torch.cat(answers).cpu().numpy()
        return joined

    def _value(self, observation: Any) -> torch.Tensor:
        policy: Any = self.model.policy
        value: torch.Tensor = policy.predict_values(observation)[:, 0]
        return value

    def _policy(self, observation: Any) -> torch.Tensor:
        policy: Any = self.model.policy
        probabilities: torch.Tensor = policy.get_distribution(observation).distribution.probs
        return probabilities


def _joined(array: NDArray[Any]) -> NDArray[Any]:
    """Shape [step, plan, ...] -> [step * plan, ...]."""
    return array.reshape(-1, *array.shape[2:])
