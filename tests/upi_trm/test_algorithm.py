"""One iteration of unrolled policy iteration: targets, advantages, clamp, checkpoints, metrics."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from learner_cases import (
    CPU,
    EVALUATOR,
    IMPROVEMENT,
    MODEL,
    PAPER,
    PLANS,
    SMALL,
    STEPS,
    make,
)
from numpy.typing import NDArray

from plan_envs.domain import potential
from trm.experiments.states import Boards
from upi_trm.algorithm import regress
from upi_trm.contraction import ContractionConfig, certificate
from upi_trm.evaluator import ValueFunction, k_step_targets, targets_of_rollouts
from upi_trm.learner import LearnerConfig, UpiLearner
from upi_trm.rollout import Roller, RolloutConfig, Transitions, Visits

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
    "clamped flat": replace(
        SMALL,
        model=replace(MODEL, update_map="mlp"),
        contraction=ContractionConfig(modulus=0.5),
    ),
}


def collect(learner: UpiLearner, roller: Roller, *, steps: int) -> Transitions:
    parts = learner.parts
    return roller.collect(parts.actor, steps=steps, generator=parts.actions, device=CPU)


def target_values(learner: UpiLearner) -> ValueFunction:
    """V_bar, the value function of the target network."""
    return replace(learner.parts.value, model=learner.parts.target.model)


@pytest.fixture(scope="module")
def rollout() -> tuple[UpiLearner, Transitions]:
    """A learner that has not learnt, and edits long enough for plans to end in every way."""
    learner, roller = make(SMALL, env="sudoku4x4-hard")
    return learner, collect(learner, roller, steps=40)


# --- Targets and values


@pytest.mark.parametrize("control_variate", [False, True])
def test_targets_of_a_rollout_bootstrap_with_the_given_network(
    rollout: tuple[UpiLearner, Transitions], control_variate: bool
) -> None:
    learner, fresh = rollout
    advantage = np.random.default_rng(0).standard_normal(fresh.action.shape).astype(np.float32)
    known = replace(fresh, advantage=advantage)
    config = replace(EVALUATOR, control_variate=control_variate)
    v_bar = target_values(learner)
    everywhere = np.ones(fresh.action.shape, np.bool_)
    values = [v_bar.of_next_states(known, everywhere)]
    (target,) = targets_of_rollouts([known], values, config=config)
    flat = fresh.next_plan.reshape(-1, 16)
    boards = Boards(instances=fresh.instance.reshape(-1, 16), plans=flat)
    states = boards.batch(learner.domain, CPU)
    raw = v_bar.model(states)[0].detach()
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
    together = collect(whole, roller, steps=12)
    learner, roller = make(SMALL)
    parts = [collect(learner, roller, steps=steps) for steps in (5, 7)]

    def values_of(one: UpiLearner, pasts: list[Transitions]) -> list[torch.Tensor]:
        v_bar = target_values(one)
        return [v_bar.of_next_states(past, np.ones(past.action.shape, np.bool_)) for past in pasts]

    (wanted,) = targets_of_rollouts([together], values_of(whole, [together]), config=EVALUATOR)
    values = values_of(learner, parts)
    targets = targets_of_rollouts(parts, values, config=EVALUATOR)
    torch.testing.assert_close(torch.cat(targets), wanted, atol=1e-5, rtol=1e-5)
    # Alone, the first rollout's last states would have less to go by.
    (alone,) = targets_of_rollouts(parts[:1], values[:1], config=EVALUATOR)
    assert not torch.allclose(alone[-1], targets[0][-1])
    assert torch.allclose(alone[:-2], targets[0][:-2], atol=1e-5), "K = 3 edits"


@pytest.mark.parametrize("edit_values", ["successor", "corrected", "state"])
def test_the_regression_computes_no_value_that_its_targets_do_not_read(
    edit_values: Literal["successor", "corrected", "state"], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    values = ValueFunction.of_next_states

    def counted(value: ValueFunction, past: Transitions, read: NDArray[np.bool_]) -> torch.Tensor:
        asked.append(int(read.sum()))
        return values(value, past, read)

    config = replace(SMALL, evaluator=replace(EVALUATOR, edit_values=edit_values))
    sparing, roller = make(config)
    sparing.iterate(roller, steps=STEPS)
    whole = copy.deepcopy(sparing)
    with monkeypatch.context() as patch:
        patch.setattr(ValueFunction, "of_next_states", counted)
        regress(sparing.parts)
        patch.setattr("upi_trm.edit_values.bootstrapped", lambda ended, cut, k_steps: ~ended)
        regress(whole.parts)
    assert asked[0] == asked[1] if edit_values == "corrected" else asked[0] < asked[1]
    for one, other in zip(
        sparing.evaluator.parameters(), whole.evaluator.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_iteration_replays_the_centred_advantages_of_the_edits_made() -> None:
    """Eq. 9, A = Q - E_pi[Q], of the policy that made the edits and of U_n before its fit."""
    learner, roller = make(SMALL)
    before = copy.deepcopy(learner)
    learner.iterate(roller, steps=STEPS)
    (past,) = learner.parts.replay
    visits = Visits.of([past])
    policy_view, value_view = visits.views(before.domain, CPU)
    ahead = before.parts.edit_values(visits, value_view)
    policy = before.probabilities(policy_view)
    rows = torch.arange(PLANS * STEPS)
    made = torch.from_numpy(past.action.ravel()).long()
    wanted = ahead.q[rows, made] - (policy * ahead.q).sum(dim=1)
    np.testing.assert_allclose(past.advantage.ravel(), wanted.numpy(), atol=1e-5)
    assert bool((policy[rows, made] > 0).all())


# --- An iteration


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def iterated(request: pytest.FixtureRequest) -> Iterator[tuple[UpiLearner, dict[str, float]]]:
    learner, roller = make(request.param)
    learner.iterate(roller, steps=STEPS)
    learner.iterate(roller, steps=STEPS)
    yield learner, learner.iterate(roller, steps=STEPS)


def test_an_iteration_moves_every_trained_weight_and_measures_what_it_did(
    iterated: tuple[UpiLearner, dict[str, float]],
) -> None:
    learner, metrics = iterated
    # No figure divides by a count that may be zero, so that none may be NaN or infinite.
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []
    start, _ = make(learner.config)
    for name, weight in start.weights().items():
        now = learner.weights()[name]
        # Adam's steps are at most the learning rate long (up to its bias correction), in either
        # network, and the target network follows the evaluator.
        assert float((now - weight).abs().max()) < 0.5, name
        if name.endswith("update.mix.own") or name.endswith("update.first"):
            assert not torch.equal(now, weight), name
    assert len(learner.parts.replay) == 2
    assert metrics["kl_asked"] >= 0
    if learner.config.improvement.advantage == "exact":
        assert metrics["centring_defect"] <= 1e-5
        assert metrics["candidate_advantage"] >= -1e-6
        states = learner.config.improvement.lookahead_states or PLANS * STEPS
        evaluated = metrics["successors_evaluated"]
        assert (evaluated > 0) == (learner.config.evaluator.edit_values != "state")
        assert metrics["successors"] >= evaluated
        assert metrics["successors"] >= states


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
    streams = [stream.get_state() for stream in (learner.parts.noise, learner.parts.actions)]
    wanted = learner.iterate(roller, steps=STEPS)

    other, other_roller = make(SMALL, seed=9, curriculum=True)
    other.iterate(other_roller, steps=2)
    other.load_weights(weights)
    other.load_state(state)
    for stream, taken in zip((other.parts.noise, other.parts.actions), streams, strict=True):
        stream.set_state(taken)
    other_roller.load_state(roller_state)
    other_roller.curriculum.generator = draws
    found = other.iterate(other_roller, steps=STEPS)
    for name, value in wanted.items():
        if not name.startswith("seconds_"):
            assert found[name] == value, name
    assert all(torch.equal(w, other.weights()[name]) for name, w in learner.weights().items())


@pytest.mark.parametrize("name", ["defaults", "exact gradient", "paper"])
def test_two_edits_are_enough_for_an_iteration(name: str) -> None:
    """One state is fitted and one measures: every figure is a mean over one state at least."""
    config = replace(CONFIGS[name], rollout=RolloutConfig(plans=2, steps=1))
    learner, roller = make(config)
    before = {key: weight.clone() for key, weight in learner.weights().items()}
    metrics = learner.iterate(roller, steps=1)
    assert [key for key, value in metrics.items() if not math.isfinite(value)] == []
    (past,) = learner.parts.replay
    assert past.action.shape == (1, 2)
    changes = [float((w - before[key]).abs().max()) for key, w in learner.weights().items()]
    assert 0.0 < max(changes) < 0.5


def test_every_phase_of_an_iteration_is_timed() -> None:
    learner, roller = make(SMALL)
    metrics = learner.iterate(roller, steps=1)
    timed = {name for name in metrics if name.startswith("seconds_")}
    phases = ("rollout", "lookahead", "distil", "value")
    assert timed == {f"seconds_{phase}" for phase in phases}
    assert all(metrics[name] > 0 for name in timed)


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
