"""One iteration of unrolled policy iteration (UPI-TRM Sec. 3), in the order that the code has.

Roll pi out; look ahead from the states it met and centre the advantages (phase 2); form the
candidate, mix it in conservatively and distil the mixture (phase 3); regress U_n on K-step targets
of the replayed rollouts (phase 1). Phase 1 comes last, so that a fresh rollout is replayed with its
advantages, which serve the targets as control variates. `learner.UpiLearner` makes the `Parts` of a
recipe and keeps their state.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trm.compute.workers import Workers
from upi_trm.advantage import (
    AdvantageRule,
    Advantages,
    Estimate,
    PerEdit,
    Sample,
    centred_advantage,
    centring_defect,
)
from upi_trm.certificates import Certificates
from upi_trm.chain import ActingPolicy
from upi_trm.edit_values import EditValues, Reading
from upi_trm.evaluator import (
    EvaluatorConfig,
    TargetNetwork,
    ValueFunction,
    minibatches,
    targets_of_rollouts,
    value_loss,
)
from upi_trm.improvement import (
    HELD_OUT,
    Candidate,
    CandidateRule,
    ImprovementConfig,
    PolicyStep,
    distil,
)
from upi_trm.rollout import SEARCH_COUNTS, Actor, Rollout, Transitions, Visits

COUNTS = ("episodes", "successors", "successors_evaluated", "certified", *SEARCH_COUNTS)
"""Metrics of an iteration that are sums over the processes; the others are means."""


StateRule = Callable[[Transitions, Sequence[Transitions]], Sample]
"""(newest rollout, older ones) -> the states to improve at."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an iteration reads and changes; how each part works is its own matter."""

    pi: ActingPolicy
    """The policy that acts, around the network pi_phi."""
    actor: Actor
    """pi in rollouts, with what it carries from edit to edit."""
    value: ValueFunction
    """U_n of the online evaluator psi."""
    target: TargetNetwork
    """psi_bar, whose V_bar the targets bootstrap with."""
    replay: deque[Transitions]
    """The newest rollouts, oldest first."""
    states: StateRule
    advantages: AdvantageRule
    candidate: CandidateRule
    edit_values: EditValues
    evaluator: EvaluatorConfig
    improvement: ImprovementConfig
    value_optimiser: torch.optim.Optimizer
    policy_optimiser: torch.optim.Optimizer
    clamp: Callable[[], None]
    """Keeps both networks within their certified bounds; called after every optimiser step."""
    certify: Callable[[], dict[str, float]]
    """Proven bounds of both networks, as metrics."""
    noise: torch.Generator
    """Draws samples and minibatches, on the CPU."""
    actions: torch.Generator
    """Draws edits, on the CPU."""
    workers: Workers


def iteration(parts: Parts, roller: Rollout, *, steps: int) -> dict[str, float]:
    """Roll out, look ahead, improve and regress once, with `steps` edits of every plan.

    Args:
        parts: networks, optimisers and replay change.
        roller: the plans in play.
        steps: edits of each plan.

    Returns:
        The metrics of the iteration, combined over the processes (docs/metrics.md).
    """
    clock = _Clock()
    device = parts.value.device
    fresh = roller.collect(parts.actor, steps=steps, generator=parts.actions, device=device)
    clock.mark("rollout")
    metrics = parts.actor.metrics(fresh) | roller.metrics
    metrics |= parts.edit_values.follow(fresh)
    if parts.edit_values.ready:
        at = parts.states(fresh, list(parts.replay))
        policy = parts.pi.probabilities(at.policy_view)
        estimate = parts.advantages(fresh, at, policy)  # phase 2: Q(s, a) and A_hat(s, a), Eq. 9
        fresh = estimate.fresh
        clock.mark("lookahead")
        formed = parts.candidate(at.policy_view, policy, estimate.found)
        metrics |= estimate.metrics
        metrics |= improve(parts, at, policy, formed, estimate)  # phase 3: Theorem 5.7
        clock.mark("distil")
    parts.replay.append(fresh)
    metrics |= regress(parts)  # phase 1: Eq. 2
    clock.mark("value")
    finished = fresh.terminated | fresh.truncated
    metrics["train_success"] = float(fresh.solved.sum() / max(1, finished.sum()))
    metrics["episodes"] = float(finished.sum())
    return parts.workers.combine(metrics | clock.seconds, sums=COUNTS)


