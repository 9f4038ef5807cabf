"""Every inequality of UPI-TRM Sec. 2 to 5 and App. A, both sides measured.

On a domain small enough to solve (`exact.py`) the left sides are exact, so that each bound is seen
to hold and how loose it is; on sampled states the same terms are maxima over a sample and prove
nothing. Where the paper's form is wrong or loose, the right or sharper form stands beside it
(docs/bounds.md). `best_alpha` turns Eq. 11 round: the mixing weight that promises most.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from trm.nn.model import StateBatch, TinyRecursiveModel
from upi_trm.advantage import centred_advantage
from upi_trm.contraction import NotContractive, unroll_bias
from upi_trm.evaluator import shaped_value
from upi_trm.theory.exact import ExactMDP
from upi_trm.theory.lipschitz import latent_path, state_norms, update_latent

Array = NDArray[np.float64]
Penalty = Literal["paper", "cpi", "span"]

_ROUNDING = 1e-9
"""Slack for float64 sums over thousands of states."""


# --- The inequalities


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One inequality, left <= right, with both sides measured."""

    name: str
    """Where the paper states it, e.g. "Eq. 6"."""
    says: str
    """In words."""
    left: float
    right: float
    proven: bool = True
    """False for a form that is printed in the paper but is no theorem."""

    @property
    def holds(self) -> bool:
        """Whether left <= right, up to rounding."""
        return self.left <= self.right + _ROUNDING * max(1.0, abs(self.right))

    @property
    def ratio(self) -> float | None:
        """Right / left, how loose it is; None where left is not positive but for rounding."""
        return self.right / self.left if self.left > 1e-12 else None

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "says": self.says,
            "left": self.left,
            "right": self.right,
            "holds": self.holds,
            "ratio": self.ratio,
            "proven": self.proven,
        }


def value_error_bound(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    value: Float[np.ndarray, " state"],
    *,
    k_steps: int,
    name: str,
) -> Bound:
    """||V - V^pi|| <= ||V - T_K V|| / (1 - gamma^K) for any V (UPI-TRM Eq. 5)."""
    residual = np.abs(value - mdp.backup(policy, value, steps=k_steps)).max()
    return Bound(
        name="Eq. 5",
        says=f"|{name} - V^pi| <= residual of {name} / (1 - gamma^K)",
        left=float(np.abs(value - mdp.value(policy)).max()),
        right=float(residual / (1 - mdp.gamma**k_steps)),
    )


def advantage_bounds(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    value: Float[np.ndarray, " state"],
) -> list[Bound]:
    """|A_hat - A^pi| <= 2 gamma ||V - V^pi|| for the centred one-step estimator (Sec. 5.1).

    The error is gamma times a difference of two averages of V - V^pi over successors, so gamma
    times its spread (0 at absorption counts) bounds it too, by half as much at best.
    """
    error = value - mdp.value(policy)
    made = np.abs(centred(mdp, policy, value) - mdp.advantage(policy)).max()
    return [
        Bound(
            name="Sec. 5.1",
            says="|A_hat - A^pi| <= 2 gamma |U_n - V^pi|",
            left=float(made),
            right=float(2 * mdp.gamma * np.abs(error).max()),
        ),
        Bound(
            name="Sec. 5.1, spread",
            says="|A_hat - A^pi| <= gamma (max - min of U_n - V^pi and 0)",
            left=float(made),
            right=float(mdp.gamma * _spread(error)),
        ),
    ]


def centred(
    mdp: ExactMDP, policy: Float[np.ndarray, "state action"], value: Float[np.ndarray, " state"]
) -> Array:
    """A_hat = Q_V - E_{b~pi}[Q_V(s, b)], 0 where illegal; shape [state, action] (Eq. 9)."""
    return _numpy(
        centred_advantage(
            torch.from_numpy(mdp.action_value(value)),
            torch.from_numpy(policy),
            torch.from_numpy(mdp.mask),
        )
    )


def expected_gae(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    value: Float[np.ndarray, " state"],
    *,
    decay: float,
) -> Array:
    """What GAE estimates on average: E[sum_k (gamma lambda)^k delta_{t+k} | s, a], 0 where illegal.

    Not centred: E_{a~pi} of it is the (lambda-weighted) Bellman residual of V. The single estimates
    scatter around it.
    """
    q = mdp.action_value(value)
    surprise = (policy * q).sum(axis=1) - value
    further = mdp.accumulate(policy, surprise, discount=mdp.gamma * decay)
    after = np.where(mdp.next_state >= 0, further[mdp.next_state], 0.0)
    estimate: Array = np.where(mdp.mask, q - value[:, None] + mdp.gamma * decay * after, 0.0)
    return estimate


