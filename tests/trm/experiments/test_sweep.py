"""Sweeps: what a spec stands for, what is refused before anything starts, and going on."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from trm.experiments import sweep_run as sweep
from trm.experiments.records import read_records
from trm.experiments.sweep_cli import sweep as sweep_command
from trm.experiments.sweep_run import PointReport, point_states, run_sweep
from trm.experiments.sweep_spec import SWEEPS, plan_sweep
from trm.runs.lock import locked
from trm.runs.run import Run

TINY = """\
envs: [sudoku4x4]
set:
  model.channels: 4
  model.head_width: 6
  model.depth: 1
  rollout.plans: 8
  rollout.steps: 2
  instances.num: 20
  schedule.evaluate_num: 4
  schedule.evaluate_every: 32
  schedule.checkpoint_every: 16
grid:
  improvement.alpha: [0.25, 0.5]
seeds: [7]
steps: 68
eval_num: 20
"""
NAMES = ["sudoku4x4,alpha=0.25-seed7", "sudoku4x4,alpha=0.5-seed7"]


def _write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# From the file to points


def test_a_recipe_may_be_named_after_environment_and_case(tmp_path: Path) -> None:
    for name, alpha in (("a-sudoku4x4", 0.25), ("b-sudoku4x4", 0.5)):
        (tmp_path / f"{name}.yaml").write_text(f"improvement: {{alpha: {alpha}}}\n")
    text = "envs: [sudoku4x4]\nrecipe: '{case}-{env}.yaml'\ncases: {a: {}, b: {}}\n"
    first, second = plan_sweep(_write(tmp_path, text)).points
    assert (first.recipe.improvement.alpha, second.recipe.improvement.alpha) == (0.25, 0.5)
    assert first.start[3:5] == ("--recipe", str(tmp_path / "a-sudoku4x4.yaml"))


def test_a_spec_stands_for_every_case_with_every_point_of_the_grid(tmp_path: Path) -> None:
    planned = plan_sweep(
        _write(
            tmp_path,
            "envs: [sudoku4x4, PlanEdit/Sudoku6x6-v0]\n"
            "set: {improvement.temperature: 0.2}\n"
            "cases: {plain: {}, certified: {contraction.modulus: 0.9}}\n"
            "grid: {model.depth: [1, 2], improvement.alpha: [0.5]}\n"
            "seeds: [0, 1]\n",
        )
    )
    points = {point.name: point for point in planned.points}
    assert len(points) == 2 * 2 * 2 * 2
    assert {point.seed for point in planned.points[:8]} == {0}  # one seed of everything comes first
    point = points["sudoku6x6,certified,depth=2,alpha=0.5-seed1"]
    assert point.settings == {"case": "certified", "model.depth": 2, "improvement.alpha": 0.5}
    assert (point.recipe.contraction.modulus, point.recipe.model.depth) == (0.9, 2)
    assert point.recipe.evaluator.value == "success"  # sudoku6x6's own recipe, not the defaults
    assert point.recipe.improvement.temperature == 0.2
    words = " ".join(point.start)
    assert words.startswith("train --env sudoku6x6 --recipe sudoku6x6 --set ")
    assert "--set contraction.modulus=0.9" in words
    assert words.endswith("--seed 1 --eval-num 0")
    assert points["sudoku4x4,plain,depth=1,alpha=0.5-seed0"].recipe.contraction.modulus is None


def test_a_recipe_beside_the_spec_is_taken(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("model: {channels: 4}\n")
    (point,) = plan_sweep(_write(tmp_path, "envs: [sudoku4x4]\nrecipe: small.yaml\n")).points
    assert point.recipe.model.channels == 4
    assert str(tmp_path / "small.yaml") in point.start


def test_a_run_is_finished_when_no_edit_of_all_plans_fits_its_budget_any_more(
    tmp_path: Path,
) -> None:
    assert [point.finished_at for point in plan_sweep(_write(tmp_path, TINY)).points] == [64, 64]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("envs: [sudoku4x4]\nseed: [1]", "seed = [1]: unknown field; did you mean seeds?"),
        ("seeds: [1]", "envs: no value given"),
        ("envs: []", "envs must be different values, at least one"),
        ("envs: [sudoku4x4]\nseeds: [1, 1]", "seeds must be different values"),
        ("envs: [sudoku4x5]", "unknown task 'sudoku4x5'; did you mean 'sudoku4x4'?"),
        ("envs: [sudoku4x4]\ncommand: trian", "command: 'trian' trains no runs; did you mean"),
        ("envs: [sudoku4x4]\nrecipe: sudoku4x5", "'sudoku4x5'; did you mean sudoku4x4?"),
        (
            "envs: [sudoku4x4]\ngrid: {improvement.alphaa: [0.1]}",
            "improvement.alphaa = 0.1: unknown field; did you mean improvement.alpha?",
        ),
        ("envs: [sudoku4x4]\ngrid: {model.depth: [1, 2.5]}", "model.depth = 2.5: expected"),
        ("envs: [sudoku4x4]\ngrid: {model.depth: [1, -1]}", "model.depth = -1: model.depth must"),
        ("envs: [sudoku4x4]\ngrid: {model.depth: 1}", "model.depth must be a list of values"),
        ("envs: [sudoku4x4]\ncases: {a: 1}", "a must be `field: value` lines, got 1"),
        (
            "envs: [sudoku4x4]\ncases: {a: {improvement.advantage: gae}}",
            "sudoku4x4,a: ",  # the control variate needs exact advantages: two sections together
        ),
        (
            "envs: [sudoku4x4]\ncases: {a: {model.depth: 1}}\ngrid: {model.depth: [1, 2]}",
            "a sets model.depth, which the grid sets too",
        ),
        (
            "envs: [sudoku4x4]\ncases: {a: {model.depth: 4}, b: {}}",
            "sudoku4x4,a-seed0 and sudoku4x4,b-seed0 are the same run",
        ),
        (
            "envs: [sudoku4x4]\ncases: {'a b': {model.depth: 1}, 'a?b': {}}",
            "two points would share the folder sudoku4x4,a_b-seed0",
        ),
    ],
)
def test_a_bad_spec_is_refused_by_field_and_value(tmp_path: Path, spec: str, named: str) -> None:
    path = _write(tmp_path, spec)
    with pytest.raises(ValueError) as refused:
        plan_sweep(path)
    assert named in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SWEEPS.names())
def test_a_shipped_sweep_fits_the_recipes_and_says_what_it_is_for(name: str) -> None:
    path = SWEEPS.find(name)
    planned = plan_sweep(path)
    assert len({point.seed for point in planned.points}) >= 3
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Expected: ") for line in header)
    assert any(line.startswith("# Device and time: ") for line in header)


def test_an_unknown_sweep_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"no sweep is called 'depth-hrd'; did you mean depth-hard\?"
    ):
        SWEEPS.find("depth-hrd")


# Running


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The spec, and the folder of its two runs, trained by the real command."""
    folder = tmp_path_factory.mktemp("sweep")
    spec = _write(folder, TINY)
    states = run_sweep(plan_sweep(spec, folder / "out"), workers=2, command="upi-trm sweep mine")
    assert states == dict.fromkeys(NAMES, "finished")
    return spec, folder / "out"


