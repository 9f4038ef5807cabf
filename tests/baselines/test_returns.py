"""SB3's zero bootstrap of absorption gives the returns of the paper's convention (law test).

The paper's: Phi(s_abs) = C_max and V(s_abs) = -C_max, and the reward of the edit that is absorbed
is r0 + gamma C_max - Phi(s). Ours folds gamma V(s_abs) into that reward, so that SB3's 0 is right.
The returns are recomputed here from boards and scores, by the paper's convention alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from baselines_cases import make_env, tiny_model
from stable_baselines3.common.callbacks import BaseCallback

from baselines.algorithms import A2cConfig, DqnConfig, PpoConfig, make_algorithm
from baselines.vec_adapter import PlanEditVecEnv

GAMMA, PLANS, STEPS = 0.9, 6, 12
TASKS = {"sudoku4x4-hard": 5, "nqueens8": 3, "maze10": 6}
"""With horizons that cut off some episodes; others end by STOP, a dead plan or a solution."""


class Witness(BaseCallback):
    """Writes down every edit as the environments make it: boards before and after, and how."""

    def __init__(self, env: PlanEditVecEnv) -> None:
        super().__init__()
        self.env, self.edits = env, []  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        before, infos = self.model._last_obs, self.locals["infos"]  # type: ignore[attr-defined]
        after = {key: value.copy() for key, value in self.locals["new_obs"].items()}
        for row, info in enumerate(infos):
            for key, value in info.get("terminal_observation", {}).items():
                after[key][row] = value
        ended = np.array(["episode" in info for info in infos])
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        self.edits.append((before, after, ended & ~cut, cut))
        return True


def phi_of(env: PlanEditVecEnv, observation: dict[str, Any]) -> Any:
    domain = env.vector_env.task.domain
    score = domain.check(observation["instance"], observation["plan"]).score
    return np.clip(score, 0, domain.spec.max_score) / domain.spec.max_score


def raw_step(env: PlanEditVecEnv, edit: Any) -> tuple[Any, Any]:
    """The paper's reward of each edit, and the value of the absorbing state behind it."""
    before, after, absorbed, _ = edit
    domain = env.vector_env.task.domain
    solved = domain.check(after["instance"], after["plan"]).solved & absorbed
    next_phi = np.where(absorbed, 1.0, phi_of(env, after))
    return solved + GAMMA * next_phi - phi_of(env, before), -1.0


def build(algorithm: Any, section: Any, name: str) -> tuple[Any, PlanEditVecEnv]:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    env = make_env(name, plans=PLANS, limit=TASKS[name], gamma=GAMMA)
    env.seed(2)
    sb3 = make_algorithm(
        algorithm,
        section,
        env,
        tiny_model(env.vector_env.task),
        steps=STEPS,
        gamma=GAMMA,
        final_learning_rate=1.0,
        generator=torch.Generator().manual_seed(4),
        device=torch.device("cpu"),
    )
    return sb3, env


def value_of(sb3: Any) -> Callable[[dict[str, Any]], Any]:
    """V of observations, before anything is learned."""
    weights = {name: tensor.clone() for name, tensor in sb3.policy.state_dict().items()}

    def value(observation: dict[str, Any]) -> Any:
        sb3.policy.load_state_dict(weights)
        tensors = {key: torch.from_numpy(array) for key, array in observation.items()}
        with torch.no_grad():
            return sb3.policy.predict_values(tensors).numpy()[:, 0]

    return value


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("algorithm", "section"),
    [("a2c", A2cConfig()), ("ppo", PpoConfig(batch_size=12, passes=1, gae_decay=1.0))],
)
def test_returns_of_rollouts_are_the_papers(name: str, algorithm: str, section: Any) -> None:
    sb3, env = build(algorithm, section, name)
    value = value_of(sb3)
    witness = Witness(env)
    sb3.learn(PLANS * STEPS, callback=witness, log_interval=None)
    # The update has flattened the buffer plan by plan.
    returns = sb3.rollout_buffer.returns.reshape(PLANS, STEPS)
    # Backwards, by the paper's rewards: V(s_abs) = -1, V(s_T) where the horizon cut.
    following = value(witness.edits[-1][1])
    for step in reversed(range(STEPS)):
        edit = witness.edits[step]
        _, after, absorbed, cut = edit
        reward, absorbing = raw_step(env, edit)
        following = np.where(cut, value(after), following)
        following = np.where(absorbed, absorbing, following)
        following = reward + GAMMA * following
        assert np.allclose(returns[:, step], following, atol=1e-5)
    assert any(edit[2].any() for edit in witness.edits)
    assert any(edit[3].any() for edit in witness.edits)


@pytest.mark.parametrize("name", TASKS)
def test_targets_of_dqn_are_the_papers(name: str) -> None:
    section = DqnConfig(replay_size=PLANS * STEPS, learning_starts=10**6)
    sb3, env = build("dqn", section, name)
    witness = Witness(env)
    sb3.learn(PLANS * STEPS, callback=witness, log_interval=None)
    replay = sb3.replay_buffer
    for step, edit in enumerate(witness.edits):
        before, after, absorbed, _ = edit
        for key, rows in before.items():
            assert np.array_equal(replay.observations[key][step], rows)
            assert np.array_equal(replay.next_observations[key][step], after[key])
        # What `train` computes: r + (1 - done) gamma max Q, done not counting what the horizon cut.
        done = replay.dones[step] * (1 - replay.timeouts[step])
        tensors = {key: torch.from_numpy(rows) for key, rows in after.items()}
        with torch.no_grad():
            best = sb3.q_net_target(tensors).max(dim=1).values.numpy()
        reward, absorbing = raw_step(env, edit)
        expected = reward + GAMMA * np.where(absorbed, absorbing, best)
        assert np.allclose(replay.rewards[step] + (1 - done) * GAMMA * best, expected, atol=1e-5)
    assert any(edit[2].any() for edit in witness.edits)
    assert any(edit[3].any() for edit in witness.edits)
