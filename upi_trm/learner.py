"""`UpiLearner`: the networks of unrolled policy iteration, their optimisers and their state.

It makes the parts that a recipe asks for, which `algorithm.iteration` puts together, and turns them
into what a checkpoint holds. `trainer.py` adds the run folder, evaluation and the clock.
"""

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plan_envs.domain import DeadEnd, PlanDomain
from trm.compute.device import Placement
from trm.compute.workers import ALONE, Workers
from trm.experiments.states import model_shape
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.runs.checkpoints import part_of
from upi_trm.advantage import AdvantageRule, PerEdit
from upi_trm.algorithm import (
    CertifiedStates,
    ExactAdvantages,
    Parts,
    StateRule,
    VisitedStates,
    iteration,
)
from upi_trm.certificates import Certificates
from upi_trm.chain import ActingPolicy, ChainPolicy, MixturePolicy
from upi_trm.contraction import Certificate, ContractionClamp, ContractionConfig, NotContractive
from upi_trm.edit_values import CertifiedValues, CorrectedValues, EditValues
from upi_trm.evaluator import EvaluatorConfig, TargetNetwork, ValueFunction
from upi_trm.gae import GaeAdvantages
from upi_trm.improvement import DistilledPolicy, ImprovementConfig, make_candidate
from upi_trm.persistent_z import PersistentActor
from upi_trm.rollout import Actor, Rollout, RolloutConfig, Transitions


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
        if self.evaluator.edit_values != "successor" and self.improvement.advantage != "exact":
            raise ValueError(
                f"evaluator.edit_values {self.evaluator.edit_values!r} needs improvement.advantage"
                f" 'exact', got {self.improvement.advantage!r}"
            )
        self._check_certified()
        if self.evaluator.control_variate and (
            self.improvement.advantage != "exact" or self.improvement.lookahead_states
        ):
            raise ValueError(
                "evaluator.control_variate needs improvement.advantage 'exact' and"
                f" lookahead_states 0, got {self.improvement.advantage!r} and"
                f" {self.improvement.lookahead_states}"
            )

    def _check_certified(self) -> None:
        evaluator, improvement = self.evaluator, self.improvement
        if evaluator.edit_values != "certified":
            actor, unrolls = self.rollout.actor, evaluator.supervised_unrolls
            for name, value, used in (
                ("rollout.actor", actor, actor == "search"),
                ("improvement.candidate", improvement.candidate, improvement.candidate == "odds"),
                ("improvement.deploy", improvement.deploy, improvement.deploy == "improved"),
                ("evaluator.supervised_unrolls", unrolls, bool(unrolls)),
                ("evaluator.unroll_on", evaluator.unroll_on, evaluator.unroll_on > 0),
            ):
                if used:
                    raise ValueError(
                        f"{name} {value!r} needs evaluator.edit_values 'certified', got"
                        f" {evaluator.edit_values!r}"
                    )
            return
        if self.model.latent == "persistent":
            raise ValueError(
                "evaluator.edit_values 'certified' needs model.latent 'episodic': the states of a"
                f" certificate have no latent of their own, got {self.model.latent!r}"
            )
        if improvement.lookahead_states < 1:
            raise ValueError(
                "improvement.lookahead_states must be at least 2 where evaluator.edit_values is"
                f" 'certified', got {improvement.lookahead_states}"
            )


