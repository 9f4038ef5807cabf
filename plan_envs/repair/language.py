"""The language of the programs: its tokens, its types, and the interpreter as numba kernels.

A program is a row of tokens in postfix order, which work on a stack of integers and short lists.
`n` pushes the integer of the input and `xs` its list; the result is what lies on top in the end.

| tokens | stack before -> after |
|---|---|
| `0` `1` `2` `n` | -> integer |
| `xs` | -> list |
| `+` `-` `*` | integer a, integer b -> a + b, a - b, a * b |
| `<` `=` | integer a, integer b -> 1 if a < b, a = b, else 0 |
| `if` | integer c, integer a, integer b -> a if c > 0, else b |
| `sum` `max` `len` `head` | list -> integer; 0 for the empty list |
| `sort` `rev` | list -> list: ascending, reversed |
| `take` `drop` | list, integer k -> the first k elements, all but these |
| `add` `mul` | list, integer k -> k added to every element, every element times k (maps) |
| `gt` | list, integer k -> the elements greater than k (a filter) |
| `even` | list -> the even elements (a filter) |
| `cons` | list, integer k -> k, then the list; what is then too long loses its last element |

Every program halts: each token runs once, and none takes more than `WIDEST` ** 2 operations. There
are no errors: integers are clamped to `LEAST`..`MOST`, and a token whose operands do not lie on the
stack does nothing. Nothing of Python is executed.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

NAMES: Final = (
    *("0", "1", "2", "n", "xs", "+", "-", "*", "<", "=", "if", "sum", "max", "len", "head"),
    *("sort", "rev", "take", "drop", "add", "mul", "gt", "even", "cons"),
)
"""Tokens 1.. as they are written; 0 is a blank, and blanks stand behind a program alone."""
NUM_TOKENS: Final = len(NAMES)
LEAST: Final = -9
MOST: Final = 99
"""Integers are clamped to this range, so that two characters write each."""
WIDEST: Final = 5
"""Elements of a list at most."""

NOTHING: Final = 0
LIST: Final = MOST - LEAST + 2
"""Codes of a board of a test: NOTHING, 1..LIST - 1 for the integers from LEAST on, and LIST, which
says that an output is a list."""
ZERO: Final = 1 - LEAST
"""The code of the integer 0."""

INTEGER: Final = -1
"""Stands on a stack in place of a list's length."""

_0, _1, _2, _N, _XS, _ADD, _SUB, _MUL, _LESS, _SAME, _IF, _SUM, _MAX, _LEN, _HEAD = range(1, 16)
_SORT, _REV, _TAKE, _DROP, _MAP_ADD, _MAP_MUL, _GREATER, _EVEN, _CONS = range(16, 25)


def _effect(operands: str, result: str) -> tuple[int, int, int]:
    """(operands, their types as bits with the topmost lowest, type of the result); 1 = list."""
    return len(operands), int("0" + operands.replace("i", "0").replace("l", "1"), 2), result == "l"


_ARITY, _OPERANDS, _RESULT = np.array(
    [
        (0, 0, 0),
        *[_effect("", "i")] * 4,
        _effect("", "l"),
        *[_effect("ii", "i")] * 5,
        _effect("iii", "i"),
        *[_effect("l", "i")] * 4,
        *[_effect("l", "l")] * 2,
        *[_effect("li", "l")] * 5,
        _effect("l", "l"),
        _effect("li", "l"),
    ],
    np.int64,
).T.copy()
"""Of every token, and of the blank: see `_effect`. Three tables, for kernels compile them fast."""

EMPTY: Final = 1
"""The types of an empty stack. Types of a stack are the bits of an integer below its highest 1."""
WRONG: Final = 0
"""Stands for the types of a stack on which a token did not find its operands."""


@njit(cache=True)
def types_after(types, token):
    """The types of a stack after a token; WRONG if its operands do not lie there."""
    arity = _ARITY[token]
    if types >> arity == 0 or types & ((1 << arity) - 1) != _OPERANDS[token]:
        return WRONG
    return types >> arity << 1 | _RESULT[token]


@njit(cache=True)
def types_of(program, at, length, types):
    """The types of a stack after a program that starts on a stack of `types`."""
    for k in range(length):
        if types == WRONG:
            break
        types = types_after(types, program[at + k])
    return types


@njit(cache=True)
def length_of(program, at, cells):
    """Tokens of a program: the cells before the first blank."""
    length = 0
    while length < cells and program[at + length] != 0:
        length += 1
    return length


@njit(cache=True)
def new_stack(cells):
    """Room for the values of a program of so many tokens: length or INTEGER, then the elements."""
    return np.empty((cells + 1, 1 + WIDEST), np.int64)


@njit(cache=True, forceinline=True)
def clamped(value):
    """The nearest integer of the language."""
    return min(max(value, LEAST), MOST)


@njit(cache=True)
def _sort(stack, top, length):
    """Sort a list on the stack, ascending."""
    for last in range(2, length + 1):
        for k in range(last, 1, -1):
            before, after = stack[top, k - 1], stack[top, k]
            if before <= after:
                break
            stack[top, k - 1], stack[top, k] = after, before


