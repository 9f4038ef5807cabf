"""The training loop: what it logs, evaluates, tags and saves, and when; stopping and resuming.

The trainee counts; learners of the package are trained in the tests of their own trainers.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import HERE, Counting, Recipe
from resume_cases import metrics_without_clocks

from trm.experiments.training import NotFiniteError, Outcome, Setting, Trainee
from trm.runs.files import RunError
from trm.runs.run import Run


class Refusing(Counting):
    def __init__(self, recipe: Any, setting: Setting) -> None:
        raise ValueError("recipe: refused")


def begin(out: Path | None, make: type[Trainee] = Counting, **schedule: int) -> Outcome:
    overrides = [f"schedule.{name}={value}" for name, value in schedule.items()]
    return make.train(recipe_path=None, overrides=overrides, seed=3, out=out, placement=HERE)


def stop_at(monkeypatch: pytest.MonkeyPatch, unit: int | None) -> None:
    monkeypatch.setattr(Counting, "stops_at", unit)


def test_the_loop_logs_evaluates_and_saves_where_a_multiple_is_crossed_and_at_the_end(
    tmp_path: Path,
) -> None:
    outcome = begin(tmp_path / "run", units=9)
    assert outcome.finished and outcome.is_main
    run = outcome.run
    assert metrics_without_clocks(run) == [
        {"step": 2, "sum": 3.0, "value_loss": 0.5},
        {"step": 4, "sum": 10.0, "value_loss": 0.5, "value": 0.0},
        {"step": 6, "sum": 21.0, "value_loss": 0.5},
        {"step": 8, "sum": 36.0, "value_loss": 0.5, "value": 0.5},
        {"step": 9, "sum": 45.0, "value_loss": 0.5, "value": 0.4},
    ]
    # 4 and 8 are better than all before; 5 is the clock's, 9 the end; the two newest are kept.
    assert run.checkpoint_steps() == [8, 9]
    assert run.tagged_step("best") == 8
    assert (run.info.kind, run.info.env, run.info.seed) == ("counting", "e", 3)
    assert run.info.extra == {"counts": "units"}
    assert [file.name for file in run.path.glob("beside-*")] == ["beside-9"]


def test_a_stopped_run_says_how_to_go_on_and_then_equals_one_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = begin(tmp_path / "whole", units=17).run
    stop_at(monkeypatch, 7)
    outcome = begin(tmp_path / "run", units=17)
    assert not outcome.finished
    assert outcome.run.checkpoint_steps()[-1] == 7
    expected = f"SIGTERM after 7 units; go on with upi-trm count --resume {tmp_path / 'run'}"
    assert expected in capfd.readouterr().err
    stop_at(monkeypatch, None)
    again = Counting.resume(tmp_path / "run", placement=HERE)
    assert again.finished
    assert metrics_without_clocks(again.run) == metrics_without_clocks(whole)
    assert again.run.checkpoint_steps() == whole.checkpoint_steps()
    assert again.run.tagged_step("best") == whole.tagged_step("best")
    assert torch.equal(again.run.load_checkpoint().weights["sum"], torch.tensor([153]))


def test_a_signal_in_the_last_piece_leaves_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, 3)
    assert begin(tmp_path / "run", units=3).finished
    assert "go on with" not in capfd.readouterr().err


def test_a_budget_is_extended_and_a_smaller_one_changes_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "run", units=4)
    assert Counting.resume(tmp_path / "run", steps=6, placement=HERE).finished
    assert Run.open(tmp_path / "run").checkpoint_steps()[-1] == 6
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert Counting.resume(tmp_path / "run", steps=2, placement=HERE).finished
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_says_so_when_it_is_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path / "run", units=4).trained
    capfd.readouterr()
    assert not Counting.resume(tmp_path / "run", placement=HERE).trained
    said = " ".join(capfd.readouterr().err.split())
    assert "is finished: 4 units were made, the budget is 4; --steps N with a larger N" in said


def test_a_line_of_the_log_is_printed_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", units=9)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len({line.split("/")[0] for line in lines}) == 3


def test_a_refused_trainee_leaves_no_folder_and_a_used_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe: refused"):
        begin(tmp_path / "run", Refusing)
    assert not (tmp_path / "run").exists()
    begin(tmp_path / "run", units=1)
    with pytest.raises(RunError, match="exists and is not empty; resume it"):
        begin(tmp_path / "run", units=1)


def test_the_default_folder_is_named_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert begin(None, units=1).run.path.match("runs/n-seed3-*")


@pytest.mark.parametrize("word", ["processes", "world"])
def test_a_run_of_several_processes_goes_on_with_as_many(tmp_path: Path, word: str) -> None:
    with Run.create(
        tmp_path / "run", kind="counting", env="e", seed=0, recipe=Recipe(), extra={word: 2}
    ):
        pass
    with pytest.raises(ValueError, match=r"on 2 processes .*, got 1 \(torchrun --nproc-per-node 2"):
        Counting.resume(tmp_path / "run", placement=HERE)


def test_steps_override_the_field_that_is_named_by_the_unit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe_path": None, "placement": HERE}
    run = Counting.train(overrides=["schedule.units=3"], steps=7, out=tmp_path / "a", **options).run
    assert run.load_recipe(Recipe).schedule.units == run.checkpoint_steps()[-1] == 7
    run = Counting.train(overrides=["schedule.units=3"], out=tmp_path / "b", **options).run
    assert run.load_recipe(Recipe).schedule.units == run.checkpoint_steps()[-1] == 3


# --- What is not finite


def _poison(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor[1] = math.nan


def _raise(error: Exception) -> None:
    raise error


def _bad_moment(trainee: Counting) -> None:
    trainee.optimiser.state[trainee.weight] = {"exp_avg": torch.tensor([math.inf])}


BREAKS: dict[str, tuple[Callable[[Counting], None], str]] = {
    "loss": (lambda t: setattr(t, "loss", math.nan), "the loss value_loss is nan"),
    "infinite loss": (lambda t: setattr(t, "loss", math.inf), "the loss value_loss is inf"),
    "gradient": (lambda t: _poison(t.weight.grad), "the gradient's norm is nan in the optimiser"),
    "moment": (_bad_moment, "a moment of the optimiser is not finite"),
    "weight": (lambda t: _poison(t.weight), "the weight weight is not finite"),
    "weight and an error": (
        lambda t: (_poison(t.weight), _raise(torch.linalg.LinAlgError("svd: did not converge"))),
        "the weight weight is not finite",
    ),
    "error alone": (
        lambda t: _raise(ValueError("found invalid\nvalues: [nan, 1.0]")),
        r"a value is not finite: found invalid values: \[nan",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_what_is_not_finite_stops_the_training_and_the_last_finite_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    act, problem = BREAKS[kind]
    monkeypatch.setattr(Counting, "breaks_at", 7)
    monkeypatch.setattr(Counting, "break_now", staticmethod(act))
    said = rf"run: training stopped at [78] units: {problem}.*; checkpoint 5 is the last finite one"
    with pytest.raises(NotFiniteError, match=f"{said}$") as caught:
        begin(tmp_path / "run", units=30)
    assert "\n" not in str(caught.value)
    run = Run.open(tmp_path / "run")
    assert run.checkpoint_steps() == [4, 5]
    assert torch.isfinite(run.load_checkpoint().weights["weight"]).all()
    # Again from there, unless the reason is gone.
    with pytest.raises(NotFiniteError, match=f"{said}$"):
        Counting.resume(tmp_path / "run", placement=HERE)
    monkeypatch.setattr(Counting, "breaks_at", None)
    monkeypatch.setattr(Counting, "evaluate", lambda _: {"value": 0.0})
    assert Counting.resume(tmp_path / "run", placement=HERE).finished


def test_a_signal_does_not_save_what_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "breaks_at", 7)
    monkeypatch.setattr(Counting, "break_now", staticmethod(BREAKS["weight"][0]))
    stop_at(monkeypatch, 7)
    with pytest.raises(NotFiniteError, match=r"at 7 units: the weight weight .*; checkpoint 5 is"):
        begin(tmp_path / "run", units=30)
    assert Run.open(tmp_path / "run").checkpoint_steps() == [4, 5]


def test_a_checkpoint_of_an_older_version_that_is_not_finite_is_not_trained_on(
    tmp_path: Path,
) -> None:
    begin(tmp_path / "run", units=5)
    with Run.open(tmp_path / "run", write=True) as run:
        found = run.load_checkpoint()
        _poison(found.weights["weight"])
        run.save_checkpoint(5, weights=found.weights, state=found.state)
    with pytest.raises(NotFiniteError, match=r"run: checkpoint 5 can't be trained on: the weight"):
        Counting.resume(tmp_path / "run", steps=9, placement=HERE)


def test_an_error_that_is_not_about_numbers_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "breaks_at", 7)
    monkeypatch.setattr(Counting, "break_now", staticmethod(lambda _: _raise(KeyError("lost"))))
    with pytest.raises(KeyError, match="lost"):
        begin(tmp_path / "run", units=30)


# --- Budgets that end inside a piece


@pytest.mark.parametrize("first", [3, 4, 6, 7, 11, 12])
def test_a_run_that_is_extended_equals_one_in_one_go_wherever_its_first_budget_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(Counting, "evaluate", lambda _: {"value": 0.0})
    whole = begin(tmp_path / "whole", units=18, piece=4).run.load_checkpoint()
    begin(tmp_path / "run", units=first, piece=4, checkpoint_every=100)
    again = Counting.resume(tmp_path / "run", steps=18, placement=HERE).run
    assert again.load_checkpoint().step == whole.step == 18
    assert torch.equal(again.load_checkpoint().weights["sum"], whole.weights["sum"])
    # What was begun to the end is left alone.
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert Counting.resume(tmp_path / "run", steps=18, placement=HERE).finished
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_without_a_checkpoint_before_its_short_piece_names_the_budgets_to_extend(
    tmp_path: Path,
) -> None:
    begin(tmp_path / "run", units=7, piece=4)
    for step in Run.open(tmp_path / "run").checkpoint_steps()[:-1]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:09d}")
    with pytest.raises(RunError, match=r"ended at 7 units, inside a piece of 4.*\(4, 8, \.\.\.\)$"):
        Counting.resume(tmp_path / "run", steps=18, placement=HERE)


# --- metrics.jsonl


@pytest.mark.parametrize("damage", ["digit", "line", "tail", "empty", "gone"])
def test_lost_lines_and_flipped_digits_of_the_metrics_do_not_pass_a_resume(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", units=9)
    file = tmp_path / "run" / "metrics.jsonl"
    data, lines = file.read_bytes(), file.read_bytes().splitlines(keepends=True)
    damaged = {
        "digit": data.replace(b"36.0", b"37.0"),
        "line": b"".join(lines[:1] + lines[2:]),
        "tail": b"".join(lines[:-2]),
        "empty": b"",
    }
    if damage == "gone":
        file.unlink()
        assert Counting.resume(tmp_path / "run", steps=9, placement=HERE).finished
        assert "metrics.jsonl: missing: its lines up to 9 are lost" in capfd.readouterr().err
        return
    file.write_bytes(damaged[damage])
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged: .* move it away to go on"):
        Counting.resume(tmp_path / "run", steps=9, placement=HERE)
    assert file.read_bytes() == damaged[damage]
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged"):
        Run.open(tmp_path / "run").read_metrics()
    file.write_bytes(data)
    assert Counting.resume(tmp_path / "run", steps=9, placement=HERE).finished
