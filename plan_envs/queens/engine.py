"""The engine of N-Queens, in which an edit changes four bits.

It takes a `Queens` domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. The kernels are in `plan_envs.queens.engine_kernels`.
"""

from plan_envs.compiled.packed_engine import Layout, PooledEngine
from plan_envs.queens import engine_kernels as kernels
from plan_envs.queens.rules import Queens


class QueensEngine(PooledEngine):
    """Plans of n N-Queens environments; see `plan_envs.engine.Engine` for the contract."""

    kernels = kernels
    usual = (Queens(8, "fill", "constraint"), kernels.step_all_8x8)

    @staticmethod
    def layout(domain: Queens) -> Layout:
        """The number of queens in each line lies behind the legal edits."""
        return Layout(
            num_facts=kernels.SIDE - kernels.QUEENS,
            rules=domain.rules,
            instance=domain.spec.num_cells,
            behind=6 * domain.n,
        )
