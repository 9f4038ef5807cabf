"""Real public puzzles: each row has one solution, the stated one; broken copies are refused."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from plan_envs.domain import PlanDomain
from plan_envs.evaluation import evaluate_policy, reference_policies
from plan_envs.hub import read_instances
from plan_envs.instances import InstanceSet
from plan_envs.maze.rules import Maze
from plan_envs.sudoku.instances import count_solutions, read_sudoku_csv, solve
from plan_envs.sudoku.rules import Sudoku

FILES = ("clue17", "easy_jumanji", "extreme_real", "graded_kaggle", "hard_forum")
ROWS = 2000


def rows_of(data_folder: Path, name: str, limit: int = ROWS) -> InstanceSet:
    path = data_folder / "sudoku" / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return read_sudoku_csv(path, limit=limit)


@pytest.mark.parametrize("name", FILES)
def test_every_real_puzzle_has_one_solution_and_it_is_the_stated_one(
    data_folder: Path, name: str
) -> None:
    puzzles = rows_of(data_folder, name)
    assert len(puzzles) == min(ROWS, 682 if name == "extreme_real" else ROWS)
    assert (count_solutions(puzzles.instances, side=9) == 1).all()
    assert np.array_equal(solve(puzzles.instances, side=9), puzzles.solutions)
    assert len(set(puzzles.keys.tolist())) == len(puzzles)


@pytest.mark.parametrize(
    ("name", "file", "domain"),
    [
        ("sapientinc/sudoku-extreme", "sudoku/extreme_real.csv", Sudoku(9)),
        ("sapientinc/maze-30x30-hard-1k", "maze/maze-30x30-hard.csv", Maze(30)),
    ],
)
def test_rows_of_a_public_set_are_read_by_its_name_on_the_hub(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, domain: PlanDomain
) -> None:
    path = data_folder / file
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    client = ModuleType("huggingface_hub")
    client.hf_hub_download = lambda *_, **__: str(path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    loaded = read_instances(name, domain=domain, limit=100)
    assert len(loaded) == 100 and loaded.name == f"{name}:train"
    assert domain.check(loaded.instances, loaded.solutions).solved.all()
    assert np.array_equal(loaded.keys, read_instances(path, domain=domain, limit=100).keys)


def test_seventeen_clue_puzzles_have_seventeen_givens(data_folder: Path) -> None:
    puzzles = rows_of(data_folder, "clue17")
    assert set((puzzles.instances > 0).sum(axis=1).tolist()) == {17}


def test_ratings_come_from_the_file(data_folder: Path) -> None:
    hard, easy = rows_of(data_folder, "hard_forum"), rows_of(data_folder, "easy_jumanji")
    assert hard.ratings.mean() > 5 > easy.ratings.mean()


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("question", lambda text: text[:-1], "question: a 9x9 puzzle has 81 cells, got 80"),
        ("question", lambda text: "x" + text[1:], "question: 'x' at row 1, column 1"),
        ("question", lambda text: text.replace(".", "1"), "conflicting givens"),
        ("question", lambda text: "." * 81, "several solutions"),
        ("answer", lambda text: text[1:] + text[:1], "answer does not solve the question"),
        ("answer", lambda text: "." + text[1:], "answer has blanks"),
        ("rating", lambda text: "hard", "rating must be a number"),
    ],
)
def test_a_real_file_with_one_broken_field_is_refused_with_file_and_line(
    data_folder: Path, tmp_path: Path, field: str, change: object, message: str
) -> None:
    rows_of(data_folder, "graded_kaggle", limit=1)
    lines = (data_folder / "sudoku" / "graded_kaggle.csv").read_text().splitlines()[:200]
    header, cells = lines[0].split(","), lines[150].split(",")
    place = header.index(field)
    cells[place] = change(cells[place])  # type: ignore[operator]
    lines[150] = ",".join(cells)
    path = tmp_path / "broken.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_sudoku_csv(path)
    assert str(error.value).startswith(f"{path}:151: ")


def test_real_easy_puzzles_fall_to_singles_and_hard_ones_do_not(data_folder: Path) -> None:
    def rate(name: str) -> float:
        domain, puzzles = Sudoku(9), rows_of(data_folder, name, limit=300)
        policy = reference_policies(domain, puzzles)["singles"]
        return evaluate_policy(policy, domain, puzzles).success_rate

    assert rate("easy_jumanji") > 0.95
    assert rate("hard_forum") < 0.1
