"""`upi-trm sweep` and `upi-trm compare`: many runs at once, and runs side by side.

`sweep` hands a spec to `sweep_spec` and `sweep_run` and shows what happens; `compare` reads records
(`records`) and shows their table and curves (`compare`). Heavy imports stand inside the commands.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trm.experiments import options


@click.command()
@click.argument("spec", metavar="SPEC.yaml|NAME")
@options.out_option("The sweep's folder.  [default: runs/NAME]")
@options.job_options
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    default=("*",),
    help="Points to run, by name: 'control-*', '*-seed0'; may be repeated.  [default: all]",
)
@click.option("--dry-run", is_flag=True, help="Show the points and their state; start nothing.")
def sweep(
    *, spec: str, out: Path | None, only: tuple[str, ...], dry_run: bool, **jobs: Any
) -> None:
    """Train and evaluate every point of a sweep, of any learner.

    Give a spec file or the name of a shipped one. The same command goes on after an interruption:
    finished runs are skipped, interrupted ones resumed, failed ones tried again. Exit code 1 when a
    run failed, 130 after Ctrl-C, which lets runs save.
    """
    from trm.experiments.sweep_run import matching_points, run_sweep
    from trm.experiments.sweep_spec import SWEEPS, plan_sweep

    planned = plan_sweep(SWEEPS.find(spec), out)
    out = planned.out
    if dry_run:
        _show_plan(planned, only)
        return
    chosen = matching_points(planned, only)
    total = len(planned.points)

    def show(change: Any) -> None:
        text = f"[{change.num_finished}/{total}] {change.point.name}: {change.state}"
        if change.state == "finished":
            shown = (f"{name} {share:.1%}" for name, share in change.figures.items())
            text += ", " + ", ".join(shown)
            text += f" ({change.seconds:.0f} s)" if change.seconds else " before"
        click.echo(f"{text}: {change.detail}" if change.detail else text, err=True)

    states = run_sweep(
        planned,
        command=shlex.join(["upi-trm", *sys.argv[1:]]),
        only=only,
        report=show,
        **jobs,
    )
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    click.echo(f"{out}: {summary}")
    if counts.get("finished"):
        click.echo(f"  {shlex.join(['upi-trm', *planned.command.compare, str(out)])}")
    if counts.get("failed"):
        sys.exit(options.EXIT_FAILED)
    if any(states[point.name] != "finished" for point in chosen):
        click.echo("  the same command goes on")
        sys.exit(options.EXIT_INTERRUPTED)


def _show_plan(planned: Any, only: tuple[str, ...]) -> None:
    """The commands of a sweep, and how far each has come."""
    from trm.experiments.sweep_run import matching_points, point_states
    from trm.experiments.sweep_spec import command_line, prepared_path

    out, states = planned.out, point_states(planned)
    for one in planned.preparations:
        click.echo(f"{'prepare':<12} {command_line(one.words, prepared_path(out, one.name))}")
    for point in matching_points(planned, only):
        click.echo(f"{states[point.name]:<12} {command_line(point.start, out / point.name)}")
    done = sum(state == "finished" for state in states.values())
    click.echo(f"{len(states)} runs, {done} of them finished")


@click.command()
@click.argument(
    "paths",
    metavar="RUN|DIR|RECORD.json...",
    nargs=-1,
    required=True,
    type=options.RunPath(),
)
@options.json_option
@options.plot_option
@click.option(
    "--num",
    type=click.IntRange(1),
    help="Unseen puzzles for every run; runs of another number are evaluated anew.  [default: as "
    "recorded, 500 where nothing is]",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write all records into one JSON file, which compare takes again.",
)
def compare(
    *, paths: tuple[Path, ...], as_json: bool, plot: Path | None, num: int | None, save: Path | None
) -> None:
    """Compare runs: a row a recipe over its seeds, beside the reference policies.

    Takes run folders of any learner, folders of runs, and evaluation records. Runs that have no
    record yet are evaluated, and keep it (eval.json).
    """
    from rich.console import Console

    from trm.experiments.compare import compare_records, save_plot
    from trm.experiments.records import parse_record, read_records
    from trm.runs.durable import replace_durably

    found = read_records(paths, num=num, announce=lambda text: click.echo(text, err=True))
    comparison = compare_records(
        [parse_record(record, source=str(record.get("run", "record"))) for record in found]
    )
    if save is not None:
        lines = ",\n".join(json.dumps(record) for record in found)
        replace_durably(save, f'{{"records": [\n{lines}\n]}}\n'.encode())
    if plot is not None:
        save_plot(comparison, plot)
    if as_json:
        click.echo(json.dumps(comparison.to_json_dict()))
        return
    for table in comparison.tables():
        Console().print(table)
