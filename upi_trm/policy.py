"""The trained policy of a run, as evaluation and the command line use it: greedy, one pass."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import PlanDomain
from plan_envs.evaluation import Policy
from trm.device import Placement
from trm.run import Run, RunError
from upi_trm.deployment import load_edit_policy, load_greedy_policy
from upi_trm.learner import LearnerConfig
from upi_trm.rollout import EditPolicy
from upi_trm.trainer import RUN_KIND, UpiRecipe

T = TypeVar("T")


def task_of(run: Run) -> Task:
    """The task that a run was trained on."""
    return resolve_task(run.info.env)


def load_policy(run: Run, *, placement: Placement, step: int | str | None = None) -> Policy:
    """The greedy policy of a checkpoint: what `deployment` makes of its recipe.

    Args:
        run: a run of this learner.
        placement: where it computes.
        step: a checkpoint's step or tag ("best"); None for the newest.

    Raises:
        RunError: a run of another learner, or weights that do not fit its recipe.
    """
    return _load(load_greedy_policy, run, placement, step)


def load_probabilities(
    run: Run, *, placement: Placement, step: int | str | None = None
) -> EditPolicy:
    """Edit probabilities of a checkpoint, for `search`; arguments and errors as of `load_policy`.

    Raises:
        ValueError: a recipe whose policy depends on more than the state.
    """
    return _load(load_edit_policy, run, placement, step)


def _load(
    make: Callable[[PlanDomain, LearnerConfig, Mapping[str, Tensor], Placement], T],
    run: Run,
    placement: Placement,
    step: int | str | None,
) -> T:
    if run.info.kind != RUN_KIND:
        raise RunError(
            f"{run.path / 'run.json'}: kind is {run.info.kind!r} where {RUN_KIND!r} is needed"
        )
    placement.apply()
    recipe = run.load_recipe(UpiRecipe)
    checkpoint = run.load_checkpoint(step)
    try:
        return make(task_of(run).domain, recipe, checkpoint.weights, placement)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise RunError(
            f"{run.path}: checkpoint {checkpoint.step} does not fit: {detail}"
        ) from error
