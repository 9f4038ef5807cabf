"""The teacher cache as students read it: what is served, and what is refused as damaged."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_cases import (
    EXAMPLES,
    build_here,
    dataset,
    planned,
    with_storage,
)

from supervised.data_sets.datasets import TokenBatch
from supervised.planner.teacher_cache import TeacherCache, TeacherTargets


def sample(
    cache: TeacherCache, batch: TokenBatch, rng: np.random.Generator, *, quality: float | None
) -> TeacherTargets:
    return cache.targets(cache.choose(batch, rng, quality=quality))


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
        (lambda f: (f / "cache.json").write_text("{"), r"cache\.json: not valid JSON"),
        (lambda f: (f / "cache.json").write_text('{"format_version": 9}'), "format version is 9"),
        (lambda f: (f / "shards/shard-00002.safetensors").unlink(), "1 of 4 shards are missing"),
        (lambda f: (f / "shards/shard-00002.safetensors").write_bytes(b"12"), "damaged"),
        (
            lambda f: (f / "shards/shard-00002.safetensors").write_bytes(
                (f / "shards/shard-00002.safetensors").read_bytes()[:-1]
            ),
            r"shard-00002\.safetensors: damaged: .*file not fully covered",
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
