"""Exact dynamic programming against brute force, value iteration and closed forms."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tabular import FILL, FULL, OVERWRITE, PUZZLE, random_policy, tabular

from plan_envs.catalogue import resolve_task
from plan_envs.domain import edit_reward, potential
from plan_envs.sudoku.rules import Sudoku
from upi_trm.theory.exact import ExactMDP, enumerate_states

Array = NDArray[np.float64]
DOMAINS = {"fill": FILL, "overwrite": OVERWRITE, "full": FULL}
GAMMA = 0.9


@cache
def puzzles(num: int) -> NDArray[np.int8]:
    """4x4 puzzles with two or three blanks."""
    found: NDArray[np.int8] = resolve_task("sudoku4x4", blanks=(2, 3)).instances(num=num).instances
    return found


@cache
def mdp_of(edits: str, num: int = 3, gamma: float = GAMMA) -> ExactMDP:
    return enumerate_states(DOMAINS[edits], puzzles(num), gamma=gamma)


def policy_of(mdp: ExactMDP, seed: int, sharpness: float = 1.0) -> Array:
    """Positive probabilities on the legal edits."""
    noise = np.random.default_rng(seed).standard_normal(mdp.mask.shape)
    weight = np.where(mdp.mask, np.exp(sharpness * noise), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def phi_of(mdp: ExactMDP) -> Array:
    """Phi of every state."""
    score = mdp.domain.check(mdp.instances, mdp.plans).score
    return potential(score, mdp.domain.spec.max_score)


# --- The table


@pytest.mark.parametrize("edits", DOMAINS)
def test_the_table_says_what_the_domain_says(edits: str) -> None:
    mdp = mdp_of(edits)
    domain = mdp.domain
    assert np.array_equal(mdp.mask, domain.action_mask(mdp.instances, mdp.plans) > 0)
    state, action = np.nonzero(mdp.next_state >= 0)
    after = domain.edit(mdp.instances[state], mdp.plans[state], action.astype(np.int32))
    assert np.array_equal(after, mdp.plans[mdp.next_state[state, action]])
    assert np.array_equal(mdp.instances[state], mdp.instances[mdp.next_state[state, action]])


@pytest.mark.parametrize("edits", DOMAINS)
def test_no_reachable_plan_is_missing_or_listed_twice(edits: str) -> None:
    mdp = mdp_of(edits, num=1)
    blanks = int((mdp.instances[0] == 0).sum())
    every = 5**blanks  # each blank holds nothing or one of four digits
    assert len(np.unique(mdp.plans, axis=0)) == len(mdp)
    if edits == "full":
        # Every plan but the solved one can be reached, and no plan is dead.
        assert len(mdp) == every - 1
    else:
        assert 1 < len(mdp) < every


@pytest.mark.parametrize("edits", DOMAINS)
@pytest.mark.parametrize("seed", range(2))
def test_it_agrees_with_the_tables_of_the_other_tests(edits: str, seed: int) -> None:
    mine = enumerate_states(DOMAINS[edits], PUZZLE, gamma=GAMMA)
    other = tabular(DOMAINS[edits], gamma=GAMMA)
    order = other.index(mine.plans)
    policy = random_policy(other, seed)
    assert mine.value(policy[order]) == pytest.approx(other.value(policy)[order], abs=1e-6)
    assert mine.visits(policy[order]) == pytest.approx(other.visits(policy)[order], abs=1e-9)
    assert mine.advantage(policy[order]) == pytest.approx(other.advantage(policy)[order], abs=1e-6)


# --- Values


def played_out(domain: Sudoku, policy: Array, mdp: ExactMDP, gamma: float) -> float:
    """V^pi of the first initial plan by following every episode to its end: needs fill edits."""
    number = {plan.tobytes(): i for i, plan in enumerate(mdp.plans)}
    instance = mdp.instances[:1]

    def worth(plan: NDArray[np.int8]) -> float:
        total = 0.0
        verdict = domain.check(instance, plan)
        for action in np.flatnonzero(domain.action_mask(instance, plan)[0]):
            after = domain.edit(instance, plan, np.array([action], np.int32))
            found = domain.check(instance, after)
            ends = bool(found.solved[0] or found.dead[0])
            gained = edit_reward(
                potential(verdict.score, 16),
                potential(found.score, 16),
                solved=found.solved,
                absorbed=np.array([ends]),
                gamma=gamma,
            )[0]
            share = policy[number[plan[0].tobytes()], action]
            total += share * (gained + (0.0 if ends else gamma * worth(after)))
        return float(total)

    return worth(mdp.plans[:1])


@pytest.mark.parametrize("seed", range(3))
def test_values_equal_the_mean_over_every_episode(seed: int) -> None:
    mdp = enumerate_states(FILL, puzzles(1), gamma=0.8)
    policy = policy_of(mdp, seed)
    assert mdp.value(policy)[0] == pytest.approx(played_out(FILL, policy, mdp, 0.8), abs=1e-12)


@pytest.mark.parametrize("edits", DOMAINS)
@given(seed=st.integers(0, 99), sharpness=st.sampled_from([0.1, 3.0]))
def test_values_are_what_backing_up_for_ever_ends_at(
    edits: str, seed: int, sharpness: float
) -> None:
    mdp = mdp_of(edits, num=2)
    policy = policy_of(mdp, seed, sharpness)
    start = np.random.default_rng(seed).standard_normal(len(mdp))
    assert mdp.backup(policy, start, steps=300) == pytest.approx(mdp.value(policy), abs=1e-10)


@pytest.mark.parametrize("edits", DOMAINS)
@pytest.mark.parametrize("k_steps", [1, 2, 5])
def test_eq_3_is_the_mean_of_k_rewards_and_the_value_behind_them(edits: str, k_steps: int) -> None:
    # (T_K^pi V)(s) = E_pi[sum_{t<K} gamma^t r_t + gamma^K V(s_K) | s_0 = s], here by carrying the
    # distribution of s_t forward from every s; absorption earns nothing more.
    mdp = mdp_of(edits, num=1)
    policy = policy_of(mdp, 3)
    value = np.random.default_rng(4).standard_normal(len(mdp))
    transition = np.zeros((len(mdp), len(mdp)))
    for state, action in zip(*np.nonzero(mdp.next_state >= 0), strict=True):
        transition[state, mdp.next_state[state, action]] += policy[state, action]
    there, total = np.eye(len(mdp)), np.zeros(len(mdp))
    for t in range(k_steps):
        total += GAMMA**t * there @ (policy * mdp.reward).sum(axis=1)
        there = there @ transition
    total += GAMMA**k_steps * there @ value
    assert mdp.backup(policy, value, steps=k_steps) == pytest.approx(total, abs=1e-12)
    missed = mdp.residual(policy, value, steps=k_steps)
    assert missed == pytest.approx(np.abs(value - total), abs=1e-12)


def test_k_backups_of_eq_3_are_a_gamma_to_the_k_contraction() -> None:
    mdp = mdp_of("full")
    policy, rng = policy_of(mdp, 1), np.random.default_rng(2)
    one, two = rng.standard_normal((2, len(mdp)))
    for steps in (1, 3, 8):
        apart = np.abs(mdp.backup(policy, one, steps=steps) - mdp.backup(policy, two, steps=steps))
        assert apart.max() <= GAMMA**steps * np.abs(one - two).max()


def test_the_best_value_is_that_of_the_shortest_way_to_a_solution() -> None:
    # Full edits: each blank takes one edit and only the last one pays 1.
    mdp = mdp_of("full")
    blanks = (mdp.plans[mdp.first] == 0).sum(axis=1)
    sparse = mdp.optimal_value()[mdp.first] + phi_of(mdp)[mdp.first]
    assert sparse == pytest.approx(GAMMA ** (blanks - 1), abs=1e-12)


@pytest.mark.parametrize("edits", DOMAINS)
def test_the_best_value_is_the_fixed_point_of_value_iteration(edits: str) -> None:
    mdp = mdp_of(edits)
    value = np.zeros(len(mdp))
    for _ in range(300):
        value = np.where(mdp.mask, mdp.action_value(value), -np.inf).max(axis=1)
    assert mdp.optimal_value() == pytest.approx(value, abs=1e-10)


def test_shaping_shifts_every_value_by_the_potential_and_no_advantage() -> None:
    shaped = mdp_of("overwrite")
    sparse = enumerate_states(OVERWRITE, puzzles(3), gamma=GAMMA, reward="sparse")
    policy = policy_of(shaped, 5)
    assert shaped.value(policy) == pytest.approx(sparse.value(policy) - phi_of(shaped), abs=1e-12)
    assert shaped.advantage(policy) == pytest.approx(sparse.advantage(policy), abs=1e-12)


def test_instances_do_not_mix() -> None:
    together = mdp_of("full", num=3)
    ends = [*together.first[1:], len(together)]
    for low, high, puzzle in zip(together.first, ends, puzzles(3), strict=True):
        alone = enumerate_states(FULL, puzzle[None], gamma=GAMMA)
        part = slice(low, high)
        assert np.array_equal(alone.plans, together.plans[part])
        uniform, same = (policy_of(mdp, 0, sharpness=0.0) for mdp in (alone, together))
        assert alone.value(uniform) == pytest.approx(together.value(same)[part], abs=1e-14)


@pytest.mark.parametrize(("task", "size"), [("nqueens8", {"n": 5}), ("maze10", {"size": 4})])
def test_other_domains_are_solved_too(task: str, size: dict[str, int]) -> None:
    # No edit of a shortest way can be saved, and only the last one pays 1.
    chosen = resolve_task(task, **size)
    domain: Any = chosen.domain
    boards = chosen.instances(num=4).instances
    mdp = enumerate_states(domain, boards, gamma=GAMMA)
    sparse = mdp.optimal_value()[mdp.first] + phi_of(mdp)[mdp.first]
    assert sparse == pytest.approx(GAMMA ** (domain.distance(boards) - 1.0), abs=1e-12)


def test_episodes_may_start_at_later_plans() -> None:
    whole = enumerate_states(FILL, PUZZLE, gamma=GAMMA)
    later = enumerate_states(FILL, PUZZLE, plans=whole.plans[1:2], gamma=GAMMA)
    assert np.array_equal(later.plans[0], whole.plans[1])
    policy = policy_of(whole, 1)
    row = {plan.tobytes(): i for i, plan in enumerate(whole.plans)}
    order = [row[plan.tobytes()] for plan in later.plans]
    assert len(later) < len(whole)
    assert later.value(policy[order]) == pytest.approx(whole.value(policy)[order], abs=1e-14)


# --- Performance and visits


@pytest.mark.parametrize("edits", DOMAINS)
def test_the_performance_difference_is_the_advantage_met_on_the_way(edits: str) -> None:
    # eta(pi') - eta(pi) = E_{d_pi', pi'}[A^pi] / (1 - gamma)
    mdp = mdp_of(edits)
    old, new = policy_of(mdp, 1), policy_of(mdp, 2)
    met = (mdp.visits(new)[:, None] * new * mdp.advantage(old)).sum() / (1 - GAMMA)
    assert mdp.performance(new) - mdp.performance(old) == pytest.approx(met, abs=1e-12)


def test_performance_is_the_reward_met_on_the_way() -> None:
    mdp = mdp_of("full")
    policy = policy_of(mdp, 3)
    met = (mdp.visits(policy)[:, None] * policy * mdp.reward).sum() / (1 - GAMMA)
    assert mdp.performance(policy) == pytest.approx(met, abs=1e-12)


def test_visits_count_the_time_before_absorption() -> None:
    # With fill edits and the right digits only, an episode lasts as many edits as there are blanks,
    # and d_pi sums to 1 - gamma^blanks.
    mdp = enumerate_states(FILL, puzzles(1), gamma=GAMMA)
    best = np.where(mdp.mask, mdp.action_value(mdp.optimal_value()), -np.inf).argmax(axis=1)
    policy = np.eye(mdp.mask.shape[1])[best]
    blanks = int((puzzles(1) == 0).sum())
    visits = mdp.visits(policy)
    assert visits.sum() == pytest.approx(1 - GAMMA**blanks, abs=1e-12)
    assert (visits > 0).sum() == blanks


def test_another_discount_adds_up_other_rewards() -> None:
    mdp = mdp_of("full")
    policy = policy_of(mdp, 4)
    steps = mdp.accumulate(policy, np.ones(len(mdp)), discount=GAMMA)
    assert steps[mdp.first].mean() * (1 - GAMMA) == pytest.approx(mdp.visits(policy).sum())
    reward = phi_of(mdp)
    assert mdp.accumulate(policy, reward, discount=0.0) == pytest.approx(reward)


# --- What is refused


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, float("nan")])
def test_gamma_outside_the_open_unit_interval_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\)"):
        enumerate_states(FULL, PUZZLE, gamma=gamma)


def test_a_solved_instance_is_refused_by_number() -> None:
    solved = PUZZLE.copy()
    solved[0, [5, 10, 13]] = [4, 4, 3]
    with pytest.raises(ValueError, match="instance 1 is solved to begin with"):
        enumerate_states(FULL, np.concatenate([PUZZLE, solved]), gamma=GAMMA)


def test_too_many_plans_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(ValueError, match="instance 1 reaches too many plans to solve"):
        enumerate_states(FULL, np.repeat(PUZZLE, 2, axis=0), gamma=GAMMA, max_states=130)


def test_no_instance_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="none to enumerate"):
        enumerate_states(FULL, puzzles(3)[:0], gamma=GAMMA)
