"""Candidates, the conservative mixture and distillation; the CPI bound on solved puzzles."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import generator, jitter, random_states, small_model
from tabular import FILL, FULL, OVERWRITE, Array, TabularMDP, random_policy, tabular
from torch import Tensor

from plan_envs.sudoku.rules import Sudoku
from trm.experiments.states import edit_logits, policy_probabilities, sample_edits
from trm.nn.model import StateBatch, TinyRecursiveModel
from upi_trm import improvement
from upi_trm.improvement import (
    DistillationReport,
    ImprovementConfig,
    distil,
    exp_advantage,
    kl_divergence,
    mean_kl,
    mixture,
    policy_gradient_candidate,
    success_posterior,
)

SEEDS = st.integers(0, 10_000)
DOMAIN = Sudoku(4)


def random_probabilities(
    seed: int, *, states: int = 5, edits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Two float64 policies over the same legal edits, and the mask."""
    draws = generator(seed)
    mask = torch.rand(states, edits, generator=draws) < 0.7
    mask[:, 0] = True
    logits = torch.randn(2, states, edits, generator=draws, dtype=torch.float64) * 2
    first, second = torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=2)
    return first, second, mask


# --- Candidates in closed form


@pytest.mark.parametrize("kind", ["exp_advantage", "success_posterior"])
@given(seed=SEEDS, strength=st.sampled_from([0.1, 1.0, 20.0]))
def test_closed_form_candidates_improve_and_keep_the_support(
    kind: str, seed: int, strength: float
) -> None:
    policy, _, mask = random_probabilities(seed)
    success = torch.rand(policy.shape, generator=generator(seed + 1), dtype=torch.float64)
    advantage = torch.where(mask, success - (policy * success).sum(dim=1, keepdim=True), 0.0)
    if kind == "exp_advantage":
        candidate = exp_advantage(policy, advantage, temperature=1.0 / strength)
    else:
        candidate = success_posterior(policy, success, power=strength)
    torch.testing.assert_close(candidate.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(candidate > 0, mask)
    gain = (candidate * advantage).sum(dim=1)
    has_choice = mask.sum(dim=1) > 1
    assert bool((gain >= -1e-12).all())
    assert bool((gain[has_choice] > 1e-6).all())


def test_success_posterior_of_a_hand_derived_example() -> None:
    # pi = (1/2, 1/4, 1/4, 0), Q = (0.2, 0.8, 0.4, 1): pi Q = (0.1, 0.2, 0.1, 0), sum 0.4.
    policy = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    success = torch.tensor([[0.2, 0.8, 0.4, 1.0]])
    found = success_posterior(policy, success, power=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.5, 0.25, 0.0]]))
    # It does not depend on the scale of Q.
    torch.testing.assert_close(success_posterior(policy, success * 0.01, power=1.0), found)
    # Squared: pi Q^2 = (0.02, 0.16, 0.04, 0), sum 0.22.
    squared = success_posterior(policy, success, power=2.0)
    torch.testing.assert_close(squared, torch.tensor([[2 / 22, 16 / 22, 4 / 22, 0.0]]))


def test_success_outside_of_zero_to_one_is_clamped_and_keeps_the_support() -> None:
    policy = torch.tensor([[0.5, 0.3, 0.2]])
    found = success_posterior(policy, torch.tensor([[1.7, -0.4, 1.0]]), power=1.0)
    weight = torch.tensor([[0.5, 0.3e-6, 0.2]])
    torch.testing.assert_close(found, weight / weight.sum())


def test_exp_advantage_of_a_hand_derived_example() -> None:
    # pi = (1/4, 3/4, 0), A / tau = (ln 3, 0, 5): weights (3/4, 3/4, 0).
    policy = torch.tensor([[0.25, 0.75, 0.0]])
    advantage = torch.tensor([[math.log(3) * 0.1, 0.0, 0.5]])
    found = exp_advantage(policy, advantage, temperature=0.1)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0]]))


# --- Mixture and divergences


