"""Exact lookahead and centred advantages (UPI-TRM Sec. 3, phase 2).

Input: states and a fitted evaluator. `look_ahead` expands every legal edit through the domain's
batched `successors`; edits whose outcome the checker already knows need no network. Output: Q(s, a)
for `improvement.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import DeadEnd, Int8Array, PlanDomain

StateValue = Callable[[Int8Array, Int8Array, Int8Array, NDArray[np.float32]], Tensor]
"""(instances, plans, masks, scores) -> U_n of each state, shape [batch]."""

SuccessorValue = Callable[
    [Int8Array, Int8Array, Int8Array, NDArray[np.float32], NDArray[np.int64]], Tensor
]
"""The same with the state that each is a successor of, by its place in the batch, last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookahead:
    """One-step action values of a batch of states."""

    q: Float[Tensor, "batch action"]
    """Q(s, a) = r + gamma U_n(s'); 0 at illegal edits."""
    mask: Bool[Tensor, "batch action"]
    """Legal edits, True = legal."""
    undecided: Bool[Tensor, "batch action"]
    """Legal edits whose outcome the checker does not know: their Q reads the network."""
    num_evaluated: int
    """Successors that needed the network."""
    num_successors: int
    """All successors."""


def look_ahead(
    domain: PlanDomain,
    instances: Int8Array,
    plans: Int8Array,
    state_value: StateValue | None,
    *,
    gamma: float,
    dead_end: DeadEnd,
    device: torch.device,
    successor_value: SuccessorValue | None = None,
) -> Lookahead:
    """Q(s, a) = r(s, a, s') + gamma U_n(s') for every legal edit of every state (Sec. 3, phase 2).

    Equal successors are evaluated once; terminal ones cost nothing (their folded reward is their
    whole return). With a persistent latent a value depends on the state before: give
    `successor_value` in place of `state_value`; equal successors of different states are then told
    apart. With neither, undecided edits are given their reward alone and no network is asked.
    """
    found = domain.successors(instances, plans, gamma=gamma, dead_end=dead_end)
    q_row = found.reward.astype(np.float32)
    live = np.flatnonzero(~found.terminated)
    num_evaluated = 0
    if len(live) and (state_value is not None or successor_value is not None):
        owner = found.state[live]
        parent = np.ascontiguousarray(owner, np.int64)
        where = instances[owner] if successor_value is None else parent[:, None].view(np.int8)
        joined = np.concatenate([where, found.plan[live]], axis=1)
        key = np.ascontiguousarray(joined).view(f"V{joined.shape[1]}").ravel()
        _, first, back = np.unique(key, return_index=True, return_inverse=True)
        chosen = live[first]
        next_instances, next_plans = instances[found.state[chosen]], found.plan[chosen]
        masks = domain.action_mask(next_instances, next_plans)
        score = found.score[chosen]
        if successor_value is not None:
            value = successor_value(next_instances, next_plans, masks, score, parent[first])
        else:
            assert state_value is not None
            value = state_value(next_instances, next_plans, masks, score)
        q_row[live] += gamma * value.cpu().numpy()[back.ravel()]
        num_evaluated = len(chosen)
    shape = (len(plans), domain.spec.num_actions)
    q = np.zeros(shape, np.float32)
    mask, undecided = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    q[found.state, found.action] = q_row
    mask[found.state, found.action] = True
    undecided[found.state[live], found.action[live]] = True
    return Lookahead(
        q=torch.from_numpy(q).to(device),
        mask=torch.from_numpy(mask).to(device),
        undecided=torch.from_numpy(undecided).to(device),
        num_evaluated=num_evaluated,
        num_successors=len(found.action),
    )


def centred_advantage(
    q: Float[Tensor, "batch action"],
    policy: Float[Tensor, "batch action"],
    mask: Bool[Tensor, "batch action"],
) -> Float[Tensor, "batch action"]:
    """A = Q - E_{b~pi}[Q(s, b)] with a full sum over the legal edits (UPI-TRM Eq. 9).

    Args:
        q: one-step action values; entries at illegal edits are ignored.
        policy: probabilities of pi; rows sum to 1, zero where illegal.
        mask: legal edits, True = legal; every row needs at least one.

    Returns:
        Advantages, 0 at illegal edits; E_{a~pi}[A] = 0 up to rounding.

    Raises:
        ValueError: if a row has no legal edit.
    """
    if not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise ValueError(f"state {row} has no legal edit")
    legal_q = torch.where(mask, q, torch.zeros_like(q))
    baseline = (policy * legal_q).sum(dim=1, keepdim=True)
    return torch.where(mask, q - baseline, torch.zeros_like(q))


def centring_defect(
    advantage: Float[Tensor, "batch action"], policy: Float[Tensor, "batch action"]
) -> Float[Tensor, " batch"]:
    """|E_{a~pi}[A_hat(s, a)]| of each state; its supremum is eps_cent (UPI-TRM Remark 5.8)."""
    return (policy.double() * advantage.double()).sum(dim=1).abs()
