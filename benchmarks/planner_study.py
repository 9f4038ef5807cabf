"""TRM-Planner against its controls at CPU scale: `python benchmarks/planner_study.py --out FOLDER`.

One teacher that is stopped early, its caches, and students of every method over several seeds, all
from 6x6 Sudoku (recipes trm-sudoku6x6 and planner-sudoku6x6-*, cache recipes rollout, random-step,
planner, exact-first; the planner's also with logits in float32). Teacher and caches stay fixed,
only the student's seed varies. Printed in the form of the paper's tables: 3 and 7 (exact on unseen
puzzles after the last step, with the processor time of cache and student apart), 6 (target
sensitivity), 14 (audit). What is finished in FOLDER is kept.

    python benchmarks/planner_study.py --out runs/planner-study --json FILE
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from supervised.commands.run_sources import open_teacher
from supervised.measures.evaluation import EvalOptions, evaluate
from supervised.models import RUN_KIND, load_model, open_data
from supervised.planner.cache_audit import audit_cache, cache_info
from supervised.planner.cache_building import cache_jobs
from supervised.planner.cache_manifest import CacheRecipe
from supervised.planner.target_sensitivity import measure_sensitivity
from supervised.planner.teacher_cache import TeacherCache
from supervised.recipe import CACHE_RECIPES
from supervised.shipped import RECIPES
from supervised.trainer import resume, train
from trm.compute.device import Placement
from trm.compute.jobs import map_jobs
from trm.runs.recipe import load_recipe
from trm.runs.run import Run

HERE = Placement(threads=1)
CACHES: dict[str, tuple[str, tuple[str, ...]]] = {
    "rollout": ("rollout", ()),
    "random-step": ("random-step", ()),
    "planner": ("planner", ()),
    "exact-first": ("exact-first", ()),
    "planner-float32": ("planner", ("storage.logits=float32",)),
}
"""Cache -> its recipe, and what it changes of it."""
METHODS = {
    "TRM, compute-matched": ("control", None),
    "rollout-KD, hard": ("hard", "rollout"),
    "random-step KD, hard": ("hard", "random-step"),
    "planner, hard": ("hard", "planner"),
    "planner, soft": ("soft", "planner"),
    "planner, soft, float32 logits": ("soft", "planner-float32"),
    "planner, exactness first, hard": ("hard", "exact-first"),
}
"""Method -> student recipe, cache."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1000, help="training puzzles")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--student-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=500, help="unseen puzzles")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    teacher = trained(
        asked.out / "teacher",
        "trm-sudoku6x6",
        [f"data.num={asked.num}", "data.seed=0", "data.augment=false"],
        steps=asked.teacher_steps,
    )
    model, dataset = open_teacher(teacher, placement=HERE)
    record: dict[str, Any] = {
        "command": "python benchmarks/planner_study.py",
        "settings": {k: v for k, v in vars(asked).items() if k not in ("out", "json")},
        "provenance": dict(Run.open(teacher).info.provenance),
        "machine": platform.processor() or platform.machine(),
        "teacher": figures(teacher, asked.test),
        "sensitivity": dataclasses.asdict(measure_sensitivity(model, dataset, num=128, seed=0)),
        "caches": {name: cached(asked.out, teacher, name) for name in CACHES},
        "students": {},
    }
    for method, (recipe, cache) in METHODS.items():
        overrides = [f"data.num={asked.num}", f"teacher={json.dumps(str(teacher))}"]
        if cache is not None:
            overrides.append(f"distill.cache={json.dumps(str(asked.out / 'caches' / cache))}")
        record["students"][method] = [
            figures(
                trained(
                    asked.out / "students" / f"{recipe}-{cache}-seed{seed}",
                    f"planner-sudoku6x6-{recipe}",
                    overrides,
                    steps=asked.student_steps,
                    seed=seed,
                ),
                asked.test,
            )
            for seed in range(asked.seeds)
        ]
    show(record)
    if asked.json is not None:
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


