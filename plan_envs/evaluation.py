"""Evaluation on a set of instances, and the reference policies that every results table carries.

An evaluation plays one episode on every instance, in lockstep over a batch, through the pure
functions of `PlanDomain` alone. Success means that the checker calls the final plan solved (any
valid completion). What a mask gives away is large (DESIGN.md, Environments), so learned policies
stand beside reference policies on the same instances: random-legal, fewest-candidates, singles and
oracle.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.compiled.bits import draw_below
from plan_envs.domain import DeadEnd, Int8Array, PlanDomain, absorbs_dead
from plan_envs.instances import InstanceSet, solutions_by_content

Policy = Callable[[Int8Array, Int8Array, Int8Array, np.random.Generator], NDArray[np.int32]]
"""(instances [batch, observed], plans [batch, cell], mask [batch, action], rng) -> actions [batch].

Every row of the mask has a legal action, and the policy returns a legal one.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Outcome of one episode on each instance."""

    success_rate: float
    """Share of instances whose final plan the checker calls solved, in [0, 1]."""
    mean_score: float
    """Mean score of the final plans, in the domain's points."""
    improvement: float
    """Mean of final minus initial score."""
    num_instances: int
    """Instances played."""
    edits: int
    """Actions taken over all episodes, STOP included."""
    solved: NDArray[np.bool_]
    """Shape [num]."""
    final_score: NDArray[np.float32]
    """Shape [num]."""
    initial_score: NDArray[np.float32]
    """Shape [num]."""
    final_plans: Int8Array
    """Shape [num, cell]."""
    details: Mapping[str, float]
    """Means of the checker's further figures of the final plans (`Verdict.details`)."""

    def to_json_dict(self) -> dict[str, float | int]:
        """The aggregate numbers as plain Python values; rates in [0, 1]."""
        return {
            "success_rate": self.success_rate,
            "mean_score": self.mean_score,
            "improvement": self.improvement,
            "num_instances": self.num_instances,
            **self.details,
        }


def evaluate_policy(
    policy: Policy,
    domain: PlanDomain,
    instances: InstanceSet,
    *,
    dead_end: DeadEnd = "continue",
    horizon: int | None = None,
    batch_size: int = 512,
    seed: int = 0,
) -> EvalReport:
    """Play one episode on every instance and report.

    An episode ends when the plan is solved, on STOP, when no edit is legal, at the horizon, and
    under `dead_end="absorb"` also at a dead plan. Scores are of the final plan; the default
    `dead_end="continue"` is the paper's protocol.

    Args:
        policy: chooses the actions; it sees at most `batch_size` plans at a time, fewer as episodes
            end.
        domain: the puzzle.
        instances: what to play.
        dead_end: "continue" or "absorb".
        horizon: edits per episode; None = the domain's.
        batch_size: instances played in lockstep.
        seed: seeds the generator that the policy gets; (seed, batch_size) fix the outcome.

    Raises:
        ValueError: if the set is empty or does not fit the domain, or the policy returns an illegal
            action.
    """
    spec = domain.spec
    num = len(instances)
    if num == 0:
        raise ValueError(f"instances: the set {instances.name!r} is empty")
    instances.check_fits(spec)
    absorbs_dead(dead_end)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    horizon = spec.horizon if horizon is None else horizon
    rng = np.random.default_rng(seed)
    plans = np.empty((num, spec.num_cells), np.int8)
    edits = 0
    for start in range(0, num, batch_size):
        rows = slice(start, start + batch_size)
        boards = instances.instances[rows]
        plans[rows], taken = play(
            policy,
            domain,
            boards,
            domain.initial(boards),
            rng=rng,
            dead_end=dead_end,
            horizon=horizon,
        )
        edits += taken
    return report_of(domain, instances, plans, edits=edits)


