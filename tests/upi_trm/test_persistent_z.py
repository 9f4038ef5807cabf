"""Persistent z: latents aligned by variable, carried along rollouts, and tracked as App. F says."""

import copy
from dataclasses import replace
from typing import Any

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
    generator,
    make,
    random_states,
    small_model,
)
from torch import Tensor

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy
from plan_envs.sudoku.rules import Sudoku
from trm.compute.device import Placement
from trm.experiments.states import Boards, model_shape, to_states
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from upi_trm.algorithm import regress
from upi_trm.contraction import ContractionClamp, ContractionConfig, certificate
from upi_trm.deployment import greedy_policy, load_deployed
from upi_trm.evaluator import targets_of_rollouts
from upi_trm.learner import LearnerConfig, UpiLearner
from upi_trm.persistent_z import GreedyPersistent, latent_drift, memories
from upi_trm.rollout import Transitions, Visits, phi_of

DOMAIN = Sudoku(4)
PERSISTENT = replace(SMALL, model=replace(MODEL, latent="persistent"))
CONFIGS = {
    "relational": PERSISTENT,
    "relational, replayed": replace(
        PERSISTENT,
        model=replace(PERSISTENT.model, variables="legal"),
        improvement=replace(IMPROVEMENT, distil_iterations=2, average_rate=0.1),
        contraction=ContractionConfig(modulus=0.7),
    ),
    "flat, along the rollout": replace(PAPER, model=replace(PAPER.model, latent="persistent")),
    "cells": replace(PERSISTENT, model=replace(PERSISTENT.model, update_map="attention")),
}
MAPS = ("mlp", "relational", "attention")


def model_of(update_map: str, seed: int = 0, **options: Any) -> TinyRecursiveModel:
    options = {"channels": 8, "latent": "persistent"} | options
    return small_model(DOMAIN, seed, update_map=update_map, **options).double()


def starting(states: StateBatch, model: TinyRecursiveModel, seed: int = 3) -> StateBatch:
    shape = (len(states), model.num_places, model.config.channels)
    return replace(states, start=torch.randn(shape, generator=generator(seed)).double())


# --- Alignment


@pytest.mark.parametrize("update_map", MAPS)
def test_a_latent_that_is_carried_to_the_same_state_goes_on_unrolling(update_map: str) -> None:
    model, states = model_of(update_map), random_states(DOMAIN, 6)
    blank = torch.zeros(6, model.num_places, model.config.channels, dtype=torch.float64)
    with torch.no_grad():
        encoding = model.encode(replace(states, start=blank))
        memory = model.memory(model.recur(encoding, depth=2), encoding)
        again = model.encode(replace(states, start=memory))
        torch.testing.assert_close(
            model.recur(again, depth=3), model.recur(encoding, depth=5), atol=0, rtol=0
        )
    assert memory.shape == blank.shape


@pytest.mark.parametrize("update_map", MAPS)
def test_from_zero_it_is_the_episodic_latent(update_map: str) -> None:
    model, states = model_of(update_map), random_states(DOMAIN, 6)
    episodic = model_of(update_map, latent="episodic")
    episodic.load_state_dict(model.state_dict())
    blank = torch.zeros(6, model.num_places, model.config.channels)
    for one, other in zip(model(replace(states, start=blank)), episodic(states), strict=True):
        assert torch.equal(one, other)


def test_variables_keep_their_latent_by_name_and_those_that_come_in_start_at_zero() -> None:
    model = model_of("relational", variables="legal")
    before = random_states(DOMAIN, 6, seed=1)
    after = random_states(DOMAIN, 6, seed=2)  # other variables take part
    with torch.no_grad():
        encoding = model.encode(starting(before, model))
        z = model.recur(encoding)
        memory = model.memory(z, encoding)
        start = model.encode(replace(after, start=memory)).start
        variables, others = encoding.variables, model.encode(after).variables
    assert variables is not None
    assert others is not None
    assert start is not None
    known = {
        (state, variable): row
        for state, variable, row in zip(
            variables.state.tolist(), variables.variable.tolist(), z, strict=True
        )
    }
    kept = 0
    zero = torch.zeros(model.config.channels, dtype=torch.float64)
    for state, variable, row in zip(
        others.state.tolist(), others.variable.tolist(), start, strict=True
    ):
        kept += (state, variable) in known
        assert torch.equal(row, known.get((state, variable), zero))
    assert 0 < kept < len(start)


