"""Building a data set: piece by piece, so that a build that was killed goes on where it was.

A `BuildPlan` names the pieces of a data set (`board_plans`, `arc_plan`). `build_dataset` makes the
pieces that are not on disk yet, joins them, and writes `dataset.json` last.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.instances import progress_bar
from supervised.data_sets.datasets import DatasetInfo
from supervised.data_sets.folders import INFO_FILE, check_files, read_info
from trm.bounded import read_npz
from trm.runs.durable import replace_durably
from trm.runs.files import json_bytes, read_json_object
from trm.runs.lock import locked

_WORK: Final = ".building"
"""Folder of the pieces, below the data set's; it is removed when the data set is complete."""

Arrays = Mapping[str, NDArray[Any]]
"""Name -> array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What to make, and how the pieces become files."""

    name: str
    """Name of the builder."""
    options: Mapping[str, Any]
    """What decides the content, as JSON can hold it; equal options build equal data sets."""
    pieces: Mapping[str, Callable[[], Arrays]]
    """Key, the name of a file while the data set is built -> a function that makes the piece from
    the plan's options alone. Pieces are made in this order."""
    finish: Callable[[Mapping[str, Arrays]], tuple[DatasetInfo, Arrays]]
    """Pieces by key -> description (without files) and arrays by path below the folder."""


def build_dataset(out: str | Path, plan: BuildPlan, *, progress: bool = False) -> DatasetInfo:
    """Build a data set in a folder, or go on with a build that was killed there.

    Every file is written whole and renamed, `dataset.json` last; a data set that is complete is
    left as it is.

    Args:
        out: folder to make.
        plan: what to make.
        progress: show a bar on stderr.

    Raises:
        ValueError: if the folder holds another data set, or a build with other options, or if
            another process is building there.
    """
    out = Path(out)
    request = json.loads(json.dumps({"name": plan.name, "options": plan.options}))
    if (out / INFO_FILE).exists():
        return _complete(out, request)
    if out.exists() and not (out / _WORK).is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty, and no data set: name another folder")
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    with locked(out, "is building there", file=f"{_WORK}/lock"):
        _check_request(work, request)
        with progress_bar(len(plan.pieces), f"pieces of {plan.name}", shown=progress) as advance:
            for key, make in plan.pieces.items():
                path = work / f"{key}.npz"
                if not path.exists():
                    replace_durably(path, _npz_bytes(make()))
                advance(1)
        info, arrays = plan.finish({key: read_npz(work / f"{key}.npz") for key in plan.pieces})
        files = {path: _write_array(out / path, array) for path, array in arrays.items()}
        info = replace(info, options=request["options"], files=files)
        replace_durably(out / INFO_FILE, json_bytes(asdict(info)))
    shutil.rmtree(work, ignore_errors=True)
    return info


def _complete(out: Path, request: Mapping[str, Any]) -> DatasetInfo:
    """The data set that is there already, if it is what was asked for."""
    info = read_info(out)
    if {"name": info.name, "options": info.options} != request:
        raise ValueError(f"{out}: holds another data set ({_difference(info, request)})")
    check_files(out, info)
    return info


def _difference(info: DatasetInfo, request: Mapping[str, Any]) -> str:
    if info.name != request["name"]:
        return f"name is {info.name!r}, not {request['name']!r}"
    asked = request["options"]
    names = [key for key in {**info.options, **asked} if info.options.get(key) != asked.get(key)]
    return f"{names[0]} is {info.options.get(names[0])!r}, not {asked.get(names[0])!r}"


def _check_request(work: Path, request: Mapping[str, Any]) -> None:
    path = work / "request.json"
    if path.exists():
        if read_json_object(path) != request:
            raise ValueError(
                f"{work.parent}: an unfinished build has other options ({path}); "
                "ask for the same, name another folder, or delete it"
            )
        return
    replace_durably(path, json.dumps(request).encode())


def _npz_bytes(arrays: Arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _write_array(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    """Write an .npy file; its size and SHA-256."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    data = content.getvalue()
    path.parent.mkdir(exist_ok=True)
    replace_durably(path, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
