"""Random streams stand on seed and name alone, and packed state comes back bit for bit."""

import io
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trm.compute.streams import STREAM_NAMES, Streams, named_streams
from trm.runs.packing import pack_state, unpack_state


def through_a_file(value: Any) -> Any:
    """Pack, save, load with the restricted unpickler, unpack."""
    buffer = io.BytesIO()
    torch.save(pack_state(value), buffer)
    return unpack_state(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))


def draws(streams: Streams, name: str) -> list[float]:
    """Four numbers from each of the two generators of a name."""
    from_torch = torch.rand(4, generator=streams.torch(name), dtype=torch.float64)
    return [*streams.numpy(name).random(4).tolist(), *from_torch.tolist()]


def test_every_stream_differs_from_every_other() -> None:
    streams = named_streams(7)
    numbers = [x for name in STREAM_NAMES for x in draws(streams, name)]
    numbers += [x for name in STREAM_NAMES for x in draws(named_streams(8), name)]
    assert len(set(numbers)) == 2 * 8 * len(STREAM_NAMES)


def test_using_one_stream_shifts_no_other() -> None:
    quiet, busy = named_streams(7), named_streams(7)
    busy.numpy("noise").random(1000)
    torch.rand(1000, generator=busy.torch("noise"))
    torch.rand(1000, generator=busy.torch("policy"))
    # policy's numpy generator is another than its torch generator.
    assert busy.numpy("policy").random() == quiet.numpy("policy").random()
    assert draws(busy, "instances") == draws(quiet, "instances")


def test_more_names_in_another_order_shift_none() -> None:
    more = named_streams(7, ("dropout", "noise", "init", "data", "policy", "instances"))
    plain = named_streams(7)
    assert {name: draws(more, name) for name in STREAM_NAMES} == {
        name: draws(plain, name) for name in STREAM_NAMES
    }


def test_the_streams_are_the_same_in_every_process_and_version() -> None:
    # Written down once: another value would mean that recorded seeds no longer repeat their runs.
    streams = named_streams(0)
    assert streams.numpy("policy").integers(2**32, size=2).tolist() == [391844757, 1919747744]
    assert streams.torch_seed("init") == 3785765623062872344


def test_a_name_always_gives_the_same_generator() -> None:
    streams = named_streams(7)
    assert streams.numpy("policy") is streams.numpy("policy")
    assert streams.torch("policy") is streams.torch("policy")


def test_restored_streams_continue_in_place() -> None:
    streams = named_streams(7)
    handed_out = streams.numpy("policy")
    draws(streams, "policy")
    # A normal number leaves half a pair behind in older generators: state beyond the counter.
    handed_out.standard_normal(3)
    saved = through_a_file({"streams": streams.state_dict()})["streams"]
    expected = {name: draws(streams, name) for name in STREAM_NAMES}

    other = named_streams(0)
    held = other.numpy("policy")
    other.load_state_dict(saved)
    assert {name: draws(other, name) for name in STREAM_NAMES} == expected
    assert other.numpy("policy") is held
    # Straight from state_dict, without a file, too.
    other.load_state_dict(streams.state_dict())
    assert draws(other, "init") == draws(streams, "init")


def test_streams_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"streams: the state holds \['a'\], this run has"):
        named_streams(7).load_state_dict(named_streams(7, ["a"]).state_dict())


@given(
    hnp.arrays(
        dtype=st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(endianness="?"),
            hnp.unsigned_integer_dtypes(endianness="?"),
            hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
            hnp.complex_number_dtypes(sizes=(64, 128), endianness="?"),
        ),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.sampled_from(["plain", "reversed", "transposed", "read-only"]),
)
def test_every_numeric_array_comes_back_bit_for_bit(
    array: "np.ndarray[Any, Any]", layout: str
) -> None:
    if layout == "reversed" and array.ndim:
        array = array[::-1]
    if layout == "transposed":
        array = array.T
    if layout == "read-only":
        array.setflags(write=False)
    back = through_a_file({"a": array})["a"]
    assert type(back) is np.ndarray
    assert (back.shape, back.dtype) == (array.shape, array.dtype.newbyteorder("="))
    assert back.tobytes() == array.astype(back.dtype).tobytes()
    assert back.flags.writeable


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain_values)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    back = through_a_file(value)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, -(2**63) - 1, 2**128 - 1, 3**9000, True])
def test_integers_of_any_size_come_back(value: int) -> None:
    assert through_a_file([value]) == [value]


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_numpy_generator_of_any_kind_continues(kind: str) -> None:
    generator = np.random.Generator(getattr(np.random, kind)(5))
    # uint32 draws leave half a word in the generator's buffer.
    generator.integers(2**16, size=3, dtype=np.uint32)
    back = through_a_file(generator)
    assert back.integers(2**32, size=9, dtype=np.uint32).tolist() == (
        generator.integers(2**32, size=9, dtype=np.uint32).tolist()
    )


def test_torch_and_python_generators_continue() -> None:
    for_torch, for_python = torch.Generator().manual_seed(3), random.Random(3)
    torch.randn(3, generator=for_torch)
    for_python.gauss()  # keeps the second number of the pair
    back = through_a_file({"t": for_torch, "p": for_python})
    assert torch.equal(torch.randn(5, generator=back["t"]), torch.randn(5, generator=for_torch))
    assert [back["p"].gauss() for _ in range(3)] == [for_python.gauss() for _ in range(3)]


def test_numpy_scalars_keep_their_type() -> None:
    values = [np.float32(0.1), np.int64(2**62), np.uint64(2**64 - 1), np.bool_(True), np.float64(2)]
    back = through_a_file(values)
    assert [(type(b), b) for b in back] == [(type(v), v) for v in values]


def test_a_view_is_stored_without_the_rest_of_its_storage() -> None:
    big = torch.arange(100_000)
    buffer = io.BytesIO()
    torch.save(pack_state({"row": big[5:8]}), buffer)
    assert len(buffer.getvalue()) < 10_000
    assert through_a_file(big[5:8]).tolist() == [5, 6, 7]


def test_packing_copies() -> None:
    tensor, array = torch.zeros(2), np.zeros(2)
    packed = pack_state([tensor, array])
    tensor += 1
    array += 1
    assert unpack_state(packed)[0].tolist() == [0, 0]
    assert unpack_state(packed)[1].tolist() == [0, 0]


def test_an_optimiser_state_comes_back() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimiser.step()
    back = through_a_file(optimiser.state_dict())
    twin = torch.nn.Parameter(weight.detach().clone())
    resumed = torch.optim.AdamW([twin], lr=0.5)
    resumed.load_state_dict(back)
    for one, parameter in ((optimiser, weight), (resumed, twin)):
        parameter.grad = torch.tensor([0.3, -1.0, 2.0])
        one.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"^state\.a\[1\]: a value of type set cannot be stored in a checkpoint$"),
        ({"a": np.array(["x"])}, r"^state\.a: an array of dtype <U1 cannot be stored"),
        ({"a": {1.5: 2}}, r"^state\.a: key 1\.5 cannot be stored"),
        ({"b": itertools.count()}, r"^state\.b: a value of type count"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_place(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_state(value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        named_streams(-1)
