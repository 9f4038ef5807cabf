"""`upi-trm supervised data`: build the data sets that supervised training reads, look at them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trm.experiments.options import json_option


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
    from supervised.data_sets.datasets import check_files, read_info

    found = read_info(folder)
    if check:
        check_files(folder, found)
    _show(found, as_json=as_json)
    if check and not as_json:
        click.echo(f"all {len(found.files)} files are whole")


def _show(found: Any, *, as_json: bool) -> None:
    summary = found.summary()
    if as_json:
        click.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        click.echo(f"{name:<14} {value if isinstance(value, str | int) else json.dumps(value)}")


def _builder(
    *options: Callable[..., Any],
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that builds what the decorated function plans, with the options all share."""

    def decorate(plan: Callable[..., Any]) -> click.Command:
        def command(*, out: Path, as_json: bool, **chosen: Any) -> None:
            from supervised.data_sets.builders import build_dataset

            found = build_dataset(out, plan(**chosen), progress=not as_json)
            _show(found, as_json=as_json)

        shared = (
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                required=True,
                help="Folder of the data set.",
            ),
            *options,
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
            json_option,
        )
        function: Callable[..., Any] = command
        for option in reversed(shared):
            function = option(function)
        name = plan.__name__.removesuffix("_").replace("_", "-")
        return build.command(name, help=plan.__doc__)(function)

    return decorate


def _sizes(*, train: int, validation: int, test: int | None) -> tuple[Callable[..., Any], ...]:
    """Options of data sets of boards."""
    return (
        _count("--train", train, "Training examples."),
        _count("--validation", validation, "Validation examples; 0 = none."),
        _count("--test", test, "Test examples; 0 = none.", none="all"),
        click.option(
            "--images",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Random images stored of each training example; 0 = drawn while training.",
        ),
    )


def _count(
    name: str, default: int | None, text: str, *, none: str | None = None
) -> Callable[..., Any]:
    if default is None:
        return click.option(name, type=click.IntRange(0), help=f"{text}  [default: {none}]")
    return click.option(name, type=click.IntRange(0), default=default, show_default=True, help=text)


_RANGE = (int, int)


@_builder(
    click.option("--side", type=int, default=9, show_default=True, help="4, 6, 9 or 16."),
    click.option("--givens", type=_RANGE, help="Range of givens, e.g. 30 36."),
    click.option("--blanks", type=_RANGE, help="Range of blanks, instead of --givens."),
    click.option("--unique/--any", default=True, help="One solution each, or any number."),
    *_sizes(train=10_000, validation=1000, test=1000),
)
def sudoku(**options: Any) -> Any:
    """Generated Sudoku, splits disjoint up to symmetry."""
    from supervised.data_sets.builders import sudoku_plan

    return sudoku_plan(**options)


@_builder(
    click.option("--source", help="CSV of training puzzles.  [default: the public set's, hub]"),
    click.option("--test-source", help="CSV of test puzzles.  [default: the public set's]"),
    *_sizes(train=1000, validation=1000, test=None),
)
def sudoku_extreme(**options: Any) -> Any:
    """Sudoku-Extreme: 1,000 committed training puzzles of the public set, or a CSV like it."""
    from supervised.data_sets.builders import SUDOKU_EXTREME, sudoku_extreme_plan

    return sudoku_extreme_plan(**{**options, "source": options["source"] or SUDOKU_EXTREME})


@_builder(
    click.option("--size", type=int, default=30, show_default=True, help="Rows and columns."),
    click.option("--path", type=_RANGE, help="Range of the cells on a shortest path."),
    *_sizes(train=1000, validation=100, test=1000),
)
def maze(**options: Any) -> Any:
    """Generated mazes with long shortest paths, splits disjoint up to symmetry."""
    from supervised.data_sets.builders import maze_plan

    return maze_plan(**options)


@_builder(
    click.option("--source", help="CSV of training mazes.  [default: the public set's, hub]"),
    click.option("--test-source", help="CSV of test mazes.  [default: the public set's]"),
    *_sizes(train=1000, validation=100, test=None),
)
def maze_hard(**options: Any) -> Any:
    """Maze-30x30-Hard: the public set, or a CSV like it."""
    from supervised.data_sets.builders import MAZE_HARD, maze_hard_plan

    return maze_hard_plan(**{**options, "source": options["source"] or MAZE_HARD})


@_builder(
    click.option("--n", type=int, default=8, show_default=True, help="Rows of the board, 4-12."),
    click.option(
        "--hold-out",
        type=click.Choice(["random", "solution", "class"]),
        default="random",
        show_default=True,
        help="How test boards are kept apart; random is the paper's.",
    ),
    click.option("--given", type=_RANGE, default=(1, 7), show_default=True, help="Given queens."),
    *_sizes(train=7200, validation=200, test=200),
)
def nqueens(**options: Any) -> Any:
    """N-Queens with some queens given, vocabulary 3."""
    from supervised.data_sets.builders import queens_plan

    return queens_plan(**options)


@_builder(
    click.option(
        "--data",
        "source",
        default="arcagi",
        show_default=True,
        help="What is evaluated: arcagi (ARC-1), arcagi2 (ARC-2), or a folder of JSON tasks.",
    ),
    click.option(
        "--extra", multiple=True, help="Folder or set to train on too, e.g. ConceptARC; repeatable."
    ),
    click.option(
        "--augmentations",
        type=click.IntRange(0),
        default=1000,
        show_default=True,
        help="Images of each task beside itself.",
    ),
    _count("--validation", 20, "Training tasks whose test pairs are for validation."),
)
def arc(*, source: str, **options: Any) -> Any:
    """ARC-1, ARC-2 or a folder: a puzzle identifier for every task and symmetry."""
    from supervised.data_sets.arc import arc_plan

    return arc_plan(data=source, **options)
