"""Numba kernels of `plan_envs.arc_engine`: one step of one environment or of all of them.

Everything that a step of an environment needs lies in one row, so that a single environment passes
one array: HEAD integers (counters, then the engine's options), then as bytes its canvas, its legal
edits and its target. The rows of all environments are one flat vector, `head` as int64 and `data`
as int8; `at` is where a row begins in `head`. Instances stay where they are, in the pool: a row
has the index of its instance (SOURCE), or -1 when that lies in `own`, which has a row for each
environment.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.arc_kernels import (
    COLOURS,
    apply_edit,
    common,
    extent,
    points,
    union,
    write_mask,
)
from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.kernels import below, borrowed, copy_bytes, folded, next_word
from plan_envs.sudoku_engine_kernels import loans

STREAM, SAMPLER, STEPS, FINISHED, SOURCE = range(5)
HEIGHT, WIDTH, AGREE, TOTAL, GOAL_HEIGHT, GOAL_WIDTH = range(5, 11)
SIZE, LOOKS, BLANK, LIMIT, SHAPED, REFUSE, ACTIONS, ROW = range(11, 19)
HEAD: Final = 19
"""Integers at the beginning of a row, then their number."""


@njit(cache=True, forceinline=True)
def offsets(head, at):
    """Where in `data` a row's canvas, legal edits and target begin."""
    cells = head[at + SIZE] * head[at + SIZE]
    plan = 8 * (at + HEAD)
    return plan, plan + cells, plan + cells + head[at + ACTIONS]


@njit(cache=True, forceinline=True)
def start(head, data, at, instances, instance, plans, plan):
    """Put an environment into the state of a flat instance and a flat plan, at these places."""
    size = head[at + SIZE]
    cells = size * size
    o_plan, o_mask, o_target = offsets(head, at)
    copy_bytes(data, o_plan, plans, plan, cells)
    copy_bytes(data, o_target, instances, instance, cells)
    height, width = extent(data, o_plan, size)
    goal_height, goal_width = extent(data, o_target, size)
    write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + STEPS] = head[at + FINISHED] = 0
    head[at + HEIGHT], head[at + WIDTH] = height, width
    head[at + AGREE] = common(data, o_plan, data, o_target, size, height, width)
    head[at + TOTAL] = union(height, width, goal_height, goal_width)
    head[at + GOAL_HEIGHT], head[at + GOAL_WIDTH] = goal_height, goal_width


@njit(cache=True)
def load_all(head, data, own, index, instances, plans):
    """Put environments into given states, whose instances `own` keeps from now on."""
    width_of, cells = instances.shape[1], plans.shape[1]
    own, instances = borrowed(own.reshape(-1)), borrowed(instances.reshape(-1))
    plans = borrowed(plans.reshape(-1))
    for i in range(len(index)):
        at = index[i] * head[ROW]
        copy_bytes(own, index[i] * width_of, instances, i * width_of, width_of)
        start(head, data, at, instances, (i + 1) * width_of - cells, plans, i * cells)
        head[at + SOURCE] = -1


@njit(cache=True, forceinline=True)
def draw(head, data, env, own, pool, width_of):
    """Reset one environment to an instance of the pool; a single one copies it into `own`."""
    at = env * head[ROW]
    chosen = below(next_word(head, at + STREAM), len(pool) // width_of)
    size = head[at + SIZE]
    first = chosen * width_of
    start(head, data, at, pool, first + width_of - size * size, pool, first)
    if head[at + BLANK]:
        blank(head, data, at)
    if len(own) == width_of:
        copy_bytes(own, 0, pool, first, width_of)
        head[at + SOURCE] = -1
    else:
        head[at + SOURCE] = chosen


@njit(cache=True, forceinline=True)
def blank(head, data, at):
    """Wipe the canvas to colour 0."""
    size = head[at + SIZE]
    o_plan, o_mask, o_target = offsets(head, at)
    height, width = head[at + HEIGHT], head[at + WIDTH]
    for row in range(height):
        data[o_plan + row * size : o_plan + row * size + width] = 1
    write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + AGREE] = common(data, o_plan, data, o_target, size, height, width)


