"""Contraction of the inner recursion: a proven bound on L_z, and the clamp (UPI-TRM Sec. 4).

`Certificate` bounds the Lipschitz constant of the whole map z -> z in float64, with its activations
and group projections; `ContractionClamp` shrinks the z -> z weights after an optimiser step so that
the bound stays below L_z < 1. A map without a proven bound is refused (`NotContractive`). The
learner clamps its networks with this module, and `theory` reads the certificates.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from trm.experiments.sections import check_within
from trm.nn.blocks import GroupStructure, MLPMap, RelationalMap
from trm.nn.cells import NeighbourMap
from trm.runs.recipe import Retired


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
    """Bound ||W_z|| + sqrt(k) ||W_m|| on the Lipschitz constant of z -> W_z z + W_m max z.

    The maximum moves a listener, channel by channel, by no more than some neighbour moves, and at
    most k cells listen to one: sqrt(k) in the Euclidean norm, which a star attains. In the supremum
    norm the maximum would be non-expansive, but the ball projection Pi_R is not (its Jacobian has
    norm up to (1 + sqrt(d)) / 2 there), and C_z, L_V and every estimate of `theory.lipschitz` are
    Euclidean.
    """
    listeners = float(update.heard_by.max())
    return spectral_norm(update.own) + math.sqrt(listeners) * spectral_norm(update.message)


Certified = RelationalMap | MLPMap | NeighbourMap
"""Update maps with a proven global bound."""


class ContractionClamp:
    """Keeps the certified Lipschitz constant at or below `modulus` = L_z, by shrinking only.

    Relational and neighbour map: all z -> z weights are multiplied by min(1, L_z / norm). Flat map:
    each layer W is multiplied by min(1, sqrt(L_z) / ||W||) (operator-norm clamping plus per-layer
    scaling, UPI-TRM Sec. 4).
    """

    def __init__(self, update: nn.Module, modulus: float) -> None:
        """Clamp at once.

        Raises:
            NotContractive: for a map without a bound.
            ValueError: for a modulus outside (0, 1).
        """
        if not 0 < modulus < 1:
            raise ValueError(f"contraction.modulus must lie in (0, 1), got {modulus}")
        self._certificate = Certificate(update)
        self.update = self._certificate.update
        self.modulus = modulus
        self.apply()

    @torch.no_grad()
    def apply(self) -> float:
        """Shrink the weights where needed; returns the certificate afterwards."""
        # Float32 rounding of the shrunk weights can lift the norm by some ulp, so the target lies
        # just below the modulus.
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
    """The bound of a map that is asked for once; errors as of `Certificate`."""
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
    return modulus**depth * first_step / _margin(modulus)


def posterior_bias(modulus: float, last_step: float) -> float:
    """||z^(n) - z*|| <= L_z / (1 - L_z) ||z^(n) - z^(n-1)||, from the last step, n >= 1.

    It is never larger than `unroll_bias`, which has the same errors. The paper does not have it; it
    is the other estimate of the fixed-point theorem.
    """
    return modulus * last_step / _margin(modulus)


def _margin(modulus: float) -> float:
    if not 0 <= modulus < 1:
        raise NotContractive(f"the bound on the distance to z* needs L_z < 1, got {modulus}")
    return 1 - modulus


@dataclass(frozen=True, kw_only=True)
class ContractionConfig:
    """The `contraction` section of a recipe."""

    modulus: float | None = None
    """L_z: the clamp keeps the certified Lipschitz constant of z -> z at or below it; null switches
    it off."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        name: Retired(value, "it was removed: the clamp keeps contraction.modulus all along")
        for name, value in {"schedule": "constant", "start": None, "ramp": 0.5}.items()
    } | {"value_head": Retired(None, "it was removed: only the recursion is clamped")}

    def __post_init__(self) -> None:
        check_within(self, "contraction", "(0, 1)", "modulus")
