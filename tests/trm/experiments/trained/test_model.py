"""A trained run in Python: what it solves, how it acts, what it says, and what it refuses."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import plan_envs  # noqa: F401 (registers the environments)
import upi_trm
from plan_envs.domain import potential
from plan_envs.evaluation import evaluate_policy
from trm.experiments.trained.model import Model, load

PUZZLE = "1..4 ..1. 2..3 ..2."


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pretrained:sudoku4x4", threads=1)


def test_a_solution_holds_every_plan_and_the_edits_between_them(model: Model) -> None:
    solution = model.solve(PUZZLE.replace(" ", ""))
    domain, given = model.domain, model.read(PUZZLE.replace(" ", ""))
    assert solution.solved and solution.edits is not None
    assert solution.reason == f"solved in {len(solution.edits)} edits"
    assert (solution.plans[0] == given).all()
    for before, edit, after in zip(
        solution.plans[:-1], solution.edits, solution.plans[1:], strict=True
    ):
        assert (domain.edit(given[None], before[None], np.array([edit], np.int32)) == after).all()
    assert domain.check(given[None], solution.plan[None]).solved[0]
    assert str(solution).splitlines()[0].startswith("1 ")


def test_what_is_not_solved_says_why(model: Model) -> None:
    """Row 1 needs a 4 in column 4, where column 4 already has one: nothing can solve it."""
    solution = model.solve("123. .... .... ...4".replace(" ", ""))
    assert not solution.solved
    assert solution.reason.startswith("NOT solved: score")
    assert solution.reason.endswith("the puzzle has no solution")


@pytest.mark.parametrize(("puzzle", "reason"), [("123", "16"), ("11..............", "row")])
def test_a_puzzle_that_is_none_is_refused(model: Model, puzzle: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.solve(puzzle)


def test_probabilities_are_a_distribution_over_legal_edits_and_solve_takes_the_best(
    model: Model,
) -> None:
    solution = model.solve(model.unseen(1)[0])
    chance = model.probabilities(solution.instance, solution.plans[:-1])
    boards = model.boards(solution.instance, solution.plans[:-1])
    legal = model.domain.action_mask(boards.instances, boards.plans) > 0
    assert chance.shape == legal.shape and (chance[~legal] == 0).all()
    np.testing.assert_allclose(chance.sum(axis=1), 1, rtol=1e-5)
    assert solution.edits == tuple(chance.argmax(axis=1))


def test_an_edit_that_solves_is_worth_what_the_checker_pays(model: Model) -> None:
    """Its return is r0 = 1, of which the shaping takes Phi(s) off."""
    solution = model.solve(model.unseen(1)[0])
    assert solution.solved and solution.edits is not None
    before = solution.plans[-2]
    q = model.edit_values(solution.instance, before)[0]
    score = model.domain.check(solution.instance[None], before[None]).score
    phi = potential(score, model.domain.spec.max_score)[0]
    assert q[solution.edits[-1]] == pytest.approx(1 - phi, abs=1e-6)
    mask = model.domain.action_mask(solution.instance[None], before[None])[0]
    assert (np.isnan(q) == (mask == 0)).all()


def test_values_deepen_to_those_of_the_depth_that_was_trained(model: Model) -> None:
    instances = model.unseen(3)
    plans = model.domain.initial(instances)
    deep = model.deepen(instances, plans, depth=6)
    assert deep.values.shape == (7, 3) and deep.moves.shape == (6, 3)
    n = deep.trained_depth
    np.testing.assert_allclose(deep.values[n], model.values(instances, plans), atol=1e-5)
    np.testing.assert_allclose(
        deep.probabilities[n], model.probabilities(instances, plans), atol=1e-5
    )


def test_moves_of_a_certified_run_stay_below_the_certified_decay() -> None:
    model = load("pretrained:sudoku9x9-contraction", threads=1)
    instances = model.unseen(2)
    deep = model.deepen(instances, model.domain.initial(instances), depth=8)
    assert deep.modulus is not None and deep.modulus < 1
    bound = deep.moves[0] * deep.modulus ** np.arange(8)[:, None]
    assert (deep.moves <= bound * (1 + 1e-4) + 1e-4).all()


def test_it_plays_an_environment_to_the_end_with_act_and_with_predict(model: Model) -> None:
    env = gym.make("PlanEdit/Sudoku4x4-v0")
    observation, info = env.reset(seed=3)
    for _ in range(16):
        action, state = model.predict(observation, action_masks=info["action_mask"])
        assert state is None and action.shape == () and int(action) == model.act(observation)
        observation, _, terminated, truncated, info = env.step(int(action))
        if terminated or truncated:
            break
    assert info["solved"]
    env.close()


def test_several_environments_get_an_action_each_and_an_ended_one_gets_0(model: Model) -> None:
    instances = model.unseen(3)
    plans = model.domain.initial(instances)
    masks = model.domain.action_mask(instances, plans)
    masks[1] = 0
    observation = {"instance": instances, "plan": plans, "action_mask": masks}
    actions, _ = model.predict(observation)
    assert actions.shape == (3,) and actions[1] == 0
    assert masks[[0, 2], actions[[0, 2]]].all()


def test_edits_that_are_drawn_obey_the_mask_and_follow_the_seed(model: Model) -> None:
    instances = np.repeat(model.unseen(1), 64, axis=0)
    plans = model.domain.initial(instances)
    masks = model.domain.action_mask(instances, plans)
    observation = {"instance": instances, "plan": plans, "action_mask": masks}
    draws = []
    for _ in range(2):
        again = load("pretrained:sudoku4x4", threads=1, seed=5)
        draws.append(again.predict(observation, deterministic=False)[0])
    assert (draws[0] == draws[1]).all() and len(set(draws[0].tolist())) > 1
    assert masks[np.arange(64), draws[0]].all()


def test_evaluate_is_what_the_greedy_policy_reaches(model: Model) -> None:
    instances = model.task.instances("test", num=20)
    board = model.evaluate(instances)
    assert board.learned is not None and "random-legal" in board.reference
    alone = evaluate_policy(model.policy, model.domain, instances)
    assert board.learned.success_rate == alone.success_rate
    solved = [model.solve(instance).solved for instance in instances.instances]
    assert solved == alone.solved.tolist()


def test_searches_and_samples_say_what_they_took(model: Model) -> None:
    instance = model.unseen(1)[0]
    searched = model.solve(instance, search=30)
    assert searched.solved and searched.edits is None and "search that looked at" in searched.reason
    sampled = model.solve(instance, samples=4)
    assert sampled.edits is None and len(sampled.plans) == 2
    with pytest.raises(ValueError, match="samples and search exclude each other"):
        model.solve(instance, samples=2, search=2)


def test_states_of_a_wrong_shape_are_named(model: Model) -> None:
    with pytest.raises(ValueError, match=r"plans must have shape \[2, 16\] for sudoku4x4"):
        model.values(np.zeros((1, 16)), np.zeros((2, 9)))
    with pytest.raises(ValueError, match=r"instances must have shape \[2, 16\]"):
        model.values(np.zeros((3, 16)), np.zeros((2, 16)))


def test_a_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such run folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="did you mean pretrained:sudoku9x9"):
        load("pretrained:sudoku9x")


def test_the_package_shows_its_public_surface_and_loads_it_when_it_is_used() -> None:
    assert dir(upi_trm) == sorted(upi_trm.__all__)
    assert upi_trm.load is load and upi_trm.Model is Model
    for name in upi_trm.__all__:
        assert getattr(upi_trm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_it'"):
        _ = upi_trm.nothing_of_it


def test_an_instance_of_one_puzzle_stands_for_many_plans(model: Model) -> None:
    solution = model.solve(model.unseen(1)[0])
    each = np.repeat(solution.instance[None], len(solution.plans), axis=0)
    np.testing.assert_array_equal(
        model.values(solution.instance, solution.plans), model.values(each, solution.plans)
    )
