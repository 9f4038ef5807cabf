"""The checkpoints of a run: written whole, read back checked, pruned, and tagged.

    checkpoints/step-000005120/       weights.safetensors, state.pt, checkpoint.json (sizes, hashes)
    checkpoints/best.json             a tag: the step that it stands for

A checkpoint is written under a temporary name, flushed to disk and renamed, so that a kill or a
full disk at any moment leaves the previous one whole. One of the same step that is being replaced
is called `.replaced-step-...` meanwhile, and is read under that name. `Run` hands weights and state
over and gets them back; `packing` turns the state into what torch loads without running code.
"""

import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trm.bounded import CHECKPOINT_FILE, one_line
from trm.runs.durable import replace_durably, sync_folder, write_durably
from trm.runs.files import FORMAT_VERSION, RunError, explained, json_bytes, read_json, sha256_of
from trm.runs.metrics_log import Checksum
from trm.runs.packing import pack_state, unpack_state

KEEP_NEWEST = 2
"""Checkpoints kept besides tagged ones: the newest, and one to fall back to."""

_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "checkpoint.json"
_WANTED_TAG = "wanted-tag.json"
"""In a checkpoint's folder until its tag is written, so that a kill between loses nothing."""
_STEP_FOLDER = re.compile(r"step-(\d{9,})")
_REPLACED = ".replaced-"
_TAG = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back whole."""

    step: int
    weights: dict[str, Tensor]
    """Named tensors on the CPU."""
    state: dict[str, Any]
    """What `Run.save_checkpoint` was given, numpy arrays and generators included."""
    metrics: Checksum | None = None
    """Of metrics.jsonl when it was saved; None in checkpoints of older versions."""


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of a checkpoint that are named `part.NAME`, by NAME: those of one network."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


class CheckpointFolder:
    """The folder `checkpoints` of a run; its writer must hold the run's lock."""

    def __init__(self, path: Path) -> None:
        """`path` is the folder itself, which may be missing until `recover` or `save`."""
        self.path = path

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        metrics: Checksum,
        tag: str | None,
    ) -> Path:
        """Save a checkpoint and prune older ones; see `Run.save_checkpoint`."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        contents = {_WEIGHTS: _weights_bytes(weights), _STATE: _state_bytes(state)}
        files = {**contents, _MANIFEST: json_bytes(_manifest_of(step, contents, metrics))}
        if tag is not None:
            _check_tag(tag)
            files[_WANTED_TAG] = json_bytes({"format_version": FORMAT_VERSION, "tag": tag})
        final = self._step_folder(step)
        partial = final.with_name(f".partial-{final.name}")
        with explained(final, "could not be saved; the earlier checkpoints are whole"):
            try:
                partial.mkdir()
                for name, data in files.items():
                    write_durably(partial / name, data)
                sync_folder(partial)
                _rename_over(partial, final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        if tag is not None:
            self.tag(tag, step)
        self._prune(step)
        return final

    def load(self, step: int | str | None) -> Checkpoint:
        """Read a checkpoint and check its sizes and hashes; see `Run.load_checkpoint`."""
        number = self._resolve(step)
        folder = self._folder_to_read(number)
        try:
            metrics, contents = _read_checked(folder, number)
            return Checkpoint(
                step=number,
                weights=_weights_of(folder / _WEIGHTS, contents[_WEIGHTS]),
                state=_state_of(folder / _STATE, contents[_STATE]),
                metrics=metrics,
            )
        except RunError as error:
            if not folder.exists() and (not isinstance(step, int) or number in self.steps()):
                # A trainer at work has moved on and deleted or replaced it while we were reading.
                return self.load(step)
            raise RunError(f"{error}; {self._fallback(number)}") from error

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending; they are not read."""
        names = {
            entry.name.removeprefix(_REPLACED)
            for pattern in ("step-*", f"{_REPLACED}step-*")
            for entry in self.path.glob(pattern)
        }
        return sorted(int(match[1]) for match in map(_STEP_FOLDER.fullmatch, names) if match)

    def check_metrics(self, matches: Callable[[Checksum], bool]) -> None:
        """Refuse metrics.jsonl where some checkpoints recorded a checksum and none matches.

        One is enough: a run that was taken back keeps its newer checkpoints until the next save.
        """
        recorded = [
            checksum
            for step in self.steps()
            if (checksum := _recorded_metrics(self._folder_to_read(step))) is not None
        ]
        if recorded and not any(matches(checksum) for checksum in recorded):
            raise RunError(
                f"{self.path.parent / 'metrics.jsonl'}: damaged: its lines are not those that the"
                " checkpoints were saved with"
            )

    def tag(self, tag: str, step: int) -> None:
        """Let a tag stand for an existing checkpoint, which is not deleted while it carries it."""
        _check_tag(tag)
        if not self._step_folder(step).is_dir():
            raise RunError(f"{self._step_folder(step)}: no such checkpoint")
        with explained(self._tag_path(tag), "could not be written"):
            self._write_tag(tag, step)

    def tagged_step(self, tag: str) -> int | None:
        """The step that a tag stands for; None when nothing carries it."""
        path = self._tag_path(tag)
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record.get("step"), int):
            raise RunError(f"{path}: step is {record.get('step')!r}, expected an integer")
        return int(record["step"])

    def recover(self) -> None:
        """Finish or take back what an interrupted writer left half-done."""
        self.path.mkdir(exist_ok=True)
        for old in self.path.glob(f"{_REPLACED}step-*"):
            final = self.path / old.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(old)
            else:
                os.rename(old, final)
        for pattern in (".partial-step-*", ".deleted-step-*"):
            for folder in self.path.glob(pattern):
                shutil.rmtree(folder)
        for file in self.path.glob(".*.tmp"):
            file.unlink()
        # Of one tag the newest wish counts.
        for wish in sorted(self.path.glob(f"step-*/{_WANTED_TAG}"), reverse=True):
            match = _STEP_FOLDER.fullmatch(wish.parent.name)
            if wish.exists() and match:
                self._write_tag(str(read_json(wish).get("tag")), int(match[1]))

    def _step_folder(self, step: int) -> Path:
        return self.path / f"step-{step:09d}"

    def _folder_to_read(self, step: int) -> Path:
        """The folder of a checkpoint; while another one takes its place, where it is kept."""
        folder = self._step_folder(step)
        replaced = folder.with_name(f"{_REPLACED}{folder.name}")
        return replaced if not folder.exists() and replaced.exists() else folder

    def _tag_path(self, tag: str) -> Path:
        return self.path / f"{tag}.json"

    def _write_tag(self, tag: str, step: int) -> None:
        """Move a tag; a checkpoint that still waits for the same tag has been overtaken."""
        record = {"format_version": FORMAT_VERSION, "step": step}
        replace_durably(self._tag_path(tag), json_bytes(record))
        for wish in self.path.glob(f"step-*/{_WANTED_TAG}"):
            if read_json(wish).get("tag") == tag:
                wish.unlink()

    def _tags(self) -> dict[str, int]:
        names = [path.stem for path in self.path.glob("*.json")]
        return {name: step for name in names if (step := self.tagged_step(name)) is not None}

    def _resolve(self, step: int | str | None) -> int:
        steps = self.steps()
        if step is None:
            if not steps:
                raise RunError(f"{self.path}: holds no checkpoint yet")
            return steps[-1]
        number = self.tagged_step(step) if isinstance(step, str) else step
        if number is None or number not in steps:
            have = ", ".join([*map(str, steps), *self._tags()]) or "none"
            raise RunError(f"{self.path}: no checkpoint {step}; there are {have}")
        return number

    def _fallback(self, damaged: int) -> str:
        """What to do about a damaged checkpoint, as the end of an error message."""
        for step in reversed(self.steps()):
            if step < damaged and _is_whole(self._folder_to_read(step), step):
                name = self._step_folder(damaged).name
                return f"step {step} is whole: move {name} out of {self.path} to go on from it"
        return "no earlier checkpoint is whole"

    def _prune(self, newest: int) -> None:
        keep = {step for step in self.steps() if step <= newest}
        keep = set(sorted(keep)[-KEEP_NEWEST:]) | set(self._tags().values())
        for step in self.steps():
            if step not in keep:
                _delete_folder(self._step_folder(step))


