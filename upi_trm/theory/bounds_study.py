"""`upi-trm bounds`: every term and bound of a run, exact on small instances and on a sample.

`exact_study` enumerates what some small instances of the run's task reach, solves that exactly
(`exact.py`) and puts both sides of every inequality of `bounds.py` beside each other;
`sampled_study` measures the same terms on plans that the policy meets, where a maximum is only the
maximum of a sample.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Int8Array
from trm.experiments.states import Boards, policy_probabilities
from trm.nn.model import StateBatch
from upi_trm.advantage import Lookahead, centred_advantage, centring_defect, look_ahead
from upi_trm.contraction import Certificate, ContractionClamp, NotContractive
from upi_trm.evaluator import evaluate_states
from upi_trm.improvement import GAE_DECAY, distil, mixture
from upi_trm.theory.bounds import (
    Bound,
    LatentTerms,
    Penalty,
    advantage_bounds,
    best_alpha,
    centred,
    decomposition_bounds,
    distillation_bounds,
    expected_gae,
    improvement_bounds,
    improvement_terms,
    latent_terms,
    operational_alpha,
    pinsker_bounds,
    statewise_kl,
    unrolling_bounds,
    value_error_bound,
)
from upi_trm.theory.exact import ExactMDP, enumerate_states
from upi_trm.theory.lipschitz import (
    LipschitzReport,
    certified_modulus,
    certified_shaped_lipschitz,
    recursion_lipschitz,
    value_lipschitz,
)
from upi_trm.theory.stability import total_variation
from upi_trm.theory.subjects import Subject, visited_states, with_dials

ALPHAS = (0.01, 0.1, 1.0)
"""Mixing weights at which Eq. 11 is put to the test, beside the recipe's and the best one."""

COMFORTABLE_STATES = 2_000
"""Plans of an exact study when nobody says how large it is to be: seconds on one core."""

