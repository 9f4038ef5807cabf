"""Search and sampling at test time: verified, budgeted, never worse than what they start from."""

import numpy as np
import pytest
import torch
from learner_cases import CPU, generator

from plan_envs.catalogue import resolve_task
from plan_envs.domain import PlanDomain
from plan_envs.evaluation import evaluate_policy
from plan_envs.instances import InstanceSet
from plan_envs.queens.instances import count_completions, queens_instances
from plan_envs.queens.rules import Queens
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from trm.experiments.search import SampledPolicy, best_of_samples, uniform_policy, verified_search
from trm.experiments.states import EditPolicy, to_states
from trm.nn.model import StateBatch

FILL = Sudoku(4, "digits", "fill", "constraint")
QUEENS = Queens(6)


def fixed_policy(domain: PlanDomain, seed: int, *, sharpness: float = 1.0) -> EditPolicy:
    """Random preferences between the edits, the same in every state."""
    logits = sharpness * torch.randn(domain.spec.num_actions, generator=generator(seed))

    def policy(states: StateBatch) -> torch.Tensor:
        masked = torch.where(states.mask > 0, logits, torch.tensor(-torch.inf))
        return torch.softmax(masked, dim=1)

    return policy


def greedy(policy: EditPolicy):  # type: ignore[no-untyped-def]  # a Policy of plan_envs
    def choose(instances, plans, mask, rng):  # type: ignore[no-untyped-def]
        return policy(to_states(instances, plans, mask, CPU)).argmax(dim=1).numpy().astype(np.int32)

    return choose


def puzzles(domain: PlanDomain, num: int = 24, seed: int = 0) -> InstanceSet:
    if domain is QUEENS:
        return queens_instances(n=6, num=num, seed=seed, given=(1, 2), holdout="instances")
    return sudoku_instances(side=4, num=num, seed=seed, blanks=(6, 10), unique=False)


@pytest.mark.parametrize("domain", [FILL, QUEENS], ids=["sudoku", "queens"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_with_enough_budget_solves_whatever_the_policy_prefers(
    domain: PlanDomain, seed: int
) -> None:
    found = verified_search(
        fixed_policy(domain, seed, sharpness=5.0),
        domain,
        puzzles(domain),
        budget=5_000,
        device=CPU,
    )
    assert found.report.solved.all()
    assert domain.check(puzzles(domain).instances, found.report.final_plans).solved.all()


def test_a_search_ends_where_there_is_no_solution_and_says_so() -> None:
    # A queen in a corner belongs to no solution of 6x6.
    corner = np.eye(1, 36, dtype=np.int8)
    assert count_completions(corner, n=6)[0] == 0
    found = verified_search(
        fixed_policy(QUEENS, 0),
        QUEENS,
        InstanceSet.of("corner", corner, corner),
        budget=10_000,
        device=CPU,
    )
    assert not found.report.solved[0]
    assert found.expanded[0] < 10_000


def test_along_a_right_policy_the_search_asks_once_an_edit() -> None:
    pool = puzzles(FILL)
    solutions = torch.from_numpy(pool.solutions.astype(np.int64))
    boards = {board.tobytes(): i for i, board in enumerate(pool.instances)}

    def oracle(states: StateBatch) -> torch.Tensor:
        rows = [boards[board.numpy().tobytes()] for board in states.instance]
        wanted = torch.zeros(states.mask.shape)
        for place, row in enumerate(rows):
            cell = int((states.plan[place] == 0).nonzero()[0])
            value = int(solutions[row, cell])
            spec = FILL.spec
            action = np.flatnonzero((spec.action_cell == cell) & (spec.action_value == value))[0]
            wanted[place, action] = 1.0
        return 0.9 * wanted + 0.1 * (states.mask > 0) / states.mask.sum(dim=1, keepdim=True)

    found = verified_search(oracle, FILL, pool, budget=100, device=CPU)
    assert found.report.solved.all()
    assert found.expanded.tolist() == (pool.instances == 0).sum(axis=1).tolist()


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_the_budget_is_kept(budget: int) -> None:
    found = verified_search(fixed_policy(FILL, 2), FILL, puzzles(FILL), budget=budget, device=CPU)
    assert found.expanded.max() <= budget
    assert found.to_json_dict()["mean_expanded"] <= budget


def test_a_search_as_long_as_an_episode_solves_what_the_greedy_policy_does() -> None:
    policy, pool = fixed_policy(FILL, 3), puzzles(FILL, num=60)
    once = evaluate_policy(greedy(policy), FILL, pool)
    found = verified_search(policy, FILL, pool, budget=FILL.spec.horizon, device=CPU)
    assert 0 < once.solved.sum() < len(pool)
    assert (found.report.solved >= once.solved).all()
    assert found.report.solved.sum() > once.solved.sum()


def test_the_uniform_policy_is_uniform_over_the_legal_edits() -> None:
    pool = puzzles(FILL, num=3)
    mask = FILL.action_mask(pool.instances, FILL.initial(pool.instances))
    chance = uniform_policy(to_states(pool.instances, FILL.initial(pool.instances), mask, CPU))
    assert np.allclose(chance.numpy(), mask / mask.sum(axis=1, keepdims=True))


def test_one_sample_is_an_episode_and_more_are_never_worse() -> None:
    policy, pool = fixed_policy(FILL, 4), puzzles(FILL, num=40)
    played = evaluate_policy(SampledPolicy(policy, CPU), FILL, pool, seed=0)
    reports = [
        best_of_samples(policy, FILL, pool, num=num, device=CPU, seed=0) for num in (1, 2, 16)
    ]
    assert reports[0].final_plans.tolist() == played.final_plans.tolist()
    assert (reports[1].final_score >= reports[0].final_score).all()
    assert (reports[2].final_score >= reports[1].final_score).all()
    assert reports[2].solved.sum() > reports[0].solved.sum()


def test_samples_follow_the_probabilities() -> None:
    pool = puzzles(FILL, num=1)
    boards = np.repeat(pool.instances, 20_000, axis=0)
    plans = FILL.initial(boards)
    mask = FILL.action_mask(boards, plans)
    policy = fixed_policy(FILL, 5)
    drawn = SampledPolicy(policy, CPU)(boards, plans, mask, np.random.default_rng(0))
    expected = policy(to_states(boards[:1], plans[:1], mask[:1], CPU))[0].numpy()
    assert (mask[0, drawn] == 1).all()
    share = np.bincount(drawn, minlength=FILL.spec.num_actions) / len(drawn)
    assert np.abs(share - expected).max() < 0.02  # five standard errors: 5 sqrt(.25 / 20000)


@pytest.mark.parametrize("what", ["search", "samples"])
def test_a_checker_that_reads_the_answer_is_refused(what: str) -> None:
    task = resolve_task("arc-tiny")
    board = np.ones((1, task.domain.spec.instance_size), np.int8)
    pool = InstanceSet.of("made up", board, board[:, : task.domain.spec.num_cells])
    policy = fixed_policy(task.domain, 0)
    with pytest.raises(ValueError, match=f"{what}: the checker of .* reads the answer"):
        if what == "search":
            verified_search(policy, task.domain, pool, budget=5, device=CPU)
        else:
            best_of_samples(policy, task.domain, pool, num=5, device=CPU)
