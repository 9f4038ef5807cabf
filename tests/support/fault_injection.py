"""Faults on purpose: a process that dies or a disk that refuses at any call that changes the disk.

`at_every_call` runs a writer again and again in forked children, each time with the fault one call
later, until the writer gets through, and has the folder verified after each. `damages` gives the
ways in which one file may come to harm. `Tally` counts what was tried and what held.
"""

import builtins
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trm.runs.files import json_bytes

FaultKind = Literal["die before", "die after", "ENOSPC", "EIO"]
FAULT_KINDS: tuple[FaultKind, ...] = ("die before", "die after", "ENOSPC", "EIO")

CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "ftruncate", "write", "open")
DECLARED = 3
"""Exit code of a child whose writer ended in a declared error of one line."""


@dataclass
class Tally:
    """Promise -> how often it was tried, and the cases in which it did not hold."""

    tried: dict[str, int] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)

    def count(self, promise: str, case: str, problem: str | None) -> None:
        """One fault; `problem` says what did not hold, None where all did."""
        self.tried[promise] = self.tried.get(promise, 0) + 1
        if problem is not None:
            self.broken.setdefault(promise, []).append(f"{case}: {problem}")
            print(f"NOT HELD: {promise}\n{case}: {problem}", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Promise, tried, held as rows of Markdown, and their sums."""
        rows = [
            (promise, tried, tried - len(self.broken.get(promise, [])))
            for promise, tried in self.tried.items()
        ]
        sums = ("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows))
        lines = [f"| {promise} | {tried:,} | {held:,} |" for promise, tried, held in [*rows, sums]]
        return "\n".join(["| promise | tried | held |", "|---|---|---|", *lines])


@dataclass(frozen=True)
class Writer:
    """Something that writes to a folder."""

    name: str
    promise: str
    """What holds after it was broken off; a sentence for the table."""
    prepare: Callable[[Path], None]
    """Makes the folder as it is before."""
    write: Callable[[Path], None]
    verify: Callable[[Path], None]
    """Raises `AssertionError` where something is lost; may go on writing."""


def at_every_call(
    writer: Writer, scratch: Path, tally: Tally, *, kinds: tuple[FaultKind, ...], stride: int
) -> None:
    """Break a writer off at every `stride`-th call point by every kind of fault.

    Args:
        writer: what is broken off.
        scratch: an empty folder.
        tally: counts each fault.
        kinds: of faults.
        stride: 1 for every call; more for a part of them, other ones for each kind.
    """
    template = scratch / "template"
    writer.prepare(template)
    for offset, kind in enumerate(kinds):
        for count in range(offset % stride, 10**6, stride):
            path = scratch / "case"
            if template.exists():
                shutil.copytree(template, path)
            status, said = _in_child(writer, path, kind, count)
            through = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            if through and "fault" not in said:
                shutil.rmtree(path, ignore_errors=True)
                break
            problem = None
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, DECLARED):
                problem = f"traceback: {said}"
            try:
                writer.verify(path)
            except Exception:
                problem = f"{problem or ''}{traceback.format_exc(limit=-3)}"
            tally.count(f"{writer.name}: {writer.promise}", f"{kind} at call {count}", problem)
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(template, ignore_errors=True)


def _in_child(writer: Writer, path: Path, kind: FaultKind, count: int) -> tuple[int, str]:
    """The exit status of a child that writes with a fault, and what it said."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        say = os.write  # before it is replaced
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            _inject(kind, count, lambda: say(write, b"fault "))
            writer.write(path)
            code = 0
        except (ValueError, OSError) as error:
            code = DECLARED if "\n" not in str(error).strip() else 1
            say(write, traceback.format_exc(limit=-4).encode())
        except BaseException:
            say(write, traceback.format_exc(limit=-6).encode())
        finally:
            os._exit(code)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitpid(child, 0)[1], said


def _inject(kind: FaultKind, count: int, announce: Callable[[], Any]) -> None:
    """From now on, the `count`-th call that may change the disk goes wrong."""
    calls = iter(range(10**9))
    number = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}.get(kind)

    def faulty(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(calls) != count:
                return call(*arguments, **options)
            announce()
            if number is not None:
                raise OSError(number, os.strerror(number))
            if kind == "die before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **options)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in CALLS:
        setattr(os, name, faulty(getattr(os, name)))
    builtins.open = io.open = faulty(builtins.open)


# --- Damage to a file at rest

FILE_KINDS = ("flipped bit", "truncated", "deleted", "another version")


def damages(data: bytes, *, flips: int, seed: int) -> Iterator[tuple[str, bytes | None]]:
    """(kind of damage, the file afterwards or None for no file), for one file.

    Args:
        data: the file.
        flips: bits to flip, spread evenly over the file.
        seed: chooses the bit in each byte.
    """
    chosen = random.Random(seed)
    for part in range(min(flips, len(data))):
        place = (2 * part + 1) * len(data) // (2 * min(flips, len(data)))
        flipped = bytearray(data)
        flipped[place] ^= 1 << chosen.randrange(8)
        yield "flipped bit", bytes(flipped)
    for length in sorted({0, len(data) // 2, len(data) - 1} - {len(data), -1}):
        yield "truncated", data[:length]
    yield "deleted", None
    yield from (("another version", other) for other in _other_versions(data))


def _other_versions(data: bytes) -> Iterator[bytes]:
    """The file as a program of another version would have written it, whole."""
    try:
        record = json.loads(data)
    except ValueError:
        return
    if not isinstance(record, dict):
        return
    sealed = record.pop("sha256", None) is not None
    for name in ("format_version", "format"):
        if name in record:
            for version in (0, 99, "2", None):
                other = record | {name: version}
                yield json_bytes(other) if sealed else json.dumps(other).encode()


def problem_of(read: Callable[[], Any], expected: Any) -> str | None:
    """How damage was met wrongly; None for a declared error of one line, or no effect."""
    try:
        found = read()
    except (ValueError, OSError) as error:
        message = str(error).strip()
        return None if message and "\n" not in message else f"message of several lines: {message}"
    except Exception:
        return f"traceback: {traceback.format_exc(limit=-3)}"
    return None if found == expected else "accepted without a word"


def rewrite_table(page: Path, table: str) -> None:
    """Put a table between the marks of a page."""
    text = page.read_text()
    begin, end = "<!-- table: make faults -->", "<!-- end of table -->"
    new = re.sub(f"{begin}.*{end}", f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)
    if begin not in text or end not in text:
        sys.exit(f"{page}: the marks of the table are missing")
    page.write_text(new)
