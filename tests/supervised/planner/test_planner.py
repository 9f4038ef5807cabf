"""The planner against the literal Algorithm 1, MMR against brute force, noise, Table 6."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planner_cases import literal_js
from torch import Tensor

from supervised.planner.planner import (
    Advance,
    PlannerConfig,
    RolloutNoise,
    js_distances,
    plan,
    select_by_mmr,
    select_by_score,
    teacher_on,
)
from trm.nn.recursion import Latents, RecursionSchedule
from trm.nn.stablemax import IGNORE, stablemax_probabilities
from trm.nn.token_model import StepOutput, TokenModel, TokenModelConfig, TokenShape

LENGTH, VOCAB = 4, 3


# --- The oracle


@dataclass(frozen=True, kw_only=True)
class Element:
    """A state of Algorithm 1's beam: (c, z, l, t, s, halted)."""

    latents: Latents
    logits: Tensor | None = None
    loss: float = math.inf
    step: int = 0
    score: float
    halted: bool


def literal_algorithm_1(
    start: Latents,
    advance: Advance,
    labels: Tensor,
    config: PlannerConfig,
    *,
    beam_size: int,
    key: bytes,
    rollout: int,
) -> tuple[Element, int]:
    """Lines 4 to 32 of the paper for one example, and how often the teacher was called."""
    calls = 0
    noise = RolloutNoise([key], rollout=rollout, config=config)
    beam = [Element(latents=start, score=0.0, halted=False)]
    beam += [Element(latents=start, score=-math.inf, halted=True)] * (beam_size - 1)
    for tau in range(1, config.steps + 1):
        candidates: list[Element] = []
        for element in beam:
            if element.halted:
                candidates.append(element)
                continue
            calls += 1
            output = advance(element.latents, tau)
            moved = noise.added(output.latents)
            loss = literal_loss(output.logits[0], labels[0])
            score = config.quality_weight * math.exp(-loss) - config.step_cost * tau
            if config.halting_weight:
                assert output.halting is not None
                halting = float(torch.sigmoid(output.halting[0, 0].double()))
                score = (
                    config.quality_weight * math.exp(-loss)
                    - config.step_cost * tau
                    + config.halting_weight * halting
                )
            going = Element(
                latents=moved,
                logits=output.logits[0],
                loss=loss,
                step=tau,
                score=score,
                halted=False,
            )
            candidates += [going, replace(going, halted=True)]
        # sorted() is stable: of equal scores the one that comes first in U stays first.
        beam = sorted(candidates, key=lambda element: -element.score)[:beam_size]
    return beam[0], calls


def literal_loss(logits: Tensor, labels: Tensor) -> float:
    probabilities = stablemax_probabilities(logits)
    losses = [
        -math.log(float(probabilities[i, int(label)]))
        for i, label in enumerate(labels)
        if label != IGNORE
    ]
    return sum(losses) / len(losses)


def scripted(logits: Tensor, halting: Tensor) -> tuple[Latents, Advance]:
    """A teacher whose step t of each row gives logits [batch, step, position, vocab]."""

    def advance(latents: Latents, step: int) -> StepOutput:
        both = torch.stack([halting[:, step - 1], torch.zeros(len(halting))], dim=1)
        return StepOutput(latents=latents, logits=logits[:, step - 1], halting=both)

    nothing = torch.zeros(len(logits), 1, 1)
    return Latents(z_h=nothing, z_l=nothing), advance


def counted(advance: Advance) -> tuple[Advance, Callable[[], int]]:
    calls = 0

    def counting(latents: Latents, step: int) -> StepOutput:
        nonlocal calls
        calls += 1
        return advance(latents, step)

    return counting, lambda: calls


def tiny_teacher() -> TokenModel:
    config = TokenModelConfig(
        width=8, layers=1, heads=2, prefix=1, puzzle_channels=0, expansion=0.1
    )
    model = TokenModel(
        TokenShape(vocab_size=VOCAB, num_positions=LENGTH),
        config,
        RecursionSchedule(cycles=1, inner=1),
        generator=torch.Generator().manual_seed(0),
    )
    assert model.halt is not None
    torch.nn.init.normal_(model.halt.weight, generator=torch.Generator().manual_seed(1))
    return model


