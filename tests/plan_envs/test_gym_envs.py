"""The Gymnasium shells: conventions, seeds, autoreset, options, states, rendering, errors."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import plan_envs
from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import Int8Array, edit_reward, potential
from plan_envs.engine import EngineOptions, PureEngine
from plan_envs.engines import make_engine
from plan_envs.env import PlanEditEnv
from plan_envs.instances import InstanceSet
from plan_envs.queens.instances import count_completions
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from plan_envs.testing import check_vector_env
from plan_envs.vector_env import PlanEditVectorEnv

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
MODES = [pytest.param(mode, id=mode.name) for mode in AutoresetMode]


class EmptyCells:
    """The smallest domain: write 1 or 2 into blank cells of a row of four; full = solved.

    It has no engine of its own, so it plays through `PureEngine`, and shows what a domain needs.
    """

    def __init__(self) -> None:
        from plan_envs.domain import DomainSpec

        actions = np.arange(8, dtype=np.int32)
        self.spec = DomainSpec(
            name="empty-cells",
            num_cells=4,
            num_values=2,
            grid_shape=(1, 4),
            num_actions=8,
            horizon=5,
            max_score=4.0,
            action_cell=actions // 2,
            action_value=actions % 2 + 1,
            action_kind=np.zeros(8, np.int32),
            kind_names=("write",),
        )

    def initial(self, instances: Int8Array) -> Int8Array:
        return instances.copy()

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        return np.repeat(plans == 0, 2, axis=1).astype(np.int8)

    def edit(self, instances: Int8Array, plans: Int8Array, actions: Any) -> Int8Array:
        edited = plans.copy()
        rows, cells = np.arange(len(plans)), actions // 2
        edited[rows, cells] = np.where(
            plans[rows, cells] == 0, actions % 2 + 1, edited[rows, cells]
        )
        return edited

    def check(self, instances: Int8Array, plans: Int8Array) -> Any:
        from plan_envs.domain import Verdict

        filled = (plans > 0).sum(axis=1)
        return Verdict(
            score=filled.astype(np.float32),
            violations=np.zeros(len(plans), np.int32),
            solved=filled == 4,
            dead=np.zeros(len(plans), np.bool_),
        )

    def successors(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def is_stop(self, actions: Any) -> Any:
        return np.zeros(len(actions), np.bool_)


def toy_task() -> Task:
    def generate(*, split: str, num: int, seed: int, progress: bool) -> InstanceSet:
        boards = np.zeros((3, 4), np.int8)
        boards[1, 0] = boards[2, 3] = 2
        return InstanceSet.of("toy", boards, np.ones((3, 4), np.int8))

    return Task("toy", "PlanEdit/Toy-v0", EmptyCells(), {}, generate)


@pytest.mark.parametrize("env_id", plan_envs.ENV_IDS)
def test_check_env_passes_without_a_warning(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id)
        check_env(env.unwrapped)
        env.close()


def test_the_id_works_without_importing_the_package() -> None:
    code = (
        "import gymnasium as gym;"
        "env = gym.make('plan_envs:PlanEdit/Sudoku4x4-v0'); env.reset(seed=0);"
        "envs = gym.make_vec('plan_envs:PlanEdit/Sudoku4x4-v0', num_envs=2); envs.reset(seed=0);"
        "print(env.spec.id, type(envs).__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["PlanEdit/Sudoku4x4-v0", "PlanEditVectorEnv"]


@pytest.mark.parametrize("env_id", plan_envs.ENV_IDS)
def test_the_spec_survives_json(env_id: str) -> None:
    spec = gym.spec(env_id)
    again = gym.envs.registration.EnvSpec.from_json(spec.to_json())
    assert gym.make(again).unwrapped.task.env_id == env_id


VECTOR_CASES = {
    "4x4": ("PlanEdit/Sudoku4x4-v0", {}),
    "4x4-hard": ("PlanEdit/Sudoku4x4Hard-v0", {"dead_end": "continue"}),
    "4x4-fill": ("PlanEdit/Sudoku4x4-v0", {"codec": "digits", "mask": "constraint"}),
    "6x6": ("PlanEdit/Sudoku6x6-v0", {"reward": "sparse"}),
    "9x9": ("PlanEdit/Sudoku9x9-v0", {}),
    "9x9-overwrite": ("PlanEdit/Sudoku9x9-v0", {"edits": "overwrite", "max_episode_steps": 7}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", VECTOR_CASES)
def test_the_vector_environment_equals_single_ones(case: str, mode: AutoresetMode) -> None:
    env_id, options = VECTOR_CASES[case]
    check_vector_env(
        lambda num, mode: gym.make_vec(env_id, num_envs=num, autoreset_mode=mode, **options),
        lambda: gym.make(env_id, **options),
        modes=[mode],
        steps=80,
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_domain_without_its_own_engine_works_in_both_shells(mode: AutoresetMode) -> None:
    task = toy_task()
    pool = task.instances("train").instances
    assert type(make_engine(task.domain, 1, pool, EngineOptions())) is PureEngine
    check_vector_env(
        lambda num, mode: PlanEditVectorEnv(task, num_envs=num, autoreset_mode=mode),
        lambda: gym.wrappers.TimeLimit(PlanEditEnv(task), 5),
        modes=[mode],
        legal_share=0.7,
    )


def test_the_vector_checker_catches_a_wrong_reward() -> None:
    class Generous(PlanEditVectorEnv):
        def step(self, actions: Any) -> Any:
            observation, reward, terminated, truncated, infos = super().step(actions)
            return observation, reward + 1e-12, terminated, truncated, infos

    with pytest.raises(AssertionError, match="reward differs"):
        check_vector_env(
            lambda num, mode: Generous("sudoku4x4", num_envs=num, autoreset_mode=mode),
            lambda: gym.make("PlanEdit/Sudoku4x4-v0"),
            modes=[AutoresetMode.NEXT_STEP],
        )


def test_step_agrees_with_the_domain() -> None:
    """Shell = core: observation, score, reward and flags are those of the pure functions."""
    env = PlanEditEnv("sudoku9x9", gamma=0.9)
    domain = env.task.domain
    observation, info = env.reset(seed=5)
    for _ in range(60):
        x, y = observation["instance"][None], observation["plan"][None]
        assert np.array_equal(observation["action_mask"], domain.action_mask(x, y)[0])
        action = env.sample_legal()
        observation, reward, terminated, truncated, info = env.step(action)
        after = domain.edit(x, y, np.array([action], np.int32))
        verdict, before = domain.check(x, after), domain.check(x, y)
        assert np.array_equal(observation["plan"], after[0])
        assert info["score"] == verdict.score[0]
        assert info["violations"] == verdict.violations[0]
        expected = edit_reward(
            potential(before.score, 81),
            potential(verdict.score, 81),
            solved=verdict.solved,
            absorbed=np.array([terminated]),
            gamma=0.9,
        )
        assert reward == expected[0]
        assert not truncated
        if terminated:
            assert verdict.dead[0] or verdict.solved[0]
            observation, info = env.reset()


def test_scalars_are_pythons_own() -> None:
    env = PlanEditEnv("sudoku4x4")
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(env.sample_legal())
    assert type(reward) is float
    assert type(terminated) is bool
    assert type(truncated) is bool
    types = {key: type(value) for key, value in info.items()}
    assert types == {
        "action_mask": np.ndarray,
        "score": float,
        "solved": bool,
        "violations": int,
        "illegal_action": bool,
    }


@pytest.mark.parametrize("num_envs", [None, 3])
def test_arrays_are_fresh_unless_copy_is_false(num_envs: int | None) -> None:
    def make(copy: bool) -> Any:
        if num_envs is None:
            return PlanEditEnv("sudoku9x9", copy=copy)
        return PlanEditVectorEnv("sudoku9x9", num_envs=num_envs, copy=copy)

    for fresh in (True, False):
        env = make(fresh)
        first = env.reset(seed=0)[0]
        kept = copy.deepcopy(first)
        second = env.step(env.sample_legal())[0]
        assert data_shares_objects(first, second) is not fresh
        assert all(np.array_equal(kept[key], first[key]) for key in kept) is fresh


def test_the_mask_comes_in_the_forms_that_libraries_want() -> None:
    env = PlanEditEnv("sudoku9x9")
    observation, info = env.reset(seed=0)
    assert observation["action_mask"].dtype == np.int8
    assert env.action_masks().dtype == np.bool_
    assert np.array_equal(env.action_masks(), observation["action_mask"] == 1)
    assert np.array_equal(info["action_mask"], observation["action_mask"])
    assert info["action_mask"][env.action_space.sample(info["action_mask"])] == 1


def test_an_illegal_action_costs_a_step_and_changes_nothing() -> None:
    env = PlanEditEnv("sudoku9x9", max_episode_steps=2)
    before, _ = env.reset(seed=0)
    illegal = int(np.flatnonzero(before["action_mask"] == 0)[0])
    after, reward, terminated, truncated, info = env.step(illegal)
    assert info["illegal_action"] is True
    assert np.array_equal(after["plan"], before["plan"])
    phi = potential(np.array(info["score"]), 81)
    assert reward == 0.99 * phi - phi
    assert (terminated, truncated) == (False, False)
    assert env.step(env.sample_legal())[3] is True


def test_illegal_actions_raise_when_asked_to() -> None:
    env = PlanEditEnv("sudoku9x9", illegal="raise")
    before, _ = env.reset(seed=0)
    illegal = int(np.flatnonzero(before["action_mask"] == 0)[0])
    with pytest.raises(ValueError, match=f"action {illegal} is illegal"):
        env.step(illegal)
    assert env.get_state()["steps"] == 0
    vector = PlanEditVectorEnv("sudoku9x9", num_envs=2, illegal="raise")
    masks = vector.reset(seed=0)[0]["action_mask"]
    actions = np.array([masks[0].argmax(), masks[1].argmin()])
    with pytest.raises(ValueError, match=r"action .* in environment 1 is illegal"):
        vector.step(actions)
    assert vector.get_state()["steps"].tolist() == [0, 0]


def test_an_action_outside_the_space_always_raises() -> None:
    env = PlanEditEnv("sudoku9x9")
    env.reset(seed=0)
    for action in (-1, 729):
        with pytest.raises(ValueError, match=f"action {action} is outside"):
            env.step(action)
    with pytest.raises(TypeError):
        env.step(3.5)  # type: ignore[arg-type]
    vector = PlanEditVectorEnv("sudoku9x9", num_envs=2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="action 729 in environment 1 is outside"):
        vector.step(np.array([0, 729]))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        vector.step(np.zeros(3, np.int64))


def test_stepping_a_finished_episode_asks_for_a_reset() -> None:
    env = PlanEditEnv("sudoku4x4")
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.step(96)[2] is True  # STOP
    with pytest.raises(ResetNeeded):
        env.step(0)
    vector = PlanEditVectorEnv("sudoku4x4", num_envs=2, autoreset_mode=AutoresetMode.DISABLED)
    masks = vector.reset(seed=0)[0]["action_mask"]
    vector.step(np.array([masks[0].argmax(), 96]))
    with pytest.raises(ResetNeeded, match="in environment 1"):
        vector.step(np.array([masks[0].argmax(), 96]))
    vector.reset(options={"reset_mask": np.array([False, True])})
    vector.step(vector.sample_legal())


def test_the_seed_decides_every_instance_and_environment_i_has_seed_plus_i() -> None:
    def first_instances(seed: int) -> list[bytes]:
        env = PlanEditEnv("sudoku9x9")
        first = env.reset(seed=seed)[0]["instance"].tobytes()
        return [first, *(env.reset()[0]["instance"].tobytes() for _ in range(4))]

    assert first_instances(3) == first_instances(3)
    assert first_instances(3) != first_instances(4)
    assert len(set(first_instances(3))) == 5
    vector = PlanEditVectorEnv("sudoku9x9", num_envs=3)
    boards = [vector.reset(seed=3)[0]["instance"], *(vector.reset()[0]["instance"] for _ in "1234")]
    for i in range(3):
        assert [board[i].tobytes() for board in boards] == first_instances(3 + i)


def test_unseeded_environments_differ() -> None:
    starts = {PlanEditEnv("sudoku9x9").reset()[0]["instance"].tobytes() for _ in range(8)}
    assert len(starts) > 1


def test_sampling_actions_does_not_move_the_stream_of_instances() -> None:
    one, other = PlanEditEnv("sudoku9x9"), PlanEditEnv("sudoku9x9")
    one.reset(seed=0)
    other.reset(seed=0)
    for _ in range(10):
        one.sample_legal()
    assert np.array_equal(one.reset()[0]["instance"], other.reset()[0]["instance"])


@pytest.mark.parametrize("rng", [None, "given"])
def test_legal_actions_are_sampled_uniformly(rng: str | None) -> None:
    """Chi-square over the legal actions of a 4x4 state, far below its 99.9% quantile per degree."""
    generator = np.random.default_rng(0) if rng else None
    env = PlanEditEnv("sudoku4x4")
    mask = env.reset(seed=1)[0]["action_mask"]
    drawn = np.bincount([env.sample_legal(generator) for _ in range(4000)], minlength=len(mask))
    legal = mask == 1
    assert drawn[~legal].sum() == 0
    expected = 4000 / legal.sum()
    assert ((drawn[legal] - expected) ** 2 / expected).mean() < 2.5


def test_the_options_choose_the_instance() -> None:
    env = PlanEditEnv("sudoku9x9")
    by_text, info = env.reset(options={"instance": PUZZLE})
    assert info["score"] == 30.0
    cells = by_text["instance"].tolist()
    assert "".join(str(digit) if digit else "." for digit in cells) == PUZZLE
    by_array, _ = env.reset(options={"instance": np.array(cells).reshape(9, 9)})
    assert np.array_equal(by_array["plan"], by_text["plan"])
    vector = PlanEditVectorEnv("sudoku9x9", num_envs=2)
    same, _ = vector.reset(seed=0, options={"instance": PUZZLE})
    assert same["instance"].tolist() == [cells, cells]
    mask = np.array([False, True])
    vector.reset(seed=0)
    mixed, infos = vector.reset(options={"reset_mask": mask, "instance": cells})
    assert mixed["instance"][1].tolist() == cells
    assert mixed["instance"][0].tolist() != cells
    assert infos["_score"].tolist() == [False, True]
    rows = np.stack([by_text["instance"], mixed["instance"][0]])
    assert np.array_equal(vector.reset(options={"instance": rows})[0]["plan"], rows)


SOLVED_4 = "1234341221434321"


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("12", "16 cells"),
        ("12x4" + "." * 12, "'x' at row 1, column 3"),
        ([1, 2], r"must have 16 cells, got shape \(2,\)"),
        ([5] + [0] * 15, r"must hold 0\.\.4, got 5"),
        ([0.5] * 16, "must hold integers, got float64"),
        ("11" + "." * 14, "digit 1 stands at row 1, column 1 and at row 1, column 2"),
        (SOLVED_4, "is solved already"),
    ],
)
@pytest.mark.parametrize("vector", [False, True])
def test_a_bad_instance_is_refused_with_the_reason(
    instance: Any, message: str, vector: bool
) -> None:
    env: Any = PlanEditVectorEnv("sudoku4x4", num_envs=2) if vector else PlanEditEnv("sudoku4x4")
    with pytest.raises(ValueError, match=message):
        env.reset(options={"instance": instance})


def test_an_instance_that_is_dead_from_the_start_is_refused_where_dead_ends_absorb() -> None:
    dead = "123....4" + "." * 8  # 1 2 3 in the row, 4 in the column and box of cell (1, 4)
    options = {"codec": "digits", "edits": "fill", "mask": "constraint"}
    with pytest.raises(ValueError, match="has no solution: the checker calls it dead"):
        PlanEditEnv("sudoku4x4", **options).reset(options={"instance": dead})
    env = PlanEditEnv("sudoku4x4", dead_end="continue", **options)
    assert env.reset(options={"instance": dead})[1]["score"] == -1.0


def test_an_unknown_reset_option_is_refused() -> None:
    with pytest.raises(ValueError, match="no option 'puzzle'; there are 'instance' and 'plan'"):
        PlanEditEnv("sudoku4x4").reset(options={"puzzle": SOLVED_4})


def test_instances_can_be_given_as_a_set() -> None:
    instances = sudoku_instances(num=2, seed=9, split="test")
    env = PlanEditEnv("sudoku9x9", instances=instances)
    seen = {env.reset(seed=seed)[0]["instance"].tobytes() for seed in range(20)}
    assert seen == {row.tobytes() for row in instances.instances}


def test_instances_that_do_not_fit_are_refused() -> None:
    four = sudoku_instances(side=4, num=2, blanks=(4, 4), unique=False)
    with pytest.raises(ValueError, match=r"of sudoku9x9 must be int8 of shape \[batch, 81\]"):
        PlanEditEnv("sudoku9x9", instances=four)
    with pytest.raises(ValueError, match="are empty"):
        PlanEditEnv("sudoku4x4", instances=four.subset(slice(0)))
    solved = InstanceSet.of("done", four.solutions, four.solutions)
    with pytest.raises(ValueError, match="'done': row 0 is solved already"):
        PlanEditVectorEnv("sudoku4x4", num_envs=2, instances=solved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, r"gamma must lie in \(0, 1\], got 0"),
        ({"reward": "dense"}, r"reward must be one of \['shaped', 'sparse'\], got 'dense'"),
        ({"dead_end": "stop"}, "dead_end must be"),
        ({"illegal": "ignore"}, r"illegal must be one of \['noop', 'raise'\]"),
        ({"max_episode_steps": 0}, "max_episode_steps must be >= 1"),
        ({"render_mode": "svg"}, "render_mode must be one of"),
        ({"split": "dev"}, "split must be one of"),
        ({"edit": "fill"}, "did you mean 'edits'"),
        ({"task": "sudoku3x3"}, "unknown task"),
        ({"task": resolve_task("sudoku4x4"), "mask": "givens"}, "belong into the Task"),
    ],
)
@pytest.mark.parametrize("make", [PlanEditEnv, PlanEditVectorEnv])
def test_a_wrong_argument_is_named(
    make: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_wrong_reset_mask_or_seed_list_is_refused() -> None:
    env = PlanEditVectorEnv("sudoku4x4", num_envs=2)
    for mask, error in (([True, False], TypeError), (np.zeros(2, np.bool_), ValueError)):
        with pytest.raises(error, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.ones(3, np.bool_)})
    with pytest.raises(ValueError, match="seed must have 2 entries, got 1"):
        env.reset(seed=[1])


def test_the_caller_keeps_its_options() -> None:
    options = {"reset_mask": np.ones(2, np.bool_)}
    PlanEditVectorEnv("sudoku4x4", num_envs=2).reset(options=options)
    assert set(options) == {"reset_mask"}


def test_the_time_limit_is_gymnasiums_for_one_and_its_own_for_many() -> None:
    single = gym.make("PlanEdit/Sudoku9x9-v0", max_episode_steps=100)
    single.reset(seed=0)
    illegal = int(single.unwrapped.action_masks().argmin())
    cut = [single.step(illegal)[3] for _ in range(100)]
    assert cut == [False] * 99 + [True]
    assert PlanEditVectorEnv("sudoku4x4").engine_options.limit == 16
    assert PlanEditVectorEnv("sudoku4x4", max_episode_steps=-1).engine_options.limit == 0
    assert gym.make_vec("PlanEdit/Sudoku4x4-v0").unwrapped.engine_options.limit == 16
    longer = gym.make_vec("PlanEdit/Sudoku4x4-v0", max_episode_steps=30)
    assert longer.unwrapped.engine_options.limit == 30


def play(env: Any, steps: int) -> list[Any]:
    """Everything that random legal play returns, resets included."""
    trace = []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.sample_legal())
        trace.append((observation, reward, terminated, truncated, info))
        if isinstance(terminated, bool) and (terminated or truncated):
            trace.append(env.reset())
    return trace


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


def restored_by_state(env: Any) -> Any:
    if isinstance(env, PlanEditEnv):
        other: Any = PlanEditEnv("sudoku9x9", max_episode_steps=20)
    else:
        other = PlanEditVectorEnv("sudoku9x9", num_envs=3, max_episode_steps=20)
    other.reset(seed=99)
    other.set_state(env.get_state())
    return other


@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize(
    "clone",
    [restored_by_state, copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],
    ids=["set_state", "deepcopy", "pickle"],
)
def test_a_clone_goes_on_exactly_like_the_original(
    num_envs: int | None, clone: Callable[[Any], Any]
) -> None:
    env: Any
    if num_envs is None:
        env = PlanEditEnv("sudoku9x9", max_episode_steps=20)
    else:
        env = PlanEditVectorEnv("sudoku9x9", num_envs=num_envs, max_episode_steps=20)
    env.reset(seed=0)
    play(env, 7)
    state = env.get_state()
    other = clone(env)
    first = play(env, 60)
    assert same(play(other, 60), first)
    env.set_state(state)  # and back in time
    assert same(play(env, 60), first)


def test_a_state_that_does_not_fit_is_refused() -> None:
    env = PlanEditVectorEnv("sudoku9x9", num_envs=2)
    env.reset(seed=0)
    state = env.get_state()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    for change, message in (
        ({"steps": np.zeros(3, np.int64)}, "'steps'"),
        ({"plan": state["plan"].astype(np.int64)}, "'plan'"),
        ({"plan": state["plan"] + np.int8(10)}, r"must hold 0\.\.9"),
        ({"plan": np.zeros_like(state["plan"])}, "does not belong to"),
        ({"extra": state["steps"]}, "keys"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state({**state, **change})
    env.set_state(state)


def test_successors_of_an_environment_are_what_its_steps_do() -> None:
    env = PlanEditEnv("sudoku4x4", gamma=0.95)
    env.reset(seed=2)
    state = env.get_state()
    found = env.successors()
    assert found.action.tolist() == np.flatnonzero(env.action_masks()).tolist()
    for row, action in enumerate(found.action):
        env.set_state(state)
        observation, reward, terminated, _, info = env.step(action)
        assert np.array_equal(observation["plan"], found.plan[row])
        assert np.float32(reward) == found.reward[row]
        assert terminated == found.terminated[row]
        assert info["solved"] == found.solved[row]
        assert info["score"] == found.score[row]
    vector = PlanEditVectorEnv("sudoku4x4", num_envs=3)
    vector.reset(seed=2)
    bare = vector.successors(with_plans=False)
    assert np.array_equal(np.diff(bare.offsets), vector.action_masks().sum(axis=1))
    assert bare.plan.shape == (0, 16)


def test_next_step_ignores_the_action_of_a_finished_plan() -> None:
    vector = PlanEditVectorEnv("sudoku4x4", num_envs=2, illegal="raise")
    masks = vector.reset(seed=0)[0]["action_mask"]
    _, _, terminated, _, _ = vector.step(np.array([96, masks[1].argmax()]))
    assert terminated.tolist() == [True, False]
    second = vector.action_masks()[1].argmax()
    _, reward, terminated, _, _ = vector.step(np.array([12345, second]))
    assert reward[0] == 0.0
    assert terminated.tolist() == [False, False]


def test_same_step_returns_the_last_observation_beside_the_first() -> None:
    vector = PlanEditVectorEnv("sudoku4x4", num_envs=2, autoreset_mode="SameStep")
    start, _ = vector.reset(seed=0)
    observation, _, terminated, _, infos = vector.step(
        np.array([96, start["action_mask"][1].argmax()])
    )
    assert terminated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos["final_obs"][1] is None
    assert np.array_equal(infos["final_obs"][0]["plan"], start["plan"][0])
    assert not np.array_equal(observation["plan"][0], start["plan"][0])


@pytest.mark.parametrize("env_id", ["PlanEdit/Sudoku4x4-v0", "PlanEdit/Sudoku9x9-v0"])
def test_each_render_mode_draws(env_id: str) -> None:
    frames = {}
    for mode in ("ansi", "rgb_array", "human"):
        env = gym.make(env_id, render_mode=mode)
        env.reset(seed=0)
        env.step(env.unwrapped.sample_legal())
        frames[mode] = env.render()
        env.close()
        env.close()
    assert isinstance(frames["ansi"], str)
    assert frames["rgb_array"].dtype == np.uint8
    assert frames["rgb_array"].ndim == 3
    assert frames["human"] is None


def test_the_vector_environment_draws_every_plan() -> None:
    vector = PlanEditVectorEnv("sudoku4x4", num_envs=3, render_mode="ansi")
    vector.reset(seed=0)
    frames = vector.render()
    assert frames is not None
    assert len(frames) == 3
    with pytest.raises(ValueError, match="'human' shows one plan"):
        PlanEditVectorEnv("sudoku4x4", num_envs=3, render_mode="human")


def test_a_pool_too_large_to_keep_ready_gives_the_same_resets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from plan_envs.compiled import packed_engine

    instances = sudoku_instances(num=30, seed=5)
    ready = PlanEditVectorEnv("sudoku9x9", num_envs=4, instances=instances)
    monkeypatch.setattr(packed_engine, "POOL_BYTES", 0)
    copied = instances.subset(slice(None))
    computed = PlanEditVectorEnv("sudoku9x9", num_envs=4, instances=copied)
    for env in (ready, computed):
        env.reset(seed=1)
    assert same(play(ready, 80), play(computed, 80))


def test_a_plain_task_object_works_with_sync_vector_env() -> None:
    task = resolve_task("sudoku6x6", mask="givens")
    assert task.domain == Sudoku(6, mask="givens")
    vector = SyncVectorEnv([lambda: PlanEditEnv(task)] * 2)
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())


@pytest.mark.parametrize("name", ["sudoku9x9", "sudoku16x16", "nqueens8", "nqueens12", "maze10"])
def test_instances_written_as_text_are_read_back(name: str) -> None:
    task = resolve_task(name)
    domain: Any = task.domain
    for instance in task.instances("test", num=5).instances:
        assert np.array_equal(domain.read_instance(domain.write_instance(instance)), instance)
        assert getattr(domain, "solvable", lambda _: True)(instance)


def test_solvable_agrees_with_the_number_of_completions() -> None:
    domain: Any = resolve_task("nqueens8").domain
    texts = [f"1{a}{b}00000" for a in "35678" for b in "2358" if a != b]
    boards = np.stack([domain.read_instance(text) for text in texts])
    fit = boards[[domain.why_invalid(board) is None for board in boards]]
    solvable = [domain.solvable(board) for board in fit]
    assert solvable == (count_completions(fit, n=8) > 0).tolist()
    assert 0 < sum(solvable) < len(solvable)


def test_an_episode_can_start_from_a_given_plan() -> None:
    task = resolve_task("maze10")
    domain: Any = task.domain
    pool = task.instances("test", num=4)
    rng = np.random.default_rng(0)
    plans = domain.advance(pool.instances, pool.solutions, np.full(4, 2), rng)
    envs = PlanEditVectorEnv(task, num_envs=4)
    observation, _ = envs.reset(options={"instance": pool.instances, "plan": plans})
    assert np.array_equal(observation["plan"], plans)
    masks = domain.action_mask(pool.instances, plans)
    assert np.array_equal(observation["action_mask"], masks)
    chosen = np.array([False, True, False, False])
    options = {
        "reset_mask": chosen,
        "instance": pool.instances,
        "plan": domain.initial(pool.instances),
    }
    observation, _ = envs.reset(options=options)
    assert np.array_equal(observation["plan"][0], plans[0])
    assert np.array_equal(observation["plan"][1], domain.initial(pool.instances)[1])
    single = PlanEditEnv(task)
    observation, _ = single.reset(options={"instance": pool.instances[2], "plan": plans[2]})
    assert np.array_equal(observation["plan"], plans[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, s: {"plan": s}, "needs the option 'instance'"),
        (lambda x, s: {"instance": x, "plan": s}, "solved already"),
        (lambda x, s: {"instance": x, "plan": s[:5]}, "integers of shape"),
        (lambda x, s: {"instance": x, "plan": s.astype(float)}, "integers of shape"),
        (lambda x, s: {"instance": x, "plan": np.zeros_like(s)}, "does not belong"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    pool = resolve_task("sudoku4x4").instances("test", num=1)
    options = change(pool.instances[0], pool.solutions[0])
    with pytest.raises(ValueError, match=message):
        PlanEditEnv("sudoku4x4").reset(options=options)
