"""What a teacher cache holds and cost, and how good and how different its entries are.

`cache_info` counts the files of a cache, complete or not; `audit_cache` computes the figures of
Table 14 of TRM-Planner. `upi-trm supervised cache info | audit` shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supervised.planner.cache_manifest import cost_file, read_manifest, shard_file
from supervised.planner.teacher_cache import TeacherCache
from trm.bounded import one_line
from trm.nn.stablemax import js_divergence, masked_mean, stablemax_log_probabilities
from trm.runs.files import read_json_object


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInfo:
    """What is in a cache, complete or not."""

    teacher: str
    data: str
    recipe: str
    num_examples: int
    entries: int
    num_shards: int
    shards_built: int
    bytes: int
    """Size of the shards that are built."""
    bytes_per_entry: float | None
    """None where nothing is built."""
    paper_bytes_per_entry: int
    """Size of an entry in the paper's layout: at all positions logits in float32, tokens in int32
    and a mask of bytes; step, loss and score in four bytes each."""
    teacher_steps: int
    """Calls of the teacher for one example, summed: examples x R x T_max."""
    cpu_seconds: float
    """What the jobs that built the shards took, loading included."""


def _cost_in(file: Path) -> dict[str, Any]:
    found = read_json_object(file)
    for name in ("teacher_steps", "cpu_seconds"):
        if type(found.get(name)) not in (int, float):
            raise ValueError(f"{file}: {name} is {one_line(repr(found.get(name)))}, no number")
    return found


def cache_info(folder: Path) -> CacheInfo:
    """Sizes and costs of a cache; nothing is verified."""
    manifest = read_manifest(folder)
    built = [k for k in range(manifest.num_shards) if shard_file(folder, k).exists()]
    size = sum(shard_file(folder, number).stat().st_size for number in built)
    files = [cost_file(folder, number) for number in built]
    costs = [_cost_in(file) for file in files if file.exists()]
    examples = sum(len(manifest.examples_of(number)) for number in built)
    positions, vocab = manifest.num_positions, manifest.vocab_size
    named = ("teacher", "data", "recipe", "num_examples", "entries", "num_shards")
    return CacheInfo(
        **{name: getattr(manifest, name) for name in named},
        shards_built=len(built),
        bytes=size,
        bytes_per_entry=size / (examples * manifest.entries) if built else None,
        paper_bytes_per_entry=positions * (4 * vocab + 4 + 1) + 12,
        teacher_steps=sum(cost["teacher_steps"] for cost in costs),
        cpu_seconds=sum(cost["cpu_seconds"] for cost in costs),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheAudit:
    """How good and how different the entries of a sample of examples are (Table 14)."""

    num_examples: int
    masked_identical: float | None
    """Share of examples whose first two entries agree on all supervised tokens; None where there
    is but one."""
    stablemax_js: float | None
    """Mean masked JS divergence of these two, nats; None where there are no logits."""
    mean_loss: float
    """Mean over all examples of the first entry's loss, nats."""
    mean_step: float
    """Mean over all examples of the first entry's step."""
    coverage: Mapping[float, float]
    """q -> share of all examples with an entry of at most this loss."""


def audit_cache(cache: TeacherCache, *, num: int = 2000, seed: int = 0) -> CacheAudit:
    """The figures of Table 14 on `num` examples drawn by `seed` (all, if there are fewer)."""
    total = cache.manifest.num_examples
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(total, size=min(num, total), replace=False))
    identical, distances = [], []
    for chunk in np.array_split(sampled, max(1, len(sampled) // 256)):
        if cache.manifest.entries < 2:
            break
        examples = [int(example) for example in chunk]
        first, second = (cache.entry(examples, number) for number in (0, 1))
        mask = cache.supervised(examples)
        identical.append(((first.tokens == second.tokens) | ~mask).all(dim=1))
        if first.logits is not None and second.logits is not None:
            log_p, log_q = map(stablemax_log_probabilities, (first.logits, second.logits))
            distances.append(masked_mean(js_divergence(log_p, log_q), mask))
    loss, step = cache.column("loss"), cache.column("step")
    return CacheAudit(
        num_examples=len(sampled),
        masked_identical=float(torch.cat(identical).double().mean()) if identical else None,
        stablemax_js=float(torch.cat(distances).mean()) if distances else None,
        mean_loss=float(loss[:, 0].mean()),
        mean_step=float(step[:, 0].mean()),
        coverage={q: float((loss.min(axis=1) <= q).mean()) for q in (0.3, 0.5, 0.7)},
    )
