"""Candidate policies, the conservative mixture and its distillation (UPI-TRM Sec. 3, phase 3).

Input: states with Q(s, a) from `advantage.look_ahead` and the current policy. Output: the mixture
pi_new = (1 - alpha) pi + alpha pi_cand as probabilities, and a network pi_phi distilled from it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trm.compute.workers import ALONE, Workers
from trm.experiments.sections import check_at_least, check_positive, check_within
from trm.experiments.states import (
    edit_logits,
    edit_logits_through,
    latents_through,
    policy_probabilities,
)
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.runs.recipe import Retired
from upi_trm.advantage import Advantages, PerEdit
from upi_trm.evaluator import TargetNetwork, minibatches

GAE_DECAY = 0.95
"""lambda of GAE."""
ENTROPY_WEIGHT = 0.01
"""Weight of the entropy bonus of the policy gradient."""
HELD_OUT = 0.1
"""Share of the improved states that is kept out of the distillation to measure its KL."""


@dataclass(frozen=True, kw_only=True)
class ImprovementConfig:
    """The `improvement` section of a recipe."""

    advantage: Literal["exact", "gae"] = "exact"
    """exact: one-step lookahead with the baseline summed over all edits; gae: along the rollout,
    for `policy_gradient` only, its centring defect measured."""
    candidate: Literal["policy_gradient", "exp_advantage", "success_posterior", "odds"] = (
        "success_posterior"
    )
    """pi_cand: clipped policy gradient (the paper), pi exp(A / temperature), pi Q^power with Q a
    probability, or the softmax of the log-odds of Q: only the odds tell an edit that is certain
    from one that is likely."""
    alpha: float = 0.3
    """alpha: weight of the candidate in the mixture."""
    temperature: float = 0.1
    """exp_advantage: A is divided by it."""
    power: float = 1.0
    """success_posterior: exponent w of Q^w."""
    state_weight: Literal["uniform", "value"] = "uniform"
    """Weight of a state in the distillation: 1, or E_pi[Q] over its mean (the EM objective: improve
    where success is likely, leave hopeless states alone)."""
    clip: float = 0.2
    """policy_gradient: epsilon of the clipped ratio."""
    candidate_steps: int = 20
    """policy_gradient: optimiser steps that form the candidate."""
    distil: bool = True
    """Distil pi_new into one network (the paper); false deploys the explicit mixture that Theorem
    5.7 is about (`chain.MixturePolicy`): the candidate becomes a network of its own, closed-form
    ones by the same fit, and the settings of the distillation are those of the fit."""
    chain_length: int = 16
    """Without distillation: networks of the mixture, at least 2. Beyond that the smallest share
    goes; `chain_dropped` in the metrics bounds what that changes."""
    lookahead_states: int = 0
    """States of an iteration that are looked ahead from and distilled, at least 2; 0 = all."""
    distil_iterations: int = 1
    """Iterations whose states are looked ahead from anew and distilled on: this one and as many of
    the replayed ones as that takes. More states make the distilled policy generalise better."""
    distil_kl: float = 1e-3
    """Distillation stops when KL(pi_new || pi_phi) on held-out states is at most this and at most a
    tenth of KL(pi_new || pi), the step that was asked for..."""
    distil_passes: float = 12.0
    """...or after so many passes."""
    batch_size: int = 128
    """States in a minibatch."""
    learning_rate: float = 2e-3
    """Adam's step size for the policy."""
    average_rate: float | None = None
    """Deploy a running average of the policy's weights, avg <- avg + rate (phi - avg) after every
    optimiser step, instead of the last ones; null deploys phi itself. Rollouts and the improvement
    use phi either way."""

    trunk: Literal["own", "shared"] = "own"
    """What pi_phi is distilled into: a network of its own, or an edit head of its own on the trunk
    of the evaluator, which it takes over before every distillation."""
    deploy: Literal["policy", "improved"] = "policy"
    """What evaluations and users get: pi, or the greedy improvement of it by the last edit values,
    which is the last step of policy iteration, not distilled (needs certified edit values)."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "alpha_rule": Retired(
            "fixed", "it was removed: alpha is fixed, and `upi-trm bounds` shows the best one"
        ),
        "alpha_penalty": Retired(
            "paper", "it was removed: `upi-trm bounds` shows the best alpha under each penalty"
        ),
        "gae_decay": Retired(GAE_DECAY, f"it was removed: lambda of GAE is {GAE_DECAY}"),
        "entropy": Retired(
            ENTROPY_WEIGHT, f"it was removed: the entropy bonus has weight {ENTROPY_WEIGHT}"
        ),
        "held_out": Retired(
            HELD_OUT, f"it was removed: the KL is measured on {HELD_OUT:.0%} of the states"
        ),
    }

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        check_within(self, "improvement", "(0, 1]", "alpha", "average_rate")
        check_positive(
            self,
            "improvement",
            *("temperature", "power", "clip", "distil_kl", "distil_passes", "learning_rate"),
        )
        check_at_least(self, "improvement", 1, "candidate_steps", "batch_size", "distil_iterations")
        check_at_least(self, "improvement", 0, "lookahead_states")
        check_at_least(self, "improvement", 2, "chain_length")
        if not self.distil and self.average_rate is not None:
            raise ValueError(
                "improvement.average_rate is of a distilled network and must be null where"
                f" improvement.distil is false, got {self.average_rate}"
            )
        if self.lookahead_states == 1:
            raise ValueError("improvement.lookahead_states must be 0 or at least 2, got 1")
        if self.advantage == "gae" and self.distil_iterations > 1:
            raise ValueError(
                "improvement.advantage 'gae' follows this iteration's edits and needs"
                f" distil_iterations 1, got {self.distil_iterations}"
            )
        if self.advantage == "gae" and self.candidate != "policy_gradient":
            raise ValueError(
                "improvement.advantage 'gae' knows only the edits made and needs candidate "
                f"'policy_gradient', got {self.candidate!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationReport:
    """What a distillation reached."""

    kl: float
    """KL(pi_new || pi_phi), unweighted mean over held-out states."""
    kl_before: float
    """KL(pi_new || pi) on the same states: how far the policy was asked to move."""
    steps: int
    """Optimiser steps taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """pi_cand at the states that were looked ahead from."""

    probability: PerEdit
    network: TinyRecursiveModel | None = None
    """The network that has these probabilities; None for a closed form."""


