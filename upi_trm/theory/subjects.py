"""What the studies need of a trained run: its networks in float64, its domain, visited states.

`load_studied` opens a run of any learner for `stability.py`, `load_subject` one of this learner for
`bounds_study.py`, which also needs the recipe and the algorithm.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from plan_envs.catalogue import Task
from plan_envs.domain import Int8Array, PlanDomain
from trm.compute.device import Placement
from trm.experiments.learners import learner_of, task_of
from trm.experiments.shipped_runs import run_name
from trm.experiments.states import Boards, EditPolicy, policy_probabilities, sample_edits
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.runs.checkpoints import part_of
from trm.runs.run import Run, fitting
from upi_trm.advantage import Advantages, PerEdit
from upi_trm.deployment import deployed_part
from upi_trm.learner import UpiLearner
from upi_trm.recipe import RUN_KIND, UpiRecipe


@dataclass(frozen=True, kw_only=True)
class Studied:
    """Evaluator and policy of a run of any learner; float64, so that small drifts are not lost."""

    name: str
    """The run as a user would write it."""
    task: Task
    step: int
    """Edits at the checkpoint."""
    model: ModelConfig
    """Configuration as trained; other depths and radii are compared with it."""
    modulus: float | None
    """Bound on L_z that training kept; None for none."""
    value: Literal["success", "score"]
    """What the evaluator's head means; see `evaluator.shaped_value`."""
    evaluator: TinyRecursiveModel
    policy: TinyRecursiveModel
    probabilities: EditPolicy
    """pi(a | s), from which visited states are drawn."""
    placement: Placement

    @property
    def domain(self) -> PlanDomain:
        """The rules."""
        return self.task.domain

    def read(self, boards: Boards) -> tuple[StateBatch, Float[Tensor, " batch"]]:
        """Some states as the networks see them, and Phi."""
        device = self.placement.torch_device
        return boards.batch(self.domain, device), boards.phi(self.domain, device)


@dataclass(frozen=True, kw_only=True)
class Subject(Studied):
    """A run of this learner, with all that bounds are made of."""

    recipe: UpiRecipe
    learner: UpiLearner

    def candidate(
        self, states: StateBatch, policy: PerEdit, success: PerEdit, advantage: PerEdit
    ) -> PerEdit:
        """pi_cand of the recipe at some states, from Q + Phi and from advantages there."""
        found = Advantages(advantage=advantage, weighted=policy * advantage, success=success)
        return self.learner.parts.candidate(states, policy, found).probability


def load_subject(
    run: Run, *, placement: Placement, step: int | str | None = None, seed: int = 0
) -> Subject:
    """Load a checkpoint with evaluator and policy in float64.

    Args:
        run: a run of this learner.
        placement: where it computes.
        step: a checkpoint's step or tag; None for the newest.
        seed: of the learner's generators.

    Raises:
        RunError: a run of another learner, or weights that do not fit its recipe.
    """
    run.require_kind(RUN_KIND)
    placement.apply()
    recipe, task = run.load_recipe(UpiRecipe), task_of(run)
    checkpoint = run.load_checkpoint(step)
    learner = UpiLearner.to_study(task.domain, recipe, placement.torch_device, seed=seed)
    # The deployed policy is studied: the average where the recipe has one.
    parts = {learner.evaluator: "evaluator", learner.policy: deployed_part(recipe)}
    with fitting(run, checkpoint):
        for model, part in parts.items():
            model.load_state_dict(part_of(checkpoint.weights, part))
    for model in parts:
        model.double().eval()
    return Subject(
        name=run_name(run.path),
        task=task,
        step=checkpoint.step,
        model=recipe.model,
        modulus=recipe.contraction.modulus,
        value=recipe.evaluator.value,
        evaluator=learner.evaluator,
        policy=learner.policy,
        probabilities=learner.probabilities,
        placement=placement,
        recipe=recipe,
        learner=learner,
    )


def load_studied(run: Run, *, placement: Placement, step: int | str | None = None) -> Studied:
    """Load a checkpoint of any learner in float64; arguments and errors as of `load_subject`.

    The values of another learner are taken as U_n in the units of the shaped return.
    """
    if run.info.kind == RUN_KIND:
        return load_subject(run, placement=placement, step=step)
    networks = learner_of(run).load_networks(run, placement=placement, step=step)
    policy: TinyRecursiveModel = networks.policy.double()
    return Studied(
        name=run_name(run.path),
        task=task_of(run),
        step=networks.step,
        model=networks.model,
        modulus=None,
        value="score",
        evaluator=networks.evaluator.double(),
        policy=policy,
        probabilities=partial(policy_probabilities, policy),
        placement=placement,
    )


def with_dials(
    model: TinyRecursiveModel, *, depth: int, radius: float | None
) -> TinyRecursiveModel:
    """The same network with shared weights, unrolled n = `depth` times with projection radius R."""
    turned = copy.copy(model)
    turned.config = replace(model.config, depth=depth, radius=radius)
    return turned


def visited_states(
    domain: PlanDomain,
    policy: EditPolicy,
    instances: Int8Array,
    *,
    generator: torch.Generator,
    device: torch.device,
    most: int = 2_000,
) -> Boards:
    """Plans that sampled episodes meet before each edit; every instance is played once.

    Dead ends absorb and the domain's horizon truncates, as in training.

    Args:
        domain: the puzzle.
        policy: states -> probabilities over edits.
        instances: shape [instance, ...].
        generator: draws the edits, and the states where there are too many.
        device: where the policy computes.
        most: states to return at most; more are thinned out uniformly at random.

    Raises:
        ValueError: no instance has anything left to edit.
    """
    boards = Boards(instances=instances, plans=domain.initial(instances))
    seen: list[Boards] = []
    for _ in range(domain.spec.horizon):
        verdict = domain.check(boards.instances, boards.plans)
        masks = domain.action_mask(boards.instances, boards.plans)
        boards = boards.select(masks.any(axis=1) & ~verdict.solved & ~verdict.dead)
        if not len(boards):
            break
        seen.append(boards)
        chance = policy(boards.batch(domain, device)).cpu()
        action = sample_edits(chance, generator).numpy().astype(np.int32)
        edited = domain.edit(boards.instances, boards.plans, action)
        boards = replace(boards, plans=edited).select(~domain.is_stop(action))
    if not seen:
        raise ValueError("instances: none of them has anything left to edit")
    visited = Boards.join(seen)
    if len(visited) <= most:
        return visited
    return visited.select(torch.randperm(len(visited), generator=generator)[:most].numpy())
