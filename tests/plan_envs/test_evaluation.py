"""Evaluation: episode rules, the report, and what the reference policies choose."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from plan_envs.domain import Int8Array
from plan_envs.evaluation import (
    EvalReport,
    Policy,
    evaluate_policy,
    oracle,
    random_legal,
    reference_policies,
)
from plan_envs.instances import InstanceSet
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from trm.experiments.intervals import wilson_interval

VARIANTS = [
    *(
        Sudoku(4, "tokens", edits, mask)
        for edits, mask in product(("fill", "overwrite", "full"), ("givens", "constraint"))
    ),
    Sudoku(6),
    Sudoku(9),
    Sudoku(9, mask="givens"),
    Sudoku(9, edits="overwrite"),
    Sudoku(9, "tokens", "full", "constraint"),
]


def name_of(domain: Sudoku) -> str:
    return f"{domain.side}-{domain.codec}-{domain.edits}-{domain.mask}"


def puzzles_for(domain: Sudoku, num: int, seed: int = 0) -> InstanceSet:
    if domain.side == 4:
        return sudoku_instances(side=4, num=num, seed=seed, blanks=(4, 8), unique=False)
    return sudoku_instances(side=domain.side, num=num, seed=seed)


def candidates(board: Int8Array, side: int) -> dict[int, set[int]]:
    """Digits that no peer of a blank cell shows, from the rules of Sudoku."""
    height, width = BOX_SHAPES[side]
    grid = board.reshape(side, side)
    left = {}
    for cell in np.flatnonzero(board == 0).tolist():
        row, column = divmod(cell, side)
        top, start = row // height * height, column // width * width
        box = grid[top : top + height, start : start + width]
        shown = {*grid[row].tolist(), *grid[:, column].tolist(), *box.ravel().tolist()}
        left[cell] = set(range(1, side + 1)) - shown
    return left


def units(side: int) -> list[list[int]]:
    height, width = BOX_SHAPES[side]
    cells = list(range(side * side))
    return [
        [c for c in cells if label(c) == index]
        for label in (
            lambda c: c // side,
            lambda c: c % side,
            lambda c: c // side // height * height + c % side // width,
        )
        for index in range(side)
    ]


def half_filled(side: int, seed: int) -> tuple[InstanceSet, Int8Array]:
    """Puzzles, with some blank cells filled rightly (and now and then wrongly)."""
    rng = np.random.default_rng(seed)
    pool = sudoku_instances(side=side, num=4, seed=seed % 7)
    shown = rng.random(pool.instances.shape) < rng.random((4, 1))
    plans = np.where(shown, pool.solutions, pool.instances).astype(np.int8)
    if seed % 3 == 0:
        cell = int(rng.integers(side * side))
        plans[0, cell] = pool.instances[0, cell] or rng.integers(1, side + 1)
    return pool, plans


# ---- episodes


@pytest.mark.parametrize("domain", VARIANTS, ids=name_of)
def test_reference_policies_play_legally_and_the_oracle_solves_everything(domain: Sudoku) -> None:
    pool = puzzles_for(domain, 20)
    reports = {
        name: evaluate_policy(policy, domain, pool)
        for name, policy in reference_policies(domain, pool).items()
    }
    assert list(reports) == ["random-legal", "fewest-candidates", "singles", "oracle"]
    best = reports["oracle"]
    assert best.success_rate == 1 and best.edits == (pool.instances == 0).sum()
    assert best.mean_score == domain.spec.max_score
    assert np.array_equal(best.final_plans, pool.solutions)
    for report in reports.values():
        kept = (pool.instances == 0) | (report.final_plans == pool.instances)
        assert kept.all()


@pytest.mark.parametrize("side", [4, 9])
def test_the_report_says_what_the_checker_says(side: int) -> None:
    domain = Sudoku(side)
    pool = puzzles_for(domain, 50)
    report = evaluate_policy(random_legal, domain, pool, seed=5)
    final = domain.check(pool.instances, report.final_plans)
    initial = domain.check(pool.instances, pool.instances)
    assert np.array_equal(report.solved, final.solved)
    assert np.array_equal(report.final_score, final.score)
    assert np.array_equal(report.initial_score, initial.score)
    assert report.success_rate == final.solved.mean()
    assert report.mean_score == pytest.approx(final.score.mean(), rel=1e-6)
    gain = (final.score - initial.score).mean()
    assert report.improvement == pytest.approx(gain, rel=1e-5)
    plain = report.to_json_dict()
    assert set(plain) == {"success_rate", "mean_score", "improvement", "num_instances"}
    assert json.loads(json.dumps(plain)) == plain and plain["num_instances"] == 50


def test_equal_seeds_give_equal_episodes_and_other_seeds_do_not() -> None:
    domain = Sudoku(9)
    pool = puzzles_for(domain, 20)

    def final(seed: int) -> list[list[int]]:
        return evaluate_policy(random_legal, domain, pool, seed=seed).final_plans.tolist()

    assert final(3) == final(3)
    assert final(3) != final(4)


def first_legal(
    instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
) -> NDArray[np.int32]:
    return mask.argmax(axis=1).astype(np.int32)


def test_a_policy_without_randomness_plays_the_same_in_batches_of_any_size() -> None:
    domain = Sudoku(9)
    pool = puzzles_for(domain, 23)
    whole, single, odd = (
        evaluate_policy(first_legal, domain, pool, batch_size=size) for size in (512, 1, 7)
    )
    assert np.array_equal(whole.final_plans, single.final_plans)
    assert np.array_equal(whole.final_plans, odd.final_plans)
    assert whole.edits == single.edits == odd.edits


def test_stop_ends_an_episode_and_counts_as_an_edit() -> None:
    domain = Sudoku(4)
    pool = puzzles_for(domain, 10)

    def stop(
        instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        return np.full(len(plans), domain.spec.num_actions - 1, np.int32)

    report = evaluate_policy(stop, domain, pool)
    assert report.edits == 10 and report.success_rate == 0 and report.improvement == 0
    assert np.array_equal(report.final_plans, pool.instances)


def test_the_horizon_bounds_the_edits_of_an_episode() -> None:
    domain = Sudoku(4)
    pool = puzzles_for(domain, 10)
    assert evaluate_policy(oracle(domain, pool), domain, pool, horizon=3).edits == 30
    unsolvable = evaluate_policy(random_legal, Sudoku(4, "tokens", "overwrite", "givens"), pool)
    assert unsolvable.edits <= 10 * domain.spec.horizon


def test_absorbing_dead_ends_saves_edits_and_changes_no_success() -> None:
    domain = Sudoku(9)
    pool = puzzles_for(domain, 60)
    go_on = evaluate_policy(first_legal, domain, pool, dead_end="continue")
    absorb = evaluate_policy(first_legal, domain, pool, dead_end="absorb")
    assert np.array_equal(go_on.solved, absorb.solved)
    assert absorb.edits < go_on.edits
    dead = domain.check(pool.instances, absorb.final_plans).dead
    assert dead.any() and np.array_equal(dead, ~absorb.solved)


def test_a_solved_instance_is_a_success_without_an_edit() -> None:
    domain = Sudoku(9)
    solutions = puzzles_for(domain, 3).solutions
    report = evaluate_policy(random_legal, domain, InstanceSet.of("solved", solutions, solutions))
    assert report.success_rate == 1 and report.edits == 0


def test_illegal_answers_and_unfit_sets_are_refused() -> None:
    domain = Sudoku(9)
    pool = puzzles_for(domain, 3)

    def constant(action: int, rows: int | None = None) -> Policy:
        def policy(
            instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
        ) -> NDArray[np.int32]:
            return np.full(len(plans) if rows is None else rows, action, np.int32)

        return policy

    def play(
        policy: Policy = random_legal, instances: InstanceSet = pool, **options: object
    ) -> EvalReport:
        return evaluate_policy(policy, domain, instances, **options)  # type: ignore[arg-type]

    given_cell = int(np.flatnonzero(pool.instances[0])[0])
    with pytest.raises(ValueError, match=f"illegal action {given_cell * 9}"):
        play(constant(given_cell * 9))
    with pytest.raises(ValueError, match="illegal action 729"):
        play(constant(729))
    with pytest.raises(ValueError, match="illegal action -1"):
        play(constant(-1))
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        play(constant(0, rows=2))
    with pytest.raises(ValueError, match="is empty"):
        play(instances=pool.subset(slice(0, 0)))
    with pytest.raises(ValueError, match=r"of sudoku9x9 must be int8 of shape \[batch, 81\]"):
        play(instances=sudoku_instances(side=6, num=1))
    with pytest.raises(ValueError, match="dead_end"):
        play(dead_end="stop")
    with pytest.raises(ValueError, match="batch_size"):
        play(batch_size=0)
    with pytest.raises(ValueError, match="not in the set"):
        play(oracle(domain, pool.subset([0])))


# ---- what the reference policies choose


@given(seed=st.integers(0, 2**32), side=st.sampled_from([4, 6, 9]))
def test_fewest_candidates_fills_a_cell_with_the_fewest(seed: int, side: int) -> None:
    domain = Sudoku(side)
    pool, plans = half_filled(side, seed)
    mask = domain.action_mask(pool.instances, plans)
    live = mask.any(axis=1)
    boards, plans, mask = pool.instances[live], plans[live], mask[live]
    policy = reference_policies(domain, pool)["fewest-candidates"]
    actions = policy(boards, plans, mask, np.random.default_rng(seed))
    assert (mask[np.arange(len(mask)), actions] == 1).all()
    for plan, action in zip(plans, actions, strict=True):
        left = {cell: digits for cell, digits in candidates(plan, side).items() if digits}
        if left:
            cell, digit = domain.spec.action_cell[action], domain.spec.action_value[action]
            assert digit in left[cell]
            assert len(left[cell]) == min(len(digits) for digits in left.values())


@given(seed=st.integers(0, 2**32), side=st.sampled_from([4, 6, 9]))
def test_singles_prefers_naked_then_hidden_singles(seed: int, side: int) -> None:
    domain = Sudoku(side)
    pool, plans = half_filled(side, seed)
    mask = domain.action_mask(pool.instances, plans)
    live = mask.any(axis=1)
    boards, plans, mask = pool.instances[live], plans[live], mask[live]
    policy = reference_policies(domain, pool)["singles"]
    actions = policy(boards, plans, mask, np.random.default_rng(seed))
    for plan, action in zip(plans, actions, strict=True):
        left = candidates(plan, side)
        naked = {(c, d) for c, digits in left.items() if len(digits) == 1 for d in digits}
        hidden = set()
        for unit, digit in product(units(side), range(1, side + 1)):
            places = [c for c in unit if digit in left.get(c, ())]
            if len(places) == 1:
                hidden.add((places[0], digit))
        chosen = (int(domain.spec.action_cell[action]), int(domain.spec.action_value[action]))
        if naked:
            assert chosen in naked
        elif hidden:
            assert chosen in hidden


def test_ties_are_broken_at_random() -> None:
    # Four blanks, each a naked single here: every one of them must come up in 200 draws.
    domain = Sudoku(4, "digits", "fill", "constraint")
    pool = sudoku_instances(side=4, num=1, blanks=(4, 4), unique=False)
    copies = np.repeat(pool.instances, 200, axis=0)
    mask = domain.action_mask(copies, copies)
    for name, policy in reference_policies(domain, pool).items():
        actions = policy(copies, copies, mask, np.random.default_rng(0))
        assert len(set(actions.tolist())) == 4, name


@pytest.mark.parametrize("edits", ["overwrite", "full"])
def test_the_oracle_repairs_wrong_cells_where_edits_allow(edits: str) -> None:
    domain = Sudoku(4, "tokens", edits, "givens")  # type: ignore[arg-type]
    pool = sudoku_instances(side=4, num=30, blanks=(6, 8), unique=False)
    solver = oracle(domain, pool)
    calls = 0

    def clumsy(
        instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        nonlocal calls
        calls += 1
        if calls > 4:
            return solver(instances, plans, mask, rng)
        writes = mask * (domain.spec.action_value > 0)
        return random_legal(instances, plans, writes, rng)

    report = evaluate_policy(clumsy, domain, pool, horizon=64)
    assert report.success_rate == 1


# ---- golden numbers of DESIGN.md, Environments ("What the mask gives away")


@pytest.mark.parametrize(
    ("edits", "mask", "blanks", "low", "high"),
    [
        ("fill", "constraint", (1, 4), 0.975, 0.99),  # 98%
        ("overwrite", "givens", (1, 4), 0.40, 0.47),  # 42%
        ("full", "givens", (1, 4), 0.165, 0.205),  # 18-19%
        ("fill", "constraint", (6, 8), 0.57, 0.65),  # 62%
        ("overwrite", "givens", (6, 8), 0.0, 0.005),  # 0%
    ],
)
def test_random_edits_solve_as_many_4x4_puzzles_as_measured(
    edits: str, mask: str, blanks: tuple[int, int], low: float, high: float
) -> None:
    domain = Sudoku(4, "tokens", edits, mask)  # type: ignore[arg-type]
    pool = sudoku_instances(side=4, num=4000, blanks=blanks, unique=False)
    assert low <= evaluate_policy(random_legal, domain, pool).success_rate <= high


def test_reference_policies_solve_as_many_9x9_puzzles_as_measured() -> None:
    domain = Sudoku(9)
    pool = sudoku_instances(num=1000, givens=(27, 27))
    rates = {
        name: evaluate_policy(policy, domain, pool).success_rate
        for name, policy in reference_policies(domain, pool).items()
    }
    assert rates["random-legal"] == 0
    assert 0.16 <= rates["fewest-candidates"] <= 0.24  # 19-21%
    assert 0.73 <= rates["singles"] <= 0.82  # 76.5%


@pytest.mark.parametrize(
    ("rate", "count", "low", "high"),
    # 5 of 10, a textbook value; 0 of n: [0, z^2 / (n + z^2)] = [0, 3.8415 / 23.8415]
    [(0.5, 10, 0.23659, 0.76341), (0.0, 20, 0.0, 0.16113), (1.0, 20, 0.83887, 1.0)],
)
def test_wilson_intervals_are_those_of_the_formula_worked_out_by_hand(
    rate: float, count: int, low: float, high: float
) -> None:
    assert wilson_interval(rate, count) == pytest.approx((low, high), abs=1e-5)
