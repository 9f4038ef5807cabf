"""Shards of a teacher cache: the entries of some examples, packed into one safetensors file.

`pack` keeps a batch of `Candidates` at its supervised positions only, `shard_bytes` makes the file,
and `Shard` serves its arrays. The header holds the hash of the content, which is checked before the
first entry is served. Below, n is the number of examples, K of entries, S of supervised positions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from supervised.planner.cache_manifest import KEY_BYTES, CacheManifest, StorageConfig
from supervised.planner.planner import Candidates
from trm.bounded import one_line, parse_json
from trm.nn.stablemax import IGNORE

Arrays = dict[str, NDArray[Any]]
"""Name -> array."""

_METADATA: Final = "teacher_cache"
_BY_ENTRY: Final = ("tokens", "logits")
"""Arrays whose first two axes are entry and supervised position; the others begin with examples."""


def pack(
    keys: Sequence[bytes], labels: Tensor, found: Candidates, storage: StorageConfig
) -> Arrays:
    """Entries of a batch as arrays.

    Args:
        keys: one an example, see `example_keys`.
        labels: shape [n, position], on the CPU; `IGNORE` where not supervised.
        found: the K entries of each example.
        storage: what is kept of the logits.

    Raises:
        ValueError: a logit that float16 cannot hold.
    """
    supervised = labels != IGNORE
    rows, positions = supervised.nonzero(as_tuple=True)
    logits = found.logits.cpu()[rows, :, positions].transpose(0, 1)  # [K, S, vocab]
    arrays = {
        "key": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
        "mask": np.packbits(supervised.numpy(), axis=1),
        "count": supervised.sum(dim=1).numpy(),
        "step": found.step.cpu().numpy().astype(np.int16),
        "loss": found.loss.cpu().numpy().astype(np.float32),
        "score": found.score.cpu().numpy().astype(np.float32),
        "tokens": logits.argmax(dim=-1).numpy().astype(np.uint8),
    }
    if storage.logits != "none":
        arrays["logits"] = logits.numpy().astype(storage.logits)
        if not np.isfinite(arrays["logits"]).all():
            raise ValueError(
                f"storage.logits must be float32: the teacher's reach "
                f"{float(logits.abs().max()):.0f}, which float16 cannot hold"
            )
    return arrays


def join(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of several batches, one after the other, and where each example starts."""
    joined = {
        name: np.concatenate([part[name] for part in parts], axis=1 if name in _BY_ENTRY else 0)
        for name in parts[0]
    }
    counts = joined.pop("count").astype(np.int64)
    joined["start"] = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    return joined


def shard_bytes(arrays: Arrays, manifest: CacheManifest, number: int) -> bytes:
    """A safetensors file whose header holds the hash of its content.

    Args:
        arrays: what `join` returned.
        manifest: of the cache.
        number: of the shard.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    identity = {"cache": manifest.digest, "shard": number}
    sha256 = _content_hash(save(arrays), identity)
    # One entry, because safetensors writes several in an order that changes between processes.
    return save(arrays, {_METADATA: json.dumps(identity | {"sha256": sha256}, sort_keys=True)})


def _content_hash(data: bytes, identity: Mapping[str, Any]) -> str:
    """SHA-256 of a safetensors file without its metadata, and of the shard's identity."""
    end = 8 + int.from_bytes(data[:8], "little")
    layout = parse_json(data[8:end])
    layout.pop("__metadata__", None)
    content = hashlib.sha256(json.dumps([layout, identity], sort_keys=True).encode())
    content.update(memoryview(data)[end:])
    return content.hexdigest()


class Shard:
    """A shard, mapped into memory; its content is checked before the first entry is served.

    Args:
        file: where it lies.
        manifest: of the cache that it must belong to.
        number: the place in the cache that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is a shard of another cache or place.
    """

    def __init__(self, file: Path, manifest: CacheManifest, number: int) -> None:
        self._file, self._verified = file, False
        try:
            opened: Any = safe_open(file, "numpy")
            self._identity = parse_json(opened.metadata()[_METADATA])
            self._sha256 = str(self._identity.pop("sha256"))
            cache, place = self._identity["cache"], self._identity["shard"]
            self.keys: NDArray[np.uint8] = opened.get_tensor("key")
            """Not verified: whoever finds an example by them calls `arrays` next."""
            self._arrays = {name: _array(opened, name) for name in opened.keys()}
        except FileNotFoundError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(one_line(error)) from None
        except SafetensorError as error:
            raise self._damaged(one_line(error)) from None
        if (cache, place) != (manifest.digest, number):
            raise ValueError(
                f"{file}: a shard of another cache or place (shard {place} of cache {cache[:12]}, "
                f"where shard {number} of {manifest.digest[:12]} belongs); delete it, build again"
            )
        if len(self.keys) != len(manifest.examples_of(number)):
            raise self._damaged(f"{len(self.keys)} examples")

    @property
    def has_logits(self) -> bool:
        """Whether it holds more than tokens."""
        return "logits" in self._arrays

    def arrays(self) -> Mapping[str, Any]:
        """The verified arrays by name; indexing one reads that part of the file.

        Raises:
            ValueError: they are not what was written.
        """
        if not self._verified:
            try:
                found = _content_hash(self._file.read_bytes(), self._identity)
            except (OSError, ValueError) as error:
                raise self._damaged(str(error)) from None
            if found != self._sha256:
                raise self._damaged(f"sha256 {found[:12]} where {self._sha256[:12]} was written")
            self._verified = True
        return self._arrays

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self._file}: damaged: {why}; delete it and build again")


def _array(opened: Any, name: str) -> Any:
    """An array of an open file: the large ones as slices that read what they are indexed by."""
    part = opened.get_slice(name)
    return part if name in _BY_ENTRY and 0 not in part.get_shape() else opened.get_tensor(name)
