"""Verified search as the actor of a rollout: best-first over plans, led by the policy.

It visits plans in the order of `trm.experiments.search.verified_search`, a step for each of E
puzzles side by side, and gives up a puzzle after so many plans. Every plan visited is one edit. A
return to a plan that was set aside is a reset to a state that the environment itself offers
(`PlanEditVectorEnv.get_state`); the metrics count the returns, and the edits that playing every one
of them again from its start would have taken. Output: `Transitions`, as of a sampled rollout.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, PlanDomain, edit_reward, potential
from plan_envs.instances import InstanceSet
from trm.experiments.search import Branches, SearchTree, branches, filled_groups, uniform_policy
from trm.experiments.states import EditPolicy
from upi_trm.rollout import SEARCH_COUNTS, Actor, RolloutConfig, Transitions


class SearchRoller:
    """Keeps E searches going between iterations; each ends solved, out of budget or of branches."""

    def __init__(
        self,
        domain: PlanDomain,
        pool: InstanceSet,
        config: RolloutConfig,
        *,
        gamma: float,
        led: Callable[[], bool],
        generator: np.random.Generator,
    ) -> None:
        """Begin E searches.

        Args:
            domain: the rules.
            pool: the puzzles.
            config: plans, budget, whether dead plans are visited.
            gamma: discount of the rewards.
            led: whether the policy leads yet; before, every legal edit is alike.
            generator: draws puzzles; those that no search has solved come first.
        """
        self.domain, self.pool, self.config, self.gamma = domain, pool, config, gamma
        self._led, self._generator = led, generator
        self._groups = filled_groups(domain.spec)
        self._starts = domain.initial(pool.instances)
        self._open = np.ones(len(pool), np.bool_)
        self._index = np.zeros(config.plans, np.int64)
        self._used = np.zeros(config.plans, np.int64)
        self._trees: list[SearchTree] = []
        self._fresh = list(range(config.plans))
        self.metrics: dict[str, float] = {}

    def collect(
        self, actor: Actor, *, steps: int, generator: torch.Generator, device: torch.device
    ) -> Transitions:
        """Visit `steps` plans of every puzzle; `generator` is not used."""
        self.metrics = dict.fromkeys(SEARCH_COUNTS, 0.0)
        policy = actor.probabilities if self._led() else uniform_policy
        self._begin(policy, device)
        rows = [self._visit(policy, device) for _ in range(steps)]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        none = np.zeros((steps, self.config.plans, 0, 0), np.float32)
        return Transitions(
            **stacked,
            advantage=np.zeros_like(stacked["reward"]),
            policy_start=none,
            evaluator_start=none,
        )

    def figures(self) -> dict[str, float]:
        """Puzzles of the pool that are not solved yet."""
        return {"unsolved": float(self._open.sum())}

    def _visit(self, policy: EditPolicy, device: torch.device) -> dict[str, NDArray[Any]]:
        """Every search goes on to its next plan, or begins anew after it."""
        domain, trees = self.domain, self._trees
        before = np.stack([tree.plan for tree in trees])
        popped = [tree.pop() for tree in trees]
        assert all(one is not None for one in popped)  # `_begin` replaces the others
        parents = np.stack([parent for parent, _ in popped])  # type: ignore[misc]
        actions = np.array([action for _, action in popped], np.int32)  # type: ignore[misc]
        back = (parents != before).any(axis=1)
        depths = np.array([tree.depth for tree in trees])
        self.metrics["returns"] += float(back.sum())
        self.metrics["edits_if_replayed"] += float(np.where(back, depths, 1).sum())
        instances = self.pool.instances[self._index]
        plans = domain.edit(instances, parents, actions)
        verdict = domain.check(instances, plans)
        for tree, plan in zip(trees, plans, strict=True):
            tree.plan = plan.copy()
        going = np.flatnonzero(~(verdict.solved | verdict.dead))
        live = self._expand(going, policy, device)
        ended = ~np.isin(np.arange(len(trees)), going[live])
        self._used += 1
        left = np.array([len(tree) > 0 for tree in trees])
        over = verdict.solved | (self._used >= self.config.search_budget) | ~left
        score = domain.check(instances, parents).score
        phi = [potential(one, domain.spec.max_score) for one in (score, verdict.score)]
        reward = edit_reward(*phi, solved=verdict.solved, absorbed=ended, gamma=self.gamma)
        self._open[self._index[verdict.solved]] = False
        self._fresh = np.flatnonzero(over).tolist()
        row = {
            "instance": instances,
            "plan": parents,
            "next_plan": plans,
            "score": score,
            "next_score": verdict.score,
            "action": actions,
            "reward": reward.astype(np.float32),
            "terminated": ended,
            "truncated": over & ~ended,
            "solved": verdict.solved,
        }
        self._begin(policy, device)
        return row

    def _begin(self, policy: EditPolicy, device: torch.device) -> None:
        """Start a search in every slot that has none, on a puzzle that has not been solved."""
        while self._fresh:
            slots = np.array(self._fresh)
            self._index[slots] = self._draw(len(slots))
            self._used[slots] = 0
            for slot in self._fresh:
                tree = SearchTree(self._starts[self._index[slot]])
                if slot < len(self._trees):
                    self._trees[slot] = tree
                else:
                    self._trees.append(tree)
            self._expand(slots, policy, device)
            self._fresh = [slot for slot in self._fresh if not len(self._trees[slot])]

    def _draw(self, count: int) -> NDArray[np.int64]:
        unsolved = np.flatnonzero(self._open)
        if not len(unsolved):
            return self._generator.integers(len(self.pool), size=count)
        return self._generator.choice(unsolved, size=count)

    def _expand(
        self, slots: NDArray[np.int64], policy: EditPolicy, device: torch.device
    ) -> NDArray[np.bool_]:
        """Set the branches of the current plans aside; whether each plan has any."""
        if not len(slots):
            return np.zeros(0, np.bool_)
        domain, trees = self.domain, [self._trees[slot] for slot in slots]
        instances = self.pool.instances[self._index[slots]]
        plans = np.stack([tree.plan for tree in trees])
        found = branches(policy, domain, instances, plans, self._groups, device=device)
        if not self.config.visit_dead:
            found = self._without_dead(instances, plans, found)
        for tree, one in zip(trees, found, strict=True):
            tree.expand(*one, horizon=domain.spec.horizon)
        return np.array([len(actions) > 0 for actions, _ in found])

    def _without_dead(
        self, instances: Int8Array, plans: Int8Array, found: list[Branches]
    ) -> list[Branches]:
        """The branches that the checker does not call dead; their costs count from the best."""
        owner = np.repeat(np.arange(len(found)), [len(actions) for actions, _ in found])
        actions = np.concatenate([actions for actions, _ in found]).astype(np.int32)
        after = self.domain.edit(instances[owner], plans[owner], actions)
        dead = self.domain.check(instances[owner], after).dead
        self.metrics["checked"] += float(len(actions))
        kept = []
        for row, (edits, costs) in enumerate(found):
            live = ~dead[owner == row]
            rest = costs[live]
            kept.append((edits[live], rest - rest.min() if len(rest) else rest))
        return kept

    def state(self) -> dict[str, Any]:
        """The searches and the puzzles that are solved, for a checkpoint."""
        return {
            "trees": [tree.state() for tree in self._trees],
            "index": self._index,
            "used": self._used,
            "open": self._open,
            "fresh": self._fresh,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self._trees = [SearchTree.from_state(one) for one in state["trees"]]
        self._index, self._used = state["index"].copy(), state["used"].copy()
        self._open = state["open"].copy()
        self._fresh = list(state["fresh"])