CandidateRule = Callable[[StateBatch, PerEdit, Advantages], Candidate]
"""(states, pi(a | s), advantages) -> pi_cand at the states (phase 3)."""


def make_candidate(
    network: TinyRecursiveModel,
    config: ImprovementConfig,
    generator: torch.Generator,
    workers: Workers,
) -> CandidateRule:
    """The candidate that a recipe asks for.

    Args:
        network: pi_phi, which a policy gradient starts from.
        config: the recipe's section.
        generator: shuffles the minibatches of a policy gradient.
        workers: processes that train together.
    """

    def formed(states: StateBatch, policy: PerEdit, found: Advantages) -> Candidate:
        if config.candidate == "exp_advantage":
            closed = exp_advantage(policy, found.advantage, temperature=config.temperature)
            return Candidate(probability=closed)
        if config.candidate == "success_posterior":
            closed = success_posterior(policy, found.success, power=config.power)
            return Candidate(probability=closed)
        if config.candidate == "odds":
            return Candidate(probability=odds_candidate(found.success, states.mask > 0))
        trained = policy_gradient_candidate(
            network, states, policy, found.weighted, config, generator, workers=workers
        )
        return Candidate(probability=policy_probabilities(trained, states), network=trained)

    return formed


def exp_advantage(policy: PerEdit, advantage: PerEdit, *, temperature: float) -> PerEdit:
    """pi_cand proportional to pi exp(A / temperature)."""
    return torch.softmax(policy.log() + advantage / temperature, dim=1)


def success_posterior(
    policy: PerEdit, success: PerEdit, *, power: float, floor: float = 1e-6
) -> PerEdit:
    """pi_cand proportional to pi Q^power, Q a probability of success (DIS Eq. 7, product policy).

    With power 1 it is the posterior over edits given that the episode succeeds; scale-free, so it
    improves where all advantages are tiny.

    Args:
        policy: pi, zero where illegal.
        success: Q in [0, 1] up to error of the evaluator; clamped to [floor, 1].
        power: w.
        floor: keeps the support of pi where the evaluator says 0.
    """
    return torch.softmax(policy.log() + power * success.clamp(floor, 1.0).log(), dim=1)


def odds_candidate(
    success: PerEdit, legal: Bool[Tensor, "batch action"], *, floor: float = 1e-6
) -> PerEdit:
    """pi_cand proportional to Q / (1 - Q) over the legal edits.

    Args:
        success: Q in [0, 1] up to error of the evaluator; clamped to [floor, 1 - floor].
        legal: edits that the mask allows.
        floor: keeps the odds finite.
    """
    odds = success.clamp(floor, 1.0 - floor).logit()
    return torch.softmax(odds.masked_fill(~legal, -torch.inf), dim=1)


