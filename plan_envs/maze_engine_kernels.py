"""Numba kernels of `plan_envs.maze_engine`: one step of one environment or of all of them.

Everything that an environment knows lies in one row, so that a step of a single environment passes
one array: HEAD_SIZE integers (counters, then the engine's options), then under geodesic shaping the
distance of every cell to the goal as int16, then as bytes its instance, plan and legal edits. The
rows of all environments are one flat vector, `head` as int64, `data` as int8 and `steps_left` as
int16; `at` is where a row begins in `head`. A step touches the cells around the old and the new
head of the path, nothing else.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.kernels import below, borrowed, copy_bytes, folded, next_word
from plan_envs.maze_kernels import (
    GOAL,
    HEAD,
    START,
    WALL,
    closeness,
    flood,
    framed,
    place_of,
    scratch,
    survey,
    write_template,
)
from plan_envs.sudoku_engine_kernels import loans

STREAM, SAMPLER, STEPS, FINISHED, PLACE, TARGET, LENGTH, WHOLE = range(8)
SIZE, UNDO, GEODESIC, LIMIT, SHAPED, REFUSE, ACTIONS, WIDTH = range(8, 16)
HEAD_SIZE: Final = 16
"""Integers at the beginning of a row, then their number. PLACE is the path's head, TARGET the goal,
LENGTH the cells on the path (0: the plan is no path), WHOLE the distance from start to goal."""


@njit(cache=True, forceinline=True)
def offsets(at, size, geodesic):
    """Where in `data` a row's instance, plan and legal edits begin."""
    cells = size * size
    instance = 8 * (at + HEAD_SIZE) + 2 * cells * geodesic
    return instance, instance + cells, instance + 2 * cells


@njit(cache=True, forceinline=True)
def beside(cell, size, direction):
    """The cell up, down, left or right (0-3) of a cell, -1 outside."""
    if direction == 0:
        return cell - size if cell >= size else -1
    if direction == 1:
        return cell + size if cell < size * size - size else -1
    if direction == 2:
        return cell - 1 if cell % size > 0 else -1
    return cell + 1 if (cell + 1) % size > 0 else -1


@njit(cache=True)
def load_all(head, data, index, neighbours, instances, plans):
    """Put environments into given states and compute their caches."""
    for i in range(len(index)):
        load(head, data, index[i] * head[WIDTH], neighbours, instances[i], plans[i])


@njit(cache=True)
def load(head, data, at, neighbours, instance, plan):
    """Put one environment into a given state."""
    size, undo, geodesic = head[at + SIZE], head[at + UNDO], head[at + GEODESIC]
    o_instance, o_plan, o_mask = offsets(at, size, geodesic)
    cells = size * size
    for cell in range(cells):
        data[o_instance + cell] = instance[cell]
        data[o_plan + cell] = plan[cell]
    for action in range(cells + undo):
        data[o_mask + action] = 0
    start, goal, place, length = survey(instance, plan, neighbours)
    head[at + STEPS] = 0
    head[at + FINISHED] = 0
    head[at + PLACE] = place
    head[at + TARGET] = goal
    head[at + LENGTH] = length
    if length > 0 and place != goal:
        open_around(data, o_instance, o_plan, o_mask, place, size)
        if undo:
            data[o_mask + cells] = length > 1
    if geodesic:
        steps_left = head.view(np.int16)
        first = 4 * (at + HEAD_SIZE)
        measure(instance, goal, size, steps_left, first)
        head[at + WHOLE] = steps_left[first + start] if start >= 0 else 0


@njit(cache=True)
def measure(instance, goal, size, out, first):
    """Write the distances to the goal from place `first` on; -1 where there is none."""
    template, distance, queue = scratch(size)
    write_template(instance, size, template)
    if goal >= 0:
        flood(template, size + 2, framed(goal, size), distance, queue)
    for cell in range(size * size):
        out[first + cell] = max(distance[framed(cell, size)], -1) if goal >= 0 else -1


@njit(cache=True, forceinline=True)
def open_around(data, o_instance, o_plan, o_mask, place, size):
    """Make the free unmarked neighbours of a cell legal; their number."""
    count = 0
    for direction in range(4):
        cell = beside(place, size, direction)
        if cell >= 0 and data[o_plan + cell] == 0 and data[o_instance + cell] != WALL:
            data[o_mask + cell] = 1
            count += 1
    return count


