"""Named random streams from one seed, and state dicts that hold them exactly.

Every stochastic function takes a generator (STYLE.md, Randomness). A learner gets its generators
here, by name, so that drawing more from one never shifts another; `pack_state` turns generators and
numpy arrays into what `torch.load(weights_only=True)` accepts, and `unpack_state` brings them back
bit for bit.
"""

import difflib
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STREAM_NAMES = ("instances", "policy", "init", "noise")
"""instances: which puzzles; policy: which edits; init: weights; noise: everything else."""

_LIBRARIES = ("numpy", "torch")
_MARK = "__packed__"


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
        self._check(name)
        return self._numpy[name]

    def torch(self, name: str) -> torch.Generator:
        """The one torch generator of this name, on the CPU."""
        self._check(name)
        return self._torch[name]

    def torch_seed(self, name: str) -> int:
        """Seed of the torch generator, for one on another device.

        The CPU generator of torch keeps only the lowest 32 bits of a seed.
        """
        self._check(name)
        return int(self._seed_of(name, "torch").generate_state(1, np.uint64)[0] >> np.uint64(1))

    def state_dict(self) -> dict[str, Any]:
        """Where every stream stands; goes into a checkpoint as it is."""
        return pack_state({"seed": self.seed, "numpy": self._numpy, "torch": self._torch})  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put every stream back, in place: generators already handed out continue from there.

        Raises:
            ValueError: if the state names other streams.
        """
        loaded = unpack_state(state)
        if set(loaded["numpy"]) != set(self.names):
            held, ours = sorted(loaded["numpy"]), sorted(self.names)
            raise ValueError(f"streams: the state holds {held}, this run has {ours}")
        self.seed = loaded["seed"]
        for name in self.names:
            self._numpy[name].bit_generator.state = loaded["numpy"][name].bit_generator.state
            self._torch[name].set_state(loaded["torch"][name].get_state())

    def _seed_of(self, name: str, library: str) -> np.random.SeedSequence:
        # A stable hash, not Python's: the same name gives the same stream in every process and
        # version.
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4")
        key: tuple[int, ...] = (*(int(word) for word in words), _LIBRARIES.index(library))
        if self._member:
            key = (*key, self._member)
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def _check(self, name: str) -> None:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.0)
            raise ValueError(
                f"stream {name!r} is unknown; nearest is {near[0] if near else 'none'}"
            )


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


def pack_state(value: Any) -> Any:
    """A copy of `value` that `torch.load(weights_only=True)` accepts: tensors and plain values.

    Takes nested dicts (keys text or int), lists and tuples of: None, bool, int of any size, float,
    text, torch tensors (moved to the CPU), numpy arrays and scalars of any numeric dtype, numpy and
    torch generators (by their state) and `random.Random`. `unpack_state` returns equal values of
    the same types, tensors on the CPU.

    Raises:
        ValueError: naming the place and the type of anything else.
    """
    return _pack(value, "state")


def unpack_state(value: Any) -> Any:
    """What `pack_state` was given."""
    if isinstance(value, Mapping):
        if _MARK in value:
            return _unpack_marked(value[_MARK], value)
        return {key: unpack_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack_state(item) for item in value]
    return value


def _pack(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | float | str):
        # numpy's float64 is a float and numpy's str_ a str; the branch for numpy scalars is for
        # them.
        if not isinstance(value, np.generic):
            return value
    if isinstance(value, int):
        # The restricted unpickler reads only short integers, a bit generator's state may be longer.
        return value if -(2**63) <= value < 2**63 else {_MARK: "int", "hex": hex(value)}
    if isinstance(value, Tensor):
        # The copy also drops the rest of a storage that `value` is only a view of.
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        # A part that is packed already passes through: `Streams.state_dict` inside a learner's
        # state.
        for key in value:
            if not isinstance(key, str | int):
                raise ValueError(
                    f"{place}: key {key!r} cannot be stored, only text and integers can"
                )
        return {key: _pack(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_pack(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": _pack(list(value), place)}
    if isinstance(value, np.ndarray | np.generic):
        return {
            _MARK: "array" if isinstance(value, np.ndarray) else "scalar",
            "data": _tensor_of(value, place),
        }
    if isinstance(value, np.random.Generator):
        state = _pack(value.bit_generator.state, place)
        return {
            _MARK: "numpy generator",
            "kind": type(value.bit_generator).__name__,
            "state": state,
        }
    if isinstance(value, torch.Generator):
        return {_MARK: "torch generator", "device": str(value.device), "state": value.get_state()}
    if isinstance(value, random.Random):
        return {_MARK: "random", "state": _pack(value.getstate(), place)}
    raise ValueError(
        f"{place}: a value of type {type(value).__name__} cannot be stored in a checkpoint"
    )


def _tensor_of(value: NDArray[Any] | np.generic, place: str) -> Tensor:
    native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(native)
    except TypeError:
        raise ValueError(
            f"{place}: an array of dtype {value.dtype} cannot be stored in a checkpoint"
        ) from None


def _unpack_marked(mark: str, value: Mapping[str, Any]) -> Any:
    match mark:
        case "int":
            return int(value["hex"], 16)
        case "tuple":
            return tuple(unpack_state(value["items"]))
        case "array":
            return value["data"].numpy().copy()
        case "scalar":
            return value["data"].numpy()[()]
        case "numpy generator":
            bits = getattr(np.random, value["kind"])()
            bits.state = unpack_state(value["state"])
            return np.random.Generator(bits)
        case "torch generator":
            generator = torch.Generator(value["device"])
            generator.set_state(value["state"])
            return generator
        case "random":
            stream = random.Random()
            stream.setstate(unpack_state(value["state"]))
            return stream
    raise ValueError(f"state: unknown mark {mark!r}")
