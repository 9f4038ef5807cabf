"""Programs and tests as text: what is read, what is written, what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_envs.hub import read_instances
from plan_envs.repair.instances import read_repair_text, repair_instances
from plan_envs.repair.language import LIST, NAMES, ZERO
from plan_envs.repair.rules import Repair
from plan_envs.repair.text import texts_of

DOMAIN = Repair(6, 2, 1)
LINE = "xs n take | 1 [3 5] -> [3] | hidden 0 [4] -> []"


def test_a_text_becomes_the_program_and_a_board_for_each_input_and_output() -> None:
    boards = DOMAIN.read_instance(LINE).reshape(-1, 6)
    xs, n, take = (1 + NAMES.index(word) for word in ("xs", "n", "take"))
    assert boards.tolist() == [
        [xs, n, take, 0, 0, 0],
        [1 + ZERO, 3 + ZERO, 5 + ZERO, 0, 0, 0],
        [LIST, 3 + ZERO, 0, 0, 0, 0],
        [0] * 6,
        [0] * 6,
        [ZERO, 4 + ZERO, 0, 0, 0, 0],
        [LIST, 0, 0, 0, 0, 0],
    ]
    assert DOMAIN.write_instance(boards.reshape(-1)) == LINE


@given(seed=st.integers(0, 1000))
def test_what_is_written_is_read_back(seed: int) -> None:
    for domain in (Repair(), Repair(7, 3, 0)):
        room = {"length": domain.length, "tests": domain.tests, "hidden": domain.hidden}
        (instance,) = repair_instances(**room, num=1, seed=seed, tokens=(3, 6)).instances
        again = domain.read_instance(domain.write_instance(instance))
        assert np.array_equal(again, instance)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a program stands before its tests"),
        ("1 [2] -> 3", "a program stands before its tests"),
        ("xs twice | 1 [2] -> 3", "'twice' is no token; there are 0 1 2 n xs"),
        ("xs rev rev rev rev rev rev | 1 [] -> 2", "a program has at most 6 tokens, got 7"),
        ("xs | 1 [2]", "test 1: '1 [2]' is not like '2 [4 1] -> [1 4]'"),
        ("xs | 1 [2] -> 3 | 1 [a] -> 4", "test 2: 'a' is no integer"),
        ("xs | 1 [2] -> 100", "test 1: integers lie in -9..99, got 100"),
        ("xs | 1 [1 2 3 4 5 6] -> 1", "test 1: a list has at most 5 elements, got 6"),
        ("xs | 1 [] -> 1 | 1 [] -> 1 | 1 [] -> 1", "there is room for 2 tests, got 3"),
        ("xs | hidden 1 [] -> ", "hidden test 1: '' is no integer"),
        ("xs | 1 [] -> 1 | fixed xs | fixed n", "there are 2 programs behind 'fixed'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        DOMAIN.read_instance(text)
    assert "\n" not in str(caught.value)


@given(text=st.text(max_size=40) | st.text("xsn take|[]->0123,#.\n", max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        instance = DOMAIN.read_instance(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert instance.shape == (DOMAIN.spec.instance_size,)


def test_a_file_holds_instances_one_a_line_or_apart(tmp_path: Path) -> None:
    file = tmp_path / "programs.txt"
    file.write_text(
        "# two forms\n"
        "xs len | 0 [7 1] -> 8 | 1 [2] -> 2\n\n"
        "n 2 +  # a comment\n4 [] -> 8\n3 [1] -> 6\nfixed n 2 *\n"
    )
    found = read_repair_text(file, domain=DOMAIN)
    assert len(found) == 2 and found.ratings.tolist() == [1, 1]
    assert DOMAIN.check(found.instances, found.solutions).solved.all()
    assert [line for line, _ in texts_of(file.read_text())] == [2, 4]
    few = read_instances(file, domain=DOMAIN, limit=1)
    assert np.array_equal(few.instances, found.instances[:1])
    found.save(tmp_path / "programs.npz")
    again = read_instances(tmp_path / "programs.npz", domain=DOMAIN)
    assert np.array_equal(again.keys, found.keys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no programs"),
        ("n | 1 [] -> 1 | fixed 2", ":1: .*'fixed' fails a visible test"),
        ("xs | 1 [] -> 77", ":1: one or two edits do not repair the program"),
        ("xs | hidden 1 [] -> 1", ":1: there is no visible test"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "programs.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_repair_text(file, domain=DOMAIN)
