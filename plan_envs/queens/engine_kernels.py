"""Numba kernels of `plan_envs.queens.engine`: an edit changes four bits.

The row of an environment (`plan_envs.compiled.packed_kernels`) has the lines that hold a queen
among its integers, and behind its legal edits the queens of each line (unused under fill edits and
the constraint mask, where no two queens share one). From the lines, `refresh` computes all legal
squares, eight bytes at a time.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled import packed_kernels as packed
from plan_envs.compiled.bits import copy_bytes, phi
from plan_envs.queens import kernels

QUEENS, VIOLATIONS, STARVED, ROWS, COLUMNS, DIAGONALS, ANTIDIAGONALS, KEEPS, LEFT = range(
    packed.OWN, packed.OWN + 9
)
SIDE, FULL, CONSTRAINT = range(packed.OWN + 9, packed.OWN + 12)
HEAD: Final = packed.OWN + 12
"""Integers of a row: facts of the plan, the options of the domain, then their number."""

BYTES: Final = (np.arange(256, dtype=np.uint64)[:, None] >> np.arange(8, dtype=np.uint64) & 1) @ (
    np.uint64(1) << np.arange(0, 64, 8, dtype=np.uint64)
)
"""BYTES[bits]: eight bits as eight bytes 0 or 1, the lowest first."""

show, fetch = packed.show_packed, packed.fetch_nothing


@njit(cache=True, forceinline=True)
def offsets(at, n, full):
    """Where in `data` a row's instance, plan, legal edits and counts begin."""
    cells = n * n
    instance = 8 * (at + HEAD)
    mask = instance + 2 * cells
    return instance, instance + cells, mask, mask + cells + full * (cells + 1)


@njit(cache=True, forceinline=True)
def rules_of(head):
    """(n, full edits?, constraint mask?) of all rows."""
    return head[SIDE], head[FULL] == 1, head[CONSTRAINT] == 1


@njit(cache=True, forceinline=True)
def places(at, rules):
    """Where in `data` a row's instance, plan and legal edits begin, and where these end."""
    return offsets(at, rules[0], rules[1])


@njit(cache=True)
def load(head, data, at, tables, instance, plan):
    """Put one environment into a given state."""
    n, full, constraint = head[at + SIDE], head[at + FULL] == 1, head[at + CONSTRAINT] == 1
    o_instance, o_plan, o_mask, o_counts = offsets(at, n, full)
    data[o_instance:o_plan] = instance
    data[o_plan:o_mask] = plan
    facts = kernels.survey(plan, n, data[o_counts : o_counts + 6 * n])
    kernels.write_mask(instance, plan, n, full, constraint, facts, data[o_mask:o_counts])
    queens, pairs, rows, columns, diagonals, antidiagonals = facts
    head[at + packed.STEPS] = 0
    head[at + packed.FINISHED] = 0
    head[at + QUEENS] = queens
    head[at + VIOLATIONS] = pairs
    head[at + STARVED] = kernels.starved_rows(n, rows, columns, diagonals, antidiagonals)
    head[at + ROWS] = rows
    head[at + COLUMNS] = columns
    head[at + DIAGONALS] = diagonals
    head[at + ANTIDIAGONALS] = antidiagonals
    head[at + KEEPS] = kernels.keeps_givens(instance, plan)
    head[at + LEFT] = data[o_mask : o_mask + n * n].sum()


draw = packed.draw_ready(load)


@njit(cache=True, forceinline=True)
def refresh(head, data, at, n, constraint, o_mask):
    """Count starved rows; under the constraint mask also write the legal squares.

    Whole blocks of eight squares are written, over the beginning of the next row where n is no
    multiple of eight; that row is written afterwards, and the last one square by square.
    """
    rows, columns = head[at + ROWS], head[at + COLUMNS]
    diagonals, antidiagonals = head[at + DIAGONALS], head[at + ANTIDIAGONALS]
    starved, left = 0, 0
    for row in range(n):
        closed = (rows >> row) & 1
        bits = kernels.free_squares(row, n, columns, diagonals, antidiagonals) & (closed - 1)
        starved += (bits | closed) == 0
        left |= bits
        if constraint:
            first = o_mask + row * n
            if row < n - 1 or n % 8 == 0:
                for block in range(0, n, 8):
                    copy_bytes(data, first + block, BYTES, 8 * ((bits >> block) & 255), 8)
            else:
                for column in range(n):
                    data[first + column] = (bits >> column) & 1
    head[at + STARVED] = starved
    if constraint:
        head[at + LEFT] = left


