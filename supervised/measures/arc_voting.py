"""ARC evaluation by voting over augmented copies (TRM-Planner Sec. 7.2; REFERENCE.md B).

A model predicts every test input under many symmetries of its task; each prediction is cropped to a
grid, mapped back, and votes. Candidates are ranked by votes, then by mean halting probability;
pass@K asks whether the label is among the first K. Input: tasks, their symmetries and a
`Predictor`; output: pass@K with intervals, and a submission of two attempts.

Only votes are kept, never logits, and those of one task at a time: a job works through its tasks
and leaves one small JSON file, and an evaluation that was killed goes on with the missing files.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int, Int8

from plan_envs.arc.grids import LARGEST, board_of, grid_of
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask
from plan_envs.domain import Int8Array
from supervised.data_sets.arc import crop
from trm.bounded import JSON, PARTS, one_line, parse_json, read_bytes
from trm.compute.jobs import Job
from trm.experiments.intervals import wilson_interval
from trm.runs.durable import replace_durably
from trm.runs.files import claim

FORMAT_VERSION: Final = 1
"""Version of voting.json and of the files of results."""

PASS_AT: Final = (1, 2, 5, 10, 100, 1000)
"""The K of pass@K."""

ATTEMPTS: Final = 2
"""Answers that the official scorer looks at."""

_NO_ANSWER: Final = [[0, 0], [0, 0]]
"""What the official sample submission holds; for a test input without any grid predicted."""

_MANIFEST: Final = "voting.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One augmented test input that is to be predicted."""

    task: str
    """The task's id."""
    test: int
    """Number of the test input in its task."""
    augmentation: int
    """Number of the symmetry in the task's list; 0 is the identity."""
    board: Int8Array
    """The input under that symmetry, colour + 1 at the top left and 0 elsewhere, shape [900]."""


Predictor = Callable[
    [Sequence[Query]], tuple[Int[np.ndarray, "batch cell"], Float[np.ndarray, " batch"]]
]
"""What voting asks of a model: tokens of predicted canvases, and halting probabilities in [0, 1].

A model never sees an output of a test input.
"""

Symmetries = Callable[[ArcTask], Sequence[ArcSymmetry]]
"""The symmetries that a task is seen under, the same in every process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A grid that was voted for."""

    board: Int8Array
    """Shape [900], see `Query.board`; all zero where a prediction held no grid."""
    votes: int
    halting: float
    """Mean halting probability of its votes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputResult:
    """What the votes on one test input came to; plain values, as the files hold them."""

    task: str
    test: int
    known: bool
    """Whether the task has an output for it; if not, there is no rank."""
    rank: int | None
    """Place of the label among the candidates, from 1; None where nothing voted for it."""
    votes: int
    label_votes: int
    candidates: int
    """Number of distinct candidates, the empty one among them."""
    empty_votes: int
    """Predictions without a grid."""
    attempts: list[list[list[int]]]
    """The first two candidates that are grids, best first; fewer where there are fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share with its 95% Wilson interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VotingReport:
    """pass@K over the test inputs whose outputs are known."""

    num_tasks: int
    num_inputs: int
    per_task: Mapping[int, Share]
    """K -> mean over tasks of the share of a task's inputs that pass: the papers' figure. The
    interval takes tasks as trials; tasks with several inputs make it a little too wide."""
    pooled: Mapping[int, Share]
    """K -> share of all inputs that pass."""
    mean_votes: float
    """Per test input."""
    mean_candidates: float
    empty_share: float
    """Share of all votes that are for no grid."""


# --- Votes


class Ballot:
    """The votes on one test input: a count and a sum of halting probabilities for each grid."""

    def __init__(self) -> None:
        self._votes: dict[bytes, tuple[int, float]] = {}

    def add(self, board: Int8[np.ndarray, " 900"], halting: float) -> None:
        """One vote for a grid; an empty board is a vote for no grid."""
        count, total = self._votes.get(key := board.tobytes(), (0, 0.0))
        self._votes[key] = count + 1, total + halting

    def ranking(self) -> list[Candidate]:
        """Candidates by votes, then mean halting probability, then cells: never by order of votes.

        An empty candidate has its place like any other, as in the published evaluators.
        """
        ranked = sorted((-n, -total / n, board) for board, (n, total) in self._votes.items())
        return [
            Candidate(board=np.frombuffer(board, np.int8), votes=-votes, halting=-halting)
            for votes, halting, board in ranked
        ]


