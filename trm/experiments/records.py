"""Evaluation records: what one trained run is worth, as a small JSON object that outlives the run.

`make_record` plays a run's newest checkpoint on unseen puzzles beside the reference policies, as
`upi-trm eval RUN --json` does, and adds what the run cost and how it learned. Sweeps keep the
record in the run folder (`eval.json`); `upi-trm compare` reads records, from there or from files,
and makes those that are missing. `learners` loads the policy, whichever learner wrote the run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm.compute.device import Placement
from trm.experiments.learners import learner_of, load_policy, task_of
from trm.experiments.scoreboard import score_policies
from trm.experiments.shipped_runs import is_shipped, run_path
from trm.runs.durable import replace_durably
from trm.runs.files import read_json_object
from trm.runs.run import Run

FORMAT_VERSION = 1
"""Version of the record; one of another version is made anew from its run, or refused without."""

RECORD_FILE = "eval.json"
"""Name of the record in a run folder."""

DEFAULT_NUM = 500
"""Puzzles of an evaluation where nobody asks for another number."""

Announce = Callable[[str], None]
"""Shows a line to whoever waits."""

_SEED_SUFFIX = re.compile(r"-seed\d+(-\d{8}-\d{6})?$")

_USAGE = ("wall_seconds", "cpu_seconds", "peak_memory_bytes")
_NUMBER: tuple[type, ...] = (int, float)
_REPORT = dict.fromkeys(("success_rate", "mean_score", "improvement"), _NUMBER)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("env", "instances"), (str,)),
    **dict.fromkeys(("num_instances", "seed", "step"), (int,)),
    **_REPORT,
    "reference": (dict,),
    "recipe_hash": (str, type(None)),
    **dict.fromkeys(("parameters", "peak_memory_bytes"), (int, type(None))),
    **dict.fromkeys(("wall_seconds", "cpu_seconds"), (*_NUMBER, type(None))),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One run's result; the fields that a plain `upi-trm eval --json` lacks may be None."""

    method: str
    """Name of the learner, e.g. "UPI-TRM"."""
    recipe: str
    """What tells this run from others of its method and is the same for all seeds."""
    recipe_hash: str | None
    env: str
    instances: str
    """Name of the instance set."""
    num_instances: int
    seed: int
    """Seed of the run."""
    step: int
    """Edits of training."""
    success_rate: float
    mean_score: float
    improvement: float
    reference: Mapping[str, Mapping[str, float]]
    """Reference policy -> success_rate, mean_score, improvement on the same instances."""
    parameters: int | None
    """Number of parameters of the network that plays."""
    wall_seconds: float | None
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    curve: tuple[tuple[int, float], ...]
    """(edits, success rate on validation puzzles), in the order of training."""
    curve_cpu_seconds: tuple[float | None, ...] = ()
    """CPU seconds until each of these evaluations began; empty or None where it was not logged."""


def make_record(run: Run, *, num: int = DEFAULT_NUM, seed: int = 0) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on the test split of its task.

    Args:
        run: a run of any kind.
        num: puzzles; the same ones for every run of a task.
        seed: seed of the puzzles and of the reference policies' choices.

    Returns:
        The record as JSON values.

    Raises:
        RunError: the run has no whole checkpoint, or is of an unknown kind.
    """
    checkpoint = run.load_checkpoint()
    usage = checkpoint.state.get("usage", {})
    evaluations = [line for line in run.read_metrics() if "success_rate" in line]
    task = task_of(run)
    policy = load_policy(run, placement=Placement(threads=1))
    instances = task.instances("test", num=num, seed=seed)
    return {
        **score_policies(policy, task, instances, seed=seed).to_json_dict(),
        "eval_seed": seed,
        "format_version": FORMAT_VERSION,
        "kind": run.info.kind,
        "method": learner_of(run).method_of(run),
        "run": run.path.name,
        "recipe": label_of(run.path),
        "recipe_hash": run.info.recipe_hash,
        "seed": run.info.seed,
        "step": checkpoint.step,
        "parameters": _num_parameters(checkpoint.weights),
        **{name: usage.get(name) for name in _USAGE},
        "curve": [[line["step"], line["success_rate"]] for line in evaluations],
        "curve_cpu_seconds": [line.get("seconds_cpu") for line in evaluations],
        "command": run.info.command,
        "commit": run.info.provenance.get("git"),
    }


def keep_record(
    path: Path, num: int | None = None, *, announce: Announce = lambda _: None
) -> dict[str, Any]:
    """The record in a run folder; made and written there when it is missing or out of date.

    Nothing is written to the folder of a run that ships.

    Args:
        path: a run folder.
        num: puzzles; None takes a record of any number, and `DEFAULT_NUM` where there is none.
        announce: called before an evaluation begins.
    """
    run = Run.open(path)
    file = path / RECORD_FILE
    if file.exists():
        found = read_json_object(file)
        if _is_current(found, run, num):
            return found
    announce(f"evaluating {path}")
    record = make_record(run, num=DEFAULT_NUM if num is None else num)
    if not is_shipped(path):
        replace_durably(file, (json.dumps(record, allow_nan=False) + "\n").encode())
    return record


def read_records(
    paths: Sequence[Path],
    *,
    num: int | None = None,
    announce: Announce = lambda _: None,
) -> list[dict[str, Any]]:
    """Records of run folders, of folders of such, and of JSON files, in the order given.

    Args:
        paths: run folders, `pretrained:NAME`, folders with runs or records below them, files of one
            record or of `{"records": [...]}`.
        num: puzzles that every record must have; runs of another number are evaluated anew.
        announce: called for every evaluation, and for runs without a checkpoint, which are left
            out.

    Raises:
        ValueError: one line, for a path that holds no result, or a file of another number.
    """
    return [record for path in paths for record in _records_at(run_path(path), num, announce)]


def parse_record(record: Mapping[str, Any], *, source: str) -> Record:
    """A record, or the output of `upi-trm eval --json`, with its fields checked.

    Raises:
        ValueError: names source and field.
    """
    version = record.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(f"{source}: format_version is {version!r}, expected {FORMAT_VERSION}")
    found = _fields(record, _KINDS, source)
    for name, report in found["reference"].items():
        _fields(report, _REPORT, f"{source}: reference.{name}")
    run = str(record.get("run", "run"))
    curve = _curve_in(record, source)
    return Record(
        **found,
        method=str(record.get("method", "learned")),
        recipe=str(record.get("recipe", label_of(Path(run)))),
        curve=curve,
        curve_cpu_seconds=_curve_seconds_in(record, len(curve), source),
    )


def records_in_file(file: Path) -> list[Any]:
    """What a JSON file holds: the list of `{"records": [...]}`, else its one object; not checked.

    Raises:
        RunError: no JSON object; names the file.
    """
    found = read_json_object(file)
    records = found.get("records", [found])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{file}: records is no list of objects")
    return records


def natural_key(text: object) -> list[tuple[int, float | str]]:
    """Sort key that puts n=4 before n=16, and alpha=0.25 before alpha=0.5."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(text))
    return [(0, float(part)) if part[:1].isdigit() else (1, part) for part in parts]


