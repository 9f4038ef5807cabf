"""Running a sweep: what its points share is prepared, and what is not finished trained, as jobs.

`run_sweep` takes a planned sweep (`sweep_spec`), trains and evaluates each of its points in a
process of its own (`trm.compute.jobs`) and records where everything stands (`sweep_manifest`).
Which commands train, and what their records say, comes from `learners`. Below the sweep's folder
lie

    manifest.json             the spec, every point and its state, commands, commits
    prepared/NAME/            what `prepare` made; NAME.json beside it once it is whole
    NAME-seedN/               a run folder for each point; interrupted ones are resumed
    records/NAME-seedN.json   the evaluation record (`records`) of a point: it is finished
    logs/NAME-seedN.log       what its processes printed
"""

import fnmatch
import functools
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm.compute.attempts import run_command
from trm.compute.jobs import Job, JobResult, map_jobs
from trm.experiments.learners import SweepCommand
from trm.experiments.sweep_manifest import Manifest, PointState, job_state
from trm.experiments.sweep_spec import (
    Point,
    Preparation,
    Sweep,
    prepared_path,
    record_path,
)
from trm.runs.durable import replace_durably
from trm.runs.files import read_json_object
from trm.runs.lock import locked
from trm.runs.shipped import nearest_hint


@dataclass(frozen=True, kw_only=True, slots=True)
class PointReport:
    """A change of a point, as `run_sweep` reports it."""

    point: Point
    state: PointState
    detail: str
    seconds: float
    num_finished: int
    """Points finished by now, of all."""
    figures: Mapping[str, float]
    """Figures of a finished point: those of its record that `SweepCommand.figures` names."""


def point_states(sweep: Sweep) -> dict[str, PointState]:
    """What is there of every point: finished, interrupted (a run folder) or pending.

    Raises:
        ValueError: a folder holds a run of other settings than the spec's.
    """
    return {point.name: _state_of(sweep, point) for point in sweep.points}


def run_sweep(
    sweep: Sweep,
    *,
    command: str = "",
    only: Sequence[str] = ("*",),
    report: Callable[[PointReport], None] = lambda _: None,
    **where: Any,
) -> dict[str, PointState]:
    """Prepare, then train and evaluate every point that is not finished.

    Args:
        sweep: what to run; its folder is made where it is missing.
        command: the command line that began this session, for the manifest.
        only: patterns of the names of points to run, as `fnmatch` has them; the others stay as
            they are.
        report: called for every point that starts, ends or was finished before.
        where: backend, workers and address of `trm.compute.jobs.map_jobs`.

    Returns:
        The state of every point at the end.

    Raises:
        ValueError: the folder holds another sweep or runs of other settings, another process is
            running it, no point matches a pattern, or a preparation failed.
    """
    out = sweep.out
    chosen = matching_points(sweep, only)

    def run_jobs(jobs: Sequence[Job], **more: Any) -> list[JobResult]:
        return map_jobs(jobs, **where, **more)

    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "is running a sweep here"):
        manifest = Manifest(sweep, command)
        states = point_states(sweep)
        points = {point.name: point for point in sweep.points}
        for name, state in states.items():
            manifest.update(name, state)
            if state != "finished":
                record_path(out, name).unlink(missing_ok=True)
        manifest.write()
        if not _prepare(sweep, manifest, run_jobs):
            return states

        def keep(result: JobResult) -> None:
            point = points[result.key]
            state = job_state(result)
            states[point.name] = state
            manifest.update(point.name, state, detail=result.detail, seconds=result.seconds)
            manifest.write()
            report(
                PointReport(
                    point=point,
                    state=state,
                    detail=result.detail,
                    seconds=result.seconds,
                    num_finished=sum(state == "finished" for state in states.values()),
                    figures=manifest.figures(point.name),
                )
            )

        run_jobs([_job(sweep, point) for point in chosen], report=keep)
    return states


def matching_points(sweep: Sweep, only: Sequence[str]) -> list[Point]:
    """The points whose names match one of the patterns as `fnmatch` has it, in the sweep's order.

    Raises:
        ValueError: no point matches a pattern; names it and the nearest point.
    """
    names = [point.name for point in sweep.points]
    matching: set[str] = set()
    for pattern in only:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            hint = nearest_hint(pattern, names, cutoff=0.0)
            raise ValueError(f"no point of {sweep.name} matches {pattern!r}; {hint}")
        matching.update(found)
    return [point for point in sweep.points if point.name in matching]


def train_point(
    folder: Path,
    record: Path,
    *,
    start: Sequence[str],
    resume: Sequence[str],
    finished_at: int,
    eval_num: int,
    make_record: Callable[[Path, int], dict[str, Any]],
) -> None:
    """The work of a point's job: train or go on, evaluate, leave the record.

    Raises:
        subprocess.CalledProcessError: the training failed.
        RuntimeError: it ended before its budget did.
    """
    _train(folder, start=start, resume=resume)
    found = make_record(folder, eval_num)
    _check_spent(folder, step=found["step"], finished_at=finished_at)
    record.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**found, "eval_num": eval_num}, allow_nan=False)
    replace_durably(record, f"{text}\n".encode())