def test_a_state_alone_does_not_say_what_a_persistent_network_does() -> None:
    with pytest.raises(ValueError, match="does not say where its latent starts"):
        model_of("relational")(random_states(DOMAIN, 2))
    with pytest.raises(ValueError, match="does not say where its latent starts"):
        make(PERSISTENT)[0].probabilities(random_states(DOMAIN, 2))
    mixed = replace(IMPROVEMENT, distil=False)
    with pytest.raises(ValueError, match=r"model\.latent must be 'episodic' where"):
        replace(PERSISTENT, improvement=mixed)


# --- Rollouts and lookahead


def collected(config: LearnerConfig, steps: int) -> tuple[UpiLearner, Transitions]:
    learner, roller = make(config, env="sudoku4x4-hard")
    parts = learner.parts
    return learner, roller.collect(parts.actor, steps=steps, generator=parts.actions, device=CPU)


@pytest.mark.parametrize("name", ["relational", "flat, along the rollout", "cells"])
def test_rollouts_carry_each_latent_to_the_next_edit_and_drop_it_at_the_end(name: str) -> None:
    learner, fresh = collected(CONFIGS[name], 24)
    ended = fresh.terminated | fresh.truncated
    assert ended.any()
    assert not ended.all()
    assert not fresh.policy_start[0].any()
    visits = Visits.of([fresh])
    carried = learner.parts.actor.starts()
    for t in range(24):
        rows = slice(t * PLANS, (t + 1) * PLANS)
        states, value_states = visits.select(rows).views(learner.domain, CPU)
        after = carried if t == 23 else (fresh.policy_start[t + 1], fresh.evaluator_start[t + 1])
        for found, model, view in (
            (after[0], learner.phi, states),
            (after[1], learner.evaluator, value_states),
        ):
            reached = memories(model, view).numpy()
            reached[ended[t]] = 0.0
            np.testing.assert_allclose(found, reached, atol=1e-6, rtol=1e-5)
        assert not after[0][ended[t]].any()
        assert after[0][~ended[t]].any()
        # The edits were drawn from the policy at the carried latent.
        chance = learner.probabilities(states)
        made = torch.from_numpy(fresh.action[t]).long()
        assert bool((chance.gather(1, made[:, None]) > 0).all())


def test_successors_start_where_their_parent_ended() -> None:
    learner, fresh = collected(PERSISTENT, 6)
    visits = Visits.of([fresh]).select(slice(-PLANS, None))
    instances, plans = visits.instances, visits.plans
    _, states = visits.views(learner.domain, CPU)
    edit_values = learner.parts.edit_values
    ahead = edit_values(visits, states)
    parents = memories(learner.evaluator, states)
    checked = 0
    for row in range(PLANS):
        found = learner.domain.successors(
            instances[row : row + 1], plans[row : row + 1], gamma=0.9, dead_end="absorb"
        )
        live = np.flatnonzero(~found.terminated)
        boards = np.repeat(instances[row : row + 1], len(live), axis=0)
        after = replace(
            Boards(instances=boards, plans=found.plan[live]).batch(learner.domain, CPU),
            start=parents[row : row + 1].expand(len(live), -1, -1),
        )
        with torch.no_grad():
            raw = learner.evaluator(after)[0]
        score = found.score[live].astype(np.float32)
        value = torch.sigmoid(raw) - phi_of(learner.domain, score, CPU)
        wanted = torch.from_numpy(found.reward[live].astype(np.float32)) + 0.9 * value
        got = ahead.q[row, torch.from_numpy(found.action[live]).long()]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        checked += len(live)
    assert checked > 10
    assert states.start is not None
    blank = edit_values(visits, replace(states, start=torch.zeros_like(states.start)))
    assert not torch.allclose(blank.q, ahead.q, atol=1e-4)


def test_equal_successors_of_different_states_are_told_apart() -> None:
    # Two plans of one puzzle with one cell filled each: filling the other gives the same plan.
    task = resolve_task("sudoku4x4-hard")
    pool = task.instances("train", num=1)
    board, solution = pool.instances[0], pool.solutions[0]
    cells = np.flatnonzero(board == 0)[:2]
    plans = np.stack([np.where(np.arange(16) == cell, solution, board) for cell in cells])
    instances = np.stack([board, board])
    counts = {}
    for config, places in ((SMALL, 0), (PERSISTENT, 64)):
        learner, _ = make(config, env="sudoku4x4-hard")
        start = np.random.default_rng(0).standard_normal((2, places, 4)).astype(np.float32)
        visits = Visits(
            instances=instances,
            plans=plans.astype(np.int8),
            score=learner.domain.check(instances, plans).score.astype(np.float32),
            policy_start=start,
            evaluator_start=start,
        )
        _, view = visits.views(learner.domain, CPU)
        counts[config.model.latent] = learner.parts.edit_values(visits, view).num_evaluated
    assert counts["persistent"] > counts["episodic"]


