"""The explicit mixture: exact shares, bounded length, what is dropped, and Theorem 5.7 on it."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import IMPROVEMENT, MODEL, PAPER, SMALL, STEPS, make, random_states, small_model
from study_cases import small_mdp, states_of_mdp

from plan_envs.sudoku.rules import Sudoku
from trm.compute.device import Placement
from trm.experiments.states import policy_probabilities
from trm.nn.model import TinyRecursiveModel
from upi_trm.chain import MixturePolicy
from upi_trm.contraction import ContractionConfig, certificate
from upi_trm.deployment import greedy_policy, load_deployed
from upi_trm.evaluator import evaluate_states
from upi_trm.improvement import ImprovementConfig, mixture
from upi_trm.learner import LearnerConfig, UpiLearner
from upi_trm.theory.bounds import centred, improvement_bounds, improvement_terms

DOMAIN = Sudoku(4)
CHAIN = replace(IMPROVEMENT, distil=False, chain_length=4)
CONFIGS = {
    "posterior": replace(SMALL, improvement=CHAIN),
    "gradient": replace(SMALL, improvement=replace(CHAIN, candidate="policy_gradient")),
    "gradient along the rollout": replace(
        PAPER, improvement=replace(PAPER.improvement, distil=False, chain_length=4)
    ),
}


def network(seed: int) -> TinyRecursiveModel:
    return small_model(DOMAIN, seed, spread=0.5).double()


@settings(max_examples=8)
@given(alphas=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4))
def test_within_its_length_it_is_the_mixture_of_mixtures(alphas: list[float]) -> None:
    states = random_states(DOMAIN, 5)
    chain = MixturePolicy(network(0), length=5)
    wanted = policy_probabilities(network(0), states)
    for seed, alpha in enumerate(alphas, start=1):
        assert chain.append(network(seed), alpha) == 0.0
        wanted = mixture(wanted, policy_probabilities(network(seed), states), alpha=alpha)
    torch.testing.assert_close(chain.probabilities(states), wanted, atol=1e-14, rtol=1e-12)
    assert float(chain.shares.sum()) == pytest.approx(1.0, abs=1e-14)
    assert bool((chain.probabilities(states)[states.mask == 0] == 0).all())


@settings(max_examples=8)
@given(
    alphas=st.lists(st.sampled_from([0.01, 0.1, 0.5, 0.9]), min_size=3, max_size=8),
    length=st.integers(2, 4),
)
def test_what_is_dropped_bounds_the_total_variation_at_every_state(
    alphas: list[float], length: int
) -> None:
    states = random_states(DOMAIN, 5)
    chain = MixturePolicy(network(0), length=length)
    for seed, alpha in enumerate(alphas, start=1):
        candidate = network(seed)
        exact = mixture(
            chain.probabilities(states), policy_probabilities(candidate, states), alpha=alpha
        )
        dropped = chain.append(candidate, alpha)
        apart = 0.5 * (chain.probabilities(states) - exact).abs().sum(dim=1)
        assert float(apart.max()) <= dropped + 1e-12
        assert dropped <= 1 / length
        assert len(chain) <= length
        # The newest always acts, with its share or more.
        assert float(chain.shares[-1]) >= alpha - 1e-12
        assert torch.equal(chain.networks[-1].edit_out.weight, candidate.edit_out.weight)  # type: ignore[union-attr]
        assert float(chain.shares.sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_smallest_share_goes_and_a_candidate_taken_whole_leaves_nothing_else() -> None:
    chain = MixturePolicy(network(0), length=3)
    chain.append(network(1), 0.1)
    chain.append(network(2), 0.5)  # shares 0.45, 0.05, 0.5
    # Then 0.36, 0.04, 0.4, 0.2: 0.04 goes, the others are divided by 0.96.
    assert chain.append(network(3), 0.2) == pytest.approx(0.04)
    assert chain.shares.tolist() == pytest.approx([0.36 / 0.96, 0.4 / 0.96, 0.2 / 0.96])
    assert chain.append(network(4), 1.0) == 0.0
    assert chain.shares.tolist() == [1.0]


def test_later_training_of_a_network_does_not_reach_its_copy_in_the_mixture() -> None:
    candidate, states = network(1), random_states(DOMAIN, 4)
    chain = MixturePolicy(candidate, length=3)
    chain.append(candidate, 0.5)
    before = chain.probabilities(states)
    with torch.no_grad():
        for weight in candidate.parameters():
            weight.mul_(2.0)
    assert torch.equal(chain.probabilities(states), before)
    assert not any(weight.requires_grad for weight in chain.parameters())


# --- In a learner


def chain_of(learner: UpiLearner) -> MixturePolicy:
    """The mixture that acts."""
    chain = learner.deployed
    assert isinstance(chain, MixturePolicy)
    return chain


@pytest.mark.parametrize("name", CONFIGS)
def test_an_iteration_moves_the_policy_by_exactly_alpha_towards_the_candidate(name: str) -> None:
    learner, roller = make(CONFIGS[name])
    states = random_states(DOMAIN, 6)
    for iteration in range(3):
        before = learner.probabilities(states)
        metrics = learner.iterate(roller, steps=STEPS)
        chain = chain_of(learner)
        newest: Any = chain.networks[-1]
        wanted = mixture(before, policy_probabilities(newest, states), alpha=0.3)
        torch.testing.assert_close(learner.probabilities(states), wanted, atol=1e-6, rtol=1e-5)
        assert metrics["chain_length"] == iteration + 2
        assert metrics["chain_dropped"] == 0.0
        assert metrics["kl_asked"] > 0
        if name != "posterior":  # the candidate is a network already: nothing is lost
            assert abs(metrics["kl"]) < 1e-6
            assert metrics["distil_steps"] == 0
        else:
            assert metrics["candidate_kl"] > 0
    assert learner.iterate(roller, steps=STEPS)["chain_dropped"] == pytest.approx(
        # Shares 0.7^4, 0.3 x 0.7^3, ...: the first candidate's is the smallest.
        0.3 * 0.7**3,
        rel=1e-6,
    )


def test_equation_11_holds_for_the_step_that_a_mixture_makes() -> None:
    mdp = small_mdp()
    config = replace(
        SMALL,
        model=replace(MODEL, tied_groups=(("row", "column"),)),
        evaluator=replace(SMALL.evaluator, value="score"),
        improvement=replace(CHAIN, candidate="exp_advantage", alpha=0.2),
    )
    learner, roller = make(config)
    states, phi = states_of_mdp(mdp)
    for _ in range(3):
        evaluator = copy.deepcopy(learner.evaluator).double()
        before = copy.deepcopy(chain_of(learner)).double().probabilities(states).numpy()
        learner.iterate(roller, steps=STEPS)
        after = copy.deepcopy(chain_of(learner)).double()
        newest: Any = after.networks[-1]
        candidate = policy_probabilities(newest, states).numpy()
        value = evaluate_states(evaluator, states, phi, value="score").numpy()
        (bound,) = improvement_bounds(
            mdp,
            before,
            candidate,
            improvement_terms(mdp, before, candidate, centred(mdp, before, value)),
            alphas={"paper": [0.2]},
            name="Eq. 11",
        )
        assert bound.holds
        # What the theorem speaks of is what acts: no distillation lies between.
        gained = mdp.performance(after.probabilities(states).numpy()) - mdp.performance(before)
        assert gained == pytest.approx(bound.right, abs=1e-9)


def test_every_network_of_a_clamped_mixture_is_certified() -> None:
    config = replace(CONFIGS["gradient"], contraction=ContractionConfig(modulus=0.3))
    learner, roller = make(config)
    for _ in range(2):
        learner.iterate(roller, steps=STEPS)
    chain = chain_of(learner)
    assert len(chain) == 3
    for one in chain.networks:
        assert certificate(one.update) <= 0.3  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [CONFIGS["posterior"], SMALL], ids=["mixture", "distilled"])
def test_a_checkpoint_deploys_what_the_learner_deploys(config: LearnerConfig) -> None:
    learner, roller = make(config)
    for _ in range(5):
        learner.iterate(roller, steps=2)
    weights = {name: weight.clone() for name, weight in learner.weights().items()}
    deployed = load_deployed(learner.domain, config, weights, Placement())
    loaded = greedy_policy(deployed, learner.domain, Placement())
    states = random_states(DOMAIN, 40)
    boards = [part.numpy() for part in (states.instance, states.plan, states.mask)]
    rng = np.random.default_rng(0)
    chosen = greedy_policy(learner.deployed, learner.domain, Placement())(*boards, rng)
    assert np.array_equal(loaded(*boards, rng), chosen)
    assert np.array_equal(chosen, learner.probabilities(states).argmax(dim=1).numpy())
    other, _ = make(config, seed=4)
    other.load_weights(weights)
    assert torch.equal(other.probabilities(states), learner.probabilities(states))


def test_no_single_network_is_the_policy_of_a_mixture() -> None:
    learner, _ = make(CONFIGS["posterior"])
    with pytest.raises(ValueError, match="the policy is a mixture of networks"):
        _ = learner.policy
    assert not any(name.startswith("policy.") for name in learner.weights())
    with pytest.raises(RuntimeError, match=r"no weights of a mixture"):
        load_deployed(learner.domain, learner.config, make(SMALL)[0].weights(), Placement())


def test_settings_of_a_mixture_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match=r"improvement\.chain_length must be at least 2, got 1"):
        ImprovementConfig(chain_length=1)
    with pytest.raises(ValueError, match=r"improvement\.average_rate is of a distilled network"):
        ImprovementConfig(distil=False, average_rate=0.1)
