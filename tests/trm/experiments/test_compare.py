"""Comparison: statistics against hand-worked numbers, rows, records, the table and the plot."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from trm.compute.device import Placement
from trm.experiments import cli, records
from trm.experiments.compare import (
    compare_records,
    learning_curve,
    save_plot,
)
from trm.experiments.intervals import student_t_interval, t_quantile
from trm.experiments.records import Record, keep_record, parse_record, read_records
from trm.experiments.sweep_cli import compare
from trm.runs.run import Run
from upi_trm.trainer import resume, train

COLUMNS = {  # issue 5
    *("method", "env", "success_rate", "success_rate_std", "mean_score", "improvement"),
    *("parameters", "edits", "wall_seconds", "cpu_seconds", "peak_memory_bytes", "num_seeds"),
}
TINY = [
    *("model.channels=4", "model.head_width=6", "model.depth=1", "rollout.plans=8"),
    *("rollout.steps=2", "instances.num=20", "schedule.evaluate_num=4"),
    *("schedule.evaluate_every=16", "schedule.checkpoint_every=16"),
]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Of a learner that nobody knows."""

    size: int = 1


def _report(rate: float, score: float, initial: float = 10.0) -> dict[str, float]:
    return {"success_rate": rate, "mean_score": score, "improvement": score - initial}


def _record(seed: int = 0, rate: float = 0.5, **changes: Any) -> Record:
    record = Record(
        **_report(rate, 12.0 + rate),
        method="UPI-TRM",
        recipe="sudoku4x4,alpha=0.5",
        recipe_hash="0123456789abcdef",
        env="sudoku4x4",
        instances="sudoku4x4:test:seed0",
        num_instances=100,
        seed=seed,
        step=5000,
        reference={"random-legal": _report(0.11, 9.0), "oracle": _report(1.0, 16.0)},
        parameters=699,
        wall_seconds=60.0 + seed,
        cpu_seconds=50.0,
        peak_memory_bytes=1000 + seed,
        curve=((1000, rate / 2), (2000, rate)),
    )
    return replace(record, **changes)


# Statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # Any printed table of Student's distribution, two-sided 95%.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (29, 2.045)],
)
def test_quantiles_of_students_distribution_are_those_of_the_tables(
    freedom: int, quantile: float
) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_over_three_seeds_is_the_one_worked_out_by_hand() -> None:
    # mean 0.9, s = 0.1, t = 4.3027: 0.9 -+ 4.3027 * 0.1 / sqrt(3) = 0.9 -+ 0.24841
    low, high = student_t_interval([0.8, 0.9, 1.0])
    assert (low, high) == pytest.approx((0.65159, 1.14841), abs=1e-5)


# Rows


def test_runs_of_several_seeds_become_one_row_and_the_references_follow_once() -> None:
    seeds = [_record(2, 1.0), _record(0, 0.8), _record(1, 0.9)]
    row, *references = compare_records(seeds).rows
    assert (row.num_seeds, row.seeds, row.edits) == (3, (0, 1, 2), 5000)
    assert row.success_rate == pytest.approx(0.9)
    assert row.success_rate_std == pytest.approx(0.1)
    assert row.success_rate_low == pytest.approx(0.65159, abs=1e-5)
    assert row.success_rate_high == 1.0  # a rate, so the interval ends there
    assert row.improvement == pytest.approx(2.9)
    assert (row.wall_seconds, row.peak_memory_bytes, row.parameters) == (61.0, 1002, 699)
    assert [(r.method, r.recipe, r.success_rate) for r in references] == [
        ("random-legal", None, 0.11),
        ("oracle", None, 1.0),
    ]
    assert references[0].improvement == pytest.approx(-1.0)


def test_one_seed_gets_the_interval_over_its_puzzles() -> None:
    row = compare_records([_record(rate=0.5, num_instances=10)]).rows[0]
    assert (row.interval, row.success_rate_std) == ("wilson", None)
    assert row.success_rate_low == pytest.approx(0.23659, abs=1e-5)


