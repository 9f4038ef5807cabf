"""Instance sets, for every domain alike: pools of puzzles with one valid completion each.

Domains hold no random numbers (DESIGN.md, Environments): a generator or a reader (such as
`plan_envs.sudoku_instances`) makes an `InstanceSet`, and the Gymnasium shells, the trainers and the
evaluation draw from it. Generators also share the splits, the seeds and the progress bar below.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.domain import Int8Array

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

    def subset(self, index: Any) -> "InstanceSet":
        """The instances at `index` (a slice, an integer or a boolean array), in that order."""
        return InstanceSet(
            name=self.name,
            instances=np.ascontiguousarray(self.instances[index]),
            solutions=np.ascontiguousarray(self.solutions[index]),
            ratings=np.ascontiguousarray(self.ratings[index]),
            keys=np.ascontiguousarray(self.keys[index]),
        )

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
        instances = np.ascontiguousarray(instances, np.int8)
        solutions = np.ascontiguousarray(solutions, np.int8)
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
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a set that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            missing = {"name", "instances", "solutions", "ratings"} - set(file.files)
            if missing:
                raise ValueError(f"{path}: not an InstanceSet, lacks {sorted(missing)}")
            return cls.of(str(file["name"]), file["instances"], file["solutions"], file["ratings"])


def content_keys(instances: Int8Array) -> NDArray[np.uint64]:
    """Stable 64-bit content hash of every row, shape [num]; equal on every machine."""
    return np.asarray(_content_keys(np.ascontiguousarray(instances, np.int8)))


@njit(cache=True)
def _content_keys(instances: Any) -> Any:
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
