"""The training loop: what it logs, evaluates, tags and saves, and when; stopping and resuming.

The trainee counts; learners of the package are trained in the tests of their own trainers.
"""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from trm.compute.device import Placement
from trm.experiments.training import Outcome, Setting, Trainee
from trm.runs.checkpoints import Checkpoint
from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Placement(threads=1)
VALUES = (0.0, 0.5, 0.4, 0.9, 0.9)
"""What evaluation after evaluation finds."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    units: int = 10
    evaluate_every: int = 4
    checkpoint_every: int = 5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    schedule: Schedule = field(default_factory=Schedule)


class Counting(Trainee):
    """Adds up the numbers of its units, logs the sum, and is stopped by itself where asked."""

    kind = "counting"
    recipe_type = Recipe
    command = "count"
    unit = "units"
    columns: ClassVar = {"value": ("value", ".1f"), "rare": ("rare", ".1f")}
    best_by = "value"
    log_every = 2
    stops_at: ClassVar[int | None] = None

    def __init__(self, recipe: Any, setting: Setting) -> None:
        super().__init__(recipe, setting)
        self.done = self.sum = self.evaluations = 0
        self.cleaned: list[int] = []

    @classmethod
    def subject(cls, env: str, recipe: Any) -> tuple[str, str]:
        return "e", "n"

    def recorded(self) -> dict[str, Any]:
        return {"counts": "units"}

    def spent(self, budget: int) -> bool:
        return self.done >= budget

    def advance(self, budget: int) -> None:
        self.done += 1
        self.sum += self.done
        if self.done == self.stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def figures(self) -> dict[str, float]:
        return {"sum": float(self.sum)}

    def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        return {"value": VALUES[self.evaluations - 1]}

    def weights(self) -> dict[str, torch.Tensor]:
        return {"sum": torch.tensor([self.sum])}

    def state(self, run: Run) -> dict[str, Any]:
        (run.path / f"beside-{self.done}").touch()
        return {"done": self.done, "evaluations": self.evaluations}

    def saved(self, run: Run) -> None:
        for file in run.path.glob("beside-*"):
            if file.name != f"beside-{self.done}":
                file.unlink()

    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        self.done = checkpoint.state["done"]
        self.sum = int(checkpoint.weights["sum"])
        self.evaluations = checkpoint.state["evaluations"]


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
    assert run.read_metrics() == [
        {"step": 2, "sum": 3.0},
        {"step": 4, "sum": 10.0, "value": 0.0},
        {"step": 6, "sum": 21.0},
        {"step": 8, "sum": 36.0, "value": 0.5},
        {"step": 9, "sum": 45.0, "value": 0.4},
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
    assert again.run.read_metrics() == whole.read_metrics()
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