@njit(cache=True)
def draw_all(head, data, index, own, pool):
    """Reset environments to instances of the pool."""
    width_of = pool.shape[1]
    own, pool = borrowed(own.reshape(-1)), borrowed(pool.reshape(-1))
    for i in range(len(index)):
        draw(head, data, index[i], own, pool, width_of)


@njit(cache=True, forceinline=True)
def is_solved(head, at):
    """The canvas is the target, and there is one."""
    return head[at + GOAL_HEIGHT] > 0 and head[at + AGREE] == head[at + TOTAL]


@njit(cache=True, forceinline=True)
def score_of(head, at):
    """Score of the canvas, rounded as the verdict rounds it."""
    looks = head[at + LOOKS] == 1
    return np.float64(points(head[at + AGREE], head[at + TOTAL], is_solved(head, at), looks))


@njit(cache=True, forceinline=True)
def disagreement(head, at):
    """Violations of the canvas."""
    return head[at + TOTAL] - head[at + AGREE] if head[at + LOOKS] else 0


@njit(cache=True, forceinline=True)
def paint(head, data, o_plan, o_mask, o_target, at, action):
    """A legal paint: one cell, two legal edits, and what it changes in the agreement."""
    cell, value = action // COLOURS, action % COLOURS + 1
    old, wanted = data[o_plan + cell], data[o_target + cell]
    data[o_plan + cell] = value
    first = o_mask + COLOURS * cell - 1
    data[first + old] = 1
    data[first + value] = 0
    head[at + AGREE] += (wanted == value) - np.int64(wanted == old)


@njit(cache=True)
def change_size(head, data, at, action):
    """A legal change of height or width."""
    size = head[at + SIZE]
    o_plan, o_mask, o_target = offsets(head, at)
    height, width = apply_edit(data, o_plan, size, head[at + HEIGHT], head[at + WIDTH], action)
    write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + HEIGHT], head[at + WIDTH] = height, width
    head[at + AGREE] = common(data, o_plan, data, o_target, size, height, width)
    head[at + TOTAL] = union(height, width, head[at + GOAL_HEIGHT], head[at + GOAL_WIDTH])


