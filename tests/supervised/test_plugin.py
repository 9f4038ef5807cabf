"""Sweeps of supervised runs: what a spec stands for, what is prepared, records, comparison."""

import json
import os
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from supervised import plugin as sweeping
from supervised.cli import supervised
from supervised.measures import compare as comparing
from supervised.measures.compare import differences, read_records, rows_of
from trm.experiments import sweep_run as sweep
from trm.experiments.learners import SweepCommand
from trm.experiments.sweep_cli import sweep as sweep_command
from trm.experiments.sweep_run import point_states, run_sweep, train_point
from trm.experiments.sweep_spec import Sweep, place_sweep, plan_sweep
from trm.runs.run import Run

RECIPE = """
data: {task: sudoku4x4-hard, num: 12, seed: 0, augment: false}
model: {mixing: mixer, positions: none, width: 8, layers: 1, heads: 1, inner_multiple: 8,
  prefix: 1, puzzle_channels: 0}
recursion: {cycles: 1, inner: 1, supervision: 2}
act: {exploration: 0.5}
batch_size: 4
schedule: {steps: 4, log_every: 2, evaluate_every: 2, evaluate_num: 6, checkpoint_every: 2}
"""

TRAINED = """
command: supervised train --threads 1
recipe: small.yaml
cases: {narrow: {}, wide: {model.width: 16}}
seeds: [0, 1]
eval_num: 5
"""

DISTILLED = """
command: supervised distill {teacher}
recipe: small.yaml
prepare:
  teacher: supervised train --recipe RECIPE --steps 2
  few: supervised cache build {teacher} --recipe rollout --workers 1 --set planner.steps=2
set: {distill.kind: hard, distill.quality: null, start: teacher}
grid: {distill.cache: ["{few}"]}
seeds: [3]
steps: 3
eval_num: 5
"""


