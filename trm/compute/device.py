"""Where and how a model runs: device, precision, compilation and threads, decided in one place.

A `Placement` comes from command-line flags and belongs to the machine, never to a recipe: the same
recipe runs on a laptop's CPU and on a GPU. Learners call `apply` once at the start, wrap forward
passes in `autocast` and pass what they want compiled through `compiled`.
"""

import contextlib
import ctypes
import os
import re
import shutil
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch

from trm.ranges import check_at_least

Precision = Literal["float32", "bfloat16"]

C = TypeVar("C", bound=Callable[..., Any])

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Device, precision, compilation and threads; refused at once where this machine lacks them."""

    device: str = "cpu"
    """"cpu", "cuda", "cuda:1", ...; parameters, latents and gradients live there."""
    precision: Precision = "float32"
    """Precision of matrix products in the forward pass; weights and optimiser stay float32."""
    compile: bool = False
    """Whether `compiled` hands its argument to torch.compile."""
    threads: int | None = None
    """CPU threads of torch; None leaves torch's choice. Results on the CPU are bit-identical for
    equal counts only."""

    def __post_init__(self) -> None:
        """Check every field against this machine."""
        _check_device(self.device)
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        check_at_least(self, "", 1, "threads")
        if self.compile and not _has_compiler():
            raise ValueError(
                "compile needs a C++ compiler (g++ or clang++, or CXX), and none was found"
            )
        on_gpu = self.kind == "cuda"
        if self.precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
            raise ValueError(f"precision bfloat16 is not supported by device {self.device}")

    @property
    def kind(self) -> str:
        """The device without its number: "cpu" or "cuda"."""
        return torch.device(self.device).type

    @property
    def torch_device(self) -> torch.device:
        """The device as torch wants it."""
        return torch.device(self.device)

    def apply(self) -> None:
        """Set the process up: threads and, on the CPU, kept memory and algorithms that repeat."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.kind != "cpu":
            return
        _keep_freed_memory()
        if torch.get_num_threads() > 1:
            # One thread has one order anyway, and the deterministic cumsum and scatter cost up to
            # twice the time.
            torch.use_deterministic_algorithms(True)
            # Filling fresh memory is a debugging aid that costs time on every allocation.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass: bfloat16 matrix products, or nothing."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def compiled(self, target: C) -> C:
        """The module or function compiled, or itself where `compile` is off."""
        return torch.compile(target) if self.compile else target  # type: ignore[return-value]  # same signature

    def to_json_dict(self) -> dict[str, Any]:
        """The fields and, on a GPU, its name; for run.json."""
        name = torch.cuda.get_device_name(self.device) if self.kind == "cuda" else None
        return {**asdict(self), "device_name": name}


def bfloat16_speedup() -> float:
    """How many times as fast this CPU multiplies matrices in bfloat16 as in float32, measured.

    Above 1 with AMX or AVX-512 BF16; far below 1 on a CPU without, where torch emulates it. The
    fastest of three products of 384 rows counts, which takes milliseconds.
    """

    def fastest(dtype: torch.dtype) -> float:
        left, right = torch.ones(2, 384, 384, dtype=dtype)
        return min(timeit.repeat(lambda: torch.mm(left, right), number=1, repeat=3))

    return fastest(torch.float32) / fastest(torch.bfloat16)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, so that the next tensor of that size finds it; no-op elsewhere.

    By default a tensor of more than 32 MB is mapped anew each time, page by page: up to a
    third of a training step of the full-size mixer (`benchmarks/supervision_step.py`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def _check_device(device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if device == "cpu":
        return
    why = None
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no CUDA GPU was found" if built else "this torch is built without CUDA"
    elif (torch.device(device).index or 0) >= torch.cuda.device_count():
        why = f"{torch.cuda.device_count()} CUDA GPU(s) found"
    if why is not None:
        raise ValueError(f"device {device!r} is not available: {why}")


def _has_compiler() -> bool:
    return any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")
    )
