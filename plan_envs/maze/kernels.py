"""Numba kernels of `plan_envs.maze.rules`: checker, legal edits, successors, breadth-first search.

`KernelDomain` hands them checked arrays, and allocates the arrays that they fill.
`rules` = (size, undo?, geodesic?); `neighbours` int32 [cell, direction] with directions up, down,
left, right and -1 outside. Breadth-first search runs on a *template*: the maze with a frame of
walls around it, int16 [(size + 2)**2], BLOCKED at walls and UNSEEN at free cells.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import borrowed, copy_bytes, folded

FREE: Final = 0
WALL: Final = 1
START: Final = 2
GOAL: Final = 3
"""Values of an instance."""

UP: Final = 1
DOWN: Final = 2
LEFT: Final = 3
RIGHT: Final = 4
HEAD: Final = 5
"""Values of a plan besides 0: where the path leaves the cell, or that it ends there."""

UNSEEN: Final = -1
BLOCKED: Final = -2
"""Cells of a template."""


@njit(cache=True)
def place_of(board, value):
    """The last cell with a value, -1 if none has it; no early exit, so that it runs on vectors."""
    place = -1
    for cell in range(len(board)):
        place = max(place, cell if board[cell] == value else -1)
    return place


@njit(cache=True)
def survey(instance, plan, neighbours):
    """(start, goal, head, cells on the path), the last 0 if the plan is no path from the start.

    Every cell of a path names its successor, so a walk of as many cells as are marked that ends at
    a head has met each of them once.
    """
    start, goal = place_of(instance, START), place_of(instance, GOAL)
    marked = 0
    for cell in range(len(plan)):
        marked += plan[cell] != 0
    cell, length = start, 1
    if start < 0:
        return start, goal, -1, 0
    while plan[cell] != HEAD:
        if plan[cell] == 0 or length == marked:
            return start, goal, -1, 0
        cell = neighbours[cell, plan[cell] - 1]
        if cell < 0 or instance[cell] == WALL:
            return start, goal, -1, 0
        length += 1
    if length != marked:
        return start, goal, -1, 0
    return start, goal, cell, length


@njit(cache=True, inline="always")
def is_open(instance, plan, cell):
    """The path may be extended to a cell, as far as that cell is concerned."""
    return cell >= 0 and instance[cell] != WALL and plan[cell] == 0


@njit(cache=True)
def count_open(instance, plan, cell, neighbours):
    """Neighbours of a cell that the path may be extended to."""
    count = 0
    for direction in range(4):
        count += is_open(instance, plan, neighbours[cell, direction])
    return count


@njit(cache=True)
def before(plan, cell, neighbours):
    """The cell from which the path enters a cell, -1 at its start."""
    for direction in range(4):
        other = neighbours[cell, direction]
        # left of a cell lies the one that leaves to the right, and so on: 0 <-> 1, 2 <-> 3
        if other >= 0 and plan[other] == (direction ^ 1) + 1:
            return other
    return -1


@njit(cache=True)
def write_masks(instances, plans, rules, neighbours, masks):
    """Write the legal edits of every plan."""
    cells = plans.shape[1]
    masks[:] = 0
    for i in range(len(plans)):
        _, goal, head, length = survey(instances[i], plans[i], neighbours)
        if length == 0 or head == goal:
            continue
        for direction in range(4):
            cell = neighbours[head, direction]
            if is_open(instances[i], plans[i], cell):
                masks[i, cell] = 1
        if rules[1]:
            masks[i, cells] = length > 1


@njit(cache=True)
def apply_edits(instances, plans, rules, neighbours, actions):
    """Carry out one edit a row, in place; a forbidden one changes nothing."""
    cells = plans.shape[1]
    for i in range(len(plans)):
        _, goal, head, length = survey(instances[i], plans[i], neighbours)
        if length == 0 or head == goal:
            continue
        target = actions[i]
        if target == cells:
            if length > 1:
                plans[i, before(plans[i], head, neighbours)] = HEAD
                plans[i, head] = 0
            continue
        for direction in range(4):
            if neighbours[head, direction] == target and is_open(instances[i], plans[i], target):
                plans[i, head] = direction + 1
                plans[i, target] = HEAD
                break


@njit(cache=True)
def write_template(instance, size, template):
    """The maze with a frame of walls."""
    template[:] = BLOCKED
    for row in range(size):
        at = (row + 1) * (size + 2) + 1
        for column in range(size):
            if instance[row * size + column] != WALL:
                template[at + column] = UNSEEN


@njit(cache=True, inline="always")
def framed(cell, size):
    """Where a cell lies in a template."""
    return (cell // size + 1) * (size + 2) + cell % size + 1


@njit(cache=True)
def flood(template, width, source, distance, queue):
    """Distances from a framed cell into `distance` (a copy of the template); cells reached.

    `queue` then lists the cells reached in the order of a breadth-first search that visits
    neighbours in the order down, left, right, up.
    """
    copy_bytes(distance, 0, template, 0, 2 * len(template))
    distance[source] = 0
    queue[0] = source
    first, last = 0, 1
    while first < last:
        cell = queue[first]
        first += 1
        step = distance[cell] + 1
        for other in (cell + width, cell - 1, cell + 1, cell - width):
            if distance[other] == UNSEEN:
                distance[other] = step
                queue[last] = other
                last += 1
    return last


@njit(cache=True)
def scratch(size):
    """Template, distances and queue for `flood`."""
    room = (size + 2) * (size + 2)
    return np.empty(room, np.int16), np.empty(room, np.int16), np.empty(room, np.int32)


@njit(cache=True)
def write_label(instance, start, goal, size, space, label):
    """The path of the public set's answers as a plan; its number of edits, -1 if there is none.

    Breadth-first search from the start, neighbours in the order down, left, right, up; every cell
    keeps its first parent, which is the first of its neighbours in the order of the queue.
    """
    template, distance, queue = space
    width = size + 2
    write_template(instance, size, template)
    num = flood(template, width, framed(start, size), distance, queue)
    label[:] = 0
    edits = np.int64(distance[framed(goal, size)])
    if edits < 0:
        return -1
    # give the cells their rank in the queue, so that the first parent is the least neighbour
    rank = template
    rank[:] = BLOCKED
    for k in range(num):
        rank[queue[k]] = k
    cell = goal
    label[goal] = HEAD
    for _ in range(edits):
        place = framed(cell, size)
        best, value = np.int64(num), 0
        for other, way in (
            (place - width, DOWN),
            (place + width, UP),
            (place - 1, RIGHT),
            (place + 1, LEFT),
        ):
            if 0 <= rank[other] < best:
                best, value = np.int64(rank[other]), way
        place = queue[best]
        cell = (place // width - 1) * size + place % width - 1
        label[cell] = value
    return edits


@njit(cache=True)
def write_labels(instances, size, labels, edits):
    """Label path and number of edits of every maze; -1 edits and no marks where there is none."""
    space = scratch(size)
    for i in range(len(instances)):
        start, goal = place_of(instances[i], START), place_of(instances[i], GOAL)
        labels[i] = 0
        edits[i] = -1
        if start >= 0 and goal >= 0:
            edits[i] = write_label(instances[i], start, goal, size, space, labels[i])


@njit(cache=True, inline="always")
def closeness(left, whole):
    """Geodesic score: 1 - distance to the goal / distance from the start to the goal, from 0 on."""
    if whole <= 0 or left < 0:
        return np.float32(0.0)
    return np.float32(max(1.0 - left / whole, 0.0))


@njit(cache=True)
def check_plans(instances, plans, rules, neighbours, verdict):
    """Write the verdicts; a search takes place only for solved plans and for geodesic scores."""
    score, violations, solved, dead, valid, shortest, label = verdict
    size, undo, geodesic = rules
    space = scratch(size)
    template, distance, queue = space
    answer = np.empty(size * size, np.int8)
    for i in range(len(plans)):
        instance, plan = instances[i], plans[i]
        start, goal, head, length = survey(instance, plan, neighbours)
        done = length > 0 and head == goal
        solved[i] = valid[i] = done
        violations[i] = length == 0
        stuck = length == 0 or count_open(instance, plan, head, neighbours) == 0
        dead[i] = not done and stuck and not (undo and length > 1)
        shortest[i] = label[i] = 0.0
        score[i] = 1.0 if done else 0.0
        if done:
            edits = write_label(instance, start, goal, size, space, answer)
            shortest[i] = length == edits + 1
            label[i] = np.array_equal(answer, plan)
        elif geodesic and length > 0 and goal >= 0:
            write_template(instance, size, template)
            flood(template, size + 2, framed(goal, size), distance, queue)
            score[i] = closeness(distance[framed(head, size)], distance[framed(start, size)])


@njit(cache=True)
def count_successors(instances, plans, rules, neighbours, facts, offsets):
    """First pass: offsets, and for each plan what `survey` says."""
    offsets[0] = 0
    for i in range(len(plans)):
        start, goal, head, length = survey(instances[i], plans[i], neighbours)
        facts[i, 0], facts[i, 1], facts[i, 2], facts[i, 3] = start, goal, head, length
        count = 0
        if length > 0 and head != goal:
            count = count_open(instances[i], plans[i], head, neighbours)
            count += rules[1] and length > 1
        offsets[i + 1] = offsets[i] + count


@njit(cache=True)
def write_successors(instances, plans, rules, neighbours, facts, terms, offsets, outcomes):
    """Second pass: the outcome of every legal edit; `terms` = (gamma, shaped?, absorb dead?).

    An edit ends the episode when it solves the maze or leaves no legal edit, which is when it is
    dead, so the dead ends' rule makes no difference.
    """
    size, undo, geodesic = rules
    gamma, shaped, _ = terms
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    cells = size * size
    template, distance, queue = scratch(size)
    instances, plans = borrowed(instances), borrowed(plans)
    for i in range(len(plans)):
        start, goal, head, length = facts[i]
        row = offsets[i]
        if row == offsets[i + 1]:
            continue
        now = np.float32(0.0)
        if geodesic and goal >= 0:
            write_template(instances[i], size, template)
            flood(template, size + 2, framed(goal, size), distance, queue)
            whole = distance[framed(start, size)]
            now = closeness(distance[framed(head, size)], whole)
        for k in range(5):
            if k < 4:
                # in the order of the cells: up, left, right, down
                direction = (0, 2, 3, 1)[k]
                cell = neighbours[head, direction]
                if not is_open(instances[i], plans[i], cell):
                    continue
                action[row] = cell
            elif undo and length > 1:
                cell = before(plans[i], head, neighbours)
                action[row] = cells
            else:
                continue
            done = cell == goal
            stuck = (
                not undo and not done and count_open(instances[i], plans[i], cell, neighbours) == 0
            )
            after = np.float32(1.0 if done else 0.0)
            if geodesic and goal >= 0:
                after = closeness(distance[framed(cell, size)], whole)
            state[row] = i
            score[row] = after
            solved[row] = done
            dead[row] = stuck
            terminated[row] = done or stuck
            reward[row] = folded(
                done, done or stuck, np.float64(now), np.float64(after), gamma, shaped
            )
            if plan.shape[0] > 0:
                copy_bytes(plan, row * cells, plans, i * cells, cells)
                plan[row, head] = 0 if k == 4 else direction + 1
                plan[row, cell] = HEAD
            row += 1


@njit(cache=True)
def walk_along(instances, solutions, distance, neighbours, plans):
    """Walk from every start along its solution until `distance` edits are left, at least one."""
    for i in range(len(instances)):
        start, _, _, length = survey(instances[i], solutions[i], neighbours)
        cell = start
        for _ in range(length - 1 - max(distance[i], 1)):
            plans[i, cell] = solutions[i, cell]
            cell = neighbours[cell, solutions[i, cell] - 1]
        if length > 0:
            plans[i, cell] = HEAD