# --- Learning


@pytest.mark.parametrize("name", CONFIGS)
def test_a_learner_with_a_persistent_latent_iterates_and_carries_on_from_its_state(
    name: str,
) -> None:
    config = CONFIGS[name]
    learner, roller = make(config)
    for _ in range(2):
        metrics = learner.iterate(roller, steps=STEPS)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert len(learner.parts.replay) == 2
    weights = {part: weight.clone() for part, weight in learner.weights().items()}
    state, places = copy.deepcopy(learner.state()), copy.deepcopy(roller.state())
    streams = [stream.get_state() for stream in (learner.parts.noise, learner.parts.actions)]
    draws = copy.deepcopy(roller.curriculum.generator)
    wanted = learner.iterate(roller, steps=STEPS)

    other, other_roller = make(config, seed=9)
    other.load_weights(weights)
    other.load_state(state)
    other_roller.load_state(places)
    other_roller.curriculum.generator = draws
    for stream, taken in zip((other.parts.noise, other.parts.actions), streams, strict=True):
        stream.set_state(taken)
    found = other.iterate(other_roller, steps=STEPS)
    assert {k: v for k, v in found.items() if "seconds" not in k} == {
        k: v for k, v in wanted.items() if "seconds" not in k
    }


def test_values_are_regressed_at_the_latents_that_the_rollout_had() -> None:
    # With the target of a state known, the loss is that of the network at the carried latent.
    learner, roller = make(
        replace(
            PERSISTENT,
            evaluator=replace(
                EVALUATOR, passes=0.5, batch_size=1000, replay_iterations=1, value="score"
            ),
            improvement=replace(IMPROVEMENT, candidate="exp_advantage"),
        )
    )
    learner.iterate(roller, steps=STEPS)
    parts = learner.parts
    fresh = roller.collect(parts.actor, steps=STEPS, generator=parts.actions, device=CPU)
    parts.replay.append(fresh)
    _, states = Visits.of([fresh]).views(learner.domain, CPU)
    v_bar = replace(parts.value, model=parts.target.model)
    values = v_bar.of_next_states(fresh, ~fresh.terminated)
    target = targets_of_rollouts([fresh], [values], config=parts.evaluator)[0].flatten()
    with torch.no_grad():
        wanted = (learner.evaluator(states)[0] - target).square().mean()
    assert regress(parts)["value_loss"] == pytest.approx(float(wanted), rel=1e-4)


# --- Drift (App. F)


def drift_case(
    update_map: str, modulus: float, seed: int, **options: Any
) -> tuple[TinyRecursiveModel, StateBatch, Tensor]:
    """Ten edits of four episodes by hand, latents carried, one of them cut in the middle."""
    task = resolve_task("sudoku4x4-hard" if update_map != "neighbour" else "maze10")
    domain = task.domain
    config = ModelConfig(
        update_map=update_map,  # type: ignore[arg-type]
        channels=4,
        head_width=6,
        latent="persistent",
        **options,
    )
    model = TinyRecursiveModel(model_shape(domain.spec), config, generator=generator(seed)).double()
    with torch.no_grad():
        for weight in model.update.parameters():
            weight.mul_(3.0)
    ContractionClamp(model.update, modulus)
    boards = task.instances("train", num=4).instances
    plans, rng = domain.initial(boards), np.random.default_rng(seed)
    start = torch.zeros(4, model.num_places, 4, dtype=torch.float64)
    seen, starts, ends = [], [], []
    for t in range(10):
        mask = domain.action_mask(boards, plans)
        seen.append((boards, plans, mask))
        starts.append(start)
        states = replace(to_states(boards, plans, mask, CPU), start=start)
        action = np.array([rng.choice(np.flatnonzero(row)) for row in mask], np.int32)
        after = domain.edit(boards, plans, action)
        stuck = ~domain.action_mask(boards, after).any(axis=1) | domain.is_stop(action)
        stuck |= domain.check(boards, after).solved | (np.arange(4) == t - 4)
        plans = np.where(stuck[:, None], domain.initial(boards), after).astype(np.int8)
        ended = torch.from_numpy(stuck)
        ends.append(ended)
        start = memories(model, states).masked_fill(ended[:, None, None], 0.0)
    boards, plans, mask = (np.concatenate(part) for part in zip(*seen, strict=True))
    states = replace(to_states(boards, plans, mask, CPU), start=torch.cat(starts))
    return model, states, torch.stack(ends)


