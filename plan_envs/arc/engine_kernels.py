"""Numba kernels of `plan_envs.arc.engine`: a paint touches one cell and two legal edits.

The row of an environment (`plan_envs.compiled.packed_kernels`) has its target behind its legal
edits. Instances stay where they are, in the pool: a row has the index of its instance (SOURCE), or
-1 when that lies in `own`, which has a row for each environment. `resets` = (own, pool, integers of
an instance), both flat.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.arc import kernels
from plan_envs.compiled import packed_kernels as packed
from plan_envs.compiled.bits import below, borrowed, copy_bytes, next_word

SOURCE, ROWS, COLUMNS, AGREE, TOTAL, GOAL_ROWS, GOAL_COLUMNS = range(packed.OWN, packed.OWN + 7)
SIZE, LOOKS, BLANK = range(packed.OWN + 7, packed.OWN + 10)
HEAD: Final = packed.OWN + 10
"""Integers of a row: facts of the canvas, the options of the domain, then their number."""

fetch = packed.fetch_nothing


@njit(cache=True, forceinline=True)
def rules_of(head):
    """(size, score looks at the target?, blank start?) of all rows."""
    return head[SIZE], head[LOOKS] == 1, head[BLANK] == 1


@njit(cache=True, forceinline=True)
def places(at, rules):
    """Where in `data` a row's instance (there is none), canvas, legal edits and target begin."""
    size = rules[0]
    plan = 8 * (at + HEAD)
    mask = plan + size * size
    return plan, plan, mask, mask + kernels.COLOURS * size * size + 2 * size + 1


@njit(cache=True, forceinline=True)
def start(head, data, at, rules, instances, instance, plans, plan):
    """Put an environment into the state of a flat instance and a flat plan, at these places."""
    size = rules[0]
    cells = size * size
    _, o_plan, o_mask, o_target = places(at, rules)
    copy_bytes(data, o_plan, plans, plan, cells)
    copy_bytes(data, o_target, instances, instance, cells)
    height, width = kernels.extent(data, o_plan, size)
    goal_height, goal_width = kernels.extent(data, o_target, size)
    kernels.write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + packed.STEPS] = head[at + packed.FINISHED] = 0
    head[at + ROWS], head[at + COLUMNS] = height, width
    head[at + AGREE] = kernels.common(data, o_plan, data, o_target, size, height, width)
    head[at + TOTAL] = kernels.union(height, width, goal_height, goal_width)
    head[at + GOAL_ROWS], head[at + GOAL_COLUMNS] = goal_height, goal_width


@njit(cache=True)
def load_all(head, data, index, own, instances, plans):
    """Put environments into given states, whose instances `own` keeps from now on."""
    width_of, cells = instances.shape[1], plans.shape[1]
    own, instances = borrowed(own), borrowed(instances.reshape(-1))
    plans, rules = borrowed(plans.reshape(-1)), rules_of(head)
    for i in range(len(index)):
        at = index[i] * head[packed.WIDTH]
        copy_bytes(own, index[i] * width_of, instances, i * width_of, width_of)
        start(head, data, at, rules, instances, (i + 1) * width_of - cells, plans, i * cells)
        head[at + SOURCE] = -1


@njit(cache=True, forceinline=True)
def draw(head, data, at, rules, resets):
    """Reset one environment to an instance of the pool; a single one copies it into `own`."""
    own, pool, width_of = resets
    chosen = below(next_word(head, at + packed.STREAM), len(pool) // width_of)
    size, _, from_blank = rules
    first = chosen * width_of
    start(head, data, at, rules, pool, first + width_of - size * size, pool, first)
    if from_blank:
        blank(head, data, at, rules)
    if len(own) == width_of:
        copy_bytes(own, 0, pool, first, width_of)
        head[at + SOURCE] = -1
    else:
        head[at + SOURCE] = chosen


@njit(cache=True, forceinline=True)
def blank(head, data, at, rules):
    """Wipe the canvas to colour 0."""
    size = rules[0]
    _, o_plan, o_mask, o_target = places(at, rules)
    height, width = head[at + ROWS], head[at + COLUMNS]
    for row in range(height):
        data[o_plan + row * size : o_plan + row * size + width] = 1
    kernels.write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + AGREE] = kernels.common(data, o_plan, data, o_target, size, height, width)


