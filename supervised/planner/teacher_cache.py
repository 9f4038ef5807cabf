"""The teacher cache of TRM-Planner (Sec. 4.3): entries on disk, from many jobs, for students.

A cache is a folder:

    cache.json                      format version, hashes of teacher and data, recipe, counts
    shards/shard-00003.safetensors  entries of the examples 3 n .. 4 n - 1, whole or not there
    costs/shard-00003.json          what they cost
    logs/                           what the jobs printed

Entries come from `supervised.planner.planner` and are kept at supervised positions only. They are found by
a hash of input, labels and puzzle identifier, so an example (or an augmented copy of it) never gets
the entries of another one. Shards are written by renaming; a build that was killed goes on with the
missing ones, and any number of builds may work on one folder. Reading maps the files into memory;
a shard's hash is checked before the first entry is served from it.
"""

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from supervised.data_sets.datasets import TokenBatch, TokenDataset
from supervised.planner.planner import Candidates, PlannerConfig, plan, teacher_on
from trm.compute.jobs import Backend, Job, JobResult, map_jobs
from trm.compute.process import ResourceMeter
from trm.nn.stablemax import IGNORE, js_divergence, masked_mean, stablemax_log_probabilities
from trm.nn.token_model import TokenModel
from trm.runs.durable import replace_durably
from trm.runs.recipe import dump_recipe

FORMAT_VERSION: Final = 1
"""Of cache.json and of the shards."""

_MANIFEST: Final = "cache.json"
_METADATA: Final = "teacher_cache"
_KEY_BYTES: Final = 16
_DTYPES: Final = {
    "U8": np.uint8,
    "I16": np.int16,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
}


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """The `storage` section of a recipe: what is kept of a teacher's logits."""

    logits: Literal["float32", "float16", "none"] = "float16"
    """Precision; "none" keeps tokens alone, enough for hard distillation."""
    top: int | None = None
    """Keep this many largest logits a position, and one more number that stands for each of the
    others, such that all together have their StableMax probability; null = all."""
    examples: int = 1000
    """Of a shard, which is the work of one job."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.examples < 1:
            raise ValueError(f"storage.examples must be at least 1, got {self.examples}")
        if self.top is not None and (self.top < 1 or self.logits == "none"):
            raise ValueError(
                f"storage.top must be at least 1, and null where no logits are kept, got {self.top}"
            )


@dataclass(frozen=True, kw_only=True)
class CacheRecipe:
    """What a cache is built with."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    batch_size: int = 256
    """Examples that the teacher sees at once; the last bits of its logits depend on it."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheManifest:
    """The content of cache.json: what a cache is of, and how large it will be."""

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
    """Of every example."""
    shard_examples: int

    @property
    def num_shards(self) -> int:
        """Files, once it is complete."""
        return -(-self.num_examples // self.shard_examples)

    @property
    def digest(self) -> str:
        """Names this cache inside its shards."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def examples_of(self, shard: int) -> range:
        """Indices of the examples of a shard."""
        first = shard * self.shard_examples
        return range(first, min(first + self.shard_examples, self.num_examples))


OpenSource = Callable[[], tuple[TokenModel, TokenDataset]]
"""Gives a job the teacher, in evaluation mode on its device, and the data set's split."""


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
    for indices in _batches(range(len(dataset)), 4096):
        content.update(b"".join(example_keys(dataset.batch(indices))))
    return content.hexdigest()


def example_keys(batch: TokenBatch) -> list[bytes]:
    """What entries are found by: 128-bit hashes of input, labels and puzzle identifier."""
    puzzle = batch.puzzle[:, None]
    rows = torch.cat([batch.inputs, batch.labels, puzzle], dim=1).cpu().numpy().astype("<i4")
    return [hashlib.blake2b(row.tobytes(), digest_size=_KEY_BYTES).digest() for row in rows]


# --- Building


