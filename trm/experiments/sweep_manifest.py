"""manifest.json, the record of a sweep that people read and commit.

It holds the spec, every session with its commit and packages, every preparation and point with its
command, state, seconds and figures. `sweep_run` updates and writes it whenever a job changes state;
a later session of the same sweep takes its seconds and sessions over.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

from trm.compute.jobs import JobResult
from trm.experiments.sweep_spec import Sweep, command_line, prepared_path, record_path
from trm.runs.durable import replace_durably
from trm.runs.files import read_json_object

FORMAT_VERSION = 1
"""Version of manifest.json."""

PointState = Literal["pending", "interrupted", "running", "finished", "failed", "stopped"]


def job_state(result: JobResult) -> PointState:
    """The state of a point or preparation, from that of its job."""
    if result.state in ("done", "skipped"):
        return "finished"
    if result.state == "stopped":
        return "stopped" if result.attempts else "pending"
    return "running" if result.state == "running" else "failed"


class Manifest:
    """What manifest.json holds, as it stands now."""

    def __init__(self, sweep: Sweep, command: str) -> None:
        """Take up the manifest of the folder, where there is one; `command` began this session.

        Raises:
            ValueError: the folder holds another sweep or other preparations, or a damaged file.
        """
        from trm.compute.process import provenance

        out = sweep.out
        self._path = out / "manifest.json"
        earlier = self._read(sweep.name)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": started, "command": command, "provenance": provenance()}
        known = {point["name"]: point for point in earlier.get("points", [])}
        self._out, self._figures = out, sweep.command.figures
        self._prepared = self._prepare_lines(sweep, earlier)
        self._points = {
            point.name: {
                "name": point.name,
                "env": point.env,
                "seed": point.seed,
                "settings": dict(point.settings),
                "command": command_line(point.start, out / point.name),
                "state": "pending",
                "detail": "",
                "seconds": known.get(point.name, {}).get("seconds", 0.0),
                **dict.fromkeys(sweep.command.figures),
            }
            for point in sweep.points
        }
        self._head = {
            "format_version": FORMAT_VERSION,
            "sweep": sweep.name,
            "spec": asdict(sweep.spec),
            "sessions": [*earlier.get("sessions", []), session],
        }

    def update(
        self, name: str, state: PointState, *, detail: str = "", seconds: float = 0.0
    ) -> None:
        """Set the state of a point; the figures of a finished one come from its record."""
        point = self._points[name]
        _set_state(point, state, detail, seconds)
        if state == "finished":
            found = read_json_object(record_path(self._out, name))
            point |= {figure: found.get(figure) for figure in self._figures}

    def figures(self, name: str) -> dict[str, float]:
        """The figures that a finished point has; see `SweepCommand.figures`."""
        point = self._points[name]
        return {figure: point[figure] for figure in self._figures if point[figure] is not None}

    def prepared(self, name: str, result: JobResult) -> None:
        """Set the state of a preparation."""
        _set_state(self._prepared[name], job_state(result), result.detail, result.seconds)

    def write(self) -> None:
        """Write the file."""
        prepared = list(self._prepared.values())
        record = {
            **self._head,
            **({"prepare": prepared} if prepared else {}),
            "points": list(self._points.values()),
        }
        replace_durably(self._path, (json.dumps(record, indent=1) + "\n").encode())

    def _prepare_lines(self, sweep: Sweep, earlier: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """A line for each preparation; one that was begun with other words is refused."""
        known = {line["name"]: line for line in earlier.get("prepare", [])}
        lines = {}
        for one in sweep.preparations:
            folder = prepared_path(self._out, one.name)
            command = command_line(one.words, folder)
            before = known.get(one.name, {})
            if folder.exists() and before.get("command", command) != command:
                raise ValueError(
                    f"{folder}: was made by {before['command']!r}, {sweep.name} asks for"
                    f" {command!r} now; choose another --out, or move it away"
                )
            lines[one.name] = {
                "name": one.name,
                "command": command,
                "state": "pending",
                "detail": "",
                "seconds": before.get("seconds", 0.0),
            }
        return lines

    def _read(self, name: str) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        found = read_json_object(self._path)
        if found.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{self._path}: not a manifest of format version {FORMAT_VERSION}")
        for part in ("points", "prepare", "sessions"):
            lines = found.get(part, [])
            named = part == "sessions" or all(isinstance(x, dict) and "name" in x for x in lines)
            if not isinstance(lines, list) or not named:
                raise ValueError(f"{self._path}: {part} is no list of objects with names")
        if found.get("sweep") != name:
            raise ValueError(
                f"{self._path}: this folder holds the sweep {found.get('sweep')!r}, not {name!r};"
                " choose another --out"
            )
        return found


def _set_state(line: dict[str, Any], state: PointState, detail: str, seconds: float) -> None:
    line |= {"state": state, "detail": detail}
    if seconds:
        line["seconds"] = round(seconds, 1)
