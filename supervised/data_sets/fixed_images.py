"""A fixed list of augmented copies, for students of a teacher cache.

A teacher cache holds entries of the inputs that it was built of; students that are to use them must
see the same images. The list depends on seed, example and number of the copy alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Verdict
from plan_envs.instances import stream_key
from supervised.data_sets.datasets import (
    DatasetInfo,
    TokenBatch,
    TokenDataset,
    check_indices,
)


class FixedImages:
    """A `TokenDataset` of each example and `copies` images of it, one after the other.

    Args:
        dataset: the examples.
        copies: images of each beside itself, drawn under the symmetries of the rules; some may be
            equal.
        seed: of the images.
    """

    def __init__(self, dataset: TokenDataset, copies: int, *, seed: int) -> None:
        self._dataset, self._rows, self._seed = dataset, copies + 1, seed
        self.info: DatasetInfo = dataset.info

    def __len__(self) -> int:
        """Examples and images."""
        return len(self._dataset) * self._rows

    def batch(
        self, indices: Sequence[int] | NDArray[Any], generator: np.random.Generator | None = None
    ) -> TokenBatch:
        """Rows k (copies + 1) + c: example k as stored for c = 0, else its image number c.

        `generator` must be None: the images are fixed.
        """
        if generator is not None:
            raise ValueError("generator must be None: the images are fixed")
        chosen = check_indices(indices, len(self))
        rows = [
            self._dataset.batch([row // self._rows], self._rng(row) if row % self._rows else None)
            for row in chosen.tolist()
        ]
        parts = {name: torch.cat([row.parts()[name] for row in rows]) for name in rows[0].parts()}
        return TokenBatch(**parts)

    def verdict(self, batch: TokenBatch, predicted: Int[Tensor, "batch position"]) -> Verdict:
        """What the domain's own checker says."""
        return self._dataset.verdict(batch, predicted)

    def _rng(self, row: int) -> np.random.Generator:
        return np.random.default_rng([stream_key("supervised/images"), self._seed, row])
