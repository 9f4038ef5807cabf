"""Named random streams from one seed.

Every stochastic function takes a generator (STYLE.md, Randomness). A learner gets its generators
here, by name, so that drawing more from one never shifts another. A checkpoint holds the state of
each of them.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

STREAM_NAMES = ("instances", "policy", "init", "noise")
"""instances: which puzzles; policy: which edits; init: weights; noise: everything else."""

_LIBRARIES = ("numpy", "torch")


class Streams:
    """Independent generators, one of numpy and one of torch per name; made by `named_streams`."""

    def __init__(self, seed: int, names: Sequence[str], member: int = 0) -> None:
        """See `named_streams`."""
        self.seed, self._member = seed, member
        self.names = tuple(names)
        self._numpy = {
            name: np.random.Generator(np.random.PCG64(self._seed_of(name, "numpy")))
            for name in names
        }
        self._torch = {name: torch.Generator().manual_seed(self.torch_seed(name)) for name in names}

    def numpy(self, name: str) -> np.random.Generator:
        """The one numpy generator of this name: every call returns the same object."""
        return self._numpy[name]

    def torch(self, name: str) -> torch.Generator:
        """The one torch generator of this name, on the CPU."""
        return self._torch[name]

    def torch_seed(self, name: str) -> int:
        """Seed of the torch generator, for one on another device.

        The CPU generator of torch keeps only the lowest 32 bits of a seed.
        """
        return int(self._seed_of(name, "torch").generate_state(1, np.uint64)[0] >> np.uint64(1))

    def state_dict(self) -> dict[str, Any]:
        """Copies of every stream as they stand; a checkpoint can hold generators."""
        return copy.deepcopy({"seed": self.seed, "numpy": self._numpy, "torch": self._torch})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put every stream back, in place: generators already handed out continue from there.

        Raises:
            ValueError: if the state names other streams.
        """
        if set(state["numpy"]) != set(self.names):
            held, ours = sorted(state["numpy"]), sorted(self.names)
            raise ValueError(f"streams: the state holds {held}, this run has {ours}")
        self.seed = state["seed"]
        for name in self.names:
            self._numpy[name].bit_generator.state = state["numpy"][name].bit_generator.state
            self._torch[name].set_state(state["torch"][name].get_state())

    def _seed_of(self, name: str, library: str) -> np.random.SeedSequence:
        # A stable hash, not Python's: the same name gives the same stream in every process and
        # version.
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4")
        key: tuple[int, ...] = (*(int(word) for word in words), _LIBRARIES.index(library))
        if self._member:
            key = (*key, self._member)
        return np.random.SeedSequence(self.seed, spawn_key=key)


def named_streams(seed: int, names: Sequence[str] = STREAM_NAMES, *, member: int = 0) -> Streams:
    """Independent random streams, each fixed by the seed, its own name and the process alone.

    Args:
        seed: at least 0.
        names: the streams of this learner; another name added or used shifts none of the others.
        member: number of the process in a training on several, each of which draws its own.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return Streams(seed, names, member)
