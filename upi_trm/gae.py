"""Generalised advantage estimates, the alternative to exact lookahead (Schulman et al. 2016)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    reward: Float[Tensor, "step plan"],
    value: Float[Tensor, "step plan"],
    next_value: Float[Tensor, "step plan"],
    terminated: Bool[Tensor, "step plan"],
    truncated: Bool[Tensor, "step plan"],
    *,
    gamma: float,
    decay: float,
) -> Float[Tensor, "step plan"]:
    """Generalised advantage estimates of the edits made: sum_k (gamma lambda)^k delta_{t+k}.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), V = 0 after absorption; a truncated episode
    bootstraps with the value of the state that was cut off. Centring is only approximate: see
    `centring_defect`.
    """
    after = torch.where(terminated, torch.zeros_like(next_value), next_value)
    delta = reward + gamma * after - value
    carries = (~(terminated | truncated)).to(delta.dtype)
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * decay * carries[t] * running
        advantage[t] = running
    return advantage
