"""The evaluation record of a supervised run: its figures on unseen examples, and what it cost.

Sweeps keep a record for each run (`supervised.plugin`); `compare` puts records side by side.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from supervised.recipe import SupervisedRecipe

RECORD_VERSION: Final = 1
"""Version of the records."""

GUIDANCES: Final = (0.5, 1.0, 2.0)
"""Weights w of l_u + w (l_c - l_u) that the record of a DIS run has figures for."""

COMMITTED: Final = ("sudoku4x4", "queens")
"""Domains, as their names begin, whose boards may have several completions, so that a single pass
mixes them; commit decoding takes a pass for every blank, too many for a larger board's record but
for the relational models, whose passes are small."""


def make_record(folder: Path, num: int) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on the test split, and add what the run cost.

    Args:
        folder: of a run of kind "supervised".
        num: unseen examples, fewer where the split has fewer.

    Raises:
        RuntimeError: the run's budget is not spent.
    """
    from supervised.measures.commit import evaluate_commit
    from supervised.measures.evaluation import EvalOptions, evaluate
    from supervised.models import RUN_KIND, load_model, open_data
    from trm.compute.device import Placement
    from trm.experiments.records import label_of
    from trm.runs.run import Run

    placement = Placement(threads=1)
    placement.apply()
    run = Run.open(folder, kind=RUN_KIND)
    checkpoint = run.load_checkpoint()
    model, recipe = load_model(run, placement=placement)
    _check_spent(folder, recipe, checkpoint.step, checkpoint.state["train_seconds"])
    dataset = open_data(recipe.data, "test", seed=run.info.seed, num=num)
    plainly = EvalOptions(num=num, **recipe.as_trained)
    found = {
        weight: evaluate(model, dataset, dataclasses.replace(plainly, guidance=weight))
        for weight in ((1.0,) if recipe.dis is None else GUIDANCES)
    }
    plain = found[1.0]
    committed = None
    if run.info.env.startswith(COMMITTED) or recipe.model.mixing == "relational":
        committed = dataclasses.asdict(evaluate_commit(model, dataset, plainly))
    metrics = run.read_metrics()
    evaluated = [line for line in metrics if "exact" in line]
    best = max(evaluated, key=lambda line: line["exact"], default=None)
    last = plain.last
    return {
        "format_version": RECORD_VERSION,
        "kind": RUN_KIND,
        "run": folder.name,
        "recipe": label_of(folder),
        "recipe_hash": run.info.recipe_hash,
        "seed": run.info.seed,
        "step": checkpoint.step,
        "env": run.info.env,
        "data": dataset.info.name,
        "data_hash": run.info.extra.get("data_hash"),
        "num_instances": plain.num,
        "commit_valid": None if committed is None else committed["valid"],
        **plain.to_json_dict(),
        "failures": {"violated": last.violated, "incomplete": 1 - last.valid - last.violated},
        "committed": committed,
        "guidance": [
            {"weight": weight, "exact": one.last.exact, "valid": one.last.valid}
            for weight, one in found.items()
        ],
        "validation": [
            {"step": line["step"], "exact": line["exact"], "valid": line["valid"]}
            for line in evaluated
        ],
        "peak": None if best is None else {"step": best["step"], "exact": best["exact"]},
        "train_exact": _last(metrics, "train_exact"),
        "taught": _last(metrics, "train_taught"),
        "sample_passes": _last(metrics, "sample_passes"),
        "passes": recipe.recursion.calls,
        "parameters": model.num_parameters,
        "train_cpu_seconds": checkpoint.state["train_seconds"],
        "cache": _cache_of(recipe),
        "command": run.info.command,
        "commit": run.info.provenance.get("git"),
    }


def _check_spent(folder: Path, recipe: SupervisedRecipe, step: int, seconds: float) -> None:
    limit = recipe.schedule.cpu_seconds
    if step < recipe.schedule.steps and (limit is None or seconds < limit):
        raise RuntimeError(
            f"{folder}: stopped after {step} of {recipe.schedule.steps} steps; run the sweep again"
        )


def _last(metrics: Sequence[Any], name: str) -> int | float | None:
    values = [line[name] for line in metrics if name in line]
    return values[-1] if values else None


def _cache_of(recipe: SupervisedRecipe) -> dict[str, Any] | None:
    """What the teacher's cache cost, which the student's own time does not hold."""
    if recipe.distill is None or recipe.distill.cache is None:
        return None
    from supervised.planner.cache_audit import cache_info

    info = cache_info(Path(recipe.distill.cache))
    return {"cpu_seconds": info.cpu_seconds, "teacher_steps": info.teacher_steps}
