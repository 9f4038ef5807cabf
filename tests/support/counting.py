"""A trainee that counts, for the tests of the training loop and of what survives its end."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from trm.compute.device import Placement
from trm.experiments.training import Setting, Trainee
from trm.runs.checkpoints import Checkpoint
from trm.runs.run import Run

HERE = Placement(threads=1)
VALUES = (0.0, 0.5, 0.4, 0.9, 0.9)
"""What evaluation after evaluation finds."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    units: int = 10
    piece: int = 1
    evaluate_every: int = 4
    checkpoint_every: int = 5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    schedule: Schedule = field(default_factory=Schedule)


class Counting(Trainee):
    """Adds up the numbers of its units, logs the sum, and is stopped by itself where asked."""

    kind = "counting"
    recipe_type = Recipe
    command = "count"
    unit = "units"
    columns: ClassVar = {"value": ("value", ".1f"), "rare": ("rare", ".1f")}
    best_by = "value"
    log_every = 2
    stops_at: ClassVar[int | None] = None
    breaks_at: ClassVar[int | None] = None
    break_now: ClassVar[Callable[["Counting"], Any]] = staticmethod(lambda _: None)
    """How it breaks; see `BREAKS`."""

    def __init__(self, recipe: Any, setting: Setting) -> None:
        super().__init__(recipe, setting)
        self.done = self.sum = self.evaluations = 0
        self.loss = 0.5
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.weight.grad = torch.zeros(3)
        self.optimiser = torch.optim.Adam([self.weight])
        self.cleaned: list[int] = []

    @classmethod
    def pieces(cls, recipe: Any) -> tuple[int, int]:
        return 1, recipe.schedule.piece

    @classmethod
    def subject(cls, env: str, recipe: Any) -> tuple[str, str]:
        return "e", "n"

    def recorded(self) -> dict[str, Any]:
        return {"counts": "units"}

    def spent(self, budget: int) -> bool:
        return self.done >= budget

    def advance(self, budget: int) -> None:
        # The sum is another where a piece is cut short, as the result of an optimiser step is.
        size = min(self.recipe.schedule.piece, budget - self.done)
        self.done += size
        self.sum += self.done * size
        if self.breaks_at is not None and self.done >= self.breaks_at:
            self.break_now(self)
        if self.done == self.stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def figures(self) -> dict[str, float]:
        return {"sum": float(self.sum), "value_loss": self.loss}

    def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        return {"value": VALUES[min(self.evaluations, len(VALUES)) - 1]}

    def weights(self) -> dict[str, torch.Tensor]:
        return {"sum": torch.tensor([self.sum]), "weight": self.weight.detach()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimiser": self.optimiser}

    def state(self, run: Run) -> dict[str, Any]:
        (run.path / f"beside-{self.done}").touch()
        return {"done": self.done, "evaluations": self.evaluations}

    def saved(self, run: Run) -> None:
        for file in run.path.glob("beside-*"):
            if file.name != f"beside-{self.done}":
                file.unlink()

    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        self.done = checkpoint.state["done"]
        self.sum = int(checkpoint.weights["sum"])
        with torch.no_grad():
            self.weight.copy_(checkpoint.weights["weight"])
        self.evaluations = checkpoint.state["evaluations"]
