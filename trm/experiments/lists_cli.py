"""`upi-trm recipes` and `upi-trm runs`: what can be trained, and what was.

Recipes come from the learners, each described by the first lines of its file; runs from the folders
below a folder. Heavy imports stand inside the commands.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

_WIDTH = 80
_FIGURES = {"success_rate": "solved", "exact": "exact"}
"""The figure of an evaluation that tells most, by its name in metrics.jsonl, and in words."""


@click.command()
def recipes() -> None:
    """List the shipped recipes of all learners, and what each is for."""
    from trm.experiments.learners import all_learners

    told = set()
    for learner in all_learners():
        for command in learner.commands:
            found = learner.sweep_command(command)
            if found.recipes.folder in told:
                continue
            told.add(found.recipes.folder)
            env = "--env ENV " if found.takes_env else ""
            click.echo(f"upi-trm {command} {env}--recipe NAME")
            for name in found.recipes.names():
                purpose = _purpose(found.recipes.find(name))
                click.echo(f"  {name}\n{textwrap.indent(purpose, '      ')}")
            click.echo()


def _purpose(recipe: Path) -> str:
    """The comment that a recipe's file opens with, up to its record, in lines that fit."""
    lines = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#") or line.startswith("# Expected"):
            break
        lines.append(line.removeprefix("#").strip())
    return textwrap.fill(" ".join(lines), _WIDTH - 6)


@click.command()
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
def runs(*, folder: Path) -> None:
    """List the runs below FOLDER (runs): what each trained, when, and its result."""
    from trm.runs.files import RunError
    from trm.runs.run import Run

    if not folder.is_dir():
        raise click.UsageError(f"{folder}: no such folder")
    number = 0
    for path in _run_folders(folder):
        number += 1
        click.echo(path)
        try:
            click.echo(textwrap.indent(textwrap.fill(_story(Run.open(path)), _WIDTH - 4), "    "))
        except RunError as error:
            click.echo(f"    cannot be read: {error}")
    if not number:
        click.echo(f"no run lies below {folder}", err=True)


def _run_folders(folder: Path) -> Iterator[Path]:
    """The run folders at and below a folder, by name; a run has none inside."""
    if (folder / "run.json").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _run_folders(path)


def _story(run: Any) -> str:
    """Method, task, when it began, how far it came and its result, in one line."""
    from trm.experiments.learners import learner_of

    steps = run.checkpoint_steps()
    reached = f"{steps[-1]:,} {_unit(run)}" if steps else "no checkpoint yet"
    when = run.info.created[:16].replace("T", " ")
    return f"{learner_of(run).method_of(run)} on {run.info.env}, {when}, {reached}: {_result(run)}"


def _unit(run: Any) -> str:
    return "steps" if run.info.kind == "supervised" else "edits"


def _result(run: Any) -> str:
    """The evaluation record's figure, else the newest one of training."""
    from trm.experiments.records import RECORD_FILE
    from trm.runs.files import read_json_object

    record = run.path / RECORD_FILE
    if record.is_file():
        kept = read_json_object(record)
        figure = _figure([kept])
        if figure is not None:
            return f"{figure} of {kept.get('num_instances', '?')} unseen puzzles"
    figure = _figure(run.read_metrics()[::-1])
    return "not evaluated yet" if figure is None else f"{figure} of the validation puzzles"


def _figure(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """The share that the first line with one tells, in words."""
    for line in lines:
        for name, word in _FIGURES.items():
            if isinstance(line.get(name), float | int):
                return f"{line[name]:.1%} {word}"
    return None
