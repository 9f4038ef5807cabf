"""Tables of the page from what `upi-trm drift --json` and `upi-trm bounds --json` measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trm.runs.files import read_json_object

_DRIFT = {
    "delta_v": "mean |dU|",
    "delta_v_relative": "of the deviation of U",
    "delta_pi": "total variation",
    "success_rate": "solved",
}
"""Measures of a drift record that the page shows, with their headings."""


def study_tables(file: Path) -> list[dict[str, Any]]:
    """Tables with title, note, heads and rows of text.

    Args:
        file: one JSON object, as either command prints it; of several runs where it has "runs".

    Raises:
        ValueError: it holds neither drift nor bounds; names the file.
    """
    found = read_json_object(file)
    records = found.get("runs", [found])
    tables = [table for record in records for table in _tables(record)]
    if not tables:
        raise ValueError(
            f"{file}: holds neither drift nor bounds (upi-trm drift RUN --json, upi-trm bounds RUN"
            " --json)"
        )
    return tables


def _tables(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "delta_v" in record:
        yield _drift(record)
    for part, where in (("exact", "solved exactly"), ("sample_maximum", "on a sample")):
        study = record.get(part)
        if isinstance(study, Mapping) and study.get("bounds"):
            yield _bounds(record, study["bounds"], where)


def _drift(record: Mapping[str, Any]) -> dict[str, Any]:
    """One row a depth, on the plans that the policy meets."""
    rows = [
        [depth, *(_text(record[name][depth].get("visited"), name) for name in _DRIFT)]
        for depth in record["delta_v"]
    ]
    return {
        "title": f"Drift of {record['run']} when n changes",
        "note": f"Compared with n = {record['train_depth']} of training, on plans that the policy"
        " meets.",
        "heads": ["n", *_DRIFT.values()],
        "rows": rows,
    }


def _bounds(record: Mapping[str, Any], bounds: list[Any], where: str) -> dict[str, Any]:
    """One row an inequality."""
    rows = [
        [
            bound["name"],
            bound["says"],
            _text(bound["left"]),
            _text(bound["right"]),
            "yes" if bound["holds"] else "no",
        ]
        for bound in bounds
    ]
    return {
        "title": f"Bounds of {record['run']}, {where}",
        "note": "Each row is an inequality of the theory, left side at most the right side.",
        "heads": ["statement", "says", "left", "right", "holds"],
        "rows": rows,
    }


def _text(value: float | None, name: str = "") -> str:
    if value is None:
        return "none"
    return f"{value:.1%}" if name == "success_rate" else f"{value:.3g}"
