"""`upi-trm bounds`: every term and bound of a run, exact on small instances and on a sample.

The exact study enumerates what some small instances of the run's task reach, solves that exactly
(`exact.py`) and measures both sides of every inequality of `bounds.py` and `unrolling.py`. The
sampled study measures the same terms on plans that the policy meets, where a maximum is only the
maximum of a sample. Both end in a `BoundsReport`, which `cli.py` prints.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plan_envs.domain import Int8Array
from trm.experiments.states import Boards, policy_probabilities
from trm.nn.model import StateBatch
from upi_trm.advantage import Lookahead, PerEdit, centred_advantage, centring_defect, look_ahead
from upi_trm.contraction import ContractionClamp, NotContractive, certificate
from upi_trm.evaluator import evaluate_states
from upi_trm.improvement import GAE_DECAY, distil, mixture
from upi_trm.theory.bounds import (
    Bound,
    ImprovementTerms,
    Penalty,
    advantage_bounds,
    centred,
    distillation_bounds,
    expected_gae,
    improvement_bounds,
    improvement_terms,
    numpy_of,
    operational_alpha,
    pinsker_bounds,
    statewise_kl,
    value_error_bound,
)
from upi_trm.theory.exact import MAX_STATES, Array, ByState, ExactMDP, enumerate_states
from upi_trm.theory.lipschitz import LipschitzReport, recursion_lipschitz, value_lipschitz
from upi_trm.theory.stability import total_variation
from upi_trm.theory.subjects import Subject, visited_states, with_dials
from upi_trm.theory.unrolling import (
    LatentTerms,
    decomposition_bounds,
    latent_terms,
    unrolling_bounds,
)

ALPHAS = (0.01, 0.1, 1.0)
"""Mixing weights at which Eq. 11 is checked, beside the recipe's and the best one."""

COMFORTABLE_STATES = 2_000
"""Plans of an exact study whose size nobody asked for: seconds on one core."""

PENALTIES: tuple[Penalty, ...] = ("paper", "cpi", "span")
"""Forms of the CPI penalty for which the best alpha is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Measured terms and bounds, on every reachable state or on a sample."""

    states: int
    instances: int
    terms: Mapping[str, Any]
    bounds: tuple[Bound, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"bounds": [bound.to_json_dict() for bound in self.bounds]}


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundsReport:
    """Everything that `upi-trm bounds` says of a run."""

    run: str
    env: str
    step: int
    settings: Mapping[str, Any]
    """n, K, gamma, alpha, R of the recipe."""
    modulus: LipschitzReport
    """L_z of the evaluator's recursion."""
    head: LipschitzReport
    """L_V of the evaluator's value."""
    exact: Study | None
    """Study of every plan that some small instances reach; None where they reach too many."""
    why_not_exact: str | None
    """The reason in one line where `exact` is None."""
    sampled: Study
    """Study of plans that the policy's rollouts meet; every figure is a sample maximum unless its
    name says mean."""

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "env": self.env,
            "step": self.step,
            "settings": dict(self.settings),
            "L_z": asdict(self.modulus),
            "L_V": asdict(self.head),
            "exact": None if self.exact is None else self.exact.to_json_dict(),
            "why_not_exact": self.why_not_exact,
            "sample_maximum": self.sampled.to_json_dict(),
        }


