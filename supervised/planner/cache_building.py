"""Building a teacher cache (TRM-Planner, Sec. 4.3): one job a shard, on one machine or many.

A job plans the examples of a shard with `supervised.planner.planner` and writes the shard by
renaming it into place. A build that was killed goes on with the shards that are missing, and any
number of builds may work on one folder, which `cache_manifest` describes.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch

from supervised.data_sets.datasets import TokenDataset
from supervised.planner import cache_manifest
from supervised.planner.planner import plan, teacher_on
from supervised.planner.shards import join, pack, shard_bytes
from trm.compute.jobs import Job
from trm.compute.process import ResourceMeter
from trm.nn.token_model import TokenModel
from trm.runs.durable import replace_durably
from trm.runs.recipe import dump_recipe

OpenSource = Callable[[], tuple[TokenModel, TokenDataset]]
"""Gives a job the teacher, in evaluation mode on its device, and the data set's split."""


def cache_jobs(
    folder: Path, recipe: cache_manifest.CacheRecipe, open_source: OpenSource
) -> list[Job]:
    """Claim a folder for a cache; the jobs, one a shard, that `map_jobs` builds it with.

    Args:
        folder: the cache's folder; made where it is missing.
        recipe: what to build.
        open_source: called here once and in every job; a function that can be imported, or a
            `functools.partial` of one.

    Raises:
        ValueError: the folder holds a cache of another teacher, data set or recipe.
    """
    manifest = manifest_of(*open_source(), recipe)
    cache_manifest.claim_folder(folder, manifest)
    return [
        Job(
            key=cache_manifest.shard_name(number),
            work=functools.partial(build_shard, folder, recipe, open_source, number),
            output=cache_manifest.shard_file(folder, number),
            log=folder / "logs" / f"{cache_manifest.shard_name(number)}.log",
        )
        for number in range(manifest.num_shards)
    ]


def manifest_of(
    model: TokenModel, dataset: TokenDataset, recipe: cache_manifest.CacheRecipe
) -> cache_manifest.CacheManifest:
    """The manifest of the cache that a teacher, a data set and a recipe make."""
    if model.shape.vocab_size > 256:
        raise ValueError(f"vocab_size must be at most 256, got {model.shape.vocab_size}")
    return cache_manifest.CacheManifest(
        format_version=cache_manifest.FORMAT_VERSION,
        teacher=cache_manifest.teacher_hash(model),
        data=cache_manifest.data_hash(dataset),
        recipe=dump_recipe(recipe),
        num_examples=len(dataset),
        num_positions=dataset.info.num_positions,
        vocab_size=model.shape.vocab_size,
        entries=recipe.planner.entries,
        shard_examples=recipe.storage.examples,
    )


def build_shard(
    folder: Path, recipe: cache_manifest.CacheRecipe, open_source: OpenSource, number: int
) -> None:
    """The work of a job: plan the examples of shard `number` and write the whole shard.

    Raises:
        ValueError: the source gives another teacher than that of the cache, logits that are not
            finite, or the disk does not take the shard.
    """
    meter = ResourceMeter()
    model, dataset = open_source()
    manifest = cache_manifest.read_manifest(folder, teacher=cache_manifest.teacher_hash(model))
    examples = manifest.examples_of(number)
    parts = []
    for indices in cache_manifest.batches(examples, recipe.batch_size):
        batch = dataset.batch(indices)
        keys = cache_manifest.example_keys(batch)
        placed = batch.to(model.start_h.device)
        start, advance = teacher_on(model, placed.inputs, placed.puzzle)
        entries = plan(start, advance, placed.labels, recipe.planner, keys=keys)
        if not torch.isfinite(entries.logits).all():
            raise ValueError(
                f"teacher: its logits are not finite on some of the examples "
                f"{indices[0]}..{indices[-1]}"
            )
        parts.append(pack(keys, batch.labels, entries, recipe.storage))
    data = shard_bytes(join(parts), manifest, number)
    steps = len(examples) * recipe.planner.rollouts * recipe.planner.steps
    cost = json.dumps({"teacher_steps": steps, **meter.state_dict()})
    output = cache_manifest.shard_file(folder, number)
    try:
        _write(cache_manifest.cost_file(folder, number), f"{cost}\n".encode())
        _write(output, data)
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror}); the other shards are whole, and the "
            "same command goes on with this one"
        ) from error


def _write(file: Path, content: bytes) -> None:
    """Replace a file and remove what killed attempts left; the job's lock keeps others out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for leftover in file.parent.glob(f".{file.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    replace_durably(file, content)
