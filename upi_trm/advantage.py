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

from plan_envs.domain import DeadEnd, PlanDomain
from trm.experiments.states import Boards
from trm.nn.model import StateBatch
from upi_trm.rollout import Transitions, Visits

PerEdit = Float[Tensor, "batch action"]
"""A figure of every edit in every state: Q, an advantage, or the probabilities of a policy."""

SuccessorValue = Callable[[Boards, NDArray[np.float32], NDArray[np.int64]], Tensor]
"""(states, scores, parents) -> U_n of each successor, shape [successor]. `parents` are the places
in the batch of the states that the edits were made in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookahead:
    """One-step action values of a batch of states."""

    q: PerEdit
    """Q(s, a) = r + gamma U_n(s'); 0 at illegal edits."""
    mask: Bool[Tensor, "batch action"]
    """Legal edits, True = legal."""
    undecided: Bool[Tensor, "batch action"]
    """Legal edits whose outcome the checker does not know: their Q reads the network."""
    num_evaluated: int
    """Successors that needed the network."""
    num_successors: int
    """All successors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantages:
    """What candidates are formed from, at the states that were looked ahead from."""

    advantage: PerEdit
    """A_hat(s, a), centred under pi."""
    weighted: PerEdit
    """Weight of each edit's ratio in a policy gradient; exact: pi(a | s) A_hat(s, a)."""
    success: PerEdit
    """Q(s, a) + Phi(s), the probability of success of each edit; NaN where no Q is known (GAE)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The states that an iteration improves at."""

    visits: Visits
    order: NDArray[np.int64]
    """Their places among the states of the fresh rollout, then of older ones."""
    policy_view: StateBatch
    """The states as the policy sees them."""
    value_view: StateBatch
    """The states as the evaluator sees them."""
    num_held_out: int
    """The first states, which nothing is fitted on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What an advantage rule found at a sample."""

    found: Advantages
    weight: Float[Tensor, " batch"]
    """Weight of each state in the distillation, mean 1."""
    fresh: Transitions
    """The fresh rollout with the advantages of its edits."""
    metrics: dict[str, float]
    exact: bool
    """Whether A_hat is that of every edit, so that a candidate's first-order gain is known."""


AdvantageRule = Callable[[Transitions, Sample, PerEdit], Estimate]
"""(newest rollout, states, pi(a | s) there) -> advantages: exact lookahead, or GAE (phase 2)."""


def look_ahead(
    domain: PlanDomain,
    boards: Boards,
    value: SuccessorValue | None,
    *,
    gamma: float,
    dead_end: DeadEnd,
    device: torch.device,
    by_parent: bool = False,
) -> Lookahead:
    """Q(s, a) = r(s, a, s') + gamma U_n(s') for every legal edit of every state (Sec. 3, phase 2).

    Equal successors are evaluated once; terminal ones cost nothing, since their folded reward is
    their whole return.

    Args:
        domain: the rules.
        boards: the states.
        value: U_n; without it, undecided edits are given their reward alone.
        gamma: discount.
        dead_end: what happens to a plan that can no longer be solved.
        device: where the result goes.
        by_parent: whether a value depends on the state before (a persistent latent), so that equal
            successors of different states are told apart.
    """
    instances = boards.instances
    found = domain.successors(instances, boards.plans, gamma=gamma, dead_end=dead_end)
    q_row = found.reward.astype(np.float32)
    live = np.flatnonzero(~found.terminated)
    num_evaluated = 0
    if len(live) and value is not None:
        owner = found.state[live]
        parent = np.ascontiguousarray(owner, np.int64)
        where = parent[:, None].view(np.int8) if by_parent else instances[owner]
        joined = np.concatenate([where, found.plan[live]], axis=1)
        key = np.ascontiguousarray(joined).view(f"V{joined.shape[1]}").ravel()
        _, first, back = np.unique(key, return_index=True, return_inverse=True)
        chosen = live[first]
        after = Boards(instances=instances[found.state[chosen]], plans=found.plan[chosen])
        u = value(after, found.score[chosen], parent[first])
        q_row[live] += gamma * u.cpu().numpy()[back.ravel()]
        num_evaluated = len(chosen)
    shape = (len(boards), domain.spec.num_actions)
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


def centred_advantage(q: PerEdit, policy: PerEdit, mask: Bool[Tensor, "batch action"]) -> PerEdit:
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


def centring_defect(advantage: PerEdit, policy: PerEdit) -> Float[Tensor, " batch"]:
    """|E_{a~pi}[A_hat(s, a)]| of each state; its supremum is eps_cent (UPI-TRM Remark 5.8)."""
    return (policy.double() * advantage.double()).sum(dim=1).abs()
