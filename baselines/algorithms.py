"""The `algorithm` of a recipe and its section, and the SB3 object that they stand for.

Hyper-parameters keep SB3's meaning under names that say it; what is not in a section has SB3's
default. `make_algorithm` builds the object on a `PlanEditVecEnv` and a backbone; nothing here
trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
from trm.experiments.sections import check_at_least, check_positive, check_within
from trm.experiments.states import model_shape
from trm.nn.model import ModelConfig, TinyRecursiveModel
from trm.runs.recipe import Retired

Algorithm = Literal["ppo", "a2c", "dqn", "maskable-ppo"]

METHODS: dict[Algorithm, str] = {
    "ppo": "PPO",
    "a2c": "A2C",
    "dqn": "DQN",
    "maskable-ppo": "MaskablePPO",
}
"""Names in tables."""


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """What the sections `ppo` and `a2c` share."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "value_weight": Retired(0.5, "The value loss has SB3's weight, 0.5."),
        "gradient_limit": Retired(0.5, "The gradient has SB3's largest norm, 0.5."),
    }

    learning_rate: float = 1e-3
    """Adam's step size, or that of A2C's optimiser."""
    gae_decay: float = 1.0
    """lambda of GAE."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    own_critic: bool = False
    """Give the critic a backbone of its own, as UPI-TRM's evaluator has."""

    def check(self, section: str) -> None:
        """Check ranges; see `trm.experiments.sections.check_at_least`."""
        check_positive(self, section, "learning_rate")
        check_within(self, section, "[0, 1]", "gae_decay")
        check_at_least(self, section, 0, "entropy")


@dataclass(frozen=True, kw_only=True)
class PpoConfig(ActorCriticConfig):
    """The `ppo` section of a recipe, for algorithms ppo and maskable-ppo."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        **ActorCriticConfig.RETIRED,
        "target_kl": Retired(None, "An update never ends early."),
    }

    gae_decay: float = 0.95
    batch_size: int = 128
    """States in a minibatch; divides rollout.plans * rollout.steps."""
    passes: int = 4
    """Passes over a rollout (SB3: n_epochs)."""
    clip: float = 0.2
    """epsilon of the clipped ratio."""
    advantage: Literal["gae", "exact"] = "gae"
    """PPO has GAE; "exact" puts UPI-TRM's lookahead over all legal edits in its place."""

    def __post_init__(self) -> None:
        self.check("ppo")
        check_at_least(self, "ppo", 1, "passes")
        check_at_least(self, "ppo", 2, "batch_size")
        check_positive(self, "ppo", "clip")


@dataclass(frozen=True, kw_only=True)
class A2cConfig(ActorCriticConfig):
    """The `a2c` section of a recipe."""

    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    normalise_advantage: bool = False
    """Bring the advantages of a rollout to mean 0 and deviation 1."""

    def __post_init__(self) -> None:
        self.check("a2c")


@dataclass(frozen=True, kw_only=True)
class DqnConfig:
    """The `dqn` section of a recipe."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "target_rate": Retired(1.0, "An update of the target network copies the weights."),
        "epsilon_start": Retired(1.0, "Exploration begins with uniform legal play, epsilon 1."),
        "gradient_limit": Retired(10.0, "The gradient has SB3's largest norm, 10."),
    }

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
    epsilon_end: float = 0.05
    """Epsilon falls from 1 to this value."""
    epsilon_share: float = 0.3
    """Share of the budget over which epsilon falls."""
    epsilon_draw: EpsilonDraw = "together"
    """Whether all plans explore at the same moments, as in SB3, or each at its own."""
    dueling: bool = True
    """Q = V + A - mean A, which uses the backbone's value head too."""

    def __post_init__(self) -> None:
        check_positive(self, "dqn", "learning_rate")
        check_at_least(
            self, "dqn", 1, "replay_size", "batch_size", "gradient_steps", "target_every"
        )
        check_at_least(self, "dqn", 0, "learning_starts")
        check_within(self, "dqn", "[0, 1]", "epsilon_end")
        check_within(self, "dqn", "(0, 1]", "epsilon_share")


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
        made = _dqn(section, common, backbone, steps)
    else:
        made = _actor_critic(algorithm, section, common, backbone, steps)
    made.set_logger(Logger(folder=None, output_formats=[]))
    return made


def _actor_critic(
    algorithm: Algorithm,
    section: PpoConfig | A2cConfig,
    common: dict[str, Any],
    backbone: dict[str, Any],
    steps: int,
) -> BaseAlgorithm:
    options = {
        **common,
        "n_steps": steps,
        "gae_lambda": section.gae_decay,
        "ent_coef": section.entropy,
        "policy_kwargs": {**backbone, "share_features_extractor": not section.own_critic},
    }
    if isinstance(section, A2cConfig):
        return A2C(
            MaskedActorCriticPolicy,
            **options,
            use_rms_prop=section.optimiser == "rmsprop",
            normalize_advantage=section.normalise_advantage,
        )
    options |= {
        "batch_size": section.batch_size,
        "n_epochs": section.passes,
        "clip_range": section.clip,
    }
    if algorithm == "maskable-ppo":
        return MaskablePPO(MaskableTrmPolicy, **options)
    return PPO(MaskedActorCriticPolicy, **options)


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
