"""What the readers of texts share: decoding, comments, frames; and the guess what a text was."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.arc.rules import Arc
from plan_envs.domain import PlanDomain
from plan_envs.guess import guess_domain
from plan_envs.hub import read_instances
from plan_envs.maze import text as maze_text
from plan_envs.maze.rules import Maze
from plan_envs.queens import text as queens_text
from plan_envs.queens.rules import Queens
from plan_envs.repair import text as repair_text
from plan_envs.repair.rules import Repair
from plan_envs.sudoku import text as sudoku_text
from plan_envs.sudoku.rules import Sudoku
from plan_envs.texts import content_lines, read_text


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf1.\r\n")
    assert read_text(path) == "1.\r\n"
    assert [line.text for line in content_lines("\ufeff# a\n\ufeff")] == ["\ufeff"]


@pytest.mark.parametrize("domain", [Sudoku(4), Queens(4), Maze(4)], ids=lambda d: d.spec.name)
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_what_is_no_text_is_refused_by_its_name(
    tmp_path: Path, domain: PlanDomain, ending: str
) -> None:
    path = tmp_path / f"binary.{ending}"
    path.write_bytes(b"\xff\xfe1\x002\x00")  # UTF-16
    with pytest.raises(
        ValueError, match=rf"binary\.{ending}: ?.*not (text|readable as CSV)"
    ) as error:
        read_instances(path, domain=domain)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"/dev/null: no such file"):
        read_instances("/dev/null", domain=domain)


def test_frames_and_comments_are_left_out_and_lines_keep_their_numbers() -> None:
    text = "; mine\n+---+---+\n| 1 | . |  # one\n|---+---|\n\n"
    text += "\u2502 2 \u2502 . \u2502\n---------\n*-----*\n// end"
    lines = [(line.number, line.text, line.maybe_frame) for line in content_lines(text)]
    assert lines == [
        (3, "| 1 | . |", False),
        (6, "\u2502 2 \u2502 . \u2502", False),
        (7, "---------", True),
    ]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("." * 80, Sudoku(9)),
        ("1 2 | 3 4\n" * 4, Sudoku(4)),
        ("\n".join(["0123456789ABCDEF"] * 16), Sudoku(16)),
        ("123..." * 6, Sudoku(6)),
        ("<opensudoku", Sudoku(9)),
        (".Q......" * 8, Queens(8)),
        ("_ Q _ _\n" * 4, Queens(4)),
        ("3Q4/8/8/8/8/8/8/8", Queens(8)),
        ("8/8/8/8/8/8/8/8 w - - 0 1", Queens(8)),
        ("15860000", Queens(8)),
        ("10 2 0 0 0 0 0 0 0 0", Queens(10)),
        ("S.#\n#x#\nG..", Maze(3)),
        ("S #/# #/G  ", Maze(3)),
        ("S  # #  G", Maze(3)),
        ('{"train": []}', Arc()),
        ("xs n + | 1 [2] -> 3", Repair()),
        ("xs sort\n0 [2 1] \u2192 [1 2]", Repair()),
        ("12", None),
        ("nowhere", None),
        ("", None),
    ],
)
def test_what_a_text_was_meant_to_be_is_guessed(text: str, domain: PlanDomain | None) -> None:
    assert guess_domain(text) == domain


@given(text=st.text(max_size=50) | st.text("SG#.Qq0123456789/\n _-<{[", max_size=80))
@settings(max_examples=300)
def test_any_text_can_be_guessed_at(text: str) -> None:
    domain = guess_domain(text)
    assert domain is None or domain.spec.num_cells > 0


def test_every_form_that_a_page_lists_reads_as_the_same_instance() -> None:
    for domain, formats in (
        (Sudoku(4), sudoku_text.FORMATS),
        (Queens(4), queens_text.FORMATS),
        (Maze(3), maze_text.FORMATS),
        (Repair(), repair_text.FORMATS),
    ):
        boards = [domain.read_instance(example).tolist() for example in formats.values()]
        expected = boards[0]
        for name, board in zip(formats, boards, strict=True):
            placed = [0 if k in (8, 15) else v for k, v in enumerate(expected)]
            assert board == (placed if "placed" in name else expected), name
