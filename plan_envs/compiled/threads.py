"""How many threads the kernels use: a batch of environments or states is cut into equal shares.

`set_num_threads(2)` concerns every engine and every `successors` whose kernels are made for it;
results do not depend on the number. The caller works on the first share, helping threads on the
others. A step of a thousand environments takes less time than waking a thread, so helpers stay
awake for a while: they wait for the next share in a loop that needs no interpreter.
"""
# The steps of a hand-over, and why none waits for the interpreter's lock (GIL):
# - the caller leaves the work with each helper, then starts its own kernel, which gives up the GIL
#   and calls `raise_flag`;
# - a helper sees the flag, takes the GIL, finds its work and starts the kernel, without the GIL;
# - a helper that is done takes the GIL, which the caller does not need yet, and says that it is
#   done only when it waits again, without the GIL.

import atexit
import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_Result = TypeVar("_Result")
_Work = tuple[int, Callable[..., Any] | None, tuple[Any, ...]]
"""Its number, the kernel (None: end the thread) and the arguments."""

_LINE: Final = 8
"""Integers of a cache line; every flag has one of its own."""
_RAISED: Final = 0
"""Where the number of the newest work is once it may begin."""
_NEWEST: Final = _LINE
"""Where the number of the newest work is."""
_DONE: Final = 2 * _LINE
"""Where the first helper keeps the number of the work that it has done; the others follow."""

_PATIENCE: Final = 200_000
"""Looks at a flag, about a tenth of a millisecond, before a thread sleeps."""


def set_num_threads(number: int) -> None:
    """Use up to `number` threads from now on, in this process; 1 at the start.

    Raises:
        ValueError: if `number` is less than 1.
    """
    global _team
    if number < 1:
        raise ValueError(f"number of threads must be >= 1, got {number}")
    _team.dismiss()
    _team = _Team(number - 1)


def num_threads() -> int:
    """The number that `set_num_threads` has set."""
    return _team.num_helpers + 1


def in_shares(
    kernel: Callable[..., _Result], arguments: tuple[Any, ...], length: int, least: int
) -> list[_Result]:
    """`kernel(flags, *arguments, first, stop)` for contiguous shares of range(length).

    Args:
        kernel: called from several threads at once; without the GIL, and it calls
            `raise_flag(flags)` first, or nothing is gained.
        arguments: what all shares have in common.
        length: items to share out.
        least: smallest share that is worth a thread.

    Returns:
        What the shares return, in their order: one, if the helpers are busy for another thread.
    """
    team = _team
    if team.num_helpers == 0 or length < 2 * least or not team.free.acquire(blocking=False):
        return [kernel(team.flags, *arguments, 0, length)]
    try:
        return team.share_out(kernel, arguments, length, least)
    finally:
        team.free.release()


class _Team:
    """The helping threads, started when they are first needed."""

    def __init__(self, num_helpers: int) -> None:
        self.num_helpers = num_helpers
        self.free = threading.Lock()
        self.flags = np.zeros(_DONE + _LINE * max(1, num_helpers), np.int64)
        self._helpers: list[_Helper] = []

    def share_out(
        self, kernel: Callable[..., _Result], arguments: tuple[Any, ...], length: int, least: int
    ) -> list[_Result]:
        """See `in_shares`."""
        if not self._helpers:
            self._helpers = [_Helper(self.flags, place) for place in range(self.num_helpers)]
        shares = min(self.num_helpers + 1, length // least)
        bounds = [length * share // shares for share in range(shares + 1)]
        at_work = self._helpers[: shares - 1]
        number = int(self.flags[_NEWEST]) + 1
        self.flags[_NEWEST] = number
        for helper, bound in zip(at_work, pairwise(bounds[1:]), strict=True):
            helper.begin(number, kernel, (self.flags, *arguments, *bound))
        try:
            first = kernel(self.flags, *arguments, 0, bounds[1])
        finally:  # not even a share that fails may leave others at work on the caller's arrays
            answers = [helper.answer() for helper in at_work]
        for _, error in answers:
            if error is not None:
                raise error
        return [first, *(result for result, _ in answers)]

    def dismiss(self) -> None:
        """End the threads."""
        with self.free:
            for helper in self._helpers:
                helper.end()
            self._helpers = []


class _Helper:
    """A thread that does one share at a time."""

    def __init__(self, flags: NDArray[np.int64], place: int) -> None:
        self._flags, self._done = flags, _DONE + _LINE * place
        self._number = int(flags[_NEWEST])
        self._work: _Work | None = None
        self._answer: tuple[Any, BaseException | None] = (None, None)
        self._asleep = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, args=(self._number,), name="plan_envs", daemon=True
        )
        self._thread.start()

    def begin(self, number: int, kernel: Callable[..., Any] | None, arguments: Any) -> None:
        """Leave work, to be begun when its flag is raised or at once; None ends the thread."""
        self._number = number
        self._work = number, kernel, arguments
        if self._asleep:  # set before the helper looks for work a last time
            self._wake.put(None)

    def answer(self) -> tuple[Any, BaseException | None]:
        """Wait for the work's result, or its error."""
        raise_flag(self._flags)  # in case the kernel has not
        while not wait_for(self._flags, self._done, self._number, _PATIENCE):
            time.sleep(5e-5)  # the helper seems to have no processor: leave it this one
        return self._answer

    def end(self) -> None:
        """End the thread."""
        self.begin(-1, None, ())
        self._thread.join()

    def _serve(self, number: int) -> None:
        while True:
            rest(self._flags, self._done, number, _PATIENCE)
            number, kernel, arguments = self._next_work()
            if kernel is None:
                return
            try:
                self._answer = kernel(*arguments), None
            except BaseException as error:  # the caller raises it
                self._answer = None, error
            del kernel, arguments  # nothing of the caller's is kept alive

    def _next_work(self) -> _Work:
        """The work that was left; sleeps until there is some."""
        while self._work is None:
            self._asleep = True
            if self._work is None:
                self._wake.get()
            self._asleep = False
        work, self._work = self._work, None
        return work


@intrinsic
def _look(typingctx: Any, flags: Any, place: Any) -> Any:
    """The integer at a place, as the other threads see it."""
    del typingctx

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(flags, types.int64), codegen


@intrinsic
def _show(typingctx: Any, flags: Any, place: Any, number: Any) -> Any:
    """Store an integer at a place, after everything that this thread has stored before."""
    del typingctx

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(flags, types.int64, types.int64), codegen


@njit(cache=True)
def raise_flag(flags: Any) -> None:
    """Let the helpers begin; kernels call it first."""
    _show(flags, _RAISED, _look(flags, _NEWEST))


@njit(cache=True, nogil=True)
def wait_for(flags: Any, place: int, number: int, patience: int) -> bool:
    """Whether a flag shows a number before patience ends."""
    for _ in range(patience):
        if _look(flags, place) == number:
            return True
    return False


@njit(cache=True, nogil=True)
def rest(flags: Any, done: int, number: int, patience: int) -> None:
    """Say that work is done, and wait until other work may begin or patience ends."""
    _show(flags, done, number)
    for _ in range(patience):
        if _look(flags, _RAISED) != number:
            break


_team = _Team(0)


def _start_anew() -> None:
    """A forked child inherits the helpers but none of their threads."""
    global _team
    _team = _Team(_team.num_helpers)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
atexit.register(lambda: _team.dismiss())
