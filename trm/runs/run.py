"""Run folders (DESIGN.md section 8): recipe, provenance, metrics, checkpoints of one training run.

    recipe.yaml                       what was asked for, complete
    run.json                          format version, kind, environment, seed, command, provenance
    metrics.jsonl                     one JSON object a line: step and named numbers
    tensorboard/                      the same numbers for TensorBoard
    checkpoints/step-000005120/       weights.safetensors, state.pt, checkpoint.json (sizes and
    hashes) checkpoints/best.json             a tag: the step it stands for

A learner makes or opens a `Run`, logs to it and saves checkpoints; evaluation, comparison and
reports read it. A checkpoint is written under a temporary name, flushed to disk and renamed, so
that a kill or a full disk at any moment leaves the previous one whole. POSIX only (flock).
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from trm.runs.checkpoints import (
    MANIFEST,
    STATE,
    WEIGHTS,
    Checkpoint,
    delete_folder,
    is_whole,
    manifest_of,
    read_checked,
    rename_over,
    state_bytes,
    weights_bytes,
)
from trm.runs.durable import (
    FolderLock,
    LockedError,
    RecordLog,
    replace_durably,
    sync_folder,
    write_durably,
)
from trm.runs.files import FORMAT_VERSION, RunError, explained, json_bytes, read_json, sha256_of
from trm.runs.metrics_log import EventLog, json_number, parse_metrics
from trm.runs.packing import unpack_state
from trm.runs.recipe import dump_recipe, load_recipe, recipe_hash

KEEP_NEWEST = 2
"""Checkpoints kept besides tagged ones: the newest, and one to fall back to."""

_WANTED_TAG = "wanted-tag.json"
"""In a checkpoint's folder until its tag is written, so that a kill between loses nothing."""
_STEP_FOLDER = re.compile(r"step-(\d{9,})")
_TAG = re.compile(r"[a-z][a-z0-9_-]*")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What run.json says."""

    format_version: int
    kind: str
    """The learner that made the run, e.g. "upi"."""
    env: str
    """Name of the task, as `--env` takes it."""
    seed: int
    created: str
    """UTC, ISO 8601."""
    command: str
    recipe_hash: str
    recipe_sha256: str
    """Hash of the text of recipe.yaml, which must not change while the run lives."""
    provenance: Mapping[str, Any]
    """Commit, package versions, python, platform, placement, torch threads."""
    extra: Mapping[str, Any]
    """Whatever else the learner wants to record; JSON values."""


class Run:
    """A run folder, open for reading, or for writing by one process at a time.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, path: Path, info: RunInfo, lock: FolderLock | None) -> None:
        """Use `Run.create` or `Run.open`."""
        self.path = path
        self.info = info
        self._lock = lock
        self._metrics: RecordLog | None = None
        self._events: EventLog | None = None
        self._purge_step: int | None = None

    # --- open and close

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kind: str,
        env: str,
        seed: int,
        recipe: object,
        command: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a run folder and open it for writing.

        Args:
            path: must not exist, or be an empty folder.
            kind: the learner, e.g. "upi"; `open` can insist on it.
            env: name of the task.
            seed: the seed of the named streams.
            recipe: a dataclass; written to recipe.yaml.
            command: the command line; None for that of this process.
            provenance: commit, packages, machine and placement, as `trm.compute.process.provenance`
                has them; recorded in run.json.
            extra: JSON values to record beside.

        Raises:
            RunError: the folder exists and is not empty, or can't be written.
        """
        path = Path(path)
        text = dump_recipe(recipe).encode()
        with explained(path, "cannot be made"):
            path.mkdir(parents=True, exist_ok=True)
            _check_empty(path)
            lock = _take_lock(path)
        try:
            # Again, now that nobody else can be filling it.
            _check_empty(path)
            info = RunInfo(
                format_version=FORMAT_VERSION,
                kind=kind,
                env=env,
                seed=seed,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                command=_command_line() if command is None else command,
                recipe_hash=recipe_hash(recipe),
                recipe_sha256=sha256_of(text),
                provenance=dict(provenance or {}),
                extra=dict(extra or {}),
            )
            # run.json comes last: a folder without it is no run yet.
            with explained(path, "cannot be written"):
                try:
                    (path / "checkpoints").mkdir()
                    replace_durably(path / "recipe.yaml", text)
                    replace_durably(path / "run.json", json_bytes(asdict(info)))
                except BaseException:
                    _empty(path)
                    raise
        except BaseException:
            lock.release()
            raise
        return cls(path, info, lock)

    @classmethod
    def open(cls, path: Path, *, kind: str | None = None, write: bool = False) -> "Run":
        """Open a run folder.

        Args:
            path: the folder that `create` made.
            kind: the learner that must have made it; None for any.
            write: take the writer's lock and clear away what an interrupted writer left half-done.

        Raises:
            RunError: not a run folder, another format version or kind, or, with `write`, another
                process writes to it.
        """
        path = Path(path)
        info = _read_info(path)
        if kind is not None and info.kind != kind:
            raise RunError(f"{path / 'run.json'}: kind is {info.kind!r} where {kind!r} is needed")
        if not write:
            return cls(path, info, None)
        with explained(path, "cannot be opened for writing"):
            lock = _take_lock(path)
            try:
                _clear_leftovers(path)
            except BaseException:
                lock.release()
                raise
        return cls(path, info, lock)

    @property
    def writable(self) -> bool:
        """Whether this process holds the writer's lock."""
        return self._lock is not None

    def close(self) -> None:
        """Close the logs and give the writer's lock back; safe to call twice."""
        for log in (self._metrics, self._events):
            if log is not None:
                log.close()
        self._metrics, self._events = None, None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        """The run itself; it is closed at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def load_recipe(self, cls: type[T], overrides: Sequence[str] = ()) -> T:
        """The recipe of this run.

        Raises:
            RunError: recipe.yaml is not the file that the run was made with.
            ValueError: it does not fit `cls` (see `trm.runs.recipe.load_recipe`).
        """
        path = self.path / "recipe.yaml"
        with explained(path, "cannot be read"):
            found = sha256_of(path.read_bytes())
        if found != self.info.recipe_sha256:
            raise RunError(
                f"{path}: changed since the run was made (sha256 {found[:12]} where run.json says"
                f" {self.info.recipe_sha256[:12]}); put it back, or start a new run from it"
            )
        return load_recipe(cls, path, overrides, of_run=True)

    # --- checkpoints

    def save_checkpoint(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        tag: str | None = None,
    ) -> Path:
        """Save a checkpoint: whole and on disk when this returns, else not there at all.

        Afterwards the `KEEP_NEWEST` newest up to this step stay, and tagged ones; older ones, and
        those of a later step (left over from before the run was taken back to an earlier
        checkpoint), are deleted. Log the metrics of this step before.

        Args:
            step: the learner's counter, at least 0; an existing checkpoint of the same step is
                replaced.
            weights: named tensors.
            state: everything else that resuming needs; see `pack_state` for what it may hold.
            tag: move this tag ("best") here; a tagged checkpoint is never deleted while it carries
                the tag.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: it can't be written (disk full); the earlier checkpoints are as they were.
            ValueError: `state` holds something that can't be stored.
        """
        self._check_writable()
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        contents = {WEIGHTS: weights_bytes(weights), STATE: state_bytes(state)}
        files = {**contents, MANIFEST: json_bytes(manifest_of(step, contents))}
        if tag is not None:
            _check_tag(tag)
            files[_WANTED_TAG] = json_bytes({"format_version": FORMAT_VERSION, "tag": tag})
        final = self._step_folder(step)
        partial = final.with_name(f".partial-{final.name}")
        with explained(final, "could not be saved; the earlier checkpoints are whole"):
            try:
                self._sync_logs()
                partial.mkdir()
                for name, data in files.items():
                    write_durably(partial / name, data)
                sync_folder(partial)
                rename_over(partial, final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        if tag is not None:
            self.tag_checkpoint(tag, step)
        self._prune(step)
        return final

    def load_checkpoint(self, step: int | str | None = None) -> Checkpoint:
        """Read a checkpoint and check its sizes and hashes; never deletes or changes anything.

        Args:
            step: a step, a tag such as "best", or None for the newest.

        Raises:
            RunError: there is none, or a file of it is missing, truncated or corrupt; says which
                earlier one is whole.
        """
        number = self._resolve(step)
        folder = self._step_folder(number)
        try:
            contents = read_checked(folder)
        except RunError as error:
            if not isinstance(step, int) and not folder.exists():
                # A trainer at work has moved on and deleted it while we were reading.
                return self.load_checkpoint(step)
            raise RunError(f"{error}; {self._fallback(number)}") from error
        weights = safetensors.torch.load(contents[WEIGHTS])
        state = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
        return Checkpoint(step=number, weights=weights, state=unpack_state(state))

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending; they are not read."""
        folder = self.path / "checkpoints"
        matches = (_STEP_FOLDER.fullmatch(entry.name) for entry in folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def tag_checkpoint(self, tag: str, step: int) -> None:
        """Let a tag stand for an existing checkpoint, which is not deleted while it carries it."""
        self._check_writable()
        _check_tag(tag)
        if not self._step_folder(step).is_dir():
            raise RunError(f"{self._step_folder(step)}: no such checkpoint")
        with explained(self._tag_path(tag), "could not be written"):
            _write_tag(self.path / "checkpoints", tag, step)

    def tagged_step(self, tag: str) -> int | None:
        """The step that a tag stands for; None when nothing carries it."""
        path = self._tag_path(tag)
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record.get("step"), int):
            raise RunError(f"{path}: step is {record.get('step')!r}, expected an integer")
        return int(record["step"])

    def _step_folder(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:09d}"

    def _tag_path(self, tag: str) -> Path:
        return self.path / "checkpoints" / f"{tag}.json"

    def _tags(self) -> dict[str, int]:
        names = [path.stem for path in (self.path / "checkpoints").glob("*.json")]
        return {name: step for name in names if (step := self.tagged_step(name)) is not None}

    def _resolve(self, step: int | str | None) -> int:
        steps = self.checkpoint_steps()
        if step is None:
            if not steps:
                raise RunError(f"{self.path / 'checkpoints'}: holds no checkpoint yet")
            return steps[-1]
        number = self.tagged_step(step) if isinstance(step, str) else step
        if number is None or number not in steps:
            have = ", ".join([*map(str, steps), *self._tags()]) or "none"
            raise RunError(f"{self.path / 'checkpoints'}: no checkpoint {step}; there are {have}")
        return number

    def _fallback(self, damaged: int) -> str:
        """What to do about a damaged checkpoint, as the end of an error message."""
        for step in reversed(self.checkpoint_steps()):
            if step < damaged and is_whole(self._step_folder(step)):
                name = self._step_folder(damaged).name
                where = self.path / "checkpoints"
                return f"step {step} is whole: move {name} out of {where} to go on from it"
        return "no earlier checkpoint is whole"

    def _prune(self, newest: int) -> None:
        keep = {step for step in self.checkpoint_steps() if step <= newest}
        keep = set(sorted(keep)[-KEEP_NEWEST:]) | set(self._tags().values())
        for step in self.checkpoint_steps():
            if step not in keep:
                delete_folder(self._step_folder(step))

    # --- metrics

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Append one line to metrics.jsonl and the same numbers to TensorBoard.

        A line is handed to the operating system whole: a killed process loses none. No time of day
        goes into it, so that two equal runs have equal files.

        Raises:
            RunError: it can't be written; the file is as it was.
        """
        self._check_writable()
        path = self.path / "metrics.jsonl"
        if "step" in metrics:
            raise ValueError("metrics: 'step' is taken by the step itself")
        numbers = {name: json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"
        with explained(path, "could not be written"):
            if self._metrics is None:
                self._metrics = RecordLog(path)
            self._metrics.append(line.encode())
        with explained(self.path / "tensorboard", "could not be written"):
            if self._events is None:
                self._events = EventLog(self.path / "tensorboard", self._purge_step)
            self._events.append(step, metrics)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first; a last line that is only half written is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        with explained(path, "cannot be read"):
            return [record for record, _ in parse_metrics(path)]

    def truncate_metrics(self, after_step: int) -> None:
        """Drop every line of a later step, so that the log goes on as if never stopped.

        TensorBoard is told to forget the same steps.
        """
        self._check_writable()
        path = self.path / "metrics.jsonl"
        for log in (self._metrics, self._events):
            if log is not None:
                log.close()
        self._metrics, self._events = None, None
        self._purge_step = after_step + 1
        if not path.exists():
            return
        with explained(path, "could not be cut"):
            kept = b"".join(
                line for record, line in parse_metrics(path) if record["step"] <= after_step
            )
            if kept != path.read_bytes():
                replace_durably(path, kept)

    def _sync_logs(self) -> None:
        """A checkpoint of a step on disk means that its metrics are there too."""
        if self._metrics is not None:
            self._metrics.sync()

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RunError(f"{self.path}: opened for reading only, or closed")


# --- run.json


def _read_info(path: Path) -> RunInfo:
    file = path / "run.json"
    if not path.exists():
        raise RunError(f"{path}: no such run folder")
    if not file.is_file():
        inside = [parent for parent in path.resolve().parents if (parent / "run.json").is_file()]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise RunError(f"{path}: not a run folder (it holds no run.json){hint}")
    record = read_json(file)
    types = {
        "kind": str,
        "env": str,
        "seed": int,
        "created": str,
        "command": str,
        "recipe_hash": str,
    }
    types |= {"recipe_sha256": str, "provenance": dict, "extra": dict}
    for name, kind in types.items():
        if not isinstance(record.get(name), kind):
            raise RunError(f"{file}: {name} is {record.get(name)!r}, expected {kind.__name__}")
    return RunInfo(format_version=FORMAT_VERSION, **{name: record[name] for name in types})


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


# --- the folder itself


def _take_lock(path: Path) -> FolderLock:
    try:
        return FolderLock(path / ".lock")
    except LockedError as error:
        raise RunError(
            f"{path}: {error} is writing to this run; wait for it or stop it first"
        ) from None


def _check_empty(path: Path) -> None:
    if any(entry.name != ".lock" for entry in path.iterdir()):
        hint = "resume it" if (path / "run.json").exists() else "empty it"
        raise RunError(f"{path}: the folder exists and is not empty; {hint}, or choose another one")


def _empty(path: Path) -> None:
    """Take back what a failed `create` wrote, so that the same path can be tried again."""
    for name in ("run.json", "recipe.yaml", ".lock"):
        with contextlib.suppress(OSError):
            (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "checkpoints", ignore_errors=True)


def _check_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise ValueError(f"tag must be lower-case letters, digits, - and _, got {tag!r}")


def _write_tag(checkpoints: Path, tag: str, step: int) -> None:
    """Move a tag; a checkpoint that still waits for the same tag has been overtaken."""
    record = {"format_version": FORMAT_VERSION, "step": step}
    replace_durably(checkpoints / f"{tag}.json", json_bytes(record))
    for wish in checkpoints.glob(f"step-*/{_WANTED_TAG}"):
        if read_json(wish).get("tag") == tag:
            wish.unlink()


def _finish_tags(checkpoints: Path) -> None:
    """Write the tags that an interrupted writer did not come to; of one tag the newest wish."""
    for wish in sorted(checkpoints.glob(f"step-*/{_WANTED_TAG}"), reverse=True):
        match = _STEP_FOLDER.fullmatch(wish.parent.name)
        if wish.exists() and match:
            _write_tag(checkpoints, str(read_json(wish).get("tag")), int(match[1]))


def _clear_leftovers(path: Path) -> None:
    """Finish or take back what an interrupted writer left half-done."""
    checkpoints = path / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for old in checkpoints.glob(".replaced-step-*"):
        final = checkpoints / old.name.removeprefix(".replaced-")
        if final.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, final)
    for pattern in (".partial-step-*", ".deleted-step-*"):
        for folder in checkpoints.glob(pattern):
            shutil.rmtree(folder)
    for folder in (path, checkpoints):
        for file in folder.glob(".*.tmp"):
            file.unlink()
    _finish_tags(checkpoints)
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        data = metrics.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            replace_durably(metrics, whole)


# --- checkpoint files


# --- metrics files