def report_of(
    domain: PlanDomain, instances: InstanceSet, plans: Int8Array, *, edits: int
) -> EvalReport:
    """What the checker says of final plans, shape [num, cell], that took `edits` edits in all."""
    initial = domain.check(instances.instances, domain.initial(instances.instances))
    final = domain.check(instances.instances, plans)
    return EvalReport(
        success_rate=float(final.solved.mean()),
        mean_score=float(final.score.mean(dtype=np.float64)),
        improvement=float((final.score - initial.score).mean(dtype=np.float64)),
        num_instances=len(instances),
        edits=edits,
        solved=final.solved,
        final_score=final.score,
        initial_score=initial.score,
        final_plans=plans,
        details={
            name: float(figure.mean(dtype=np.float64)) for name, figure in final.details.items()
        },
    )


def reference_policies(domain: PlanDomain, instances: InstanceSet) -> dict[str, Policy]:
    """The policies that stand beside a learned one in every results table, by name.

    Random-legal and the oracle everywhere, fewest-candidates and singles where the domain has
    constraint groups, and what the domain's own `reference_policies` adds.
    """
    policies: dict[str, Policy] = {"random-legal": random_legal}
    if domain.spec.groups:
        policies["fewest-candidates"] = fewest_candidates(domain)
        policies["singles"] = singles(domain)
    policies["oracle"] = oracle(domain, instances)
    return policies | getattr(domain, "reference_policies", lambda _: {})(instances)


def random_legal(
    instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
) -> NDArray[np.int32]:
    """A uniformly random legal action a row (a `Policy`)."""
    actions: NDArray[np.int32] = _pick_legal(mask, _streams(len(mask), rng))
    return actions


def fewest_candidates(domain: PlanDomain) -> Policy:
    """Fill a blank cell that has the fewest candidates with a uniformly random candidate of it.

    A candidate is a legal value for a blank cell that no constraint group shows already; ties
    between cells are broken at random. More generally, what is filled are the groups of the first
    kind: in N-Queens the rows, whose candidates are free squares. Where the mask also allows
    conflicting values, erasures or STOP, these are taken only when there is no candidate at all:
    then a uniformly random legal action.
    """
    return _filling(domain, use_singles=False)


def singles(domain: PlanDomain) -> Policy:
    """Fill naked singles first, then hidden singles; where there is none, as `fewest_candidates`.

    A naked single is a cell with one candidate, a hidden single a value with one place in a group
    that a solution must fill (row, column or box; not a diagonal of N-Queens).
    """
    return _filling(domain, use_singles=True)


