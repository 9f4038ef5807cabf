"""Shows that a refactor changed no number: short trainings from one seed, hashed, and compared.

`python benchmarks/same_numbers.py record before.json` trains a few seconds to minutes of every
learner and of every variant, evaluates the shipped runs, and writes what came out: a hash of each
network's weights, every logged metric, the figures of each evaluation. Run it in the checkout
before the change and in the one after; `... compare before.json after.json` names what differs and
exits with 1, and names the metrics that only one side logs. It calls only the command line, so that
it survives any change of layout. Times are left out. Bit-equal results need the same machine, the
same libraries and one thread.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

UPI = ["train", "--env"]
BASELINES = ["baselines", "train", "--env"]
SUPERVISED = ["supervised", "train", "--recipe"]
GRADIENT = ["--set", "improvement.candidate=policy_gradient"]
GAE = [*GRADIENT, "--set", "improvement.advantage=gae", "--set", "evaluator.control_variate=false"]
TRAININGS: dict[str, list[str]] = {
    "sudoku4x4": [*UPI, "sudoku4x4"],
    "sudoku9x9": [*UPI, "sudoku9x9", "--steps", "2048"],
    "sudoku4x4-contraction": [*UPI, "sudoku4x4", "--recipe", "sudoku4x4-contraction"],
    "sudoku9x9-contraction": [
        *UPI, "sudoku9x9", "--recipe", "sudoku9x9-contraction", "--steps", "1024",
    ],
    "nqueens8": [*UPI, "nqueens8", "--steps", "1024"],
    "maze10": [*UPI, "maze10", "--steps", "1024"],
    "arc-tiny": [*UPI, "arc-tiny", "--steps", "1024"],
    "gradient": [*UPI, "sudoku4x4", "--steps", "1024", *GRADIENT],
    "gae": [*UPI, "sudoku4x4", "--steps", "1024", *GAE],
    "chain": [*UPI, "sudoku4x4", "--steps", "1024", "--set", "improvement.distil=false"],
    "persistent": [
        *UPI, "sudoku4x4", "--recipe", "sudoku4x4-contraction", "--steps", "1024",
        "--set", "model.latent=persistent",
    ],
    "ppo": [*BASELINES, "sudoku4x4", "--algo", "ppo", "--steps", "2048"],
    "a2c": [*BASELINES, "sudoku4x4", "--algo", "a2c", "--steps", "2048"],
    "dqn": [*BASELINES, "sudoku4x4", "--algo", "dqn", "--steps", "2048"],
    "maskable-ppo": [*BASELINES, "sudoku4x4", "--algo", "maskable-ppo", "--steps", "2048"],
    "trm-sudoku4x4": [*SUPERVISED, "trm-sudoku4x4", "--steps", "50"],
    "dis-nqueens": [*SUPERVISED, "dis-nqueens", "--steps", "50"],
}  # fmt: skip
"""Command lines behind `upi-trm`, by the name of their result."""
SHIPPED = ["sudoku4x4", "sudoku4x4-hard", "sudoku9x9", "nqueens8", "maze10"]
"""Shipped runs that are evaluated."""


def main() -> int:
    """Record or compare; the exit code is 1 where two records differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train, evaluate and write a record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", action="append", help="a training or shipped run, by name")
    comparing = commands.add_parser("compare", help="name what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        given.file.write_text(json.dumps(record(given.only), indent=1, sort_keys=True) + "\n")
        return 0
    return compare(json.loads(given.before.read_text()), json.loads(given.after.read_text()))


def record(only: list[str] | None) -> dict[str, Any]:
    """Train and evaluate what is asked for; the results by name."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in TRAININGS.items():
            if only is None or name in only:
                print(f"training {name}", file=sys.stderr)
                out = Path(folder) / name
                upi_trm(*words, "--seed", "3", "--threads", "1", "--out", str(out))
                found[name] = {"weights": weight_hashes(out), "metrics": logged_metrics(out)}
        for name in SHIPPED:
            if only is None or f"pretrained:{name}" in only:
                print(f"evaluating pretrained:{name}", file=sys.stderr)
                printed = upi_trm("eval", f"pretrained:{name}", "--num", "100", "--json")
                found[f"pretrained:{name}"] = json.loads(printed.splitlines()[-1])
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print a line a result; 1 where any of them differs or is missing on one side."""
    different = 0
    for name in sorted({*before, *after}):
        same = name in before and name in after
        changed: list[str] = []
        if same:
            old, new = common(before[name], after[name])
            same = old == new
            changed = sorted(names_of(before[name]) ^ names_of(after[name]))
        different += not same
        note = f"  without {', '.join(changed)}" if changed else ""
        shown = summary(after.get(name, {}))
        print(f"{'same' if same else 'DIFFERENT':>9}  {name}  {shown}{note}")
    print(f"{len({*before, *after}) - different} same, {different} different")
    return 1 if different else 0


def names_of(result: dict[str, Any]) -> set[str]:
    """The metrics that a training logged."""
    return {name for line in result.get("metrics", []) for name in line}


def common(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results with the metrics that both log: a change may add or drop a diagnostic."""
    both = names_of(before) & names_of(after)

    def cut(result: dict[str, Any]) -> dict[str, Any]:
        if "metrics" not in result:
            return result
        lines = [{k: v for k, v in line.items() if k in both} for line in result["metrics"]]
        return {**result, "metrics": lines}

    return cut(before), cut(after)


def upi_trm(*words: str) -> str:
    """What `upi-trm` prints, from the checkout that this is called in."""
    ran = subprocess.run(
        [sys.executable, "-m", "upi_trm", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return ran.stdout


def weight_hashes(run: Path) -> dict[str, str]:
    """A hash of the newest checkpoint's weights."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in newest.glob("weights.safetensors")
    }


def logged_metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: repr(v) for k, v in line.items() if "seconds" not in k} for line in lines]


def summary(result: dict[str, Any]) -> str:
    """The first letters of the hash and the last success of a result."""
    if "success_rate" in result:
        return f"success {result['success_rate']}"
    last = result.get("metrics", [{}])[-1]
    shown = next(iter(result.get("weights", {}).values()), "")[:12]
    return f"weights {shown} {len(result.get('metrics', []))} lines {last.get('success_rate', '')}"


if __name__ == "__main__":
    sys.exit(main())
