"""The layer that mixes rows over constraint groups, with what follows it, one state at a time.

    out = Pi_R(relu(b + x W_0 + sum over kinds k of scale_k S_k x W_class(k)))

S_k x gives every row the sum of the rows that share its group of kind k. The products come first,
so that the sums are over the output's channels; products and sums of a state stay in the cache. On
the CPU one numba kernel does it all and another its gradient; elsewhere, and under autocast, it
is torch operations. `blocks` calls it, with parameters and batches that it prepares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trm.nn.group_ops import group_spread, group_sums, has_kernel
from trm.nn.lanes import (
    NUM_LANES,
    add,
    add_product,
    load,
    repeat,
    scaled,
    store,
    total,
    where_positive,
    zeros,
)
from trm.nn.recursion import project_ball


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRows:
    """Which rows share a group; row t is one variable of one state."""

    ends: Int[Tensor, " batch"]
    """The row after the last one of each state."""
    slots: Int[Tensor, "row kind"]
    """The row's group among all groups of its state, of all kinds; int32."""
    num_slots: int
    """Groups of one state, of all kinds together."""
    scale: Float[Tensor, "row kind"]
    """Equal within a group."""
    group: Int[Tensor, "kind row"]
    """The row's group among all groups of the batch, for each kind."""
    num_groups: tuple[int, ...]
    """Groups of the whole batch, for each kind."""


def group_linear(
    rows: Float[Tensor, "row inputs"],
    added: Float[Tensor, "row_or_one channel"],
    weight: Float[Tensor, "part inputs channel"],
    groups: GroupRows,
    *,
    classes: Sequence[int],
    rectify: bool = False,
    radius: float | None = None,
) -> Float[Tensor, "row channel"]:
    """The layer above; differentiable in `rows`, `added` and `weight`.

    Args:
        rows: x.
        added: b, a row for each of them, or one for all.
        weight: W_0, then the weight of class 0, 1, ...
        groups: which rows share a group.
        classes: weight that each kind of group uses.
        rectify: whether to take relu.
        radius: R of the projection of every row, None = none.
    """
    if not has_kernel(rows) or torch.is_autocast_enabled("cpu"):
        return _in_torch(rows, added, weight, groups, classes, rectify=rectify, radius=radius)
    channels = weight.shape[2]
    short, narrow = -channels % NUM_LANES, -rows.shape[1] % NUM_LANES
    if short:
        added, weight = (nn.functional.pad(one, (0, short)) for one in (added, weight))
    if narrow and rows.requires_grad:
        rows = nn.functional.pad(rows, (0, narrow))
        weight = nn.functional.pad(weight, (0, 0, 0, narrow))
    tables = (groups.ends, groups.slots, groups.scale.to(rows.dtype), torch.tensor(classes))
    out: Tensor = _GroupLinear.apply(  # type: ignore[no-untyped-call]
        rows, added, weight, tables, groups.num_slots, rectify, radius or 0.0
    )
    return out[:, :channels] if short else out


def _in_torch(
    rows: Tensor,
    added: Tensor,
    weight: Tensor,
    groups: GroupRows,
    classes: Sequence[int],
    *,
    rectify: bool,
    radius: float | None,
) -> Tensor:
    """The sums come first here: they are over fewer numbers, and one product follows."""
    parts: list[Tensor] = [rows]
    for kind, used in enumerate(classes):
        group = groups.group[kind : kind + 1]
        (sums,) = group_sums(rows, group, groups.num_groups[kind : kind + 1])
        heard = groups.scale[:, kind, None].to(rows.dtype) * group_spread([sums], group)
        if used + 1 < len(parts):
            parts[used + 1] = parts[used + 1] + heard
        else:
            parts.append(heard)
    out = torch.cat(parts, dim=1) @ weight.flatten(0, 1) + added
    return project_ball(torch.relu(out) if rectify else out, radius)


