"""Sums over groups of rows and their adjoint, and maxima over rows.

The sum and the spread are each other's gradient. On the CPU they run as numba kernels without
temporaries; on other devices, and in other precisions than float32 and float64, as torch
operations. `group_linear` fuses sums with what a layer does around them.
"""

from collections.abc import Callable, Sequence
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
    return _linear(
        lambda values: _sums(values, group, num_groups),
        lambda *gradients: (_spread(gradients, group),),
        rows,
    )


def group_spread(
    totals: Sequence[Float[Tensor, "_ channel"]], group: Int[Tensor, "kind row"]
) -> Float[Tensor, "row channel"]:
    """out[t] = sum over kinds k of totals[k][group[k, t]]; differentiable."""
    num_groups = [total.shape[0] for total in totals]
    (spread,) = _linear(
        lambda *values: (_spread(values, group),),
        lambda gradient: _sums(gradient, group, num_groups),
        *totals,
    )
    return spread


def run_max(
    rows: Float[Tensor, "row channel"], run: Int[Tensor, " row"], num_runs: int
) -> Float[Tensor, "run channel"]:
    """out[r] = maximum of the rows with run[t] = r, 0 where there is none; `run` ascends.

    Differentiable; the gradient of a tie goes to its first row.
    """
    if has_kernel(rows):
        return maxima(_run_kernel, rows, run, num_runs)
    out = rows.new_zeros(num_runs, rows.shape[1])
    index = run[:, None].expand_as(rows)
    return out.scatter_reduce(0, index, rows, "amax", include_self=False)


def maxima(
    kernel: Callable[..., None],
    rows: Float[Tensor, "row channel"],
    index: Int[Tensor, "..."],
    num_out: int,
) -> Float[Tensor, "out channel"]:
    """Maxima over sets of rows, channel by channel, on the CPU; differentiable.

    Args:
        kernel: numba function (rows, index, out, source) that fills `out` and, for each number of
            it, the row that it comes from; -1, which it finds there, where it comes from none.
        rows: what the maxima are taken of.
        index: what tells the kernel which rows belong together.
        num_out: rows of the result.
    """
    out: Tensor = _Maxima.apply(kernel, rows, index, num_out)  # type: ignore[no-untyped-call]
    return out


def has_kernel(values: Tensor) -> bool:
    """Whether the numba kernels can compute with these numbers; an exported graph has none."""
    on_cpu = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return on_cpu and not torch.compiler.is_exporting()


def _sums(rows: Tensor, group: Tensor, num_groups: Sequence[int]) -> tuple[Tensor, ...]:
    sums = tuple(rows.new_zeros(count, rows.shape[1]) for count in num_groups)
    rows = rows.detach().contiguous()
    for index, out in zip(group, sums, strict=True):
        if has_kernel(rows):
            _sum_kernel(rows.numpy(), index.numpy(), out.numpy())
        else:
            out.index_add_(0, index, rows)
    return sums


def _spread(totals: Sequence[Tensor], group: Tensor) -> Tensor:
    out = totals[0].new_zeros(group.shape[1], totals[0].shape[1])
    for index, total in zip(group, totals, strict=True):
        if has_kernel(out):
            _spread_kernel(_array(total), index.numpy(), out.numpy())
        else:
            out += total[index]
    return out


def _array(values: Tensor) -> Any:
    return values.detach().contiguous().numpy()


LinearMap = Callable[..., tuple[Tensor, ...]]


def _linear(apply: LinearMap, adjoint: LinearMap, *values: Tensor) -> tuple[Tensor, ...]:
    """A linear map of tensors whose gradient is its adjoint."""
    out: tuple[Tensor, ...] = _Linear.apply(apply, adjoint, *values)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, apply: LinearMap, adjoint: LinearMap, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.adjoint = adjoint
        return apply(*values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.adjoint(*gradients)


class _Maxima(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Callable[..., None], rows: Tensor, index: Tensor, num_out: int
    ) -> Tensor:
        out = rows.new_zeros(num_out, rows.shape[1])
        source = torch.full(out.shape, -1, dtype=torch.int32)
        kernel(_array(rows), index.numpy(), out.numpy(), source.numpy())
        ctx.save_for_backward(source)
        ctx.num_rows = len(rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (source,) = ctx.saved_tensors
        out = gradients[0].new_zeros(ctx.num_rows, source.shape[1])
        _scatter_kernel(_array(gradients[0]), source.numpy(), out.numpy())
        return None, out, None, None


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
def _run_kernel(rows, run, out, source):
    count, channels = rows.shape
    for t in range(count):
        r = run[t]
        for c in range(channels):
            if source[r, c] < 0 or rows[t, c] > out[r, c]:
                out[r, c] = rows[t, c]
                source[r, c] = t


@numba.njit(cache=True)
@no_type_check
def _scatter_kernel(gradient, source, out):
    count, channels = source.shape
    for t in range(count):
        for c in range(channels):
            if source[t, c] >= 0:
                out[source[t, c], c] += gradient[t, c]
