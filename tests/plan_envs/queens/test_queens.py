"""N-Queens: rules against oracles by hand and by enumeration, laws, splits, engine, shells."""

import copy
import csv
import pickle
from functools import cache
from itertools import combinations
from pathlib import Path

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
from plan_envs.engine import NEXT_STEP, EngineOptions, PureEngine, StepArrays
from plan_envs.engines import make_engine
from plan_envs.env import PlanEditEnv
from plan_envs.evaluation import evaluate_policy, oracle, random_legal
from plan_envs.queens.instances import (
    canonical_boards,
    count_completions,
    enumerate_solutions,
    queens_instances,
    read_queens_csv,
    split_of_classes,
    symmetry_class,
)
from plan_envs.queens.rules import Queens
from plan_envs.rendering import CONFLICT_PAPER, EDIT_INK, GIVEN_INK, render_ansi
from plan_envs.vector_env import PlanEditVectorEnv

SEEDS = st.integers(0, 2**32 - 1)
SPLITS = ("train", "validation", "test")


def _rules(*sizes: int) -> list[object]:
    """Every edit set and mask of these sizes."""
    return [
        pytest.param(Queens(n, edits, mask), id=f"{n}-{edits}-{mask}")
        for n in sizes
        for edits in ("fill", "full")
        for mask in ("constraint", "givens")
    ]


@cache
def _attacks(n: int) -> NDArray[np.float64]:
    """[square, square], 1 or 0: the rules of chess, independent of plan_envs."""
    row, column = np.divmod(np.arange(n * n), n)
    down, right = row[:, None] - row, column[:, None] - column
    same_line = (down == 0) | (right == 0) | (abs(down) == abs(right))
    return (same_line & ((down != 0) | (right != 0))).astype(np.float64)


def _board(text: str) -> Int8Array:
    """Rows of Q and '.', shape [1, cell]."""
    return np.array([[symbol == "Q" for symbol in "".join(text.split())]], np.int8)


