"""Edits in words."""

import pytest

from plan_envs.catalogue import resolve_task
from trm.experiments.viewing.edits import edit_name


@pytest.mark.parametrize(
    ("task", "action", "words"),
    [
        ("sudoku9x9", 9, "1 at row 1, column 2"),
        ("nqueens8", 9, "place at row 2, column 2"),
        ("arc-tiny", 250, "height 1"),
        ("repair-tiny", 15, "replace sort at row 1, column 1"),
        ("repair-tiny", 144 + 15, "insert sort at row 1, column 1"),
        ("repair-tiny", 288, "delete at row 1, column 1"),
        ("repair-tiny", 294, "stop"),
    ],
)
def test_an_edit_is_named_with_its_kind_where_that_says_something(
    task: str, action: int, words: str
) -> None:
    assert edit_name(resolve_task(task).domain.spec, action) == words
