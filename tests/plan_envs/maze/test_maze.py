"""Mazes: exhaustive paths on small boards, the laws, the public file, the generator."""

import copy
import csv
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plan_envs import testing
from plan_envs.catalogue import Task
from plan_envs.domain import Int8Array
from plan_envs.engine import EngineOptions
from plan_envs.engines import make_engine
from plan_envs.env import PlanEditEnv
from plan_envs.evaluation import evaluate_policy, reference_policies
from plan_envs.instances import InstanceSet
from plan_envs.maze import generation
from plan_envs.maze.instances import maze_instances, read_maze_csv, split_of
from plan_envs.maze.rules import Maze
from plan_envs.vector_env import PlanEditVectorEnv

SEEDS = st.integers(0, 2**32 - 1)
OPTIONS = [(edits, shaping) for edits in ("fill", "full") for shaping in ("none", "geodesic")]
DOMAINS = [pytest.param(*options, id="-".join(options)) for options in OPTIONS]

CORRIDOR = """
S.#
#.#
G..
"""
"""The only path: right, down, down, left (5 cells); a dead end is at the bottom right."""

FREE, WALL, START, GOAL = 0, 1, 2, 3
WAYS = {(-1, 0): 1, (1, 0): 2, (0, -1): 3, (0, 1): 4}


# Mazes in plain Python, independent of plan_envs: a cell is (row, column).

Cell = tuple[int, int]


def grid(instance: Int8Array) -> dict[Cell, int]:
    size = round(len(instance) ** 0.5)
    return {divmod(i, size): int(value) for i, value in enumerate(instance)}


def around(maze: dict[Cell, int], cell: Cell) -> list[Cell]:
    """Free neighbours, in the order down, left, right, up."""
    row, column = cell
    near = [(row + 1, column), (row, column - 1), (row, column + 1), (row - 1, column)]
    return [other for other in near if maze.get(other, WALL) != WALL]


def place(maze: dict[Cell, int], value: int) -> Cell:
    return next(cell for cell, found in maze.items() if found == value)


def paths(maze: dict[Cell, int]) -> Iterator[list[Cell]]:
    """Every path from the start that enters no cell twice, also those that go past the goal."""
    stack = [[place(maze, START)]]
    while stack:
        path = stack.pop()
        yield path
        stack += [[*path, cell] for cell in around(maze, path[-1]) if cell not in path]


def distances(maze: dict[Cell, int], source: Cell) -> dict[Cell, int]:
    found, queue = {source: 0}, deque([source])
    while queue:
        cell = queue.popleft()
        for other in around(maze, cell):
            if other not in found:
                found[other] = found[cell] + 1
                queue.append(other)
    return found


def label_path(maze: dict[Cell, int]) -> list[Cell]:
    """Breadth-first search from S; neighbours down, left, right, up; first parents kept."""
    parent: dict[Cell, Cell | None] = {place(maze, START): None}
    queue = deque(parent)
    while queue:
        cell = queue.popleft()
        for other in around(maze, cell):
            if other not in parent:
                parent[other] = cell
                queue.append(other)
    path: list[Cell] = []
    step: Cell | None = place(maze, GOAL)
    while step is not None:
        path.append(step)
        step = parent[step]
    return path[::-1]


def plan_of(path: list[Cell], size: int) -> Int8Array:
    plan = np.zeros((size, size), np.int8)
    for one, other in pairwise(path):
        plan[one] = WAYS[other[0] - one[0], other[1] - one[1]]
    plan[path[-1]] = 5
    return plan.ravel()


def path_of(plan: Int8Array) -> list[Cell] | None:
    """The path that a plan of the laws below describes; None if it has no start to begin at."""
    size = round(len(plan) ** 0.5)
    ways = {value: way for way, value in WAYS.items()}
    marks = {divmod(i, size): int(value) for i, value in enumerate(plan) if value}
    entered = {(r + ways[v][0], c + ways[v][1]) for (r, c), v in marks.items() if v != 5}
    begins = [cell for cell in marks if cell not in entered]
    path = begins[:1]
    while path and marks.get(path[-1], 5) != 5:
        way = ways[marks[path[-1]]]
        path.append((path[-1][0] + way[0], path[-1][1] + way[1]))
    return path or None


def legal_actions(domain: Maze, instance: Int8Array, plan: Int8Array) -> list[int]:
    maze, path = grid(instance), path_of(plan)
    assert path is not None
    if maze[path[-1]] == GOAL:
        return []
    legal = [r * domain.size + c for r, c in around(maze, path[-1]) if (r, c) not in path]
    if domain.edits == "full" and len(path) > 1:
        legal.append(domain.size**2)
    return legal


