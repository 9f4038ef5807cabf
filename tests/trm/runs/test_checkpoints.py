"""Checkpoints under everything that goes wrong: damaged files, full disks, kills half-way."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from run_cases import (
    assert_whole,
    edit_json,
    failing,
    save,
    snapshot,
)

from trm.compute.streams import named_streams
from trm.runs import checkpoints
from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


def tags_of(run: Run) -> checkpoints.CheckpointFolder:
    return checkpoints.CheckpointFolder(run.path / "checkpoints")


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
    tags_of(made).tag("paper", 6)
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
        tags_of(made).tag("best", 9)
    with pytest.raises(ValueError, match=r"tag must be lower-case letters.*got '\.\./x'"):
        tags_of(made).tag("../x", 4)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        made.save_checkpoint(-1, weights={}, state={})


def test_a_tag_that_an_interrupted_writer_did_not_come_to_is_written_by_the_next(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    save(made, 1, tag="best")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointFolder, "_write_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            save(made, 2, tag="best")
    assert made.tagged_step("best") == 1
    made.close()
    with Run.open(made.path, write=True) as again:
        assert again.tagged_step("best") == 2
        # What was tagged by hand afterwards stays so.
        save(again, 3)
        tags_of(again).tag("best", 3)
    with Run.open(made.path, write=True) as again:
        assert again.tagged_step("best") == 3


def test_a_tag_that_failed_does_not_come_back_after_a_later_one(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointFolder, "_write_tag", full)
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
    tags_of(made).tag("old", int(save(made, 5).name[5:]))
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
    read_checked = checkpoints._read_checked

    def read_late(folder: Path, step: int) -> Any:
        if next(steps, None) == "find 2":
            for step in (3, 4, 5):
                save(made, step)
        return read_checked(folder, step)

    monkeypatch.setattr(checkpoints, "_read_checked", read_late)
    assert reader.load_checkpoint().step == 5


def test_nothing_old_goes_before_the_new_one_is_on_disk(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(made, 1)
    save(made, 2)
    made.log(3, {"a": 1.0})
    events: list[tuple[str, str]] = []
    fsync, rename, rmtree = os.fsync, os.rename, checkpoints.shutil.rmtree

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
    monkeypatch.setattr(checkpoints.shutil, "rmtree", record_rmtree)
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


def test_a_checkpoint_that_is_being_replaced_by_one_of_the_same_step_stays_readable(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(made, 3)
    seen: list[int] = []
    rename = os.rename

    def looked_at(source: Any, target: Any) -> None:
        rename(source, target)
        reader = Run.open(made.path)
        assert_whole(reader, reader.checkpoint_steps()[-1])
        seen.append(reader.load_checkpoint().step)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", looked_at)
        save(made, 3)
    assert seen == [3, 3]


@pytest.mark.parametrize(
    "entry", [None, 3, "x", [], {}, {"bytes": "3", "sha256": "x"}, {"bytes": -1, "sha256": "x"}]
)
def test_an_entry_of_a_manifest_that_no_program_writes_is_refused(made: Run, entry: Any) -> None:
    folder = save(made, 3)
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    edit_json(folder / "checkpoint.json", files=files | {"state.pt": entry})
    with pytest.raises(RunError, match=r"checkpoint\.json: state\.pt is .*expected bytes and sha"):
        made.load_checkpoint()


def test_the_manifest_of_another_step_is_refused(made: Run) -> None:
    folder = save(made, 3)
    edit_json(folder / "checkpoint.json", step=4)
    with pytest.raises(RunError, match=r"checkpoint\.json: step is 4 in the folder of step 3"):
        made.load_checkpoint()