@njit(cache=True)
def draw(head, data, at, neighbours, pool, facts, ready):
    """Reset one environment to an instance of the pool.

    `facts` [num, 3] hold its start, goal and distance (start -1: it has no path to begin with),
    `ready` its distances to the goal, if they were computed ahead.
    """
    chosen = below(next_word(head, at + STREAM), len(pool))
    size, undo, geodesic = head[at + SIZE], head[at + UNDO], head[at + GEODESIC]
    cells = size * size
    start = np.int64(facts[chosen, 0])
    if start < 0 or (geodesic and len(ready) == 0):
        plan = np.zeros(cells, np.int8)
        for cell in range(cells):
            plan[cell] = HEAD if pool[chosen, cell] == START else 0
        load(head, data, at, neighbours, pool[chosen], plan)
        return
    o_instance, o_plan, o_mask = offsets(at, size, geodesic)
    copy_bytes(data, o_instance, pool, chosen * cells, cells)
    for i in range(np.uint64(o_plan), np.uint64(o_mask + cells + undo)):
        data[i] = 0
    if geodesic:
        copy_bytes(data, 8 * (at + HEAD_SIZE), ready, 2 * chosen * cells, 2 * cells)
    data[o_plan + start] = HEAD
    open_around(data, o_instance, o_plan, o_mask, start, size)
    head[at + STEPS] = 0
    head[at + FINISHED] = 0
    head[at + PLACE] = start
    head[at + TARGET] = facts[chosen, 1]
    head[at + LENGTH] = 1
    head[at + WHOLE] = facts[chosen, 2]


@njit(cache=True)
def draw_all(head, data, index, neighbours, pool, facts, ready):
    """Reset environments to instances of the pool."""
    head, data = borrowed(head), borrowed(data)
    for i in range(len(index)):
        draw(head, data, index[i] * head[WIDTH], neighbours, pool, facts, ready)


@njit(cache=True)
def prepare(instances, size, facts, ready):
    """Fill the facts of a pool, and the distances to the goal where `ready` has rows for them."""
    flat = ready.reshape(-1)
    cells = size * size
    for i in range(len(instances)):
        starts = 0
        for cell in range(cells):
            starts += instances[i, cell] == START
        start, goal = place_of(instances[i], START), place_of(instances[i], GOAL)
        facts[i, 0] = start if starts == 1 else -1
        facts[i, 1] = goal
        facts[i, 2] = 0
        if len(ready) > 0:
            measure(instances[i], goal, size, flat, i * cells)
            if start >= 0:
                facts[i, 2] = ready[i, start]


@njit(cache=True, forceinline=True)
def points(head, steps_left, at, geodesic):
    """Score of the plan."""
    place = head[at + PLACE]
    if head[at + LENGTH] > 0 and place == head[at + TARGET]:
        return np.float32(1.0)
    if geodesic and head[at + LENGTH] > 0:
        left = np.int64(steps_left[4 * (at + HEAD_SIZE) + place])
        return closeness(left, head[at + WHOLE])
    return np.float32(0.0)


@njit(cache=True, forceinline=True)
def is_solved(head, at):
    """The path has reached the goal."""
    return head[at + LENGTH] > 0 and head[at + PLACE] == head[at + TARGET]


@njit(cache=True, forceinline=True)
def move(head, data, at, size, undo, geodesic, action):
    """A legal edit: whether a legal edit is left, or the maze solved."""
    o_instance, o_plan, o_mask = offsets(at, size, geodesic)
    place, cells = head[at + PLACE], size * size
    following = action
    entered = -1
    for direction in range(4):
        cell = beside(place, size, direction)
        if cell >= 0:
            data[o_mask + cell] = 0
            if action == cells and data[o_plan + cell] == (direction ^ 1) + 1:
                following = cell
            if action == cell:
                entered = direction
    data[o_plan + place] = entered + 1  # 0 after undo
    data[o_plan + following] = HEAD
    length = head[at + LENGTH] + (1 if action < cells else -1)
    head[at + PLACE] = following
    head[at + LENGTH] = length
    back = undo == 1 and length > 1
    if following == head[at + TARGET]:
        count = 0
        back = False
    else:
        count = open_around(data, o_instance, o_plan, o_mask, following, size)
    if undo:
        data[o_mask + cells] = back
    return count > 0 or back


