"""The entries of a teacher cache, as students read them.

`TeacherCache.open` opens a complete folder that `cache_building` left; `find` looks examples up by
their keys, `choose` draws an entry for each, `targets` gives the entries as tensors to
`supervised.planner.distill`. Files are mapped into memory, and a shard's hash is checked before its
first entry is served.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from supervised.data_sets.datasets import TokenBatch
from supervised.planner.cache_manifest import (
    CacheManifest,
    example_keys,
    read_manifest,
    shard_file,
)
from supervised.planner.shards import Shard

_KEY: Final = np.dtype([("high", "<u8"), ("low", "<u8")])
"""An example's key as two numbers, which numpy sorts and finds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherTargets:
    """One entry for each example of a batch, where there is one; on the CPU."""

    available: Bool[Tensor, " batch"]
    """False where the example has no entry, or none of the quality asked for."""
    tokens: Int[Tensor, "batch position"]
    """int64; 0 where not supervised or not available."""
    logits: Float[Tensor, "batch position vocab"] | None
    """float32; 0 where not supervised or not available; None for a cache of tokens alone."""
    loss: Float[Tensor, " batch"]
    """The teacher's loss, nats, float32; 0 where not available."""
    step: Int[Tensor, " batch"]
    """The step that the entry was taken from, int64; 0 where not available."""

    def to(self, device: torch.device | str) -> "TeacherTargets":
        """The same entries on a device."""
        parts: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(
            self, **{k: part.to(device) for k, part in parts.items() if part is not None}
        )


class TeacherCache:
    """A complete cache, open for reading; made by `TeacherCache.open`."""

    def __init__(self, folder: Path, manifest: CacheManifest, shards: Sequence[Shard]) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards = shards
        keys = np.concatenate([shard.keys for shard in shards])
        halves = np.ascontiguousarray(keys).view(_KEY).reshape(-1)
        self._order = np.lexsort((halves["low"], halves["high"]))
        self._sorted = halves[self._order]

    @classmethod
    def open(
        cls, folder: Path, *, teacher: str | None = None, data: str | None = None
    ) -> "TeacherCache":
        """Open a cache that is complete.

        Args:
            folder: the cache's folder.
            teacher: the `teacher_hash` that the cache must have; None for any.
            data: the `data_hash` that the cache must have; None for any.

        Raises:
            ValueError: one line that names the file: no cache, another format, teacher or data set
                (with both hashes), shards missing or damaged.
        """
        manifest = read_manifest(folder, teacher=teacher, data=data)
        files = [shard_file(folder, number) for number in range(manifest.num_shards)]
        missing = [file for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing, e.g. "
                f"{missing[0].name}; building again goes on with them"
            )
        shards = [Shard(file, manifest, number) for number, file in enumerate(files)]
        return cls(folder, manifest, shards)

    @property
    def has_logits(self) -> bool:
        """Whether soft distillation is possible."""
        return self._shards[0].has_logits

    def verify(self) -> None:
        """Check every shard; they are read completely.

        Raises:
            ValueError: names the first damaged one.
        """
        for shard in self._shards:
            shard.arrays()

    def find(self, batch: TokenBatch) -> Int[np.ndarray, " batch"]:
        """The number that each example of a batch has in the cache, -1 where it is not there."""
        wanted = np.frombuffer(b"".join(example_keys(batch)), _KEY)
        place = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[place] == wanted, self._order[place], -1)

    def choose(
        self, batch: TokenBatch, rng: np.random.Generator, *, quality: float | None
    ) -> Int[np.ndarray, "batch two"]:
        """One entry for each example, uniform among those good enough ("sample-one", Sec. 5.1).

        Args:
            batch: examples; augmented ones are found if the cache was built of them.
            rng: one number is drawn for each example, whether it has entries or not.
            quality: q: entries whose loss is larger are left out (Eq. 14); None keeps all.

        Returns:
            Example of the cache and number of the entry, int64; -1 twice where there is none.
        """
        chosen = np.full((len(batch.inputs), 2), -1, np.int64)
        draws = rng.random(len(chosen))
        for row, example in enumerate(self.find(batch)):
            if example >= 0:
                loss = self._row(int(example), "loss")
                good = np.flatnonzero(loss <= (np.inf if quality is None else quality))
                if len(good):
                    chosen[row] = example, good[int(draws[row] * len(good))]
        return chosen

    def entry(self, examples: Sequence[int], number: int) -> TeacherTargets:
        """Entry `number` of some examples of the cache; 0 is the one of the highest score."""
        return self.targets(np.array([(example, number) for example in examples], np.int64))

    def targets(self, chosen: Int[np.ndarray, "batch two"]) -> TeacherTargets:
        """The entries that `choose` chose."""
        size, manifest = len(chosen), self.manifest
        tokens = np.zeros((size, manifest.num_positions), np.int64)
        logits = np.zeros((*tokens.shape, manifest.vocab_size), np.float32)
        loss, step = np.zeros(size, np.float32), np.zeros(size, np.int64)
        for place, (example, k) in enumerate(chosen):
            if example < 0:
                continue
            number, row = divmod(int(example), manifest.shard_examples)
            arrays = self._shards[number].arrays()
            mask = np.unpackbits(arrays["mask"][row])[: manifest.num_positions].astype(bool)
            some = slice(int(arrays["start"][row]), int(arrays["start"][row + 1]))
            tokens[place, mask] = arrays["tokens"][k, some]
            loss[place], step[place] = arrays["loss"][row, k], arrays["step"][row, k]
            if "logits" in arrays:
                logits[place, mask] = arrays["logits"][k, some]
        return TeacherTargets(
            available=torch.from_numpy(chosen[:, 0] >= 0),
            tokens=torch.from_numpy(tokens),
            logits=torch.from_numpy(logits) if self.has_logits else None,
            loss=torch.from_numpy(loss),
            step=torch.from_numpy(step),
        )

    def supervised(self, examples: Sequence[int]) -> Bool[Tensor, "batch position"]:
        """Which positions their labels supervise."""
        masks = [np.unpackbits(self._row(example, "mask")) for example in examples]
        return torch.from_numpy(np.stack(masks)[:, : self.manifest.num_positions].astype(bool))

    def column(self, name: Literal["step", "loss", "score"]) -> NDArray[Any]:
        """A figure of all entries, shape [example, entry]."""
        return np.concatenate([shard.arrays()[name] for shard in self._shards])

    def _row(self, example: int, name: str) -> NDArray[Any]:
        shard, row = divmod(example, self.manifest.shard_examples)
        return np.asarray(self._shards[shard].arrays()[name][row])
