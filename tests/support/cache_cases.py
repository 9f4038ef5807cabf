"""A tiny teacher and data set for the tests of the teacher's cache; jobs can import it."""

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from supervised.data_sets.datasets import BoardDataset, TokenBatch, TokenDataset
from supervised.planner.cache_building import build_shard, manifest_of
from supervised.planner.cache_manifest import (
    CacheRecipe,
    StorageConfig,
    claim_folder,
    example_keys,
)
from supervised.planner.planner import Candidates, PlannerConfig, plan, teacher_on
from trm.nn.recursion import RecursionSchedule
from trm.nn.token_model import TokenModel, TokenModelConfig, TokenShape

EXAMPLES = 10

RECIPE = CacheRecipe(
    planner=PlannerConfig(choice="last", steps=3, rollouts=3, noise=0.3, entries=2),
    storage=StorageConfig(logits="float32", examples=3),
    batch_size=2,
)
"""Four shards."""


def teacher(seed: int = 0) -> TokenModel:
    model = TokenModel(
        TokenShape(vocab_size=6, num_positions=16),
        TokenModelConfig(width=8, layers=1, heads=2, prefix=1, puzzle_channels=0, expansion=0.1),
        RecursionSchedule(cycles=1, inner=1),
        generator=torch.Generator().manual_seed(seed),
    )
    return model.eval()


@functools.cache
def dataset(seed: int = 0, num: int = EXAMPLES) -> BoardDataset:
    pool = sudoku_instances(side=4, num=num, blanks=(6, 8), seed=seed)
    return BoardDataset.of(Sudoku(4), pool)


def open_source(
    teacher_seed: int = 0, data_seed: int = 0, deadly: Path | None = None, *, parent: bool = False
) -> tuple[TokenModel, TokenDataset]:
    """Teacher and data; with `deadly`, the first job to delete that file dies (or its parent)."""
    in_job = Path(getattr(sys.modules["__main__"], "__file__", "")).name == "attempts.py"
    if deadly is not None and in_job:
        try:
            deadly.unlink()
        except FileNotFoundError:
            pass
        else:
            os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
            signal.pause()
    return teacher(teacher_seed), dataset(data_seed)


def with_storage(**fields: object) -> CacheRecipe:
    storage = dataclasses.replace(RECIPE.storage, **fields)  # type: ignore[arg-type]
    return dataclasses.replace(RECIPE, storage=storage)


def build_here(
    folder: Path,
    recipe: CacheRecipe = RECIPE,
    source: Callable[[], tuple[TokenModel, TokenDataset]] = open_source,
    shards: int | None = None,
) -> Path:
    """A cache built in this process, without jobs; only the first `shards`, if given."""
    manifest = manifest_of(*source(), recipe)
    claim_folder(folder, manifest)
    for number in range(manifest.num_shards if shards is None else shards):
        build_shard(folder, recipe, source, number)
    return folder


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


def shard_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "shards").iterdir())}