def _check_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise ValueError(f"tag must be lower-case letters, digits, - and _, got {tag!r}")


# --- Folders


def _rename_over(partial: Path, final: Path) -> None:
    """Put a finished folder in its place; a folder that is already there goes only afterwards."""
    replaced = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    try:
        os.rename(partial, final)
    except OSError:
        if replaced.exists():
            os.rename(replaced, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete_folder(folder: Path) -> None:
    """Hide a checkpoint before deleting it, so that a kill half-way leaves no damaged one."""
    hidden = folder.with_name(f".deleted-{folder.name}")
    with explained(folder, "could not be deleted"):
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


# --- Files


def _weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share storage, which tied weights do.
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()
    }
    return safetensors.torch.save(plain)


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(pack_state(state), buffer)
    return buffer.getvalue()


def _weights_of(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # safetensors declares none, and raises several
        raise RunError(f"{path}: holds no weights: {one_line(error)}") from None


def _state_of(path: Path, data: bytes) -> dict[str, Any]:
    try:
        # torch stores what it saves; a compressed member could unpack to any size.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("a member is compressed")
        packed = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(packed, dict):
            raise TypeError(f"expected a dict, got {type(packed).__name__}")
        state: dict[str, Any] = unpack_state(packed)
    except Exception as error:  # torch declares none, and raises several
        raise RunError(f"{path}: holds no state: {one_line(error)}") from None
    return state


def _manifest_of(step: int, contents: Mapping[str, bytes], metrics: Checksum) -> dict[str, Any]:
    files = {
        name: {"bytes": len(data), "sha256": sha256_of(data)} for name, data in contents.items()
    }
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": files,
        "metrics": asdict(metrics),
    }


