"""A lock on a folder, so that one process at a time writes to it.

Run folders, sweeps, searches and data sets that are being built take it. `filelock` locks with
flock: the lock ends with its process, however that ends, and forked workers do not keep it. The
file of the lock holds the process id of the holder, which only the error message reads.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from trm.runs.files import RunError, explained


def take_lock(folder: Path, work: str, *, file: str = ".lock") -> BaseFileLock:
    """Lock a folder until the lock is released.

    Args:
        folder: must exist.
        work: what the holder does, for the error message, e.g. "is writing to this run".
        file: path of the lock's file below the folder; it stays there.

    Raises:
        RunError: another process, or another lock of this one, holds it; names the process id.
    """
    path = folder / file
    lock = FileLock(path, blocking=False, thread_local=False)
    with explained(path, "cannot be locked"):
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{folder}: process {_holder(path)} {work}; wait for it or stop it first"
            ) from None
    # On a full disk the lock holds without the process id.
    with contextlib.suppress(OSError):
        path.write_text(f"{os.getpid()}\n")
    return lock


@contextlib.contextmanager
def locked(folder: Path, work: str, *, file: str = ".lock") -> Iterator[None]:
    """Hold a folder's lock for a `with` block; arguments and errors as of `take_lock`."""
    lock = take_lock(folder, work, file=file)
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
