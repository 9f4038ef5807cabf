"""Policies of SB3 on the recursive backbone, with the mask of legal edits in every distribution.

A `TinyRecursiveModel` is the features extractor: it turns an observation into [V(s), masked edit
logits], and the heads of SB3's policies only take these apart, so that a baseline has the network
of UPI-TRM's policy and not one parameter more. The mask is part of the observation: rollout and
replay buffers keep it, and what was computed from it travels in the features. Nothing is stashed
between calls, since SB3's `predict` and `evaluate_actions` reach the extractor by different ways.
The training loops of PPO, A2C, DQN (SB3) and MaskablePPO (sb3-contrib) run as they are; of DQN
only the two places that draw random actions are overridden (`MaskedDQN`).
"""

from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import DQN
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from trm.nn.model import ILLEGAL_LOGIT, ModelConfig, ModelShape, StateBatch, TinyRecursiveModel

Observations = dict[str, Tensor]
"""Keys instance, plan, action_mask, as `PlanEditEnv` observes them."""
EpsilonDraw = Literal["together", "each"]


class TrmFeatures(BaseFeaturesExtractor):
    """Observation -> [V(s), masked logit of every edit], by one pass of the recursion."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        *,
        shape: ModelShape,
        config: ModelConfig,
        generator: torch.Generator,
    ) -> None:
        """Initialise the network from `generator`."""
        super().__init__(observation_space, features_dim=1 + shape.num_actions)
        self.model = TinyRecursiveModel(shape, config, generator=generator)
        self.reads_value = self.reads_edits = True
        """Where actor and critic have networks of their own each leaves out what it has no use for;
        its place is then filled with zeros."""

    def forward(self, observations: Observations) -> Float[Tensor, "batch feature"]:
        """Value first, logits after; `ILLEGAL_LOGIT` where the mask forbids."""
        states = _states_of(observations)
        encoding = self.model.encode(states)
        z = self.model.recur(encoding)
        value = z.new_zeros(len(states))
        logits = z.new_zeros(len(states), self.model.shape.num_actions)
        if self.reads_value:
            value = self.model.value(z, encoding)
        if self.reads_edits:
            logits = self.model.edit_logits(z, encoding, states)
        return torch.cat([value[:, None], logits], dim=1)


class TakeApart(nn.Module):
    """Features -> (logits, value): stands where SB3 expects layers between features and heads."""

    def __init__(self, num_actions: int) -> None:
        """Without parameters."""
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = num_actions, 1

    def forward(
        self, features: Float[Tensor, "batch feature"]
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"]]:
        """What the actor and what the critic reads."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(
        self, features: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, "batch action"]:
        """Masked logits."""
        return features[:, 1:]

    def forward_critic(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch 1"]:
        """Value."""
        return features[:, :1]


class MaskedActorCriticPolicy(ActorCriticPolicy):
    """Actor and critic of PPO and A2C, on one network or on two.

    The logits that leave the features are masked already, so every distribution that SB3 makes of
    them gives illegal edits probability 0 and no entropy: in rollouts, updates and predictions.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        _build_heads(self, lr_schedule)


class MaskableTrmPolicy(MaskableActorCriticPolicy):
    """The same for sb3-contrib's MaskablePPO, which asks the environment for masks once more."""

    def _build(self, lr_schedule: Schedule) -> None:
        _build_heads(self, lr_schedule)


def _build_heads(policy: Any, lr_schedule: Schedule) -> None:
    """No layers beside the backbone's own; SB3's own would take num_actions ** 2 weights."""
    policy.mlp_extractor = TakeApart(int(policy.action_space.n))
    policy.action_net, policy.value_net = nn.Identity(), nn.Identity()
    if not policy.share_features_extractor:
        policy.pi_features_extractor.reads_value = False
        policy.vf_features_extractor.reads_edits = False
    policy.optimizer = policy.optimizer_class(
        policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
    )


class MaskedQNetwork(QNetwork):
    """Q(s, a) of legal edits, `ILLEGAL_LOGIT` for the others; no layer beside the backbone's own.

    With `dueling`, Q = V + A - mean of A over the legal edits (Wang et al. 2016): the value head is
    used too. Otherwise Q is the edit head's output.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        features_extractor: BaseFeaturesExtractor,
        *,
        dueling: bool,
    ) -> None:
        """Skips the layers that `QNetwork` would add."""
        BasePolicy.__init__(
            self, observation_space, action_space, features_extractor=features_extractor
        )
        self.features_dim = features_extractor.features_dim
        self.dueling = dueling
        cast(TrmFeatures, features_extractor).reads_value = dueling

    def forward(self, obs: Observations) -> Float[Tensor, "batch action"]:  # type: ignore[override]
        """Masked action values; a state without a legal edit has only `ILLEGAL_LOGIT`.

        Such a state is absorbing, and the target multiplies its value by 0.
        """
        features: Tensor = self.extract_features(obs, self.features_extractor)
        value, advantage = features[:, :1], features[:, 1:]
        if not self.dueling:
            return advantage
        return dueling_values(value, advantage, obs["action_mask"] > 0)


def dueling_values(
    value: Float[Tensor, "batch 1"],
    advantage: Float[Tensor, "batch action"],
    mask: Bool[Tensor, "batch action"],
) -> Float[Tensor, "batch action"]:
    """Q = V + A - mean of A over the legal edits; `ILLEGAL_LOGIT` elsewhere."""
    legal = torch.where(mask, advantage, 0.0)
    mean = legal.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(mask, value + legal - mean, ILLEGAL_LOGIT)


class MaskedDQNPolicy(DQNPolicy):
    """Q-network and target, each with its own backbone."""

    def __init__(self, *args: Any, dueling: bool = True, **kwargs: Any) -> None:
        """Arguments as of `DQNPolicy`; `dueling` as of `MaskedQNetwork`."""
        self._dueling = dueling
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> MaskedQNetwork:
        """A network of its own."""
        net = MaskedQNetwork(
            self.observation_space,
            cast(spaces.Discrete, self.action_space),
            self.make_features_extractor(),
            dueling=self._dueling,
        )
        return net.to(self.device)


class MaskedDQN(DQN):
    """SB3's DQN with both of its random branches kept within the mask of the observation.

    SB3 draws one number an edit for all plans: they explore together or not at all
    (`epsilon_draw` "together"). With "each" every plan draws its own, which is what epsilon-greedy
    means for one plan and mixes better over many.
    """

    epsilon_draw: EpsilonDraw = "together"

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Warm-up: uniform over the legal edits; afterwards as SB3 does."""
        if self.num_timesteps >= learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert isinstance(self._last_obs, dict)
        actions = random_legal(self._last_obs["action_mask"])
        return actions, actions

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Epsilon-greedy over the legal edits, greedy where `deterministic`."""
        if deterministic:
            return self.policy.predict(observation, state, episode_start, deterministic)
        masks = np.atleast_2d(observation["action_mask"])
        draws = np.random.rand(1 if self.epsilon_draw == "together" else len(masks))  # noqa: NPY002
        explores = np.broadcast_to(draws < self.exploration_rate, len(masks))
        if explores.all():
            actions = random_legal(masks)
        else:
            actions, _ = self.policy.predict(observation, state, episode_start, deterministic=True)
            actions = np.atleast_1d(actions)
            actions[explores] = random_legal(masks[explores])
        return actions.reshape(np.shape(observation["action_mask"])[:-1]), state


def random_legal(masks: NDArray[Any]) -> NDArray[np.int64]:
    """A uniformly drawn legal action a row, from numpy's global stream as all of SB3's draws.

    Args:
        masks: shape [batch, action], 1 = legal; every row needs one.
    """
    ranks = (masks > 0).cumsum(axis=1, dtype=np.int64)
    wanted = np.random.rand(len(masks)) * ranks[:, -1]  # noqa: NPY002
    actions: NDArray[np.int64] = (ranks <= wanted[:, None]).sum(axis=1)
    return actions


def _states_of(observations: Observations) -> StateBatch:
    """SB3 hands boards over as floats."""
    return StateBatch(
        instance=observations["instance"].to(torch.int8),
        plan=observations["plan"].to(torch.int8),
        mask=observations["action_mask"].to(torch.int8),
    )