def label_of(path: Path) -> str:
    """What tells a run folder from others but for its seed: its name without `-seedN` and time."""
    return _SEED_SUFFIX.sub("", path.name) or path.name


def _num_parameters(weights: Mapping[str, Any]) -> int:
    """Numbers in the network that plays: those named `policy.*`, else all."""
    playing = {name: tensor for name, tensor in weights.items() if name.startswith("policy.")}
    return sum(tensor.numel() for tensor in (playing or weights).values())


# --- Reading


def _curve_in(record: Mapping[str, Any], source: str) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(step), float(rate)) for step, rate in record.get("curve", ()))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}: curve is no list of pairs of numbers") from None


def _curve_seconds_in(
    record: Mapping[str, Any], points: int, source: str
) -> tuple[float | None, ...]:
    try:
        found = tuple(
            None if value is None else float(value) for value in record.get("curve_cpu_seconds", ())
        )
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}: curve_cpu_seconds is no list of numbers") from None
    if found and len(found) != points:
        raise ValueError(
            f"{source}: curve_cpu_seconds has {len(found)} numbers for {points} points of the curve"
        )
    return found


def _is_current(record: Mapping[str, Any], run: Run, num: int | None) -> bool:
    steps = run.checkpoint_steps()
    return (
        record.get("format_version") == FORMAT_VERSION
        and record.get("recipe_hash") == run.info.recipe_hash
        and record.get("seed") == run.info.seed
        and bool(steps)
        and record.get("step") == steps[-1]
        and num in (None, record.get("num_instances"))
    )


def _records_at(path: Path, num: int | None, announce: Announce) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from _records_in(path, num)
        return
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "run.json").is_file():
        yield keep_record(path, num=num, announce=announce)
        return
    runs = sorted((found.parent for found in path.rglob("run.json")), key=natural_key)
    for folder in runs:
        if Run.open(folder).checkpoint_steps():
            yield keep_record(folder, num=num, announce=announce)
        else:
            announce(f"{folder}: no checkpoint yet, left out")
    if runs:
        return
    kept = path / "records"
    files = sorted((kept if kept.is_dir() else path).glob("*.json"), key=natural_key)
    if not files:
        raise ValueError(f"{path}: holds neither runs (run.json) nor records (*.json)")
    for file in files:
        yield from _records_in(file, num)


def _records_in(file: Path, num: int | None) -> Iterator[dict[str, Any]]:
    for record in records_in_file(file):
        parsed = parse_record(record, source=str(file))
        if num is not None and parsed.num_instances != num:
            raise ValueError(
                f"{file}: num_instances is {parsed.num_instances} where {num} are asked for, and "
                "its run is not at hand"
            )
        yield record if "recipe" in record else {**record, "recipe": label_of(Path(file.stem))}


def _fields(record: Any, kinds: Mapping[str, tuple[type, ...]], source: str) -> dict[str, Any]:
    """The fields of a record, each of one of its kinds; numbers as floats."""
    found: dict[str, Any] = {}
    for name, allowed in kinds.items():
        value: Any = record.get(name) if isinstance(record, Mapping) else None
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise ValueError(
                f"{source}: {name} is {value!r}, expected {allowed[0].__name__}: not an evaluation"
                " record (upi-trm eval RUN --json)"
            )
        is_number = float in allowed and value is not None
        found[name] = float(record[name]) if is_number else value
    return found
