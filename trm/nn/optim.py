"""Optimisers of the TRM family: AdamATan2, sign-SGD for puzzle tables, running average, warm-up.

Faithful to what the official runs use (REFERENCE.md A); the published packages are not: one has a
CUDA kernel alone, another scales inside the arctangent. Learners build these from the `optimiser`
section of a recipe and call `step` once per supervision step.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trm.ranges import check_at_least, check_positive, check_within


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """The `optimiser` section of a supervised recipe."""

    kind: Literal["adam_atan2", "adamw"] = "adam_atan2"
    """Optimiser of the dense parameters. The papers use AdamATan2; the authors of DIS run AdamW on
    ARC."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    """Decoupled weight decay of every dense parameter."""
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_limit: float | None = None
    """Largest norm of the dense gradient; null leaves it as it is, as the papers do."""
    puzzle_learning_rate: float = 1e-2
    """Learning rate of the sign-SGD on the rows of the puzzle table that a batch reads."""
    puzzle_weight_decay: float = 0.1
    warm_up: int = 2000
    """Optimiser steps in which both learning rates rise linearly."""
    final_learning_rate: float = 1.0
    """Share of both learning rates at the end of the budget; they fall as a cosine. 1 = constant,
    as in the papers."""
    average: float | None = 0.999
    """Decay of the running average of the dense parameters that is evaluated; null = none."""

    def __post_init__(self) -> None:
        check_positive(self, "optimiser", "learning_rate", "puzzle_learning_rate", "gradient_limit")
        check_at_least(self, "optimiser", 0, "weight_decay", "puzzle_weight_decay", "warm_up")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimiser.betas must be two numbers of [0, 1), got {self.betas}")
        check_within(self, "optimiser", "(0, 1]", "final_learning_rate")
        check_within(self, "optimiser", "[0, 1)", "average")

    def dense(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of the dense parameters, all in one group."""
        if self.kind == "adamw":
            return torch.optim.AdamW(
                parameters, self.learning_rate, self.betas, weight_decay=self.weight_decay
            )
        return AdamATan2(
            parameters,
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    def share(self, step: int, *, total: int) -> float:
        """Share of both learning rates in an optimiser step: linear rise, then half a cosine.

        Args:
            step: this optimiser step, counted from 1; the share reaches 1 at step `warm_up`.
            total: budget in optimiser steps, where the cosine ends at `final_learning_rate`.
        """
        if step < self.warm_up:
            return step / self.warm_up
        final = self.final_learning_rate
        done = min(1.0, (step - self.warm_up) / max(1, total - self.warm_up))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


class AdamATan2(torch.optim.Optimizer):
    """Adam whose update is an arctangent, hence bounded and without an epsilon.

        p <- p (1 - lr wd);  m, v as in Adam;
        p <- p - lr / (1 - beta1^t) atan2(m, sqrt(v) / sqrt(1 - beta2^t))

    The correction of m stands outside the arctangent, as in the official CUDA kernel.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        """One group; `weight_decay` is decoupled and multiplied by the learning rate."""
        defaults = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                state["step"] += 1
                time = int(state["step"])
                mean: Tensor = state["mean"].lerp_(parameter.grad, 1 - beta1)
                square: Tensor = state["square"].mul_(beta2)
                square.addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                size = square.sqrt().div_(math.sqrt(1 - beta2**time))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.atan2(mean, size), alpha=-group["lr"] / (1 - beta1**time))


@torch.no_grad()
def sign_sgd_(
    table: Float[Tensor, "puzzle channel"],
    puzzle: Int[Tensor, " batch"],
    gradient: Float[Tensor, "batch channel"],
    *,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Update in place the rows that a batch read: row <- row (1 - lr wd) - lr sign(sum of grads).

    Gradients of a row that several samples read are summed first; rows that none read stay as they
    are, without decay too.
    """
    rows, place = puzzle.unique(return_inverse=True)
    summed = torch.zeros(len(rows), table.shape[1], dtype=table.dtype, device=table.device)
    summed.index_add_(0, place, gradient.to(table.dtype))
    table[rows] = table[rows] * (1 - learning_rate * weight_decay) - learning_rate * summed.sign()


class RunningAverage:
    """Exponential running average of parameters, and those alone: buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the parameters as they are."""
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """A <- decay A + (1 - decay) parameter; call it once per optimiser step."""
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the model computes with the averages; no copy is made."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Put averages back.

        Raises:
            ValueError: if they are those of another model.
        """
        if average.keys() != self.average.keys():
            wrong = sorted(average.keys() ^ self.average.keys())
            raise ValueError(f"running average: of another model, {wrong[0]} is not in both")
        for name, value in average.items():
            self.average[name].copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    group: dict[str, Any]
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
