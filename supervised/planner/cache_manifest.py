"""What a teacher cache of TRM-Planner (Sec. 4.3) is made of, and where its files lie.

A cache is a folder:

    cache.json                      format version, hashes of teacher and data, recipe, counts
    shards/shard-00003.safetensors  entries of the examples 3 n .. 4 n - 1; whole, or absent
    costs/shard-00003.json          what these entries cost
    logs/                           what the jobs printed

`cache_building` writes such a folder, `teacher_cache` reads it. Here are the recipe of a cache, the
manifest in `cache.json`, and the hashes that tell one teacher, data set and example from another.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch

from supervised.data_sets.datasets import TokenBatch, TokenDataset
from supervised.planner.planner import PlannerConfig
from trm.bounded import PARTS, one_line
from trm.experiments.sections import check_at_least
from trm.nn.token_model import TokenModel
from trm.runs.files import claim, read_json_object
from trm.runs.recipe import Retired

FORMAT_VERSION: Final = 1
"""Version of cache.json and of the shards."""

KEY_BYTES: Final = 16
"""Length of an example's key."""

_MANIFEST: Final = "cache.json"


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """The `storage` section of a recipe: what is kept of a teacher's logits."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "top": Retired(None, "All logits of a position are kept."),
    }

    logits: Literal["float32", "float16", "none"] = "float16"
    """Precision; "none" keeps tokens alone, enough for hard distillation."""
    examples: int = 1000
    """Examples of a shard, which is the work of one job."""

    def __post_init__(self) -> None:
        check_at_least(self, "storage", 1, "examples")


@dataclass(frozen=True, kw_only=True)
class CacheRecipe:
    """What a cache is built with."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    batch_size: int = 256
    """Examples that the teacher sees at once; the last bits of its logits depend on it."""

    def __post_init__(self) -> None:
        check_at_least(self, "", 1, "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheManifest:
    """The content of cache.json: what a cache was built from, and how large it will be."""

    format_version: int
    teacher: str
    """`teacher_hash` of the model."""
    data: str
    """`data_hash` of the split."""
    recipe: str
    """A `CacheRecipe` as YAML."""
    num_examples: int
    num_positions: int
    vocab_size: int
    entries: int
    """Entries of every example."""
    shard_examples: int

    @property
    def num_shards(self) -> int:
        """Number of shards of the complete cache."""
        return -(-self.num_examples // self.shard_examples)

    @property
    def digest(self) -> str:
        """The name of this cache inside its shards."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def examples_of(self, shard: int) -> range:
        """Indices of the examples of a shard."""
        first = shard * self.shard_examples
        return range(first, min(first + self.shard_examples, self.num_examples))


def teacher_hash(model: TokenModel) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers that are saved."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def data_hash(dataset: TokenDataset) -> str:
    """SHA-256 over the keys of all examples as stored, in their order."""
    content = hashlib.sha256()
    for indices in batches(range(len(dataset)), 4096):
        content.update(b"".join(example_keys(dataset.batch(indices))))
    return content.hexdigest()


def example_keys(batch: TokenBatch) -> list[bytes]:
    """128-bit hashes of input, labels and puzzle identifier, by which entries are found.

    So neither another example nor an augmented copy gets the entries of an example.
    """
    puzzle = batch.puzzle[:, None]
    rows = torch.cat([batch.inputs, batch.labels, puzzle], dim=1).cpu().numpy().astype("<i4")
    return [hashlib.blake2b(row.tobytes(), digest_size=KEY_BYTES).digest() for row in rows]


def batches(indices: range, size: int) -> Iterator[range]:
    """Consecutive parts of `size` indices; the last one may be shorter."""
    return (indices[k : k + size] for k in range(0, len(indices), size))


def shard_name(number: int) -> str:
    """The name of a shard, its files and its job."""
    return f"shard-{number:05d}"


def shard_file(folder: Path, number: int) -> Path:
    """Where the entries of a shard lie."""
    return folder / "shards" / f"{shard_name(number)}.safetensors"


def cost_file(folder: Path, number: int) -> Path:
    """Where the cost of a shard lies."""
    return folder / "costs" / f"{shard_name(number)}.json"


def claim_folder(folder: Path, manifest: CacheManifest) -> None:
    """Make a cache's folder, or check that the folder holds this very cache.

    Raises:
        ValueError: the folder holds a cache of another teacher, data set or recipe.
    """
    if (folder / _MANIFEST).exists():
        read_manifest(folder, teacher=manifest.teacher, data=manifest.data)
    claim(folder / _MANIFEST, asdict(manifest), kind="cache")
    for part in ("shards", "costs", "logs"):
        (folder / part).mkdir(exist_ok=True)


def read_manifest(
    folder: Path, *, teacher: str | None = None, data: str | None = None
) -> CacheManifest:
    """Read what the cache in a folder was built from.

    Args:
        folder: the cache's folder.
        teacher: the `teacher_hash` that the cache must have; None for any.
        data: the `data_hash` that the cache must have; None for any.

    Raises:
        ValueError: there is no cache, or one of another format, teacher or data set.
    """
    file = folder / _MANIFEST
    if not file.exists():
        raise ValueError(f"{file}: not there, so {folder} is no teacher cache")
    record = read_json_object(file)
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format version is {version}, this program's {FORMAT_VERSION}")
    _check_values(record, file)
    manifest = CacheManifest(**record)
    if manifest.num_shards > (PARTS.count or 0):
        raise ValueError(
            f"{file}: damaged: {manifest.num_shards} shards, at most {PARTS.count} are read"
        )
    for name, there, here in (
        ("teacher", manifest.teacher, teacher),
        ("data set", manifest.data, data),
    ):
        if here is not None and there != here:
            raise ValueError(
                f"{file}: a cache of another {name}: sha256 {there} there, {here} here"
            )
    return manifest


def _check_values(record: Mapping[str, Any], file: Path) -> None:
    """Refuse values that no builder writes, before anything is as large as they say."""
    known = {item.name: item.type for item in fields(CacheManifest)}
    for name in sorted(set(record) ^ set(known)):
        raise ValueError(f"{file}: damaged: the field {one_line(name)!r} is missing or unknown")
    for name, kind in known.items():
        value = record[name]
        if type(value) is not kind or (kind is int and value < 1):
            wanted = "a positive integer" if kind is int else "text"
            shown = one_line(repr(value))
            raise ValueError(f"{file}: damaged: {name} is {shown}, expected {wanted}")
