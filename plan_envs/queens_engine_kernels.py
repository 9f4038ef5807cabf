"""Numba kernels of `plan_envs.queens_engine`: one step of one environment or of all of them.

Everything that an environment knows lies in one row: HEAD integers (counters, the lines that hold
a queen, then the engine's options), then as bytes its instance, plan, legal edits, and the queens
of each line (unused under fill edits and the constraint mask, where no two queens share one). The
rows of all environments are one flat vector, `head` as int64 and `data` as int8; `at` is where a
row begins in `head`. An edit changes four bits; from these, `refresh` computes all legal squares,
eight bytes at a time.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.kernels import below, borrowed, copy_bytes, count_ones, folded, next_word, phi
from plan_envs.queens_kernels import (
    free_squares,
    keeps_givens,
    starved_rows,
    survey,
    write_mask,
)
from plan_envs.sudoku_engine_kernels import loans

STREAM, SAMPLER, STEPS, FINISHED = range(4)
QUEENS, VIOLATIONS, STARVED, ROWS, COLUMNS, DIAGONALS, ANTIDIAGONALS, KEEPS, LEFT = range(4, 13)
SIDE, FULL, CONSTRAINT, LIMIT, SHAPED, ABSORB, REFUSE, ACTIONS, WIDTH = range(13, 22)
HEAD: Final = 22
"""Integers at the beginning of a row, then their number."""

BYTES: Final = (np.arange(256, dtype=np.uint64)[:, None] >> np.arange(8, dtype=np.uint64) & 1) @ (
    np.uint64(1) << np.arange(0, 64, 8, dtype=np.uint64)
)
"""BYTES[bits]: eight bits as eight bytes 0 or 1, the lowest first."""


@njit(cache=True, forceinline=True)
def offsets(at, n, full):
    """Where in `data` a row's instance, plan, legal edits and counts begin."""
    cells = n * n
    instance = 8 * (at + HEAD)
    mask = instance + 2 * cells
    return instance, instance + cells, mask, mask + cells + full * (cells + 1)


@njit(cache=True)
def load_all(head, data, index, instances, plans):
    """Put environments into given states and compute their caches."""
    for i in range(len(index)):
        load(head, data, index[i] * head[WIDTH], instances[i], plans[i])


@njit(cache=True)
def load(head, data, at, instance, plan):
    """Put one environment into a given state."""
    n, full, constraint = head[at + SIDE], head[at + FULL] == 1, head[at + CONSTRAINT] == 1
    o_instance, o_plan, o_mask, o_counts = offsets(at, n, full)
    data[o_instance:o_plan] = instance
    data[o_plan:o_mask] = plan
    facts = survey(plan, n, data[o_counts : o_counts + 6 * n])
    write_mask(instance, plan, n, full, constraint, facts, data[o_mask:o_counts])
    queens, pairs, rows, columns, diagonals, antidiagonals = facts
    head[at + STEPS] = 0
    head[at + FINISHED] = 0
    head[at + QUEENS] = queens
    head[at + VIOLATIONS] = pairs
    head[at + STARVED] = starved_rows(n, rows, columns, diagonals, antidiagonals)
    head[at + ROWS] = rows
    head[at + COLUMNS] = columns
    head[at + DIAGONALS] = diagonals
    head[at + ANTIDIAGONALS] = antidiagonals
    head[at + KEEPS] = keeps_givens(instance, plan)
    head[at + LEFT] = data[o_mask : o_mask + n * n].sum()


@njit(cache=True, forceinline=True)
def draw(head, data, at, pool, pool_head):
    """Reset one environment to an instance of the pool; `pool_head` has its ready rows, if any."""
    chosen = below(next_word(head, at + STREAM), len(pool))
    width = head[at + WIDTH]
    if len(pool_head):
        first = chosen * width + STEPS
        copy_bytes(head, 8 * (at + STEPS), pool_head, 8 * first, 8 * (width - STEPS))
    else:
        load(head, data, at, pool[chosen], pool[chosen])