@pytest.mark.parametrize(
    ("update_map", "options"),
    [
        ("mlp", {"depth": 2}),
        ("relational", {"depth": 1}),
        ("relational", {"depth": 3, "radius": 0.5, "variables": "legal"}),
        ("neighbour", {"depth": 2}),
    ],
)
def test_a_carried_latent_stays_within_the_bound_of_the_moving_fixed_point(
    update_map: str, options: dict[str, Any]
) -> None:
    model, states, ended = drift_case(update_map, 0.8, 5, **options)
    bound = certificate(model.update)
    drift = latent_drift(model, states, ended, modulus=bound, tolerance=1e-9, most=400)
    assert drift.missing < 1e-7
    slack = 2 * drift.missing + 1e-9
    assert bool((drift.tracking <= drift.bound + slack).all())
    # With D the largest move the bound never exceeds L_z^n D / (1 - L_z^n).
    shrink = bound ** options["depth"]
    assert float(drift.bound.max()) <= shrink * float(drift.moved.max()) / (1 - shrink) + slack
    assert float(drift.moved.min()) >= 0
    starts = drift.restarted[0]
    torch.testing.assert_close(drift.tracking[0], starts)  # the first edits start at zero
    metrics = drift.metrics()
    assert metrics["drift_tracking"] == float(drift.tracking.max())
    assert metrics["drift_restarted_mean"] == pytest.approx(float(drift.restarted.mean()))


def test_a_learner_reports_the_drift_of_a_certified_evaluator_only() -> None:
    learner, roller = make(CONFIGS["relational, replayed"])
    metrics = learner.iterate(roller, steps=STEPS)
    assert 0 < metrics["drift_tracking"] <= metrics["drift_bound"] * (1 + 1e-3) + 1e-3
    assert metrics["drift_restarted"] > 0
    free, roller = make(CONFIGS["flat, along the rollout"])
    with torch.no_grad():
        free.evaluator.update.first.mul_(50.0)  # type: ignore[union-attr, operator]
    assert not {name for name in free.iterate(roller, steps=2) if name.startswith("drift")}


# --- Evaluation


@pytest.mark.parametrize("name", ["relational", "flat, along the rollout"])
def test_evaluation_carries_the_latents_of_every_episode(name: str) -> None:
    config = CONFIGS[name]
    learner, roller = make(config, env="sudoku4x4-hard")
    for _ in range(2):
        learner.iterate(roller, steps=STEPS)
    task = resolve_task("sudoku4x4-hard")
    puzzles = task.instances("test", num=7)
    policy = greedy_policy(learner.deployed, task.domain, Placement())
    assert isinstance(policy, GreedyPersistent)
    report = evaluate_policy(policy, task.domain, puzzles, batch_size=4, horizon=9)
    wanted = np.stack([play_alone(learner, board) for board in puzzles.instances])
    assert np.array_equal(report.final_plans, wanted)
    weights = {part: weight.clone() for part, weight in learner.weights().items()}
    deployed = load_deployed(task.domain, config, weights, Placement())
    loaded = greedy_policy(deployed, task.domain, Placement())
    again = evaluate_policy(loaded, task.domain, puzzles, horizon=9)
    assert np.array_equal(again.final_plans, wanted)


@torch.no_grad()
def play_alone(learner: UpiLearner, board: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One greedy episode of at most 9 edits, its latent carried by hand."""
    domain, model = learner.domain, learner.phi
    boards = board[None]
    plans = domain.initial(boards)
    memory = torch.zeros(1, model.num_places, model.config.channels)
    for _ in range(9):
        if domain.check(boards, plans).solved[0]:
            break
        mask = domain.action_mask(boards, plans)
        if not mask.any():
            break
        states = replace(to_states(boards, plans, mask, CPU), start=memory)
        encoding = model.encode(states)
        z = model.recur(encoding)
        action = model.edit_logits(z, encoding, states).argmax(dim=1).numpy().astype(np.int32)
        memory = model.memory(z, encoding)
        plans = domain.edit(boards, plans, action)
        if domain.is_stop(action)[0]:
            break
    return plans[0]
