"""Numba kernels of `plan_envs.sudoku_engine`: one step of one environment or of all of them.

Everything that an environment knows lies in one row, so that a step of a single environment passes
one array: HEAD integers (counters, then the engine's options), then as bytes its instance, plan,
legal edits, number of free digits of each cell, and how many peers show each digit. The rows of all
environments are one flat vector, `head` as int64 and `data` as int8; `at` is where a row begins in
`head`. Under fill edits and the constraint mask the legal edits of a blank cell are its candidates,
the free digits count these, and the last part is absent.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.kernels import (
    below,
    borrowed,
    copy_bytes,
    count_ones,
    folded,
    next_word,
    phi,
    popcount,
    prefetch,
)
from plan_envs.sudoku_geometry import peers_of
from plan_envs.sudoku_kernels import (
    FILL,
    FULL,
    OVERWRITE,
    decode,
    keeps_givens,
    survey,
    tally,
    write_mask,
)
from plan_envs.threads import raise_flag

STREAM, SAMPLER, STEPS, FINISHED, FILLED, VIOLATIONS, ZERO = range(7)
SIDE, BOX_ROWS, EDITS, CONSTRAINT, TOKENS, LIMIT, SHAPED, ABSORB, REFUSE, ACTIONS, WIDTH = range(
    7, 18
)
HEAD: Final = 18
"""Integers at the beginning of a row, then their number."""

PEERS: Final = np.zeros((4, 256, 39), np.uint8)
"""Peers of each cell for the sides 4, 6, 9 and 16."""
for _k, _side in enumerate((4, 6, 9, 16)):
    _table = peers_of(_side)
    PEERS[_k, : len(_table), : _table.shape[1]] = _table


@njit(cache=True, forceinline=True)
def loans(out):
    """The arrays of `StepArrays.arrays()`, borrowed."""
    return (
        borrowed(out[0]),
        borrowed(out[1]),
        borrowed(out[2]),
        borrowed(out[3]),
        borrowed(out[4]),
        borrowed(out[5]),
        borrowed(out[6]),
        borrowed(out[7]),
        borrowed(out[8]),
        borrowed(out[9]),
    )


@njit(cache=True, forceinline=True)
def offsets(at, side, tokens):
    """Where in `data` a row's instance, plan, legal edits, free digits and counts begin."""
    cells = side * side
    instance = 8 * (at + HEAD)
    mask = instance + 2 * cells
    free = mask + cells * (side + 2 * tokens) + tokens
    return instance, instance + cells, mask, free, free + cells


@njit(cache=True)
def load_all(head, data, index, peers, instances, plans):
    """Put environments into given states and compute their caches."""
    for i in range(len(index)):
        load(head, data, index[i] * head[WIDTH], peers, instances[i], plans[i])


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
    filled, violations, zero = survey(plan, rules, peers, bits, lines, free)
    solved = filled == cells and violations == 0 and keeps_givens(instance, plan)
    write_mask(instance, plan, free, solved, rules, data[o_mask:o_free])
    if rules[2] == FILL and rules[3]:
        for cell in range(cells):
            data[o_free + cell] = popcount(free[cell]) if plan[cell] == 0 else 0
    else:
        counts = data[o_counts : o_counts + cells * side]
        tally(plan, peers, side, counts, data[o_free:o_counts])
    head[at + STEPS] = 0
    head[at + FINISHED] = 0
    head[at + FILLED] = filled
    head[at + VIOLATIONS] = violations
    head[at + ZERO] = zero


@njit(cache=True, forceinline=True)
def draw(head, data, at, peers, pool, pool_head):
    """Reset one environment to an instance of the pool; `pool_head` has its ready rows, if any."""
    chosen = below(next_word(head, at + STREAM), len(pool))
    width = head[at + WIDTH]
    if len(pool_head):
        first = chosen * width + STEPS
        copy_bytes(head, 8 * (at + STEPS), pool_head, 8 * first, 8 * (width - STEPS))
    else:
        load(head, data, at, peers, pool[chosen], pool[chosen])


@njit(cache=True)
def draw_all(head, data, index, peers, pool, pool_head):
    """Reset environments to instances of the pool."""
    for i in range(len(index)):
        draw(head, data, index[i] * head[WIDTH], peers, pool, pool_head)


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
                may &= (shown == 0) | (edits != FILL)
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
        data[first + digit] = free and edits != FILL and digit + 1 != value
    if edits == FULL:
        data[first - 1] = value > 0
        data[o_free - 1] = not (filled == side * side and violations == 0)
    head[at + FILLED], head[at + VIOLATIONS], head[at + ZERO] = filled, violations, zero


