"""Drawings: every symbol in its place, givens, edits and conflicts told apart, for every side."""

import builtins
import re
import sys
from typing import Any

import numpy as np
import pytest

from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.rendering import render_ansi, render_rgb
from plan_envs.sudoku import Sudoku
from plan_envs.sudoku_instances import format_grid, parse_puzzle, sudoku_instances

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def example(side: int) -> tuple[DomainSpec, Int8Array, Int8Array]:
    """A puzzle with its first blank filled wrongly, its last one rightly."""
    pool = sudoku_instances(side=side, num=1)
    plan = pool.instances[0].copy()
    first, last = np.flatnonzero(plan == 0)[[0, -1]]
    plan[last] = pool.solutions[0, last]
    row = plan[first // side * side :][:side]
    plan[first] = row[row > 0][0] if (row > 0).any() else 1
    return Sudoku(side).spec, pool.instances[0], plan


@pytest.mark.parametrize("side", [4, 6, 9, 16])
def test_plain_text_is_the_grid_that_reads_back(side: int) -> None:
    spec, instance, plan = example(side)
    text = render_ansi(spec, instance, plan, color=False)
    assert "\x1b" not in text
    assert np.array_equal(parse_puzzle(text)[0], plan)
    assert text.splitlines()[0] == format_grid(plan, side).splitlines()[0]
    rules = [line for line in text.splitlines() if set(line) <= set("-+")]
    assert len({len(line) for line in text.splitlines() if line not in rules}) == 1
    for rule in rules:
        crossings = [i for i, c in enumerate(rule) if c == "+"]
        assert crossings == [i for i, c in enumerate(text.splitlines()[0]) if c == "|"]


def test_colours_tell_givens_edits_and_conflicts_apart() -> None:
    spec = Sudoku(4).spec
    instance = parse_puzzle("1.....3........2")[0]
    plan = parse_puzzle("1.1.4.3........2")[0]
    text = render_ansi(spec, instance, plan)
    assert ESCAPE.sub("", text) == render_ansi(spec, instance, plan, color=False)
    first, second = text.splitlines()[:2]
    assert first == "\x1b[1m\x1b[31m1\x1b[0m . | \x1b[31m1\x1b[0m ."  # given and edit, in conflict
    assert second == "\x1b[34m4\x1b[0m . | \x1b[1m3\x1b[0m ."  # edit, given


@pytest.mark.parametrize("side", [4, 6, 9, 16])
@pytest.mark.parametrize("size", [300, 576])
def test_a_frame_has_the_size_asked_for_and_differs_where_the_plan_does(
    side: int, size: int
) -> None:
    spec, instance, plan = example(side)
    frame, start = (
        render_rgb(spec, instance, plan, size=size),
        render_rgb(spec, instance, instance, size=size),
    )
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    margin = max(4, size // 48)
    pitch = (size - 2 * margin) / side
    changed = (frame != start).any(axis=2)
    cells = {
        (int((y - margin) / pitch), int((x - margin) / pitch))
        for y, x in np.argwhere(changed).tolist()
    }
    edited = {divmod(int(c), side) for c in np.flatnonzero(plan != instance)}
    assert edited <= cells
    # Besides edits, only cells that now conflict with one may change.
    assert len(cells) <= len(edited) + 3


def test_givens_edits_and_conflicts_have_their_own_colours() -> None:
    spec = Sudoku(4).spec
    instance = parse_puzzle("1.....3........2")[0]
    plan = parse_puzzle("1.1.4.3........2")[0]
    frame = render_rgb(spec, instance, plan, size=408)  # margin 8, cells of 98 pixels

    def ink(row: int, column: int) -> tuple[int, ...]:
        """The colour farthest from white inside a cell."""
        inside = frame[8 + 98 * row + 8 :, 8 + 98 * column + 8 :][:82, :82].reshape(-1, 3)
        return tuple(inside[inside.astype(int).sum(axis=1).argmin()].tolist())

    def ground(row: int, column: int) -> tuple[int, ...]:
        return tuple(frame[8 + 98 * row + 10, 8 + 98 * column + 10].tolist())

    given, edit = ink(3, 3), ink(1, 0)
    assert max(given) < 60 and edit[2] > edit[0] + 60
    conflict = ink(0, 2)
    assert conflict[0] > conflict[2] + 60
    assert ink(0, 0) == given  # a given in conflict keeps its ink and gets the red ground
    assert ground(0, 0) == ground(0, 2) != ground(1, 2)
    assert ground(1, 0) == (255, 255, 255) != ground(3, 3)


def test_unfit_arguments_are_refused_by_name() -> None:
    spec, instance, plan = example(9)
    with pytest.raises(ValueError, match="plan must have 81 cells, got 80"):
        render_ansi(spec, instance, plan[:-1])
    with pytest.raises(ValueError, match="size must be at least 108 pixels, got 50"):
        render_rgb(spec, instance, plan, size=50)


def test_without_pygame_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_pygame(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pygame"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    for module in [name for name in sys.modules if name.split(".")[0] == "pygame"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_pygame)
    with pytest.raises(ImportError, match=r"pip install upi-trm\[render\]"):
        render_rgb(*example(4))
