"""The maze engine: `plan_envs.engine.Engine` whose step touches the cells around the path's head.

Input: a `Maze` domain and a pool of instances; output: the arrays that the Gymnasium shells hand
out. The kernels are in `maze_engine_kernels`.
"""

from typing import Any

from numpy.typing import NDArray

from plan_envs.cells import neighbours_of
from plan_envs.compiled.packed_engine import Layout, PooledEngine
from plan_envs.maze import engine_kernels as kernels
from plan_envs.maze.rules import Maze


class MazeEngine(PooledEngine):
    """Plans of n maze environments; see `plan_envs.engine.Engine` for the contract."""

    kernels = kernels

    @staticmethod
    def layout(domain: Maze) -> Layout:
        """Before the boards, where scores need them: distances to the goal, two bytes each."""
        cells = domain.spec.num_cells
        return Layout(
            num_facts=kernels.SIZE - kernels.PLACE,
            rules=domain.rules,
            before=2 * cells if domain.shaping == "geodesic" else 0,
            instance=cells,
        )

    @staticmethod
    def tables(domain: Maze) -> NDArray[Any]:
        """The neighbours of every cell."""
        return neighbours_of(domain.size)
