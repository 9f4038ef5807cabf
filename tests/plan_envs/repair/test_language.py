"""The interpreter against one in plain Python, written from the table of the tokens alone."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repair_in_python import Value, run_in_python, types_in_python

from plan_envs.domain import Int8Array
from plan_envs.repair import kernels, language
from plan_envs.repair.language import LEAST, LIST, MOST, NAMES, WIDEST, ZERO

CELLS = 8
TOKENS = st.lists(st.sampled_from(NAMES), max_size=CELLS)
INTEGERS = st.integers(LEAST, MOST)
LISTS = st.lists(INTEGERS, max_size=WIDEST)


def tokens_of(words: Sequence[str]) -> Int8Array:
    program = np.zeros(CELLS, np.int8)
    program[: len(words)] = [1 + NAMES.index(word) for word in words]
    return program


def run_compiled(words: Sequence[str], n: int, xs: list[int]) -> Value | None:
    """What the compiled interpreter makes of the same, by way of the codes of boards."""
    instance = np.zeros(3 * CELLS, np.int8)
    instance[CELLS : CELLS + 1 + len(xs)] = np.array([n, *xs]) + ZERO
    result = np.zeros((1, CELLS), np.int8)
    kernels.write_results(instance, tokens_of(words), 1, result)
    codes = result[0].tolist()
    if codes[0] == 0:
        return None
    if codes[0] != LIST:
        assert not any(codes[1:])
        return int(codes[0]) - ZERO
    return [code - ZERO for code in codes[1:] if code]


@given(words=TOKENS, n=INTEGERS, xs=LISTS)
def test_a_program_does_what_the_table_says(words: list[str], n: int, xs: list[int]) -> None:
    assert run_compiled(words, n, xs) == run_in_python(words, n, xs)


@pytest.mark.parametrize(("n", "xs"), [(2, [3, -1, 4, -1, 6]), (-2, [])])
def test_every_program_of_three_tokens_does_so(n: int, xs: list[int]) -> None:
    for words in product(NAMES, repeat=3):
        assert run_compiled(words, n, xs) == run_in_python(words, n, xs), words


@given(words=TOKENS)
def test_types_are_those_of_the_values(words: list[str]) -> None:
    expected = types_in_python(words)
    types = language.types_of(tokens_of(words), 0, len(words), language.EMPTY)
    if expected is None:
        assert types == language.WRONG
    else:
        bits = "1" + expected.replace("i", "0").replace("l", "1")
        assert types == int(bits, 2)


@pytest.mark.parametrize(
    ("program", "n", "xs", "result"),
    [
        ("xs sort 2 take sum", 0, [5, 1, 3], 4),
        ("xs n gt len 0 <", 2, [1, 2], 0),
        ("n 2 < n n n * if", 5, [], 25),
        ("xs n cons rev", 7, [1, 2, 3, 4, 5], [4, 3, 2, 1, 7]),
        ("n n *", 20, [], MOST),
        ("0 n - n -", 9, [], LEAST),
        ("xs sum", 0, [99, 99, -9, -9, -9], MOST),
        ("xs max 1 +", 0, [], 1),
        ("+ sort 1 if take", 3, [4], 1),  # what finds no operands does nothing
        ("", 3, [4], None),
    ],
)
def test_results_that_were_worked_out_by_hand(
    program: str, n: int, xs: list[int], result: Value | None
) -> None:
    assert run_compiled(program.split(), n, xs) == result
