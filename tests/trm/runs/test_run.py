"""Run folders under everything that goes wrong: kills, full disks, damaged files, two writers.

The kill test runs `crash_points.py` beside this file in a process of its own.
"""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from trm.compute.device import Placement
from trm.compute.streams import named_streams
from trm.runs import durable, run
from trm.runs.durable import FolderLock
from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    steps: int = 5000
    lr: float = 1e-3


def create(path: Path, **changes: Any) -> Run:
    fields: dict[str, Any] = {"kind": "upi", "env": "sudoku4x4", "seed": 3, "recipe": Recipe()}
    return Run.create(path, **(fields | changes))


def weights_of(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50, 7), float(step)), "b": torch.arange(step, step + 5)}


def save(made: Run, step: int, **more: Any) -> Path:
    state = {"counter": step, "pool": np.full(300, step, np.uint64)}
    return made.save_checkpoint(step, weights=weights_of(step), state=state, **more)


def assert_whole(made: Run, step: int) -> None:
    """The checkpoint of this step is there with all that `save` put into it."""
    loaded = made.load_checkpoint(step)
    assert loaded.step == loaded.state["counter"] == step
    assert all(torch.equal(loaded.weights[k], v) for k, v in weights_of(step).items())
    assert loaded.state["pool"].tolist() == [step] * 300


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of its content; locks left out."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Run]:
    with create(tmp_path / "run") as new:
        yield new


# --- create and open


def test_a_run_opens_as_it_was_created(tmp_path: Path) -> None:
    placement = Placement(threads=2)
    command = "upi-trm train --env sudoku4x4"
    with create(tmp_path / "a" / "run", placement=placement, command=command, extra={"x": [1]}):
        pass
    opened = Run.open(tmp_path / "a" / "run", kind="upi")
    info = opened.info
    assert (info.kind, info.env, info.seed, info.extra) == ("upi", "sudoku4x4", 3, {"x": [1]})
    assert info.command == command
    assert info.provenance["placement"] == placement.to_json_dict()
    assert info.provenance["torch_threads"] == torch.get_num_threads()
    assert opened.load_recipe(Recipe) == Recipe()
    assert opened.load_recipe(Recipe, ["steps=7"]) == Recipe(steps=7)
    assert not opened.writable


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


def edit_json(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (record | changes).items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 2},
            "run.json: format_version is 2, this program reads and writes 1",
        ),
        (
            {"format_version": ...},
            "run.json: format_version is None, this program reads and writes 1",
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
            lambda one=one: one.tag_checkpoint("best", 1),
        ):
            with pytest.raises(RunError, match="opened for reading only, or closed"):
                act()
    assert snapshot(made.path) == before
    assert_whole(reader, 1)


