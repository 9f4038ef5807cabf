"""One iteration of unrolled policy iteration: data, targets, candidates, clamp, checkpoints."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import (
    CPU,
    EVALUATOR,
    IMPROVEMENT,
    MODEL,
    PAPER,
    PLANS,
    SMALL,
    STEPS,
    generator,
    make,
)

from plan_envs.catalogue import resolve_task
from plan_envs.domain import edit_reward, potential
from plan_envs.sudoku.rules import Sudoku
from upi_trm.advantage import centred_advantage
from upi_trm.contraction import ContractionConfig, certificate
from upi_trm.curriculum import Curriculum, CurriculumConfig
from upi_trm.evaluator import k_step_targets
from upi_trm.improvement import ImprovementConfig, mixture
from upi_trm.learner import LearnerConfig, UpiLearner, choose_alpha
from upi_trm.rollout import RolloutConfig, Transitions
from upi_trm.theory.bounds import improvement_bound

CONFIGS = {
    "defaults": SMALL,
    "paper": PAPER,
    "exact gradient": replace(SMALL, improvement=replace(IMPROVEMENT, candidate="policy_gradient")),
    "exp advantage": replace(
        SMALL,
        evaluator=replace(EVALUATOR, value="score"),
        improvement=replace(IMPROVEMENT, candidate="exp_advantage"),
    ),
    "some states, by value": replace(
        SMALL,
        evaluator=replace(EVALUATOR, control_variate=False),
        improvement=replace(IMPROVEMENT, lookahead_states=10, state_weight="value"),
    ),
    "corrected edit values": replace(SMALL, evaluator=replace(EVALUATOR, edit_values="corrected")),
    "edit values of the state": replace(SMALL, evaluator=replace(EVALUATOR, edit_values="state")),
    "clamped": replace(SMALL, contraction=ContractionConfig(modulus=0.5)),
    "clamped on schedule, value head": replace(
        SMALL,
        contraction=ContractionConfig(modulus=0.5, schedule="linear", start=2.0, value_head=0.8),
    ),
    "adaptive unrolls": replace(
        SMALL,
        model=replace(MODEL, depth=6, tolerance=0.3),
        contraction=ContractionConfig(modulus=0.5),
    ),
    "clamped flat": replace(
        SMALL,
        model=replace(MODEL, update_map="mlp"),
        contraction=ContractionConfig(modulus=0.5),
    ),
}


@pytest.fixture(scope="module")
def rollout() -> tuple[UpiLearner, Transitions]:
    """A learner that has not learnt, and edits long enough for plans to end in every way."""
    learner, roller = make(SMALL, env="sudoku4x4-hard")
    fresh = roller.collect(learner.probabilities, steps=40, generator=learner.actions, device=CPU)
    return learner, fresh


# --- Rollouts


def test_transitions_are_edits_of_the_domain(rollout: tuple[UpiLearner, Transitions]) -> None:
    learner, fresh = rollout
    domain = learner.domain
    cells = domain.spec.num_cells
    instance, plan, after = (
        array.reshape(-1, cells) for array in (fresh.instance, fresh.plan, fresh.next_plan)
    )
    action = fresh.action.ravel()
    mask = domain.action_mask(instance, plan)
    assert bool((mask[np.arange(len(action)), action] == 1).all())
    assert np.array_equal(domain.edit(instance, plan, action), after)
    before_check, after_check = domain.check(instance, plan), domain.check(instance, after)
    assert np.array_equal(fresh.score.ravel(), before_check.score)
    assert np.array_equal(fresh.next_score.ravel(), after_check.score)
    assert np.array_equal(fresh.solved.ravel(), after_check.solved)
    reward = edit_reward(
        potential(before_check.score, 16.0),
        potential(after_check.score, 16.0),
        solved=after_check.solved,
        absorbed=fresh.terminated.ravel(),
        gamma=0.9,
    )
    np.testing.assert_allclose(fresh.reward.ravel(), reward, atol=1e-6)
    stopped = domain.is_stop(action)
    assert bool(fresh.terminated.ravel()[stopped | after_check.solved].all())


def test_plans_go_on_until_they_end_and_then_start_from_their_instance(
    rollout: tuple[UpiLearner, Transitions],
) -> None:
    _, fresh = rollout
    ended = fresh.terminated | fresh.truncated
    assert fresh.terminated.any()
    assert fresh.truncated.any()
    assert not (fresh.terminated & fresh.truncated).any()
    goes_on = ~ended[:-1]
    assert np.array_equal(fresh.plan[1:][goes_on], fresh.next_plan[:-1][goes_on])
    assert np.array_equal(fresh.instance[1:][goes_on], fresh.instance[:-1][goes_on])
    assert np.array_equal(fresh.plan[1:][~goes_on], fresh.instance[1:][~goes_on])
    # The horizon of 4x4 is 16 edits.
    for plan in range(PLANS):
        ends = np.flatnonzero(ended[:, plan])
        lengths = np.diff(ends, prepend=-1)
        assert lengths.max() == 16
        assert np.array_equal(fresh.truncated[ends, plan], lengths == 16) or (
            fresh.terminated[ends, plan][lengths == 16].any()
        )


def test_collecting_in_two_parts_equals_collecting_at_once() -> None:
    whole = Transitions.__dataclass_fields__
    learner, roller = make(SMALL)
    once = roller.collect(learner.probabilities, steps=12, generator=generator(7), device=CPU)
    learner, roller = make(SMALL)
    draws = generator(7)
    parts = [
        roller.collect(learner.probabilities, steps=steps, generator=draws, device=CPU)
        for steps in (5, 7)
    ]
    for name in whole:
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(once, name), joined), name


def test_curriculum_reveals_givens_and_gets_harder_with_success() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    config = CurriculumConfig(
        kind="adaptive", start=2, step=3, threshold=0.5, window=4, full_share=0.0
    )
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    starts = curriculum.draw(30)
    drawn = starts.plans
    assert set((drawn == 0).sum(axis=1)) == {2}
    assert starts.distance.tolist() == [2] * 30
    assert {board.tobytes() for board in starts.instances} <= {
        board.tobytes() for board in pool.instances
    }
    solutions = {board.tobytes() for board in pool.solutions}
    known = {tuple(x): s for x, s in zip(pool.instances.tolist(), pool.solutions, strict=True)}
    assert len(solutions) > 5
    for board in drawn:
        sources = [
            s
            for x, s in known.items()
            if np.all((np.array(x) == 0) | (np.array(x) == board))
            and np.all((board == 0) | (board == s))
        ]
        assert sources, "a puzzle of the pool with cells filled in"
    curriculum.update(starts.distance[:4], np.array([True, False, False, True]))
    assert curriculum.distance == 5
    # Easier puzzles than asked for do not count, and failures do not make it easier.
    curriculum.update(starts.distance[:8], np.ones(8, bool))
    curriculum.update(curriculum.draw(8).distance, np.zeros(8, bool))
    assert curriculum.distance == 5
    for _ in range(5):
        curriculum.update(curriculum.draw(60).distance, np.ones(60, bool))
    assert curriculum.distance == curriculum.most == 8


def test_curriculum_retreats_where_too_little_succeeds() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    config = CurriculumConfig(
        kind="adaptive", start=2, step=3, threshold=0.75, retreat=0.25, window=4, full_share=0.0
    )
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    reached = []
    for wins in (4, 3, 2, 1, 0, 0):
        outcomes = np.arange(4) < wins
        curriculum.update(np.full(4, 8), outcomes)
        if wins == 2:  # neither: the window goes on, and three failures more end it
            assert curriculum.distance == 8
            curriculum.update(np.full(1, 8), np.zeros(1, bool))
        reached.append(curriculum.distance)
    assert reached == [5, 8, 5, 2, 2, 2], "3 of 4: harder, 1 of 4: easier, never below 2"
    with pytest.raises(ValueError, match=r"curriculum\.retreat must lie in \[0, threshold"):
        CurriculumConfig(threshold=0.5, retreat=0.5)


def test_mixed_curriculum_draws_every_number_of_blanks_and_never_changes() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)  # 6 to 8 blanks
    config = CurriculumConfig(kind="mixed", start=3, window=4, full_share=0.0)
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    blanks, count = np.unique((curriculum.draw(3000).plans == 0).sum(axis=1), return_counts=True)
    assert blanks.tolist() == [3, 4, 5, 6, 7, 8]
    # 3, 4 and 5 each with probability 1/6 of the numbers 3..8.
    assert count[:3] / 3000 == pytest.approx(1 / 6, abs=0.03)
    curriculum.update(np.full(20, 8), np.ones(20, bool))
    assert (curriculum.draw(200).plans == 0).sum(axis=1).min() == 3


def test_without_curriculum_episodes_play_puzzles_of_the_pool() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    curriculum = Curriculum(Sudoku(4), pool, CurriculumConfig(), np.random.default_rng(0))
    inside = {board.tobytes() for board in pool.instances}
    assert {board.tobytes() for board in curriculum.draw(50).instances} <= inside
    curriculum.update(np.full(20, 8), np.ones(20, bool))
    assert curriculum.state() == {"distance": curriculum.distance, "recent": []}


class _Plain(Sudoku):
    """A domain without plans on the way to a solution."""

    @property
    def advance(self) -> None:  # type: ignore[override]
        raise AttributeError


def test_a_curriculum_needs_a_domain_with_plans_on_the_way() -> None:
    pool = resolve_task("sudoku4x4").instances("train", num=5)
    config = CurriculumConfig(kind="mixed")
    with pytest.raises(ValueError, match=r"curriculum\.kind must be none for sudoku4x4"):
        Curriculum(_Plain(4), pool, config, np.random.default_rng(0))


# --- Targets and values


@pytest.mark.parametrize("control_variate", [False, True])
def test_targets_of_a_rollout_bootstrap_with_the_given_network(
    rollout: tuple[UpiLearner, Transitions], control_variate: bool
) -> None:
    learner, fresh = rollout
    learner = copy.copy(learner)
    learner.config = replace(SMALL, evaluator=replace(EVALUATOR, control_variate=control_variate))
    advantage = np.random.default_rng(0).standard_normal(fresh.action.shape).astype(np.float32)
    known = replace(fresh, advantage=advantage)
    (target,) = learner.targets_of([known], [learner.next_values(known, learner.target.model)])
    flat = fresh.next_plan.reshape(-1, 16)
    states = learner.states(fresh.instance.reshape(-1, 16), flat)
    raw = learner.target.model(states)[0].detach()
    phi = torch.from_numpy(potential(fresh.next_score.ravel(), 16.0)).float()
    # test_evaluator.py shows that r - A leaves the mean of the targets and takes their variance.
    wanted = k_step_targets(
        torch.from_numpy(fresh.reward - advantage if control_variate else fresh.reward),
        (torch.sigmoid(raw) - phi).view(fresh.action.shape),
        torch.from_numpy(fresh.terminated),
        torch.from_numpy(fresh.truncated),
        k_steps=3,
        gamma=0.9,
    )
    torch.testing.assert_close(target, wanted, atol=1e-5, rtol=1e-5)


def test_targets_look_into_the_rollout_after() -> None:
    whole, roller = make(SMALL)
    together, _ = whole.collect(roller, steps=12)
    learner, roller = make(SMALL)
    parts = [learner.collect(roller, steps=steps)[0] for steps in (5, 7)]
    (wanted,) = whole.targets_of([together], [whole.next_values(together, whole.target.model)])
    values = [learner.next_values(part, learner.target.model) for part in parts]
    targets = learner.targets_of(parts, values)
    torch.testing.assert_close(torch.cat(targets), wanted, atol=1e-5, rtol=1e-5)
    # Alone, the first rollout's last states would have less to go by.
    (alone,) = learner.targets_of(parts[:1], values[:1])
    assert not torch.allclose(alone[-1], targets[0][-1])
    assert torch.allclose(alone[:-2], targets[0][:-2], atol=1e-5), "K = 3 edits"


@pytest.mark.parametrize("edit_values", ["successor", "corrected", "state"])
def test_the_regression_computes_no_value_that_its_targets_do_not_read(
    edit_values: Literal["successor", "corrected", "state"], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    values = UpiLearner.next_values

    def counted(learner: UpiLearner, past: Transitions, *others: Any) -> torch.Tensor:
        asked.append(int(others[-1].sum()))
        return values(learner, past, *others)

    config = replace(SMALL, evaluator=replace(EVALUATOR, edit_values=edit_values))
    sparing, roller = make(config)
    sparing.iterate(roller, steps=STEPS)
    whole = copy.deepcopy(sparing)
    with monkeypatch.context() as patch:
        patch.setattr(UpiLearner, "next_values", counted)
        sparing.fit_evaluator()
        patch.setattr("upi_trm.learner.bootstrapped", lambda ended, cut, k_steps: ~ended)
        whole.fit_evaluator()
    assert asked[0] == asked[1] if edit_values == "corrected" else asked[0] < asked[1]
    for one, other in zip(
        sparing.evaluator.parameters(), whole.evaluator.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target_policy", ["current", "improved"])
def test_an_iteration_replays_the_advantages_under_the_policy_to_evaluate(
    target_policy: Literal["current", "improved"],
) -> None:
    config = replace(SMALL, evaluator=replace(EVALUATOR, target_policy=target_policy))
    learner, roller = make(config)
    before = copy.deepcopy(learner)
    learner.iterate(roller, steps=STEPS)
    (past,) = learner.replay
    instances, plans = past.instance.reshape(-1, 16), past.plan.reshape(-1, 16)
    ahead = before.look_ahead(instances, plans)
    states = before.states(instances, plans)
    policy = before.probabilities(states)
    if target_policy == "improved":
        advantage = centred_advantage(ahead.q, policy, ahead.mask)
        phi = before.phi(past.score.ravel())
        candidate = before.candidate(states, policy, ahead, advantage, phi)
        policy = mixture(policy, candidate, alpha=config.improvement.alpha)
    rows = torch.arange(PLANS * STEPS)
    made = torch.from_numpy(past.action.ravel()).long()
    wanted = ahead.q[rows, made] - (policy * ahead.q).sum(dim=1)
    np.testing.assert_allclose(past.advantage.ravel(), wanted.numpy(), atol=1e-5)
    assert bool((policy[rows, made] > 0).all())


# --- An iteration


def not_finite(learner: UpiLearner, metrics: dict[str, float]) -> list[str]:
    """The metrics and weights that hold a NaN or an infinity; none ever may.

    Every metric is a mean or a maximum over at least one state, logarithms of illegal edits are
    left out, and so are the NaN that mark decided edits among the targets of the corrections. A
    weight with a NaN keeps it for ever.
    """
    metrics_broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    weights = learner.weights().items()
    return metrics_broken + [name for name, weight in weights if not weight.isfinite().all()]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def iterated(request: pytest.FixtureRequest) -> Iterator[tuple[UpiLearner, dict[str, float]]]:
    learner, roller = make(request.param)
    learner.iterate(roller, steps=STEPS)
    learner.iterate(roller, steps=STEPS)
    yield learner, learner.iterate(roller, steps=STEPS)


def test_an_iteration_moves_all_networks_and_leaves_every_number_finite(
    iterated: tuple[UpiLearner, dict[str, float]],
) -> None:
    learner, metrics = iterated
    assert not_finite(learner, metrics) == []
    start, _ = make(learner.config)
    for name, weight in start.weights().items():
        if name.endswith("update.mix.own") or name.endswith("update.first"):
            assert not torch.equal(learner.weights()[name], weight), name
    assert len(learner.replay) == 2
    assert metrics["kl_asked"] >= 0
    if learner.config.improvement.advantage == "exact":
        assert metrics["centring_defect"] <= 1e-5
        assert metrics["candidate_advantage"] >= -1e-6
        states = learner.config.improvement.lookahead_states or PLANS * STEPS
        evaluated = metrics["successors_evaluated"]
        assert (evaluated > 0) == (learner.config.evaluator.edit_values != "state")
        assert metrics["successors"] >= evaluated
        assert metrics["successors"] >= states


# --- alpha from the bound


@pytest.mark.parametrize("penalty", ["paper", "cpi", "span"])
@given(
    gains=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=6),
    gamma=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_alpha_by_the_bound_is_where_equation_11_is_largest(
    penalty: Any, gains: list[float], gamma: float
) -> None:
    config = ImprovementConfig(alpha=1.0, alpha_rule="bound", alpha_penalty=penalty)
    gain = torch.tensor(gains, dtype=torch.float64)
    alpha, metrics = choose_alpha(gain, 0.3, config=config, gamma=gamma)
    spread = max(*gains, 0.0) - min(*gains, 0.0)
    terms = {"gain": float(gain.mean()), "gamma": gamma, "penalty": penalty}
    terms["deviation"] = spread if penalty == "span" else max(map(abs, gains))
    grid = np.linspace(0.0, 1.0, 2001)
    promised = [improvement_bound(float(share), **terms) for share in grid]
    assert metrics["promised"] == pytest.approx(improvement_bound(alpha, **terms))
    assert metrics["promised"] >= max(promised) - 1e-9
    assert metrics["alpha"] == metrics["alpha_bound"] == alpha
    if penalty == "paper":
        assert alpha <= (1 - gamma) / (4 * gamma) + 1e-12 or max(map(abs, gains)) == 0


def test_what_the_residual_proves_allows_a_smaller_alpha_and_none_when_it_is_large() -> None:
    gain = torch.tensor([0.2, 0.1, 0.3])
    found = {}
    for rule in ("fixed", "bound", "proven"):
        for residual in (0.0, 0.001, 0.1):
            config = ImprovementConfig(alpha=0.5, alpha_rule=rule)  # type: ignore[arg-type]
            found[rule, residual], _ = choose_alpha(gain, residual, config=config, gamma=0.9)
    assert found["fixed", 0.1] == 0.5
    # (1 - 0.9) / (4 x 0.9) x mean 0.2 / largest 0.3
    assert found["bound", 0.1] == pytest.approx(0.1 / 3.6 * 2 / 3, rel=1e-5)
    assert found["proven", 0.0] == pytest.approx(found["bound", 0.1])
    # error = 2 gamma residual / (1 - gamma) = 0.018: (0.2 - 0.018) / (0.3 + 0.018)
    assert found["proven", 0.001] == pytest.approx(0.1 / 3.6 * 0.182 / 0.318, rel=1e-5)
    assert found["proven", 0.1] == 0.0


def test_alpha_never_exceeds_the_recipe_and_without_discount_no_bound_is_reported() -> None:
    config = ImprovementConfig(alpha=0.01, alpha_rule="bound")
    gain = torch.tensor([0.2, 0.2])
    alpha, metrics = choose_alpha(gain, 0.0, config=config, gamma=0.9)
    assert (alpha, metrics["alpha_bound"]) == (0.01, pytest.approx(0.1 / 3.6))
    assert choose_alpha(gain, 0.0, config=ImprovementConfig(alpha=0.01), gamma=1.0) == (
        0.01,
        {"alpha": 0.01},
    )


def test_an_iteration_mixes_with_the_alpha_of_the_bound() -> None:
    asked = {}
    for rule in ("fixed", "bound", "proven"):
        config = replace(
            SMALL,
            improvement=replace(IMPROVEMENT, alpha=0.5, alpha_rule=rule),  # type: ignore[arg-type]
        )
        learner, roller = make(config)
        before = copy.deepcopy(learner.policy.state_dict())
        metrics = learner.iterate(roller, steps=STEPS)
        asked[rule] = metrics["kl_asked"]
        moved = any(not torch.equal(w, before[n]) for n, w in learner.policy.state_dict().items())
        # gamma is 0.9; an untrained U_n proves nothing, so that the policy stays as it is.
        assert moved == (rule != "proven")
        assert metrics["alpha"] == {"fixed": 0.5, "proven": 0.0}.get(rule, metrics["alpha_bound"])
        assert 0 < metrics["alpha_bound"] <= 0.1 / 3.6 + 1e-9
        assert metrics["bellman_residual"] > 0
    # KL of a small step grows with its square.
    assert asked["proven"] == 0.0 <= asked["bound"] < 0.02 * asked["fixed"]


def test_alpha_by_a_bound_needs_a_discount_and_exact_advantages() -> None:
    ruled = replace(IMPROVEMENT, alpha_rule="bound")
    with pytest.raises(ValueError, match=r"improvement\.alpha_rule 'bound' needs evaluator\.gamma"):
        replace(SMALL, improvement=ruled, evaluator=replace(EVALUATOR, gamma=1.0))
    with pytest.raises(ValueError, match=r"'gae' does not know E_cand\[A\] and needs alpha_rule"):
        replace(PAPER.improvement, alpha_rule="bound")


# --- Adaptive unrolls


def test_an_adaptive_recursion_reports_its_unrolls_and_what_is_missing_to_the_fixed_point() -> None:
    learner, roller = make(CONFIGS["adaptive unrolls"])
    metrics = learner.iterate(roller, steps=STEPS)
    assert 1 <= metrics["unrolls"] <= metrics["unrolls_max"] <= 6
    states = learner.states(learner.replay[-1].instance[-1], learner.replay[-1].plan[-1])
    longest, count = [], []
    for model, held in zip((learner.evaluator, learner.policy), learner.certificates, strict=True):
        with torch.no_grad():
            found = model.recur_counted(model.encode(states))
        longest.append(held.bound() / (1 - held.bound()) * float(found.last_step.max()))
        count += found.unrolls.tolist()
    assert metrics["unroll_bias_bound"] == pytest.approx(max(longest))
    assert metrics["unrolls"] == pytest.approx(np.mean(count))
    free, roller = make(replace(CONFIGS["adaptive unrolls"], contraction=ContractionConfig()))
    assert "unroll_bias_bound" not in free.iterate(roller, steps=2)


@pytest.mark.parametrize("name", ["clamped", "clamped flat"])
def test_a_clamped_learner_stays_certified_after_every_iteration(name: str) -> None:
    learner, roller = make(CONFIGS[name])
    for _ in range(2):
        metrics = learner.iterate(roller, steps=STEPS)
        assert metrics["certified_modulus"] <= 0.5
        for model in (learner.evaluator, learner.policy):
            assert learner.certificates[0].bound() <= 0.5
            with torch.no_grad():
                assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_equal_seeds_give_equal_iterations_and_other_seeds_do_not() -> None:
    runs = []
    for seed in (0, 0, 5):
        learner, roller = make(SMALL, seed=seed)
        torch.manual_seed(len(runs))  # the global stream must not matter
        np.random.seed(len(runs))  # noqa: NPY002  # nor that of numpy
        metrics = learner.iterate(roller, steps=STEPS)
        runs.append((learner.weights(), {k: v for k, v in metrics.items() if "seconds" not in k}))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_state_and_weights_carry_on_exactly_where_they_were_taken() -> None:
    learner, roller = make(SMALL, curriculum=True)
    learner.iterate(roller, steps=STEPS)
    weights = {name: weight.clone() for name, weight in learner.weights().items()}
    state = copy.deepcopy(learner.state())
    roller_state = copy.deepcopy(roller.state())
    draws = copy.deepcopy(roller.curriculum.generator)
    streams = [stream.get_state() for stream in (learner.noise, learner.actions)]
    wanted = learner.iterate(roller, steps=STEPS)

    other, other_roller = make(SMALL, seed=9, curriculum=True)
    other.iterate(other_roller, steps=2)
    other.load_weights(weights)
    other.load_state(state)
    for stream, taken in zip((other.noise, other.actions), streams, strict=True):
        stream.set_state(taken)
    other_roller.load_state(roller_state)
    other_roller.curriculum.generator = draws
    found = other.iterate(other_roller, steps=STEPS)
    for name, value in wanted.items():
        if not name.startswith("seconds_"):
            assert found[name] == value, name
    assert all(torch.equal(w, other.weights()[name]) for name, w in learner.weights().items())


@pytest.mark.parametrize("name", ["defaults", "exact gradient", "paper"])
@pytest.mark.parametrize("held_out", [0.01, 0.99])
def test_two_edits_are_enough_for_an_iteration(name: str, held_out: float) -> None:
    config = replace(CONFIGS[name], rollout=RolloutConfig(plans=2, steps=1))
    config = replace(config, improvement=replace(config.improvement, held_out=held_out))
    learner, roller = make(config)
    metrics = learner.iterate(roller, steps=1)
    # Whatever share is asked for, one of the two states is distilled on and the other measures the
    # KL, so that no mean is over nothing and no metric is missing.
    assert metrics["distil_steps"] >= 1
    assert not_finite(learner, metrics) == []
    many, roller = make(CONFIGS[name])
    assert metrics.keys() == many.iterate(roller, steps=STEPS).keys()
    # A plan can't end twice in one edit; where none ended, the share of solved plans is 0, not 0/0.
    assert metrics["episodes"] <= 2
    assert 0 <= metrics["train_success"] <= 1


def test_every_phase_of_an_iteration_is_timed() -> None:
    learner, roller = make(SMALL)
    metrics = learner.iterate(roller, steps=1)
    timed = {name for name in metrics if name.startswith("seconds_")}
    phases = ("rollout", "lookahead", "distil", "value")
    assert timed == {f"seconds_{phase}" for phase in phases}
    assert all(metrics[name] > 0 for name in timed)


# --- Bad settings


def corrected(
    value: Literal["success", "score"], edit_values: Literal["corrected", "state"] = "corrected"
) -> tuple[UpiLearner, Transitions]:
    evaluator = replace(EVALUATOR, edit_values=edit_values, value=value)
    candidate = "success_posterior" if value == "success" else "exp_advantage"
    config = replace(
        SMALL, evaluator=evaluator, improvement=replace(IMPROVEMENT, candidate=candidate)
    )
    learner, roller = make(config)
    fresh, _ = learner.collect(roller, steps=STEPS)
    return learner, fresh


@pytest.mark.parametrize("value", ["success", "score"])
def test_a_correction_changes_undecided_edits_only_and_none_where_it_says_nothing(
    value: Literal["success", "score"],
) -> None:
    learner, fresh = corrected(value)
    instances, plans = fresh.instance.reshape(-1, 16), fresh.plan.reshape(-1, 16)
    states = learner.states(instances, plans)
    plain = learner.look_ahead(instances, plans)
    assert bool((plain.mask & ~plain.undecided).any())
    assert bool(plain.undecided.any())
    found = learner.edit_values(instances, plans, states=states).q
    assert torch.equal(found[~plain.undecided], plain.q[~plain.undecided])
    assert not torch.allclose(found[plain.undecided], plain.q[plain.undecided], atol=1e-4)
    with torch.no_grad():
        learner.evaluator.edit_out.weight.zero_()
        learner.evaluator.edit_out.bias.zero_()
    silent = learner.edit_values(instances, plans, states=states).q
    torch.testing.assert_close(silent, plain.q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", ["success", "score"])
def test_edit_values_of_the_state_ask_for_no_successor(value: Literal["success", "score"]) -> None:
    learner, fresh = corrected(value, "state")
    instances, plans = fresh.instance.reshape(-1, 16), fresh.plan.reshape(-1, 16)
    states = learner.states(instances, plans)
    plain = learner.look_ahead(instances, plans)
    found = learner.edit_values(instances, plans, states=states)
    assert found.num_evaluated == 0 < plain.num_evaluated
    assert torch.equal(found.undecided, plain.undecided)
    assert torch.equal(found.q[~plain.undecided], plain.q[~plain.undecided])
    with torch.no_grad():
        learner.evaluator.edit_out.weight.zero_()
        learner.evaluator.edit_out.bias.zero_()
    silent = learner.edit_values(instances, plans, states=states).q
    score = fresh.score.ravel()
    masks = learner.domain.action_mask(instances, plans)
    own = learner.state_value(instances, plans, masks, score)
    phi = learner.phi(score)
    gamma = learner.config.evaluator.gamma
    wanted = own if value == "score" else gamma * (own + phi) - phi
    wanted = wanted[:, None].expand_as(silent)[plain.undecided]
    torch.testing.assert_close(silent[plain.undecided], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "edit_values", ["corrected", pytest.param("state", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("value", ["success", pytest.param("score", marks=pytest.mark.slow)])
def test_a_correction_learns_the_returns_of_the_edits_made(
    value: Literal["success", "score"], edit_values: Literal["corrected", "state"]
) -> None:
    learner, roller = make(corrected(value, edit_values)[0].config)
    losses = [learner.iterate(roller, steps=STEPS)["edit_loss"] for _ in range(2)]
    learner.replay.popleft()
    losses += [learner.fit_evaluator()["edit_loss"] for _ in range(60)]
    assert losses[-1] < 0.9 * losses[1]


def test_corrections_need_the_advantage_of_every_edit() -> None:
    with pytest.raises(ValueError, match=r"evaluator.edit_values 'corrected' needs .*'exact'"):
        replace(PAPER, evaluator=replace(EVALUATOR, edit_values="corrected", control_variate=False))


def test_success_posterior_needs_a_value_that_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"needs evaluator\.value 'success', got 'score'"):
        replace(SMALL, evaluator=replace(EVALUATOR, value="score"))


def test_control_variates_need_the_advantage_of_every_edit_made() -> None:
    for improvement in (PAPER.improvement, replace(IMPROVEMENT, lookahead_states=5)):
        with pytest.raises(ValueError, match=r"evaluator\.control_variate needs"):
            replace(SMALL, improvement=improvement)


def test_targets_of_the_improved_policy_are_made_of_control_variates() -> None:
    evaluator = replace(EVALUATOR, target_policy="improved", control_variate=False)
    with pytest.raises(ValueError, match=r"evaluator\.target_policy 'improved' needs"):
        replace(SMALL, evaluator=evaluator)


@pytest.mark.parametrize("modulus", [0.0, 1.0, -1.0, math.nan])
def test_a_modulus_outside_the_open_unit_interval_is_named(modulus: float) -> None:
    with pytest.raises(ValueError, match=r"contraction\.modulus must lie in \(0, 1\)"):
        ContractionConfig(modulus=modulus)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear", "modulus": 0.9}, r"contraction\.start goes with"),
        ({"start": 2.0, "modulus": 0.9}, r"contraction\.start goes with"),
        ({"schedule": "linear", "start": 0.8, "modulus": 0.9}, r"start must be above"),
        ({"schedule": "linear", "start": 2.0}, r"start must be above"),
        ({"ramp": 0.0}, r"contraction\.ramp must lie in \(0, 1\], got 0"),
        ({"value_head": -1.0}, r"contraction\.value_head must be positive or null, got -1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContractionConfig(**settings)


def test_l_z_falls_linearly_from_its_start_and_then_stays() -> None:
    config = ContractionConfig(modulus=0.9, schedule="linear", start=1.9, ramp=0.5)
    found = [config.modulus_at(share) for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([1.9, 1.7, 1.4, 0.9, 0.9, 0.9])
    assert ContractionConfig(modulus=0.9).modulus_at(0.0) == 0.9
    assert ContractionConfig().modulus_at(0.5) is None


def test_a_falling_l_z_binds_every_network_that_is_used_the_deployed_average_too() -> None:
    config = replace(
        SMALL,
        contraction=ContractionConfig(modulus=0.4, schedule="linear", start=3.0, ramp=0.5),
        improvement=replace(IMPROVEMENT, average_rate=0.01),
    )
    learner, roller = make(config)
    with torch.no_grad():
        for model in (learner.evaluator, learner.policy):
            model.update.mix.own.mul_(20.0)  # type: ignore[union-attr, operator]
    limits = []
    for share in (0.1, 0.3, 1.0):
        learner.set_progress(share)
        metrics = learner.iterate(roller, steps=2)
        limits.append(metrics["modulus"])
        assert metrics["certified_modulus"] <= metrics["modulus"]
        assert certificate(learner.deployed.update) <= metrics["modulus"]
    assert limits == pytest.approx([2.48, 1.44, 0.4])


@pytest.mark.parametrize(("name", "least"), [("plans", 2), ("steps", 1)])
def test_a_rollout_too_small_to_hold_out_a_state_is_named(name: str, least: int) -> None:
    RolloutConfig(**{name: least})
    with pytest.raises(
        ValueError, match=f"rollout.{name} must be at least {least}, got {least - 1}"
    ):
        RolloutConfig(**{name: least - 1})


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_running_average_of_the_policy_is_deployed_and_keeps_its_bound(rate: float) -> None:
    config = replace(
        SMALL,
        contraction=ContractionConfig(modulus=0.5),
        improvement=replace(IMPROVEMENT, average_rate=rate),
    )
    learner, roller = make(config)
    first = copy.deepcopy(learner.policy.state_dict())
    learner.iterate(roller, steps=2)
    average, last = learner.deployed.state_dict(), learner.policy.state_dict()
    assert certificate(learner.deployed.update) <= 0.5
    # The value head of the policy's network is never trained.
    moving = [name for name in last if not name.startswith(("value", "readout"))]
    followed = [torch.equal(average[name], last[name]) for name in moving]
    assert all(followed) if rate == 1.0 else not any(followed)
    assert not any(torch.equal(average[name], first[name]) for name in moving)
    assert {f"average.{name}" for name in last} <= set(learner.weights())


OPTIONAL = {
    "persistent, clamped": replace(
        SMALL,
        model=replace(MODEL, latent="persistent"),
        contraction=ContractionConfig(modulus=0.5),
    ),
    "explicit mixture": replace(SMALL, improvement=replace(IMPROVEMENT, distil=False)),
    "alpha by the bound": replace(SMALL, improvement=replace(IMPROVEMENT, alpha_rule="bound")),
}


@pytest.mark.parametrize("config", [*CONFIGS.values(), *OPTIONAL.values()])
def test_every_metric_of_an_iteration_is_defined_in_the_docs(config: LearnerConfig) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
    cells = [row.split("|")[1] for row in page.read_text().splitlines() if row.startswith("| `")]
    defined = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    learner, roller = make(config)
    for _ in range(2):
        metrics = learner.iterate(roller, steps=STEPS)
        assert set(metrics) <= defined
