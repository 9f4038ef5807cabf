"""`upi-trm supervised train | distill | import | info`: from recipes to runs.

`supervised.cli` adds them to its group. Everything that costs time to import (torch, numba) is
imported inside the commands.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from supervised.commands.options import RECIPE_HELP, placed, show_record, steps_option
from supervised.shipped import RECIPES
from trm.experiments.options import (
    end_unfinished,
    json_option,
    make_placement,
    out_option,
    overrides_option,
    placement_options,
    recipe_option,
    refuse_with_resume,
    run_options,
    seed_option,
)


@click.command()
@recipe_option(RECIPES, RECIPE_HELP)
@overrides_option
@steps_option
@run_options
@placement_options
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    recipe: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int,
    out: Path | None,
    resume: Path | None,
    **where: Any,
) -> None:
    """Train on labels; --resume goes on.

    Ctrl-C saves and ends cleanly. Under torchrun the batch is shared among the processes.
    """
    placement = make_placement(**where, resumed=resume is not None)
    from supervised import trainer

    if resume is not None:
        refuse_with_resume(ctx, ("recipe", "overrides", "seed", "out"))
        _say_where(trainer.resume(resume, steps=steps, placement=placement))
    elif recipe is None:
        raise click.UsageError("--recipe is missing (or --resume RUN)")
    else:
        path = RECIPES.find(recipe)
        _train(path, overrides, steps=steps, seed=seed, out=out, placement=placement)


@click.command()
@click.argument("teacher", metavar="TEACHER", type=click.Path(path_type=Path))
@recipe_option(RECIPES, RECIPE_HELP, required=True)
@click.option("--cache", "folder", type=click.Path(path_type=Path), help="Cache of the teacher.")
@overrides_option
@steps_option
@seed_option("Seed of the student.")
@out_option("Run folder to make.")
@placed
def distill(
    *,
    teacher: Path,
    recipe: str,
    folder: Path | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a student of the run TEACHER (TRM-Planner, stage II).

    A recipe without the section distill is a control and takes no cache. `train --resume` goes on
    with a student. `--set distill.cache=CACHE` means the same as `--cache CACHE`.
    """
    from supervised.recipe import SupervisedRecipe
    from trm.runs.recipe import load_recipe

    path = RECIPES.find(recipe)
    section = load_recipe(SupervisedRecipe, path, overrides).distill
    if section is None and folder is not None:
        raise click.UsageError("--cache: the recipe uses none")
    if section is not None and section.cache is None and folder is None:
        raise click.UsageError("--cache is missing: the recipe distils")
    named = [f"teacher={json.dumps(str(teacher.resolve()))}"]
    if folder is not None:
        named.append(f"distill.cache={json.dumps(str(folder.resolve()))}")
    _train(path, [*overrides, *named], **options)


@click.command()
@click.argument("recipe")
@overrides_option
@json_option
def info(*, recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what a RECIPE costs: parameters, forward passes, FLOPs, memory."""
    from supervised.commands.costs import costs_of
    from supervised.recipe import SupervisedRecipe, token_shape
    from trm.runs.recipe import load_recipe

    loaded = load_recipe(SupervisedRecipe, RECIPES.find(recipe), overrides)
    record = dataclasses.asdict(costs_of(loaded, token_shape(loaded)))
    show_record({"recipe": recipe, **record} if as_json else record, as_json=as_json)


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help=RECIPE_HELP)
@overrides_option
@out_option("Run folder to make.")
def import_checkpoint(
    *, checkpoint: Path, recipe: str, overrides: tuple[str, ...], out: Path | None
) -> None:
    """Make a run of an official CHECKPOINT, to evaluate it."""
    from supervised.commands.official import import_model
    from supervised.models import save_import
    from supervised.recipe import SupervisedRecipe, token_shape
    from trm.runs.recipe import load_recipe

    path = RECIPES.find(recipe)
    loaded = load_recipe(SupervisedRecipe, path, overrides)
    model = import_model(checkpoint, loaded, token_shape(loaded))
    out = Path("runs") / f"{path.stem}-imported" if out is None else out
    save_import(model, loaded, out, source=checkpoint.name)
    click.echo(f"{model.num_parameters:,} parameters; the run is in {out}")


def _train(path: Path, overrides: Sequence[str], **options: Any) -> None:
    """Train the run of a recipe's file; `options` are further arguments of `trainer.train`."""
    from supervised.trainer import train

    _say_where(train(recipe_path=path, overrides=overrides, name=path.stem, **options))


def _say_where(outcome: Any) -> None:
    """Where the run is, in the process that wrote it."""
    end_unfinished(outcome)
    if outcome.is_main:
        path = outcome.run.path
        click.echo(f"The run is in {path}; upi-trm supervised eval {path} measures it")