def test_seeds_that_agree_get_the_interval_of_one_of_them() -> None:
    one = compare_records([_record(0, 1.0)]).rows[0]
    row = compare_records([_record(seed, 1.0) for seed in range(3)]).rows[0]
    assert (row.interval, row.success_rate_std) == ("wilson", 0.0)
    assert row.success_rate_low == one.success_rate_low < 1.0


def test_other_recipes_edits_methods_and_environments_are_rows_of_their_own() -> None:
    found = compare_records(
        [
            _record(),
            _record(recipe_hash="f" * 16),
            _record(step=2496),
            _record(method="PPO"),
            _record(env="sudoku4x4-hard"),
        ]
    )
    learned = [(row.env, row.method, row.recipe) for row in found.rows if row.recipe is not None]
    name = "sudoku4x4,alpha=0.5"
    assert learned == [
        ("sudoku4x4", "UPI-TRM", f"{name} (012345, 5000 edits)"),
        ("sudoku4x4", "UPI-TRM", f"{name} (ffffff, 5000 edits)"),
        ("sudoku4x4", "UPI-TRM", f"{name} (012345, 2496 edits)"),
        ("sudoku4x4", "PPO", name),
        ("sudoku4x4-hard", "UPI-TRM", name),
    ]
    assert len(found.rows) == len(learned) + 2 * 2


def test_an_improvement_that_does_not_add_up_is_refused() -> None:
    # The paper's Table 2, row PPO: score 28.2 from an initial 26.8, improvement "+2.2".
    typed_in = _record(
        mean_score=28.2, improvement=2.2, reference={"random-legal": _report(0.0, 27.0, 26.8)}
    )
    with pytest.raises(ValueError, match=r"improvement of .* is 2\.2 where .* = 1\.4"):
        compare_records([typed_in])


def test_runs_on_different_numbers_of_puzzles_or_the_same_run_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"100 puzzles .* on 50; --num N"):
        compare_records([_record(0), _record(1, num_instances=50)])
    with pytest.raises(ValueError, match="several runs have the seed 3"):
        compare_records([_record(3), _record(3)])
    with pytest.raises(ValueError, match="no results"):
        compare_records([])


def test_a_learning_curve_covers_the_edits_that_every_seed_has_reached() -> None:
    slow = _record(0, curve=((0, 0.0), (100, 0.4), (200, 0.8)))
    fast = _record(1, curve=((50, 0.4), (150, 1.0)))
    found = learning_curve([slow, fast], "sudoku4x4,alpha=0.5")
    assert found is not None
    assert found.label == "UPI-TRM alpha=0.5"
    # Between its evaluations a seed lies on the straight line: at 50, 0.2 and 0.4; at 100, 0.4 and
    # 0.7; at 150, 0.6 and 1.0. The standard deviation of two values is their distance / sqrt(2).
    assert found.edits.tolist() == [50, 100, 150]
    assert found.mean == pytest.approx([0.3, 0.55, 0.8])
    assert found.std == pytest.approx(np.array([0.2, 0.3, 0.4]) / np.sqrt(2))
    assert learning_curve([slow, _record(1, curve=())], "x") is None


# Showing


def test_the_plot_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot (matplotlib) is not installed")
    found = compare_records([_record(0), _record(1, 0.7), _record(env="sudoku4x4-hard")])
    save_plot(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"--plot: .*curves.xyz"):
        save_plot(found, tmp_path / "curves.xyz")
    with pytest.raises(ValueError, match="no run logged a success rate"):
        save_plot(compare_records([_record(curve=())]), tmp_path / "none.png")


def test_a_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"upi-trm\[plot\]"):
        save_plot(compare_records([_record()]), tmp_path / "curves.png")


# Records and the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny run of 32 edits."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        env="sudoku4x4",
        recipe_path=None,
        overrides=TINY,
        steps=32,
        seed=3,
        out=folder / "mine-seed3",
        placement=Placement(threads=1),
    )
    return folder


