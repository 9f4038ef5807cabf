"""Many independent jobs, on processes of this machine or on a Ray cluster (DESIGN.md section 7).

A `Job` is a key, its work (the words of a program, or a picklable function of no arguments) and the
file that it leaves when it is finished; `map_jobs` runs those whose file is not there yet, each
attempt in a process of its own (`attempts`), here or on Ray (`ray_pool`). Sweeps, tuning, cache
shards and evaluation shards come from here.

Work must be idempotent: it may be stopped, killed and started again at any moment, so it writes its
output with `trm.runs.durable.replace_durably` and takes up what an earlier attempt saved.
"""

import contextlib
import os
import pickle
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trm.compute.attempts import POLL_SECONDS, Attempt, Task
from trm.compute.process import graceful_stop
from trm.compute.ray_pool import RayPool, connected_ray

Backend = Literal["local", "ray"]
State = Literal["running", "done", "skipped", "failed", "stopped"]

_RETRIES: dict[Backend, int] = {"local": 0, "ray": 2}
"""Machines of a cluster come and go; here a killed process was most likely short of memory."""

_LOG_LINES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One piece of work."""

    key: str
    """Its name, unique among the jobs of a call."""
    work: tuple[str, ...] | Callable[[], object]
    """Words of a program; or a function, best a `functools.partial` of one that can be imported."""
    output: Path
    """Appears, by renaming, when the work is finished; a job whose output exists is skipped."""
    log: Path
    """What the work prints is appended here; one file a job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """State of a job: it runs, or how it ended."""

    key: str
    state: State
    """skipped: its output was there before; stopped: a signal ended the call first."""
    detail: str = ""
    """One line that says why it failed or stopped."""
    log: Path
    log_lines: tuple[str, ...] = ()
    """The log's last lines, of a failed job only."""
    attempts: int = 0
    """Processes started for it in this call."""
    seconds: float = 0.0
    """Wall time of its last attempt."""


def map_jobs(
    jobs: Sequence[Job],
    *,
    backend: Backend = "local",
    workers: int | None = None,
    address: str | None = None,
    retries: int | None = None,
    threads: int = 1,
    grace_seconds: float = 120.0,
    report: Callable[[JobResult], None] = lambda _: None,
) -> list[JobResult]:
    """Run every job whose output is not there yet.

    A job that fails or whose process dies does not touch the others. On SIGINT or SIGTERM nothing
    new starts, running jobs get SIGTERM and `grace_seconds` to save and leave; a second SIGINT
    kills them.

    Args:
        jobs: what to run.
        backend: "local" for processes of this machine; "ray" for a Ray cluster that sees the same
            files under the same paths, with this package installed on every node.
        workers: jobs at once; None for one per core here, and for what the cluster has room for.
        address: address of the Ray cluster, e.g. "auto" or "ray://host:10001"; None starts a local
            one.
        retries: how often a job is started again after its process was killed; a job that fails by
            itself never is. None for 0 here and 2 on Ray.
        threads: number of threads of torch, numba and BLAS in each job.
        grace_seconds: time to save for a job that must stop.
        report: called for every job that starts ("running") and for every result.

    Returns:
        One result a job, in the order given.

    Raises:
        ValueError: two jobs with one key, log or output, work that can't be sent to a process, a
            backend that is not installed or not reached.
        KeyboardInterrupt: after a second SIGINT.
    """
    _check(jobs, workers=workers, threads=threads, retries=retries)
    if backend not in _RETRIES:
        raise ValueError(f"backend must be one of {', '.join(_RETRIES)}, got {backend!r}")
    if address is not None and backend != "ray":
        raise ValueError(f"address {address!r} needs backend ray")
    results: dict[str, JobResult] = {}

    def keep(result: JobResult) -> None:
        results[result.key] = result
        report(result)

    waiting: deque[tuple[Job, Task]] = deque()
    for job in jobs:
        if job.output.exists():
            keep(JobResult(key=job.key, state="skipped", log=job.log))
        else:
            waiting.append((job, _task_of(job, threads=threads, grace_seconds=grace_seconds)))
    if waiting:
        limit = _RETRIES[backend] if retries is None else retries
        with (
            _open_pool(backend, workers=workers, address=address, threads=threads) as pool,
            graceful_stop() as stop,
        ):
            try:
                _run_all(pool, waiting, limit, lambda: stop.requested, keep)
            except BaseException:
                pool.kill()
                raise
    return [results[job.key] for job in jobs]


# --- The loop, the same for both backends


