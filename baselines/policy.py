"""The trained networks of a baseline run: what evaluation, comparison and the stability study read.

The entry point `sb3` of the group `upi_trm.run_kinds` names this module: `upi-trm eval`, `compare`
and `drift` find `load_policy` and `load_networks` here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.masked_sb3 import model_shape
from baselines.recipe import BaselineRecipe
from plan_envs.catalogue import resolve_task
from plan_envs.domain import Int8Array
from trm.device import Placement
from trm.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.run import Checkpoint, Run, RunError

RUN_KIND = "sb3"
"""`kind` of the runs that the baselines write."""


@dataclass(frozen=True)
class GreedyEdits:
    """The edit with the largest logit or action value, the first one on a tie; no random draws."""

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
        """Shapes [batch, observed], [batch, cell], [batch, action] -> actions, shape [batch]."""
        device = self.placement.torch_device
        actions = []
        for start in range(0, len(plans), self.chunk):
            boards = (array[start : start + self.chunk] for array in (instances, plans, mask))
            tensors = (torch.from_numpy(np.ascontiguousarray(board)).to(device) for board in boards)
            instance, plan, legal = tensors
            states = StateBatch(instance=instance, plan=plan, mask=legal)
            encoding = self.model.encode(states)
            with self.placement.autocast():
                logits = self.model.edit_logits(self.model.recur(encoding), encoding, states)
            actions.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(actions).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of a checkpoint, in evaluation mode on the placement's device."""

    policy: TinyRecursiveModel
    """Its edit logits are those of the policy, or action values up to a constant a state (DQN)."""
    evaluator: TinyRecursiveModel
    """Its value is V(s), in the units of the shaped return; the policy itself where both share one
    backbone. Of DQN without `dueling` the value head was never trained."""
    model: ModelConfig
    step: int
    """Edits at the checkpoint."""


def load_policy(run: Run, *, placement: Placement, step: int | str | None = None) -> GreedyEdits:
    """The greedy policy of a checkpoint.

    Args:
        run: a run of kind `RUN_KIND`.
        placement: where it computes.
        step: a checkpoint's step or tag ("best"); None for the newest.

    Raises:
        RunError: a run of another learner, or weights that do not fit its recipe.
    """
    return GreedyEdits(load_networks(run, placement=placement, step=step).policy, placement)


def load_networks(run: Run, *, placement: Placement, step: int | str | None = None) -> Networks:
    """Policy and evaluator of a checkpoint; arguments and errors as of `load_policy`."""
    if run.info.kind != RUN_KIND:
        raise RunError(
            f"{run.path / 'run.json'}: kind is {run.info.kind!r} where {RUN_KIND!r} is needed"
        )
    placement.apply()
    recipe = run.load_recipe(BaselineRecipe)
    checkpoint = run.load_checkpoint(step)
    shape = model_shape(resolve_task(run.info.env).domain.spec)

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
    for role, network in networks.items():
        prefix = f"{role}."
        try:
            network.load_state_dict(
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in checkpoint.weights.items()
                    if name.startswith(prefix)
                }
            )
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise RunError(
                f"{run.path}: checkpoint {checkpoint.step} does not fit: {detail}"
            ) from error
    return networks