def build_cache(
    folder: Path,
    recipe: CacheRecipe,
    *,
    open_source: OpenSource,
    backend: Backend = "local",
    workers: int | None = None,
    address: str | None = None,
    report: Callable[[JobResult], None] = lambda _: None,
) -> list[JobResult]:
    """Build every shard that is not there yet, one job each; see `trm.compute.jobs.map_jobs`.

    Args:
        folder: the cache's; made where it is missing.
        recipe: what to build.
        open_source: called here once and in every job; a function that can be imported, or a
            `functools.partial` of one.
        backend: "local" or "ray".
        workers: jobs at once.
        address: of the Ray cluster.
        report: is told of every job that starts or ends.

    Returns:
        One result a shard.

    Raises:
        ValueError: the folder holds a cache of another teacher, data set or recipe.
    """
    model, dataset = open_source()
    manifest = CacheManifest(
        format_version=FORMAT_VERSION,
        teacher=teacher_hash(model),
        data=data_hash(dataset),
        recipe=dump_recipe(recipe),
        num_examples=len(dataset),
        num_positions=dataset.info.num_positions,
        vocab_size=model.shape.vocab_size,
        entries=recipe.planner.entries,
        shard_examples=recipe.storage.examples,
    )
    if manifest.vocab_size > 256:
        raise ValueError(f"vocab_size must be at most 256, got {manifest.vocab_size}")
    del model, dataset
    _claim(folder, manifest)
    jobs = [
        Job(
            key=_shard_name(number),
            work=functools.partial(build_shard, folder, recipe, open_source, number),
            output=_shard_file(folder, number),
            log=folder / "logs" / f"{_shard_name(number)}.log",
        )
        for number in range(manifest.num_shards)
    ]
    return map_jobs(jobs, backend=backend, workers=workers, address=address, report=report)


def build_shard(folder: Path, recipe: CacheRecipe, open_source: OpenSource, number: int) -> None:
    """The work of a job: plan the examples of a shard and leave it whole.

    Raises:
        ValueError: the source gives another teacher than the cache is of, logits that are not
            finite, or the disk does not take the shard.
    """
    meter = ResourceMeter()
    manifest = read_manifest(folder)
    model, dataset = open_source()
    if (found := teacher_hash(model)) != manifest.teacher:
        raise ValueError(_another(folder / _MANIFEST, "teacher", manifest.teacher, found))
    device = model.start_h.device
    parts = []
    for indices in _batches(manifest.examples_of(number), recipe.batch_size):
        batch = dataset.batch(indices)
        keys = example_keys(batch)
        placed = batch.to(device)
        start, advance = teacher_on(model, placed.inputs, placed.puzzle)
        found_entries = plan(start, advance, placed.labels, recipe.planner, keys=keys)
        if not torch.isfinite(found_entries.logits).all():
            raise ValueError(
                f"teacher: its logits are not finite on some of the examples "
                f"{indices[0]}..{indices[-1]}"
            )
        parts.append(_packed(keys, batch.labels, found_entries, recipe.storage))
    data = _shard_bytes(_joined(parts), manifest, number)
    planner = recipe.planner
    cost = {
        "teacher_steps": len(manifest.examples_of(number)) * planner.rollouts * planner.steps,
        **meter.state_dict(),
    }
    output = _shard_file(folder, number)
    try:
        for file, content in (
            (_cost_file(folder, number), (json.dumps(cost) + "\n").encode()),
            (output, data),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(file)
            replace_durably(file, content)
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror}); the other shards are whole, and the "
            "same command goes on with this one"
        ) from error


def _batches(indices: range, size: int) -> Iterator[range]:
    return (indices[k : k + size] for k in range(0, len(indices), size))


