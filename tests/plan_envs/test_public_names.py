"""The public names of the package: what `dir` lists, and where documentation imports from."""

import pytest

import plan_envs
from plan_envs import gym_envs
from plan_envs.env import PlanEditEnv
from plan_envs.vector_env import PlanEditVectorEnv


def test_dir_lists_the_public_names_and_each_of_them_can_be_had() -> None:
    assert dir(plan_envs) == sorted(plan_envs.__all__)
    for name in dir(plan_envs):
        assert getattr(plan_envs, name) is not None


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'plan_envs' has no attribute 'nothing'"):
        plan_envs.nothing  # noqa: B018


def test_the_environments_are_found_where_the_documentation_imports_them() -> None:
    assert gym_envs.PlanEditEnv is plan_envs.PlanEditEnv is PlanEditEnv
    assert gym_envs.PlanEditVectorEnv is plan_envs.PlanEditVectorEnv is PlanEditVectorEnv
