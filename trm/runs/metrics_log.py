"""The metrics of a run: metrics.jsonl, one JSON object a line, and the same for TensorBoard.

`Run.log` hands named numbers over; comparisons, reports and resumed trainers read them back. A line
is handed to the operating system whole, so that a killed process loses none, and no time of day
goes into it, so that two equal runs have equal files. The lines carry no checksum of their own; a
checkpoint records that of the whole file up to its own lines (`checksum`).
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from trm.bounded import METRICS, one_line, parse_json, read_bytes
from trm.runs.durable import RecordLog, replace_durably
from trm.runs.files import RunError, explained


@dataclass(frozen=True, kw_only=True, slots=True)
class Checksum:
    """Of the beginning of metrics.jsonl."""

    bytes: int
    sha256: str


class MetricsLog:
    """Both logs of a run folder; files are opened when the first line is written."""

    def __init__(self, run: Path) -> None:
        """`run` is the run's folder."""
        self._file, self._events_folder = run / "metrics.jsonl", run / "tensorboard"
        self._lines: RecordLog | None = None
        self._events: _EventLog | None = None
        self._purge_step: int | None = None
        self._running: Any = None
        """SHA-256 of the file so far, while it is open, and its length."""
        self._length = 0

    def append(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Write one line; see `Run.log`."""
        if "step" in metrics:
            raise ValueError("metrics: 'step' is taken by the step itself")
        numbers = {name: _json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"
        with explained(self._file, "could not be written"):
            if self._lines is None:
                self._hash_file()
                self._lines = RecordLog(self._file)
            self._lines.append(line.encode())
        self._running.update(line.encode())
        self._length += len(line.encode())
        with explained(self._events_folder, "could not be written"):
            if self._events is None:
                self._events = _EventLog(self._events_folder, self._purge_step)
            self._events.append(step, metrics)

    def read(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first; a last line that is only half written is left out."""
        if not self._file.exists():
            return []
        return [record for record, _ in _parse_lines(self._file)]

    def exists(self) -> bool:
        """Whether there is a metrics.jsonl."""
        return self._file.exists()

    def checksum(self) -> Checksum:
        """Of all lines that are written."""
        if self._running is None:
            self._hash_file()
        return Checksum(bytes=self._length, sha256=self._running.hexdigest())

    def matches(self, checksum: Checksum) -> bool:
        """Whether the file begins with the bytes that the checksum was taken of."""
        content = hashlib.sha256()
        length = 0
        if self._file.exists():
            with explained(self._file, "cannot be read"), self._file.open("rb") as file:
                while length < checksum.bytes:
                    part = file.read(min(1 << 20, checksum.bytes - length))
                    if not part:
                        break
                    content.update(part)
                    length += len(part)
        return length == checksum.bytes and content.hexdigest() == checksum.sha256

    def truncate(self, after_step: int) -> None:
        """Drop every line of a later step; see `Run.truncate_metrics`."""
        self.close()
        self._purge_step = after_step + 1
        if not self._file.exists():
            return
        with explained(self._file, "could not be cut"):
            kept = b"".join(
                line for record, line in _parse_lines(self._file) if record["step"] <= after_step
            )
            if len(kept) != self._file.stat().st_size:
                replace_durably(self._file, kept)

    def recover(self) -> None:
        """Cut off a last line that an interrupted writer left half-written."""
        if self._file.exists():
            data = self._file.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                replace_durably(self._file, whole)

    def sync(self) -> None:
        """Wait until the disk holds every line of metrics.jsonl."""
        if self._lines is not None:
            self._lines.sync()

    def close(self) -> None:
        """Close the files; the next `append` opens them again."""
        for log in (self._lines, self._events):
            if log is not None:
                log.close()
        self._lines, self._events = None, None
        self._running = None

    def _hash_file(self) -> None:
        """Begin the running checksum with what the file holds."""
        data = read_bytes(self._file, METRICS) if self._file.is_file() else b""
        self._running, self._length = hashlib.sha256(data), len(data)


def _json_number(value: SupportsFloat) -> float | int | str:
    """JSON has no NaN and no infinity: they are written as text."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def _number(value: Any) -> float | int:
    """The counterpart of `_json_number`."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def _parse_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each line of metrics.jsonl as a record, and its bytes."""
    try:
        with explained(path, "cannot be read"):
            lines = read_bytes(path, METRICS).splitlines(keepends=True)
    except RunError:
        raise
    except ValueError as error:
        raise RunError(str(error)) from None
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            # Only the last line can lack its end: a process was killed, or the disk filled up,
            # while writing it.
            return
        try:
            record = parse_json(line, METRICS)
            step = record["step"]
            if type(step) is not int:
                raise ValueError(f"step is {step!r}")
            values = {name: _number(value) for name, value in record.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path}, line {number}: not a line of metrics ({one_line(error)})"
            ) from error
        yield {**values, "step": step}, line


class _EventLog:
    """TensorBoard's event file, written at once by the caller: no queue that a kill could lose."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        # Imported here: evaluation and tests that log nothing should not pay for it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._record_writer = Event, Summary, RecordWriter
        folder.mkdir(exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        self._log = RecordLog(folder / f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}")
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._append(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def append(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
        ]
        self._append(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )

    def close(self) -> None:
        self._log.close()

    def _append(self, event: Any) -> None:
        buffer = io.BytesIO()
        self._record_writer(buffer).write(event.SerializeToString())
        self._log.append(buffer.getvalue())
