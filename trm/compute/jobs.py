"""Many independent jobs, on processes of this machine or on a Ray cluster (DESIGN.md section 7).

A `Job` is a key, its work (the words of a program, or a picklable function of no arguments) and the
file that it leaves when it is finished; `map_jobs` runs those whose file is not there yet. Sweeps,
tuning, cache shards and evaluation shards come from here; scheduling across machines is Ray's.

Work must be idempotent: it may be stopped, killed and started again at any moment, so it writes its
output with `trm.runs.durable.replace_durably` and takes up what an earlier attempt saved. Every attempt
is a process of its own, in a process group of its own, with its output appended to the job's log;
it holds a lock on that log, so that no two attempts overlap, whoever started them. POSIX only.

This file is also the program of that process: its top level imports nothing of ours.
"""

import contextlib
import fcntl
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["BACKENDS", "Job", "JobResult", "last_lines", "map_jobs", "run_command"]

Backend = Literal["local", "ray"]
State = Literal["running", "done", "skipped", "failed", "stopped"]

BACKENDS: tuple[Backend, ...] = ("local", "ray")

_RETRIES: dict[Backend, int] = {"local": 0, "ray": 2}
"""Machines of a cluster come and go; here a killed process was most likely short of memory."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_POLL_SECONDS = 0.1
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
    """How a job stands."""

    key: str
    state: State
    """skipped: its output was there before; stopped: the call was told to stop first."""
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
        jobs: what to do.
        backend: "local" for processes of this machine; "ray" for a Ray cluster that sees the same
            files under the same paths, with this package installed on every node.
        workers: jobs at once; None for one per core here, and for what the cluster has room for.
        address: of the Ray cluster, e.g. "auto" or "ray://host:10001"; None starts a local one.
        retries: how often a job is started again after its process was killed, a job that fails by
            itself never is; None for 0 here and 2 on Ray.
        threads: of torch, numba and BLAS in each job.
        grace_seconds: time to save for a job that is told to stop.
        report: is told of every job that starts ("running") and of every result.

    Returns:
        One result a job, in the order given.

    Raises:
        ValueError: two jobs with one key, log or output, work that can't be sent to a process, a
            backend that is not installed or not reached.
        KeyboardInterrupt: after a second SIGINT.
    """
    from trm.compute.process import graceful_stop  # costs the import of torch, which workers spare

    _check(jobs, workers=workers, threads=threads, retries=retries)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if address is not None and backend != "ray":
        raise ValueError(f"address {address!r} needs backend ray")
    results: dict[str, JobResult] = {}

    def keep(result: JobResult) -> None:
        results[result.key] = result
        report(result)

    waiting: deque[tuple[Job, _Task]] = deque()
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


def run_command(words: Sequence[str]) -> None:
    """Run a program inside a job, to be called from the work's main thread.

    Its output goes to the job's log. SIGTERM, which the whole process group gets, is left to the
    program, so that it can save; it takes its effect here once the program has ended.

    Raises:
        subprocess.CalledProcessError: the program failed or was killed; a job that does not catch
            it ends in the same way.
    """
    with _heard(signal.SIGTERM) as told:
        process = subprocess.Popen(list(words), stdin=subprocess.DEVNULL)
        passed_on = False
        while process.poll() is None:
            if told and not passed_on:
                # The group's own signal is lost on a program that was just being started.
                process.terminate()
                passed_on = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_POLL_SECONDS)
    if told:
        os.kill(os.getpid(), signal.SIGTERM)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(words))


def last_lines(log: Path, count: int = _LOG_LINES) -> tuple[str, ...]:
    """The last lines of a log that are not empty; none where it can't be read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    lines = [line.strip() for line in text.splitlines()]
    return tuple([line for line in lines if line][-count:])


# --- The loop, the same for both backends


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A job as plain values, which can travel to another machine."""

    key: str
    log: str
    payload: bytes
    threads: int
    grace_seconds: float


@runtime_checkable
class _Pool(Protocol):
    """Where tasks run."""

    @property
    def running(self) -> int: ...

    def has_room(self) -> bool: ...

    def start(self, task: _Task) -> None: ...

    def ended(self) -> list[tuple[str, int | str]]:
        """Each key with an exit code, negative for a signal, or how its process was lost."""
        ...

    def stop(self) -> None:
        """Ask everything that runs to save and leave; may be called again."""
        ...

    def kill(self) -> None: ...


