"""Files that survive a killed process, a lost machine and a full disk.

Run folders (DESIGN.md section 8) are written with nothing but these: a file that is either old or
new and never half of each, and a log that grows by whole records. Input is bytes and output is
files. Every function raises plain `OSError`.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk holds it."""
    with _naming(path), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Give `path` new content in one step: at any moment it holds the old or the new one."""
    # Native ids are unique among all threads of a machine, so that no two writers share the file.
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the disk holds the names in a folder: a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RecordLog:
    """A file that grows by whole records: one that fails half-way (full disk) is taken back."""

    def __init__(self, path: Path) -> None:
        """Open for appending; the file is created when missing."""
        self.path = path
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666
        )

    def append(self, record: bytes) -> None:
        """Hand the record to the operating system, which keeps it even if we are killed at once."""
        start = os.fstat(self._descriptor).st_size
        with _naming(self.path):
            try:
                rest = memoryview(record)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, start)
                raise

    def sync(self) -> None:
        """Wait until the disk holds every record."""
        with _naming(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a closed log can't be used any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A failing write on an open file doesn't say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
