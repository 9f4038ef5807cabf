"""Train from Python, watch the metrics, and stop when the run is good enough."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import upi_trm


def callback(step: int, metrics: Mapping[str, float]) -> bool:
    """Print what validation says; stop at 95%."""
    if "success_rate" in metrics:
        print(f"{step} edits: {metrics['success_rate']:.1%} of the validation puzzles solved")
    return metrics.get("success_rate", 0.0) < 0.95


with tempfile.TemporaryDirectory() as folder:
    model = upi_trm.train(
        "sudoku4x4",
        steps=1_500,
        out=Path(folder) / "run",
        overrides=["schedule.evaluate_every=500", "schedule.evaluate_num=50"],
        callback=callback,
    )
    print(model.solve("1..4..1.2..3..2.").reason)
