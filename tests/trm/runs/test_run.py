"""Run folders: what run.json records, what is refused, and kills at any moment.

The kill test runs `crash_points.py` in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import (
    Recipe,
    assert_whole,
    create,
    edit_json,
    save,
    snapshot,
)

from trm.compute.device import Placement
from trm.compute.process import provenance
from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


def test_a_run_opens_as_it_was_created(tmp_path: Path) -> None:
    command, where = "upi-trm train --env sudoku4x4", provenance(Placement(threads=2))
    create(tmp_path / "a" / "run", provenance=where, command=command, extra={"x": [1]}).close()
    opened = Run.open(tmp_path / "a" / "run", kind="upi")
    info = opened.info
    assert (info.kind, info.env, info.seed, info.extra) == ("upi", "sudoku4x4", 3, {"x": [1]})
    assert info.command == command
    assert info.provenance == where
    assert opened.load_recipe(Recipe) == Recipe()
    assert opened.load_recipe(Recipe, ["steps=7"]) == Recipe(steps=7)


@pytest.mark.parametrize("occupied", ["notes.txt", "run.json"])
def test_create_refuses_a_folder_with_something_in_it_and_leaves_it_alone(
    tmp_path: Path, occupied: str
) -> None:
    (tmp_path / occupied).write_text("mine")
    with pytest.raises(RunError, match="the folder exists and is not empty"):
        create(tmp_path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(occupied, "mine")]


def test_create_refuses_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match=r"run: cannot be made: File exists$"):
        create(tmp_path / "run")


def test_create_refuses_a_seed_or_recipe_it_cannot_record(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        create(tmp_path / "run", extra={"x": object()})
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 3},
            "run.json: format_version is 3, this program reads 1 and 2",
        ),
        (
            {"format_version": ...},
            "run.json: format_version is None, this program reads 1 and 2",
        ),
        ({"seed": "3"}, "run.json: seed is '3', expected int"),
        ({"env": ...}, "run.json: env is None, expected str"),
        ({"kind": "supervised"}, "run.json: kind is 'supervised' where 'upi' is needed"),
    ],
)
def test_a_wrong_field_of_run_json_is_named_with_its_value(
    made: Run, changes: dict[str, Any], message: str
) -> None:
    edit_json(made.path / "run.json", **changes)
    with pytest.raises(RunError) as caught:
        Run.open(made.path, kind="upi")
    assert str(caught.value) == f"{made.path}/{message}"


def test_what_is_no_run_folder_is_refused(made: Run) -> None:
    with pytest.raises(RunError, match=r"nowhere: no such run folder$"):
        Run.open(made.path / "nowhere")
    with pytest.raises(RunError, match=r"checkpoints: not a run folder .*; did you mean .*/run\?$"):
        Run.open(made.path / "checkpoints")
    with pytest.raises(RunError, match=r"not a run folder \(it holds no run\.json\)$"):
        Run.open(made.path.parent)
    (made.path / "run.json").write_text('{"kind": ')
    with pytest.raises(RunError, match=r"run\.json: not valid JSON \(.*line 1"):
        Run.open(made.path)
    (made.path / "run.json").write_text("[]")
    with pytest.raises(RunError, match=r"run\.json: expected a JSON object, got list"):
        Run.open(made.path)


def test_a_recipe_edited_afterwards_is_refused(made: Run) -> None:
    recipe = made.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("5000", "6000"))
    with pytest.raises(RunError, match=r"recipe\.yaml: changed since the run was made"):
        made.load_recipe(Recipe)


def test_a_run_opened_for_reading_or_closed_takes_nothing(made: Run) -> None:
    save(made, 1)
    before = snapshot(made.path)
    reader = Run.open(made.path)
    made.close()
    for one in (reader, made):
        for act in (
            lambda one=one: one.log(1, {"a": 1.0}),
            lambda one=one: save(one, 2),
            lambda one=one: one.truncate_metrics(0),
        ):
            with pytest.raises(RunError, match="opened for reading only, or closed"):
                act()
    assert snapshot(made.path) == before
    assert_whole(reader, 1)


def test_a_run_that_could_not_be_made_leaves_the_path_free(
    tmp_path: Path, small_files: Any
) -> None:
    small_files(100)
    with pytest.raises(RunError, match="File too large"):
        create(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    small_files(10**9)
    create(tmp_path / "run").close()


def test_a_small_disk_fills_up_and_nothing_is_lost(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs privileges")
    try:
        with create(disk / "run") as made:
            save(made, 1)
            made.log(1, {"a": 1.0})
            (disk / "ballast").write_bytes(bytes(150_000))
            big = {"w": torch.zeros(60_000)}
            with pytest.raises(RunError, match=r"weights\.safetensors: .*No space left on device"):
                made.save_checkpoint(2, weights=big, state={})
            assert made.checkpoint_steps() == [1]
            assert_whole(made, 1)
            (disk / "ballast").unlink()
            save(made, 2)
            assert_whole(made, 2)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_and_log() -> None:
    script = [sys.executable, str(HERE / "crash_points.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Fewer would mean that the system calls are not intercepted any more.
    points = int(done.stdout.split(" kills at system calls")[0])
    assert points >= 120


@pytest.mark.parametrize("left", [".making", "recipe.yaml", ".run.json.77.tmp", "checkpoints"])
def test_a_folder_in_which_a_create_was_killed_can_be_made_a_run(tmp_path: Path, left: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".making").touch()
    (path / "checkpoints").mkdir()
    if left != "checkpoints":
        (path / left).write_text("half")
    with pytest.raises(RunError, match=r"run: the making of this run was interrupted; start it"):
        Run.open(path)
    with create(path) as made:
        assert made.load_recipe(Recipe) == Recipe()
    names = {".lock", "checkpoints", "recipe.yaml", "run.json"}
    assert {entry.name for entry in path.iterdir()} == names


def test_files_that_no_create_left_are_never_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="the folder exists and is not empty; empty it"):
        create(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("field", ["seed", "env", "created", "command"])
def test_a_flipped_bit_that_leaves_valid_json_is_noticed(tmp_path: Path, field: str) -> None:
    create(tmp_path / "run").close()
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    changed = 7 if field == "seed" else record[field][:-1]
    file.write_text(json.dumps(record | {field: changed}, indent=2))
    with pytest.raises(RunError, match=r"run\.json: changed since it was written"):
        Run.open(tmp_path / "run")


def test_a_run_of_version_1_is_read(tmp_path: Path) -> None:
    with create(tmp_path / "run") as made:
        save(made, 1, tag="best")
    files = ("run.json", "checkpoints/best.json", "checkpoints/step-000000001/checkpoint.json")
    for name in files:
        file = tmp_path / "run" / name
        record = json.loads(file.read_text())
        del record["sha256"]
        record.pop("metrics", None)
        file.write_text(json.dumps(record | {"format_version": 1}))
    run = Run.open(tmp_path / "run", kind="upi")
    assert_whole(run, 1)
    assert run.tagged_step("best") == 1
    assert run.check_metrics(run.load_checkpoint())
