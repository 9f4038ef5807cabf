"""The trained policy of a run, as evaluation and the command line use it: greedy, one pass."""

import torch

from plan_envs.catalogue import Task, resolve_task
from trm.device import Placement
from trm.model import TinyRecursiveModel
from trm.run import Run, RunError
from upi_trm.evaluator import model_shape
from upi_trm.rollout import GreedyPolicy
from upi_trm.trainer import RUN_KIND, UpiRecipe


def task_of(run: Run) -> Task:
    """The task that a run was trained on."""
    return resolve_task(run.info.env)


def load_policy(run: Run, *, placement: Placement, step: int | str | None = None) -> GreedyPolicy:
    """The greedy policy of a checkpoint.

    Args:
        run: a run of this learner.
        placement: where it computes.
        step: a checkpoint's step or tag ("best"); None for the newest.

    Raises:
        RunError: a run of another learner, or weights that do not fit its recipe.
    """
    if run.info.kind != RUN_KIND:
        raise RunError(
            f"{run.path / 'run.json'}: kind is {run.info.kind!r} where {RUN_KIND!r} is needed"
        )
    placement.apply()
    recipe = run.load_recipe(UpiRecipe)
    checkpoint = run.load_checkpoint(step)
    model = TinyRecursiveModel(
        model_shape(task_of(run).domain.spec), recipe.model, generator=torch.Generator()
    )
    prefix = "policy." if recipe.improvement.average_rate is None else "average."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.weights.items()
        if name.startswith(prefix)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise RunError(
            f"{run.path}: checkpoint {checkpoint.step} does not fit: {detail}"
        ) from error
    return GreedyPolicy(model.to(placement.torch_device).eval(), placement)
