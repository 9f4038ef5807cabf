"""Small plan-editing MDPs solved exactly: V^pi, A^pi, eta, d_pi, V* by dynamic programming.

`enumerate_states` expands every plan that legal edits reach from given instances. The horizon is
removed, so that the process is the discounted one of UPI-TRM Sec. 2. `bounds.py` measures both
sides of the paper's inequalities on these tables. All arithmetic is float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, PlanDomain, RewardKind, edit_reward, potential

Array = NDArray[np.float64]
ByState = Float[np.ndarray, " state"]
"""A figure of every state, e.g. V."""
ByEdit = Float[np.ndarray, "state action"]
"""A figure of every edit in every state: Q, an advantage, or the probabilities of a policy."""

MAX_STATES = 20_000
"""Plans that `enumerate_states` lists before it gives up."""

_MAX_DENSE = 3_000
"""Plans of one instance whose linear system is solved densely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactMDP:
    """The live plans of some instances with every legal edit; arrays over [state, action].

    The states of an instance are consecutive and no edit leads to another instance. Absorption
    leads nowhere: the reward is folded (`plan_envs.domain.edit_reward`), V(s_abs) = 0.
    """

    domain: PlanDomain
    gamma: float
    """gamma in (0, 1)."""
    instances: Int8[np.ndarray, "state instance"]
    plans: Int8[np.ndarray, "state cell"]
    first: Int[np.ndarray, " instances"]
    """The state of each instance's first plan, ascending; an episode starts in any of them with the
    same probability."""
    mask: Bool[np.ndarray, "state action"]
    """Legal edits; every state has one."""
    reward: ByEdit
    """Folded reward of an edit, 0 where illegal."""
    next_state: Int[np.ndarray, "state action"]
    """State after an edit; -1 where the episode ends, or the edit is illegal."""

    def __len__(self) -> int:
        """Number of states."""
        return len(self.plans)

    # --- Operators

    def action_value(self, value: ByState) -> Array:
        """Q_V(s, a) = r + gamma V(s'), 0 where illegal; shape [state, action]."""
        after = np.where(self.next_state >= 0, value[self.next_state], 0.0)
        return self.reward + self.gamma * after

    def backup(self, policy: ByEdit, value: ByState, *, steps: int = 1) -> Array:
        """T_K^pi V with K = `steps` (UPI-TRM Eq. 3), shape [state]."""
        for _ in range(steps):
            value = (policy * self.action_value(value)).sum(axis=1)
        return value

    def residual(self, policy: ByEdit, value: ByState, *, steps: int) -> Array:
        """|V - T_K^pi V| with K = `steps` (UPI-TRM Eq. 4), shape [state]."""
        missed: Array = np.abs(value - self.backup(policy, value, steps=steps))
        return missed

    # --- What a policy is worth

    def value(self, policy: ByEdit) -> Array:
        """V^pi, the solution of (I - gamma P_pi) V = R_pi; shape [state]."""
        return self.accumulate(policy, (policy * self.reward).sum(axis=1), discount=self.gamma)

    def accumulate(self, policy: ByEdit, reward: ByState, *, discount: float) -> Array:
        """E_pi[sum_t discount^t reward(s_t)] from every state, until absorption."""
        total = np.empty(len(self))
        for part, transition in self._transitions(policy):
            total[part] = _solve(np.eye(len(transition)) - discount * transition, reward[part])
        return total

    def advantage(self, policy: ByEdit) -> Array:
        """A^pi(s, a) = Q^pi(s, a) - V^pi(s), 0 where illegal."""
        value = self.value(policy)
        return np.where(self.mask, self.action_value(value) - value[:, None], 0.0)

    def performance(self, policy: ByEdit) -> float:
        """Eta(pi), the mean of V^pi over the first plans."""
        return float(self.value(policy)[self.first].mean())

    def visits(self, policy: ByEdit) -> Array:
        """d_pi(s) = (1 - gamma) sum_t gamma^t P(s_t = s) over episodes, shape [state].

        Sums to less than 1: the rest is time spent in the absorbing state, where nothing is earned.
        """
        start = np.zeros(len(self))
        start[self.first] = (1 - self.gamma) / len(self.first)
        visits = np.empty(len(self))
        for part, transition in self._transitions(policy):
            matrix = np.eye(len(transition)) - self.gamma * transition.T
            visits[part] = _solve(matrix, start[part])
        return visits

    # --- The best there is

    def optimal_value(self) -> Array:
        """V*, by policy iteration until no edit is better."""
        states = np.arange(len(self))
        chosen = self.mask.argmax(axis=1)
        while True:
            value = self.value(np.eye(self.mask.shape[1])[chosen])
            q = np.where(self.mask, self.action_value(value), -np.inf)
            best = q.argmax(axis=1)
            # An edit must be better by more than rounding, or ties would alternate for ever.
            better = q[states, best] > q[states, chosen] + 1e-12
            if not better.any():
                return value
            chosen = np.where(better, best, chosen)

    def _transitions(self, policy: Array) -> list[tuple[slice, Array]]:
        """P_pi(s' | s) between the live states of each instance; rows sum to 1 or less."""
        ends = [*self.first[1:], len(self)]
        found = []
        for low, high in zip(self.first, ends, strict=True):
            part = slice(int(low), int(high))
            table = np.zeros((high - low, high - low))
            after = self.next_state[part]
            state, action = np.nonzero(after >= 0)
            np.add.at(table, (state, after[state, action] - low), policy[part][state, action])
            found.append((part, table))
        return found


