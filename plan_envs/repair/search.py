"""Search for a repair in compiled code: every edit, then every pair of edits, counting programs.

The reference policies and the generator call it; a checker call is one program run on the visible
tests, as far as these must be run to know that it fails.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import copy_bytes
from plan_envs.repair import kernels
from plan_envs.repair.language import count_passed, length_of, new_stack


@njit(cache=True)
def passes(program, at, cells, known, first, tests, stack):
    """Whether a program passes every visible test."""
    length = length_of(program, at, cells)
    passed, present = count_passed(program, at, length, known, first, tests, cells, stack, True)
    return 0 < present == passed


@njit(cache=True)
def first_repair(plan, at, known, first, rules, depth, mask, edited, stack, found):
    """Write the first repair of at most `depth` (1 or 2) edits into `found`; checker calls.

    Edits are tried in the order of their numbers, all single ones before any pair. `found` holds
    -1 where there is no edit. `mask` int8 [2, action] and `edited` int8 [2, cell] are scratch.
    """
    cells, tests = rules[0], rules[1]
    actions = kernels.num_actions(cells)
    outer, inner, one, two = mask[0], mask[1], edited[0], edited[1]
    found[0] = found[1] = -1
    calls = 0
    kernels.write_mask(plan, at, rules, outer, 0)
    for level in range(depth):
        for a in range(actions - 1):
            if outer[a] == 0:
                continue
            copy_bytes(one, 0, plan, at, cells)
            kernels.apply_edit(one, 0, cells, a)
            if level == 0:
                calls += 1
                if passes(one, 0, cells, known, first, tests, stack):
                    found[0] = a
                    return calls
                continue
            kernels.write_mask(one, 0, rules, inner, 0)
            for b in range(actions - 1):
                if inner[b] == 0:
                    continue
                copy_bytes(two, 0, one, 0, cells)
                kernels.apply_edit(two, 0, cells, b)
                calls += 1
                if passes(two, 0, cells, known, first, tests, stack):
                    found[0], found[1] = a, b
                    return calls
    return calls


@njit(cache=True)
def first_repairs(instances, plans, rules, depth, found, calls):
    """`first_repair` of every plan: edits into `found` [batch, 2], checker calls into `calls`."""
    cells, width = plans.shape[1], instances.shape[1]
    known, programs = instances.reshape(-1), plans.reshape(-1)
    mask = np.empty((2, kernels.num_actions(cells)), np.int8)
    edited, stack = np.empty((2, cells), np.int8), new_stack(cells)
    for i in range(len(plans)):
        first = i * width + cells
        calls[i] = first_repair(
            programs, i * cells, known, first, rules, depth, mask, edited, stack, found[i]
        )


@njit(cache=True)
def _distance(one, other, row):
    """Levenshtein distance of two programs, blanks left out."""
    width, height = length_of(other, 0, len(other)), length_of(one, 0, len(one))
    for k in range(width + 1):
        row[k] = k
    for i in range(height):
        corner = row[0]
        row[0] = i + 1
        for k in range(width):
            above = row[k + 1]
            row[k + 1] = min(corner + (one[i] != other[k]), above + 1, row[k] + 1)
            corner = above
    return row[width]


@njit(cache=True)
def write_distances(plans, goals, distances):
    """The Levenshtein distance of every plan to its goal."""
    row = np.empty(plans.shape[1] + 1, np.int64)
    for i in range(len(plans)):
        distances[i] = _distance(plans[i], goals[i], row)


@njit(cache=True)
def write_towards(plans, goals, masks, keys, actions):
    """The legal edit that brings each plan nearest to its goal; the largest key breaks ties."""
    cells, stop = plans.shape[1], masks.shape[1] - 1
    edited, row = np.empty(cells, np.int8), np.empty(cells + 1, np.int64)
    for i in range(len(plans)):
        nearest, key = 2 * cells, -1.0
        actions[i] = stop
        for action in range(stop):
            if masks[i, action] == 0:
                continue
            for k in range(cells):
                edited[k] = plans[i, k]
            kernels.apply_edit(edited, 0, cells, action)
            distance = _distance(edited, goals[i], row)
            if distance < nearest or (distance == nearest and keys[i, action] > key):
                nearest, key, actions[i] = distance, keys[i, action], action
