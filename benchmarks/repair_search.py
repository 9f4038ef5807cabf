"""What a search for a repair costs: `python benchmarks/repair_search.py`.

Every legal edit of a broken program is tried, then every pair of them, until all visible tests
pass. A checker call is one program that is tried. Programs of the test split, by their number of
faults; `hidden` is the share of the repairs found that pass the hidden tests, too.

    python benchmarks/repair_search.py --num 500 --save FILE
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from plan_envs.catalogue import resolve_task
from plan_envs.domain import Int8Array
from plan_envs.repair.rules import Repair
from trm.compute.process import git_state

TASKS = ("repair-tiny", "repair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=500, help="programs of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the programs")
    parser.add_argument("--save", type=Path, help="write the rows as JSON, too")
    chosen = parser.parse_args()
    rows = [row for name in TASKS for row in costs(name, num=chosen.num, seed=chosen.seed)]
    heads = list(rows[0])
    print("  ".join(f"{head:>12}" for head in heads))
    for row in rows:
        print("  ".join(f"{row[head]!s:>12}" for head in heads))
    if chosen.save is not None:
        record = {
            "command": f"python benchmarks/repair_search.py {' '.join(sys.argv[1:])}",
            "commit": git_state(Path(__file__).parent),
            "rows": rows,
        }
        chosen.save.write_text(json.dumps(record, indent=1) + "\n")


def costs(name: str, *, num: int, seed: int) -> list[dict[str, Any]]:
    """A row for each number of faults and depth of the search."""
    task = resolve_task(name)
    domain: Any = task.domain
    pool = task.instances("test", num=num, seed=seed)
    rows = []
    for faults in np.unique(pool.ratings).astype(int).tolist():
        instances = pool.instances[pool.ratings == faults]
        starts = domain.initial(instances)
        for depth in (1, 2):
            edits, calls = domain.first_repairs(instances, starts, depth=depth)
            plans = repaired(domain, instances, starts, edits)
            verdict = domain.check(instances, plans)
            passed = verdict.details["hidden"][verdict.solved] == 1
            row = {"task": name, "faults": faults, "programs": len(instances), "edits": depth}
            row["solved"] = round(float(verdict.solved.mean()), 4)
            row["calls"] = round(float(calls.mean()), 1)
            row["most calls"] = int(calls.max())
            row["hidden"] = round(float(passed.mean()), 4) if len(passed) else None
            rows.append(row)
    return rows


def repaired(domain: Repair, instances: Int8Array, plans: Int8Array, edits: Any) -> Int8Array:
    """The programs after the edits of `Repair.first_repairs`."""
    for step in range(edits.shape[1]):
        rows = np.flatnonzero(edits[:, step] >= 0)
        plans = plans.copy()
        plans[rows] = domain.edit(instances[rows], plans[rows], edits[rows, step])
    return plans


if __name__ == "__main__":
    main()
