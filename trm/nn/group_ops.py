"""Sums over groups of rows and their adjoint, and maxima over rows: where the time goes.

The relational map mixes ragged rows over constraint groups at every unroll: `group_context` is what
each row hears of its groups, one state at a time in a buffer that stays in the cache. The sum and
the spread are each other's gradient. On the CPU they run as numba kernels without temporaries; on
other devices, and in other precisions than float32 and float64, as torch operations.
"""

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import numba
import numpy as np
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
    num_groups = [len(total) for total in totals]
    (spread,) = _linear(
        lambda *values: (_spread(values, group),),
        lambda gradient: _sums(gradient, group, num_groups),
        *totals,
    )
    return spread


def group_context(
    rows: Float[Tensor, "row channel"],
    state: Int[Tensor, " row"],
    variable: Int[Tensor, " row"],
    *,
    labels: Int[Tensor, "kind variable"],
    scale: Float[Tensor, "kind variable"],
    classes: Int[Tensor, " kind"],
) -> Float[Tensor, "row feature"]:
    """Every row beside what its groups hold: [row, sum over class 0, sum over class 1, ...].

    The part of class j is sum over its kinds k of scale[k, v] times the sum of the rows of the same
    state that share the row's label of kind k; v is the row's variable. Differentiable.

    Args:
        rows: one a variable that is present.
        state: that a row belongs to, ascending.
        variable: of each row; no two rows of a state share it.
        labels: group of each variable, for each kind.
        scale: equal within a group.
        classes: of each kind, 0, 1, ... in the order of first use.
    """
    if has_kernel(rows):
        tables = (state, variable, labels, scale, classes)
        (out,) = _linear(
            lambda values: (_context(values, tables, adjoint=False),),
            lambda gradient: (_context(gradient, tables, adjoint=True),),
            rows,
        )
        return out
    num_states = int(state[-1]) + 1 if len(state) else 0
    label, weight = labels[:, variable], scale[:, variable].to(rows.dtype)
    parts: list[Tensor] = [rows]
    for kind, index in enumerate(classes.tolist()):
        count = int(labels[kind].max()) + 1
        group = label[kind] + count * state
        (total,) = group_sums(rows, group[None], [count * num_states])
        heard = weight[kind, :, None] * group_spread([total], group[None])
        if index + 1 < len(parts):
            parts[index + 1] = parts[index + 1] + heard
        else:
            parts.append(heard)
    return torch.cat(parts, dim=1)


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
    """Whether the numba kernels can compute with these numbers."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


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


def _context(values: Tensor, tables: Sequence[Tensor], *, adjoint: bool) -> Tensor:
    """`group_context` of rows, or the gradient at the rows for one at the context."""
    parts = 2 + int(tables[-1].max())
    width = values.shape[1] // parts if adjoint else values.shape[1] * parts
    out = values.new_empty(len(values), width)
    kernel = _context_adjoint if adjoint else _context_forward
    kernel(_array(values), *(_array(table) for table in tables), out.numpy())
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


@no_type_check
def _context_kernel(adjoint):
    """The kernel of `group_context`, or of its gradient; two, since a flag in one costs 40%."""

    @numba.njit(cache=True)
    def kernel(values, state, variable, labels, scale, classes, out):
        channels = min(values.shape[1], out.shape[1])
        count = len(values)
        buffer = np.empty((labels.max() + 1, channels), values.dtype)
        start = 0
        while start < count:
            end = start
            while end < count and state[end] == state[start]:
                for c in range(channels):
                    out[end, c] = values[end, c]
                end += 1
            for k in range(len(classes)):
                first = not adjoint and (k == 0 or classes[k] > classes[:k].max())
                offset = (classes[k] + 1) * channels
                read = offset if adjoint else 0
                write = 0 if adjoint else offset
                for t in range(start, end):
                    g = labels[k, variable[t]]
                    for c in range(channels):
                        buffer[g, c] = 0
                for t in range(start, end):
                    g = labels[k, variable[t]]
                    for c in range(channels):
                        buffer[g, c] += values[t, read + c]
                for t in range(start, end):
                    g, w = labels[k, variable[t]], scale[k, variable[t]]
                    if first:
                        for c in range(channels):
                            out[t, write + c] = w * buffer[g, c]
                    else:
                        for c in range(channels):
                            out[t, write + c] += w * buffer[g, c]
            start = end

    return kernel


_context_forward, _context_adjoint = _context_kernel(False), _context_kernel(True)
