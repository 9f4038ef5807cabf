"""Numba kernels of `plan_envs.arc.rules`: canvases, edits, checker and successors of plans.

`KernelDomain` hands them checked arrays, and allocates the arrays that they fill. A
board is a flat row of size * size cells; its canvas is the rectangle of non-zero cells at its top
left, (height, width), and (0, 0) for an empty board. `rules` = (size, target, looks): `target` is
the place in an instance at which the hidden board begins, and `looks` says that the score looks at
that board.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import borrowed, copy_bytes, folded

COLOURS: Final = 10


@njit(cache=True, forceinline=True)
def extent(boards, at, size):
    """(height, width) of the canvas of the board at `at` of a flat vector."""
    height = 0
    while height < size and boards[at + height * size] > 0:
        height += 1
    width = 0
    while width < size and boards[at + width] > 0:
        width += 1
    return height, width


@njit(cache=True)
def first_malformed(boards, size):
    """The first board that is no canvas of colours, -1 when all are; shape [batch, cell]."""
    cells = size * size
    flat = borrowed(boards.reshape(-1))
    for board in range(len(boards)):
        at = board * cells
        height, width = extent(flat, at, size)
        wrong = 0
        for row in range(size):
            first = at + row * size
            inside = width if row < height else 0
            for cell in range(first, first + inside):
                wrong |= flat[cell] <= 0 or flat[cell] > COLOURS
            for cell in range(first + inside, first + size):
                wrong |= flat[cell] != 0
        if wrong:
            return board
    return -1


@njit(cache=True, forceinline=True)
def common(plans, at, instances, target, size, height, width):
    """Cells of the canvas at `at` that agree with the board at `target`."""
    agree = 0
    for row in range(height):
        for cell in range(row * size, row * size + width):
            agree += plans[at + cell] == instances[target + cell]
    return agree


@njit(cache=True, forceinline=True)
def union(height, width, other_height, other_width):
    """Cells that at least one of two canvases covers."""
    shared = min(height, other_height) * min(width, other_width)
    return height * width + other_height * other_width - shared


@njit(cache=True, forceinline=True)
def share(agree, total):
    """Agreement of two canvases, 0..1, as the verdict rounds it."""
    return np.float32(agree / total) if total > 0 else np.float32(0)


@njit(cache=True, forceinline=True)
def points(agree, total, solved, looks):
    """Score: agreement, or 1 for a solved plan alone."""
    if looks:
        return share(agree, total)
    return np.float32(1) if solved else np.float32(0)


@njit(cache=True)
def check_plans(instances, plans, rules, verdict):
    """Write the verdict of every plan."""
    size, target, looks = rules
    score, violations, solved, dead, exact, agreement = verdict
    width_of = instances.shape[1]
    cells = size * size
    instances, plans = borrowed(instances.reshape(-1)), borrowed(plans.reshape(-1))
    for i in range(len(score)):
        goal, at = i * width_of + target, i * cells
        height, width = extent(plans, at, size)
        goal_height, goal_width = extent(instances, goal, size)
        agree = common(plans, at, instances, goal, size, height, width)
        total = union(height, width, goal_height, goal_width)
        solved[i] = exact[i] = goal_height > 0 and agree == total
        dead[i] = False
        agreement[i] = share(agree, total)
        score[i] = points(agree, total, solved[i], looks)
        violations[i] = total - agree if looks else 0


@njit(cache=True, forceinline=True)
def write_mask(plans, at, size, height, width, masks, to):
    """Legal edits of one canvas, written at `to` of a flat vector."""
    cells = size * size
    masks[to : to + COLOURS * cells + 2 * size] = 0
    for row in range(height):
        first = to + COLOURS * row * size
        masks[first : first + COLOURS * width] = 1
        for cell in range(row * size, row * size + width):
            masks[to + COLOURS * cell + plans[at + cell] - 1] = 0
    to += COLOURS * cells
    if height > 0:
        masks[to : to + 2 * size] = 1
        masks[to + height - 1] = 0
        masks[to + size + width - 1] = 0
    masks[to + 2 * size] = 1


@njit(cache=True)
def write_masks(instances, plans, rules, masks):
    """Write the legal edits of every plan; they do not depend on the instances."""
    size = rules[0]
    cells, num_actions = size * size, masks.shape[1]
    flat, out = borrowed(plans.reshape(-1)), borrowed(masks.reshape(-1))
    for i in range(len(masks)):
        height, width = extent(flat, i * cells, size)
        write_mask(flat, i * cells, size, height, width, out, i * num_actions)


@njit(cache=True, forceinline=True)
def resize(plans, at, size, height, width, new_height, new_width):
    """Crop a canvas, or extend it with colour 0."""
    for row in range(max(height, new_height)):
        for column in range(max(width, new_width)):
            stays = row < new_height and column < new_width
            if not stays:
                plans[at + row * size + column] = 0
            elif row >= height or column >= width:
                plans[at + row * size + column] = 1


@njit(cache=True, forceinline=True)
def apply_edit(plans, at, size, height, width, action):
    """Carry out one legal edit; (height, width) after it."""
    paints = COLOURS * size * size
    if action < paints:
        plans[at + action // COLOURS] = action % COLOURS + 1
    elif action < paints + size:
        resize(plans, at, size, height, width, action - paints + 1, width)
        height = action - paints + 1
    elif action < paints + 2 * size:
        resize(plans, at, size, height, width, height, action - paints - size + 1)
        width = action - paints - size + 1
    return height, width


@njit(cache=True, forceinline=True)
def is_legal(plans, at, size, height, width, action):
    """Whether the mask of a canvas allows an action, without writing the mask."""
    paints = COLOURS * size * size
    if action < paints:
        cell = action // COLOURS
        inside = cell // size < height and cell % size < width
        return inside and plans[at + cell] != action % COLOURS + 1
    if action < paints + size:
        return 0 < height != action - paints + 1
    if action < paints + 2 * size:
        return 0 < width != action - paints - size + 1
    return True


@njit(cache=True)
def apply_edits(instances, plans, rules, actions):
    """Carry out one edit a row, in place; illegal ones change nothing."""
    size = rules[0]
    cells = size * size
    flat = borrowed(plans.reshape(-1))
    for i in range(len(actions)):
        at = i * cells
        height, width = extent(flat, at, size)
        if is_legal(flat, at, size, height, width, actions[i]):
            apply_edit(flat, at, size, height, width, actions[i])


@njit(cache=True)
def count_successors(instances, plans, rules, offsets):
    """Legal edits of every plan, summed up: 9 a cell, the other heights and widths, submit."""
    size = rules[0]
    offsets[0] = 0
    flat = borrowed(plans.reshape(-1))
    for i in range(len(plans)):
        height, width = extent(flat, i * size * size, size)
        resizes = 2 * (size - 1) if height > 0 else 0
        offsets[i + 1] = offsets[i] + (COLOURS - 1) * height * width + resizes + 1


@njit(cache=True)
def write_successors(instances, plans, rules, terms, offsets, outcomes):
    """Every legal edit with its outcome, from the difference that it makes to the agreement."""
    size, target, looks = rules
    gamma, shaped, _ = terms
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    width_of = instances.shape[1]
    cells = size * size
    paints = COLOURS * cells
    with_plans = len(plan) > 0
    rows, columns = np.empty((2, size + 1), np.int64)
    instances, plans = borrowed(instances.reshape(-1)), borrowed(plans.reshape(-1))
    plan = plan.reshape(-1)
    dead[:] = False
    for i in range(len(offsets) - 1):
        goal, at = i * width_of + target, i * cells
        height, width = extent(plans, at, size)
        goal_height, goal_width = extent(instances, goal, size)
        possible = goal_height > 0
        agree = common(plans, at, instances, goal, size, height, width)
        total = union(height, width, goal_height, goal_width)
        done = possible and agree == total
        before = np.float64(points(agree, total, done, looks))
        k = offsets[i]
        if with_plans:
            for row in range(k, offsets[i + 1]):
                copy_bytes(plan, row * cells, plans, at, cells)
        for row in range(height):
            for cell in range(row * size, row * size + width):
                shown, wanted = plans[at + cell], instances[goal + cell]
                for value in range(1, COLOURS + 1):
                    if value == shown:
                        continue
                    agrees = agree - (shown == wanted) + (value == wanted)
                    right = possible and agrees == total
                    points_ = points(agrees, total, right, looks)
                    state[k], action[k] = i, COLOURS * cell + value - 1
                    score[k], solved[k], terminated[k] = points_, right, right
                    reward[k] = folded(right, right, before, np.float64(points_), gamma, shaped)
                    if with_plans:
                        plan[k * cells + cell] = value
                    k += 1
        if height > 0:
            agreeing_lines(plans, at, instances, goal, size, height, width, rows, columns)
            for choice in range(2 * size):
                new_height = choice + 1 if choice < size else height
                new_width = width if choice < size else choice - size + 1
                if new_height == height and new_width == width:
                    continue
                agrees = rows[new_height] if choice < size else columns[new_width]
                total_ = union(new_height, new_width, goal_height, goal_width)
                right = possible and agrees == total_
                points_ = points(agrees, total_, right, looks)
                state[k], action[k] = i, paints + choice
                score[k], solved[k], terminated[k] = points_, right, right
                reward[k] = folded(right, right, before, np.float64(points_), gamma, shaped)
                if with_plans:
                    resize(plan, k * cells, size, height, width, new_height, new_width)
                k += 1
        state[k], action[k] = i, paints + 2 * size
        score[k], solved[k], terminated[k] = np.float32(before), done, True
        reward[k] = folded(done, True, before, before, gamma, shaped)


@njit(cache=True, forceinline=True)
def agreeing_lines(plans, at, instances, goal, size, height, width, rows, columns):
    """rows[h] = agreeing cells after the height was set to h, columns[w] after the width was."""
    rows[0] = columns[0] = 0
    for line in range(size):
        in_row = in_column = 0
        for column in range(width):
            shown = plans[at + line * size + column] if line < height else 1
            in_row += shown == instances[goal + line * size + column]
        for row in range(height):
            shown = plans[at + row * size + line] if line < width else 1
            in_column += shown == instances[goal + row * size + line]
        rows[line + 1] = rows[line] + in_row
        columns[line + 1] = columns[line] + in_column


@njit(cache=True)
def transform_boards(boards, size, transposed, flip_rows, flip_columns, colours, out):
    """Transpose, flip and recolour the rectangle of every board; `colours` maps 1..10."""
    cells = size * size
    flat, images = borrowed(boards.reshape(-1)), borrowed(out.reshape(-1))
    images[:] = 0
    for i in range(len(boards)):
        at = i * cells
        height, width = extent(flat, at, size)
        for row in range(height):
            for column in range(width):
                to_row, to_column = (column, row) if transposed else (row, column)
                last_row, last_column = (width, height) if transposed else (height, width)
                if flip_rows:
                    to_row = last_row - 1 - to_row
                if flip_columns:
                    to_column = last_column - 1 - to_column
                value = flat[at + row * size + column]
                images[at + to_row * size + to_column] = colours[value]
