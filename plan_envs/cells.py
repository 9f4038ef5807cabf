"""Helpers of the domains that concern the cells of a board: neighbours, random choices, tables."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec


def choose_cells(
    cells: NDArray[np.bool_], number: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose up to `number` [batch] of the True cells of every row, uniformly; [batch, cell]."""
    keys = np.where(cells, rng.random(cells.shape), np.inf)
    ranks = np.argsort(np.argsort(keys, axis=1), axis=1)
    chosen: NDArray[np.bool_] = cells & (ranks < np.asarray(number)[:, None])
    return chosen


@cache
def neighbours_of(size: int) -> NDArray[np.int32]:
    """The cells up, down, left and right of every cell of a square, -1 outside; [cell, direction].

    All callers share the table, so it must not be written to.
    """
    row, column = np.divmod(np.arange(size * size, dtype=np.int32), np.int32(size))
    found = np.full((size * size, 4), -1, np.int32)
    for direction, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
        r, c = row + down, column + right
        inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
        found[inside, direction] = (r * size + c)[inside]
    return found


def with_fixed_tables(spec: DomainSpec) -> DomainSpec:
    """The same spec, whose arrays can no longer be written to: domains share them."""
    tables = [spec.action_cell, spec.action_value, spec.action_kind, *spec.groups.values()]
    if spec.neighbours is not None:
        tables.append(spec.neighbours)
    for table in tables:
        table.flags.writeable = False
    return spec