def vote_on_task(
    task: ArcTask,
    symmetries: Sequence[ArcSymmetry],
    predictors: Sequence[Predictor],
    *,
    batch_size: int = 256,
) -> list[InputResult]:
    """Predict every test input under every symmetry, map back, vote, rank; one result an input.

    Args:
        task: its test outputs are used for nothing but the label's rank.
        symmetries: of 30x30 boards.
        predictors: one; several, e.g. of several checkpoints, vote together (an ensemble).
        batch_size: queries that a predictor gets at once.

    Raises:
        ValueError: a predictor returns other shapes, or a probability outside [0, 1].
    """
    inputs = np.stack([board_of(grid, LARGEST) for grid, _ in task.test])
    ballots = [Ballot() for _ in task.test]
    inverses = [symmetry.inverse() for symmetry in symmetries]
    for predictor in predictors:
        queries = (
            Query(task=task.id, test=test, augmentation=augmentation, board=board)
            for augmentation, symmetry in enumerate(symmetries)
            for test, board in enumerate(symmetry.plans(inputs))
        )
        while some := list(itertools.islice(queries, batch_size)):
            tokens, halting = predictor(some)
            _check_predictions(tokens, halting, len(some))
            for query, board, probability in zip(some, crop(tokens), halting, strict=True):
                original = inverses[query.augmentation].plans(board[None])[0]
                ballots[query.test].add(original, float(probability))
    return [
        _result(task, test, label, ballots[test].ranking())
        for test, (_, label) in enumerate(task.test)
    ]


def _check_predictions(tokens: Any, halting: Any, count: int) -> None:
    if tokens.shape != (count, LARGEST**2) or halting.shape != (count,):
        raise ValueError(
            f"predictor: {count} queries need tokens [{count}, {LARGEST**2}] and halting [{count}],"
            f" got {list(tokens.shape)} and {list(halting.shape)}"
        )
    if not ((halting >= 0) & (halting <= 1)).all():  # not a number is neither
        raise ValueError("predictor: halting probabilities must lie in [0, 1]")


def _result(
    task: ArcTask, test: int, label: Int8Array | None, ranking: Sequence[Candidate]
) -> InputResult:
    wanted = None if label is None else board_of(label, LARGEST).tobytes()
    places = [k for k, item in enumerate(ranking, 1) if item.board.tobytes() == wanted]
    grids = [item.board for item in ranking if item.board.any()]
    return InputResult(
        task=task.id,
        test=test,
        known=label is not None,
        rank=places[0] if places else None,
        votes=sum(item.votes for item in ranking),
        label_votes=ranking[places[0] - 1].votes if places else 0,
        candidates=len(ranking),
        empty_votes=sum(item.votes for item in ranking if not item.board.any()),
        attempts=[grid_of(board, LARGEST).tolist() for board in grids[:ATTEMPTS]],
    )


# --- Figures


def summarise(results: Sequence[InputResult]) -> VotingReport:
    """pass@K, per task and pooled; inputs whose output is not known count for nothing.

    Raises:
        ValueError: no output is known at all.
    """
    known = [result for result in results if result.known]
    if not known:
        raise ValueError("voting: no output of a test input is known, so there is nothing to score")
    tasks: dict[str, list[InputResult]] = {}
    for result in known:
        tasks.setdefault(result.task, []).append(result)
    pooled, per_task = {}, {}
    for k in PASS_AT:
        passed = [
            [result.rank is not None and result.rank <= k for result in some]
            for some in tasks.values()
        ]
        pooled[k] = _share(sum(map(sum, passed)) / len(known), len(known))
        shares = [sum(some) / len(some) for some in passed]
        per_task[k] = _share(math.fsum(shares) / len(tasks), len(tasks))
    votes = sum(result.votes for result in known)
    return VotingReport(
        num_tasks=len(tasks),
        num_inputs=len(known),
        per_task=per_task,
        pooled=pooled,
        mean_votes=votes / len(known),
        mean_candidates=sum(result.candidates for result in known) / len(known),
        empty_share=sum(result.empty_votes for result in known) / votes if votes else 0.0,
    )


def _share(value: float, count: int) -> Share:
    low, high = wilson_interval(value, count)
    return Share(value=value, low=low, high=high)


Submission = dict[str, list[dict[str, list[list[int]]]]]
"""Task id -> for each test input {"attempt_1": grid, "attempt_2": grid}: the official format."""


def submission_of(results: Sequence[InputResult]) -> Submission:
    """The two best grids for every test input, in the official format.

    An attempt must be a grid, so an empty candidate is passed over for the next one; a second
    attempt that is missing repeats the first; an input without any grid gets a 2x2 of zeros, as in
    the official sample.
    """
    submission: Submission = {}
    for result in sorted(results, key=lambda result: (result.task, result.test)):
        attempts = result.attempts or [_NO_ANSWER]
        first, second = attempts[0], attempts[-1]
        rows = submission.setdefault(result.task, [])
        if result.test != len(rows):
            raise ValueError(f"task {result.task}: test input {len(rows)} has no result")
        rows.append({"attempt_1": first, "attempt_2": second})
    return submission


