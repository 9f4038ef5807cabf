"""Instances by name: one entry point for files and for the public data sets on the hub.

`read_instances` takes the path of a file, or the name of a data set, and returns an `InstanceSet`
of the domain in question; `load_hub` downloads a data set once and reads it from the local cache
from then on. The data sets state no licence, so none of them is shipped.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from plan_envs.domain import PlanDomain
from plan_envs.instances import InstanceSet

HUB_NAMES: Final = {
    "sapientinc/sudoku-extreme": "sudoku",
    "sapientinc/maze-30x30-hard-1k": "maze",
}
"""Data set of the hub -> family of its puzzles. Each has the files train.csv and test.csv, with the
columns source, question, answer and rating."""

HUB_SPLITS: Final = ("train", "test")


def load_hub(name: str, *, split: str = "train", limit: int | None = None) -> InstanceSet:
    """Load a public data set; once downloaded, from the local cache and without the network.

    The stored answers are checked to solve their questions. Sudoku-Extreme is large (3.8 million
    puzzles in train.csv, 0.4 million in test.csv), so name a `limit` where the first rows will do.

    Args:
        name: a name of `HUB_NAMES`.
        split: "train" or "test", the files that the data sets have.
        limit: read at most so many rows, from the first on.

    Raises:
        ValueError: for an unknown name or split, or a file that cannot be what it should be.
        ImportError: if huggingface_hub is not installed; the message names the extra.
        OSError: if the file can be had neither from the hub nor from the cache.
    """
    if name not in HUB_NAMES:
        raise ValueError(f"unknown data set {name!r}; the nearest is {_nearest(name)!r}")
    if split not in HUB_SPLITS:
        raise ValueError(f"split of {name} must be one of {', '.join(HUB_SPLITS)}, got {split!r}")
    found = _read_csv(_fetch(name, f"{split}.csv"), HUB_NAMES[name], size=None, limit=limit)
    return replace(found, name=f"{name}:{split}")


def read_instances(
    source: str | os.PathLike[str],
    *,
    domain: PlanDomain,
    limit: int | None = None,
    on_invalid: Callable[[str], None] | None = None,
) -> InstanceSet:
    """Read instances of a domain from a file, or from a data set of the hub.

    Args:
        source: an .npz file that `InstanceSet.save` wrote; a .csv file (of Sudoku or Maze in the
            format of the public sets or of Kaggle's, see `read_sudoku_csv` and `read_maze_csv`, of
            N-Queens as `read_queens_csv` wants it); a text with any other ending, in the forms that
            `plan_envs.sudoku.text`, `plan_envs.queens.text` and `plan_envs.maze.text` read (puzzles
            may have several solutions), or in those of `plan_envs.repair.text`; ARC tasks as
            `load_arc` reads them, whose test inputs are taken; or a data set of the hub by its
            name, with ":test" or ":train" behind it (default train).
        domain: what the instances must be of.
        limit: read at most so many.
        on_invalid: called with what is wrong with an ARC task that cannot be read, which is then
            left out; None = raise.

    Raises:
        ValueError: one line that names the source and what is wrong with it.
        ImportError, OSError: as `load_hub`.
    """
    path = Path(source)
    name, _, split = str(source).partition(":")
    if path.exists():
        found = _read_file(path, domain, limit, on_invalid)
    elif name in HUB_NAMES:
        found = load_hub(name, split=split or "train", limit=limit)
    elif path.suffix:
        raise ValueError(f"{source}: no such file")
    else:
        raise ValueError(
            f"{source}: neither a file nor a data set of the hub; "
            f"the nearest data set is {_nearest(name)!r}"
        )
    try:
        found.check_fits(domain.spec)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return found


def _read_file(
    path: Path,
    domain: PlanDomain,
    limit: int | None,
    on_invalid: Callable[[str], None] | None,
) -> InstanceSet:
    options: Any = domain
    spec = domain.spec
    if path.suffix.lower() == ".npz":
        found = InstanceSet.load(path)
        return found if limit is None else found.subset(slice(limit))
    family = spec.name.rstrip("0123456789x")
    if family == "arc":
        from plan_envs.arc.instances import arc_instances

        return arc_instances(
            size=options.size,
            demonstrations=options.demonstrations,
            split="test",
            num=limit,
            data=path,
            on_invalid=on_invalid,
        )
    if family == "repair":
        from plan_envs.repair.instances import read_repair_text

        return read_repair_text(path, domain=options, limit=limit)
    if on_invalid is not None:
        raise ValueError(f"{path}: only ARC tasks can be left out as invalid")
    size = spec.grid_shape[0]
    if path.suffix.lower() == ".csv":
        return _read_csv(path, family, size=size, limit=limit)
    return _read_text(path, family, size=size, limit=limit)


def _read_csv(path: Path, family: str, *, size: int | None, limit: int | None) -> InstanceSet:
    """Read a file of puzzles of one family; size = rows of a board, None = as the first row has."""
    if family == "sudoku":
        from plan_envs.sudoku.instances import read_sudoku_csv

        return read_sudoku_csv(path, side=size, limit=limit, require_unique=False)
    if family == "maze":
        from plan_envs.maze.instances import read_maze_csv

        return read_maze_csv(path, size=size, limit=limit)
    if family == "queens":
        from plan_envs.queens.instances import read_queens_csv

        return read_queens_csv(path, limit=limit)
    raise ValueError(
        f"{path}: {family} has no reader of CSV files; pass what InstanceSet.save wrote"
    )


def _read_text(path: Path, family: str, *, size: int, limit: int | None) -> InstanceSet:
    """Read a text of puzzles of one family, of `size` rows each."""
    if family == "sudoku":
        from plan_envs.sudoku.instances import read_sudoku_text

        return read_sudoku_text(path, side=size, limit=limit, require_unique=False)
    if family == "maze":
        from plan_envs.maze.instances import read_maze_text

        return read_maze_text(path, size=size, limit=limit)
    if family == "queens":
        from plan_envs.queens.instances import read_queens_text

        return read_queens_text(path, n=size, limit=limit)
    raise ValueError(f"{path}: {family} has no reader of texts; pass what InstanceSet.save wrote")


def _fetch(name: str, file: str) -> Path:
    """The local path of a data set's file, downloaded if the cache has none."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"{name} needs huggingface_hub: pip install 'upi-trm[hub]', "
            f"or download {file} by hand and pass its path"
        ) from error
    reason = ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    for cached in (True,) if offline else (True, False):
        try:
            found = hf_hub_download(name, file, repo_type="dataset", local_files_only=cached)
            return Path(found)
        except Exception as error:  # its own errors, or those of whatever HTTP library it uses
            reason = "not in the cache, and offline" if cached else _first_line(error)
    raise OSError(
        f"{name}: {file} cannot be had from the hub ({reason}); "
        f"download {file} by hand and pass its path"
    )


def _nearest(name: str) -> str:
    return difflib.get_close_matches(name, HUB_NAMES, n=1, cutoff=0)[0]


def _first_line(error: Exception) -> str:
    """What went wrong; the client hides a broken connection behind an error of its own."""
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [""])[0] or type(cause).__name__
