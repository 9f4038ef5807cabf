"""The language of code repair in plain Python, written from the table of its tokens alone."""

from collections.abc import Sequence
from typing import Any

from plan_envs.repair.language import LEAST, MOST, WIDEST

Value = int | list[int]


def clamp(value: int) -> int:
    return min(max(value, LEAST), MOST)


OPERANDS = {
    **dict.fromkeys(("0", "1", "2", "n", "xs"), ""),
    **dict.fromkeys(("+", "-", "*", "<", "="), "ii"),
    "if": "iii",
    **dict.fromkeys(("sum", "max", "len", "head", "sort", "rev", "even"), "l"),
    **dict.fromkeys(("take", "drop", "add", "mul", "gt", "cons"), "li"),
}
LISTS_OUT = ("xs", "sort", "rev", "even", "take", "drop", "add", "mul", "gt", "cons")
MEANING: dict[str, Any] = {
    "+": lambda a, b: clamp(a + b),
    "-": lambda a, b: clamp(a - b),
    "*": lambda a, b: clamp(a * b),
    "<": lambda a, b: int(a < b),
    "=": lambda a, b: int(a == b),
    "if": lambda c, a, b: a if c > 0 else b,
    "sum": lambda xs: clamp(sum(xs)),
    "max": lambda xs: max(xs, default=0),
    "len": len,
    "head": lambda xs: xs[0] if xs else 0,
    "sort": sorted,
    "rev": lambda xs: xs[::-1],
    "even": lambda xs: [x for x in xs if x % 2 == 0],
    "take": lambda xs, k: xs[: max(k, 0)],
    "drop": lambda xs, k: xs[max(k, 0) :],
    "add": lambda xs, k: [clamp(x + k) for x in xs],
    "mul": lambda xs, k: [clamp(x * k) for x in xs],
    "gt": lambda xs, k: [x for x in xs if x > k],
    "cons": lambda xs, k: [k, *xs][:WIDEST],
}


def run_in_python(words: Sequence[str], n: int, xs: list[int]) -> Value | None:
    """The result of a program by the rules, None if it leaves none."""
    stack: list[Value] = []
    for word in words:
        count = len(OPERANDS[word])
        taken = stack[len(stack) - count :]
        kinds = "".join("l" if isinstance(value, list) else "i" for value in taken)
        if kinds != OPERANDS[word]:
            continue
        pushed = {"n": n, "xs": xs, "0": 0, "1": 1, "2": 2}
        value = pushed[word] if word in pushed else MEANING[word](*taken)
        stack[len(stack) - count :] = [value]
    return stack[-1] if stack else None


def types_in_python(words: Sequence[str]) -> str | None:
    """The types on the stack after a program; None if a token does not find its operands."""
    stack = ""
    for word in words:
        wanted = OPERANDS[word]
        if not stack.endswith(wanted):
            return None
        stack = stack[: len(stack) - len(wanted)] + ("l" if word in LISTS_OUT else "i")
    return stack
