"""States of a domain as tensors, and what networks say of them: greedy edits, values by depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import DomainSpec, Int8Array, PlanDomain, potential
from trm.compute.device import Placement
from trm.nn.model import Encoding, ModelShape, StateBatch, TinyRecursiveModel
from trm.nn.recursion import step_size


def model_shape(spec: DomainSpec) -> ModelShape:
    """What a model must know of a domain, as tensors."""
    return ModelShape(
        num_cells=spec.num_cells,
        num_values=spec.num_values,
        num_actions=spec.num_actions,
        action_cell=torch.from_numpy(spec.action_cell.copy()),
        action_value=torch.from_numpy(spec.action_value.copy()),
        action_kind=torch.from_numpy(spec.action_kind.copy()),
        groups={name: torch.from_numpy(label.copy()) for name, label in spec.groups.items()},
        neighbours=None if spec.neighbours is None else torch.from_numpy(spec.neighbours.copy()),
        instance_layers=spec.instance_layers,
        num_instance_values=spec.num_instance_values,
    )


def edit_logits(model: TinyRecursiveModel, states: StateBatch) -> Float[Tensor, "batch action"]:
    """Masked logits of pi_phi at the recipe's depth."""
    encoding = model.encode(states)
    return model.edit_logits(model.recur(encoding), encoding, states)


def latents_through(
    model: TinyRecursiveModel, states: StateBatch, unrolls: Sequence[int]
) -> tuple[Encoding, list[Float[Tensor, "row channel"]]]:
    """The encoding, and z^(n) after each of some numbers of unrolls and at the recipe's depth.

    Args:
        model: any.
        states: where.
        unrolls: ascending numbers; those that are not below the depth are left out.
    """
    encoding = goes_on = model.encode(states)
    found, done = [], 0
    for unroll in [*(n for n in unrolls if n < model.config.depth), model.config.depth]:
        found.append(model.recur(goes_on, depth=unroll - done))
        goes_on, done = replace(goes_on, start=found[-1]), unroll
    return encoding, found


def edit_logits_through(
    model: TinyRecursiveModel, states: StateBatch, unrolls: Sequence[int]
) -> list[Float[Tensor, "batch action"]]:
    """Masked logits after each number of unrolls of `latents_through`."""
    encoding, latents = latents_through(model, states, unrolls)
    return [model.edit_logits(z, encoding, states) for z in latents]


@torch.no_grad()
def policy_probabilities(
    model: TinyRecursiveModel, states: StateBatch, *, chunk: int = 1024
) -> Float[Tensor, "batch action"]:
    """pi_phi(a | s) of many states; exactly 0 at illegal edits."""
    return torch.softmax(all_edit_logits(model, states, chunk=chunk), dim=1)


@torch.no_grad()
def all_edit_logits(
    model: TinyRecursiveModel, states: StateBatch, *, chunk: int = 1024
) -> Float[Tensor, "batch action"]:
    """`edit_logits` of many states, without gradient."""
    parts = range(0, len(states), chunk)
    return torch.cat(
        [edit_logits(model, states.select(slice(start, start + chunk))) for start in parts]
    )


def sample_edits(
    probability: Float[Tensor, "batch action"], generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """One edit a state, drawn from its distribution."""
    return torch.multinomial(probability, 1, generator=generator).squeeze(1)


EditPolicy = Callable[[StateBatch], Float[Tensor, "batch action"]]
"""States -> probabilities over edits, zero where illegal."""


def to_states(
    instances: Int8Array, plans: Int8Array, masks: Int8Array, device: torch.device
) -> StateBatch:
    """What learners see of instances, plans and masks -> a batch of states on the device."""
    return StateBatch(
        instance=_tensor(instances, device),
        plan=_tensor(plans, device),
        mask=_tensor(masks, device),
    )


def _tensor(array: Int8Array, device: torch.device) -> Int[Tensor, "batch place"]:
    # torch warns of arrays that it may not write, such as those of an `InstanceSet`.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


@dataclass(frozen=True)
class GreedyPolicy:
    """The edit of the highest score, the first one on a tie; draws no random numbers."""

    score: EditPolicy
    """Probabilities of the edits, or their masked logits."""
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
            part = slice(start, start + self.chunk)
            states = to_states(instances[part], plans[part], mask[part], device)
            with self.placement.autocast():
                actions.append(self.score(states).argmax(dim=1).cpu().numpy())
        return np.concatenate(actions).astype(np.int32)


AnyBoards = TypeVar("AnyBoards", bound="Boards")


@dataclass(frozen=True, kw_only=True, slots=True)
class Boards:
    """States as boards."""

    instances: Int8Array
    """Shape [batch, instance], hidden layers included."""
    plans: Int8Array
    """Shape [batch, cell]."""

    def __len__(self) -> int:
        """Number of states."""
        return len(self.plans)

    def select(self: AnyBoards, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> AnyBoards:
        """The chosen states."""
        return type(self)(**{one.name: getattr(self, one.name)[index] for one in fields(self)})

    @staticmethod
    def join(parts: "Sequence[Boards]") -> "Boards":
        """The states of all parts, in this order."""
        return Boards(
            instances=np.concatenate([part.instances for part in parts]),
            plans=np.concatenate([part.plans for part in parts]),
        )

    def batch(self, domain: PlanDomain, device: torch.device) -> StateBatch:
        """What a model sees of them."""
        seen = self.instances[:, : domain.spec.observed_size]
        masks = domain.action_mask(self.instances, self.plans)
        return to_states(seen, self.plans, masks, device)

    def phi(self, domain: PlanDomain, device: torch.device) -> Float[Tensor, " batch"]:
        """Phi(s) in float64."""
        score = domain.check(self.instances, self.plans).score
        return torch.from_numpy(potential(score, domain.spec.max_score)).to(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deepening:
    """What the networks say of some states after n = 0, 1, ..., N updates of their latents."""

    values: NDArray[np.float32]
    """U_n(s), shape [N + 1, batch], in the units of the shaped return."""
    probabilities: NDArray[np.float32]
    """pi_n(a | s), shape [N + 1, batch, action]."""
    moves: NDArray[np.float32]
    """||z^(n + 1) - z^(n)|| of the evaluator's whole latent, shape [N, batch]."""
    modulus: float | None
    """Proven bound on L_z of the evaluator's recursion; None where there is none below 1."""
    trained_depth: int
    """The n of training and playing."""


@torch.no_grad()
def readings_by_depth(
    model: TinyRecursiveModel, states: StateBatch, *, depth: int
) -> tuple[
    Float[Tensor, "reading batch"],
    Float[Tensor, "reading batch action"],
    Float[Tensor, "update batch"],
]:
    """What both heads of a network read after n = 0, ..., `depth` updates, and how far z moved.

    Returns:
        Outputs of the value head, masked edit logits, and ||z^(n + 1) - z^(n)|| of each state.
    """
    encoding = model.encode(states)
    z = model.recur(encoding, depth=0)
    values, logits, moves = [], [], []
    for n in range(depth + 1):
        values.append(model.value(z, encoding))
        logits.append(model.edit_logits(z, encoding, states))
        if n < depth:
            after = model.recur(replace(encoding, start=z), depth=1)
            moves.append(step_size(after, z, row_state=encoding.row_state, like=values[0]))
            z = after
    no_moves = values[0].new_zeros(0, len(states))
    return torch.stack(values), torch.stack(logits), torch.stack(moves) if moves else no_moves