class _GroupLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        added: Tensor,
        weight: Tensor,
        tables: tuple[Tensor, ...],
        num_slots: int,
        rectify: bool,
        radius: float,
    ) -> Tensor:
        rows, added, weight = (one.detach().contiguous() for one in (rows, added, weight))
        out = rows.new_empty(len(rows), weight.shape[2])
        shrink = rows.new_empty(len(rows) if radius else 0)
        _forward(
            *(one.numpy() for one in (rows, added, weight, *tables)),
            num_slots,
            rectify,
            radius,
            out.numpy(),
            shrink.numpy(),
        )
        ctx.save_for_backward(rows, weight, out, shrink, *tables)
        ctx.options = num_slots, rectify, radius, len(added)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, out, shrink, *tables = ctx.saved_tensors
        num_slots, rectify, radius, num_added = ctx.options
        gradient = gradients[0].detach().contiguous()
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else rows.new_empty(0, 0)
        of_added, of_weight = torch.empty_like(out), torch.zeros_like(weight)
        transposed = weight.transpose(1, 2).contiguous()
        _backward(
            *(one.numpy() for one in (gradient, rows, transposed, *tables)),
            num_slots,
            rectify,
            radius,
            *(one.numpy() for one in (out, shrink, of_rows, of_added, of_weight)),
        )
        if num_added != len(out):
            of_added = of_added.sum(dim=0, keepdim=True)
        nothing = None, None, None, None
        return of_rows if ctx.needs_input_grad[0] else None, of_added, of_weight, *nothing


@numba.njit(cache=True)
@no_type_check
def _product(a, a_from, a_row, a_step, b, b_from, b_row, out, out_from, out_row, size, more):
    """out[r, c] = sum over i of a[r, i] b[i, c], or that added to it (`more`).

    `size` is (rows, inner, columns), columns a multiple of eight. Eight rows and eight columns at a
    time stay in registers; the last eight rows repeat the last row where it has to.
    """
    rows, inner, columns = size
    for r in range(0, rows, 8):
        last = rows - 1
        a0, o0 = a_from + r * a_row, out_from + r * out_row
        a1 = a_from + min(r + 1, last) * a_row
        a2 = a_from + min(r + 2, last) * a_row
        a3 = a_from + min(r + 3, last) * a_row
        a4 = a_from + min(r + 4, last) * a_row
        a5 = a_from + min(r + 5, last) * a_row
        a6 = a_from + min(r + 6, last) * a_row
        a7 = a_from + min(r + 7, last) * a_row
        o1 = out_from + min(r + 1, last) * out_row
        o2 = out_from + min(r + 2, last) * out_row
        o3 = out_from + min(r + 3, last) * out_row
        o4 = out_from + min(r + 4, last) * out_row
        o5 = out_from + min(r + 5, last) * out_row
        o6 = out_from + min(r + 6, last) * out_row
        o7 = out_from + min(r + 7, last) * out_row
        for c in range(0, columns, 8):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros(out)
            if more:
                s0, s1, s2, s3 = (
                    load(out, o0 + c),
                    load(out, o1 + c),
                    load(out, o2 + c),
                    load(out, o3 + c),
                )
                s4, s5, s6, s7 = (
                    load(out, o4 + c),
                    load(out, o5 + c),
                    load(out, o6 + c),
                    load(out, o7 + c),
                )
            for i in range(inner):
                line = load(b, b_from + i * b_row + c)
                at = i * a_step
                s0 = add_product(s0, repeat(a, a0 + at), line)
                s1 = add_product(s1, repeat(a, a1 + at), line)
                s2 = add_product(s2, repeat(a, a2 + at), line)
                s3 = add_product(s3, repeat(a, a3 + at), line)
                s4 = add_product(s4, repeat(a, a4 + at), line)
                s5 = add_product(s5, repeat(a, a5 + at), line)
                s6 = add_product(s6, repeat(a, a6 + at), line)
                s7 = add_product(s7, repeat(a, a7 + at), line)
            store(out, o0 + c, s0)
            store(out, o1 + c, s1)
            store(out, o2 + c, s2)
            store(out, o3 + c, s3)
            store(out, o4 + c, s4)
            store(out, o5 + c, s5)
            store(out, o6 + c, s6)
            store(out, o7 + c, s7)


@numba.njit(cache=True)
@no_type_check
def _most_rows(ends):
    most = begin = 0
    for end in ends:
        most = max(most, end - begin)
        begin = end
    return most


