"""Contraction of the inner recursion: a proven bound on L_z, and the clamp (UPI-TRM Sec. 4).

`certificate` bounds the Lipschitz constant of the whole map z -> z in float64, activations, group
projections and all; `ContractionClamp` shrinks the z -> z weights after an optimiser step so that
the bound stays below L_z < 1. Maps without a usable global bound are refused (`NotContractive`)
rather than waved through.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from trm.nn.blocks import GroupStructure, MLPMap, RelationalMap
from trm.nn.cells import NeighbourMap
from trm.nn.model import TinyRecursiveModel


class NotContractive(ValueError):  # noqa: N818  # the theory's word
    """The update map has no proven bound on its Lipschitz constant, or the bound is not below 1."""


def spectral_norm(weight: Float[Tensor, "*batch rows columns"]) -> float:
    """Largest singular value, of the largest matrix of a batch, in float64.

    A full SVD: power iteration under-estimates and proves nothing. By torch, whose recorded number
    of threads then fixes the rounding of clamped weights too (numpy's BLAS has threads of its own).
    """
    return float(torch.linalg.svdvals(weight.detach().double().cpu()).max())


def joint_patterns(structure: GroupStructure) -> tuple[tuple[bool, ...], ...] | None:
    """The joint eigenvalues (one bool per kind of group) that the projections P_g take together.

    When the P_g commute they share eigenvectors, on each of which every P_g is 0 or 1; the operator
    norm of W_z + sum_g W_g P_g is then the maximum over these patterns S of ||W_z + sum_{g in S}
    W_g||. A pattern occurs when the trace of prod_{g in S} P_g prod_{g not in S} (1 - P_g) is
    positive. A product of commuting P_g is the mean over the groups of its kinds joined into
    connected components, so its trace is the number of these components.

    Returns:
        The patterns that occur, or None where the projections do not commute or a kind has groups
        of unequal sizes (then only the sum of norms is a bound).
    """
    labels = structure.labels.cpu().numpy()
    if any(len(np.unique(row)) > 1 for row in structure.sizes.cpu().numpy()):
        return None
    kinds = range(len(labels))
    joined: dict[tuple[int, ...], NDArray[np.int64]] = {(): np.arange(structure.num_variables)}
    for size in range(1, len(labels) + 1):
        for subset in itertools.combinations(kinds, size):
            joined[subset] = _join(joined[subset[:-1]], labels[subset[-1]])
    if not all(
        _commute(labels[a], labels[b], joined[a, b]) for a, b in itertools.combinations(kinds, 2)
    ):
        return None
    found = []
    for pattern in itertools.product((False, True), repeat=len(labels)):
        inside = tuple(k for k in kinds if pattern[k])
        outside = [k for k in kinds if not pattern[k]]
        dimension = sum(
            (-1) ** size * len(np.unique(joined[tuple(sorted((*inside, *extra)))]))
            for size in range(len(outside) + 1)
            for extra in itertools.combinations(outside, size)
        )
        if dimension > 0:
            found.append(pattern)
    return tuple(found)


def _join(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label of each variable's component when the groups of two partitions are joined."""
    component = np.arange(len(first))
    while True:
        before = component
        for label in (first, second):
            lowest = np.full(len(label), len(label))
            np.minimum.at(lowest, label, component)
            component = lowest[label]
        if np.array_equal(component, before):
            return component


def _commute(
    first: NDArray[np.int64], second: NDArray[np.int64], component: NDArray[np.int64]
) -> bool:
    """Whether two group means commute: |A and B| |C| = |A| |B| where groups meet in component C."""
    both = first * len(second) + second
    size_a, size_b, size_c, size_both = map(_sizes, (first, second, component, both))
    return np.array_equal(size_both * size_c, size_a * size_b)


def _sizes(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many variables share each variable's label."""
    _, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    return count[inverse]


def relational_norm(update: RelationalMap, patterns: tuple[tuple[bool, ...], ...] | None) -> float:
    """||W_z + sum_g sqrt(k) W_g P_g||: exact from joint patterns, else the sum of norms."""
    mix = update.mix
    own, grouped = (weight.detach().double().cpu() for weight in (mix.own, mix.grouped))
    sqrt_k = update.structure.sizes.amax(dim=1).double().cpu().sqrt()
    weights = sqrt_k[:, None, None] * grouped[mix.weight_of_kind]
    if patterns is None:
        return spectral_norm(own) + sum(spectral_norm(weight) for weight in weights)
    chosen = torch.tensor(patterns, dtype=torch.float64)
    return spectral_norm(own + torch.einsum("pk,kio->pio", chosen, weights))


def neighbour_norm(update: NeighbourMap) -> float:
    """Bound on the Lipschitz constant of z -> W_z z + W_m pool z in the Euclidean norm.

    Maximum: it moves a listener, channel by channel, by no more than some neighbour moves, and at
    most k cells listen to one: sqrt(k), attained by a star, so ||W_z|| + sqrt(k) ||W_m||. In the
    supremum norm the maximum would be non-expansive, but the ball projection Pi_R is not (its
    Jacobian has norm up to (1 + sqrt(d)) / 2 there), and C_z, L_V and every estimate of
    `lipschitz.py` are Euclidean.

    Mean: D^-1/2 A D^-1/2 is symmetric with eigenvalues e in [-1, 1], so the norm is the maximum of
    ||W_z + e W_m||, convex in e: the larger one of e = 1 and e = -1, exact where cells can be
    coloured black and white (every grid). Without symmetric neighbours the sum of norms.
    """
    own, message = (weight.detach().double() for weight in (update.own, update.message))
    if update.pool == "max":
        listeners = float(update.heard_by.max())
        return spectral_norm(own) + math.sqrt(listeners) * spectral_norm(message)
    if update.symmetric:
        return max(spectral_norm(own + message), spectral_norm(own - message))
    return spectral_norm(own) + spectral_norm(message)


Certified = RelationalMap | MLPMap | NeighbourMap
"""Update maps with a proven global bound."""


class ContractionClamp:
    """Keeps the certified Lipschitz constant at or below `modulus` = L_z, by shrinking only.

    Relational and neighbour map: all z -> z weights times min(1, L_z / norm). Flat map: each layer
    W times min(1, sqrt(L_z) / ||W||) (operator-norm clamping plus per-layer scaling, UPI-TRM Sec.
    4).
    """

    def __init__(self, update: nn.Module, modulus: float, *, first: float | None = None) -> None:
        """Clamp at once, to `modulus` or to a looser `first`, which may exceed 1 (a schedule).

        Raises:
            NotContractive: for a map without a bound.
            ValueError: for a modulus outside (0, 1).
        """
        if not 0 < modulus < 1:
            raise ValueError(f"contraction.modulus must lie in (0, 1), got {modulus}")
        self._certificate = Certificate(update)
        self.update = self._certificate.update
        self.modulus = modulus if first is None else first
        self.apply()

    def tighten(self, modulus: float) -> None:
        """Change the modulus in force, and clamp."""
        if modulus != self.modulus:
            self.modulus = modulus
            self.apply()

    @torch.no_grad()
    def apply(self) -> float:
        """Shrink the weights where needed; returns the certificate afterwards."""
        # Float32 rounding of the shrunk weights can lift the norm by some ulp: aim just below the
        # modulus.
        target = self.modulus * (1 - 1e-6)
        if isinstance(self.update, MLPMap):
            for weight in (self.update.first, self.update.second):
                weight.mul_(target**0.5 / max(target**0.5, spectral_norm(weight)))
            return self._certificate.bound()
        norm = self._certificate.bound()
        if norm <= self.modulus:
            return norm
        if isinstance(self.update, RelationalMap):
            weights = (self.update.mix.own, self.update.mix.grouped)
        else:
            weights = (self.update.own, self.update.message)
        for weight in weights:
            weight.mul_(target / norm)
        return self._certificate.bound()


class ValueHeadClamp:
    """Keeps ||W_out|| ||W_hidden|| of the value head at or below a bound, by shrinking only.

    Each of the two layers W behind the pooled latent: W <- W min(1, sqrt(bound) / ||W||), norms
    from exact SVDs; and what a group readout takes from the latents to norm 1 at most. L_V of z ->
    V_psi(z) is then at most `bound` times the constants of the pooling, which no weight enters
    (`lipschitz.certified_value_lipschitz`). Biases and counts stay free.
    """

    def __init__(self, model: TinyRecursiveModel, bound: float) -> None:
        """Clamp at once; ValueError for a bound that is not positive."""
        if not bound > 0:
            raise ValueError(f"contraction.value_head must be positive, got {bound}")
        self.model, self.bound = model, bound
        self.apply()

    @torch.no_grad()
    def apply(self) -> float:
        """Shrink the weights where needed; returns ||W_out|| ||W_hidden|| afterwards."""
        # Just below the bound, as in `ContractionClamp`.
        target = (self.bound * (1 - 1e-6)) ** 0.5
        for layer in (self.model.value_hidden, self.model.value_out):
            _shrink(layer.weight, target)
        if self.model.config.update_map == "relational":
            for weight in self.model.readout.weight:
                _shrink(weight[: self.model.config.channels], 1 - 1e-6)
        return self.norm()

    def norm(self) -> float:
        """||W_out|| ||W_hidden||."""
        return spectral_norm(self.model.value_out.weight) * spectral_norm(
            self.model.value_hidden.weight
        )


def _shrink(weight: Tensor, target: float) -> None:
    """W <- W min(1, target / ||W||), in place."""
    norm = spectral_norm(weight)
    if norm > target:
        weight.mul_(target / norm)


class Certificate:
    """Proven upper bound on L_z of the map z -> Pi_R(f(z, u)) for every u, in float64."""

    def __init__(self, update: nn.Module) -> None:
        """Raises NotContractive for maps without a global bound (softmax attention, SwiGLU)."""
        if not isinstance(update, Certified):
            raise NotContractive(
                f"{type(update).__name__} has no proven bound on its Lipschitz constant"
            )
        self.update: Certified = update
        self._patterns = (
            joint_patterns(update.structure) if isinstance(update, RelationalMap) else None
        )

    def bound(self) -> float:
        """L_z: relu and Pi_R are 1-Lipschitz, so the z -> z weights alone decide."""
        if isinstance(self.update, RelationalMap):
            return relational_norm(self.update, self._patterns)
        if isinstance(self.update, NeighbourMap):
            return neighbour_norm(self.update)
        return spectral_norm(self.update.first) * spectral_norm(self.update.second)


def certificate(update: nn.Module) -> float:
    """One-off `Certificate(update).bound()`."""
    return Certificate(update).bound()


def unroll_bias(modulus: float, depth: int, first_step: float) -> float:
    """||z^(n) - z*|| <= L_z^n C_z / (1 - L_z)  (UPI-TRM Prop. 2.3).

    Args:
        modulus: L_z in (0, 1).
        depth: n, number of unrolls.
        first_step: C_z, norm of the first move ||f(z_init) - z_init||.

    Raises:
        NotContractive: if the modulus is not below 1.
    """
    if not 0 <= modulus < 1:
        raise NotContractive(f"the bound of Prop. 2.3 needs L_z < 1, got {modulus}")
    return modulus**depth * first_step / (1 - modulus)


def posterior_bias(modulus: float, last_step: float) -> float:
    """||z^(n) - z*|| <= L_z / (1 - L_z) ||z^(n) - z^(n-1)||: from what was seen, n >= 1.

    Never larger than `unroll_bias`. Not in the paper; the fixed-point theorem's other estimate.

    Args:
        modulus: L_z in (0, 1).
        last_step: ||z^(n) - z^(n-1)||.

    Raises:
        NotContractive: if the modulus is not below 1.
    """
    if not 0 <= modulus < 1:
        raise NotContractive(f"the a-posteriori bound needs L_z < 1, got {modulus}")
    return modulus * last_step / (1 - modulus)


def empirical_lipschitz(
    before: Float[Tensor, "pair channel"], after: Float[Tensor, "pair channel"]
) -> float:
    """Largest ||f(z) - f(z')|| / ||z - z'|| over pairs of latents.

    Args:
        before: latents, pairs at rows 2i and 2i + 1.
        after: their images under the same map and injection.
    """
    flat_before, flat_after = before.double(), after.double()
    moved = torch.linalg.vector_norm(flat_after[0::2] - flat_after[1::2], dim=1)
    apart = torch.linalg.vector_norm(flat_before[0::2] - flat_before[1::2], dim=1)
    return cast(float, (moved / apart.clamp_min(1e-300)).max().item())


@dataclass(frozen=True, kw_only=True)
class ContractionConfig:
    """The `contraction` section of a recipe."""

    modulus: float | None = None
    """L_z: the clamp keeps the certified Lipschitz constant of z -> z at or below it; null switches
    it off."""
    schedule: Literal["constant", "linear"] = "constant"
    """L_z in force: `modulus` throughout, or falling linearly from `start` to `modulus`."""
    start: float | None = None
    """linear: L_z at the beginning, above `modulus`; above 1 there is no contraction yet."""
    ramp: float = 0.5
    """linear: share of the budget after which `modulus` is in force. A run whose budget is raised
    later differs from one that had it from the start."""
    value_head: float | None = None
    """Bound on ||W_out|| ||W_hidden|| of the evaluator's value head, which limits L_V (Eq. 1);
    kept by shrinking after every optimiser step, exact SVD. Null switches it off (the paper)."""

    def modulus_at(self, progress: float) -> float | None:
        """L_z in force when the share `progress` of the budget is spent."""
        if self.modulus is None or self.start is None:
            return self.modulus
        return self.modulus + (self.start - self.modulus) * max(0.0, 1.0 - progress / self.ramp)

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        if self.modulus is not None and not 0 < self.modulus < 1:
            raise ValueError(
                f"contraction.modulus must lie in (0, 1) or be null, got {self.modulus}"
            )
        if (self.schedule == "linear") != (self.start is not None):
            raise ValueError(
                "contraction.start goes with contraction.schedule 'linear' and is null without,"
                f" got {self.start} with {self.schedule!r}"
            )
        if self.start is not None and not (self.modulus is not None and self.start > self.modulus):
            raise ValueError(
                f"contraction.start must be above contraction.modulus, got {self.start} and"
                f" {self.modulus}"
            )
        if not 0 < self.ramp <= 1:
            raise ValueError(f"contraction.ramp must lie in (0, 1], got {self.ramp}")
        if self.value_head is not None and not self.value_head > 0:
            raise ValueError(
                f"contraction.value_head must be positive or null, got {self.value_head}"
            )