_PENALTIES: tuple[Penalty, ...] = ("paper", "cpi", "span")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Measured terms and bounds, on every reachable state or on a sample."""

    states: int
    instances: int
    terms: Mapping[str, Any]
    bounds: tuple[Bound, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "states": self.states,
            "instances": self.instances,
            "terms": dict(self.terms),
            "bounds": [bound.to_json_dict() for bound in self.bounds],
        }


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
    """On every plan that some small instances reach; None where they reach too many."""
    why_not_exact: str | None
    """Why not, in one line."""
    sampled: Study
    """On plans that the policy's rollouts meet: every figure a sample maximum unless it says
    mean."""

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "env": self.env,
            "step": self.step,
            "settings": dict(self.settings),
            "L_z": self.modulus.to_json_dict(),
            "L_V": self.head.to_json_dict(),
            "exact": None if self.exact is None else self.exact.to_json_dict(),
            "why_not_exact": self.why_not_exact,
            "sample_maximum": self.sampled.to_json_dict(),
        }


def measure_bounds(
    subject: Subject,
    instances: Int8Array,
    *,
    small: Boards,
    depth: int | None = None,
    contraction: bool = True,
    seed: int = 0,
    most: int = 1_000,
    max_states: int = 20_000,
) -> BoundsReport:
    """Measure every term and both sides of every bound.

    Args:
        subject: the run.
        instances: puzzles of the run's task for the sample.
        small: starts that lead to few enough plans to be solved exactly.
        depth: n; None for the recipe's.
        contraction: refuse a run without a certified contraction; False leaves out the bounds that
            need one.
        seed: of rollouts, estimates and the distillation.
        most: visited states of the sample.
        max_states: plans that the small instances may reach.

    Raises:
        ValueError: for gamma = 1.
        NotContractive: with `contraction`, for a map without a certificate below 1.
    """
    recipe = subject.recipe
    gamma = recipe.evaluator.gamma
    if gamma >= 1:
        raise ValueError(
            f"evaluator.gamma is {gamma:g} in {subject.name}: every bound divides by 1 - gamma"
        )
    if contraction:
        _require_contraction(subject)
    depth = recipe.model.depth if depth is None else depth
    generator = torch.Generator().manual_seed(seed)
    device = subject.placement.torch_device
    sample, fitted = (
        visited_states(
            subject.domain,
            subject.learner.probabilities,
            boards,
            generator=generator,
            device=device,
            most=most,
        )
        for boards in (instances, subject.task.instances("train", num=len(instances)).instances)
    )
    few = Boards(instances=sample.instances[:128], plans=sample.plans[:128])
    states, phi = few.batch(subject.domain, device), few.phi(subject.domain, device)
    evaluator = with_dials(subject.learner.evaluator, depth=depth, radius=recipe.model.radius)
    modulus = recursion_lipschitz(evaluator, states, generator=generator)
    head = value_lipschitz(
        evaluator, states, phi, value=recipe.evaluator.value, generator=generator
    )
    exact, why_not = None, None
    try:
        mdp = enumerate_states(
            subject.domain,
            small.instances,
            plans=small.plans,
            gamma=gamma,
            max_states=max_states,
        )
    except ValueError as error:
        why_not = str(error)
    else:
        exact = exact_study(subject, mdp, depth=depth, generator=generator)
    return BoundsReport(
        run=subject.name,
        env=subject.task.name,
        step=subject.step,
        settings={
            "n": depth,
            "K": recipe.evaluator.k_steps,
            "gamma": gamma,
            "alpha": recipe.improvement.alpha,
            "R": recipe.model.radius,
        },
        modulus=modulus,
        head=head,
        exact=exact,
        why_not_exact=why_not,
        sampled=sampled_study(subject, sample, fitted, depth=depth, generator=generator),
    )


def small_starts(
    subject: Subject,
    *,
    num: int,
    edits: int | None = None,
    seed: int = 0,
    max_states: int = COMFORTABLE_STATES,
) -> Boards:
    """Test instances of the run's task with starts near a solution, for an exact study.

    Where the initial plan is the instance itself, what is filled in becomes part of the instance,
    so that no edit takes it back.

    Args:
        subject: the run; a domain that cannot `advance` starts where it always does.
        num: how many.
        edits: edits left in each, at most; None for as many as reach `max_states` plans together.
        seed: of the instances, and of what is filled in.
        max_states: where `edits` is None.
    """
    found = subject.task.instances("test", num=num, seed=seed)
    domain: Any = subject.domain
    initial = domain.initial(found.instances)
    if not hasattr(domain, "advance"):
        return Boards(instances=found.instances, plans=initial)
    distance = domain.distance(found.instances)
    plans_are_instances = np.array_equal(initial, found.instances)

    def nearer(most: int) -> Boards:
        left, rng = np.minimum(distance, most), np.random.default_rng(seed)
        plans = domain.advance(found.instances, found.solutions, left, rng)
        return Boards(instances=plans if plans_are_instances else found.instances, plans=plans)

    if edits is not None:
        return nearer(edits)
    chosen = nearer(1)
    for most in range(2, int(distance.max()) + 1):
        starts = nearer(most)
        try:
            enumerate_states(
                domain, starts.instances, plans=starts.plans, gamma=0.5, max_states=max_states
            )
        except ValueError:
            break
        chosen = starts
    return chosen


def exact_study(
    subject: Subject, mdp: ExactMDP, *, depth: int, generator: torch.Generator
) -> Study:
    """Every bound on an enumerated domain, with true V^pi, A^pi and eta.

    Args:
        subject: the run; pi is its policy, U_n its evaluator.
        mdp: the domain, solved exactly.
        depth: n of the evaluator.
        generator: splits the states for the distillation and shuffles its minibatches.
    """
    learner, recipe, device = subject.learner, subject.recipe, subject.placement.torch_device
    boards = Boards(instances=mdp.instances, plans=mdp.plans)
    states, phi = boards.batch(subject.domain, device), boards.phi(subject.domain, device)
    pi = policy_probabilities(learner.policy, states)
    policy = _numpy(pi)
    k_steps = recipe.evaluator.k_steps
    modulus = certified_modulus(learner.evaluator)
    head = _certified_head(subject, states)
    bounds: list[Bound] = []
    terms: dict[str, Any] = {}
    if modulus is not None and modulus < 1:
        latent = latent_terms(
            learner.evaluator,
            states,
            phi,
            value=recipe.evaluator.value,
            depth=depth,
            modulus=modulus,
        )
        unrolled = _numpy(latent.value)
        bounds += unrolling_bounds(latent, modulus=modulus, depth=depth, head=head)
        bounds.append(
            value_error_bound(mdp, policy, _numpy(latent.ideal), k_steps=k_steps, name="U_*")
        )
        if head is not None:
            bounds += decomposition_bounds(
                mdp,
                policy,
                latent,
                modulus=modulus,
                depth=depth,
                head=head,
                k_steps=k_steps,
            )
        terms |= _latent_record(latent, modulus=modulus, head=head)
        ideal = _numpy(latent.ideal)
        missed = np.abs(ideal - mdp.backup(policy, ideal, steps=k_steps))
        terms["eps_res_star_max"] = float(missed.max())
    else:
        unrolled = _numpy(
            evaluate_states(
                learner.evaluator, states, phi, value=recipe.evaluator.value, depth=depth
            )
        )
    bounds.append(value_error_bound(mdp, policy, unrolled, k_steps=k_steps, name="U_n"))
    bounds += advantage_bounds(mdp, policy, unrolled)

    alphas = sorted({*ALPHAS, recipe.improvement.alpha})
    truth = mdp.value(policy)
    candidate, found, record = _step(subject, mdp, states, pi, unrolled, phi, name="Eq. 11")
    bounds += found
    terms["centred"] = record
    # With the true values in place of U_n nothing but the candidate's own deviation is left.
    _, found, record = _step(subject, mdp, states, pi, truth, phi, name="Eq. 11, U_n = V^pi")
    bounds += found
    terms["true_advantages"] = record
    along = expected_gae(mdp, policy, unrolled, decay=GAE_DECAY)
    cand = _numpy(candidate)
    bounds += improvement_bounds(
        mdp, policy, cand, along, alphas={"paper": alphas}, name="Remark 5.8, GAE"
    )
    terms["gae"] = improvement_terms(mdp, policy, cand, along).to_json_dict()

    new = mixture(pi, candidate, alpha=recipe.improvement.alpha)
    held_out = torch.zeros(len(mdp), dtype=torch.bool)
    kept = max(1, len(mdp) // 5)
    held_out[torch.randperm(len(mdp), generator=generator)[:kept]] = True
    distilled, terms["distillation"] = _distilled(
        subject, states, new, held_out, generator=generator
    )
    bounds += distillation_bounds(mdp, _numpy(new), _numpy(distilled))

    visits = mdp.visits(policy)
    guessed = (cand * centred(mdp, policy, unrolled)).sum(axis=1)
    residual = np.abs(unrolled - mdp.backup(policy, unrolled, steps=k_steps))
    error = np.abs(unrolled - truth)
    terms |= {
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
    return Study(states=len(mdp), instances=len(mdp.first), terms=terms, bounds=tuple(bounds))


def _step(
    subject: Subject,
    mdp: ExactMDP,
    states: StateBatch,
    pi: Float[Tensor, "batch action"],
    value: Float[np.ndarray, " state"],
    phi: Float[Tensor, " batch"],
    *,
    name: str,
) -> tuple[Float[Tensor, "batch action"], list[Bound], dict[str, Any]]:
    """One improvement with centred advantages from `value`: the candidate, bounds and terms."""
    device, recipe, policy = pi.device, subject.recipe, _numpy(pi)
    estimate = centred(mdp, policy, value)
    ahead = Lookahead(
        q=_tensor(mdp.action_value(value), device),
        mask=_tensor(mdp.mask, device),
        undecided=_tensor(mdp.mask, device),
        num_evaluated=0,
        num_successors=0,
    )
    candidate = subject.candidate(states, pi, ahead.q + phi[:, None], _tensor(estimate, device))
    terms = improvement_terms(mdp, policy, _numpy(candidate), estimate)
    best = {penalty: terms.best(gamma=mdp.gamma, penalty=penalty) for penalty in _PENALTIES}
    common = sorted({*ALPHAS, recipe.improvement.alpha})
    bounds = improvement_bounds(
        mdp,
        policy,
        _numpy(candidate),
        estimate,
        alphas={penalty: [alpha, *common] for penalty, alpha in best.items()},
        name=name,
    )
    record = {
        **terms.to_json_dict(),
        "best_alpha": best,
        "promised_at_best": {
            penalty: terms.bound(alpha, gamma=mdp.gamma, penalty=penalty)
            for penalty, alpha in best.items()
        },
        "eta_candidate": mdp.performance(_numpy(candidate)),
    }
    return candidate, bounds, record


def sampled_study(
    subject: Subject,
    sample: Boards,
    fitted: Boards,
    *,
    depth: int,
    generator: torch.Generator,
) -> Study:
    """The same terms as maxima over sampled states: lower estimates of the suprema, no proof.

    The Bellman residual is that of one step, which lookahead sums exactly; its K-step form would
    need whole trees.

    Args:
        subject: the run.
        sample: visited states to measure on; the held-out partition of the distillation.
        fitted: visited states of other instances, which the distillation is fitted to.
        depth: n of the evaluator.
        generator: shuffles the minibatches of the distillation.
    """
    learner, recipe, device = subject.learner, subject.recipe, subject.placement.torch_device
    states, phi = sample.batch(subject.domain, device), sample.phi(subject.domain, device)
    modulus = certified_modulus(learner.evaluator)
    bounds: list[Bound] = []
    terms: dict[str, Any] = {}
    value_kind = recipe.evaluator.value
    if modulus is not None and modulus < 1:
        latent = latent_terms(
            learner.evaluator, states, phi, value=value_kind, depth=depth, modulus=modulus
        )
        head = _certified_head(subject, states)
        bounds += unrolling_bounds(latent, modulus=modulus, depth=depth, head=head)
        terms = _latent_record(latent, modulus=modulus, head=head)
        value = latent.value
    else:
        value = evaluate_states(learner.evaluator, states, phi, value=value_kind, depth=depth)
    both = Boards(
        instances=np.concatenate([sample.instances, fitted.instances]),
        plans=np.concatenate([sample.plans, fitted.plans]),
    )
    all_states = both.batch(subject.domain, device)
    pi = policy_probabilities(learner.policy, all_states)
    ahead = _at_depth(subject, both, depth)
    estimate = centred_advantage(ahead.q, pi, ahead.mask)
    phi = both.phi(subject.domain, device)
    candidate = subject.candidate(all_states, pi, ahead.q + phi[:, None], estimate)
    new = mixture(pi, candidate, alpha=recipe.improvement.alpha)
    held_out = torch.arange(len(both)) < len(sample)
    distilled, record = _distilled(subject, all_states, new, held_out, generator=generator)
    bounds += pinsker_bounds(_numpy(new), _numpy(distilled))
    here = slice(0, len(sample))
    residual = ((pi * ahead.q).sum(dim=1)[here] - value).abs()
    guessed = (candidate * estimate).sum(dim=1)[here]
    gamma, gain, largest = recipe.evaluator.gamma, float(guessed.mean()), float(guessed.abs().max())
    terms |= {
        "eps_res_one_step_max": float(residual.max()),
        "eps_res_one_step_mean": float(residual.mean()),
        "value_error_bound": float(residual.max()) / (1 - gamma),
        "eps_cent_exact_max": float(centring_defect(estimate, pi)[here].max()),
        "eps_cent_td_max": float(residual.max()),
        "gain_mean": gain,
        "eps_CPI_estimate_max": largest,
        "best_alpha": {
            # As if A_hat were right, and with what the residual of the sample proves of it.
            "trusting": best_alpha(gain=gain, deviation=largest, gamma=gamma),
            "operational": operational_alpha(
                gain=gain,
                largest=largest,
                residual=float(residual.max()),
                gamma=gamma,
                k_steps=1,
            ),
        },
        "distillation": record,
    }
    return Study(
        states=len(sample),
        instances=len(np.unique(sample.instances, axis=0)),
        terms=terms,
        bounds=tuple(bounds),
    )


def _require_contraction(subject: Subject) -> None:
    bound = Certificate(subject.learner.evaluator.update).bound()
    if bound >= 1:
        raise NotContractive(
            f"{subject.name}: the certified L_z of the evaluator is {bound:.4g}, not below 1, so"
            " that Prop. 2.3, Eq. 6, Eq. 7 and Cor. 5.5 do not apply"
        )


def _certified_head(subject: Subject, states: StateBatch) -> float | None:
    """L_V of U_n for these states."""
    evaluator = subject.learner.evaluator
    with torch.no_grad():
        encoding = evaluator.encode(states)
    return certified_shaped_lipschitz(evaluator, encoding, value=subject.recipe.evaluator.value)


def _at_depth(subject: Subject, boards: Boards, depth: int) -> Lookahead:
    """Q(s, a) under U_n, with rewards and values in the learner's own arithmetic."""
    value = subject.learner.parts.value
    turned = with_dials(value.model, depth=depth, radius=value.model.config.radius)
    view = boards.batch(subject.domain, value.device)
    ahead = look_ahead(
        subject.domain,
        boards.instances,
        boards.plans,
        replace(value, model=turned).of_successors(view),
        gamma=subject.recipe.evaluator.gamma,
        dead_end="absorb",
        device=value.device,
    )
    return replace(ahead, q=ahead.q.double())


