"""Bounds on values, improvement and distillation (UPI-TRM Sec. 5, App. A), both sides measured.

On a domain small enough to solve (`exact.py`) the left sides are exact, so that each bound is seen
to hold and how loose it is. Where the paper's form is wrong or loose, the right or sharper form is
measured beside it (docs/bounds.md). `ImprovementTerms.best` solves Eq. 11 for the mixing weight
that promises most. `unrolling.py` has the bounds on the recursion, `bounds_study.py` measures all
of them on a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from upi_trm.advantage import centred_advantage
from upi_trm.theory.exact import Array, ByEdit, ByState, ExactMDP

Penalty = Literal["paper", "cpi", "span"]
"""Forms of the CPI penalty; see `ImprovementTerms.loss`."""

_ROUNDING = 1e-9
"""Slack for float64 sums over thousands of states."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One inequality, left <= right, with both sides measured."""

    name: str
    """The statement of the paper, e.g. "Eq. 6"."""
    says: str
    """The inequality in words."""
    _: KW_ONLY
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
        return asdict(self) | {"holds": self.holds, "ratio": self.ratio}


def bounds_on(left: float, *rows: tuple[str, str, float]) -> list[Bound]:
    """Several bounds on one left side; a row has a bound's name, its words and its right side."""
    return [Bound(name, says, left=float(left), right=float(right)) for name, says, right in rows]


# --- Values and advantages: Eq. 5 and Sec. 5.1


def value_error_bound(
    mdp: ExactMDP, policy: ByEdit, value: ByState, *, k_steps: int, name: str
) -> Bound:
    """||V - V^pi|| <= ||V - T_K V|| / (1 - gamma^K) for any V (UPI-TRM Eq. 5)."""
    residual = mdp.residual(policy, value, steps=k_steps).max()
    return Bound(
        "Eq. 5",
        f"|{name} - V^pi| <= residual of {name} / (1 - gamma^K)",
        left=float(np.abs(value - mdp.value(policy)).max()),
        right=float(residual / (1 - mdp.gamma**k_steps)),
    )


def advantage_bounds(mdp: ExactMDP, policy: ByEdit, value: ByState) -> list[Bound]:
    """|A_hat - A^pi| <= 2 gamma ||V - V^pi|| for the centred one-step estimator (Sec. 5.1).

    The error is gamma times a difference of two averages of V - V^pi over successors, so gamma
    times its spread (0 at absorption counts) bounds it too, by half as much at best.
    """
    error = value - mdp.value(policy)
    largest, spread = 2 * mdp.gamma * np.abs(error).max(), mdp.gamma * _spread(error)
    says = "|A_hat - A^pi| <= "
    return bounds_on(
        np.abs(centred(mdp, policy, value) - mdp.advantage(policy)).max(),
        ("Sec. 5.1", says + "2 gamma |U_n - V^pi|", largest),
        ("Sec. 5.1, spread", says + "gamma (max - min of U_n - V^pi and 0)", spread),
    )


def centred(mdp: ExactMDP, policy: ByEdit, value: ByState) -> Array:
    """A_hat = Q_V - E_{b~pi}[Q_V(s, b)], 0 where illegal; shape [state, action] (Eq. 9)."""
    parts = (mdp.action_value(value), policy, mdp.mask)
    return numpy_of(centred_advantage(*(torch.from_numpy(part) for part in parts)))


def expected_gae(mdp: ExactMDP, policy: ByEdit, value: ByState, *, decay: float) -> Array:
    """What GAE estimates on average: E[sum_k (gamma lambda)^k delta_{t+k} | s, a], 0 where illegal.

    It is not centred: E_{a~pi} of it is the (lambda-weighted) Bellman residual of V. The single
    estimates scatter around it.
    """
    q = mdp.action_value(value)
    surprise = (policy * q).sum(axis=1) - value
    further = mdp.accumulate(policy, surprise, discount=mdp.gamma * decay)
    after = np.where(mdp.next_state >= 0, further[mdp.next_state], 0.0)
    estimate: Array = np.where(mdp.mask, q - value[:, None] + mdp.gamma * decay * after, 0.0)
    return estimate


# --- Improvement: Eq. 8 to 11 and Remark 5.8