@given(seed=SEEDS, alpha=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_mixture_is_a_distribution_between_its_parts(seed: int, alpha: float) -> None:
    policy, candidate, mask = random_probabilities(seed)
    mixed = mixture(policy, candidate, alpha=alpha)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert bool((mixed[~mask] == 0).all())
    low, high = torch.minimum(policy, candidate), torch.maximum(policy, candidate)
    assert bool((mixed >= low - 1e-15).all())
    assert bool((mixed <= high + 1e-15).all())
    torch.testing.assert_close(mixed - policy, alpha * (candidate - policy))


@given(seed=SEEDS)
def test_kl_is_positive_and_zero_only_between_equal_policies(seed: int) -> None:
    policy, other, mask = random_probabilities(seed)
    with_itself = kl_divergence(policy, policy.log(), mask)
    torch.testing.assert_close(with_itself, torch.zeros(5, dtype=torch.float64))
    apart = (policy - other).abs().sum(dim=1) > 1e-3
    assert bool((kl_divergence(policy, other.log(), mask)[apart] > 1e-9).all())


def test_kl_of_a_hand_derived_example() -> None:
    # KL((1/2, 1/2, 0) || (1/4, 3/4, 0)) = ln 2 / 2 + ln(2/3) / 2 = ln(4/3) / 2.
    target = torch.tensor([[0.5, 0.5, 0.0]])
    log_policy = torch.tensor([[0.25, 0.75, 0.0]]).log()
    found = kl_divergence(target, log_policy, target > 0)
    assert found.tolist() == pytest.approx([math.log(4 / 3) / 2])


@given(seed=SEEDS, near=st.sampled_from([0.001, 0.05, 1.0]))
def test_pinsker_bounds_total_variation_by_kl(seed: int, near: float) -> None:
    policy, other, mask = random_probabilities(seed)
    other = mixture(policy, other, alpha=near)
    kl = kl_divergence(policy, other.log(), mask).clamp_min(0.0)
    total_variation = (policy - other).abs().sum(dim=1) / 2
    assert bool((total_variation <= (kl / 2).sqrt() + 1e-12).all())
    # The paper: "KL stays below 1e-3; by Pinsker, per-state TV distance is below 0.03".
    assert bool((total_variation[kl < 1e-3] < 0.03).all())


def test_sampled_edits_follow_the_probabilities() -> None:
    probability = torch.tensor([[0.0, 0.7, 0.3], [1.0, 0.0, 0.0]])
    draws = torch.stack([sample_edits(probability, g) for g in [generator(1)] * 4000])
    assert float((draws[:, 0] == 1).float().mean()) == pytest.approx(0.7, abs=0.03)
    assert not bool((draws[:, 0] == 0).any())
    assert bool((draws[:, 1] == 0).all())


# --- Conservative policy iteration on exactly solved puzzles (Theorem 5.7)

WORLDS = {
    "fill": {"domain": FILL, "dead_end": "continue"},
    "overwrite": {"domain": OVERWRITE},
    "full": {"domain": FULL},
}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def candidate_of(mdp: TabularMDP, policy: Array, kind: str, seed: int) -> Array:
    if kind == "random":
        return random_policy(mdp, seed, sharpness=4.0)
    if kind == "worst":
        advantage = np.where(mdp.mask, mdp.advantage(policy), np.inf)
        return np.eye(mdp.mask.shape[1])[advantage.argmin(axis=1)]
    pi, advantage = torch.from_numpy(policy), torch.from_numpy(mdp.advantage(policy))
    if kind == "exp_advantage":
        return exp_advantage(pi, advantage, temperature=0.1).numpy()
    success = torch.from_numpy(mdp.action_value(mdp.value(policy)) + mdp.phi[:, None])
    return success_posterior(pi, success, power=2.0).numpy()


@worlds
@pytest.mark.parametrize("kind", ["random", "worst", "exp_advantage", "success_posterior"])
@pytest.mark.parametrize("seed", range(2))
def test_the_cpi_bound_holds_for_mixtures_with_exact_advantages(
    world: dict[str, object], kind: str, seed: int
) -> None:
    mdp = tabular(**world)
    gamma = mdp.gamma
    policy = random_policy(mdp, seed)
    candidate = candidate_of(mdp, policy, kind, seed + 10)
    advantage, visits = mdp.advantage(policy), mdp.visits(policy)
    np.testing.assert_allclose((policy * advantage).sum(axis=1), 0, atol=1e-9)
    gain = (candidate * advantage).sum(axis=1)
    epsilon = np.abs(gain).max()
    eta = mdp.value(policy)[0]
    for alpha in (0.01, 0.1, 0.5, 1.0):
        mixed = mixture(torch.from_numpy(policy), torch.from_numpy(candidate), alpha=alpha).numpy()
        promised = eta + (visits * (mixed * advantage).sum(axis=1)).sum() / (1 - gamma)
        slack = 2 * epsilon * gamma * alpha**2 / (1 - gamma) ** 2
        # Both ways: the surrogate is exact to first order in alpha.
        assert abs(mdp.value(mixed)[0] - promised) <= slack + 1e-9
    if kind != "random":
        better = mdp.value(mixture(*map(torch.from_numpy, (policy, candidate)), alpha=0.3).numpy())
        assert (better[0] < eta) if kind == "worst" else (better[0] > eta)


@worlds
@given(seed=SEEDS, alpha=st.sampled_from([0.05, 0.3, 1.0]), error=st.sampled_from([0.01, 0.3]))
def test_the_cpi_bound_with_evaluation_error_holds_centred_or_not(
    world: dict[str, object], seed: int, alpha: float, error: float
) -> None:
    # Eq. 11, and its extension by the centring defect (after Remark 5.8).
    mdp = tabular(**world)
    gamma = mdp.gamma
    policy, candidate = random_policy(mdp, seed), random_policy(mdp, seed + 1, sharpness=3.0)
    rng = np.random.default_rng(seed)
    exact, eta, visits = mdp.advantage(policy), mdp.value(policy)[0], mdp.visits(policy)
    wrong_value = mdp.value(policy) + error * rng.standard_normal(len(mdp.plans))
    q = mdp.action_value(wrong_value)
    baseline = (policy * q).sum(axis=1, keepdims=True)
    centred = np.where(mdp.mask, q - baseline, 0.0)
    shifted = np.where(mdp.mask, q - wrong_value[:, None], 0.0)  # a learned baseline, as GAE has
    mixed = (1 - alpha) * policy + alpha * candidate
    curvature = 2 * np.abs((candidate * exact).sum(axis=1)).max() * gamma * alpha**2
    for estimate in (centred, shifted):
        defect = np.abs((policy * estimate).sum(axis=1)).max()
        bias = np.abs((candidate * (estimate - exact)).sum(axis=1)).max()
        promised = eta + (visits * (mixed * estimate).sum(axis=1)).sum() / (1 - gamma)
        penalty = ((1 - alpha) * defect + alpha * bias) / (1 - gamma)
        bound = promised - penalty - curvature / (1 - gamma) ** 2
        assert mdp.value(mixed)[0] >= bound - 1e-9
    # One-step advantages are off by at most 2 gamma times the error of the values (Sec. 5.1).
    off = np.abs(wrong_value - mdp.value(policy)).max()
    assert np.abs(centred - exact)[mdp.mask].max() <= 2 * gamma * off + 1e-9


# --- Policy network: probabilities, gradient candidate


def test_probabilities_by_chunks_equal_probabilities_at_once() -> None:
    model, states = small_model(DOMAIN), random_states(DOMAIN, 11)
    whole = policy_probabilities(model, states)
    torch.testing.assert_close(policy_probabilities(model, states, chunk=4), whole)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(11))
    assert bool((whole[states.mask == 0] == 0).all())
    assert not whole.requires_grad


