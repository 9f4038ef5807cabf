"""Building a teacher cache: kills, races, a full disk, and another cache in the folder."""

import errno
import importlib.util
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from cache_cases import (
    EXAMPLES,
    RECIPE,
    build_here,
    dataset,
    open_source,
    shard_files,
    teacher,
    with_storage,
)

from supervised.planner.cache_building import build_shard, cache_jobs
from supervised.planner.cache_manifest import (
    data_hash,
    teacher_hash,
)
from supervised.planner.teacher_cache import TeacherCache
from trm.compute.jobs import map_jobs


@pytest.mark.slow
def test_a_killed_build_of_four_processes_resumes_to_the_same_files(
    built: Path, tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    source = partial(open_source, deadly=deadly)
    folder = tmp_path / "cache"
    results = map_jobs(cache_jobs(folder, RECIPE, source), workers=4)
    assert sorted(result.state for result in results) == ["done", "done", "done", "failed"]
    with pytest.raises(ValueError, match="1 of 4 shards are missing"):
        TeacherCache.open(folder)
    results = map_jobs(cache_jobs(folder, RECIPE, source), workers=4)
    assert sorted(result.state for result in results) == ["done", *["skipped"] * 3]
    assert shard_files(folder) == shard_files(built)
    assert (folder / "cache.json").read_bytes() == (built / "cache.json").read_bytes()


def test_two_builders_that_race_for_a_shard_lose_nothing(tmp_path: Path) -> None:
    recipe, folder = with_storage(examples=EXAMPLES), tmp_path / "cache"
    ends: list[str] = []

    def build() -> None:
        results = map_jobs(cache_jobs(folder, recipe, open_source), workers=1)
        ends.extend(result.state for result in results)

    builders = [threading.Thread(target=build) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(ends) == 2 and set(ends) <= {"done", "skipped"}
    assert shard_files(folder) == shard_files(build_here(tmp_path / "here", recipe))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra cluster is missing")
def test_a_ray_cluster_with_a_killed_worker_builds_the_same_files(
    built: Path, tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    source = partial(open_source, deadly=deadly, parent=True)
    folder = tmp_path / "cache"
    results = map_jobs(cache_jobs(folder, RECIPE, source), backend="ray", workers=2)
    assert not deadly.exists()
    assert {result.state for result in results} == {"done"}
    assert sorted(result.attempts for result in results) == [1, 1, 1, 2]
    assert shard_files(folder) == shard_files(built)


def test_a_full_disk_is_named_and_leaves_no_part_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_here(tmp_path / "cache", shards=1)
    before = shard_files(folder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trm.runs.durable.os.fsync", full)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors: cannot be written \(No space"):
        build_shard(folder, RECIPE, open_source, 1)
    assert shard_files(folder) == before
    monkeypatch.undo()
    build_shard(folder, RECIPE, open_source, 1)
    assert len(shard_files(folder)) == 2


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    folder = build_here(tmp_path / "cache", shards=0)
    (folder / "shards" / ".shard-00000.safetensors.77.tmp").write_bytes(b"half")
    build_shard(folder, RECIPE, open_source, 0)
    assert list(shard_files(folder)) == ["shard-00000.safetensors"]


def test_a_teacher_without_finite_logits_is_refused(tmp_path: Path) -> None:
    def broken() -> tuple[object, object]:
        model = teacher()
        with torch.no_grad():
            model.readout.weight.fill_(torch.nan)
        return model, dataset()

    with pytest.raises(ValueError, match=r"not finite on some of the examples 0\.\.1"):
        build_here(tmp_path / "cache", source=broken)


def test_another_teacher_data_set_or_recipe_is_refused_with_both_hashes(built: Path) -> None:
    ours, theirs = teacher_hash(teacher()), teacher_hash(teacher(1))
    assert ours != theirs
    with pytest.raises(ValueError, match=f"another teacher: sha256 {ours} there, {theirs} here"):
        TeacherCache.open(built, teacher=theirs)
    ours, theirs = data_hash(dataset()), data_hash(dataset(1))
    assert ours != theirs
    with pytest.raises(ValueError, match=f"another data set: sha256 {ours} there, {theirs} here"):
        TeacherCache.open(built, data=theirs)
    TeacherCache.open(built, teacher=teacher_hash(teacher()), data=data_hash(dataset()))
    before = shard_files(built)
    for source, recipe, message in (
        (partial(open_source, teacher_seed=1), RECIPE, "another teacher"),
        (partial(open_source, data_seed=1), RECIPE, "another data set"),
        (open_source, with_storage(logits="none"), "another cache: recipe is"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_jobs(built, recipe, source)
    assert shard_files(built) == before


def test_a_job_whose_teacher_changed_meanwhile_writes_nothing(tmp_path: Path) -> None:
    folder = build_here(tmp_path / "cache", shards=0)
    with pytest.raises(ValueError, match="another teacher"):
        build_shard(folder, RECIPE, partial(open_source, teacher_seed=1), 0)
    assert not shard_files(folder)