@numba.njit(cache=True)
@no_type_check
def _forward(
    rows, added, weight, ends, slots, scale, classes, num_slots, rectify, radius, out, shrink
):
    parts, inputs, channels = weight.shape
    kinds, width = len(classes), parts * channels
    products = np.empty(_most_rows(ends) * width, rows.dtype)
    sums = np.empty(num_slots * channels, rows.dtype)
    begin = 0
    for end in ends:
        size = (end - begin, inputs, channels)
        for part in range(parts):
            at = part * channels
            _product(
                rows,
                begin * inputs,
                inputs,
                1,
                weight,
                at * inputs,
                channels,
                products,
                at,
                width,
                size,
                False,
            )
        sums[:] = 0
        for t in range(begin, end):
            for k in range(kinds):
                read = (t - begin) * width + (classes[k] + 1) * channels
                place = slots[t, k] * channels
                for c in range(0, channels, 8):
                    store(sums, place + c, add(load(sums, place + c), load(products, read + c)))
        for t in range(begin, end):
            squares = rows.dtype.type(0)
            own = (t - begin) * width
            extra = t * channels if len(added) > 1 else 0
            for c in range(0, channels, 8):
                row = add(load(added, extra + c), load(products, own + c))
                for k in range(kinds):
                    heard = load(sums, slots[t, k] * channels + c)
                    row = add_product(row, repeat(scale, t * kinds + k), heard)
                if rectify:
                    row = where_positive(row, row)
                store(out, t * channels + c, row)
                squares += total(add_product(zeros(out), row, row))
            if radius > 0:
                norm = np.sqrt(squares)
                shrink[t] = radius / norm if norm > radius else 1.0
                if norm > radius:
                    for c in range(0, channels, 8):
                        at = t * channels + c
                        store(out, at, scaled(load(out, at), shrink[t]))
        begin = end


@numba.njit(cache=True)
@no_type_check
def _backward(
    gradient,
    rows,
    weight,
    ends,
    slots,
    scale,
    classes,
    num_slots,
    rectify,
    radius,
    out,
    shrink,
    of_rows,
    of_added,
    of_weight,
):
    parts, channels, inputs = weight.shape
    kinds, width = len(classes), parts * channels
    products = np.empty(_most_rows(ends) * width, rows.dtype)
    sums = np.empty(num_slots * channels, rows.dtype)
    begin = 0
    for end in ends:
        sums[:] = 0
        for t in range(begin, end):
            first = t * channels
            along = rows.dtype.type(0)
            projected = radius > 0 and shrink[t] < 1
            if projected:
                for c in range(first, first + channels, 8):
                    along += total(add_product(zeros(out), load(out, c), load(gradient, c)))
                along = -along / (radius * radius)
            for c in range(0, channels, 8):
                row = load(gradient, first + c)
                if projected:
                    row = add(row, scaled(load(out, first + c), along))
                    row = scaled(row, shrink[t])
                if rectify:
                    row = where_positive(load(out, first + c), row)
                store(of_added, first + c, row)
                store(products, (t - begin) * width + c, row)
                for k in range(kinds):
                    place = slots[t, k] * channels + c
                    store(sums, place, add(load(sums, place), row))
        for t in range(begin, end):
            for part in range(1, parts):
                write = (t - begin) * width + part * channels
                for c in range(0, channels, 8):
                    row = zeros(out)
                    for k in range(kinds):
                        if classes[k] + 1 == part:
                            heard = load(sums, slots[t, k] * channels + c)
                            row = add_product(row, repeat(scale, t * kinds + k), heard)
                    store(products, write + c, row)
        if len(of_rows):
            size = (end - begin, width, inputs)
            _product(
                products,
                0,
                width,
                1,
                weight,
                0,
                inputs,
                of_rows,
                begin * inputs,
                inputs,
                size,
                False,
            )
        size = (inputs, end - begin, channels)
        for part in range(parts):
            at = part * channels
            _product(
                rows,
                begin * inputs,
                1,
                inputs,
                products,
                at,
                width,
                of_weight,
                at * inputs,
                channels,
                size,
                True,
            )
        begin = end