def _distilled(
    subject: Subject,
    states: StateBatch,
    new: Float[Tensor, "batch action"],
    held_out: Bool[Tensor, " batch"],
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch action"], dict[str, float]]:
    """Probabilities of a policy distilled from pi_new as the recipe says, and how near it came.

    Starts from the run's policy with a fresh optimiser.
    """
    recipe, device = subject.recipe, subject.placement.torch_device
    network = copy.deepcopy(subject.learner.policy)
    modulus = recipe.contraction.modulus
    clamp = None if modulus is None else ContractionClamp(network.update, modulus)

    def after_step() -> None:
        if clamp is not None:
            clamp.apply()

    report = distil(
        network,
        torch.optim.Adam(network.parameters(), lr=recipe.improvement.learning_rate),
        states,
        new,
        torch.ones(len(states), dtype=new.dtype, device=device),
        held_out.to(device),
        config=recipe.improvement,
        generator=generator,
        after_step=after_step,
    )
    probability = policy_probabilities(network, states)
    rows = held_out.to(device)
    apart = total_variation(new[rows], probability[rows])
    divergence = statewise_kl(_numpy(new[rows]), _numpy(probability[rows]))
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


def _latent_record(latent: LatentTerms, *, modulus: float, head: float | None) -> dict[str, Any]:
    return {
        "L_z_certified": modulus,
        "L_V_certified": head,
        "C_z": float(latent.first_step.max()),
        "fixed_point_gap": float(latent.gap.max()),
        "truncation": float((latent.value - latent.ideal).abs().max()),
        "fixed_point_missing": latent.missing,
    }


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
