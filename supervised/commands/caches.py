"""`upi-trm supervised cache | distill | diagnose | vote`; `supervised.cli` hangs them on its group.

Everything that costs time to import (torch, numba) stands inside the commands.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import click

from supervised.commands.train import RECIPE_HELP
from trm.experiments.options import (
    job_options,
    json_option,
    make_placement,
    overrides_option,
    placement_options,
)

_RUN = click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
_FOLDER = click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))


def _checkpoint(text: str | None) -> int | str | None:
    return int(text) if text and text.isdecimal() else text


def _reported(result: Any) -> None:
    """A line for every job that ends."""
    if result.state != "running":
        click.echo(f"{result.key}: {result.state} {result.detail}".rstrip(), err=True)


def _raise_failures(results: Any) -> None:
    """One line for jobs that failed; Ctrl-C's exit for those told to stop."""
    failed = [result for result in results if result.state == "failed"]
    if failed:
        raise ValueError(f"{len(failed)} of {len(results)} jobs failed, e.g. {failed[0].detail}")
    if any(result.state == "stopped" for result in results):
        raise KeyboardInterrupt


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(record))
        return
    for name, value in record.items():
        click.echo(f"{name:<22} {'-' if value is None else value}")


@click.group()
def cache() -> None:
    """Teacher caches (TRM-Planner, stage I): what a frozen model gives students to learn from."""


@cache.command("build")
@_RUN
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path), help="The cache.")
@click.option(
    "--recipe",
    default="planner",
    show_default=True,
    help="planner, rollout, random-step, exact-first, or a YAML file.",
)
@overrides_option
@click.option(
    "--data", "data", multiple=True, metavar="K=V", help="Override a field of the run's data."
)
@click.option("--checkpoint", help="A step, or best.  [default: the newest]")
@job_options
@placement_options
def build(
    *,
    run_path: Path,
    folder: Path,
    recipe: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    checkpoint: str | None,
    workers: int | None,
    backend: Any,
    address: str | None,
    device: str,
    precision: Any,
    compiled: bool,
    threads: int | None,
) -> None:
    """Build the cache of a RUN on its training examples, or go on with it."""
    placement = make_placement(
        device=device, precision=precision, compiled=compiled, threads=threads
    )
    if precision != "float32" or compiled:
        raise click.UsageError("a cache is built in float32, without --compile")
    placement.apply()
    from supervised.commands.opening import open_teacher
    from supervised.planner.teacher_cache import CacheRecipe, build_cache, cache_info
    from supervised.recipe import cache_recipes, find_recipe
    from trm.runs.recipe import load_recipe

    loaded = load_recipe(CacheRecipe, find_recipe(recipe, cache_recipes()), overrides)
    source = functools.partial(
        open_teacher,
        run_path.resolve(),
        checkpoint=_checkpoint(checkpoint),
        data=data,
        placement=placement,
    )
    results = build_cache(
        folder,
        loaded,
        open_source=source,
        backend=backend,
        workers=workers,
        address=address,
        report=_reported,
    )
    _raise_failures(results)
    info = cache_info(folder)
    click.echo(
        f"{info.num_examples} examples x {info.entries} entries, {info.bytes:,} bytes,"
        f" {info.teacher_steps:,} teacher steps, {info.cpu_seconds:.1f} CPU-s, in {folder}"
    )


@cache.command("info")
@_FOLDER
@click.option("--check", is_flag=True, help="Read every shard and compare its hash.")
@json_option
def cache_info_command(*, folder: Path, check: bool, as_json: bool) -> None:
    """Say what a CACHE holds, of which teacher and data, and what it cost."""
    from supervised.planner.teacher_cache import TeacherCache, cache_info

    if check:
        TeacherCache.open(folder).verify()
    _show(dataclasses.asdict(cache_info(folder)), as_json=as_json)


@cache.command("audit")
@_FOLDER
@click.option("--num", type=click.IntRange(1), default=2000, show_default=True, help="Examples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws them.")
@json_option
def audit(*, folder: Path, num: int, seed: int, as_json: bool) -> None:
    """How much the entries of a CACHE differ (Table 14), and how good they are."""
    from supervised.planner.teacher_cache import TeacherCache, audit_cache

    found = audit_cache(TeacherCache.open(folder), num=num, seed=seed)
    _show(dataclasses.asdict(found), as_json=as_json)


