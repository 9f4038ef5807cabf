"""Token data sets: symmetries keep labels right, seeds repeat, the checker judges, faults name."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plan_envs.catalogue import resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.maze.rules import Maze
from plan_envs.queens.instances import enumerate_solutions
from supervised.data_sets.codecs import codec_of
from supervised.data_sets.datasets import IGNORE, BoardDataset, check_indices
from supervised.data_sets.folders import check_files, open_dataset, read_info
from trm.runs.files import json_bytes

TASKS = ("sudoku4x4-hard", "sudoku6x6", "sudoku9x9", "nqueens8", "nqueens5", "maze10")
VOCABULARIES = {"sudoku4x4": 6, "sudoku6x6": 8, "sudoku9x9": 11, "queens8x8": 3, "maze10x10": 6}


@cache
def dataset_of(task: str, num: int = 8) -> BoardDataset:
    found = resolve_task(task)
    return BoardDataset.of(found.domain, found.instances(num=num))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("task", TASKS)
def test_a_label_solves_its_input_by_the_checker_of_the_domain(task: str) -> None:
    dataset = dataset_of(task)
    batch = dataset.batch(range(len(dataset)))
    assert dataset.verdict(batch, batch.labels).solved.all()
    assert not dataset.verdict(batch, batch.inputs).solved.any()


@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("task", TASKS)
def test_the_image_of_a_label_solves_the_image_of_its_input(task: str, seed: int) -> None:
    dataset = dataset_of(task)
    batch = dataset.batch(range(len(dataset)), rng(seed))
    assert dataset.verdict(batch, batch.labels).solved.all()


@pytest.mark.parametrize("task", TASKS)
def test_the_inverse_symmetry_restores_every_token(task: str) -> None:
    dataset = dataset_of(task)
    tokens = dataset.batch(range(len(dataset))).labels.numpy().astype(np.uint8)
    for seed in range(10):
        symmetry = dataset.codec.random_symmetry(rng(seed))
        image = dataset.codec.transform(symmetry, tokens)
        assert np.array_equal(dataset.codec.transform(symmetry.inverse(), image), tokens)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_batch_and_another_seed_another(task: str) -> None:
    dataset = dataset_of(task)
    indices = [3, 0, 3, 7, 1, 2]
    one, same, other = (dataset.batch(indices, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs) and torch.equal(one.labels, same.labels)
    assert not torch.equal(one.inputs, other.inputs)
    assert one.example.tolist() == other.example.tolist() == indices


@pytest.mark.parametrize(("domain", "size"), VOCABULARIES.items())
def test_vocabularies_are_those_of_the_reference(domain: str, size: int) -> None:
    assert codec_of(domain).vocab_size == size


def test_a_sudoku_is_written_as_in_the_reference() -> None:
    dataset = dataset_of("sudoku9x9", num=1)
    batch = dataset.batch([0])
    instances, solutions = dataset.codec.decode(batch.inputs.numpy(), batch.labels.numpy())
    assert np.array_equal(batch.inputs.numpy(), instances + 1)  # blank -> 1, digit -> digit + 1
    assert np.array_equal(batch.labels.numpy(), solutions + 1)
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64
    assert batch.puzzle.tolist() == [0] and dataset.info.num_puzzles == 1


MAZE = "S #" + "  #" + "# G"
WAYS = {"So#" + " o#" + "#oG": True, "S #" + "oo#" + "#oG": True}
NO_WAYS = {
    "S #" + "oo#" + "#oG": True,  # another shortest path is as valid
    "So#" + "oo#" + "#oG": False,  # a square of marked cells is no path
    "So#" + " o#" + "# G": False,  # it ends too early
    "So#" + " oo" + "#oG": False,  # a wall is marked
    "S #" + "  #" + "# G": False,  # nothing is marked
}


@pytest.mark.parametrize(("predicted", "valid"), [*WAYS.items(), *NO_WAYS.items()])
def test_a_maze_is_judged_by_the_cells_marked_as_path(predicted: str, valid: bool) -> None:
    ids = {"#": 1, " ": 2, "S": 3, "G": 4, "o": 5}
    inputs, tokens = (np.array([[ids[c] for c in text]]) for text in (MAZE, predicted))
    codec = codec_of("maze3x3")
    found = codec.domain.check(*codec.decode(inputs, tokens))
    assert found.solved.tolist() == [valid]
    assert (found.details["shortest"] == float(valid)).all()


def test_a_maze_label_is_the_public_sets_format(data_folder: Path) -> None:
    path = data_folder / "maze" / "maze-30x30-hard.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    from plan_envs.maze.instances import read_maze_csv

    mazes = read_maze_csv(path, limit=20)
    dataset = BoardDataset.of(Maze(30), mazes)
    batch = dataset.batch(range(20))
    rows = [line.split(",") for line in path.read_text().splitlines()[1:21]]
    symbols = np.array(list("?# SGo"))
    for k, (_, question, answer, _) in enumerate(rows):
        assert "".join(symbols[batch.inputs[k].numpy()]) == question
        assert "".join(symbols[batch.labels[k].numpy()]) == answer
    assert (dataset.verdict(batch, batch.labels).details["label"] == 1).all()


def test_another_completion_than_the_label_is_solved_too() -> None:
    boards = enumerate_solutions(6)
    empty = InstanceSet.of("empty", np.zeros_like(boards), boards)
    dataset = BoardDataset.of(resolve_task("nqueens6").domain, empty)
    batch = dataset.batch([0] * len(boards))
    predicted = dataset.batch(range(len(boards))).labels
    assert dataset.verdict(batch, predicted).solved.all()
    assert not dataset.verdict(batch, batch.inputs).solved.any()


def test_padding_is_ignored_in_labels_and_a_blank_in_predictions() -> None:
    dataset = dataset_of("sudoku9x9", num=2)
    info = dataset.info
    inputs, labels = np.ones((2, 81), np.uint8), np.full((2, 81), 2, np.uint8)
    labels[0, 5] = 0
    batch = BoardDataset(info, inputs, labels, name="made").batch([0, 1])
    assert batch.labels[0, 5] == IGNORE and (batch.labels == IGNORE).sum() == 1
    zeros = torch.zeros_like(batch.labels)
    assert (dataset.verdict(batch, zeros).score <= 0).all()


@pytest.mark.parametrize("indices", [[8], [-1], [[0]], [0.5]])
def test_wrong_indices_are_refused(indices: Any) -> None:
    with pytest.raises(ValueError, match="indices must"):
        check_indices(np.asarray(indices), 8)


def write(folder: Path, **changes: Any) -> Path:
    """A small data set on disk, by hand; `changes` replace fields of its description."""
    dataset = dataset_of("nqueens5", num=4)
    batch = dataset.batch(range(4))
    (folder / "train").mkdir(parents=True)
    for name, tokens in (("inputs", batch.inputs), ("labels", batch.labels)):
        np.save(folder / "train" / f"{name}.npy", tokens.numpy().astype(np.uint8))
    record = asdict(replace(dataset.info, counts={"train": 4})) | changes
    (folder / "dataset.json").write_bytes(json_bytes(record))
    return folder


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    found = open_dataset(write(tmp_path / "d"), "train")
    assert len(found) == 4 and found.info.domain == "queens5x5"
    batch = found.batch([2, 1])
    assert found.verdict(batch, batch.labels).solved.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, r"dataset\.json: format must be 2, got 7"),
        ({"surprise": 1}, r"dataset\.json: fields missing or unknown: surprise"),
        ({"vocab_size": "3"}, r"dataset\.json: vocab_size must be a positive integer, got '3'"),
        ({"counts": {"dev": 4}}, r"dataset\.json: counts: 'dev' must be a split"),
        ({"counts": {"train": 5}}, r"train/inputs\.npy has 4 examples, dataset\.json says 5"),
        ({"vocab_size": 2}, r"train: inputs: example 0, position \d+ must be a token of 0\.\.1"),
        ({"num_positions": 24}, r"inputs must be uint8 of shape \[num, 24\], got .* \[4, 25\]"),
        ({"domain": "chess8x8"}, r"domain must be .*, got 'chess8x8'"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(write(tmp_path / "d", **changes), "train")


def test_a_label_out_of_the_vocabulary_names_file_example_and_value(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    labels = np.load(folder / "train" / "labels.npy")
    labels[3, 7] = 200
    np.save(folder / "train" / "labels.npy", labels)
    message = r"train: labels: example 3, position 7 must be a token of 0\.\.2, got 200"
    with pytest.raises(ValueError, match=message):
        open_dataset(folder, "train")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no data set"):
        read_info(tmp_path / "nowhere")
    folder = write(tmp_path / "d", files={"train/inputs.npy": {"size": 1, "sha256": "0"}})
    with pytest.raises(ValueError, match=r"inputs\.npy: damaged: sha256 is"):
        check_files(folder, read_info(folder))
    with pytest.raises(ValueError, match=r"split must be one of \['train'\], got 'test'"):
        open_dataset(folder, "test")
    with pytest.raises(ValueError, match=r"inputs\.npy: damaged: sha256 is"):
        open_dataset(folder, "train")
    folder = write(tmp_path / "e")
    (folder / "train" / "labels.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"labels\.npy: not readable as an array"):
        open_dataset(folder, "train")
    (folder / "train" / "labels.npy").unlink()
    with pytest.raises(ValueError, match=r"labels\.npy: missing"):
        open_dataset(folder, "train")
    content = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(content.replace('"num_puzzles": 1', '"num_puzzles": 3'))
    with pytest.raises(ValueError, match=r"dataset\.json: changed since it was written"):
        read_info(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: not valid JSON"):
        read_info(folder)
