"""Sums over groups of rows and their adjoint, and maxima over runs of rows: where the time goes.

The relational map mixes ragged rows over constraint groups at every unroll: `group_context` is what
each row hears of its groups, one state at a time in a buffer that stays in the cache. The sum and
the spread are each other's gradient. On the CPU they run as numba kernels without temporaries; on
other devices, and in other precisions than float32 and float64, as torch operations.
"""

from collections.abc import Sequence
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
    sums: tuple[Tensor, ...] = _GroupSums.apply(rows, group, tuple(num_groups))  # type: ignore[no-untyped-call]
    return sums


def group_spread(
    totals: Sequence[Float[Tensor, "_ channel"]], group: Int[Tensor, "kind row"]
) -> Float[Tensor, "row channel"]:
    """out[t] = sum over kinds k of totals[k][group[k, t]]; differentiable."""
    spread: Tensor = _GroupSpread.apply(group, *totals)  # type: ignore[no-untyped-call]
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
    if _has_kernel(rows):
        out: Tensor = _GroupContext.apply(rows, state, variable, labels, scale, classes)  # type: ignore[no-untyped-call]
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


class _GroupContext(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        state: Tensor,
        variable: Tensor,
        labels: Tensor,
        scale: Tensor,
        classes: Tensor,
    ) -> Tensor:
        count, channels = rows.shape
        out = rows.new_empty(count, channels * (2 + int(classes.max())))
        tables = (state, variable, labels, scale, classes)
        ctx.save_for_backward(*tables)
        _context_kernel(_array(rows), *(_array(table) for table in tables), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tables = ctx.saved_tensors
        channels = gradient.shape[1] // (2 + int(tables[-1].max()))
        out = gradient.new_empty(len(gradient), channels)
        _context_adjoint(_array(gradient), *(_array(table) for table in tables), out.numpy())
        return out, None, None, None, None, None


def _array(values: Tensor) -> Any:
    return values.detach().contiguous().numpy()


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


@numba.njit(cache=True)
@no_type_check
def _context_kernel(rows, state, variable, labels, scale, classes, out):
    count, channels = rows.shape
    buffer = np.empty((labels.max() + 1, channels), rows.dtype)
    start = 0
    while start < count:
        end = start
        while end < count and state[end] == state[start]:
            for c in range(channels):
                out[end, c] = rows[end, c]
            end += 1
        for k in range(len(classes)):
            first = k == 0 or classes[k] > classes[:k].max()
            offset = (classes[k] + 1) * channels
            for t in range(start, end):
                g = labels[k, variable[t]]
                for c in range(channels):
                    buffer[g, c] = 0
            for t in range(start, end):
                g = labels[k, variable[t]]
                for c in range(channels):
                    buffer[g, c] += rows[t, c]
            for t in range(start, end):
                g, w = labels[k, variable[t]], scale[k, variable[t]]
                if first:
                    for c in range(channels):
                        out[t, offset + c] = w * buffer[g, c]
                else:
                    for c in range(channels):
                        out[t, offset + c] += w * buffer[g, c]
        start = end


@numba.njit(cache=True)
@no_type_check
def _context_adjoint(gradient, state, variable, labels, scale, classes, out):
    count, channels = out.shape
    buffer = np.empty((labels.max() + 1, channels), gradient.dtype)
    start = 0
    while start < count:
        end = start
        while end < count and state[end] == state[start]:
            for c in range(channels):
                out[end, c] = gradient[end, c]
            end += 1
        for k in range(len(classes)):
            offset = (classes[k] + 1) * channels
            for t in range(start, end):
                g = labels[k, variable[t]]
                for c in range(channels):
                    buffer[g, c] = 0
            for t in range(start, end):
                g = labels[k, variable[t]]
                for c in range(channels):
                    buffer[g, c] += gradient[t, offset + c]
            for t in range(start, end):
                g, w = labels[k, variable[t]], scale[k, variable[t]]
                for c in range(channels):
                    out[t, c] += w * buffer[g, c]
        start = end