def _filling(domain: PlanDomain, *, use_singles: bool) -> Policy:
    """The policy of `fewest_candidates` or `singles`."""
    tables = _tables(domain)

    def policy(
        instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        streams = _streams(len(mask), rng)
        actions: NDArray[np.int32] = _pick_candidate(plans, mask, use_singles, streams, tables)
        return actions

    return policy


def oracle(domain: PlanDomain, instances: InstanceSet) -> Policy:
    """Write the stored solution, cell after cell in random order.

    Where a cell holds another digit it is overwritten if the edit set and the mask allow that, else
    erased, else a uniformly random legal action is taken.

    Raises:
        ValueError: from the policy, for an instance that is not in the set.
    """
    tables = _tables(domain)
    solutions_of = solutions_by_content(instances, domain.spec.observed_size)

    def policy(
        boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        streams = _streams(len(mask), rng)
        actions: NDArray[np.int32] = _pick_solution(
            plans, solutions_of(boards), mask, streams, tables
        )
        return actions

    return policy


def play(
    policy: Policy,
    domain: PlanDomain,
    instances: Int8Array,
    plans: Int8Array,
    *,
    rng: np.random.Generator,
    dead_end: DeadEnd,
    horizon: int,
) -> tuple[Int8Array, int]:
    """Play a batch to the end from some plans, shape [batch, cell].

    Returns:
        The final plans, and the number of actions taken; arguments as of `evaluate_policy`.
    """
    plans = plans.copy()
    live = np.flatnonzero(~_over(domain, instances, plans, dead_end))
    edits = 0
    for _ in range(horizon):
        mask = domain.action_mask(instances[live], plans[live])
        stuck = ~mask.any(axis=1)
        if stuck.any():
            live, mask = live[~stuck], mask[~stuck]
        if len(live) == 0:
            break
        boards = instances[live]
        seen = boards[:, : domain.spec.observed_size]
        actions = np.asarray(policy(seen, plans[live], mask, rng), np.int32)
        _require_legal(actions, mask)
        edits += len(live)
        edited = domain.edit(boards, plans[live], actions)
        plans[live] = edited
        ended = domain.is_stop(actions) | _over(domain, boards, edited, dead_end)
        live = live[~ended]
    return plans, edits


def _over(
    domain: PlanDomain, instances: Int8Array, plans: Int8Array, dead_end: DeadEnd
) -> NDArray[np.bool_]:
    verdict = domain.check(instances, plans)
    return verdict.solved | verdict.dead if dead_end == "absorb" else verdict.solved


def _require_legal(actions: NDArray[np.int32], mask: Int8Array) -> None:
    batch, num_actions = mask.shape
    if actions.shape != (batch,):
        raise ValueError(f"policy returned actions of shape {actions.shape}, expected ({batch},)")
    inside = (actions >= 0) & (actions < num_actions)
    legal = inside & (mask[np.arange(batch), np.where(inside, actions, 0)] != 0)
    if not legal.all():
        raise ValueError(f"policy returned the illegal action {actions[~legal][0]}")


def _streams(batch: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """One splitmix64 state a row, so that kernels draw their own random numbers."""
    return rng.integers(0, 2**64, size=batch, dtype=np.uint64)


class _Tables(NamedTuple):
    """What the kernels need of a DomainSpec."""

    labels: NDArray[np.int32]
    """Shape [group, variable]: constraint groups, renumbered 0..; -1 = in no group. Group 0 is the
    first kind, what is filled one by one."""
    num_labels: int
    """Labels of the largest group."""
    must_fill: NDArray[np.bool_]
    """Shape [group]: every group of this kind holds a variable of a solution."""
    write: NDArray[np.int32]
    """Shape [variable]: the action that writes it, -1 if none does."""
    erase: NDArray[np.int32]
    """Shape [cell]: the action that erases the cell, -1 if none does."""


def _tables(domain: PlanDomain) -> _Tables:
    spec = domain.spec
    cells, values = spec.num_cells, spec.num_values
    groups = spec.groups or {"cell": np.repeat(np.arange(cells, dtype=np.int32), values)}
    rows: list[NDArray[Any]] = []
    must_fill = []
    for name, group in groups.items():
        _, label, size = np.unique(group, return_inverse=True, return_counts=True)
        alone = (size[label] == 1) & (len(rows) > 0)
        rows.append(np.where(alone, -1, label))
        must_fill.append(name not in spec.at_most_one)
    labels = np.stack(rows).astype(np.int32)
    write = np.full(cells * values, -1, np.int32)
    erase = np.full(cells, -1, np.int32)
    for action, (cell, value, kind) in enumerate(
        zip(spec.action_cell, spec.action_value, spec.action_kind, strict=True)
    ):
        if cell >= 0 and value > 0:
            write[cell * values + value - 1] = action
        elif spec.kind_names[kind] in ("erase", "remove"):
            erase[cell] = action
    return _Tables(labels, int(labels.max()) + 1, np.array(must_fill), write, erase)


# ---- kernels -------------------------------------------------------------------------------------
# All return int32 actions [batch], -1 in a row without a legal action.


@njit(cache=True)
def _legal_at_random(mask: Any, state: Any) -> Any:
    count = 0
    for a in range(len(mask)):
        count += mask[a] != 0
    if count == 0:
        return -1
    skip = draw_below(state, count)
    for a in range(len(mask)):
        if mask[a] != 0:
            if skip == 0:
                return a
            skip -= 1
    return -1


@njit(cache=True)
def _pick_legal(mask: Any, streams: Any) -> Any:
    actions = np.empty(len(mask), np.int32)
    for i in range(len(mask)):
        actions[i] = _legal_at_random(mask[i], streams[i : i + 1])
    return actions


@njit(cache=True)
def _pick_candidate(plans: Any, mask: Any, use_singles: Any, streams: Any, tables: Any) -> Any:
    batch, cells = plans.shape
    num_groups, variables = tables.labels.shape
    values = variables // cells
    actions = np.empty(batch, np.int32)
    shown = np.empty((num_groups, tables.num_labels), np.bool_)
    places = np.empty((num_groups, tables.num_labels), np.int32)
    open_ = np.empty(variables, np.bool_)
    for i in range(batch):
        state = streams[i : i + 1]
        shown[:] = False
        for c in range(cells):
            if plans[i, c] > 0:
                for g in range(num_groups):
                    label = tables.labels[g, c * values + plans[i, c] - 1]
                    if label >= 0:
                        shown[g, label] = True
        places[:] = 0
        for v in range(variables):
            action = tables.write[v]
            free = action >= 0 and mask[i, action] != 0
            for g in range(num_groups):
                if free and tables.labels[g, v] >= 0 and shown[g, tables.labels[g, v]]:
                    free = False
            open_[v] = free
            if free:
                for g in range(num_groups):
                    if tables.labels[g, v] >= 0:
                        places[g, tables.labels[g, v]] += 1
        chosen = -1
        if use_singles:
            chosen = _single(open_, places, 0, 1, state, tables)
            if chosen < 0:
                chosen = _single(open_, places, 1, num_groups, state, tables)
        if chosen < 0:
            chosen = _fewest(open_, places[0], tables.labels[0], state)
        actions[i] = tables.write[chosen] if chosen >= 0 else _legal_at_random(mask[i], state)
    return actions


@njit(cache=True)
def _single(open_: Any, places: Any, first: Any, last: Any, state: Any, tables: Any) -> Any:
    """A random variable that is the only open one of a label in groups first..last - 1, or -1."""
    chosen = -1
    seen = 0
    for v in range(len(open_)):
        if open_[v]:
            for g in range(first, last):
                label = tables.labels[g, v]
                if tables.must_fill[g] and label >= 0 and places[g, label] == 1:
                    seen += 1
                    if draw_below(state, seen) == 0:
                        chosen = v
                    break
    return chosen


@njit(cache=True)
def _fewest(open_: Any, sizes: Any, labels: Any, state: Any) -> Any:
    """A random open variable of a group with the fewest (but some) open ones, or -1."""
    fewest = len(open_) + 1
    tied = 0
    group = -1
    for label in range(len(sizes)):
        if 0 < sizes[label] <= fewest:
            tied = 1 if sizes[label] < fewest else tied + 1
            fewest = sizes[label]
            if draw_below(state, tied) == 0:
                group = label
    if group < 0:
        return -1
    skip = draw_below(state, fewest)
    for v in range(len(open_)):
        if open_[v] and labels[v] == group:
            if skip == 0:
                return v
            skip -= 1
    return -1


@njit(cache=True)
def _pick_solution(plans: Any, solutions: Any, mask: Any, streams: Any, tables: Any) -> Any:
    batch, cells = plans.shape
    values = tables.labels.shape[1] // cells
    actions = np.empty(batch, np.int32)
    for i in range(batch):
        state = streams[i : i + 1]
        chosen = -1
        seen = 0
        for c in range(cells):
            if plans[i, c] != solutions[i, c] and solutions[i, c] > 0:
                action = tables.write[c * values + solutions[i, c] - 1]
                if action >= 0 and mask[i, action] != 0:
                    seen += 1
                    if draw_below(state, seen) == 0:
                        chosen = action
        if chosen < 0:
            for c in range(cells):
                action = tables.erase[c]
                if plans[i, c] != solutions[i, c] and action >= 0 and mask[i, action] != 0:
                    chosen = action
        actions[i] = chosen if chosen >= 0 else _legal_at_random(mask[i], state)
    return actions