def _run_all(
    pool: _Pool,
    waiting: deque[tuple[Job, _Task]],
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
            keep(_running(job, attempts[job.key]))
        for key, ending in pool.ended():
            job, task = jobs[key]
            died = isinstance(ending, str) or ending < 0
            if died and not job.output.exists() and attempts[key] <= retries and not stopping():
                waiting.appendleft((job, task))
                continue
            result = _result(job, ending, stopping=stopping())
            seconds = time.monotonic() - started[key]
            keep(replace(result, attempts=attempts[key], seconds=seconds))


def _running(job: Job, attempt: int) -> JobResult:
    return JobResult(key=job.key, state="running", log=job.log, attempts=attempt)


def _result(job: Job, ending: int | str, *, stopping: bool) -> JobResult:
    # The output decides: it is there only when it is whole, whatever happened to the process after.
    if job.output.exists():
        return JobResult(key=job.key, state="done", log=job.log)
    if stopping:
        return JobResult(key=job.key, state="stopped", detail="told to stop", log=job.log)
    lines = last_lines(job.log)
    how = ending if isinstance(ending, str) else _how_it_ended(ending)
    detail = f"{how}; {job.log}: {lines[-1] if lines else 'empty'}"
    return JobResult(key=job.key, state="failed", detail=detail, log=job.log, log_lines=lines)


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


def _task_of(job: Job, *, threads: int, grace_seconds: float) -> _Task:
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
    return _Task(
        key=job.key,
        log=os.path.abspath(job.log),
        payload=pickle.dumps(payload),
        threads=threads,
        grace_seconds=grace_seconds,
    )


@contextlib.contextmanager
def _open_pool(
    backend: Backend, *, workers: int | None, address: str | None, threads: int
) -> Iterator[_Pool]:
    if backend == "local":
        yield _LocalPool(max(1, _num_cores() // threads) if workers is None else workers)
        return
    with _ray(address, workers=workers, threads=threads) as ray:
        yield _RayPool(ray, workers, threads)


def _num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- One attempt, seen from outside


class _Attempt:
    """The process of a task, with all that it starts."""

    def __init__(self, task: _Task) -> None:
        Path(task.log).parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(task.threads))
        with open(task.log, "ab") as log:
            self._process = subprocess.Popen(
                # -P: the folder of this file must not hide modules of the same names.
                [sys.executable, "-u", "-P", __file__, task.key],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is ours to pass on, so that every job is asked once and waited for.
                start_new_session=True,
                env=environment,
            )
        self._task = task
        self._deadline: float | None = None
        assert self._process.stdin is not None
        # Left open: when we die, however we die, the process reads its end and stops itself.
        self._pipe = self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._pipe.write(len(task.payload).to_bytes(8, "big") + task.payload)
            self._pipe.flush()

    def poll(self) -> int | None:
        """The exit code once the process and, where it failed, all that it started have ended."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._signal(signal.SIGKILL)
        code = self._process.poll()
        if code is None:
            return None
        if code != 0 and not self._is_gone():
            self.stop()
            return None
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        return code

    def stop(self) -> None:
        """Ask the group to stop; after the grace it is killed."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._task.grace_seconds
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the group at once and wait for its process."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _is_gone(self) -> bool:
        """Whether nothing of the group lives; zombies that nobody reaps hold no lock."""
        killed = self._deadline is not None and time.monotonic() > self._deadline + 1.0
        return killed or not self._signal(0) or _is_free(self._task.log)


def _is_free(log: str) -> bool:
    try:
        with open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class _LocalPool:
    """Processes of this machine."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._attempts: dict[str, _Attempt] = {}

    @property
    def running(self) -> int:
        return len(self._attempts)

    def has_room(self) -> bool:
        return len(self._attempts) < self._workers

    def start(self, task: _Task) -> None:
        self._attempts[task.key] = _Attempt(task)

    def ended(self) -> list[tuple[str, int | str]]:
        endings: list[tuple[str, int | str]] = [
            (key, code)
            for key, attempt in self._attempts.items()
            if (code := attempt.poll()) is not None
        ]
        for key, _ in endings:
            del self._attempts[key]
        if not endings:
            time.sleep(_POLL_SECONDS)
        return endings

    def stop(self) -> None:
        for attempt in self._attempts.values():
            attempt.stop()

    def kill(self) -> None:
        for attempt in self._attempts.values():
            attempt.kill()
        self._attempts.clear()


# --- Ray


class _RayPool:
    """Tasks of a Ray cluster; each watches over the same process as the local pool's."""

    def __init__(self, ray: Any, workers: int | None, threads: int) -> None:
        self._ray = ray
        self._workers = workers
        # Retries are counted by our own loop, for both backends alike.
        self._remote = ray.remote(num_cpus=threads, max_retries=0)(_attempt_on_ray)
        self._keys: dict[Any, str] = {}
        self._cancelled: set[Any] = set()

    @property
    def running(self) -> int:
        return len(self._keys)

    def has_room(self) -> bool:
        return self._workers is None or len(self._keys) < self._workers

    def start(self, task: _Task) -> None:
        self._keys[self._remote.remote(task)] = task.key

    def ended(self) -> list[tuple[str, int | str]]:
        if not self._keys:
            return []
        ready, _ = self._ray.wait(list(self._keys), num_returns=1, timeout=_POLL_SECONDS)
        return [(self._keys.pop(reference), self._ending(reference)) for reference in ready]

    def _ending(self, reference: Any) -> int | str:
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            return f"lost by Ray: {type(error).__name__}: {reason[:200]}"

    def stop(self) -> None:
        self._cancel(force=False)

    def kill(self) -> None:
        self._cancelled.clear()
        self._cancel(force=True)
        self._keys.clear()

    def _cancel(self, *, force: bool) -> None:
        for reference in self._keys.keys() - self._cancelled:
            self._ray.cancel(reference, force=force)
            self._cancelled.add(reference)


def _attempt_on_ray(task: _Task) -> int:
    """What a Ray worker does: start the process, wait for it, pass a cancellation on."""
    # ray.cancel interrupts, and again every two seconds until the task ends; were it an exception,
    # one that came between our lines would end the task, and Ray kills what a worker leaves behind.
    with _heard(signal.SIGINT) as told:
        attempt = _Attempt(task)
        while (code := attempt.poll()) is None:
            if told:
                attempt.stop()
            time.sleep(_POLL_SECONDS)
        return code


@contextlib.contextmanager
def _heard(number: signal.Signals) -> Iterator[list[int]]:
    """While it lasts, the signal does nothing but stand in this list; empty = it has not come."""
    told: list[int] = []
    previous = signal.signal(number, lambda came, frame: told.append(came))
    try:
        yield told
    finally:
        signal.signal(number, previous)


@contextlib.contextmanager
def _ray(address: str | None, *, workers: int | None, threads: int) -> Iterator[Any]:
    """A connected `ray`; a cluster that the caller is connected to already is used and left."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError("backend ray needs Ray: pip install 'upi-trm[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        cores = _num_cores() if workers is None else workers * threads
        _start_ray(ray, cores)
    else:
        try:
            ray.init(address=address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_ray(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}

_RAY_STARTS = 3
"""A busy machine takes longer than the 30 s that Ray waits for its own node."""

_RAY_STORE_BYTES = 100 * 2**20
"""Of a local cluster's objects: jobs are a few kilobytes, what they make goes to files."""


def _start_ray(ray: Any, cores: int) -> None:
    """A cluster of this machine alone."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    for attempt in range(1, _RAY_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cores,
                object_store_memory=_RAY_STORE_BYTES,
                include_dashboard=False,
                **_QUIET,
            )
        except Exception as error:  # a start that takes too long raises a bare one
            ray.shutdown()
            if attempt == _RAY_STARTS or isinstance(error, ValueError):
                raise _no_ray("this machine", error) from error
        else:
            return


def _no_ray(place: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"Ray at {place} can't be used: {reason}")


# --- One attempt, seen from inside


def _main() -> None:
    """Do the work that the parent sends on stdin, once nobody else is at it."""
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with os.fdopen(os.dup(pipe), "rb", buffering=0) as file:
        size = int.from_bytes(_read(file, 8), "big")
        payload = pickle.loads(_read(file, size))
    threading.Thread(target=_follow_parent, args=(pipe,), daemon=True).start()
    sys.path[:] = payload["path"]
    os.chdir(payload["folder"])
    try:
        fcntl.flock(1, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another process is at this job: waiting for its end", flush=True)
        # Whatever we start inherits the lock with stdout.
        fcntl.flock(1, fcntl.LOCK_EX)
    output = Path(payload["output"])
    if output.exists():
        return
    work = pickle.loads(payload["work"])
    try:
        if isinstance(work, tuple):
            run_command(work)
        else:
            work()
    except subprocess.CalledProcessError as error:
        # The program has said why on the log's last lines; a traceback would hide it.
        if error.returncode < 0:
            os.kill(os.getpid(), -error.returncode)
        sys.exit(error.returncode)
    if not output.exists():
        sys.exit(f"ended without writing {output}")


def _read(file: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            sys.exit("the process that started this job is gone")
        data += part
    return data


def _follow_parent(pipe: int) -> None:
    """Stop the group when the process that started it has ended, however it ended."""
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    _main()