@dataclass(frozen=True, kw_only=True, slots=True)
class ImprovementTerms:
    """Everything that Theorem 5.7 and Remark 5.8 need of pi_new = (1 - alpha) pi + alpha pi_cand.

    With centred advantages `baseline` and `defect` are 0 (Eq. 11); otherwise the bound is the form
    after Remark 5.8.
    """

    gain: float
    """E_{s~d_pi, a~cand}[A_hat], d_pi normalised with absorption counted in."""
    deviation: float
    """eps_CPI = max_s |E_{a~cand}[A^pi(s, a)]|, over every state that pi_new may visit."""
    gamma: float
    """Discount in (0, 1)."""
    error: float = 0.0
    """eps_{A,cand}, the largest |E_{a~cand}[A_hat - A^pi]| (Eq. 10)."""
    baseline: float = 0.0
    """E_{s~d_pi, a~pi}[A_hat]."""
    defect: float = 0.0
    """eps_cent, the largest |E_{a~pi}[A_hat]|; 0 up to rounding for centred advantages (Eq. 9)."""
    advantage_error: float = math.inf
    """eps_A, the largest |A_hat - A^pi| (Eq. 8)."""
    spread: float = math.inf
    """max - min of E_{a~cand}[A^pi] over the states and 0."""

    def loss(self, alpha: float, penalty: Penalty = "paper") -> float:
        """What a mixture may lose because it visits other states than pi.

        - "paper": 2 eps gamma alpha^2 / (1 - gamma)^2 with eps = eps_CPI (UPI-TRM Eq. 11);
        - "cpi": 2 eps gamma alpha^2 / ((1 - gamma) (1 - gamma (1 - alpha))), which Kakade and
          Langford (2002) prove before they round it up;
        - "span": the same with the spread of E_{a~cand}[A^pi] over the states (absorption, 0,
          counts) in place of 2 eps: total variation between the visits times spread. It is never
          larger, and half as large for a candidate that is nowhere worse than pi.
        """
        gamma, most = self.gamma, self._most(penalty) * self.gamma * alpha**2
        if penalty == "paper":
            return most / (1 - gamma) ** 2
        return most / ((1 - gamma) * (1 - gamma * (1 - alpha)))

    def bound(self, alpha: float, penalty: Penalty = "paper") -> float:
        """Lower bound on eta(pi_new) - eta(pi) at a mixing weight alpha in [0, 1]."""
        promised = (1 - alpha) * (self.baseline - self.defect) + alpha * (self.gain - self.error)
        return promised / (1 - self.gamma) - self.loss(alpha, penalty)

    def best(self, penalty: Penalty = "paper") -> float:
        """The alpha in [0, 1] that maximises `bound`; 0 where no step is safe.

        With centred advantages and the paper's penalty it is (gain - error) (1 - gamma) / (4 gamma
        deviation), at most (1 - gamma) / (4 gamma): 0.0025 at gamma = 0.99. "cpi" allows up to 0.41
        (1 - gamma) / gamma. "span" has no such ceiling: a candidate that is nowhere worse may be
        taken whole.
        """
        gamma, most = self.gamma, self._most(penalty)
        slope = (self.gain - self.error) - (self.baseline - self.defect)
        if slope <= 0:
            return 0.0
        if most <= 0:
            return 1.0
        if penalty == "paper":
            return min(1.0, slope * (1 - gamma) / (4 * gamma * self.deviation))
        # d/dalpha = 0 of slope alpha - D gamma alpha^2 / (1 - gamma + gamma alpha), D = 2 eps or
        # the spread: (1 - gamma + gamma alpha)^2 = (1 - gamma)^2 / (1 - slope / D).
        share = slope / most
        if share >= 1:
            return 1.0
        return min(1.0, (1 - gamma) / gamma * (1 / math.sqrt(1 - share) - 1))

    def _most(self, penalty: Penalty) -> float:
        return self.spread if penalty == "span" else 2 * self.deviation

    def to_json_dict(self) -> dict[str, float]:
        """The figures by their symbols."""
        return {
            "gain": self.gain,
            "baseline": self.baseline,
            "eps_A_cand": self.error,
            "eps_A": self.advantage_error,
            "eps_cent": self.defect,
            "eps_CPI": self.deviation,
            "spread": self.spread,
        }


