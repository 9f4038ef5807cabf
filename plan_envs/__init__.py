"""Puzzles as plan-editing MDPs: rules, instances, checkers, Gymnasium environments, evaluation.

Importing the package registers the environments of `ENV_IDS`;
`gym.make("plan_envs:PlanEdit/Sudoku9x9-v0")` imports it by itself. The other public names load
their modules on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plan_envs.registration import ENV_IDS, register_env

if TYPE_CHECKING:
    from plan_envs.arc.rules import Arc as Arc
    from plan_envs.catalogue import TASKS as TASKS
    from plan_envs.catalogue import Task as Task
    from plan_envs.catalogue import register_task as register_task
    from plan_envs.catalogue import resolve_task as resolve_task
    from plan_envs.env import PlanEditEnv as PlanEditEnv
    from plan_envs.evaluation import EvalReport as EvalReport
    from plan_envs.evaluation import evaluate_policy as evaluate_policy
    from plan_envs.evaluation import reference_policies as reference_policies
    from plan_envs.instances import InstanceSet as InstanceSet
    from plan_envs.maze.rules import Maze as Maze
    from plan_envs.queens.rules import Queens as Queens
    from plan_envs.repair.rules import Repair as Repair
    from plan_envs.sudoku.rules import Sudoku as Sudoku
    from plan_envs.vector_env import PlanEditVectorEnv as PlanEditVectorEnv

_HOMES = {
    "TASKS": "catalogue",
    "Arc": "arc.rules",
    "EvalReport": "evaluation",
    "InstanceSet": "instances",
    "Maze": "maze.rules",
    "PlanEditEnv": "env",
    "PlanEditVectorEnv": "vector_env",
    "Queens": "queens.rules",
    "Repair": "repair.rules",
    "Sudoku": "sudoku.rules",
    "Task": "catalogue",
    "evaluate_policy": "evaluation",
    "reference_policies": "evaluation",
    "register_task": "catalogue",
    "resolve_task": "catalogue",
}

__all__ = ["ENV_IDS", *_HOMES]

for _env_id, (_task, _horizon) in ENV_IDS.items():
    register_env(_env_id, _task, _horizon)


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name in _HOMES:
        return getattr(import_module(f"plan_envs.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'plan_envs' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
