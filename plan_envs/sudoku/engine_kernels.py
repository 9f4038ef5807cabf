"""Numba kernels of `plan_envs.sudoku.engine`: caches that an edit patches at its peers only.

The row of an environment (`plan_envs.compiled.packed_kernels`) has behind its legal edits the
number of free digits of each cell, and how many peers show each digit. Under fill edits and the
constraint mask the legal edits of a blank cell are its candidates, the free digits count these, and
the last part is absent.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled import packed_kernels as packed
from plan_envs.compiled.bits import borrowed, phi, popcount
from plan_envs.sudoku import kernels
from plan_envs.sudoku.geometry import peers_of

FILLED, VIOLATIONS, ZERO = range(packed.OWN, packed.OWN + 3)
SIDE, BOX_ROWS, EDITS, CONSTRAINT, TOKENS = range(packed.OWN + 3, packed.OWN + 8)
HEAD: Final = packed.OWN + 8
"""Integers of a row: three facts of the plan, the options of the domain, then their number."""
USUAL: Final = (9, kernels.FILL, True, 0)
"""The default rules of 9x9, which the kernels know as constants."""

PEERS: Final = np.zeros((4, 256, 39), np.uint8)
"""Peers of each cell for the sides 4, 6, 9 and 16."""
for _k, _side in enumerate((4, 6, 9, 16)):
    _table = peers_of(_side)
    PEERS[_k, : len(_table), : _table.shape[1]] = _table

show, fetch = packed.show_packed, packed.fetch_ready


@njit(cache=True, forceinline=True)
def offsets(at, side, tokens):
    """Where in `data` a row's instance, plan, legal edits, free digits and counts begin."""
    cells = side * side
    instance = 8 * (at + HEAD)
    mask = instance + 2 * cells
    free = mask + cells * (side + 2 * tokens) + tokens
    return instance, instance + cells, mask, free, free + cells


@njit(cache=True, forceinline=True)
def rules_of(head):
    """(side, edit set, constraint mask?, tokens codec?) of all rows."""
    return head[SIDE], head[EDITS], head[CONSTRAINT] == 1, head[TOKENS]


@njit(cache=True, forceinline=True)
def places(at, rules):
    """Where in `data` a row's instance, plan and legal edits begin, and where these end."""
    instance, plan, mask, free, _ = offsets(at, rules[0], rules[3])
    return instance, plan, mask, free


@njit(cache=True)
def load(head, data, at, peers, instance, plan):
    """Put one environment into a given state."""
    side = head[at + SIDE]
    constraint, tokens = head[at + CONSTRAINT] == 1, head[at + TOKENS] == 1
    rules = (side, head[at + BOX_ROWS], head[at + EDITS], constraint, tokens)
    cells = side * side
    bits = np.empty(cells, np.uint16)
    lines = np.empty((4, side), np.uint16)
    free = np.empty(cells, np.uint16)
    o_instance, o_plan, o_mask, o_free, o_counts = offsets(at, side, rules[4])
    data[o_instance:o_plan] = instance
    data[o_plan:o_mask] = plan
    filled, violations, zero = kernels.survey(plan, rules, peers, bits, lines, free)
    solved = filled == cells and violations == 0 and kernels.keeps_givens(instance, plan)
    kernels.write_mask(instance, plan, free, solved, rules, data[o_mask:o_free])
    if rules[2] == kernels.FILL and rules[3]:
        for cell in range(cells):
            data[o_free + cell] = popcount(free[cell]) if plan[cell] == 0 else 0
    else:
        counts = data[o_counts : o_counts + cells * side]
        kernels.tally(plan, peers, side, counts, data[o_free:o_counts])
    head[at + packed.STEPS] = 0
    head[at + packed.FINISHED] = 0
    head[at + FILLED] = filled
    head[at + VIOLATIONS] = violations
    head[at + ZERO] = zero


draw = packed.draw_ready(load)


