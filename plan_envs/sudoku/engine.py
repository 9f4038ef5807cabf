"""The Sudoku engine, in which an edit patches the caches of its cell's peers.

It takes a `Sudoku` domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. The kernels are in `plan_envs.sudoku.engine_kernels`.
"""

from plan_envs.compiled.packed_engine import Layout, PooledEngine
from plan_envs.sudoku import engine_kernels as kernels
from plan_envs.sudoku.rules import Sudoku


class SudokuEngine(PooledEngine):
    """Plans of n Sudoku environments; see `plan_envs.engine.Engine` for the contract."""

    kernels = kernels
    usual = (Sudoku(9, "digits", "fill", "constraint"), kernels.step_all_9x9)

    @staticmethod
    def layout(domain: Sudoku) -> Layout:
        """Behind the legal edits lie the free digits of cells, and peers that show each digit."""
        cells, usual = domain.spec.num_cells, domain.edits == "fill" and domain.mask == "constraint"
        return Layout(
            num_facts=kernels.SIDE - kernels.FILLED,
            rules=domain.rules,
            instance=cells,
            behind=cells if usual else cells + cells * domain.side,
        )
