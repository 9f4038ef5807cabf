"""Jobs on local processes and on Ray: skipped, failed, killed, stopped, never done twice."""

import fcntl
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import job_cases
import pytest

from trm.compute import jobs as jobs_module
from trm.compute.jobs import Job, JobResult, map_jobs


def _job(folder: Path, key: str, work: Callable[[], object] | tuple[str, ...] | None = None) -> Job:
    output = folder / f"{key}.json"
    work = work or partial(job_cases.write, output)
    return Job(key=key, work=work, output=output, log=folder / "logs" / f"{key}.log")


def _has_ended(job: Job) -> bool:
    """Whether nothing of an attempt that had begun lives: each of its processes locks the log."""
    with open(job.log, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _map_and_stop(
    job: Job, *others: Job, at_work: Callable[[], bool], **options: Any
) -> list[JobResult]:
    """What `map_jobs` returns when this process gets a SIGTERM once the first job is at work."""
    ended = threading.Event()

    def stop_once_at_work() -> None:
        while not at_work():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_once_at_work)
    thread.start()
    try:
        return map_jobs([job, *others], **options)
    finally:
        ended.set()
        thread.join()


def test_a_finished_job_is_skipped_and_its_output_left_alone(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, "old"), _job(tmp_path, "new")]
    jobs[0].output.write_text("from before")
    reports: list[tuple[str, str]] = []
    results = map_jobs(jobs, report=lambda result: reports.append((result.key, result.state)))
    assert [(result.state, result.attempts) for result in results] == [("skipped", 0), ("done", 1)]
    assert [job.output.read_text() for job in jobs] == ["from before", "whole"]
    assert reports == [("old", "skipped"), ("new", "running"), ("new", "done")]


def test_a_job_that_fails_is_reported_with_its_last_line_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    program = (sys.executable, "-c", "print('no such puzzle'); raise SystemExit(2)")
    jobs = [
        _job(tmp_path, "raises", job_cases.fail),
        _job(tmp_path, "exits", program),
        _job(tmp_path, "forgets", job_cases.forget_to_write),
        _job(tmp_path, "works"),
    ]
    raises, exits, forgets, works = map_jobs(jobs, workers=2)
    assert raises.state == "failed"
    assert raises.detail.endswith("ValueError: temperature must be positive, got -1")
    assert raises.log_lines[-1] == "ValueError: temperature must be positive, got -1"
    assert exits.detail == f"exit code 2; {jobs[1].log}: no such puzzle"
    assert "ended without writing" in forgets.detail
    assert works.state == "done"


def test_a_killed_process_is_reported_and_never_tried_again_unasked(tmp_path: Path) -> None:
    output, tally = tmp_path / "self.json", tmp_path / "tally"
    jobs = [
        _job(tmp_path, "self", partial(job_cases.die, output, tally, 9)),
        _job(tmp_path, "program", job_cases.program_dies),
        _job(tmp_path, "works"),
    ]
    killed, program, works = map_jobs(jobs, workers=3)
    assert killed.detail == f"killed by SIGKILL; {jobs[0].log}: attempt 0"
    assert program.detail.startswith("killed by SIGKILL")
    assert (killed.attempts, works.state) == (1, "done")
    assert not output.exists()


@pytest.mark.parametrize(("retries", "state", "attempts"), [(1, "failed", 2), (2, "done", 3)])
def test_retries_are_bounded_and_an_attempt_takes_up_the_one_before(
    tmp_path: Path, retries: int, state: str, attempts: int
) -> None:
    output = tmp_path / "a.json"
    job = _job(tmp_path, "a", partial(job_cases.die, output, tmp_path / "tally", 2))
    (result,) = map_jobs([job], retries=retries)
    assert (result.state, result.attempts) == (state, attempts)
    assert output.exists() == (state == "done")


def test_on_sigterm_running_jobs_save_and_the_others_do_not_start(tmp_path: Path) -> None:
    save = partial(job_cases.save_when_told, tmp_path)
    jobs = [_job(tmp_path, "running", save), _job(tmp_path, "waiting")]
    running, waiting = _map_and_stop(*jobs, at_work=(tmp_path / "at-work").exists, workers=1)
    assert (running.state, running.detail) == ("stopped", "told to stop")
    assert (waiting.state, waiting.detail, waiting.attempts) == ("stopped", "not started", 0)
    assert (tmp_path / "saved").exists()


def test_a_job_that_does_not_leave_within_the_grace_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('at work')\n"
        f"time.sleep({job_cases.FOR_EVER}); print('woke up')"
    )
    job = _job(tmp_path, "deaf", (sys.executable, "-u", "-c", deaf))

    def at_work() -> bool:
        return job.log.exists() and "at work" in job.log.read_text()

    (result,) = _map_and_stop(job, at_work=at_work, grace_seconds=0.3)
    assert result.state == "stopped"
    assert _has_ended(job)
    assert "woke up" not in job.log.read_text()