def improvement_penalty(
    alpha: float, *, deviation: float, gamma: float, penalty: Penalty = "paper"
) -> float:
    """What a mixture may lose because it visits other states than pi.

    - "paper": 2 eps gamma alpha^2 / (1 - gamma)^2 with eps = eps_CPI (UPI-TRM Eq. 11);
    - "cpi": 2 eps gamma alpha^2 / ((1 - gamma) (1 - gamma (1 - alpha))), which Kakade and Langford
      (2002) prove before they round it up;
    - "span": the same with the spread of E_{a~cand}[A^pi] over the states (absorption, 0, counts)
      in place of 2 eps: total variation between the visits times spread. Never larger; half as
      large for a candidate that is nowhere worse than pi.

    Args:
        alpha: mixing weight in [0, 1].
        deviation: eps_CPI = max_s |E_{a~cand}[A^pi(s, a)]|, or the spread for "span".
        gamma: discount in (0, 1).
        penalty: which of the three.
    """
    if penalty == "paper":
        return 2 * deviation * gamma * alpha**2 / (1 - gamma) ** 2
    factor = 1.0 if penalty == "span" else 2.0
    return factor * deviation * gamma * alpha**2 / ((1 - gamma) * (1 - gamma * (1 - alpha)))


def improvement_bound(
    alpha: float,
    *,
    gain: float,
    deviation: float,
    gamma: float,
    error: float = 0.0,
    baseline: float = 0.0,
    defect: float = 0.0,
    penalty: Penalty = "paper",
) -> float:
    """Lower bound on eta(pi_new) - eta(pi) for pi_new = (1 - alpha) pi + alpha pi_cand.

    UPI-TRM Eq. 11 with `baseline` = `defect` = 0 (centred advantages), and the form after Remark
    5.8 otherwise.

    Args:
        alpha: mixing weight in [0, 1].
        gain: E_{s~d_pi, a~cand}[A_hat], d_pi normalised with absorption counted in.
        deviation: eps_CPI, or the spread for the penalty "span".
        gamma: discount in (0, 1).
        error: eps_{A,cand}, the largest |E_{a~cand}[A_hat - A^pi]|.
        baseline: E_{s~d_pi, a~pi}[A_hat].
        defect: eps_cent, the largest |E_{a~pi}[A_hat]|.
        penalty: see `improvement_penalty`.
    """
    promised = (1 - alpha) * (baseline - defect) + alpha * (gain - error)
    return promised / (1 - gamma) - improvement_penalty(
        alpha, deviation=deviation, gamma=gamma, penalty=penalty
    )


def best_alpha(
    *,
    gain: float,
    deviation: float,
    gamma: float,
    error: float = 0.0,
    baseline: float = 0.0,
    defect: float = 0.0,
    penalty: Penalty = "paper",
) -> float:
    """The alpha in [0, 1] that maximises `improvement_bound`; 0 where no step is safe.

    With centred advantages and the paper's penalty it is (gain - error) (1 - gamma) / (4 gamma
    deviation), at most (1 - gamma) / (4 gamma): 0.0025 at gamma = 0.99. "cpi" allows up to 0.41 (1
    - gamma) / gamma; "span" has no such ceiling: a candidate that is nowhere worse may be taken
    whole.
    """
    slope = (gain - error) - (baseline - defect)
    if slope <= 0:
        return 0.0
    if deviation <= 0:
        return 1.0
    if penalty == "paper":
        return min(1.0, slope * (1 - gamma) / (4 * gamma * deviation))
    # d/dalpha = 0 of slope alpha - D gamma alpha^2 / (1 - gamma + gamma alpha), D = factor x
    # deviation: (1 - gamma + gamma alpha)^2 = (1 - gamma)^2 / (1 - slope / D).
    share = slope / ((1.0 if penalty == "span" else 2.0) * deviation)
    if share >= 1:
        return 1.0
    return min(1.0, (1 - gamma) / gamma * (1 / math.sqrt(1 - share) - 1))


