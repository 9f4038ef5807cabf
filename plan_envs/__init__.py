"""Puzzles as plan-editing MDPs: rules, instances, checkers, Gymnasium environments, evaluation.

Importing the package registers the environments of `ENV_IDS`;
`gym.make("plan_envs:PlanEdit/Sudoku9x9-v0")` imports it by itself. The other public names load
their modules on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from plan_envs.catalogue import TASKS, Task, resolve_task
    from plan_envs.evaluation import EvalReport, evaluate_policy, reference_policies
    from plan_envs.gym_envs import PlanEditEnv, PlanEditVectorEnv
    from plan_envs.instances import InstanceSet
    from plan_envs.sudoku import Sudoku

__all__ = [
    "ENV_IDS",
    "TASKS",
    "EvalReport",
    "InstanceSet",
    "PlanEditEnv",
    "PlanEditVectorEnv",
    "Sudoku",
    "Task",
    "evaluate_policy",
    "reference_policies",
    "resolve_task",
]

ENV_IDS = {
    "PlanEdit/Sudoku4x4-v0": ("sudoku4x4", 16),
    "PlanEdit/Sudoku4x4Hard-v0": ("sudoku4x4-hard", 16),
    "PlanEdit/Sudoku6x6-v0": ("sudoku6x6", 36),
    "PlanEdit/Sudoku9x9-v0": ("sudoku9x9", 81),
    "PlanEdit/Sudoku16x16-v0": ("sudoku16x16", 256),
}
"""Environment id -> task of `plan_envs.catalogue` and horizon."""

_HOMES = {
    "TASKS": "catalogue",
    "EvalReport": "evaluation",
    "InstanceSet": "instances",
    "PlanEditEnv": "gym_envs",
    "PlanEditVectorEnv": "gym_envs",
    "Sudoku": "sudoku",
    "Task": "catalogue",
    "evaluate_policy": "evaluation",
    "reference_policies": "evaluation",
    "resolve_task": "catalogue",
}

for _env_id, (_task, _horizon) in ENV_IDS.items():
    if _env_id not in registry:
        register(
            id=_env_id,
            entry_point="plan_envs.gym_envs:PlanEditEnv",
            vector_entry_point="plan_envs.gym_envs:PlanEditVectorEnv",
            max_episode_steps=_horizon,
            kwargs={"task": _task},
        )


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name in _HOMES:
        return getattr(import_module(f"plan_envs.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'plan_envs' has no attribute {name!r}")
