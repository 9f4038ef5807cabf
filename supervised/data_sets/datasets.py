"""Token data sets, which trainers draw batches from: what all kinds share, and those of boards.

`TokenDataset.batch` gives examples as stored, or, with a generator, their images under random
symmetries of the rules (REFERENCE.md, section B), so a thousand augmentations cost no disk.
`supervised.data_sets.folders` opens data sets from disk; `arc` has those of ARC.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import PlanDomain, Verdict
from plan_envs.instances import InstanceSet
from supervised.data_sets.codecs import PAD, BoardCodec, Tokens, codec_of
from trm.bounded import map_array, one_line
from trm.nn.stablemax import IGNORE

FORMAT: Final = 2
"""Version of the folder's format; `dataset.json` of version 1 has no hash of its own content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Examples of a data set."""

    inputs: Int[Tensor, "batch position"]
    """Token ids, int64, 0 = padding."""
    labels: Int[Tensor, "batch position"]
    """Token ids, int64; `IGNORE` where a position is not supervised."""
    puzzle: Int[Tensor, " batch"]
    """Puzzle identifiers in 0..num_puzzles - 1, int64; 0 = blank, the only one but for ARC."""
    example: Int[Tensor, " batch"]
    """Index of each example in its split, int64: the same for all its images."""

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on a device."""
        return TokenBatch(**{name: part.to(device) for name, part in self.parts().items()})

    def rows(self, chosen: Any) -> "TokenBatch":
        """Some examples, by whatever indexes the first axis."""
        return TokenBatch(**{name: part[chosen] for name, part in self.parts().items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What a data set holds; the content of `dataset.json`."""

    name: str
    """Name of the builder, e.g. "sudoku-extreme"."""
    domain: str
    """Name of the `plan_envs` domain, e.g. "sudoku9x9", or "arc"."""
    vocab_size: int
    """Token ids, padding included."""
    num_positions: int
    """Tokens of an example."""
    num_puzzles: int
    """Puzzle identifiers, the blank one included: rows of a table of puzzle embeddings."""
    counts: Mapping[str, int]
    """Split -> number of examples."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the builder was asked for, seed included; the same options build the same data."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the builder found, e.g. how many pairs a guard has left out."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File -> size in bytes and SHA-256."""
    format: int = FORMAT
    """Version of the folder's format."""

    @property
    def hash(self) -> str | None:
        """SHA-256 over the names and hashes of all files: names the content, on every machine.

        None for data that is drawn and not stored: its options name it.
        """
        if not self.files:
            return None
        text = "".join(f"{name} {self.files[name]['sha256']}\n" for name in sorted(self.files))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Every field except the files, and their total size and hash."""
        record = asdict(self)
        files = record.pop("files")
        return record | {"bytes": sum(f["size"] for f in files.values()), "hash": self.hash}


@runtime_checkable
class TokenDataset(Protocol):
    """One split of a data set."""

    @property
    def info(self) -> DatasetInfo:
        """What the whole data set holds."""

    def __len__(self) -> int:
        """Number of examples."""

    def batch(
        self, indices: Sequence[int] | NDArray[Any], generator: np.random.Generator | None = None
    ) -> TokenBatch:
        """The examples at `indices`, in that order.

        Args:
            indices: integers in 0..len - 1, shape [batch]; repetitions are allowed.
            generator: draws an image of each example under the symmetries of the rules; None = as
                stored. How much is drawn depends on the examples and their order alone.

        Raises:
            ValueError: for an index out of range.
        """

    def verdict(self, batch: TokenBatch, predicted: Int[Tensor, "batch position"]) -> Verdict:
        """What the domain's own checker of `plan_envs` says of predictions for a batch."""


