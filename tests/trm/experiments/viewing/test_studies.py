"""Tables of studies: each depth and each inequality is a row, and other JSON is refused."""

import json
from pathlib import Path

import pytest

from trm.experiments.viewing.studies import study_tables

REPO = Path(__file__).resolve().parents[4]


def test_each_depth_of_a_drift_record_is_a_row(tmp_path: Path) -> None:
    by_depth = {depth: {"visited": 0.25, "initial": 9.0} for depth in ("4", "8")}
    record = {"run": "mine", "train_depth": 4, "delta_v": by_depth, "delta_pi": by_depth}
    record |= {"success_rate": by_depth, "delta_v_relative": {d: {} for d in by_depth}}
    file = tmp_path / "drift.json"
    file.write_text(json.dumps(record))
    (table,) = study_tables(file)
    assert table["rows"] == [[depth, "0.25", "none", "0.25", "25.0%"] for depth in ("4", "8")]
    assert "n = 4 of training" in table["note"]


def test_each_inequality_of_the_recorded_bounds_is_a_row() -> None:
    """The records of results/bounds-hard.json are what `upi-trm bounds --json` printed."""
    file = REPO / "results" / "bounds-hard.json"
    records = json.loads(file.read_text())["runs"]
    tables = study_tables(file)
    parts = [record[part] for record in records for part in ("exact", "sample_maximum")]
    bounds = [part["bounds"] for part in parts if part is not None]
    assert [len(table["rows"]) for table in tables] == [len(rows) for rows in bounds if rows]
    assert tables[0]["rows"][0][0] == bounds[0][0]["name"]


def test_other_json_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"other\.json: holds neither drift nor bounds"):
        study_tables(file)