def test_jobs_save_and_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    job = _job(tmp_path, "a", partial(job_cases.save_when_told, tmp_path))
    code = (
        "import pickle, sys; from trm.compute.jobs import map_jobs\n"
        "map_jobs(pickle.load(sys.stdin.buffer))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdin is not None
    with parent.stdin as pipe:
        pickle.dump([job], pipe)
    while not (tmp_path / "at-work").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while not _has_ended(job):
        time.sleep(0.02)
    assert (tmp_path / "saved").exists()


def test_two_callers_at_once_do_a_job_once(tmp_path: Path) -> None:
    output, tally = tmp_path / "a.json", tmp_path / "tally"
    job = _job(tmp_path, "a", partial(job_cases.count_and_write, output, tally))
    results: list[JobResult] = []
    callers = [
        threading.Thread(target=lambda: results.extend(map_jobs([job], workers=1)))
        for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [result.state for result in results] == ["done", "done"]
    assert tally.read_text() == "once\n"


def test_each_job_computes_with_the_threads_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    map_jobs([_job(tmp_path, "a", partial(job_cases.write_threads, output))], threads=3)
    assert output.read_text() == "33"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"address": "auto"}, "address 'auto' needs backend ray"),
    ],
)
def test_bad_options_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        map_jobs([_job(tmp_path, "a")], **options)


def test_jobs_that_would_share_a_file_or_cannot_travel_are_refused(tmp_path: Path) -> None:
    twice = _job(tmp_path, "a")
    with pytest.raises(ValueError, match="2 jobs have the key 'a'"):
        map_jobs([twice, twice])
    with pytest.raises(ValueError, match="job b: its work can't be sent to a process"):
        map_jobs([_job(tmp_path, "b", lambda: None)])


def test_a_backend_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"upi-trm\[cluster\]"):
        map_jobs([_job(tmp_path, "a")], backend="ray")


class SlowRay:
    """Ray, as far as starting goes; the first `failures` starts take too long."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts, self.shut = failures, 0, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise Exception("The current node\ntimed out during startup.")

    def shutdown(self) -> None:
        self.shut += 1


@pytest.mark.parametrize("failures", [0, 2])
def test_a_cluster_that_starts_too_slowly_is_started_again(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    slow = SlowRay(failures)
    monkeypatch.setitem(sys.modules, "ray", slow)
    with jobs_module._ray(None, workers=2, threads=1) as ray:
        assert ray is slow
        assert (slow.starts, slow.shut) == (failures + 1, failures)
    assert slow.shut == failures + 1


def test_a_cluster_that_never_starts_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowRay(99)
    monkeypatch.setitem(sys.modules, "ray", slow)
    with pytest.raises(ValueError, match=r"Ray at this machine can't be used: .*node timed out"):
        map_jobs([_job(tmp_path, "a")], backend="ray")
    assert slow.starts == slow.shut == 3


# Ray: a local cluster for each test.

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra cluster (Ray) is not installed"
)


@pytest.mark.slow
@needs_ray
def test_on_ray_a_worker_killed_half_way_is_retried_and_the_rest_is_not_touched(
    tmp_path: Path,
) -> None:
    output, hopeless = tmp_path / "a.json", tmp_path / "b.json"
    jobs = [
        _job(tmp_path, "a", partial(job_cases.die, output, tmp_path / "ta", 1, parent=True)),
        _job(tmp_path, "b", partial(job_cases.die, hopeless, tmp_path / "tb", 9, parent=True)),
        _job(tmp_path, "raises", job_cases.fail),
        _job(tmp_path, "old"),
    ]
    jobs[3].output.write_text("from before")
    killed, lost, raises, old = map_jobs(jobs, backend="ray", retries=2)
    assert (killed.state, killed.attempts) == ("done", 2)
    assert output.read_text() == "after 1 deaths"
    assert (lost.state, lost.attempts) == ("failed", 3)
    assert lost.detail.startswith("lost by Ray: WorkerCrashedError")
    assert raises.detail.endswith("ValueError: temperature must be positive, got -1")
    assert raises.attempts == 1
    assert (old.state, jobs[3].output.read_text()) == ("skipped", "from before")


@pytest.mark.slow
@needs_ray
def test_on_ray_running_jobs_save_when_told_to_stop(tmp_path: Path) -> None:
    job = _job(tmp_path, "a", partial(job_cases.save_when_told, tmp_path))
    (result,) = _map_and_stop(job, at_work=(tmp_path / "at-work").exists, backend="ray")
    assert (result.state, result.attempts) == ("stopped", 1)
    while not _has_ended(job):
        time.sleep(0.02)
    assert (tmp_path / "saved").exists()
