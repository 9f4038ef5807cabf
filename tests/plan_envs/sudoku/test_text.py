"""Sudoku as text: what is written in any way reads back, and what cannot be read says why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sudoku_writers import ANY, SINGLE, SMALL, alphabets, board_of, cells_of

from plan_envs.hub import read_instances
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.instances import read_sudoku_csv, read_sudoku_text
from plan_envs.sudoku.rules import Sudoku
from plan_envs.sudoku.text import format_line, guess_side, parse_puzzle, read_puzzles
from plan_envs.texts import BLANKS

SIDES = sorted(BOX_SHAPES)
LINE_4 = "1.....3..4.....2"


# ---- every way reads back


@pytest.mark.parametrize("way", [*SINGLE, *ANY])
@pytest.mark.parametrize("side", SIDES)
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    blank=st.sampled_from(BLANKS),
)
@settings(max_examples=12)
def test_a_puzzle_reads_back_however_it_is_written(
    way: str, side: int, seed: int, share: float, blank: str
) -> None:
    board = board_of(seed, side, share)
    for name, alphabet in alphabets(side).items():
        if blank.upper() in alphabet or (way in SINGLE and name == "numbers"):
            continue
        text = (SINGLE | ANY)[way](cells_of(board, alphabet, blank))
        for asked in (side, None):
            assert np.array_equal(parse_puzzle(text, side=asked)[0], board), (name, text)
        if "X" not in alphabet and name != "numbers":
            assert np.array_equal(parse_puzzle(text.lower(), side=side)[0], board)


@pytest.mark.parametrize("way", SMALL)
@given(seed=st.integers(0, 2**32), side=st.sampled_from([4, 6, 9]))
@settings(max_examples=10)
def test_a_puzzle_reads_back_out_of_its_container(way: str, seed: int, side: int) -> None:
    board = board_of(seed, side, 0.4)
    text = SMALL[way](cells_of(board, alphabets(side)["ours"], "0"))
    assert np.array_equal(parse_puzzle(text)[0], board)


@given(seed=st.integers(0, 2**32), side=st.sampled_from(SIDES), share=st.floats(0, 1))
@settings(max_examples=60)
def test_our_own_line_reads_back_for_any_board(seed: int, side: int, share: float) -> None:
    """Also of boards that lack the digits by which an alphabet is known."""
    rng = np.random.default_rng(seed)
    most = rng.integers(1, side + 1)
    board = rng.integers(1, most + 1, side * side) * (rng.random(side * side) < share)
    line = format_line(board.astype(np.int8), side)
    assert np.array_equal(parse_puzzle(line, side=side)[0], board)
    assert "\n" not in line


@given(seed=st.integers(0, 2**32), side=st.sampled_from(SIDES), num=st.integers(2, 5))
@settings(max_examples=20)
def test_a_text_of_many_puzzles_gives_all_of_them(seed: int, side: int, num: int) -> None:
    boards = np.stack([board_of(seed + k, side, 0.5) for k in range(num)])
    ours = alphabets(side)["ours"]
    for way in ("line", "rows", "a comment behind", "a comment without a sign"):
        text = "\n\n".join(SINGLE[way](cells_of(board, ours, ".")) for board in boards)
        lines, found = read_puzzles(text, side=side)
        assert np.array_equal(found, boards)
        assert lines == [1 + k * (side + 1 if way == "rows" else 2) for k in range(num)]


def test_a_cell_with_several_candidates_is_blank() -> None:
    board = board_of(0, 9, 0.3)
    cells = [
        str(value) if value else ("13", "2468", "123456789")[k % 3] for k, value in enumerate(board)
    ]
    for way in ("blanks between", "Simple Sudoku", "HoDoKu"):
        assert np.array_equal(parse_puzzle(ANY[way](cells))[0], board)


def test_what_was_placed_in_hodokus_library_is_no_given() -> None:
    board = board_of(3, 9, 0.3)
    cells = cells_of(board, alphabets(9)["ours"], ".")
    placed = ["+5" if k == board.argmin() else cell for k, cell in enumerate(cells)]
    assert np.array_equal(parse_puzzle(f":0000:x:{''.join(placed)}:::")[0], board)


def test_all_games_of_a_file_of_opensudoku_are_read() -> None:
    boards = [board_of(seed, 9, 0.3) for seed in range(3)]
    games = "".join(f"<game data='{''.join(map(str, board))}'/>" for board in boards)
    text = f"\ufeff<?xml version='1.0' encoding='UTF-8'?>\n<opensudoku>{games}</opensudoku>"
    assert np.array_equal(read_puzzles(text, side=9)[1], boards)


# ---- the whole text decides


def test_in_hexadecimal_a_zero_beside_another_blank_is_a_given() -> None:
    board = board_of(1, 16, 0.4)
    text = SINGLE["rows"](cells_of(board, alphabets(16)["hex"], "."))
    assert "0" in text
    assert np.array_equal(parse_puzzle(text)[0], board)


def test_in_hexadecimal_tables_too_the_whole_column_decides(tmp_path: Path) -> None:
    boards = [board_of(seed, 16, 0.4) for seed in range(3)]
    boards[0][boards[0] == 1] = 0  # the first row has no "0" of its own
    hexa = alphabets(16)["hex"]
    path = tmp_path / "hex.csv"
    rows = ["".join(cells_of(board, hexa, ".")) for board in boards]
    path.write_text("question\n" + "\n".join(rows) + "\n")
    found = read_sudoku_csv(path, require_unique=False)
    assert np.array_equal(found.instances, boards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0_" + "." * 12, r"'0' at row 1, column 3 is a second sign for blanks beside '\.'"),
        ("12x4" + "." * 12, r"'x' at row 1, column 3 is a second sign for blanks beside '\.'"),
        ("." * 250 + "1F34A2", r"as 1-9 and A-G with '\.' .* and as 0-9 and A-F with '\.' for"),
        ("." * 250 + "ABCDEF", r"as 1-9 and A-G with '\.' .* and as 0-9 and A-F with '\.' for"),
        ("." * 248 + "0G234567", "'0' at row 16, column 9 is a second sign for blanks"),
        ("." * 250 + "ABCDEH" + "1", "got 257"),
        ("." * 250 + "1BCDEH", "'H' at row 16, column 16 is no blank"),
        (
            "~" + "." * 15,
            r"'~' at row 1, column 1 is no blank \(\. _ 0 - \* \? x\) and no digit of",
        ),
        ("1 2 | 3 4\n" * 3 + "1 2 | 3 17", "'17' at row 4, column 4 is no blank"),
    ],
)
def test_a_text_with_two_readings_or_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_puzzle(text)
    assert "\n" not in str(error.value)


def test_a_zero_that_stands_for_blanks_is_no_digit() -> None:
    board = board_of(2, 16, 0.4)
    board[board == 16] = 0  # no G tells the alphabets apart, but a row with two zeros does
    text = "".join(cells_of(board, alphabets(16)["ours"], "0"))
    assert np.array_equal(parse_puzzle(text)[0], board)
    solved = board_of(2, 16, 1.0)
    solved[-1] = solved[:-1].sum() * 0 + (set(range(1, 17)) - set(solved[-16:-1].tolist())).pop()
    solved[solved == 16] = 0  # every row has one zero: a digit, or the only blank
    with pytest.raises(ValueError, match="as 1-9 and A-G with '0' for blanks and as 0-9 and A-F"):
        parse_puzzle("".join(cells_of(solved, alphabets(16)["ours"], "0")))
    assert np.array_equal(parse_puzzle(format_line(solved, 16))[0], solved)


def test_lines_of_dashes_are_rows_where_dashes_are_blanks() -> None:
    assert format_line(parse_puzzle("1234\n----\n----\n34-2"), 4) == "1234........34.2"
    assert format_line(parse_puzzle("----\n" * 4), 4) == "." * 16
    assert format_line(parse_puzzle("12|34\n34|12\n-----\n21|43\n43|2.\n"), 4) == "123434122143432."


# ---- what is wrong


@pytest.mark.parametrize(
    ("text", "side", "message"),
    [
        ("." * 80, None, "a 9x9 puzzle has 81 cells, got 80"),
        ("\n".join(["." * 9] * 8 + ["." * 8]), None, "got 80: line 9 has 8 cells"),
        ("\n".join(["." * 9] * 8), 9, "got 72: 8 of 9 rows"),
        ("." * 81 + "\n" + "." * 81, 9, "the text holds 2 puzzles, not one"),
        (LINE_4 + " " + LINE_4, 4, "a 4x4 puzzle has 16 cells, got 32"),
        (" ".join([LINE_4] * 16), 4, "a 4x4 puzzle has 16 cells, got 256"),
        ("", 4, "a 4x4 puzzle has 16 cells, got 0"),
        ("<a>", None, "not readable as XML"),
        ("<opensudoku/>", None, "holds no <game>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", None, "declares a document type or entities"),
        ("<game data='123'/>", None, "got 3"),
    ],
)
def test_a_wrong_number_of_cells_is_said(text: str, side: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_puzzle(text, side=side)
    assert "\n" not in str(error.value)


def test_a_row_of_another_size_is_not_made_up_from_its_neighbours() -> None:
    """Four rows of nine are 36 cells, and no 6x6."""
    with pytest.raises(ValueError, match="a 9x9 puzzle has 81 cells, got 36"):
        parse_puzzle("\n".join(["1.......2"] * 4))


@pytest.mark.parametrize(
    ("text", "side"),
    [("." * 80, 9), ("." * 35, 6), ("\n".join(["." * 16] * 16), 16), ("." * 7, None), ("", None)],
)
def test_the_side_that_was_meant_is_guessed(text: str, side: int | None) -> None:
    assert guess_side(text) == side


SIGNS = "0123456789ABCDEFGHPxX._-*?|+=:'/,;#[]<>&! \t\n\r\u2502\u2500\ufeff\u00b2\u0663~\x00\x85"


@given(text=st.text(SIGNS, max_size=300), side=st.sampled_from([None, *SIDES]))
@settings(max_examples=500)
def test_any_text_is_read_or_refused_in_one_line(text: str, side: int | None) -> None:
    try:
        lines, boards = read_puzzles(text, side=side)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len(lines) == len(boards) and boards.dtype == np.int8


@given(
    way=st.sampled_from([*SINGLE, *ANY, *SMALL]),
    seed=st.integers(0, 2**32),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["", *SIGNS])), min_size=1, max_size=3
    ),
)
@settings(max_examples=500)
def test_a_text_with_faults_is_read_or_refused_in_one_line(
    way: str, seed: int, edits: list[tuple[float, str]]
) -> None:
    text = (SINGLE | ANY | SMALL)[way](cells_of(board_of(seed, 9, 0.4), alphabets(9)["ours"], "0"))
    for place, sign in edits:
        index = int(place * len(text))
        text = text[:index] + sign + text[index + 1 :]
    try:
        parse_puzzle(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


# ---- files


def test_files_of_every_kind_are_instances(tmp_path: Path) -> None:
    folder, domain = tmp_path, Sudoku(9)
    board = board_of(5, 9, 0.5)
    ours = cells_of(board, alphabets(9)["ours"], "0")
    for name, write in (SINGLE | ANY | SMALL).items():
        path = folder / f"{name}.txt".replace(" ", "_")
        path.write_text(write(ours), encoding="utf-8")
        found = read_instances(path, domain=domain)
        assert np.array_equal(found.instances, [board]), name
        assert domain.check(found.instances, found.solutions).solved.all()
    many = folder / "many.sdm"
    many.write_text("\n".join(["".join(ours)] * 3 + ["", "# end"]))
    assert len(read_instances(many, domain=domain)) == 3
    assert len(read_instances(many, domain=domain, limit=2)) == 2


def test_kaggles_tables_are_read_by_their_own_names(tmp_path: Path) -> None:
    path = tmp_path / "kaggle.csv"
    for header in (
        "quizzes,solutions",
        "puzzle,solution",
        "Puzzle,Solution",
        "\ufeffquestion,answer",
    ):
        path.write_text(
            f"{header}\n{LINE_4.replace('.', '0')},1324423124133142\n", encoding="utf-8"
        )
        found = read_sudoku_csv(path)
        assert format_line(found.instances, 4) == LINE_4
        assert format_line(found.solutions, 4) == "1324423124133142"
    path.write_text(f"id,puzzle,solution,clues,difficulty\n1,{LINE_4},1324423124133142,4,2.5\n")
    assert read_sudoku_csv(path).ratings.tolist() == [2.5]
    path.write_text(f"puzzle,quizzes\n{LINE_4},{LINE_4}\n")
    with pytest.raises(ValueError, match=r":1: header has several columns of questions"):
        read_sudoku_csv(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LINE_4}\n\n{LINE_4[:-1]}?\n", r"bad\.sdm: line 3: '\?' at row 4, column 4"),
        (f"{LINE_4}\n{LINE_4}1\n", r"bad\.sdm: a 4x4 puzzle has 16 cells, got 33: line 2 has 17"),
        (f"{LINE_4}\n11{LINE_4[2:]}\n", r"bad\.sdm:2: question has conflicting givens"),
        ("\ufeff", r"bad\.sdm: a 4x4 puzzle has 16 cells, got 0"),
        ("", r"bad\.sdm: a 4x4 puzzle has 16 cells, got 0"),
    ],
)
def test_a_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.sdm"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_sudoku_text(path, side=4, require_unique=False)
    assert "\n" not in str(error.value)