def _claim(folder: Path, manifest: CacheManifest) -> None:
    """Make the cache's folder, or check that it is this cache's."""
    file = folder / _MANIFEST
    if not file.exists():
        for part in ("shards", "costs", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        replace_durably(file, (json.dumps(asdict(manifest), indent=1) + "\n").encode())
    found = read_manifest(folder)
    _check_identity(file, found, teacher=manifest.teacher, data=manifest.data)
    if found != manifest:
        name = next(key for key, value in asdict(manifest).items() if getattr(found, key) != value)
        raise ValueError(
            f"{file}: a cache of another {name}: {getattr(found, name)!r} there, "
            f"{getattr(manifest, name)!r} here; choose another folder"
        )


def _remove_leftovers(file: Path) -> None:
    """What killed attempts at this file left; the job's lock says that none is at work."""
    for leftover in file.parent.glob(f".{file.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


# --- Shards: packed entries of some examples. n examples, K entries, S supervised positions


Arrays = dict[str, NDArray[Any]]


def _packed(
    keys: Sequence[bytes], labels: Tensor, found: Candidates, storage: StorageConfig
) -> Arrays:
    """Entries of a batch as arrays; everything a position has is stored at supervised ones only."""
    supervised = labels != IGNORE
    rows, positions = supervised.nonzero(as_tuple=True)
    logits = found.logits.cpu()[rows, :, positions].transpose(0, 1)  # [K, S, vocab]
    arrays = {
        "key": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES),
        "mask": np.packbits(supervised.numpy(), axis=1),
        "count": supervised.sum(dim=1).numpy(),
        "step": found.step.cpu().numpy().astype(np.int16),
        "loss": found.loss.cpu().numpy().astype(np.float32),
        "score": found.score.cpu().numpy().astype(np.float32),
        "tokens": logits.argmax(dim=-1).numpy().astype(np.uint8),
    }
    if storage.logits != "none":
        kept = np.float32 if storage.logits == "float32" else np.float16
        if storage.top is None or storage.top >= logits.shape[-1] - 1:
            arrays["logits"] = logits.numpy().astype(kept)
        else:
            values, index = _top_logits(logits, storage.top)
            arrays["logits"] = values.numpy().astype(kept)
            arrays["index"] = index.numpy().astype(np.uint8)
        if not np.isfinite(arrays["logits"]).all():
            raise ValueError(
                f"storage.logits must be float32: the teacher's reach "
                f"{float(logits.abs().max()):.0f}, which float16 cannot hold"
            )
    return arrays


def _top_logits(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The largest logits, then the one that stands for each of the others; and their indices.

    With s the increasing function of StableMax, p = s / sum s, the others get the logit whose s is
    the mean of theirs: at temperature 1 all kept probabilities stay as they were.
    """
    values, index = logits.sort(dim=-1, descending=True, stable=True)
    rest = values[..., top:].double()
    mean = torch.where(rest < 0, 1 / (1 - rest.clamp_max(0)), rest + 1).mean(dim=-1, keepdim=True)
    standing = torch.where(mean < 1, 1 - 1 / mean, mean - 1)
    return torch.cat([values[..., :top], standing.float()], dim=-1), index[..., :top]


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """Batches one after the other."""
    by_entry = ("tokens", "logits", "index")
    joined = {
        name: np.concatenate([part[name] for part in parts], axis=1 if name in by_entry else 0)
        for name in parts[0]
    }
    counts = joined.pop("count").astype(np.int64)
    joined["start"] = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    return joined


def _shard_bytes(arrays: Arrays, manifest: CacheManifest, number: int) -> bytes:
    """A safetensors file whose header holds the hash of all the rest."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    identity = {"cache": manifest.digest, "shard": number}
    plain = save(arrays, _metadata(identity))
    size = _header_size(plain)
    tensors = json.loads(plain[8:size])
    del tensors["__metadata__"]
    sha256 = _digest_of(tensors, identity)
    sha256.update(memoryview(plain)[size:])
    return save(arrays, _metadata(identity | {"sha256": sha256.hexdigest()}))


def _metadata(identity: Mapping[str, Any]) -> dict[str, str]:
    """One entry, because safetensors writes several in an order that changes between processes."""
    return {_METADATA: json.dumps(identity, sort_keys=True)}


def _header_size(data: bytes) -> int:
    """Bytes before the arrays: a length of eight bytes, and so many of JSON."""
    return int(8 + struct.unpack("<Q", data[:8])[0])


def _digest_of(tensors: Mapping[str, Any], identity: Mapping[str, Any]) -> Any:
    """SHA-256 of what a header says of the arrays and the shard, for the rest to be added."""
    return hashlib.sha256(json.dumps([tensors, identity], sort_keys=True).encode())


class _Shard:
    """A shard mapped into memory; its content is checked before the first entry is served."""

    def __init__(self, file: Path, manifest: CacheManifest, number: int) -> None:
        self._file = file
        self._verified = False
        try:
            with open(file, "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                self._body = _header_size(opened.read(8))
                header = json.loads(opened.read(self._body - 8))
            tensors = {name: item for name, item in header.items() if name != "__metadata__"}
            identity = json.loads(header["__metadata__"][_METADATA])
            self._sha256 = identity.pop("sha256")
            self._content = _digest_of(tensors, identity)
            of = identity["cache"], identity["shard"]
            end = max(item["data_offsets"][1] for item in tensors.values())
            if size != self._body + end:
                raise ValueError(f"{size} bytes where {self._body + end} are expected")
            self._arrays = {name: self._mapped(item) for name, item in tensors.items()}
        except FileNotFoundError:
            raise
        except (OSError, ValueError, LookupError, TypeError, struct.error, OverflowError) as error:
            raise self._damaged(str(error)) from None
        if of != (manifest.digest, number):
            raise ValueError(
                f"{file}: a shard of another cache or place (shard {of[1]} of cache {of[0][:12]}, "
                f"where shard {number} of {manifest.digest[:12]} belongs); delete it, build again"
            )
        if len(self._arrays["key"]) != len(manifest.examples_of(number)):
            raise self._damaged(f"{len(self._arrays['key'])} examples")

    def _mapped(self, item: Mapping[str, Any]) -> NDArray[Any]:
        shape = tuple(item["shape"])
        if 0 in shape:
            return np.zeros(shape, _DTYPES[item["dtype"]])
        return np.memmap(
            self._file,
            _DTYPES[item["dtype"]],
            mode="r",
            offset=self._body + item["data_offsets"][0],
            shape=shape,
        )

    def keys(self) -> NDArray[np.uint8]:
        """Not verified: whoever finds an example by them goes through `arrays` next."""
        return self._arrays["key"]

    def arrays(self) -> Arrays:
        """The verified arrays.

        Raises:
            ValueError: they are not what was written.
        """
        if not self._verified:
            content = self._content.copy()
            with open(self._file, "rb") as file:
                file.seek(self._body)
                while block := file.read(1 << 20):
                    content.update(block)
            found = content.hexdigest()
            if found != self._sha256:
                raise self._damaged(f"sha256 {found[:12]} where {self._sha256[:12]} was written")
            self._verified = True
        return self._arrays

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self._file}: damaged: {why}; delete it and build again")


# --- Reading


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
    """Of the teacher, nats, float32; 0 where not available."""
    step: Int[Tensor, " batch"]
    """int64; 0 where not available."""

    def to(self, device: torch.device | str) -> "TeacherTargets":
        """The same on a device."""
        return TeacherTargets(
            available=self.available.to(device),
            tokens=self.tokens.to(device),
            logits=None if self.logits is None else self.logits.to(device),
            loss=self.loss.to(device),
            step=self.step.to(device),
        )


class TeacherCache:
    """A complete cache, open for reading; made by `TeacherCache.open`."""

    def __init__(self, folder: Path, manifest: CacheManifest, shards: Sequence[_Shard]) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards = shards
        keys = np.concatenate([np.asarray(shard.keys()) for shard in shards])
        halves = np.ascontiguousarray(keys).view("<u8")
        self._order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._sorted = halves[self._order]

    @classmethod
    def open(
        cls, folder: Path, *, teacher: str | None = None, data: str | None = None
    ) -> "TeacherCache":
        """Open a cache that is complete.

        Args:
            folder: the cache's.
            teacher: the `teacher_hash` it must be of; None for any.
            data: the `data_hash` it must be of; None for any.

        Raises:
            ValueError: one line that names the file: no cache, another format, teacher or data set
                (with both hashes), shards missing or damaged.
        """
        manifest = read_manifest(folder)
        _check_identity(folder / _MANIFEST, manifest, teacher=teacher, data=data)
        files = [_shard_file(folder, number) for number in range(manifest.num_shards)]
        missing = [file for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing, e.g. "
                f"{missing[0].name}; building again goes on with them"
            )
        shards = [_Shard(file, manifest, number) for number, file in enumerate(files)]
        return cls(folder, manifest, shards)

    @property
    def has_logits(self) -> bool:
        """Whether soft distillation is possible."""
        return "logits" in self._shards[0]._arrays

    def verify(self) -> None:
        """Check every shard; they are read completely.

        Raises:
            ValueError: names the first damaged one.
        """
        for shard in self._shards:
            shard.arrays()

    def find(self, batch: TokenBatch) -> Int[np.ndarray, " batch"]:
        """The example of the cache that each one of a batch is, -1 where it is none."""
        wanted = np.frombuffer(b"".join(example_keys(batch)), "<u8").reshape(-1, 2)
        place = np.searchsorted(self._sorted[:, 0], wanted[:, 0])
        found = np.full(len(wanted), -1, np.int64)
        for row, start in enumerate(place):
            # The first half decides but for one in 10^19 pairs.
            while start < len(self._sorted) and self._sorted[start, 0] == wanted[row, 0]:
                if self._sorted[start, 1] == wanted[row, 1]:
                    found[row] = self._order[start]
                    break
                start += 1
        return found

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
            if "index" in arrays:
                kept, index = arrays["logits"][k, some], arrays["index"][k, some]
                spread = np.repeat(kept[:, -1:], manifest.vocab_size, axis=1)
                np.put_along_axis(spread, index.astype(np.int64), kept[:, :-1], axis=1)
                logits[place, mask] = spread
            elif "logits" in arrays:
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
        return np.concatenate([np.asarray(shard.arrays()[name]) for shard in self._shards])

    def _row(self, example: int, name: str) -> NDArray[Any]:
        shard, row = divmod(example, self.manifest.shard_examples)
        return np.asarray(self._shards[shard].arrays()[name][row])


def read_manifest(folder: Path) -> CacheManifest:
    """What the cache in a folder is of.

    Raises:
        ValueError: there is none, or one of another format.
    """
    file = folder / _MANIFEST
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: not there, so {folder} is no teacher cache") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: damaged: {error}") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format version is {version}, this program's {FORMAT_VERSION}")
    try:
        return CacheManifest(**record)
    except TypeError as error:
        raise ValueError(f"{file}: damaged: {error}") from None


def _check_identity(
    file: Path, manifest: CacheManifest, *, teacher: str | None, data: str | None
) -> None:
    for name, there, here in (
        ("teacher", manifest.teacher, teacher),
        ("data set", manifest.data, data),
    ):
        if here is not None and there != here:
            raise ValueError(_another(file, name, there, here))


def _another(file: Path, name: str, there: str, here: str) -> str:
    return f"{file}: a cache of another {name}: sha256 {there} there, {here} here"


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def _shard_file(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{_shard_name(number)}.safetensors"


def _cost_file(folder: Path, number: int) -> Path:
    return folder / "costs" / f"{_shard_name(number)}.json"


# --- Looking at a cache


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
    """Of the shards that are built."""
    bytes_per_entry: float | None
    """None where nothing is built."""
    paper_bytes_per_entry: int
    """Of the paper's layout: at all positions logits in float32, tokens in int32 and a mask of
    bytes; step, loss and score in four bytes each."""
    teacher_steps: int
    """Calls of the teacher for one example, summed: examples x R x T_max."""
    cpu_seconds: float
    """Of the jobs that built the shards, loading included."""


def cache_info(folder: Path) -> CacheInfo:
    """Sizes and costs of a cache; nothing is verified."""
    manifest = read_manifest(folder)
    built = [k for k in range(manifest.num_shards) if _shard_file(folder, k).exists()]
    size = sum(_shard_file(folder, number).stat().st_size for number in built)
    costs = [
        json.loads(file.read_bytes())
        for number in built
        if (file := _cost_file(folder, number)).exists()
    ]
    examples = sum(len(manifest.examples_of(number)) for number in built)
    positions, vocab = manifest.num_positions, manifest.vocab_size
    return CacheInfo(
        teacher=manifest.teacher,
        data=manifest.data,
        recipe=manifest.recipe,
        num_examples=manifest.num_examples,
        entries=manifest.entries,
        num_shards=manifest.num_shards,
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
    """Of the first entries, nats; of all examples."""
    mean_step: float
    """Likewise."""
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
