"""`upi-trm drift` and `upi-trm bounds`: the stability study and the bounds of trained runs.

Both take run folders and print tables, or one JSON object with `--json`. The entry points `drift`
and `bounds` of the group `upi_trm.commands` name the commands. Every import that costs time is made
inside the function that needs it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from trm.experiments import options


def _list_of(convert: Callable[[str], Any], what: str) -> Any:
    """A click callback that reads a list with commas."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> list[Any] | None:
        try:
            return None if value is None else [convert(word.strip()) for word in value.split(",")]
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of {what} with commas") from None

    return read


def _depth(word: str) -> int:
    if not word.isdecimal():
        raise ValueError(word)
    return int(word)


def _radius(word: str) -> float | None:
    if word == "none":
        return None
    radius = float(word)
    if not 0 < radius < float("inf"):
        raise ValueError(word)
    return radius


def _study_options(command: Any) -> Any:
    """Options for the checkpoint, the puzzles, the device and the output."""
    return options.added(
        command,
        click.option(
            "--num", type=click.IntRange(1), default=100, show_default=True, help="Test puzzles."
        ),
        options.checkpoint_option,
        options.seed_option("Seed of the test puzzles, rollouts and estimates."),
        options.json_option,
        options.device_option,
        options.threads_option,
    )


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--depths",
    default="4,8,16",
    show_default=True,
    callback=_list_of(_depth, "depths"),
    help="Depths n_eval to measure at.",
)
@click.option(
    "--radius",
    "radii",
    metavar="R,none",
    callback=_list_of(_radius, "radii (numbers, or none)"),
    help="Projections to measure under.  [default: as recorded, then without]",
)
@options.plot_option
@_study_options
def drift(
    *,
    runs: tuple[str, ...],
    depths: list[int],
    radii: list[float | None] | None,
    plot: Path | None,
    num: int,
    step: int | str | None,
    seed: int,
    as_json: bool,
    **place: Any,
) -> None:
    """Measure how values and policy drift at other depths than trained.

    Several runs are compared, and Delta_V is correlated with Delta_pi over runs and depths.
    """
    placement = options.ready_placement(compiled=False, **place)
    from trm.runs.pictures import require_matplotlib
    from upi_trm.theory.stability import drift_correlations, measure_drift, plot_drift
    from upi_trm.theory.subjects import load_studied

    if plot is not None:
        require_matplotlib()
    reports = []
    for path in runs:
        studied = load_studied(options.open_run(Path(path)), placement=placement, step=step)
        puzzles = studied.task.instances("test", num=num, seed=seed).instances
        with _status(f"measuring {path}"):
            reports.append(measure_drift(studied, puzzles, depths=depths, radii=radii, seed=seed))
    correlations = drift_correlations(reports)
    if plot is not None:
        plot_drift(reports, plot)
    if as_json:
        records = [report.to_json_dict() for report in reports]
        record = records[0] if len(records) == 1 else {"runs": records}
        plain = {
            where: {name: asdict(found) for name, found in row.items()}
            for where, row in correlations.items()
        }
        _echo_json(record | {"correlations": plain})
        return
    for report in reports:
        _print_drift(report)
    _print_correlations(correlations)


@click.command()
@click.argument("run_path", metavar="RUN")
@click.option(
    "--exact-num",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Puzzles that are solved exactly.",
)
@click.option(
    "--exact-edits",
    type=click.IntRange(1),
    help="Edits left in each of these, at most.  [default: what 2,000 plans allow]",
)
@click.option("--depth", type=click.IntRange(0), help="n of the evaluator.  [default: the run's]")
@click.option(
    "--without-contraction",
    is_flag=True,
    help="Show what needs no certified contraction, for runs that have none.",
)
@_study_options
def bounds(
    *,
    run_path: str,
    without_contraction: bool,
    num: int,
    step: int | str | None,
    seed: int,
    as_json: bool,
    device: str,
    threads: int | None,
    **exact: Any,
) -> None:
    """Measure every term of the theory and both sides of every bound.

    Exact on small copies of the run's puzzles (docs/bounds.md), sample maxima on its own ones. A
    run with gamma = 1 or without a certified contraction is refused.
    """
    placement = options.ready_placement(device=device, compiled=False, threads=threads)
    from upi_trm.contraction import NotContractive
    from upi_trm.theory.bounds_study import measure_bounds
    from upi_trm.theory.subjects import load_subject

    subject = load_subject(
        options.open_run(Path(run_path)), placement=placement, step=step, seed=seed
    )
    try:
        with _status(f"measuring {run_path}"):
            report = measure_bounds(
                subject,
                subject.task.instances("test", num=num, seed=seed).instances,
                contraction=not without_contraction,
                seed=seed,
                **exact,
            )
    except NotContractive as error:
        raise NotContractive(f"{error}; --without-contraction shows the rest") from error
    if as_json:
        _echo_json(report.to_json_dict())
    else:
        _print_bounds(report)


