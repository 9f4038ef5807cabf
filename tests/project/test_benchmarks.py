"""The benchmarks run, keep their promises about rows, write records, and flag what fell."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "environments.py"


def test_a_quick_run_of_a_few_rows_prints_them_and_writes_them(tmp_path: Path) -> None:
    target = tmp_path / "speed.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--rounds", "1"]
    command += ["--only", "NQueens8", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads(target.read_text())
    names = [record["name"] for record in written["records"]]
    assert names[0] == "null environment, gym.make"
    assert set(names[1:]) == {
        "NQueens8 single",
        "NQueens8 vector of 1024",
        "NQueens8 successors of 256 states",
    }
    for record in written["records"]:
        assert record["name"].split(",")[0] in done.stdout
        assert 10 < record["ns"] < 1e9
        assert (
            record["per_second"] * record["ns"] == 1e9
            or abs(record["per_second"] * record["ns"] / 1e9 - 1) < 1e-9
        )
    assert "--only NQueens8" in written["command"]
    assert {"python", "numpy", "numba", "gymnasium"} <= set(written["versions"])
    assert written["races"] == written["memory"] == []


def test_what_is_not_installed_is_skipped_with_a_line(tmp_path: Path) -> None:
    """With the other suites hidden, their rows are named as skipped and the run succeeds."""
    hide = "import importlib.util as u, runpy, sys; find = u.find_spec; "
    hide += "u.find_spec = lambda name: None if name in ('jumanji', 'arcle') else find(name); "
    hide += f"sys.path.insert(0, {str(BENCHMARK.parent)!r}); sys.argv = ['x', *sys.argv[1:]]; "
    hide += f"runpy.run_path({str(BENCHMARK)!r}, run_name='__main__')"
    command = [sys.executable, "-c", hide, "--quick", "--rounds", "1", "--only", "Jumanji Maze"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped Jumanji Maze 30x30, batch of 64, autoreset: jumanji is not installed" in (
        done.stdout
    )


@pytest.mark.slow
def test_the_benchmark_of_a_supervision_step_measures_time_and_both_peaks(tmp_path: Path) -> None:
    target = tmp_path / "step.json"
    script = BENCHMARK.with_name("supervision_step.py")
    command = [sys.executable, str(script), "trm-nqueens", "--batch", "32", "--rounds", "3"]
    done = subprocess.run(
        [*command, "--json", str(target)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(target.read_text())
    # CPU seconds, the least of three: of the step about half are its products. Memory: about half.
    assert 0 < record["float32"]["products"] < record["float32"]["step"]
    assert 0 < record["peak_mb"]["recomputed"] < record["peak_mb"]["kept"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that runs all benchmarks; its scripts are not run."""
    spec = importlib.util.spec_from_file_location("bench", BENCHMARK.with_name("bench.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def map_document(times_as_fast: float) -> dict[str, Any]:
    return {"records": [{"name": "forward", "states": 32, "times_as_fast": times_as_fast}]}


def test_a_ratio_that_fell_by_more_than_a_fifth_is_flagged(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--only", "relational_map", "--record", str(tmp_path / "bench.json")]
    statuses = []
    for ratio in (3.0, 2.5, 1.9):  # 17% and 24% less than the one before
        monkeypatch.setattr(bench, "run", lambda *_, ratio=ratio: (map_document(ratio), False))
        statuses.append(bench.main(only))
    assert statuses == [0, 0, 1]
    assert "FELL by 24%" in capsys.readouterr().out
    (kept,) = json.loads((tmp_path / "bench.json").read_text()).values()
    assert (kept["ratio"], kept["more_is_faster"]) == (1.9, True)
    assert "packages" in kept["measured"]


def test_a_time_that_grew_is_a_loss_too(bench: Any) -> None:
    assert bench.loss(1.0, 1.25, more_is_faster=False) == pytest.approx(0.2)
    assert bench.loss(1.0, 0.8, more_is_faster=True) == pytest.approx(0.2)


def test_what_was_measured_before_a_stop_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run", lambda *_: (map_document(3.0), True))
    assert bench.main(["--record", str(tmp_path / "bench.json")]) == 0
    assert "stopped: the rest was not measured" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "bench.json").read_text())) == 1