def small_mazes(size: int, num: int, *, walls: float, seed: int = 0) -> Int8Array:
    """Random solvable mazes, not from the generator."""
    rng = np.random.default_rng(seed)
    kept: list[NDArray[np.int8]] = []
    while len(kept) < num:
        board = (rng.random(size * size) < walls).astype(np.int8)
        free = np.flatnonzero(board == FREE)
        if len(free) < 2:
            continue
        board[rng.permutation(free)[:2]] = [START, GOAL]
        maze = grid(board)
        if place(maze, GOAL) in distances(maze, place(maze, START)):
            kept.append(board)
    return np.stack(kept)


@cache
def pool(size: int) -> InstanceSet:
    return maze_instances(size=size, num=60, path=(3, None), walls=(0.1, 0.5), seed=5)


def states_of(domain: Maze, seed: int, num: int = 6) -> testing.States:
    """A third of the plans are solutions, which may lack their last step."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(60)[:num]
    states = testing.random_states(domain, pool(domain.size).instances[rows], rng, max_edits=9)
    for row in range(0, num, 3):
        states.plans[row] = pool(domain.size).solutions[rows[row]]
        if rng.random() < 0.5:
            head = int(states.plans[row].argmax())
            last = (states.plans[row] > 0) & (np.arange(domain.size**2) != head)
            near = [
                cell
                for cell in np.flatnonzero(last)
                if domain.spec.neighbours is not None
                and domain.spec.neighbours[cell, states.plans[row, cell] - 1] == head
            ]
            states.plans[row, head] = 0
            states.plans[row, near[0]] = 5
    return states


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
@pytest.mark.parametrize(("size", "walls"), [(3, 0.2), (4, 0.3), (5, 0.45)])
def test_every_path_is_judged_as_exhaustive_enumeration_says(
    size: int, walls: float, edits: str, shaping: str
) -> None:
    domain = Maze(size, edits, shaping)  # type: ignore[arg-type]
    met = {"solved": 0, "dead": 0, "longer": 0, "other": 0}
    for instance in small_mazes(size, 12, walls=walls):
        maze = grid(instance)
        goal, start = place(maze, GOAL), place(maze, START)
        every = list(paths(maze))
        best = min(len(path) for path in every if path[-1] == goal)
        label = label_path(maze)
        to_goal = distances(maze, goal)
        plans = np.stack([plan_of(path, size) for path in every])
        instances = np.repeat(instance[None], len(plans), axis=0)
        verdict = domain.check(instances, plans)
        masks = domain.action_mask(instances, plans)
        assert not verdict.violations.any()
        assert domain.keeps_instance(instances, plans).all()
        assert domain.distance(instances[:1])[0] == best - 1 == to_goal[start]
        for i, path in enumerate(every):
            solved = path[-1] == goal
            onward = [cell for cell in around(maze, path[-1]) if cell not in path]
            legal = [] if solved else sorted(r * size + c for r, c in onward)
            if edits == "full" and len(path) > 1 and not solved:
                legal.append(size * size)
            assert np.flatnonzero(masks[i]).tolist() == legal
            assert verdict.solved[i] == solved
            assert verdict.dead[i] == (not solved and not legal)
            assert verdict.details["valid"][i] == solved
            assert verdict.details["shortest"][i] == (solved and len(path) == best)
            assert verdict.details["label"][i] == (path == label)
            near = max(1 - to_goal[path[-1]] / to_goal[start], 0)
            assert verdict.score[i] == np.float32(near if shaping == "geodesic" else solved)
            met["solved"] += solved
            met["dead"] += bool(verdict.dead[i])
            met["longer"] += solved and len(path) > best
            met["other"] += solved and len(path) == best and path != label
    assert met["solved"] and met["longer"]
    assert (met["dead"] > 0) == (edits == "fill")
    assert met["other"] or size == 5


@given(seed=SEEDS)
def test_a_plan_with_a_wrong_cell_is_a_path_only_if_enumeration_has_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    domain = Maze(4)
    instance = small_mazes(4, 1, walls=0.35, seed=seed)[0]
    known = {plan_of(path, 4).tobytes() for path in paths(grid(instance))}
    plans = np.stack([np.frombuffer(known_plan, np.int8) for known_plan in sorted(known)])
    plans = plans[rng.integers(0, len(plans), 40)].copy()
    for plan in plans:
        plan[rng.integers(0, 16, rng.integers(1, 3))] = rng.integers(0, 6)
    instances = np.repeat(instance[None], len(plans), axis=0)
    is_path = np.array([plan.tobytes() in known for plan in plans])
    assert domain.keeps_instance(instances, plans).tolist() == is_path.tolist()
    verdict = domain.check(instances, plans)
    assert verdict.violations.tolist() == (~is_path).astype(int).tolist()
    assert verdict.dead[~is_path].all()
    assert not verdict.score[~is_path].any()
    assert not domain.action_mask(instances, plans)[~is_path].any()
    every = np.tile(np.arange(16, dtype=np.int32), len(plans))
    many = np.repeat(plans, 16, axis=0)
    edited = domain.edit(np.repeat(instances, 16, axis=0), many, every)
    broken = np.repeat(~is_path, 16)
    assert np.array_equal(edited[broken], many[broken])


@pytest.mark.parametrize(
    "marks",
    [
        pytest.param({}, id="nothing marked"),
        pytest.param({0: 5, 1: 5}, id="two heads"),
        pytest.param({1: 5}, id="a head off the start"),
        pytest.param({0: 4, 1: 3}, id="a circle"),
        pytest.param({0: 1}, id="out of the grid"),
        pytest.param({0: 2, 3: 5}, id="into a wall"),
        pytest.param({0: 4}, id="no head"),
        pytest.param({0: 5, 8: 4}, id="a mark beside the path"),
    ],
)
def test_a_plan_that_is_no_path_has_one_violation_and_no_legal_edit(marks: dict[int, int]) -> None:
    for options in OPTIONS:
        domain = Maze(3, *options)  # type: ignore[arg-type]
        instance = domain.read_instance(CORRIDOR)[None]
        plan = np.zeros((1, 9), np.int8)
        plan[0, list(marks)] = list(marks.values())
        verdict = domain.check(instance, plan)
        assert (verdict.violations[0], verdict.score[0]) == (1, 0.0)
        assert verdict.dead[0]
        assert not domain.action_mask(instance, plan).any()
        assert not domain.successors(instance, plan).state.size


@pytest.mark.parametrize("edits", ["fill", "full"])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_an_edit_moves_the_head_by_one_cell_or_does_nothing(edits: str, seed: int) -> None:
    """Replays every action in plain Python on the path's list of cells."""
    domain = Maze(5, edits)  # type: ignore[arg-type]
    states = states_of(domain, seed)
    before = states.plans.copy()
    many, actions = testing.every_action(domain, states)
    edited = domain.edit(many.instances, many.plans, actions)
    assert np.array_equal(states.plans, before)
    for row, action in enumerate(actions.tolist()):
        path = path_of(many.plans[row])
        assert path is not None
        if action in legal_actions(domain, many.instances[row], many.plans[row]):
            path = path[:-1] if action == 25 else [*path, divmod(action, 5)]
        assert np.array_equal(edited[row], plan_of(path, 5))


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.5, 0.99, 1.0]),
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
)
@settings(max_examples=8)
def test_the_laws_of_domains_hold(
    edits: str, shaping: str, seed: int, gamma: float, reward: str, dead_end: str
) -> None:
    domain = Maze(5, edits, shaping)  # type: ignore[arg-type]
    states = states_of(domain, seed)
    testing.check_mask(domain, states, lambda x, y: legal_actions(domain, x, y))
    testing.check_live_states(domain, states)
    testing.check_potential(domain, states)
    testing.check_successors(
        domain,
        states,
        gamma=gamma,
        reward=reward,  # type: ignore[arg-type]
        dead_end=dead_end,  # type: ignore[arg-type]
    )
    symmetry = domain.random_symmetry(np.random.default_rng(seed))
    testing.check_symmetry(domain, states, symmetry, changes=("label",))


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
def test_a_batch_equals_its_rows_one_by_one(edits: str, shaping: str) -> None:
    domain = Maze(5, edits, shaping)  # type: ignore[arg-type]
    testing.check_batch_equals_singles(domain, states_of(domain, 1, 24))


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
@given(seed=SEEDS, gamma=st.sampled_from([0.9, 1.0]), limit=st.sampled_from([3, 40]))
@settings(max_examples=6)
def test_returns_telescope_and_both_conventions_agree(
    edits: str, shaping: str, seed: int, gamma: float, limit: int
) -> None:
    domain = Maze(5, edits, shaping)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    instance = pool(5).instances[rng.integers(60)]
    episode = testing.play_episode(
        domain, instance, rng, gamma=gamma, dead_end="absorb", limit=limit
    )
    testing.check_telescoping(episode, gamma)
    testing.check_conventions(episode, gamma)


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
@given(
    seed=SEEDS,
    reward=st.sampled_from(["shaped", "sparse"]),
    limit=st.sampled_from([0, 7]),
)
@settings(max_examples=5)
def test_the_fast_engine_equals_the_engine_of_pure_functions(
    edits: str, shaping: str, seed: int, reward: str, limit: int
) -> None:
    domain = Maze(4, edits, shaping)  # type: ignore[arg-type]
    options = EngineOptions(reward=reward, limit=limit)  # type: ignore[arg-type]
    testing.check_engines(domain, pool(4).instances, options, seed=seed, num_envs=5, steps=25)