def _states(domain: Queens, seed: int, num: int = 6) -> testing.States:
    """Random edits from instances, and solutions with a queen too few, too many or misplaced."""
    rng = np.random.default_rng(seed)
    n = domain.n
    found = queens_instances(n=n, num=num, seed=int(rng.integers(50)), holdout="instances")
    states = testing.random_states(domain, found.instances, rng, max_edits=n)
    for row in range(num // 2):
        states.plans[row] = found.solutions[row]
        open_squares = np.flatnonzero(found.instances[row] == 0)
        flipped = rng.choice(open_squares, rng.integers(0, 3), replace=False)
        states.plans[row, flipped] ^= 1
    return states


# The rules


def test_eight_queens_has_64_actions_and_full_edits_129() -> None:
    assert Queens().spec.num_actions == 64
    full = Queens(edits="full").spec
    assert full.num_actions == 64 + 64 + 1
    kinds = [full.kind_names[kind] for kind in full.action_kind]
    assert kinds == ["place"] * 64 + ["remove"] * 64 + ["stop"]
    assert full.action_cell.tolist() == [*range(64), *range(64), -1]
    assert full.action_value.tolist() == [1] * 64 + [0] * 65
    assert np.flatnonzero(Queens(edits="full").is_stop(np.arange(129))).tolist() == [128]
    assert not Queens().is_stop(np.arange(64)).any()
    assert (Queens(9).spec.horizon, Queens(9, "full").spec.horizon) == (9, 18)


@pytest.mark.parametrize("n", [4, 7, 8])
def test_two_squares_share_a_group_when_queens_there_attack(n: int) -> None:
    spec = Queens(n).spec
    assert list(spec.groups) == ["row", "column", "diagonal", "antidiagonal"]
    together = sum((labels[:, None] == labels).astype(int) for labels in spec.groups.values())
    np.fill_diagonal(together, 0)
    assert np.array_equal(together, _attacks(n))


@pytest.mark.parametrize("n", [4, 8])
def test_a_solution_has_one_queen_in_each_group_that_may_not_be_empty(n: int) -> None:
    spec = Queens(n).spec
    for name, labels in spec.groups.items():
        counts = np.array([np.bincount(labels[b > 0]).max() for b in enumerate_solutions(n)])
        assert (counts == 1).all()
        assert (name in spec.at_most_one) == (labels.max() + 1 > n)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 3}, r"n must lie in 4\.\.32, got 3"),
        ({"n": 33}, "got 33"),
        ({"edits": "overwrite"}, "edits must be one of .*got 'overwrite'"),
        ({"mask": "all"}, "mask must be one of .*got 'all'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Queens(**options)  # type: ignore[arg-type]


def test_three_queens_in_a_row_are_three_pairs_and_blockers_do_not_help() -> None:
    """3 queens - 2 x 3 pairs; rows 2 to 4: column 4 is free in each, and row 4 has more."""
    plan = _board("QQQ. .... .... ....")
    verdict = Queens(4).check(np.zeros_like(plan), plan)
    assert verdict.violations.tolist() == [3]
    # Row 2: (2, 4) lies on the diagonal of (1, 3): attacked, as is all of row 2. Row 3: (3, 4) on
    # that of (1, 2). Row 4: (4, 4) on that of (1, 1). So three rows are starved.
    assert verdict.score.tolist() == [3 - 2 * 3 - 5 * 3]


def test_a_row_without_free_square_kills_fill_edits_only() -> None:
    """Queens at (1, 1) and (2, 3) on 4x4 attack all of row 3 and leave (4, 2): 2 - 5 = -3."""
    plan = _board("Q... ..Q. .... ....")
    blank = np.zeros_like(plan)
    assert Queens(4).check(blank, plan).score.tolist() == [-3.0]
    assert Queens(4).check(blank, plan).dead.tolist() == [True]
    assert Queens(4, "full").check(blank, plan).dead.tolist() == [False]
    mask = Queens(4).action_mask(blank, plan)
    assert np.flatnonzero(mask[0]).tolist() == [3 * 4 + 1]


def test_a_valid_board_that_moves_a_given_queen_is_not_solved() -> None:
    plan = _board(".Q.. ...Q Q... ..Q.")
    instance = _board("..Q. .... .... ....")
    assert Queens(4).check(instance, plan).solved.tolist() == [False]
    assert Queens(4).check(plan, plan).solved.tolist() == [True]
    assert Queens(4).keeps_instance(instance, plan).tolist() == [False]
    assert Queens(4).keeps_instance(plan, plan).tolist() == [True]


@pytest.mark.parametrize("domain", _rules(4))
def test_the_checker_agrees_with_matrices_on_all_65536_boards_of_4x4(domain: Queens) -> None:
    plans = (np.arange(2**16)[:, None] >> np.arange(16) & 1).astype(np.int8)
    _check_verdicts(domain, np.zeros_like(plans), plans)


@pytest.mark.parametrize("n", [5, 6, 9, 32])
def test_the_checker_agrees_with_matrices_on_random_boards(n: int) -> None:
    rng = np.random.default_rng(n)
    plans = (rng.random((200, n * n)) < rng.uniform(0, 0.4, (200, 1))).astype(np.int8)
    instances = plans * (rng.random(plans.shape) < 0.5).astype(np.int8)
    instances[::2, 0] = 1
    _check_verdicts(Queens(n), instances, plans)
    _check_verdicts(Queens(n, "full"), instances, plans)


def _check_verdicts(domain: Queens, instances: Int8Array, plans: Int8Array) -> None:
    n, attacks = domain.n, _attacks(domain.n)
    verdict = domain.check(instances, plans)
    wide = plans.astype(np.float64)
    hits = wide @ attacks
    pairs = (hits * wide).sum(axis=1) // 2
    free = ((hits == 0) & (plans == 0)).reshape(-1, n, n).any(axis=2)
    starved = (~free & ~plans.reshape(-1, n, n).any(axis=2)).sum(axis=1)
    queens = wide.sum(axis=1)
    solved = (queens == n) & (pairs == 0) & ((plans - instances) >= 0).all(axis=1)
    assert np.array_equal(verdict.violations, pairs)
    assert np.array_equal(verdict.score, queens - 2 * pairs - 5 * starved)
    assert np.array_equal(verdict.solved, solved)
    dead = (domain.edits == "fill") & ((pairs > 0) | (starved > 0)) & ~solved
    assert np.array_equal(verdict.dead, dead)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_exactly_the_enumerated_boards_are_solved_among_all_placements(n: int) -> None:
    """All choices of a column for every row, n^n boards: those of the list and no others."""
    columns = np.indices((n,) * n).reshape(n, -1).T
    plans = (columns[:, :, None] == np.arange(n)).astype(np.int8).reshape(len(columns), -1)
    solved = Queens(n).check(np.zeros_like(plans), plans).solved
    assert np.array_equal(plans[solved], enumerate_solutions(n))


# Laws


@pytest.mark.parametrize("domain", _rules(4, 6, 9))
@given(seed=SEEDS)
@settings(max_examples=3)
def test_the_mask_equals_brute_force_legality(domain: Queens, seed: int) -> None:
    n, attacks = domain.n, _attacks(domain.n)

    def legal(instance: Int8Array, plan: Int8Array) -> list[int]:
        hits = attacks @ plan
        actions = [
            cell
            for cell in range(n * n)
            if not plan[cell] and (domain.mask == "givens" or hits[cell] == 0)
        ]
        if domain.edits == "full":
            actions += [n * n + cell for cell in range(n * n) if plan[cell] and not instance[cell]]
            if not (plan.sum() == n and (hits * plan).sum() == 0):
                actions.append(2 * n * n)
        return actions

    testing.check_mask(domain, _states(domain, seed), legal)


@pytest.mark.parametrize("domain", _rules(4, 8, 13))
@given(seed=SEEDS)
@settings(max_examples=3)
def test_edits_and_potentials_obey_the_laws(domain: Queens, seed: int) -> None:
    states = _states(domain, seed)
    testing.check_edits(domain, states)
    testing.check_live_states(domain, states)
    testing.check_potential(domain, states)
    testing.check_batch_equals_singles(domain, states)


@pytest.mark.parametrize("domain", _rules(4, 5, 8, 13))
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.5, 0.99, 1.0]),
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
)
@settings(max_examples=12)
def test_successors_are_edit_and_check_one_by_one(
    domain: Queens, seed: int, gamma: float, reward: str, dead_end: str
) -> None:
    states = _states(domain, seed)
    testing.check_successors(domain, states, gamma=gamma, reward=reward, dead_end=dead_end)
    # Plans that lost a given queen: whatever edits they allow, the outcomes agree.
    states.instances[:, 1] = 1
    testing.check_successors(domain, states, gamma=gamma, reward=reward, dead_end=dead_end)


