"""Sums, spreads and maxima over groups: kernels against torch, gradients against differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import generator
from torch import Tensor

from trm.nn.group_ops import group_spread, group_sums, run_max

SEEDS = st.integers(0, 10_000)
KERNELS = (torch.float32, torch.float64)
DTYPES = pytest.mark.parametrize("dtype", [*KERNELS, torch.bfloat16], ids=str)


def case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Rows, groups of two kinds (some empty), and the numbers of groups."""
    draws = generator(seed)
    count = int(torch.randint(0, 9, (), generator=draws))
    rows = torch.randn(count, 3, generator=draws, dtype=torch.float64).to(dtype)
    group = torch.stack([torch.randint(0, n, (count,), generator=draws) for n in (4, 6)])
    return rows, group, (4, 6)


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]


@DTYPES
@given(seed=SEEDS)
def test_sums_are_one_hot_products(dtype: torch.dtype, seed: int) -> None:
    rows, group, counts = case(seed, dtype)
    sums = group_sums(rows, group, counts)
    for index, count, total in zip(group, counts, sums, strict=True):
        wanted = torch.nn.functional.one_hot(index, count).T.double() @ rows.double()
        assert total.dtype == dtype
        torch.testing.assert_close(total.double(), wanted, atol=tolerance(dtype), rtol=0)


@DTYPES
@given(seed=SEEDS)
def test_spread_gives_every_row_what_its_groups_hold(dtype: torch.dtype, seed: int) -> None:
    rows, group, counts = case(seed, dtype)
    totals = [torch.randn(n, 3, generator=generator(seed + n)).to(dtype) for n in counts]
    wanted = totals[0][group[0]].double() + totals[1][group[1]].double()
    found = group_spread(totals, group)
    assert (found.dtype, found.shape) == (dtype, rows.shape)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance(dtype), rtol=0)


@DTYPES
@given(seed=SEEDS)
def test_maxima_of_runs_are_exact_and_zero_for_empty_runs(dtype: torch.dtype, seed: int) -> None:
    rows, group, _ = case(seed, dtype)
    rows, run = rows - 1.0, group[1].sort().values
    found = run_max(rows, run, 6)
    for r in range(6):
        members = rows[run == r]
        wanted = members.max(dim=0).values if len(members) else torch.zeros(3, dtype=dtype)
        assert torch.equal(found[r], wanted)


@given(seed=SEEDS)
def test_gradients_match_finite_differences(seed: int) -> None:
    rows, group, counts = case(seed)
    rows.requires_grad_()
    totals = [
        torch.randn(n, 3, generator=generator(seed), dtype=torch.float64, requires_grad=True)
        for n in counts
    ]
    run = group[1].sort().values
    assert torch.autograd.gradcheck(lambda rows: group_sums(rows, group, counts), rows)
    assert torch.autograd.gradcheck(lambda *totals: group_spread(totals, group), totals)
    assert torch.autograd.gradcheck(lambda rows: run_max(rows, run, 6), rows)


def test_a_sum_that_nobody_uses_has_gradient_zero() -> None:
    rows, group, counts = case(5)
    rows.requires_grad_()
    first, _ = group_sums(rows, group, counts)
    (gradient,) = torch.autograd.grad(first.sum(), rows)
    assert torch.equal(gradient, torch.ones_like(rows))


def test_the_gradient_of_a_tie_goes_to_its_first_row() -> None:
    rows = torch.tensor([[2.0], [1.0], [2.0]], requires_grad=True)
    run_max(rows, torch.zeros(3, dtype=torch.long), 2).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0], [0.0], [0.0]]


def test_rows_that_are_views_are_read_in_their_own_order() -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    group = torch.tensor([[0, 1, 0, 1]])
    wanted = torch.stack([wide.T[[0, 2]].sum(dim=0), wide.T[[1, 3]].sum(dim=0)])
    torch.testing.assert_close(group_sums(wide.T, group, (2,))[0], wanted)
    torch.testing.assert_close(group_spread([wide.T], group), wide.T[group[0]])
