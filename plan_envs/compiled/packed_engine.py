"""Engines whose environments are rows of memory: `plan_envs.engine.Engine` with numba kernels.

An engine takes a domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. A domain supplies the layout of a row and a module of kernels (see
`plan_envs.compiled.packed_kernels`). The memory, the pool of reset states and pickling are here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from types import MethodType
from typing import Any, Final
from weakref import WeakValueDictionary, ref

import numpy as np
from numba import typeof, types
from numpy.typing import NDArray

from plan_envs.checks import frozen, read_only
from plan_envs.compiled import packed_kernels
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.engine import SAME_STEP, EngineOptions, Finals, Refusal, StepArrays

POOL_BYTES: Final = 1 << 26
"""Reset states are kept ready while they fit here; beyond, a reset computes its own."""

_INTEGERS: Final = types.int64[::1]
"""Numba's type of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A row of memory: integers, then bytes, filled up to a multiple of a cache line."""

    num_facts: int
    """Integers from `packed_kernels.OWN` on that the kernels keep."""
    rules: tuple[int, ...]
    """The domain's options: integers behind the facts."""
    before: int = 0
    """Bytes of the domain before the boards."""
    instance: int
    """Bytes of the instance, followed by the plan and the legal edits."""
    behind: int = 0
    """Bytes of the domain behind these."""