def _never(*_: object, **__: object) -> dict[str, Any]:
    raise AssertionError("evaluated again")


def test_a_record_is_what_eval_prints_with_cost_and_curve_beside(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "mine-seed3"
    with pytest.raises(SystemExit):
        cli.main(["eval", str(path), "--num", "20", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = keep_record(path, num=20)
    assert {name: record[name] for name in printed if name != "run"} == {
        name: value for name, value in printed.items() if name != "run"
    }
    assert (record["recipe"], record["seed"], record["step"]) == ("mine", 3, 32)
    assert [step for step, _ in record["curve"]] == [16, 32]
    assert record["wall_seconds"] > 0
    assert record["peak_memory_bytes"] > 1_000_000
    weights = Run.open(path).load_checkpoint().weights
    played = [tensor for name, tensor in weights.items() if name.startswith("policy.")]
    assert record["parameters"] == sum(tensor.numel() for tensor in played)
    # What eval prints is a record too, of which less is known.
    plain = parse_record(printed, source="eval")
    assert (plain.success_rate, plain.parameters) == (record["success_rate"], None)


def test_a_record_is_made_once_and_again_when_the_run_or_the_question_has_changed(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained / "mine-seed3"
    first = keep_record(path, num=20)
    with monkeypatch.context() as patch:
        patch.setattr(records, "make_record", _never)
        assert keep_record(path, num=20) == keep_record(path) == first
        with pytest.raises(AssertionError, match="evaluated again"):
            keep_record(path, num=21)
    resume(path, steps=48, placement=Placement(threads=1))
    assert keep_record(path)["step"] == 48


def test_compare_prints_one_line_of_json_and_saves_what_it_takes_again(
    trained: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "records.json"
    call = CliRunner().invoke(
        compare, [str(trained), "--num", "20", "--json", "--save", str(saved)]
    )
    assert call.exit_code == 0, call.output
    assert call.stdout.count("\n") == 1
    found = json.loads(call.stdout)
    assert found["rows"][0].keys() >= COLUMNS
    assert [row["method"] for row in found["rows"]][:2] == ["UPI-TRM", "random-legal"]
    again = CliRunner().invoke(compare, [str(saved), "--json"])
    assert json.loads(again.stdout) == found
    table = CliRunner().invoke(compare, [str(saved)])
    assert "UPI-TRM mine" in table.stdout
    assert "singles" in table.stdout


def _missing(folder: Path) -> Path:
    return folder / "nothing"


def _empty(folder: Path) -> Path:
    return folder


def _other_json(folder: Path) -> Path:
    (folder / "other.json").write_text('{"env": "sudoku4x4"}')
    return folder / "other.json"


def _other_version(folder: Path) -> Path:
    (folder / "new.json").write_text('{"format_version": 99}')
    return folder / "new.json"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_missing, "nothing: no such file or folder"),
        (_empty, "holds neither runs"),
        (_other_json, r"other.json: instances is None, expected str: not an evaluation record"),
        (_other_version, "new.json: format_version is 99, expected 1"),
    ],
)
def test_what_holds_no_result_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], Path], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read_records([make(tmp_path)])


def test_a_record_without_its_run_keeps_its_number_of_puzzles(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    fields = ("env", "instances", "num_instances", "seed", "step", "reference")
    values = {name: getattr(_record(), name) for name in fields}
    file.write_text(json.dumps({**values, **_report(0.5, 12.5)}))
    assert read_records([file])[0]["recipe"] == "old"
    with pytest.raises(ValueError, match="num_instances is 100 where 50 are asked for"):
        read_records([file], num=50)


def test_runs_of_an_unknown_kind_need_a_record(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Run.create(path, kind="nobody", env="sudoku4x4", seed=0, recipe=_Recipe()) as run:
        run.save_checkpoint(8, weights={}, state={})
    with pytest.raises(ValueError, match=r"kind is 'nobody', not one of .*'upi'"):
        keep_record(path)
