"""`upi-trm supervised eval | compare | diagnose | vote`: how good runs are.

`supervised.cli` adds them to its group. Everything that costs time to import (torch, numba) is
imported inside the commands.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import click

from supervised.commands.options import (
    checkpoint_option,
    count_option,
    placed,
    placed_float32,
    run_argument,
    run_jobs,
    show_record,
)
from trm.experiments.options import CheckpointName, job_options, json_option


@click.command("eval")
@run_argument
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Another data set.")
@click.option("--num", type=click.IntRange(1), help="Examples.  [default: 1000, or all of --data]")
@click.option("--steps", type=click.IntRange(1), help="Supervision steps.  [default: N_sup]")
@click.option("--guidance", type=float, default=1.0, show_default=True, metavar="W")
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=0.0,
    help="Deviation of noise added to the latents after each step.",
)
@count_option(
    "--samples",
    1,
    "Noisy runs of each example, selected by the halting head and by the checker.",
    least=1,
)
@count_option("--seed", 0, "Seed of the noise.")
@click.option(
    "--commit",
    is_flag=True,
    help="Besides, write the most confident token and run again (Sudoku, N-Queens).",
)
@checkpoint_option
@json_option
@placed
def evaluate_run(
    *,
    run_path: Path,
    split: str,
    folder: Path | None,
    num: int | None,
    steps: int | None,
    seed: int,
    commit: bool,
    step: int | str | None,
    as_json: bool,
    placement: Any,
    **asked: Any,
) -> None:
    """Measure a run after each supervision step."""
    import torch

    from supervised.data_sets.folders import open_dataset
    from supervised.measures.evaluation import EvalOptions, evaluate
    from supervised.models import RUN_KIND, load_model, open_data
    from supervised.recipe import SupervisedRecipe
    from trm.runs.run import Run

    run = Run.open(run_path, kind=RUN_KIND)
    recipe = run.load_recipe(SupervisedRecipe)
    domain = None
    if folder is not None:
        dataset = open_dataset(folder, split)
        domain = dataset.info.domain if recipe.model.on_graph else None
        if dataset.info.domain == "arc" and recipe.data.folder is not None:
            from supervised.data_sets.arc_guards import check_arc_evaluation

            check_arc_evaluation(recipe.data.folder, folder, split=split)
    else:
        num = 1000 if num is None else num
        dataset = open_data(recipe.data, split, seed=run.info.seed, num=num)
    model, _ = load_model(run, step=step, placement=placement, domain=domain)
    info = dataset.info
    if (info.vocab_size, info.num_positions) != (model.shape.vocab_size, model.shape.num_positions):
        raise ValueError(
            f"{folder}: {info.num_positions} positions of {info.vocab_size} tokens, the run's model"
            f" takes {model.shape.num_positions} of {model.shape.vocab_size}"
        )
    plain = EvalOptions(steps=steps, num=num, **recipe.as_trained)
    options = dataclasses.replace(plain, **asked)
    with placement.autocast():
        found = evaluate(model, dataset, options, generator=torch.Generator().manual_seed(seed))
    record = found.to_json_dict()
    _show_curve(found)
    if commit:
        from supervised.measures.commit import evaluate_commit

        with placement.autocast():
            committed = evaluate_commit(model, dataset, plain)
        record["commit"] = dataclasses.asdict(committed)
        text = ", ".join(f"{k} {v:.3f}" for k, v in record["commit"].items() if v is not None)
        click.echo(f"commit: {text}", err=True)
    if as_json:
        named = {"run": str(run_path), "seed": run.info.seed, "data": info.name, "split": split}
        click.echo(json.dumps({**named, **asked, "eval_seed": seed, **record}))


def _show_curve(found: Any) -> None:
    """The curve as a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.num} examples", title_justify="left")
    forms = {
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
    for heading in forms:
        table.add_column(heading, justify="right")
    for point in found.curve:
        values = ((getattr(point, name), form) for name, form in forms.items())
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
@run_argument
@count_option("--num", 128, "Examples.", least=1)
@count_option("--seed", 0, "Seed that draws the examples.")
@checkpoint_option
@json_option
@placed
def diagnose(
    *, run_path: Path, num: int, seed: int, step: int | str | None, as_json: bool, placement: Any
) -> None:
    """Say how much a RUN's targets depend on the step that they are taken from (Table 6)."""
    from supervised.commands.run_sources import open_teacher
    from supervised.planner.target_sensitivity import measure_sensitivity

    model, dataset = open_teacher(run_path, checkpoint=step, placement=placement)
    with placement.autocast():
        found = measure_sensitivity(model, dataset, num=num, seed=seed)
    show_record(dataclasses.asdict(found), as_json=as_json)


@click.command()
@run_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Data set of the tasks.")
@count_option("--augmentations", 1000, "Symmetries beside the identity, as far as a task has them.")
@click.option("--tasks", "num_tasks", type=click.IntRange(1), help="The first ones; else all.")
@click.option(
    "--checkpoint",
    "steps",
    type=CheckpointName(),
    multiple=True,
    help="A step, or best; several vote together (an ensemble).  [default: the newest]",
)
@count_option("--batch-size", 64, "Inputs that a model sees at once.", least=1)
@count_option("--tasks-per-job", 8, "Tasks of one job.", least=1)
@click.option("--submission", type=click.Path(path_type=Path), help="Write the official file here.")
@job_options
@json_option
@placed_float32
def vote(
    *,
    run_path: Path,
    out: Path,
    folder: Path | None,
    augmentations: int,
    num_tasks: int | None,
    steps: tuple[int | str, ...],
    batch_size: int,
    tasks_per_job: int,
    submission: Path | None,
    as_json: bool,
    placement: Any,
    **job_flags: Any,
) -> None:
    """Evaluate a RUN on ARC: pass@K by voting over augmented copies; goes on after a kill."""
    from supervised.commands import run_sources
    from supervised.data_sets.arc_guards import evaluation_tasks
    from supervised.data_sets.folders import read_info
    from supervised.measures.arc_voting import read_results, submission_of, summarise, voting_jobs
    from supervised.models import RUN_KIND, load_model
    from supervised.planner.cache_manifest import teacher_hash
    from supervised.recipe import SupervisedRecipe
    from trm.runs.durable import replace_durably
    from trm.runs.run import Run

    run = Run.open(run_path, kind=RUN_KIND)
    trained = run_sources.arc_folder_of(run.load_recipe(SupervisedRecipe))
    folder = (trained if folder is None else folder).resolve()
    click.echo(run_sources.protocol_line(trained, folder), err=True)
    voters: list[int | str | None] = [*steps] or [None]
    jobs = voting_jobs(
        out,
        evaluation_tasks(folder)[:num_tasks],
        open_predictors=functools.partial(
            run_sources.open_predictors, run_path.resolve(), voters, folder, placement
        ),
        symmetries=functools.partial(run_sources.symmetries_of, folder=folder, num=augmentations),
        identity={
            "weights": [teacher_hash(load_model(run, step=step)[0]) for step in voters],
            "data": read_info(folder).hash,
            "augmentations": augmentations,
        },
        tasks_per_job=tasks_per_job,
        batch_size=batch_size,
    )
    run_jobs(jobs, **job_flags)
    found = read_results(out)
    if submission is not None:
        replace_durably(submission, (json.dumps(submission_of(found)) + "\n").encode())
    record = dataclasses.asdict(summarise(found))
    for name in ("per_task", "pooled"):
        record[name] = {f"pass@{k}": share for k, share in record[name].items()}
    named = {"run": str(run_path), "checkpoints": len(voters), "augmentations": augmentations}
    if as_json:
        show_record({**named, **record}, as_json=True)
        return
    for name in ("per_task", "pooled"):
        for k, share in record.pop(name).items():
            click.echo(
                f"{name:<9} {k:<10} {share['value']:.4f}  [{share['low']:.4f}, {share['high']:.4f}]"
            )
    show_record({**named, **record})