PALETTE = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 1.0, 0.0]])
"""Few patterns, so that steps often tie."""


@given(
    patterns=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    halts=st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=9, max_size=9),
    halting_weight=st.sampled_from([0.0, 0.25]),
    step_cost=st.sampled_from([0.0, 0.01, 0.2]),
    beam_size=st.integers(2, 6),
)
def test_the_running_argmax_is_the_literal_beam_ties_included(
    patterns: list[int],
    halts: list[float],
    halting_weight: float,
    step_cost: float,
    beam_size: int,
) -> None:
    steps = len(patterns)
    logits = PALETTE[torch.tensor(patterns)][None, :, None].expand(1, steps, LENGTH, VOCAB)
    start, advance = scripted(logits, torch.tensor(halts)[None])
    labels = torch.zeros(1, LENGTH, dtype=torch.int64)
    config = PlannerConfig(
        steps=steps,
        rollouts=1,
        entries=1,
        noise=0.0,
        halting_weight=halting_weight,
        step_cost=step_cost,
    )
    found = plan(start, advance, labels, config, keys=[b"a"])
    expected, calls = literal_algorithm_1(
        start, advance, labels, config, beam_size=beam_size, key=b"a", rollout=0
    )
    assert int(found.step) == expected.step
    assert float(found.score) == pytest.approx(expected.score)
    assert calls == steps  # never K_b times as many


def test_on_a_tie_a_step_replaces_only_the_one_just_before() -> None:
    # By hand, lambda = 0: patterns A B A. Step 2 is worse than 1, step 3 equals 1: halt1 comes
    # first in the beam, so 1 stays. A A: continue1 comes first, so step 2 replaces 1.
    for patterns, step in (([0, 1, 0], 1), ([0, 0, 1], 2), ([0, 0, 0], 3), ([1, 0, 1], 2)):
        logits = PALETTE[torch.tensor(patterns)][None, :, None].expand(1, 3, LENGTH, VOCAB)
        start, advance = scripted(logits, torch.zeros(1, 3))
        config = PlannerConfig(steps=3, rollouts=1, entries=1, noise=0.0, step_cost=0.0)
        labels = torch.zeros(1, LENGTH, dtype=torch.int64)
        assert int(plan(start, advance, labels, config, keys=[b"a"]).step) == step


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_noisy_rollouts_of_a_model_are_those_of_the_literal_beam(
    noise: float, beam_size: int
) -> None:
    model, batch, steps, rollouts = tiny_teacher(), 5, 6, 3
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(VOCAB, (batch, LENGTH), generator=generator)
    labels = torch.randint(VOCAB, (batch, LENGTH), generator=generator)
    labels[:, 0] = IGNORE
    config = PlannerConfig(
        # A beam of one is the baseline that takes the last step of the rollout.
        choice="last" if beam_size == 1 else "score",
        steps=steps,
        rollouts=rollouts,
        entries=rollouts,
        noise=noise,
        step_cost=0.01,
        halting_weight=0.1,
        selector="score",
    )
    keys = [bytes([k]) for k in range(batch)]
    puzzle = torch.zeros(batch, dtype=torch.int64)
    start, advance = teacher_on(model, inputs, puzzle)
    counting, calls = counted(advance)
    found = plan(start, counting, labels, config, keys=keys)
    assert calls() == rollouts * steps
    for row in range(batch):
        start, advance = teacher_on(model, inputs[row : row + 1], puzzle[:1])
        with torch.no_grad():
            elements = [
                literal_algorithm_1(
                    start,
                    advance,
                    labels[row : row + 1],
                    config,
                    beam_size=beam_size,
                    key=keys[row],
                    rollout=rollout,
                )[0]
                for rollout in range(rollouts)
            ]
        elements.sort(key=lambda element: -element.score)
        assert found.step[row].tolist() == [element.step for element in elements]
        for k, element in enumerate(elements):
            assert float(found.loss[row, k]) == pytest.approx(element.loss, abs=1e-6)
            assert element.logits is not None
            assert torch.allclose(found.logits[row, k], element.logits, atol=1e-5)
    if beam_size == 1:
        assert (found.step == steps).all()