def test_an_engine_whose_pool_keeps_no_distances_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plan_envs.compiled.packed_engine.POOL_BYTES", 0)
    domain = Maze(4, "full", "geodesic")
    testing.check_engines(domain, pool(4).instances[:30], EngineOptions(), seed=1, steps=40)


def test_a_copied_environment_goes_on_like_the_original() -> None:
    env = PlanEditEnv(_task(), max_episode_steps=20)
    env.reset(seed=3)
    twin = copy.deepcopy(env)
    for _ in range(40):
        action = env.sample_legal()
        assert twin.sample_legal() == action
        one, other = env.step(action), twin.step(action)
        assert np.array_equal(one[0]["plan"], other[0]["plan"])
        if one[2] or one[3]:
            assert np.array_equal(env.reset()[0]["instance"], twin.reset()[0]["instance"])


def test_the_corridor_is_walked_to_the_goal() -> None:
    """Right, down, down, left: cells 1, 4, 7, 6; then 8 at the crossing is a dead end."""
    domain = Maze(3)
    instance = domain.read_instance(CORRIDOR)[None]
    plan = domain.initial(instance)
    for cell in (1, 4, 7, 6):
        assert not domain.check(instance, plan).solved[0]
        plan = domain.edit(instance, plan, np.array([cell], np.int32))
    assert plan.tolist() == [[4, 2, 0, 0, 2, 0, 5, 3, 0]]
    verdict = domain.check(instance, plan)
    assert (verdict.score[0], verdict.solved[0]) == (1.0, True)
    assert {name: value.tolist() for name, value in verdict.details.items()} == {
        "valid": [1.0],
        "shortest": [1.0],
        "label": [1.0],
    }
    dead = domain.edit(instance, np.array([[4, 2, 0, 0, 2, 0, 0, 5, 0]], np.int8), np.array([8]))
    assert domain.check(instance, dead).dead[0]
    undo = Maze(3, "full")
    assert not undo.check(instance, dead).dead[0]
    assert undo.edit(instance, dead, np.array([9]))[0].tolist() == [4, 2, 0, 0, 2, 0, 0, 5, 0]


