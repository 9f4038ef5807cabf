"""Cases that several test modules share."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from supervised.data_sets.arc_plan import arc_plan
from supervised.data_sets.building import build_dataset

Grid = list[list[int]]


def pair(before: Grid, after: Grid | None) -> dict[str, Grid]:
    return {"input": before} if after is None else {"input": before, "output": after}


def swap(seed: int, height: int = 3, width: int = 4) -> dict[str, Grid]:
    """A grid of colours 1, 2 and 3, and the same with 1 and 2 exchanged, taller by a row of 3."""
    cells = np.random.default_rng(seed).integers(1, 4, (height, width))
    cells[0, 0] = 3
    after = np.vstack([np.choose(cells, [0, 2, 1, 3]), np.full(width, 3)])
    return pair(cells.tolist(), after.tolist())


def write_tasks(folder: Path, **more: Any) -> Path:
    """Two training tasks and two evaluated ones; `more` are further files, by path."""
    tasks: dict[str, Any] = {
        "training/aa": {"train": [swap(1), swap(2)], "test": [swap(3)]},
        "training/bb": {"train": [swap(4, 2), swap(5, 2)], "test": [swap(6, 2), swap(7, 2)]},
        "evaluation/cc": {"train": [swap(8, 5), swap(9, 5), swap(10, 30, 29)], "test": [swap(11)]},
        "evaluation/dd": {"train": [swap(12, 6)], "test": [swap(13), pair([[5]], None)]},
    }
    tasks["evaluation/cc"]["train"][2]["output"].pop()  # 30 rows are the most
    for name, task in (tasks | more).items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(task if isinstance(task, str) else json.dumps(task))
    return folder


def build(folder: Path, out: Path, **options: Any) -> Path:
    build_dataset(out, arc_plan(data=folder, **{"augmentations": 20, "validation": 0, **options}))
    return out
