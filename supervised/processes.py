"""Several processes that train one model on shares of the batch: torchrun with gloo or NCCL.

Every process holds the same weights, draws its own share of the samples and averages gradients with
the others before each optimiser step. Alone, every method here returns what it was given.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among all."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over processes in place; a parameter without gradient is left alone."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def gather_rows(
        self, puzzle: Int[Tensor, " row"], gradient: Float[Tensor, "row channel"]
    ) -> tuple[Int[Tensor, " all"], Float[Tensor, "all channel"]]:
        """Puzzle identifiers and gradients of all processes; shares must have equal sizes."""
        if self.world == 1:
            return puzzle, gradient
        identifiers = [torch.empty_like(puzzle) for _ in range(self.world)]
        gradients = [torch.empty_like(gradient) for _ in range(self.world)]
        dist.all_gather(identifiers, puzzle.contiguous())
        dist.all_gather(gradients, gradient.contiguous())
        return torch.cat(identifiers), torch.cat(gradients)

    def gather(self, value: Any) -> list[Any]:
        """What every process holds, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return (self.world > 1 and any(self.gather(flag))) or flag


@contextlib.contextmanager
def joined(kind: str) -> Iterator[Processes]:
    """Join the processes that torchrun has started; outside of torchrun, be alone.

    Args:
        kind: "cpu" (gloo) or "cuda" (NCCL).
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(rank=dist.get_rank(), world=world)
    finally:
        dist.destroy_process_group()
