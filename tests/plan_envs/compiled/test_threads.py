"""Several threads do what one does, bit for bit, and nothing is lost when one of them fails."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from plan_envs.catalogue import pool_of, resolve_task
from plan_envs.compiled.threads import in_shares, num_threads, set_num_threads
from plan_envs.sudoku.rules import Sudoku
from plan_envs.testing import random_states
from plan_envs.vector_env import PlanEditVectorEnv

TASKS = [
    pytest.param("sudoku9x9", {}, id="sudoku-fill-constraint"),
    pytest.param("sudoku9x9", {"edits": "overwrite", "mask": "givens"}, id="sudoku-overwrite"),
    pytest.param("nqueens8", {}, id="queens"),
    pytest.param("maze10", {"edits": "full", "shaping": "geodesic"}, id="maze"),
    pytest.param("arc-tiny", {}, id="arc"),
]
RULES = [
    pytest.param({}, id="fill-constraint"),
    pytest.param({"edits": "overwrite", "mask": "givens"}, id="overwrite-givens"),
]


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    set_num_threads(1)


def _play(
    threads: int | None, mode: str, rules: dict[str, Any], task: str = "sudoku9x9"
) -> list[Any]:
    """Everything that 800 environments return in 16 steps, part of the actions illegal."""
    if threads is not None:
        set_num_threads(threads)
    env = PlanEditVectorEnv(task, num_envs=800, autoreset_mode=mode, max_episode_steps=6, **rules)
    num_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    seen: list[Any] = [env.reset(seed=0)]
    for _ in range(16):
        legal = env.sample_legal()
        actions = np.where(rng.random(800) < 0.7, legal, rng.integers(0, num_actions, 800))
        *outcome, infos = env.step(actions)
        seen.append((legal, *outcome, {**infos, "final_obs": list(infos.get("final_obs", ()))}))
    return seen


@pytest.mark.parametrize(("task", "rules"), TASKS)
@pytest.mark.parametrize("mode", [pytest.param("NextStep", marks=pytest.mark.slow), "SameStep"])
def test_environments_do_not_notice_the_number_of_threads(
    mode: str, task: str, rules: dict[str, Any]
) -> None:
    expected = _play(1, mode, rules, task)
    assert any("final_info" in step[-1] for step in expected) == (mode == "SameStep")
    for threads in (2, 3):
        np.testing.assert_equal(_play(threads, mode, rules, task), expected)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("with_plans", [False, True])
def test_successors_do_not_notice_the_number_of_threads(
    rules: dict[str, Any], with_plans: bool
) -> None:
    domain = Sudoku(9, **rules)
    puzzles = pool_of(resolve_task("sudoku9x9"), "train").instances[:300]
    states = random_states(domain, puzzles, np.random.default_rng(0), max_edits=40)
    states.plans[75] = states.plans[150] = puzzles[150]  # where shares meet
    states.plans[149] = states.plans[151] = 0
    states.plans[149:152, ::2] = 5  # without legal edit under the constraint mask
    outcomes = []
    for threads in (1, 2, 3, 4):
        set_num_threads(threads)
        found = domain.successors(states.instances, states.plans, with_plans=with_plans)
        outcomes.append({name: getattr(found, name) for name in type(found).__slots__})
    for outcome in outcomes[1:]:
        np.testing.assert_equal(outcome, outcomes[0])


def test_a_refused_step_changes_no_share() -> None:
    set_num_threads(2)
    env = PlanEditVectorEnv("sudoku9x9", num_envs=600, autoreset_mode="Disabled")
    env.reset(seed=0)
    before = env.get_state()
    actions = env.sample_legal()
    before["sampler"] = env.get_state()["sampler"]
    actions[599] = 729
    with pytest.raises(ValueError, match="729 in environment 599"):
        env.step(actions)
    np.testing.assert_equal(env.get_state(), before)
    env.set_state({**before, "finished": np.arange(600) == 599})
    with pytest.raises(ResetNeeded, match="environment 599"):
        env.step(env.sample_legal())


def test_two_callers_at_once_get_what_each_gets_alone() -> None:
    expected = [_play(1, mode, {}) for mode in ("NextStep", "SameStep")]
    set_num_threads(2)
    with ThreadPoolExecutor(2) as callers:
        found = list(callers.map(lambda mode: _play(None, mode, {}), ("NextStep", "SameStep")))
    np.testing.assert_equal(found, expected)


def test_a_forked_child_has_helpers_of_its_own() -> None:
    script = """
import os
from plan_envs.compiled.threads import in_shares, set_num_threads
set_num_threads(2)
work = lambda _, first, stop: stop - first
assert in_shares(work, (), 10, 1) == [5, 5]
child = os.fork()
assert in_shares(work, (), 10, 1) == [5, 5]
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    subprocess.run(command, check=True)


def test_shares_cover_the_range_in_order() -> None:
    set_num_threads(3)
    assert in_shares(lambda _, *bounds: bounds, (), 10, 2) == [(0, 3), (3, 6), (6, 10)]
    assert in_shares(lambda _, *bounds: bounds, ("x",), 7, 3) == [("x", 0, 3), ("x", 3, 7)]
    assert in_shares(lambda _, *bounds: bounds, (), 7, 4) == [(0, 7)]
    assert in_shares(lambda _, *bounds: bounds, (), 0, 4) == [(0, 0)]


def test_the_first_work_of_new_helpers_is_waited_for() -> None:
    def slow(_: Any, first: int, stop: int) -> tuple[int, int]:
        time.sleep(0.001)
        return first, stop

    for _ in range(100):
        set_num_threads(2)
        assert in_shares(slow, (), 10, 1) == [(0, 5), (5, 10)]


def test_an_error_in_any_share_is_raised() -> None:
    def fails_at(_: Any, place: int, first: int, stop: int) -> None:
        if first <= place < stop:
            raise KeyError(place)

    set_num_threads(2)
    for place in (1, 9):
        with pytest.raises(KeyError):
            in_shares(fails_at, (place,), 10, 1)


def test_less_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        set_num_threads(0)
    assert num_threads() == 1