class UpiLearner:
    """Evaluator U_n, policy pi, their optimisers, the target network and the replay."""

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
        lessons: np.random.Generator,
        workers: Workers = ALONE,
    ) -> None:
        """Make fresh networks and the parts that the recipe asks for.

        Args:
            domain: the rules.
            config: the recipe; with several `workers` this process's share of it.
            dead_end: what happens to a plan that can no longer be solved.
            device: of the networks.
            init: draws the weights, on the CPU; the same on all workers.
            noise: draws samples and minibatches, on the CPU.
            actions: draws the edits, on the CPU.
            lessons: draws states of certificates.
            workers: the processes that train together.
        """
        self.domain, self.config, self.device = domain, config, device
        self._dead_end: DeadEnd = dead_end
        self._lessons = lessons
        shape = model_shape(domain.spec)
        self.evaluator, self.phi = (
            TinyRecursiveModel(shape, config.model, generator=init).to(device) for _ in range(2)
        )
        modulus = config.contraction.modulus
        self.clamps = [
            ContractionClamp(model.update, modulus)
            for model in (self.evaluator, self.phi)
            if modulus is not None
        ]
        self.certificates: list[Certificate] = []
        with contextlib.suppress(NotContractive):
            self.certificates = [Certificate(m.update) for m in (self.evaluator, self.phi)]
        value = ValueFunction(
            model=self.evaluator, domain=domain, value=config.evaluator.value, device=device
        )
        edit_values = self._edit_values(value, dead_end, lessons, workers)
        pi = self._acting_policy()
        self.parts = Parts(
            pi=pi,
            actor=self._actor(pi),
            value=value,
            target=TargetNetwork(self.evaluator, config.evaluator.target_rate),
            replay=deque(maxlen=config.evaluator.replay_iterations),
            states=self._states(value, edit_values, noise),
            advantages=self._advantages(value, edit_values, workers),
            candidate=make_candidate(self.phi, config.improvement, noise, workers),
            edit_values=edit_values,
            evaluator=config.evaluator,
            improvement=config.improvement,
            value_optimiser=torch.optim.Adam(
                self.evaluator.parameters(), lr=config.evaluator.learning_rate
            ),
            policy_optimiser=torch.optim.Adam(
                self.phi.parameters(), lr=config.improvement.learning_rate
            ),
            clamp=self._clamp,
            certify=self._certified_modulus,
            noise=noise,
            actions=actions,
            workers=workers,
        )

    @staticmethod
    def to_study(
        domain: PlanDomain, config: LearnerConfig, device: torch.device, *, seed: int = 0
    ) -> "UpiLearner":
        """A learner whose networks wait for the weights of a checkpoint; it is not trained on.

        Args:
            domain: the rules.
            config: the recipe.
            device: of the networks.
            seed: of all its generators.
        """
        init, noise, actions = (torch.Generator().manual_seed(seed) for _ in range(3))
        return UpiLearner(
            domain,
            config,
            dead_end="absorb",
            device=device,
            init=init,
            noise=noise,
            actions=actions,
            lessons=np.random.default_rng(seed),
        )

    def beside(self, domain: PlanDomain) -> "UpiLearner":
        """A learner in another domain whose networks and optimisers are the ones of this learner.

        Its rollouts, replay and certificates are its own. The bounds of both domains hold for the
        weights that they share.

        Raises:
            ValueError: a weight depends on the size of the domain; names it.
        """
        parts = self.parts
        other = UpiLearner(
            domain,
            self.config,
            dead_end=self._dead_end,
            device=self.device,
            init=torch.Generator(),
            noise=parts.noise,
            actions=parts.actions,
            lessons=self._lessons,
            workers=parts.workers,
        )
        for name, module in self.modules.items():
            _share_weights(module, other.modules[name])
        self.clamps.extend(other.clamps)
        self.certificates.extend(other.certificates)
        other.clamps, other.certificates = self.clamps, self.certificates
        self._clamp()
        other.parts = replace(
            other.parts,
            value_optimiser=parts.value_optimiser,
            policy_optimiser=parts.policy_optimiser,
        )
        return other

    def iterate(self, roller: Rollout, *, steps: int) -> dict[str, float]:
        """One iteration with `steps` edits of every plan; returns its metrics."""
        return iteration(self.parts, roller, steps=steps)

    @property
    def policy(self) -> TinyRecursiveModel:
        """pi_phi, where it is the policy.

        Raises:
            ValueError: where no single network is the policy.
        """
        if not self.config.improvement.distil:
            raise ValueError(
                "improvement.distil is false: the policy is a mixture of networks, which has no"
                " latent of its own to study"
            )
        return self.phi

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every network by its name in a checkpoint."""
        target = self.parts.target.model
        first, *others = self.parts.pi.parts.items()
        return dict([("evaluator", self.evaluator), first, ("target", target), *others])

    @property
    def deployed(self) -> TinyRecursiveModel | MixturePolicy:
        """What to evaluate and to use: phi, the average of its weights, the chain, or Q_n."""
        if self.config.improvement.deploy == "improved":
            return self.evaluator
        return self.parts.pi.deployed

    def probabilities(self, states: StateBatch) -> PerEdit:
        """pi(a | s)."""
        return self.parts.pi.probabilities(states)

    def compile_steps(self, placement: Placement) -> None:
        """Compile the latent updates where the placement asks for it."""
        for model in self.modules.values():
            if isinstance(model, TinyRecursiveModel):
                model.compile_step(placement.compiled)

    def scale_learning_rates(self, share: float) -> None:
        """Set both learning rates to `share` of the recipe's."""
        for optimiser, rate in (
            (self.parts.value_optimiser, self.config.evaluator.learning_rate),
            (self.parts.policy_optimiser, self.config.improvement.learning_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = share * rate

    # --- The parts of a recipe

    def _acting_policy(self) -> ActingPolicy:
        config = self.config.improvement
        if not config.distil:
            return ChainPolicy(self.phi, length=config.chain_length, clamp=self._clamp)
        return DistilledPolicy(self.phi, config.average_rate)

    def _actor(self, pi: ActingPolicy) -> Actor:
        plans = self.config.rollout.plans
        if self.config.model.latent == "episodic":
            return Actor(pi.probabilities, plans)
        return PersistentActor(
            self.phi,
            self.evaluator,
            self.domain,
            plans=plans,
            device=self.device,
            modulus=self._evaluator_modulus,
        )

    def _edit_values(
        self,
        value: ValueFunction,
        dead_end: DeadEnd,
        lessons: np.random.Generator,
        workers: Workers,
    ) -> EditValues:
        config = self.config.evaluator
        common: Any = {"value": value, "config": config, "dead_end": dead_end}
        if config.edit_values == "successor":
            return EditValues(**common)
        if config.edit_values == "certified":
            certificates = Certificates(
                self.domain,
                capacity=config.certificates,
                plans=self.config.rollout.plans,
                generator=lessons,
            )
            return CertifiedValues(**common, certificates=certificates, workers=workers)
        return CorrectedValues(**common, of_state=config.edit_values == "state")

    def _states(
        self, value: ValueFunction, edit_values: EditValues, noise: torch.Generator
    ) -> StateRule:
        config = self.config.improvement
        if isinstance(edit_values, CertifiedValues):
            return CertifiedStates(
                certificates=edit_values.certificates, count=config.lookahead_states, value=value
            )
        return VisitedStates(config=config, value=value, noise=noise)

    def _advantages(
        self, value: ValueFunction, edit_values: EditValues, workers: Workers
    ) -> AdvantageRule:
        config = self.config.improvement
        if config.advantage == "gae":
            gamma = self.config.evaluator.gamma
            return GaeAdvantages(value=value, edit_values=edit_values, gamma=gamma)
        return ExactAdvantages(
            edit_values=edit_values,
            value=value,
            state_weight=config.state_weight,
            workers=workers,
        )

    def _clamp(self) -> None:
        for clamp in self.clamps:
            clamp.apply()

    def _evaluator_modulus(self) -> float:
        return self.certificates[0].bound() if self.certificates else float("inf")

    def _certified_modulus(self) -> dict[str, float]:
        """Proven bound on L_z, the larger of evaluator and policy; nothing without a bound."""
        bounds = [certificate.bound() for certificate in self.certificates]
        return {"certified_modulus": max(bounds)} if bounds else {}

    # --- Checkpoints

    def weights(self) -> dict[str, Tensor]:
        """All network weights by name."""
        return {
            f"{part}.{name}": tensor
            for part, model in self.modules.items()
            for name, tensor in model.state_dict().items()
        }

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Counterpart of `weights`."""
        self.evaluator.load_state_dict(part_of(weights, "evaluator"))
        self.parts.target.model.load_state_dict(part_of(weights, "target"))
        pi = self.parts.pi
        pi.load({part: part_of(weights, part) for part in pi.parts})

    def state(self) -> dict[str, Any]:
        """Optimisers and memory; the generators belong to whoever passed them in."""
        return {
            "evaluator_optimiser": self.parts.value_optimiser.state_dict(),
            "policy_optimiser": self.parts.policy_optimiser.state_dict(),
            **self.memory(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.parts.value_optimiser.load_state_dict(state["evaluator_optimiser"])
        self.parts.policy_optimiser.load_state_dict(state["policy_optimiser"])
        self.load_memory(state)

    def memory(self) -> dict[str, Any]:
        """What is kept of rollouts: carried latents, replay, certificates."""
        return {
            "carried": self.parts.actor.state(),
            "replay": [past.state() for past in self.parts.replay],
            "edit_values": self.parts.edit_values.state(),
        }

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `memory`."""
        self.parts.actor.load_state(state.get("carried", {}))
        self.parts.replay.clear()
        self.parts.replay.extend(Transitions.from_state(past) for past in state["replay"])
        self.parts.edit_values.load_state(state.get("edit_values", {}))


def _share_weights(owner: nn.Module, taker: nn.Module) -> None:
    """Make the parameters of one module those of another of the same recipe, not copies of them."""
    for name, weight in owner.named_parameters():
        path, _, leaf = name.rpartition(".")
        had = taker.get_parameter(name)
        if had.shape != weight.shape:
            raise ValueError(
                f"the weight {name} depends on the size of the environment: {tuple(weight.shape)}"
                f" and {tuple(had.shape)}"
            )
        setattr(taker.get_submodule(path), leaf, weight)