def test_geodesic_scores_count_the_steps_that_are_left() -> None:
    """d(S, G) = 4: scores 0, 1/4, 1/2, 3/4, 1 along the corridor, 1/2 in its dead end."""
    domain = Maze(3, shaping="geodesic")
    instance = domain.read_instance(CORRIDOR)[None]
    plan = domain.initial(instance)
    scores = [float(domain.check(instance, plan).score[0])]
    for cell in (1, 4, 7, 6):
        plan = domain.edit(instance, plan, np.array([cell], np.int32))
        scores.append(float(domain.check(instance, plan).score[0]))
    assert scores == [0.0, 0.25, 0.5, 0.75, 1.0]
    found = domain.successors(instance, np.array([[4, 2, 0, 0, 2, 0, 0, 5, 0]], np.int8))
    assert found.action.tolist() == [6, 8]
    assert found.score.tolist() == [1.0, 0.5]
    assert found.dead.tolist() == [False, True]
    assert found.reward.tolist() == [0.25, -0.75]


def test_actions_are_cells_and_undo_comes_last() -> None:
    spec = Maze(4, "full").spec
    assert (spec.num_actions, spec.num_values, spec.num_instance_values) == (17, 5, 3)
    assert spec.action_cell.tolist() == [*range(16), -1]
    assert [spec.kind_names[kind] for kind in spec.action_kind[[0, 15, 16]]] == [
        "extend",
        "extend",
        "undo",
    ]
    assert Maze(30).spec.num_actions == Maze(30).spec.horizon == 900
    assert spec.neighbours is not None
    assert spec.neighbours[[0, 5, 15]].tolist() == [
        [-1, 4, -1, 1],
        [1, 9, 4, 6],
        [11, -1, 14, -1],
    ]
    assert spec.symbols == ".^v<>@"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2}, "size must lie in 3-64, got 2"),
        ({"size": 65}, "size must lie in 3-64, got 65"),
        ({"edits": "overwrite"}, "edits must be one of .*got 'overwrite'"),
        ({"shaping": "manhattan"}, "shaping must be one of .*got 'manhattan'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze(**options)  # type: ignore[arg-type]


def test_boards_and_actions_of_the_wrong_kind_are_refused() -> None:
    domain, board = Maze(3), np.zeros((2, 9), np.int8)
    with pytest.raises(ValueError, match=r"instances must be int8 of shape \[batch, 9\]"):
        domain.initial(np.zeros((2, 16), np.int8))
    with pytest.raises(ValueError, match=r"instances must hold 0\.\.3, got 4"):
        domain.initial(np.full((1, 9), 4, np.int8))
    with pytest.raises(ValueError, match=r"plans must hold 0\.\.5, got -1"):
        domain.check(board, np.full((2, 9), -1, np.int8))
    with pytest.raises(ValueError, match=r"actions must lie in 0\.\.8, got 9"):
        domain.edit(board, board, np.array([0, 9], np.int32))
    with pytest.raises(ValueError, match="dead_end must be"):
        domain.successors(board, board, dead_end="stop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S.#\n#.#\nG.", "row 3 of a 3x3 maze has 3 characters, got 2"),
        ("S.#\n#.#", "a 3x3 maze has 3 rows, got 2"),
        ("S.##.#G", "a 3x3 maze has 9 characters, got 7"),
        ("S.#\n#x#\nG..", "'x' at row 2, column 2 is none of"),
    ],
)
def test_a_malformed_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze(3).read_instance(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CORRIDOR, None),
        ("S  #  G  ", None),
        ("..#\n#.#\nG..", "has no start"),
        ("S..\n...\n...", "has no goal"),
        ("S.G\n...\n..G", "has 2 goals"),
        ("S##\n###\nG..", "has a goal that cannot be reached from the start"),
    ],
)
def test_a_maze_that_cannot_be_played_is_explained(text: str, reason: str | None) -> None:
    domain = Maze(3)
    assert domain.why_invalid(domain.read_instance(text)) == reason


