"""One iteration of unrolled policy iteration, and everything that it changes (UPI-TRM Sec. 3).

`UpiLearner.iterate` reads as the paper: roll out, regress U_n on K-step targets, look ahead, centre
the advantages, form the candidate, mix conservatively, distil. Input: a vector environment; output:
metrics of the iteration and updated networks. `trainer.py` adds the run folder, evaluation and the
clock.
"""

import contextlib
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import DeadEnd, Int8Array, PlanDomain, potential
from trm.compute.device import Placement
from trm.compute.workers import ALONE, Workers
from trm.experiments.states import all_edit_logits, model_shape, policy_probabilities, to_states
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from upi_trm.advantage import (
    Lookahead,
    StateValue,
    SuccessorValue,
    centred_advantage,
    centring_defect,
    look_ahead,
)
from upi_trm.chain import MixturePolicy
from upi_trm.contraction import (
    Certificate,
    ContractionClamp,
    ContractionConfig,
    NotContractive,
    ValueHeadClamp,
    posterior_bias,
)
from upi_trm.corrections import corrected_values, correction_loss, state_edit_value
from upi_trm.evaluator import (
    EvaluatorConfig,
    TargetNetwork,
    bootstrapped,
    evaluate_states,
    k_step_targets,
    minibatches,
    shaped_value,
    value_loss,
)
from upi_trm.gae import gae
from upi_trm.improvement import (
    DistillationReport,
    ImprovementConfig,
    distil,
    exp_advantage,
    kl_divergence,
    mixture,
    policy_gradient_candidate,
    success_posterior,
)
from upi_trm.persistent_z import Latents, latent_drift, memories
from upi_trm.rollout import Roller, RolloutConfig, Transitions, flat
from upi_trm.theory.bounds import best_alpha, improvement_bound, operational_alpha

