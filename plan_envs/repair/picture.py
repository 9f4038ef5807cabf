"""The picture of a program under repair: the program above its tests, and what it makes of them."""

from typing import Final

import numpy as np

from plan_envs.domain import Int8Array
from plan_envs.rendering import BLANK_INK, EDIT_INK, GIVEN_INK, PAPER, Picture
from plan_envs.repair import kernels
from plan_envs.repair.language import LIST, NAMES, NOTHING, WIDEST, ZERO

_GROUND: Final = (244, 244, 246)
_EDITED: Final = (206, 224, 250)
_PASSES: Final = (206, 240, 212)
_FAILS: Final = (252, 214, 208)
_INPUT: Final = (238, 238, 232)
"""Paper around the tables, of edited tokens, of right and wrong results, and of inputs."""
_SIGN_INK: Final = (110, 110, 118)

_BLOCK: Final = 1 + WIDEST
"""Columns of an input, of an output and of a result; a column of signs stands between them."""


def draw(instance: Int8Array, plan: Int8Array, tests: int) -> Picture:
    """The program, and below it a line for each test: input, expected output, result.

    A list has "[" before its elements, an input its integer. Between output and result stands "="
    where the test passes, else "!=".

    Args:
        instance: shape [instance]; its observed part will do.
        plan: shape [cell].
        tests: visible tests that an instance has room for.
    """
    cells = len(plan)
    boards = instance[: cells * (1 + 2 * tests)].reshape(-1, cells)
    results = np.zeros((tests, cells), np.int8)
    kernels.write_results(instance, plan, tests, results)
    shown = np.flatnonzero(boards[1::2, 0] != NOTHING)
    shape = (2 + len(shown), max(3 * _BLOCK + 2, cells))
    symbols = np.full(shape, " ", "<U4")
    paper = np.full((*shape, 3), _GROUND, np.uint8)
    ink = paper.copy()
    for cell, token in enumerate(plan.tolist()):
        edited = token != boards[0, cell]
        symbols[0, cell] = NAMES[token - 1] if token else "."
        paper[0, cell] = _EDITED if edited else PAPER
        ink[0, cell] = EDIT_INK if edited else GIVEN_INK if token else BLANK_INK
    for row, test in enumerate(shown, 2):
        given, wanted, made = boards[1 + 2 * test], boards[2 + 2 * test], results[test]
        passed = bool((wanted == made).all())
        blocks = ((given, _INPUT), (wanted, PAPER), (made, _PASSES if passed else _FAILS))
        for block, (codes, colour) in enumerate(blocks):
            first = block * (_BLOCK + 1)
            place = row, slice(first, first + _BLOCK)
            symbols[place] = [_sign(code) for code in codes[:_BLOCK].tolist()]
            paper[place], ink[place] = colour, GIVEN_INK
            if block < 2:
                symbols[row, first + _BLOCK] = (">", "=" if passed else "!=")[block]
                ink[row, first + _BLOCK] = _SIGN_INK
    none = np.zeros(shape, np.bool_)
    return Picture(
        symbols=symbols,
        ink=ink,
        paper=paper,
        bold=none,
        rule_below=none.copy(),
        rule_right=none.copy(),
        extent=(1, cells),
    )


def _sign(code: int) -> str:
    """What a code of a test's board is drawn as."""
    if code == NOTHING:
        return " "
    return "[" if code == LIST else str(code - ZERO)