def exact_case(seed: int = 0) -> tuple[TinyRecursiveModel, StateBatch, Tensor, Tensor]:
    """A network, states, its probabilities, and centred advantages that another network says."""
    model, states = small_model(DOMAIN, seed, spread=0.1), random_states(DOMAIN, 24, seed)
    policy = policy_probabilities(model, states)
    other = policy_probabilities(small_model(DOMAIN, seed + 50, spread=0.1), states)
    worth = torch.where(states.mask > 0, other.clamp_min(1e-3).log(), 0.0)
    return (
        model,
        states,
        policy,
        torch.where(states.mask > 0, worth - (policy * worth).sum(dim=1, keepdim=True), 0.0),
    )


@pytest.mark.parametrize("known", ["every edit", "the edit made"])
def test_policy_gradient_moves_towards_positive_advantages(known: str) -> None:
    model, states, policy, advantage = exact_case()
    config = ImprovementConfig(candidate="policy_gradient", candidate_steps=30, learning_rate=5e-3)
    if known == "every edit":
        weighted = policy * advantage
    else:
        made = sample_edits(policy, generator(5))
        one_hot = torch.nn.functional.one_hot(made, 97).float()
        weighted = advantage * one_hot
    before = copy.deepcopy(model.state_dict())
    network = policy_gradient_candidate(model, states, policy, weighted, config, generator(1))
    candidate = policy_probabilities(network, states)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    ratio = candidate / policy.clamp_min(1e-12)
    gain = (ratio * weighted).sum(dim=1).mean() - weighted.sum(dim=1).mean()
    assert float(gain) > 0.01 * float(weighted.abs().sum(dim=1).mean())
    assert bool((candidate[states.mask == 0] == 0).all())


