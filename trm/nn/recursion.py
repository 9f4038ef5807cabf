"""The latent recursion z^(t+1) = Pi_R(f(z^(t), u)), unrolled n times (UPI-TRM Sec. 2).

Episodic z: the latent starts from zero at every edit, so the evaluator is a function of the state
alone. Persistent z: it starts from where the edit before left it (`StateBatch.start`).

The supervised models recur on two latents instead, the answer z_H and the scratch pad z_L, in
cycles of which only the last carries a gradient (`recur_pair`; TRM, REFERENCE.md A).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trm.ranges import check_at_least

Step = Callable[[Tensor], Tensor]
"""One latent update z -> Pi_R(f(z)), the injection already bound."""


def project_ball(
    z: Float[Tensor, "*batch channel"], radius: float | None
) -> Float[Tensor, "*batch channel"]:
    """Pi_R: the nearest point of the ball ||z|| <= R, row by row; R = None leaves z alone.

    Non-expansive, hence it keeps every Lipschitz bound. Rows are variables for the relational map
    and whole latents for the flat one.
    """
    if radius is None:
        return z
    norm: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z * (radius / norm.clamp_min(radius))


def unroll(
    step: Step,
    start: Float[Tensor, "row channel"],
    *,
    depth: int,
) -> Float[Tensor, "row channel"]:
    """z^(n) after `depth` = n updates; depth 0 returns the start.

    Gradient flows through all updates.
    """
    z = start
    for _ in range(depth):
        z = step(z)
    return z


def step_size(
    after: Float[Tensor, "row channel"],
    before: Float[Tensor, "row channel"],
    *,
    row_state: Int[Tensor, " row"],
    like: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """||after - before|| of each state's whole latent, with the dtype and device of `like`."""
    squares = (after - before).square().sum(dim=1).to(like.dtype)
    return torch.zeros_like(like).index_add_(0, row_state, squares).sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class Unrolled:
    """Where a recursion got to, and how."""

    z: Float[Tensor, "row channel"]
    """z^(n)."""
    unrolls: Int[Tensor, " batch"]
    """Updates that each state took."""
    last_step: Float[Tensor, " batch"]
    """||z^(n) - z^(n-1)|| of each state's whole latent; 0 at n = 0."""


def unroll_until(
    step: Step,
    start: Float[Tensor, "row channel"],
    *,
    row_state: Int[Tensor, " row"],
    batch: int,
    depth: int,
    tolerance: float | None,
) -> Unrolled:
    """Unroll until ||z^(t+1) - z^(t)|| <= tolerance, at most `depth` times, each state for itself.

    A state that has come to rest keeps its latent while others go on, so that what comes out
    depends on the state alone and not on its batch. By contraction what is missing to the fixed
    point is at most L_z / (1 - L_z) times the last step.

    Args:
        step: one update of all rows.
        start: z^(0).
        row_state: state that each row belongs to.
        batch: number of states.
        depth: n, the most updates.
        tolerance: None = always `depth` updates, as `unroll`.
    """
    z = start
    going = torch.ones(batch, dtype=torch.bool, device=start.device)
    unrolls = torch.zeros(batch, dtype=torch.long, device=start.device)
    last_step = torch.zeros(batch, dtype=start.dtype, device=start.device)
    for _ in range(depth):
        after = step(z)
        with torch.no_grad():
            moved = step_size(after, z, row_state=row_state, like=last_step)
            last_step = torch.where(going, moved, last_step)
        unrolls = unrolls + going
        z = after if bool(going.all()) else torch.where(going[row_state][:, None], after, z)
        if tolerance is not None:
            going = going & (moved > tolerance)
            if not bool(going.any()):
                break
    return Unrolled(z=z, unrolls=unrolls, last_step=last_step)