@dataclass(frozen=True, kw_only=True)
class VisitedStates:
    """Improves at states of the fresh rollout and of older ones, in random order."""

    config: ImprovementConfig
    value: ValueFunction
    noise: torch.Generator

    def __call__(self, fresh: Transitions, replay: Sequence[Transitions]) -> Sample:
        """As many as the recipe says, or all; `replay` is oldest first and without `fresh`."""
        older = self.config.distil_iterations - 1
        visits = Visits.of([fresh, *(replay[-older:] if older else [])])
        count = min(len(visits), self.config.lookahead_states or len(visits))
        order = torch.randperm(len(visits), generator=self.noise)[:count].numpy()
        return _sample(visits.select(order), order, self.value)


@dataclass(frozen=True, kw_only=True)
class CertifiedStates:
    """Improves at states on the way to certificates, where the edit values are learned."""

    certificates: Certificates
    count: int
    value: ValueFunction

    def __call__(self, fresh: Transitions, replay: Sequence[Transitions]) -> Sample:
        """`count` states."""
        boards, domain = self.certificates.draw(self.count).boards, self.value.domain
        none = np.zeros((len(boards), 0, 0), np.float32)
        visits = Visits(
            instances=boards.instances,
            plans=boards.plans,
            score=domain.check(boards.instances, boards.plans).score,
            policy_start=none,
            evaluator_start=none,
        )
        # None of them is an edit of the rollout.
        return _sample(visits, np.full(len(boards), fresh.action.size), self.value)


def _sample(visits: Visits, order: NDArray[np.int64], value: ValueFunction) -> Sample:
    policy_view, value_view = visits.views(value.domain, value.device)
    return Sample(
        visits=visits,
        order=order,
        policy_view=policy_view,
        value_view=value_view,
        num_held_out=min(max(1, round(HELD_OUT * len(visits))), len(visits) - 1),
    )


@dataclass(frozen=True, kw_only=True)
class ExactAdvantages:
    """A_hat = Q - E_pi[Q] with Q looked ahead from every state and a full sum over its edits."""

    edit_values: EditValues
    value: ValueFunction
    state_weight: str
    """"uniform" or "value"; see `ImprovementConfig.state_weight`."""
    workers: Workers

    def __call__(self, fresh: Transitions, at: Sample, policy: PerEdit) -> Estimate:
        """Phase 2 at a sample; the edits made in `fresh` are given their advantages."""
        q = self.edit_values(at.visits, at.value_view)
        advantage = centred_advantage(q.q, policy, q.mask)
        phi = at.visits.phi(self.value.domain, self.value.device)
        weight = torch.ones(len(policy), device=self.value.device)
        mean_q = (policy * q.q).sum(dim=1)
        if self.state_weight == "value":
            success = (mean_q + phi).clamp(0.0, 1.0)
            weight = success / max(self.workers.mean(float(success.mean())), 1e-6)
        few = slice(0, at.num_held_out)
        u = self.value(at.value_view.select(few), at.visits.score[few])
        return Estimate(
            found=Advantages(
                advantage=advantage, weighted=policy * advantage, success=q.q + phi[:, None]
            ),
            weight=weight,
            fresh=_with_advantage(fresh, at.order, advantage),
            metrics={
                "successors": float(q.num_successors),
                "successors_evaluated": float(q.num_evaluated),
                "centring_defect": float(centring_defect(advantage, policy).max()),
                "bellman_residual": float((mean_q[few] - u).abs().max()),
            },
            exact=True,
        )