def measure_bounds(
    subject: Subject,
    instances: Int8Array,
    *,
    exact_num: int,
    exact_edits: int | None = None,
    depth: int | None = None,
    contraction: bool = True,
    seed: int = 0,
    most: int = 1_000,
) -> BoundsReport:
    """Measure every term and both sides of every bound.

    Args:
        subject: the run.
        instances: puzzles of the run's task for the sample, shape [instance, ...].
        exact_num: small instances that are solved exactly.
        exact_edits: edits left in each, at most; None for as many as `COMFORTABLE_STATES` allow.
        depth: n; None for the recipe's.
        contraction: refuse a run without a certified contraction; False leaves out the bounds that
            need one.
        seed: of the small instances, rollouts, estimates and the distillation.
        most: visited states of the sample.

    Raises:
        ValueError: for gamma = 1.
        NotContractive: with `contraction`, for a map without a certificate below 1.
    """
    _require_bounds(subject, contraction=contraction)
    recipe = subject.recipe
    depth = recipe.model.depth if depth is None else depth
    generator = torch.Generator().manual_seed(seed)
    others = subject.task.instances("train", num=len(instances)).instances
    sample, fitted = (
        visited_states(
            subject.domain,
            subject.probabilities,
            boards,
            generator=generator,
            device=subject.placement.torch_device,
            most=most,
        )
        for boards in (instances, others)
    )
    modulus, head = _lipschitz_constants(subject, sample, depth, generator)
    exact, why_not = None, None
    try:
        mdp = small_mdp(subject, num=exact_num, edits=exact_edits, seed=seed)
    except ValueError as error:
        why_not = str(error)
    else:
        exact = _ExactStudy(subject, mdp, depth).measure(generator)
    return BoundsReport(
        run=subject.name,
        env=subject.task.name,
        step=subject.step,
        settings={
            "n": depth,
            "K": recipe.evaluator.k_steps,
            "gamma": recipe.evaluator.gamma,
            "alpha": recipe.improvement.alpha,
            "R": recipe.model.radius,
        },
        modulus=modulus,
        head=head,
        exact=exact,
        why_not_exact=why_not,
        sampled=_sampled_study(subject, sample, fitted, depth=depth, generator=generator),
    )


def _require_bounds(subject: Subject, *, contraction: bool) -> None:
    gamma = subject.recipe.evaluator.gamma
    if gamma >= 1:
        raise ValueError(
            f"evaluator.gamma is {gamma:g} in {subject.name}: every bound divides by 1 - gamma"
        )
    if contraction and (bound := certificate(subject.evaluator.update)) >= 1:
        raise NotContractive(
            f"{subject.name}: the certified L_z of the evaluator is {bound:.4g}, not below 1, so"
            " that Prop. 2.3, Eq. 6, Eq. 7 and Cor. 5.5 do not apply"
        )


def _lipschitz_constants(
    subject: Subject, sample: Boards, depth: int, generator: torch.Generator
) -> tuple[LipschitzReport, LipschitzReport]:
    """L_z and L_V of the evaluator, estimated at 128 of the visited states."""
    states, phi = subject.read(sample.select(slice(128)))
    evaluator = with_dials(subject.evaluator, depth=depth, radius=subject.recipe.model.radius)
    modulus = recursion_lipschitz(evaluator, states, generator=generator)
    head = value_lipschitz(evaluator, states, phi, value=subject.value, generator=generator)
    return modulus, head


# --- The exact study


def small_mdp(subject: Subject, *, num: int, edits: int | None, seed: int) -> ExactMDP:
    """Test instances of the run's task that start near a solution, with every plan they reach.

    Where the initial plan is the instance itself, what is filled in becomes part of the instance,
    so that no edit takes it back. A domain that cannot `advance` starts where it always does.

    Args:
        subject: the run.
        num: number of instances.
        edits: edits left in each, at most; None for as many as reach `COMFORTABLE_STATES` plans
            together.
        seed: of the instances, and of what is filled in.

    Raises:
        ValueError: the instances reach more than `MAX_STATES` plans.
    """
    found = subject.task.instances("test", num=num, seed=seed)
    domain: Any = subject.domain
    initial, gamma = domain.initial(found.instances), subject.recipe.evaluator.gamma
    if not hasattr(domain, "advance"):
        return enumerate_states(domain, found.instances, plans=initial, gamma=gamma)
    distance = domain.distance(found.instances)

    def near(left: int, most: int = MAX_STATES) -> ExactMDP:
        rng = np.random.default_rng(seed)
        plans = domain.advance(found.instances, found.solutions, np.minimum(distance, left), rng)
        fixed = plans if np.array_equal(initial, found.instances) else found.instances
        return enumerate_states(domain, fixed, plans=plans, gamma=gamma, max_states=most)

    if edits is not None:
        return near(edits)
    chosen = near(1)
    for left in range(2, int(distance.max()) + 1):
        try:
            chosen = near(left, COMFORTABLE_STATES)
        except ValueError:
            break
    return chosen


