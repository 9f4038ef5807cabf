"""Numba kernels that make repair instances: a working program, its tests, and the faults.

`plan_envs.repair.instances` hands over arrays to fill and a random stream; each instance depends on
its own splitmix64 key alone.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import GAMMA, copy_bytes, count_ones, draw_below, split_of_word
from plan_envs.instances import mix
from plan_envs.repair import kernels
from plan_envs.repair.language import (
    EMPTY,
    NUM_TOKENS,
    WIDEST,
    WRONG,
    ZERO,
    length_of,
    new_stack,
    run,
    types_after,
    write_result,
)
from plan_envs.repair.search import first_repair, passes

MAX_TRIES: Final = 1 << 20
"""Working programs drawn for one instance."""
PROBES: Final = 64
"""Fixed inputs on which two programs that behave alike are told from others."""
_PROBE_KEY: Final = 0x5EED
_BOARD: Final = 1 + WIDEST


@njit(cache=True)
def draw_input(rng, tests, board):
    """An input: an integer of -2..6 and a list of 0..5 integers of -9..9."""
    tests[board] = draw_below(rng, 9) - 2 + ZERO
    for k in range(draw_below(rng, WIDEST + 1)):
        tests[board + 1 + k] = draw_below(rng, 19) - 9 + ZERO


@njit(cache=True)
def probe_inputs():
    """The inputs of the probes, flat."""
    rng = np.full(1, _PROBE_KEY, np.int64)
    inputs = np.zeros(PROBES * _BOARD, np.int8)
    for probe in range(PROBES):
        draw_input(rng, inputs, probe * _BOARD)
    return inputs


@njit(cache=True)
def behaviour(program, at, length, probes, stack, result):
    """A hash of what a program makes of the probes."""
    word = np.uint64(0)
    for probe in range(PROBES):
        top = run(program, at, length, probes, probe * _BOARD, stack)
        write_result(stack, top, result, 0)
        for k in range(_BOARD):
            word = mix(word + GAMMA + np.uint64(result[k]))
    return word


@njit(cache=True)
def write_splits(programs, splits):
    """The index of the split of every working program [num, cell]."""
    cells = programs.shape[1]
    flat, stack = programs.reshape(-1), new_stack(cells)
    probes, result = probe_inputs(), np.zeros(_BOARD, np.int8)
    for i in range(len(programs)):
        length = length_of(flat, i * cells, cells)
        word = behaviour(flat, i * cells, length, probes, stack, result)
        splits[i] = split_of_word(word)


@njit(cache=True)
def draw_program(rng, length, program):
    """Fill in well-typed tokens, each uniform among those that fit.

    Whether one value is left in the end, of a type that was drawn before: a list as often as an
    integer.
    """
    wanted = EMPTY << 1 | draw_below(rng, 2)
    for place in range(len(program)):
        program[place] = 0
    types = EMPTY
    for place in range(length):
        left = length - place - 1
        count, chosen = 0, 0
        for token in range(1, NUM_TOKENS + 1):
            after = types_after(types, token)
            # a token takes at most two values off the stack
            if after != WRONG and after >> (2 * left + 2) == 0:
                count += 1
                if draw_below(rng, count) == 0:
                    chosen = token
        if count == 0:
            return False
        program[place] = chosen
        types = types_after(types, chosen)
    return types == wanted


@njit(cache=True)
def every_token_matters(program, length, word, probes, stack, result, shorter):
    """Whether the behaviour of a program changes with each token that is deleted."""
    for place in range(length):
        for k in range(length - 1):
            shorter[k] = program[k + (k >= place)]
        if behaviour(shorter, 0, length - 1, probes, stack, result) == word:
            return False
    return True


@njit(cache=True)
def write_tests(rng, program, length, instance, cells, num, stack):
    """Draw inputs and write the outputs of the program beside them."""
    for test in range(num):
        board = cells + 2 * cells * test
        for k in range(2 * cells):
            instance[board + k] = 0
        draw_input(rng, instance, board)
        top = run(program, 0, length, instance, board, stack)
        write_result(stack, top, instance, board + cells)


@njit(cache=True)
def outputs_vary(instance, cells, tests):
    """Whether no output is that of more than two thirds of the visible tests."""
    for one in range(tests):
        same = 0
        for other in range(tests):
            equal = True
            for k in range(_BOARD):
                at = 2 * cells + k
                equal &= instance[at + 2 * cells * one] == instance[at + 2 * cells * other]
            same += equal
        if 3 * same > 2 * tests:
            return False
    return True


@njit(cache=True)
def put_fault(rng, plan, rules, mask):
    """Make one legal edit: its kind uniform among those possible, then the edit; whether one is."""
    cells = rules[0]
    size = cells * NUM_TOKENS
    kernels.write_mask(plan, 0, rules, mask, 0)
    kinds, first, last, number = 0, 0, 0, 0
    for kind in range(3):
        begin, end = kind * size, min((kind + 1) * size, 2 * size + cells)
        legal = count_ones(mask, begin, end)
        if legal > 0:
            kinds += 1
            if draw_below(rng, kinds) == 0:
                first, last, number = begin, end, legal
    if kinds == 0:
        return False
    rank = draw_below(rng, number)
    for action in range(first, last):
        if mask[action]:
            if rank == 0:
                kernels.apply_edit(plan, 0, cells, action)
                return True
            rank -= 1
    return False


@njit(cache=True)
def generate(instances, solutions, num_faults, first, last, stream, split, shape, tokens, faults):
    """Fill rows first..last - 1; -1, or the row for which no instance was found."""
    cells, tests, more = shape
    typed, untyped = (cells, tests, more, True), (cells, tests, more, False)
    probes, result = probe_inputs(), np.zeros(_BOARD, np.int8)
    program, plan, shorter = (
        np.zeros(cells, np.int8),
        np.zeros(cells, np.int8),
        np.zeros(cells, np.int8),
    )
    mask = np.empty((2, kernels.num_actions(cells)), np.int8)
    edited, found = np.empty((2, cells), np.int8), np.empty(2, np.int32)
    stack, rng = new_stack(cells), np.empty(1, np.int64)
    for index in range(first, last):
        rng[0] = np.int64(mix(stream + np.uint64(index + 1) * GAMMA))
        done = False
        instance = instances[index]
        for _ in range(MAX_TRIES):
            length = tokens[0] + draw_below(rng, tokens[1] - tokens[0] + 1)
            if not draw_program(rng, length, program):
                continue
            word = behaviour(program, 0, length, probes, stack, result)
            if split_of_word(word) != split:
                continue
            if not every_token_matters(program, length, word, probes, stack, result, shorter):
                continue
            write_tests(rng, program, length, instance, cells, tests + more, stack)
            if not outputs_vary(instance, cells, tests):
                continue
            copy_bytes(plan, 0, program, 0, cells)
            number = faults[0] + draw_below(rng, faults[1] - faults[0] + 1)
            broken = True
            for _ in range(number):
                broken &= put_fault(rng, plan, typed, mask[0])
            if not broken or passes(plan, 0, cells, instance, cells, tests, stack):
                continue
            if number > 1:
                first_repair(plan, 0, instance, cells, untyped, 1, mask, edited, stack, found)
                if found[0] >= 0:
                    continue
            copy_bytes(instance, 0, plan, 0, cells)
            copy_bytes(solutions[index], 0, program, 0, cells)
            num_faults[index, 0] = number
            done = True
            break
        if not done:
            return index
    return -1
