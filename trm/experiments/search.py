"""More compute at test time: a verified search and best-of-N sampling, apart from the headline.

The headline of every results table is greedy, one pass. Here the same policy gets more than one
pass and the checker says which plan to keep: `verified_search` goes back from dead plans to the
most probable edit that was left aside, `best_of_samples` plays N sampled episodes. Input: edit
probabilities (`learners.Insight`) and instances; output: the reports that `upi-trm eval`
and `solve` show beside the greedy one. Not in the paper.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array, PlanDomain
from plan_envs.evaluation import EvalReport, evaluate_policy, report_of
from plan_envs.instances import InstanceSet
from trm.experiments.states import EditPolicy, to_states
from trm.nn.model import StateBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchReport:
    """Outcome of a search on each instance."""

    report: EvalReport
    """Report of the best plans found; `edits` counts the plans that the network looked at."""
    budget: int
    """Plans that the network may look at, an instance."""
    expanded: NDArray[np.int64]
    """Plans that it looked at, shape [num]."""

    def to_json_dict(self) -> dict[str, float | int]:
        """The report's numbers, the budget and the mean of what was spent of it."""
        spent = float(self.expanded.mean())
        return {**self.report.to_json_dict(), "budget": self.budget, "mean_expanded": spent}


@torch.no_grad()
def verified_search(
    policy: EditPolicy,
    domain: PlanDomain,
    instances: InstanceSet,
    *,
    budget: int,
    device: torch.device,
) -> SearchReport:
    """Best-first search over plans, led by the policy; stops at the first plan that is solved.

    The cost of a plan is sum_t log pi(a*_t | s_t) - log pi(a_t | s_t) along the edits to it, with
    a* the most probable edit: the greedy plan costs 0 and is followed first; from a dead plan the
    search goes back to the cheapest edit that was left aside. Plans that are equal count once, dead
    ones and those beyond the horizon are dropped, STOP is never taken.

    Where the domain names what is filled one by one (Sudoku: cells, N-Queens: rows), only the edits
    of the group that a* fills are branches: a solution holds one of them, and the order in which
    groups are filled does not matter. Elsewhere every legal edit is a branch.

    Args:
        policy: states -> edit probabilities; must depend on nothing but the state.
        domain: the rules; its checker says what is solved and what is dead.
        instances: what to solve.
        budget: plans that the policy may look at, for each instance.
        device: where the policy computes.

    Raises:
        ValueError: a budget below 1, or a checker that reads boards hidden from the policy, so that
            searching for its approval would be looking at the answer.
    """
    _check(domain, "search", budget)
    boards = instances.instances
    trees = [SearchTree(plan) for plan in domain.initial(boards)]
    groups = filled_groups(domain.spec)
    fresh = list(range(len(trees)))
    while fresh := _advance(domain, boards, trees, fresh):
        rows = np.array(fresh)
        plans = np.stack([trees[row].plan for row in fresh])
        found = branches(policy, domain, boards[rows], plans, groups, device=device)
        for row, one in zip(fresh, found, strict=True):
            trees[row].expand(*one, horizon=domain.spec.horizon)
        fresh = [row for row in fresh if trees[row].expanded < budget]
    expanded = np.array([tree.expanded for tree in trees])
    best = np.stack([tree.best for tree in trees])
    report = report_of(domain, instances, best, edits=int(expanded.sum()))
    return SearchReport(report=report, budget=budget, expanded=expanded)


