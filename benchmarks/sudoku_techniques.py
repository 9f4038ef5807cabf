"""Which of a solver's rules a run has learned: `python benchmarks/sudoku_techniques.py RUN...`.

Greedy play of unseen Sudokus, each up to the first edit that is not on its unique solution. A
state counts under the easiest rule that finds an edit there: a naked single (a cell with one
candidate), a hidden single of a box (a value with one place in it) or of a row or column, or none.

    python benchmarks/sudoku_techniques.py RUN [RUN...] [--every-step] --num 500 --save FILE
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan_envs.evaluation import Policy
from plan_envs.instances import InstanceSet
from plan_envs.sudoku.rules import Sudoku
from trm.compute.device import Placement
from trm.compute.process import git_state
from trm.experiments.learners import load_policy, task_of
from trm.experiments.shipped_runs import run_name, run_path
from trm.runs.files import RunError
from trm.runs.run import Run

BoolArray = NDArray[np.bool_]

RULES = {
    "naked single": ("cell",),
    "hidden single of a box": ("box",),
    "hidden single of a line": ("row", "column"),
}
"""Rule -> the kinds of groups in which it looks for a candidate that is alone; easiest first."""
NONE = "none of these"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--every-step", action="store_true", help="every checkpoint that is kept")
    parser.add_argument("--num", type=int, default=500, help="test puzzles")
    parser.add_argument("--save", type=Path, metavar="FILE")
    asked = parser.parse_args()
    rows = []
    for path in map(run_path, asked.runs):
        try:
            run = Run.open(path)
        except RunError as error:
            raise SystemExit(str(error)) from None
        task = task_of(run)
        domain = task.domain
        if not isinstance(domain, Sudoku) or (domain.edits, domain.mask) != ("fill", "constraint"):
            raise SystemExit(f"{path}: env is {run.info.env!r} where sudoku9x9 or alike is needed")
        pool = task.instances("test", num=asked.num)
        for step in run.checkpoint_steps() if asked.every_step else run.checkpoint_steps()[-1:]:
            policy = load_policy(run, placement=Placement(threads=1), step=step)
            row = {"run": run_name(path), "seed": run.info.seed}
            row |= {"step": step, **judged(policy, domain, pool)}
            rows.append(row)
            show(row)
    if asked.save is not None:
        record = {
            "command": f"python benchmarks/sudoku_techniques.py {' '.join(sys.argv[1:])}",
            "commit": git_state(Path(__file__).parent),
            "num_instances": asked.num,
            "rows": rows,
        }
        asked.save.write_text(json.dumps(record, indent=1) + "\n")


def judged(policy: Policy, domain: Sudoku, pool: InstanceSet) -> dict[str, Any]:
    """Greedy play of every puzzle up to its first wrong edit.

    Returns:
        `solved`: share of the puzzles. `rules`: for each, of the states where it is the first of
        RULES that finds an edit, `states`, how many; `right`, the share of edits on the solution;
        `by_rule`, the share of edits that some rule finds; `lost`, puzzles whose first wrong edit
        was made there.
    """
    instances, solutions = pool.instances, pool.solutions
    plans = domain.initial(instances)
    rng = np.random.default_rng(0)
    seen = {rule: Counter[str]() for rule in (*RULES, NONE)}
    while len(plans):
        masks = domain.action_mask(instances, plans)
        edits = policy(instances, plans, masks, rng)
        rows = np.arange(len(plans))
        found = found_by(domain, masks.astype(np.bool_))
        right = solutions[rows, domain.spec.action_cell[edits]] == domain.spec.action_value[edits]
        by_rule = np.any([edited[rows, edits] for edited in found.values()], axis=0)
        left = np.ones(len(plans), np.bool_)
        for rule in seen:
            here = left & found[rule].any(axis=1) if rule in found else left
            left = left & ~here
            seen[rule]["states"] += int(here.sum())
            seen[rule]["right"] += int((here & right).sum())
            seen[rule]["by_rule"] += int((here & by_rule).sum())
        plans = domain.edit(instances, plans, edits)
        keep = right & (plans == 0).any(axis=1)
        instances, solutions, plans = instances[keep], solutions[keep], plans[keep]
    rules = {
        rule: {
            "states": count["states"],
            "right": count["right"] / max(count["states"], 1),
            "by_rule": count["by_rule"] / max(count["states"], 1),
            "lost": count["states"] - count["right"],
        }
        for rule, count in seen.items()
    }
    return {"solved": 1 - sum(rule["lost"] for rule in rules.values()) / len(pool), "rules": rules}


def found_by(domain: Sudoku, candidates: BoolArray) -> dict[str, BoolArray]:
    """The edits that each rule finds; edits and candidates [batch, cell * side + digit - 1]."""
    found = {}
    for rule, kinds in RULES.items():
        alone = np.zeros_like(candidates)
        for kind in kinds:
            label = domain.spec.groups[kind]
            places = np.zeros((len(candidates), int(label.max()) + 1), np.int64)
            np.add.at(places, (slice(None), label), candidates)
            alone |= candidates & (places == 1)[:, label]
        found[rule] = alone
    return found


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['run']}, {row['step']:,} edits: {row['solved']:.1%} solved")
    print(f"{'easiest rule':26} {'states':>7} {'right':>7} {'by a rule':>9} {'lost there':>10}")
    for rule, of in row["rules"].items():
        print(
            f"{rule:26} {of['states']:7,} {of['right']:7.1%} {of['by_rule']:9.1%} {of['lost']:10}"
        )


if __name__ == "__main__":
    main()
