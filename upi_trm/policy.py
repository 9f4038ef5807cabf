"""The trained policy of a run, as evaluation and the command line use it: greedy, one pass.

Runs of other learners are played by their own modules, which the entry-point group
`upi_trm.run_kinds` names by the kind that their run folders record: such a module has `load_policy`
with the arguments of ours, and `load_networks` for the stability study (`stability.load_studied`).
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

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

PLUGIN_GROUP = "upi_trm.run_kinds"
"""Entry-point group of the modules that load other learners' runs, by kind."""


def task_of(run: Run) -> Task:
    """The task that a run was trained on."""
    return resolve_task(run.info.env)


def load_policy(run: Run, *, placement: Placement, step: int | str | None = None) -> Policy:
    """The greedy policy of a checkpoint: what `deployment` makes of its recipe.

    Args:
        run: a run of any kind that is installed.
        placement: where it computes.
        step: a checkpoint's step or tag ("best"); None for the newest.

    Raises:
        RunError: a run of an unknown kind, or weights that do not fit its recipe.
    """
    if run.info.kind == RUN_KIND:
        return _load(load_greedy_policy, run, placement, step)
    policy: Policy = module_of_kind(run).load_policy(run, placement=placement, step=step)
    return policy


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


def module_of_kind(run: Run) -> Any:
    """The module that loads a run of another learner.

    Raises:
        RunError: no installed learner writes runs of its kind, or what it needs is missing.
    """
    points = {point.name: point for point in entry_points(group=PLUGIN_GROUP)}
    kind, where = run.info.kind, run.path / "run.json"
    if kind not in points:
        known = ", ".join(repr(name) for name in sorted({RUN_KIND, *points}))
        raise RunError(f"{where}: kind is {kind!r}, not one of {known}")
    try:
        return points[kind].load()
    except ImportError as error:
        raise RunError(f"{where}: a run of kind {kind!r} can't be loaded: {error}") from error