@njit(cache=True)
def draw_all(head, data, index, pool, pool_head):
    """Reset environments to instances of the pool."""
    for i in range(len(index)):
        draw(head, data, index[i] * head[WIDTH], pool, pool_head)


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
        bits = free_squares(row, n, columns, diagonals, antidiagonals) & (closed - 1)
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
def take(head, data, at, n, full, constraint, gamma, action):
    """One action that is in range: (reward, terminated, truncated, illegal)."""
    cells = n * n
    before = phi(points(head, at), n)
    illegal = data[offsets(at, n, full)[2] + action] == 0
    ended = False
    solved = False
    if not illegal:
        if action == 2 * cells:  # STOP
            ended = True
        else:
            value = action < cells
            cell = action if value else action - cells
            put(head, data, at, n, full, constraint, cell, np.int64(value))
            solved = is_solved(head, at, n)
            ended = solved
            if not full:
                lost = head[at + STARVED] > 0 or head[at + VIOLATIONS] > 0
                ended |= (head[at + ABSORB] == 1 and lost) or head[at + LEFT] == 0
    after = phi(points(head, at), n)
    worth = folded(solved, ended, before, after, gamma, head[at + SHAPED] == 1)
    head[at + STEPS] += 1
    timeout = 0 < head[at + LIMIT] <= head[at + STEPS]
    head[at + FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(cache=True)
def step_one(head, gamma, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    head = borrowed(head)
    data = borrowed(head.view(np.int8))
    n, full, constraint = head[SIDE], head[FULL] == 1, head[CONSTRAINT] == 1
    reason = 0
    if head[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < head[ACTIONS]:
        reason = OUT_OF_RANGE
    elif head[REFUSE] == 1 and data[offsets(0, n, full)[2] + action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    if constraint and not full:
        worth, ended, timeout, illegal = take(head, data, 0, n, False, True, gamma, action)
    else:
        worth, ended, timeout, illegal = take(head, data, 0, n, full, constraint, gamma, action)
    code = 1 if illegal else 0
    solved = is_solved(head, 0, n)
    return worth, ended, timeout, code, float(points(head, 0)), head[VIOLATIONS], solved


@njit(cache=True, forceinline=True)
def observe(head, data, at, n, full, instance, plan, mask, score, pairs, solved, env):
    """Write the current state of an environment into row `env` of the arrays."""
    o_instance, o_plan, o_mask, o_counts = offsets(at, n, full)
    cells, num_actions = n * n, o_counts - o_mask
    copy_bytes(instance, env * cells, data, o_instance, cells)
    copy_bytes(plan, env * cells, data, o_plan, cells)
    copy_bytes(mask, env * num_actions, data, o_mask, num_actions)
    score[env] = points(head, at)
    pairs[env] = head[at + VIOLATIONS]
    solved[env] = is_solved(head, at, n)


@njit(cache=True)
def observe_all(head, data, out):
    """Write the current state of every environment into `out`: no reward, no flags."""
    head, data = borrowed(head), borrowed(data)
    instance, plan, mask, reward, ended, timeout, score, pairs, solved, illegal = loans(out)
    width, n, full = head[WIDTH], head[SIDE], head[FULL] == 1
    for env in range(len(reward)):
        at = env * width
        observe(head, data, at, n, full, instance, plan, mask, score, pairs, solved, env)
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
        o_mask = offsets(at, head[SIDE], head[FULL])[2]
        if head[REFUSE] and data[o_mask + actions[env]] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(cache=True)
def step_all(head, data, gamma, pool, pool_head, actions, autoreset, out, index, finals):
    """One step of every environment: (number of final states, 0), or (environment, reason)."""
    env, reason = refuse(head, data, actions, autoreset)
    if reason:
        return env, reason
    rules = (head[SIDE], head[FULL] == 1, head[CONSTRAINT] == 1)
    if rules[0] == 8 and rules[2] and not rules[1]:  # the usual rules as constants
        num_final = step_rows(
            head,
            data,
            (8, False, True),
            gamma,
            pool,
            pool_head,
            actions,
            autoreset,
            out,
            index,
            finals,
        )
    else:
        num_final = step_rows(
            head, data, rules, gamma, pool, pool_head, actions, autoreset, out, index, finals
        )
    return num_final, 0


@njit(cache=True, forceinline=True)
def step_rows(head, data, rules, gamma, pool, pool_head, actions, autoreset, out, index, finals):
    """The loop of `step_all`: the number of final states."""
    head, data, actions = borrowed(head), borrowed(data), borrowed(actions)
    pool, pool_head = borrowed(pool), borrowed(pool_head)
    instance, plan, mask, reward, ended, timeout, score, pairs, solved, illegal = loans(out)
    instance_, plan_, mask_, reward_, ended_, timeout_, score_, pairs_, solved_, illegal_ = loans(
        finals
    )
    n, full, constraint = rules
    num_final = 0
    width = head[WIDTH]
    for env in range(len(actions)):
        at = env * width
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            draw(head, data, at, pool, pool_head)
            reward[env] = 0.0
            ended[env] = timeout[env] = illegal[env] = False
        else:
            worth, end, late, refused = take(
                head, data, at, n, full, constraint, gamma, actions[env]
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
                    n,
                    full,
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
                draw(head, data, at, pool, pool_head)
        observe(head, data, at, n, full, instance, plan, mask, score, pairs, solved, env)
    return num_final


@njit(cache=True)
def sample_all(head, data, actions):
    """Draw a legal action an environment, uniformly; -1 where there is none."""
    head, data = borrowed(head), borrowed(data)
    for env in range(len(actions)):
        at = env * head[WIDTH]
        _, _, o_mask, o_counts = offsets(at, head[SIDE], head[FULL])
        total = count_ones(data, o_mask, o_counts)
        rank = below(next_word(head, at + SAMPLER), max(total, 1))
        if total == 0:
            actions[env] = -1
            continue
        first = o_mask
        while True:  # skip blocks of 32 actions, then look for the action in its block
            ones = count_ones(data, first, min(first + 32, o_counts))
            if rank < ones:
                break
            rank -= ones
            first += 32
        while rank > 0 or data[first] == 0:
            rank -= data[first]
            first += 1
        actions[env] = first - o_mask
