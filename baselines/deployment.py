"""The trained networks of a baseline run: what evaluation, comparison and the stability study read.

`baselines.plugin` hands them to `upi-trm eval`, `compare` and `drift`.
"""

import torch

from baselines.recipe import BaselineRecipe
from trm.compute.device import Placement
from trm.experiments.learners import Networks, task_of
from trm.experiments.states import model_shape
from trm.nn.model import TinyRecursiveModel
from trm.runs.checkpoints import Checkpoint, part_of
from trm.runs.run import Run, fitting

RUN_KIND = "sb3"
"""`kind` of the runs that the baselines write."""


def load_networks(run: Run, *, placement: Placement, step: int | str | None = None) -> Networks:
    """Policy and evaluator of a checkpoint.

    Args:
        run: a run of kind `RUN_KIND`.
        placement: where they compute.
        step: a checkpoint's step or tag ("best"); None for the newest.

    Raises:
        RunError: a run of another learner, or weights that do not fit its recipe.
    """
    run.require_kind(RUN_KIND)
    placement.apply()
    recipe = run.load_recipe(BaselineRecipe)
    checkpoint = run.load_checkpoint(step)
    shape = model_shape(task_of(run).domain.spec)

    def build() -> TinyRecursiveModel:
        return TinyRecursiveModel(shape, recipe.model, generator=torch.Generator())

    names = {name.partition(".")[0] for name in checkpoint.weights}
    networks = load_weights({name: build() for name in names}, checkpoint, run)
    for network in networks.values():
        network.to(placement.torch_device).eval()
    policy = networks["policy"]
    return Networks(
        policy=policy,
        evaluator=networks.get("critic", policy),
        model=recipe.model,
        step=checkpoint.step,
    )


def weights_of(networks: dict[str, TinyRecursiveModel]) -> dict[str, torch.Tensor]:
    """All weights by the network's role and their name."""
    return {
        f"{role}.{name}": tensor
        for role, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def load_weights(
    networks: dict[str, TinyRecursiveModel], checkpoint: Checkpoint, run: Run
) -> dict[str, TinyRecursiveModel]:
    """Counterpart of `weights_of`; returns the networks.

    Raises:
        RunError: the weights are of another backbone.
    """
    with fitting(run, checkpoint):
        for role, network in networks.items():
            network.load_state_dict(part_of(checkpoint.weights, role))
    return networks
