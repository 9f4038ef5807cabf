"""Sums over groups of rows and their adjoint, and maxima over runs of rows: where the time goes.

The relational map mixes ragged rows over constraint groups at every unroll. The sum and the spread
are each other's gradient. On the CPU they run as numba kernels without temporaries; on other
devices, and in other precisions than float32 and float64, as torch operations.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import numba
import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_sums(
    rows: Float[Tensor, "row channel"], group: Int[Tensor, "kind row"], num_groups: Sequence[int]
) -> tuple[Tensor, ...]:
    """For each kind k: out[g] = sum of the rows t with group[k, t] = g; differentiable.

    Returns:
        One tensor [num_groups[k], channel] for each kind.
    """
    sums: tuple[Tensor, ...] = _GroupSums.apply(rows, group, tuple(num_groups))  # type: ignore[no-untyped-call]
    return sums


def group_spread(
    totals: Sequence[Float[Tensor, "_ channel"]], group: Int[Tensor, "kind row"]
) -> Float[Tensor, "row channel"]:
    """out[t] = sum over kinds k of totals[k][group[k, t]]; differentiable."""
    spread: Tensor = _GroupSpread.apply(group, *totals)  # type: ignore[no-untyped-call]
    return spread


def run_max(
    rows: Float[Tensor, "row channel"], run: Int[Tensor, " row"], num_runs: int
) -> Float[Tensor, "run channel"]:
    """out[r] = maximum of the rows with run[t] = r, 0 where there is none; `run` ascends.

    Differentiable; the gradient of a tie goes to its first row.
    """
    if _has_kernel(rows):
        maxima: Tensor = _RunMax.apply(rows, run, num_runs)  # type: ignore[no-untyped-call]
        return maxima
    out = rows.new_zeros(num_runs, rows.shape[1])
    index = run[:, None].expand_as(rows)
    return out.scatter_reduce(0, index, rows, "amax", include_self=False)


def _has_kernel(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _sums(rows: Tensor, group: Tensor, num_groups: Sequence[int]) -> tuple[Tensor, ...]:
    sums = tuple(rows.new_zeros(count, rows.shape[1]) for count in num_groups)
    rows = rows.detach().contiguous()
    for index, out in zip(group, sums, strict=True):
        if _has_kernel(rows):
            _sum_kernel(rows.numpy(), index.numpy(), out.numpy())
        else:
            out.index_add_(0, index, rows)
    return sums


def _spread(totals: Sequence[Tensor], group: Tensor) -> Tensor:
    out = totals[0].new_zeros(group.shape[1], totals[0].shape[1])
    for index, total in zip(group, totals, strict=True):
        if _has_kernel(out):
            _spread_kernel(total.detach().contiguous().numpy(), index.numpy(), out.numpy())
        else:
            out += total[index]
    return out


class _GroupSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, group: Tensor, num_groups: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(group)
        return _sums(rows, group, num_groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (group,) = ctx.saved_tensors
        return _spread(gradients, group), None, None


class _GroupSpread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Tensor, *totals: Tensor) -> Tensor:
        ctx.save_for_backward(group)
        ctx.num_groups = [len(total) for total in totals]
        return _spread(totals, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (group,) = ctx.saved_tensors
        return None, *_sums(gradients[0], group, ctx.num_groups)


class _RunMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, run: Tensor, num_runs: int) -> Tensor:
        out = rows.new_zeros(num_runs, rows.shape[1])
        first = torch.full(out.shape, -1, dtype=torch.long)
        _max_kernel(rows.detach().contiguous().numpy(), run.numpy(), out.numpy(), first.numpy())
        ctx.save_for_backward(first)
        ctx.num_rows = len(rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (first,) = ctx.saved_tensors
        out = gradients[0].new_zeros(ctx.num_rows + 1, first.shape[1])
        # Empty runs point at row -1, the spare one.
        out.scatter_(0, first % (ctx.num_rows + 1), gradients[0])
        return out[:-1], None, None


@numba.njit(cache=True)
@no_type_check
def _sum_kernel(rows, group, out):
    count, channels = rows.shape
    for t in range(count):
        g = group[t]
        for c in range(channels):
            out[g, c] += rows[t, c]


@numba.njit(cache=True)
@no_type_check
def _spread_kernel(total, group, out):
    count, channels = out.shape
    for t in range(count):
        g = group[t]
        for c in range(channels):
            out[t, c] += total[g, c]


@numba.njit(cache=True)
@no_type_check
def _max_kernel(rows, run, out, first):
    count, channels = rows.shape
    for t in range(count):
        r = run[t]
        for c in range(channels):
            if first[r, c] < 0 or rows[t, c] > out[r, c]:
                out[r, c] = rows[t, c]
                first[r, c] = t