def operational_alpha(
    *, gain: float, largest: float, residual: float, gamma: float, k_steps: int
) -> float:
    """`best_alpha` from what a learner can measure, without V^pi; 0 unless U_n is very good.

    |E_{a~cand}[A_hat - A^pi]| <= 2 gamma ||U_n - V^pi|| <= 2 gamma residual / (1 - gamma^K) by Eq.
    5, and eps_CPI exceeds the largest |E_{a~cand}[A_hat]| by no more than that.

    Args:
        gain: E_{s~d_pi, a~cand}[A_hat], centred.
        largest: max_s |E_{a~cand}[A_hat]|.
        residual: ||U_n - T_K U_n||.
        gamma: discount in (0, 1).
        k_steps: K of the residual.
    """
    error = 2 * gamma * residual / (1 - gamma**k_steps)
    return best_alpha(gain=gain, deviation=largest + error, gamma=gamma, error=error)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImprovementTerms:
    """Everything that Theorem 5.7 and Remark 5.8 need, measured exactly."""

    gain: float
    """E_{s~d_pi, a~cand}[A_hat]."""
    baseline: float
    """E_{s~d_pi, a~pi}[A_hat]; 0 for centred advantages."""
    error: float
    """eps_{A,cand} (Eq. 10)."""
    advantage_error: float
    """eps_A, the largest |A_hat - A^pi| (Eq. 8)."""
    defect: float
    """eps_cent; 0 up to rounding for centred advantages."""
    deviation: float
    """eps_CPI, over every state that pi_new may visit."""
    spread: float
    """max - min of E_{a~cand}[A^pi] over the states and 0."""

    def bound(self, alpha: float, *, gamma: float, penalty: Penalty) -> float:
        """Lower bound on the improvement at one alpha."""
        return improvement_bound(alpha, **self._arguments(gamma, penalty))

    def best(self, *, gamma: float, penalty: Penalty) -> float:
        """The alpha that maximises it."""
        return best_alpha(**self._arguments(gamma, penalty))

    def _arguments(self, gamma: float, penalty: Penalty) -> dict[str, Any]:
        return {
            "gain": self.gain,
            "deviation": self.spread if penalty == "span" else self.deviation,
            "gamma": gamma,
            "error": self.error,
            "baseline": self.baseline,
            "defect": self.defect,
            "penalty": penalty,
        }

    def to_json_dict(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "gain": self.gain,
            "baseline": self.baseline,
            "eps_A_cand": self.error,
            "eps_A": self.advantage_error,
            "eps_cent": self.defect,
            "eps_CPI": self.deviation,
            "spread": self.spread,
        }


def improvement_terms(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    candidate: Float[np.ndarray, "state action"],
    estimate: Float[np.ndarray, "state action"],
) -> ImprovementTerms:
    """Measure the terms of Eq. 11 for an advantage estimate A_hat."""
    true = mdp.advantage(policy)
    visits = mdp.visits(policy)
    of_candidate = (candidate * true).sum(axis=1)
    guessed = (candidate * estimate).sum(axis=1)
    under_policy = (policy * estimate).sum(axis=1)
    return ImprovementTerms(
        gain=float(visits @ guessed),
        baseline=float(visits @ under_policy),
        error=float(np.abs(guessed - of_candidate).max()),
        advantage_error=float(np.abs(estimate - true).max()),
        defect=float(np.abs(under_policy).max()),
        deviation=float(np.abs(of_candidate).max()),
        spread=_spread(of_candidate),
    )


def improvement_bounds(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    candidate: Float[np.ndarray, "state action"],
    estimate: Float[np.ndarray, "state action"],
    *,
    alphas: Mapping[Penalty, Sequence[float]],
    name: str,
) -> list[Bound]:
    """The promised improvement against the true one, eta(pi_new) - eta(pi), at several alpha.

    Args:
        mdp: the domain.
        policy: pi.
        candidate: pi_cand.
        estimate: A_hat; centred for Eq. 11, anything for the form after Remark 5.8.
        alphas: mixing weights for each `improvement_penalty`.
        name: of the bounds.
    """
    terms = improvement_terms(mdp, policy, candidate, estimate)
    before = mdp.performance(policy)
    gained = {
        alpha: mdp.performance((1 - alpha) * policy + alpha * candidate) - before
        for alpha in sorted({alpha for row in alphas.values() for alpha in row})
    }
    return [
        Bound(
            name=name if penalty == "paper" else f"{name}, {penalty} penalty",
            says=f"promised <= true improvement at alpha = {alpha:.4g}",
            left=terms.bound(alpha, gamma=mdp.gamma, penalty=penalty),
            right=gained[alpha],
        )
        for penalty, row in alphas.items()
        for alpha in row
    ]


