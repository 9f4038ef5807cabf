"""`upi-trm supervised data`: build the data sets that supervised training reads, look at them."""

import functools
import importlib
from pathlib import Path
from typing import Any

import click

from supervised.commands.options import count_option, show_record
from trm.experiments.options import (
    Decorator,
    added,
    json_option,
    skip_invalid_option,
    skipping_invalid,
)


@click.group()
def data() -> None:
    """Build token data sets, and say what is in one."""


@data.group()
def build() -> None:
    """Build a data set; one that was killed goes on when it is asked for again."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Read every file and compare sizes and SHA-256.")
@json_option
def info(*, folder: Path, check: bool, as_json: bool) -> None:
    """Say what the data set in FOLDER holds."""
    from supervised.data_sets.folders import check_files, read_info

    found = read_info(folder)
    if check:
        check_files(folder, found)
    show_record(found.summary(), as_json=as_json)
    if check and not as_json:
        click.echo(f"all {len(found.files)} files are whole")


def _build(plan: str, /, *, out: Path, as_json: bool, **chosen: Any) -> None:
    """Build what a plan names; `plan` is its module and function, options without a value are left.

    The plan's own defaults apply to these.
    """
    from supervised.data_sets.building import build_dataset

    module, function = plan.split(".")
    make = getattr(importlib.import_module(f"supervised.data_sets.{module}"), function)
    given = {name: value for name, value in chosen.items() if value is not None}
    with skipping_invalid(given.pop("skip_invalid", False)) as on_invalid:
        plan_made = make(**given, **({"on_invalid": on_invalid} if on_invalid else {}))
    built = build_dataset(out, plan_made, progress=not as_json)
    show_record(built.summary(), as_json=as_json)


def _add(name: str, plan: str, text: str, *options: Decorator) -> None:
    """Add a command that builds what a plan names, with the options that all builders share."""
    command = added(
        functools.partial(_build, plan),
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="Folder of the data set."
        ),
        *options,
        count_option("--seed", 0, "Seed of everything that is drawn."),
        json_option,
    )
    build.command(name, help=text)(command)


def _sizes(*, train: int, validation: int, test: int | None) -> tuple[Decorator, ...]:
    """Options of data sets of boards; a `test` of None means all."""
    return (
        count_option("--train", train, "Training examples."),
        count_option("--validation", validation, "Validation examples; 0 = none."),
        count_option("--test", test, "Test examples; 0 = none."),
        count_option(
            "--images", 0, "Random images stored of each training example; 0 = draw them later."
        ),
    )


def _range(name: str, text: str) -> Decorator:
    return click.option(name, type=(int, int), help=text)


_add(
    "sudoku",
    "board_plans.sudoku_plan",
    "Generated Sudoku, splits disjoint up to symmetry.",
    click.option("--side", type=int, default=9, show_default=True, help="4, 6, 9 or 16."),
    _range("--givens", "Range of givens, e.g. 30 36."),
    _range("--blanks", "Range of blanks, instead of --givens."),
    click.option("--unique/--any", default=True, help="One solution each, or any number."),
    *_sizes(train=10_000, validation=1000, test=1000),
)
_add(
    "maze",
    "board_plans.maze_plan",
    "Generated mazes with long shortest paths, splits disjoint up to symmetry.",
    click.option("--size", type=int, default=30, show_default=True, help="Rows and columns."),
    _range("--path", "Range of the cells on a shortest path."),
    *_sizes(train=1000, validation=100, test=1000),
)
for name, kind, validation, text in (
    ("sudoku-extreme", "puzzles", 1000, "Sudoku-Extreme: 1,000 committed training puzzles"),
    ("maze-hard", "mazes", 100, "Maze-30x30-Hard"),
):
    _add(
        name,
        f"board_plans.{name.replace('-', '_')}_plan",
        f"{text} of the public set, or a CSV like it.",
        click.option("--source", help=f"CSV of training {kind}.  [default: the public set's, hub]"),
        click.option("--test-source", help=f"CSV of test {kind}.  [default: the public set's]"),
        *_sizes(train=1000, validation=validation, test=None),
    )
_add(
    "nqueens",
    "board_plans.queens_plan",
    "N-Queens with some queens given, vocabulary 3.",
    click.option("--n", type=int, default=8, show_default=True, help="Rows of the board, 4-12."),
    click.option(
        "--hold-out",
        type=click.Choice(["random", "solution", "class"]),
        default="random",
        show_default=True,
        help="How test boards are kept apart; random is the paper's.",
    ),
    _range("--given", "Range of given queens.  [default: 1 to N - 1]"),
    *_sizes(train=7200, validation=200, test=200),
)
_add(
    "arc",
    "arc_plan.arc_plan",
    "ARC-1, ARC-2 or a folder: a puzzle identifier for every task and symmetry.",
    click.option(
        "--data",
        default="arcagi",
        show_default=True,
        help="What is evaluated: arcagi (ARC-1), arcagi2 (ARC-2), or a file or folder of JSON tasks"
        " as ARC, ConceptARC or Kaggle publish them.",
    ),
    click.option(
        "--extra", multiple=True, help="Folder or set to train on too, e.g. ConceptARC; repeatable."
    ),
    count_option("--augmentations", 1000, "Images of each task beside itself."),
    count_option("--validation", 20, "Training tasks whose test pairs are for validation."),
    skip_invalid_option,
)
