"""The real trainer on the command line: train, stop, resume, evaluate, solve, damaged runs.

Training runs in processes of its own, as users start it; the rest happens in this process.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_cases import edit_json

from trm.experiments import cli
from trm.runs.run import Run

SMALL = [
    *("--set", "rollout.plans=8", "--set", "instances.num=20"),
    *("--set", "schedule.evaluate_num=8", "--set", "schedule.checkpoint_every=64"),
]
METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def _start(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "upi_trm", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def _call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code, *capsys.readouterr()


def _refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code, out, err = _call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run folder of 64 edits, and what the command printed."""
    path = tmp_path_factory.mktemp("trained") / "run"
    process = _start(
        *("train", "--env", "sudoku4x4", "--steps", "64", "--out", path, "--eval-num", "8"), *SMALL
    )
    return path, *_finish(process)


@pytest.fixture
def broken(trained: tuple[Path, str, str], tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained[0], tmp_path / "broken")


def test_train_prints_the_table_on_stdout_and_progress_on_stderr(
    trained: tuple[Path, str, str],
) -> None:
    path, out, err = trained
    for policy in ("learned", "random-legal", "fewest-candidates", "singles", "oracle"):
        assert f" {policy} " in out
    assert f"--run {path}" in out
    assert "64/64" in err
    assert "64/64" not in out


def test_every_metric_that_training_logs_is_defined_on_its_page(
    trained: tuple[Path, str, str],
) -> None:
    lines = (trained[0] / "metrics.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line)}
    page = METRICS_PAGE.read_text()
    assert [name for name in sorted(logged) if f"`{name}`" not in page] == []


def test_eval_and_solve_use_the_trained_model(
    trained: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained[0]
    code, out, _ = _call(capsys, "eval", path, "--num", "20", "--json")
    record = json.loads(out)
    assert (code, record["step"], record["num_instances"]) == (0, 64, 20)
    # A full grid: the one blank has one digit, and the honest answer decides the exit code.
    code, out, _ = _call(capsys, "solve", "12.4341221434321", "--run", path)
    assert code == (0 if "\nsolved in" in out else 1)
    assert ("NOT solved" in out) == (code == 1)


@pytest.mark.slow
def test_sigterm_saves_and_ends_cleanly_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = _start(*("train", "--env", "sudoku4x4", "--steps", "1000000", "--out", path), *SMALL)
    log = path / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = _finish(process, code=130)
    assert out == ""
    assert f"--resume {path}" in err
    saved = Run.open(path).checkpoint_steps()[-1]
    assert saved >= 2 * 8  # what was logged is not lost
    _finish(_start("train", "--resume", path, "--steps", str(saved + 64), "--eval-num", "0"))
    assert Run.open(path).checkpoint_steps()[-1] == saved + 64


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("rollout.plan=8", "did you mean rollout.plans?"),
        ("rollout.plans=2.5", "rollout.plans = 2.5"),
        ("rollout.plans=0", "rollout.plans"),
        ("rollout.plans", "'rollout.plans'"),
        ("improvement.candidate=best", "improvement.candidate"),
    ],
)
def test_a_bad_setting_is_refused_before_a_run_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, named: str
) -> None:
    out = tmp_path / "run"
    words = ["train", "--env", "sudoku4x4", "--set", setting, "--out", str(out)]
    assert named in _refused(capsys, *words)
    assert not out.exists()


def test_a_malformed_recipe_names_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("rollout:\n  plans: [8\n")
    line = _refused(capsys, "train", "--env", "sudoku4x4", "--recipe", recipe)
    assert f"{recipe}, line" in line


def test_a_run_is_never_trained_over(
    trained: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, "train", "--env", "sudoku4x4", "--out", trained[0])
    assert str(trained[0]) in line
    assert Run.open(trained[0]).checkpoint_steps()[-1] == 64


def test_a_truncated_checkpoint_is_refused_by_name(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = max(broken.glob("checkpoints/step-*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert str(weights) in _refused(capsys, "eval", broken)
    assert str(weights) in _refused(capsys, "train", "--resume", broken)


@pytest.mark.parametrize(
    ("field", "value"), [("format_version", 99), ("kind", "ppo"), ("env", "sudoku5x5")]
)
def test_a_run_folder_that_is_not_ours_is_refused_by_field_and_value(
    broken: Path, capsys: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    edit_json(broken / "run.json", **{field: value})
    line = _refused(capsys, "solve", "12.4341221434321", "--run", broken)
    assert str(value) in line