@njit(cache=True, forceinline=True)
def take(head, data, at, gamma, action):
    """One action that is in range: (reward, terminated, truncated, illegal)."""
    o_plan, o_mask, o_target = offsets(head, at)
    before = score_of(head, at)
    illegal = data[o_mask + action] == 0
    ended = False
    if not illegal:
        if action < o_target - o_mask - 2 * head[at + SIZE] - 1:
            paint(head, data, o_plan, o_mask, o_target, at, action)
        elif action < o_target - o_mask - 1:
            change_size(head, data, at, action)
        else:
            ended = True
        ended |= is_solved(head, at)
    right = ended and is_solved(head, at)
    worth = folded(right, ended, before, score_of(head, at), gamma, head[SHAPED] == 1)
    head[at + STEPS] += 1
    timeout = 0 < head[LIMIT] <= head[at + STEPS]
    head[at + FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(cache=True)
def step_one(head, gamma, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    head = borrowed(head)
    data = borrowed(head.view(np.int8))
    reason = 0
    if head[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < head[ACTIONS]:
        reason = OUT_OF_RANGE
    elif head[REFUSE] == 1 and data[offsets(head, 0)[1] + action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    worth, ended, timeout, illegal = take(head, data, 0, gamma, action)
    code = 1 if illegal else 0
    return worth, ended, timeout, code, score_of(head, 0), disagreement(head, 0), is_solved(head, 0)


@njit(cache=True, forceinline=True)
def show(head, data, env, own, pool, width_of, instance, observed, place):
    """Write what learners see of an environment's instance into row `place`."""
    source = head[env * head[ROW] + SOURCE]
    if source < 0:
        copy_bytes(instance, place * observed, own, env * width_of, observed)
    else:
        copy_bytes(instance, place * observed, pool, source * width_of, observed)


@njit(cache=True, forceinline=True)
def observe(head, data, at, plan, mask, score, wrong, solved, place):
    """Write the current state of an environment, but its instance, into row `place`."""
    o_plan, o_mask, o_target = offsets(head, at)
    cells, num_actions = o_mask - o_plan, o_target - o_mask
    copy_bytes(plan, place * cells, data, o_plan, cells)
    copy_bytes(mask, place * num_actions, data, o_mask, num_actions)
    score[place] = score_of(head, at)
    wrong[place] = disagreement(head, at)
    solved[place] = is_solved(head, at)


@njit(cache=True)
def observe_all(head, data, own, pool, out):
    """Write the current state of every environment into `out`: no reward, no flags."""
    width_of, observed = pool.shape[1], out[0].shape[1]
    own, pool = borrowed(own.reshape(-1)), borrowed(pool.reshape(-1))
    instance, plan, mask, reward, ended, timeout, score, wrong, solved, illegal = loans(out)
    for env in range(len(reward)):
        show(head, data, env, own, pool, width_of, instance, observed, env)
        observe(head, data, env * head[ROW], plan, mask, score, wrong, solved, env)
        reward[env] = 0.0
        ended[env] = timeout[env] = illegal[env] = False


@njit(cache=True)
def refuse(head, data, actions, autoreset):
    """(environment, reason) of the first action that must not be taken; reason 0 when all may."""
    for env in range(len(actions)):
        at = env * head[ROW]
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            continue
        if head[at + FINISHED] and autoreset == NEVER:
            return env, REASON_FINISHED
        if not 0 <= actions[env] < head[ACTIONS]:
            return env, OUT_OF_RANGE
        if head[REFUSE] and data[offsets(head, at)[1] + actions[env]] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(cache=True)
def step_all(head, data, gamma, own, pool, actions, autoreset, shown, out, index, finals):
    """One step of every environment: (number of final states, 0), or (environment, reason).

    `shown` = the rows of instances in `out` hold already, but for environments that are reset now.
    """
    env, reason = refuse(head, data, actions, autoreset)
    if reason:
        return env, reason
    width_of, observed = pool.shape[1], out[0].shape[1]
    head, data, actions = borrowed(head), borrowed(data), borrowed(actions)
    own, pool = borrowed(own.reshape(-1)), borrowed(pool.reshape(-1))
    instance, plan, mask, reward, ended, timeout, score, wrong, solved, illegal = loans(out)
    instance_, plan_, mask_, reward_, ended_, timeout_, score_, wrong_, solved_, illegal_ = loans(
        finals
    )
    num_final = 0
    for env in range(len(actions)):
        at = env * head[ROW]
        reset = False
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            draw(head, data, env, own, pool, width_of)
            reward[env] = 0.0
            ended[env] = timeout[env] = illegal[env] = False
            reset = True
        else:
            worth, end, late, refused = take(head, data, at, gamma, actions[env])
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
                show(head, data, env, own, pool, width_of, instance_, observed, num_final)
                observe(head, data, at, plan_, mask_, score_, wrong_, solved_, num_final)
                num_final += 1
                illegal[env] = False
                draw(head, data, env, own, pool, width_of)
                reset = True
        if reset or not shown:
            show(head, data, env, own, pool, width_of, instance, observed, env)
        observe(head, data, at, plan, mask, score, wrong, solved, env)
    return num_final, 0


@njit(cache=True)
def sample_all(head, data, actions):
    """Draw a legal action an environment, uniformly; -1 where there is none.

    Legal edits need not be searched: 9 paints a cell, the other heights, the other widths, submit.
    """
    head, data = borrowed(head), borrowed(data)
    for env in range(len(actions)):
        at = env * head[ROW]
        size, height, width = head[at + SIZE], head[at + HEIGHT], head[at + WIDTH]
        o_plan, _, o_target = offsets(head, at)
        word = next_word(head, at + SAMPLER)
        if data[o_target - 1] == 0:  # even submit is illegal: the environment was never reset
            actions[env] = -1
            continue
        paints = (COLOURS - 1) * height * width
        resizes = 2 * (size - 1) if height > 0 else 0
        rank = below(word, paints + resizes + 1)
        if rank < paints:
            place, colour = rank // (COLOURS - 1), rank % (COLOURS - 1)
            cell = place // width * size + place % width
            colour += colour >= data[o_plan + cell] - 1
            actions[env] = COLOURS * cell + colour
        elif rank < paints + resizes:
            rank -= paints
            which, choice = rank // (size - 1), rank % (size - 1)
            choice += choice >= (height if which == 0 else width) - 1
            actions[env] = COLOURS * size * size + which * size + choice
        else:
            actions[env] = COLOURS * size * size + 2 * size
