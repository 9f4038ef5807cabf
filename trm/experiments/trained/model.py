"""`load` and `Model`: a trained run in Python, and what `upi-trm eval`, `solve` and `report` use.

Input: a run folder or the name of a shipped run, of any learner. `Model` loads each of its parts
when it is first asked for: the greedy policy, the insight (probabilities and values), or the
predictor of a supervised run. `upi_trm.load` is this module's `load`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from plan_envs.catalogue import Task
from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.episodes import read_instance
from plan_envs.evaluation import EvalReport, Policy, evaluate_policy
from plan_envs.instances import InstanceSet
from plan_envs.rendering import render_ansi
from trm.compute.device import Placement, Precision
from trm.experiments import learners
from trm.experiments.learners import Insight, Learner, Predictor, learner_of, task_of
from trm.experiments.options import open_run
from trm.experiments.scoreboard import Scoreboard, score_policies
from trm.experiments.search import (
    SampledPolicy,
    SearchReport,
    best_of_samples,
    verified_search,
)
from trm.experiments.shipped_runs import run_name
from trm.experiments.states import Boards, Deepening, EditPolicy
from trm.runs.run import Run


def load(
    run: str | Path,
    *,
    step: int | str | None = None,
    env: str | None = None,
    depth: int | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    threads: int | None = None,
    seed: int = 0,
) -> "Model":
    """Load a trained run.

    Args:
        run: a run folder, or "pretrained:NAME" for a run that ships with the package.
        step: checkpoint, a step or "best"; None for the newest.
        env: an environment to play with the same weights, e.g. "nqueens12" with those of a run on
            "nqueens8"; None for the one it was trained on.
        depth: unrolls of the recursion; None for the recipe's.
        device: of the networks, e.g. "cuda:1".
        precision: of matrix products, "float32" or "bfloat16".
        threads: CPU threads of torch, for the whole process; None leaves them as they are. One is
            fastest for the small models that ship.
        seed: of the edits that `predict(..., deterministic=False)` draws.

    Raises:
        ValueError: no such run, of an unknown kind, or a device that this machine lacks; one line.
    """
    placement = Placement(device=device, precision=precision, threads=threads)
    opened = open_run(Path(run), env=env, depth=depth)
    return Model(opened, placement=placement, step=step, seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """What a model made of one puzzle; `print` shows the plan."""

    plans: Int8Array
    """Shape [point, cell]: the plan before the first edit and after each; of a search or of samples
    the first and the last one alone; of a supervised run the instance's own and the board after
    each supervision step."""
    edits: tuple[int, ...] | None
    """The actions that led from each plan to the next, as the environment numbers them; None where
    the plan was not reached by the edits of one episode."""
    solved: bool
    """The checker accepts the last plan."""
    reason: str
    """In words: what it took, or what is wrong with the plan."""
    instance: Int8Array
    """Shape [instance]."""
    domain: PlanDomain = field(repr=False)

    @property
    def plan(self) -> Int8Array:
        """The last plan, shape [cell]."""
        last: Int8Array = self.plans[-1]
        return last

    def __str__(self) -> str:
        """The plan as text without colours."""
        return render_ansi(self.domain, self.instance, self.plan, color=False)


class Model:
    """A trained run, ready to solve puzzles, to act in an environment, and to be asked for values.

    What a learner does not have is refused with a `ValueError` that names the run, its method and
    what there is. Arrays are those of `plan_envs`: instances int8 [batch, instance], plans int8
    [batch, cell], 0 = blank.
    """

    def __init__(
        self,
        run: Run,
        *,
        placement: Placement,
        step: int | str | None = None,
        seed: int = 0,
    ) -> None:
        """Use `load`; nothing is read from the checkpoint yet."""
        self.run, self.placement, self.step = run, placement, step
        self.learner: Learner = learner_of(run)
        self.rng = np.random.default_rng(seed)
        """Draws the edits of `predict(..., deterministic=False)`."""

    def __repr__(self) -> str:
        """The run and its method."""
        return f"Model({self.name!r}, {self.method} on {self.run.info.env})"

    @property
    def name(self) -> str:
        """The run as a user writes it: its folder, or pretrained:NAME."""
        return run_name(self.run.path)

    @property
    def method(self) -> str:
        """The name of the method in tables, e.g. "UPI-TRM" or "PPO"."""
        return self.learner.method_of(self.run)

    @property
    def device(self) -> torch.device:
        """Where its networks compute."""
        return self.placement.torch_device

    @property
    def task(self) -> Task:
        """The task that the run was trained on.

        Raises:
            ValueError: a supervised run on a data set that is no task.
        """
        return task_of(self.run)

    @cached_property
    def domain(self) -> PlanDomain:
        """The rules of its puzzles."""
        return self.task.domain if self.predictor is None else self.predictor.domain

    # --- Solving

    def read(self, puzzle: str | ArrayLike) -> Int8Array:
        """A puzzle as text or as an array of cells -> its instance, shape [instance].

        Raises:
            ValueError: the domain does not read it; says why.
        """
        board = puzzle if isinstance(puzzle, str) else np.asarray(puzzle)
        return read_instance(self.domain, board, dead_end="continue")

    def solve(
        self,
        puzzle: str | ArrayLike,
        *,
        samples: int | None = None,
        search: int | None = None,
    ) -> Solution:
        """Solve one puzzle: greedy, one pass, unless `samples` or `search` asks for more.

        Args:
            puzzle: text as the environment's page shows it (Sudoku: a line or a grid of digits with
                . for blanks), or an instance, shape [instance] or that of the grid.
            samples: play so many sampled episodes and keep the best plan.
            search: search, led by the policy and verified by the checker; the network may look at
                so many plans.

        Raises:
            ValueError: the puzzle can't be read, or the run can't search.
        """
        instance = self.read(puzzle)
        if samples is not None and search is not None:
            raise ValueError("samples and search exclude each other")
        if self.predictor is not None and samples is None and search is None:
            plans = self.predictor.predict(instance[None]).plans[:, 0]
            steps = f"in {len(plans)} supervision step{'' if len(plans) == 1 else 's'}"
            before = self.domain.initial(instance[None])
            return self._solution(instance, np.concatenate([before, plans]), None, steps)
        lone = InstanceSet.of("puzzle", instance[None], self.domain.initial(instance[None]))
        if search is not None:
            found = self.search(lone, budget=search)
            how = f"by a search that looked at {found.expanded[0]} plans"
            return self._solution(instance, self._ends(lone, found.report), None, how)
        if samples is not None:
            report = self.best_of_samples(lone, num=samples)
            how = f"by sampling, in {report.edits} edits over all episodes"
            return self._solution(instance, self._ends(lone, report), None, how)
        recorder = _Recorder(self.policy)
        report = evaluate_policy(recorder, self.domain, lone)
        plans = np.concatenate([*recorder.plans, report.final_plans])
        how = f"in {report.edits} edit{'' if report.edits == 1 else 's'}"
        return self._solution(instance, plans, tuple(recorder.actions), how)

    def evaluate(
        self,
        instances: InstanceSet,
        *,
        seed: int = 0,
        announce: Callable[[str], None] = lambda _: None,
    ) -> Scoreboard:
        """The greedy policy beside the reference policies on the same instances.

        Args:
            instances: e.g. `model.task.instances("test", num=500)`; each is played once.
            seed: of the reference policies.
            announce: called with each policy's name before it plays.
        """
        return score_policies(self.policy, self.task, instances, seed=seed, announce=announce)

    def search(self, instances: InstanceSet, *, budget: int) -> SearchReport:
        """`trm.experiments.search.verified_search`, led by this policy."""
        return verified_search(
            self.edit_policy, self.domain, instances, budget=budget, device=self.device
        )

    def best_of_samples(self, instances: InstanceSet, *, num: int, seed: int = 0) -> EvalReport:
        """`trm.experiments.search.best_of_samples` of this policy."""
        return best_of_samples(
            self.edit_policy, self.domain, instances, num=num, device=self.device, seed=seed
        )

    def unseen(self, num: int, *, seed: int = 0) -> Int8Array:
        """Some instances of the test split, shape [num, instance]; fewer where it has fewer.

        A supervised run's split is fixed, and ignores the seed.
        """
        if self.predictor is not None:
            return self.predictor.unseen(num)
        return self.task.instances("test", num=num, seed=seed).instances

    # --- Acting in an environment

    def act(self, observation: Mapping[str, Any]) -> int:
        """The greedy edit at one observation of `gym.make("PlanEdit/...")`."""
        action, _ = self.predict(observation)
        return int(action)

    def predict(
        self,
        observation: Mapping[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        *,
        action_masks: ArrayLike | None = None,
    ) -> tuple[NDArray[np.int32], Any]:
        """The edits at an observation, in the manner of stable-baselines3.

        Args:
            observation: keys instance, plan and action_mask, of one environment or of several; the
                mask may be left out where `action_masks` is given.
            state: handed back; no policy here needs it.
            episode_start: ignored.
            deterministic: take the most probable edit; else draw one (`rng`).
            action_masks: legal edits, 1 = legal; in place of those of the observation.

        Returns:
            The actions, an array without axes for one environment, else shape [environment]; 0
            where no edit is legal, since the episode is over. And `state`.
        """
        instances, plans = (np.asarray(observation[key], np.int8) for key in ("instance", "plan"))
        given = observation["action_mask"] if action_masks is None else action_masks
        mask = np.asarray(given).astype(np.int8)
        single = plans.ndim == 1
        if single:
            instances, plans, mask = instances[None], plans[None], np.atleast_2d(mask)
        live = mask.any(axis=1)
        actions = np.zeros(len(plans), np.int32)
        if live.any():
            chosen = self.policy if deterministic else SampledPolicy(self.edit_policy, self.device)
            actions[live] = chosen(instances[live], plans[live], mask[live], self.rng)
        return (actions.squeeze(axis=0) if single else actions), state

    # --- Being asked

    def probabilities(self, instances: ArrayLike, plans: ArrayLike) -> NDArray[np.float32]:
        """pi(a | s) of every edit, shape [batch, action]; 0 where illegal, rows sum to 1.

        Args:
            instances: shape [batch, instance]; one instance may stand for all plans.
            plans: shape [batch, cell].
        """
        states = self.boards(instances, plans).batch(self.domain, self.device)
        with torch.no_grad():
            found: NDArray[np.float32] = self.edit_policy(states).float().cpu().numpy()
        return found

    def values(self, instances: ArrayLike, plans: ArrayLike) -> NDArray[np.float32]:
        """V(s) = U_n(s) in the units of the shaped return, shape [batch].

        The sparse return, which is near the probability to be solved, is V(s) + Phi(s).
        """
        self._require("values")
        return self.insight.values(self.boards(instances, plans))

    def edit_values(self, instances: ArrayLike, plans: ArrayLike) -> NDArray[np.float32]:
        """Q(s, a) in the units of the shaped return, shape [batch, action]; NaN where illegal."""
        self._require("edit_values")
        return self.insight.edit_values(self.boards(instances, plans))

    def deepen(self, instances: ArrayLike, plans: ArrayLike, *, depth: int = 16) -> Deepening:
        """Values, probabilities and moves of the latent after each of `depth` updates."""
        self._require("deepen")
        return self.insight.deepen(self.boards(instances, plans), depth=depth)

    # --- The parts of the checkpoint

    @cached_property
    def policy(self) -> Policy:
        """The greedy policy, as `plan_envs.evaluation.evaluate_policy` takes it."""
        return learners.load_policy(self.run, placement=self.placement, step=self.step)

    @property
    def edit_policy(self) -> EditPolicy:
        """Edit probabilities over tensors, as searches take them."""
        self._require("probabilities")
        return self.insight.probabilities

    @cached_property
    def insight(self) -> Insight:
        """Probabilities and values of the checkpoint, as its learner has them."""
        return self.learner.load_insight(self.run, placement=self.placement, step=self.step)

    @cached_property
    def predictor(self) -> Predictor | None:
        """The predictor of a supervised run; None of a run that plays edits."""
        return self.learner.load_predictor(self.run, placement=self.placement, step=self.step)

    def boards(self, instances: ArrayLike, plans: ArrayLike) -> Boards:
        """States as the insight takes them, after a check of their shapes.

        Raises:
            ValueError: names the argument and the shape that is needed.
        """
        spec = self.domain.spec
        chosen = np.atleast_2d(np.asarray(plans, np.int8))
        given = self._whole(np.atleast_2d(np.asarray(instances, np.int8)))
        if len(given) == 1 < len(chosen):
            given = np.repeat(given, len(chosen), axis=0)
        for name, array, size in (
            ("instances", given, spec.instance_size),
            ("plans", chosen, spec.num_cells),
        ):
            if array.shape != (len(chosen), size):
                raise ValueError(
                    f"{name} must have shape [{len(chosen)}, {size}] for {spec.name},"
                    f" got {list(array.shape)}"
                )
        return Boards(instances=np.ascontiguousarray(given), plans=np.ascontiguousarray(chosen))

    def _whole(self, instances: Int8Array) -> Int8Array:
        """Instances with blank boards where the part that only the checker reads is left out."""
        spec = self.domain.spec
        missing = spec.instance_size - spec.observed_size
        if not missing or instances.shape[1] != spec.observed_size:
            return instances
        return np.pad(instances, ((0, 0), (0, missing)))

    def _require(self, quantity: str) -> None:
        has = self.insight.quantities
        if quantity not in has:
            there = ", ".join(sorted(has)) or "none of them"
            raise ValueError(
                f"{self.name}: the policy of this {self.method} run has no {quantity}, which belong"
                f" to a state alone; there are: {there}"
            )

    def _ends(self, lone: InstanceSet, report: EvalReport) -> Int8Array:
        return np.concatenate([self.domain.initial(lone.instances), report.final_plans])

    def _solution(
        self, instance: Int8Array, plans: Int8Array, edits: tuple[int, ...] | None, how: str
    ) -> Solution:
        verdict = self.domain.check(instance[None], plans[-1:])
        solved = bool(verdict.solved[0])
        reason = f"solved {how}" if solved else _why_not_solved(self.domain, instance, plans[-1])
        return Solution(
            plans=plans,
            edits=edits,
            solved=solved,
            reason=reason,
            instance=instance,
            domain=self.domain,
        )


class _Recorder:
    """A policy that remembers the plans that it saw and what it answered, of one episode."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.plans: list[Int8Array] = []
        self.actions: list[int] = []

    def __call__(
        self, instances: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        actions = self._policy(instances, plans, mask, rng)
        self.plans.append(plans.copy())
        self.actions.append(int(actions[0]))
        return actions


def _why_not_solved(domain: PlanDomain, instance: Int8Array, plan: Int8Array) -> str:
    verdict = domain.check(instance[None], plan[None])
    message = (
        f"NOT solved: score {verdict.score[0]:g} of {domain.spec.max_score:g}, "
        f"{int(verdict.violations[0])} violations"
    )
    if not getattr(domain, "solvable", lambda _: True)(instance):
        message += "; the puzzle has no solution"
    return message
