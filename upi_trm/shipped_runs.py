"""Small trained runs that ship with the package, named `pretrained:NAME` wherever a RUN is taken.

Each is a run folder below `upi_trm/pretrained`: recipe and provenance as they were trained, one
checkpoint with the evaluator and the deployed policy, and the evaluation record. `run_path` turns
what a user writes into a folder. `python -m upi_trm.shipped_runs RUN NAME`, from a checkout, ships
a run; CONTRIBUTING.md says when.
"""

import difflib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plan_envs.domain import Int8Array

PREFIX = "pretrained:"
"""What the name of a shipped run begins with."""

MOST_BYTES = 300_000
"""Of a shipped run's weights."""

_FOLDER = Path(__file__).resolve().parent / "pretrained"


def pretrained_names() -> list[str]:
    """Names of the shipped runs, sorted, without the prefix; a task's own bears its name."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/run.json"))


def run_path(run: str | Path) -> Path:
    """The folder of a run: that of a shipped one for `pretrained:NAME`, else the path itself.

    Raises:
        ValueError: no run of that name ships; names the nearest one.
    """
    text = str(run)
    if not text.startswith(PREFIX):
        return Path(run)
    name, names = text.removeprefix(PREFIX), pretrained_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"{text}: no run of that name ships; {hint}")
    return _FOLDER / name


def run_name(path: Path) -> str:
    """How a user would write the run: `pretrained:NAME`, or the path."""
    return f"{PREFIX}{path.name}" if is_shipped(path) else str(path)


def is_shipped(path: Path) -> bool:
    """Whether a run folder is one that ships, which nothing may write to."""
    return path.resolve().parent == _FOLDER


def fitting_run(text: str) -> tuple[str, "Int8Array"]:
    """The shipped run for a puzzle given as text, and the instance that it is.

    Of the tasks whose domain reads the text, the one whose puzzles are as empty as this one, by the
    mean number of empty cells.

    Raises:
        ValueError: no shipped run is for such puzzles.
    """
    from plan_envs.catalogue import resolve_task
    from plan_envs.gym_envs import read_instance
    from trm.run import Run

    found = []
    for name in pretrained_names():
        task = resolve_task(Run.open(_FOLDER / name).info.env)
        try:
            instance = read_instance(task.domain, text, dead_end="continue")
        except ValueError:
            continue
        usual = task.domain.initial(task.instances("test", num=16).instances)
        empty = (task.domain.initial(instance[None]) == 0).sum()
        distance = abs(float((usual == 0).sum(axis=1).mean()) - float(empty))
        # A task's own run comes before others of the same task.
        found.append((distance, name != task.name, name, instance))
    if not found:
        raise ValueError(
            "no run that ships is for such a puzzle"
            f" ({', '.join(PREFIX + name for name in pretrained_names())}); name one with --run"
        )
    _, _, name, instance = min(found, key=lambda one: one[:3])
    return PREFIX + name, instance


def ship(run_folder: Path, name: str) -> Path:
    """Put a run among those that ship, in place of one of the same name.

    Kept are recipe, run.json, the evaluator and the deployed policy of the newest checkpoint, what
    the run cost, and its evaluation record (made where it is missing).

    Raises:
        ValueError: not a run of this learner, trained from a changed working tree, or too large.
    """
    from trm.durable import replace_durably
    from trm.run import Run
    from upi_trm.deployment import deployed_part
    from upi_trm.learner import part_of
    from upi_trm.records import RECORD_FILE, keep_record
    from upi_trm.trainer import RUN_KIND, UpiRecipe

    run = Run.open(run_folder, kind=RUN_KIND)
    commit: Any = run.info.provenance.get("git")
    if not isinstance(commit, dict) or commit.get("dirty", True):
        raise ValueError(f"{run_folder}: was not trained from a clean commit, which run.json names")
    checkpoint = run.load_checkpoint()
    kept = ("evaluator", deployed_part(run.load_recipe(UpiRecipe)))
    weights = {
        f"{part}.{key}": tensor
        for part in kept
        for key, tensor in part_of(checkpoint.weights, part).items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if size > MOST_BYTES:
        raise ValueError(f"{run_folder}: {size} bytes of weights, {MOST_BYTES} may ship")
    keep_record(run_folder)
    folder = _FOLDER / name
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    for file in ("recipe.yaml", "run.json", RECORD_FILE):
        replace_durably(folder / file, (run_folder / file).read_bytes())
    with Run.open(folder, write=True) as shipped:
        usage = checkpoint.state.get("usage", {})
        shipped.save_checkpoint(checkpoint.step, weights=weights, state={"usage": usage})
    (folder / ".lock").unlink(missing_ok=True)
    return folder


def main(words: Sequence[str]) -> None:
    """Ship a run: RUN NAME."""
    if len(words) != 2:
        sys.exit("usage: python -m upi_trm.shipped_runs RUN NAME")
    try:
        print(ship(Path(words[0]), words[1]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
