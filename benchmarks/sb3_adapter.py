"""What it costs to run our environments under SB3: `python benchmarks/sb3_adapter.py`.

64 plans of Sudoku9x9 side by side, on one core, by processor time; every round measures everything
in turn and ratios are medians of the rounds' ratios. Actions are recorded beforehand.

- interface: with environments that do nothing but hand out their boards (the adapter over an engine
  that never ends an episode, `DummyVecEnv` over `NullEnv`s): the price of the conventions alone.
- step: the real environments, resets included; ours beside `DummyVecEnv` with `Monitor`, as
  `make_vec_env` builds it, and beside the engine alone.
- step and masks: and the masks once a step, as MaskablePPO asks for them.
- learn: edits per second of a whole PPO, rollouts and updates, small flat network and the default
  relational one.

    python benchmarks/sb3_adapter.py [--quick] [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from rich.table import Table
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from baselines.algorithms import PpoConfig, make_algorithm
from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.engine import SAME_STEP, StepArrays
from plan_envs.env import PlanEditEnv
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.process import provenance
from trm.nn.model import ModelConfig

TASK, PLANS = "sudoku9x9", 64
TARGET = 30.0
"""Times that the adapter's interface must be cheaper."""
Measure = Callable[[], float]
"""Processor seconds per edit."""


class NullEngine:
    """Stands for the engine of a vector environment: no rules, nothing ends, nothing is written."""

    def __init__(self, masks: Any) -> None:
        self.masks = masks

    def step(self, actions: Any, autoreset: int, out: StepArrays) -> None:
        """Leave everything as it is."""


class NullEnv(gym.Env[Any, Any]):
    """The spaces of the task, fresh arrays as Gymnasium demands, no rules."""

    def __init__(self) -> None:
        env = PlanEditEnv(TASK)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._boards, _ = env.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Fresh arrays."""
        super().reset(seed=seed)
        return self.step(0)[0], {}

    def step(self, action: int) -> Any:
        """Fresh arrays, and the infos of a `PlanEditEnv`."""
        boards = {key: board.copy() for key, board in self._boards.items()}
        info = {"action_mask": boards["action_mask"], "score": 0.0, "solved": False}
        return boards, 0.0, False, False, {**info, "violations": 0, "illegal_action": False}

    def action_masks(self) -> Any:
        """Fresh mask."""
        return self._boards["action_mask"].copy()


def native() -> PlanEditVecEnv:
    env = PlanEditVecEnv(PlanEditVectorEnv(TASK, num_envs=PLANS, autoreset_mode="SameStep"))
    env.seed(0)
    env.reset()
    return env


def dummy(make: Callable[[], Any]) -> DummyVecEnv:
    env = DummyVecEnv([make] * PLANS)
    env.seed(0)
    env.reset()
    return env


def plain() -> Any:
    return Monitor(PlanEditEnv(TASK, max_episode_steps=81))


def null_native() -> PlanEditVecEnv:
    env = native()
    env._engine = NullEngine(env._engine.masks)
    env._out.reward[:] = 0
    return env


def recorded(steps: int) -> list[Any]:
    """Legal actions of a run from seed 0."""
    env, actions = native(), []
    for _ in range(steps):
        actions.append(env.env_method("sample_legal"))
        env.step(actions[-1])
    return actions


def replay(env: VecEnv, actions: list[Any], *, masks: bool = False) -> Measure:
    def seconds() -> float:
        env.seed(0)
        env.reset()
        begin = time.process_time()
        for action in actions:
            if masks:
                get_action_masks(env)
            env.step(action)
        return (time.process_time() - begin) / (len(actions) * PLANS)

    return seconds


def engine_alone(actions: list[Any]) -> Measure:
    env = native()
    out = StepArrays.empty(PLANS, env.vector_env.task.domain.spec)

    def seconds() -> float:
        env.seed(0)
        env.reset()
        begin = time.process_time()
        for action in actions:
            env._engine.step(action, SAME_STEP, out)
        return (time.process_time() - begin) / (len(actions) * PLANS)

    return seconds


def learning(env: VecEnv, model: ModelConfig, edits: int) -> Measure:
    """PPO; the second environment only lends its boards to the first one's network."""
    adapter = env if isinstance(env, PlanEditVecEnv) else native()
    ppo = make_algorithm(
        "ppo",
        PpoConfig(),
        adapter,
        model,
        steps=8,
        gamma=0.99,
        final_learning_rate=1.0,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    ppo.set_env(env)

    def seconds() -> float:
        begin = time.process_time()
        ppo.learn(edits, log_interval=None)  # type: ignore[arg-type]
        return (time.process_time() - begin) / edits

    return seconds


def probes(*, quick: bool) -> dict[str, Measure]:
    """Name -> measurement; ours and theirs of a kind stand next to one another."""
    actions = recorded(20 if quick else 200)
    few = actions[: max(4, len(actions) // 10)]
    edits = PLANS * 8 * (1 if quick else 4)
    flat = ModelConfig(update_map="mlp", channels=32, depth=1, head_width=32)
    return {
        "interface, native adapter": replay(null_native(), actions),
        "interface, DummyVecEnv": replay(dummy(lambda: Monitor(NullEnv())), few),
        "interface and masks, native adapter": replay(null_native(), actions, masks=True),
        "interface and masks, DummyVecEnv": replay(
            dummy(lambda: Monitor(NullEnv())), few, masks=True
        ),
        "step, engine alone": engine_alone(actions),
        "step, native adapter": replay(native(), actions),
        "step, DummyVecEnv": replay(dummy(plain), few),
        "step and masks, native adapter": replay(native(), actions, masks=True),
        "step and masks, DummyVecEnv": replay(dummy(plain), few, masks=True),
        "learn, flat network, native adapter": learning(native(), flat, edits),
        "learn, flat network, DummyVecEnv": learning(dummy(plain), flat, edits),
        "learn, relational network, native adapter": learning(native(), ModelConfig(), edits),
        "learn, relational network, DummyVecEnv": learning(dummy(plain), ModelConfig(), edits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough look, in seconds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = options.rounds or (1 if options.quick else 5)
    measures = probes(quick=options.quick)
    for measure in measures.values():
        measure()  # kernels, caches
    found = [{name: measure() for name, measure in measures.items()} for _ in range(rounds)]
    table = Table(title=f"{TASK}, {PLANS} plans, {rounds} rounds, one core", title_justify="left")
    for heading in ("what", "ns per edit", "DummyVecEnv over native"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    records = []
    for name in measures:
        kind, _, who = name.rpartition(", ")
        times = None
        if who == "native adapter":
            other = f"{kind}, DummyVecEnv"
            times = statistics.median(row[other] / row[name] for row in found)
        ns = 1e9 * statistics.median(row[name] for row in found)
        records.append({"name": name, "ns": ns, "times_cheaper": times})
        table.add_row(name, f"{ns:,.0f}", "" if times is None else f"{times:,.1f}")
    Console().print(table)
    times = next(row["times_cheaper"] for row in records if row["times_cheaper"])
    print(f"interface: {times:.1f} times cheaper (target {TARGET:.0f})")
    if options.json:
        versions = {name: metadata.version(name) for name in ("stable_baselines3", "sb3_contrib")}
        record = {
            "command": f"python benchmarks/sb3_adapter.py --rounds {rounds}",
            "versions": versions,
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps({**record, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
