"""A word to users while numba compiles kernels, which happens once on a machine.

Numba keeps the machine code of a kernel in files beside the source, or where NUMBA_CACHE_DIR says.
The first use of an environment fills these files: half a minute for boards, a minute for ARC.
"""

import sys

from numba.core import event


class _Announcer(event.Listener):  # type: ignore[misc]  # numba has no annotations
    """Says on stderr, once, that kernels are being compiled."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        """A kernel that is not in the cache is about to be compiled."""
        if not self.said:
            print("compiling the environments' kernels, once on this machine...", file=sys.stderr)
        self.said = True

    def on_end(self, event: event.Event) -> None:
        """Nothing is said of the end."""


_ANNOUNCER = _Announcer()


def announce_compilation() -> None:
    """From now on, say on stderr when kernels must be compiled; what the cache has is not."""
    event.register("numba:compile", _ANNOUNCER)
