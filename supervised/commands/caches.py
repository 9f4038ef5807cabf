"""`upi-trm supervised cache build | info | audit`, for the group of `supervised.cli`.

Everything that costs time to import (torch, numba) is imported inside the commands.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click

from supervised.commands.options import (
    checkpoint_option,
    count_option,
    placed_float32,
    run_argument,
    run_jobs,
    show_record,
)
from trm.experiments.options import job_options, json_option, overrides_option

_FOLDER = click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))


@click.group()
def cache() -> None:
    """Teacher caches (TRM-Planner, stage I): what a frozen model gives students to learn from."""


@cache.command("build")
@run_argument
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path), help="The cache.")
@click.option(
    "--recipe",
    default="planner",
    show_default=True,
    help="planner, rollout, random-step, exact-first, or a YAML file.",
)
@overrides_option
@click.option("--data", multiple=True, metavar="K=V", help="Override a field of the run's data.")
@checkpoint_option
@job_options
@placed_float32
def build(
    *,
    run_path: Path,
    folder: Path,
    recipe: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    step: int | str | None,
    placement: Any,
    **job_flags: Any,
) -> None:
    """Build the cache of a RUN on its training examples, or go on with it."""
    from supervised.commands.run_sources import open_teacher
    from supervised.planner.cache_audit import cache_info
    from supervised.planner.cache_building import cache_jobs
    from supervised.planner.cache_manifest import CacheRecipe
    from supervised.recipe import CACHE_RECIPES
    from trm.runs.recipe import load_recipe

    loaded = load_recipe(CacheRecipe, CACHE_RECIPES.find(recipe), overrides)
    source = functools.partial(
        open_teacher, run_path.resolve(), checkpoint=step, data=data, placement=placement
    )
    jobs = cache_jobs(folder, loaded, source)
    run_jobs(jobs, **job_flags)
    info = cache_info(folder)
    click.echo(
        f"{info.num_examples} examples x {info.entries} entries, {info.bytes:,} bytes,"
        f" {info.teacher_steps:,} teacher steps, {info.cpu_seconds:.1f} CPU-s, in {folder}"
    )


@cache.command("info")
@_FOLDER
@click.option("--check", is_flag=True, help="Read every shard and compare its hash.")
@json_option
def info(*, folder: Path, check: bool, as_json: bool) -> None:
    """Say what a CACHE holds, from which teacher and data, and what it cost."""
    from supervised.planner.cache_audit import cache_info
    from supervised.planner.teacher_cache import TeacherCache

    if check:
        TeacherCache.open(folder).verify()
    show_record(dataclasses.asdict(cache_info(folder)), as_json=as_json)


@cache.command("audit")
@_FOLDER
@count_option("--num", 2000, "Examples.", least=1)
@count_option("--seed", 0, "Seed that draws the examples.")
@json_option
def audit(*, folder: Path, num: int, seed: int, as_json: bool) -> None:
    """Say how much the entries of a CACHE differ (Table 14), and how good they are."""
    from supervised.planner.cache_audit import audit_cache
    from supervised.planner.teacher_cache import TeacherCache

    found = audit_cache(TeacherCache.open(folder), num=num, seed=seed)
    show_record(dataclasses.asdict(found), as_json=as_json)