class BoardDataset:
    """Sudoku, N-Queens and Maze: an example is a board, a label the board solved.

    Args:
        info: what the data set holds.
        inputs: token ids, shape [num, position].
        labels: token ids, shape [num, position]; 0 where a position is not supervised.
        name: named in errors, e.g. the split's folder.

    Raises:
        ValueError: for arrays that do not fit to `info`, by name, example, position and value.
    """

    def __init__(self, info: DatasetInfo, inputs: Tokens, labels: Tokens, *, name: str) -> None:
        self.info = info
        self.codec: Final = codec_of(info.domain)
        """Tokens <-> boards."""
        check_tokens(inputs, info, name=f"{name}: inputs")
        check_tokens(labels, info, name=f"{name}: labels")
        if len(inputs) != len(labels):
            raise ValueError(f"{name}: {len(inputs)} inputs, but {len(labels)} labels")
        self._inputs, self._labels = inputs, labels

    @classmethod
    def of(cls, domain: PlanDomain, instances: InstanceSet) -> "BoardDataset":
        """A data set in memory, of the instances and their solutions."""
        instances.check_fits(domain.spec)
        codec = codec_of(domain.spec.name)
        inputs, labels = codec.encode(instances.instances, instances.solutions)
        info = info_of(codec, name=instances.name, counts={"train": len(instances)})
        return cls(info, inputs, labels, name=instances.name)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._inputs)

    def batch(
        self, indices: Sequence[int] | NDArray[Any], generator: np.random.Generator | None = None
    ) -> TokenBatch:
        """The examples at `indices`; see `TokenDataset.batch`."""
        chosen = check_indices(indices, len(self))
        inputs, labels = self._inputs[chosen], self._labels[chosen]
        if generator is not None:
            pairs = np.stack([inputs, labels], axis=1)
            for row, pair in enumerate(pairs):
                symmetry = self.codec.random_symmetry(generator)
                pairs[row] = self.codec.transform(symmetry, pair)
            inputs, labels = pairs[:, 0], pairs[:, 1]
        return token_batch(inputs, labels, np.zeros(len(chosen), np.int64), chosen)

    def verdict(self, batch: TokenBatch, predicted: Int[Tensor, "batch position"]) -> Verdict:
        """What the domain's own checker says: `solved` counts every valid completion."""
        decoded = self.codec.decode(batch.inputs.cpu().numpy(), predicted.cpu().numpy())
        return self.codec.domain.check(*decoded)


def info_of(codec: BoardCodec, *, name: str, counts: Mapping[str, int], **more: Any) -> DatasetInfo:
    """The description of a data set of boards; `more` are further fields of `DatasetInfo`."""
    spec = codec.domain.spec
    return DatasetInfo(
        name=name,
        domain=spec.name,
        vocab_size=codec.vocab_size,
        num_positions=spec.num_cells,
        num_puzzles=1,
        counts=counts,
        **more,
    )


def read_array(path: Path) -> NDArray[Any]:
    """A memory-mapped array.

    Raises:
        ValueError: names the file, if it is missing or no array.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        return map_array(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as an array: {one_line(error)}") from None


def read_split(
    folder: Path, split: str, info: DatasetInfo, names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The memory-mapped arrays of a split by name, the first axis of which is that of examples.

    Args:
        folder: of the data set.
        split: one of `info.counts`.
        info: what the data set holds.
        names: of the arrays' files.

    Raises:
        ValueError: names the file that is missing, no array, or of another length.
    """
    arrays = {}
    for name in names:
        path = folder / split / f"{name}.npy"
        arrays[name] = read_array(path)
        if len(arrays[name]) != info.counts[split]:
            raise ValueError(
                f"{path} has {len(arrays[name])} examples, dataset.json says {info.counts[split]}"
            )
    return arrays


def check_tokens(tokens: NDArray[Any], info: DatasetInfo, *, name: str) -> None:
    """Refuse token arrays of another type or length, or with ids that the vocabulary lacks.

    Raises:
        ValueError: names the array, and example, position and value of the first wrong token.
    """
    if tokens.dtype != np.uint8 or tokens.ndim != 2 or tokens.shape[1] != info.num_positions:
        raise ValueError(
            f"{name} must be uint8 of shape [num, {info.num_positions}], "
            f"got {tokens.dtype} of shape {list(tokens.shape)}"
        )
    for start in range(0, len(tokens), _ROWS):
        wrong = tokens[start : start + _ROWS] >= info.vocab_size
        if wrong.any():
            row, position = np.argwhere(wrong)[0] + [start, 0]
            raise ValueError(
                f"{name}: example {row}, position {position} must be a token of "
                f"0..{info.vocab_size - 1}, got {tokens[row, position]}"
            )


_ROWS: Final = 1 << 16
"""Rows that are checked at once, so that a large file never lies in memory as a whole."""


def check_indices(indices: Sequence[int] | NDArray[Any], count: int) -> NDArray[np.int64]:
    """Indices as int64 [batch].

    Raises:
        ValueError: for other shapes and numbers out of range.
    """
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
        raise ValueError(f"indices must be integers of shape [batch], got {indices!r}")
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
        wrong = chosen[(chosen < 0) | (chosen >= count)][0]
        raise ValueError(f"indices must lie in 0..{count - 1}, got {wrong}")
    return chosen.astype(np.int64)


def token_batch(
    inputs: Tokens, labels: Tokens, puzzle: NDArray[np.int64], example: NDArray[np.int64]
) -> TokenBatch:
    """Arrays as tensors of their own, padding labels as `IGNORE`; arguments as `TokenBatch` has."""
    targets = torch.from_numpy(labels.astype(np.int64))
    return TokenBatch(
        inputs=torch.from_numpy(inputs.astype(np.int64)),
        labels=targets.masked_fill_(targets == PAD, IGNORE),
        puzzle=torch.from_numpy(puzzle),
        example=torch.from_numpy(example),
    )
