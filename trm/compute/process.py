"""A training process and its surroundings: stop on a signal, count the cost, record the code.

Learners wrap their loop in `graceful_stop`, keep a `ResourceMeter` in their checkpoints, and `Run`
records `provenance` when a run folder is made (DESIGN.md section 8).
"""

import contextlib
import importlib.metadata
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm.compute.device import Placement

_ECHO_SECONDS = 0.25
"""Wrappers such as `timeout` pass one Ctrl-C on a second time: a SIGINT this soon after the first
is the same one."""

_PACKAGES = (
    "upi-trm",
    "torch",
    "numpy",
    "numba",
    "gymnasium",
    "safetensors",
    "omegaconf",
    "tensorboard",
)


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the process to stop; look at it between two iterations."""

    requested: bool = False
    """True from the first SIGINT or SIGTERM on."""
    signal_name: str | None = None
    """"SIGINT" or "SIGTERM" once requested."""


@contextlib.contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to stop, so that the loop can save and leave.

    A second SIGINT raises `KeyboardInterrupt` at once, for a loop that hangs. The previous handlers
    come back at the end. Outside the main thread, where Python allows no handlers, nothing is
    changed and nothing is ever requested.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    requested_at = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if (
            stop.requested
            and number == signal.SIGINT
            and time.monotonic() - requested_at > _ECHO_SECONDS
        ):
            raise KeyboardInterrupt
        if not stop.requested:
            stop.requested, stop.signal_name = True, signal.Signals(number).name
            requested_at = time.monotonic()

    previous = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None: installed from C, where Python can't give it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class ResourceMeter:
    """What a run cost: counts from its construction on, on top of earlier sessions of the run."""

    def __init__(self, earlier: Mapping[str, Any] | None = None) -> None:
        """Start counting; `earlier` is the `state_dict` of the session that was stopped."""
        nothing = {"wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_bytes": 0}
        self._earlier = {**nothing, **(earlier or {})}
        self._wall_start = time.perf_counter()
        self._cpu_start = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """Wall time, user plus system time of all threads, and the largest resident size."""
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        earlier = self._earlier
        return {
            "wall_seconds": earlier["wall_seconds"] + time.perf_counter() - self._wall_start,
            "cpu_seconds": earlier["cpu_seconds"] + time.process_time() - self._cpu_start,
            "peak_memory_bytes": max(earlier["peak_memory_bytes"], peak),
        }


def provenance(placement: "Placement | None" = None) -> dict[str, Any]:
    """Code, packages and machine of this process, as JSON; names no user, host or folder.

    Args:
        placement: recorded beside; call `placement.apply()` before, so that the thread count is the
            real one.
    """
    import torch  # here, so that benchmarks of environments alone can ask for their commit

    where = {} if placement is None else {"placement": placement.to_json_dict()}
    return where | {
        "git": git_state(Path(__file__).resolve()),
        "packages": {
            name: version for name in _PACKAGES if (version := _version(name)) is not None
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `source`; None for an installed package or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # An environment inside somebody else's checkout must not report that checkout.
        git("ls-files", "--error-unmatch", source.name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None