COUNTS = ("episodes", "successors", "successors_evaluated")
"""Metrics of an iteration that are sums over the processes; the others are means."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What the algorithm needs of a recipe."""

    model: ModelConfig = field(default_factory=ModelConfig)
    contraction: ContractionConfig = field(default_factory=ContractionConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    improvement: ImprovementConfig = field(default_factory=ImprovementConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        if self.improvement.candidate == "success_posterior" and self.evaluator.value != "success":
            raise ValueError(
                "improvement.candidate 'success_posterior' needs evaluator.value 'success', "
                f"got {self.evaluator.value!r}"
            )
        if self.model.latent == "persistent" and not self.improvement.distil:
            raise ValueError(
                "model.latent must be 'episodic' where improvement.distil is false (each network"
                f" of a mixture would carry its own), got {self.model.latent!r}"
            )
        if self.improvement.alpha_rule != "fixed" and self.evaluator.gamma == 1:
            raise ValueError(
                f"improvement.alpha_rule {self.improvement.alpha_rule!r} needs evaluator.gamma"
                " below 1, where Eq. 11 says something, got 1"
            )
        if self.evaluator.edit_values != "successor" and self.improvement.advantage != "exact":
            raise ValueError(
                f"evaluator.edit_values {self.evaluator.edit_values!r} needs improvement.advantage"
                f" 'exact', got {self.improvement.advantage!r}"
            )
        if self.evaluator.control_variate and (
            self.improvement.advantage != "exact" or self.improvement.lookahead_states
        ):
            raise ValueError(
                "evaluator.control_variate needs improvement.advantage 'exact' and"
                f" lookahead_states 0, got {self.improvement.advantage!r} and"
                f" {self.improvement.lookahead_states}"
            )
        if self.evaluator.target_policy == "improved" and not self.evaluator.control_variate:
            raise ValueError(
                "evaluator.target_policy 'improved' needs evaluator.control_variate true, got false"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """pi_cand at the states that were looked ahead from."""

    probability: Float[Tensor, "batch action"]
    network: TinyRecursiveModel | None
    """The network that it is; None for a closed form."""


class UpiLearner:
    """Evaluator U_n, policy pi, their optimisers, the target network and the replay.

    pi is the network phi, or without distillation the explicit mixture `chain`; phi is then the
    network that candidates are fitted with.
    """

    def __init__(
        self,
        domain: PlanDomain,
        config: LearnerConfig,
        *,
        dead_end: DeadEnd,
        device: torch.device,
        init: torch.Generator,
        noise: torch.Generator,
        actions: torch.Generator,
        workers: Workers = ALONE,
    ) -> None:
        """`init` draws the weights, `noise` the minibatches, `actions` the edits; on the CPU.

        With several `workers`, `config` is this process's share, and `init` the same on all.
        """
        self.domain, self.config, self.dead_end, self.device = domain, config, dead_end, device
        self.workers = workers
        self.noise, self.actions = noise, actions
        shape = model_shape(domain.spec)
        self.evaluator = TinyRecursiveModel(shape, config.model, generator=init).to(device)
        self.phi_network = TinyRecursiveModel(shape, config.model, generator=init).to(device)
        self.clamps: list[ContractionClamp] = []
        modulus = config.contraction.modulus
        if modulus is not None:
            self.clamps = [
                ContractionClamp(model.update, modulus)
                for model in (self.evaluator, self.phi_network)
            ]
        bound = config.contraction.value_head
        self.head_clamp = None if bound is None else ValueHeadClamp(self.evaluator, bound)
        self.certificates: list[Certificate] = []
        with contextlib.suppress(NotContractive):
            self.certificates = [Certificate(m.update) for m in (self.evaluator, self.phi_network)]
        self.target = TargetNetwork(self.evaluator, config.evaluator.target_rate)
        rate = config.improvement.average_rate
        self.average = None if rate is None else TargetNetwork(self.phi_network, rate)
        self.evaluator_optimiser = torch.optim.Adam(
            self.evaluator.parameters(), lr=config.evaluator.learning_rate
        )
        self.policy_optimiser = torch.optim.Adam(
            self.phi_network.parameters(), lr=config.improvement.learning_rate
        )
        self.chain: MixturePolicy | None = None
        if not config.improvement.distil:
            self.chain = MixturePolicy(self.phi_network, length=config.improvement.chain_length)
        self.replay: deque[Transitions] = deque(maxlen=config.evaluator.replay_iterations)
        # Persistent z: where the running plans' recursions start next, and where those of the
        # replayed transitions did.
        self.carried: Latents | None = None
        self.traces: deque[Latents] = deque(maxlen=config.evaluator.replay_iterations)
        if config.model.latent == "persistent":
            places = (self.evaluator.num_places, config.model.channels)
            blank = torch.zeros(config.rollout.plans, *places, device=device)
            self.carried = Latents(policy=blank, evaluator=blank)

    @property
    def policy(self) -> TinyRecursiveModel:
        """pi_phi.

        Raises:
            ValueError: where no single network is the policy.
        """
        if self.chain is not None:
            raise ValueError(
                "improvement.distil is false: the policy is a mixture of networks, which has no"
                " latent of its own to study"
            )
        return self.phi_network

    @property
    def networks(self) -> dict[str, TinyRecursiveModel]:
        """Every single network by its name in a checkpoint."""
        phi = "policy" if self.chain is None else "candidate"
        named = {"evaluator": self.evaluator, phi: self.phi_network, "target": self.target.model}
        return named if self.average is None else {**named, "average": self.average.model}

    @property
    def deployed(self) -> TinyRecursiveModel | MixturePolicy:
        """The policy to evaluate and to use: phi, the running average of its weights, the chain."""
        if self.chain is not None:
            return self.chain
        return self.phi_network if self.average is None else self.average.model

    def compile_steps(self, placement: Placement) -> None:
        """Compile the latent updates where the placement asks for it."""
        for model in self.networks.values():
            model.compile_step(placement.compiled)

    def scale_learning_rates(self, share: float) -> None:
        """Set both learning rates to `share` of the recipe's."""
        config = self.config
        for optimiser, rate in (
            (self.evaluator_optimiser, config.evaluator.learning_rate),
            (self.policy_optimiser, config.improvement.learning_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = share * rate

    # --- One iteration

    def iterate(self, roller: Roller, *, steps: int) -> dict[str, float]:
        """Phases 1 to 3 on `steps` edits of every plan; returns the iteration's metrics."""
        clock = _Clock()
        fresh, trace = self.collect(roller, steps=steps)
        clock.mark("rollout")
        drift = {} if trace is None else self.drift_metrics(fresh, trace)
        fresh, metrics = self.improve(fresh, clock, trace)
        metrics |= drift
        self.replay.append(fresh)
        if trace is not None:
            self.traces.append(trace)
        metrics |= self.fit_evaluator()
        clock.mark("value")
        if self.config.model.tolerance is not None:
            last = None if trace is None else trace.select(slice(-1, None))
            metrics |= self.unroll_metrics(*self.views(fresh.instance[-1], fresh.plan[-1], last))
        finished = fresh.terminated | fresh.truncated
        metrics["train_success"] = float(fresh.solved.sum() / max(1, finished.sum()))
        metrics["episodes"] = float(finished.sum())
        return self.workers.combine(metrics | clock.seconds, sums=COUNTS)

    def collect(self, roller: Roller, *, steps: int) -> tuple[Transitions, Latents | None]:
        """Roll pi out; a persistent latent is carried along, and where each edit's started kept."""
        if self.carried is None:
            fresh = roller.collect(
                self.probabilities, steps=steps, generator=self.actions, device=self.device
            )
            return fresh, None
        parts, starts = [], []
        for _ in range(steps):
            starts.append(self.carried)
            reached = self.carried

            def policy(states: StateBatch, start: Latents = reached) -> Tensor:
                nonlocal reached
                probability, reached = self._carry(states, start)
                return probability

            part = roller.collect(policy, steps=1, generator=self.actions, device=self.device)
            ended = self._tensor(part.terminated[0] | part.truncated[0])
            self.carried = reached.restarted(ended)
            parts.append(part)
        names = [f.name for f in fields(Transitions)]
        whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Transitions(**whole), Latents.stack(starts)

    @torch.no_grad()
    def _carry(
        self, states: StateBatch, start: Latents
    ) -> tuple[Float[Tensor, "batch action"], Latents]:
        """pi(a | s, z) and the latents of policy and evaluator after these states."""
        seen = replace(states, start=start.policy)
        encoding = self.phi_network.encode(seen)
        z = self.phi_network.recur(encoding)
        logits = self.phi_network.edit_logits(z, encoding, seen)
        reached = Latents(
            # Under autocast the recursion may answer in bfloat16.
            policy=self.phi_network.memory(z, encoding).to(start.policy.dtype),
            evaluator=memories(self.evaluator, replace(states, start=start.evaluator)).to(
                start.evaluator.dtype
            ),
        )
        return torch.softmax(logits, dim=1), reached

    def fit_evaluator(self) -> dict[str, float]:
        """Phase 1: K-step bootstrapped regression of U_n on the replayed transitions."""
        config = self.config.evaluator
        instances, plans, phis, next_values, edits = [], [], [], [], []
        for (past, trace), read in zip(self._replayed(), self._values_read(), strict=True):
            starts = None if trace is None else trace.evaluator.flatten(0, 1)
            next_values.append(self.next_values(past, self.target.model, starts, read))
            instances.append(flat(past.instance))
            plans.append(flat(past.plan))
            phis.append(self.phi(past.score.ravel()))
        targets = self.targets_of(self.replay, next_values)
        if config.edit_values != "successor":
            edits = [
                self._edits_made(*made)
                for made in zip(self.replay, next_values, targets, strict=True)
            ]
        target, phi = torch.cat(targets).flatten(), torch.cat(phis)
        _, states = self.views(
            np.concatenate(instances),
            np.concatenate(plans),
            Latents.join(self.traces) if self.traces else None,
        )
        made = torch.cat(edits, dim=1) if edits else None
        losses, edit_losses = [], []
        for chosen in minibatches(
            len(states), batch_size=config.batch_size, passes=config.passes, generator=self.noise
        ):
            index = chosen.to(self.device)
            part = states.select(index)
            encoding = self.evaluator.encode(part)
            z = self.evaluator.recur(encoding)
            raw = self.evaluator.value(z, encoding)
            loss = value_loss(raw, target[index], phi[index], value=config.value)
            losses.append(loss.detach())
            if made is not None:
                correction = self.evaluator.edit_logits(z, encoding, part)
                edit_loss = self._edit_loss(correction, made[:, index], phi[index], raw.detach())
                edit_losses.append(edit_loss.detach())
                loss = loss + edit_loss
            self.evaluator_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.workers.average_gradients(self.evaluator)
            nn.utils.clip_grad_norm_(self.evaluator.parameters(), 1.0)
            self.evaluator_optimiser.step()
            self._clamp()
            if self.head_clamp is not None:
                self.head_clamp.apply()
            self.target.update(self.evaluator)
        metrics = {
            "value_loss": float(torch.stack(losses).mean()),
            "value_mean": float(target.mean()),
        }
        if edit_losses:
            metrics["edit_loss"] = float(torch.stack(edit_losses).mean())
        if self.head_clamp is not None:
            metrics["value_head_norm"] = self.head_clamp.norm()
        return metrics

    def _edits_made(
        self,
        past: Transitions,
        next_value: Float[Tensor, "step plan"],
        target: Float[Tensor, "step plan"],
    ) -> Float[Tensor, "3 batch"]:
        """What corrections learn from: edit, r + gamma U_n(s') (NaN where decided), its return.

        The target of the state has the advantage of the edit made taken out of it as a control
        variate; the return of the edit has it back.
        """
        q = self._tensor(past.reward) + self.config.evaluator.gamma * next_value
        q = q.masked_fill(self._tensor(past.terminated), torch.nan)
        if self.config.evaluator.control_variate:
            target = target + self._tensor(past.advantage)
        return torch.stack([self._tensor(past.action).to(target.dtype), q, target]).flatten(1)

    def _edit_loss(
        self,
        correction: Float[Tensor, "batch action"],
        made: Float[Tensor, "3 batch"],
        phi: Float[Tensor, " batch"],
        raw: Float[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Mean loss of the corrected values of undecided edits; `raw` is what the head says."""
        config = self.config.evaluator
        undecided = ~made[1].isnan()
        edit, q, target = made[:, undecided]
        phi = phi[undecided]
        if config.edit_values == "state":
            own = shaped_value(raw[undecided].to(phi.dtype), phi, value=config.value)
            q = state_edit_value(own, phi, gamma=config.gamma, value=config.value)
        of_edit = correction[undecided].gather(1, edit.long()[:, None]).squeeze(1)
        loss = correction_loss(q, of_edit, target, phi, gamma=config.gamma, value=config.value)
        return loss if len(q) else correction.sum() * 0.0

    def _values_read(self) -> list[Bool[NDArray[np.bool_], "_ plan"]]:
        """The edits of the replay after which the regression asks for V_bar."""
        terminated = np.concatenate([past.terminated for past in self.replay])
        if self.config.evaluator.edit_values == "corrected":  # learns from r + gamma V_bar(s') too
            read = ~terminated
        else:
            truncated = np.concatenate([past.truncated for past in self.replay])
            read = bootstrapped(
                torch.from_numpy(terminated),
                torch.from_numpy(truncated),
                k_steps=self.config.evaluator.k_steps,
            ).numpy()
        return np.split(read, np.cumsum([len(past.reward) for past in self.replay])[:-1])

    def _replayed(self) -> list[tuple[Transitions, Latents | None]]:
        """The replayed transitions, oldest first, with their latents where they are persistent."""
        traces: list[Latents | None] = list(self.traces) or [None] * len(self.replay)
        return list(zip(self.replay, traces, strict=True))

    def improve(
        self, fresh: Transitions, clock: "_Clock", trace: Latents | None = None
    ) -> tuple[Transitions, dict[str, float]]:
        """Phases 2 and 3: lookahead, centred advantages, candidate, mixture, distillation.

        Returns the transitions with the advantages of the edits made, and metrics.
        """
        config = self.config.improvement
        older = config.distil_iterations - 1
        sources = [fresh, *(list(self.replay)[-older:] if older else [])]
        latents: Latents | None = None
        if trace is not None:
            latents = Latents.join([trace, *(list(self.traces)[-older:] if older else [])])
        total = sum(past.action.size for past in sources)
        count = min(total, config.lookahead_states or total)
        order = torch.randperm(total, generator=self.noise)[:count].numpy()
        instances = np.concatenate([flat(past.instance) for past in sources])[order]
        plans = np.concatenate([flat(past.plan) for past in sources])[order]
        score = np.concatenate([past.score.ravel() for past in sources])[order]
        if latents is not None:
            latents = latents.select(torch.from_numpy(order).to(self.device))
        starts = None if latents is None else latents.evaluator
        states, value_states = self.views(instances, plans, latents)
        policy = self.probabilities(states)
        num_held_out = min(max(1, round(config.held_out * count)), count - 1)
        held_out = (torch.arange(count) < num_held_out).to(self.device)
        metrics: dict[str, float] = {}
        weight = torch.ones(count, device=self.device)
        alpha = config.alpha
        if config.advantage == "exact":
            ahead = self.edit_values(instances, plans, states=value_states)
            clock.mark("lookahead")
            advantage = centred_advantage(ahead.q, policy, ahead.mask)
            phi = self.phi(score)
            formed = self._candidate(states, policy, ahead, advantage, phi)
            if config.state_weight == "value":
                success = ((policy * ahead.q).sum(dim=1) + phi).clamp(0.0, 1.0)
                weight = success / max(self.workers.mean(float(success.mean())), 1e-6)
            candidate = self._deployable(formed, states, weight, held_out, metrics)
            metrics["successors"] = float(ahead.num_successors)
            metrics["successors_evaluated"] = float(ahead.num_evaluated)
            metrics["centring_defect"] = float(centring_defect(advantage, policy).max())
            gain = (candidate * advantage).sum(dim=1)
            metrics["candidate_advantage"] = float(gain.mean())
            # The residual costs a pass of the evaluator: on few states where it only informs.
            rows = slice(0, count if config.alpha_rule == "proven" else num_held_out)
            value = self._values(self.evaluator, value_states.select(rows), score[rows])
            residual = ((policy[rows] * ahead.q[rows]).sum(dim=1) - value).abs().max()
            alpha, found = choose_alpha(
                self.workers.join_rows(gain),
                max(self.workers.gather(float(residual))),
                config=config,
                gamma=self.config.evaluator.gamma,
            )
            metrics |= found
            known = advantage
            if self.config.evaluator.target_policy == "improved":
                new = mixture(policy, candidate, alpha=alpha)
                known = centred_advantage(ahead.q, new, ahead.mask)
            fresh = self._with_advantage(fresh, order, known)
        else:
            advantage, made = self.gae_advantage(fresh, order, trace)
            clock.mark("lookahead")
            formed = self._gradient_candidate(states, policy, advantage * made)
            candidate = self._deployable(formed, states, weight, held_out, metrics)
            check = slice(0, num_held_out)
            metrics["centring_defect"] = self._td_centring_defect(
                instances[check],
                plans[check],
                policy[check],
                None if starts is None else starts[check],
            )
        if self.chain is not None:
            metrics["chain_dropped"] = (
                self.chain.append(self.phi_network, alpha) if alpha > 0 else 0.0
            )
            metrics["chain_length"] = float(len(self.chain))
            asked = mixture(policy, formed.probability, alpha=alpha)
            check = slice(0, num_held_out)
            metrics |= self._chain_kl(asked[check], policy[check], states.select(check))
        elif alpha > 0:
            new = mixture(policy, candidate, alpha=alpha)
            metrics |= _kl_metrics(self._fit(states, new, weight, held_out))
        else:
            # Without a step there is nothing to distil, and a pass would only add noise.
            metrics |= _kl_metrics(DistillationReport(kl=0.0, kl_before=0.0, steps=0))
        clock.mark("distil")
        entropy = -torch.special.xlogy(policy, policy).sum(dim=1).mean()
        return fresh, metrics | {"entropy": float(entropy), **self.certified_modulus()}

    def _fit(
        self,
        states: StateBatch,
        target: Float[Tensor, "batch action"],
        weight: Float[Tensor, " batch"],
        held_out: Bool[Tensor, " batch"],
    ) -> DistillationReport:
        """pi_phi <- target: the mixture, or for the chain the candidate alone."""
        return distil(
            self.phi_network,
            self.policy_optimiser,
            states,
            target,
            weight,
            held_out,
            config=self.config.improvement,
            generator=self.noise,
            after_step=self._after_policy_step,
            workers=self.workers,
        )

    def _deployable(
        self,
        formed: Candidate,
        states: StateBatch,
        weight: Float[Tensor, " batch"],
        held_out: Bool[Tensor, " batch"],
        metrics: dict[str, float],
    ) -> Float[Tensor, "batch action"]:
        """pi_cand as it will act: for a mixture that is deployed, the candidate's network phi."""
        if self.chain is None:
            return formed.probability
        if formed.network is None:
            report = self._fit(states, formed.probability, weight, held_out)
            metrics |= {"candidate_kl": report.kl, "distil_steps": float(report.steps)}
        else:
            self.phi_network.load_state_dict(formed.network.state_dict())
            self._clamp()
            metrics["distil_steps"] = 0.0
        return policy_probabilities(self.phi_network, states)

    def _chain_kl(
        self,
        asked: Float[Tensor, "batch action"],
        policy: Float[Tensor, "batch action"],
        states: StateBatch,
    ) -> dict[str, float]:
        """KL from the mixture that was asked for to pi before and to the mixture that acts now."""
        assert self.chain is not None
        mask = states.mask > 0
        before, after = (
            kl_divergence(asked, one.clamp_min(1e-30).log(), mask).mean()
            for one in (policy, self.chain.probabilities(states))
        )
        return {"kl": float(after), "kl_asked": float(before)}

    def _with_advantage(
        self,
        fresh: Transitions,
        order: NDArray[np.int64],
        advantage: Float[Tensor, "batch action"],
    ) -> Transitions:
        """The transitions with the given advantage of each edit that was looked up."""
        rows = np.flatnonzero(order < fresh.action.size)  # the others are of older iterations
        edits = order[rows]
        known = np.zeros(fresh.action.size, np.float32)
        known[edits] = advantage.cpu().numpy()[rows, fresh.action.ravel()[edits]]
        return replace(fresh, advantage=known.reshape(fresh.action.shape))

    def candidate(
        self,
        states: StateBatch,
        policy: Float[Tensor, "batch action"],
        ahead: Lookahead,
        advantage: Float[Tensor, "batch action"],
        phi: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch action"]:
        """pi_cand at the states that were looked ahead from."""
        return self._candidate(states, policy, ahead, advantage, phi).probability

    def _candidate(
        self,
        states: StateBatch,
        policy: Float[Tensor, "batch action"],
        ahead: Lookahead,
        advantage: Float[Tensor, "batch action"],
        phi: Float[Tensor, " batch"],
    ) -> Candidate:
        config = self.config.improvement
        if config.candidate == "policy_gradient":
            return self._gradient_candidate(states, policy, policy * advantage)
        if config.candidate == "exp_advantage":
            formed = exp_advantage(policy, advantage, temperature=config.temperature)
        else:
            formed = success_posterior(policy, ahead.q + phi[:, None], power=config.power)
        return Candidate(probability=formed, network=None)

    def _gradient_candidate(
        self,
        states: StateBatch,
        policy: Float[Tensor, "batch action"],
        weighted: Float[Tensor, "batch action"],
    ) -> Candidate:
        network = policy_gradient_candidate(
            self.phi_network,
            states,
            policy,
            weighted,
            self.config.improvement,
            self.noise,
            workers=self.workers,
        )
        return Candidate(probability=policy_probabilities(network, states), network=network)

    # --- Quantities

    def probabilities(self, states: StateBatch) -> Float[Tensor, "batch action"]:
        """pi(a | s)."""
        if self.chain is not None:
            return self.chain.probabilities(states)
        return policy_probabilities(self.phi_network, states)

    def states(self, instances: Int8Array, plans: Int8Array) -> StateBatch:
        """A batch of states with their masks."""
        masks = self.domain.action_mask(instances, plans)
        return self._seen(instances, plans, masks)

    def views(
        self, instances: Int8Array, plans: Int8Array, latents: Latents | None = None
    ) -> tuple[StateBatch, StateBatch]:
        """The same states for policy and evaluator, each with its own latents to start from."""
        states = self.states(instances, plans)
        if latents is None:
            return states, states
        return (
            replace(states, start=latents.policy.flatten(0, -3)),
            replace(states, start=latents.evaluator.flatten(0, -3)),
        )

    def _seen(self, instances: Int8Array, plans: Int8Array, masks: Int8Array) -> StateBatch:
        visible = instances[:, : self.domain.spec.observed_size]
        return to_states(visible, plans, masks, self.device)

    def phi(self, score: NDArray[np.float32]) -> Float[Tensor, " batch"]:
        """Phi(s) on the model's device."""
        value = potential(score, self.domain.spec.max_score).astype(np.float32)
        return torch.from_numpy(value).to(self.device)

    def state_value(
        self, instances: Int8Array, plans: Int8Array, masks: Int8Array, score: NDArray[np.float32]
    ) -> Float[Tensor, " batch"]:
        """U_n of the online evaluator."""
        return self._values(self.evaluator, self._seen(instances, plans, masks), score)

    def _values(
        self, model: TinyRecursiveModel, states: StateBatch, score: NDArray[np.float32]
    ) -> Float[Tensor, " batch"]:
        return evaluate_states(model, states, self.phi(score), value=self.config.evaluator.value)

    def look_ahead(
        self,
        instances: Int8Array,
        plans: Int8Array,
        starts: Float[Tensor, "batch place channel"] | None = None,
    ) -> Lookahead:
        """Q(s, a) of every legal edit under the online evaluator.

        Persistent z: `starts` are the evaluator's latents at these states; a successor's recursion
        starts where that of its parent ends.
        """
        if starts is None:
            return self._look_ahead(instances, plans, state_value=self.state_value)
        value = self._from_parents(instances, plans, starts)
        return self._look_ahead(instances, plans, successor_value=value)

    def _look_ahead(
        self,
        instances: Int8Array,
        plans: Int8Array,
        *,
        state_value: StateValue | None = None,
        successor_value: SuccessorValue | None = None,
    ) -> Lookahead:
        return look_ahead(
            self.domain,
            instances,
            plans,
            state_value,
            gamma=self.config.evaluator.gamma,
            dead_end=self.dead_end,
            device=self.device,
            successor_value=successor_value,
        )

    def edit_values(
        self, instances: Int8Array, plans: Int8Array, *, states: StateBatch
    ) -> Lookahead:
        """Q(s, a) that the improvement uses: `look_ahead`, corrected where the recipe says so.

        `states` are the same states as the evaluator sees them.
        """
        config = self.config.evaluator
        if config.edit_values == "successor":
            return self.look_ahead(instances, plans, states.start)
        score = self.domain.check(instances, plans).score
        phi = self.phi(score)
        if config.edit_values == "state":
            ahead = self._look_ahead(instances, plans)
            own = self._values(self.evaluator, states, score)
            base = state_edit_value(own, phi, gamma=config.gamma, value=config.value)
            before = base[:, None].expand_as(ahead.q)
        else:
            ahead = self.look_ahead(instances, plans, states.start)
            before = ahead.q
        q = corrected_values(
            before,
            all_edit_logits(self.evaluator, states),
            phi[:, None],
            gamma=config.gamma,
            value=config.value,
        )
        return replace(ahead, q=torch.where(ahead.undecided, q, ahead.q))

    def _from_parents(
        self,
        instances: Int8Array,
        plans: Int8Array,
        starts: Float[Tensor, "batch place channel"],
        *,
        chunk: int = 1024,
    ) -> SuccessorValue:
        """U_n of successors, each from the latent that its parent's recursion ends with."""
        parents = memories(self.evaluator, replace(self.states(instances, plans), start=starts))

        def value(
            instances: Int8Array,
            plans: Int8Array,
            masks: Int8Array,
            score: NDArray[np.float32],
            parent: NDArray[np.int64],
        ) -> Tensor:
            found = []
            for first in range(0, len(plans), chunk):
                part = slice(first, first + chunk)
                states = self._seen(instances[part], plans[part], masks[part])
                start = parents[self._tensor(parent[part])]
                found.append(
                    self._values(self.evaluator, replace(states, start=start), score[part])
                )
            return torch.cat(found)

        return value

    def next_values(
        self,
        past: Transitions,
        model: TinyRecursiveModel,
        starts: Float[Tensor, "batch place channel"] | None = None,
        read: Bool[NDArray[np.bool_], "step plan"] | None = None,
    ) -> Float[Tensor, "step plan"]:
        """V_bar of the states after the edits of a rollout, with `model` as V_bar.

        Persistent z: `starts` are the evaluator's latents at the states before the edits; that of
        the state after starts where `model` brings them. Where `read` is False the value is not
        computed, and 0.
        """
        shape = past.action.shape
        values = torch.zeros(past.action.size, device=self.device)
        chosen = np.flatnonzero(np.ones(shape, dtype=np.bool_) if read is None else read)
        if len(chosen):
            index = self._tensor(chosen)
            start = None if starts is None else starts[index]
            after = self._after(past, chosen, model, start)
            values[index] = self._values(model, after, past.next_score.ravel()[chosen])
        return values.view(shape)

    def targets_of(
        self, pasts: Collection[Transitions], next_values: Sequence[Float[Tensor, "_ plan"]]
    ) -> list[Float[Tensor, "_ plan"]]:
        """K-step targets of successive rollouts, each of which goes on where the one before ended.

        What became of a plan after its rollout is known but for the last one's, which alone end
        with a bootstrapped value where K or the episode would reach further.
        """
        reward = np.concatenate([past.reward for past in pasts])
        if self.config.evaluator.control_variate:
            reward = reward - np.concatenate([past.advantage for past in pasts])
        target = k_step_targets(
            self._tensor(reward),
            torch.cat(list(next_values)),
            self._tensor(np.concatenate([past.terminated for past in pasts])),
            self._tensor(np.concatenate([past.truncated for past in pasts])),
            k_steps=self.config.evaluator.k_steps,
            gamma=self.config.evaluator.gamma,
        )
        return list(target.split([len(past.reward) for past in pasts]))

    def _after(
        self,
        past: Transitions,
        chosen: NDArray[np.int64],
        model: TinyRecursiveModel,
        starts: Float[Tensor, "batch place channel"] | None,
    ) -> StateBatch:
        """The states after the chosen edits, with their latents where these are persistent."""
        instances = flat(past.instance)[chosen]
        after = self.states(instances, flat(past.next_plan)[chosen])
        if starts is None:
            return after
        before = self.states(instances, flat(past.plan)[chosen])
        return replace(after, start=memories(model, replace(before, start=starts)))

    def gae_advantage(
        self, fresh: Transitions, order: NDArray[np.int64], trace: Latents | None = None
    ) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch action"]]:
        """GAE of the edits made, and the one-hot edits, at the chosen states."""
        shape = fresh.action.shape
        _, before = self.views(flat(fresh.instance), flat(fresh.plan), trace)
        after = self._after(fresh, np.arange(len(before)), self.evaluator, before.start)
        advantage = gae(
            self._tensor(fresh.reward),
            self._values(self.evaluator, before, fresh.score.ravel()).view(shape),
            self._values(self.evaluator, after, fresh.next_score.ravel()).view(shape),
            self._tensor(fresh.terminated),
            self._tensor(fresh.truncated),
            gamma=self.config.evaluator.gamma,
            decay=self.config.improvement.gae_decay,
        )
        made = nn.functional.one_hot(
            self._tensor(fresh.action.ravel()[order]).long(), self.domain.spec.num_actions
        )
        return advantage.flatten()[torch.from_numpy(order).to(self.device)][:, None], made.float()

    def _td_centring_defect(
        self,
        instances: Int8Array,
        plans: Int8Array,
        policy: Float[Tensor, "batch action"],
        starts: Float[Tensor, "batch place channel"] | None,
    ) -> float:
        """Largest |E_{a~pi}[r + gamma U_n(s') - U_n(s)]|: what GAE takes for zero."""
        ahead = self.look_ahead(instances, plans, starts)
        score = self.domain.check(instances, plans).score
        states = replace(self.states(instances, plans), start=starts)
        value = self._values(self.evaluator, states, score)
        error = torch.where(ahead.mask, ahead.q - value[:, None], torch.zeros_like(ahead.q))
        return float(centring_defect(error, policy).max())

    def certified_modulus(self) -> dict[str, float]:
        """Proven bound on L_z, the larger of evaluator and policy; nothing without a bound."""
        bounds = [certificate.bound() for certificate in self.certificates]
        return {"certified_modulus": max(bounds)} if bounds else {}

    def drift_metrics(
        self, fresh: Transitions, trace: Latents, *, plans: int = 8
    ) -> dict[str, float]:
        """How the evaluator's persistent latent tracks its fixed points, on a few plans (App. F).

        Nothing without a certified contraction, where there need be no fixed point.
        """
        modulus = self.certificates[0].bound() if self.certificates else 1.0
        if modulus >= 1:
            return {}
        few = slice(0, plans)
        states = self.states(flat(fresh.instance[:, few]), flat(fresh.plan[:, few]))
        states = replace(states, start=trace.evaluator[:, few].flatten(0, 1))
        ended = self._tensor(fresh.terminated[:, few] | fresh.truncated[:, few])
        return latent_drift(self.evaluator, states, ended, modulus=modulus).metrics()

    @torch.no_grad()
    def unroll_metrics(self, states: StateBatch, value_states: StateBatch) -> dict[str, float]:
        """Unrolls that an adaptive recursion takes, and what is missing to the fixed point.

        Over the states, as policy and evaluator see them; the bound L_z / (1 - L_z) ||z^(n) -
        z^(n-1)|| where both are certified contractions.
        """
        views = ((self.evaluator, value_states), (self.phi_network, states))
        traces = [model.recur_counted(model.encode(seen)) for model, seen in views]
        unrolls = torch.cat([trace.unrolls for trace in traces]).double()
        metrics = {"unrolls": float(unrolls.mean()), "unrolls_max": float(unrolls.max())}
        bounds = [certificate.bound() for certificate in self.certificates]
        if bounds and max(bounds) < 1 and self.config.model.depth > 0:
            metrics["unroll_bias_bound"] = max(
                posterior_bias(bound, float(trace.last_step.max()))
                for bound, trace in zip(bounds, traces, strict=True)
            )
        return metrics

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _after_policy_step(self) -> None:
        # The clamp first: an average of clamped weights keeps their bound, which is convex.
        self._clamp()
        if self.average is not None:
            self.average.update(self.phi_network)

    def _clamp(self) -> None:
        for clamp in self.clamps:
            clamp.apply()

    # --- Checkpoints

    def weights(self) -> dict[str, Tensor]:
        """All network weights by name."""
        parts: dict[str, nn.Module] = dict(self.networks)
        if self.chain is not None:
            parts["chain"] = self.chain
        return {
            f"{part}.{name}": tensor
            for part, model in parts.items()
            for name, tensor in model.state_dict().items()
        }

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Counterpart of `weights`."""
        for part, model in self.networks.items():
            model.load_state_dict(part_of(weights, part))
        if self.chain is not None:
            self.chain.load_weights(part_of(weights, "chain"), lambda: self.phi_network)

    def state(self) -> dict[str, Any]:
        """Optimisers and replay; the generators belong to whoever passed them in."""
        persistent: dict[str, Any] = {}
        if self.carried is not None:
            persistent["carried"] = self.carried.state()
            persistent["traces"] = [trace.state() for trace in self.traces]
        return persistent | {
            "evaluator_optimiser": self.evaluator_optimiser.state_dict(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "replay": [
                {f.name: getattr(past, f.name) for f in fields(past)} for past in self.replay
            ],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.evaluator_optimiser.load_state_dict(state["evaluator_optimiser"])
        self.policy_optimiser.load_state_dict(state["policy_optimiser"])
        self.replay.clear()
        self.replay.extend(Transitions(**past) for past in state["replay"])
        if self.carried is not None:
            self.carried = Latents(**state["carried"]).to(self.device)
            self.traces.clear()
            self.traces.extend(Latents(**trace).to(self.device) for trace in state["traces"])


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one network of a checkpoint, by their own names."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _kl_metrics(report: DistillationReport) -> dict[str, float]:
    return {
        "kl": report.kl,
        "kl_asked": report.kl_before,
        "distil_steps": float(report.steps),
    }


def choose_alpha(
    gain: Float[Tensor, " batch"], residual: float, *, config: ImprovementConfig, gamma: float
) -> tuple[float, dict[str, float]]:
    """The mixing weight of an iteration by the recipe's rule, and what Eq. 11 says of it.

    Visited states stand for d_pi and for the suprema: maxima of a sample, which prove nothing.

    Args:
        gain: E_{a~cand}[A_hat(s, a)] of each state, A_hat centred.
        residual: largest |E_{a~pi}[Q(s, a)] - U_n(s)|, the one-step Bellman residual.
        config: rule, penalty and the largest alpha.
        gamma: discount; at 1 the bound says nothing.

    Returns:
        alpha, and metrics: it, the two alphas of the bound, and the improvement that Eq. 11
        promises at alpha where A_hat is right.
    """
    if gamma == 1:
        return config.alpha, {"alpha": config.alpha}
    mean, largest = float(gain.mean()), float(gain.abs().max())
    spread = max(float(gain.max()), 0.0) - min(float(gain.min()), 0.0)
    penalty = config.alpha_penalty
    deviation = spread if penalty == "span" else largest
    bound = best_alpha(gain=mean, deviation=deviation, gamma=gamma, penalty=penalty)
    proven = operational_alpha(
        gain=mean, largest=largest, residual=residual, gamma=gamma, k_steps=1
    )
    wanted = {"fixed": config.alpha, "bound": bound, "proven": proven}[config.alpha_rule]
    alpha = min(config.alpha, wanted)
    return alpha, {
        "alpha": alpha,
        "alpha_bound": bound,
        "alpha_proven": proven,
        "promised": improvement_bound(
            alpha, gain=mean, deviation=deviation, gamma=gamma, penalty=penalty
        ),
        "bellman_residual": residual,
    }


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