@pytest.mark.slow
def test_clipping_stops_the_ratio_of_an_edit_at_one_plus_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(improvement, "ENTROPY_WEIGHT", 0.0)
    model, states, policy, _ = exact_case()
    twice = states.select(torch.zeros(2, dtype=torch.long))
    policy = policy[[0, 0]]
    made = (states.mask[0] > 0).nonzero()[3]
    weighted = torch.nn.functional.one_hot(made.expand(2), 97).float()
    ratio = {}
    for clip in (0.05, 0.5, 100.0):
        config = ImprovementConfig(
            candidate="policy_gradient",
            candidate_steps=200,
            learning_rate=2e-4,
            clip=clip,
        )
        network = policy_gradient_candidate(model, twice, policy, weighted, config, generator(1))
        candidate = policy_probabilities(network, twice)
        ratio[clip] = float(candidate[0, made] / policy[0, made])
    assert 1.05 < ratio[0.05] < 1.45
    assert 1.5 < ratio[0.5] < 2.1
    assert ratio[100.0] > 2.2


def test_without_advantages_and_entropy_the_gradient_candidate_is_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(improvement, "ENTROPY_WEIGHT", 0.0)
    model, states, policy, _ = exact_case()
    config = ImprovementConfig(candidate="policy_gradient")
    nothing = torch.zeros_like(policy)
    network = policy_gradient_candidate(model, states, policy, nothing, config, generator(1))
    assert torch.equal(policy_probabilities(network, states), policy)


# --- Distillation


def distilled(
    target: Tensor, weight: Tensor, held_out: Tensor, **settings: float
) -> tuple[TinyRecursiveModel, DistillationReport, list[int]]:
    """The network of `exact_case` after distilling towards `target`."""
    model, states, _, _ = exact_case()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    config = ImprovementConfig(
        **({"distil_passes": 25.0, "distil_kl": 1e-12, "batch_size": 8} | settings)
    )
    calls: list[int] = []
    report = distil(
        model,
        optimiser,
        states,
        target,
        weight,
        held_out,
        config=config,
        generator=generator(3),
        after_step=lambda: calls.append(1),
    )
    return model, report, calls


def distillation_case() -> tuple[Tensor, Tensor, Tensor]:
    """Target, weights, and which states are held out."""
    _, _, policy, advantage = exact_case()
    held_out = torch.zeros(24, dtype=torch.bool)
    held_out[:6] = True
    candidate = exp_advantage(policy, advantage, temperature=0.3)
    return mixture(policy, candidate, alpha=0.5), torch.ones(24), held_out