@njit(cache=True, forceinline=True)
def take(head, data, steps_left, at, size, undo, geodesic, gamma, action):
    """One action that is in range: (reward, terminated, truncated, illegal)."""
    start_score = np.float64(points(head, steps_left, at, geodesic))
    illegal = data[offsets(at, size, geodesic)[2] + action] == 0
    ended = False
    solved = False
    if not illegal:
        ended = not move(head, data, at, size, undo, geodesic, action)
        solved = head[at + PLACE] == head[at + TARGET]
    after = np.float64(points(head, steps_left, at, geodesic))
    worth = folded(solved, ended, start_score, after, gamma, head[SHAPED] == 1)
    head[at + STEPS] += 1
    timeout = 0 < head[LIMIT] <= head[at + STEPS]
    head[at + FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(cache=True)
def step_one(head, gamma, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    head = borrowed(head)
    data = borrowed(head.view(np.int8))
    steps_left = borrowed(head.view(np.int16))
    size, undo, geodesic = head[SIZE], head[UNDO], head[GEODESIC]
    reason = 0
    if head[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < head[ACTIONS]:
        reason = OUT_OF_RANGE
    elif head[REFUSE] == 1 and data[offsets(0, size, geodesic)[2] + action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    worth, ended, timeout, illegal = take(
        head, data, steps_left, 0, size, undo, geodesic, gamma, action
    )
    code = 1 if illegal else 0
    score = np.float64(points(head, steps_left, 0, geodesic))
    return worth, ended, timeout, code, score, np.int64(head[LENGTH] == 0), is_solved(head, 0)


@njit(cache=True, forceinline=True)
def observe(
    head,
    data,
    steps_left,
    at,
    size,
    undo,
    geodesic,
    instance,
    plan,
    mask,
    score,
    violations,
    solved,
    env,
):
    """Write the current state of an environment into row `env` of the arrays."""
    o_instance, o_plan, o_mask = offsets(at, size, geodesic)
    cells = size * size
    copy_bytes(instance, env * cells, data, o_instance, cells)
    copy_bytes(plan, env * cells, data, o_plan, cells)
    copy_bytes(mask, env * (cells + undo), data, o_mask, cells + undo)
    score[env] = points(head, steps_left, at, geodesic)
    violations[env] = head[at + LENGTH] == 0
    solved[env] = is_solved(head, at)


@njit(cache=True)
def observe_all(head, data, out):
    """Write the current state of every environment into `out`: no reward, no flags."""
    head, data = borrowed(head), borrowed(data)
    steps_left = borrowed(head.view(np.int16))
    instance, plan, mask, reward, ended, timeout, score, violations, solved, illegal = loans(out)
    size, undo, geodesic = head[SIZE], head[UNDO], head[GEODESIC]
    for env in range(len(reward)):
        observe(
            head,
            data,
            steps_left,
            env * head[WIDTH],
            size,
            undo,
            geodesic,
            instance,
            plan,
            mask,
            score,
            violations,
            solved,
            env,
        )
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
        o_mask = offsets(at, head[SIZE], head[GEODESIC])[2]
        if head[REFUSE] and data[o_mask + actions[env]] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(cache=True)
def step_all(
    head, data, gamma, neighbours, pool, facts, ready, actions, autoreset, out, index, finals
):
    """One step of every environment: (number of final states, 0), or (environment, reason).

    Tuples are unpacked before the loop: taking an array out of one counts a reference.
    """
    env, reason = refuse(head, data, actions, autoreset)
    if reason:
        return env, reason
    head, data, actions = borrowed(head), borrowed(data), borrowed(actions)
    steps_left = borrowed(head.view(np.int16))
    pool, facts, ready = borrowed(pool), borrowed(facts), borrowed(ready)
    instance, plan, mask, reward, ended, timeout, score, violations, solved, illegal = loans(out)
    instance_, plan_, mask_, reward_, ended_, late_, score_, violations_, solved_, illegal_ = loans(
        finals
    )
    size, undo, geodesic = head[SIZE], head[UNDO], head[GEODESIC]
    num_final = 0
    width = head[WIDTH]
    for env in range(len(actions)):
        at = env * width
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            draw(head, data, at, neighbours, pool, facts, ready)
            reward[env] = 0.0
            ended[env] = timeout[env] = illegal[env] = False
        else:
            worth, end, late, refused = take(
                head, data, steps_left, at, size, undo, geodesic, gamma, actions[env]
            )
            reward[env] = worth
            ended[env] = end
            timeout[env] = late
            illegal[env] = refused
            if (end or late) and autoreset == SAME_STEP:
                index[num_final] = env
                reward_[num_final] = worth
                ended_[num_final] = end
                late_[num_final] = late
                illegal_[num_final] = refused
                observe(
                    head,
                    data,
                    steps_left,
                    at,
                    size,
                    undo,
                    geodesic,
                    instance_,
                    plan_,
                    mask_,
                    score_,
                    violations_,
                    solved_,
                    num_final,
                )
                num_final += 1
                illegal[env] = False
                draw(head, data, at, neighbours, pool, facts, ready)
        observe(
            head,
            data,
            steps_left,
            at,
            size,
            undo,
            geodesic,
            instance,
            plan,
            mask,
            score,
            violations,
            solved,
            env,
        )
    return num_final, 0


@njit(cache=True)
def sample_all(head, data, actions):
    """Draw a legal action an environment, uniformly; -1 where there is none.

    Legal are neighbours of the head, and undo, the last action: at most five to look at.
    """
    head, data = borrowed(head), borrowed(data)
    size, undo, geodesic = head[SIZE], head[UNDO], head[GEODESIC]
    for env in range(len(actions)):
        at = env * head[WIDTH]
        o_mask = offsets(at, size, geodesic)[2]
        place = head[at + PLACE]
        total = np.int64(data[o_mask + size * size]) if undo else 0
        if place >= 0:
            for direction in range(4):
                cell = beside(place, size, direction)
                total += cell >= 0 and data[o_mask + cell] == 1
        rank = below(next_word(head, at + SAMPLER), max(total, 1))
        actions[env] = size * size if total > 0 else -1
        if place >= 0:
            for k in range(4):
                cell = beside(place, size, (0, 2, 3, 1)[k])  # in the order of the cells
                if cell >= 0 and data[o_mask + cell] == 1:
                    if rank == 0:
                        actions[env] = cell
                        break
                    rank -= 1
