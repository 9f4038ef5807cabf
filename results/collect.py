"""Turns finished runs into one committed record: command, seed, commit, curve, cost, test result.

    python results/collect.py results/sudoku4x4.json runs/sudoku4x4-seed0 runs/sudoku4x4-seed1 ...

Every run is evaluated with `upi-trm eval --json` on the same unseen puzzles, newest and best
checkpoint alike. Folders outside the repository are written as `runs/<name>`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from trm.run import Run


def main() -> None:
    """Read the arguments, write the record, print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=500, help="test puzzles")
    arguments = parser.parse_args()
    rows = [record_of(path, num=arguments.num) for path in arguments.runs]
    record = {"summary": summary(rows), "runs": rows}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["summary"], indent=1))


def record_of(path: Path, *, num: int) -> dict[str, Any]:
    """Everything worth keeping of one run."""
    run = Run.open(path)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    curve = [row for row in map(json.loads, lines) if "success_rate" in row]
    provenance = run.info.provenance
    return {
        "command": run.info.command.replace(str(path), f"runs/{path.name}"),
        "env": run.info.env,
        "recipe": path.name.rsplit("-seed", 1)[0],
        "recipe_hash": run.info.recipe_hash,
        "seed": run.info.seed,
        "commit": provenance["git"],
        "packages": provenance["packages"],
        "torch_threads": provenance["torch_threads"],
        "cost": run.load_checkpoint().state["usage"],
        "certified_modulus": curve[-1]["certified_modulus"],
        "validation_curve": [
            {name: row[name] for name in ("step", "success_rate", "mean_score", "kl", "kl_asked")}
            for row in curve
        ],
        "test": {step: evaluate(path, step, num=num) for step in ("newest", "best")},
    }


def evaluate(path: Path, step: str, *, num: int) -> dict[str, Any]:
    """What `upi-trm eval --json` prints for a checkpoint."""
    chosen = [] if step == "newest" else ["--step", step]
    command = ["-m", "upi_trm", "eval", str(path), "--num", str(num), "--json", *chosen]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    del found["run"]
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, one row a recipe."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    return [row_of(recipe, [row for row in rows if row["recipe"] == recipe]) for recipe in recipes]


def row_of(recipe: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the summary."""
    found: dict[str, Any] = {
        "recipe": recipe,
        "seeds": [row["seed"] for row in rows],
        "edits": rows[0]["test"]["newest"]["step"],
        "certified_modulus": max(row["certified_modulus"] for row in rows),
        "wall_seconds": [round(row["cost"]["wall_seconds"]) for row in rows],
    }
    for step in ("newest", "best"):
        rates = [row["test"][step]["success_rate"] for row in rows]
        found[f"success_{step}"] = rates
        found[f"success_{step}_mean"] = statistics.mean(rates)
        found[f"success_{step}_std"] = statistics.stdev(rates) if len(rates) > 1 else None
    found["improvement"] = statistics.mean(row["test"]["newest"]["improvement"] for row in rows)
    found["reference"] = {
        name: report["success_rate"]
        for name, report in rows[0]["test"]["newest"]["reference"].items()
    }
    return found


if __name__ == "__main__":
    main()
