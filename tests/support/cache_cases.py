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
from supervised.data_sets.datasets import BoardDataset, TokenDataset
from supervised.planner import teacher_cache
from supervised.planner.planner import PlannerConfig
from supervised.planner.teacher_cache import (
    CacheManifest,
    CacheRecipe,
    StorageConfig,
    build_shard,
    data_hash,
    teacher_hash,
)
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
    in_job = Path(getattr(sys.modules["__main__"], "__file__", "")).name == "jobs.py"
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
    source: Callable[[], object] = open_source,
    shards: int | None = None,
) -> Path:
    """A cache built in this process, without jobs; only the first `shards`, if given."""
    model, data = source()  # type: ignore[misc]
    manifest = CacheManifest(
        format_version=teacher_cache.FORMAT_VERSION,
        teacher=teacher_hash(model),
        data=data_hash(data),
        recipe=teacher_cache.dump_recipe(recipe),
        num_examples=len(data),
        num_positions=16,
        vocab_size=6,
        entries=recipe.planner.entries,
        shard_examples=recipe.storage.examples,
    )
    teacher_cache._claim(folder, manifest)
    for number in range(manifest.num_shards if shards is None else shards):
        build_shard(folder, recipe, source, number)  # type: ignore[arg-type]
    return folder
