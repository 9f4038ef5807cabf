"""`upi_trm.train`: the run that it leaves, what a callback sees, and that it can stop."""

from collections.abc import Mapping
from pathlib import Path

import pytest

import upi_trm
from trm.compute.device import Placement
from trm.experiments.learners import learner_of
from upi_trm.trainer import resume

TINY = (
    *("model.channels=4", "model.head_width=6", "model.depth=1"),
    *("rollout.plans=8", "rollout.steps=4"),
    *("evaluator.passes=1.0", "evaluator.batch_size=32", "evaluator.replay_iterations=2"),
    *("improvement.distil_passes=1.0", "improvement.batch_size=16"),
    *("instances.num=20", "schedule.evaluate_num=6", "schedule.evaluate_every=64"),
)
"""32 edits an iteration."""


def test_a_callback_sees_every_line_of_metrics_and_the_model_solves(tmp_path: Path) -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []

    def callback(step: int, metrics: Mapping[str, float]) -> None:
        seen.append((step, metrics))

    model = upi_trm.train(
        "sudoku4x4", steps=96, overrides=TINY, out=tmp_path / "a", callback=callback
    )
    lines = model.run.read_metrics()
    assert [step for step, _ in seen] == [line["step"] for line in lines] == [32, 64, 96]
    assert "success_rate" in seen[1][1] and "success_rate" not in seen[0][1]
    assert learner_of(model.run).kind == "upi" and model.method == "UPI-TRM"
    assert model.solve(model.unseen(1)[0]).edits is not None


def test_a_callback_that_returns_false_stops_a_run_that_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = upi_trm.train(
        "sudoku4x4",
        steps=96,
        overrides=TINY,
        out=tmp_path / "a",
        callback=lambda step, _: step < 64,
    )
    assert model.run.checkpoint_steps()[-1] == 64
    assert "stopped by the callback after 64 edits" in " ".join(capsys.readouterr().err.split())
    outcome = resume(tmp_path / "a", placement=Placement(threads=1))
    assert outcome.finished and outcome.run.checkpoint_steps()[-1] == 96


def test_bad_input_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        upi_trm.train("sudoku4x5", out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"rollout\.plan"):
        upi_trm.train("sudoku4x4", overrides=["rollout.plan=3"], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
