"""The repair engine: programs in play in compiled code.

It takes a `Repair` domain and a pool of instances, and fills the arrays that the Gymnasium
environments hand out. The kernels are in `plan_envs.repair.engine_kernels`.
"""

from plan_envs.compiled.packed_engine import Layout, PooledEngine
from plan_envs.repair import engine_kernels as kernels
from plan_envs.repair.rules import Repair


class RepairEngine(PooledEngine):
    """Programs of n environments; see `plan_envs.engine.Engine` for the contract."""

    kernels = kernels

    @staticmethod
    def layout(domain: Repair) -> Layout:
        """A row holds all of an instance, the hidden tests too."""
        return Layout(
            num_facts=kernels.CELLS - kernels.PASSED,
            rules=domain.rules,
            instance=domain.spec.instance_size,
        )