@click.command()
@click.argument("teacher", metavar="TEACHER", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help=RECIPE_HELP)
@click.option("--cache", "folder", type=click.Path(path_type=Path), help="Of the teacher.")
@overrides_option
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps.  [default: the recipe's]")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the student."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to make.")
@placement_options
def distill(
    *,
    teacher: Path,
    recipe: str,
    folder: Path | None,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int,
    out: Path | None,
    **where: Any,
) -> None:
    """Train a student of the run TEACHER (TRM-Planner, stage II).

    A recipe without the section distill is a control and takes no cache. `train --resume` goes on.
    `--set distill.cache=CACHE` does as well as `--cache CACHE`.
    """
    placement = make_placement(**where)
    from supervised import trainer
    from supervised.recipe import SupervisedRecipe, find_recipe
    from trm.runs.recipe import load_recipe

    path = find_recipe(recipe)
    section = load_recipe(SupervisedRecipe, path, overrides).distill
    if section is None and folder is not None:
        raise click.UsageError("--cache: the recipe uses none")
    if section is not None and section.cache is None and folder is None:
        raise click.UsageError("--cache is missing: the recipe distils")
    named = [f"teacher={json.dumps(str(teacher.resolve()))}"]
    if folder is not None:
        named.append(f"distill.cache={json.dumps(str(folder.resolve()))}")
    run = trainer.train(
        recipe_path=path,
        overrides=[*overrides, *named],
        name=path.stem,
        steps=steps,
        seed=seed,
        out=out,
        placement=placement,
    )
    if run is not None:
        click.echo(f"The run is in {run.path}; upi-trm supervised eval {run.path} measures it")


@click.command()
@_RUN
@click.option("--num", type=click.IntRange(1), default=128, show_default=True, help="Examples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws them.")
@click.option("--checkpoint", help="A step, or best.  [default: the newest]")
@json_option
@placement_options
def diagnose(
    *,
    run_path: Path,
    num: int,
    seed: int,
    checkpoint: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """How much a RUN's targets depend on the step they are taken from (Table 6)."""
    placement = make_placement(**where)
    placement.apply()
    from supervised.commands import opening as planner_runs

    model, dataset = planner_runs.open_teacher(
        run_path, checkpoint=_checkpoint(checkpoint), placement=placement
    )
    with placement.autocast():
        found = planner_runs.diagnose(model, dataset, num=num, seed=seed)
    _show(dataclasses.asdict(found), as_json=as_json)


@click.command()
@_RUN
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Data set of the tasks.")
@click.option(
    "--augmentations",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Symmetries beside the identity, as far as a task has them.",
)
@click.option(
    "--tasks", "num_tasks", type=click.IntRange(1), help="The first ones.  [default: all]"
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    help="A step, or best; several vote together (an ensemble).  [default: the newest]",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--tasks-per-job", type=click.IntRange(1), default=8, show_default=True)
@click.option("--submission", type=click.Path(path_type=Path), help="Write the official file here.")
@job_options
@json_option
@placement_options
def vote(
    *,
    run_path: Path,
    out: Path,
    folder: Path | None,
    augmentations: int,
    num_tasks: int | None,
    checkpoints: tuple[str, ...],
    batch_size: int,
    tasks_per_job: int,
    submission: Path | None,
    workers: int | None,
    backend: Any,
    address: str | None,
    as_json: bool,
    device: str,
    precision: Any,
    compiled: bool,
    threads: int | None,
) -> None:
    """Evaluate a RUN on ARC: pass@K by voting over augmented copies; goes on after a kill."""
    placement = make_placement(
        device=device, precision=precision, compiled=compiled, threads=threads
    )
    if precision != "float32" or compiled:
        raise click.UsageError("voting computes in float32, without --compile")
    placement.apply()
    from supervised.commands import opening as planner_runs
    from supervised.data_sets.arc_guards import evaluation_tasks
    from supervised.data_sets.datasets import read_info
    from supervised.measures.arc_voting import read_results, run_voting, submission_of, summarise
    from supervised.planner.teacher_cache import teacher_hash
    from supervised.recipe import SupervisedRecipe
    from supervised.trainer import RUN_KIND, load_model
    from trm.runs.durable import replace_durably
    from trm.runs.run import Run

    run = Run.open(run_path, kind=RUN_KIND)
    trained = planner_runs.arc_folder_of(run.load_recipe(SupervisedRecipe))
    folder = trained if folder is None else folder
    click.echo(planner_runs.protocol_line(trained, folder), err=True)
    steps = [_checkpoint(text) for text in checkpoints] or [None]
    weights = [teacher_hash(load_model(run, step=step)[0]) for step in steps]
    results = run_voting(
        out,
        evaluation_tasks(folder)[:num_tasks],
        open_predictors=functools.partial(
            planner_runs.open_predictors, run_path.resolve(), steps, folder.resolve(), placement
        ),
        symmetries=functools.partial(
            planner_runs.symmetries_of, folder=folder.resolve(), num=augmentations
        ),
        identity={
            "weights": weights,
            "data": read_info(folder).hash,
            "augmentations": augmentations,
        },
        tasks_per_job=tasks_per_job,
        batch_size=batch_size,
        backend=backend,
        workers=workers,
        address=address,
        report=_reported,
    )
    _raise_failures(results)
    found = read_results(out)
    if submission is not None:
        replace_durably(submission, (json.dumps(submission_of(found)) + "\n").encode())
    record = dataclasses.asdict(summarise(found))
    for name in ("per_task", "pooled"):
        record[name] = {f"pass@{k}": share for k, share in record[name].items()}
    named = {"run": str(run_path), "checkpoints": len(steps), "augmentations": augmentations}
    if as_json:
        click.echo(json.dumps({**named, **record}))
        return
    for name in ("per_task", "pooled"):
        for k, share in record.pop(name).items():
            click.echo(
                f"{name:<9} {k:<10} {share['value']:.4f}  [{share['low']:.4f}, {share['high']:.4f}]"
            )
    _show({**named, **record}, as_json=False)
