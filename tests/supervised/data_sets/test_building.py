"""Building token data sets: seeds repeat, kills lose nothing, splits stay apart, faults named."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from plan_envs.maze.instances import maze_instances
from plan_envs.maze.rules import Maze
from plan_envs.queens.instances import enumerate_solutions, symmetry_class
from plan_envs.sudoku.instances import format_line, sudoku_instances
from supervised.cli import supervised
from supervised.data_sets import board_plans, building
from supervised.data_sets.board_plans import (
    EXTREME_ROWS,
    choose_rows,
    extreme_index,
    maze_hard_plan,
    maze_plan,
    queens_plan,
    sudoku_extreme_plan,
    sudoku_plan,
)
from supervised.data_sets.building import BuildPlan, build_dataset
from supervised.data_sets.datasets import BoardDataset, TokenDataset
from supervised.data_sets.folders import check_files, open_dataset, read_info
from trm.runs.lock import locked

SMALL = {"train": 30, "validation": 5, "test": 5}


def small_sudoku(**options: Any) -> BuildPlan:
    return sudoku_plan(**{"side": 4, **SMALL, **options})


def boards_of(folder: Path, split: str) -> tuple[Any, Any]:
    found = open_dataset(folder, split)
    assert isinstance(found, BoardDataset)
    batch = found.batch(range(len(found)))
    return found.codec.decode(batch.inputs.numpy(), batch.labels.numpy())


def every_label_solves(found: TokenDataset) -> bool:
    batch = found.batch(range(len(found)))
    return bool(found.verdict(batch, batch.labels).solved.all())


def write_csv(path: Path, num: int = 40, split: str = "train", **changes: str) -> Path:
    """A CSV of Sudoku as the public sets are; `changes` replace fields of the third row."""
    puzzles = sudoku_instances(side=9, num=num, split=split, givens=(40, 50))
    rows = []
    for k in range(num):
        boards = (puzzles.instances[k], puzzles.solutions[k])
        question, answer = (format_line(board, 9) for board in boards)
        row = {"source": "made", "question": question, "answer": answer, "rating": "0"}
        rows.append(row | changes if k == 2 else row)
    lines = [",".join(row.values()) for row in rows]
    path.write_text("\n".join(["source,question,answer,rating", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    "plan",
    [
        lambda seed: small_sudoku(seed=seed),
        lambda seed: sudoku_plan(side=9, givens=(40, 50), seed=seed, **SMALL),
        lambda seed: maze_plan(size=6, seed=seed, **SMALL),
        lambda seed: queens_plan(n=6, seed=seed, **SMALL),
        lambda seed: queens_plan(hold_out="class", seed=seed, images=2, **SMALL),
    ],
)
def test_a_seed_gives_one_data_set_and_another_seed_another(
    tmp_path: Path, plan: Callable[[int], BuildPlan]
) -> None:
    one, same, other = (
        build_dataset(tmp_path / name, plan(seed))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one.hash == same.hash != other.hash
    assert one == read_info(tmp_path / "one")
    check_files(tmp_path / "one", one)
    for split, count in one.counts.items():
        found = open_dataset(tmp_path / "one", split)
        assert len(found) == count and every_label_solves(found)


def test_a_build_killed_at_any_write_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(board_plans.PIECE_SIZES, "sudoku", 12)  # 3 training pieces
    whole = build_dataset(tmp_path / "whole", small_sudoku())
    write = building.replace_durably
    for survived in range(13):  # writes: the request, 5 pieces, 6 arrays, the description
        out, left = tmp_path / f"killed{survived}", survived

        def dying(path: Path, data: bytes) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            write(path, data)

        monkeypatch.setattr(building, "replace_durably", dying)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(out, small_sudoku())
        with pytest.raises(ValueError, match="building has not ended"):
            read_info(out)
        monkeypatch.setattr(building, "replace_durably", write)
        assert build_dataset(out, small_sudoku()).hash == whole.hash
        names = [path.name for path in sorted(out.iterdir())]
        assert names == ["dataset.json", "test", "train", "validation"]


def test_a_killed_build_makes_no_piece_twice(tmp_path: Path) -> None:
    made: list[str] = []
    plan = small_sudoku()

    def counted(key: str, make: Callable[[], Any]) -> Callable[[], Any]:
        def wrapped() -> Any:
            if key == "validation-00000" and "killed" not in made:
                made.append("killed")
                raise KeyboardInterrupt
            made.append(key)
            return make()

        return wrapped

    pieces = {key: counted(key, make) for key, make in plan.pieces.items()}
    slow = BuildPlan(name=plan.name, options=plan.options, pieces=pieces, finish=plan.finish)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(tmp_path / "d", slow)
    build_dataset(tmp_path / "d", slow)
    assert made == ["train-00000", "killed", "validation-00000", "test-00000"]


def test_the_range_of_given_queens_follows_the_size() -> None:
    assert [queens_plan(n=n).options["given"] for n in (6, 8)] == [(1, 5), (1, 7)]


def test_a_complete_data_set_is_left_alone_and_another_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "d"
    first = build_dataset(out, small_sudoku())
    before = (out / "train" / "inputs.npy").stat().st_mtime_ns
    assert build_dataset(out, small_sudoku()) == first
    assert (out / "train" / "inputs.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds another data set \(seed is 0, not 3\)"):
        build_dataset(out, small_sudoku(seed=3))
    with pytest.raises(ValueError, match=r"holds another data set \(name is 'sudoku'"):
        build_dataset(out, maze_plan(size=6, **SMALL))
    (out / "train" / "inputs.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"inputs\.npy: damaged"):
        build_dataset(out, small_sudoku())


def test_an_unfinished_build_with_other_options_and_a_full_folder_are_refused(
    tmp_path: Path,
) -> None:
    out = tmp_path / "d"
    (out / ".building").mkdir(parents=True)
    (out / ".building" / "request.json").write_text('{"name": "sudoku", "options": {}}')
    with pytest.raises(ValueError, match="an unfinished build has other options"):
        build_dataset(out, small_sudoku())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="full: not empty, and no data set"):
        build_dataset(tmp_path / "full", small_sudoku())


def test_two_builders_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "d" / ".building").mkdir(parents=True)
    with (
        locked(tmp_path / "d", "is at work", file=".building/lock"),
        pytest.raises(ValueError, match=rf"d: process {os.getpid()} is building there"),
    ):
        build_dataset(tmp_path / "d", small_sudoku())
    build_dataset(tmp_path / "d", small_sudoku())


def test_images_follow_their_puzzle_and_keep_its_answer(tmp_path: Path) -> None:
    plain = build_dataset(tmp_path / "plain", small_sudoku())
    info = build_dataset(tmp_path / "images", small_sudoku(images=3))
    assert info.counts == {**plain.counts, "train": 30 * 4}
    found = open_dataset(tmp_path / "images", "train")
    assert every_label_solves(found)
    batch = found.batch(range(0, 120, 4))
    assert (batch.inputs == open_dataset(tmp_path / "plain", "train").batch(range(30)).inputs).all()
    assert len(np.unique(found.batch(range(4)).inputs.numpy(), axis=0)) > 1
    blanks = (found.batch(range(120)).inputs == 1).sum(dim=1).reshape(30, 4)
    assert (blanks == blanks[:, :1]).all()


def test_held_out_solutions_are_in_no_training_label(tmp_path: Path) -> None:
    build_dataset(tmp_path / "d", queens_plan(hold_out="solution"))
    answers = {
        split: {row.tobytes() for row in boards_of(tmp_path / "d", split)[1]}
        for split in ("train", "validation", "test")
    }
    assert not answers["train"] & (answers["validation"] | answers["test"])
    assert not answers["validation"] & answers["test"]
    assert [len(found) for found in answers.values()] == [63, 10, 19]


def test_held_out_classes_are_those_of_no_completion_of_any_training_board(tmp_path: Path) -> None:
    info = build_dataset(tmp_path / "d", queens_plan(hold_out="class"))
    solutions = enumerate_solutions(8)
    classes = symmetry_class(solutions, n=8)
    reached = {}
    for split in ("train", "validation", "test"):
        boards, _ = boards_of(tmp_path / "d", split)
        fits = (boards[:, None] <= solutions[None]).all(axis=2)  # [board, solution]
        reached[split] = set(classes[fits.any(axis=0)].tolist())
    assert not reached["train"] & (reached["validation"] | reached["test"])
    assert not reached["validation"] & reached["test"]
    assert [len(found) for found in reached.values()] == [8, 2, 2]
    assert info.notes["test_inputs_in_train"] == 0


def test_the_random_split_leaks_what_the_notes_say(tmp_path: Path) -> None:
    """38 % of the pairs, 48 % of the inputs; 66 % have one completion (2,000 boards: s.e. 1.1)."""
    notes = build_dataset(tmp_path / "d", queens_plan(test=2000)).notes
    assert notes["test_pairs_in_train"] == pytest.approx(0.38, abs=0.035)
    assert notes["test_inputs_in_train"] == pytest.approx(0.48, abs=0.035)
    assert notes["test_inputs_with_one_completion"] == pytest.approx(0.66, abs=0.035)


def test_the_committed_index_is_the_seeded_choice() -> None:
    index = extreme_index()
    assert index == tuple(choose_rows(EXTREME_ROWS, 1000, seed=0).tolist())
    assert len(set(index)) == 1000 and max(index) < EXTREME_ROWS


def test_the_committed_index_chooses_the_training_puzzles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "train.csv")
    test = write_csv(tmp_path / "test.csv", split="test")
    monkeypatch.setattr(board_plans, "EXTREME_ROWS", 40)
    monkeypatch.setattr(board_plans, "extreme_index", lambda: (31, 7, 8))
    plan = sudoku_extreme_plan(source=str(path), test_source=str(test), train=3, validation=37)
    info = build_dataset(tmp_path / "d", plan)
    assert info.counts == {"train": 3, "validation": 37, "test": 40}
    assert info.notes == {"committed_index": True}
    assert np.load(tmp_path / "d" / "train" / "rows.npy").tolist() == [31, 7, 8]
    other = sudoku_extreme_plan(
        source=str(path), test_source=str(test), train=3, validation=0, seed=1
    )
    assert build_dataset(tmp_path / "e", other).notes == {"committed_index": False}
    lines = path.read_text().splitlines()[1:]
    boards, _ = boards_of(tmp_path / "d", "train")
    assert [format_line(b, 9) for b in boards] == [lines[k].split(",")[1] for k in (31, 7, 8)]
    others = {format_line(b, 9) for b in boards_of(tmp_path / "d", "validation")[0]}
    assert others == {line.split(",")[1] for k, line in enumerate(lines) if k not in (31, 7, 8)}


def test_a_file_without_test_puzzles_makes_no_test_split(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "all.csv", num=25)
    plan = sudoku_extreme_plan(source=str(path), train=20, validation=5)
    assert build_dataset(tmp_path / "d", plan).counts == {"train": 20, "validation": 5}
    with pytest.raises(ValueError, match="test must be 0 without a file of test puzzles, got 3"):
        sudoku_extreme_plan(source=str(path), test=3)


def test_maze_hard_keeps_its_thousand_and_validates_on_mazes_like_them(tmp_path: Path) -> None:
    files = []
    for split in ("train", "test"):
        mazes = maze_instances(size=30, split=split, num=4)
        lines = [f"made,{Maze(30).write_instance(maze)},," for maze in mazes.instances]
        files.append(tmp_path / f"{split}.csv")
        files[-1].write_text("\n".join(["source,question,answer,rating", *lines]) + "\n")
    plan = maze_hard_plan(source=str(files[0]), test_source=str(files[1]), train=4, validation=3)
    assert build_dataset(tmp_path / "d", plan).counts == {"train": 4, "validation": 3, "test": 4}
    made = maze_instances(size=30, split="validation", num=3)
    assert np.array_equal(boards_of(tmp_path / "d", "validation")[0], made.instances)


def test_test_puzzles_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    plan = sudoku_extreme_plan(source=str(path), test_source=str(path), train=10, validation=0)
    with pytest.raises(ValueError, match=r"a\.csv: 10 of the 40 test puzzles are in a\.csv too"):
        build_dataset(tmp_path / "d", plan)


FULL = "123456789"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "z" * 81}, r"bad\.csv:4: question: 'Z' at row 1, column 1 is no blank"),
        ({"answer": FULL}, r"bad\.csv:4: answer: a 9x9 puzzle has 81 cells, got 9"),
        ({"answer": FULL * 9}, r"bad\.csv:4: answer does not solve the question: '1234"),
        ({"rating": "hard"}, r"bad\.csv:4: rating must be a number, got 'hard'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_field_and_value(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = write_csv(tmp_path / "bad.csv", **changes)
    with pytest.raises(ValueError, match=message):
        build_dataset(tmp_path / "d", sudoku_extreme_plan(source=str(path)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: sudoku_plan(train=0), "train must be >= 1, got 0"),
        (lambda: sudoku_plan(validation=-1), "validation must be >= 0, got -1"),
        (lambda: sudoku_plan(images=-1), "images must be >= 0, got -1"),
        (lambda: sudoku_plan(side=5), "unknown task 'sudoku5x5'"),
        (lambda: queens_plan(given=(1, 8)), r"given must be \(low, high\) .* got \(1, 8\)"),
        (lambda: queens_plan(hold_out="some"), "hold_out must be .* got 'some'"),
    ],
)
def test_options_out_of_range_are_refused(plan: Callable[[], BuildPlan], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan()


def test_the_command_builds_goes_on_and_tells(tmp_path: Path) -> None:
    out = str(tmp_path / "d")
    words = ["data", "build", "nqueens", "--out", out, "--train", "50", "--hold-out", "solution"]
    for _ in range(2):
        done = CliRunner().invoke(supervised, [*words, "--json"])
        assert done.exit_code == 0, done.output
    told = CliRunner().invoke(supervised, ["data", "info", out, "--json", "--check"])
    assert json.loads(told.stdout) == json.loads(done.stdout)
    assert json.loads(told.stdout)["counts"] == {"train": 50, "validation": 200, "test": 200}
    text = CliRunner().invoke(supervised, ["data", "info", out, "--check"]).stdout
    assert "vocab_size               3\n" in text and "all 6 files are whole" in text


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ModuleType("huggingface_hub")

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    client.hf_hub_download = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    for name, file in (("sudoku-extreme", "train.csv"), ("maze-hard", "train.csv")):
        words = ["data", "build", name, "--out", str(tmp_path / name)]
        done = CliRunner().invoke(supervised, words)
        assert isinstance(done.exception, OSError)
        message = str(done.exception)
        assert f"{file} cannot be had from the hub (no route to host)" in message
        assert "\n" not in message


def test_the_hub_is_read_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    client = ModuleType("huggingface_hub")

    def download(name: str, file: str, **_: object) -> str:
        asked.append((name, file))
        return str(write_csv(tmp_path / file, split=file.removesuffix(".csv")))

    client.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    words = ["data", "build", "sudoku-extreme", "--out", str(tmp_path / "d"), "--json"]
    done = CliRunner().invoke(supervised, [*words, "--train", "30", "--validation", "10"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["counts"] == {"train": 30, "validation": 10, "test": 40}
    assert told["options"]["source"] == "sapientinc/sudoku-extreme"
    assert told["options"]["test_source"] == "sapientinc/sudoku-extreme:test"
    assert set(asked) == {(told["options"]["source"], f"{part}.csv") for part in ("train", "test")}


@pytest.mark.parametrize(
    ("name", "file", "options", "counts"),
    [
        (
            "sudoku-extreme",
            "sudoku/extreme_real.csv",
            ["--train", "500", "--validation", "100"],
            {"train": 500, "validation": 100},
        ),
        (
            "maze-hard",
            "maze/maze-30x30-hard.csv",
            ["--train", "700", "--validation", "50"],
            {"train": 700, "validation": 50},
        ),
    ],
)
def test_the_real_files_are_built_end_to_end(
    data_folder: Path,
    tmp_path: Path,
    name: str,
    file: str,
    options: list[str],
    counts: dict[str, int],
) -> None:
    path = data_folder / file
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    out = tmp_path / "d"
    words = ["data", "build", name, "--source", str(path), "--out", str(out), *options, "--json"]
    done = CliRunner().invoke(supervised, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"] == counts
    for split in counts:
        found = open_dataset(out, split)
        assert every_label_solves(found)
        batch = found.batch(range(20), np.random.default_rng(0))
        assert found.verdict(batch, batch.labels).solved.all()