def _recorded_metrics(folder: Path) -> Checksum | None:
    """The checksum of metrics.jsonl in a checkpoint; None where it has none, or is damaged."""
    try:
        return _checksum_in(read_json(folder / _MANIFEST), folder / _MANIFEST)
    except RunError:
        return None


def _checksum_in(manifest: Mapping[str, Any], path: Path) -> Checksum | None:
    if "metrics" not in manifest:
        return None
    return Checksum(**_checked_entry(manifest["metrics"], path, "metrics"))


def _checked_entry(entry: Any, path: Path, name: str) -> dict[str, Any]:
    """The size and hash that a manifest has of a file."""
    if (
        not isinstance(entry, dict)
        or set(entry) != {"bytes", "sha256"}
        or type(entry["bytes"]) is not int
        or not 0 <= entry["bytes"] <= CHECKPOINT_FILE.size
        or not isinstance(entry["sha256"], str)
    ):
        raise RunError(f"{path}: {name} is {one_line(repr(entry))}, expected bytes and sha256")
    return entry


def _read_checked(folder: Path, step: int) -> tuple[Checksum | None, dict[str, bytes]]:
    """What a checkpoint's manifest says of the metrics, and its files, each as it says.

    Raises:
        RunError: a file is missing or differs.
    """
    path = folder / _MANIFEST
    manifest = read_json(path)
    if manifest.get("step") != step:
        raise RunError(f"{path}: step is {manifest.get('step')!r} in the folder of step {step}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not {_WEIGHTS, _STATE} <= set(files):
        raise RunError(
            f"{path}: files is {one_line(repr(files))}, expected {_WEIGHTS} and {_STATE}"
        )
    entries = {name: _checked_entry(files[name], path, name) for name in (_WEIGHTS, _STATE)}
    contents = {name: _read_file_checked(folder / name, entries[name]) for name in entries}
    return _checksum_in(manifest, path), contents


def _read_file_checked(path: Path, expected: Mapping[str, Any]) -> bytes:
    with explained(path, "cannot be read"):
        size = path.stat().st_size
        if size != expected["bytes"]:
            cut = "truncated" if size < expected["bytes"] else "too long"
            raise RunError(
                f"{path}: {cut}: {size} bytes where {_MANIFEST} says {expected['bytes']}"
            )
        data = path.read_bytes()
    if sha256_of(data) != expected["sha256"]:
        found, recorded = sha256_of(data)[:12], str(expected["sha256"])[:12]
        raise RunError(f"{path}: corrupt: sha256 {found} where {_MANIFEST} says {recorded}")
    return data


def _is_whole(folder: Path, step: int) -> bool:
    try:
        _read_checked(folder, step)
    except RunError:
        return False
    return True
