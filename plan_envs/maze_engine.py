"""The maze engine: `plan_envs.engine.Engine` whose step touches the cells around the path's head.

Input: a `Maze` domain and a pool of instances; output: the arrays that the Gymnasium shells hand
out. All that an environment knows lies in one row of memory (`maze_engine_kernels`).
"""

from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from plan_envs import maze_engine_kernels as kernels
from plan_envs.boards import neighbours_of
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.engine import SAME_STEP, EngineOptions, Finals, Refusal, StepArrays
from plan_envs.maze import Maze

_POOL_BYTES = 1 << 26
"""Distances to the goal are kept ready while they fit here; beyond, a reset computes its own."""


class MazeEngine:
    """Plans of n maze environments; see `plan_envs.engine.Engine` for the contract."""

    def __init__(
        self, domain: Maze, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        self._arguments = (domain, num_envs, pool, options)
        self._pool = _ready_pool(domain, pool)
        self._gamma, self._spec = float(options.gamma), domain.spec
        self._neighbours = neighbours_of(domain.size)
        table = _rows(domain, num_envs, options)
        self._head = table.reshape(-1)
        self._data = self._head.view(np.int8)
        boards = _boards(domain, table)
        self.instances, self.plans, self.masks = boards
        table[:, kernels.FINISHED] = 1
        self.streams = table.view(np.uint64)[:, kernels.STREAM]
        self.samplers = table.view(np.uint64)[:, kernels.SAMPLER]
        self.steps = table[:, kernels.STEPS]
        self.finished = table[:, kernels.FINISHED]
        self._no_finals = _finals(0, domain.spec)
        self.step_one = partial(kernels.step_one, self._head, self._gamma)
        """Step the only environment; see `Engine.step_one`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles share no memory, and their views are views again."""
        return _restore, (*self._arguments, self._head.copy())

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        index = np.ascontiguousarray(index, np.int64)
        instances = np.require(instances, np.int8, ("C", "W"))
        plans = np.require(plans, np.int8, ("C", "W"))
        kernels.load_all(self._head, self._data, index, self._neighbours, instances, plans)

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        pool = self._pool
        kernels.draw_all(
            self._head,
            self._data,
            np.ascontiguousarray(index, np.int64),
            self._neighbours,
            pool.instances,
            pool.facts,
            pool.ready,
        )

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`."""
        pool = self._pool
        index, finals = self._no_finals
        if autoreset == SAME_STEP:
            index, finals = _finals(len(actions), self._spec)
        num_final, reason = kernels.step_all(
            self._head,
            self._data,
            self._gamma,
            self._neighbours,
            pool.instances,
            pool.facts,
            pool.ready,
            actions,
            autoreset,
            out.arrays(),
            index,
            finals.arrays(),
        )
        if reason:
            raise Refusal(reason, num_final)
        if num_final == 0:
            return None
        # copied, so that a caller who keeps final observations keeps no more than these
        return Finals(index=index[:num_final], arrays=finals.at(np.arange(num_final)))

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        kernels.observe_all(self._head, self._data, out.arrays())

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where there is none."""
        actions = np.empty(len(self.plans), np.int64)
        kernels.sample_all(self._head, self._data, actions)
        return actions


def _restore(*arguments: Any) -> MazeEngine:
    """An engine from its constructor's arguments and its memory."""
    engine = MazeEngine(*arguments[:-1])
    engine._head[:] = arguments[-1]
    return engine


def _finals(room: int, spec: DomainSpec) -> tuple[NDArray[np.int64], StepArrays]:
    """Memory for final states: which environments, and their outcomes."""
    return np.empty(room, np.int64), StepArrays.empty(room, spec)


def _rows(domain: Maze, num: int, options: EngineOptions) -> NDArray[np.int64]:
    """The memory of a number of environments, a row of whole cache lines each."""
    spec = domain.spec
    size, undo, geodesic = domain.rules
    num_bytes = _first_board(domain) + 2 * spec.num_cells + spec.num_actions
    width = -(-num_bytes // 64) * 8
    table = np.zeros((num, width), np.int64)
    table[:, kernels.SIZE : kernels.HEAD_SIZE] = (
        size,
        undo,
        geodesic,
        options.limit,
        options.reward == "shaped",
        options.refuse_illegal,
        spec.num_actions,
        width,
    )
    return table


def _first_board(domain: Maze) -> int:
    """Where in a row the bytes of the instance begin."""
    distances = 2 * domain.spec.num_cells if domain.shaping == "geodesic" else 0
    return 8 * kernels.HEAD_SIZE + distances


def _boards(domain: Maze, table: NDArray[np.int64]) -> tuple[Int8Array, ...]:
    """Instances, plans and legal edits of all rows, shape [num, ...]."""
    cells, num_actions = domain.spec.num_cells, domain.spec.num_actions
    ends = _first_board(domain) + np.cumsum([0, cells, cells, num_actions])
    bytes_of = table.view(np.int8)
    return tuple(bytes_of[:, first:last] for first, last in pairwise(ends))


class _Pool:
    """Instances to reset to, with what a reset needs to know of them."""

    def __init__(self, domain: Maze, instances: Int8Array) -> None:
        self.source = instances
        self.instances = np.require(instances, np.int8, ("C", "W"))
        num, cells = self.instances.shape
        self.facts = np.empty((num, 3), np.int32)
        """Start, goal and distance of every maze."""
        fits = domain.shaping == "geodesic" and 2 * num * cells <= _POOL_BYTES
        self.ready = np.empty((num if fits else 0, cells), np.int16)
        """Distances to the goal, where scores need them."""
        kernels.prepare(self.instances, domain.size, self.facts, self.ready)


_pools: WeakValueDictionary[Any, _Pool] = WeakValueDictionary()


def _ready_pool(domain: Maze, instances: Int8Array) -> _Pool:
    """Environments of equal domains that share an array of instances share its pool."""
    key = (domain, id(instances))
    pool = _pools.get(key)
    if pool is None or pool.source is not instances:
        pool = _pools[key] = _Pool(domain, instances)
    return pool
