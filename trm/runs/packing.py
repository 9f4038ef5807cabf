"""State dicts as what torch.load(weights_only=True) accepts, bit for bit."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MARK = "__packed__"


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
            kind = getattr(np.random, value["kind"])
            if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
                raise ValueError(f"state: {value['kind']!r} is no kind of generator")
            bits = kind()
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
