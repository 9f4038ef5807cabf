"""The Sudoku engine: `plan_envs.engine.Engine` with caches that an edit patches at its peers only.

Input: a `Sudoku` domain and a pool of instances; output: the arrays that the Gymnasium shells hand
out. All that an environment knows lies in one row of memory (`sudoku_engine_kernels`).
"""

from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from plan_envs import sudoku_engine_kernels as kernels
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.engine import SAME_STEP, EngineOptions, Finals, Refusal, StepArrays
from plan_envs.sudoku import Sudoku
from plan_envs.sudoku_geometry import peers_of
from plan_envs.threads import in_shares

_POOL_BYTES = 1 << 26
"""Reset states are kept ready while they fit here; beyond, a reset computes its own."""

_LEAST_ENVS = 256
"""Environments that are worth a thread."""


class SudokuEngine:
    """Plans of n Sudoku environments; see `plan_envs.engine.Engine` for the contract."""

    def __init__(
        self, domain: Sudoku, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        self._arguments = (domain, num_envs, pool, options)
        self._rows = rows = _Rows(domain, num_envs, options)
        self._pool = _ready_pool(domain, pool, options)
        self._gamma, self._spec = float(options.gamma), domain.spec
        self.instances, self.plans, self.masks = rows.boards
        rows.counters[:, kernels.FINISHED] = 1
        self.streams = rows.counters.view(np.uint64)[:, kernels.STREAM]
        self.samplers = rows.counters.view(np.uint64)[:, kernels.SAMPLER]
        self.steps = rows.counters[:, kernels.STEPS]
        self.finished = rows.counters[:, kernels.FINISHED]
        usual = domain == Sudoku(9, "digits", "fill", "constraint")
        self._step_share: Any = kernels.step_share_9x9 if usual else kernels.step_share
        self._no_finals = _finals(0, domain.spec)
        self.step_one = partial(kernels.step_one, rows.head, self._gamma)
        """Step the only environment; see `Engine.step_one`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles share no memory, and their views are views again."""
        return _restore, (*self._arguments, self._rows.head.copy())

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        self._rows.load(index, instances, plans)

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        rows, pool = self._rows, self._pool
        kernels.draw_all(rows.head, rows.data, index, rows.peers, pool.instances, pool.rows.head)

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`."""
        rows, num_envs = self._rows, len(actions)
        env, reason = kernels.refuse(rows.head, rows.data, actions, autoreset)
        if reason:
            raise Refusal(reason, env)
        index, finals = self._no_finals
        if autoreset == SAME_STEP:
            index, finals = _finals(num_envs, self._spec)
        arguments = (
            rows.head,
            rows.data,
            self._gamma,
            rows.peers,
            self._pool.instances,
            self._pool.rows.head,
            actions,
            autoreset,
            out.arrays(),
            index,
            finals.arrays(),
        )
        # each share leaves its finals at its own beginning
        ended = in_shares(self._step_share, arguments, num_envs, _LEAST_ENVS)
        places = [np.arange(first, stop) for first, stop in ended if stop > first]
        if not places:
            return None
        chosen = np.concatenate(places)
        # copied, so that a caller who keeps final observations keeps no more than these
        return Finals(index=index[chosen], arrays=finals.at(chosen))

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        arguments = (self._rows.head, self._rows.data, out.arrays())
        in_shares(kernels.observe_share, arguments, len(self.plans), _LEAST_ENVS)

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where there is none."""
        actions = np.empty(len(self.plans), np.int64)
        arguments = (self._rows.head, self._rows.data, actions)
        in_shares(kernels.sample_share, arguments, len(actions), _LEAST_ENVS)
        return actions


def _restore(*arguments: Any) -> SudokuEngine:
    """An engine from its constructor's arguments and its memory."""
    engine = SudokuEngine(*arguments[:-1])
    engine._rows.head[:] = arguments[-1]
    return engine


def _finals(room: int, spec: DomainSpec) -> tuple[NDArray[np.int64], StepArrays]:
    """Memory for final states: which environments, and their outcomes."""
    return np.empty(room, np.int64), StepArrays.empty(room, spec)


class _Rows:
    """The memory of a number of environments."""

    def __init__(self, domain: Sudoku, num: int, options: EngineOptions) -> None:
        cells, num_actions = domain.spec.num_cells, domain.spec.num_actions
        width = row_bytes(domain) // 8
        self.peers = peers_of(domain.side)
        table = np.zeros((num, width), np.int64)
        self.head = table.reshape(-1)
        self.data = self.head.view(np.int8)
        self.counters = table[:, : kernels.HEAD]
        """Shape [num, HEAD]; the engine's options fill its second part."""
        self.counters[:, kernels.SIDE :] = (
            *domain.rules,
            options.limit,
            options.reward == "shaped",
            options.dead_end == "absorb",
            options.refuse_illegal,
            num_actions,
            width,
        )
        ends = 8 * kernels.HEAD + np.cumsum([0, cells, cells, num_actions])
        bytes_of = self.data.reshape(num, 8 * width)
        self.boards = tuple(bytes_of[:, a:b] for a, b in pairwise(ends))
        """Instances, plans and legal edits, shape [num, ...]."""

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put rows into given states."""
        index = np.ascontiguousarray(index, np.int64)
        instances = np.require(instances, np.int8, ("C", "W"))
        plans = np.require(plans, np.int8, ("C", "W"))
        kernels.load_all(self.head, self.data, index, self.peers, instances, plans)


class _Pool:
    """Instances to reset to, with their rows ready as far as these fit into `_POOL_BYTES`."""

    def __init__(self, domain: Sudoku, instances: Int8Array, options: EngineOptions) -> None:
        self.source = instances
        self.instances = np.require(instances, np.int8, ("C", "W"))
        fits = len(instances) * row_bytes(domain) <= _POOL_BYTES
        ready = self.instances if fits else self.instances[:0]
        self.rows = _Rows(domain, len(ready), options)
        self.rows.load(np.arange(len(ready)), ready, ready)


def row_bytes(domain: Sudoku) -> int:
    """Memory of one environment, a multiple of a cache line."""
    spec = domain.spec
    num_bytes = 8 * kernels.HEAD + 3 * spec.num_cells + spec.num_actions
    if not (domain.edits == "fill" and domain.mask == "constraint"):
        num_bytes += spec.num_cells * spec.num_values
    return -(-num_bytes // 64) * 64


_pools: WeakValueDictionary[Any, _Pool] = WeakValueDictionary()


def _ready_pool(domain: Sudoku, instances: Int8Array, options: EngineOptions) -> _Pool:
    """Environments with equal rules and options that share an array of instances share its pool."""
    key = (domain, options, id(instances))
    pool = _pools.get(key)
    if pool is None or pool.source is not instances:
        pool = _pools[key] = _Pool(domain, instances, options)
    return pool
