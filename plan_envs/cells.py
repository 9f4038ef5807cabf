"""Helpers of the domains that concern the cells of a board: symmetries, neighbours, choices."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array


@dataclass(frozen=True, kw_only=True, slots=True)
class CellSymmetry:
    """A symmetry that permutes the cells and renames the values; see `domain.Symmetry`."""

    spec: DomainSpec
    """Of the domain; its action table says which action has which image."""
    cells: NDArray[np.int64]
    """Shape [cell]: new[i] comes from old[cells[i]]."""
    values: Int8Array
    """Shape [num_values + 1]: old value of a plan -> new value; blank stays blank."""
    renames_instances: bool
    """Instances have the values of plans, and so have their images; else their values stay."""

    def instances(self, instances: Int8Array) -> Int8Array:
        """Images of instances, shape [batch, cell]."""
        if self.renames_instances:
            return self.plans(instances)
        return np.ascontiguousarray(np.asarray(instances)[..., self.cells])

    def plans(self, plans: Int8Array) -> Int8Array:
        """Images of plans or solutions, shape [batch, cell]."""
        return np.ascontiguousarray(self.values[np.asarray(plans)[..., self.cells]])

    def actions(self) -> NDArray[np.int32]:
        """The image of every action, shape [action]: the same kind on the images of its parts."""
        spec, kind = self.spec, self.spec.action_kind
        moved = np.append(np.argsort(self.cells), -1)  # no cell, -1, stays none
        sizes = (len(spec.kind_names), spec.num_cells + 1, spec.num_values + 1)
        number_of = np.zeros(sizes, np.int32)
        number_of[kind, spec.action_cell, spec.action_value] = np.arange(spec.num_actions)
        images = number_of[kind, moved[spec.action_cell], self.values[spec.action_value]]
        return np.asarray(images, np.int32)

    def inverse(self) -> Self:
        """The symmetry that undoes this one."""
        values = np.argsort(self.values).astype(np.int8)
        return replace(self, cells=np.argsort(self.cells), values=values)


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