def improve(
    parts: Parts, at: Sample, policy: PerEdit, formed: Candidate, estimate: Estimate
) -> dict[str, float]:
    """Phase 3: pi <- (1 - alpha) pi + alpha pi_cand, as a network where pi is distilled.

    Args:
        parts: pi_phi and its optimiser change.
        at: the states.
        policy: pi(a | s) there.
        formed: pi_cand there.
        estimate: the advantages and the states' weights.
    """
    held_out = (torch.arange(len(policy)) < at.num_held_out).to(policy.device)

    def after_step() -> None:
        # The clamp first: an average of clamped weights keeps their bound, which is convex.
        parts.clamp()
        parts.pi.after_fit_step()

    step = PolicyStep(
        states=at.policy_view,
        policy=policy,
        formed=formed,
        alpha=parts.improvement.alpha,
        num_held_out=at.num_held_out,
        fit=lambda target: distil(
            parts.pi.network,
            parts.policy_optimiser,
            at.policy_view,
            target,
            estimate.weight,
            held_out,
            config=parts.improvement,
            generator=parts.noise,
            after_step=after_step,
            unrolls=parts.evaluator.supervised_unrolls,
            trunk=parts.value.model if parts.improvement.trunk == "shared" else None,
            workers=parts.workers,
        ),
    )
    candidate, metrics = parts.pi.move(step)
    if estimate.exact:
        gain = (candidate * estimate.found.advantage).sum(dim=1)  # E_{a~cand}[A_hat], Eq. 11
        metrics["candidate_advantage"] = float(gain.mean())
    entropy = -torch.special.xlogy(policy, policy).sum(dim=1).mean()
    return metrics | {"entropy": float(entropy), **parts.certify()}


def regress(parts: Parts) -> dict[str, float]:
    """Phase 1: K-step bootstrapped regression of U_n on the replayed rollouts (Eq. 2)."""
    config, value, pasts = parts.evaluator, parts.value, list(parts.replay)
    v_bar = replace(value, model=parts.target.model)
    lengths = np.cumsum([len(past.reward) for past in pasts])[:-1]
    reads = np.split(parts.edit_values.reads(pasts), lengths)
    next_values = [v_bar.of_next_states(*one) for one in zip(pasts, reads, strict=True)]
    targets = targets_of_rollouts(pasts, next_values, config=config)
    lesson = torch.cat(
        [parts.edit_values.lessons(*one) for one in zip(pasts, next_values, targets, strict=True)],
        dim=1,
    )
    visits, target = Visits.of(pasts), torch.cat(targets).flatten()
    _, states = visits.views(value.domain, value.device)
    phi = visits.phi(value.domain, value.device)
    losses: dict[str, list[Tensor]] = {}
    for chosen in minibatches(
        len(states), batch_size=config.batch_size, passes=config.passes, generator=parts.noise
    ):
        index = chosen.to(value.device)
        part = states.select(index)
        encoding = value.model.encode(part)
        z = value.model.recur(encoding)
        raw = value.model.value(z, encoding)
        reading = Reading(states=part, encoding=encoding, z=z, raw=raw.detach(), phi=phi[index])
        terms = {"value_loss": value_loss(raw, target[index], phi[index], value=config.value)}
        terms |= parts.edit_values.losses(reading, lesson[:, index])
        for name, loss in terms.items():
            losses.setdefault(name, []).append(loss.detach())
        parts.value_optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        parts.workers.average_gradients(value.model)
        nn.utils.clip_grad_norm_(value.model.parameters(), 1.0)
        parts.value_optimiser.step()
        parts.clamp()
        parts.target.update(value.model)
    return {
        **{name: float(torch.stack(values).mean()) for name, values in losses.items()},
        "value_mean": float(target.mean()),
    }


def _with_advantage(
    fresh: Transitions, order: NDArray[np.int64], advantage: PerEdit
) -> Transitions:
    """The rollout with the advantage of each edit that was looked up."""
    rows = np.flatnonzero(order < fresh.action.size)  # the others are of older iterations
    edits = order[rows]
    known = np.zeros(fresh.action.size, np.float32)
    known[edits] = advantage.cpu().numpy()[rows, fresh.action.ravel()[edits]]
    return replace(fresh, advantage=known.reshape(fresh.action.shape))


class _Clock:
    """Seconds spent in each phase of an iteration, as metrics `seconds_<phase>`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Charge the time since the last mark to `phase`."""
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self._last
        self._last = now
