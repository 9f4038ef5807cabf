"""UPI-TRM: a tiny recursive model that learns to solve puzzles by unrolled policy iteration.

    model = upi_trm.load("pretrained:sudoku4x4")
    print(model.solve("1..4..1..2..4..1"))

`dir(upi_trm)` is the public surface; docs/python.md describes it. The learner stands on two
packages: `plan_envs`, the puzzles as plan-editing MDPs, and `trm`, the shared backbone. Importing
this package is cheap on purpose (no torch): a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm.experiments.shipped_runs import pretrained_names
    from trm.experiments.trained.model import Model, Solution, load
    from upi_trm.api import train

__version__ = "0.1.0"

__all__ = ["Model", "Solution", "__version__", "load", "pretrained_names", "train"]

_HOMES = {
    "Model": "trm.experiments.trained.model",
    "Solution": "trm.experiments.trained.model",
    "load": "trm.experiments.trained.model",
    "pretrained_names": "trm.experiments.shipped_runs",
    "train": "upi_trm.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