@pytest.mark.parametrize("domain", _rules(8, 12))
def test_successors_of_boards_with_many_attacks_are_edit_and_check(domain: Queens) -> None:
    rng = np.random.default_rng(0)
    plans = (rng.random((200, domain.n**2)) < rng.uniform(0, 0.3, (200, 1))).astype(np.int8)
    instances = plans * (rng.random(plans.shape) < 0.5).astype(np.int8)
    states = testing.States(instances=instances, plans=plans)
    testing.check_successors(domain, states, dead_end="continue")


def test_the_queen_in_the_last_open_row_ends_the_episode() -> None:
    """Rows 2 to 12 hold queens, some in one column; of row 1 they leave squares 7 to 11 free."""
    plan = Queens(12).read_instance("0 2 2 1 2 1 6 6 5 4 3 2")[None]
    blank = np.zeros_like(plan)
    for domain in (Queens(12), Queens(12, mask="givens")):
        found = domain.successors(blank, plan, dead_end="continue")
        lasts = [6, 7, 8, 9, 10] if domain.mask == "constraint" else []
        assert found.action[found.terminated].tolist() == lasts
        assert not found.solved.any()
        states = testing.States(instances=blank, plans=plan)
        testing.check_successors(domain, states, dead_end="continue")


@pytest.mark.parametrize("domain", _rules(32))
def test_successors_of_the_largest_board_are_edit_and_check(domain: Queens) -> None:
    testing.check_successors(domain, _states(domain, 5, 2))


