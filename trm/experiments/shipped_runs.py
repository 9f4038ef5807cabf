"""Small trained runs that ship with the package, named `pretrained:NAME` wherever a RUN is taken.

Each is a run folder below `trm/experiments/pretrained`: recipe and provenance as they were trained,
one checkpoint with the evaluator and the deployed policy, and the evaluation record. `run_path`
turns what a user writes into a folder. `python tools/ship_run.py RUN NAME`, from a checkout,
ships a run; CONTRIBUTING.md says when.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from trm.runs.shipped import nearest_hint

if TYPE_CHECKING:
    from plan_envs.domain import Int8Array

PREFIX = "pretrained:"
"""What the name of a shipped run begins with."""

FOLDER = Path(__file__).resolve().parent / "pretrained"


def pretrained_names() -> list[str]:
    """Names of the shipped runs, sorted, without the prefix; a task's own bears its name."""
    return sorted(path.parent.name for path in FOLDER.glob("*/run.json"))


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
        hint = nearest_hint(name, names, prefix=PREFIX)
        raise ValueError(f"{text}: no run of that name ships; {hint}")
    return FOLDER / name


def run_name(path: Path) -> str:
    """How a user would write the run: `pretrained:NAME`, or the path."""
    return f"{PREFIX}{path.name}" if is_shipped(path) else str(path)


def is_shipped(path: Path) -> bool:
    """Whether a run folder is one that ships, which nothing may write to."""
    return path.resolve().parent == FOLDER


def fitting_run(text: str) -> tuple[str, "Int8Array"]:
    """The shipped run for a puzzle given as text, and the instance that it is.

    Of the tasks whose domain reads the text, the one whose puzzles are as empty as this one, by the
    mean number of empty cells.

    Raises:
        ValueError: says what is wrong with the text as the puzzle that it looks like, or that no
            shipped run is for such puzzles.
    """
    from plan_envs.catalogue import resolve_task
    from plan_envs.episodes import read_instance
    from trm.runs.run import Run

    found = []
    for name in pretrained_names():
        task = resolve_task(Run.open(FOLDER / name).info.env)
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
        raise ValueError(_why_no_run(text))
    _, _, name, instance = min(found, key=lambda one: one[:3])
    return PREFIX + name, instance


def _why_no_run(text: str) -> str:
    """Why no shipped run can solve the puzzle in a text."""
    from plan_envs.episodes import read_instance
    from plan_envs.guess import guess_domain
    from plan_envs.sudoku.text import puzzle_side

    domain = guess_domain(text)
    kind, reason = "such a puzzle", ""
    try:
        if domain is None:
            puzzle_side(text)  # says how many cells there are
        else:
            kind = domain.spec.name
            read_instance(domain, text, dead_end="continue")
    except ValueError as error:
        if domain is not None:
            return f"read as {kind}: {error}"
        reason = f"{error}; "
    names = ", ".join(PREFIX + name for name in pretrained_names())
    return f"{reason}no run that ships is for {kind} ({names}); name one with --run"
