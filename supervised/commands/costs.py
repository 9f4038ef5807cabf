"""What a recipe costs: parameters, forward passes, FLOPs and bytes, counted from its own model.

FLOPs are those of matrix products (a multiply and an add are two); the backward pass of a call
costs twice its forward pass. Nothing here is measured but the activations of one sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supervised.models import make_model
from supervised.recipe import SupervisedRecipe
from trm.nn.token_model import TokenModel, TokenShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a recipe costs; bytes are those of float32."""

    parameters: int
    """Trainable, without the puzzle table."""
    puzzle_parameters: int
    """Numbers of the puzzle table, for the identifiers known here."""
    forward_passes: int
    """Calls of a network for one sample, N_sup T (n + 1)."""
    calls_per_step: int
    """In one supervision step."""
    gradient_calls_per_step: int
    """Calls with gradient among these."""
    flops_per_sample: int
    """Forward, all N_sup steps: what an evaluation of one sample takes."""
    flops_per_step: int
    """Forward and backward of one supervision step of the whole batch."""
    flops_of_run: int
    """FLOPs of all supervision steps of the budget."""
    activation_bytes: int
    """Kept for the backward pass of one supervision step of the whole batch, float32."""
    state_bytes: int
    """Weights, gradients, two moments, running average and puzzle table, float32."""


def costs_of(recipe: SupervisedRecipe, shape: TokenShape) -> Costs:
    """Count them; makes the model, and runs it on one sample."""
    model = make_model(recipe, shape, torch.Generator())
    schedule = recipe.recursion
    call = call_flops(model)
    heads = _head_flops(model)
    early = len(schedule.supervised_unrolls)
    forward = (schedule.calls_per_step + early) * call + (1 + early) * heads
    graded = schedule.gradient_calls_per_step + early
    backward = graded * call * (3 if recipe.recompute else 2) + 2 * (1 + early) * heads
    if recipe.act is not None and recipe.act.continue_loss:
        forward += schedule.calls_per_step * call + heads
    updates = schedule.supervision if recipe.dis and recipe.dis.updates == "sum" else 1
    per_step = (forward + backward) * recipe.batch_size
    copies = 4 + (recipe.optimiser.average is not None)
    return Costs(
        parameters=model.num_parameters,
        puzzle_parameters=model.puzzle_table.numel(),
        forward_passes=schedule.calls,
        calls_per_step=schedule.calls_per_step,
        gradient_calls_per_step=schedule.gradient_calls_per_step,
        flops_per_sample=schedule.supervision * (schedule.calls_per_step * call + heads),
        flops_per_step=per_step,
        flops_of_run=per_step * recipe.schedule.steps * updates,
        activation_bytes=activation_bytes(model) * recipe.batch_size,
        state_bytes=4 * (copies * model.num_parameters + model.puzzle_table.numel()),
    )


def call_flops(model: TokenModel) -> int:
    """FLOPs of one call of a network on one sample; relational: with all variables open."""
    places, width = model.num_places, model.config.width
    total = 0
    for name, weight in model.net_l.named_parameters():
        if name.startswith("map."):
            total += 2 * places * weight.numel()
    for name, layer in model.net_l.named_modules():
        if isinstance(layer, nn.Linear):
            # The mixer's SwiGLU over the places is applied once a channel.
            rows = width if ".places." in name else places
            total += 2 * rows * layer.weight.numel()
    if model.config.mixing == "attention":
        total += model.config.layers * 4 * places * places * width
    return total


def _head_flops(model: TokenModel) -> int:
    """FLOPs of the heads for one sample."""
    halting = 0 if model.halt is None else 2 * model.halt.weight.numel()
    if model.variables is None:
        return 2 * model.shape.num_positions * model.readout.weight.numel() + halting
    layers = (model.variables.hidden, model.variables.out)
    return 2 * model.num_places * sum(layer.weight.numel() for layer in layers) + halting


def activation_bytes(model: TokenModel) -> int:
    """Bytes that autograd keeps for one sample's supervision step, shared storages once."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    inputs = torch.ones(1, model.shape.num_positions, dtype=torch.long)
    rows = model.puzzle_rows(torch.zeros(1, dtype=torch.long))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(model.start(1), inputs, rows, step=1)
    return sum(kept.values())
