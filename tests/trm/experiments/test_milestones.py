"""Milestones: the first evaluation at a level, over seeds, from logged or estimated seconds."""

from typing import Any

import pytest

from trm.experiments.milestones import LEVELS, Milestone, milestones
from trm.experiments.records import Record


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "method": "UPI-TRM",
        "recipe": "sudoku4x4",
        "recipe_hash": None,
        "env": "sudoku4x4",
        "instances": "sudoku4x4:test:seed0",
        "num_instances": 100,
        "seed": 0,
        "step": 400,
        "success_rate": 0.9,
        "mean_score": 12.0,
        "improvement": 2.0,
        "reference": {},
        "parameters": 699,
        "wall_seconds": 80.0,
        "cpu_seconds": 40.0,
        "peak_memory_bytes": 1000,
        "curve": ((100, 0.2), (200, 0.85), (300, 0.7), (400, 0.9)),
        "curve_cpu_seconds": (5.0, 12.0, 20.0, 31.0),
    }
    return Record(**{**fields, **changes})


def test_a_milestone_is_the_first_evaluation_at_its_level() -> None:
    found = milestones([record()])
    assert [one.level for one in found] == list(LEVELS)
    assert [one.edits for one in found] == [200, 200, 400, None]
    assert [one.cpu_seconds for one in found] == [12.0, 12.0, 31.0, None]
    assert not any(one.estimated for one in found)


def test_seconds_that_nobody_logged_are_the_runs_in_proportion_to_the_edits() -> None:
    half, *_ = milestones([record(curve_cpu_seconds=())])
    assert (half.cpu_seconds, half.estimated) == (40.0 * 200 / 400, True)


def test_means_are_over_the_seeds_that_got_there() -> None:
    late = record(seed=1, curve=((100, 0.0), (400, 0.6)), curve_cpu_seconds=(4.0, 30.0))
    half, most, *_ = milestones([record(), late])
    assert (half.reached, half.edits, half.cpu_seconds) == (2, 300.0, 21.0)
    assert (most.reached, most.seeds, most.edits) == (1, 2, 200.0)


def test_without_a_curve_there_is_no_milestone() -> None:
    assert milestones([record(), record(seed=1, curve=(), curve_cpu_seconds=())]) == ()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"reached": 0}, "-"),
        ({"reached": 3, "edits": 2560.0, "cpu_seconds": 14.2}, "2,560\n14 s"),
        (
            {"reached": 2, "edits": 2560.0, "cpu_seconds": 14.2, "estimated": True},
            "2,560\n~14 s (2)",
        ),
        ({"reached": 3, "edits": 10.0}, "10\n"),
    ],
)
def test_a_cell_says_what_is_known(given: dict[str, Any], shown: str) -> None:
    assert str(Milestone(level=0.5, seeds=3, **given)) == shown
