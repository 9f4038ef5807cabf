"""The Sudoku engine: `plan_envs.engine.Engine` with caches that an edit patches at its peers only.

Input: a `Sudoku` domain and a pool of instances; output: the arrays that the Gymnasium shells hand
out. Besides the plan each environment keeps its legal edits, the number of candidates of each cell
and, unless edits only fill cells under the constraint mask, how many peers show each digit.
"""

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from plan_envs import sudoku_engine_kernels as kernels
from plan_envs.domain import Int8Array
from plan_envs.engine import SAME_STEP, EngineOptions, Finals, Refusal, StepArrays
from plan_envs.sudoku import Sudoku, peers_of

_POOL_BYTES = 1 << 26
"""Reset states are kept ready while they fit here; beyond, a reset computes its own."""


class SudokuEngine:
    """Plans of n Sudoku environments; see `plan_envs.engine.Engine` for the contract."""

    def __init__(
        self, domain: Sudoku, num_envs: int, pool: Int8Array, options: EngineOptions
    ) -> None:
        """Same arguments as `make_engine`; every environment starts finished, to be reset."""
        self._rows = _Rows(domain, num_envs)
        self._pool = _ready_pool(domain, pool)
        self.instances, self.plans, self.masks = self._rows.boards[:3]
        head = self._rows.head
        head[:, kernels.FINISHED] = 1
        self.streams = head.view(np.uint64)[:, kernels.STREAM]
        self.samplers = head.view(np.uint64)[:, kernels.SAMPLER]
        self.steps, self.finished = head[:, kernels.STEPS], head[:, kernels.FINISHED]
        self._config = np.array(
            [
                *domain.rules,
                options.limit,
                options.reward == "shaped",
                options.dead_end == "absorb",
                options.refuse_illegal,
            ],
            np.int64,
        )
        self._terms = np.array([options.gamma])
        self._spec, self._peers = domain.spec, self._rows.peers
        state = (*self._rows.boards, head, self._peers, self._config, self._terms)
        self.step_one = partial(kernels.step_one, *state)
        """Step the only environment; see `Engine.step_one`."""

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        """Put environments `index` into given states at step 0."""
        self._rows.load(index, instances, plans)

    def draw(self, index: NDArray[np.int64]) -> None:
        """Reset environments `index` to instances drawn from the pool."""
        index = np.ascontiguousarray(index, np.int64)
        kernels.draw_all(*self._arguments(), index)

    def step(self, actions: NDArray[np.int64], autoreset: int, out: StepArrays) -> Finals | None:
        """Take one action in every environment; see `Engine.step`."""
        num_envs = len(actions)
        room = num_envs if autoreset == SAME_STEP else 0
        finals = StepArrays.empty(room, self._spec)
        index = np.empty(room, np.int64)
        num_final, reason = kernels.step_all(
            *self._arguments(),
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
        return Finals(index=index[:num_final], arrays=finals.at(slice(num_final)))

    def observe(self, out: StepArrays) -> None:
        """Fill `out` with the current states: no reward, no flags."""
        kernels.observe_all(*self._rows.boards[:3], self._rows.head, out.arrays())

    def sample(self) -> NDArray[np.int64]:
        """A uniformly drawn legal action an environment; -1 where there is none."""
        actions = np.empty(len(self.plans), np.int64)
        kernels.sample_all(self.masks, self._rows.head, actions)
        return actions

    def _arguments(self) -> tuple[Any, ...]:
        rows, pool = self._rows, self._pool
        state = (rows.boards, rows.head, pool.instances, pool.rows.boards, pool.rows.head)
        return (*state, self._peers, self._config, self._terms)


class _Rows:
    """Boards and caches of a number of plans."""

    def __init__(self, domain: Sudoku, num: int) -> None:
        cells, side = domain.spec.num_cells, domain.side
        counted = not (domain.edits == "fill" and domain.mask == "constraint")
        self.rules, self.peers = domain.rules, peers_of(side)
        self.boards = (
            np.zeros((num, cells), np.int8),  # instances
            np.zeros((num, cells), np.int8),  # plans
            np.zeros((num, domain.spec.num_actions), np.int8),  # legal edits
            np.zeros((num, cells * side if counted else 0), np.int8),  # peers that show a digit
            np.zeros((num, cells), np.int8),  # digits that no peer shows
        )
        self.head = np.zeros((num, kernels.HEAD), np.int64)

    def load(self, index: NDArray[np.int64], instances: Int8Array, plans: Int8Array) -> None:
        index = np.ascontiguousarray(index, np.int64)
        instances = np.require(instances, np.int8, ("C", "W"))
        plans = np.require(plans, np.int8, ("C", "W"))
        kernels.load_all(self.boards, self.head, self.peers, self.rules, index, instances, plans)


class _Pool:
    """Instances to reset to with their caches ready, as far as these fit into `_POOL_BYTES`."""

    def __init__(self, domain: Sudoku, instances: Int8Array) -> None:
        self.source = instances
        self.instances = np.require(instances, np.int8, ("C", "W"))
        a_row = _Rows(domain, 1)
        num_bytes = len(instances) * sum(board.nbytes for board in a_row.boards)
        num_ready = len(instances) if num_bytes <= _POOL_BYTES else 0
        self.rows = _Rows(domain, num_ready)
        ready = self.instances[:num_ready]
        self.rows.load(np.arange(num_ready), ready, ready)


_pools: WeakValueDictionary[tuple[Any, int], _Pool] = WeakValueDictionary()


def _ready_pool(domain: Sudoku, instances: Int8Array) -> _Pool:
    """Environments that share a domain and an array of instances share its pool."""
    key = (domain, id(instances))
    pool = _pools.get(key)
    if pool is None or pool.source is not instances:
        pool = _pools[key] = _Pool(domain, instances)
    return pool
