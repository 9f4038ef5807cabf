"""The files of a checkpoint: written whole, read back checked."""

import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trm.runs.durable import sync_folder
from trm.runs.files import FORMAT_VERSION, RunError, explained, read_json, sha256_of
from trm.runs.packing import pack_state

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "checkpoint.json"
"""Files of a checkpoint's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back whole."""

    step: int
    weights: dict[str, Tensor]
    """Named tensors on the CPU."""
    state: dict[str, Any]
    """What `save_checkpoint` was given, numpy arrays and generators included."""


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of a checkpoint that are named `part.NAME`, by NAME: those of one network."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def rename_over(partial: Path, final: Path) -> None:
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


def delete_folder(folder: Path) -> None:
    """Hide a checkpoint before deleting it, so that a kill half-way leaves no damaged one."""
    hidden = folder.with_name(f".deleted-{folder.name}")
    with explained(folder, "could not be deleted"):
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


def weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share storage, which tied weights do.
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()
    }
    return safetensors.torch.save(plain)


def state_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(pack_state(state), buffer)
    return buffer.getvalue()


def manifest_of(step: int, contents: Mapping[str, bytes]) -> dict[str, Any]:
    files = {
        name: {"bytes": len(data), "sha256": sha256_of(data)} for name, data in contents.items()
    }
    return {"format_version": FORMAT_VERSION, "step": step, "files": files}


def read_checked(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each as its manifest says, or `RunError`."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or not {WEIGHTS, STATE} <= set(files):
        raise RunError(f"{folder / MANIFEST}: files is {files!r}, expected {WEIGHTS} and {STATE}")
    return {name: _read_file_checked(folder / name, files[name]) for name in (WEIGHTS, STATE)}


def _read_file_checked(path: Path, expected: Mapping[str, Any]) -> bytes:
    with explained(path, "cannot be read"):
        data = path.read_bytes()
    if len(data) != expected["bytes"]:
        cut = "truncated" if len(data) < expected["bytes"] else "too long"
        raise RunError(
            f"{path}: {cut}: {len(data)} bytes where {MANIFEST} says {expected['bytes']}"
        )
    if sha256_of(data) != expected["sha256"]:
        found, said = sha256_of(data)[:12], str(expected["sha256"])[:12]
        raise RunError(f"{path}: corrupt: sha256 {found} where {MANIFEST} says {said}")
    return data


def is_whole(folder: Path) -> bool:
    try:
        read_checked(folder)
    except RunError:
        return False
    return True
