"""Supervised runs side by side: means over seeds, paired differences, curves, bad records."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from supervised.cli import supervised
from supervised.measures import compare as comparing
from supervised.measures.compare import differences, read_records, rows_of
from supervised.measures.records import RECORD_VERSION


def record_of(recipe: str, seed: int, exact: float, **more: Any) -> dict[str, Any]:
    return {
        "format_version": RECORD_VERSION,
        "kind": "supervised",
        "recipe": recipe,
        "seed": seed,
        "data": "boards",
        "num_instances": 100,
        "step": 10,
        "exact": exact,
        "valid": exact,
        "commit_valid": None,
        "committed": None,
        "violated": 1 - exact,
        "peak": {"step": 5, "exact": exact},
        "train_exact": None,
        "train_cpu_seconds": 2.0,
        "validation": [{"step": 5, "exact": 0.0, "valid": exact / 2}],
        "cache": {"cpu_seconds": 7.0, "teacher_steps": 1},
        "parameters": 9,
        "passes": 18,
        **more,
    }


def test_rows_are_means_over_seeds_and_differences_are_paired(tmp_path: Path) -> None:
    records = [
        *(record_of("dis,folder=class", seed, 0.5 + 0.1 * seed) for seed in range(3)),
        *(
            record_of("final,folder=class", seed, 0.4 + 0.1 * seed + 0.03 * seed)
            for seed in (2, 1, 0)
        ),
        record_of("dis,folder=random", 0, 1.0),
    ]
    first, second, third = rows_of(records)
    assert (first.recipe, first.seeds, second.seeds) == ("dis,folder=class", (0, 1, 2), (0, 1, 2))
    assert (first.exact.mean, first.exact.std) == pytest.approx((0.6, 0.1))
    assert (third.exact.std, first.commit_valid, first.cache_cpu_seconds) == (None, None, 7.0)
    (found,) = differences(records, against="final", figure="commit_valid")
    assert (found.recipe, found.against, found.figure) == (
        *("dis,folder=class", "final,folder=class"),
        "exact",
    )
    # Differences 0.10, 0.07, 0.04: mean 0.07, s = 0.03, t(2) = 4.3027.
    assert (found.mean, found.wins, found.pairs) == (pytest.approx(0.07), 3, 3)
    assert (found.low, found.high) == pytest.approx(
        (0.07 - 4.3027 * 0.03 / 3**0.5, 0.07 + 4.3027 * 0.03 / 3**0.5), abs=1e-5
    )
    assert [table.row_count for table in comparing.tables([first, second, third], [found])] == [
        3,
        1,
    ]

    kept = tmp_path / "kept.json"
    files = tmp_path / "sweep" / "records"
    files.mkdir(parents=True)
    for place, record in enumerate(records):
        (files / f"{place}.json").write_text(json.dumps(record))
    words = [
        "compare",
        str(tmp_path / "sweep"),
        "--against",
        "final",
        "--json",
        "--save",
        str(kept),
    ]
    call = CliRunner().invoke(supervised, words)
    assert call.exit_code == 0, call.output
    shown = json.loads(call.stdout)
    assert [row["recipe"] for row in shown["rows"]] == [first.recipe, second.recipe, third.recipe]
    assert shown["differences"][0]["wins"] == 3
    assert read_records([kept]) == records


def test_curves_are_by_time_in_panels_in_the_order_of_numbers(tmp_path: Path) -> None:
    records = [
        record_of("dis,width=128", 0, 0.5),
        record_of("dis,width=32", 0, 0.25),
        record_of("final,width=32", 0, 0.75),
        record_of("final,width=32", 1, 1.0),
        record_of("blind,width=8", 0, 1.0, validation=[]),
    ]
    curves = comparing.curves_of(records)
    # Ten steps took two seconds, the evaluation came after five.
    assert curves == {
        "width=32": {"dis": [[(1.0, 0.125)]], "final": [[(1.0, 0.375)], [(1.0, 0.5)]]},
        "width=128": {"dis": [[(1.0, 0.25)]]},
    }
    assert list(curves) == ["width=32", "width=128"]

    with pytest.raises(ValueError, match="--plot: no run was evaluated"):
        comparing.save_plot(records[-1:], tmp_path / "none.png")
    pytest.importorskip("matplotlib", reason="the extra plot (matplotlib) is not installed")
    kept, picture = tmp_path / "kept.json", tmp_path / "curves.png"
    kept.write_text(json.dumps({"records": records}))
    call = CliRunner().invoke(supervised, ["compare", str(kept), "--plot", str(picture)])
    assert call.exit_code == 0, call.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"--plot: .*curves\.xyz"):
        comparing.save_plot(records, tmp_path / "curves.xyz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"kind": "supervised", "format_version": 99}', "of format version"),
    ],
)
def test_what_is_no_record_is_refused_by_name(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "one.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_records([path])
    assert str(refused.value).startswith(os.fspath(path))


def test_a_counterpart_that_is_not_there_is_named() -> None:
    records = [record_of("dis", 0, 0.5), record_of("final", 1, 0.5)]
    with pytest.raises(ValueError, match=r"no row is 'finl'.*\['dis', 'final'\]"):
        differences(records, against="finl", figure="exact")
    with pytest.raises(ValueError, match="dis and final have no seed in common"):
        differences(records, against="final", figure="exact")
