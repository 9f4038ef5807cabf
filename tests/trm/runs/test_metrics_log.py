"""Metrics of a run: read back as logged, cut and continued, whole under failing writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import (
    create,
)

from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


def test_a_log_line_cut_short_by_the_system_is_taken_back(made: Run, small_files: Any) -> None:
    made.log(1, {"a": 1.0})
    path = made.path / "metrics.jsonl"
    before = path.read_bytes()
    small_files(len(before) + 7)
    with pytest.raises(RunError, match=r"metrics\.jsonl: could not be written: File too large"):
        made.log(2, {"a": 2.0})
    assert path.read_bytes() == before


def test_a_full_device_is_named(made: Run) -> None:
    (made.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl: .*No space left on device"):
        made.log(1, {"a": 1.0})


def test_metrics_read_back_as_logged(made: Run) -> None:
    made.log(0, {"success": 0.25, "kl": float("nan"), "count": 3, "np": np.float32(0.5)})
    made.log(10, {"bound": float("inf"), "low": -float("inf"), "t": torch.tensor(2.0)})
    first, second = Run.open(made.path).read_metrics()
    assert np.isnan(first.pop("kl"))
    assert first == {"step": 0, "success": 0.25, "count": 3, "np": 0.5}
    assert second == {"step": 10, "bound": np.inf, "low": -np.inf, "t": 2.0}
    # Strict JSON, for every other reader.
    for line in (made.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with pytest.raises(ValueError, match="'step' is taken"):
        made.log(20, {"step": 1.0})


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def line(step: int) -> dict[str, float]:
        return {"loss": 1.0 / (step + 1)}

    with create(tmp_path / "whole") as whole:
        for step in range(6):
            whole.log(step, line(step))
    with create(tmp_path / "cut") as cut:
        for step in range(5):
            cut.log(step, line(step))
    with open(tmp_path / "cut" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "lo')
    with Run.open(tmp_path / "cut", write=True) as cut:
        cut.truncate_metrics(2)
        for step in range(3, 6):
            cut.log(step, line(step))
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_half_written_last_line_is_not_read_and_cut_off_by_the_next_writer(made: Run) -> None:
    made.log(1, {"a": 1.0})
    made.close()
    with open(made.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "a')
    assert [r["step"] for r in Run.open(made.path).read_metrics()] == [1]
    with Run.open(made.path, write=True) as again:
        again.log(2, {"a": 2.0})
        assert [r["step"] for r in again.read_metrics()] == [1, 2]


def test_a_damaged_line_of_metrics_is_named(made: Run) -> None:
    made.log(1, {"a": 1.0})
    (made.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: not a line of metrics"):
        made.read_metrics()


@pytest.mark.filterwarnings("default")
def test_tensorboard_shows_every_step_once_after_a_resume(made: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (10, 20, 30):
        made.log(step, {"success": step / 100, "eval/kl": 1e-3})
    made.close()
    with Run.open(made.path, write=True) as again:
        again.truncate_metrics(20)
        for step in (30, 40):
            again.log(step, {"success": step / 50})
    events = EventAccumulator(str(made.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["success", "eval/kl"]
    shown = [(event.step, round(event.value, 6)) for event in events.Scalars("success")]
    assert shown == [(10, 0.1), (20, 0.2), (30, 0.6), (40, 0.8)]
