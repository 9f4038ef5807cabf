"""Numba kernels that make Sudoku puzzles: random grids, digging, hashes that decide the splits.

`plan_envs.sudoku.instances` hands them arrays to fill and a random stream; each row depends on its
own splitmix64 state alone. Whether a puzzle stays unique, `plan_envs.sudoku.search` says.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import GAMMA, draw_below, split_of_word
from plan_envs.instances import mix
from plan_envs.sudoku.search import count_completions, write_candidates

_SPLIT_SALT = 15407
"""Chosen so that the few classes of small puzzles, too, share out near 8:1:1 (see `_share`)."""


@njit(cache=True)
def _shuffle(values, rng):
    for i in range(len(values) - 1, 0, -1):
        j = draw_below(rng, i + 1)
        values[i], values[j] = values[j], values[i]


@njit(cache=True)
def _random_grid(grid, states, queue, branch, rest, rng, tables):
    """A random solved grid: randomised search from the empty board, restarted when it gets lost.

    Uniform on 4x4; larger sides favour some classes of grids over others, mildly.
    """
    side = tables.units.shape[1]
    cells = len(grid)
    while True:
        grid[:] = 0
        if side == 4:
            _seed_uniform_4x4(grid, rng)
        queued = write_candidates(grid, states[0], queue, tables)
        if queued < 0:
            continue
        if (
            count_completions(states, queue, queued, branch, rest, 1, 20 * cells, rng, grid, tables)
            == 1
        ):
            break
    # Search favours some images of a grid over others; a random symmetry evens that out.
    cells_from, digits = _random_symmetry(rng, tables)
    _apply(grid, cells_from, digits)


@njit(cache=True)
def _random_symmetry(rng, tables):
    """A random symmetry: source cell of every cell, new digit of every digit (0 stays)."""
    side = tables.units.shape[1]
    box_rows, box_columns = tables.box[0], tables.box[1]
    rows = _random_order(side, box_rows, rng)
    columns = _random_order(side, box_columns, rng)
    digits = np.arange(side + 1)
    _shuffle(digits[1:], rng)
    transposed = box_rows == box_columns and draw_below(rng, 2) == 1
    source = np.empty(side * side, np.int64)
    for r in range(side):
        for c in range(side):
            plain = rows[r] * side + columns[c]
            source[r * side + c] = columns[c] * side + rows[r] if transposed else plain
    return source, digits


@njit(cache=True)
def _apply(board, source, digits):
    old = board.copy()
    for c in range(len(board)):
        board[c] = digits[old[source[c]]]


@njit(cache=True)
def _seed_uniform_4x4(grid, rng):
    """Fix box 1, draw the rest of rows and columns 1 and 2: 12 of 16 draws have one completion."""
    grid[0], grid[1], grid[4], grid[5] = 1, 2, 3, 4
    swap = draw_below(rng, 16)
    grid[2 + (swap & 1)], grid[3 - (swap & 1)] = 3, 4
    grid[6 + (swap >> 1 & 1)], grid[7 - (swap >> 1 & 1)] = 1, 2
    grid[8 + 4 * (swap >> 2 & 1)], grid[12 - 4 * (swap >> 2 & 1)] = 2, 4
    grid[9 + 4 * (swap >> 3)], grid[13 - 4 * (swap >> 3)] = 1, 3


@njit(cache=True)
def _random_order(side, height, rng):
    bands = np.arange(side // height)
    _shuffle(bands, rng)
    lines = np.empty(side, np.int64)
    inner = np.arange(height)
    for b in range(side // height):
        _shuffle(inner, rng)
        for k in range(height):
            lines[b * height + k] = bands[b] * height + inner[k]
    return lines


@njit(cache=True)
def _cycle_type(first, second):
    """Hash of the cycle lengths of the digit permutation first[i] -> second[i] (values 1..side)."""
    side = len(first)
    image = np.empty(side + 1, np.int64)
    for i in range(side):
        image[first[i]] = second[i]
    total = np.uint64(0)
    for start in range(1, side + 1):
        length = 0
        at = start
        while image[at] > 0:
            nxt = image[at]
            image[at] = 0
            at = nxt
            length += 1
        if length:
            total += mix(np.uint64(length) + np.uint64(0x51ED2701))
    return total


@njit(cache=True)
def _lines_invariant(grid, height):
    """Hash of a grid [side, side] that relabelling and row, band and column permutations keep.

    Relabelling conjugates the digit permutation of two rows, so its cycle type stays; sums over
    rows and bands forget their order. Pairs in one band and across two bands are hashed apart.
    """
    side = grid.shape[0]
    bands = side // height
    total = np.uint64(0)
    for a in range(bands):
        for b in range(a, bands):
            pairs = np.uint64(0)
            for i in range(a * height, (a + 1) * height):
                for j in range(b * height, (b + 1) * height):
                    if i < j:
                        pairs += mix(_cycle_type(grid[i], grid[j]))
            total += mix(pairs + np.uint64(1 if a == b else 2))
    return total


@njit(cache=True)
def _grid_invariant(solution, tables):
    side = tables.units.shape[1]
    grid = solution.reshape(side, side)
    rows = mix(_lines_invariant(grid, tables.box[0]))
    columns = mix(_lines_invariant(np.ascontiguousarray(grid.T), tables.box[1]))
    if tables.box[0] == tables.box[1]:
        return mix(rows + columns)
    return mix(rows + np.uint64(3) * columns)


@njit(cache=True)
def _canonical_hash(board, images):
    """Hash of the smallest image of a puzzle under `images` and relabelling of its digits."""
    cells = len(board)
    best = np.empty(cells, np.int8)
    image = np.empty(cells, np.int8)
    for s in range(images.shape[0]):
        label = np.zeros(32, np.int8)
        used = 0
        for i in range(cells):
            value = board[images[s, i]]
            if value > 0:
                if label[value] == 0:
                    used += 1
                    label[value] = used
                value = label[value]
            image[i] = value
        smaller = s == 0
        for i in range(cells):
            if s == 0 or image[i] != best[i]:
                smaller = s == 0 or image[i] < best[i]
                break
        if smaller:
            best[:] = image
    h = np.uint64(cells)
    for i in range(cells):
        h = mix(h + GAMMA + np.uint64(best[i]))
    return h


@njit(cache=True)
def _share(h):
    """Index into SPLITS of an invariant hash: 8 of 10, 1 of 10, 1 of 10."""
    return split_of_word(mix(h + np.uint64(_SPLIT_SALT)))


@njit(cache=True)
def shares(boards, tables):
    """Index into `SPLITS` of every board: of the grid, or on 4x4 of the puzzle."""
    slots = np.empty(boards.shape[0], np.int64)
    for i in range(boards.shape[0]):
        if tables.images.shape[0] > 0:
            slots[i] = _share(_canonical_hash(boards[i], tables.images))
        else:
            slots[i] = _share(_grid_invariant(boards[i], tables))
    return slots


@njit(cache=True)
def _forced(board, cell, tables):
    """The digit of `cell` follows from the other digits as a naked or hidden single."""
    units, side = tables.units, tables.units.shape[1]
    digit = board[cell]
    seen = 0
    for k in range(tables.peers.shape[1]):
        value = board[tables.peers[cell, k]]
        if value > 0:
            seen |= 1 << (value - 1)
    if seen | (1 << (digit - 1)) == (1 << side) - 1:
        return True
    for k in range(3):
        u = tables.unit_of[cell, k]
        elsewhere = False
        for j in range(side):
            other = units[u, j]
            if other != cell and board[other] == 0:
                blocked = False
                for m in range(tables.peers.shape[1]):
                    p = tables.peers[other, m]
                    if p != cell and board[p] == digit:
                        blocked = True
                        break
                if not blocked:
                    elsewhere = True
                    break
        if not elsewhere:
            return True
    return False


@njit(cache=True)
def _dig(board, target, order, states, queue, branch, rest, tables):
    """Erase digits in the given order while the puzzle stays unique; True at `target` givens.

    Erasing a digit keeps the solution unique unless one with another digit in its cell exists.
    """
    cells = len(board)
    givens = 0
    for c in range(cells):
        givens += board[c] > 0
    scratch = np.empty(cells, np.int8)
    fixed = np.empty(0, np.uint64)
    for k in range(cells):
        if givens == target:
            return True
        if givens - (cells - k) > target:
            return False
        c = order[k]
        digit = board[c]
        if not _forced(board, c, tables):
            board[c] = 0
            queued = write_candidates(board, states[0], queue, tables)
            # The cell is no naked single here, so it is not queued and another candidate is left.
            mask = states[0, c] & ~(1 << (digit - 1))
            states[0, c] = mask
            if mask & (mask - 1) == 0:
                queue[queued] = c
                queued += 1
            found = count_completions(
                states, queue, queued, branch, rest, 1, 20_000, fixed, scratch, tables
            )
            if found != 0:
                board[c] = digit
                continue
        board[c] = 0
        givens -= 1
    return givens == target


@njit(cache=True)
def generate(
    instances,
    solutions,
    start,
    stop,
    stream,
    share,
    low,
    high,
    unique,
    max_attempts,
    patterns,
    pattern_solutions,
    tables,
):
    """Fill rows start..stop - 1; returns the first row that ran out of attempts, or -1.

    patterns: puzzles of the split with their solutions, [pattern, cell], or none. Unique puzzles
    with up to three givens more than a pattern has are random images of one, plus random digits.
    """
    cells = instances.shape[1]
    by_puzzle = tables.images.shape[0] > 0
    reach = -1
    if unique and len(patterns) > 0:
        reach = (patterns[0] > 0).sum() + 3
    states = np.empty((cells + 1, cells), np.int32)
    queue = np.empty(4 * cells, np.int32)
    branch = np.empty(cells + 1, np.int32)
    rest = np.empty(cells + 1, np.int32)
    order = np.arange(cells)
    grid = np.empty(cells, np.int8)
    rng = np.empty(1, np.uint64)
    for i in range(start, stop):
        rng[0] = mix(stream + mix(np.uint64(i) + GAMMA))
        target = low + draw_below(rng, high - low + 1)
        order[:] = np.arange(cells)  # a row depends on its own stream alone
        done = False
        for attempt in range(max_attempts):
            if (
                by_puzzle and attempt % 500 == 499
            ):  # this split may lack puzzles with so many givens
                target = low + draw_below(rng, high - low + 1)
            _shuffle(order, rng)
            if target <= reach:
                pick = draw_below(rng, len(patterns))
                board = patterns[pick].copy()
                grid[:] = pattern_solutions[pick]
                _top_up(board, grid, target, order)
                source, digits = _random_symmetry(rng, tables)
                _apply(board, source, digits)
                _apply(grid, source, digits)
            else:
                # Rare low counts take many orders, and 9 of 10 grids belong to another split.
                if by_puzzle or attempt % 10 == 0:
                    _random_grid(grid, states, queue, branch, rest, rng, tables)
                while not by_puzzle and _share(_grid_invariant(grid, tables)) != share:
                    _random_grid(grid, states, queue, branch, rest, rng, tables)
                board = grid.copy()
                if not unique:
                    for k in range(cells - target):
                        board[order[k]] = 0
                elif not _dig(board, target, order, states, queue, branch, rest, tables):
                    continue
            if by_puzzle and _share(_canonical_hash(board, tables.images)) != share:
                continue
            instances[i] = board
            solutions[i] = grid
            done = True
            break
        if not done:
            return i
    return -1


@njit(cache=True)
def _top_up(board, grid, target, order):
    """Add digits of the solution in the given order until `target` are given."""
    givens = (board > 0).sum()
    for c in order:
        if givens == target:
            return
        if board[c] == 0:
            board[c] = grid[c]
            givens += 1
