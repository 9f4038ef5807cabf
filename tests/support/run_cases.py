"""A small run, what is saved in it, and writes that fail: for the tests of `trm.runs`."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm.runs.files import json_bytes
from trm.runs.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    steps: int = 5000
    lr: float = 1e-3


def create(path: Path, **changes: Any) -> Run:
    fields: dict[str, Any] = {"kind": "upi", "env": "sudoku4x4", "seed": 3, "recipe": Recipe()}
    return Run.create(path, **(fields | changes))


def weights_of(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50, 7), float(step)), "b": torch.arange(step, step + 5)}


def save(made: Run, step: int, **more: Any) -> Path:
    state = {"counter": step, "pool": np.full(300, step, np.uint64)}
    return made.save_checkpoint(step, weights=weights_of(step), state=state, **more)


def assert_whole(made: Run, step: int) -> None:
    """The checkpoint of this step is there with all that `save` put into it."""
    loaded = made.load_checkpoint(step)
    assert loaded.step == loaded.state["counter"] == step
    assert all(torch.equal(loaded.weights[k], v) for k, v in weights_of(step).items())
    assert loaded.state["pool"].tolist() == [step] * 300


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of its content; locks left out."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def edit_json(path: Path, **changes: Any) -> None:
    """Another content, with the hash that goes with it where the file has one."""
    record = json.loads(path.read_text())
    sealed = record.pop("sha256", None) is not None
    edited = {k: v for k, v in (record | changes).items() if v is not ...}
    path.write_bytes(json_bytes(edited) if sealed else json.dumps(edited).encode())


def failing(call: Any, *, at: int, number: int) -> Any:
    """The `at`-th call fails as the operating system would."""
    calls = iter(range(10**6))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return wrapped