@pytest.mark.parametrize("domain", _rules(4, 7, 8))
@pytest.mark.parametrize("index", range(8))
def test_symmetries_commute_with_the_domain(domain: Queens, index: int) -> None:
    """The four that turn rows into columns change which rows are starved, so score and dead."""
    symmetry = domain.symmetry(index)
    changes = () if index in (0, 2, 5, 7) else ("score", "dead")
    testing.check_symmetry(domain, _states(domain, index), symmetry, changes=changes)


def test_there_are_eight_symmetries_and_four_of_them_keep_rows() -> None:
    board = np.zeros((1, 64), np.int8)
    board[0, [0, 1, 10]] = 1
    symmetries = [Queens().symmetry(index) for index in range(8)]
    assert len({symmetry.plans(board).tobytes() for symmetry in symmetries}) == 8
    rows = np.zeros((8, 8), np.int8)
    rows[2] = 1
    keep = [int(s.plans(rows.reshape(1, 64)).reshape(8, 8).all(axis=1).sum()) for s in symmetries]
    assert [bool(count) for count in keep] == [index in (0, 2, 5, 7) for index in range(8)]
    rng = np.random.default_rng(0)
    drawn = {Queens().random_symmetry(rng).plans(board).tobytes() for _ in range(100)}
    assert drawn == {symmetries[index].plans(board).tobytes() for index in (0, 2, 5, 7)}


@pytest.mark.parametrize("domain", _rules(5, 8))
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.9, 0.99, 1.0]),
    dead_end=st.sampled_from(["absorb", "continue"]),
)
@settings(max_examples=8)
def test_returns_telescope_under_both_conventions(
    domain: Queens, seed: int, gamma: float, dead_end: str
) -> None:
    rng = np.random.default_rng(seed)
    instance = queens_instances(n=domain.n, num=1, seed=seed, holdout="instances").instances[0]
    episode = testing.play_episode(
        domain, instance, rng, gamma=gamma, dead_end=dead_end, limit=int(rng.integers(1, 20))
    )
    testing.check_telescoping(episode, gamma)
    testing.check_conventions(episode, gamma)


@pytest.mark.parametrize("domain", _rules(4, 8, 13, 32))
@given(
    seed=SEEDS,
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
    limit=st.sampled_from([0, 5]),
)
@settings(max_examples=4)
def test_the_fast_engine_equals_the_engine_of_pure_functions(
    domain: Queens, seed: int, reward: str, dead_end: str, limit: int
) -> None:
    """Also from boards whose given queens attack each other."""
    pool = queens_instances(n=domain.n, num=6, seed=seed, holdout="instances").instances.copy()
    rng = np.random.default_rng(seed)
    pool[:2] = rng.random((2, domain.n**2)) < 0.1
    options = EngineOptions(reward=reward, dead_end=dead_end, limit=limit)
    steps = 20 if domain.n < 32 else 6
    testing.check_engines(domain, pool, options, seed=seed, num_envs=5, steps=steps)


@pytest.mark.parametrize("domain", _rules(5, 8))
def test_the_engine_agrees_on_plans_that_lost_their_given_queens(domain: Queens) -> None:
    """Loaded plans need not keep the givens: such a plan is never solved, its givens stay away."""
    instances = enumerate_solutions(domain.n)[:3]
    plans = instances.copy()
    plans.reshape(3, domain.n, domain.n)[:, : domain.n - 1] = 0
    options = EngineOptions(dead_end="continue")
    own = make_engine(domain, 3, instances, options)
    pure = PureEngine(domain, 3, instances, options)
    for engine in (own, pure):
        engine.load(np.arange(3), instances, plans)
    for _ in range(4):
        assert np.array_equal(own.masks, pure.masks)
        assert np.array_equal(own.plans, pure.plans)
        actions = np.maximum(pure.sample(), 0)
        outs = [StepArrays.empty(3, domain.spec) for _ in range(2)]
        for engine, out in zip((own, pure), outs, strict=True):
            engine.step(actions, NEXT_STEP, out)
        for one, other in zip(outs[0], outs[1], strict=True):
            assert np.array_equal(one, other)
        assert not outs[0].solved.any()
        if own.finished.any():  # a plan without a legal edit is over
            break


