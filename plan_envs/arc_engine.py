"""The ARC engine: `plan_envs.engine.Engine` in which a paint touches one cell and two legal edits.

Input: an `Arc` domain and a pool of instances; output: the arrays that the Gymnasium shells hand
out. An instance of full size has 19,800 bytes, so environments share those of the pool and keep
one of their own only if it was loaded.
"""

from functools import partial
from itertools import pairwise
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from plan_envs import arc_engine_kernels as kernels
from plan_envs.arc import Arc
from plan_envs.domain import Int8Array
from plan_envs.engine import SAME_STEP, EngineOptions, Finals, Refusal, StepArrays


class ArcEngine:
    """Canvases of n ARC environments; see `plan_envs.engine.Engine` for the contract.

    Deviation: with several environments `instances` is gathered when it is asked for, not live.
    """

    def __init__(self, domain: Arc, num_envs: int, pool: Int8Array, options: EngineOptions) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        self._arguments = (domain, num_envs, pool, options)
        self._spec, self._gamma = domain.spec, float(options.gamma)
        self._pool = np.require(pool, np.int8, ("C", "W"))
        cells, num_actions = self._spec.num_cells, self._spec.num_actions
        width = -(-(8 * kernels.HEAD + 2 * cells + num_actions) // 64) * 8
        table = np.zeros((num_envs, width), np.int64)
        self._head = table.reshape(-1)
        self._data = self._head.view(np.int8)
        # zeros take no memory before they are written, which only `load` does for several
        self._own = np.zeros((num_envs, self._spec.instance_size), np.int8)
        table[:, kernels.SIZE : kernels.HEAD] = (
            domain.size,
            domain.shaping == "agreement",
            domain.start == "blank",
            options.limit,
            options.reward == "shaped",
            options.refuse_illegal,
            num_actions,
            width,
        )
        table[:, kernels.FINISHED] = 1
        table[:, kernels.SOURCE] = -1
        self._source = table[:, kernels.SOURCE]
        ends = 8 * kernels.HEAD + np.cumsum([0, cells, num_actions])
        bytes_of = self._data.reshape(num_envs, 8 * width)
        self.plans, self.masks = (bytes_of[:, a:b] for a, b in pairwise(ends))
        self.streams = table.view(np.uint64)[:, kernels.STREAM]
        self.samplers = table.view(np.uint64)[:, kernels.SAMPLER]
        self.steps, self.finished = table[:, kernels.STEPS], table[:, kernels.FINISHED]
        self._no_finals = np.empty(0, np.int64), StepArrays.empty(0, self._spec)
        self._shown: Any = _nothing
        self.step_one = partial(kernels.step_one, self._head, self._gamma)
        """Step the only environment; see `Engine.step_one`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles share no memory, and their views are views again."""
        return _restore, (*self._arguments, self._head.copy(), self._own.copy())

    @property
    def instances(self) -> Int8Array:
        """Instances, shape [n, instance]: live for one environment, a copy for several."""
        if len(self._own) == 1:
            return self._own
        gathered: Int8Array = self._pool[np.maximum(self._source, 0)]
        loaded = self._source < 0
        gathered[loaded] = self._own[loaded]
        return gathered

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        index = np.ascontiguousarray(index, np.int64)
        instances = np.require(instances, np.int8, ("C", "W"))
        plans = np.require(plans, np.int8, ("C", "W"))
        kernels.load_all(self._head, self._data, self._own, index, instances, plans)
        self._shown = _nothing

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        kernels.draw_all(self._head, self._data, index, self._own, self._pool)
        self._shown = _nothing

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`.

        When `out` is the one that the last step or `observe` filled, its instances are left alone
        but for environments that are reset now.
        """
        index, finals = self._no_finals
        if autoreset == SAME_STEP:
            index, finals = np.empty(len(actions), np.int64), self._room(len(actions))
        num_final, reason = kernels.step_all(
            self._head,
            self._data,
            self._gamma,
            self._own,
            self._pool,
            actions,
            autoreset,
            self._shown() is out.instance,
            out.arrays(),
            index,
            finals.arrays(),
        )
        if reason:
            raise Refusal(reason, num_final)
        self._shown = ref(out.instance)
        if num_final == 0:
            return None
        # copied, so that a caller who keeps final observations keeps no more than these
        return Finals(index=index[:num_final], arrays=finals.at(np.arange(num_final)))

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        kernels.observe_all(self._head, self._data, self._own, self._pool, out.arrays())
        self._shown = ref(out.instance)

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where there is none."""
        actions = np.empty(len(self.plans), np.int64)
        kernels.sample_all(self._head, self._data, actions)
        return actions

    def _room(self, num: int) -> StepArrays:
        """Memory for final states; pages that no state is written to are never touched."""
        return StepArrays.empty(num, self._spec)


def _nothing() -> None:
    """Stands for a reference to no array."""


def _restore(*arguments: Any) -> ArcEngine:
    """An engine from its constructor's arguments and its memory."""
    engine = ArcEngine(*arguments[:-2])
    engine._head[:], engine._own[:] = arguments[-2:]
    return engine
