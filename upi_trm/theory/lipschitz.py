"""Lipschitz constants of a recursion and of its value head: proven above, estimated below.

The certificate (`contraction.py`) bounds L_z from above for every latent. Jacobian norms and ratios
over pairs at the latents that are visited bound it from below, so that the slack can be seen
(UPI-TRM Sec. 4, Eq. 1, App. A). The functions take a float64 model and a batch of states; their
`LipschitzReport` goes to `stability.py` and `bounds_study.py`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trm.nn.blocks import GroupStructure
from trm.nn.model import Encoding, StateBatch, TinyRecursiveModel
from upi_trm.contraction import NotContractive, certificate, spectral_norm
from upi_trm.evaluator import shaped_value


@dataclass(frozen=True, kw_only=True, slots=True)
class LipschitzReport:
    """What is known of the Lipschitz constant of a map, from above and from below."""

    certified: float | None
    """Proven upper bound; None where there is none."""
    local: float
    """Largest Jacobian norm at visited latents: a lower estimate."""
    local_mean: float
    """Its mean over the states."""
    empirical: float
    """Largest ||f(z) - f(z')|| / ||z - z'|| over pairs: a lower estimate."""


def certified_modulus(model: TinyRecursiveModel) -> float | None:
    """The proven bound on L_z of z -> z; None for maps without one."""
    try:
        return certificate(model.update)
    except NotContractive:
        return None


def update_latent(
    model: TinyRecursiveModel, encoding: Encoding, z: Float[Tensor, "row channel"]
) -> Float[Tensor, "row channel"]:
    """One update z -> Pi_R(f(z, u)), as the recursion makes it."""
    return model.projected_step(z, encoding)


@torch.no_grad()
def latent_path(
    model: TinyRecursiveModel, encoding: Encoding, *, depth: int
) -> list[Float[Tensor, "row channel"]]:
    """z^(0), ..., z^(depth) of a batch."""
    path = [model.recur(encoding, depth=0)]
    for _ in range(depth):
        path.append(update_latent(model, encoding, path[-1]))
    return path


def state_norms(z: Float[Tensor, "row channel"], encoding: Encoding) -> Float[Tensor, " batch"]:
    """||z|| of each state's whole latent, all its variables together."""
    squares = z.square().sum(dim=1)
    return z.new_zeros(encoding.batch).index_add(0, encoding.row_state, squares).sqrt()


def local_lipschitz(
    model: TinyRecursiveModel,
    encoding: Encoding,
    z: Float[Tensor, "row channel"],
    *,
    generator: torch.Generator,
    iterations: int = 12,
) -> Float[Tensor, " batch"]:
    """Norm of the Jacobian of z -> Pi_R(f(z, u)) at each state's latent, by power iteration.

    A direction is carried through the map by a short step and back by the vjp. The estimate is the
    largest ratio ||f(z + h v) - f(z)|| / ||h v|| that was seen. It is a ratio of the map itself and
    never exceeds L_z, however far the iteration is from its end. It needs float64.

    Args:
        model: f and Pi_R.
        encoding: u of a batch of states.
        z: a latent of each state.
        generator: draws the first direction.
        iterations: of the power iteration.
    """
    rows = encoding.row_state
    step = 1e-6
    best = z.new_zeros(encoding.batch)
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    point = z.detach().requires_grad_(True)
    image = update_latent(model, encoding, point)
    for _ in range(iterations):
        length = state_norms(direction, encoding)[rows, None]
        # A direction that the map forgets is left at zero.
        direction = torch.where(length > 0, direction / length.clamp_min(1e-300), direction)
        with torch.no_grad():
            moved = (update_latent(model, encoding, z + step * direction) - image) / step
        best = torch.maximum(best, state_norms(moved, encoding))
        (direction,) = torch.autograd.grad(image, point, grad_outputs=moved, retain_graph=True)
    return best


@torch.no_grad()
def pair_ratios(
    model: TinyRecursiveModel,
    encoding: Encoding,
    path: Sequence[Float[Tensor, "row channel"]],
    *,
    generator: torch.Generator,
) -> Float[Tensor, " batch"]:
    """Largest ||f(z) - f(z')|| / ||z - z'|| over pairs of each state's latents.

    The pairs are the successive latents of the recursion, and each latent with a random one nearby
    (a tenth of its size) and with one far away (its own size).
    """
    pairs = list(itertools.pairwise(path))
    for z in path:
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
        size = z.square().mean().sqrt().clamp_min(1e-2)
        pairs += [(z, z + scale * size * noise) for scale in (0.1, 1.0)]
    best = path[0].new_zeros(encoding.batch)
    for one, two in pairs:
        images = update_latent(model, encoding, one) - update_latent(model, encoding, two)
        best = _larger_ratio(best, state_norms(images, encoding), state_norms(one - two, encoding))
    return best


def _larger_ratio(best: Tensor, moved: Tensor, apart: Tensor) -> Tensor:
    """The larger one of `best` and moved / apart; latents that have met differ by rounding only."""
    return torch.where(apart > 1e-9, torch.maximum(best, moved / apart.clamp_min(1e-300)), best)


def _visited_latents(
    model: TinyRecursiveModel, states: StateBatch
) -> tuple[Encoding, list[Float[Tensor, "row channel"]]]:
    """The injection u of the states, and their latents over at least one unroll."""
    with torch.no_grad():
        encoding = model.encode(states)
    return encoding, latent_path(model, encoding, depth=max(1, model.config.depth))


def recursion_lipschitz(
    model: TinyRecursiveModel, states: StateBatch, *, generator: torch.Generator
) -> LipschitzReport:
    """L_z of a network's recursion: certified, local and empirical, at the latents it visits."""
    encoding, path = _visited_latents(model, states)
    found = [local_lipschitz(model, encoding, z, generator=generator) for z in path]
    local = torch.stack(found).amax(dim=0)
    pairs = pair_ratios(model, encoding, path, generator=generator)
    return LipschitzReport(
        certified=certified_modulus(model),
        local=float(local.max()),
        local_mean=float(local.mean()),
        empirical=float(pairs.max()),
    )


# --- The value head


def certified_value_lipschitz(
    model: TinyRecursiveModel, encoding: Encoding, *, value: Any
) -> float:
    """Proven bound on L_V of z -> U_n (UPI-TRM Eq. 1).

    The pooled features are sums, means, maxima and group readouts of the latents, each with a known
    constant. The head is w relu(W p + b); relu moves by some diagonal D in [0, 1], so that ||w D
    W|| <= (||w W|| + max_S ||w S W||) / 2 over sign patterns S. The result is the smallest of
    several bounds.

    Args:
        model: evaluator.
        encoding: of the states that the bound is to hold for; it grows with their variables.
        value: "success" (the sigmoid behind the head is 1/4-Lipschitz) or "score".
    """
    out = model.value_out.weight.detach().double().cpu().flatten()
    hidden = model.value_hidden.weight.detach().double().cpu()
    constants = _pooled_constants(model, encoding)
    widths = [width for width, _ in constants]
    factor = torch.tensor([value for _, value in constants], dtype=torch.float64)
    per_feature = factor.repeat_interleave(torch.tensor(widths))
    blocks = hidden.split(widths, dim=1)
    apart = [float(c) * _two_layers(out, block) for c, block in zip(factor, blocks, strict=True)]
    together = _two_layers(out, hidden) * float(factor.norm())
    scaled = _two_layers(out, hidden * per_feature) * math.sqrt(len(widths))
    bound = min(together, scaled, sum(apart))
    return 0.25 * bound if value == "success" else bound


def _pooled_constants(model: TinyRecursiveModel, encoding: Encoding) -> list[tuple[int, float]]:
    """(features, Lipschitz constant) of each block that the value head reads."""
    width = model.config.channels
    if encoding.editable is not None:
        # Over all cells and over the editable ones: the mean of k rows has norm 1 / sqrt(k), and a
        # maximum moves, channel by channel, no more than its largest row.
        fewest = int(encoding.editable.sum(dim=1).clamp_min(1).min())
        means = (model.shape.num_cells, fewest)
        return [(width, c) for k in means for c in (math.sqrt(1 / k), 1.0)]
    if encoding.variables is None:
        return [(width, 1.0)]
    most = int(torch.bincount(encoding.variables.state, minlength=encoding.batch).max())
    blocks = [(width, math.sqrt(most) / model.shape.num_cells), (width, 1.0)]
    structure: GroupStructure = model.readout.structure
    mean_blocks, max_blocks = [], []
    for index, weight in enumerate(model.readout.weight):
        # Group sums over sqrt(k) are sqrt(k) times a mean: norm 1 at most, over all groups.
        norm = spectral_norm(weight[:width])
        kinds = [k for k, used in enumerate(model.readout.weight_of_kind) if used == index]
        sizes = [structure.num_groups[kind] for kind in kinds]
        mean_blocks.append((width, norm * sum(math.sqrt(1 / n) for n in sizes) / len(kinds)))
        max_blocks.append((width, norm * math.sqrt(len(kinds))))
    return blocks + mean_blocks + max_blocks


def _two_layers(out: Tensor, hidden: Tensor) -> float:
    """Bound on the norm of out D hidden over diagonal D in [0, 1]."""
    straight = float((out @ hidden).norm())
    signs = min(
        float(out.norm()) * spectral_norm(hidden),
        float((out.abs() * hidden.norm(dim=1)).sum()),
        math.sqrt(len(out)) * spectral_norm(out[:, None] * hidden),
    )
    return (straight + signs) / 2


def value_lipschitz(
    model: TinyRecursiveModel,
    states: StateBatch,
    phi: Float[Tensor, " batch"],
    *,
    value: Any,
    generator: torch.Generator,
) -> LipschitzReport:
    """L_V of U_n in z: certified, local gradient norms, and ratios along and around the path.

    Args:
        model: evaluator, float64.
        states: where to measure; the certificate holds for these (their number of variables).
        phi: Phi of the states.
        value: "success" (a sigmoid, 1/4-Lipschitz, follows the head) or "score".
        generator: draws the pairs.
    """
    encoding, path = _visited_latents(model, states)

    def worth(z: Tensor) -> Tensor:
        return shaped_value(model.value(z, encoding), phi, value=value)

    local = phi.new_zeros(encoding.batch)
    ratio = phi.new_zeros(encoding.batch)
    for before, after in itertools.pairwise(path):
        noise = torch.randn(after.shape, generator=generator, dtype=after.dtype).to(after.device)
        for other in (before, after + 0.1 * after.square().mean().sqrt() * noise):
            with torch.no_grad():
                moved = (worth(after) - worth(other)).abs()
            ratio = _larger_ratio(ratio, moved, state_norms(after - other, encoding))
        point = after.detach().requires_grad_(True)
        (slopes,) = torch.autograd.grad(worth(point).sum(), point)
        local = torch.maximum(local, state_norms(slopes, encoding))
    return LipschitzReport(
        certified=certified_value_lipschitz(model, encoding, value=value),
        local=float(local.max()),
        local_mean=float(local.mean()),
        empirical=float(ratio.max()),
    )