def test_a_copied_engine_goes_on_as_the_original_does() -> None:
    engine = make_engine(Queens(), 4, queens_instances(num=5).instances, EngineOptions())
    engine.draw(np.arange(4))
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert np.array_equal(twin.sample(), copy.deepcopy(engine).sample())
        twin.draw(np.arange(4))
        assert not np.shares_memory(twin.plans, engine.plans)


def test_the_random_states_meet_what_the_laws_are_about() -> None:
    """Solved and dead plans, attacking pairs and starved rows, or the laws above would be idle."""
    domain = Queens(8, "fill", "givens")
    states = [_states(domain, seed, 8) for seed in range(20)]
    instances = np.concatenate([batch.instances for batch in states])
    plans = np.concatenate([batch.plans for batch in states])
    verdict = domain.check(instances, plans)
    starved = (plans.sum(axis=1) - 2 * verdict.violations - verdict.score) / 5
    assert verdict.solved.any()
    assert verdict.dead.any()
    assert (verdict.violations > 0).any()
    assert (starved > 0).any()
    assert domain.successors(instances, plans).solved.any()


# Solutions, completions, classes


@pytest.mark.parametrize(
    ("n", "number", "classes"),
    [
        (4, 2, 1),
        (5, 10, 2),
        (6, 4, 1),
        (7, 40, 6),
        (8, 92, 12),
        (9, 352, 46),
        (10, 724, 92),
        (11, 2680, 341),
        (12, 14200, 1787),
    ],
)
def test_the_number_of_solutions_is_the_published_one(n: int, number: int, classes: int) -> None:
    """OEIS A000170 (solutions) and A002562 (up to symmetry)."""
    solutions = enumerate_solutions(n)
    assert len(np.unique(solutions, axis=0)) == len(solutions) == number
    assert Queens(n).check(np.zeros_like(solutions), solutions).solved.all()
    assert len(np.unique(symmetry_class(solutions, n=n))) == classes


def test_all_92_boards_come_back_through_every_symmetry() -> None:
    boards = enumerate_solutions(8)
    known = {board.tobytes() for board in boards}
    keys = symmetry_class(boards, n=8)
    for index in range(8):
        symmetry = Queens().symmetry(index)
        images = symmetry.plans(boards)
        assert {board.tobytes() for board in images} == known
        assert np.array_equal(symmetry.inverse().plans(images), boards)
        assert np.array_equal(symmetry_class(images, n=8), keys)
        assert np.array_equal(canonical_boards(images, n=8), canonical_boards(boards, n=8))