@njit(cache=True, forceinline=True)
def num_peers(side):
    """Cells that share a row, column or box with a cell."""
    box_rows = 2 if side < 9 else 3 if side == 9 else 4
    return 2 * (side - 1) + (box_rows - 1) * (side // box_rows - 1)


@njit(cache=True, forceinline=True)
def fill_cell(head, data, at, side, tokens, cell, value):
    """A legal edit under fill edits and the constraint mask: peers lose a candidate, no more."""
    stride = np.uint64(side + 2 * tokens)
    _, o_plan, o_mask, o_free, _ = offsets(at, side, tokens)
    which = (side > 4) + (side > 6) + (side > 9)
    data[np.uint64(o_plan + cell)] = value
    first = np.uint64(o_mask + 2 * tokens) + np.uint64(cell) * stride
    for digit in range(np.uint64(side)):
        data[first + digit] = 0
    starved = 0
    digits, free = np.uint64(o_mask + 2 * tokens + value - 1), np.uint64(o_free)
    for k in range(num_peers(side)):
        peer = np.uint64(PEERS[which, np.uint64(cell), np.uint64(k)])
        lost = data[digits + peer * stride]
        left = data[free + peer] - lost
        data[digits + peer * stride] = 0
        data[free + peer] = left
        starved += lost & (left == 0)
    head[at + FILLED] += 1
    head[at + ZERO] += starved


@njit(cache=True)
def put(head, data, at, side, edits, constraint, tokens, cell, value):
    """`_put`, compiled once for 9x9 with its sizes as constants and once for the other sides."""
    head, data = borrowed(head), borrowed(data)
    if side == 9:
        _put(head, data, at, 9, edits, constraint, tokens, cell, value)
    else:
        _put(head, data, at, side, edits, constraint, tokens, cell, value)


@njit(cache=True, forceinline=True)
def _put(head, data, at, side, edits, constraint, tokens, cell, value):
    """A legal edit of any edit set under any mask; `value` 0 erases.

    The loops over the peers have no branches: which peers gain or lose a candidate is as good as
    random, and a processor that guesses wrong loses more than the whole loop takes.
    """
    stride = side + 2 * tokens
    o_instance, o_plan, o_mask, o_free, o_counts = offsets(at, side, tokens)
    o_digits = o_mask + 2 * tokens
    which = (side > 4) + (side > 6) + (side > 9)
    old = data[o_plan + cell]
    data[o_plan + cell] = value
    filled, violations, zero = head[at + FILLED], head[at + VIOLATIONS], head[at + ZERO]
    unfree = data[o_free + cell] == 0
    if old > 0:
        violations -= data[o_counts + cell * side + old - 1]
        filled -= 1
        gained = 0
        for k in range(num_peers(side)):
            peer = np.uint64(PEERS[which, cell, k])
            shown = data[np.uint64(o_plan) + peer]
            place = np.uint64(o_counts + old - 1) + peer * np.uint64(side)
            count = data[place] - 1
            data[place] = count
            free = data[np.uint64(o_free) + peer] + (count == 0)
            data[np.uint64(o_free) + peer] = free
            gained += (count == 0) & (free == 1) & (shown == 0)
            if constraint:
                may = (data[np.uint64(o_instance) + peer] == 0) & (shown != old)
                may &= (shown == 0) | (edits != kernels.FILL)
                place = np.uint64(o_digits + old - 1) + peer * np.uint64(stride)
                data[place] = may & (count == 0)
        zero -= gained
    else:
        zero -= unfree
    if value > 0:
        violations += data[o_counts + cell * side + value - 1]
        filled += 1
        lost = 0
        for k in range(num_peers(side)):
            peer = np.uint64(PEERS[which, cell, k])
            place = np.uint64(o_counts + value - 1) + peer * np.uint64(side)
            count = data[place]
            data[place] = count + 1
            free = data[np.uint64(o_free) + peer] - (count == 0)
            data[np.uint64(o_free) + peer] = free
            lost += (count == 0) & (free == 0) & (data[np.uint64(o_plan) + peer] == 0)
            if constraint:
                data[np.uint64(o_digits + value - 1) + peer * np.uint64(stride)] = 0
        zero += lost
    else:
        zero += unfree
    first = o_digits + cell * stride
    for digit in range(side):
        free = not constraint or data[o_counts + cell * side + digit] == 0
        data[first + digit] = free and edits != kernels.FILL and digit + 1 != value
    if edits == kernels.FULL:
        data[first - 1] = value > 0
        data[o_free - 1] = not (filled == side * side and violations == 0)
    head[at + FILLED], head[at + VIOLATIONS], head[at + ZERO] = filled, violations, zero


@njit(cache=True, forceinline=True)
def points(head, at):
    """Score of the plan."""
    return head[at + FILLED] - 2 * head[at + VIOLATIONS] - 5 * head[at + ZERO]


@njit(cache=True, forceinline=True)
def figures(head, data, at, rules):
    """(potential, score, violations, solved) of the plan."""
    score, cells = points(head, at), rules[0] * rules[0]
    solved = head[at + FILLED] == cells and head[at + VIOLATIONS] == 0
    return phi(score, cells), score, head[at + VIOLATIONS], solved


@njit(cache=True, forceinline=True)
def move(head, data, at, rules, action):
    """(ended, solved) of a legal action, carried out."""
    side, edits, constraint, tokens = rules
    cells = side * side
    cell, value = kernels.decode(action, (side, 0, edits, constraint, tokens == 1))
    if value == -2:  # STOP
        return True, False
    if edits == kernels.FILL and constraint:
        fill_cell(head, data, at, side, tokens, cell, value)
    else:
        put(head, data, at, side, edits, constraint, tokens, cell, value)
    filled, violations, zero = head[at + FILLED], head[at + VIOLATIONS], head[at + ZERO]
    solved = filled == cells and violations == 0
    ended = solved
    if edits == kernels.FILL:
        ended |= head[at + packed.ABSORB] == 1 and (zero > 0 or violations > 0)
        ended |= filled == cells or (constraint and zero == cells - filled)
    elif edits == kernels.OVERWRITE and constraint and not solved:
        _, _, o_mask, o_free, _ = offsets(at, side, tokens)
        ended = not data[o_mask:o_free].any()
    return ended, solved


@njit(cache=True)
def load_all(head, data, index, peers, instances, plans):
    """Put environments into given states and compute their caches."""
    packed.load_rows(load, head, data, index, peers, instances, plans)


@njit(cache=True)
def draw_all(head, data, index, resets):
    """Reset environments to instances of the pool."""
    packed.draw_rows(draw, rules_of(head), head, data, index, resets)


@njit(cache=True)
def step_one(head, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    side, edits, constraint, tokens = rules_of(head)
    if side == 9 and edits == kernels.FILL and constraint and tokens == 0:
        return packed.step_single(places, move, figures, USUAL, head, action)
    return packed.step_single(places, move, figures, rules_of(head), head, action)


@njit(cache=True, nogil=True)
def step_all(head, data, call):
    """Step every environment; `packed_kernels.step_rows` says what is in `call`."""
    rules = rules_of(head)
    return packed.step_rows(places, move, figures, draw, show, fetch, rules, head, data, call)


@njit(cache=True, nogil=True)
def step_all_9x9(head, data, call):
    """`step_all` for the default rules of 9x9, which the compiler then sees as constants."""
    return packed.step_rows(places, move, figures, draw, show, fetch, USUAL, head, data, call)


@njit(cache=True, nogil=True)
def observe_all(head, data, resets, out):
    """Write the current states of all environments into `out`, with no reward and no flags."""
    packed.observe_rows(places, figures, show, rules_of(head), head, data, resets, out)


sample_all = packed.sample_all
