"""Numba kernels of `plan_envs.sudoku_engine`: one step of one environment or of all of them.

`boards` = (instances, plans, masks, counts, num_free), each [n, ...]; `head` int64 [n, HEAD] holds
the counters of each environment; `config` = (`rules` of `sudoku_kernels`, limit, shaped?, absorb
dead ends?, refuse illegal edits?). Under fill edits and the constraint mask the legal edits of a
blank cell are its candidates, so `num_free` counts them and `counts` is empty.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.sudoku_kernels import (
    FILL,
    FULL,
    OVERWRITE,
    decode,
    folded,
    keeps_givens,
    phi,
    popcount,
    survey,
    tally,
    write_mask,
)

STREAM, SAMPLER, STEPS, FILLED, VIOLATIONS, ZERO, FINISHED, HEAD = 0, 1, 2, 3, 4, 5, 6, 8
"""Columns of `head`, and their number."""


@njit(cache=True)
def load_all(boards, head, peers, rules, index, instances, plans):
    """Put environments into given states and compute their caches."""
    side = rules[0]
    bits = np.empty(side * side, np.uint16)
    lines = np.empty((4, side), np.uint16)
    free = np.empty(side * side, np.uint16)
    for i in range(len(index)):
        load(boards, head, peers, rules, index[i], instances[i], plans[i], bits, lines, free)


@njit(cache=True)
def load(boards, head, peers, rules, env, instance, plan, bits, lines, free):
    """Put one environment into a given state."""
    instances, own_plans, masks, counts, num_free = boards
    instances[env] = instance
    own_plans[env] = plan
    cells = len(plan)
    filled, violations, zero = survey(plan, rules, peers, bits, lines, free)
    solved = filled == cells and violations == 0 and keeps_givens(instance, plan)
    write_mask(instance, plan, free, solved, rules, masks[env])
    if counts.shape[1]:
        tally(plan, peers, rules[0], counts[env], num_free[env])
    else:
        for cell in range(cells):
            num_free[env, cell] = popcount(free[cell]) if plan[cell] == 0 else 0
    head[env, STEPS] = 0
    head[env, FILLED] = filled
    head[env, VIOLATIONS] = violations
    head[env, ZERO] = zero
    head[env, FINISHED] = 0


@njit(cache=True)
def next_word(head, env, column):
    """Advance a splitmix64 stream; the same arithmetic as `plan_envs.engine.splitmix`."""
    state = np.uint64(head[env, column]) + np.uint64(0x9E3779B97F4A7C15)
    head[env, column] = np.int64(state)
    word = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(cache=True)
def below(word, bound):
    """Uniform integer in 0..bound - 1 from a random word."""
    return np.int64(((word >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(cache=True)
def draw(boards, head, pool, pool_boards, pool_head, peers, config, env):
    """Reset one environment to an instance of the pool."""
    chosen = below(next_word(head, env, STREAM), len(pool))
    if len(pool_head) == 0:
        side = config[0]
        rules = (side, config[1], config[2], config[3] == 1, config[4] == 1)
        bits = np.empty(side * side, np.uint16)
        lines = np.empty((4, side), np.uint16)
        free = np.empty(side * side, np.uint16)
        start = pool[chosen]
        load(boards, head, peers, rules, env, start, start, bits, lines, free)
        return
    for k in range(5):
        boards[k][env] = pool_boards[k][chosen]
    for column in range(STEPS, HEAD):
        head[env, column] = pool_head[chosen, column]


@njit(cache=True)
def draw_all(boards, head, pool, pool_boards, pool_head, peers, config, terms, index):
    """Reset environments to instances of the pool."""
    for i in range(len(index)):
        draw(boards, head, pool, pool_boards, pool_head, peers, config, index[i])


@njit(cache=True)
def fill_cell(mask, num_free, head, peers, side, tokens, plan, cell, value):
    """A legal edit under fill edits and the constraint mask: peers lose a candidate, no more."""
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    plan[cell] = value
    first = cell * stride + shift
    for digit in range(side):
        mask[first + digit] = 0
    starved = 0
    for k in range(peers.shape[1]):
        peer = np.uint64(peers[cell, k])
        at = peer * np.uint64(stride) + np.uint64(shift + value - 1)
        lost = mask[at]
        mask[at] = 0
        left = num_free[peer] - lost
        num_free[peer] = left
        starved += lost & (left == 0)
    head[FILLED] += 1
    head[ZERO] += starved


@njit(cache=True)
def put(instance, plan, mask, counts, num_free, head, peers, rules, cell, value):
    """A legal edit of any edit set under any mask; `value` 0 erases."""
    side, _, edits, constraint, tokens = rules
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    old = plan[cell]
    plan[cell] = value
    if old > 0:
        head[VIOLATIONS] -= counts[cell * side + old - 1]
        head[FILLED] -= 1
    elif num_free[cell] == 0:
        head[ZERO] -= 1
    if value > 0:
        head[VIOLATIONS] += counts[cell * side + value - 1]
        head[FILLED] += 1
    elif num_free[cell] == 0:
        head[ZERO] += 1
    for k in range(peers.shape[1]):
        peer = peers[cell, k]
        shown = plan[peer]
        open_cell = instance[peer] == 0 and (shown == 0 or edits != FILL)
        if old > 0:
            at = peer * side + old - 1
            counts[at] -= 1
            if counts[at] == 0:
                num_free[peer] += 1
                head[ZERO] -= shown == 0 and num_free[peer] == 1
                if constraint:
                    mask[peer * stride + shift + old - 1] = open_cell and shown != old
        if value > 0:
            at = peer * side + value - 1
            if counts[at] == 0:
                num_free[peer] -= 1
                head[ZERO] += shown == 0 and num_free[peer] == 0
                if constraint:
                    mask[peer * stride + shift + value - 1] = 0
            counts[at] += 1
    first = cell * stride + shift
    for digit in range(side):
        free = not constraint or counts[cell * side + digit] == 0
        mask[first + digit] = free and edits != FILL and digit + 1 != value
    if edits == FULL:
        mask[first - 1] = value > 0
        solved = head[FILLED] == len(plan) and head[VIOLATIONS] == 0
        mask[len(mask) - 1] = not solved


@njit(cache=True, inline="always")
def points(head):
    """Score of the plan."""
    return head[FILLED] - 2 * head[VIOLATIONS] - 5 * head[ZERO]


@njit(cache=True)
def take(instance, plan, mask, counts, num_free, head, peers, config, terms, action):
    """One action that is in range: (reward, terminated, truncated, illegal)."""
    side, edits, constraint, tokens = config[0], config[2], config[3] == 1, config[4] == 1
    cells = len(plan)
    before = phi(points(head), cells)
    illegal = mask[action] == 0
    ended = False
    solved = False
    if not illegal:
        rules = (side, config[1], edits, constraint, tokens)
        cell, value = decode(action, rules)
        if value == -2:  # STOP
            ended = True
        else:
            if edits == FILL and constraint:
                fill_cell(mask, num_free, head, peers, side, tokens, plan, cell, value)
            else:
                put(instance, plan, mask, counts, num_free, head, peers, rules, cell, value)
            filled, violations, zero = head[FILLED], head[VIOLATIONS], head[ZERO]
            solved = filled == cells and violations == 0
            ended = solved
            if edits == FILL:
                ended |= config[7] == 1 and (zero > 0 or violations > 0)
                ended |= filled == cells or (constraint and zero == cells - filled)
            elif edits == OVERWRITE and constraint and not solved:
                ended = not mask.any()
    worth = folded(solved, ended, before, phi(points(head), cells), terms[0], config[6] == 1)
    head[STEPS] += 1
    timeout = 0 < config[5] <= head[STEPS]
    head[FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(cache=True)
def step_one(instances, plans, masks, counts, num_free, head, peers, config, terms, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    mask = masks[0]
    row = head[0]
    reason = 0
    if row[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < len(mask):
        reason = OUT_OF_RANGE
    elif config[8] == 1 and mask[action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    worth, ended, timeout, illegal = take(
        instances[0],
        plans[0],
        mask,
        counts[0],
        num_free[0],
        row,
        peers,
        config,
        terms,
        action,
    )
    solved = row[FILLED] == plans.shape[1] and row[VIOLATIONS] == 0
    code = 1 if illegal else 0
    return worth, ended, timeout, code, float(points(row)), row[VIOLATIONS], solved


@njit(cache=True)
def observe(boards, head, env, out, at):
    """Write the current state of an environment into row `at` of `out`."""
    out[0][at] = boards[0][env]
    out[1][at] = boards[1][env]
    out[2][at] = boards[2][env]
    row = head[env]
    out[6][at] = points(row)
    out[7][at] = row[VIOLATIONS]
    out[8][at] = row[FILLED] == boards[1].shape[1] and row[VIOLATIONS] == 0


@njit(cache=True)
def observe_all(instances, plans, masks, head, out):
    """Write the current state of every environment into `out`: no reward, no flags."""
    boards = (instances, plans, masks)
    for env in range(len(head)):
        observe(boards, head, env, out, env)
        out[3][env] = 0.0
        out[4][env] = out[5][env] = out[9][env] = False


@njit(cache=True)
def refuse(masks, head, config, actions, autoreset):
    """(environment, reason) of the first action that must not be taken; reason 0 when all may."""
    for env in range(len(actions)):
        if head[env, FINISHED] and autoreset == NEXT_STEP:
            continue
        if head[env, FINISHED] and autoreset == NEVER:
            return env, REASON_FINISHED
        action = actions[env]
        if not 0 <= action < masks.shape[1]:
            return env, OUT_OF_RANGE
        if config[8] and masks[env, action] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(cache=True)
def step_all(
    boards,
    head,
    pool,
    pool_boards,
    pool_head,
    peers,
    config,
    terms,
    actions,
    autoreset,
    out,
    final_index,
    finals,
):
    """One step of every environment: (number of final states, 0), or (environment, reason)."""
    env, reason = refuse(boards[2], head, config, actions, autoreset)
    if reason:
        return env, reason
    instances, plans, masks, counts, num_free = boards
    num_final = 0
    for env in range(len(actions)):
        worth, ended, timeout, illegal = 0.0, False, False, False
        if head[env, FINISHED] and autoreset == NEXT_STEP:
            draw(boards, head, pool, pool_boards, pool_head, peers, config, env)
        else:
            worth, ended, timeout, illegal = take(
                instances[env],
                plans[env],
                masks[env],
                counts[env],
                num_free[env],
                head[env],
                peers,
                config,
                terms,
                actions[env],
            )
            if (ended or timeout) and autoreset == SAME_STEP:
                final_index[num_final] = env
                observe(boards, head, env, finals, num_final)
                finals[3][num_final] = worth
                finals[4][num_final] = ended
                finals[5][num_final] = timeout
                finals[9][num_final] = illegal
                num_final += 1
                illegal = False
                draw(boards, head, pool, pool_boards, pool_head, peers, config, env)
        observe(boards, head, env, out, env)
        out[3][env] = worth
        out[4][env] = ended
        out[5][env] = timeout
        out[9][env] = illegal
    return num_final, 0


@njit(cache=True)
def sample_all(masks, head, actions):
    """Draw a legal action an environment, uniformly; -1 where there is none."""
    for env in range(len(masks)):
        mask = masks[env]
        total = 0
        for action in range(len(mask)):
            total += mask[action]
        word = next_word(head, env, SAMPLER)
        rank = below(word, max(total, 1))
        actions[env] = -1
        for action in range(len(mask)):
            if mask[action]:
                if rank == 0:
                    actions[env] = action
                    break
                rank -= 1
