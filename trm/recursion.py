"""The latent recursion z^(t+1) = Pi_R(f(z^(t), u)), unrolled n times (UPI-TRM Sec. 2).

Episodic z: the latent starts from zero at every edit, so the evaluator is a function of the state
alone. Persistent z: it starts from where the edit before left it (`StateBatch.start`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""One latent update z -> f(z), the injection already bound."""


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
    radius: float | None = None,
) -> Float[Tensor, "row channel"]:
    """z^(n) after `depth` = n projected updates; depth 0 returns the start.

    Gradient flows through all updates.
    """
    z = start
    for _ in range(depth):
        z = project_ball(step(z), radius)
    return z


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
    radius: float | None = None,
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
        radius: R of the projection after each update.
    """
    z = start
    going = torch.ones(batch, dtype=torch.bool, device=start.device)
    unrolls = torch.zeros(batch, dtype=torch.long, device=start.device)
    last_step = torch.zeros(batch, dtype=start.dtype, device=start.device)
    for _ in range(depth):
        after = project_ball(step(z), radius)
        with torch.no_grad():
            squares = (after - z).square().sum(dim=1).to(last_step.dtype)
            moved = torch.zeros_like(last_step).index_add_(0, row_state, squares).sqrt()
            last_step = torch.where(going, moved, last_step)
        unrolls = unrolls + going
        z = after if bool(going.all()) else torch.where(going[row_state][:, None], after, z)
        if tolerance is not None:
            going = going & (moved > tolerance)
            if not bool(going.any()):
                break
    return Unrolled(z=z, unrolls=unrolls, last_step=last_step)