@njit(cache=True)
def _of_integers(token, a, b):
    """Arithmetic and comparisons."""
    if token == _ADD:
        return clamped(a + b)
    if token == _SUB:
        return clamped(a - b)
    if token == _MUL:
        return clamped(a * b)
    return np.int64(a < b) if token == _LESS else np.int64(a == b)


@njit(cache=True)
def _folded(token, stack, top):
    """The integer that a token makes of a list."""
    length = stack[top, 0]
    if token == _LEN:
        return length
    value = stack[top, 1] if length > 0 else 0
    for k in range(2, length + 1):
        if token == _SUM:
            value += stack[top, k]
        elif token == _MAX:
            value = max(value, stack[top, k])
    return clamped(value)


@njit(cache=True)
def _map_list(token, stack, top, k):
    """Change a list on the stack, with the integer `k` where the token takes one."""
    length = stack[top, 0]
    if token == _SORT:
        _sort(stack, top, length)
    elif token == _REV:
        for i in range(1, length // 2 + 1):
            last = stack[top, length + 1 - i]
            stack[top, length + 1 - i], stack[top, i] = stack[top, i], last
    elif token == _TAKE:
        stack[top, 0] = min(max(k, 0), length)
    elif token == _DROP:
        first = min(max(k, 0), length)
        for i in range(1, length - first + 1):
            stack[top, i] = stack[top, i + first]
        stack[top, 0] = length - first
    elif token == _CONS:
        length = min(length + 1, WIDEST)
        for i in range(length, 1, -1):
            stack[top, i] = stack[top, i - 1]
        stack[top, 1] = k
        stack[top, 0] = length
    elif token == _MAP_ADD or token == _MAP_MUL:
        for i in range(1, length + 1):
            value = stack[top, i]
            stack[top, i] = clamped(value + k if token == _MAP_ADD else value * k)
    else:  # the filters
        kept = 0
        for i in range(1, length + 1):
            value = stack[top, i]
            if (value > k) if token == _GREATER else (value % 2 == 0):
                kept += 1
                stack[top, kept] = value
        stack[top, 0] = kept


@njit(cache=True)
def _has_operands(token, stack, top):
    """Whether the operands of a token lie on the stack."""
    if top + 1 < _ARITY[token]:
        return False
    for k in range(_ARITY[token]):
        if (stack[top - k, 0] != INTEGER) != ((_OPERANDS[token] >> k) & 1):
            return False
    return True


@njit(cache=True)
def run(program, at, length, tests, board, stack):
    """Run a program on one input; the place of its result on the stack, -1 if there is none.

    Args:
        program: flat tokens, of which those at..at + length - 1 are run.
        at: where the program begins.
        length: its tokens, none of them blank.
        tests: flat codes.
        board: where in `tests` the input begins: its integer, then its list.
        stack: of `new_stack`.
    """
    top = -1
    for place in range(at, at + length):
        token = program[place]
        if not _has_operands(token, stack, top):
            continue
        if token <= _N:
            top += 1
            stack[top, 0] = INTEGER
            stack[top, 1] = token - 1 if token < _N else tests[board] - ZERO
        elif token == _XS:
            top += 1
            size = 0
            while size < WIDEST and tests[board + 1 + size] != NOTHING:
                stack[top, 1 + size] = tests[board + 1 + size] - ZERO
                size += 1
            stack[top, 0] = size
        elif token <= _SAME:
            top -= 1
            stack[top, 1] = _of_integers(token, stack[top, 1], stack[top + 1, 1])
        elif token == _IF:
            top -= 2
            stack[top, 1] = stack[top + 1, 1] if stack[top, 1] > 0 else stack[top + 2, 1]
        elif token <= _HEAD:
            stack[top, 1] = _folded(token, stack, top)
            stack[top, 0] = INTEGER
        else:
            k = np.int64(0)
            if _ARITY[token] == 2:
                k = stack[top, 1]
                top -= 1
            _map_list(token, stack, top, k)
    return top


@njit(cache=True)
def is_result(stack, top, tests, board):
    """Whether the result of a run is the output that begins at `board`."""
    if top < 0:
        return False
    size = stack[top, 0]
    if size == INTEGER:
        return tests[board] == stack[top, 1] + ZERO
    if tests[board] != LIST:
        return False
    for k in range(size):
        if tests[board + 1 + k] != stack[top, 1 + k] + ZERO:
            return False
    return size == WIDEST or tests[board + 1 + size] == NOTHING


@njit(cache=True)
def write_result(stack, top, tests, board):
    """Write the result of a run as an output; nothing where there is none."""
    for k in range(1 + WIDEST):
        tests[board + k] = NOTHING
    if top < 0:
        return
    size = stack[top, 0]
    tests[board] = stack[top, 1] + ZERO if size == INTEGER else LIST
    for k in range(size):
        tests[board + 1 + k] = stack[top, 1 + k] + ZERO


@njit(cache=True)
def count_passed(program, at, length, tests, first, num, cells, stack, quick):
    """(tests passed, tests that there are) of `num` pairs of boards from `first` on.

    With `quick` it ends at the first test that fails: the two numbers then differ.
    """
    passed, present = 0, 0
    for test in range(num):
        board = first + 2 * cells * test
        if tests[board] == NOTHING:
            continue
        present += 1
        top = run(program, at, length, tests, board, stack)
        passed += is_result(stack, top, tests, board + cells)
        if quick and passed < present:
            break
    return passed, present
