"""DQN's replay on disk: one npz file a checkpoint, never a pickle.

The files lie in `replay/` of the run folder; a checkpoint names its file and the file's hash. They
are written before the checkpoint that needs them and deleted after a newer one is whole, so that a
kill at any moment leaves a checkpoint with its replay.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer

from trm.bounded import read_npz
from trm.runs.checkpoints import KEEP_NEWEST
from trm.runs.durable import replace_durably
from trm.runs.files import RunError, explained, sha256_of
from trm.runs.run import Run

FOLDER = "replay"
_MASK = "action_mask"
_SIDES = ("observations", "next_observations")
_COLUMNS = ("actions", "rewards", "dones", "timeouts")


def save_replay(run: Run, step: int, replay: DictReplayBuffer) -> dict[str, Any]:
    """Write the replay of a checkpoint that is about to be saved.

    Returns:
        What the checkpoint's state must keep for `load_replay`.

    Raises:
        RunError: it can't be written (disk full).
    """
    used = replay.buffer_size if replay.full else replay.pos
    arrays: dict[str, NDArray[Any]] = {name: getattr(replay, name)[:used] for name in _COLUMNS}
    for side in _SIDES:
        for key, rows in getattr(replay, side).items():
            kept = rows[:used]
            arrays[f"{side}.{key}"] = np.packbits(kept, axis=-1) if key == _MASK else kept
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    path = _path(run, step)
    with explained(path, "could not be written"):
        path.parent.mkdir(exist_ok=True)
        replace_durably(path, data)
    sha256 = sha256_of(data)
    return {"file": path.name, "sha256": sha256, "pos": replay.pos, "full": replay.full}


def load_replay(run: Run, record: dict[str, Any], replay: DictReplayBuffer) -> None:
    """Fill a new replay with what `save_replay` wrote.

    Raises:
        RunError: the file is missing or not the one that the checkpoint was saved with.
    """
    path = run.path / FOLDER / Path(record["file"]).name
    with explained(path, "cannot be read"), path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != record["sha256"]:
        raise RunError(f"{path}: corrupt: its hash is not the one of its checkpoint")
    replay.pos, replay.full = record["pos"], record["full"]
    used = replay.buffer_size if replay.full else replay.pos
    arrays = read_npz(path)
    for name in _COLUMNS:
        getattr(replay, name)[:used] = arrays[name]
    for side in _SIDES:
        for key, rows in getattr(replay, side).items():
            kept = arrays[f"{side}.{key}"]
            if key == _MASK:
                kept = np.unpackbits(kept, axis=-1, count=rows.shape[-1])
            rows[:used] = kept


def prune_replays(run: Run) -> None:
    """Delete the files of all but the newest checkpoints; tagged ones are for playing only."""
    kept = {_path(run, step) for step in run.checkpoint_steps()[-KEEP_NEWEST:]}
    for path in (run.path / FOLDER).glob("step-*.npz"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _path(run: Run, step: int) -> Path:
    return run.path / FOLDER / f"step-{step:09d}.npz"