def distillation_bounds(
    mdp: ExactMDP,
    new: Float[np.ndarray, "state action"],
    distilled: Float[np.ndarray, "state action"],
) -> list[Bound]:
    """Pinsker, and how much of eta(pi_new) a distilled policy may lose (UPI-TRM App. A).

    The paper's form, 2 gamma / (1 - gamma)^2 sup TV, has no scale of rewards in it and forgets the
    reward of the first edit: no theorem. By the performance difference lemma the gap is
    E_{d_new}[sum_a (pi_new - pi_phi) Q^phi] / (1 - gamma), at most sup_s TV(s) spread_a Q^phi(s, a)
    / (1 - gamma); |Q| <= R_max / (1 - gamma) makes it 2 R_max / (1 - gamma)^2 sup TV.
    """
    gamma = mdp.gamma
    apart = 0.5 * np.abs(new - distilled).sum(axis=1)
    gap = abs(mdp.performance(new) - mdp.performance(distilled))
    q = mdp.action_value(mdp.value(distilled))
    spread = np.where(mdp.mask, q, -np.inf).max(axis=1) - np.where(mdp.mask, q, np.inf).min(axis=1)
    largest = float(apart.max())
    gap_says = "|eta(pi_new) - eta(pi_phi)| <= "
    return [
        *pinsker_bounds(new, distilled),
        Bound(
            name="App. A, as printed",
            says=gap_says + "2 gamma sup TV / (1 - gamma)^2",
            left=gap,
            right=2 * gamma / (1 - gamma) ** 2 * largest,
            proven=False,
        ),
        Bound(
            name="App. A, put right",
            says=gap_says + "2 R_max sup TV / (1 - gamma)^2",
            left=gap,
            right=float(2 * np.abs(mdp.reward).max() / (1 - gamma) ** 2 * largest),
        ),
        Bound(
            name="App. A, spread",
            says=gap_says + "sup_s TV(s) spread_a Q^phi(s, a) / (1 - gamma)",
            left=gap,
            right=float((apart * spread).max() / (1 - gamma)),
        ),
    ]


def pinsker_bounds(
    new: Float[np.ndarray, "state action"], distilled: Float[np.ndarray, "state action"]
) -> list[Bound]:
    """TV <= sqrt(KL / 2): of the largest over the states, and of the means (by Jensen)."""
    apart = 0.5 * np.abs(new - distilled).sum(axis=1)
    divergence = statewise_kl(new, distilled)
    return [
        Bound(
            name="Pinsker",
            says="largest TV <= sqrt(largest KL / 2)",
            left=float(apart.max()),
            right=float(np.sqrt(divergence.max() / 2)),
        ),
        Bound(
            name="Pinsker, mean",
            says="mean TV <= sqrt(mean KL / 2)",
            left=float(apart.mean()),
            right=float(np.sqrt(divergence.mean() / 2)),
        ),
    ]


def statewise_kl(
    new: Float[np.ndarray, "state action"], distilled: Float[np.ndarray, "state action"]
) -> Array:
    """KL(pi_new || pi_phi) of each state, in nats; infinite where pi_phi lacks an edit."""
    one, other = torch.from_numpy(new), torch.from_numpy(distilled)
    terms = torch.special.xlogy(one, one) - torch.special.xlogy(one, other)
    return _numpy(terms.sum(dim=1).clamp_min(0.0))


# --- The recursion's terms


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentTerms:
    """What the recursion does at some states: z^(n), its distance to z*, U_n and U_*."""

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
    """Proven bound on how far the fixed point is from the latent that stands for it."""

    @staticmethod
    def join(parts: Sequence["LatentTerms"]) -> "LatentTerms":
        """Put chunks of states together."""
        names = ("first_step", "last_step", "gap", "value", "ideal")
        return LatentTerms(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
            missing=max(part.missing for part in parts),
        )


@torch.no_grad()
def latent_terms(
    model: TinyRecursiveModel,
    states: StateBatch,
    phi: Float[Tensor, " batch"],
    *,
    value: Any,
    depth: int,
    modulus: float,
    tolerance: float = 1e-11,
    chunk: int = 512,
) -> LatentTerms:
    """Unroll to n and on to the fixed point.

    The fixed point is approached until L_z / (1 - L_z) ||z_{t+1} - z_t||, which bounds what is
    missing, is at most `tolerance` or no longer shrinks.

    Args:
        model: evaluator, float64.
        states: where.
        phi: Phi of the states.
        value: "success" or "score".
        depth: n.
        modulus: certified L_z < 1.
        tolerance: of the fixed point.
        chunk: states at a time.

    Raises:
        NotContractive: for L_z not below 1.
    """
    if not 0 <= modulus < 1:
        raise NotContractive(f"a fixed point needs L_z < 1, got {modulus:.4g}")
    parts = []
    for start in range(0, len(states), chunk):
        rows = slice(start, start + chunk)
        encoding = model.encode(states.select(rows))
        path = latent_path(model, encoding, depth=max(1, depth))
        steps = [state_norms(b - a, encoding) for a, b in itertools.pairwise(path)]
        z, step, before = path[-1], float(steps[-1].max()), math.inf
        while step * modulus / (1 - modulus) > tolerance and step < before:
            after = update_latent(model, encoding, z)
            before, step, z = step, float(state_norms(after - z, encoding).max()), after
        last = path[depth]
        parts.append(
            LatentTerms(
                first_step=steps[0],
                last_step=steps[depth - 1] if depth else torch.zeros_like(steps[0]),
                gap=state_norms(last - z, encoding),
                value=shaped_value(model.value(last, encoding), phi[rows], value=value),
                ideal=shaped_value(model.value(z, encoding), phi[rows], value=value),
                missing=step * modulus / (1 - modulus),
            )
        )
    return LatentTerms.join(parts)


