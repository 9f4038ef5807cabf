"""Numba kernels that make mazes: random walls, a bound that drops hopeless patterns, the split.

`plan_envs.maze.instances` hands over arrays to fill and a random stream; each maze depends on its
own splitmix64 key alone. Sets of cells are bits of one 64-bit word a row, with a frame of zeros.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import GAMMA, below, copy_bytes, popcount, split_of_word
from plan_envs.instances import mix
from plan_envs.maze import kernels

MAX_PATTERNS: Final = 1 << 18
"""Wall patterns tried for one maze: half a second at 30x30."""
_PATIENCE: Final = 64
"""Wall patterns after which each one is tried with one more pair of start and goal."""


@njit(cache=True)
def _word(key, counter):
    """Output number `counter` of splitmix64 from the state `key`."""
    return mix(key + np.uint64(counter + 1) * GAMMA)


@njit(cache=True)
def _draw_walls(key, counter, share, free):
    """Free cells as bits, rows 1..size of `free`; each a wall with the share, in steps of 2**-16.

    A bit that goes through the binary digits of p from the last to the first, ORed with a random
    bit at a 1 and ANDed at a 0, ends as 1 with probability p.
    """
    size = len(free) - 2
    digits = np.int64(share * 65536.0)
    walls = np.zeros(size, np.uint64)
    for digit in range(16):
        either = (digits >> digit) & 1
        for row in range(size):
            word = _word(key, counter + digit * size + row)
            walls[row] = walls[row] | word if either else walls[row] & word
    row_bits = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - size)
    free[:] = 0
    for row in range(size):
        free[row + 1] = ~walls[row] & row_bits


@njit(cache=True)
def _may_fit(free, edits, rows):
    """Whether some component may hold a pair of cells `edits` apart; never wrongly False.

    A component holds none if all its cells are less than edits / 2 from one of them: from a root
    near the middle of the maze, or from the middle of a path between two far cells. The rest of the
    free cells holds none if it has no more than `edits` cells.
    """
    left, component, reached, other, front, spare = rows
    half, one = (edits + 1) // 2, np.uint64(1)
    _copy(free, left)
    for r in range(1, len(free) - 1):  # cells without neighbours are many, and never in a pair
        left[r] &= (free[r] << one) | (free[r] >> one) | free[r - 1] | free[r + 1]
    while _count(left) > edits:
        row, bit = _root(left)
        for r in range(len(front)):
            front[r] = bit if r == row else np.uint64(0)
        _copy(left, component)
        levels = _wave(left, front, spare, edits)
        if levels == edits:
            return True
        for r in range(len(left)):
            component[r] &= ~left[r]
        if levels < half:
            continue
        _keep_one(front)
        _copy(front, reached)
        far = _wave_within(component, front, other, spare, edits)
        if far >= edits:
            return True
        _keep_one(front)
        _wave_within(component, reached, other, spare, far // 2)
        _wave_within(component, front, other, spare, far - far // 2)
        for r in range(len(front)):
            front[r] &= reached[r]
        _keep_one(front)
        if _wave_within(component, front, other, spare, half) >= half:
            return True
    return False


@njit(cache=True)
def _copy(rows, target):
    """Copy rows; slices would take numba longer to compile than all the rest."""
    for row in range(len(rows)):
        target[row] = rows[row]


@njit(cache=True)
def _count(rows):
    """Number of bits set."""
    count = 0
    for word in rows:
        count += popcount(np.uint32(word)) + popcount(np.uint32(word >> np.uint64(32)))
    return count


@njit(cache=True)
def _root(left):
    """(row, bit) of a cell near the middle: rows from there outwards."""
    size = len(left) - 2
    for k in range(size):
        row = 1 + size // 2 + (k // 2 if k % 2 == 0 else -(k // 2 + 1))
        row = min(max(row, 1), size)
        if left[row]:
            right = left[row] >> np.uint64(size // 2) << np.uint64(size // 2)
            return row, _lowest(right if right else left[row])
    return 0, np.uint64(0)


@njit(cache=True)
def _lowest(word):
    """The lowest bit of a word, alone."""
    return word & (~word + np.uint64(1))


@njit(cache=True)
def _keep_one(front):
    """Leave one cell of a front."""
    found = False
    for row in range(len(front)):
        front[row] = np.uint64(0) if found else _lowest(front[row])
        found |= front[row] != 0


@njit(cache=True)
def _wave_within(component, front, left, spare, most):
    """`_wave` within a component, which stays as it is."""
    _copy(component, left)
    return _wave(left, front, spare, most)


@njit(cache=True)
def _wave(left, front, spare, most):
    """Flood `left` from a front, at most so many levels: their number.

    Rows move as words of bits, those of a frame stay 0. What was reached leaves `left`, the last
    level stays in `front`. Unsigned places let the loops run on vectors.
    """
    one, two = np.uint64(1), np.uint64(2)
    size = np.uint64(len(left) - 2)
    for row in range(size):
        left[row + one] &= ~front[row + one]
    levels = 0
    while levels < most:
        any_cell = np.uint64(0)
        for row in range(size):
            word = front[row + one]
            word = (word << one) | (word >> one) | front[row] | front[row + two]
            word &= left[row + one]
            spare[row + one] = word
            any_cell |= word
        if any_cell == 0:
            break
        levels += 1
        for row in range(size):
            word = spare[row + one]
            front[row + one] = word
            left[row + one] &= ~word
    return levels


@njit(cache=True)
def _spread(template, width, edits, space, reach):
    """Distances of all cells from a middle of their component; False if no pair can fit.

    The middle is that of a path between two far cells. Cells s and t of a component are at most
    reach[s] + reach[t] apart.
    """
    distance, queue = space
    copy_bytes(reach, 0, template, 0, 2 * len(template))
    possible = False
    for cell in range(len(template)):
        if reach[cell] != kernels.UNSEEN:
            continue
        num = kernels.flood(template, width, cell, distance, queue)
        num = kernels.flood(template, width, queue[num - 1], distance, queue)
        middle = queue[num - 1]
        for _ in range(distance[middle] // 2):
            for other in (middle + width, middle - 1, middle + 1, middle - width):
                if distance[other] == distance[middle] - 1:
                    middle = other
                    break
        num = kernels.flood(template, width, middle, distance, queue)
        for k in range(num):
            reach[queue[k]] = distance[queue[k]]
        possible |= 2 * distance[queue[num - 1]] >= edits
    return possible


@njit(cache=True)
def generate(instances, first, last, stream, split, path, walls):
    """Fill rows first..last - 1; -1, or the row for which no maze was found."""
    size = round(np.sqrt(instances.shape[1]))
    width = size + 2
    template, distance, queue = kernels.scratch(size)
    space = (distance, queue)
    reach = np.empty_like(template)
    cells = np.empty(size * size, np.int32)
    words = np.zeros((7, size + 2), np.uint64)
    free = words[0]
    rows = (words[1], words[2], words[3], words[4], words[5], words[6])
    shortest, longest = path[0] - 1, path[1] - 1
    for index in range(first, last):
        key = _word(stream, index)
        counter = 0
        found = False
        for attempt in range(MAX_PATTERNS):
            share = walls[0] + (walls[1] - walls[0]) * (_word(key, counter) >> np.uint64(11)) * (
                1.0 / 9007199254740992.0
            )
            _draw_walls(key, counter + 1, share, free)
            counter += 1 + 16 * size
            if not _may_fit(free, shortest, rows):
                continue
            num = 0
            template[:] = kernels.BLOCKED
            for row in range(size):
                for column in range(size):
                    if (free[row + 1] >> np.uint64(column)) & np.uint64(1):
                        template[(row + 1) * width + column + 1] = kernels.UNSEEN
                        cells[num] = row * size + column
                        num += 1
            if num < 2 or not _spread(template, width, shortest, space, reach):
                continue
            tries = (1 + attempt // _PATIENCE) * (1 if split == 0 else 8)
            for _ in range(tries):
                one = below(_word(key, counter), num)
                other = below(_word(key, counter + 1), num - 1)
                other += other >= one
                counter += 2
                start, goal = kernels.framed(cells[one], size), kernels.framed(cells[other], size)
                if reach[start] + reach[goal] < shortest:
                    continue
                kernels.flood(template, width, start, distance, queue)
                if not shortest <= distance[goal] <= longest:
                    continue
                maze = instances[index]
                maze[:] = kernels.WALL
                for k in range(num):
                    maze[cells[k]] = kernels.FREE
                maze[cells[one]], maze[cells[other]] = kernels.START, kernels.GOAL
                if split_of(maze, size) == split:
                    found = True
                    break
            if found:
                break
        if not found:
            return index
    return -1


@njit(cache=True)
def split_of(maze, size):
    """Index of the split of a maze: the least hash of its eight images, start and goal alike."""
    least = np.uint64(0xFFFFFFFFFFFFFFFF)
    end = size - 1
    for number in range(8):
        word = np.uint64(size)
        for row in range(size):
            for column in range(size):
                r = end - row if number & 1 else row
                c = end - column if number & 2 else column
                value = maze[c * size + r] if number & 4 else maze[r * size + c]
                word = (word ^ np.uint64(min(value, kernels.START))) * np.uint64(0x100000001B3)
        least = min(least, _word(word, 0))
    return split_of_word(least)
