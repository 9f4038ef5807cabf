"""Sizes and costs of a teacher cache, and the figures of its audit."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from cache_cases import (
    EXAMPLES,
    RECIPE,
    build_here,
    planned,
    shard_files,
    teacher,
)
from planner_cases import literal_js

from supervised.data_sets.datasets import IGNORE
from supervised.planner.cache_audit import audit_cache, cache_info
from supervised.planner.cache_manifest import (
    read_manifest,
    teacher_hash,
)
from supervised.planner.teacher_cache import TeacherCache


def test_info_counts_bytes_shards_and_calls_of_the_teacher(tmp_path: Path) -> None:
    folder = build_here(tmp_path / "cache", shards=2)
    info = cache_info(folder)
    assert (info.num_examples, info.num_shards, info.shards_built) == (EXAMPLES, 4, 2)
    assert info.bytes == sum(map(len, shard_files(folder).values()))
    assert info.bytes_per_entry == info.bytes / 12
    assert info.teacher_steps == 6 * 3 * 3  # examples x R x T_max
    assert info.cpu_seconds > 0
    assert json.loads(json.dumps(dataclasses.asdict(info)))["teacher"] == teacher_hash(teacher())
    assert read_manifest(folder).digest == read_manifest(folder).digest


def test_the_audit_is_that_of_brute_force(built: Path) -> None:
    batch, found = planned()
    audit = audit_cache(TeacherCache.open(built))
    tokens = found.logits.argmax(dim=-1)
    same = [bool((tokens[row, 0] == tokens[row, 1]).all()) for row in range(EXAMPLES)]
    everywhere = torch.ones(16, dtype=torch.bool)
    js = [
        literal_js(found.logits[row, 0], found.logits[row, 1], everywhere)
        for row in range(EXAMPLES)
    ]
    assert (batch.labels != IGNORE).all()
    assert audit.num_examples == EXAMPLES
    assert audit.masked_identical == sum(same) / EXAMPLES
    assert audit.stablemax_js == pytest.approx(sum(js) / EXAMPLES)
    assert audit.mean_loss == pytest.approx(float(found.loss[:, 0].mean()))
    assert audit.mean_step == float(found.step[:, 0].double().mean())


def test_without_noise_the_audit_finds_copies(tmp_path: Path) -> None:
    planner = dataclasses.replace(RECIPE.planner, noise=0.0)
    recipe = dataclasses.replace(RECIPE, planner=planner)
    audit = audit_cache(TeacherCache.open(build_here(tmp_path / "cache", recipe)), num=5)
    assert (audit.num_examples, audit.masked_identical) == (5, 1.0)
    assert audit.stablemax_js == pytest.approx(0.0, abs=1e-12)


def test_an_audit_of_single_entries_says_nothing_of_pairs(tmp_path: Path) -> None:
    planner = dataclasses.replace(RECIPE.planner, entries=1)
    recipe = dataclasses.replace(RECIPE, planner=planner)
    audit = audit_cache(TeacherCache.open(build_here(tmp_path / "cache", recipe)))
    assert audit.masked_identical is None and audit.stablemax_js is None
    assert audit.mean_loss > 0
