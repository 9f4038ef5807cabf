"""Successors from mask, edit and check alone: those that a domain's own fast code finds."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from plan_envs import generic, testing
from plan_envs.domain import DomainSpec, Int8Array, Successors, Verdict
from plan_envs.generic import WritingDomain, general_successors
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku

OPTIONS = [
    {"reward": reward, "dead_end": dead_end, "gamma": gamma}
    for reward, dead_end, gamma in [
        ("shaped", "absorb", 0.99),
        ("shaped", "continue", 0.5),
        ("sparse", "absorb", 1.0),
    ]
]


def same(one: Successors, other: Successors) -> None:
    """Equal values and types."""
    for item in dataclasses.fields(Successors):
        left, right = getattr(one, item.name), getattr(other, item.name)
        assert left.dtype == right.dtype, item.name
        assert np.array_equal(left, right), item.name


def states_of(domain: Sudoku, num: int = 6) -> testing.States:
    """States after some random edits; the first lacks one digit."""
    pool = sudoku_instances(side=domain.side, num=num, blanks=(2, 12))
    rng = np.random.default_rng(1)
    states = testing.random_states(domain, pool.instances, rng, max_edits=8)
    states.plans[0] = pool.solutions[0]
    states.plans[0, np.flatnonzero(pool.instances[0] == 0)[0]] = 0
    return states


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "domain", [Sudoku(4), Sudoku(6), Sudoku(6, "tokens", "full", "givens"), Sudoku(9)]
)
def test_they_equal_the_fast_ones(domain: Sudoku, options: dict[str, Any]) -> None:
    states = states_of(domain)
    found = general_successors(domain, states.instances, states.plans, **options)
    same(found, domain.successors(states.instances, states.plans, **options))
    assert found.terminated.any() and not found.terminated.all()


class Written(WritingDomain):
    """Sudoku from its tables, its mask and its checker."""

    def __init__(self, rules: Sudoku) -> None:
        self.rules = rules

    @property
    def spec(self) -> DomainSpec:
        return self.rules.spec

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        return self.rules.action_mask(instances, plans)

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        return self.rules.check(instances, plans)


@pytest.mark.parametrize("rules", [Sudoku(4), Sudoku(6), Sudoku(9, "tokens", "full", "constraint")])
def test_tables_mask_and_checker_make_the_same_domain(rules: Sudoku) -> None:
    domain, states = Written(rules), states_of(rules)
    many, actions = testing.every_action(rules, states)
    edited = domain.edit(many.instances, many.plans, actions)
    assert np.array_equal(edited, rules.edit(many.instances, many.plans, actions))
    assert np.array_equal(domain.is_stop(actions), rules.is_stop(actions))
    start = domain.initial(states.instances)
    assert np.array_equal(start, states.instances) and start is not states.instances
    found = domain.successors(states.instances, states.plans, reward="sparse")
    same(found, rules.successors(states.instances, states.plans, reward="sparse"))


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Sudoku(6)
    states = states_of(domain)
    whole = general_successors(domain, states.instances, states.plans)
    monkeypatch.setattr(generic, "_CHUNK_BYTES", 1)
    same(whole, general_successors(domain, states.instances, states.plans))


def test_without_plans_the_rest_is_the_same() -> None:
    domain = Sudoku(4)
    states = states_of(domain)
    bare = general_successors(domain, states.instances, states.plans, with_plans=False)
    assert bare.plan.shape == (0, 16)
    whole = general_successors(domain, states.instances, states.plans)
    same(dataclasses.replace(whole, plan=bare.plan), bare)


def test_no_states_have_no_successors() -> None:
    none = np.empty((0, 81), np.int8)
    found = general_successors(Sudoku(9), none, none)
    assert found.offsets.tolist() == [0] and len(found.action) == 0


def test_unknown_options_are_refused() -> None:
    board = np.zeros((1, 81), np.int8)
    with pytest.raises(ValueError, match=r"reward must be one of .*got 'rich'"):
        general_successors(Sudoku(9), board, board, reward="rich")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dead_end must be one of .*got 'x'"):
        general_successors(Sudoku(9), board, board, dead_end="x")  # type: ignore[arg-type]
