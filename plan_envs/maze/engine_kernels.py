"""Numba kernels of `plan_envs.maze.engine`: a step touches the cells around the path's head.

The row of an environment (`plan_envs.compiled.packed_kernels`) has, under geodesic shaping, the
distance of every cell to the goal as int16 before its instance.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled import packed_kernels as packed
from plan_envs.compiled.bits import below, borrowed, next_word
from plan_envs.maze import kernels

PLACE, TARGET, LENGTH, WHOLE = range(packed.OWN, packed.OWN + 4)
SIZE, UNDO, GEODESIC = range(packed.OWN + 4, packed.OWN + 7)
HEAD_SIZE: Final = packed.OWN + 7
"""Integers of a row: facts of the plan, the options of the domain, then their number. PLACE is the
path's head, TARGET the goal, LENGTH the cells on the path (0: the plan is no path), WHOLE the
distance from start to goal."""

show, fetch = packed.show_packed, packed.fetch_nothing


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


@njit(cache=True, forceinline=True)
def rules_of(head):
    """(size, undo?, geodesic?) of all rows."""
    return head[SIZE], head[UNDO], head[GEODESIC]


@njit(cache=True, forceinline=True)
def places(at, rules):
    """Where in `data` a row's instance, plan and legal edits begin, and where these end."""
    size, undo, geodesic = rules
    instance, plan, mask = offsets(at, size, geodesic)
    return instance, plan, mask, mask + size * size + undo


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
    start, goal, place, length = kernels.survey(instance, plan, neighbours)
    head[at + packed.STEPS] = 0
    head[at + packed.FINISHED] = 0
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
    template, distance, queue = kernels.scratch(size)
    kernels.write_template(instance, size, template)
    if goal >= 0:
        kernels.flood(template, size + 2, kernels.framed(goal, size), distance, queue)
    for cell in range(size * size):
        out[first + cell] = max(distance[kernels.framed(cell, size)], -1) if goal >= 0 else -1


@njit(cache=True, forceinline=True)
def open_around(data, o_instance, o_plan, o_mask, place, size):
    """Make the free unmarked neighbours of a cell legal; their number."""
    count = 0
    for direction in range(4):
        cell = beside(place, size, direction)
        if cell >= 0 and data[o_plan + cell] == 0 and data[o_instance + cell] != kernels.WALL:
            data[o_mask + cell] = 1
            count += 1
    return count


draw = packed.draw_ready(load)


@njit(cache=True, forceinline=True)
def points(head, at, geodesic):
    """Score of the plan."""
    place = head[at + PLACE]
    if head[at + LENGTH] > 0 and place == head[at + TARGET]:
        return np.float32(1.0)
    if geodesic and head[at + LENGTH] > 0:
        left = np.int64(head.view(np.int16)[4 * (at + HEAD_SIZE) + place])
        return kernels.closeness(left, head[at + WHOLE])
    return np.float32(0.0)


@njit(cache=True, forceinline=True)
def is_solved(head, at):
    """The path has reached the goal."""
    return head[at + LENGTH] > 0 and head[at + PLACE] == head[at + TARGET]


@njit(cache=True, forceinline=True)
def extend_or_undo(head, data, at, size, undo, geodesic, action):
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
    data[o_plan + following] = kernels.HEAD
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
def figures(head, data, at, rules):
    """(potential, score, violations, solved) of the plan."""
    score = np.float64(points(head, at, rules[2]))
    return score, score, np.int64(head[at + LENGTH] == 0), is_solved(head, at)


@njit(cache=True, forceinline=True)
def move(head, data, at, rules, action):
    """(ended, solved) of a legal action, carried out."""
    size, undo, geodesic = rules
    ended = not extend_or_undo(head, data, at, size, undo, geodesic, action)
    return ended, head[at + PLACE] == head[at + TARGET]


@njit(cache=True)
def load_all(head, data, index, neighbours, instances, plans):
    """Put environments into given states and compute their caches."""
    packed.load_rows(load, head, data, index, neighbours, instances, plans)


@njit(cache=True)
def draw_all(head, data, index, resets):
    """Reset environments to instances of the pool."""
    packed.draw_rows(draw, rules_of(head), head, data, index, resets)


@njit(cache=True)
def step_one(head, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    return packed.step_single(places, move, figures, rules_of(head), head, action)


@njit(cache=True, nogil=True)
def step_all(head, data, call):
    """Step every environment; `packed_kernels.step_rows` says what is in `call`."""
    rules = rules_of(head)
    return packed.step_rows(places, move, figures, draw, show, fetch, rules, head, data, call)


@njit(cache=True, nogil=True)
def observe_all(head, data, resets, out):
    """Write the current states of all environments into `out`, with no reward and no flags."""
    packed.observe_rows(places, figures, show, rules_of(head), head, data, resets, out)


@njit(cache=True, nogil=True)
def sample_all(head, data, actions):
    """Draw a legal action for every environment, uniformly; -1 where the episode is over.

    Legal are neighbours of the head, and undo, the last action: at most five to look at.
    """
    head, data = borrowed(head), borrowed(data)
    size, undo, geodesic = rules_of(head)
    legal = np.empty(5, np.int64)
    for env in range(len(actions)):
        at = env * head[packed.WIDTH]
        o_mask = offsets(at, size, geodesic)[2]
        place = head[at + PLACE]
        total = 0
        if place >= 0:
            for k in range(4):
                cell = beside(place, size, (0, 2, 3, 1)[k])  # in the order of the cells
                if cell >= 0 and data[o_mask + cell] == 1:
                    legal[total] = cell
                    total += 1
        if undo and data[o_mask + size * size] == 1:
            legal[total] = size * size
            total += 1
        rank = below(next_word(head, at + packed.SAMPLER), max(total, 1))
        over = total == 0 or head[at + packed.FINISHED]
        actions[env] = -1 if over else legal[rank]