def enumerate_states(
    domain: PlanDomain,
    instances: Int8Array,
    *,
    gamma: float,
    plans: Int8Array | None = None,
    reward: RewardKind = "shaped",
    max_states: int = MAX_STATES,
) -> ExactMDP:
    """List every plan that legal edits reach from the instances' first plans; dead plans absorb.

    Args:
        domain: the puzzle.
        instances: shape [instance, ...]; each must have something to edit.
        gamma: discount in (0, 1).
        plans: where the episode of each instance starts; None for the domain's initial plans.
        reward: shaped or sparse.
        max_states: the largest number of states that is not refused.

    Raises:
        ValueError: gamma outside (0, 1), an instance without a legal edit, or too many states.
    """
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie in (0, 1) where values are sums for ever, got {gamma}")
    if not len(instances):
        raise ValueError("instances: none to enumerate")
    found = _Frontier(domain, gamma, reward)
    starts = domain.initial(instances) if plans is None else plans
    for number in range(len(instances)):
        found.explore(instances[number], starts[number : number + 1], number, max_states)
    boards = np.repeat(np.ascontiguousarray(instances), found.sizes, axis=0)
    reached = np.array(found.plans, np.int8)
    shape = (len(reached), domain.spec.num_actions)
    mask, worth, target = np.zeros(shape, bool), np.zeros(shape), np.full(shape, -1, np.int64)
    for state, action, gained, after in found.edits:
        mask[state, action], worth[state, action], target[state, action] = True, gained, after
    return ExactMDP(
        domain=domain,
        gamma=gamma,
        instances=boards,
        plans=reached,
        first=np.cumsum([0, *found.sizes[:-1]]),
        mask=mask,
        reward=worth,
        next_state=target,
    )


class _Frontier:
    """Breadth-first search through the plans of one instance after another."""

    def __init__(self, domain: PlanDomain, gamma: float, reward: RewardKind) -> None:
        self.domain, self.gamma, self.reward = domain, gamma, reward
        self.plans: list[NDArray[np.int8]] = []
        self.sizes: list[int] = []
        # Each batch of expanded plans adds one entry: states, actions, rewards, next states.
        self.edits: list[tuple[NDArray[Any], ...]] = []

    def explore(self, instance: Int8Array, start: Int8Array, number: int, max_states: int) -> None:
        """Add every plan of one instance that `start` [1, cell] leads to."""
        if self.domain.check(instance[None], start).solved[0]:
            raise ValueError(f"instance {number} is solved to begin with")
        if not self.domain.action_mask(instance[None], start).any():
            raise ValueError(f"instance {number} has no legal edit to begin with")
        base = len(self.plans)
        most = min(max_states, base + _MAX_DENSE)
        index = {start[0].tobytes(): base}
        self.plans.append(start[0])
        frontier = start
        while len(frontier):
            first = len(self.plans) - len(frontier)
            frontier = self._expand(instance, frontier, first, index)
            if len(self.plans) > most:
                raise ValueError(
                    f"instance {number} reaches too many plans to solve exactly (more than {most} "
                    "up to there): take instances with fewer edits left"
                )
        self.sizes.append(len(self.plans) - base)

    def _expand(
        self, instance: Int8Array, frontier: Int8Array, first: int, index: dict[bytes, int]
    ) -> Int8Array:
        """Every edit of the frontier's plans; returns the plans that are new."""
        boards = np.repeat(instance[None], len(frontier), axis=0)
        out = self.domain.successors(
            boards, frontier, gamma=self.gamma, reward=self.reward, dead_end="absorb"
        )
        phi = self._phi(self.domain.check(boards, frontier).score)
        worth = edit_reward(
            phi[out.state],
            self._phi(out.score),
            solved=out.solved,
            absorbed=out.terminated,
            gamma=self.gamma,
            reward=self.reward,
        )
        target = np.full(len(out.action), -1, np.int64)
        fresh = []
        for i in np.flatnonzero(~out.terminated):
            key = out.plan[i].tobytes()
            if key not in index:
                index[key] = len(self.plans)
                self.plans.append(out.plan[i])
                fresh.append(out.plan[i])
            target[i] = index[key]
        state = out.state.astype(np.int64) + first
        self.edits.append((state, out.action.astype(np.int64), worth, target))
        return np.array(fresh, np.int8).reshape(-1, frontier.shape[1])

    def _phi(self, score: NDArray[np.float32]) -> Array:
        return potential(score, self.domain.spec.max_score)


def _solve(matrix: Array, right: Array) -> Array:
    """Solve matrix x = right for x with torch, whose number of threads is the recorded one."""
    table, column = torch.from_numpy(matrix), torch.from_numpy(right)[:, None]
    # Where no edit is undone, breadth-first order makes the system triangular: no elimination.
    for upper, other in ((True, table.tril(-1)), (False, table.triu(1))):
        if not bool(other.any()):
            solution = torch.linalg.solve_triangular(table, column, upper=upper)
            break
    else:
        solution = torch.linalg.solve(table, column)
    found: Array = solution[:, 0].numpy()
    return found
