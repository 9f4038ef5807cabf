"""The global random streams that SB3 draws from, kept apart from those of the process.

SB3 samples actions from torch's global generator and shuffles minibatches, samples replay and
explores with numpy's. Library code must not touch these (STYLE.md, Randomness): a
`GlobalRandomness` lends SB3 streams of its own, seeded by the run, and gives the process its own
back; they go into checkpoints.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from trm.compute.streams import Streams


class GlobalRandomness:
    """Global streams of numpy and torch for use inside `active` only."""

    def __init__(self, streams: Streams, device: torch.device) -> None:
        """Seed them by the run's stream `policy`."""
        seed = streams.torch_seed("policy")
        self._cuda = device if device.type == "cuda" else None
        numpy_seed = streams.numpy("policy").integers(2**32, dtype=np.uint32)
        self._own: dict[str, Any] = {
            "numpy": np.random.RandomState(numpy_seed).get_state(),
            "torch": torch.Generator().manual_seed(seed).get_state(),
        }
        if self._cuda is not None:
            self._own["cuda"] = torch.Generator(self._cuda).manual_seed(seed).get_state()
        self._is_active = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """SB3 draws from the run's streams here; afterwards the process has its own again."""
        outside = self._take()
        self._put(self._own)
        self._is_active = True
        try:
            yield
        finally:
            self._is_active = False
            self._own = self._take()
            self._put(outside)

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand, for a checkpoint; inside `active` too."""
        return self._take() if self._is_active else dict(self._own)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state_dict`; outside of `active`."""
        assert not self._is_active
        self._own = dict(state)

    def _take(self) -> dict[str, Any]:
        taken: dict[str, Any] = {
            "numpy": np.random.get_state(),  # noqa: NPY002
            "torch": torch.get_rng_state(),
        }
        if self._cuda is not None:
            taken["cuda"] = torch.cuda.get_rng_state(self._cuda)
        return taken

    def _put(self, streams: Mapping[str, Any]) -> None:
        np.random.set_state(streams["numpy"])  # noqa: NPY002
        torch.set_rng_state(streams["torch"])
        if self._cuda is not None:
            torch.cuda.set_rng_state(streams["cuda"], self._cuda)