def test_the_public_boards_load_and_are_solved_by_their_labels(data_folder: Path) -> None:
    path = data_folder / "n-queens" / "eight_queens.csv"
    found = read_queens_csv(path)
    assert len(found) == 60
    assert Queens().check(found.instances, found.solutions).solved.all()
    known = {board.tobytes() for board in enumerate_solutions(8)}
    assert {board.tobytes() for board in found.solutions} <= known
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    texts = np.concatenate([_board(row["board"]) for row in rows])
    assert np.array_equal(found.solutions, texts)
    labels = np.array([row["class"] for row in rows])
    keys = symmetry_class(found.solutions, n=8)
    assert len(set(labels)) == len(set(keys.tolist())) == 8
    assert len(set(zip(labels.tolist(), keys.tolist(), strict=True))) == 8
    for index in range(8):
        symmetry = Queens().symmetry(index)
        assert np.array_equal(
            symmetry.inverse().plans(symmetry.plans(found.solutions)), found.solutions
        )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("class,text\n0,Q", ":1: header must name the column board"),
        ("class,board\n0,Q..", r":2: board must have n \* n squares"),
        ("class,board\n0,.Q.....QQ.....Q.\n0,.Q.x...QQ.....Q.", ":3: board must hold Q and"),
        ("class,board\n0,.Q......Q.....Q.", ":2: board must hold 4 queens that do not attack"),
        ("class,board\n0,QQ.....QQ.......", ":2: board must hold 4 queens that do not attack"),
        ("class,board\n", ": no boards"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(
    tmp_path: Path, lines: str, message: str
) -> None:
    path = tmp_path / "boards.csv"
    path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_queens_csv(path)


@pytest.mark.parametrize("n", [6, 8, 10])
def test_completions_are_counted_as_the_list_of_solutions_says(n: int) -> None:
    solutions = enumerate_solutions(n)
    rng = np.random.default_rng(n)
    boards = solutions[rng.integers(len(solutions), size=200)]
    boards = boards * (rng.random(boards.shape) < rng.random((200, 1))).astype(np.int8)
    boards[::5, rng.integers(n * n)] = 1  # some of these have no completion
    expected = np.array([(solutions >= board).all(axis=1).sum() for board in boards])
    assert expected.min() == 0
    assert np.array_equal(count_completions(boards, n=n), expected)
    assert np.array_equal(count_completions(boards, n=n, limit=2), np.minimum(expected, 2))


def test_large_boards_are_completed_too() -> None:
    found = queens_instances(n=32, num=4, given=(8, 16))
    assert count_completions(found.instances, n=32, limit=1).tolist() == [1] * 4
    blank = np.zeros((1, 20 * 20), np.int8)
    assert count_completions(blank, n=20, limit=50).tolist() == [50]


# Instances and splits


@pytest.mark.parametrize("n", [7, 8, 9])
def test_all_completions_of_an_instance_lie_in_classes_of_its_split(n: int) -> None:
    """By brute force over the list of solutions; this is what held out means here."""
    solutions = enumerate_solutions(n)
    keys = symmetry_class(solutions, n=n)
    split_of = split_of_classes(n)
    assert {split_of[int(key)] for key in keys} == set(SPLITS)
    for split in SPLITS:
        found = queens_instances(n=n, split=split, num=150)
        for instance, solution in zip(found.instances, found.solutions, strict=True):
            completions = (solutions >= instance).all(axis=1)
            assert {split_of[int(key)] for key in keys[completions]} == {split}
            assert (solution >= instance).all()
            assert completions[(solutions == solution).all(axis=1)].tolist() == [True]


def test_eight_queens_trains_on_8_classes_and_holds_out_2_and_2() -> None:
    names = list(split_of_classes(8).values())
    assert [names.count(split) for split in SPLITS] == [8, 2, 2]


@pytest.mark.parametrize("holdout", ["classes", "instances"])
@pytest.mark.parametrize("n", [7, 8, 14])
def test_splits_share_no_instance_up_to_symmetry(n: int, holdout: str) -> None:
    sets = [queens_instances(n=n, split=split, num=150, holdout=holdout) for split in SPLITS]
    for one, other in combinations(sets, 2):
        assert not np.isin(
            symmetry_class(one.instances, n=n), symmetry_class(other.instances, n=n)
        ).any()
        if holdout == "classes":
            assert not np.isin(
                symmetry_class(one.solutions, n=n), symmetry_class(other.solutions, n=n)
            ).any()


def test_of_the_ten_boards_with_one_queen_nine_are_in_train_and_none_in_test() -> None:
    """The page says so, and that the test puzzles of nqueens8 begin with two queens."""
    found = {}
    for split in ("train", "validation"):
        boards = queens_instances(n=8, split=split, num=300, given=1, holdout="instances")
        found[split] = len(set(symmetry_class(boards.instances, n=8).tolist()))
    assert found == {"train": 9, "validation": 1}
    with pytest.raises(ValueError, match="no 8x8 board of split 'test' with 1-1 given queens"):
        queens_instances(n=8, split="test", num=1, given=1, holdout="instances")


def test_symmetric_images_of_an_instance_belong_to_its_split() -> None:
    """Were an image of a test instance found among the training instances, the splits would leak.

    Every image of a class's boards is in the class, so all completions of an image stay in it.
    """
    solutions = enumerate_solutions(8)
    split_of = split_of_classes(8)
    splits = np.array([split_of[int(key)] for key in symmetry_class(solutions, n=8)])
    found = queens_instances(split="test", num=60)
    for index in range(8):
        for image in Queens().symmetry(index).instances(found.instances):
            assert set(splits[(solutions >= image).all(axis=1)]) == {"test"}


@pytest.mark.parametrize("n", [8, 12, 13, 32])
def test_instances_are_reproducible_and_a_set_starts_with_the_smaller_sets(n: int) -> None:
    many = queens_instances(n=n, num=70, seed=3)
    few = queens_instances(n=n, num=20, seed=3)
    assert np.array_equal(many.instances[:20], few.instances)
    assert np.array_equal(many.solutions[:20], few.solutions)
    assert not np.array_equal(queens_instances(n=n, num=20, seed=4).instances, few.instances)
    assert Queens(n).check(many.instances, many.solutions).solved.all()
    assert np.array_equal(many.ratings, n - many.instances.sum(axis=1))


def test_the_number_of_given_queens_is_drawn_from_the_range() -> None:
    found = queens_instances(num=2000, holdout="instances")
    counts = np.bincount(found.instances.sum(axis=1), minlength=9)
    assert counts[0] == counts[8] == 0
    assert counts[1:8].min() > 220  # 286 expected, standard deviation 16
    only = queens_instances(num=20, given=3)
    assert only.instances.sum(axis=1).tolist() == [3] * 20
    assert np.array_equal(only.instances, queens_instances(num=20, given=(3, 3)).instances)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 3}, r"n must lie in 4\.\.32, got 3"),
        ({"split": "all"}, "split must be one of .*got 'all'"),
        ({"num": -1}, "num must be >= 0"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"given": 8}, r"given must be \(low, high\) with 0 <= low <= high <= 7, got \(8, 8\)"),
        ({"given": "few"}, "given must be a pair .*got 'few'"),
        ({"holdout": "rows"}, "holdout must be .*got 'rows'"),
        ({"n": 6}, "needs three symmetry classes of solutions, 6x6 has 1"),
        ({"n": 8, "given": 1, "split": "test"}, "no 8x8 board of split 'test' with 1-1 given"),
    ],
)
def test_a_wrong_instance_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        queens_instances(**options)  # type: ignore[arg-type]


