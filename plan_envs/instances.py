"""Instance sets for every domain: pools of puzzles with one valid completion each.

Domains draw no random numbers. A generator or a reader (such as `plan_envs.sudoku.instances`) makes
an `InstanceSet`, and the environments, the trainers and the evaluation draw from it. What the
generators and readers of all domains share is here, too: splits, seeds, chunks of work, CSV rows.
"""

import csv
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.checks import as_boards, frozen, read_only
from plan_envs.domain import DomainSpec, Int8Array, one_of
from trm.bounded import bounded_lines, one_line, read_npz

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Names of the splits; hash values 0-7, 8 and 9 (mod 10) belong to them in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceSet:
    """Instances of one domain with one valid completion each; nobody can change its arrays."""

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

    def __post_init__(self) -> None:
        """Keep arrays that nobody else can write: environments share them, and check them once."""
        for field in ("instances", "solutions", "ratings", "keys"):
            object.__setattr__(self, field, frozen(getattr(self, field)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew, since a pickled array can be written again."""
        return _remade, (type(self), {name: getattr(self, name) for name in self.__slots__})

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
        """Write the set to an .npz file, which holds the old set until the new one is whole."""
        path = Path(path)
        fields: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in self.__slots__}
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, **fields)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a set that `save` wrote.

        Raises:
            ValueError: one line that names the file, and the field that is missing or damaged.
        """
        arrays = read_npz(Path(path), cls.__slots__)
        missing = {"name", "instances", "solutions", "ratings"} - set(arrays)
        if missing:
            raise ValueError(f"{path}: not an InstanceSet, lacks {sorted(missing)}")
        keys = arrays.pop("keys", None)  # files of version 0.1.0 have none
        name = one_line(arrays.pop("name"))
        try:
            found = cls.of(name, **arrays)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {one_line(error)}") from None
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
            name = f"{self.name}: {field} of {spec.name}"
            as_boards(name, getattr(self, field), size, highest)

    def subset(self, index: Any) -> Self:
        """The instances at `index` (a slice, an integer or a boolean array), in that order.

        Arrays are copied, so that a small set does not keep the memory of a large one.
        """
        fields = ("instances", "solutions", "ratings", "keys")
        chosen = {field: np.array(getattr(self, field)[index], order="C") for field in fields}
        return type(self)(name=self.name, **chosen)


def _remade(kind: type[InstanceSet], fields: dict[str, Any]) -> InstanceSet:
    return kind(**fields)


def _boards(name: str, field: str, values: Any) -> Int8Array:
    """The values as int8, contiguous."""
    given = np.asarray(values)
    boards: Int8Array = np.ascontiguousarray(given.astype(np.int8, copy=False))
    if given.dtype != np.int8 and not np.array_equal(boards, given):
        raise ValueError(f"{name}: {field} must be integers of -128..127")
    return boards


def solutions_by_content(instances: InstanceSet, observed: int) -> Callable[[Int8Array], Int8Array]:
    """A function from what learners see of instances, [batch, observed], to their solutions.

    The function raises `ValueError` for an instance that is not in the set.
    """
    keys = content_keys(instances.instances[:, :observed])
    order = np.argsort(keys)

    def solutions(boards: Int8Array) -> Int8Array:
        wanted = content_keys(boards)
        place = np.searchsorted(keys, wanted, sorter=order)
        found = order[np.minimum(place, len(order) - 1)] if len(order) else place
        if len(order) == 0 or (keys[found] != wanted).any():
            raise ValueError(f"oracle: an instance is not in the set {instances.name!r}")
        return instances.solutions[found]

    return solutions


def content_keys(instances: Int8Array) -> NDArray[np.uint64]:
    """Stable 64-bit content hash of every row, shape [num]; equal on every machine."""
    return np.array(hash_rows(read_only(np.ascontiguousarray(instances, np.int8))))


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


def packaged_lines(file: str) -> list[str]:
    """The lines of a file of `plan_envs/data`, without those that begin with "#"."""
    text = (resources.files("plan_envs") / "data" / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@contextmanager
def progress_bar(total: int, label: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Progress bar on stderr, or nothing; gives a function that counts finished items."""
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def check_request(split: str, num: int, seed: int) -> None:
    """Refuse what no generator can make.

    Raises:
        ValueError: for an unknown split, or a negative number or seed.
    """
    one_of("split", split, *SPLITS)
    for name, value in (("num", num), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def fill_in_chunks(
    generate: Callable[..., Any],
    boards: tuple[Int8Array, ...],
    arguments: tuple[Any, ...],
    *,
    chunk: int,
    label: str,
    shown: bool,
) -> int:
    """Call a generator's kernel for a few rows at a time, so that Ctrl-C gets through.

    Args:
        generate: called with (*boards, start, stop, *arguments), makes the rows start..stop - 1;
            returns the first row that failed, -1 if none did.
        boards: arrays to fill, all of the same length.
        arguments: of `generate`, behind the rows.
        chunk: rows a call.
        label: of the progress bar.
        shown: show a progress bar on stderr.

    Returns:
        The first row that failed, at which the work ends; -1 if none did.
    """
    num = len(boards[0])
    with progress_bar(num, label, shown=shown) as advance:
        for start in range(0, num, chunk):
            stop = min(start + chunk, num)
            failed = int(generate(*boards, start, stop, *arguments))
            if failed >= 0:
                return failed
            advance(stop - start)
    return -1


_COLUMNS: Final = {
    "question": ("quizzes", "puzzle"),
    "answer": ("solutions", "solution"),
    "rating": ("difficulty",),
}
"""Column of the public sets -> what Kaggle's sets call it."""


def csv_rows(
    path: Path, limit: int | None, columns: str = "columns source,question,answer,rating"
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file, by default in the format of the public sets.

    Args:
        path: the file.
        limit: read at most so many rows.
        columns: what the header must name, for errors; of the public sets `question` will do, and
            Kaggle's names (`quizzes,solutions`, `puzzle,solution,difficulty`) stand for theirs.

    Raises:
        ValueError: names the file and the line that cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(bounded_lines(file, str(path)), strict=True)
        try:
            needed = "question" if "question" in columns else columns.split()[-1]
            given = list(reader.fieldnames or ())
            names = reader.fieldnames = [_column(name, given) for name in given]
            if needed not in names:
                raise ValueError(f"{path}:1: header must name the {columns}, got {given}")
            for name in set(names) & {needed, *_COLUMNS}:
                if names.count(name) > 1:
                    raise ValueError(f"{path}:1: header has several columns of {name}s: {given}")
            for number, row in enumerate(reader):
                if limit is not None and number >= limit:
                    break
                if None in row:
                    place = f"{path}:{reader.line_num}"
                    raise ValueError(f"{place}: more fields than the header, got {row[None]}")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}:{reader.line_num + 1}: not readable as CSV: {error}"
            ) from error


def _column(name: str, header: Sequence[str]) -> str:
    """The name of a column as the public sets have it, unless the header has that one too."""
    plain = name.strip().lower()
    for ours, others in _COLUMNS.items():
        if plain == ours or (plain in others and ours not in header):
            return ours
    return plain if plain == "board" else name


def csv_rating(text: str, place: str) -> float:
    """The rating of a row of `csv_rows`; nan where the field is empty.

    Raises:
        ValueError: names the place and the text that is no finite number.
    """
    if not text:
        return math.nan
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        raise ValueError(f"{place}: rating must be a number, got {text!r}")
    return rating
