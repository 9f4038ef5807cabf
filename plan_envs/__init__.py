"""Puzzles as plan-editing MDPs: rules, instances, checkers, Gymnasium environments, evaluation.

Importing the package registers the environments; `gym.make("plan_envs:PlanEdit/Sudoku9x9-v0")`
imports it by itself. Heavy modules load on first use.
"""

from gymnasium.envs.registration import register, registry

__all__ = ["ENV_IDS"]

ENV_IDS = {
    "PlanEdit/Sudoku4x4-v0": ("sudoku4x4", 16),
    "PlanEdit/Sudoku4x4Hard-v0": ("sudoku4x4-hard", 16),
    "PlanEdit/Sudoku6x6-v0": ("sudoku6x6", 36),
    "PlanEdit/Sudoku9x9-v0": ("sudoku9x9", 81),
    "PlanEdit/Sudoku16x16-v0": ("sudoku16x16", 256),
}
"""Environment id -> task of `plan_envs.catalogue` and horizon."""

for _env_id, (_task, _horizon) in ENV_IDS.items():
    if _env_id not in registry:
        register(
            id=_env_id,
            entry_point="plan_envs.gym_envs:PlanEditEnv",
            vector_entry_point="plan_envs.gym_envs:PlanEditVectorEnv",
            max_episode_steps=_horizon,
            kwargs={"task": _task},
        )
