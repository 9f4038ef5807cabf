"""The checkpoints of a run: written whole, read back checked, pruned, and tagged.

    checkpoints/step-000005120/       weights.safetensors, state.pt, checkpoint.json (sizes, hashes)
    checkpoints/best.json             a tag: the step that it stands for

A checkpoint is written under a temporary name, flushed to disk and renamed, so that a kill or a
full disk at any moment leaves the previous one whole. `Run` hands weights and state over and gets
them back; `packing` turns the state into what torch loads without running code.
"""

import io
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trm.runs.durable import replace_durably, sync_folder, write_durably
from trm.runs.files import FORMAT_VERSION, RunError, explained, json_bytes, read_json, sha256_of
from trm.runs.packing import pack_state, unpack_state

KEEP_NEWEST = 2
"""Checkpoints kept besides tagged ones: the newest, and one to fall back to."""

_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "checkpoint.json"
_WANTED_TAG = "wanted-tag.json"
"""In a checkpoint's folder until its tag is written, so that a kill between loses nothing."""
_STEP_FOLDER = re.compile(r"step-(\d{9,})")
_TAG = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back whole."""

    step: int
    weights: dict[str, Tensor]
    """Named tensors on the CPU."""
    state: dict[str, Any]
    """What `Run.save_checkpoint` was given, numpy arrays and generators included."""


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
        self, step: int, *, weights: Mapping[str, Tensor], state: Mapping[str, Any], tag: str | None
    ) -> Path:
        """Save a checkpoint and prune older ones; see `Run.save_checkpoint`."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        contents = {_WEIGHTS: _weights_bytes(weights), _STATE: _state_bytes(state)}
        files = {**contents, _MANIFEST: json_bytes(_manifest_of(step, contents))}
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
        folder = self._step_folder(number)
        try:
            contents = _read_checked(folder)
        except RunError as error:
            if not isinstance(step, int) and not folder.exists():
                # A trainer at work has moved on and deleted it while we were reading.
                return self.load(step)
            raise RunError(f"{error}; {self._fallback(number)}") from error
        state = torch.load(io.BytesIO(contents[_STATE]), map_location="cpu", weights_only=True)
        return Checkpoint(
            step=number,
            weights=safetensors.torch.load(contents[_WEIGHTS]),
            state=unpack_state(state),
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending; they are not read."""
        matches = (_STEP_FOLDER.fullmatch(entry.name) for entry in self.path.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

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
        for old in self.path.glob(".replaced-step-*"):
            final = self.path / old.name.removeprefix(".replaced-")
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
            if step < damaged and _is_whole(self._step_folder(step)):
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
    replaced = final.with_name(f".replaced-{final.name}")
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


def _manifest_of(step: int, contents: Mapping[str, bytes]) -> dict[str, Any]:
    files = {
        name: {"bytes": len(data), "sha256": sha256_of(data)} for name, data in contents.items()
    }
    return {"format_version": FORMAT_VERSION, "step": step, "files": files}


def _read_checked(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each as its manifest says, or `RunError`."""
    manifest = read_json(folder / _MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or not {_WEIGHTS, _STATE} <= set(files):
        raise RunError(
            f"{folder / _MANIFEST}: files is {files!r}, expected {_WEIGHTS} and {_STATE}"
        )
    return {name: _read_file_checked(folder / name, files[name]) for name in (_WEIGHTS, _STATE)}


def _read_file_checked(path: Path, expected: Mapping[str, Any]) -> bytes:
    with explained(path, "cannot be read"):
        data = path.read_bytes()
    if len(data) != expected["bytes"]:
        cut = "truncated" if len(data) < expected["bytes"] else "too long"
        raise RunError(
            f"{path}: {cut}: {len(data)} bytes where {_MANIFEST} says {expected['bytes']}"
        )
    if sha256_of(data) != expected["sha256"]:
        found, recorded = sha256_of(data)[:12], str(expected["sha256"])[:12]
        raise RunError(f"{path}: corrupt: sha256 {found} where {_MANIFEST} says {recorded}")
    return data


def _is_whole(folder: Path) -> bool:
    try:
        _read_checked(folder)
    except RunError:
        return False
    return True
