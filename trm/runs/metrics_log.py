"""metrics.jsonl and the same numbers for TensorBoard."""

import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from trm.runs.durable import RecordLog
from trm.runs.files import RunError


def json_number(value: SupportsFloat) -> float | int | str:
    """JSON has no NaN and no infinity: they are written as text."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def parse_metrics(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
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


class EventLog:
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
