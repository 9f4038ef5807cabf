"""`upi-trm supervised train | eval | compare | info | import`, for the group of `supervised.cli`.

Everything that costs time to import (torch, numba) stands inside the commands.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from trm.experiments.options import (
    json_option,
    make_placement,
    overrides_option,
    placement_options,
    refuse_with_resume,
    run_options,
)

RECIPE_HELP = "Name of a shipped recipe, or a YAML file."


@click.command()
@click.option("--recipe", help=RECIPE_HELP)
@overrides_option
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps.  [default: the recipe's]")
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
    from supervised.recipe import find_recipe

    if resume is not None:
        refuse_with_resume(ctx, ("recipe", "overrides", "seed", "out"))
        run = trainer.resume(resume, steps=steps, placement=placement)
    elif recipe is None:
        raise click.UsageError("--recipe is missing (or --resume RUN)")
    else:
        path = find_recipe(recipe)
        run = trainer.train(
            recipe_path=path,
            overrides=overrides,
            name=path.stem,
            steps=steps,
            seed=seed,
            out=out,
            placement=placement,
        )
    if run is not None:
        click.echo(f"The run is in {run.path}; upi-trm supervised eval {run.path} measures it")


@click.command("eval")
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Another data set.")
@click.option("--num", type=click.IntRange(1), help="Examples.  [default: 1000, or all of --data]")
@click.option("--steps", type=click.IntRange(1), help="Supervision steps.  [default: N_sup]")
@click.option("--guidance", type=float, default=1.0, show_default=True, metavar="W")
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="S",
    help="Deviation of noise added to the latents after each step.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="M",
    help="Noisy runs of each example, selected by the halting head and by the checker.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@click.option(
    "--commit",
    is_flag=True,
    help="Besides, write the most confident token and run again (Sudoku, N-Queens).",
)
@click.option("--checkpoint", help="A step, or best.  [default: the newest]")
@json_option
@placement_options
def evaluate_run(
    *,
    run_path: Path,
    split: str,
    folder: Path | None,
    num: int | None,
    steps: int | None,
    guidance: float,
    noise: float,
    samples: int,
    seed: int,
    commit: bool,
    checkpoint: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Measure a run after each supervision step."""
    placement = make_placement(**where)
    placement.apply()
    import torch

    from supervised.data_sets.opening import open_dataset
    from supervised.measures.evaluation import EvalOptions, evaluate
    from supervised.trainer import RUN_KIND, load_model, open_data
    from trm.runs.run import Run

    run = Run.open(run_path, kind=RUN_KIND)
    step = int(checkpoint) if checkpoint and checkpoint.isdecimal() else checkpoint
    model, recipe = load_model(run, step=step, placement=placement)
    if folder is not None:
        dataset = open_dataset(folder, split)
        if dataset.info.domain == "arc" and recipe.data.folder is not None:
            from supervised.data_sets.arc_guards import check_arc_evaluation

            check_arc_evaluation(recipe.data.folder, folder, split=split)
    else:
        num = 1000 if num is None else num
        dataset = open_data(recipe.data, split, seed=run.info.seed, num=num)
    info = dataset.info
    if (info.vocab_size, info.num_positions) != (model.shape.vocab_size, model.shape.num_positions):
        raise ValueError(
            f"{folder}: {info.num_positions} positions of {info.vocab_size} tokens, the run's model"
            f" takes {model.shape.num_positions} of {model.shape.vocab_size}"
        )
    options = EvalOptions(
        steps=steps,
        guidance=guidance,
        noise=noise,
        samples=samples,
        feeds="input" if recipe.dis is None else recipe.dis.feeds,
        num=num,
    )
    with placement.autocast():
        found = evaluate(model, dataset, options, generator=torch.Generator().manual_seed(seed))
    record = found.to_json_dict()
    _show(found)
    if commit:
        from supervised.measures.commit import evaluate_commit

        with placement.autocast():
            committed = evaluate_commit(model, dataset, steps=steps, feeds=options.feeds, num=num)
        record["commit"] = dataclasses.asdict(committed)
        text = ", ".join(f"{k} {v:.3f}" for k, v in record["commit"].items() if v is not None)
        click.echo(f"commit: {text}", err=True)
    if as_json:
        asked = {"guidance": guidance, "noise": noise, "samples": samples, "eval_seed": seed}
        named = {"run": str(run_path), "seed": run.info.seed, "data": info.name, "split": split}
        click.echo(json.dumps({**named, **asked, **record}))


