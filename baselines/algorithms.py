"""The `algorithm` of a recipe and its section, and the SB3 object that they stand for.

Hyper-parameters keep SB3's meaning under names that say it; what is not in a section has SB3's
default. `make_algorithm` builds the object on a `PlanEditVecEnv` and a backbone; nothing here
trains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from baselines.masked_sb3 import (
    EpsilonDraw,
    MaskableTrmPolicy,
    MaskedActorCriticPolicy,
    MaskedDQN,
    MaskedDQNPolicy,
    TrmFeatures,
)
from baselines.vec_adapter import PlanEditVecEnv
from trm.experiments.states import model_shape
from trm.nn.model import ModelConfig, TinyRecursiveModel

Algorithm = Literal["ppo", "a2c", "dqn", "maskable-ppo"]

METHODS: dict[Algorithm, str] = {
    "ppo": "PPO",
    "a2c": "A2C",
    "dqn": "DQN",
    "maskable-ppo": "MaskablePPO",
}
"""Names in tables."""


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """The `ppo` section of a recipe, for algorithms ppo and maskable-ppo."""

    learning_rate: float = 1e-3
    """Adam's step size."""
    batch_size: int = 128
    """States in a minibatch; divides rollout.plans * rollout.steps."""
    passes: int = 4
    """Passes over a rollout (SB3: n_epochs)."""
    gae_decay: float = 0.95
    """lambda of GAE."""
    clip: float = 0.2
    """epsilon of the clipped ratio."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    gradient_limit: float = 0.5
    """Largest norm of the gradient."""
    target_kl: float | None = None
    """The update ends when the policy has moved 1.5 times as far; null = never."""
    own_critic: bool = False
    """Give the critic a backbone of its own, as UPI-TRM's evaluator has."""
    advantage: Literal["gae", "exact"] = "gae"
    """PPO has GAE; "exact" puts UPI-TRM's lookahead over all legal edits in its place."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_actor_critic(self, "ppo")
        _check_at_least(self, "ppo", 1, "passes")
        _check_at_least(self, "ppo", 2, "batch_size")
        _check_positive(self, "ppo", "clip")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"ppo.target_kl must be positive or null, got {self.target_kl}")


@dataclass(frozen=True, kw_only=True)
class A2cConfig:
    """The `a2c` section of a recipe."""

    learning_rate: float = 1e-3
    """The optimiser's step size."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    gae_decay: float = 1.0
    """lambda of GAE."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    gradient_limit: float = 0.5
    """Largest norm of the gradient."""
    normalise_advantage: bool = False
    """Bring the advantages of a rollout to mean 0 and deviation 1."""
    own_critic: bool = False
    """Give the critic a backbone of its own, as UPI-TRM's evaluator has."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_actor_critic(self, "a2c")