# Reading, curricula, pictures, environments


@pytest.mark.parametrize(
    "text",
    [
        ".Q.. .... .... ..Q.",
        ".Q..\n....\n....\n..Q.\n",
        ".q............q.",
        ". Q . .\n. . . .\n. . . .\n. . Q .",
        "2003",
        "2..3",
        "2 0 . 3",
        "2, 0, 0, 3",
    ],
)
def test_an_instance_is_read_as_squares_or_as_columns(text: str) -> None:
    board = Queens(4).read_instance(text)
    assert board.dtype == np.int8
    assert np.flatnonzero(board).tolist() == [1, 14]


def test_columns_of_two_digits_are_separated() -> None:
    board = Queens(12).read_instance("12 0 0 0 0 0 0 0 0 0 1 .")
    assert np.flatnonzero(board).tolist() == [11, 120]
    assert Queens().check(
        np.zeros((1, 64), np.int8), Queens().read_instance("15863724")[None]
    ).solved.tolist() == [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("123", "a 4x4 board is 16 squares or 4 columns, got '123'"),
        ("1235", r"the column of row 4 must be 1\.\.4, 0 or '.', got '5'"),
        ("1x34", "the column of row 2 must be .*got 'x'"),
        (".Q.. .K.. .... ....", "row 2, column 2 must be Q or '.', got 'K'"),
    ],
)
def test_an_instance_that_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Queens(4).read_instance(text)


def test_attacking_givens_are_named() -> None:
    board = _board("Q... .... .... ...Q")[0]
    assert Queens(4).why_invalid(board) == (
        "the queens at row 1, column 1 and at row 4, column 4 attack each other"
    )
    assert Queens(4).why_invalid(enumerate_solutions(4)[0]) is None


