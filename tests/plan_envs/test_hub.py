"""Instances by name: files of every kind, and data sets of the hub, cached or out of reach."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from plan_envs.arc.rules import Arc
from plan_envs.domain import PlanDomain
from plan_envs.hub import HUB_NAMES, load_hub, read_instances
from plan_envs.instances import InstanceSet
from plan_envs.maze.rules import Maze
from plan_envs.queens.rules import Queens
from plan_envs.sudoku.instances import format_line, sudoku_instances
from plan_envs.sudoku.rules import Sudoku

EXTREME, MAZES = HUB_NAMES
HEADER = "source,question,answer,rating\n"
MAZE = "S  # #  G"


def write_sudokus(path: Path, *, num: int = 3, split: str = "train", side: int = 9) -> InstanceSet:
    puzzles = sudoku_instances(side=side, split=split, num=num)
    lines = [HEADER]
    for i in range(num):
        boards = (puzzles.instances[i], puzzles.solutions[i])
        question, answer = (format_line(board, side) for board in boards)
        lines.append(f"made,{question},{answer},{i}\n")
    path.write_text("".join(lines))
    return puzzles


def write_maze(path: Path) -> None:
    path.write_text(f"{HEADER}made,{MAZE},,\n")


Client = Callable[..., str]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], None]:
    """Put a download function in the place of huggingface_hub's; no test may reach the network."""

    def put(download: Client) -> None:
        module = ModuleType("huggingface_hub")
        module.hf_hub_download = download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return put


class FakeHub:
    """The hub as `hf_hub_download` shows it: a cache of files, and a server that may be down."""

    def __init__(self, cache: Path, *, reachable: bool = True) -> None:
        self.cache, self.reachable = cache, reachable
        self.downloads: list[str] = []

    def __call__(
        self,
        repo_id: str,
        filename: str,
        *,
        repo_type: str,
        local_files_only: bool,
    ) -> str:
        assert repo_type == "dataset"
        path = self.cache / repo_id / filename
        if path.exists():
            return str(path)
        if local_files_only:
            raise FileNotFoundError("Cannot find the requested files in the disk cache\nand so on.")
        if not self.reachable:
            refused = ConnectionRefusedError(111, "Connection refused")
            raise FileNotFoundError("An error happened.\nPlease check.") from refused
        path.parent.mkdir(parents=True, exist_ok=True)
        if repo_id == EXTREME:
            write_sudokus(path, split=path.stem)
        else:
            write_maze(path)
        self.downloads.append(f"{repo_id}/{filename}")
        return str(path)


def test_a_data_set_is_downloaded_once_and_then_read_from_the_cache(
    tmp_path: Path, client: Callable[[Client], None]
) -> None:
    hub = FakeHub(tmp_path)
    client(hub)
    loaded = load_hub(EXTREME)
    assert np.array_equal(loaded.keys, sudoku_instances(num=3).keys)
    assert loaded.name == f"{EXTREME}:train" and loaded.ratings.tolist() == [0, 1, 2]
    assert len(load_hub(EXTREME, limit=2)) == 2
    test = load_hub(EXTREME, split="test")
    assert np.array_equal(test.keys, sudoku_instances(split="test", num=3).keys)
    assert hub.downloads == [f"{EXTREME}/train.csv", f"{EXTREME}/test.csv"]
    hub.reachable = False
    assert len(load_hub(EXTREME)) == 3  # a cached file needs no network


def test_mazes_of_the_hub_are_read_as_mazes(
    tmp_path: Path, client: Callable[[Client], None]
) -> None:
    client(FakeHub(tmp_path))
    mazes = load_hub(MAZES)
    assert mazes.instances.tolist() == [[2, 0, 0, 1, 0, 1, 0, 0, 3]]
    assert mazes.ratings.tolist() == [5] and mazes.name == f"{MAZES}:train"


