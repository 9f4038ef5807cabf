"""The report of some runs: what they learned, what they are worth, and replays of unseen puzzles.

Input: run folders of any learner. Output: one page (`page.py`). Learning curves and the comparison
with reference policies come from the runs' evaluation records (`trm.experiments.records`,
`compare`); supervised runs, which have records of their own, are shown by what they logged.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.experiments.compare import Curve, Row, compare_records
from trm.experiments.intervals import t_quantile, wilson_interval
from trm.experiments.records import Record, keep_record, parse_record
from trm.experiments.shipped_runs import run_path
from trm.experiments.trained.model import Model, Solution
from trm.experiments.viewing.page import page_html
from trm.experiments.viewing.replay import Styles, replay_data, run_data, solution_data
from trm.experiments.viewing.studies import study_tables
from trm.runs.run import Run

Announce = Callable[[str], None]
"""Shows a line to whoever waits."""


def report_html(
    models: Sequence[Model],
    *,
    replays: int,
    num: int | None = None,
    seed: int = 0,
    studies: Sequence[Path] = (),
    announce: Announce = lambda _: None,
) -> str:
    """The page of some runs.

    Args:
        models: the runs, each once.
        replays: unseen puzzles of each run to show.
        num: puzzles of the evaluation; None takes the records that there are, and makes missing
            ones of 500. Supervised runs are not evaluated.
        seed: of the puzzles that are replayed.
        studies: files that `upi-trm drift --json` or `bounds --json` printed.
        announce: called before what takes time.

    Raises:
        ValueError: records that can't stand side by side, e.g. one run given twice.
    """
    playing = [model for model in models if model.predictor is None]
    records = [_record(model, num, announce) for model in playing]
    compared = compare_records(records) if records else None
    supervised = [model for model in models if model.predictor is not None]
    measured = [table for file in studies for table in study_tables(file)]
    styles, runs = Styles(), []
    for model in models:
        announce(f"solving {replays} puzzles with {model.name}")
        run = run_data(model)
        for place, instance in enumerate(model.unseen(replays, seed=seed)):
            title = f"unseen puzzle {place + 1}"
            run["replays"].append(replay_data(model, instance, title, styles))
        runs.append(run)
    names = ", ".join(model.name for model in models)
    return page_html(
        title=f"Report of {names}",
        purpose=_purpose(len(models), compared=bool(playing)),
        facts=[_facts(model) for model in models],
        curves=[
            *_played_curves(compared.curves if compared else (), playing, records),
            *_supervised_curves(supervised),
        ],
        tables=_tables(compared.rows if compared else ()),
        studies=measured,
        runs=runs,
        styles=styles,
    )


def solution_html(model: Model, solution: Solution) -> str:
    """The page of one puzzle."""
    styles, run = Styles(), run_data(model)
    run["replays"].append(solution_data(model, solution, "the puzzle", styles))
    return page_html(
        title=f"A puzzle solved by {model.name}",
        purpose="Here you can follow the model edit by edit and see what it held likely.",
        runs=[run],
        styles=styles,
    )


def _purpose(num: int, *, compared: bool) -> str:
    which = "this run" if num == 1 else "these runs"
    compare = " compare the result with simple policies on the same puzzles," if compared else ""
    return (
        f"Here you can see how {which} learned,{compare} and step through unseen puzzles to see"
        " what the model held likely."
    )


def _facts(model: Model) -> dict[str, Any]:
    info, steps = model.run.info, model.run.checkpoint_steps()
    git = info.provenance.get("git") or {}
    unit = "edits" if model.predictor is None else "steps"
    return {
        "name": model.name,
        "method": model.method,
        "env": info.env,
        "seed": info.seed,
        "trained": f"{steps[-1]:,} {unit}" if steps else "nothing yet",
        "begun": info.created[:10],
        "commit": str(git.get("commit", "unknown"))[:10],
    }


def _record(model: Model, num: int | None, announce: Announce) -> Record:
    found = keep_record(run_path(model.run.path), num, announce=announce)
    return parse_record(found, source=model.name)


# --- Learning curves


def _played_curves(
    curves: Sequence[Curve], models: Sequence[Model], records: Sequence[Record]
) -> list[dict[str, Any]]:
    """One chart an environment; bands are 95% intervals."""
    charts = []
    for env in dict.fromkeys(curve.env for curve in curves):
        mine = [curve for curve in curves if curve.env == env]
        asked = {
            validation_puzzles(model)
            for model, record in zip(models, records, strict=True)
            if record.env == env
        }
        series = [_series(curve, min(asked)) for curve in mine]
        charts.append(_chart(f"{env}: validation puzzles solved", "edits", series))
    return charts


def _series(curve: Curve, num: int) -> dict[str, Any]:
    if curve.num_seeds > 1:
        half = t_quantile(curve.num_seeds - 1) * curve.std / np.sqrt(curve.num_seeds)
        low, high = curve.mean - half, curve.mean + half
    else:
        low, high = _wilson(curve.mean, num)
    seeds = f" ({curve.num_seeds} seeds)" if curve.num_seeds > 1 else ""
    return _line(f"{curve.label}{seeds}", curve.edits, curve.mean, low, high)


def _supervised_curves(models: Sequence[Model]) -> list[dict[str, Any]]:
    """One chart an environment: boards that the checker accepts, by optimiser steps."""
    charts = []
    for env in dict.fromkeys(model.run.info.env for model in models):
        series = []
        for model in models:
            lines = [line for line in model.run.read_metrics() if "valid" in line]
            if model.run.info.env == env and lines:
                rate = np.array([line["valid"] for line in lines])
                steps = np.array([line["step"] for line in lines], np.float64)
                low, high = _wilson(rate, validation_puzzles(model))
                series.append(_line(model.name, steps, rate, low, high))
        if series:
            charts.append(_chart(f"{env}: validation boards solved", "steps", series))
    return charts


def validation_puzzles(model: Model) -> int:
    """Puzzles of an evaluation while the run was trained, as its recipe says."""
    command = model.learner.sweep_command(model.learner.commands[0])
    recipe: Any = model.run.load_recipe(command.recipe)
    return int(recipe.schedule.evaluate_num)


def _wilson(rates: NDArray[np.float64], num: int) -> tuple[NDArray[Any], NDArray[Any]]:
    low, high = zip(*(wilson_interval(float(rate), num) for rate in rates), strict=True)
    return np.array(low), np.array(high)


def _line(
    name: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> dict[str, Any]:
    figures = {"x": x, "y": y, "low": low.clip(0, 1), "high": high.clip(0, 1)}
    return {"name": name, **{key: np.round(one, 5).tolist() for key, one in figures.items()}}


def _chart(title: str, unit: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "label": f"{title}, by {unit} of training",
        "note": "Bands are 95% intervals: over seeds where there are several, else over puzzles.",
        "xLabel": unit,
        "percent": True,
        "yMin": 0,
        "yMax": 1,
        "series": series,
    }


# --- Comparison


def _tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table an environment and set of puzzles, the learned policies before the references."""
    tables = []
    grouped = itertools.groupby(rows, key=lambda row: (row.env, row.instances))
    for (env, instances), group in grouped:
        mine = list(group)
        tables.append(
            {
                "title": f"{env}: {mine[0].num_instances} puzzles of {instances}",
                "note": "Greedy, one pass. A mask gives much of a puzzle away: read the learned"
                " policy beside the reference policies, which know the mask too.",
                "scored": True,
                "rows": [_table_row(row) for row in mine],
            }
        )
    return tables


def _table_row(row: Row) -> dict[str, Any]:
    return {
        "name": f"{row.method} {row.recipe}" if row.recipe else row.method,
        "learned": row.recipe is not None,
        "rate": row.success_rate,
        "low": row.success_rate_low,
        "high": row.success_rate_high,
        "score": row.mean_score,
        "improvement": row.improvement,
    }


def open_models(paths: Sequence[Path], **where: Any) -> list[Model]:
    """The runs of some folders or names; `where` as of `Model`."""
    return [Model(Run.open(run_path(path)), **where) for path in paths]
