"""What a new domain gets for free from its mask, its edits and its checker.

`general_successors` fulfils `PlanDomain.successors` for any domain with one batched edit and check
over all legal actions, so that a domain can be written in one file (docs/new_domain.md). A domain
with a faster way of its own is compared with this one by `plan_envs.testing.check_successors`.
"""

from typing import Final

import numpy as np

from plan_envs.domain import (
    DeadEnd,
    Int8Array,
    PlanDomain,
    RewardKind,
    Successors,
    edit_reward,
    potential,
)

_CHUNK_BYTES: Final = 1 << 24
"""Size of the masks that are looked at in one go: the masks of all successors need not fit."""


def general_successors(
    domain: PlanDomain,
    instances: Int8Array,
    plans: Int8Array,
    *,
    gamma: float = 0.99,
    reward: RewardKind = "shaped",
    dead_end: DeadEnd = "absorb",
    with_plans: bool = True,
) -> Successors:
    """Every legal edit of every plan with its outcome, from mask, edit and check alone.

    Args:
        domain: the rules; its own `successors` is not called.
        instances: shape [batch, instance].
        plans: shape [batch, cell].
        gamma: discount of the shaping, in (0, 1].
        reward: "shaped" or "sparse".
        dead_end: "absorb" ends episodes at dead plans, "continue" plays on.
        with_plans: also return the edited plans.

    Raises:
        ValueError: for an unknown reward or dead end.
    """
    if reward not in ("shaped", "sparse"):
        raise ValueError(f"reward must be 'shaped' or 'sparse', got {reward!r}")
    if dead_end not in ("absorb", "continue"):
        raise ValueError(f"dead_end must be 'absorb' or 'continue', got {dead_end!r}")
    masks = domain.action_mask(instances, plans)
    state, action = (index.astype(np.int32) for index in np.nonzero(masks))
    offsets = np.append(0, masks.sum(axis=1, dtype=np.int64).cumsum())
    phi = potential(domain.check(instances, plans).score, domain.spec.max_score)
    edited = domain.edit(instances[state], plans[state], action)
    verdict = domain.check(instances[state], edited)
    absorbed = verdict.solved | domain.is_stop(action)
    if dead_end == "absorb":
        absorbed |= verdict.dead
    live = np.flatnonzero(~absorbed)
    length = max(1, _CHUNK_BYTES // domain.spec.num_actions)
    for start in range(0, len(live), length):
        rows = live[start : start + length]
        left = domain.action_mask(instances[state[rows]], edited[rows])
        absorbed[rows] = ~left.any(axis=1)
    worth = edit_reward(
        phi[state],
        potential(verdict.score, domain.spec.max_score),
        solved=verdict.solved,
        absorbed=absorbed,
        gamma=gamma,
        reward=reward,
    )
    return Successors(
        offsets=offsets,
        state=state,
        action=action,
        plan=edited if with_plans else edited[:0],
        score=verdict.score,
        reward=worth.astype(np.float32),
        solved=verdict.solved,
        dead=verdict.dead,
        terminated=absorbed,
    )
