"""The latent recursion z^(t+1) = Pi_R(f(z^(t), u)), unrolled n times (UPI-TRM Sec. 2).

Episodic z: the latent starts from zero at every edit, so the evaluator is a function of the state
alone.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
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
