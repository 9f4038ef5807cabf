"""The made pages of docs/: equal to what the code makes now, true of what they describe."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from plan_envs.arc.rules import Arc
from plan_envs.catalogue import TASKS, resolve_task
from plan_envs.env import PlanEditEnv
from plan_envs.queens.rules import Queens
from plan_envs.repair.rules import Repair
from plan_envs.sudoku.rules import Sudoku
from trm.experiments import shipped_runs
from trm.experiments.intervals import wilson_interval

SPEC = importlib.util.spec_from_file_location(
    "make_pages", Path(__file__).parents[2] / "docs" / "make_pages.py"
)
assert SPEC is not None and SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
sys.modules["make_pages"] = pages  # its dataclasses look themselves up there
SPEC.loader.exec_module(pages)
FOLDER, PAGES, SCENES = pages.FOLDER, pages.PAGES, pages.SCENES
action_formula, made_pages, measure = pages.action_formula, pages.made_pages, pages.measure
write_png = pages.write_png

REFERENCES = json.loads((FOLDER / "environments" / "references.json").read_text())
MOST_BYTES = 60_000


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two head lines."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| .*$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


MADE = made_pages(FOLDER)


@pytest.mark.parametrize("path", MADE)
def test_a_committed_page_is_what_the_code_makes(path: str) -> None:
    assert (FOLDER / path).read_text(encoding="utf-8") == MADE[path], (
        "run `python docs/make_pages.py` and commit what it writes"
    )


def test_every_environment_has_its_page() -> None:
    described = [task for page in PAGES.values() for task in page.tasks]
    assert sorted(described) == sorted(TASKS)
    for name, page in PAGES.items():
        text = (FOLDER / "environments" / f"{name}.md").read_text()
        assert all(f"`{TASKS[task].env_id}`" in text for task in page.tasks)


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("arc")])
def test_the_spaces_of_a_page_are_those_of_the_environment(name: str) -> None:
    task = TASKS[name]
    spaces: Any = PlanEditEnv(task, instances=task.instances(num=1)).observation_space
    page = next(key for key, value in PAGES.items() if name in value.tasks)
    rows = rows_of(made_pages(FOLDER)[f"environments/{page}.md"], "Observation Space")
    told = next(row[1:] for row in rows if row[0] == f"`{name}`")
    expected = [
        f"{spaces[key].shape}, {spaces[key].low.min()}-{spaces[key].high.max()}"
        for key in ("instance", "plan")
    ]
    assert told == [*expected, f"{spaces['action_mask'].shape}, 0-1"]


@pytest.mark.parametrize(
    ("domain", "formulas"),
    [
        (Sudoku(9), ["cell * 9 + value - 1"]),
        (Sudoku(4), ["cell * 6 + value + 1", "cell * 6 + 1", "cell * 6", "96"]),
        (Queens(5, edits="full"), ["cell", "cell + 25", "50"]),
        (Repair(6), ["cell * 24 + value - 1", "cell * 24 + value + 143", "cell + 288", "294"]),
        (Arc(3), ["cell * 10 + value - 1", "value + 89", "value + 92", "96"]),
    ],
)
def test_the_formula_of_a_kind_gives_every_action_its_number(
    domain: Any, formulas: list[str]
) -> None:
    spec = domain.spec
    kinds = np.unique(spec.action_kind).tolist()
    assert [action_formula(spec, kind) for kind in kinds] == formulas
    for kind, formula in zip(kinds, formulas, strict=True):
        for action in np.flatnonzero(spec.action_kind == kind).tolist():
            places = {
                "cell": int(spec.action_cell[action]),
                "value": int(spec.action_value[action]),
            }
            assert eval(formula, {}, places) == action


def test_a_numbering_without_formula_is_refused() -> None:
    spec = Queens(4).spec
    mixed = dataclasses.replace(spec, action_cell=np.roll(spec.action_cell, 3))
    with pytest.raises(ValueError, match="queens4x4: kind place has no linear numbering"):
        action_formula(mixed, 0)


@pytest.mark.parametrize("name", ["nqueens8", "maze10"])
def test_the_scores_are_those_that_the_command_measures(name: str) -> None:
    heard: list[str] = []
    again = measure([name], num=REFERENCES["num"], seed=REFERENCES["seed"], announce=heard.append)
    assert again["scores"][name] == REFERENCES["scores"][name]
    assert len(heard) == len(REFERENCES["scores"][name])


def test_the_oracle_solves_everything_and_chance_does_not() -> None:
    assert set(REFERENCES["scores"]) == set(TASKS)
    for name, scores in REFERENCES["scores"].items():
        assert scores["oracle"]["success_rate"] == 1.0, name
        assert scores["random-legal"]["success_rate"] < 0.6, name


def test_every_option_of_a_task_is_explained() -> None:
    for name in PAGES:
        text = made_pages(FOLDER)[f"environments/{name}.md"]
        for rows in re.findall(r"\| option \|.*\n\| --- .*\n((?:\|.*\n)+)", text):
            for row in rows.splitlines():
                assert len(row.split(" | ")[2].strip(" |")) > 5, row


def pixels_of(file: Path) -> Any:
    """The pixels of a picture, uint8 [row, column, 3]."""
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.file)
def test_a_picture_is_committed_and_small(scene: pages.Scene) -> None:
    file = FOLDER / "pictures" / f"{scene.file}.png"
    assert file.stat().st_size < MOST_BYTES
    assert pixels_of(file).shape == (576, 576, 3)


@pytest.mark.parametrize("name", ["sudoku", "maze"])
def test_a_picture_shows_its_scene(name: str) -> None:
    pytest.importorskip("pygame", reason="frames need the extra render")
    scene = next(scene for scene in SCENES if scene.file == name)
    frame = pages.draw_scene(scene)
    shown = pixels_of(FOLDER / "pictures" / f"{name}.png").astype(int)
    # Fonts differ in a pixel from one pygame to the next; the picture does not.
    assert (np.abs(shown - frame).max(axis=2) > 60).mean() < 0.01


def test_a_png_keeps_every_pixel_while_its_colours_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (200, 3), np.uint8)
    frame = palette[rng.integers(0, 200, (30, 50))]
    write_png(tmp_path / "a.png", frame)
    assert np.array_equal(pixels_of(tmp_path / "a.png"), frame)


def test_a_png_has_at_most_256_colours_near_those_of_the_frame(tmp_path: Path) -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[..., 0] = np.arange(1600).reshape(40, 40) // 7
    frame[..., 1] = np.arange(1600).reshape(40, 40) % 7
    write_png(tmp_path / "b.png", frame)
    shown = pixels_of(tmp_path / "b.png")
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(shown.astype(int) - frame).max() < 16


def test_the_command_writes_the_pages_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages.main(["--docs", str(tmp_path)])
    written = capsys.readouterr().out.splitlines()
    assert written == [str(tmp_path / path) for path in MADE]
    text = (tmp_path / "environments" / "maze.md").read_text()
    assert "Not measured yet." in text
    with pytest.raises(SystemExit):
        pages.main(["--docs", str(tmp_path / "nowhere")])
    assert "is no folder" in capsys.readouterr().err


def test_the_first_table_lists_the_tasks_with_their_sizes() -> None:
    for name, page in PAGES.items():
        text = made_pages(FOLDER)[f"environments/{name}.md"]
        first = text.split("\n\n")[3].splitlines()[2:]
        for row, task_name in zip(first, sorted(page.tasks, key=list(TASKS).index), strict=True):
            cells = [cell.strip(" `") for cell in row.strip("|").split(" | ")]
            spec = resolve_task(cells[0]).domain.spec
            assert cells[1] == task_name
            assert int(cells[2].replace(",", "")) == spec.num_actions
            assert int(cells[3]) == spec.horizon and float(cells[4]) == spec.max_score


def test_every_command_has_its_help_on_the_page() -> None:
    page = MADE["reference/commands.md"]
    found = dict(pages.commands())
    assert {"upi-trm solve", "upi-trm baselines tune", "upi-trm supervised cache build"} <= set(
        found
    )
    for name, command in found.items():
        assert f"\n## {name}\n\n```text\nUsage: {name} " in page
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert all(name in page for option in options for name in option.opts)


def test_every_shipped_run_has_a_card_with_the_interval_of_its_record() -> None:
    names = shipped_runs.pretrained_names()
    assert names and {f"models/{name}.md" for name in names} <= set(MADE)
    card = MADE["models/sudoku9x9.md"]
    low, high = wilson_interval(0.94, 500)
    assert f"94.0% ({low:.1%} to {high:.1%})" in card
    assert "\n## Limits\n" in card and "\n## Licence\n" in card
