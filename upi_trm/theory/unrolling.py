"""The recursion on its way to the fixed point, and its bounds (UPI-TRM Prop. 2.3, Sec. 5.1).

`latent_terms` unrolls a certified contraction to z^(n) and on to z*. `unrolling_bounds` compares
what was measured with Prop. 2.3 and Eq. 1; on a domain that is solved exactly (`exact.py`)
`decomposition_bounds` does so with Eq. 6, Eq. 7 and Cor. 5.5. `bounds_study.py` calls all three.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trm.nn.model import StateBatch, TinyRecursiveModel
from upi_trm.contraction import NotContractive, certificate, posterior_bias, unroll_bias
from upi_trm.evaluator import shaped_value
from upi_trm.theory.bounds import Bound, bounds_on, centred, numpy_of
from upi_trm.theory.exact import ByEdit, ExactMDP
from upi_trm.theory.lipschitz import (
    certified_value_lipschitz,
    latent_path,
    state_norms,
    update_latent,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentTerms:
    """What the recursion does at some states: z^(n), its distance to z*, U_n and U_*."""

    depth: int
    """n."""
    modulus: float
    """Certified L_z."""
    head: float
    """Certified L_V over the states."""
    first_step: Float[Tensor, " batch"]
    """||f(z_init) - z_init|| of each state; its maximum is C_z (Assumption 4.1)."""
    last_step: Float[Tensor, " batch"]
    """||z^(n) - z^(n-1)||; 0 at n = 0."""
    gap: Float[Tensor, " batch"]
    """||z^(n) - z*||."""
    value: Float[Tensor, " batch"]
    """U_n."""
    ideal: Float[Tensor, " batch"]
    """U_*."""
    missing: float
    """Proven bound on the distance between z* and the latent that was taken for it."""

    @property
    def bias(self) -> float:
        """Right side of Prop. 2.3, L_z^n C_z / (1 - L_z)."""
        return unroll_bias(self.modulus, self.depth, float(self.first_step.max()))

    @property
    def truncation(self) -> float:
        """||U_n - U_*|| over the states."""
        return float((self.value - self.ideal).abs().max())

    @staticmethod
    def join(parts: Sequence["LatentTerms"]) -> "LatentTerms":
        """Put chunks of states together."""
        names = ("first_step", "last_step", "gap", "value", "ideal")
        return LatentTerms(
            depth=parts[0].depth,
            modulus=parts[0].modulus,
            head=max(part.head for part in parts),
            missing=max(part.missing for part in parts),
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
        )

    def to_json_dict(self) -> dict[str, float]:
        """The suprema over the states."""
        return {
            "L_z_certified": self.modulus,
            "L_V_certified": self.head,
            "C_z": float(self.first_step.max()),
            "fixed_point_gap": float(self.gap.max()),
            "truncation": self.truncation,
            "fixed_point_missing": self.missing,
        }


@torch.no_grad()
def latent_terms(
    model: TinyRecursiveModel,
    states: StateBatch,
    phi: Float[Tensor, " batch"],
    *,
    value: Literal["success", "score"],
    depth: int,
    chunk: int = 512,
) -> LatentTerms:
    """Unroll to n and on to the fixed point.

    The fixed point is approached until L_z / (1 - L_z) ||z_{t+1} - z_t||, which bounds what is
    missing, is at most 1e-11 or no longer shrinks.

    Args:
        model: evaluator, float64.
        states: where the recursion is measured.
        phi: Phi of the states.
        value: what the head means; see `evaluator.shaped_value`.
        depth: n.
        chunk: states at a time.

    Raises:
        NotContractive: for a map without a certificate, or with an L_z not below 1.
    """
    modulus = certificate(model.update)
    if modulus >= 1:
        raise NotContractive(f"a fixed point needs L_z < 1, got {modulus:.4g}")
    parts = []
    for start in range(0, len(states), chunk):
        rows = slice(start, start + chunk)
        encoding = model.encode(states.select(rows))
        path = latent_path(model, encoding, depth=max(1, depth))
        steps = [state_norms(b - a, encoding) for a, b in itertools.pairwise(path)]
        z, step, before = path[-1], float(steps[-1].max()), math.inf
        while posterior_bias(modulus, step) > 1e-11 and step < before:
            after = update_latent(model, encoding, z)
            before, step, z = step, float(state_norms(after - z, encoding).max()), after
        last = path[depth]
        parts.append(
            LatentTerms(
                depth=depth,
                modulus=modulus,
                head=certified_value_lipschitz(model, encoding, value=value),
                first_step=steps[0],
                last_step=steps[depth - 1] if depth else torch.zeros_like(steps[0]),
                gap=state_norms(last - z, encoding),
                value=shaped_value(model.value(last, encoding), phi[rows], value=value),
                ideal=shaped_value(model.value(z, encoding), phi[rows], value=value),
                missing=posterior_bias(modulus, step),
            )
        )
    return LatentTerms.join(parts)


def unrolling_bounds(terms: LatentTerms) -> list[Bound]:
    """Prop. 2.3, its a-posteriori form (n >= 1), and Eq. 1 with the truncation of U_n.

    Over all states of the domain C_z and the left sides are suprema.
    """
    gap = float(terms.gap.max())
    found = bounds_on(gap, ("Prop. 2.3", "|z^(n) - z*| <= L_z^n C_z / (1 - L_z)", terms.bias))
    if terms.depth:
        says = "|z^(n) - z*| <= L_z |z^(n) - z^(n-1)| / (1 - L_z)"
        posterior = posterior_bias(terms.modulus, float(terms.last_step.max()))
        found += bounds_on(gap, ("Prop. 2.3, a posteriori", says, posterior))
    says = "|U_n - U_*| <= L_V "
    return found + bounds_on(
        terms.truncation,
        ("Eq. 1", says + "|z^(n) - z*|", terms.head * gap),
        ("Eq. 1 with Prop. 2.3", says + "L_z^n C_z / (1 - L_z)", terms.head * terms.bias),
    )


def decomposition_bounds(
    mdp: ExactMDP, policy: ByEdit, terms: LatentTerms, *, k_steps: int
) -> list[Bound]:
    """Lemma 5.4 (Eq. 7), Eq. 6 and Cor. 5.5, and the advantage error that Eq. 6 implies.

    Args:
        mdp: the domain.
        policy: pi.
        terms: of every state of the domain.
        k_steps: K.
    """
    unrolled, ideal = numpy_of(terms.value), numpy_of(terms.ideal)
    shrink, bias = mdp.gamma**k_steps, terms.head * terms.bias
    residual, residual_ideal = (
        float(mdp.residual(policy, value, steps=k_steps).max()) for value in (unrolled, ideal)
    )
    decomposition = residual_ideal / (1 - shrink) + bias
    operational = residual / (1 - shrink) + ((1 + shrink) / (1 - shrink) + 1) * bias
    bounded, says = "L_V L_z^n C_z / (1 - L_z)", "|U_n - V^pi| <= residual of "
    return [
        *bounds_on(
            residual_ideal,
            (
                "Eq. 7",
                "residual of U_* <= residual of U_n + (1 + gamma^K) |U_n - U_*|",
                residual + (1 + shrink) * terms.truncation,
            ),
        ),
        *bounds_on(
            np.abs(unrolled - mdp.value(policy)).max(),
            ("Eq. 6", f"{says}U_* / (1 - gamma^K) + {bounded}", decomposition),
            ("Cor. 5.5", f"{says}U_n / (1 - gamma^K) + 2 / (1 - gamma^K) {bounded}", operational),
        ),
        *bounds_on(
            np.abs(centred(mdp, policy, unrolled) - mdp.advantage(policy)).max(),
            (
                "Sec. 5.1 with Eq. 6",
                "|A_hat - A^pi| <= 2 gamma (right side of Eq. 6)",
                2 * mdp.gamma * decomposition,
            ),
        ),
    ]
