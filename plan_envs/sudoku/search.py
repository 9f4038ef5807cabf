"""Exact Sudoku search in compiled code: candidates, propagation, counting of solutions.

The kernels serve the sides 4, 6, 9 and 16 alike. They take boards of shape [num, cell] and the
`Tables` of a side. `plan_envs.sudoku.instances` calls them, and so does
`plan_envs.sudoku.generation`, whose splitmix64 state is their only randomness.
"""
# mypy: disable-error-code="no-untyped-def"

from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.compiled.bits import draw_below
from plan_envs.sudoku.geometry import BOX_SHAPES, peers_of, units_of

_PLACED = 1 << 20
"""Flag in a candidate mask: the cell's only candidate has been removed from its peers."""
_NO_NODE_LIMIT = 1 << 62


def box_shape(side: int) -> tuple[int, int]:
    """Rows and columns of a box.

    Raises:
        ValueError: if the side is none of 4, 6, 9 and 16.
    """
    if side not in BOX_SHAPES:
        raise ValueError(f"side must be one of {', '.join(map(str, BOX_SHAPES))}, got {side}")
    return BOX_SHAPES[side]


class Tables(NamedTuple):
    """Geometry of a side, for the kernels."""

    peers: NDArray[np.int32]
    """Shape [cell, peer]: cells that share a row, column or box."""
    units: NDArray[np.int32]
    """Shape [3 * side, side]: rows, columns, boxes."""
    unit_of: NDArray[np.int32]
    """Shape [cell, 3]: row, column and box (as indices into `units`) of a cell."""
    box: NDArray[np.int32]
    """Shape [2]: rows and columns of a box."""
    images: NDArray[np.int32]
    """Shape [symmetry, cell]: all geometric symmetries on 4x4 (128); empty on larger sides."""


@cache
def tables_of(side: int) -> Tables:
    """The tables of a side."""
    labels = units_of(side) + side * np.arange(3)
    units = np.stack([np.flatnonzero((labels == u).any(axis=1)) for u in range(3 * side)])
    images = _geometric_images(side) if side == 4 else np.zeros((0, side * side), np.int32)
    return Tables(
        peers_of(side).astype(np.int32),
        units.astype(np.int32),
        labels.astype(np.int32),
        np.array(box_shape(side), np.int32),
        images,
    )