def best_of_samples(
    policy: EditPolicy,
    domain: PlanDomain,
    instances: InstanceSet,
    *,
    num: int,
    device: torch.device,
    seed: int = 0,
) -> EvalReport:
    """Play up to `num` sampled episodes on each instance and keep the plan with the best score.

    An instance that is solved is not played again. The protocol of an episode is that of
    `evaluate_policy`.

    Raises:
        ValueError: fewer than one sample, or a checker that reads boards hidden from the policy.
    """
    _check(domain, "samples", num)
    sampled = SampledPolicy(policy, device)
    plans = domain.initial(instances.instances)
    score = np.full(len(plans), -np.inf, np.float32)
    left, edits = np.arange(len(plans)), 0
    for draw in range(num):
        some = InstanceSet.of(instances.name, instances.instances[left], instances.solutions[left])
        found = evaluate_policy(sampled, domain, some, seed=seed * num + draw)
        edits += found.edits
        better = found.final_score > score[left]
        plans[left[better]] = found.final_plans[better]
        score[left[better]] = found.final_score[better]
        left = left[~found.solved]
        if not len(left):
            break
    return report_of(domain, instances, plans, edits=edits)


def uniform_policy(states: StateBatch) -> Float[torch.Tensor, "batch action"]:
    """Every legal edit alike: what a search solves that nothing leads."""
    legal = (states.mask > 0).float()
    return legal / legal.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class SampledPolicy:
    """Edits drawn from the policy (a `plan_envs.evaluation.Policy`)."""

    policy: EditPolicy
    device: torch.device

    @torch.no_grad()
    def __call__(
        self, instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        """Shapes [batch, observed], [batch, cell], [batch, action] -> actions, shape [batch]."""
        chance = self.policy(to_states(instances, plans, mask, self.device)).double().cpu().numpy()
        chance = np.where(mask != 0, chance, 0.0).cumsum(axis=1)
        threshold = rng.random((len(plans), 1)) * chance[:, -1:]
        actions: NDArray[np.int32] = (chance <= threshold).sum(axis=1).astype(np.int32)
        return actions


Branches = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Edits of a plan, and what each costs."""


class SearchTree:
    """The search on one instance: the plans set aside, and the one that is current."""

    def __init__(self, plan: Int8Array) -> None:
        """`plan` is where the search starts."""
        self.plan = self.best = plan
        self.best_score = -np.inf
        self.expanded = 0
        self.depth = 0
        self._cost = 0.0
        self._seen: set[bytes] = set()
        self._serial = 0
        # Cheapest first, then deepest, then oldest: (cost, -depth, number, parent, edit).
        self._open: list[tuple[float, int, int, Int8Array, int]] = []

    def __len__(self) -> int:
        """Number of branches that were set aside."""
        return len(self._open)

    def meet(self, plan: Int8Array, score: float) -> bool:
        """Make a plan the current one; whether it was not met before."""
        self.plan = plan
        if score > self.best_score:
            self.best, self.best_score = plan, score
        key = plan.tobytes()
        new = key not in self._seen
        self._seen.add(key)
        return new

    def expand(
        self, actions: NDArray[np.int64], costs: NDArray[np.float64], *, horizon: int
    ) -> None:
        """Set the branches of the current plan aside."""
        self.expanded += 1
        depth = self.depth + 1
        if depth > horizon:
            return
        for action, cost in zip(actions.tolist(), costs.tolist(), strict=True):
            entry = (self._cost + cost, -depth, self._serial, self.plan, action)
            self._serial += 1
            heapq.heappush(self._open, entry)

    def pop(self) -> tuple[Int8Array, int] | None:
        """The cheapest branch: a plan and an edit of it; None when nothing is left."""
        if not self._open:
            return None
        self._cost, depth, _, parent, action = heapq.heappop(self._open)
        self.depth = -depth
        return parent, action

    def state(self) -> dict[str, Any]:
        """What a checkpoint of a search in progress holds."""
        rows = self._open  # a heap stays one as it stands
        return {
            "plan": self.plan,
            "depth": self.depth,
            "cost": self._cost,
            "serial": self._serial,
            "costs": np.array([row[0] for row in rows], np.float64),
            "numbers": np.array([[*row[1:3], row[4]] for row in rows], np.int64).reshape(-1, 3),
            "parents": np.array([row[3] for row in rows], np.int8).reshape(-1, len(self.plan)),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "SearchTree":
        """Counterpart of `state`; what was seen, expanded and best is not in it."""
        tree = SearchTree(state["plan"])
        tree.depth, tree._cost, tree._serial = state["depth"], state["cost"], state["serial"]
        rows = zip(
            state["costs"].tolist(), state["numbers"].tolist(), state["parents"], strict=True
        )
        tree._open = [(cost, one[0], one[1], parent, one[2]) for cost, one, parent in rows]
        return tree


def _advance(
    domain: PlanDomain, boards: Int8Array, trees: list[SearchTree], rows: list[int]
) -> list[int]:
    """Bring each tree to its next live plan; the rows that have one, solved ones left out."""
    ready: list[int] = []
    pending = np.array(rows, np.int64)
    plans = np.stack([trees[row].plan for row in rows]) if rows else np.empty((0, 0), np.int8)
    at_root = bool(rows) and trees[rows[0]].expanded == 0
    while len(pending):
        if not at_root:
            popped = {row: trees[row].pop() for row in pending.tolist()}
            found = [(row, *branch) for row, branch in popped.items() if branch is not None]
            if not found:
                break
            pending = np.array([row for row, _, _ in found], np.int64)
            parents = np.stack([parent for _, parent, _ in found])
            actions = np.array([action for _, _, action in found], np.int32)
            plans = domain.edit(boards[pending], parents, actions)
        verdict = domain.check(boards[pending], plans)
        live = domain.action_mask(boards[pending], plans).any(axis=1) & ~verdict.dead
        again = []
        for place, row in enumerate(pending.tolist()):
            new = trees[row].meet(plans[place].copy(), float(verdict.score[place]))
            if verdict.solved[place]:
                trees[row].best = trees[row].plan
            elif new and live[place]:
                ready.append(row)
            else:
                again.append(row)
        pending, at_root = np.array(again, np.int64), False
    return sorted(ready)


def filled_groups(spec: DomainSpec) -> NDArray[np.int64] | None:
    """What each action fills: a label of the first kind of groups, -1 where it fills nothing."""
    if not spec.groups:
        return None
    kind, labels = next(iter(spec.groups.items()))
    if kind in spec.at_most_one:
        return None
    variable = spec.action_cell.astype(np.int64) * spec.num_values + spec.action_value - 1
    writes = (spec.action_cell >= 0) & (spec.action_value > 0)
    filled: NDArray[np.int64] = np.where(
        writes, labels.astype(np.int64)[np.where(writes, variable, 0)], -1
    )
    return filled


def branches(
    policy: EditPolicy,
    domain: PlanDomain,
    instances: Int8Array,
    plans: Int8Array,
    groups: NDArray[np.int64] | None,
    *,
    device: torch.device,
) -> list[Branches]:
    """Edits to branch on at each plan and what each costs, log pi(a*) - log pi(a).

    `groups` are those of `filled_groups`, which name the edits that are branches together.
    """
    mask = domain.action_mask(instances, plans)
    seen = instances[:, : domain.spec.observed_size]
    chance = policy(to_states(seen, plans, mask, device)).double().cpu().numpy()
    stops = domain.is_stop(np.arange(domain.spec.num_actions, dtype=np.int32))
    allowed = (mask != 0) & ~stops
    logs = np.where(allowed, np.log(np.maximum(chance, 1e-30)), -np.inf)
    found = []
    for row, log in enumerate(logs):
        legal = np.flatnonzero(allowed[row])
        if len(legal):
            first = int(log.argmax())
            if groups is not None and groups[first] >= 0:
                legal = legal[groups[legal] == groups[first]]
            found.append((legal, log[first] - log[legal]))
        else:
            found.append((legal, np.empty(0)))
    return found


def _check(domain: PlanDomain, what: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{what}: must be at least 1, got {number}")
    if domain.spec.hidden_layers:
        raise ValueError(
            f"{what}: the checker of {domain.spec.name} reads the answer, so that keeping what it"
            " likes best would be looking at it"
        )