# --- What both commands print


def _status(message: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(message)


def _echo_json(record: dict[str, Any]) -> None:
    click.echo(json.dumps(_finite(record), allow_nan=False))


def _finite(value: Any) -> Any:
    """The same value with null for infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(title: str, *headings: str) -> Any:
    """A table whose first column is text and whose others are figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    return table


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console(soft_wrap=False)
    for part in parts:
        console.print(part)


def _lipschitz_table(found: Mapping[str, Any]) -> Any:
    title = "Lipschitz constants: proven bound, and lower estimates at visited latents"
    headings = ("map", "certified", "Jacobian, largest", "Jacobian, mean", "pairs, largest")
    table = _table(title, *headings)
    for part, known in found.items():
        figures = (known.certified, known.local, known.local_mean, known.empirical)
        table.add_row(part, *map(_number, figures))
    return table


# --- Tables of `drift`


def _print_drift(report: Any) -> None:
    from upi_trm.theory.stability import MEASURES, radius_name

    clamp = "no contraction" if report.modulus is None else f"L_z <= {report.modulus:g}"
    title = (
        f"{report.run}: {report.env}, {clamp}, n_train = {report.train_depth}, "
        f"R = {radius_name(report.train_radius)}, {report.step} edits"
    )
    headings = ("states", "Delta_V", "/ std of U_n", "Delta_pi", "KL", "greedy success")
    table = _table(title, "R", "n", *headings)
    for part in report.tables:
        for depth, row in part.cells.items():
            for where, found in row.items():
                *figures, success = (getattr(found, name) for name in MEASURES)
                place = (radius_name(part.radius), str(depth))
                states = f"{where} ({report.num_states[where]})"
                table.add_row(*place, states, *map(_number, figures), f"{success:.1%}")
    _print(table, _lipschitz_table(report.lipschitz))


def _print_correlations(correlations: Mapping[str, Mapping[str, Any]]) -> None:
    title = "Correlations over runs and depths (Pearson)"
    table = _table(title, "columns", "states", "raw", "logs", "points")
    for where, row in correlations.items():
        for name, found in row.items():
            if found.pearson is not None:
                figures = (_number(found.pearson), _number(found.pearson_log), str(found.points))
                table.add_row(name, where, *figures)
    if table.row_count:
        _print(table)


# --- Tables of `bounds`


def _print_bounds(report: Any) -> None:
    settings = ", ".join(f"{name} = {value}" for name, value in report.settings.items())
    _print(
        f"[bold]{report.run}[/bold]: {report.env}, {report.step} edits, {settings}",
        _lipschitz_table({"recursion (L_z)": report.modulus, "value (L_V)": report.head}),
    )
    if report.modulus.certified is None or report.modulus.certified >= 1:
        _print("No certified contraction: what needs one is left out.")
    if report.exact is None:
        _print(f"Nothing solved exactly: {report.why_not_exact}")
    else:
        of = f"every plan that {report.exact.instances} small puzzles reach"
        _print_study(f"Exact: {report.exact.states} states, {of}", report.exact)
    _print_study(
        f"Sample maximum, no proof: {report.sampled.states} states that the policy visits",
        report.sampled,
    )


def _print_study(title: str, study: Any) -> None:
    terms = _table("", "term", "value")
    for name, value in _flat(study.terms):
        terms.add_row(name, _number(value))
    table = _table("", "bound", "says", "left", "right", "holds", "right / left")
    table.columns[1].justify = "left"
    for bound in study.bounds:
        table.add_row(
            bound.name if bound.proven else f"{bound.name} (no theorem)",
            bound.says,
            _number(bound.left),
            _number(bound.right),
            "yes" if bound.holds else "[bold red]no[/bold red]",
            _number(bound.ratio),
        )
    _print(f"[bold]{title}[/bold]", terms, table)


def _flat(terms: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Terms by their names, those of a group by `group.name`."""
    for name, value in terms.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
