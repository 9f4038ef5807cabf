"""The trained policy of a run, as evaluation and the command line use it: greedy, one pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import Int8Array
from trm.device import Placement
from trm.model import TinyRecursiveModel
from trm.run import Run, RunError
from upi_trm.evaluator import model_shape
from upi_trm.improvement import edit_logits
from upi_trm.rollout import to_states

RUN_KIND = "upi"
"""`kind` of the runs that this learner writes."""


@dataclass(frozen=True)
class GreedyPolicy:
    """The most probable edit of pi_phi, the first one on a tie; draws no random numbers."""

    model: TinyRecursiveModel
    placement: Placement
    chunk: int = 1024

    @torch.no_grad()
    def __call__(
        self,
        instances: Int8Array,
        plans: Int8Array,
        mask: Int8Array,
        rng: np.random.Generator,
    ) -> NDArray[np.int32]:
        """Shapes [batch, cell], [batch, cell], [batch, action] -> actions, shape [batch]."""
        device = self.placement.torch_device
        actions = []
        for start in range(0, len(plans), self.chunk):
            part = slice(start, start + self.chunk)
            states = to_states(instances[part], plans[part], mask[part], device)
            with self.placement.autocast():
                actions.append(edit_logits(self.model, states).argmax(dim=1).cpu().numpy())
        return np.concatenate(actions).astype(np.int32)


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
    from upi_trm.trainer import UpiRecipe  # here: the trainer evaluates with this module

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
    prefix = "policy."
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
