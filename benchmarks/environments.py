"""Speed of the environments on one core: `python benchmarks/environments.py [--json FILE]`.

Medians over the rounds of one run. Every round measures everything in turn, by processor time, so
that a busy machine slows all alike; ratios to the null environment are medians of the rounds'
ratios. Actions are recorded beforehand (uniform legal play): only the calls named are timed. The
null environment has the spaces of Sudoku9x9 and hands out fresh arrays, nothing else: the price of
Gymnasium itself.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numba
import numpy as np
from rich.console import Console
from rich.table import Table

import plan_envs  # noqa: F401 (registers the environments)
from plan_envs.gym_envs import PlanEditEnv, PlanEditVectorEnv
from plan_envs.sudoku import Sudoku
from plan_envs.sudoku_instances import sudoku_instances
from plan_envs.testing import random_states

ENV_ID = "PlanEdit/Sudoku9x9-v0"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing to measure."""

    name: str
    unit: str
    """What is counted."""
    seconds: Callable[[], float]
    """Measures once: processor seconds per unit."""
    at_least: float | None = None
    """Target: units per second."""
    at_most_null: float | None = None
    """Target: multiple of the null environment's time."""


class NullEnv(gym.Env[Any, Any]):
    """The spaces of Sudoku9x9, fresh arrays, no rules."""

    def __init__(self) -> None:
        model: Any = gym.make(ENV_ID)
        self.observation_space, self.action_space = model.observation_space, model.action_space
        self._instance, self._plan = np.zeros((2, 81), np.int8)
        self._mask = np.ones(729, np.int8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Fresh arrays."""
        super().reset(seed=seed)
        return self.step(0)[0], {}

    def step(self, action: int) -> Any:
        """Fresh arrays."""
        mask = self._mask.copy()
        observation = {
            "instance": self._instance.copy(),
            "plan": self._plan.copy(),
            "action_mask": mask,
        }
        return observation, 0.0, False, False, {"action_mask": mask}


def null_probe(steps: int) -> Probe:
    gym.register("Null-v0", entry_point=NullEnv, max_episode_steps=10**9)
    env = gym.make("Null-v0")
    env.reset(seed=0)

    def seconds() -> float:
        begin = time.process_time()
        for _ in range(steps):
            env.step(5)
        return (time.process_time() - begin) / steps

    return Probe(name="null environment, gym.make", unit="steps", seconds=seconds)


def single_probe(name: str, steps: int, *, env_id: str = ENV_ID, **options: Any) -> Probe:
    """Replays recorded episodes; resets are not timed."""
    env = gym.make(env_id, **options)
    inner = env.unwrapped
    assert isinstance(inner, PlanEditEnv)
    env.reset(seed=0)
    episodes: list[tuple[dict[str, Any], list[int]]] = []
    recorded = 0
    while recorded < steps:
        env.reset()
        state, actions, ended = inner.get_state(), [], False
        while not ended:
            actions.append(inner.sample_legal())
            _, _, terminated, truncated, _ = env.step(actions[-1])
            ended = terminated or truncated
        episodes.append((state, actions))
        recorded += len(actions)

    def seconds() -> float:
        spent = 0.0
        for state, actions in episodes:
            env.reset()
            inner.set_state(state)
            begin = time.process_time()
            for action in actions:
                env.step(action)
            spent += time.process_time() - begin
        return spent / recorded

    default = env_id == ENV_ID and not options
    return Probe(
        name=name,
        unit="steps",
        seconds=seconds,
        at_least=400e3 if default else None,
        at_most_null=2.5 if default else None,
    )


def vector_probe(
    name: str, num_envs: int, steps: int, *, at_least: float | None = None, **options: Any
) -> Probe:
    """Replays a recorded run with autoreset, resets included."""
    env: Any = gym.make_vec(ENV_ID, num_envs=num_envs, **options)
    assert isinstance(env, PlanEditVectorEnv)
    env.reset(seed=0)
    recorded = []
    for _ in range(steps):
        recorded.append(env.sample_legal())
        env.step(recorded[-1])

    def seconds() -> float:
        env.reset(seed=0)
        begin = time.process_time()
        for actions in recorded:
            env.step(actions)
        return (time.process_time() - begin) / (steps * num_envs)

    return Probe(name=name, unit="steps", seconds=seconds, at_least=at_least)


def successor_probe(
    name: str,
    domain: Sudoku,
    num_states: int,
    calls: int,
    *,
    with_plans: bool = False,
    at_least: float | None = None,
) -> Probe:
    """All legal edits of states that random play reached from unique puzzles of 26-28 givens."""
    puzzles = sudoku_instances(num=max(num_states, 64)).instances[:num_states]
    states = random_states(domain, puzzles, np.random.default_rng(0), max_edits=8)

    def seconds() -> float:
        begin = time.process_time()
        for _ in range(calls):
            found = domain.successors(states.instances, states.plans, with_plans=with_plans)
        return (time.process_time() - begin) / (calls * len(found.action))

    return Probe(name=name, unit="successors", seconds=seconds, at_least=at_least)


def all_probes(scale: float) -> list[Probe]:
    """Everything, the null environment first; `scale` multiplies the work of a round."""

    def many(number: int) -> int:
        return max(1, int(number * scale))

    general = {"edits": "overwrite", "mask": "givens"}
    full = {"codec": "tokens", "edits": "full"}
    return [
        null_probe(many(20_000)),
        single_probe("single, gym.make", many(10_000)),
        single_probe("single, overwrite edits", many(5_000), **general),
        single_probe("single, 4x4", many(5_000), env_id="PlanEdit/Sudoku4x4-v0"),
        vector_probe("vector of 1024, fresh full mask", 1024, many(100), at_least=8e6),
        vector_probe("vector of 1024, copy=False", 1024, many(100), copy=False),
        vector_probe("vector of 1024, same step", 1024, many(50), autoreset_mode="SameStep"),
        vector_probe("vector of 64, fresh full mask", 64, many(200)),
        vector_probe("vector of 1024, overwrite edits, givens mask", 1024, many(50), **general),
        vector_probe("vector of 1024, full edits, constraint mask", 1024, many(50), **full),
        successor_probe("successors of 256 states", Sudoku(9), 256, many(40), at_least=200e6),
        successor_probe(
            "successors of 256 states, plans", Sudoku(9), 256, many(20), with_plans=True
        ),
        successor_probe("successors of 1 state", Sudoku(9), 1, many(200)),
        successor_probe("successors, overwrite edits", Sudoku(9, **general), 256, many(10)),
    ]


def measure(probes: list[Probe], rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds, one record a probe; ratios are to the first probe."""
    for probe in probes:
        probe.seconds()
    times = np.array([[probe.seconds() for probe in probes] for _ in range(rounds)])
    records = []
    for column, probe in enumerate(probes):
        typical = statistics.median(times[:, column])
        ratio = statistics.median(times[:, column] / times[:, 0])
        rate_met = probe.at_least is None or 1 / typical >= probe.at_least
        ratio_met = probe.at_most_null is None or ratio <= probe.at_most_null
        records.append(
            {
                "name": probe.name,
                "unit": probe.unit,
                "ns": float(typical * 1e9),
                "per_second": float(1 / typical),
                "times_null": float(ratio),
                "target_per_second": probe.at_least,
                "target_times_null": probe.at_most_null,
                "met": bool(rate_met and ratio_met),
            }
        )
    return records


def show(records: list[dict[str, Any]]) -> None:
    """A table for the terminal."""
    table = Table("what", "ns each", "M/s", "x null", "target")
    for record in records:
        targets = []
        if record["target_per_second"] is not None:
            targets.append(f">= {record['target_per_second'] / 1e6:g} M/s")
        if record["target_times_null"] is not None:
            targets.append(f"<= {record['target_times_null']:g} x null")
        verdict = f"{', '.join(targets)}: {'met' if record['met'] else 'MISSED'}" if targets else ""
        table.add_row(
            f"{record['name']} ({record['unit']})",
            f"{record['ns']:.1f}",
            f"{record['per_second'] / 1e6:.3g}",
            f"{record['times_null']:.3g}",
            verdict,
        )
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds to take medians of")
    parser.add_argument("--scale", type=float, default=1.0, help="work of a round")
    parser.add_argument("--json", type=Path, help="also write the records to this file")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    records = measure(all_probes(arguments.scale), arguments.rounds)
    show(records)
    if arguments.json is not None:
        versions = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "gymnasium": gym.__version__,
        }
        document = {
            "command": f"python benchmarks/environments.py --rounds {arguments.rounds}",
            "machine": platform.machine(),
            "versions": versions,
            "records": records,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