@pytest.fixture(autouse=True)
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this tree, whatever the installed package has."""
    points = [
        EntryPoint(f"supervised.{name}", f"supervised.plugin:{name}", "upi_trm.sweeps")
        for name in ("train", "distill")
    ]
    monkeypatch.setattr("trm.experiments.sweep_run.entry_points", lambda group: points)


def write_spec(folder: Path, text: str) -> Path:
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE)
    path = folder / "mine.yaml"
    path.write_text(text.replace("RECIPE", str(recipe)))
    return path


def planned(folder: Path, text: str) -> Sweep:
    return plan_sweep(write_spec(folder, text))


# --- From the file to points


def test_the_commands_tell_all_that_a_sweep_must_know() -> None:
    for command in (sweeping.train, sweeping.distill):
        assert set(SweepCommand.__dataclass_fields__) == set(type(command).__dataclass_fields__)


def test_a_recipe_names_its_data_and_a_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    first, second, *_ = planned(tmp_path, TRAINED).points
    assert [first.name, second.name] == ["narrow-seed0", "wide-seed0"]
    assert first.env is None and "--env" not in first.start
    words = f"supervised train --threads 1 --recipe {tmp_path}/small.yaml --set model.width=16"
    assert " ".join(second.start) == f"{words} --seed 0"
    assert second.resume == ("supervised", "train", "--threads", "1")
    assert (second.recipe.model.width, second.finished_at) == (16, 4)


def test_a_run_that_ends_by_cpu_time_has_no_least_number_of_steps(tmp_path: Path) -> None:
    text = TRAINED + "set: {schedule.cpu_seconds: 5.0}\n"
    assert {point.finished_at for point in planned(tmp_path, text).points} == {0}


def test_what_is_prepared_is_named_in_later_words_and_placed_below_the_sweep(
    tmp_path: Path,
) -> None:
    found = planned(tmp_path, DISTILLED)
    (point,) = found.points
    assert point.name == "cache=few-seed3"
    assert (point.recipe.teacher, point.recipe.distill.cache) == ("{teacher}", "{few}")
    (placed,) = place_sweep(found, tmp_path / "out").points
    teacher, cache = (str(tmp_path / "out" / "prepared" / name) for name in ("teacher", "few"))
    assert (placed.recipe.teacher, placed.recipe.distill.cache) == (teacher, cache)
    assert placed.start[:3] == ("supervised", "distill", teacher)
    assert f'distill.cache="{cache}"' in placed.start
    assert placed.resume == ("supervised", "train")
    trained, built = place_sweep(found, tmp_path / "out").preparations
    assert trained.training is not None and trained.resume == ("supervised", "train")
    assert built.training is None and built.words[3] == teacher


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "distill {teacher}",
            "distill {teacher2}",
            r"command: \{teacher2\}.*did you mean \{teacher\}",
        ),
        ("build {teacher}", "build {few}", r"prepare: few: \{few\} is not prepared before"),
        ('["{few}"]', '["{fewer}"]', r"grid: distill.cache: \{fewer\} is not prepared"),
        ("distill {teacher}", "distill", "must name the teacher's path"),
        ("seeds: [3]", "seeds: [3]\nenvs: [sudoku4x4]", "envs: supervised distill takes none"),
        ("recipe: small.yaml", "recipe: null", "recipe: no value given"),
        ("  few:", "  'f w':", "prepare: a name must be letters"),
        ("distill.kind: hard", "distill.kinds: hard", "did you mean distill.kind"),
    ],
)
def test_a_bad_spec_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in DISTILLED
    with pytest.raises(ValueError, match=message) as refused:
        planned(tmp_path, DISTILLED.replace(old, new))
    assert "\n" not in str(refused.value)


# --- Running


def in_this_process(words: list[str]) -> None:
    """`run_command` for words that begin with the interpreter and `-m upi_trm supervised`."""
    done = CliRunner().invoke(supervised, words[4:], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_a_point_is_trained_evaluated_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_command", in_this_process)
    found = planned(tmp_path, TRAINED)
    point = found.points[0]

    def do(record: Path) -> dict[str, Any]:
        train_point(
            tmp_path / "out" / point.name,
            record,
            start=point.start,
            resume=point.resume,
            finished_at=point.finished_at,
            eval_num=5,
            make_record=found.command.make_record,
        )
        content: dict[str, Any] = json.loads(record.read_bytes())
        return content

    record = tmp_path / "out" / "records" / f"{point.name}.json"
    first = do(record)
    assert (first["step"], first["seed"], first["num_instances"], first["steps"]) == (4, 0, 5, 2)
    assert len(first["curve"]) == 2 and {0 <= first[name] <= 1 for name in ("exact", "valid")}
    assert first["commit_valid"] == first["committed"]["valid"]
    assert first["valid"] + sum(first["failures"].values()) == pytest.approx(1)
    assert [line["step"] for line in first["validation"]] == [2, 4]
    assert first["peak"]["exact"] == max(line["exact"] for line in first["validation"])
    assert {line["weight"]: line["exact"] for line in first["guidance"]}[1.0] == first["exact"]
    assert first["cache"] is None
    assert point_states(found, tmp_path / "out")[point.name] == "finished"

    # As if killed before its last checkpoint.
    shutil.rmtree(tmp_path / "out" / point.name / "checkpoints" / "step-000000004")
    with pytest.raises(RuntimeError, match="stopped after 2 of 4 steps"):
        sweeping.make_record(tmp_path / "out" / point.name, 5)
    again = do(tmp_path / "again.json")
    same = ("exact", "valid", "curve", "validation", "commit_valid", "sample_passes")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}


@pytest.mark.slow
def test_a_sweep_of_students_makes_its_teacher_and_cache_and_ends_with_records(
    tmp_path: Path,
) -> None:
    spec, out = write_spec(tmp_path, DISTILLED), tmp_path / "out"
    shown = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out), "--dry-run"])
    assert shown.stdout.count("prepare ") == 2 and not out.exists()
    done = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "[1/1] cache=few-seed3: finished, exact " in done.stderr
    assert f"upi-trm supervised compare {out}" in done.stdout
    record = json.loads((out / "records" / "cache=few-seed3.json").read_bytes())
    assert (record["step"], record["taught"]) == (3, 1.0)
    assert record["cache"]["teacher_steps"] == 12 * 2  # examples x steps of one rollout
    run = Run.open(out / "cache=few-seed3")
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert [line["state"] for line in manifest["prepare"]] == ["finished"] * 2
    assert manifest["points"][0]["exact"] == record["exact"]

    # Nothing is done twice, and other words for what is there are refused.
    again = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out)])
    assert (again.exit_code, "finished, " in again.stderr) == (0, True), again.output
    assert Run.open(out / "cache=few-seed3").info == run.info
    other = write_spec(tmp_path, DISTILLED.replace("--steps 2", "--steps 3"))
    with pytest.raises(ValueError, match=r"teacher: was made by .*--steps 2.* asks for"):
        run_sweep(plan_sweep(other), out)


def test_a_preparation_that_fails_ends_the_sweep_with_its_last_words(tmp_path: Path) -> None:
    found = planned(tmp_path, DISTILLED.replace("--steps 2", "--steps none"))
    with pytest.raises(ValueError, match=r"prepare: teacher failed: exit code 2; .*none"):
        run_sweep(found, tmp_path / "out", workers=1)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert [line["state"] for line in manifest["prepare"]] == ["failed", "pending"]
    assert manifest["points"][0]["state"] == "pending"


# --- Comparing


def record_of(recipe: str, seed: int, exact: float, **more: Any) -> dict[str, Any]:
    return {
        "format_version": sweeping.RECORD_VERSION,
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
        ("[1]", "not a supervised record"),
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