def _show(found: Any) -> None:
    """The curve as a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.num} examples", title_justify="left")
    headings = {
        "step": "d",
        "exact": ".1%",
        "valid": ".1%",
        "token_accuracy": ".1%",
        "loss": ".3f",
        "hamming": ".2f",
        "changed": ".2f",
        "margin": ".3f",
        "halting": ".2f",
    }
    for heading in headings:
        table.add_column(heading, justify="right")
    for point in found.curve:
        values = ((getattr(point, name), form) for name, form in headings.items())
        table.add_row(*("" if value is None else format(value, form) for value, form in values))
    console = Console(stderr=True)
    console.print(table)
    for name in ("early_exit", "selected"):
        figures = getattr(found, name)
        if figures is not None:
            text = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
            console.print(f"{name}: {text}", highlight=False)


@click.command()
@click.argument(
    "paths",
    metavar="SWEEP|RECORD.json...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@click.option("--against", metavar="ROW", help="Show differences to a row, or to its first word.")
@click.option(
    "--figure",
    default="commit_valid",
    show_default=True,
    help="What differences are of; exact where it was not measured.",
)
@click.option("--save", metavar="FILE", type=click.Path(path_type=Path), help="Keep all records.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw validation curves by CPU time: .png, .svg, .pdf (extra `plot`).",
)
@json_option
def compare(
    *,
    paths: tuple[Path, ...],
    against: str | None,
    figure: str,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the runs of supervised sweeps: a row a setting over its seeds.

    Figures are of the last checkpoint on unseen examples; the peak is the best of the evaluations
    on validation examples while training. `--against final` pairs every row with the one whose
    first word is `final` and which is the same else, seed by seed.
    """
    from rich.console import Console

    from supervised.measures.compare import differences, read_records, rows_of, save_plot, tables
    from trm.runs.durable import replace_durably

    records = read_records(paths)
    rows = rows_of(records)
    found = [] if against is None else differences(records, against=against, figure=figure)
    if save is not None:
        lines = ",\n".join(json.dumps(record) for record in records)
        replace_durably(save, f'{{"records": [\n{lines}\n]}}\n'.encode())
    if plot is not None:
        save_plot(records, plot)
    if as_json:
        shown = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "differences": [dataclasses.asdict(one) for one in found],
        }
        click.echo(json.dumps(shown))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(rows, found):
        console.print(table)


@click.command()
@click.argument("recipe")
@overrides_option
@json_option
def info(*, recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what a RECIPE costs: parameters, forward passes, FLOPs, memory."""
    from supervised.commands.costs import costs_of
    from supervised.recipe import SupervisedRecipe, find_recipe, token_shape
    from trm.runs.recipe import load_recipe

    loaded = load_recipe(SupervisedRecipe, find_recipe(recipe), overrides)
    record = dataclasses.asdict(costs_of(loaded, token_shape(loaded)))
    if as_json:
        click.echo(json.dumps({"recipe": recipe, **record}))
        return
    for name, value in record.items():
        click.echo(f"{name:<24} {value:,}")


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help=RECIPE_HELP)
@overrides_option
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to make.")
def import_checkpoint(
    *, checkpoint: Path, recipe: str, overrides: tuple[str, ...], out: Path | None
) -> None:
    """Make a run of an official CHECKPOINT, to evaluate it."""
    from supervised.commands.official import import_model
    from supervised.recipe import SupervisedRecipe, find_recipe, token_shape
    from supervised.trainer import save_import
    from trm.runs.recipe import load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(SupervisedRecipe, path, overrides)
    model = import_model(checkpoint, loaded, token_shape(loaded))
    out = Path("runs") / f"{path.stem}-imported" if out is None else out
    save_import(model, loaded, out, source=checkpoint.name)
    click.echo(f"{model.num_parameters:,} parameters; the run is in {out}")
