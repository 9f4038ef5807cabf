"""One attempt at a job: a process of its own, seen from outside (`Attempt`) and from inside.

Every attempt is a process group of its own, with its output appended to the job's log; it holds a
lock on that log, so that no two attempts overlap, whoever started them. It ends when the process
that started it ends. `jobs` and `ray_pool` start attempts; POSIX only.

This file is also the program of that process: its top level imports nothing of ours.
"""

import contextlib
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.1
"""Between two looks at a process."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A job as plain values, which can travel to another machine."""

    key: str
    log: str
    """Absolute path."""
    payload: bytes
    """Pickled: sys.path, working folder, output and the work itself, pickled once more."""
    threads: int
    grace_seconds: float


def run_command(words: Sequence[str]) -> None:
    """Run a program inside a job, to be called from the work's main thread.

    Its output goes to the job's log. SIGTERM, which the whole process group gets, is left to the
    program, so that it can save; it takes its effect here once the program has ended.

    Raises:
        subprocess.CalledProcessError: the program failed or was killed; a job that does not catch
            it ends in the same way.
    """
    with noted(signal.SIGTERM) as came:
        process = subprocess.Popen(list(words), stdin=subprocess.DEVNULL)
        passed_on = False
        while process.poll() is None:
            if came and not passed_on:
                # The group's own signal is lost on a program that was just being started.
                process.terminate()
                passed_on = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=POLL_SECONDS)
    if came:
        os.kill(os.getpid(), signal.SIGTERM)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(words))


@contextlib.contextmanager
def noted(number: signal.Signals) -> Iterator[list[int]]:
    """A list to which a signal is appended while the block runs; it has no other effect."""
    came: list[int] = []
    previous = signal.signal(number, lambda signal_number, frame: came.append(signal_number))
    try:
        yield came
    finally:
        signal.signal(number, previous)


# --- Seen from outside


class Attempt:
    """The process of a task, with all that it starts."""

    def __init__(self, task: Task) -> None:
        """Start it; its output is appended to the task's log."""
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


# --- Seen from inside


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