@njit(cache=True)
def draw_all(head, data, index, resets):
    """Reset environments to instances of the pool."""
    packed.draw_rows(draw, rules_of(head), head, data, index, resets)


@njit(cache=True, forceinline=True)
def is_solved(head, at):
    """The canvas is the target, and there is one."""
    return head[at + GOAL_ROWS] > 0 and head[at + AGREE] == head[at + TOTAL]


@njit(cache=True, forceinline=True)
def figures(head, data, at, rules):
    """(potential, score, violations, solved) of the canvas; rounded as the verdict rounds it."""
    looks, solved = rules[1], is_solved(head, at)
    score = np.float64(kernels.points(head[at + AGREE], head[at + TOTAL], solved, looks))
    wrong = head[at + TOTAL] - head[at + AGREE] if looks else 0
    return score, score, wrong, solved


@njit(cache=True, forceinline=True)
def paint(head, data, o_plan, o_mask, o_target, at, action):
    """A legal paint: one cell, two legal edits, and what it changes in the agreement."""
    cell, value = action // kernels.COLOURS, action % kernels.COLOURS + 1
    old, wanted = data[o_plan + cell], data[o_target + cell]
    data[o_plan + cell] = value
    first = o_mask + kernels.COLOURS * cell - 1
    data[first + old] = 1
    data[first + value] = 0
    head[at + AGREE] += (wanted == value) - np.int64(wanted == old)


@njit(cache=True)
def change_size(head, data, at, rules, action):
    """A legal change of height or width."""
    size = rules[0]
    _, o_plan, o_mask, o_target = places(at, rules)
    height, width = kernels.apply_edit(
        data, o_plan, size, head[at + ROWS], head[at + COLUMNS], action
    )
    kernels.write_mask(data, o_plan, size, height, width, data, o_mask)
    head[at + ROWS], head[at + COLUMNS] = height, width
    head[at + AGREE] = kernels.common(data, o_plan, data, o_target, size, height, width)
    head[at + TOTAL] = kernels.union(height, width, head[at + GOAL_ROWS], head[at + GOAL_COLUMNS])


@njit(cache=True, forceinline=True)
def move(head, data, at, rules, action):
    """(ended, solved) of a legal action, carried out."""
    _, o_plan, o_mask, o_target = places(at, rules)
    submits = False
    if action < o_target - o_mask - 2 * rules[0] - 1:
        paint(head, data, o_plan, o_mask, o_target, at, action)
    elif action < o_target - o_mask - 1:
        change_size(head, data, at, rules, action)
    else:
        submits = True
    solved = is_solved(head, at)
    return submits or solved, solved


@njit(cache=True, forceinline=True)
def show(places, head, data, at, rules, resets, instance, row):
    """Write what learners see of an environment's instance into a row."""
    own, pool, width_of = resets
    observed, source = instance.shape[1], head[at + SOURCE]
    if source < 0:
        copy_bytes(instance, row * observed, own, at // head[packed.WIDTH] * width_of, observed)
    else:
        copy_bytes(instance, row * observed, pool, source * width_of, observed)


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

    Legal edits need not be searched: 9 paints a cell, the other heights, the other widths, submit.
    """
    head, data, rules = borrowed(head), borrowed(data), rules_of(head)
    size = rules[0]
    for env in range(len(actions)):
        at = env * head[packed.WIDTH]
        height, width = head[at + ROWS], head[at + COLUMNS]
        o_plan = places(at, rules)[1]
        word = next_word(head, at + packed.SAMPLER)
        if head[at + packed.FINISHED]:
            actions[env] = -1
            continue
        paints = (kernels.COLOURS - 1) * height * width
        resizes = 2 * (size - 1) if height > 0 else 0
        rank = below(word, paints + resizes + 1)
        if rank < paints:
            place, colour = rank // (kernels.COLOURS - 1), rank % (kernels.COLOURS - 1)
            cell = place // width * size + place % width
            colour += colour >= data[o_plan + cell] - 1
            actions[env] = kernels.COLOURS * cell + colour
        elif rank < paints + resizes:
            rank -= paints
            which, choice = rank // (size - 1), rank % (size - 1)
            choice += choice >= (height if which == 0 else width) - 1
            actions[env] = kernels.COLOURS * size * size + which * size + choice
        else:
            actions[env] = kernels.COLOURS * size * size + 2 * size
