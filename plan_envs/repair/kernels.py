"""Numba kernels of `plan_envs.repair.rules`: checker, legal edits, successors.

`KernelDomain` hands them checked arrays, and allocates the arrays that they fill. `rules` = (cells,
visible tests, hidden tests, do programs stay well-typed?). An instance is the broken program, then
an input and an output board for each test, the hidden ones last (`plan_envs.repair.language` says
what their codes mean).

Edits, with T tokens in the language: cell * T + token - 1 replaces a token; from `cells * T` on as
many insert one before the cell; then `cells` actions delete one; the last action stops.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import borrowed, copy_bytes, count_ones, folded
from plan_envs.repair.language import (
    EMPTY,
    LIST,
    NOTHING,
    NUM_TOKENS,
    WIDEST,
    WRONG,
    count_passed,
    length_of,
    new_stack,
    run,
    types_after,
    types_of,
    write_result,
)


@njit(cache=True, forceinline=True)
def num_actions(cells):
    """Size of the action space."""
    return 2 * cells * NUM_TOKENS + cells + 1


@njit(cache=True)
def write_mask(plan, at, rules, mask, first):
    """Write the legal edits of the plan that begins at `at` from place `first` of `mask` on."""
    cells, _, _, typed = rules
    for action in range(num_actions(cells) - 1):
        mask[first + action] = 0
    length = length_of(plan, at, cells)
    inserts = first + cells * NUM_TOKENS
    deletes = inserts + cells * NUM_TOKENS
    before = EMPTY
    for cell in range(length + (length < cells)):
        place = cell * NUM_TOKENS - 1
        for token in range(1, NUM_TOKENS + 1):
            after = types_after(before, token) if typed else EMPTY
            if after == WRONG:
                continue
            if cell < length and token != plan[at + cell]:
                rest = types_of(plan, at + cell + 1, length - cell - 1, after) if typed else after
                mask[first + place + token] = rest != WRONG
            if length < cells:
                rest = types_of(plan, at + cell, length - cell, after) if typed else after
                mask[inserts + place + token] = rest != WRONG
        if cell < length:
            rest = types_of(plan, at + cell + 1, length - cell - 1, before) if typed else before
            mask[deletes + cell] = rest != WRONG
            if typed:
                before = types_after(before, plan[at + cell])
    mask[first + num_actions(cells) - 1] = 1


@njit(cache=True)
def apply_edit(plan, at, cells, action):
    """Carry out an edit in place, legal or not; its cell is one of the program, or its end."""
    kind, rest = action // (cells * NUM_TOKENS), action % (cells * NUM_TOKENS)
    if kind == 0:
        plan[at + rest // NUM_TOKENS] = rest % NUM_TOKENS + 1
    elif kind == 1:
        place = rest // NUM_TOKENS
        for cell in range(cells - 1, place, -1):
            plan[at + cell] = plan[at + cell - 1]
        plan[at + place] = rest % NUM_TOKENS + 1
    elif rest < cells:
        for cell in range(rest, cells - 1):
            plan[at + cell] = plan[at + cell + 1]
        plan[at + cells - 1] = 0


@njit(cache=True, forceinline=True)
def points(passed, present):
    """Score: the share of the visible tests that pass."""
    return np.float32(passed / present) if present > 0 else np.float32(0.0)


@njit(cache=True)
def judge(program, at, cells, known, first, num, stack):
    """(tests passed, tests that there are) of a program, for `num` tests from `first` on."""
    length = length_of(program, at, cells)
    return count_passed(program, at, length, known, first, num, cells, stack, False)


@njit(cache=True)
def first_malformed(plans):
    """The first row that is no program: a token behind a blank; -1 if there is none."""
    for i in range(len(plans)):
        for cell in range(1, plans.shape[1]):
            if plans[i, cell] != 0 and plans[i, cell - 1] == 0:
                return i
    return -1


@njit(cache=True)
def first_malformed_test(instance, cells, num):
    """The first test whose boards are no input with its output, `num` if there is none."""
    for test in range(num):
        at = cells + 2 * cells * test
        shown = False
        for k in range(2 * cells):
            shown |= instance[at + k] != NOTHING
        if not shown:
            continue
        for board in (at, at + cells):
            first = instance[board]
            ended = board > at and first != LIST  # an integer alone
            if first == NOTHING or (board == at and first == LIST):
                return test
            for k in range(1, cells):
                code = instance[board + k]
                ended |= code == NOTHING or k > WIDEST
                if code == LIST or (ended and code != NOTHING):
                    return test
    return num


@njit(cache=True)
def write_masks(instances, plans, rules, masks):
    """Write the legal edits of every plan."""
    cells, actions = plans.shape[1], masks.shape[1]
    flat, out = plans.reshape(-1), masks.reshape(-1)
    for i in range(len(plans)):
        write_mask(flat, i * cells, rules, out, i * actions)


@njit(cache=True)
def apply_edits(instances, plans, rules, actions):
    """Carry out one edit a row, in place; a forbidden one changes nothing."""
    cells = plans.shape[1]
    flat = plans.reshape(-1)
    mask = np.empty(num_actions(cells), np.int8)
    for i in range(len(plans)):
        write_mask(flat, i * cells, rules, mask, 0)
        if mask[actions[i]]:
            apply_edit(flat, i * cells, cells, actions[i])


@njit(cache=True)
def check_plans(instances, plans, rules, verdict):
    """Write the verdicts."""
    score, violations, solved, dead, visible, hidden = verdict
    cells, tests, more, _ = rules
    width = instances.shape[1]
    known, programs = instances.reshape(-1), plans.reshape(-1)
    stack = new_stack(cells)
    for i in range(len(plans)):
        at = i * cells
        first = i * width + cells
        passed, present = judge(programs, at, cells, known, first, tests, stack)
        score[i] = visible[i] = points(passed, present)
        violations[i] = present - passed
        solved[i] = 0 < present == passed
        dead[i] = False
        first += 2 * cells * tests
        passed, present = judge(programs, at, cells, known, first, more, stack)
        hidden[i] = points(passed, present)


@njit(cache=True)
def count_successors(instances, plans, rules, masks, offsets):
    """First pass: the legal edits of every plan, and offsets."""
    write_masks(instances, plans, rules, masks)
    flat, actions = masks.reshape(-1), masks.shape[1]
    offsets[0] = 0
    for i in range(len(plans)):
        offsets[i + 1] = offsets[i] + count_ones(flat, i * actions, (i + 1) * actions)


@njit(cache=True)
def write_successors(instances, plans, rules, masks, terms, offsets, outcomes):
    """Second pass: the outcome of every legal edit; `terms` = (gamma, shaped?, absorb dead?)."""
    cells, tests, _, _ = rules
    gamma, shaped, _ = terms
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    width, actions = instances.shape[1], masks.shape[1]
    known, programs = instances.reshape(-1), plans.reshape(-1)
    edited, stack = np.empty(cells, np.int8), new_stack(cells)
    for i in range(len(plans)):
        row, first = offsets[i], i * width + cells
        passed, present = judge(programs, i * cells, cells, known, first, tests, stack)
        now = np.float64(points(passed, present))
        for a in range(actions):
            if masks[i, a] == 0:
                continue
            copy_bytes(edited, 0, programs, i * cells, cells)
            apply_edit(edited, 0, cells, a)
            passed, present = judge(edited, 0, cells, known, first, tests, stack)
            done = 0 < present == passed
            ended = done or a == actions - 1
            state[row], action[row] = i, a
            score[row] = points(passed, present)
            solved[row], dead[row], terminated[row] = done, False, ended
            after = np.float64(score[row])
            reward[row] = folded(done, ended, now, after, gamma, shaped)
            if plan.shape[0] > 0:
                copy_bytes(plan, row * cells, edited, 0, cells)
            row += 1


@njit(cache=True)
def write_results(instance, plan, tests, results):
    """What a program makes of the visible tests, as output boards [test, cell]."""
    cells = results.shape[1]
    flat, stack = results.reshape(-1), new_stack(cells)
    length = length_of(plan, 0, cells)
    for test in range(tests):
        board = cells + 2 * cells * test
        if instance[board] != NOTHING:
            top = run(plan, 0, length, instance, board, stack)
            write_result(stack, top, flat, test * cells)
