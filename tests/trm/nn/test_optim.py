"""Optimisers: recomputed in plain floats, from the formulas of the official kernels."""

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from trm.nn.optim import (
    AdamATan2,
    OptimiserConfig,
    RunningAverage,
    sign_sgd_,
)


@given(
    st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=8),
    st.floats(1e-4, 0.5),
    st.floats(0, 1),
)
def test_adam_atan2_is_the_formula_recomputed_in_plain_floats(
    gradients: list[float], lr: float, decay: float
) -> None:
    weight = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    optimiser = AdamATan2([weight], learning_rate=lr, betas=(0.9, 0.95), weight_decay=decay)
    p, m, v = 1.5, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p * (1 - lr * decay)
        p -= lr / (1 - 0.9**t) * math.atan2(m, math.sqrt(v) / math.sqrt(1 - 0.95**t))
    assert float(weight.detach()) == pytest.approx(p, rel=1e-9, abs=1e-9)


def test_the_first_update_of_adam_atan2_is_an_eighth_turn_whatever_the_gradient() -> None:
    # t = 1: m = 0.1 g, sqrt(v / bc2) = |g|, so atan2(0.1 g, |g|) / 0.1 = sign(g) 10 atan(0.1).
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1e-6, -1.0, 1e6])
    AdamATan2([weight], learning_rate=1.0).step()
    expected = 10 * math.atan(0.1)
    assert weight.tolist() == pytest.approx([-expected, expected, -expected], rel=1e-5)


def test_adam_atan2_goes_on_from_its_saved_state_bit_by_bit() -> None:
    def run(split: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.ones(5))
        optimiser = AdamATan2([weight], learning_rate=0.1, weight_decay=0.1)
        for step in range(6):
            if split and step == 3:
                saved = optimiser.state_dict()
                optimiser = AdamATan2([weight], learning_rate=9.9)
                optimiser.load_state_dict(saved)
            weight.grad = torch.randn(5, generator=generator)
            optimiser.step()
        return weight.detach()

    assert torch.equal(run(split=True), run(split=False))


def test_sign_sgd_sums_the_gradients_of_a_row_and_leaves_others_alone() -> None:
    table = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    puzzle = torch.tensor([2, 0, 2])
    gradient = torch.tensor([[1.0, -4.0], [0.0, -5.0], [-3.0, 1.0]])
    sign_sgd_(table, puzzle, gradient, learning_rate=0.1, weight_decay=0.5)
    # Row 2: sums (-2, -3) -> signs (-1, -1), 3 * 0.95 + 0.1. Row 0: signs (0, -1), 1 * 0.95.
    expected = [0.95, 1.05, 2.0, 2.0, 2.95, 2.95]
    assert table.flatten().tolist() == pytest.approx(expected)


def test_warm_up_rises_linearly_and_the_cosine_ends_at_the_final_share() -> None:
    falling = OptimiserConfig(warm_up=4, final_learning_rate=0.5)
    shares = [falling.share(step, total=12) for step in range(1, 15)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[7] == pytest.approx(0.75)  # half way from 4 to 12
    assert shares[11:] == pytest.approx([0.5] * 3)
    assert all(a >= b for a, b in itertools.pairwise(shares[3:]))
    flat = [OptimiserConfig(warm_up=2).share(step, total=9) for step in range(2, 20)]
    assert flat == [1.0] * 18


def test_the_running_average_has_its_closed_form_and_is_swapped_in_and_out() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = RunningAverage(layer, 0.9)
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update()
    # 0.1 (3 + 0.9 * 2 + 0.81 * 1) = 0.561
    assert float(average.average["weight"]) == pytest.approx(0.561)
    with average.in_place():
        assert float(layer.weight.detach()) == pytest.approx(0.561)
    assert float(layer.weight.detach()) == 3.0


def test_the_running_average_of_another_model_is_refused() -> None:
    average = RunningAverage(nn.Linear(1, 1), 0.9)
    with pytest.raises(ValueError, match="of another model, bias is not in both"):
        average.load({"weight": torch.zeros(1, 1)})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0.0, "optimiser.learning_rate must be positive, got 0.0"),
        ("betas", (0.9, 1.0), r"optimiser.betas must be two numbers of \[0, 1\)"),
        ("average", 1.0, "optimiser.average must lie in"),
        ("warm_up", -1, "optimiser.warm_up must be at least 0, got -1"),
        ("final_learning_rate", 0.0, "optimiser.final_learning_rate must lie in"),
        ("gradient_limit", 0.0, "optimiser.gradient_limit must be positive"),
    ],
)
def test_an_optimiser_out_of_range_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimiserConfig(**{field: value})


@pytest.mark.parametrize("kind", ["adam_atan2", "adamw"])
def test_either_optimiser_walks_down_a_bowl(kind: Any) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    config = OptimiserConfig(kind=kind, learning_rate=0.05, weight_decay=0.0)
    optimiser = config.dense([weight])
    for _ in range(200):
        optimiser.zero_grad()
        weight.square().sum().backward()
        optimiser.step()
    assert float(weight.detach().abs().max()) < 0.1