def test_the_eight_symmetries_differ_and_turn_the_arrows() -> None:
    domain = Maze(3)
    instance = domain.read_instance(CORRIDOR)[None]
    plan = np.array([[4, 2, 0, 0, 2, 0, 0, 5, 0]], np.int8)
    images = [domain.symmetry(number) for number in range(8)]
    assert len({image.instances(instance).tobytes() for image in images}) == 8
    for image in images:
        assert domain.keeps_instance(image.instances(instance), image.plans(plan)).all()


@given(seed=SEEDS)
@settings(max_examples=10)
def test_a_path_on_the_way_leaves_as_many_edits_as_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    domain, mazes = Maze(5), pool(5)
    lengths = domain.distance(mazes.instances)
    asked = rng.integers(1, lengths + 1)
    plans = domain.advance(mazes.instances, mazes.solutions, asked, rng)
    assert domain.keeps_instance(mazes.instances, plans).all()
    # One cell of a path for every edit that was made, and the start.
    assert np.array_equal((plans > 0).sum(axis=1), lengths - asked + 1)
    way = (plans > 0) & (plans != 5)
    assert np.array_equal(plans[way], mazes.solutions[way])


def test_a_picture_shows_walls_ends_path_and_being_stuck() -> None:
    domain = Maze(3)
    instance = domain.read_instance(CORRIDOR)
    way = np.array([4, 2, 0, 0, 5, 0, 0, 0, 0], np.int8)
    stuck = np.array([4, 2, 0, 0, 2, 0, 0, 4, 5], np.int8)
    picture = domain.picture(instance, way)
    assert ["".join(row) for row in picture.symbols] == ["Sv#", "#@#", "G  "]
    assert (picture.paper[0, 2] < 100).all()
    assert picture.ink[1, 1].argmax() == 2  # blue
    red = domain.picture(instance, stuck)
    assert ["".join(row) for row in red.symbols] == ["Sv#", "#v#", "G>@"]
    assert red.ink[1, 1].argmax() == 0


def _task(size: int = 5, **options: object) -> Task:
    domain = Maze(size, **options)  # type: ignore[arg-type]
    drawn = {"size": size, "path": (3, None)}
    return Task("maze-by-hand", "PlanEdit/MazeByHand-v0", domain, drawn, maze_instances)


@pytest.mark.parametrize(("edits", "shaping"), DOMAINS)
def test_environments_pass_gymnasiums_checker_and_the_vector_checker(
    edits: str, shaping: str
) -> None:
    task = _task(edits=edits, shaping=shaping)
    check_env(PlanEditEnv(task), skip_render_check=True)

    def vector(num_envs: int, mode: AutoresetMode) -> PlanEditVectorEnv:
        return PlanEditVectorEnv(task, num_envs=num_envs, autoreset_mode=mode)

    def single() -> gym.Env[object, object]:
        return gym.wrappers.TimeLimit(PlanEditEnv(task), max_episode_steps=25)

    testing.check_vector_env(vector, single, steps=40)


