"""The native adapter equals SB3's own way of running our environments, and passes SB3's checks."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from baselines_cases import make_env, pool_of
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecMonitor

from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.catalogue import resolve_task
from plan_envs.env import PlanEditEnv
from plan_envs.vector_env import PlanEditVectorEnv

TASKS = {"sudoku4x4-hard": 7, "sudoku9x9": 14, "nqueens8": 4, "maze10": 9}
"""With horizons at which some episodes are cut off and others end by themselves."""
PLANS = 5


def dummy(name: str, limit: int) -> DummyVecEnv:
    """The same environments, one by one, as SB3 runs them."""
    task = resolve_task(name)
    pool = pool_of(task)

    def make() -> Any:
        return Monitor(PlanEditEnv(task, instances=pool, max_episode_steps=limit))

    return DummyVecEnv([make] * PLANS)


def actions_for(env: PlanEditVecEnv, rng: np.random.Generator) -> NDArray[np.int64]:
    """Mostly legal, sometimes anything."""
    legal = env.env_method("sample_legal")
    anything = rng.integers(env.action_space.n, size=PLANS)  # type: ignore[attr-defined]
    return np.where(rng.random(PLANS) < 0.1, anything, legal)


def assert_same(found: Any, expected: Any, place: str) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and np.array_equal(found, expected), place
    else:
        assert found == expected, place


@pytest.mark.parametrize("name", TASKS)
def test_it_equals_sb3s_dummy_vec_env_in_every_step(name: str) -> None:
    ours = make_env(name, plans=PLANS, limit=TASKS[name])
    theirs = dummy(name, TASKS[name])
    for env in (ours, theirs):
        env.seed(11)
    assert_same(ours.reset(), dict(theirs.reset()), "reset")
    assert_same(ours.reset_infos[2], theirs.reset_infos[2], "reset_infos")
    rng, cut, absorbed = np.random.default_rng(0), 0, 0
    for step in range(60):
        actions = actions_for(ours, rng)
        assert np.array_equal(get_action_masks(ours), get_action_masks(theirs))
        found, expected = ours.step(actions), theirs.step(actions)
        for part in range(3):
            assert_same(found[part], expected[part], f"{step}, part {part}")
        for env in range(PLANS):
            one, other = found[3][env], expected[3][env]
            if "episode" not in other:
                assert one == {}
                continue
            # Monitor rounds, and nobody's clock agrees.
            assert one["episode"].pop("r") == pytest.approx(other["episode"].pop("r"), abs=1e-5)
            assert one.pop("is_success") == other["solved"]
            for info in (one, other):
                del info["episode"]["t"]
            cut += other["TimeLimit.truncated"]
            absorbed += not other["TimeLimit.truncated"]
            mask = other.pop("action_mask")
            assert_same(one, other, f"{step}, env {env}")
            assert np.array_equal(mask, one["terminal_observation"]["action_mask"])
    assert cut and absorbed


def test_sb3s_monitors_agree_on_episode_statistics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the statistics are there already
        env = VecMonitor(make_env("maze10", plans=PLANS, limit=6))
    env.seed(0)
    env.reset()
    rng, ended = np.random.default_rng(1), 0
    inner: Any = env.venv
    for _ in range(30):
        before = inner.episode_returns.copy(), inner.episode_lengths.copy()
        _, rewards, dones, infos = env.step(actions_for(inner, rng))
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == np.float32(before[0][i] + rewards[i])
            assert infos[i]["episode"]["l"] == before[1][i] + 1
            ended += 1
    assert ended > PLANS


def test_sb3s_checkers_have_no_complaint() -> None:
    env = PlanEditEnv("sudoku4x4", instances=pool_of(resolve_task("sudoku4x4")))
    check_env(env, warn=True)  # warnings are errors here
    checked = VecCheckNan(make_env("sudoku4x4", plans=PLANS), raise_exception=True)
    checked.reset()
    for _ in range(20):
        checked.step(checked.env_method("sample_legal"))


def test_arrays_that_a_step_returned_are_never_changed_by_later_ones() -> None:
    env = make_env("sudoku4x4", plans=PLANS)
    kept = [env.reset()]
    for _ in range(12):
        observation, rewards, dones, infos = env.step(env.env_method("sample_legal"))
        finals = [info["terminal_observation"] for info in infos if info]
        kept += [observation, {"rewards": rewards, "dones": dones}, *finals]
    copies = [{key: value.copy() for key, value in one.items()} for one in kept]
    for _ in range(12):
        env.step(env.env_method("sample_legal"))
    for one, copied in zip(kept, copies, strict=True):
        assert_same(one, copied, "kept")


def test_a_restored_state_goes_on_as_if_never_stopped() -> None:
    env, other = make_env("nqueens8", plans=PLANS), make_env("nqueens8", plans=PLANS)
    env.seed(5)
    env.reset()
    for _ in range(7):
        observation, *_ = env.step(env.env_method("sample_legal"))
    assert_same(other.set_state(env.get_state()), observation, "observation")
    for _ in range(20):
        actions = env.env_method("sample_legal")
        assert np.array_equal(actions, other.env_method("sample_legal"))
        found, expected = other.step(actions), env.step(actions)
        for part in range(3):
            assert_same(found[part], expected[part], f"part {part}")
        lengths = [[info["episode"]["l"] for info in step[3] if info] for step in (found, expected)]
        assert lengths[0] == lengths[1]


def test_reset_options_are_refused() -> None:
    env = make_env("sudoku4x4", plans=PLANS)
    env.set_options({"instance": "12.4341221434321"})
    with pytest.raises(ValueError, match="reset options"):
        env.reset()


def test_it_answers_for_single_environments() -> None:
    env = make_env("sudoku4x4", plans=PLANS)
    env.reset()
    assert is_masking_supported(env)
    assert env.has_attr("task") and not env.has_attr("no_such_thing")
    assert env.get_attr("num_envs", indices=[0, 2]) == [PLANS, PLANS]
    assert env.env_is_wrapped(Monitor) == [True] * PLANS
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=1) == [False]
    masks = env.env_method("action_masks")
    assert np.array_equal(env.env_method("action_masks", indices=[3, 1]), masks[[3, 1]])
    with pytest.raises(AttributeError, match="no method 'step'; there are action_masks"):
        env.env_method("step")
    with pytest.raises(ValueError, match="copy is shared by all environments"):
        env.set_attr("copy", True, indices=[1])


def test_pictures_are_tiled_as_sb3_does() -> None:
    env = make_env("sudoku4x4", plans=4, render_mode="rgb_array")
    env.reset()
    single = PlanEditEnv("sudoku4x4", render_mode="rgb_array")
    single.reset()
    tiled, one = env.render(), single.render()
    assert tiled is not None
    assert tiled.shape == (2 * one.shape[0], 2 * one.shape[1], 3)


def test_wrong_use_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode 'SameStep', got 'NextStep'"):
        PlanEditVecEnv(PlanEditVectorEnv("sudoku4x4", num_envs=2))
    strict = make_env("sudoku4x4", plans=2, illegal="raise")
    strict.reset()
    with pytest.raises(ValueError, match=r"^action 0 in environment 1 is illegal$"):
        strict.step(np.array([96, 0]))
    with pytest.raises(ValueError, match=r"^action 97 in environment 0 is outside the action"):
        strict.step(np.array([97, 96]))


@pytest.mark.parametrize("name", TASKS)
def test_the_mask_of_a_terminal_observation_is_never_empty(name: str) -> None:
    env = make_env(name, plans=PLANS, limit=TASKS[name])
    env.seed(0)
    env.reset()
    endings = 0
    for _ in range(60):
        observation, _, _, infos = env.step(env.env_method("sample_legal"))
        assert observation["action_mask"].any(axis=1).all()
        for info in infos:
            if "terminal_observation" in info:
                endings += 1
                assert info["terminal_observation"]["action_mask"].any()
    assert endings > PLANS


@pytest.mark.parametrize(
    "actions", [[0.7] * PLANS, ["1"] * PLANS, [1j] * PLANS, [0] * (PLANS + 1), [2**63] * PLANS]
)
def test_actions_that_are_none_are_refused_before_a_cast(actions: Any) -> None:
    env = make_env("nqueens8", plans=PLANS, limit=8)
    env.reset()
    with pytest.raises(ValueError, match="action"):
        env.step(np.array(actions))
