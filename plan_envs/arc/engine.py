"""The ARC engine, in which a paint touches one cell and two legal edits.

It takes an `Arc` domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. An instance of full size has 19,800 bytes, so environments share those of the
pool, and an environment keeps an instance of its own only if that was loaded. The kernels are in
`plan_envs.arc.engine_kernels`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc import engine_kernels as kernels
from plan_envs.arc.rules import Arc
from plan_envs.checks import frozen
from plan_envs.compiled.packed_engine import Layout, PackedEngine
from plan_envs.domain import Int8Array
from plan_envs.engine import EngineOptions


class ArcEngine(PackedEngine):
    """Canvases of n ARC environments; see `plan_envs.engine.Engine` for the contract.

    Deviation: with several environments `instances` is gathered when it is asked for, not live.
    """

    kernels = kernels

    @staticmethod
    def layout(domain: Arc) -> Layout:
        """A row holds no instance, but the target lies behind its legal edits."""
        return Layout(
            num_facts=kernels.SIZE - kernels.SOURCE,
            rules=(domain.size, domain.shaping == "agreement", domain.start == "blank"),
            instance=0,
            behind=domain.spec.num_cells,
        )

    def _prepare(
        self, domain: Arc, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> tuple[Any, ...]:
        self._pool = frozen(pool)
        # zeros take no memory before they are written, which only `load` does for several
        self._own = np.zeros((num_envs, domain.spec.instance_size), np.int8)
        self._source = self._rows.table[:, kernels.SOURCE]
        self._source[:] = -1
        return self._own.reshape(-1), self._pool.reshape(-1), domain.spec.instance_size

    def _memory(self) -> tuple[NDArray[Any], ...]:
        return self._rows.head, self._own

    @property
    def instances(self) -> Int8Array:
        """Instances, shape [n, instance]: live for one environment, a copy for several."""
        if len(self._own) == 1:
            return self._own
        gathered: Int8Array = self._pool[np.maximum(self._source, 0)]
        loaded = self._source < 0
        gathered[loaded] = self._own[loaded]
        return gathered
