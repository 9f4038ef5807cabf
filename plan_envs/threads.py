"""How many threads the kernels use: a batch of environments or states is cut into equal shares.

`set_num_threads(2)` concerns every engine and every `successors` whose kernels run without the
interpreter's lock; results do not depend on the number. Handing a share to another thread takes
some ten microseconds, so small batches stay whole.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_num_threads = 1
_helpers: ThreadPoolExecutor | None = None


def set_num_threads(number: int) -> None:
    """Use up to `number` threads from now on, in this process; 1 at the start.

    Raises:
        ValueError: if `number` is less than 1.
    """
    global _num_threads
    if number < 1:
        raise ValueError(f"number of threads must be >= 1, got {number}")
    _forget_helpers()
    _num_threads = number


def num_threads() -> int:
    """The number that `set_num_threads` has set."""
    return _num_threads


def in_shares(
    kernel: Callable[..., _Result], arguments: tuple[Any, ...], length: int, least: int
) -> list[_Result]:
    """`kernel(*arguments, first, stop)` for contiguous shares of range(length), one a thread.

    Args:
        kernel: called from several threads at once; `nogil`, or nothing is gained.
        arguments: what all shares have in common.
        length: items to share out.
        least: smallest share that is worth a thread.

    Returns:
        What the shares return, in their order.
    """
    if _num_threads == 1 or length < 2 * least:
        return [kernel(*arguments, 0, length)]
    shares = min(_num_threads, length // least)
    bounds = [length * share // shares for share in range(shares + 1)]
    others = [_team().submit(kernel, *arguments, *bound) for bound in pairwise(bounds[1:])]
    try:
        first = kernel(*arguments, 0, bounds[1])
    finally:  # not even a share that fails may leave others at work on the caller's arrays
        wait(others)
    return [first, *(other.result() for other in others)]


def _team() -> ThreadPoolExecutor:
    """The helping threads, started when they are first needed."""
    global _helpers
    if _helpers is None:
        _helpers = ThreadPoolExecutor(_num_threads - 1, "plan_envs")
    return _helpers


def _forget_helpers() -> None:
    """Let go of the helping threads; idle ones end."""
    global _helpers
    _helpers = None


# a forked child inherits the pool but none of its threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)
