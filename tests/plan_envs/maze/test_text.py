"""Mazes as text: what is written in any way reads back, the rest is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.domain import Int8Array
from plan_envs.hub import read_instances
from plan_envs.maze.instances import read_maze_csv, read_maze_text
from plan_envs.maze.rules import Maze
from plan_envs.maze.text import guess_size, read_maze, read_mazes

WAYS: dict[str, Callable[[list[str]], str]] = {
    "line": "".join,
    "rows": "\n".join,
    "rows with a mark and ends of Windows": lambda rows: "\ufeff" + "\r\n".join(rows) + "\r\n",
    "slashes": "/".join,
    "commas": ",".join,
    "comments around": lambda rows: "; mine\n" + "\n".join(rows) + "\n; end\n",
    "empty lines around": lambda rows: "\n\n" + "\n".join(rows) + "\n\n\n",
    "trailing blanks lost": lambda rows: "\n".join(row.rstrip(" ") for row in rows) + "\n",
}


def maze_of(seed: int, size: int, walls: float) -> Int8Array:
    """Walls anywhere, one start, one goal; [row, column]."""
    rng = np.random.default_rng(seed)
    board = (rng.random(size * size) < walls).astype(np.int8)
    board[rng.permutation(size * size)[:2]] = 2, 3
    return board.reshape(size, size)


@pytest.mark.parametrize("way", WAYS)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(3, 12),
    walls=st.floats(0, 1),
    free=st.sampled_from(" .0_-\u2591"),
    wall=st.sampled_from("#1\u2588\u2593"),
    ends=st.sampled_from(["SG", "sg", "23"]),
)
@settings(max_examples=30)
def test_a_maze_reads_back(
    way: str, seed: int, size: int, walls: float, free: str, wall: str, ends: str
) -> None:
    board = maze_of(seed, size, walls)
    rows = ["".join((free + wall + ends)[value] for value in row) for row in board]
    assert np.array_equal(read_maze(WAYS[way](rows), size), board.reshape(-1))
    domain = Maze(size)
    assert np.array_equal(
        domain.read_instance(domain.write_instance(board.reshape(-1))), board.reshape(-1)
    )


@given(seed=st.integers(0, 2**32), size=st.integers(3, 8), num=st.integers(2, 4))
@settings(max_examples=30)
def test_a_text_of_many_mazes_gives_all_of_them(seed: int, size: int, num: int) -> None:
    boards = [maze_of(seed + k, size, 0.4) for k in range(num)]
    for way, gap in (("line", "\n"), ("rows", "\n\n"), ("comments around", "\n")):
        text = gap.join(WAYS[way](["".join(" #SG"[v] for v in row) for row in b]) for b in boards)
        assert np.array_equal(read_mazes(text, size)[1], np.reshape(boards, (num, -1))), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S .\n###\nG  ", "'.' at row 1, column 3 is a second sign for free cells beside ' '"),
        ("S  \n#1#\nG  ", "'1' at row 2, column 2 is a second sign for walls beside '#'"),
        ("S  \n#?#\nG  ", "'?' at row 2, column 2 is none of"),
        ("S..\n###\nG.", "row 3 of a 3x3 maze has 3 characters, got 2"),
        ("S  \n####\nG  ", "row 2 of a 3x3 maze has 3 characters, got 4"),
        ("S  \n###", "a 3x3 maze has 3 rows, got 2"),
        ("S  ###G", "a 3x3 maze has 9 characters, got 7"),
        ("", "a 3x3 maze has 3 rows, got 0"),
        ("S  \n###\nG  \n\nS  \n\n###\nG", "line 5: a maze of 3 rows has an empty line in it"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_mazes(text, 3)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_two_hundred_thousand_empty_lines_are_left_out_in_linear_time() -> None:
    board = read_maze("\n" * 10**5 + "S  \n# #\nG" + "\n" * 10**5, 3)
    assert board.tolist() == [2, 0, 0, 1, 0, 1, 3, 0, 0]


@given(
    text=st.text(" #.SGsg0123_-xo\u2588/,;\n\r\t\ufeff\u00b2", max_size=60), size=st.integers(3, 7)
)
@settings(max_examples=500)
def test_any_text_is_read_or_refused_in_one_line(text: str, size: int) -> None:
    assert guess_size(text) >= 0
    try:
        lines, boards = read_mazes(text, size)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len(lines) == len(boards) and boards.shape[1] == size * size


def test_mazes_of_a_text_are_instances(tmp_path: Path) -> None:
    path = tmp_path / "mazes.txt"
    path.write_text("\ufeffS \u2588\n\u2588 \u2588\nG\n\nS\n\u2588 \u2588\n  G\n", encoding="utf-8")
    found = read_instances(path, domain=Maze(3))
    assert found.instances.tolist() == [[2, 0, 1, 1, 0, 1, 3, 0, 0], [2, 0, 0, 1, 0, 1, 0, 0, 3]]
    assert found.ratings.tolist() == [5, 5]
    assert len(read_maze_text(path, size=3, limit=1)) == 1
    path.write_text("S #\n###\nG\n\nS..\n...\n..G\n")
    with pytest.raises(ValueError, match=r"mazes\.txt:1: the maze has a goal that cannot be reach"):
        read_maze_text(path, size=3)


def test_a_table_may_have_other_signs_too(tmp_path: Path) -> None:
    path = tmp_path / "mazes.csv"
    path.write_text("question,answer\nS01101G00,So11o1Go0\nS0#/#0#/G00,\n")
    found = read_maze_csv(path)
    assert found.instances.tolist() == [[2, 0, 1, 1, 0, 1, 3, 0, 0]] * 2