@dataclass(frozen=True, kw_only=True)
class DqnConfig:
    """The `dqn` section of a recipe."""

    learning_rate: float = 1e-3
    """Adam's step size."""
    replay_size: int = 20_000
    """Edits kept; masks make them large (9x9: 1.8 kB an edit, ARC: 56 kB)."""
    learning_starts: int = 1_000
    """Edits by uniform legal play before the first update."""
    batch_size: int = 128
    """Edits in a minibatch."""
    gradient_steps: int = 4
    """Updates after every rollout."""
    target_every: int = 1_000
    """Edits between two updates of the target network; at least rollout.plans."""
    target_rate: float = 1.0
    """Rate of these updates (SB3: tau); 1 copies the weights."""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_share: float = 0.3
    """Share of the budget over which epsilon falls."""
    epsilon_draw: EpsilonDraw = "together"
    """Whether all plans explore at the same moments, as in SB3, or each at its own."""
    dueling: bool = True
    """Q = V + A - mean A, which uses the backbone's value head too."""
    gradient_limit: float = 10.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive(self, "dqn", "learning_rate", "gradient_limit")
        _check_at_least(
            self, "dqn", 1, "replay_size", "batch_size", "gradient_steps", "target_every"
        )
        _check_at_least(self, "dqn", 0, "learning_starts")
        _check_share(self, "dqn", "epsilon_start", "epsilon_end")
        for name in ("target_rate", "epsilon_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"dqn.{name} must lie in (0, 1], got {getattr(self, name)}")


Section = PpoConfig | A2cConfig | DqnConfig

SECTIONS: dict[Algorithm, str] = {"ppo": "ppo", "maskable-ppo": "ppo", "a2c": "a2c", "dqn": "dqn"}
"""The section of the recipe that each algorithm reads."""


def make_algorithm(
    algorithm: Algorithm,
    section: Section,
    env: PlanEditVecEnv,
    model: ModelConfig,
    *,
    steps: int,
    gamma: float,
    final_learning_rate: float,
    generator: torch.Generator,
    device: torch.device,
) -> BaseAlgorithm:
    """The SB3 object, untrained.

    Args:
        algorithm: which.
        section: its hyper-parameters.
        env: the plans it edits.
        model: the backbone's configuration.
        steps: edits of every plan between two updates.
        gamma: discount; that of the environment's shaping.
        final_learning_rate: share of the learning rate that is left at the end of the budget.
        generator: initialises the networks.
        device: where they are.
    """
    rate, final = section.learning_rate, final_learning_rate
    common: dict[str, Any] = {
        "env": env,
        "gamma": gamma,
        "device": device,
        "max_grad_norm": section.gradient_limit,
        "learning_rate": lambda left: rate * (final + (1.0 - final) * left),
    }
    backbone = {
        "features_extractor_class": TrmFeatures,
        "features_extractor_kwargs": {
            "shape": model_shape(env.vector_env.task.domain.spec),
            "config": model,
            "generator": generator,
        },
    }
    if isinstance(section, DqnConfig):
        made: BaseAlgorithm = _dqn(section, common, backbone, steps)
    elif isinstance(section, A2cConfig):
        made = _a2c(section, common, backbone, steps)
    else:
        made = _ppo(section, common, backbone, steps, maskable=algorithm == "maskable-ppo")
    made.set_logger(Logger(folder=None, output_formats=[]))
    return made


def _ppo(
    section: PpoConfig,
    common: dict[str, Any],
    backbone: dict[str, Any],
    steps: int,
    *,
    maskable: bool,
) -> BaseAlgorithm:
    options = {
        **common,
        "n_steps": steps,
        "batch_size": section.batch_size,
        "n_epochs": section.passes,
        "gae_lambda": section.gae_decay,
        "clip_range": section.clip,
        "ent_coef": section.entropy,
        "vf_coef": section.value_weight,
        "target_kl": section.target_kl,
        "policy_kwargs": {**backbone, "share_features_extractor": not section.own_critic},
    }
    if maskable:
        return MaskablePPO(MaskableTrmPolicy, **options)
    return PPO(MaskedActorCriticPolicy, **options)


def _a2c(
    section: A2cConfig, common: dict[str, Any], backbone: dict[str, Any], steps: int
) -> BaseAlgorithm:
    return A2C(
        MaskedActorCriticPolicy,
        **common,
        n_steps=steps,
        gae_lambda=section.gae_decay,
        ent_coef=section.entropy,
        vf_coef=section.value_weight,
        use_rms_prop=section.optimiser == "rmsprop",
        normalize_advantage=section.normalise_advantage,
        policy_kwargs={**backbone, "share_features_extractor": not section.own_critic},
    )


def _dqn(
    section: DqnConfig, common: dict[str, Any], backbone: dict[str, Any], steps: int
) -> BaseAlgorithm:
    made = MaskedDQN(
        MaskedDQNPolicy,
        **common,
        train_freq=steps,
        buffer_size=section.replay_size,
        learning_starts=section.learning_starts,
        batch_size=section.batch_size,
        gradient_steps=section.gradient_steps,
        target_update_interval=section.target_every,
        tau=section.target_rate,
        exploration_initial_eps=section.epsilon_start,
        exploration_final_eps=section.epsilon_end,
        exploration_fraction=section.epsilon_share,
        policy_kwargs={**backbone, "dueling": section.dueling},
    )
    made.epsilon_draw = section.epsilon_draw
    return made


def networks_of(algorithm: BaseAlgorithm) -> dict[str, TinyRecursiveModel]:
    """The backbones of an SB3 object by role; "policy" is the one that plays.

    "critic" where the critic has a network of its own, "target" for DQN.
    """
    policy: Any = algorithm.policy
    if isinstance(algorithm, MaskedDQN):
        return {
            "policy": policy.q_net.features_extractor.model,
            "target": policy.q_net_target.features_extractor.model,
        }
    networks = {"policy": policy.pi_features_extractor.model}
    if not policy.share_features_extractor:
        networks["critic"] = policy.vf_features_extractor.model
    return networks


def compile_steps(algorithm: BaseAlgorithm, compiled: Callable[[Any], Any]) -> None:
    """Let `compiled` (a `Placement.compiled`) wrap the latent update of every network."""
    for network in networks_of(algorithm).values():
        network.compile_step(compiled)


def _check_actor_critic(section: PpoConfig | A2cConfig, name: str) -> None:
    _check_positive(section, name, "learning_rate", "gradient_limit")
    _check_share(section, name, "gae_decay")
    _check_at_least(section, name, 0, "entropy", "value_weight")


def _check_positive(section: Any, name: str, *fields: str) -> None:
    for field in fields:
        if not getattr(section, field) > 0:
            raise ValueError(f"{name}.{field} must be positive, got {getattr(section, field)}")


def _check_at_least(section: Any, name: str, least: int, *fields: str) -> None:
    for field in fields:
        if not getattr(section, field) >= least:
            raise ValueError(
                f"{name}.{field} must be at least {least}, got {getattr(section, field)}"
            )


def _check_share(section: Any, name: str, *fields: str) -> None:
    for field in fields:
        if not 0 <= getattr(section, field) <= 1:
            raise ValueError(f"{name}.{field} must lie in [0, 1], got {getattr(section, field)}")