@pytest.fixture
def copied(swept: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The spec, and a copy of its folder, to be damaged."""
    return swept[0], shutil.copytree(swept[1], tmp_path / "out")


@pytest.mark.slow
def test_every_point_leaves_a_run_a_record_and_a_line_of_the_manifest(
    swept: tuple[Path, Path],
) -> None:
    _, out = swept
    records = [json.loads((out / "records" / f"{name}.json").read_bytes()) for name in NAMES]
    for name, record in zip(NAMES, records, strict=True):
        assert Run.open(out / name).checkpoint_steps()[-1] == record["step"] == 64
        assert (record["num_instances"], record["seed"], record["run"]) == (20, 7, name)
        # The reference policies saw the same puzzles.
        assert record["reference"] == records[0]["reference"]
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert [point["name"] for point in manifest["points"]] == NAMES
    assert {point["state"] for point in manifest["points"]} == {"finished"}
    assert manifest["points"][1]["settings"] == {"improvement.alpha": 0.5}
    assert "--set improvement.alpha=0.5 --steps 68 --seed 7" in manifest["points"][1]["command"]
    assert manifest["spec"]["steps"] == 68
    assert manifest["sessions"][0]["command"] == "upi-trm sweep mine"
    # Without the run folders the records are enough.
    assert read_records([out / "records"]) == records


@pytest.mark.slow
def test_a_finished_sweep_starts_nothing(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = copied
    monkeypatch.setattr("trm.compute.jobs.Attempt", None)
    reports: list[PointReport] = []
    states = run_sweep(plan_sweep(spec, out), report=reports.append)
    assert set(states.values()) == {"finished"}
    assert [(report.state, report.num_finished) for report in reports] == [("finished", 2)] * 2
    call = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out), "--dry-run"])
    assert (call.exit_code, call.stdout.count("finished ")) == (0, 2), call.output


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_a_broken_one_is_reported_beside_it(
    copied: tuple[Path, Path],
) -> None:
    spec, out = copied
    cut, broken = (out / name for name in NAMES)
    whole = json.loads((out / "records" / f"{NAMES[0]}.json").read_bytes())
    born = (cut / "run.json").read_bytes()
    for name in NAMES:
        (out / "records" / f"{name}.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-000000064")  # as if killed before it was saved
    weights = max(broken.glob("checkpoints/step-*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])

    assert point_states(plan_sweep(spec, out)) == dict.fromkeys(NAMES, "interrupted")
    call = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out)])
    assert call.exit_code == 1, call.output
    assert "1 finished, 1 failed" in call.stdout
    failure = next(line for line in call.stderr.splitlines() if "failed" in line)
    assert f"{NAMES[1]}: failed: exit code 2" in failure
    assert "truncated" in failure
    assert (cut / "run.json").read_bytes() == born  # gone on with, not begun anew
    again = json.loads((out / "records" / f"{NAMES[0]}.json").read_bytes())
    assert again["curve"] == whole["curve"]
    assert (again["success_rate"], again["step"]) == (whole["success_rate"], 64)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert [point["state"] for point in manifest["points"]] == ["finished", "failed"]
    assert len(manifest["sessions"]) == 2


@pytest.mark.slow
def test_a_record_of_another_budget_or_evaluation_does_not_count(
    copied: tuple[Path, Path],
) -> None:
    spec, out = copied
    planned = plan_sweep(spec, out)
    other = replace(planned, spec=replace(planned.spec, eval_num=21))
    assert set(point_states(other).values()) == {"interrupted"}
    longer = [replace(point, finished_at=72) for point in planned.points]
    assert set(point_states(replace(planned, points=tuple(longer))).values()) == {"interrupted"}


@pytest.mark.slow
def test_a_folder_of_other_settings_or_of_another_sweep_is_refused(
    copied: tuple[Path, Path], tmp_path: Path
) -> None:
    _, out = copied
    before = (out / "manifest.json").read_bytes()
    changed = _write(tmp_path, TINY.replace("model.channels: 4", "model.channels: 5"))
    with pytest.raises(ValueError, match=r"alpha=0\.25-seed7: was trained with other settings"):
        run_sweep(plan_sweep(changed, out))
    other = _write(tmp_path, TINY, name="other")
    with pytest.raises(ValueError, match="this folder holds the sweep 'mine', not 'other'"):
        run_sweep(plan_sweep(other, out))
    assert (out / "manifest.json").read_bytes() == before


def test_two_sweeps_in_one_folder_do_not_run_at_once(tmp_path: Path) -> None:
    planned = plan_sweep(_write(tmp_path, TINY), tmp_path)
    with (
        locked(tmp_path, "is at work"),
        pytest.raises(ValueError, match=f"process {os.getpid()} is running a sweep here"),
    ):
        run_sweep(planned)


def test_a_dry_run_shows_the_commands_and_writes_nothing(tmp_path: Path) -> None:
    spec, out = _write(tmp_path, TINY), tmp_path / "out"
    call = CliRunner().invoke(sweep_command, [str(spec), "--out", str(out), "--dry-run"])
    assert call.exit_code == 0, call.output
    first, second, total = call.stdout.splitlines()
    assert first.startswith("pending      upi-trm train --env sudoku4x4 ")
    assert second.endswith(f"--out {out / NAMES[1]}")
    assert total == "2 runs, 0 of them finished"
    assert not out.exists()


def test_only_the_points_that_match_are_run_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        sweep, "map_jobs", lambda jobs, **_: ran.extend(job.key for job in jobs) or []
    )
    planned = plan_sweep(_write(tmp_path, TINY), tmp_path / "out")
    states = run_sweep(planned, only=["*alpha=0.5-*"])
    assert ran == NAMES[1:]
    assert states == dict.fromkeys(NAMES, "pending")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert [point["name"] for point in manifest["points"]] == NAMES
    with pytest.raises(ValueError, match=r"no point of mine matches 'alpha-1'; did you mean sudo"):
        run_sweep(planned, only=["*alpha=0.5-*", "alpha-1"])


@pytest.mark.parametrize(
    ("only", "finished", "code"),
    [
        (["*alpha=0.5-*"], NAMES[1:], 0),
        (["*alpha=0.5-*"], NAMES[:1], 130),
        (NAMES, NAMES, 0),
        (NAMES, NAMES[1:], 130),
    ],
)
def test_a_sweep_has_ended_well_when_the_points_asked_for_are_finished(
    only: list[str],
    finished: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = {name: "finished" if name in finished else "pending" for name in NAMES}
    monkeypatch.setattr(sweep, "run_sweep", lambda *_, **__: states)
    words = [word for name in only for word in ("--only", name)]
    call = CliRunner().invoke(
        sweep_command, [str(_write(tmp_path, TINY)), "--out", str(tmp_path / "out"), *words]
    )
    assert call.exit_code == code, call.output
