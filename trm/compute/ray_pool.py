"""Jobs on a Ray cluster: the pool that `jobs` starts tasks in, and the connection to Ray.

Scheduling across machines is Ray's; retries are counted by `jobs`, for both of its pools alike. Ray
is the extra `cluster`, imported when it is asked for.
"""

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from trm.compute.attempts import POLL_SECONDS, Attempt, Task, noted

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}

_RAY_STARTS = 3
"""A busy machine takes longer than the 30 s that Ray waits for its own node."""

_RAY_STORE_BYTES = 100 * 2**20
"""Memory of a local cluster's objects: a job is a few kilobytes, and what it makes is a file."""


@contextlib.contextmanager
def connected_ray(address: str | None, *, cores: int) -> Iterator[Any]:
    """A connected `ray`; a cluster that the caller is connected to already is used and left.

    Args:
        address: address of the cluster; None starts one on this machine.
        cores: number of cores of a cluster that is started here.

    Raises:
        ValueError: Ray is not installed, or its cluster is not reached.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError("backend ray needs Ray: pip install 'upi-trm[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        _start_ray(ray, cores)
    else:
        try:
            ray.init(address=address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_ray(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _start_ray(ray: Any, cores: int) -> None:
    """A cluster of this machine alone."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    for attempt in range(1, _RAY_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cores,
                object_store_memory=_RAY_STORE_BYTES,
                include_dashboard=False,
                **_QUIET,
            )
        except Exception as error:  # a start that takes too long raises a bare one
            ray.shutdown()
            if attempt == _RAY_STARTS or isinstance(error, ValueError):
                raise _no_ray("this machine", error) from error
        else:
            return


def _no_ray(place: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"Ray at {place} can't be used: {reason}")


class RayPool:
    """Tasks of a Ray cluster; each watches over the same process as the local pool's."""

    def __init__(self, ray: Any, workers: int | None, threads: int) -> None:
        """`ray` is connected; `workers` tasks at once, None for as many as the cluster takes."""
        self._ray = ray
        self._workers = workers
        # Retries are counted by our own loop, for both backends alike.
        self._remote = ray.remote(num_cpus=threads, max_retries=0)(_attempt_on_ray)
        self._keys: dict[Any, str] = {}
        self._cancelled: set[Any] = set()

    @property
    def running(self) -> int:
        """Tasks that were started and have not ended."""
        return len(self._keys)

    def has_room(self) -> bool:
        """Whether one more task may start."""
        return self._workers is None or len(self._keys) < self._workers

    def start(self, task: Task) -> None:
        """Start a task."""
        self._keys[self._remote.remote(task)] = task.key

    def ended(self) -> list[tuple[str, int | str]]:
        """Each key with an exit code, negative for a signal, or how its process was lost."""
        if not self._keys:
            return []
        ready, _ = self._ray.wait(list(self._keys), num_returns=1, timeout=POLL_SECONDS)
        return [(self._keys.pop(reference), self._ending(reference)) for reference in ready]

    def _ending(self, reference: Any) -> int | str:
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            return f"lost by Ray: {type(error).__name__}: {reason[:200]}"

    def stop(self) -> None:
        """Ask everything that runs to save and leave; may be called again."""
        self._cancel(force=False)

    def kill(self) -> None:
        """End everything at once."""
        self._cancelled.clear()
        self._cancel(force=True)
        self._keys.clear()

    def _cancel(self, *, force: bool) -> None:
        for reference in self._keys.keys() - self._cancelled:
            self._ray.cancel(reference, force=force)
            self._cancelled.add(reference)


def _attempt_on_ray(task: Task) -> int:
    """What a Ray worker does: start the process, wait for it, pass a cancellation on."""
    # ray.cancel interrupts, and again every two seconds until the task ends; were it an exception,
    # one that came between our lines would end the task, and Ray kills what a worker leaves behind.
    with noted(signal.SIGINT) as came:
        attempt = Attempt(task)
        while (code := attempt.poll()) is None:
            if came:
                attempt.stop()
            time.sleep(POLL_SECONDS)
        return code