# --- Noise and random steps


def run_tiny(config: PlannerConfig, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Steps and logits of a tiny model's candidates on some of eight examples."""
    model = tiny_teacher()
    inputs = torch.randint(VOCAB, (8, LENGTH), generator=torch.Generator().manual_seed(5))[rows]
    keys = [bytes([k]) for k in range(8)][rows]
    start, advance = teacher_on(model, inputs, torch.zeros(len(keys), dtype=torch.int64))
    found = plan(start, advance, inputs, config, keys=keys)
    return found.step, found.logits


def test_without_noise_all_rollouts_are_identical() -> None:
    config = PlannerConfig(steps=4, rollouts=3, entries=3, noise=0.0)
    step, logits = run_tiny(config)
    assert (step == step[:, :1]).all()
    assert (logits == logits[:, :1]).all()
    _, noisy = run_tiny(replace(config, noise=0.5))
    assert not torch.equal(noisy[:, 0], noisy[:, 1])


def test_noise_depends_on_example_rollout_and_seed_but_not_on_the_batch() -> None:
    config = PlannerConfig(steps=4, rollouts=2, entries=2, noise=0.5, selector="score")
    step, logits = run_tiny(config)
    part_step, part = run_tiny(config, slice(3, 5))
    assert torch.equal(part_step, step[3:5])
    assert torch.allclose(part, logits[3:5], atol=1e-6)
    _, other = run_tiny(replace(config, seed=1))
    assert not torch.allclose(other, logits, atol=1e-3)


def test_noise_has_the_standard_deviation_asked_for_and_falls_on_both_latents() -> None:
    config = PlannerConfig(noise=0.25)
    zero = Latents(z_h=torch.zeros(2, 200, 100), z_l=torch.zeros(2, 200, 100))
    noise = RolloutNoise([b"a", b"b"], rollout=0, config=config)
    first, second = noise.added(zero), noise.added(zero)
    parts = [*first.z_h, *first.z_l, *second.z_h]
    for part in parts:
        assert float(part.std()) == pytest.approx(0.25, rel=0.03)
        assert float(part.mean()) == pytest.approx(0.0, abs=0.01)
    for one, other in itertools.combinations(parts, 2):
        assert abs(float((one * other).mean())) < 0.002  # independent: 0 +- 0.0625 / sqrt(20000)


def test_random_steps_are_uniform_over_all_steps() -> None:
    config = PlannerConfig(choice="random", steps=4, noise=0.0, rollouts=1, entries=1)
    keys = [str(k).encode() for k in range(4000)]
    steps = RolloutNoise(keys, rollout=0, config=config).random_steps()
    counts = np.bincount(steps.numpy(), minlength=5)[1:]
    assert np.abs(counts - 1000).max() < 110  # 4 standard deviations
    step, _ = run_tiny(config)
    assert set(step.flatten().tolist()) <= {1, 2, 3, 4}
    assert len(set(step.flatten().tolist())) > 1


# --- Scores


def test_exact_steps_first_then_the_least_loss() -> None:
    # Step 1: exact but unsure; step 2: surest on average, but one token is wrong; step 3: exact,
    # surer than step 1.
    unsure, sure = [1.0, 0.5, 0.5], [900.0, 0.0, 0.0]
    almost = [[0.9, 1.0, 0.0], sure, sure, sure]
    middling = [2.0, 0.5, 0.5]
    logits = torch.tensor([[[unsure] * 4, almost, [middling] * 4]])
    start, advance = scripted(logits, torch.zeros(1, 3))
    labels = torch.zeros(1, LENGTH, dtype=torch.int64)
    paper = PlannerConfig(steps=3, rollouts=1, entries=1, noise=0.0)
    assert int(plan(start, advance, labels, paper, keys=[b"a"]).step) == 2
    exact_first = replace(paper, exact_weight=1.0, step_cost=0.0)
    assert int(plan(start, advance, labels, exact_first, keys=[b"a"]).step) == 3


def test_a_halting_weight_needs_a_halting_head() -> None:
    def advance(latents: Latents, step: int) -> StepOutput:
        return StepOutput(latents=latents, logits=torch.zeros(1, LENGTH, VOCAB), halting=None)

    nothing = torch.zeros(1, 1, 1)
    config = PlannerConfig(halting_weight=0.5)
    with pytest.raises(ValueError, match=r"planner\.halting_weight must be 0"):
        plan(
            Latents(z_h=nothing, z_l=nothing),
            advance,
            torch.zeros(1, LENGTH, dtype=torch.int64),
            config,
            keys=[b"a"],
        )


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"entries": 3, "rollouts": 2}, "entries"),
        ({"noise": -0.1}, "noise"),
        ({"score_share": 1.5}, "score_share"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"planner\.{name}"):
        PlannerConfig(**fields)  # type: ignore[arg-type]