def test_plans_on_the_way_hold_queens_of_the_solution() -> None:
    domain, rng = Queens(), np.random.default_rng(0)
    found = queens_instances(num=50)
    missing = domain.distance(found.instances)
    assert np.array_equal(missing, 8 - found.instances.sum(axis=1))
    wanted = rng.integers(1, 8, 50)
    easier = domain.advance(found.instances, found.solutions, wanted, rng)
    assert np.array_equal(domain.distance(easier), np.minimum(wanted, missing))
    assert (easier >= found.instances).all()
    assert (easier <= found.solutions).all()


def test_given_placed_and_attacking_queens_look_different() -> None:
    instance = _board("Q... .... .... ....")[0]
    plan = _board("Q... ..Q. .... .Q.Q")[0]
    picture = Queens(4).picture(instance, plan)
    assert picture.symbols.ravel().tolist() == ["Q" if queen else "." for queen in plan]
    assert picture.bold.ravel().tolist() == (instance > 0).tolist()
    assert tuple(picture.ink[0, 0]) == GIVEN_INK
    assert tuple(picture.ink[1, 2]) == EDIT_INK
    attacked = (picture.paper == CONFLICT_PAPER).all(axis=-1)
    assert np.argwhere(attacked).tolist() == [[0, 0], [3, 1], [3, 3]]
    text = render_ansi(Queens(4), instance, plan, color=False)
    assert text.replace(" ", "").split() == ["Q...", "..Q.", "....", ".Q.Q"]


TASK = Task("queens-by-hand", "PlanEdit/QueensByHand-v0", Queens(), {"n": 8}, queens_instances)
FULL_TASK = Task(
    "queens-full", "PlanEdit/QueensFull-v0", Queens(6, "full", "givens"),
    {"n": 6, "holdout": "instances"}, queens_instances,
)  # fmt: skip


@pytest.mark.parametrize("task", [TASK, FULL_TASK], ids=lambda task: task.name)
def test_the_environment_passes_gymnasiums_checker(task: Task) -> None:
    """Warnings are errors here."""
    check_env(PlanEditEnv(task), skip_render_check=True)


@pytest.mark.parametrize("task", [TASK, FULL_TASK], ids=lambda task: task.name)
def test_the_vector_environment_equals_single_ones(task: Task) -> None:
    def single() -> PlanEditEnv:
        return PlanEditEnv(task, max_episode_steps=task.domain.spec.horizon)

    def vector(num_envs: int, mode: AutoresetMode) -> PlanEditVectorEnv:
        return PlanEditVectorEnv(task, num_envs=num_envs, autoreset_mode=mode)

    testing.check_vector_env(vector, single, steps=40)


def test_an_episode_along_a_solution_scores_the_queens_and_earns_1_minus_phi() -> None:
    """4 given: Phi = 4/8 before; each good queen adds gamma (k + 1)/8 - k/8, the last 1 - 7/8."""
    env = PlanEditEnv(TASK, gamma=1.0)
    board = Queens().read_instance("15860000")
    observation, info = env.reset(options={"instance": board})
    assert info["score"] == 4.0
    for row, column in ((4, 3), (5, 7), (6, 2)):
        observation, reward, terminated, _, info = env.step(row * 8 + column - 1)
        assert reward == pytest.approx(1 / 8)
        assert not terminated
    observation, reward, terminated, _, info = env.step(7 * 8 + 4 - 1)
    assert (reward, terminated, info["solved"], info["score"]) == (1 / 8, True, True, 8.0)
    assert observation["plan"].sum() == 8


def test_following_the_solution_solves_all_and_random_edits_about_half() -> None:
    found = queens_instances(split="test", num=200)
    assert evaluate_policy(oracle(Queens(), found), Queens(), found).success_rate == 1.0
    rate = evaluate_policy(random_legal, Queens(), found).success_rate
    assert 0.4 < rate < 0.7  # 0.555 with standard error 0.035
