"""Laws that every domain obeys, checked on random states; a new domain adds its rows to `RULES`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs import testing
from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.engine import EngineOptions
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku

SEEDS = st.integers(0, 2**32 - 1)


def _all_rules() -> list[Sudoku]:
    """Every edit set, mask and codec for sides 4, 6 and 9, the default for 16."""
    rules = [
        Sudoku(side, codec, edits, mask)
        for side in (4, 6, 9)
        for codec in ("digits", "tokens")
        for edits in ("fill", "overwrite", "full")
        for mask in ("givens", "constraint")
        if not (edits == "full" and codec == "digits")
    ]
    return [*rules, Sudoku(16), Sudoku(16, "tokens", "full", "constraint")]


def _name(domain: Sudoku) -> str:
    return f"{domain.spec.name}-{domain.codec}-{domain.edits}-{domain.mask}"


RULES = [pytest.param(domain, id=_name(domain)) for domain in _all_rules()]
FEW_RULES = [rule for rule in RULES if "digits-overwrite" not in str(rule.id)]


def _puzzles(domain: Sudoku, rng: np.random.Generator, num: int) -> tuple[Int8Array, Int8Array]:
    """Puzzles from nearly solved to nearly blank, and a completion of each."""
    side = domain.side
    solved = sudoku_instances(side=side, num=num, seed=int(rng.integers(50)), blanks=(1, 1))
    boards = solved.solutions.copy()
    boards[rng.random(boards.shape) < rng.uniform(0.05, 0.95, (num, 1))] = 0
    boards[np.arange(num), rng.integers(0, side * side, num)] = 0
    return boards, solved.solutions


def _states(domain: Sudoku, seed: int, num: int = 4) -> testing.States:
    """Half of them after random edits, half a solution with up to two cells blanked or wrong."""
    rng = np.random.default_rng(seed)
    num = num if domain.side < 16 else 2
    instances, solutions = _puzzles(domain, rng, num)
    states = testing.random_states(domain, instances, rng, max_edits=12)
    for row in range(num // 2):
        states.plans[row] = solutions[row]
        editable = np.flatnonzero(instances[row] == 0)
        for cell in rng.choice(editable, rng.integers(0, 3)):
            states.plans[row, cell] = rng.choice([0, rng.integers(0, domain.side + 1)])
    return states


def _peers(side: int, cell: int) -> list[int]:
    """Independent of plan_envs: cells in the same row, column or box."""
    height, width = BOX_SHAPES[side]
    row, column = divmod(cell, side)
    return [
        other
        for other in range(side * side)
        if other != cell
        and (
            other // side == row
            or other % side == column
            or (other // side // height, other % side // width) == (row // height, column // width)
        )
    ]


def _legal_actions(domain: Sudoku, instance: Int8Array, plan: Int8Array) -> list[int]:
    """Brute-force legality in plain Python, straight from the rules."""
    side = domain.side
    legal = []
    for action in range(domain.spec.num_actions):
        if domain.codec == "digits":
            cell, value = action // side, action % side + 1
        elif action == side * side * (side + 2):  # STOP, while the plan is not solved
            complete = all(plan) and all(
                plan[cell] != plan[peer]
                for cell in range(side * side)
                for peer in _peers(side, cell)
            )
            if domain.edits == "full" and not complete:
                legal.append(action)
            continue
        else:
            cell, token = divmod(action, side + 2)
            if token == 0:  # PAD
                continue
            value = token - 1
        if instance[cell] or plan[cell] == value:
            continue
        if value == 0:
            if domain.edits == "full":
                legal.append(action)
            continue
        if plan[cell] and domain.edits == "fill":
            continue
        if domain.mask == "constraint" and any(plan[p] == value for p in _peers(side, cell)):
            continue
        legal.append(action)
    return legal


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=4)
def test_an_edit_touches_only_the_cell_it_names_and_givens_never_move(
    domain: Sudoku, seed: int
) -> None:
    testing.check_edits(domain, _states(domain, seed))


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=3)
def test_the_mask_equals_brute_force_legality(domain: Sudoku, seed: int) -> None:
    states = _states(domain, seed, 2)
    testing.check_mask(domain, states, lambda x, y: _legal_actions(domain, x, y))


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=10)
def test_a_live_state_always_has_a_legal_edit(domain: Sudoku, seed: int) -> None:
    testing.check_live_states(domain, _states(domain, seed))


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=10)
def test_the_potential_lies_between_0_and_c_max(domain: Sudoku, seed: int) -> None:
    testing.check_potential(domain, _states(domain, seed, 16))


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=2)
def test_a_batch_equals_its_rows_one_by_one(domain: Sudoku, seed: int) -> None:
    testing.check_batch_equals_singles(domain, _states(domain, seed))


@pytest.mark.parametrize("domain", RULES)
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.5, 0.99, 1.0]),
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
)
@settings(max_examples=20)
def test_successors_are_edit_and_check_one_by_one(
    domain: Sudoku, seed: int, gamma: float, reward: str, dead_end: str
) -> None:
    testing.check_successors(
        domain, _states(domain, seed), gamma=gamma, reward=reward, dead_end=dead_end
    )


@pytest.mark.parametrize("domain", RULES)
@given(seed=SEEDS)
@settings(max_examples=3)
def test_symmetries_commute_with_mask_edit_and_score(domain: Sudoku, seed: int) -> None:
    symmetry = domain.random_symmetry(np.random.default_rng(seed))
    testing.check_symmetry(domain, _states(domain, seed, 2), symmetry)


@pytest.mark.parametrize("domain", RULES)
@given(
    seed=SEEDS,
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
    limit=st.sampled_from([0, 9]),
)
@settings(max_examples=5)
def test_the_fast_engine_equals_the_engine_of_pure_functions(
    domain: Sudoku, seed: int, reward: str, dead_end: str, limit: int
) -> None:
    pool, _ = _puzzles(domain, np.random.default_rng(seed), 6)
    options = EngineOptions(reward=reward, dead_end=dead_end, limit=limit)
    testing.check_engines(
        domain, pool, options, seed=seed, num_envs=5, steps=25 if domain.side < 16 else 8
    )


EPISODES = st.tuples(
    SEEDS, st.sampled_from([0.9, 0.99, 1.0]), st.sampled_from(["absorb", "continue"])
)


def _episode(
    domain: PlanDomain, arguments: tuple[int, float, str]
) -> tuple[testing.Episode, float]:
    seed, gamma, dead_end = arguments
    rng = np.random.default_rng(seed)
    instance = _puzzles(domain, rng, 1)[0][0]
    episode = testing.play_episode(
        domain, instance, rng, gamma=gamma, dead_end=dead_end, limit=int(rng.integers(1, 40))
    )
    return episode, gamma


@pytest.mark.parametrize("domain", FEW_RULES)
@given(arguments=EPISODES)
@settings(max_examples=12)
def test_the_shaped_return_telescopes(domain: Sudoku, arguments: tuple[int, float, str]) -> None:
    testing.check_telescoping(*_episode(domain, arguments))


@pytest.mark.parametrize("domain", FEW_RULES)
@given(arguments=EPISODES)
@settings(max_examples=12)
def test_both_conventions_for_the_absorbing_state_give_equal_returns(
    domain: Sudoku, arguments: tuple[int, float, str]
) -> None:
    testing.check_conventions(*_episode(domain, arguments))


@pytest.mark.parametrize("domain", RULES)
def test_the_random_states_meet_what_the_laws_are_about(domain: Sudoku) -> None:
    """Solved plans, violations and cells without candidate, or the laws above would be idle."""
    states = [_states(domain, seed, 8) for seed in range(30)]
    instances = np.concatenate([batch.instances for batch in states])
    plans = np.concatenate([batch.plans for batch in states])
    verdict = domain.check(instances, plans)
    zero = ((plans > 0).sum(axis=1) - 2 * verdict.violations - verdict.score) / 5
    assert verdict.solved.any()
    assert (verdict.violations > 0).any()
    assert (zero > 0).any()
    assert verdict.dead.any() == (domain.edits == "fill")
    assert domain.successors(instances, plans).solved.any()


def test_a_broken_domain_is_caught() -> None:
    """The laws can fail: a domain whose edits also erase the first cell breaks the first one."""

    class Forgetful(Sudoku):
        def edit(self, instances: Int8Array, plans: Int8Array, actions: Int8Array) -> Int8Array:
            edited = super().edit(instances, plans, actions)
            edited[:, 0] = 0
            return edited

    states = _states(Sudoku(9), seed=1)
    states.plans[:, 0] = states.instances[:, 0] = 5
    with pytest.raises(AssertionError, match="edit is wrong"):
        testing.check_edits(Forgetful(9), states)
