"""Values from outside meet the environments: nothing wrong reaches a kernel, no mask is empty.

`make bounds` runs this file and the engines' tests with every index of compiled code checked.
"""

import copy
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import DomainSpec, Int8Array, Verdict
from plan_envs.env import PlanEditEnv
from plan_envs.generic import WritingDomain
from plan_envs.instances import InstanceSet
from plan_envs.vector_env import PlanEditVectorEnv

MODES = [pytest.param(mode, id=mode.name) for mode in AutoresetMode]


class Pair(WritingDomain):
    """Write 1 or 2 into two cells, each value once; only 1 before 2 is solved. No engine."""

    spec = DomainSpec(
        name="pair",
        num_cells=2,
        num_values=2,
        grid_shape=(1, 2),
        num_actions=4,
        horizon=4,
        max_score=2.0,
        action_cell=np.array([0, 0, 1, 1], np.int32),
        action_value=np.array([1, 2, 1, 2], np.int32),
        action_kind=np.zeros(4, np.int32),
        kind_names=("write",),
    )

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        blank = plans[:, self.spec.action_cell] == 0
        used = (plans[:, :, None] == self.spec.action_value).any(axis=1)
        return (blank & ~used).astype(np.int8)

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        nothing = np.zeros(len(plans), np.bool_)
        return Verdict(
            score=(plans > 0).sum(axis=1).astype(np.float32),
            violations=np.zeros(len(plans), np.int32),
            solved=(plans == [1, 2]).all(axis=1),
            dead=nothing,
        )


def pair_task() -> Task:
    def generate(*, split: str, num: int, seed: int, progress: bool) -> InstanceSet:
        return InstanceSet.of("pair", np.zeros((2, 2), np.int8), np.array([[1, 2]] * 2, np.int8))

    return Task("pair", "PlanEdit/Pair-v0", Pair(), {}, generate)


TASKS: dict[str, Callable[[], Task]] = {
    "sudoku4x4": lambda: resolve_task("sudoku4x4"),
    "sudoku4x4-fill": lambda: resolve_task(
        "sudoku4x4", codec="digits", edits="fill", mask="constraint", blanks=(6, 8)
    ),
    "sudoku4x4-overwrite": lambda: resolve_task(
        "sudoku4x4", codec="digits", edits="overwrite", mask="constraint"
    ),
    "sudoku9x9": lambda: resolve_task("sudoku9x9"),
    "nqueens8": lambda: resolve_task("nqueens8"),
    "maze10": lambda: resolve_task("maze10"),
    "arc-tiny": lambda: resolve_task("arc-tiny"),
    "repair": lambda: resolve_task("repair-tiny"),
    "pair": pair_task,
}
STUCK = {"sudoku4x4-fill", "sudoku4x4-overwrite", "nqueens8", "maze10", "pair"}
"""Here random play ends in plans without a legal edit."""
EVERY = [pytest.param(make, id=name) for name, make in TASKS.items()]


def check_mask(task: Task, observation: Any, info: Any, ended: Any) -> int:
    """Masks are what the domain says while the episode lives, and never empty; how many were."""
    seen = {name: np.atleast_2d(board) for name, board in observation.items()}
    ended = np.atleast_1d(ended)
    masks = seen["action_mask"]
    assert np.array_equal(np.atleast_2d(info["action_mask"]), masks)
    assert masks.any(axis=1).all()
    hidden = task.domain.spec.instance_size - seen["instance"].shape[1]
    instances = np.pad(seen["instance"], ((0, 0), (0, hidden)))
    if hidden:  # the target decides which edits are legal nowhere
        instances[:, -hidden:] = 0
    truth = task.domain.action_mask(instances, seen["plan"])
    stuck = ~truth.any(axis=1)
    assert np.array_equal(masks[~stuck], truth[~stuck])
    assert (masks[stuck] == 1).all()
    assert not (stuck & ~ended).any()
    return int(stuck.sum())


