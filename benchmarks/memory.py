"""Memory of the environments: `python benchmarks/memory.py NAME` prints how many MB NAME takes.

From the resident memory of a process that has made and used the same thing on a small scale, so
that modules and kernels are loaded, to the peak afterwards, by Linux's own account. Each figure
needs a process of its own. `FIGURES` says what there is.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plan_envs.catalogue import resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.vector_env import PlanEditVectorEnv


def arc_vector() -> Iterator[None]:
    """1024 ARC environments of full size, 20 steps with fresh arrays; without the pool's tasks."""
    yield _play(PlanEditVectorEnv("arc", num_envs=2), 20)
    yield _play(PlanEditVectorEnv("arc", num_envs=1024), 20)


def sudoku_pool() -> Iterator[None]:
    """100,000 Sudokus with solutions, ratings and keys, and 64 environments that draw from them."""
    few = resolve_task("sudoku9x9").instances(num=100)
    yield _play(PlanEditVectorEnv("sudoku9x9", num_envs=64, instances=few), 200)
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(1, 10, dtype=np.int8), (1000, 1)), axis=1)
    relabel = np.concatenate([np.zeros((1000, 1), np.int8), orders], axis=1)
    pool = InstanceSet.of(
        "relabelled",
        relabel[:, few.instances].reshape(100_000, 81),
        relabel[:, few.solutions].reshape(100_000, 81),
    )
    yield _play(PlanEditVectorEnv("sudoku9x9", num_envs=64, instances=pool), 200)


FIGURES = {"arc-vector": arc_vector, "sudoku-pool": sudoku_pool}


def _play(env: PlanEditVectorEnv, steps: int) -> None:
    env.reset(seed=0)
    for _ in range(steps):
        env.step(env.sample_legal())


def _megabytes(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in millions of bytes."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    stages = FIGURES[sys.argv[1]]()
    next(stages)
    before = _megabytes("VmRSS")
    next(stages)
    print(_megabytes("VmHWM") - before)