class Rows:
    """The memory of a number of environments."""

    def __init__(self, spec: DomainSpec, layout: Layout, num: int, options: EngineOptions) -> None:
        """All zeros but for the options and the rules."""
        rules = packed_kernels.OWN + layout.num_facts
        first = 8 * (rules + len(layout.rules)) + layout.before
        ends = first + np.cumsum([0, layout.instance, spec.num_cells, spec.num_actions])
        width = -(-(int(ends[-1]) + layout.behind) // 64) * 8
        self.table = np.zeros((num, width), np.int64)
        """Shape [num, integer]."""
        self.head = self.table.reshape(-1)
        self.data = self.head.view(np.int8)
        self.table.view(np.float64)[:, packed_kernels.DISCOUNT] = options.gamma
        self.table[:, packed_kernels.LIMIT : packed_kernels.OWN] = (
            options.limit,
            options.reward == "shaped",
            options.dead_end == "absorb",
            options.refuse_illegal,
            spec.num_actions,
            width,
            ends[2],
        )
        self.table[:, rules : rules + len(layout.rules)] = layout.rules
        bytes_of = self.data.reshape(num, 8 * width)
        self.boards = tuple(bytes_of[:, a:b] for a, b in pairwise(ends))
        """Instances, plans and legal edits, shape [num, ...]."""


class PackedEngine(ABC):
    """Plans of n environments; see `plan_envs.engine.Engine` for the contract.

    When `out` is the one that the last step or `observe` filled, its instances are left alone but
    for environments that are reset now.
    """

    kernels: Any
    """The domain's module with the kernels `load_all`, `draw_all`, `step_all`, `step_one`,
    `observe_all` and `sample_all`."""
    usual: tuple[Any, Any] = (None, None)
    """The default rules, and `step_all` with these as constants."""

    def __init__(self, domain: Any, num_envs: int, pool: Int8Array, options: EngineOptions) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        self._arguments = (domain, num_envs, pool, options)
        self._spec = domain.spec
        self._rows = rows = Rows(domain.spec, self.layout(domain), num_envs, options)
        self.plans, self.masks = rows.boards[1:]
        self.streams = rows.table.view(np.uint64)[:, packed_kernels.STREAM]
        self.samplers = rows.table.view(np.uint64)[:, packed_kernels.SAMPLER]
        self.steps = rows.table[:, packed_kernels.STEPS]
        self.finished = rows.table[:, packed_kernels.FINISHED]
        self.finished[:] = 1
        self._resets = self._prepare(domain, num_envs, pool, options)
        self._no_finals = _finals(0, domain.spec)
        self._shown: Any = _nothing
        self._step_all: Any = self.usual[1] if domain == self.usual[0] else self.kernels.step_all
        self._step_code: Any = None
        step_one = self.kernels.step_one
        if num_envs == 1:  # the compiled code itself: 100 ns less than by way of the dispatcher
            step_one = step_one.compile((_INTEGERS, types.int64))
        self.step_one = MethodType(step_one, rows.head)  # 30 ns less than `partial`
        """Step the only environment; see `Engine.step_one`."""

    @staticmethod
    @abstractmethod
    def layout(domain: Any) -> Layout:
        """How the domain packs an environment."""

    @abstractmethod
    def _prepare(
        self, domain: Any, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> tuple[Any, ...]:
        """What a reset needs, for the kernels; the first item is also for `load_all`."""

    def _memory(self) -> tuple[NDArray[Any], ...]:
        """The arrays that make the state."""
        return (self._rows.head,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles share no memory, and their views are views again."""
        return type(self), self._arguments, tuple(array.copy() for array in self._memory())

    def __setstate__(self, saved: tuple[NDArray[Any], ...]) -> None:
        """Fill in the state of a copy."""
        for array, values in zip(self._memory(), saved, strict=True):
            array[:] = values

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        _load(self.kernels, self._rows, index, self._resets[0], instances, plans)
        self._shown = _nothing

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        index = np.ascontiguousarray(index, np.int64)
        self.kernels.draw_all(self._rows.head, self._rows.data, index, self._resets)
        self._shown = _nothing

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`."""
        rows, num_envs = self._rows, len(actions)
        actions = np.ascontiguousarray(actions, np.int64)  # compiled code takes it as it comes
        env, reason = packed_kernels.refuse(rows.head, rows.data, actions, autoreset)
        if reason:
            raise Refusal(reason, env)
        index, finals = self._no_finals
        if autoreset == SAME_STEP:
            index, finals = _finals(num_envs, self._spec)
        shown = self._shown() is out.instance
        call = (self._resets, actions, autoreset, shown, out, index, finals)
        if self._step_code is None:
            # The machine code itself takes 1 us less than numba's dispatcher. It does not look at
            # the types of its arguments again, so these must stay the same.
            self._step_code = self._step_all.compile(
                tuple(map(typeof, (rows.head, rows.data, call)))
            )
        num_final = self._step_code(rows.head, rows.data, call)
        self._shown = ref(out.instance)
        if num_final == 0:
            return None
        # These are copies, so that a caller who keeps final observations keeps no more than these.
        chosen = np.arange(num_final)
        return Finals(index=index[chosen], arrays=finals.at(chosen))

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        self.kernels.observe_all(self._rows.head, self._rows.data, self._resets, out)
        self._shown = ref(out.instance)

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where the episode is over."""
        actions = np.empty(len(self.plans), np.int64)
        self.kernels.sample_all(self._rows.head, self._rows.data, actions)
        return actions


class PooledEngine(PackedEngine):
    """A `PackedEngine` whose rows hold all of an instance, so that a reset copies a ready row."""

    def _prepare(
        self, domain: Any, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> tuple[Any, ...]:
        self.instances = self._rows.boards[0]
        self._pool = _ready_pool(self, domain, pool, options)
        return self._pool.resets


class _Pool:
    """Instances to reset to, with their rows ready as far as these fit into `POOL_BYTES`."""

    def __init__(
        self, engine: PooledEngine, domain: Any, instances: Int8Array, options: EngineOptions
    ) -> None:
        self.source = instances
        instances = frozen(instances)
        layout = engine.layout(domain)
        # what the kernel `load` looks up, such as the peers of a cell
        tables = (*domain.kernel_rules, np.empty(0, np.int8))[1]
        starts = frozen(domain.initial(instances))
        row_bytes = Rows(domain.spec, layout, 1, options).data.size
        num_ready = len(instances) if len(instances) * row_bytes <= POOL_BYTES else 0
        rows = Rows(domain.spec, layout, num_ready, options)
        index = np.arange(num_ready)
        _load(engine.kernels, rows, index, tables, instances[:num_ready], starts[:num_ready])
        if np.array_equal(starts, instances):  # no second copy of a large pool
            starts = instances
        self.resets = tables, instances, starts, rows.head


_pools: WeakValueDictionary[Any, _Pool] = WeakValueDictionary()


def _ready_pool(
    engine: PooledEngine, domain: Any, instances: Int8Array, options: EngineOptions
) -> _Pool:
    """Environments with equal rules and options that share an array of instances share its pool."""
    key = (domain, options, id(instances))
    pool = _pools.get(key)
    if pool is None or pool.source is not instances:
        pool = _pools[key] = _Pool(engine, domain, instances, options)
    return pool


def _load(
    kernels: Any,
    rows: Rows,
    index: NDArray[np.int64],
    tables: NDArray[Any],
    instances: Int8Array,
    plans: Int8Array,
) -> None:
    """Put rows into given states; kernels are compiled for boards that they may not change."""
    index = np.ascontiguousarray(index, np.int64)
    boards = [read_only(np.ascontiguousarray(part, np.int8)) for part in (instances, plans)]
    kernels.load_all(rows.head, rows.data, index, tables, *boards)


def _finals(room: int, spec: DomainSpec) -> tuple[NDArray[np.int64], StepArrays]:
    """Memory for final states: which environments, and their outcomes."""
    return np.empty(room, np.int64), StepArrays.empty(room, spec)


def _nothing() -> None:
    """Stands for a reference to no array."""