def unrolling_bounds(
    terms: LatentTerms, *, modulus: float, depth: int, head: float | None
) -> list[Bound]:
    """Prop. 2.3, its a-posteriori form, and Eq. 1 with the truncation of U_n.

    Args:
        terms: of the states; over all of them, C_z and the left sides are suprema.
        modulus: certified L_z.
        depth: n.
        head: certified L_V; None leaves out what needs it.
    """
    gap = float(terms.gap.max())
    bias = unroll_bias(modulus, depth, float(terms.first_step.max()))
    found = [
        Bound(
            name="Prop. 2.3",
            says="|z^(n) - z*| <= L_z^n C_z / (1 - L_z)",
            left=gap,
            right=bias,
        )
    ]
    if depth:
        found.append(
            Bound(
                name="Prop. 2.3, a posteriori",
                says="|z^(n) - z*| <= L_z |z^(n) - z^(n-1)| / (1 - L_z)",
                left=gap,
                right=float(terms.last_step.max()) * modulus / (1 - modulus),
            )
        )
    if head is not None:
        says = "|U_n - U_*| <= L_V "
        truncation = float((terms.value - terms.ideal).abs().max())
        found += [
            Bound(name="Eq. 1", says=says + "|z^(n) - z*|", left=truncation, right=head * gap),
            Bound(
                name="Eq. 1 with Prop. 2.3",
                says=says + "L_z^n C_z / (1 - L_z)",
                left=truncation,
                right=head * bias,
            ),
        ]
    return found


def decomposition_bounds(
    mdp: ExactMDP,
    policy: Float[np.ndarray, "state action"],
    terms: LatentTerms,
    *,
    modulus: float,
    depth: int,
    head: float,
    k_steps: int,
) -> list[Bound]:
    """Lemma 5.4 (Eq. 7), Eq. 6 and Cor. 5.5, and the advantage error that Eq. 6 implies."""
    unrolled, ideal = _numpy(terms.value), _numpy(terms.ideal)
    shrink = mdp.gamma**k_steps
    truth = mdp.value(policy)
    error = float(np.abs(unrolled - truth).max())
    residual = float(np.abs(unrolled - mdp.backup(policy, unrolled, steps=k_steps)).max())
    residual_ideal = float(np.abs(ideal - mdp.backup(policy, ideal, steps=k_steps)).max())
    truncation = float(np.abs(unrolled - ideal).max())
    bias = head * unroll_bias(modulus, depth, float(terms.first_step.max()))
    decomposition = residual_ideal / (1 - shrink) + bias
    return [
        Bound(
            name="Eq. 7",
            says="residual of U_* <= residual of U_n + (1 + gamma^K) |U_n - U_*|",
            left=residual_ideal,
            right=residual + (1 + shrink) * truncation,
        ),
        Bound(
            name="Eq. 6",
            says="|U_n - V^pi| <= residual of U_* / (1 - gamma^K) + L_V L_z^n C_z / (1 - L_z)",
            left=error,
            right=decomposition,
        ),
        Bound(
            name="Cor. 5.5",
            says="|U_n - V^pi| <= residual of U_n / (1 - gamma^K) + 2 / (1 - gamma^K) L_V L_z^n C_z"
            " / (1 - L_z)",
            left=error,
            right=residual / (1 - shrink) + ((1 + shrink) / (1 - shrink) + 1) * bias,
        ),
        Bound(
            name="Sec. 5.1 with Eq. 6",
            says="|A_hat - A^pi| <= 2 gamma (right side of Eq. 6)",
            left=float(np.abs(centred(mdp, policy, unrolled) - mdp.advantage(policy)).max()),
            right=2 * mdp.gamma * decomposition,
        ),
    ]


def _spread(values: Array) -> float:
    """Largest minus smallest value, with the 0 of absorption among them."""
    return float(max(values.max(), 0.0) - min(values.min(), 0.0))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