@pytest.mark.parametrize("name", TASKS)
def test_the_mask_of_a_single_environment_is_never_empty(name: str) -> None:
    task = TASKS[name]()
    env = PlanEditEnv(task, max_episode_steps=task.domain.spec.horizon)
    stuck = endings = 0
    observation, info = env.reset(seed=0)
    for _ in range(400):
        assert np.array_equal(env.action_masks(), observation["action_mask"])
        observation, _, terminated, truncated, info = env.step(env.sample_legal())
        stuck += check_mask(task, observation, info, terminated)
        if terminated or truncated:
            endings += 1
            with pytest.raises(ResetNeeded):
                env.sample_legal()
            with pytest.raises(ResetNeeded):
                env.sample_legal(np.random.default_rng(0))
            again = PlanEditEnv(task)
            restored, _ = again.set_state(env.get_state())
            assert np.array_equal(restored["action_mask"], observation["action_mask"])
            observation, info = env.reset()
            assert check_mask(task, observation, info, False) == 0
    assert endings > 0
    assert (stuck > 0) == (name in STUCK)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TASKS)
def test_the_masks_of_a_vector_environment_are_never_empty(name: str, mode: AutoresetMode) -> None:
    task = TASKS[name]()
    envs = PlanEditVectorEnv(task, num_envs=4, autoreset_mode=mode)
    stuck = endings = 0
    observation, info = envs.reset(seed=0)
    for _ in range(150):
        assert np.array_equal(envs.action_masks(), observation["action_mask"])
        observation, _, terminated, truncated, info = envs.step(envs.sample_legal())
        over = terminated | truncated
        endings += int(over.sum())
        if mode is AutoresetMode.SAME_STEP:
            assert check_mask(task, observation, info, np.zeros(4, np.bool_)) == 0
            for env in np.flatnonzero(over):
                final = infos_of(info, int(env))
                stuck += check_mask(task, info["final_obs"][env], final, terminated[env])
        else:
            stuck += check_mask(task, observation, info, terminated)
        if mode is AutoresetMode.DISABLED and over.any():
            observation, info = envs.reset(options={"reset_mask": over})
            assert check_mask(task, observation, info, np.zeros(4, np.bool_)) == 0
    assert endings > 0
    assert (stuck > 0) == (name in STUCK)


def infos_of(info: dict[str, Any], env: int) -> dict[str, Any]:
    return {"action_mask": info["final_info"]["action_mask"][env]}


@pytest.mark.parametrize("name", TASKS)
def test_a_plan_without_a_legal_edit_is_no_start(name: str) -> None:
    task = TASKS[name]()
    env = PlanEditEnv(task, max_episode_steps=task.domain.spec.horizon)
    found = 0
    for seed in range(40):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(env.sample_legal())
            over = terminated or truncated
        state = env.get_state()
        instances, plans = state["instance"], state["plan"]
        if info["solved"] or task.domain.action_mask(instances, plans).any():
            continue
        found += 1
        with pytest.raises(ValueError, match="plan has no legal edit"):
            env.reset(options={"instance": instances[0], "plan": plans[0]})
        state["finished"][:] = False
        with pytest.raises(ValueError, match="has no legal edit"):
            env.set_state(state)
    assert found > 0 or name not in ("nqueens8", "maze10", "pair")


@pytest.mark.parametrize("make_task", EVERY)
def test_views_of_the_engine_cannot_be_written(make_task: Callable[[], Task]) -> None:
    task = make_task()
    single: Any = PlanEditEnv(task, copy=False)
    many: Any = PlanEditVectorEnv(task, num_envs=3, copy=False)
    for env in (single, many, copy.deepcopy(single), copy.deepcopy(many)):
        observation, info = env.reset(seed=0)
        _refuse_to_be_written(observation, info)
        observation, _, _, _, info = env.step(env.sample_legal())
        _refuse_to_be_written(observation, info)
        fresh: Any = PlanEditEnv(task)
        if isinstance(env, PlanEditVectorEnv):
            fresh = PlanEditVectorEnv(task, num_envs=3)
        pairs = zip(env.reset(seed=7)[0].values(), fresh.reset(seed=7)[0].values(), strict=True)
        assert all(np.array_equal(seen, expected) for seen, expected in pairs)


