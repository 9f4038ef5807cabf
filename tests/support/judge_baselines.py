"""Train every baseline before a judge who knows the rules, at length; exit code 1 if he objects.

`tests/baselines/test_masking.py` has the short version. The record of the long one:

    python tests/support/judge_baselines.py --json results/legal-edits.json

100,000 edits of training on Sudoku 9x9, 10,000 on every other domain, then 10,000 predictions each,
half of them greedy, by tiny networks; the judge (`baselines_cases`) is plain Python and nothing of
plan_envs.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from baselines_cases import FLAT, Judged, judge_of, make_env

from baselines.algorithms import METHODS, A2cConfig, Algorithm, DqnConfig, PpoConfig, make_algorithm
from trm.compute.process import provenance

EDITS = {
    "sudoku9x9": 100_000,
    "sudoku4x4": 10_000,
    "sudoku4x4-hard": 10_000,
    "nqueens8": 10_000,
    "maze10": 10_000,
    "arc": 10_000,
}
PREDICTIONS = 10_000
PLANS, STEPS = 16, 8
SECTIONS: dict[Algorithm, Any] = {
    "ppo": PpoConfig(batch_size=64, passes=2),
    "a2c": A2cConfig(),
    "dqn": DqnConfig(
        replay_size=2_000, learning_starts=500, batch_size=32, gradient_steps=1, epsilon_end=0.3
    ),
    "maskable-ppo": PpoConfig(batch_size=64, passes=2),
}

COMMAND = "python tests/support/judge_baselines.py"


def judge(name: str, algorithm: Algorithm, *, edits: int, predictions: int) -> dict[str, Any]:
    """Train and predict before the judge of a task; his counts."""
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    begin = time.process_time()
    env = make_env(name, plans=PLANS)
    sb3: Any = make_algorithm(
        algorithm,
        SECTIONS[algorithm],
        env,
        FLAT,
        steps=STEPS,
        gamma=0.99,
        final_learning_rate=1.0,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    sb3.env = judged = Judged(env, judge_of(name))
    sb3.learn(edits, log_interval=None)
    trained = {"training_edits": judged.seen, "illegal_in_training": judged.illegal}
    judged.seen = judged.illegal = 0
    observation, greedy = judged.reset(), True
    while judged.seen < predictions:
        actions, _ = sb3.predict(observation, deterministic=greedy)
        observation, greedy = judged.step(actions)[0], not greedy
    return {
        "env": name,
        "algorithm": algorithm,
        "num_actions": int(env.action_space.n),  # type: ignore[attr-defined]
        **trained,
        "predictions": judged.seen,
        "illegal_in_prediction": judged.illegal,
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def judge_all(tasks: Sequence[str], *, share: float) -> Iterator[dict[str, Any]]:
    """Every algorithm on these tasks, at `share` of the full length."""
    for name, edits in EDITS.items():
        if name not in tasks:
            continue
        for algorithm in METHODS:
            yield judge(
                name,
                algorithm,
                edits=int(edits * share),
                predictions=int(PREDICTIONS * share),
            )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the full length")
    parser.add_argument("--task", action="append", choices=EDITS, help="only this; repeatable")
    parser.add_argument(
        "--json", type=Path, help="write the counts there too, beside those of other tasks"
    )
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    tasks = options.task or list(EDITS)
    records = []
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())["records"]
        records = [record for record in kept if record["env"] not in tasks]
    commit = provenance()["git"]
    for record in judge_all(tasks, share=options.share):
        print(json.dumps(record), flush=True)
        records.append({**record, "share": options.share, "git": commit})
        if options.json:
            lines = ",\n".join(json.dumps(record) for record in records)
            options.json.write_text(f'{{"command": "{COMMAND}", "records": [\n{lines}\n]}}\n')
    illegal = sum(one["illegal_in_training"] + one["illegal_in_prediction"] for one in records)
    print(f"{illegal} illegal edits")
    return 1 if illegal else 0


if __name__ == "__main__":
    sys.exit(main())
