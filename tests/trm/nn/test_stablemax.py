"""StableMax: worked values, independent formulas, and the laws of the divergences."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from trm.nn.stablemax import (
    IGNORE,
    js_divergence,
    kl_divergence,
    masked_mean,
    stablemax_cross_entropy,
    stablemax_log_probabilities,
    stablemax_probabilities,
)

LOGIT = st.floats(-1e6, 1e6, allow_nan=False)
PAIR = st.integers(2, 9).flatmap(
    lambda n: st.tuples(st.lists(LOGIT, min_size=n, max_size=n), st.lists(LOGIT, min_size=n))
)


def by_definition(logits: list[float]) -> list[float]:
    """The formula of the official code, in plain Python floats."""
    s = [x + 1.0 if x >= 0 else 1.0 / (1.0 - x + 1e-30) for x in logits]
    return [value / sum(s) for value in s]


@given(st.lists(LOGIT, min_size=1, max_size=12))
def test_probabilities_are_those_of_the_definition(logits: list[float]) -> None:
    ours = stablemax_probabilities(torch.tensor(logits, dtype=torch.float64))
    assert ours.tolist() == pytest.approx(by_definition(logits), rel=1e-9)
    assert float(ours.sum()) == pytest.approx(1.0)


def test_cross_entropy_has_the_published_values() -> None:
    # Vocabulary of 11, the right token at +g and the others at -g: s = g + 1 against 1 / (1 + g),
    # hence log(1 + 10 / (g + 1)^2), which gives the figures of REFERENCE.md A.
    for g, published in ((10.0, 0.079), (100.0, 0.00098)):
        logits = torch.full((1, 11), -g)
        logits[0, 3] = g
        ours = float(stablemax_cross_entropy(logits, torch.tensor([3])))
        assert ours == pytest.approx(math.log1p(10 / (g + 1) ** 2), rel=1e-12)
        assert ours == pytest.approx(published, rel=0.01)
    flat = stablemax_cross_entropy(torch.zeros(2, 11), torch.tensor([0, 10]))
    assert flat.tolist() == pytest.approx([math.log(11)] * 2)


def test_numbers_are_float64_and_gradients_come_back_in_the_dtype_of_the_logits() -> None:
    logits = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([0, 1, 2, IGNORE]))
    assert loss.dtype == torch.float64
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
    assert logits.grad[3].abs().max() == 0


@pytest.mark.parametrize("centre", [0.0, 1.0, -1.0])
def test_gradients_match_finite_differences_where_the_branches_meet(centre: float) -> None:
    offsets = torch.tensor([[-2.0, -1e-3, 1e-3, 2.0]], dtype=torch.float64)
    logits = (offsets + centre).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: stablemax_cross_entropy(x, torch.tensor([2])), (logits,), eps=1e-7
    )


def test_the_gradient_at_zero_is_that_of_either_side() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    stablemax_cross_entropy(logits, torch.tensor([0])).sum().backward()
    # d(-log s_0 + log sum s)/dx = s'/sum - [own] s'/s with s = s' = 1 and three tokens.
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1 / 3 - 1, 1 / 3, 1 / 3])


@given(PAIR)
def test_divergences_keep_their_bounds(pair: tuple[list[float], list[float]]) -> None:
    first, second = pair
    p = stablemax_log_probabilities(torch.tensor(first, dtype=torch.float64))
    q = stablemax_log_probabilities(torch.tensor(second[: len(first)], dtype=torch.float64))
    kl, js = float(kl_divergence(p, q)), float(js_divergence(p, q))
    total_variation = 0.5 * float((p.exp() - q.exp()).abs().sum())
    assert kl >= 2 * total_variation**2 - 1e-9  # Pinsker
    assert 0 <= js <= math.log(2)
    assert js == pytest.approx(float(js_divergence(q, p)), abs=1e-12)
    assert js <= total_variation * math.log(2) + 1e-9  # Lin 1991, Theorem 3
    assert float(kl_divergence(p, p)) == 0.0


def test_js_of_almost_disjoint_distributions_is_close_to_ln_2() -> None:
    p = torch.tensor([1.0 - 1e-12, 1e-12], dtype=torch.float64).log()
    assert float(js_divergence(p, p.flip(0))) == pytest.approx(math.log(2), abs=1e-9)


def test_js_is_the_entropy_of_the_mixture_less_the_mean_entropy() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)

    def entropy(r: torch.Tensor) -> float:
        return -float((r * r.log()).sum())

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert float(js_divergence(p.log(), q.log())) == pytest.approx(expected)


def test_masked_mean_weighs_every_example_alike_and_an_empty_one_is_zero() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, 9.0], [2.0, 2.0, 2.0]])
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [2.0, 7.0, 0.0]


def test_masked_mean_lets_no_nan_of_a_masked_position_through() -> None:
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, False]]))
    mean.sum().backward()
    assert mean.tolist() == [1.0]
    assert values.grad is not None and values.grad.tolist() == [[1.0, 0.0]]
