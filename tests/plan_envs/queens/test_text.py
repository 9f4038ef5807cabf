"""Boards of queens as text: what is written in any way reads back, the rest is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.domain import Int8Array
from plan_envs.hub import read_instances
from plan_envs.queens.instances import enumerate_solutions, read_queens_csv, read_queens_text
from plan_envs.queens.rules import Queens
from plan_envs.queens.text import read_board, read_boards
from plan_envs.texts import BLANKS

Rows = list[list[str]]


def fen(board: Int8Array) -> str:
    """FEN of a board [row, column], written without the reader."""
    rows = []
    for row in board:
        text, empty = "", 0
        for square in [*row, 1]:  # the last one only ends the run
            if square:
                text += (str(empty) if empty else "") + "Q"
                empty = 0
            else:
                empty += 1
        rows.append(text[:-1])
    return "/".join(rows)


SQUARES: dict[str, Callable[[Rows], str]] = {
    "line": lambda rows: "".join(map("".join, rows)),
    "rows": lambda rows: "\n".join(map("".join, rows)),
    "slashes": lambda rows: "/".join(map("".join, rows)),
    "words": lambda rows: "\ufeff" + "\r\n".join(map(" ".join, rows)) + "\r\n",
    "commas": lambda rows: "\n".join(map(",".join, rows)),
    "drawn": lambda rows: "\n".join(
        "+---" * len(row) + "+\n| " + " | ".join(row) + " |" for row in rows
    ),
    "a comment behind": lambda rows: "\n".join(map("".join, rows)) + "  # mine",
}


def board_of(seed: int, n: int, share: float) -> Int8Array:
    """At most one queen a row, and one at least; [row, column]."""
    rng = np.random.default_rng(seed)
    board = (np.arange(n) == rng.integers(0, n, n)[:, None]) & (rng.random(n) < share)[:, None]
    board[0] = np.arange(n) == rng.integers(0, n)
    return board.astype(np.int8)


@pytest.mark.parametrize("way", SQUARES)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(4, 20),
    share=st.floats(0, 1),
    blank=st.sampled_from(BLANKS),
    queen=st.sampled_from("Qq\u2655\u265b"),
)
@settings(max_examples=30)
def test_a_board_of_squares_reads_back(
    way: str, seed: int, n: int, share: float, blank: str, queen: str
) -> None:
    board = board_of(seed, n, share)
    rows = [[queen if square else blank for square in row] for row in board]
    assert np.array_equal(read_board(SQUARES[way](rows), n), board.reshape(-1))


@given(seed=st.integers(0, 2**32), n=st.integers(4, 32), share=st.floats(0, 1))
@settings(max_examples=60)
def test_fen_zeros_and_ones_and_columns_read_back(seed: int, n: int, share: float) -> None:
    board = board_of(seed, n, share)
    digits = [[str(square) for square in row] for row in board]
    texts = [fen(board), fen(board) + " w - - 0 1", fen(board).lower()]
    texts += [SQUARES[way](digits) for way in ("line", "rows", "words", "drawn")]
    texts += [Queens(n).write_instance(board.reshape(-1))]
    for text in texts:
        assert np.array_equal(read_board(text, n), board.reshape(-1)), text


def test_empty_squares_between_bars_are_read() -> None:
    drawn = "| Q |   |   |   |\n|---|---|---|---|\n|   |   | Q |   |\n"
    with pytest.raises(ValueError, match="a 4x4 board is 16 squares or 4 columns"):
        read_board(drawn, 4)
    board = read_board(drawn * 2, 4)
    assert np.flatnonzero(board).tolist() == [0, 6, 8, 14]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".Q.. _... .... ....", "row 2, column 1: '_' is a second sign for no queen beside '.'"),
        ("1Q2/4/K3/4", "row 3, column 1 must be Q or '.', got 'K'"),
        ("4/4/4/2", "a 4x4 board is 16 squares or 4 columns, got '4/4/4/2'"),
        ("1Q2/4/4", "a 4x4 board is 16 squares or 4 columns, got '1Q2/4/4'"),
        (".Q..\n....\n....", "a 4x4 board is 16 squares or 4 columns"),
        (".Q.. .... .... ....\n" * 2, "the text holds 2 boards, not one"),
        ("", "a 4x4 board is 16 squares or 4 columns, got ''"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_board(text, 4)
    assert message in str(error.value) and "\n" not in str(error.value)


@given(
    text=st.text("0123456789Qqx._-*?KX|+/, #;:\n\r\t\u2502\u2655\u00b2\u0663\ufeff", max_size=80),
    n=st.integers(4, 12),
)
@settings(max_examples=500)
def test_any_text_is_read_or_refused_in_one_line(text: str, n: int) -> None:
    try:
        lines, boards = read_boards(text, n)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len(lines) == len(boards) and boards.shape[1] == n * n


# ---- files


def test_boards_of_a_text_are_instances_with_a_completion(tmp_path: Path) -> None:
    domain, path = Queens(8), tmp_path / "boards.fen"
    path.write_text("\ufeff# mine\n3Q4/8/8/8/8/8/8/8\n8/8/8/8/8/8/8/Q7\n", encoding="utf-8")
    found = read_instances(path, domain=domain)
    assert [np.flatnonzero(board).tolist() for board in found.instances] == [[3], [56]]
    assert domain.check(found.instances, found.solutions).solved.all()
    assert len(read_instances(path, domain=domain, limit=1)) == 1
    path.write_text("_ Q _ _\n_ _ _ _\n_ _ _ _\n_ _ _ _\n\n_ _ Q _\n" + "_ _ _ _\n" * 3)
    assert len(read_queens_text(path, n=4)) == 2


def test_solved_boards_of_a_text_give_instances_as_those_of_a_table(tmp_path: Path) -> None:
    boards = [board.reshape(8, 8) for board in enumerate_solutions(8)[:3]]
    text, table = tmp_path / "boards.txt", tmp_path / "boards.csv"
    text.write_text("\n".join(fen(board) for board in boards))
    table.write_text("Board\n" + "\n".join(fen(board) for board in boards))
    found = [read_queens_text(text, n=8, seed=3), read_queens_csv(table, seed=3)]
    assert np.array_equal(found[0].instances, found[1].instances)
    assert np.array_equal(found[0].solutions, [board.reshape(-1) for board in boards])


def test_a_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "boards.txt"
    for text, message in (
        ("4/4/4/4\nQ3/4/4/4\n", "boards.txt:2: no way to place 4 queens"),
        ("4/4/4/4\nQQ2/4/4/4\n", "boards.txt:2: no way to place 4 queens"),
        ("4/4/4/4\nQ2/4/4/4\n", "boards.txt: line 2: a 4x4 board is 16 squares"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            read_queens_text(path, n=4)
        assert message in str(error.value) and "\n" not in str(error.value)
