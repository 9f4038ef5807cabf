"""Words, options and output that the sub-commands of `upi-trm supervised` share."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import click

from trm.experiments.options import (
    CheckpointName,
    Decorator,
    RunPath,
    make_placement,
    placement_options,
)

RECIPE_HELP = "Name of a shipped recipe, or a YAML file."

run_argument: Decorator = click.argument("run_path", metavar="RUN", type=RunPath())
steps_option: Decorator = click.option(
    "--steps", type=click.IntRange(1), help="Optimiser steps.  [default: the recipe's]"
)


def count_option(name: str, default: int | None, text: str, *, least: int = 0) -> Decorator:
    """An option for a number of things; None as its default means all of them."""
    shown = "all" if default is None else True
    kind = click.IntRange(least)
    return click.option(name, type=kind, default=default, show_default=shown, help=text)


checkpoint_option: Decorator = click.option(
    "--checkpoint",
    "step",
    type=CheckpointName(),
    help="A step, or best.  [default: the newest]",
)


def placed(command: Any, *, float32: bool = False) -> Any:
    """Add `placement_options`; the command gets what they ask for, applied, as `placement`.

    `float32` is for commands whose figures must be the same on every machine: another precision
    and `--compile` are refused.
    """

    @functools.wraps(command)
    def placing(**options: Any) -> None:
        flags = {name: options.pop(name) for name in ("device", "precision", "compiled", "threads")}
        if float32 and (flags["precision"] != "float32" or flags["compiled"]):
            raise click.UsageError("this command computes in float32, without --compile")
        placement = make_placement(**flags)
        placement.apply()
        command(placement=placement, **options)

    return placement_options(placing)


placed_float32 = functools.partial(placed, float32=True)


def run_jobs(jobs: Any, **options: Any) -> None:
    """Run jobs, with a line on stderr for each one that ends.

    Args:
        jobs: of `trm.compute.jobs`.
        **options: values of `job_options`.

    Raises:
        ValueError: some failed; says how many, and why the first one did.
        KeyboardInterrupt: some were stopped.
    """
    from trm.compute.jobs import map_jobs

    def report(result: Any) -> None:
        if result.state != "running":
            click.echo(f"{result.key}: {result.state} {result.detail}".rstrip(), err=True)

    results = map_jobs(jobs, report=report, **options)
    failed = [result for result in results if result.state == "failed"]
    if failed:
        raise ValueError(f"{len(failed)} of {len(results)} jobs failed, e.g. {failed[0].detail}")
    if any(result.state == "stopped" for result in results):
        raise KeyboardInterrupt


def show_record(record: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Figures by name: one JSON object on one line, or a line each."""
    if as_json:
        click.echo(json.dumps(record))
        return
    for name, value in record.items():
        shown = f"{value:,}" if isinstance(value, int) else "-" if value is None else value
        shown = json.dumps(shown) if isinstance(shown, dict) else shown
        click.echo(f"{name:<24} {shown}")
