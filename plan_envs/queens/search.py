"""Exact N-Queens search in compiled code: counting of completions, canonical images.

A board here is its *columns*: for each row the column of its queen, -1 = none.
`plan_envs.queens.instances` calls the kernels.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import lowest, popcount
from plan_envs.queens.kernels import free_squares


@njit(cache=True)
def complete(columns, n, limit, found):
    """Number of completions of a board, at most `limit`; the first ones go into `found`.

    Depth-first, the row with the fewest free squares next (rows in order on ties), columns
    ascending. Attacking givens have no completion.
    """
    rows, column_bits, diagonals, antidiagonals = 0, 0, 0, 0
    for row in range(n):
        column = columns[row]
        if column >= 0:
            if (free_squares(row, n, column_bits, diagonals, antidiagonals) >> column) & 1 == 0:
                return 0
            rows |= 1 << row
            column_bits |= 1 << column
            diagonals |= 1 << (column - row + n - 1)
            antidiagonals |= 1 << (row + column)
    board = columns.copy()
    open_bits = np.zeros(n + 1, np.int64)
    chosen = np.zeros(n + 1, np.int64)
    count, depth = 0, 0
    descend = True
    while depth >= 0:
        if descend:
            best, fewest = -1, n + 1
            for row in range(n):
                if (rows >> row) & 1 == 0:
                    free = popcount(free_squares(row, n, column_bits, diagonals, antidiagonals))
                    if free < fewest:
                        best, fewest = row, free
            if best < 0:
                if count < len(found):
                    found[count] = board
                count += 1
                if count >= limit:
                    return count
                depth -= 1
                descend = False
                continue
            chosen[depth] = best
            open_bits[depth] = free_squares(best, n, column_bits, diagonals, antidiagonals)
        row = chosen[depth]
        if not descend:  # take back the queen of this depth
            column = board[row]
            board[row] = -1
            rows &= ~(1 << row)
            column_bits &= ~(1 << column)
            diagonals &= ~(1 << (column - row + n - 1))
            antidiagonals &= ~(1 << (row + column))
        if open_bits[depth] == 0:
            depth -= 1
            descend = False
            continue
        column = lowest(open_bits[depth])
        open_bits[depth] &= open_bits[depth] - 1
        board[row] = column
        rows |= 1 << row
        column_bits |= 1 << column
        diagonals |= 1 << (column - row + n - 1)
        antidiagonals |= 1 << (row + column)
        depth += 1
        descend = True
    return count


@njit(cache=True)
def complete_all(boards, n, limit, counts):
    """Completions of every board counted up to `limit`."""
    found = np.empty((0, n), np.int64)
    for i in range(len(boards)):
        counts[i] = complete(boards[i], n, limit, found)


@njit(cache=True)
def images(boards, cells, canonical):
    """The lexicographically smallest of the images boards[:, cells[k]] of every board."""
    size = boards.shape[1]
    for i in range(len(boards)):
        best = 0
        for k in range(1, len(cells)):
            for place in range(size):
                one, other = boards[i, cells[k, place]], boards[i, cells[best, place]]
                if one != other:
                    if one < other:
                        best = k
                    break
        for place in range(size):
            canonical[i, place] = boards[i, cells[best, place]]