def test_an_illegal_move_is_refused_or_costs_a_step() -> None:
    env = PlanEditEnv(_task(3), illegal="raise")
    env.reset(options={"instance": CORRIDOR})
    with pytest.raises(ValueError, match="action 3 is illegal"):
        env.step(3)
    many = PlanEditVectorEnv(_task(3), num_envs=2, illegal="raise")
    many.reset(options={"instance": CORRIDOR})
    with pytest.raises(ValueError, match="action 3 in environment 1 is illegal"):
        many.step(np.array([1, 3]))
    env = PlanEditEnv(_task(3))
    before, _ = env.reset(options={"instance": CORRIDOR})
    after, reward, terminated, _, info = env.step(3)
    assert info["illegal_action"]
    assert (reward, terminated) == (0.0, False)
    assert np.array_equal(before["plan"], after["plan"])


def test_an_environment_starts_from_a_text_and_refuses_a_bad_one() -> None:
    env = PlanEditEnv(_task(3))
    observation, _ = env.reset(seed=0, options={"instance": CORRIDOR})
    assert observation["instance"].tolist() == [2, 0, 1, 1, 0, 1, 3, 0, 0]
    assert np.flatnonzero(observation["action_mask"]).tolist() == [1]
    with pytest.raises(ValueError, match="instance"):
        env.reset(options={"instance": "..#\n#.#\nG.."})


def test_the_oracle_solves_every_maze_by_its_label_and_straight_lines_solve_few() -> None:
    mazes = maze_instances(size=10, num=200, split="test")
    for edits in ("fill", "full"):
        domain = Maze(10, edits)  # type: ignore[arg-type]
        policies = reference_policies(domain, mazes)
        best = evaluate_policy(policies["oracle"], domain, mazes)
        assert (best.details["label"], best.edits) == (1.0, int(mazes.ratings.sum() - 200))
        line = evaluate_policy(policies["nearest-to-goal"], domain, mazes, horizon=60)
        blind = evaluate_policy(policies["random-legal"], domain, mazes, horizon=60)
        assert 0.7 > line.success_rate > 0.25 > blind.success_rate


# The generator.


@pytest.mark.parametrize(
    ("size", "path", "walls"),
    [(3, (2, 4), (0.0, 0.3)), (6, (8, 11), (0.3, 0.5)), (64, (40, 60), (0.3, 0.3))],
)
def test_generated_mazes_keep_the_asked_ranges(
    size: int, path: tuple[int, int], walls: tuple[float, float]
) -> None:
    mazes = maze_instances(size=size, num=40, path=path, walls=walls)
    domain = Maze(size)
    verdict = domain.check(mazes.instances, mazes.solutions)
    assert (verdict.details["label"] == 1).all()
    assert np.array_equal(mazes.ratings, (mazes.solutions > 0).sum(axis=1))
    assert path[0] <= mazes.ratings.min() <= mazes.ratings.max() <= path[1]
    share = (mazes.instances == WALL).mean()
    slack = 4 * (0.25 / mazes.instances.size) ** 0.5 + (0.15 if size < 64 else 0)
    assert walls[0] - slack < share < walls[1] + slack


def test_the_first_mazes_of_a_set_do_not_depend_on_its_size() -> None:
    few, many = (maze_instances(size=8, num=num, seed=4) for num in (5, 40))
    assert np.array_equal(few.instances, many.instances[:5])
    other = maze_instances(size=8, num=5, seed=5)
    assert not np.isin(other.keys, many.keys).any()


def _images(instances: Int8Array, size: int) -> list[Int8Array]:
    """All eight images, as they are and with start and goal exchanged, without plan_envs."""
    boards = instances.reshape(-1, size, size)
    turned = [np.rot90(boards, k, axes=(1, 2)) for k in range(4)]
    turned += [image[:, :, ::-1] for image in turned]
    exchange = np.array([0, 1, 3, 2], np.int8)
    return [x.reshape(len(boards), -1) for image in turned for x in (image, exchange[image])]


def test_splits_share_no_maze_up_to_symmetry_and_exchange_of_the_ends() -> None:
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "validation", "test"):
        mazes = maze_instances(size=4, num=300, split=split, path=(3, None), walls=(0.1, 0.5))
        images = _images(mazes.instances, 4)
        for image in images:
            assert set(split_of(image, size=4)) == {split}
        seen[split] = {maze.tobytes() for maze in images[0]}
        for other, known in seen.items():
            if other != split:
                assert not any(maze.tobytes() in known for image in images for maze in image)
    assert len(seen["train"]) > 250


def test_the_splits_hold_eight_one_and_one_tenth() -> None:
    shares = split_of(small_mazes(6, 2000, walls=0.3, seed=1), size=6)
    assert shares.count("train") == pytest.approx(1600, abs=75)  # four standard deviations
    assert shares.count("test") == pytest.approx(200, abs=55)