def test_offline_a_cached_file_is_read_and_a_missing_one_named(
    tmp_path: Path, client: Callable[[Client], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path)
    client(hub)
    load_hub(EXTREME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert len(load_hub(EXTREME)) == 3
    with pytest.raises(OSError, match=r"test\.csv cannot be had .* offline\).* by hand") as error:
        load_hub(EXTREME, split="test")
    assert str(error.value).startswith(f"{EXTREME}: ") and "\n" not in str(error.value)
    assert hub.downloads == [f"{EXTREME}/train.csv"]


def test_a_hub_that_cannot_be_reached_is_said_in_one_line_with_what_to_do(
    tmp_path: Path, client: Callable[[Client], None]
) -> None:
    client(FakeHub(tmp_path, reachable=False))
    with pytest.raises(OSError, match="Connection refused") as error:
        load_hub(MAZES, split="test")
    message = str(error.value)
    assert message.startswith(f"{MAZES}: test.csv ") and "\n" not in message
    assert "download test.csv by hand and pass its path" in message


def test_a_client_that_fails_in_its_own_way_is_reported_alike(
    client: Callable[[Client], None],
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("401 Client Error.\nAccess is restricted.")

    client(broken)
    with pytest.raises(OSError, match=r"\(401 Client Error\.\)"):
        load_hub(EXTREME)


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'upi-trm\[hub\]'"):
        load_hub(EXTREME)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("sudoku-extreme", "train", "unknown data set .* nearest is 'sapientinc/sudoku-extreme'"),
        ("sapientinc/maze-30x30", "train", f"the nearest is '{MAZES}'"),
        ("", "train", "the nearest is"),
        (EXTREME, "validation", "must be one of train, test, got 'validation'"),
    ],
)
def test_unknown_names_and_splits_are_refused(name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hub(name, split=split)


def test_a_download_that_is_no_puzzle_file_is_refused_by_its_path(
    tmp_path: Path, client: Callable[[Client], None]
) -> None:
    path = tmp_path / "train.csv"
    path.write_text("<html>\n")
    client(lambda *_, **__: str(path))
    with pytest.raises(ValueError, match=r"train\.csv:1: header must name the columns"):
        load_hub(EXTREME)


# ---- one entry point


def test_a_file_or_a_name_gives_the_same_instances(
    tmp_path: Path, client: Callable[[Client], None]
) -> None:
    client(FakeHub(tmp_path))
    puzzles = write_sudokus(tmp_path / "mine.csv")
    puzzles.save(tmp_path / "mine.npz")
    for source in (tmp_path / "mine.csv", str(tmp_path / "mine.npz"), EXTREME, f"{EXTREME}:train"):
        assert np.array_equal(read_instances(source, domain=Sudoku(9)).keys, puzzles.keys)
        part = read_instances(source, domain=Sudoku(9), limit=2)
        assert np.array_equal(part.keys, puzzles.keys[:2])
    test = read_instances(f"{EXTREME}:test", domain=Sudoku(9))
    assert test.name == f"{EXTREME}:test" and not np.isin(test.keys, puzzles.keys).any()


def test_every_domain_reads_its_own_files(tmp_path: Path) -> None:
    write_maze(tmp_path / "maze.csv")
    assert read_instances(tmp_path / "maze.csv", domain=Maze(3)).ratings.tolist() == [5]
    (tmp_path / "queens.csv").write_text("board\n.Q.....QQ.....Q.\n..Q.Q......Q.Q..\n")
    boards = read_instances(tmp_path / "queens.csv", domain=Queens(4))
    assert boards.solutions.sum(axis=1).tolist() == [4, 4]
    pair = {"input": [[1, 0]], "output": [[0, 1]]}
    (tmp_path / "tasks").mkdir()
    task = {"train": [pair, pair], "test": [pair]}
    (tmp_path / "tasks" / "swap.json").write_text(json.dumps(task))
    domain = Arc(size=2, demonstrations=2)
    tasks = read_instances(tmp_path / "tasks", domain=domain)
    assert tasks.solutions.tolist() == [[1, 2, 0, 0]]
    assert domain.check(tasks.instances, tasks.solutions).solved.all()


def test_puzzles_of_a_file_may_have_several_solutions_but_answers_must_solve_them(
    tmp_path: Path,
) -> None:
    path, blank, answer = tmp_path / "loose.csv", "." * 16, "1234341221434321"
    path.write_text(f"question,answer\n{blank},{answer}\n{blank},\n")
    found = read_instances(path, domain=Sudoku(4))
    assert format_line(found.solutions[0], 4) == answer
    assert Sudoku(4).check(found.instances, found.solutions).solved.all()
    path.write_text(f"question,answer\n{blank},{answer}\n{blank},{answer[:-2]}12\n")
    with pytest.raises(ValueError, match=r"loose\.csv:3: answer does not solve the question"):
        read_instances(path, domain=Sudoku(4))
    path.write_text(f"question,answer\n11{blank[2:]},{answer}\n")
    with pytest.raises(ValueError, match=r"loose\.csv:2: question has conflicting givens"):
        read_instances(path, domain=Sudoku(4))


@pytest.mark.parametrize(
    ("source", "domain", "message"),
    [
        ("none.csv", Sudoku(9), r"none\.csv: no such file"),
        ("none.npz", Sudoku(9), r"none\.npz: no such file"),
        ("sudoku-extrem", Sudoku(9), f"neither a file nor a data set .* '{EXTREME}'"),
        ("none.sdm", Sudoku(9), r"none\.sdm: no such file"),
        ("mine.txt", Sudoku(9), r"mine\.txt: a 9x9 puzzle has 81 cells, got 3"),
        ("mine.csv", Sudoku(4), r"mine\.csv:2: question: a 4x4 puzzle has 16 cells, got 81"),
        ("mine.npz", Sudoku(4), r"mine\.npz: .* of sudoku4x4 must be .* \[batch, 16\]"),
        (MAZES, Sudoku(9), rf"{MAZES}: .* instances of sudoku9x9 must be .* \[batch, 81\]"),
        (f"{EXTREME}:dev", Sudoku(9), "must be one of train, test, got 'dev'"),
        ("mine.csv", Arc(size=2, demonstrations=1), r"mine\.csv"),
    ],
)
def test_a_source_that_will_not_do_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: Callable[[Client], None],
    source: str,
    domain: PlanDomain,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    client(FakeHub(tmp_path / "cache"))
    puzzles = write_sudokus(Path("mine.csv"))
    puzzles.save("mine.npz")
    Path("mine.txt").write_text("...")
    with pytest.raises(ValueError, match=message) as error:
        read_instances(source, domain=domain)
    assert "\n" not in str(error.value)


def test_the_file_of_a_new_domain_is_an_npz(tmp_path: Path) -> None:
    class Toy(Sudoku):
        """A domain without a reader of its own."""

        @property
        def spec(self) -> Any:
            return replace(super().spec, name="toy")

    puzzles = write_sudokus(tmp_path / "toy.csv", side=4)
    puzzles.save(tmp_path / "toy.npz")
    assert len(read_instances(tmp_path / "toy.npz", domain=Toy(4))) == 3
    with pytest.raises(ValueError, match=r"toy\.csv: toy has no reader of CSV files"):
        read_instances(tmp_path / "toy.csv", domain=Toy(4))