def prepare_folder(
    folder: Path,
    done: Path,
    *,
    words: Sequence[str],
    resume: Sequence[str],
    training: SweepCommand | None,
) -> None:
    """The work of a preparation's job: run the command, or go on with it; leave `done`.

    Raises:
        subprocess.CalledProcessError: the command failed.
        RuntimeError: a training ended before its budget did.
    """
    if training is None:
        run_command([sys.executable, "-m", "upi_trm", *words, "--out", str(folder)])
    else:
        from trm.runs.run import Run

        _train(folder, start=words, resume=resume)
        run = Run.open(folder)
        wanted = training.finished_at(run.load_recipe(training.recipe))
        _check_spent(folder, step=run.checkpoint_steps()[-1], finished_at=wanted)
    replace_durably(done, (json.dumps({"command": shlex.join(words)}) + "\n").encode())


def _train(folder: Path, *, start: Sequence[str], resume: Sequence[str]) -> None:
    if (folder / "run.json").exists():
        words = [*resume, "--resume", str(folder)]
    else:
        words = [*start, "--out", str(folder)]
    run_command([sys.executable, "-m", "upi_trm", *words])


def _check_spent(folder: Path, *, step: int, finished_at: int) -> None:
    if step < finished_at:
        raise RuntimeError(
            f"{folder}: stopped after {step} of {finished_at} steps; run the sweep again"
        )


def _prepare(sweep: Sweep, manifest: Manifest, run_jobs: Callable[..., list[JobResult]]) -> bool:
    """Run the preparations, those at once that do not wait for one another.

    Returns:
        False when a signal stopped them.

    Raises:
        ValueError: one failed.
    """
    waiting = list(sweep.preparations)
    folders = {one.name: prepared_path(sweep.out, one.name) for one in waiting}
    while waiting:
        # The words of a command name the folders that it uses; those are prepared before it.
        blocked = {
            one.name
            for place, one in enumerate(waiting)
            for earlier in waiting[:place]
            if any(str(folders[earlier.name]) in word for word in one.words)
        }
        now = [one for one in waiting if one.name not in blocked]
        results = run_jobs([_preparation_job(one, sweep.out) for one in now])
        for one, result in zip(now, results, strict=True):
            manifest.prepared(one.name, result)
        manifest.write()
        for one, result in zip(now, results, strict=True):
            if result.state == "failed":
                raise ValueError(f"prepare: {one.name} failed: {result.detail}")
        if any(result.state == "stopped" for result in results):
            return False
        waiting = [one for one in waiting if one.name in blocked]
    return True


def _preparation_job(one: Preparation, out: Path) -> Job:
    folder = prepared_path(out, one.name)
    done = folder.with_name(f"{one.name}.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = functools.partial(
        prepare_folder, folder, done, words=one.words, resume=one.resume, training=one.training
    )
    key = f"prepare-{one.name}"
    return Job(key=key, work=work, output=done, log=out / "logs" / f"{key}.log")


def _job(sweep: Sweep, point: Point) -> Job:
    out = sweep.out
    record = record_path(out, point.name)
    work = functools.partial(
        train_point,
        out / point.name,
        record,
        start=point.start,
        resume=point.resume,
        finished_at=point.finished_at,
        eval_num=sweep.spec.eval_num,
        make_record=sweep.command.make_record,
    )
    return Job(key=point.name, work=work, output=record, log=out / "logs" / f"{point.name}.log")


def _state_of(sweep: Sweep, point: Point) -> PointState:
    from trm.runs.run import Run

    folder = sweep.out / point.name
    if (folder / "run.json").exists():
        run = Run.open(folder)
        recipe: Any = run.load_recipe(sweep.command.recipe)
        env = run.info.env if sweep.command.takes_env else None
        if (env, run.info.seed, recipe) != (point.env, point.seed, point.recipe):
            raise ValueError(
                f"{folder}: was trained with other settings than {sweep.name} asks for now; choose"
                " another --out, or move it away"
            )
    if _is_finished(point, record_path(sweep.out, point.name), sweep.spec.eval_num):
        return "finished"
    return "interrupted" if folder.exists() else "pending"


def _is_finished(point: Point, record: Path, eval_num: int) -> bool:
    """Whether the record is there and is of this budget and this evaluation."""
    try:
        found = read_json_object(record)
    except ValueError:
        return False
    # A set may have fewer puzzles than were asked for; older records have the number alone.
    num = found.get("eval_num", found.get("num_instances"))
    same = point.env in (None, found.get("env")) and found.get("seed") == point.seed
    return same and num == eval_num and found.get("step", -1) >= point.finished_at
