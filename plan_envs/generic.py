"""What a new domain gets for free from its tables, its mask and its checker (docs/new_domain.md).

`general_successors` fulfils `PlanDomain.successors` for any domain with one batched edit and check
over all legal actions. `WritingDomain` adds the other functions for domains whose actions write a
value into a cell. A domain with faster ways of its own is compared with these by
`plan_envs.testing`.
"""

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import (
    DeadEnd,
    DomainSpec,
    Int8Array,
    PlanDomain,
    RewardKind,
    Successors,
    Verdict,
    absorbs_dead,
    edit_reward,
    is_shaped,
    potential,
)

_CHUNK_BYTES: Final = 1 << 24
"""Size of the masks that are looked at in one go: the masks of all successors need not fit."""


class WritingDomain(ABC):
    """A `PlanDomain` from spec, mask and checker alone: every action writes a value into a cell.

    An instance's first board is the plan that episodes start from. A legal action writes its
    `action_value` into its `action_cell`; value 0 erases. Actions without a cell change nothing,
    and those of the kind "stop" end the episode.
    """

    @property
    @abstractmethod
    def spec(self) -> DomainSpec:
        """Sizes, action table and constraint groups; see `DomainSpec`."""

    @abstractmethod
    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        """Legal edits, int8 [batch, action]; none that changes nothing, one in every live plan."""

    @abstractmethod
    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        """Score the plans."""

    def initial(self, instances: Int8Array) -> Int8Array:
        """The first board of every instance, copied; shape [batch, cell]."""
        return np.ascontiguousarray(instances[:, : self.spec.num_cells]).copy()

    def edit(self, instances: Int8Array, plans: Int8Array, actions: NDArray[np.int32]) -> Int8Array:
        """The plans after one edit a row; illegal actions leave their row unchanged."""
        spec, edited = self.spec, plans.copy()
        legal = self.action_mask(instances, plans)[np.arange(len(plans)), actions] == 1
        rows = np.flatnonzero(legal & (spec.action_cell[actions] >= 0))
        edited[rows, spec.action_cell[actions[rows]]] = spec.action_value[actions[rows]]
        return edited

    def successors(self, instances: Int8Array, plans: Int8Array, **options: Any) -> Successors:
        """Every legal edit of every plan with its outcome; options as of `general_successors`."""
        return general_successors(self, instances, plans, **options)

    def is_stop(self, actions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which actions are of the kind "stop", shape [batch]."""
        spec = self.spec
        stops = [kind for kind, name in enumerate(spec.kind_names) if name == "stop"]
        return np.isin(spec.action_kind[actions], stops)


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
    is_shaped(reward)  # refuses other words
    absorb = absorbs_dead(dead_end)
    masks = domain.action_mask(instances, plans)
    state, action = (index.astype(np.int32) for index in np.nonzero(masks))
    offsets = np.append(0, masks.sum(axis=1, dtype=np.int64).cumsum())
    phi = potential(domain.check(instances, plans).score, domain.spec.max_score)
    edited = domain.edit(instances[state], plans[state], action)
    verdict = domain.check(instances[state], edited)
    absorbed = verdict.solved | domain.is_stop(action)
    if absorb:
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
