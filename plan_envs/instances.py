"""Instance sets, for every domain alike: pools of puzzles with one valid completion each.

Domains hold no random numbers (DESIGN.md, Environments): a generator or a reader (such as
`plan_envs.sudoku.instances`) makes an `InstanceSet`, and the Gymnasium shells, the trainers and the
evaluation draw from it. Generators also share the splits, the seeds and the progress bar below.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Names of the splits; hash values 0-7, 8 and 9 (mod 10) belong to them in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceSet:
    """Instances of one domain with one valid completion each."""

    name: str
    """Where the puzzles come from, e.g. "sudoku9x9:train:seed0" or a file name."""
    instances: Int8Array
    """Shape [num, instance]: what the domain makes of an instance; Sudoku: [num, cell], 0 = blank.
    """
    solutions: Int8Array
    """Shape [num, cell]: one valid completion (for the oracle and for easier instances, never a
    training label)."""
    ratings: NDArray[np.float32]
    """Shape [num]: difficulty: number of blanks for generated puzzles, the file's rating for CSV
    rows."""
    keys: NDArray[np.uint64]
    """Shape [num]: stable content hash of the instance."""

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.instances)

    @classmethod
    def of(
        cls,
        name: str,
        instances: Int8Array,
        solutions: Int8Array,
        ratings: NDArray[Any] | None = None,
    ) -> Self:
        """Build a set; instances may be wider than solutions (further boards, hidden ones).

        Args:
            name: where the instances come from.
            instances: shape [num, instance].
            solutions: shape [num, cell].
            ratings: shape [num]; None = the zeros of each instance's first board, as wide as a
                solution: the blanks, where the first board is a plan to complete.
        """
        instances = _boards(name, "instances", instances)
        solutions = _boards(name, "solutions", solutions)
        if instances.ndim != 2 or solutions.ndim != 2 or len(instances) != len(solutions):
            raise ValueError(
                f"{name}: instances must be [num, instance] and solutions [num, cell], "
                f"got {list(instances.shape)} and {list(solutions.shape)}"
            )
        if ratings is None:
            ratings = (instances[:, : solutions.shape[1]] == 0).sum(axis=1)
        ratings = np.array(ratings, np.float32)
        if ratings.shape != (len(instances),):
            raise ValueError(
                f"{name}: ratings must have shape [{len(instances)}], got {list(ratings.shape)}"
            )
        if np.isnan(ratings).any():
            raise ValueError(
                f"{name}: ratings: that of instance {np.isnan(ratings).argmax()} is nan"
            )
        return cls(
            name=name,
            instances=instances,
            solutions=solutions,
            ratings=ratings,
            keys=content_keys(instances),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to an .npz file."""
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                name=np.array(self.name),
                instances=self.instances,
                solutions=self.solutions,
                ratings=self.ratings,
                keys=self.keys,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a set that `save` wrote.

        Raises:
            ValueError: one line that names the file, and the field that is missing or damaged.
        """
        arrays = _read_npz(Path(path), cls.__slots__)
        missing = {"name", "instances", "solutions", "ratings"} - set(arrays)
        if missing:
            raise ValueError(f"{path}: not an InstanceSet, lacks {sorted(missing)}")
        keys = arrays.pop("keys", None)  # files of version 0.1.0 have none
        name = str(arrays.pop("name"))
        try:
            found = cls.of(name, **arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if keys is not None and not np.array_equal(keys, found.keys):
            raise ValueError(f"{path}: keys: they are not those of the instances in the file")
        return found

    def check_fits(self, spec: DomainSpec) -> None:
        """Refuse a set that cannot be of this domain.

        Raises:
            ValueError: names the set, the field and what the domain needs.
        """
        needs = {
            "instances": (spec.instance_size, spec.num_instance_values),
            "solutions": (spec.num_cells, spec.num_values),
        }
        for field, (size, highest) in needs.items():
            boards = getattr(self, field)
            if boards.shape[1] != size:
                raise ValueError(
                    f"{self.name}: {field} of {spec.name} have {size} integers, "
                    f"got {boards.shape[1]}"
                )
            if boards.size and boards.view(np.uint8).max() > highest:
                wrong = boards[boards.view(np.uint8) > highest][0]
                raise ValueError(
                    f"{self.name}: {field} of {spec.name} hold 0..{highest}, got {wrong}"
                )

    def subset(self, index: Any) -> Self:
        """The instances at `index` (a slice, an integer or a boolean array), in that order."""
        return self._rows(index, self.name)

    def band(self, low: float = -np.inf, high: float = np.inf) -> Self:
        """The instances rated from `low` to `high`, both included."""
        if not low <= high:
            raise ValueError(f"band must be (low, high) with low <= high, got {(low, high)}")
        inside = (self.ratings >= np.float32(low)) & (self.ratings <= np.float32(high))
        return self._rows(inside, f"{self.name} ({low:g} <= rating <= {high:g})")

    def bands(
        self, *, edges: Sequence[float] | None = None, quantiles: int | None = None
    ) -> list[Self]:
        """Split the set by difficulty; name one of `edges` and `quantiles`.

        Args:
            edges: n + 1 ascending ratings for n bands, which may be empty; a band has its lower
                edge, the last one its upper edge too. Ratings beyond them are left out.
            quantiles: number of bands with about equally many instances; equal ratings stay
                together, so there may be fewer bands.
        """
        if (edges is None) == (quantiles is None):
            raise ValueError(f"name one of edges and quantiles, got {edges} and {quantiles}")
        if quantiles is not None:
            if quantiles < 1 or not len(self):
                raise ValueError(f"{self.name}: no {quantiles} bands of {len(self)} instances")
            ordered = np.sort(self.ratings)
            edges = [*ordered[np.arange(quantiles) * len(self) // quantiles], ordered[-1]]
        elif edges is None or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(f"edges must be at least two ascending ratings, got {edges}")
        bounds = np.asarray(edges, np.float32)
        inside = (self.ratings >= bounds[0]) & (self.ratings <= bounds[-1])
        labels = np.searchsorted(bounds[1:-1], self.ratings, side="right")
        found = []
        for i, (low, high) in enumerate(pairwise(bounds)):
            sign = "<=" if i == len(bounds) - 2 else "<"
            name = f"{self.name} ({low:g} <= rating {sign} {high:g})"
            found.append(self._rows(inside & (labels == i), name))
        return [band for band in found if quantiles is None or len(band)]

    def disjoint_from(self, other: "InstanceSet") -> bool:
        """Whether no instance is in both sets, by their keys (and not up to symmetry)."""
        return not np.isin(self.keys, other.keys).any()

    @classmethod
    def concatenate(cls, sets: "Sequence[InstanceSet]", *, name: str | None = None) -> Self:
        """The instances of all sets one after another; `name` defaults to their names.

        Raises:
            ValueError: if there is none, or their sizes differ.
        """
        _refuse_other_sizes(sets)
        return cls(
            name=" + ".join(one.name for one in sets) if name is None else name,
            instances=np.concatenate([one.instances for one in sets]),
            solutions=np.concatenate([one.solutions for one in sets]),
            ratings=np.concatenate([one.ratings for one in sets]),
            keys=np.concatenate([one.keys for one in sets]),
        )

    @classmethod
    def mix(
        cls,
        sets: "Sequence[InstanceSet]",
        weights: Sequence[float],
        *,
        num: int,
        seed: int = 0,
    ) -> Self:
        """Draw `num` instances from several sets, each time from one chosen with its weight.

        For curricula: bands of difficulty, in the shares that one wants. No key comes twice as long
        as the chosen set has instances that were not drawn yet; a set without begins again. The
        first k instances depend on the sets, the weights and the seed, not on `num`.

        Args:
            sets: instances of one domain.
            weights: one a set, >= 0; they need not sum to 1.
            num: number of instances.
            seed: non-negative.
        """
        shares = np.asarray(weights, np.float64)
        if shares.shape != (len(sets),) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
            raise ValueError(f"weights must be {len(sets)} numbers >= 0, got {list(weights)}")
        if num < 0 or seed < 0:
            raise ValueError(f"num and seed must be >= 0, got num={num} and seed={seed}")
        for one, share in zip(sets, shares, strict=True):
            if share and not len(one):
                raise ValueError(f"{one.name}: has weight {share:g}, but no instances")
        rngs = [np.random.default_rng([stream_key("mix"), seed, i]) for i in range(len(sets) + 1)]
        sources = rngs[-1].choice(len(sets), size=num, p=shares / shares.sum())
        taken: set[int] = set()
        draws = [_draws(one, rng, taken) for one, rng in zip(sets, rngs[:-1], strict=True)]
        starts = np.cumsum([0, *map(len, sets[:-1])])
        rows = [int(starts[source]) + next(draws[source]) for source in sources.tolist()]
        label = ", ".join(
            f"{one.name} {s:.3g}" for one, s in zip(sets, shares / shares.sum(), strict=True)
        )
        whole = cls.concatenate(sets, name=f"mix({label}):seed{seed}")
        return whole._rows(np.array(rows, np.int64), whole.name)

    def _rows(self, index: Any, name: str) -> Self:
        """Copies, lest a small set keep the memory of a large one."""
        return type(self)(
            name=name,
            instances=np.array(self.instances[index], order="C"),
            solutions=np.array(self.solutions[index], order="C"),
            ratings=np.array(self.ratings[index], order="C"),
            keys=np.array(self.keys[index], order="C"),
        )


def _boards(name: str, field: str, values: Any) -> Int8Array:
    """The values as int8, contiguous, in memory of their own size."""
    given = np.asarray(values)
    boards: Int8Array = np.ascontiguousarray(given.astype(np.int8, copy=False))
    if given.dtype != np.int8 and not np.array_equal(boards, given):
        raise ValueError(f"{name}: {field} must be integers of -128..127")
    return boards if boards.base is None else boards.copy()


def _refuse_other_sizes(sets: Sequence[InstanceSet]) -> None:
    if not sets:
        raise ValueError("no instance sets to put together")
    first = sets[0]
    for other in sets[1:]:
        for field in ("instances", "solutions"):
            sizes = [getattr(one, field).shape[1] for one in (first, other)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"{field} of {first.name} have {sizes[0]} integers, "
                    f"those of {other.name} {sizes[1]}"
                )


def _draws(pool: InstanceSet, rng: np.random.Generator, taken: set[int]) -> Iterator[int]:
    """Rows of a set in random order, those with keys taken before left out; then all of them."""
    keys = pool.keys.tolist()
    order = rng.permutation(len(keys)).tolist()
    for row in order:
        if keys[row] not in taken:
            taken.add(keys[row])
            yield row
    yield from cycle(order)


def _read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that the file has, with checksums verified."""
    damage = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: not an .npz file: {error}") from None
    arrays = {}
    with archive:
        for name in names:
            if f"{name}.npy" in archive.namelist():
                try:
                    content = io.BytesIO(archive.read(f"{name}.npy"))
                    arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                except damage as error:
                    raise ValueError(f"{path}: {name}: damaged: {error}") from None
    return arrays


def content_keys(instances: Int8Array) -> NDArray[np.uint64]:
    """Stable 64-bit content hash of every row, shape [num]; equal on every machine."""
    return np.array(hash_rows(np.ascontiguousarray(instances, np.int8)))


@njit(cache=True)
def hash_rows(instances: Any) -> Any:
    """The kernel of `content_keys`."""
    num, size = instances.shape
    keys = np.empty(num, np.uint64)
    for i in range(num):
        h = np.uint64(size)
        for c in range(size):
            h = mix(h + np.uint64(0x9E3779B97F4A7C15) + np.uint64(instances[i, c]))
        keys[i] = h
    return keys


@njit(cache=True)
def mix(x: Any) -> Any:
    """The finaliser of splitmix64: every bit of a 64-bit word depends on every other; a kernel."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(text: str) -> int:
    """64-bit key of a named random stream."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class progress_bar:  # noqa: N801 (a context manager used like a function)
    """Progress bar on stderr, or nothing."""

    def __init__(self, total: int, label: str, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Callable[[int], None]:
        if self._bar is None:
            return lambda count: None
        self._bar.start()
        return lambda count: self._bar.advance(self._task, count)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