def test_distillation_lowers_the_held_out_kl_and_reports_it() -> None:
    target, weight, held_out = distillation_case()
    model, report, calls = distilled(target, weight, held_out)
    start, states, _, _ = exact_case()
    check = states.select(held_out.nonzero().flatten())
    assert report.kl_before == pytest.approx(mean_kl(start, check, target[held_out]))
    assert report.kl == pytest.approx(mean_kl(model, check, target[held_out]))
    assert report.kl < 0.5 * report.kl_before
    # 18 states in batches of 8 are round(18 / 8) = 2 steps a pass.
    assert report.steps == len(calls) == 2 * 25


def test_held_out_states_are_never_trained_on() -> None:
    target, weight, held_out = distillation_case()
    other = target.clone()
    _, states, _, _ = exact_case()
    mask = (states.mask > 0).float()
    other[held_out] = (mask / mask.sum(dim=1, keepdim=True))[held_out]
    first, _, _ = distilled(target, weight, held_out)
    second, report, _ = distilled(other, weight, held_out)
    assert report.steps == 50
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    changed = target.clone()
    changed[~held_out] = (mask / mask.sum(dim=1, keepdim=True))[~held_out]
    third, _, _ = distilled(changed, weight, held_out)
    assert not torch.equal(first.edit_out.weight, third.edit_out.weight)


def test_a_state_of_weight_zero_does_not_count() -> None:
    target, weight, held_out = distillation_case()
    weight[10:] = 0.0
    other = target.clone()
    _, states, _, _ = exact_case()
    mask = (states.mask > 0).float()
    other[10:] = (mask / mask.sum(dim=1, keepdim=True))[10:]
    first, _, _ = distilled(target, weight, held_out)
    second, _, _ = distilled(other, weight, held_out)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_distillation_towards_the_policy_itself_takes_no_step() -> None:
    _, _, policy, _ = exact_case()
    _, weight, held_out = distillation_case()
    _, report, calls = distilled(policy, weight, held_out, distil_kl=1e-3)
    assert abs(report.kl_before) < 1e-6
    assert report.steps == len(calls) <= 2 * 25


def test_distillation_stops_once_the_held_out_kl_is_small() -> None:
    # Towards a network whose head differs a little, which a few passes nearly reach.
    model, states, _, _ = exact_case()
    teacher = copy.deepcopy(model)
    jitter(teacher.edit_out, 7, 0.2)
    _, weight, held_out = distillation_case()
    _, report, calls = distilled(
        policy_probabilities(teacher, states), weight, held_out, distil_kl=1.0, distil_passes=100.0
    )
    assert report.kl <= 0.1 * report.kl_before, "a tenth of what was asked for, too"
    assert len(calls) < 2 * 100


def test_illegal_edits_stay_impossible_after_distillation() -> None:
    target, weight, held_out = distillation_case()
    model, _, _ = distilled(target, weight, held_out)
    _, states, _, _ = exact_case()
    probability = torch.softmax(edit_logits(model, states), dim=1)
    assert bool((probability[states.mask == 0] == 0).all())


# --- Bad settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha": 0.0}, "improvement.alpha must lie in"),
        ({"alpha": 1.5}, "improvement.alpha must lie in"),
        ({"temperature": 0.0}, "improvement.temperature must be positive"),
        ({"power": -1.0}, "improvement.power must be positive"),
        ({"clip": 0.0}, "improvement.clip must be positive"),
        ({"candidate_steps": 0}, "improvement.candidate_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "improvement.batch_size must be at least 1, got 0"),
        ({"lookahead_states": -1}, "improvement.lookahead_states must be at least 0, got -1"),
        ({"lookahead_states": 1}, "improvement.lookahead_states must be 0 or at least 2, got 1"),
    ],
)
def test_a_bad_setting_is_named(config: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImprovementConfig(**config)


@pytest.mark.parametrize("candidate", ["exp_advantage", "success_posterior"])
def test_gae_with_a_candidate_that_needs_every_edit_is_refused_in_one_line(candidate: str) -> None:
    with pytest.raises(ValueError, match="needs candidate 'policy_gradient'") as refusal:
        ImprovementConfig(advantage="gae", candidate=candidate)
    assert candidate in str(refusal.value)
    assert "\n" not in str(refusal.value)
