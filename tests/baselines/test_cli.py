"""`upi-trm baselines`: what it trains, what it says, and what it refuses in one line."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from baselines.cli import baselines as group
from baselines.plugin import LEARNER
from baselines.recipe import read_recipe
from baselines.shipped import RECIPES
from trm.experiments.learners import LEARNER_GROUP, Learner
from trm.experiments.sweep_spec import plan_sweep
from trm.runs.run import Run

TINY = [
    *("--set", "model.channels=4", "--set", "model.head_width=6", "--set", "model.depth=1"),
    *("--set", "rollout.plans=8", "--set", "instances.num=20", "--set", "schedule.evaluate_num=4"),
]


def call(*words: str) -> Result:
    return CliRunner().invoke(group, [*words])


def complaint(*words: str) -> str:
    """The one line of a refusal, as `upi-trm` prints it."""
    result = call(*words)
    assert result.exit_code != 0
    message = str(result.exception) if isinstance(result.exception, ValueError) else result.output
    lines = message.strip().splitlines()
    return lines[-1]


def test_train_leaves_a_run_and_shows_it_beside_the_reference_policies(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "--algo", "a2c", "--env", "sudoku4x4", *TINY, "--steps", "70"]
    result = call(*words, "--seed", "2", "--out", str(out), "--eval-num", "6")
    assert result.exit_code == 0, result.output
    run = Run.open(out)
    assert run.checkpoint_steps()[-1] == 64
    assert (run.info.kind, run.info.seed, run.info.env) == ("sb3", 2, "sudoku4x4")
    for word in ("A2C", "random-legal", "oracle", "sudoku4x4: 6 puzzles", str(out)):
        assert word in result.output
    # The shipped recipe of algorithm and task was the starting point.
    recipe = run.load_recipe(type(read_recipe(RECIPES.find("a2c-sudoku4x4"))))
    assert recipe.gamma == read_recipe(RECIPES.find("a2c-sudoku4x4")).gamma
    result = call("train", "--resume", str(out), "--steps", "140", "--eval-num", "0")
    assert result.exit_code == 0, result.output
    assert Run.open(out).checkpoint_steps()[-1] == 136
    assert complaint("train", "--algo", "ppo", "--resume", str(out)) == (
        f"{out}: is a run of a2c, --algo says ppo"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo", "pp0", "--env", "sudoku4x4"], "no algorithm is called 'pp0'; did you mean ppo"),
        (["--algo", "trp", "--env", "sudoku4x4"], "'trp'; there are ppo, a2c, dqn, maskable-ppo"),
        (["--algo", "ppo"], "--env is missing (or --resume RUN)"),
        (["--env", "maze10"], "--algo is missing: one of ppo, a2c, dqn, maskable-ppo"),
        (["--algo", "ppo", "--env", "sudoku4x5"], "unknown task 'sudoku4x5'; did you mean"),
        (
            ["--algo", "ppo", "--env", "sudoku4x4", "--recipe", "a2c-sudoku4x4"],
            "algorithm is 'a2c', --algo says 'ppo'",
        ),
        (
            ["--algo", "ppo", "--env", "sudoku4x4", "--recipe", "ppo-sudoku4x44"],
            "no recipe is called 'ppo-sudoku4x44'; did you mean ppo-sudoku4x4",
        ),
        (["--resume", "nowhere"], "nowhere: no such run folder"),
        (["--resume", "x", "--seed", "1"], "--seed can't be combined with --resume"),
        (
            ["--algo", "ppo", "--env", "sudoku4x4", "--set", "ppo.epochs=3"],
            "ppo.epochs = 3: unknown field",
        ),
        (["--algo", "ppo", "--env", "sudoku4x4", "--device", "tpu"], "device must be cpu, cuda"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_in_one_line(words: list[str], message: str) -> None:
    assert message in complaint("train", *words)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = complaint("train", "--algo", "ppo", "--env", "sudoku4x4")
    assert found.endswith("pip install 'upi-trm[baselines]'")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert complaint("tune", "ppo", "--env", "sudoku4x4") == (
        "tuning needs optuna: pip install 'upi-trm[tune]'"
    )


def test_help_needs_neither_torch_nor_sb3() -> None:
    code = (
        "import sys, baselines.cli\n"
        "from click.testing import CliRunner\n"
        "found = CliRunner().invoke(baselines.cli.baselines, ['train', '--help'])\n"
        "assert found.exit_code == 0 and '--algo' in found.output\n"
        "print([name for name in ('torch', 'stable_baselines3', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sweeps_know_how_baselines_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(LEARNER, Learner)
    point = EntryPoint("sb3", "baselines.plugin:LEARNER", LEARNER_GROUP)
    monkeypatch.setattr("trm.experiments.learners.entry_points", lambda group: [point])
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "command: baselines train --algo ppo\n"
        "envs: [sudoku4x4]\n"
        "recipe: ppo-sudoku4x4\n"
        "grid: {ppo.entropy: [0.0, 0.02]}\n"
        "seeds: [0, 1]\n"
        "steps: 1000\n"
    )
    points = plan_sweep(spec).points
    assert len(points) == 4
    words = " ".join(points[0].start)
    assert words.startswith(
        "baselines train --algo ppo --env sudoku4x4 --recipe ppo-sudoku4x4 --set ppo.entropy=0.0"
    )
    assert words.endswith("--steps 1000 --seed 0 --eval-num 0")
    assert points[0].resume == ("baselines", "train", "--algo", "ppo", "--eval-num", "0")
    assert points[0].finished_at == 960  # 15 edits of 64 plans
    assert [p.recipe.ppo.entropy for p in points[:2]] == [0.0, 0.02]


def test_tune_prints_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.tuning import Trial

    best = Trial(
        number=3,
        values={"ppo.clip": 0.1},
        value=0.9,
        runs=({"success_rate": 0.75, "cpu_seconds": 1.0},),
    )
    failed = Trial(number=4, values={"ppo.clip": 0.2}, value=None, runs=())
    asked: dict[str, Any] = {}

    def answer(search: Any, out: Path, **options: Any) -> list[Trial]:
        asked.update(options, env=search.env, out=out)
        return [best] * 15 + [failed]

    monkeypatch.setattr("baselines.tuning.run_search", answer)
    result = call("tune", "ppo", "--env", "sudoku9x9", "--workers", "2", "--out", str(tmp_path))
    assert result.exit_code == 1 and "1 trials failed" in result.output
    assert "trial 3 of 16 solves 75.0% of the validation puzzles (ppo.clip=0.1)" in result.output
    assert (asked["env"], asked["workers"], asked["backend"]) == ("sudoku9x9", 2, "local")
    json.dumps(asked["command"])