def _geometric_images(side: int) -> NDArray[np.int32]:
    """All geometric symmetries as cell permutations, by brute force (4x4: 128)."""
    box_rows, _ = box_shape(side)
    orders = [
        np.array(order)
        for order in permutations(range(side))
        if all(
            len({r // box_rows for r in order[i : i + box_rows]}) == 1
            for i in range(0, side, box_rows)
        )
    ]
    grid = np.arange(side * side).reshape(side, side)
    images = [base[np.ix_(r, c)].ravel() for base in (grid, grid.T) for r in orders for c in orders]
    return np.stack(images).astype(np.int32)


# A search state is an int32 vector of candidate masks, bit v - 1 = value v, with _PLACED on
# propagated cells.


@njit(cache=True)
def write_candidates(board, state, queue, tables):
    """Write the candidates of every cell; returns the naked singles queued, -1 on a conflict."""
    cells = len(board)
    units, side = tables.units.shape
    full = (1 << side) - 1
    used = np.zeros(units, np.int32)
    for c in range(cells):
        if board[c] > 0:
            bit = 1 << (board[c] - 1)
            for k in range(3):
                u = tables.unit_of[c, k]
                if used[u] & bit:
                    return -1
                used[u] |= bit
    queued = 0
    for c in range(cells):
        if board[c] > 0:
            state[c] = (1 << (board[c] - 1)) | _PLACED
        else:
            seen = (
                used[tables.unit_of[c, 0]] | used[tables.unit_of[c, 1]] | used[tables.unit_of[c, 2]]
            )
            mask = full & ~seen
            if mask == 0:
                return -1
            state[c] = mask
            if mask & (mask - 1) == 0:
                queue[queued] = c
                queued += 1
    return queued


@njit(cache=True)
def _propagate(state, queue, queued, tables):
    """Naked singles, then hidden singles, until neither is left; False on a contradiction."""
    peers, units = tables.peers, tables.units
    num_units, side = units.shape
    full = (1 << side) - 1
    while True:
        while queued > 0:
            queued -= 1
            c = queue[queued]
            bit = state[c]
            if bit & _PLACED:
                continue
            state[c] = bit | _PLACED
            for k in range(peers.shape[1]):
                p = peers[c, k]
                mask = state[p]
                if mask & bit:
                    mask ^= bit
                    if mask == 0:
                        return False
                    state[p] = mask
                    if mask & (mask - 1) == 0:
                        queue[queued] = p
                        queued += 1
        for u in range(num_units):
            once = 0
            twice = 0
            placed = 0
            for k in range(side):
                mask = state[units[u, k]]
                twice |= once & mask
                once |= mask
                if mask & _PLACED:
                    placed |= mask
            if once & full != full:
                return False
            hidden = full & once & ~twice & ~placed
            if hidden:
                for k in range(side):
                    c = units[u, k]
                    mask = state[c]
                    found = mask & hidden
                    if found and found != mask:
                        if found & (found - 1):
                            return False
                        state[c] = found
                        queue[queued] = c
                        queued += 1
        if queued == 0:
            return True


@njit(cache=True)
def _branch_cell(state, offset):
    """An open cell with the fewest candidates, scanning from `offset`; -1 if none is open."""
    cells = len(state)
    best = -1
    fewest = 1 << 20
    c = offset
    for _ in range(cells):
        mask = state[c]
        if mask & _PLACED == 0:
            size = 0
            while mask and size < fewest:
                mask &= mask - 1
                size += 1
            if size < fewest:
                fewest = size
                best = c
                if size <= 2:
                    break
        c += 1
        if c == cells:
            c = 0
    return best


@njit(cache=True)
def _read_out(state, solution):
    for c in range(len(state)):
        mask = state[c] & ~_PLACED
        value = 0
        while mask:
            mask >>= 1
            value += 1
        solution[c] = value


@njit(cache=True)
def count_completions(states, queue, queued, branch, rest, limit, max_nodes, rng, solution, tables):
    """Count completions of states[0] up to `limit`; the first goes to `solution`.

    rng: one-element uint64 state for random cell and digit order, or empty for a fixed order.
    Returns -1 when `max_nodes` guesses did not settle the count.
    """
    shuffled = len(rng) > 0
    cells = states.shape[1]
    if not _propagate(states[0], queue, queued, tables):
        return 0
    count = 0
    nodes = 0
    depth = 0
    branch[0] = _branch_cell(states[0], draw_below(rng, cells) if shuffled else 0)
    if branch[0] < 0:
        _read_out(states[0], solution)
        return 1
    rest[0] = states[0, branch[0]]
    while depth >= 0:
        left = rest[depth]
        if left == 0:
            depth -= 1
            continue
        bit = left & -left
        if shuffled:
            size = 0
            mask = left
            while mask:
                mask &= mask - 1
                size += 1
            for _ in range(draw_below(rng, size)):
                left &= left - 1
            bit = left & -left
        rest[depth] ^= bit
        nodes += 1
        if nodes > max_nodes:
            return -1
        c = branch[depth]
        child = states[depth + 1]
        child[:] = states[depth]
        child[c] = bit
        queue[0] = c
        if not _propagate(child, queue, 1, tables):
            continue
        nxt = _branch_cell(child, draw_below(rng, cells) if shuffled else 0)
        if nxt < 0:
            if count == 0:
                _read_out(child, solution)
            count += 1
            if count >= limit:
                return count
        else:
            depth += 1
            branch[depth] = nxt
            rest[depth] = child[nxt]
    return count


@njit(cache=True)
def solve_batch(boards, limit, tables):
    """(solutions of every board, counted up to `limit`; the first one of each)."""
    num, cells = boards.shape
    counts = np.zeros(num, np.int64)
    solutions = np.zeros((num, cells), np.int8)
    states = np.empty((cells + 1, cells), np.int32)
    queue = np.empty(4 * cells, np.int32)
    branch = np.empty(cells + 1, np.int32)
    rest = np.empty(cells + 1, np.int32)
    fixed = np.empty(0, np.uint64)
    for i in range(num):
        queued = write_candidates(boards[i], states[0], queue, tables)
        if queued >= 0 and limit > 0:
            counts[i] = count_completions(
                states,
                queue,
                queued,
                branch,
                rest,
                limit,
                _NO_NODE_LIMIT,
                fixed,
                solutions[i],
                tables,
            )
    return counts, solutions


@njit(cache=True)
def valid_completion(instances, solutions, tables):
    """Which solutions are full, free of conflicts and keep the instance."""
    num, cells = instances.shape
    num_units, side = tables.units.shape
    good = np.ones(num, np.bool_)
    for i in range(num):
        for c in range(cells):
            if instances[i, c] != 0 and instances[i, c] != solutions[i, c]:
                good[i] = False
        for u in range(num_units):
            seen = 0
            for k in range(side):
                value = solutions[i, tables.units[u, k]]
                if value > 0:
                    seen |= 1 << (value - 1)
            if seen != (1 << side) - 1:
                good[i] = False
    return good
