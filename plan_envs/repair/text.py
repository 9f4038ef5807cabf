"""Repair instances as text: the program in words, then its tests, one a line or parted by `|`.

A program is the names of its tokens (`plan_envs.repair.language.NAMES`), parted by blanks, or "."
for none. A test is an integer, a list and, behind an arrow, the output; `hidden` before it says
that learners do not see it. What follows a "#" is a comment.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from plan_envs.domain import Int8Array
from plan_envs.repair.language import LEAST, LIST, MOST, NAMES, NOTHING, WIDEST, ZERO
from plan_envs.texts import shorten

FORMATS: Final = {
    "a program and its tests, one a line": "xs rev n take\n1 [3 5] -> [3]\n2 [4 1] -> [4 1]",
    "in one line": "xs rev n take | 1 [3 5] -> [3] | 2 [4 1] -> [4 1]",
    "lists with commas": "xs rev n take | 1 [3, 5] -> [3] | 2 [4, 1] -> [4, 1]",
    "with a program that works": (
        "xs rev n take | 1 [3 5] -> [3] | 2 [4 1] -> [4 1] | fixed xs n take"
    ),
}
"""What `read_repair` reads -> an example, for the page of the environment."""

HIDDEN: Final = "hidden"
FIXED: Final = "fixed"
"""The words before a hidden test, and before a program that works."""

_TEST: Final = re.compile(r"(\S+)\s*\[([^\]]*)\]\s*(?:->|\u2192)\s*(.*)", re.DOTALL)
_CODE_OF: Final = {name: token for token, name in enumerate(NAMES, 1)}


class Parts(NamedTuple):
    """The parts of the text of one instance, as written."""

    program: str
    tests: list[str]
    hidden: list[str]
    fixed: str | None


def parts_of(lines: Sequence[str]) -> Parts:
    """Take the text of an instance apart.

    Raises:
        ValueError: if there is no program, or a second one that works.
    """
    pieces = [piece.strip() for line in lines for piece in line.partition("#")[0].split("|")]
    pieces = [piece for piece in pieces if piece]
    if not pieces or "[" in pieces[0]:
        raise ValueError("a program stands before its tests, got none ('.' is an empty one)")
    tests: list[str] = []
    hidden: list[str] = []
    fixed: list[str] = []
    for piece in pieces[1:]:
        word, _, rest = piece.partition(" ")
        if word == HIDDEN:
            hidden.append(rest)
        elif word == FIXED:
            fixed.append(rest)
        else:
            tests.append(piece)
    if len(fixed) > 1:
        raise ValueError(f"there are {len(fixed)} programs behind {FIXED!r}, not one")
    return Parts(pieces[0], tests, hidden, fixed[0] if fixed else None)


def read_repair(text: str, *, length: int, tests: int, hidden: int) -> Int8Array:
    """Read one instance, shape [instance]; a program that works is read over.

    Args:
        text: see the module.
        length: tokens that a program has room for.
        tests: visible tests that an instance has room for.
        hidden: hidden ones.

    Raises:
        ValueError: one line that names the word, or the test, that is wrong.
    """
    return instance_of(
        parts_of(text.removeprefix("\ufeff").splitlines()),
        length=length,
        tests=tests,
        hidden=hidden,
    )


def instance_of(parts: Parts, *, length: int, tests: int, hidden: int) -> Int8Array:
    """The instance of the parts of a text; see `read_repair`."""
    boards = np.zeros((1 + 2 * (tests + hidden), length), np.int8)
    boards[0] = read_program(parts.program, length)
    groups = ((parts.tests, tests, 0, "test"), (parts.hidden, hidden, tests, "hidden test"))
    for given, room, first, name in groups:
        if len(given) > room:
            raise ValueError(f"there is room for {room} {name}s, got {len(given)}")
        for number, one in enumerate(given):
            at = 1 + 2 * (first + number)
            try:
                boards[at], boards[at + 1] = _read_test(one, length)
            except ValueError as error:
                raise ValueError(f"{name} {number + 1}: {error}") from None
    return boards.reshape(-1)


def read_program(text: str, length: int) -> Int8Array:
    """The tokens of a program, shape [cell].

    Raises:
        ValueError: names the word that is no token, or the number of tokens.
    """
    words = [word for word in text.split() if word != "."]
    for word in words:
        if word not in _CODE_OF:
            raise ValueError(f"{shorten(word)!r} is no token; there are {' '.join(NAMES)}")
    if len(words) > length:
        raise ValueError(f"a program has at most {length} tokens, got {len(words)}")
    program = np.zeros(length, np.int8)
    program[: len(words)] = [_CODE_OF[word] for word in words]
    return program


def write_program(program: Int8Array) -> str:
    """A program in words."""
    return " ".join(NAMES[token - 1] for token in program.tolist() if token) or "."


def write_output(board: Int8Array) -> str:
    """An output in words: an integer or a list; "nothing" where there is none."""
    codes = board.tolist()
    if codes[0] == NOTHING:
        return "nothing"
    if codes[0] != LIST:
        return str(codes[0] - ZERO)
    values = [str(code - ZERO) for code in codes[1 : 1 + WIDEST] if code != NOTHING]
    return f"[{' '.join(values)}]"


def write_repair(instance: Int8Array, *, length: int, tests: int) -> str:
    """One line, as `read_repair` reads it back."""
    boards = instance.reshape(-1, length)
    parts = [write_program(boards[0])]
    for test, (given, wanted) in enumerate(zip(boards[1::2], boards[2::2], strict=True)):
        if given[0] != NOTHING:
            hidden = f"{HIDDEN} " if test >= tests else ""
            values = write_output(np.concatenate([[LIST], given[1:]]))
            parts.append(f"{hidden}{given[0] - ZERO} {values} -> {write_output(wanted)}")
    return " | ".join(parts)


def texts_of(text: str) -> list[tuple[int, Parts]]:
    """(line, parts) of every instance of a text: one a line, or with empty lines between them.

    Raises:
        ValueError: names the line of an instance that cannot be taken apart.
    """
    blocks: list[tuple[int, list[str]]] = []
    apart = True
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        shown = line.partition("#")[0].strip()
        if not shown:
            apart = apart or not line.strip()
            continue
        if apart or "|" in shown:
            blocks.append((number, []))
        blocks[-1][1].append(shown)
        apart = "|" in shown
    found = []
    for number, lines in blocks:
        try:
            found.append((number, parts_of(lines)))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return found


def _read_test(text: str, length: int) -> tuple[Int8Array, Int8Array]:
    """The input and the output board of a test."""
    match = _TEST.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{shorten(text)!r} is not like '2 [4 1] -> [1 4]' or '2 [4 1] -> 5'")
    given, wanted = np.zeros((2, length), np.int8)
    given[0] = _code(match[1])
    _write_list(given, match[2])
    output = match[3].strip()
    if output.startswith("[") and output.endswith("]"):
        wanted[0] = LIST
        _write_list(wanted, output[1:-1])
    else:
        wanted[0] = _code(output)
    return given, wanted


def _write_list(board: Int8Array, text: str) -> None:
    words = text.replace(",", " ").split()
    if len(words) > WIDEST:
        raise ValueError(f"a list has at most {WIDEST} elements, got {len(words)}")
    board[1 : 1 + len(words)] = [_code(word) for word in words]


def _code(word: str) -> int:
    """The code of an integer."""
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", word):
        raise ValueError(f"{shorten(word)!r} is no integer")
    if not LEAST <= int(word) <= MOST:
        raise ValueError(f"integers lie in {LEAST}..{MOST}, got {word}")
    return int(word) + ZERO