def test_where_many_mazes_fit_the_generator_is_plain_rejection() -> None:
    """Path lengths and wall shares of 6x6 mazes against rejection with all draws of numpy's."""
    rng = np.random.default_rng(0)
    domain = Maze(6)
    shares = rng.uniform(0.2, 0.5, (30_000, 1))
    boards = (rng.random((30_000, 36)) < shares).astype(np.int8)
    keys = rng.random(boards.shape) - 2.0 * boards
    ends = np.argsort(keys, axis=1)[:, -2:]
    np.put_along_axis(boards, ends[:, :1], START, axis=1)
    np.put_along_axis(boards, ends[:, 1:], GOAL, axis=1)
    lengths = domain.distance(boards) + 1
    fits = lengths >= 8
    plain = np.bincount(np.minimum(lengths[fits], 14), minlength=15)[8:]
    mazes = maze_instances(size=6, num=4000, path=(8, None), walls=(0.2, 0.5))
    ours = np.bincount(np.minimum(mazes.ratings.astype(int), 14), minlength=15)[8:]
    expected = (plain + ours) / (plain.sum() + ours.sum())
    chi = sum(
        ((counts - expected * counts.sum()) ** 2 / (expected * counts.sum())).sum()
        for counts in (plain, ours)
    )
    assert chi < 24  # 6 degrees of freedom: 0.0005
    gap = (boards[fits] == WALL).mean() - (mazes.instances == WALL).mean()
    assert abs(gap) < 0.008  # a standard deviation is about 0.002


