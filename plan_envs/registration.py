"""The Gymnasium ids of this package; importing `plan_envs` registers them without loading rules."""

from typing import Final

from gymnasium.envs.registration import register, registry

ENV_IDS: Final = {
    "PlanEdit/Sudoku4x4-v0": ("sudoku4x4", 16),
    "PlanEdit/Sudoku4x4Hard-v0": ("sudoku4x4-hard", 16),
    "PlanEdit/Sudoku6x6-v0": ("sudoku6x6", 36),
    "PlanEdit/Sudoku9x9-v0": ("sudoku9x9", 81),
    "PlanEdit/Sudoku16x16-v0": ("sudoku16x16", 256),
    "PlanEdit/NQueens8-v0": ("nqueens8", 8),
    "PlanEdit/NQueens8Classes-v0": ("nqueens8-classes", 8),
    "PlanEdit/Maze10-v0": ("maze10", 100),
    "PlanEdit/Maze30-v0": ("maze30", 900),
    "PlanEdit/ARC-v0": ("arc", 903),
    "PlanEdit/ARCTiny-v0": ("arc-tiny", 28),
    "PlanEdit/Repair-v0": ("repair", 24),
    "PlanEdit/RepairTiny-v0": ("repair-tiny", 12),
}
"""Environment id -> task of `plan_envs.catalogue` and horizon."""


def register_env(env_id: str, task_name: str, horizon: int) -> None:
    """Register an id with Gymnasium once; the rules load when an environment is made."""
    if env_id not in registry:
        register(
            id=env_id,
            entry_point="plan_envs.gym_envs:PlanEditEnv",
            vector_entry_point="plan_envs.gym_envs:PlanEditVectorEnv",
            max_episode_steps=horizon,
            kwargs={"task": task_name},
        )
