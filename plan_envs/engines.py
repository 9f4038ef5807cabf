"""Which engine plays a domain: the compiled one of its rules, or the general one.

The Gymnasium environments ask here, so that rules need not know engines. An engine is imported when
an environment of its domain is made.
"""

from functools import partial
from importlib import import_module
from typing import Any, Final

from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.engine import Engine, EngineOptions, PureEngine

ENGINES: Final = {
    "Arc": "plan_envs.arc.engine:ArcEngine",
    "Maze": "plan_envs.maze.engine:MazeEngine",
    "Queens": "plan_envs.queens.engine:QueensEngine",
    "Repair": "plan_envs.repair.engine:RepairEngine",
    "Sudoku": "plan_envs.sudoku.engine:SudokuEngine",
}
"""Class of a domain of this package -> module and class of its engine."""


def make_engine(
    domain: PlanDomain, num_envs: int, pool: Int8Array, options: EngineOptions
) -> Engine:
    """The compiled engine of a domain if there is one, else `PureEngine`.

    A domain from elsewhere may bring an engine of its own as a method `make_engine` with the
    arguments that follow `domain` here.

    Args:
        domain: the rules.
        num_envs: number of plans side by side.
        pool: instances to reset to, shape [num, instance].
        options: how episodes run.
    """
    kind = type(domain)
    own: Any = getattr(domain, "make_engine", None)
    if kind.__module__.startswith("plan_envs.") and kind.__name__ in ENGINES:
        module, _, name = ENGINES[kind.__name__].partition(":")
        own = partial(getattr(import_module(module), name), domain)
    engine: Engine = (own or partial(PureEngine, domain))(num_envs, pool, options)
    return engine