def operational_alpha(
    *, gain: float, largest: float, residual: float, gamma: float, k_steps: int
) -> float:
    """`ImprovementTerms.best` from what can be measured without V^pi; 0 unless U_n is very good.

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
    return ImprovementTerms(gain=gain, deviation=largest + error, gamma=gamma, error=error).best()


def improvement_terms(
    mdp: ExactMDP, policy: ByEdit, candidate: ByEdit, estimate: ByEdit
) -> ImprovementTerms:
    """Measure the terms of Eq. 11.

    Args:
        mdp: the domain.
        policy: pi.
        candidate: pi_cand.
        estimate: A_hat.
    """
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
        gamma=mdp.gamma,
        spread=_spread(of_candidate),
    )


def improvement_bounds(
    mdp: ExactMDP,
    policy: ByEdit,
    candidate: ByEdit,
    terms: ImprovementTerms,
    *,
    alphas: Mapping[Penalty, Sequence[float]],
    name: str,
) -> list[Bound]:
    """The promised improvement against the true one, eta(pi_new) - eta(pi), at several alpha.

    Args:
        mdp: the domain.
        policy: pi.
        candidate: pi_cand.
        terms: of both, with an A_hat that is centred for Eq. 11, or any for Remark 5.8.
        alphas: mixing weights for each form of the penalty.
        name: of the bounds.
    """
    before = mdp.performance(policy)
    gained = {
        alpha: mdp.performance((1 - alpha) * policy + alpha * candidate) - before
        for alpha in sorted({alpha for row in alphas.values() for alpha in row})
    }
    return [
        Bound(
            name if penalty == "paper" else f"{name}, {penalty} penalty",
            f"promised <= true improvement at alpha = {alpha:.4g}",
            left=terms.bound(alpha, penalty),
            right=gained[alpha],
        )
        for penalty, row in alphas.items()
        for alpha in row
    ]


# --- Distillation: App. A


def distillation_bounds(mdp: ExactMDP, new: ByEdit, distilled: ByEdit) -> list[Bound]:
    """Pinsker, and how much of eta(pi_new) a distilled policy may lose (UPI-TRM App. A).

    The paper's form, 2 gamma / (1 - gamma)^2 sup TV, has no scale of rewards in it and forgets the
    reward of the first edit: it is no theorem. By the performance difference lemma the gap is
    E_{d_new}[sum_a (pi_new - pi_phi) Q^phi] / (1 - gamma), at most sup_s TV(s) spread_a Q^phi(s, a)
    / (1 - gamma); |Q| <= R_max / (1 - gamma) makes it 2 R_max / (1 - gamma)^2 sup TV.
    """
    gamma, apart = mdp.gamma, _total_variation(new, distilled)
    largest = float(apart.max())
    q = mdp.action_value(mdp.value(distilled))
    spread = np.where(mdp.mask, q, -np.inf).max(axis=1) - np.where(mdp.mask, q, np.inf).min(axis=1)
    reward = 2 * np.abs(mdp.reward).max() / (1 - gamma) ** 2 * largest
    weighted = (apart * spread).max() / (1 - gamma)
    says = "|eta(pi_new) - eta(pi_phi)| <= "
    printed, *proven = bounds_on(
        abs(mdp.performance(new) - mdp.performance(distilled)),
        (
            "App. A, as printed",
            says + "2 gamma sup TV / (1 - gamma)^2",
            2 * gamma / (1 - gamma) ** 2 * largest,
        ),
        ("App. A, put right", says + "2 R_max sup TV / (1 - gamma)^2", reward),
        ("App. A, spread", says + "sup_s TV(s) spread_a Q^phi(s, a) / (1 - gamma)", weighted),
    )
    return [*pinsker_bounds(new, distilled), replace(printed, proven=False), *proven]


def pinsker_bounds(new: ByEdit, distilled: ByEdit) -> list[Bound]:
    """TV <= sqrt(KL / 2) for the largest values over the states, and (by Jensen) for the means."""
    apart, divergence = _total_variation(new, distilled), statewise_kl(new, distilled)
    largest, mean = (np.sqrt(figure / 2) for figure in (divergence.max(), divergence.mean()))
    return [
        *bounds_on(apart.max(), ("Pinsker", "largest TV <= sqrt(largest KL / 2)", largest)),
        *bounds_on(apart.mean(), ("Pinsker, mean", "mean TV <= sqrt(mean KL / 2)", mean)),
    ]


def _total_variation(new: ByEdit, distilled: ByEdit) -> Array:
    apart: Array = 0.5 * np.abs(new - distilled).sum(axis=1)
    return apart


def statewise_kl(new: ByEdit, distilled: ByEdit) -> Array:
    """KL(pi_new || pi_phi) of each state, in nats; infinite where pi_phi lacks an edit."""
    one, other = torch.from_numpy(new), torch.from_numpy(distilled)
    terms = torch.special.xlogy(one, one) - torch.special.xlogy(one, other)
    return numpy_of(terms.sum(dim=1).clamp_min(0.0))


def numpy_of(tensor: Tensor) -> Array:
    """A tensor's values as an array on the CPU."""
    array: Array = tensor.detach().cpu().numpy()
    return array


def _spread(values: Array) -> float:
    """Largest minus smallest value, with the 0 of absorption among them."""
    return float(max(values.max(), 0.0) - min(values.min(), 0.0))