@dataclass(frozen=True, kw_only=True)
class RecursionSchedule:
    """The `recursion` section of a supervised recipe: how often the network is called."""

    cycles: int = 3
    """T: cycles of one supervision step (official: H_cycles)."""
    inner: int = 6
    """n: updates of z_L before each update of z_H (official: L_cycles)."""
    supervision: int = 16
    """N_sup: supervision steps on one sample; for ACT the most, for DIS the number."""
    gradient: Literal["last_cycle", "last_updates"] = "last_cycle"
    """What carries a gradient: the last cycle whole (TRM), or of it only the last update of z_L and
    that of z_H (HRM)."""
    supervised_unrolls: tuple[int, ...] = ()
    """Numbers of updates of z_L in the last cycle, below n, after which the answer is updated, read
    and trained too (deep supervision within a step); each costs one more call in training."""

    def __post_init__(self) -> None:
        check_at_least(self, "recursion", 1, "cycles", "inner", "supervision")
        marks = self.supervised_unrolls
        if sorted(set(marks) & set(range(1, self.inner))) != list(marks):
            raise ValueError(
                "recursion.supervised_unrolls must ascend within 1..inner - 1 ="
                f" {self.inner - 1}, got {list(marks)}"
            )
        if marks and self.gradient != "last_cycle":
            raise ValueError("recursion.supervised_unrolls needs gradient 'last_cycle'")

    @property
    def calls_per_step(self) -> int:
        """Calls of a network in one supervision step: T (n + 1)."""
        return self.cycles * (self.inner + 1)

    @property
    def gradient_calls_per_step(self) -> int:
        """Number of those calls that carry a gradient."""
        return self.inner + 1 if self.gradient == "last_cycle" else 2

    @property
    def calls(self) -> int:
        """Forward passes of one sample, N_sup T (n + 1): 336 for TRM, 18 for DIS (DIS Sec. 4.4)."""
        return self.supervision * self.calls_per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """The two latents of a batch of token sequences."""

    z_h: Float[Tensor, "batch place channel"]
    """The answer: what the heads read."""
    z_l: Float[Tensor, "batch place channel"]
    """The scratch pad."""
    early: tuple[Float[Tensor, "batch place channel"], ...] = ()
    """z_H that would follow from fewer updates of z_L, one for each of the schedule's
    `supervised_unrolls`; in training alone."""

    def detach(self) -> "Latents":
        """The same values without their gradient."""
        return Latents(z_h=self.z_h.detach(), z_l=self.z_l.detach())

    def restarted(self, fresh: Bool[Tensor, " batch"], start: "Latents") -> "Latents":
        """`start` where `fresh`, these latents elsewhere."""
        chosen = fresh[:, None, None]
        return Latents(
            z_h=torch.where(chosen, start.z_h, self.z_h),
            z_l=torch.where(chosen, start.z_l, self.z_l),
        )


PairUpdate = Callable[[Tensor, Tensor], Tensor]
"""One update (z, injection) -> z."""


def recur_pair(
    latents: Latents,
    injection: Float[Tensor, "batch place channel"],
    *,
    update_l: PairUpdate,
    update_h: PairUpdate,
    schedule: RecursionSchedule,
) -> Latents:
    """One supervision step: T times (n times z_L <- f_L(z_L, z_H + x), then z_H <- f_H(z_H, z_L)).

    Args:
        latents: where the step before left them, without gradient.
        injection: x, the embedded input.
        update_l: f_L; for TRM the same network as f_H.
        update_h: f_H.
        schedule: T, n and which calls carry a gradient; the others run under `no_grad`.
    """
    z_h, z_l = latents.z_h, latents.z_l
    early: list[Tensor] = []
    marks = schedule.supervised_unrolls if torch.is_grad_enabled() else ()
    for cycle in range(schedule.cycles):
        last_cycle = cycle == schedule.cycles - 1
        for update in range(schedule.inner):
            last_update = last_cycle and update == schedule.inner - 1
            graded = last_update or (last_cycle and schedule.gradient == "last_cycle")
            with _gradient(graded):
                z_l = update_l(z_l, z_h + injection)
            if last_cycle and update + 1 in marks:
                early.append(update_h(z_h, z_l))
        with _gradient(last_cycle):
            z_h = update_h(z_h, z_l)
        if torch.is_autocast_enabled(z_h.device.type):
            # Autocast remembers the weights that it has cast: those cast under no_grad would cut
            # the gradient off from the calls that follow.
            torch.clear_autocast_cache()
    return Latents(z_h=z_h, z_l=z_l, early=tuple(early))


def _gradient(wanted: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(wanted and torch.is_grad_enabled())