@njit(cache=True, forceinline=True)
def put(head, data, at, n, full, constraint, cell, value):
    """A legal edit: place (`value` 1) or remove (0) a queen."""
    cells = n * n
    o_instance, o_plan, o_mask, o_counts = offsets(at, n, full)
    row = cell // n
    column = cell - row * n
    one, other = column - row + n - 1, row + column
    data[o_plan + cell] = value
    head[at + QUEENS] += 2 * value - 1
    if constraint and not full:
        head[at + ROWS] |= np.int64(1) << row
        head[at + COLUMNS] |= np.int64(1) << column
        head[at + DIAGONALS] |= np.int64(1) << one
        head[at + ANTIDIAGONALS] |= np.int64(1) << other
    else:
        change = np.int64(2 * value - 1)
        met = count(head, data, at + ROWS, row, o_counts + row, change)
        met += count(head, data, at + COLUMNS, column, o_counts + n + column, change)
        met += count(head, data, at + DIAGONALS, one, o_counts + 2 * n + one, change)
        met += count(head, data, at + ANTIDIAGONALS, other, o_counts + 4 * n - 1 + other, change)
        head[at + VIOLATIONS] += change * met
    refresh(head, data, at, n, constraint, o_mask)
    if constraint and head[at + KEEPS] == 0:
        head[at + LEFT] = 0
        for place in range(cells):
            data[o_mask + place] &= 1 - data[o_instance + place]
            head[at + LEFT] += data[o_mask + place]
    if not constraint:
        data[o_mask + cell] = 1 - value
        head[at + LEFT] -= 2 * value - 1
    if full:
        data[o_mask + cells + cell] = value
        data[o_mask + 2 * cells] = not is_solved(head, at, n)


@njit(cache=True, forceinline=True)
def count(head, data, line, bit, place, change):
    """One queen more or fewer in a line; the number of others in it."""
    others = data[place] + min(change, 0)
    now = data[place] + change
    data[place] = now
    head[line] = (head[line] & ~(np.int64(1) << bit)) | (np.int64(now > 0) << bit)
    return others


@njit(cache=True, forceinline=True)
def is_solved(head, at, n):
    """Is the plan a valid completion?"""
    return head[at + QUEENS] == n and head[at + VIOLATIONS] == 0 and head[at + KEEPS] == 1


@njit(cache=True, forceinline=True)
def points(head, at):
    """Score of the plan."""
    return head[at + QUEENS] - 2 * head[at + VIOLATIONS] - 5 * head[at + STARVED]


@njit(cache=True, forceinline=True)
def figures(head, data, at, rules):
    """(potential, score, violations, solved) of the plan."""
    n, score = rules[0], points(head, at)
    return phi(score, n), score, head[at + VIOLATIONS], is_solved(head, at, n)


@njit(cache=True, forceinline=True)
def move(head, data, at, rules, action):
    """(ended, solved) of a legal action, carried out."""
    n, full, constraint = rules
    cells = n * n
    if action == 2 * cells:  # STOP
        return True, False
    value = action < cells
    cell = action if value else action - cells
    put(head, data, at, n, full, constraint, cell, np.int64(value))
    solved = is_solved(head, at, n)
    ended = solved
    if not full:
        lost = head[at + STARVED] > 0 or head[at + VIOLATIONS] > 0
        ended |= (head[at + packed.ABSORB] == 1 and lost) or head[at + LEFT] == 0
    return ended, solved


@njit(cache=True)
def load_all(head, data, index, tables, instances, plans):
    """Put environments into given states and compute their caches."""
    packed.load_rows(load, head, data, index, tables, instances, plans)


@njit(cache=True)
def draw_all(head, data, index, resets):
    """Reset environments to instances of the pool."""
    packed.draw_rows(draw, rules_of(head), head, data, index, resets)


@njit(cache=True)
def step_one(head, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    n, full, constraint = rules_of(head)
    if constraint and not full:
        return packed.step_single(places, move, figures, (n, False, True), head, action)
    return packed.step_single(places, move, figures, (n, full, constraint), head, action)


@njit(cache=True, nogil=True)
def step_all(head, data, call):
    """Step every environment; `packed_kernels.step_rows` says what is in `call`."""
    rules = rules_of(head)
    return packed.step_rows(places, move, figures, draw, show, fetch, rules, head, data, call)


@njit(cache=True, nogil=True)
def step_all_8x8(head, data, call):
    """`step_all` for the default rules of 8x8, which the compiler then sees as constants."""
    return packed.step_rows(
        places, move, figures, draw, show, fetch, (8, False, True), head, data, call
    )


@njit(cache=True, nogil=True)
def observe_all(head, data, resets, out):
    """Write the current states of all environments into `out`, with no reward and no flags."""
    packed.observe_rows(places, figures, show, rules_of(head), head, data, resets, out)


sample_all = packed.sample_all
