"""The Gymnasium environments by the name under which the documentation imports them."""

from plan_envs.env import PlanEditEnv
from plan_envs.vector_env import PlanEditVectorEnv

__all__ = ["PlanEditEnv", "PlanEditVectorEnv"]
