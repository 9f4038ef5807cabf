"""Sweeps of supervised runs: what a spec becomes, what is prepared, what a record holds."""

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from supervised.cli import supervised
from supervised.measures.records import make_record
from supervised.plugin import LEARNER
from supervised.trainer import train
from trm.compute.device import Placement
from trm.experiments import sweep_run as sweep
from trm.experiments.learners import LEARNER_GROUP, find_command
from trm.experiments.sweep_cli import sweep as sweep_command
from trm.experiments.sweep_run import point_states, run_sweep, train_point
from trm.experiments.sweep_spec import Sweep, plan_sweep
from trm.runs.files import RunError
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
def learners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner of this tree, whatever the installed package has."""
    points = [EntryPoint("supervised", "supervised.plugin:LEARNER", LEARNER_GROUP)]
    monkeypatch.setattr("trm.experiments.learners.entry_points", lambda group: points)


def write_spec(folder: Path, text: str) -> Path:
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE)
    path = folder / "mine.yaml"
    path.write_text(text.replace("RECIPE", str(recipe)))
    return path


def planned(folder: Path, text: str) -> Sweep:
    return plan_sweep(write_spec(folder, text), folder / "out")


# --- From the file to points


def test_each_command_of_the_learner_can_be_swept() -> None:
    for words in LEARNER.commands:
        command, named, further = find_command(f"{words} {{teacher}}")
        assert (named, further) == (words.split(), ["{teacher}"])
        assert command.compare == ("supervised", "compare")


def test_no_policy_that_plays_edits_is_loaded_from_a_supervised_run(tmp_path: Path) -> None:
    recipe = write_spec(tmp_path, TRAINED).with_name("small.yaml")
    place = Placement(threads=1)
    run = train(recipe_path=recipe, steps=1, out=tmp_path / "run", placement=place).run
    for load in (LEARNER.load_policy, LEARNER.load_networks, LEARNER.load_insight):
        with pytest.raises(RunError, match=r"run\.json: kind is 'supervised'.*supervised eval"):
            load(run, placement=Placement(), step=None)


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
    teacher, cache = (str(tmp_path / "out" / "prepared" / name) for name in ("teacher", "few"))
    assert (point.recipe.teacher, point.recipe.distill.cache) == (teacher, cache)
    assert point.start[:3] == ("supervised", "distill", teacher)
    assert f'distill.cache="{cache}"' in point.start
    assert point.resume == ("supervised", "train")
    trained, built = found.preparations
    assert trained.training is not None and trained.resume == ("supervised", "train")
    assert built.training is None and built.words[3] == teacher


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "distill {teacher}",
            "distill {teacher2}",
            r"command: \{teacher2\}.*did you mean teacher",
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
    assert point_states(found)[point.name] == "finished"

    # As if killed before its last checkpoint.
    shutil.rmtree(tmp_path / "out" / point.name / "checkpoints" / "step-000000004")
    with pytest.raises(RuntimeError, match="stopped after 2 of 4 steps"):
        make_record(tmp_path / "out" / point.name, 5)
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
        run_sweep(plan_sweep(other, out))


def test_a_preparation_that_fails_ends_the_sweep_with_its_last_words(tmp_path: Path) -> None:
    found = planned(tmp_path, DISTILLED.replace("--steps 2", "--steps none"))
    with pytest.raises(ValueError, match=r"prepare: teacher failed: exit code 2; .*none"):
        run_sweep(found, workers=1)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert [line["state"] for line in manifest["prepare"]] == ["failed", "pending"]
    assert manifest["points"][0]["state"] == "pending"