def _run_all(
    pool: "_LocalPool | RayPool",
    waiting: deque[tuple[Job, Task]],
    retries: int,
    stopping: Callable[[], bool],
    keep: Callable[[JobResult], None],
) -> None:
    jobs = {job.key: (job, task) for job, task in waiting}
    attempts: Counter[str] = Counter()
    started: dict[str, float] = {}
    while waiting or pool.running:
        if stopping():
            for job, _ in waiting:
                keep(JobResult(key=job.key, state="stopped", detail="not started", log=job.log))
            waiting.clear()
            pool.stop()
        while waiting and pool.has_room():
            job, task = waiting.popleft()
            attempts[job.key] += 1
            started[job.key] = time.monotonic()
            pool.start(task)
            attempt = attempts[job.key]
            keep(JobResult(key=job.key, state="running", log=job.log, attempts=attempt))
        for key, ending in pool.ended():
            job, task = jobs[key]
            died = isinstance(ending, str) or ending < 0
            if died and not job.output.exists() and attempts[key] <= retries and not stopping():
                waiting.appendleft((job, task))
                continue
            result = _result(job, ending, stopping=stopping())
            seconds = time.monotonic() - started[key]
            keep(replace(result, attempts=attempts[key], seconds=seconds))


def _result(job: Job, ending: int | str, *, stopping: bool) -> JobResult:
    # The output decides: it is there only when it is whole, whatever happened to the process after.
    if job.output.exists():
        return JobResult(key=job.key, state="done", log=job.log)
    if stopping:
        return JobResult(key=job.key, state="stopped", detail="told to stop", log=job.log)
    lines = _last_lines(job.log)
    how = ending if isinstance(ending, str) else _how_it_ended(ending)
    detail = f"{how}; {job.log}: {lines[-1] if lines else 'empty'}"
    return JobResult(key=job.key, state="failed", detail=detail, log=job.log, log_lines=lines)


def _last_lines(log: Path) -> tuple[str, ...]:
    """The last lines of a log that are not empty; none where it can't be read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    lines = [line.strip() for line in text.splitlines()]
    return tuple([line for line in lines if line][-_LOG_LINES:])


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _check(jobs: Sequence[Job], *, workers: int | None, threads: int, retries: int | None) -> None:
    for name in ("key", "output", "log"):
        for value, count in Counter(getattr(job, name) for job in jobs).items():
            if count > 1:
                raise ValueError(f"jobs: {count} jobs have the {name} {str(value)!r}")
    limits = {"workers": (workers, 1), "threads": (threads, 1), "retries": (retries, 0)}
    for name, (number, least) in limits.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def _task_of(job: Job, *, threads: int, grace_seconds: float) -> Task:
    try:
        work = pickle.dumps(job.work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"job {job.key}: its work can't be sent to a process: {error}") from error
    if b"__main__" in work:
        raise ValueError(
            f"job {job.key}: its work is defined in the program that was started (__main__), where "
            "another process can't find it; move it to a module"
        )
    payload = {
        "path": [entry or os.getcwd() for entry in sys.path],
        "folder": os.getcwd(),
        "output": str(job.output),
        "work": work,
    }
    return Task(
        key=job.key,
        log=os.path.abspath(job.log),
        payload=pickle.dumps(payload),
        threads=threads,
        grace_seconds=grace_seconds,
    )


@contextlib.contextmanager
def _open_pool(
    backend: Backend, *, workers: int | None, address: str | None, threads: int
) -> Iterator["_LocalPool | RayPool"]:
    if backend == "local":
        yield _LocalPool(max(1, _num_cores() // threads) if workers is None else workers)
        return
    cores = _num_cores() if workers is None else workers * threads
    with connected_ray(address, cores=cores) as ray:
        yield RayPool(ray, workers, threads)


def _num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _LocalPool:
    """Processes of this machine; the methods are those of `RayPool`."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._attempts: dict[str, Attempt] = {}

    @property
    def running(self) -> int:
        return len(self._attempts)

    def has_room(self) -> bool:
        return len(self._attempts) < self._workers

    def start(self, task: Task) -> None:
        self._attempts[task.key] = Attempt(task)

    def ended(self) -> list[tuple[str, int | str]]:
        endings: list[tuple[str, int | str]] = [
            (key, code)
            for key, attempt in self._attempts.items()
            if (code := attempt.poll()) is not None
        ]
        for key, _ in endings:
            del self._attempts[key]
        if not endings:
            time.sleep(POLL_SECONDS)
        return endings

    def stop(self) -> None:
        for attempt in self._attempts.values():
            attempt.stop()

    def kill(self) -> None:
        for attempt in self._attempts.values():
            attempt.kill()
        self._attempts.clear()