def trained(folder: Path, recipe: str, overrides: list[str], *, steps: int, seed: int = 0) -> Path:
    """A run that is trained to its end."""
    if not (folder / "run.json").exists():
        train(
            recipe_path=RECIPES.find(recipe),
            overrides=[*overrides, f"schedule.evaluate_every={steps}"],
            steps=steps,
            seed=seed,
            out=folder,
            placement=HERE,
        )
    elif Run.open(folder).checkpoint_steps()[-1:] != [steps]:
        resume(folder, steps=steps, placement=HERE)
    if Run.open(folder).checkpoint_steps()[-1:] != [steps]:
        raise SystemExit(f"{folder}: stopped; the same command goes on")
    return folder


def figures(folder: Path, num: int) -> dict[str, float]:
    """The last checkpoint on unseen puzzles, and what the run cost."""
    run = Run.open(folder, kind=RUN_KIND)
    model, recipe = load_model(run)
    test = open_data(recipe.data, "test", seed=0, num=num)
    last = evaluate(model, test, EvalOptions(num=num)).last
    return {
        "exact": last.exact,
        "token_accuracy": last.token_accuracy,
        "loss": last.loss,
        "cpu_seconds": run.load_checkpoint().state["train_seconds"],
        "taught": run.read_metrics()[-1].get("train_taught", 0.0),
    }


def cached(out: Path, teacher: Path, name: str) -> dict[str, Any]:
    """A cache, its cost and its audit."""
    folder = out / "caches" / name
    recipe, overrides = CACHES[name]
    loaded = load_recipe(CacheRecipe, CACHE_RECIPES.find(recipe), overrides)
    source = functools.partial(open_teacher, teacher.resolve(), placement=HERE)
    map_jobs(cache_jobs(folder, loaded, source), workers=1)
    info = cache_info(folder)
    audit = audit_cache(TeacherCache.open(folder))
    return {
        "cpu_seconds": info.cpu_seconds,
        "teacher_steps": info.teacher_steps,
        "bytes_per_entry": info.bytes_per_entry,
        "paper_bytes_per_entry": info.paper_bytes_per_entry,
        **dataclasses.asdict(audit),
    }


def show(record: dict[str, Any]) -> None:
    """The tables, as Markdown."""
    teacher = record["teacher"]
    print(f"teacher: exact {teacher['exact']:.3f}, {teacher['cpu_seconds']:.1f} CPU-s\n")
    print("| method | exact, mean | std | seeds | student CPU-s | cache CPU-s |")
    print("|---|---|---|---|---|---|")
    for method, runs in record["students"].items():
        cache = METHODS[method][1]
        exact = [run["exact"] for run in runs]
        spread = f"{statistics.stdev(exact):.4f}" if len(exact) > 1 else "-"
        seconds = statistics.mean(run["cpu_seconds"] for run in runs)
        paid = "-" if cache is None else f"{record['caches'][cache]['cpu_seconds']:.1f}"
        print(
            f"| {method} | {statistics.mean(exact):.4f} | {spread} | "
            f"{' '.join(f'{one:.3f}' for one in exact)} | {seconds:.1f} | {paid} |"
        )
    found = record["sensitivity"]
    print("\n| N | Pr[t* != T_max] | median t* (IQR) | mean Delta | median Delta |")
    print("|---|---|---|---|---|")
    low, high = found["quartiles"]
    print(
        f"| {found['num_examples']} | {found['share_not_last']:.3f} | {found['median_step']:g} "
        f"({low:g}-{high:g}) | {found['mean_gap']:.4f} | {found['median_gap']:.4f} |"
    )
    print("\n| cache | masked_identical | StableMax-JS | mean loss | mean step | bytes an entry |")
    print("|---|---|---|---|---|---|")
    for name, cache in record["caches"].items():
        pair = [cache["masked_identical"], cache["stablemax_js"]]
        shown = " | ".join("-" if value is None else f"{value:.4f}" for value in pair)
        print(
            f"| {name} | {shown} | {cache['mean_loss']:.4f} | {cache['mean_step']:.2f} | "
            f"{cache['bytes_per_entry']:.0f} ({cache['paper_bytes_per_entry']} in the paper's) |"
        )


if __name__ == "__main__":
    main()
