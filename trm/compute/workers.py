"""One training on several processes: who I am, and the few sums that keep all processes alike.

`torchrun` (or `accelerate launch`, which sets the same variables) starts the processes; each owns
its data, and gradients are averaged, so that weights stay equal bit for bit everywhere.
`trm.experiments.training` joins them with `joined` and passes the object on; alone, every method is
the identity. Process 0 writes the run folder. On the CPU the processes talk through gloo, on GPUs
through NCCL.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trm.compute.device import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes of a training, seen from one of them."""

    rank: int = 0
    """Number of this process; 0 writes."""
    size: int = 1
    """Processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def place(self, placement: Placement) -> Placement:
        """The placement of this process: `cuda` becomes the GPU of its number on the machine.

        Raises:
            ValueError: one named GPU for several processes.
        """
        if self.size == 1 or placement.kind != "cuda":
            return placement
        if ":" in placement.device:
            raise ValueError(
                f"device must be cuda on {self.size} processes, which take a GPU each, got"
                f" {placement.device!r}"
            )
        mine = replace(placement, device=f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}")
        torch.cuda.set_device(mine.torch_device)
        return mine

    def share(self, total: int, name: str) -> int:
        """This process's part of what all have together.

        Raises:
            ValueError: it can't be divided; names the field.
        """
        if total % self.size:
            raise ValueError(f"{name} must be a multiple of {self.size} processes, got {total}")
        return total // self.size

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """Mean of a number over the processes, the same everywhere."""
        return float(sum(self.gather(value))) / self.size

    def join_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order; every process has as many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def any(self, claim: bool) -> bool:
        """Whether it holds on some process."""
        return any(self.gather(claim))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; plain values, and tensors on the CPU."""
        if self.size == 1:
            return [value]
        # In torch's own format: a tensor of uint64 in a plain pickle can't be read (torch 2.13).
        sent = io.BytesIO()
        torch.save(value, sent)
        found: list[Any] = [b""] * self.size
        dist.all_gather_object(found, sent.getvalue())
        return [torch.load(io.BytesIO(data), weights_only=False) for data in found]

    def from_main(self, value: Any) -> Any:
        """The value of process 0; waits for it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def combine(self, metrics: Mapping[str, float], sums: Iterable[str]) -> dict[str, float]:
        """Means over the processes, sums for the counts that are named."""
        if self.size == 1:
            return dict(metrics)
        everybody = self.gather(dict(metrics))
        totals = {name: sum(one[name] for one in everybody) for name in metrics}
        counts = set(sums)
        return {
            name: total if name in counts else total / self.size for name, total in totals.items()
        }


ALONE = Workers()
"""A training on one process."""


@contextlib.contextmanager
def joined() -> Iterator[Workers]:
    """The processes that `torchrun` started, or this one alone outside of it.

    The process group is left at the end by whoever joined it first, so that these contexts nest.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    joins = not dist.is_initialized()
    if joins:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend)
    try:
        yield Workers(rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        if joins:
            dist.destroy_process_group()