# --- Entries


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
def test_the_distance_is_symmetric_bounded_and_masked(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 3, LENGTH, VOCAB, generator=generator)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    found = js_distances(logits, mask)
    assert torch.equal(found, found.mT)
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()
    assert (found >= 0).all()
    assert (found <= math.log(2)).all()
    assert (found[1] == 0).all()
    for i, j in itertools.combinations(range(3), 2):
        assert float(found[0, i, j]) == pytest.approx(
            literal_js(logits[0, i], logits[0, j], mask[0]), abs=1e-9
        )
    changed = logits.clone()
    changed[:, :, 1] = 100.0 * torch.rand(changed[:, :, 1].shape, generator=generator)
    assert torch.equal(js_distances(changed, mask), found)


def literal_mmr(score: list[float], distance: Tensor, entries: int, share: float) -> list[int]:
    """Eq. 13, candidate by candidate."""
    low, high = min(score), max(score)
    scaled = [(s - low) / (high - low) if high > low else 0.0 for s in score]
    chosen = [score.index(high)]
    while len(chosen) < entries:
        rest = [c for c in range(len(score)) if c not in chosen]
        values = [
            share * scaled[c] + (1 - share) * min(float(distance[s, c]) for s in chosen)
            for c in rest
        ]
        chosen.append(rest[values.index(max(values))])
    return chosen


@given(
    seed=st.integers(0, 2**32 - 1),
    scores=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=2, max_size=5),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_mmr_is_the_greedy_choice_of_the_paper(
    seed: int, scores: list[float], share: float
) -> None:
    num = len(scores)
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, num, LENGTH, VOCAB, generator=generator)
    logits[:, num - 1] = logits[:, 0]  # a duplicate
    distance = js_distances(logits, torch.ones(1, LENGTH, dtype=torch.bool))
    score = torch.tensor([scores], dtype=torch.float64)
    for entries in range(1, num + 1):
        found = select_by_mmr(score, distance, entries, score_share=share)[0].tolist()
        assert found == literal_mmr(scores, distance[0], entries, share)
        assert len(set(found)) == entries


def test_mmr_prefers_a_new_output_where_the_highest_scores_are_copies() -> None:
    logits = torch.zeros(1, 3, LENGTH, VOCAB)
    logits[:, :2, :, 0], logits[:, 2, :, 1] = 50.0, 50.0
    score = torch.tensor([[1.0, 0.99, 0.8]], dtype=torch.float64)
    distance = js_distances(logits, torch.ones(1, LENGTH, dtype=torch.bool))
    assert select_by_score(score, 2).tolist() == [[0, 1]]
    # Scaled scores 1, 0.95, 0; 0.7 x 0.95 against 0.3 x d with d near ln 2: the copy still wins.
    assert select_by_mmr(score, distance, 2, score_share=0.7).tolist() == [[0, 1]]
    assert select_by_mmr(score, distance, 2, score_share=0.1).tolist() == [[0, 2]]


def test_equal_scores_leave_the_choice_to_the_distance() -> None:
    logits = torch.zeros(1, 3, LENGTH, VOCAB)
    logits[:, 2, :, 1] = 50.0
    distance = js_distances(logits, torch.ones(1, LENGTH, dtype=torch.bool))
    score = torch.full((1, 3), 0.5, dtype=torch.float64)
    assert select_by_mmr(score, distance, 3, score_share=0.7).tolist() == [[0, 2, 1]]
    assert select_by_score(score, 3).tolist() == [[0, 1, 2]]
