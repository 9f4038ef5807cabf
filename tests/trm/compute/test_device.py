"""Placement: what a machine lacks is refused at once, and what it has is set up as asked."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trm.compute.device import Placement, bfloat16_speedup
from trm.experiments.options import make_placement
from trm.runs.recipe import load_recipe


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Put back what `apply` changes for the whole process."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "meta"}, "device must be cpu, cuda or cuda:N, got 'meta'"),
        ({"device": ""}, "device must be cpu, cuda or cuda:N, got ''"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_a_wrong_field_is_refused_with_its_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Placement(**fields)
    assert str(caught.value) == message


def test_a_missing_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="'cuda' is not available: this torch is built without"):
        Placement(device="cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="'cuda' is not available: no CUDA GPU was found"):
        Placement(device="cuda")


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Placement(device="cuda:1").kind == "cuda"
    with pytest.raises(ValueError, match=r"'cuda:2' is not available: 2 CUDA GPU\(s\) found"):
        Placement(device="cuda:2")


def test_compilation_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler"):
        Placement(compile=True)


def test_the_precision_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r'precision = "float16": expected one of float32'):
        load_recipe(Placement, None, ["precision=float16"])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_matrix_products_run_in_the_precision_and_weights_stay_float32(
    precision: Any, dtype: torch.dtype
) -> None:
    placement = Placement(precision=precision)
    layer = torch.nn.Linear(4, 3)
    with placement.autocast():
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(2, 4)).dtype == torch.float32


def test_bfloat16_is_judged_by_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0.001 < bfloat16_speedup() < 1000
    for speedup, said in ((0.1, "10.0 times slower in bfloat16"), (1.9, "")):
        monkeypatch.setattr("trm.compute.device.bfloat16_speedup", lambda speedup=speedup: speedup)
        make_placement(device="cpu", compiled=False, threads=1, precision="bfloat16")
        warned = capsys.readouterr().err
        assert said in warned
        assert bool(said) == bool(warned)
    monkeypatch.setattr(
        "trm.compute.device.bfloat16_speedup", lambda: pytest.fail("measured in float32")
    )
    make_placement(device="cpu", compiled=False, threads=1)


def test_only_compile_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(torch, "compile", lambda target: lambda x: target(x) + 0.5)
    monkeypatch.setattr("trm.compute.device._has_compiler", lambda: True)
    assert Placement().compiled(double) is double
    assert Placement(compile=True).compiled(double)(2) == 4.5


@pytest.mark.usefixtures("torch_settings")
def test_apply_sets_the_threads_and_repeatable_algorithms() -> None:
    Placement(threads=1).apply()
    assert torch.get_num_threads() == 1
    Placement(threads=2).apply()
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
@pytest.mark.parametrize("kept", [False, True])
def test_a_large_tensor_finds_the_memory_of_the_one_before(kept: bool) -> None:
    script = """
import resource, sys, torch
from trm.compute.device import Placement
torch.set_num_threads(1)
if sys.argv[1] == "True":
    Placement(threads=1).apply()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(33)][-1])  # the heap may grow some times before one fits
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(kept)], capture_output=True, text=True, check=True
    )
    # 64 MB are 15,625 pages of 4 KiB.
    assert int(done.stdout) < 100 if kept else int(done.stdout) > 10_000


@pytest.mark.usefixtures("torch_settings")
def test_two_threads_give_the_same_bits_every_time() -> None:
    Placement(threads=2).apply()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50_000, 4, generator=generator)
    index = torch.randint(0, 7, (50_000,), generator=generator)

    def sums() -> torch.Tensor:
        # Accumulating in parallel is what torch does in no fixed order by default.
        return torch.zeros(7, 4).index_put_((index,), values, accumulate=True)

    first = sums()
    assert all(torch.equal(first, sums()) for _ in range(20))


@pytest.mark.gpu
def test_the_gpu_is_named_in_the_record() -> None:
    assert Placement(device="cuda").to_json_dict()["device_name"]


def test_the_record_holds_every_field() -> None:
    assert Placement(threads=3).to_json_dict() == {
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "threads": 3,
        "device_name": None,
    }