# --- checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(made: Run) -> None:
    streams = named_streams(3)
    streams.numpy("policy").random(5)
    shared = torch.randn(4, 6)
    weights = {
        "float": torch.randn(3, 5),
        "half": torch.randn(3).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "tied": shared,
        "tied_too": shared,
        "view": shared.T[1:3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    state = {"streams": streams.state_dict(), "mask": np.array([True, False]), "best": None}
    folder = made.save_checkpoint(1280, weights=weights, state=state)
    assert folder.name == "step-000001280"

    loaded = Run.open(made.path).load_checkpoint()
    assert {k: v.dtype for k, v in loaded.weights.items()} == {
        k: v.dtype for k, v in weights.items()
    }
    assert all(torch.equal(loaded.weights[k], v) for k, v in weights.items())
    other = named_streams(0)
    other.load_state_dict(loaded.state["streams"])
    assert other.numpy("policy").random() == streams.numpy("policy").random()
    assert loaded.state["mask"].tolist() == [True, False]


def test_other_programs_can_read_the_files(made: Run) -> None:
    folder = save(made, 5)
    assert safetensors.torch.load_file(folder / "weights.safetensors").keys() == {"w", "b"}
    torch.load(folder / "state.pt", weights_only=True)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["step"] == 5
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_two_newest_and_the_tagged_ones_stay(made: Run) -> None:
    for step in range(1, 7):
        save(made, step, tag="best" if step == 2 else None)
    assert made.checkpoint_steps() == [2, 5, 6]
    assert made.load_checkpoint("best").step == 2
    save(made, 7, tag="best")
    assert made.checkpoint_steps() == [6, 7]
    assert made.tagged_step("best") == 7
    made.tag_checkpoint("paper", 6)
    save(made, 8)
    save(made, 9)
    assert made.checkpoint_steps() == [6, 7, 8, 9]
    assert made.tagged_step("unknown") is None


def test_a_checkpoint_that_is_not_there_is_refused_with_the_list(made: Run) -> None:
    with pytest.raises(RunError, match=r"checkpoints: holds no checkpoint yet$"):
        made.load_checkpoint()
    save(made, 4, tag="best")
    save(made, 5)
    for wanted in (7, "worst"):
        with pytest.raises(RunError, match=f"no checkpoint {wanted}; there are 4, 5, best"):
            made.load_checkpoint(wanted)
    with pytest.raises(RunError, match="step-000000009: no such checkpoint"):
        made.tag_checkpoint("best", 9)
    with pytest.raises(ValueError, match=r"tag must be lower-case letters.*got '\.\./x'"):
        made.tag_checkpoint("../x", 4)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        made.save_checkpoint(-1, weights={}, state={})


def test_a_tag_that_an_interrupted_writer_did_not_come_to_is_written_by_the_next(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    save(made, 1, tag="best")
    with monkeypatch.context() as patch:
        patch.setattr(run, "_write_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            save(made, 2, tag="best")
    assert made.tagged_step("best") == 1
    made.close()
    with Run.open(made.path, write=True) as again:
        assert again.tagged_step("best") == 2
        # What was tagged by hand afterwards stays so.
        save(again, 3)
        again.tag_checkpoint("best", 3)
    with Run.open(made.path, write=True) as again:
        assert again.tagged_step("best") == 3


def test_a_tag_that_failed_does_not_come_back_after_a_later_one(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run, "_write_tag", full)
        with pytest.raises(RunError, match="could not be written"):
            save(made, 1, tag="best")
    save(made, 2, tag="best")
    made.close()
    with Run.open(made.path, write=True) as again:
        assert again.tagged_step("best") == 2


def test_a_bad_tag_is_refused_before_anything_is_written(made: Run) -> None:
    with pytest.raises(ValueError, match="tag must be lower-case letters"):
        save(made, 1, tag="../x")
    assert made.checkpoint_steps() == []


def test_saving_a_step_again_replaces_it(made: Run) -> None:
    save(made, 4)
    made.save_checkpoint(4, weights={"w": torch.zeros(1)}, state={"again": True})
    assert made.load_checkpoint(4).state == {"again": True}
    assert [p.name for p in (made.path / "checkpoints").iterdir()] == ["step-000000004"]


def test_after_going_back_the_abandoned_future_goes_with_the_next_save(made: Run) -> None:
    for step in (10, 20, 30):
        save(made, step)
    # Resumed from 20, say because 30 is damaged: until the next save nothing is lost.
    assert made.checkpoint_steps() == [20, 30]
    save(made, 25)
    assert made.checkpoint_steps() == [20, 25]


FILES = ("weights.safetensors", "state.pt", "checkpoint.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["empty", "half", "one byte short", "one bit", "longer", "gone"])
def test_a_damaged_checkpoint_names_the_file_and_the_way_out(
    made: Run, name: str, damage: str
) -> None:
    save(made, 10)
    file = save(made, 20) / name
    data = file.read_bytes()
    middle = len(data) // 2
    damaged = {
        "empty": b"",
        "half": data[:middle],
        "one byte short": data[:-1] if name != "checkpoint.json" else data[:-2],
        "one bit": data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :],
        "longer": data + b"x",
    }
    file.unlink() if damage == "gone" else file.write_bytes(damaged[damage])
    before = snapshot(made.path)
    with pytest.raises(RunError) as caught:
        made.load_checkpoint()
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert message.endswith(
        f"; step 10 is whole: move step-000000020 out of {made.path}/checkpoints to go on from it"
    )
    assert snapshot(made.path) == before

    # What the message advises works.
    (made.path / "checkpoints" / "step-000000020").rename(made.path.parent / "aside")
    assert made.load_checkpoint().step == 10


def test_damage_is_told_with_expected_and_found(made: Run) -> None:
    folder = save(made, 20)
    data = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(data[:100])
    with pytest.raises(RunError) as caught:
        made.load_checkpoint()
    assert str(caught.value) == (
        f"{folder}/state.pt: truncated: 100 bytes where checkpoint.json says {len(data)};"
        " no earlier checkpoint is whole"
    )
    (folder / "state.pt").write_bytes(bytes(len(data)))
    zeros, real = (hashlib.sha256(x).hexdigest()[:12] for x in (bytes(len(data)), data))
    with pytest.raises(RunError, match=f"corrupt: sha256 {zeros} where .* says {real}; no earlier"):
        made.load_checkpoint()


def test_a_damaged_earlier_checkpoint_is_not_offered(made: Run) -> None:
    made.tag_checkpoint("old", int(save(made, 5).name[5:]))
    for step in (10, 20):
        folder = save(made, step)
        (folder / "state.pt").write_bytes(b"")
    with pytest.raises(RunError, match="; step 5 is whole: move step-000000020 out of"):
        made.load_checkpoint()


def test_a_checkpoint_of_another_version_is_refused(made: Run) -> None:
    folder = save(made, 20)
    edit_json(folder / "checkpoint.json", format_version=9)
    with pytest.raises(RunError, match=r"checkpoint\.json: format_version is 9, this program"):
        made.load_checkpoint()


def test_a_reader_follows_a_trainer_that_deletes_under_it(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Run.open(made.path)
    for step in (1, 2):
        save(made, step)
    steps = iter(["find 2", 3, 4, 5])
    read_checked = run._read_checked

    def read_late(folder: Path) -> dict[str, bytes]:
        if next(steps, None) == "find 2":
            for step in (3, 4, 5):
                save(made, step)
        return read_checked(folder)

    monkeypatch.setattr(run, "_read_checked", read_late)
    assert reader.load_checkpoint().step == 5


# --- order and failure of writes


def test_nothing_old_goes_before_the_new_one_is_on_disk(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(made, 1)
    save(made, 2)
    made.log(3, {"a": 1.0})
    events: list[tuple[str, str]] = []
    fsync, rename, rmtree = os.fsync, os.rename, run.shutil.rmtree

    def short(path: Any) -> str:
        return str(path).split("/run/")[-1].removeprefix("checkpoints/")

    def record_fsync(descriptor: int) -> None:
        events.append(("sync", short(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def record_rename(source: Any, target: Any) -> None:
        events.append(("rename", short(target)))
        rename(source, target)

    def record_rmtree(path: Any, **options: Any) -> None:
        if Path(path).exists():
            events.append(("delete", short(path)))
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    monkeypatch.setattr(run.shutil, "rmtree", record_rmtree)
    save(made, 3)
    partial = ".partial-step-000000003"
    assert events == [
        ("sync", "metrics.jsonl"),
        ("sync", f"{partial}/weights.safetensors"),
        ("sync", f"{partial}/state.pt"),
        ("sync", f"{partial}/checkpoint.json"),
        ("sync", partial),
        ("rename", "step-000000003"),
        ("sync", "checkpoints"),
        ("rename", ".deleted-step-000000001"),
        ("delete", ".deleted-step-000000001"),
    ]


def failing(call: Any, *, at: int, number: int) -> Any:
    """The `at`-th call fails as the operating system would."""
    calls = iter(range(10**6))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize(
    ("call", "at"), [("fsync", i) for i in range(5)] + [("rename", 0), ("rename", 1)]
)
def test_a_failing_write_leaves_the_earlier_checkpoints_whole(
    made: Run, monkeypatch: pytest.MonkeyPatch, call: str, at: int, number: int
) -> None:
    save(made, 1)
    save(made, 2)
    save(made, 2)
    before = snapshot(made.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), at=at, number=number))
        with pytest.raises(RunError) as caught:
            # The same step again: the rename that moves the old one away can fail as well.
            save(made, 2)
    assert os.strerror(number) in str(caught.value)
    assert "step-000000002" in str(caught.value)
    assert_whole(made, 1)
    assert_whole(made, 2)
    if (call, at) == ("fsync", 4):
        # Both stay while it is unknown which of them the disk holds; the next writer tidies up.
        made.close()
        made = Run.open(made.path, write=True)
    assert snapshot(made.path).keys() == before.keys()
    save(made, 3)
    assert made.checkpoint_steps() == [2, 3]


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A function that lets no file of this process grow beyond a size: writes fail for real."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 10, 700, 2000])
def test_a_write_cut_short_by_the_system_leaves_no_partial_checkpoint(
    made: Run, small_files: Any, size: int
) -> None:
    save(made, 1)
    before = snapshot(made.path)
    small_files(size)
    with pytest.raises(RunError, match=r"/(weights\.safetensors|state\.pt): could not be saved"):
        save(made, 2)
    assert snapshot(made.path) == before
    assert [p.name for p in (made.path / "checkpoints").iterdir()] == ["step-000000001"]


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


# --- kills


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_and_log() -> None:
    script = [sys.executable, str(HERE / "crash_points.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Fewer would mean that the system calls are not intercepted any more.
    points = int(done.stdout.split(" kills at system calls")[0])
    assert points >= 120


# --- two writers

HOLDER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from trm.runs.durable import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if sys.argv[2] == "fork":
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"x")
        time.sleep(3600)
        os._exit(0)
    os.read(reader, 1)
print("held", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_second_writer_is_refused_until_the_first_has_died(made: Run, how: str) -> None:
    save(made, 1)
    made.close()
    command = [sys.executable, "-c", HOLDER, str(made.path / ".lock"), how, str(HERE.parent)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as caught:
            Run.open(made.path, write=True)
        assert str(caught.value) == (
            f"{made.path}: process {holder.pid} is writing to this run;"
            " wait for it or stop it first"
        )
        assert_whole(Run.open(made.path), 1)
        # Workers that the first one forked may live on; they don't keep the lock.
        holder.kill()
        holder.wait()
        Run.open(made.path, write=True).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL) if how == "fork" else holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_lock_is_free_after_close_and_after_a_refused_open(made: Run) -> None:
    with pytest.raises(RunError, match=f"process {os.getpid()} is writing"):
        Run.open(made.path, write=True)
    made.close()
    made.close()
    edit_json(made.path / "run.json", kind="other")
    with pytest.raises(RunError, match="kind is"):
        Run.open(made.path, kind="upi", write=True)
    FolderLock(made.path / ".lock").release()


# --- metrics


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


# --- durable files


def test_replacing_a_file_keeps_the_old_one_when_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.replace_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, at=0, number=errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        durable.replace_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
