"""Numba kernels that make N-Queens boards: random solutions, splits, seeded instances.

A board here is its *columns*: for each row the column of its queen, -1 = none. Sets of solutions
are bitsets over the enumeration, 64 to a word. `plan_envs.queens.instances` hands over arrays to
fill and a random stream; each row depends on its own splitmix64 state alone.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import GAMMA, draw_below, split_of_word
from plan_envs.instances import mix
from plan_envs.queens.search import images


@njit(cache=True)
def random_solution(n, state, board):
    """A solution by local search from random permutations (Sosic and Gu 1990).

    Swaps of two rows' columns that lower the number of attacking pairs, until there is none or the
    search is stuck and starts again.
    """
    ones = np.empty(2 * n - 1, np.int64)
    others = np.empty(2 * n - 1, np.int64)
    while True:
        for row in range(n):
            board[row] = row
        for row in range(n - 1, 0, -1):
            k = draw_below(state, row + 1)
            board[row], board[k] = board[k], board[row]
        ones[:] = 0
        others[:] = 0
        for row in range(n):
            ones[board[row] - row + n - 1] += 1
            others[board[row] + row] += 1
        better = True
        while better:
            better = False
            for one in range(n):
                for other in range(one + 1, n):
                    if ones[board[one] - one + n - 1] + others[board[one] + one] < 3:
                        if ones[board[other] - other + n - 1] + others[board[other] + other] < 3:
                            continue  # neither is attacked
                    gain = lift(ones, others, n, one, board[one])
                    gain += lift(ones, others, n, other, board[other])
                    loss = put(ones, others, n, one, board[other])
                    loss += put(ones, others, n, other, board[one])
                    if loss < gain:
                        board[one], board[other] = board[other], board[one]
                        better = True
                    else:
                        lift(ones, others, n, other, board[one])
                        lift(ones, others, n, one, board[other])
                        put(ones, others, n, one, board[one])
                        put(ones, others, n, other, board[other])
        pairs = 0
        for k in range(2 * n - 1):
            pairs += ones[k] > 1
            pairs += others[k] > 1
        if pairs == 0:
            return


@njit(cache=True)
def lift(ones, others, n, row, column):
    """Take a queen off its diagonals; the number of queens that it met there."""
    ones[column - row + n - 1] -= 1
    others[column + row] -= 1
    return ones[column - row + n - 1] + others[column + row]


@njit(cache=True)
def put(ones, others, n, row, column):
    """Put a queen on its diagonals; the number of queens that it meets there."""
    met = ones[column - row + n - 1] + others[column + row]
    ones[column - row + n - 1] += 1
    others[column + row] += 1
    return met


@njit(cache=True)
def draw_rows(n, count, state, order):
    """The first `count` of `order` become random rows, without repetition."""
    for row in range(n):
        order[row] = row
    for k in range(count):
        other = k + draw_below(state, n - k)
        order[k], order[other] = order[other], order[k]


@njit(cache=True)
def only_in(order, count, board, members, own):
    """Do all solutions that hold these queens of `board` belong to the set `own`?

    members[row, column] is the set of the solutions with a queen there.
    """
    for word in range(len(own)):
        bits = ~own[word]
        for k in range(count):
            bits &= members[order[k], board[order[k]], word]
        if bits != 0:
            return False
    return True


@njit(cache=True)
def split_of(board, n, cells, images_of):
    """Index into `SPLITS` of a board, by a hash of its canonical image."""
    images(board, cells, images_of)
    word = np.uint64(n)
    for place in range(n * n):
        if images_of[0, place] > 0:
            word = mix(word ^ np.uint64(place + 1)) + GAMMA
    return split_of_word(mix(word))


@njit(cache=True)
def generate(instances, solutions, start, stop, stream, terms, n, pool, own, members, cells):
    """Fill rows start..stop - 1; the first row without an instance after all attempts, or -1.

    `pool`: the solutions to draw from as columns, empty = search for random ones. With `own` (a
    set of solutions) an instance counts when all its completions lie there; otherwise by its share,
    and under `by_classes` its solution's share too. The number of givens is drawn first; after
    `attempts` failures it is drawn again. `terms` = (share of the split, (fewest, most) givens,
    by_classes, attempts).
    """
    split, given, by_classes, attempts = terms
    state = np.zeros(1, np.uint64)
    board = np.empty(n, np.int64)
    order = np.empty(n, np.int64)
    drawn = np.zeros((1, n * n), np.int8)
    scratch = np.zeros((1, n * n), np.int8)
    tries = 1 if len(own) else 40
    for i in range(start, stop):
        state[0] = mix(stream + mix(np.uint64(i) + GAMMA))
        found = False
        for _ in range(200):
            count = given[0] + draw_below(state, given[1] - given[0] + 1)
            for _ in range(attempts):
                if len(pool):
                    board[:] = pool[draw_below(state, len(pool))]
                else:
                    random_solution(n, state, board)
                    if by_classes:
                        drawn[:] = 0
                        for row in range(n):
                            drawn[0, row * n + board[row]] = 1
                        if split_of(drawn, n, cells, scratch) != split:
                            continue
                for _ in range(tries):
                    draw_rows(n, count, state, order)
                    if len(own):
                        found = only_in(order, count, board, members, own)
                    else:
                        drawn[:] = 0
                        for k in range(count):
                            drawn[0, order[k] * n + board[order[k]]] = 1
                        found = split_of(drawn, n, cells, scratch) == split
                    if found:
                        break
                if found:
                    break
            if found:
                for k in range(count):
                    instances[i, order[k] * n + board[order[k]]] = 1
                for row in range(n):
                    solutions[i, row * n + board[row]] = 1
                break
        if not found:
            return i
    return -1