# --- Many tasks, in parts that survive a kill


def voting_jobs(
    out: Path,
    tasks: Sequence[ArcTask],
    *,
    open_predictors: Callable[[], Sequence[Predictor]],
    symmetries: Symmetries,
    identity: Mapping[str, Any],
    tasks_per_job: int = 8,
    batch_size: int = 256,
) -> list[Job]:
    """Claim a folder for an evaluation; the jobs for `map_jobs` that vote on all tasks.

    `read_results` reads what the jobs left, once all are done.

    Args:
        out: the evaluation's folder; made where it is missing.
        tasks: with different ids.
        open_predictors: called in every job; a function that can be imported, or a
            `functools.partial` of one. More than one predictor is an ensemble.
        symmetries: called in every job, like `open_predictors`.
        identity: what the figures depend on: hash of the weights, number of augmentations, seed...;
            JSON values. The same call with another identity is refused in the same folder.
        tasks_per_job: tasks of one file of results.
        batch_size: queries that a predictor gets at once.

    Raises:
        ValueError: the folder holds another evaluation, or two tasks have one id.
    """
    if len({task.id for task in tasks}) < len(tasks) or not tasks:
        raise ValueError("tasks: their ids must differ, and there must be some")
    if tasks_per_job < 1:
        raise ValueError(f"tasks_per_job must be at least 1, got {tasks_per_job}")
    parts = [tasks[k : k + tasks_per_job] for k in range(0, len(tasks), tasks_per_job)]
    _claim(out, parts, identity)
    jobs = []
    for number, part in enumerate(parts):
        output = _results_file(out, number)
        work = functools.partial(
            vote_on_part, output, part, open_predictors, symmetries, batch_size=batch_size
        )
        log = out / "logs" / f"{output.stem}.log"
        jobs.append(Job(key=output.stem, work=work, output=output, log=log))
    return jobs


def vote_on_part(
    output: Path,
    tasks: Sequence[ArcTask],
    open_predictors: Callable[[], Sequence[Predictor]],
    symmetries: Symmetries,
    *,
    batch_size: int,
) -> None:
    """The work of a job: vote on some tasks and write their results."""
    predictors = open_predictors()
    results = [
        asdict(result)
        for task in tasks
        for result in vote_on_task(task, symmetries(task), predictors, batch_size=batch_size)
    ]
    replace_durably(output, (json.dumps(results) + "\n").encode())


def read_results(out: Path) -> list[InputResult]:
    """The results of an evaluation that is finished, in the order of its tasks.

    Raises:
        ValueError: it is not finished, or a file can't be read; one line that names it.
    """
    manifest = _read_json(out / _MANIFEST)
    parts = manifest.get("num_parts") if isinstance(manifest, dict) else None
    if type(parts) is not int or not 0 < parts <= (PARTS.count or 0):
        raise ValueError(f"{out / _MANIFEST}: num_parts is {one_line(repr(parts))}")
    files = [_results_file(out, number) for number in range(parts)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"{out}: {len(missing)} of {len(files)} files of results are missing, e.g. "
            f"{missing[0].name}; the same command goes on with them"
        )
    try:
        return [InputResult(**result) for file in files for result in _read_json(file)]
    except TypeError as error:
        raise ValueError(f"{out}: results of another format: {error}") from None


def _claim(out: Path, parts: Sequence[Sequence[ArcTask]], identity: Mapping[str, Any]) -> None:
    """Make the folder, or check that it holds this evaluation."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "tasks": _hash_of(itertools.chain(*parts)),
        "num_parts": len(parts),
        "tasks_per_job": len(parts[0]),
        **identity,
    }
    claim(out / _MANIFEST, manifest, kind="evaluation")


def _hash_of(tasks: Iterable[ArcTask]) -> str:
    """Hash of ids and grids, 16 hexadecimal digits."""
    content = hashlib.sha256()
    for task in tasks:
        grids = [[None if g is None else g.tolist() for g in p] for p in (*task.train, *task.test)]
        content.update(json.dumps([task.id, len(task.train), grids]).encode())
    return content.hexdigest()[:16]


def _results_file(out: Path, number: int) -> Path:
    return out / f"results-{number:05d}.json"


def _read_json(file: Path) -> Any:
    try:
        return parse_json(read_bytes(file, JSON))
    except FileNotFoundError:
        raise ValueError(f"{file}: not there, so this is no folder of an evaluation") from None
    except ValueError as error:
        raise ValueError(f"{file}: damaged: {one_line(error)}; delete it to vote again") from None
