"""Small Sudokus as tables: all reachable plans, and values of a policy solved exactly.

The oracle of the value, advantage and improvement tests. States are the live plans of one
instance; an edit that ends the episode leads nowhere (its folded reward is its whole return).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from plan_envs.domain import DeadEnd, Int8Array, RewardKind, potential
from plan_envs.sudoku.rules import Sudoku

Array = NDArray[np.float64]

PUZZLE = np.array([[1, 2, 3, 4, 3, 0, 1, 2, 2, 1, 0, 3, 4, 0, 2, 1]], np.int8)
"""4x4 with three blanks and one completion: cells 5, 10 and 13 take 4, 4 and 3."""

FILL = Sudoku(4, "digits", "fill", "givens")
"""No edit is undone: 5^3 plans, of which the dead ones end the episode or let it go on."""
OVERWRITE = Sudoku(4, "digits", "overwrite", "givens")
"""Digits may be changed for ever: plans come back."""
FULL = Sudoku(4)
"""Erasing and STOP too."""


@dataclass(frozen=True, kw_only=True)
class TabularMDP:
    """Live states of one instance; arrays over [state, action]."""

    domain: Sudoku
    gamma: float
    instances: Int8Array
    """[state, cell], all rows equal."""
    plans: Int8Array
    """[state, cell]; state 0 is the initial plan."""
    mask: NDArray[np.bool_]
    reward: Array
    """Folded reward of an edit, 0 where illegal."""
    next_state: NDArray[np.int64]
    """State after an edit; -1 where the episode ends, or the edit is illegal."""
    phi: Array
    """[state]"""

    def index(self, plans: Int8Array) -> NDArray[np.int64]:
        """Number of each plan."""
        number = {plan.tobytes(): i for i, plan in enumerate(self.plans)}
        return np.array([number[plan.tobytes()] for plan in plans])

    def transition(self, policy: Array) -> Array:
        """P_pi(s' | s) between live states; rows sum to less than 1 where episodes end."""
        table = np.zeros((len(self.plans), len(self.plans)))
        state, action = np.nonzero(self.next_state >= 0)
        np.add.at(table, (state, self.next_state[state, action]), policy[state, action])
        return table

    def value(self, policy: Array) -> Array:
        """V^pi, from (I - gamma P_pi) V = R_pi."""
        matrix = np.eye(len(self.plans)) - self.gamma * self.transition(policy)
        return solve(matrix, (policy * self.reward).sum(axis=1))

    def action_value(self, value: Array) -> Array:
        """Q(s, a) = r + gamma V(s'), 0 where illegal."""
        after = np.where(self.next_state >= 0, value[self.next_state], 0.0)
        return self.reward + self.gamma * after

    def advantage(self, policy: Array) -> Array:
        """A^pi(s, a) = Q^pi(s, a) - V^pi(s), 0 where illegal."""
        value = self.value(policy)
        return np.where(self.mask, self.action_value(value) - value[:, None], 0.0)

    def visits(self, policy: Array) -> Array:
        """d_pi(s) = (1 - gamma) sum_t gamma^t P(s_t = s) from the initial plan, on live states."""
        start = np.zeros(len(self.plans))
        start[0] = 1.0 - self.gamma
        return solve(np.eye(len(start)) - self.gamma * self.transition(policy).T, start)


def solve(matrix: Array, right: Array) -> Array:
    """x with matrix x = right; by torch, which keeps to the one thread of the test suite."""
    return torch.linalg.solve(torch.from_numpy(matrix), torch.from_numpy(right)).numpy()


def tabular(
    domain: Sudoku,
    *,
    gamma: float = 0.9,
    dead_end: DeadEnd = "absorb",
    reward: RewardKind = "shaped",
    instance: Int8Array = PUZZLE,
) -> TabularMDP:
    """Enumerate what can be reached from the initial plan."""
    start = domain.initial(instance)
    number = {start[0].tobytes(): 0}
    plans, rows, frontier = [start[0]], [], start
    while len(frontier):
        found = domain.successors(
            np.repeat(instance, len(frontier), axis=0),
            frontier,
            gamma=gamma,
            reward=reward,
            dead_end=dead_end,
        )
        first = len(plans) - len(frontier)
        for i in range(len(found.action)):
            after, target = found.plan[i], -1
            if not found.terminated[i]:
                target = number.setdefault(after.tobytes(), len(plans))
                if target == len(plans):
                    plans.append(after)
            rows.append(
                (first + int(found.state[i]), int(found.action[i]), found.reward[i], target)
            )
        frontier = np.array(plans[first + len(frontier) :], np.int8)
    shape = (len(plans), domain.spec.num_actions)
    mask, worth, target = np.zeros(shape, bool), np.zeros(shape), np.full(shape, -1)
    for s, a, r, t in rows:
        mask[s, a], worth[s, a], target[s, a] = True, r, t
    boards, instances = np.array(plans), np.repeat(instance, len(plans), axis=0)
    score = domain.check(instances, boards).score
    return TabularMDP(
        domain=domain,
        gamma=gamma,
        instances=instances,
        plans=boards,
        mask=mask,
        reward=worth,
        next_state=target,
        phi=potential(score, domain.spec.max_score),
    )


def random_policy(mdp: TabularMDP, seed: int, *, sharpness: float = 1.0) -> Array:
    """Positive probabilities on the legal edits of every state."""
    rng = np.random.default_rng(seed)
    weight = np.where(mdp.mask, np.exp(sharpness * rng.standard_normal(mdp.mask.shape)), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def deterministic_policy(mdp: TabularMDP, seed: int) -> Array:
    """One legal edit a state."""
    chosen = random_policy(mdp, seed).argmax(axis=1)
    return np.eye(mdp.mask.shape[1])[chosen]