class _ExactStudy:
    """Collects every term and bound of an enumerated domain, with true V^pi, A^pi and eta."""

    def __init__(self, subject: Subject, mdp: ExactMDP, depth: int) -> None:
        """The run's policy is pi, its evaluator at n = `depth` is U_n."""
        self.subject, self.mdp = subject, mdp
        self.device = subject.placement.torch_device
        self.states, self.phi = subject.read(Boards(instances=mdp.instances, plans=mdp.plans))
        self.pi = policy_probabilities(subject.policy, self.states)
        self.policy, self.truth = numpy_of(self.pi), mdp.value(numpy_of(self.pi))
        value, self.latent = _unrolled(subject, self.states, self.phi, depth)
        self.value = numpy_of(value)
        self.bounds: list[Bound] = []
        self.terms: dict[str, Any] = {}

    def measure(self, generator: torch.Generator) -> Study:
        """Everything; `generator` splits the states for the distillation and shuffles them."""
        self._values()
        candidate = self._improvement(self.value, term="centred", name="Eq. 11")
        # With the true values in place of U_n nothing but the candidate's own deviation is left.
        self._improvement(self.truth, term="true_advantages", name="Eq. 11, U_n = V^pi")
        self._gae(numpy_of(candidate))
        self._distillation(candidate, generator)
        self._performance(numpy_of(candidate))
        return Study(
            states=len(self.mdp),
            instances=len(self.mdp.first),
            terms=self.terms,
            bounds=tuple(self.bounds),
        )

    def _values(self) -> None:
        """The recursion, where it is a certified contraction, and the errors of U_* and U_n."""
        mdp, policy, k_steps = self.mdp, self.policy, self.subject.recipe.evaluator.k_steps
        if self.latent is not None:
            ideal = numpy_of(self.latent.ideal)
            self.bounds += [
                *unrolling_bounds(self.latent),
                value_error_bound(mdp, policy, ideal, k_steps=k_steps, name="U_*"),
                *decomposition_bounds(mdp, policy, self.latent, k_steps=k_steps),
            ]
            missed = mdp.residual(policy, ideal, steps=k_steps)
            self.terms |= self.latent.to_json_dict() | {"eps_res_star_max": float(missed.max())}
        self.bounds += [
            value_error_bound(mdp, policy, self.value, k_steps=k_steps, name="U_n"),
            *advantage_bounds(mdp, policy, self.value),
        ]

    def _improvement(self, value: ByState, *, term: str, name: str) -> PerEdit:
        """One improvement with centred advantages from `value`; returns the candidate."""
        mdp = self.mdp
        estimate = centred(mdp, self.policy, value)
        q, advantage = (
            torch.from_numpy(table).to(self.device) for table in (mdp.action_value(value), estimate)
        )
        success = q + self.phi[:, None]
        candidate = self.subject.candidate(self.states, self.pi, success, advantage)
        cand = numpy_of(candidate)
        terms = improvement_terms(mdp, self.policy, cand, estimate)
        best = {penalty: terms.best(penalty) for penalty in PENALTIES}
        alphas = {penalty: [alpha, *self._alphas()] for penalty, alpha in best.items()}
        self.bounds += improvement_bounds(mdp, self.policy, cand, terms, alphas=alphas, name=name)
        self.terms[term] = {
            **terms.to_json_dict(),
            "best_alpha": best,
            "promised_at_best": {
                penalty: terms.bound(alpha, penalty) for penalty, alpha in best.items()
            },
            "eta_candidate": mdp.performance(cand),
        }
        return candidate

    def _alphas(self) -> list[float]:
        return sorted({*ALPHAS, self.subject.recipe.improvement.alpha})

    def _gae(self, candidate: Array) -> None:
        """The same candidate, judged by what GAE estimates on average (Remark 5.8)."""
        mdp = self.mdp
        along = expected_gae(mdp, self.policy, self.value, decay=GAE_DECAY)
        alphas: dict[Penalty, list[float]] = {"paper": self._alphas()}
        terms = improvement_terms(mdp, self.policy, candidate, along)
        self.bounds += improvement_bounds(
            mdp, self.policy, candidate, terms, alphas=alphas, name="Remark 5.8, GAE"
        )
        self.terms["gae"] = terms.to_json_dict()

    def _distillation(self, candidate: PerEdit, generator: torch.Generator) -> None:
        """The recipe's mixture against the policy distilled from it; a fifth is held out."""
        new = mixture(self.pi, candidate, alpha=self.subject.recipe.improvement.alpha)
        held_out = torch.zeros(len(self.mdp), dtype=torch.bool)
        kept = max(1, len(self.mdp) // 5)
        held_out[torch.randperm(len(self.mdp), generator=generator)[:kept]] = True
        distilled, self.terms["distillation"] = _distilled(
            self.subject, self.states, new, held_out, generator=generator
        )
        self.bounds += distillation_bounds(self.mdp, numpy_of(new), numpy_of(distilled))

    def _performance(self, candidate: Array) -> None:
        """What the policy earns, how wrong U_n is, and the alpha that its residual proves safe."""
        mdp, policy, k_steps = self.mdp, self.policy, self.subject.recipe.evaluator.k_steps
        visits = mdp.visits(policy)
        guessed = (candidate * centred(mdp, policy, self.value)).sum(axis=1)
        residual = mdp.residual(policy, self.value, steps=k_steps)
        error = np.abs(self.value - self.truth)
        self.terms |= {
            "eta_pi": mdp.performance(policy),
            "eta_best": float(mdp.optimal_value()[mdp.first].mean()),
            "value_error_max": float(error.max()),
            "value_error_visited": float(visits @ error / visits.sum()),
            "eps_res_n_max": float(residual.max()),
            "eps_res_n_mean": float(residual.mean()),
            "operational_alpha": operational_alpha(
                gain=float(visits @ guessed),
                largest=float(np.abs(guessed).max()),
                residual=float(residual.max()),
                gamma=mdp.gamma,
                k_steps=k_steps,
            ),
        }


# --- The sampled study


def _sampled_study(
    subject: Subject,
    sample: Boards,
    fitted: Boards,
    *,
    depth: int,
    generator: torch.Generator,
) -> Study:
    """The same terms as maxima over sampled states: lower estimates of the suprema, no proof.

    The Bellman residual is that of one step, which lookahead sums exactly; its K-step form would
    need whole trees. The distillation is fitted to the visited states of other instances,
    `fitted`, and measured on the `sample`.
    """
    value, latent = _unrolled(subject, *subject.read(sample), depth)
    both = Boards.join([sample, fitted])
    states, phi = subject.read(both)
    pi = policy_probabilities(subject.policy, states)
    ahead = _look_ahead(subject, both, depth)
    estimate = centred_advantage(ahead.q, pi, ahead.mask)
    success = ahead.q + phi[:, None]
    candidate = subject.candidate(states, pi, success, estimate)
    new = mixture(pi, candidate, alpha=subject.recipe.improvement.alpha)
    held_out = torch.arange(len(both)) < len(sample)
    distilled, record = _distilled(subject, states, new, held_out, generator=generator)
    here = slice(0, len(sample))
    return Study(
        states=len(sample),
        instances=len(np.unique(sample.instances, axis=0)),
        terms={
            **({} if latent is None else latent.to_json_dict()),
            **_sampled_terms(
                residual=((pi * ahead.q).sum(dim=1)[here] - value).abs(),
                guessed=(candidate * estimate).sum(dim=1)[here],
                defect=centring_defect(estimate, pi)[here],
                gamma=subject.recipe.evaluator.gamma,
            ),
            "distillation": record,
        },
        bounds=(
            *([] if latent is None else unrolling_bounds(latent)),
            *pinsker_bounds(numpy_of(new), numpy_of(distilled)),
        ),
    )


def _sampled_terms(
    *,
    residual: Float[Tensor, " batch"],
    guessed: Float[Tensor, " batch"],
    defect: Float[Tensor, " batch"],
    gamma: float,
) -> dict[str, Any]:
    """Terms of the values and of the improvement.

    They come from |U_n - T_1 U_n| of each state, which is also the centring defect of TD errors,
    E_{a~cand}[A_hat] = `guessed`, and the defect |E_{a~pi}[A_hat]| of the centred advantages.
    """
    worst, gain, largest = float(residual.max()), float(guessed.mean()), float(guessed.abs().max())
    return {
        "eps_res_one_step_max": worst,
        "eps_res_one_step_mean": float(residual.mean()),
        "value_error_bound": worst / (1 - gamma),
        "eps_cent_exact_max": float(defect.max()),
        "eps_cent_td_max": worst,
        "gain_mean": gain,
        "eps_CPI_estimate_max": largest,
        "best_alpha": {
            # As if A_hat were right, and with what the residual of the sample proves of it.
            "trusting": ImprovementTerms(gain=gain, deviation=largest, gamma=gamma).best(),
            "operational": operational_alpha(
                gain=gain, largest=largest, residual=worst, gamma=gamma, k_steps=1
            ),
        },
    }


def _look_ahead(subject: Subject, boards: Boards, depth: int) -> Lookahead:
    """Q(s, a) under U_n, with rewards and values in the learner's own arithmetic."""
    value = subject.learner.parts.value
    turned = with_dials(value.model, depth=depth, radius=subject.recipe.model.radius)
    ahead = look_ahead(
        subject.domain,
        boards,
        replace(value, model=turned).of_successors(boards.batch(subject.domain, value.device)),
        gamma=subject.recipe.evaluator.gamma,
        dead_end="absorb",
        device=value.device,
    )
    return replace(ahead, q=ahead.q.double())


# --- What both studies need


def _unrolled(
    subject: Subject, states: StateBatch, phi: Float[Tensor, " batch"], depth: int
) -> tuple[Float[Tensor, " batch"], LatentTerms | None]:
    """U_n of the states, and what the recursion does there if it is a certified contraction."""
    try:
        latent = latent_terms(subject.evaluator, states, phi, value=subject.value, depth=depth)
    except NotContractive:
        model = subject.evaluator
        return evaluate_states(model, states, phi, value=subject.value, depth=depth), None
    return latent.value, latent


def _distilled(
    subject: Subject,
    states: StateBatch,
    new: PerEdit,
    held_out: Bool[Tensor, " batch"],
    *,
    generator: torch.Generator,
) -> tuple[PerEdit, dict[str, float]]:
    """Distil pi_new as the recipe says, from the run's policy with a fresh optimiser.

    On the states that are held out the distilled policy is only measured.

    Returns:
        Probabilities of the distilled policy at all states, and its distances from pi_new.
    """
    recipe = subject.recipe
    network = copy.deepcopy(subject.policy)
    modulus = recipe.contraction.modulus
    clamp = None if modulus is None else ContractionClamp(network.update, modulus)

    def after_step() -> None:
        if clamp is not None:
            clamp.apply()

    rows = held_out.to(new.device)
    report = distil(
        network,
        torch.optim.Adam(network.parameters(), lr=recipe.improvement.learning_rate),
        states,
        new,
        torch.ones_like(new[:, 0]),
        rows,
        config=recipe.improvement,
        generator=generator,
        after_step=after_step,
    )
    probability = policy_probabilities(network, states)
    apart = total_variation(new[rows], probability[rows])
    divergence = statewise_kl(numpy_of(new[rows]), numpy_of(probability[rows]))
    return probability, {
        "alpha": recipe.improvement.alpha,
        "held_out_states": float(held_out.sum()),
        "steps": float(report.steps),
        "kl_asked": report.kl_before,
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "tv_mean": float(apart.mean()),
        "tv_max": float(apart.max()),
    }