def mixture(policy: PerEdit, candidate: PerEdit, *, alpha: float) -> PerEdit:
    """pi_new = (1 - alpha) pi + alpha pi_cand, statewise (UPI-TRM Sec. 3, Theorem 5.7)."""
    return (1 - alpha) * policy + alpha * candidate


def policy_gradient_candidate(
    policy: TinyRecursiveModel,
    states: StateBatch,
    old: PerEdit,
    weighted_advantage: PerEdit,
    config: ImprovementConfig,
    generator: torch.Generator,
    workers: Workers = ALONE,
) -> TinyRecursiveModel:
    """A copy of the policy after clipped policy-gradient steps (UPI-TRM Sec. 3, App. B).

    Args:
        policy: pi, left untouched.
        states: where the advantages are known.
        old: probabilities of pi at these states.
        weighted_advantage: the weight of each edit's ratio: pi(a | s) A(s, a) for exact advantages,
            A of the edit made (zero elsewhere) for GAE.
        config: clip, steps, batch and step size.
        generator: shuffles the minibatches.
        workers: processes that train together, each on states of its own.
    """
    candidate = copy.deepcopy(policy)
    optimiser = torch.optim.Adam(candidate.parameters(), lr=config.learning_rate)
    passes = config.candidate_steps * config.batch_size / len(states)
    spread = weighted_advantage.sum(dim=1).std() + weighted_advantage.abs().sum(dim=1).mean()
    if workers.size > 1:
        spread = spread.new_tensor(workers.mean(float(spread)))
    scaled = weighted_advantage / (spread + 1e-8)
    for index in minibatches(
        len(states), batch_size=config.batch_size, passes=passes, generator=generator
    ):
        index = index.to(old.device)
        log_p = torch.log_softmax(edit_logits(candidate, states.select(index)), dim=1)
        legal = states.mask[index] > 0
        ratio = torch.where(legal, log_p.exp() / old[index].clamp_min(1e-12), 1.0)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = torch.minimum(ratio * scaled[index], clipped * scaled[index]).sum(dim=1)
        entropy = -(log_p.exp() * torch.where(legal, log_p, 0.0)).sum(dim=1)
        loss = -(gain + ENTROPY_WEIGHT * entropy).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        workers.average_gradients(candidate)
        optimiser.step()
    return candidate


def kl_divergence(
    target: PerEdit, log_policy: PerEdit, mask: Bool[Tensor, "batch action"]
) -> Float[Tensor, " batch"]:
    """KL(target || pi_phi) of each state, in nats, over the legal edits."""
    safe = torch.where(mask, log_policy, torch.zeros_like(log_policy))
    entropy: Tensor = torch.special.xlogy(target, target).sum(dim=1)
    return entropy - (target * safe).sum(dim=1)


@torch.no_grad()
def mean_kl(model: TinyRecursiveModel, states: StateBatch, target: PerEdit) -> float:
    """Unweighted mean of KL(target || pi_phi) over states."""
    log_policy = torch.log_softmax(edit_logits(model, states), dim=1)
    return float(kl_divergence(target, log_policy, states.mask > 0).mean())


