"""The maze engine, whose step touches the cells around the path's head.

It takes a `Maze` domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. The kernels are in `plan_envs.maze.engine_kernels`.
"""

from plan_envs.compiled.packed_engine import Layout, PooledEngine
from plan_envs.maze import engine_kernels as kernels
from plan_envs.maze.rules import Maze


class MazeEngine(PooledEngine):
    """Plans of n maze environments; see `plan_envs.engine.Engine` for the contract."""

    kernels = kernels

    @staticmethod
    def layout(domain: Maze) -> Layout:
        """Distances to the goal lie before the boards where scores need them, two bytes each."""
        cells = domain.spec.num_cells
        return Layout(
            num_facts=kernels.SIZE - kernels.PLACE,
            rules=domain.rules,
            before=2 * cells if domain.shaping == "geodesic" else 0,
            instance=cells,
        )
