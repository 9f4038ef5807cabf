"""The metrics of a run: metrics.jsonl, one JSON object a line, and the same for TensorBoard.

`Run.log` hands named numbers over; comparisons, reports and resumed trainers read them back. A line
is handed to the operating system whole, so that a killed process loses none, and no time of day
goes into it, so that two equal runs have equal files.
"""

import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from trm.runs.durable import RecordLog, replace_durably
from trm.runs.files import RunError, explained


class MetricsLog:
    """Both logs of a run folder; files are opened when the first line is written."""

    def __init__(self, run: Path) -> None:
        """`run` is the run's folder."""
        self._file, self._events_folder = run / "metrics.jsonl", run / "tensorboard"
        self._lines: RecordLog | None = None
        self._events: _EventLog | None = None
        self._purge_step: int | None = None

    def append(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Write one line; see `Run.log`."""
        if "step" in metrics:
            raise ValueError("metrics: 'step' is taken by the step itself")
        numbers = {name: _json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"
        with explained(self._file, "could not be written"):
            if self._lines is None:
                self._lines = RecordLog(self._file)
            self._lines.append(line.encode())
        with explained(self._events_folder, "could not be written"):
            if self._events is None:
                self._events = _EventLog(self._events_folder, self._purge_step)
            self._events.append(step, metrics)

    def read(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first; a last line that is only half written is left out."""
        if not self._file.exists():
            return []
        with explained(self._file, "cannot be read"):
            return [record for record, _ in _parse_lines(self._file)]

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
            if kept != self._file.read_bytes():
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


def _json_number(value: SupportsFloat) -> float | int | str:
    """JSON has no NaN and no infinity: they are written as text."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def _parse_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each line of metrics.jsonl as a record, and its bytes."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            # Only the last line can lack its end: a process was killed, or the disk filled up,
            # while writing it.
            return
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}: not a line of metrics ({error})") from error
        values = {
            name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in record.items()
        }
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