@njit(cache=True, forceinline=True)
def points(head, at):
    """Score of the plan."""
    return head[at + FILLED] - 2 * head[at + VIOLATIONS] - 5 * head[at + ZERO]


@njit(cache=True, forceinline=True)
def take(head, data, at, side, edits, constraint, tokens, gamma, action):
    """One action that is in range: (reward, terminated, truncated, illegal)."""
    cells = side * side
    before = phi(points(head, at), cells)
    _, _, o_mask, o_free, _ = offsets(at, side, tokens)
    illegal = data[o_mask + action] == 0
    ended = False
    solved = False
    if not illegal:
        cell, value = decode(action, (side, 0, edits, constraint, tokens == 1))
        if value == -2:  # STOP
            ended = True
        else:
            if edits == FILL and constraint:
                fill_cell(head, data, at, side, tokens, cell, value)
            else:
                put(head, data, at, side, edits, constraint, tokens, cell, value)
            filled, violations, zero = head[at + FILLED], head[at + VIOLATIONS], head[at + ZERO]
            solved = filled == cells and violations == 0
            ended = solved
            if edits == FILL:
                ended |= head[ABSORB] == 1 and (zero > 0 or violations > 0)
                ended |= filled == cells or (constraint and zero == cells - filled)
            elif edits == OVERWRITE and constraint and not solved:
                ended = not data[o_mask:o_free].any()
    after = phi(points(head, at), cells)
    worth = folded(solved, ended, before, after, gamma, head[SHAPED] == 1)
    head[at + STEPS] += 1
    timeout = 0 < head[LIMIT] <= head[at + STEPS]
    head[at + FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(cache=True)
def step_one(head, gamma, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    head = borrowed(head)
    data = borrowed(head.view(np.int8))
    side, tokens = head[SIDE], head[TOKENS]
    reason = 0
    if head[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < head[ACTIONS]:
        reason = OUT_OF_RANGE
    elif head[REFUSE] == 1 and data[offsets(0, side, tokens)[2] + action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    edits, constraint = head[EDITS], head[CONSTRAINT] == 1
    worth, ended, timeout, illegal = take(
        head, data, 0, side, edits, constraint, tokens, gamma, action
    )
    solved = head[FILLED] == side * side and head[VIOLATIONS] == 0
    code = 1 if illegal else 0
    return worth, ended, timeout, code, float(points(head, 0)), head[VIOLATIONS], solved


@njit(cache=True, forceinline=True)
def observe(head, data, at, side, tokens, instance, plan, mask, score, pairs, solved, env):
    """Write the current state of an environment into row `env` of the arrays."""
    o_instance, o_plan, o_mask, o_free, _ = offsets(at, side, tokens)
    cells, num_actions = o_plan - o_instance, o_free - o_mask
    copy_bytes(instance, env * cells, data, o_instance, cells)
    copy_bytes(plan, env * cells, data, o_plan, cells)
    copy_bytes(mask, env * num_actions, data, o_mask, num_actions)
    score[env] = points(head, at)
    pairs[env] = head[at + VIOLATIONS]
    solved[env] = head[at + FILLED] == side * side and head[at + VIOLATIONS] == 0


@njit(cache=True, nogil=True)
def observe_share(flags, head, data, out, first, stop):
    """Write the current states of environments into `out`: no reward, no flags."""
    raise_flag(flags)
    head, data = borrowed(head), borrowed(data)
    instance, plan, mask, reward, ended, timeout, score, pairs, solved, illegal = loans(out)
    width, side, tokens = head[WIDTH], head[SIDE], head[TOKENS]
    for env in range(first, stop):
        at = env * width
        observe(head, data, at, side, tokens, instance, plan, mask, score, pairs, solved, env)
        reward[env] = 0.0
        ended[env] = timeout[env] = illegal[env] = False


@njit(cache=True)
def refuse(head, data, actions, autoreset):
    """(environment, reason) of the first action that must not be taken; reason 0 when all may."""
    num_actions = head[ACTIONS]
    outside = 0
    for env in range(len(actions)):
        outside |= not 0 <= actions[env] < num_actions
    if outside == 0 and autoreset != NEVER and not head[REFUSE]:
        return 0, 0
    for env in range(len(actions)):
        at = env * head[WIDTH]
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            continue
        if head[at + FINISHED] and autoreset == NEVER:
            return env, REASON_FINISHED
        if not 0 <= actions[env] < num_actions:
            return env, OUT_OF_RANGE
        o_mask = offsets(at, head[SIDE], head[TOKENS])[2]
        if head[REFUSE] and data[o_mask + actions[env]] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(cache=True, nogil=True)
def step_share(
    flags,
    head,
    data,
    gamma,
    peers,
    pool,
    pool_head,
    actions,
    autoreset,
    out,
    index,
    finals,
    first,
    stop,
):
    """Step environments first to stop - 1, none refuses: (first, stop) of their final states."""
    raise_flag(flags)
    rules = (head[SIDE], head[EDITS], head[CONSTRAINT] == 1, head[TOKENS])
    return step_rows(
        head,
        data,
        rules,
        gamma,
        peers,
        pool,
        pool_head,
        actions,
        autoreset,
        out,
        index,
        finals,
        first,
        stop,
    )


@njit(cache=True, nogil=True)
def step_share_9x9(
    flags,
    head,
    data,
    gamma,
    peers,
    pool,
    pool_head,
    actions,
    autoreset,
    out,
    index,
    finals,
    first,
    stop,
):
    """`step_share` for the default rules of 9x9, with these as constants."""
    raise_flag(flags)
    rules = (9, FILL, True, 0)
    return step_rows(
        head,
        data,
        rules,
        gamma,
        peers,
        pool,
        pool_head,
        actions,
        autoreset,
        out,
        index,
        finals,
        first,
        stop,
    )


@njit(cache=True, forceinline=True)
def step_rows(
    head,
    data,
    rules,
    gamma,
    peers,
    pool,
    pool_head,
    actions,
    autoreset,
    out,
    index,
    finals,
    first,
    stop,
):
    """The loop of `step_share`; its final states are written from place `first` on.

    Tuples are unpacked before the loop: taking an array out of one counts a reference.
    """
    head, data, actions = borrowed(head), borrowed(data), borrowed(actions)
    pool, pool_head = borrowed(pool), borrowed(pool_head)
    instance, plan, mask, reward, ended, timeout, score, pairs, solved, illegal = loans(out)
    instance_, plan_, mask_, reward_, ended_, timeout_, score_, pairs_, solved_, illegal_ = loans(
        finals
    )
    side, edits, constraint, tokens = rules
    num_final = first
    width = head[WIDTH]
    for env in range(first, stop):
        at = env * width
        for line in range(0, 8 * width, 64):  # the next row, while this one is at work
            prefetch(data, 8 * (at + width) + line)
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            draw(head, data, at, peers, pool, pool_head)
            reward[env] = 0.0
            ended[env] = timeout[env] = illegal[env] = False
        else:
            worth, end, late, refused = take(
                head, data, at, side, edits, constraint, tokens, gamma, actions[env]
            )
            reward[env] = worth
            ended[env] = end
            timeout[env] = late
            illegal[env] = refused
            if (end or late) and autoreset == SAME_STEP:
                index[num_final] = env
                reward_[num_final] = worth
                ended_[num_final] = end
                timeout_[num_final] = late
                illegal_[num_final] = refused
                observe(
                    head,
                    data,
                    at,
                    side,
                    tokens,
                    instance_,
                    plan_,
                    mask_,
                    score_,
                    pairs_,
                    solved_,
                    num_final,
                )
                num_final += 1
                illegal[env] = False
                draw(head, data, at, peers, pool, pool_head)
        observe(head, data, at, side, tokens, instance, plan, mask, score, pairs, solved, env)
    return first, num_final


@njit(cache=True, nogil=True)
def sample_share(flags, head, data, actions, first_env, stop_env):
    """Draw a legal action an environment, uniformly; -1 where there is none."""
    raise_flag(flags)
    head, data = borrowed(head), borrowed(data)
    for env in range(first_env, stop_env):
        at = env * head[WIDTH]
        _, _, o_mask, o_free, _ = offsets(at, head[SIDE], head[TOKENS])
        total = count_ones(data, o_mask, o_free)
        rank = below(next_word(head, at + SAMPLER), max(total, 1))
        if total == 0:
            actions[env] = -1
            continue
        first = o_mask
        while True:  # skip blocks of 32 actions, then look for the action in its block
            ones = count_ones(data, first, min(first + 32, o_free))
            if rank < ones:
                break
            rank -= ones
            first += 32
        while rank > 0 or data[first] == 0:
            rank -= data[first]
            first += 1
        actions[env] = first - o_mask
