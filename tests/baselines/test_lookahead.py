"""Exact lookahead inside PPO: its advantages are those of single steps of the environment."""

from typing import Any

import numpy as np
import pytest
import torch
from baselines_cases import make_env, tiny_model
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from baselines.algorithms import Algorithm, PpoConfig, make_algorithm
from baselines.lookahead import ExactAdvantages
from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.env import PlanEditEnv

PLANS, STEPS, GAMMA = 4, 6, 0.9


def build(name: str, algorithm: Algorithm) -> tuple[Any, PlanEditVecEnv]:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    env = make_env(name, plans=PLANS, gamma=GAMMA, limit=5)
    sb3 = make_algorithm(
        algorithm,
        PpoConfig(batch_size=4, passes=1),
        env,
        tiny_model(env.vector_env.task),
        steps=STEPS,
        gamma=GAMMA,
        final_learning_rate=1.0,
        generator=torch.Generator().manual_seed(1),
        device=torch.device("cpu"),
    )
    return sb3, env


class Buffer(BaseCallback):
    """Keeps what the rollout buffer held before and after the lookahead."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        names = ("advantages", "returns", "actions", "rewards", "values")
        self.kept.append({name: getattr(buffer, name).copy() for name in names})
        self.kept[-1]["observations"] = {k: v.copy() for k, v in buffer.observations.items()}


def by_single_steps(sb3: Any, env: PlanEditVecEnv, instance: Any, plan: Any, mask: Any) -> Any:
    """Q(s, a) of every legal edit: one step of a `PlanEditEnv` and the critic."""
    single = PlanEditEnv(env.vector_env.task, gamma=GAMMA, max_episode_steps=None)
    single.reset(seed=0)
    state = single.get_state()
    state["instance"][0], state["plan"][0] = instance, plan
    values = np.zeros(len(mask), np.float64)
    for action in np.flatnonzero(mask).tolist():
        single.set_state(state)
        after, reward, terminated, _, _ = single.step(action)
        values[action] = reward
        if not terminated:
            tensors = {key: torch.from_numpy(board[None]) for key, board in after.items()}
            with torch.no_grad():
                values[action] += GAMMA * sb3.policy.predict_values(tensors).item()
    return values


@pytest.mark.parametrize("algorithm", ["ppo", "maskable-ppo"])
@pytest.mark.parametrize("name", ["sudoku4x4-hard", "nqueens8", "maze10"])
def test_advantages_are_those_of_single_steps_centred_under_the_policy(
    name: str, algorithm: Algorithm
) -> None:
    sb3, env = build(name, algorithm)
    weights = {key: tensor.clone() for key, tensor in sb3.policy.state_dict().items()}
    ahead, before, after = ExactAdvantages(env), Buffer(), Buffer()
    sb3.learn(PLANS * STEPS, callback=CallbackList([before, ahead, after]), log_interval=None)
    sb3.policy.load_state_dict(weights)  # the critic and the actor of the rollout
    (gae,), (exact,) = before.kept, after.kept
    assert not np.allclose(gae["advantages"], exact["advantages"], atol=1e-3)
    for key in ("returns", "rewards", "values", "actions"):
        assert np.array_equal(gae[key], exact[key])
    boards = exact["observations"]
    for step, plan in ((0, 0), (1, 3), (STEPS - 1, 1)):
        state = {key: board[step, plan].astype(np.int8) for key, board in boards.items()}
        mask = state["action_mask"] > 0
        q = by_single_steps(sb3, env, state["instance"], state["plan"], mask)
        tensors = {key: torch.from_numpy(board[None]) for key, board in state.items()}
        with torch.no_grad():
            policy = sb3.policy.get_distribution(tensors).distribution.probs.numpy()[0]
        expected = np.where(mask, q - (policy * q).sum(), 0)
        rows = {key: board[step, plan][None] for key, board in boards.items()}
        found = ahead.advantages(rows)[0]
        assert np.allclose(found, expected, atol=1e-5)
        assert abs((policy * found).sum()) < 1e-6
        action = int(exact["actions"].reshape(STEPS, PLANS)[step, plan])
        assert exact["advantages"][step, plan] == pytest.approx(found[action], abs=1e-6)
