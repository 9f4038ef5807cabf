"""What the recursion does, and every bound on it: where it holds, where it is attained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import small_model
from study_cases import (
    assert_all_hold,
    contraction,
    network_policy,
    never_absorbed,
    policy_on,
    random_values,
    small_mdp,
    states_of_mdp,
)
from tabular import FULL

from upi_trm.contraction import NotContractive, certificate
from upi_trm.theory.bounds import advantage_bounds, value_error_bound
from upi_trm.theory.unrolling import (
    LatentTerms,
    decomposition_bounds,
    latent_terms,
    unrolling_bounds,
)

MAPS = ("mlp", "relational")


@pytest.mark.parametrize("update_map", MAPS)
@pytest.mark.parametrize(
    ("seed", "modulus", "value", "radius"),
    [(0, 0.3, "score", None), (1, 0.9, "success", 1.5), (2, 0.7, "success", None)],
)
def test_prop_2_3_eq_1_eq_6_lemma_5_4_and_cor_5_5_hold_at_every_depth(
    update_map: str, seed: int, modulus: float, value: Any, radius: float | None
) -> None:
    mdp = small_mdp()
    model = contraction(update_map, seed, modulus=modulus, radius=radius)
    states, phi = states_of_mdp(mdp)
    policy = network_policy(mdp, seed)
    loosest: dict[str, float] = {}
    for depth in range(9):
        terms = latent_terms(model, states, phi, value=value, depth=depth)
        k_steps = 1 + depth
        found = [
            *unrolling_bounds(terms),
            *decomposition_bounds(mdp, policy, terms, k_steps=k_steps),
            value_error_bound(mdp, policy, terms.value.numpy(), k_steps=k_steps, name="U_n"),
            *advantage_bounds(mdp, policy, terms.value.numpy()),
        ]
        assert_all_hold(found)
        for bound in found:
            loosest[bound.name] = max(loosest.get(bound.name, 0.0), bound.ratio or 0.0)
    # None of them holds for want of anything to bound.
    assert min(loosest.values()) > 0


def test_the_fixed_point_is_one() -> None:
    model = contraction("relational", 1, modulus=0.9)
    states, phi = states_of_mdp(small_mdp())
    deep = latent_terms(model, states, phi, value="score", depth=150)
    assert float(deep.gap.max()) < 1e-10
    assert deep.missing <= 1e-11
    shallow = latent_terms(model, states, phi, value="score", depth=2)
    assert torch.allclose(shallow.ideal, deep.value, rtol=0, atol=1e-9)
    assert float(shallow.gap.max()) > 1e-3


def test_states_in_chunks_give_the_same_terms() -> None:
    model = contraction("relational", 2, modulus=0.9)
    states, phi = states_of_mdp(small_mdp())
    whole = latent_terms(model, states, phi, value="score", depth=3)
    parts = latent_terms(model, states, phi, value="score", depth=3, chunk=37)
    for name in ("first_step", "last_step", "gap", "value", "ideal"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), rtol=0, atol=1e-10)
    assert (whole.modulus, whole.head) == (parts.modulus, parts.head)


def test_a_modulus_that_is_too_small_is_caught() -> None:
    # The check can fail: with a third of the true modulus Prop. 2.3 promises too much. The map is
    # linear with modulus 0.9 around z* while its relu is open.
    model = small_model(FULL, 0, update_map="mlp", radius=None).double()
    with torch.no_grad():
        model.update.first.copy_(torch.eye(6))
        model.update.second.copy_(0.9 * torch.eye(6))
        model.embed_flat.bias.fill_(50.0)
    states, phi = states_of_mdp(small_mdp())
    terms = latent_terms(model, states, phi, value="score", depth=4)
    assert terms.modulus == pytest.approx(0.9)
    assert_all_hold(unrolling_bounds(terms))
    wrong = unrolling_bounds(replace(terms, modulus=0.3))
    assert not any(bound.holds for bound in wrong if bound.name.startswith("Prop. 2.3"))
    assert unrolling_bounds(terms)[0].ratio == pytest.approx(1.0, rel=1e-6)


def test_without_contraction_there_is_no_fixed_point_to_measure() -> None:
    model = small_model(FULL, 0, spread=1.0).double()
    assert certificate(model.update) > 1
    states, phi = states_of_mdp(small_mdp())
    with pytest.raises(NotContractive, match="a fixed point needs L_z < 1"):
        latent_terms(model, states, phi, value="score", depth=2)


@settings(max_examples=12)
@given(seed=st.integers(0, 999), k_steps=st.integers(1, 6))
def test_lemma_5_4_transfers_the_residual_of_any_two_values(seed: int, k_steps: int) -> None:
    # Eq. 7 asks for no contraction: U_n and U_* may be anything.
    mdp = small_mdp()
    policy = policy_on(mdp, seed)
    unrolled, ideal = (random_values(mdp, seed + shift, policy) for shift in (0, 1))
    terms = latents(value=torch.from_numpy(unrolled), ideal=torch.from_numpy(ideal))
    found = decomposition_bounds(mdp, policy, terms, k_steps=k_steps)
    lemma = next(bound for bound in found if bound.name == "Eq. 7")
    backed = ideal.copy()
    for _ in range(k_steps):
        after = np.where(mdp.next_state >= 0, backed[mdp.next_state], 0.0)
        backed = (policy * (mdp.reward + mdp.gamma * after)).sum(axis=1)
    assert lemma.left == pytest.approx(np.abs(ideal - backed).max(), rel=1e-12)
    assert lemma.holds


def latents(**given: torch.Tensor) -> LatentTerms:
    """Terms of a recursion that is at its fixed point, but for what is given."""
    still = torch.zeros_like(given["value"])
    fields = {"first_step": still, "last_step": still, "gap": still} | given
    return LatentTerms(depth=1, modulus=0.9, head=1.0, missing=0.0, **fields)


@pytest.mark.parametrize("k_steps", [1, 3])
def test_lemma_5_4_is_attained_where_the_difference_changes_sign_at_every_edit(
    k_steps: int,
) -> None:
    # The policy fills a cell and erases it again for ever. With U_n = V^pi and U_* = V^pi + 1 at
    # one of the two plans and V^pi - 1 at the other the residual of U_* is 1 + gamma^K for odd K.
    mdp = small_mdp()
    policy = never_absorbed(mdp)
    one, other = next(
        (state, after)
        for state, row in enumerate(mdp.next_state)
        for after in row[row >= 0]
        if after != state and state in mdp.next_state[after]
    )
    for state, after in ((one, other), (other, one)):
        policy[state] = np.arange(policy.shape[1]) == np.argmax(mdp.next_state[state] == after)
    difference = np.zeros(len(mdp))
    difference[[one, other]] = 1.0, -1.0
    truth = torch.from_numpy(mdp.value(policy))
    terms = latents(value=truth, ideal=truth + torch.from_numpy(difference))
    lemma = decomposition_bounds(mdp, policy, terms, k_steps=k_steps)[0]
    assert lemma.name == "Eq. 7"
    assert lemma.left == pytest.approx(1 + 0.9**k_steps)
    assert lemma.ratio == pytest.approx(1.0)


def test_corollary_5_5_is_eq_5_of_u_n_and_something_more() -> None:
    # Cor. 5.5 never says more than Eq. 5 for V = U_n, which needs no contraction (docs/bounds.md).
    mdp = small_mdp()
    model = contraction("relational", 0, modulus=0.9)
    states, phi = states_of_mdp(mdp)
    policy = network_policy(mdp, 0)
    terms = latent_terms(model, states, phi, value="score", depth=3)
    found = decomposition_bounds(mdp, policy, replace(terms, head=0.01), k_steps=4)
    corollary = next(bound for bound in found if bound.name == "Cor. 5.5")
    plain = value_error_bound(mdp, policy, terms.value.numpy(), k_steps=4, name="U_n")
    assert corollary.left == plain.left
    assert corollary.right > plain.right