@given(seed=SEEDS, walls=st.floats(0.2, 0.6))
@settings(max_examples=40)
def test_no_wall_pattern_with_a_fitting_pair_is_dropped_unseen(seed: int, walls: float) -> None:
    """The screening against all distances: a pattern may pass in vain, never fail in vain."""
    size = 9
    free = np.random.default_rng(seed).random((size, size)) >= walls
    maze = {cell: FREE if free[cell] else WALL for cell in np.ndindex(size, size)}
    reached = {cell: distances(maze, cell) for cell in maze if maze[cell] == FREE}
    longest = max((max(found.values()) for found in reached.values()), default=0)
    bits = np.zeros(size + 2, np.uint64)
    bits[1:-1] = (free * (np.uint64(1) << np.arange(size, dtype=np.uint64))).sum(axis=1)
    rows = tuple(np.zeros((6, size + 2), np.uint64))
    template = np.full((size + 2, size + 2), -2, np.int16)
    template[1:-1, 1:-1][free] = -1
    flat, reach = template.ravel(), np.empty((size + 2) ** 2, np.int16)
    space = (np.empty_like(flat), np.empty((size + 2) ** 2, np.int32))
    for edits in range(1, 40):
        passes = bool(generation._may_fit(bits, edits, rows))
        passes &= bool(generation._spread(flat, size + 2, edits, space, reach))
        assert passes or longest < edits
        assert not passes or edits <= 2 * longest
    for (row, column), found in reached.items():
        for (r, c), apart in found.items():
            near = reach[(row + 1) * (size + 2) + column + 1], reach[(r + 1) * (size + 2) + c + 1]
            assert near[0] + near[1] >= apart


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2}, "size must lie in 3-64"),
        ({"split": "dev"}, "split must be one of .*got 'dev'"),
        ({"num": -1}, "num must be >= 0, got -1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"path": 12}, r"path must be a pair \(low, high\), got 12"),
        ({"path": (1, 5)}, "2 <= low <= high <= 25, got"),
        ({"path": (9, 5)}, "2 <= low <= high <= 25, got"),
        ({"walls": (0.5, 0.2)}, r"walls must be \(low, high\) with 0 <= low <= high <= 0\.99"),
        ({"walls": 0.3}, r"walls must be a pair \(low, high\), got 0.3"),
        ({"path": (25, None), "num": 1}, r"no 5x5 maze of split 'train' .*widen the ranges"),
    ],
)
def test_a_wrong_argument_of_the_generator_is_named(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        maze_instances(**{"size": 5, "num": 3, **options})  # type: ignore[arg-type]


# The public file.


@pytest.fixture(scope="module")
def public_file(data_folder: Path) -> Path:
    path = data_folder / "maze" / "maze-30x30-hard.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="module")
def public(public_file: Path) -> InstanceSet:
    return read_maze_csv(public_file)


def test_all_public_mazes_are_solved_by_their_labels(
    public: InstanceSet, public_file: Path
) -> None:
    verdict = Maze(30).check(public.instances, public.solutions)
    assert len(public) == 1000
    assert verdict.solved.all()
    for name in ("valid", "shortest", "label"):
        assert (verdict.details[name] == 1).all()
    assert np.array_equal(public.ratings, (public.solutions > 0).sum(axis=1))
    assert public.ratings.min() == 110
    with public_file.open(newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    on_path = np.stack([np.isin(list(answer), ["o", "S", "G"]) for answer in answers])
    assert np.array_equal(on_path, public.solutions > 0)


@pytest.mark.parametrize("number", range(8))
def test_public_mazes_come_back_from_every_symmetry(public: InstanceSet, number: int) -> None:
    symmetry = Maze(30).symmetry(number)
    back = symmetry.inverse()
    x, y = symmetry.instances(public.instances), symmetry.plans(public.solutions)
    assert np.array_equal(back.instances(x), public.instances)
    assert np.array_equal(back.plans(y), public.solutions)
    verdict = Maze(30).check(x[::5], y[::5])
    assert (verdict.details["shortest"] == 1).all()
    assert set(split_of(x[:20], size=30)) == set(split_of(public.instances[:20], size=30))


def test_generated_30x30_mazes_look_like_the_public_ones(public: InstanceSet) -> None:
    """Path of 110 cells or more; mean share of walls and mean path within what 16 mazes tell."""
    mazes = maze_instances(num=16, seed=9)
    assert mazes.ratings.min() >= 110
    assert mazes.ratings.mean() == pytest.approx(public.ratings.mean(), abs=6)
    shares = [(boards.instances == WALL).mean() for boards in (mazes, public)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


HEADER = "source,question,answer,rating\n"
QUESTION = "S #" + "# #" + "G  "
ANSWER = "So#" + "#o#" + "Go "


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mazes.csv"
    path.write_text(text)
    return path


def test_a_small_file_is_read_with_and_without_answers(tmp_path: Path) -> None:
    text = HEADER + f",{QUESTION},{ANSWER},7\n,{QUESTION},,\n,{QUESTION.replace(' ', '.')},,\n"
    mazes = read_maze_csv(_written(tmp_path, text))
    assert mazes.ratings.tolist() == [7, 5, 5]
    assert mazes.solutions.tolist() == [[4, 2, 0, 0, 2, 0, 5, 3, 0]] * 3
    assert len(read_maze_csv(tmp_path / "mazes.csv", limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f",{QUESTION[:-1]},,", ":3: question: a 3x3 maze has 9 characters, got 8"),
        (f",x{QUESTION[1:]},,", ":3: question: 'x' at row 1, column 1 is none of"),
        (f",{QUESTION.replace('S', ' ')},,", ":3: question has 0 starts, not one"),
        (f",{QUESTION.replace('# #', '# G')},,", ":3: question has 2 goals, not one"),
        (",S ##########G  ,,", ":3: question: a 3x3 maze has 9 characters, got 15"),
        (",S ####G  ,,", ":3: question has a goal that cannot be reached from the start"),
        (f",{QUESTION},{ANSWER[:-1]},", ":3: answer has 8 characters, the question 9"),
        (f",{QUESTION},{QUESTION},", ":3: answer is no path from the start to the goal: 0 cells"),
        (f",{QUESTION},So##o#Goo,", ":3: answer is no path .*: 4 cells 'o'"),
        (f",{QUESTION},Soo#o#Go ,", ":3: answer changes the maze at row 1, column 3"),
        (",S     G  ,Soo  oGoo,", ":3: answer takes 7 cells, the shortest path 3"),
        (f",{QUESTION},{ANSWER},long", ":3: rating must be a number, got 'long'"),
        (f",{QUESTION},{ANSWER},5,6", r":3: more fields than the header, got \['6'\]"),
    ],
)
def test_a_malformed_row_is_refused_with_file_line_and_reason(
    tmp_path: Path, row: str, message: str
) -> None:
    path = _written(tmp_path, HEADER + f",{QUESTION},{ANSWER},5\n{row}\n")
    with pytest.raises(ValueError, match=message) as error:
        read_maze_csv(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_without_mazes_or_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mazes"):
        read_maze_csv(_written(tmp_path, HEADER))
    with pytest.raises(ValueError, match=":1: header must name"):
        read_maze_csv(_written(tmp_path, "maze,path\n"))
    with pytest.raises(ValueError, match=r"mazes\.csv:2: question: size must lie in 3-64, got 2"):
        read_maze_csv(_written(tmp_path, HEADER + ",S #G,,\n"))
    with pytest.raises(ValueError, match=":2: question: a 4x4 maze has 16 characters, got 9"):
        read_maze_csv(_written(tmp_path, HEADER + f",{QUESTION},,\n"), size=4)


def test_an_engine_draws_only_mazes_of_its_pool() -> None:
    domain, mazes = Maze(5), pool(5)
    engine = make_engine(domain, 50, mazes.instances, EngineOptions())
    engine.streams[:] = np.arange(50)
    engine.draw(np.arange(50))
    known = {maze.tobytes() for maze in mazes.instances}
    drawn = {maze.tobytes() for maze in engine.instances}
    assert drawn <= known
    assert len(drawn) > 20