def distil(
    model: TinyRecursiveModel,
    optimiser: torch.optim.Optimizer,
    states: StateBatch,
    target: PerEdit,
    weight: Float[Tensor, " batch"],
    held_out: Bool[Tensor, " batch"],
    *,
    config: ImprovementConfig,
    generator: torch.Generator,
    after_step: Callable[[], None],
    unrolls: Sequence[int] = (),
    trunk: TinyRecursiveModel | None = None,
    workers: Workers = ALONE,
) -> DistillationReport:
    """pi_phi <- argmin sum_s weight(s) KL(pi_new || pi_phi), until the held-out KL is small.

    Args:
        model: pi_phi, modified.
        optimiser: of `model`, modified.
        states: where pi_new is known.
        target: pi_new at these states.
        weight: of each state, mean 1.
        held_out: states used only to measure.
        config: tolerance, passes, batch size.
        generator: shuffles the minibatches.
        after_step: called after every optimiser step (contraction clamp, averages).
        unrolls: numbers of unrolls below the depth after which pi_phi is fitted too.
        trunk: an evaluator whose trunk pi_phi takes over, so that only its edit head is fitted.
        workers: processes that train together, each on states of its own; KLs are means over all.
    """
    train = (~held_out).nonzero().flatten()
    check = held_out.nonzero().flatten()
    check_states, check_target = states.select(check), target[check]
    kl_before = kl = workers.mean(mean_kl(model, check_states, check_target))
    tolerance = min(config.distil_kl, 0.1 * kl_before)
    passes = _whole_passes
    if trunk is not None:
        model.take_trunk(trunk)
        kl = workers.mean(mean_kl(model, check_states, check_target))
        passes = _head_passes

    def batches() -> Iterator[Tensor]:
        one = minibatches(len(train), batch_size=config.batch_size, passes=1.0, generator=generator)
        return (train[index.to(train.device)] for index in one)

    steps, done = 0, 0.0
    next_pass = passes(model, states, unrolls, batches)
    while done < config.distil_passes and kl > tolerance:
        # Drawn only now: a pass that is not made must not move the generator on.
        for chosen, all_logits in next(next_pass):
            legal = states.mask[chosen] > 0
            divergence = [
                kl_divergence(target[chosen], torch.log_softmax(logits, dim=1), legal)
                for logits in all_logits
            ]
            loss = (weight[chosen] * torch.stack(divergence).mean(dim=0)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            workers.average_gradients(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            after_step()
            steps += 1
        done += 1.0
        kl = workers.mean(mean_kl(model, check_states, check_target))
    return DistillationReport(kl=kl, kl_before=kl_before, steps=steps)


_Pass = Iterator[tuple[Tensor, list[Tensor]]]
"""Minibatches: the states, and the logits that are fitted there, one tensor for each unroll."""


def _whole_passes(
    model: TinyRecursiveModel,
    states: StateBatch,
    unrolls: Sequence[int],
    batches: Callable[[], Iterator[Tensor]],
) -> Iterator[_Pass]:
    """Passes in which every weight is fitted, shuffled anew."""
    while True:
        yield (
            (chosen, edit_logits_through(model, states.select(chosen), unrolls))
            for chosen in batches()
        )


def _head_passes(
    model: TinyRecursiveModel,
    states: StateBatch,
    unrolls: Sequence[int],
    batches: Callable[[], Iterator[Tensor]],
) -> Iterator[_Pass]:
    """Passes in which only the edit head is fitted, on latents that are computed once."""
    fixed = []
    with torch.no_grad():
        for chosen in batches():
            part = states.select(chosen)
            fixed.append((chosen, part, *latents_through(model, part, unrolls)))
    while True:
        yield (
            (chosen, [model.edit_logits(z, encoding, part) for z in latents])
            for chosen, part, encoding, latents in fixed
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStep:
    """What moves the policy in an iteration: states, pi and pi_cand there, and how to fit."""

    states: StateBatch
    policy: PerEdit
    """pi(a | s)."""
    formed: Candidate
    """pi_cand as it was formed."""
    alpha: float
    num_held_out: int
    """The first states, on which KLs are measured."""
    fit: Callable[[PerEdit], DistillationReport]
    """Distils a target at the states into pi_phi."""


class DistilledPolicy:
    """pi is one network, into which every mixture is distilled (the paper).

    With a rate it is deployed as a running average of its weights, while rollouts and the
    improvement use pi_phi itself. The average of weights within a certified bound is within it too,
    since the bound is convex.
    """

    def __init__(self, network: TinyRecursiveModel, average_rate: float | None = None) -> None:
        """`network` is pi_phi; avg <- avg + rate (phi - avg) after every optimiser step."""
        self.network = network
        self.average = None if average_rate is None else TargetNetwork(network, average_rate)

    def probabilities(self, states: StateBatch) -> PerEdit:
        """pi(a | s), exactly 0 at illegal edits."""
        return policy_probabilities(self.network, states)

    def move(self, step: PolicyStep) -> tuple[PerEdit, dict[str, float]]:
        """Distil the mixture of Theorem 5.7; returns the candidate, as it was formed, and figures.

        Only the mixture is fitted.
        """
        candidate = step.formed.probability
        report = step.fit(mixture(step.policy, candidate, alpha=step.alpha))
        return candidate, {
            "kl": report.kl,
            "kl_asked": report.kl_before,
            "distil_steps": float(report.steps),
        }

    def after_fit_step(self) -> None:
        """Move the average."""
        if self.average is not None:
            self.average.update(self.network)

    @property
    def deployed(self) -> TinyRecursiveModel:
        """pi_phi, or its average."""
        return self.network if self.average is None else self.average.model

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network, and its average."""
        average = {} if self.average is None else {"average": self.average.model}
        return {"policy": self.network, **average}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up the weights of all parts."""
        for name, network in self.parts.items():
            network.load_state_dict(dict(weights[name]))