def _refuse_to_be_written(observation: Any, info: Any) -> None:
    for array in (*observation.values(), info["action_mask"]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 100


def test_the_arrays_of_a_set_belong_to_it_alone() -> None:
    boards, solutions = np.zeros((2, 2), np.int8), np.array([[1, 2]] * 2, np.int8)
    pool = InstanceSet.of("mine", boards, solutions)
    boards[:] = 100
    assert not pool.instances.any()
    direct = InstanceSet(
        name="mine",
        instances=boards,
        solutions=solutions,
        ratings=np.zeros(2, np.float32),
        keys=pool.keys,
    )
    boards[:] = 50
    assert (direct.instances == 100).all()
    clones = (pool, direct, pool.subset(slice(1)), copy.deepcopy(pool))
    for one in (*clones, pickle.loads(pickle.dumps(pool))):
        for field in fields(one)[1:]:
            with pytest.raises(ValueError, match="read-only"):
                getattr(one, field.name)[0] = 1


NOT_INTEGERS = {
    "fractions": lambda plan: plan + 0.7,
    "whole floats": lambda plan: plan.astype(float),
    "texts": lambda plan: plan.astype(str),
    "complex": lambda plan: plan.astype(complex),
    "bools": lambda plan: plan.astype(bool),
    "times": lambda plan: plan.astype("timedelta64[s]"),
    "dates": lambda plan: plan.astype("datetime64[s]"),
    "objects": lambda plan: plan.astype(object),
    "records": lambda plan: np.zeros(plan.shape, [("a", np.int64)]),
    "nothing": lambda plan: None if plan.ndim == 0 else np.full(plan.shape, None),
}
"""What is no array of integers, made of one that is."""
TOO_LARGE = {
    "plus 256": lambda plan: plan.astype(np.int64) + 256,
    "minus 256": lambda plan: plan.astype(np.int16) - 256,
    "plus 2**32": lambda plan: plan.astype(np.int64) + 2**32,
    "plus 2**63": lambda plan: plan.astype(np.uint64) + np.uint64(2**63),
    "minus 1": lambda plan: plan.astype(np.int8) - np.int8(plan.max() + 1),
}
"""Integers that a cast to int8 or int32 would make right, or nearly so."""
WRONG = [pytest.param(change, id=name) for name, change in {**NOT_INTEGERS, **TOO_LARGE}.items()]


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("make_task", EVERY)
def test_a_start_of_another_type_or_range_is_refused(
    make_task: Callable[[], Task], change: Any
) -> None:
    task = make_task()
    env = PlanEditEnv(task)
    env.reset(seed=0)
    state = env.get_state()
    right = {"instance": state["instance"][0], "plan": state["plan"][0]}
    for name in right:
        with pytest.raises(ValueError, match=f"{name} must"):
            env.reset(seed=1, options={**right, name: change(right[name])})
    assert all(np.array_equal(env.get_state()[name], state[name]) for name in state)
    envs = PlanEditVectorEnv(task, num_envs=2)
    envs.reset(seed=0)
    state = envs.get_state()
    rows = {name: np.stack([board] * 2) for name, board in right.items()}
    for name in rows:
        with pytest.raises(ValueError, match=f"{name} must"):
            envs.reset(seed=1, options={**rows, name: change(rows[name])})
    assert all(np.array_equal(envs.get_state()[name], state[name]) for name in state)
    envs.reset(options=rows)


@pytest.mark.parametrize("rows", [0, 1, 3, 5, 9])
def test_a_vector_takes_a_plan_for_each_environment_and_no_other_number(rows: int) -> None:
    task = resolve_task("maze10")
    pool = task.instances("test", num=9)
    plans = task.domain.initial(pool.instances)
    envs = PlanEditVectorEnv(task, num_envs=4)
    some = np.array([True, False, False, True])
    for mask in ({}, {"reset_mask": some}):
        for plan in (plans[:rows], plans[:rows].reshape(rows, 10, 10), plans[0]):
            with pytest.raises(ValueError, match=r"plan must be integers of shape \[4, 100\]"):
                envs.reset(options={**mask, "instance": pool.instances[:4], "plan": plan})


@pytest.mark.parametrize("change", [*WRONG[: len(NOT_INTEGERS)], WRONG[-2], WRONG[-1]])
def test_actions_of_another_type_are_refused(change: Any) -> None:
    envs = PlanEditVectorEnv("sudoku4x4", num_envs=3)
    legal = np.asarray(envs.reset(seed=0)[0]["action_mask"].argmax(axis=1))
    before = envs.get_state()
    with pytest.raises(ValueError, match="action"):
        envs.step(change(legal))
    assert all(np.array_equal(envs.get_state()[name], before[name]) for name in before)
    boards = before["instance"], before["plan"]
    with pytest.raises(ValueError, match="actions must"):
        envs.task.domain.edit(*boards, change(legal))
    for dtype in (np.int64, np.int32, np.uint8, np.uint64):
        envs.step(legal.astype(dtype))
        envs.set_state(before)


@pytest.mark.parametrize("make_task", EVERY)
@pytest.mark.parametrize(
    "action",
    [2**63, -(2**63) - 1, 2**64, 10**30, 2**63 - 1, -(2**63), -1, 3.5, "1", None, [1], 1j, b"1"],
)
def test_a_single_action_that_is_none_is_a_value_error(
    make_task: Callable[[], Task], action: Any
) -> None:
    env = PlanEditEnv(make_task())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert env.get_state()["steps"].tolist() == [0]
    env.step(np.int32(env.sample_legal()))


def test_an_actions_own_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    env = PlanEditEnv(pair_task())
    env.reset(seed=0)

    def fails(*_: Any) -> Any:
        raise TypeError("a fault of the domain")

    monkeypatch.setattr(Pair, "edit", fails)
    with pytest.raises(TypeError, match="a fault of the domain"):
        env.step(0)


@pytest.mark.parametrize("make_task", EVERY)
@settings(max_examples=40)
@given(data=st.data())
def test_a_state_from_elsewhere_is_refused_or_played(
    make_task: Callable[[], Task], data: st.DataObject
) -> None:
    """Whatever integers stand in a state: a ValueError, or an environment that goes on."""
    envs = PlanEditVectorEnv(make_task(), num_envs=2)
    envs.reset(seed=data.draw(st.integers(0, 5)))
    for _ in range(data.draw(st.integers(0, 6))):
        envs.step(envs.sample_legal())
    state = envs.get_state()
    for _ in range(data.draw(st.integers(1, 3))):
        array = state[data.draw(st.sampled_from(sorted(state)))]
        place = data.draw(st.integers(0, array.size - 1))
        largest = 1 if array.dtype == bool else int(np.iinfo(array.dtype).max)
        least = 0 if array.dtype.kind in ("b", "u") else -largest - 1
        value = data.draw(st.one_of(st.integers(0, 1), st.integers(least, largest)))
        array.reshape(-1)[place] = min(value, largest)
    before = envs.get_state()
    try:
        envs.set_state(state)
    except ValueError as error:
        assert "\n" not in str(error)
        assert all(np.array_equal(envs.get_state()[name], before[name]) for name in before)
        return
    for _ in range(12):
        observation, reward, _, _, _ = envs.step(envs.sample_legal())
        assert np.isfinite(reward).all()
        assert envs.observation_space.contains(observation)


def test_what_sync_vector_env_answers_the_native_one_answers_too() -> None:
    envs = PlanEditVectorEnv("nqueens8", num_envs=3, render_mode="ansi")
    others: Any = SyncVectorEnv(
        [lambda: PlanEditEnv("nqueens8", max_episode_steps=8, render_mode="ansi")] * 3
    )
    envs.reset(seed=0)
    others.reset(seed=0)
    for method in ("action_masks", "render", "sample_legal"):
        pairs = zip(envs.call(method), others.call(method), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    for name in ("task", "engine_options", "render_mode", "action_space", "observation_space"):
        assert envs.get_attr(name) == others.get_attr(name)
    assert envs.autoreset_mode is others.autoreset_mode is AutoresetMode.NEXT_STEP
    for values in ("rgb_array", ["rgb_array"] * 3):
        for env in (envs, others):
            env.set_attr("render_mode", values)
            assert env.get_attr("render_mode") == ("rgb_array",) * 3
    envs.set_attr("note", 5)
    assert envs.get_attr("note") == (5, 5, 5)
    with pytest.raises(AttributeError):
        envs.get_attr("colour")
    with pytest.raises(AttributeError, match="no method 'step'; there are action_masks"):
        envs.call("step", 0)
    for name, value, reason in (
        ("render_mode", ["ansi", "ansi"], "one value for all 3"),
        ("render_mode", ["ansi", "ansi", "rgb_array"], "one value for all 3"),
        ("render_mode", "human", "must be one of"),
        ("task", envs.task, "fixed when"),
        ("engine_options", envs.engine_options, "fixed when"),
    ):
        with pytest.raises(ValueError, match=reason):
            envs.set_attr(name, value)


def test_an_unknown_option_is_what_python_calls_an_unknown_argument() -> None:
    for make in (gym.make, gym.make_vec):
        for error in (TypeError, ValueError):
            with pytest.raises(error, match="unexpected keyword argument 'frameskip'"):
                make("PlanEdit/Sudoku4x4-v0", frameskip=1)
