"""Memory of a long training: `python benchmarks/training_memory.py upi` (or `supervised`).

Trains a small model for 50,000 edits of sudoku4x4-hard, or 5,000 supervised steps, and reads the
resident memory of the process, by Linux's own account, whenever metrics are logged. A fifth of the
training is for warming up: kernels, buffers that fill, the allocator's arenas. Prints an object of
JSON; ends with exit code 1 where the rest of the training took more than 5% on top.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from supervised.shipped import RECIPES
from supervised.trainer import SupervisedTraining
from trm.compute.device import Placement
from upi_trm.trainer import UpiTraining

HERE = Placement(threads=1)
MOST_GROWTH = 0.05

Callback = Callable[[int, Mapping[str, float]], bool]


def upi(out: Path, callback: Callback) -> int:
    """Train by unrolled policy iteration; the number of edits."""
    edits = 50_000
    UpiTraining.train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=[
            *("model.channels=4", "model.head_width=6", "model.depth=1", "rollout.plans=32"),
            *("rollout.steps=8", "evaluator.passes=1.0", "evaluator.batch_size=128"),
            *("evaluator.replay_iterations=2", "improvement.distil_passes=1.0"),
            "improvement.batch_size=128",
            *("instances.num=500", "schedule.evaluate_num=20", "schedule.evaluate_every=5000"),
            "schedule.checkpoint_every=5000",
        ],
        steps=edits,
        out=out,
        placement=HERE,
        callback=callback,
    )
    return edits


def supervised(out: Path, callback: Callback) -> int:
    """Train on solutions; the number of optimiser steps."""
    steps = 5_000
    SupervisedTraining.train(
        recipe_path=RECIPES.find("trm-sudoku4x4"),
        overrides=[
            *("model.width=16", "batch_size=8", "optimiser.warm_up=20"),
            *("schedule.log_every=100", "schedule.evaluate_every=500"),
            *("schedule.evaluate_num=20", "schedule.checkpoint_every=500"),
        ],
        steps=steps,
        out=out,
        placement=HERE,
        callback=callback,
    )
    return steps


def resident_mb() -> float:
    """`VmRSS` of this process, in millions of bytes."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "no VmRSS in /proc/self/status"
    return int(found[1]) * 1024 / 1e6


def main(name: str) -> int:
    """Train, print what was seen, and say whether it held."""
    seen: dict[int, float] = {}

    def look(step: int, metrics: Mapping[str, float]) -> bool:
        seen[step] = resident_mb()
        return True

    with tempfile.TemporaryDirectory() as folder:
        steps = {"upi": upi, "supervised": supervised}[name](Path(folder) / "run", look)
    warm = max(mb for step, mb in seen.items() if step <= steps / 5)
    most = max(seen.values())
    growth = most / warm - 1
    figures = {"warm_mb": round(warm, 1), "most_mb": round(most, 1), "growth": round(growth, 4)}
    print(json.dumps({"training": name, "steps": max(seen), "readings": len(seen), **figures}))
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
