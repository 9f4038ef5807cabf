"""Persistent z: latents carried across the edits of an episode, and how well they track (App. F).

The paper leaves persistent z as a sketch: the fixed point z*(x, y_t) moves with every edit, and
L_z^n C_z / (1 - L_z) becomes a drift term C_drift(n). Here the latents are aligned by variable
(`TinyRecursiveModel.memory`), and the term is measured. `PersistentActor` carries the latents
through a rollout, `GreedyPersistent` through an evaluation; everywhere else a latent is only the
place where a state's recursion starts (`StateBatch.start`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Int8Array, PlanDomain
from trm.compute.device import Placement
from trm.experiments.states import Boards, to_states
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.nn.recursion import unroll, unroll_until
from upi_trm.rollout import Actor, FloatArray, Transitions, flat, start_tensor


class PersistentActor(Actor):
    """The policy of a rollout whose latents go from each edit to the next, zero at a start."""

    def __init__(
        self,
        policy: TinyRecursiveModel,
        evaluator: TinyRecursiveModel,
        domain: PlanDomain,
        *,
        plans: int,
        device: torch.device,
        modulus: Callable[[], float],
    ) -> None:
        """`modulus` says the certified L_z of the evaluator, infinite without a certificate."""
        self._network, self._evaluator, self._domain = policy, evaluator, domain
        self._device, self._modulus = device, modulus
        blank = torch.zeros(plans, evaluator.num_places, evaluator.config.channels, device=device)
        self._carried = self._reached = (blank, blank)

    def starts(self) -> tuple[FloatArray, FloatArray]:
        """Where the recursions of policy and evaluator start next."""
        policy, evaluator = (latents.cpu().numpy() for latents in self._carried)
        return policy, evaluator

    @torch.no_grad()
    def probabilities(self, states: StateBatch) -> Float[Tensor, "plan action"]:
        """pi(a | s, z); both networks' latents move on to what they reach at these states."""
        policy_start, evaluator_start = self._carried
        seen = replace(states, start=policy_start)
        encoding = self._network.encode(seen)
        z = self._network.recur(encoding)
        self._reached = (
            # Under autocast the recursion may answer in bfloat16.
            self._network.memory(z, encoding).to(policy_start.dtype),
            memories(self._evaluator, replace(states, start=evaluator_start)).to(
                evaluator_start.dtype
            ),
        )
        return torch.softmax(self._network.edit_logits(z, encoding, seen), dim=1)

    def ended(self, done: Bool[NDArray[np.bool_], " plan"]) -> None:
        """Start at zero where an episode is over."""
        over = torch.from_numpy(done).to(self._device)[:, None, None]
        policy, evaluator = (latents.masked_fill(over, 0.0) for latents in self._reached)
        self._carried = (policy, evaluator)

    def metrics(self, fresh: Transitions, *, plans: int = 8) -> dict[str, float]:
        """How the evaluator's latents track its fixed points, on a few plans (App. F).

        Nothing without a certified contraction, where there need be no fixed point.
        """
        modulus = self._modulus()
        if modulus >= 1:
            return {}
        few = slice(0, plans)
        instances, boards, start = (
            flat(array[:, few]) for array in (fresh.instance, fresh.plan, fresh.evaluator_start)
        )
        states = Boards(instances=instances, plans=boards).batch(self._domain, self._device)
        states = replace(states, start=start_tensor(start, self._device))
        ended = torch.from_numpy((fresh.terminated | fresh.truncated)[:, few]).to(self._device)
        return latent_drift(self._evaluator, states, ended, modulus=modulus).metrics()

    def state(self) -> dict[str, Any]:
        """The latents that are carried."""
        policy, evaluator = self._carried
        return {"policy": policy, "evaluator": evaluator}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self._carried = (
            state["policy"].to(self._device),
            state["evaluator"].to(self._device),
        )


class GreedyPersistent:
    """The most probable edit of a network whose latent is carried across the edits of an episode.

    It remembers the latents of the plans that its last answers lead to, by instance and plan; a
    plan that it did not foresee starts an episode, at z = 0. So it serves any number of episodes
    side by side, as long as each call asks for the next edit of every one that goes on.
    """

    def __init__(self, model: TinyRecursiveModel, domain: PlanDomain, placement: Placement) -> None:
        """`domain` says where an edit leads."""
        self.model, self.domain, self.placement = model, domain, placement
        self._expected: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        instances: Int8Array,
        plans: Int8Array,
        mask: Int8Array,
        rng: np.random.Generator,
        *,
        chunk: int = 1024,
    ) -> NDArray[np.int32]:
        """Shapes [batch, observed], [batch, cell], [batch, action] -> actions, shape [batch]."""
        device, model = self.placement.torch_device, self.model
        blank = torch.zeros(model.num_places, model.config.channels, device=device)
        keys = _keys(instances, plans)
        actions, latents = [], []
        for first in range(0, len(plans), chunk):
            part = slice(first, first + chunk)
            start = torch.stack([self._expected.get(key, blank) for key in keys[part]])
            states = to_states(instances[part], plans[part], mask[part], device)
            states = replace(states, start=start)
            with self.placement.autocast():
                encoding = model.encode(states)
                z = model.recur(encoding)
                logits = model.edit_logits(z, encoding, states)
            actions.append(logits.argmax(dim=1).cpu().numpy().astype(np.int32))
            latents.append(model.memory(z, encoding).to(blank.dtype))
        chosen = np.concatenate(actions)
        # Hidden boards, which no policy sees, change nothing about where an edit leads.
        boards = np.zeros((len(plans), self.domain.spec.instance_size), np.int8)
        boards[:, : instances.shape[1]] = instances
        after = self.domain.edit(boards, plans, chosen)
        self._expected = dict(
            zip(_keys(instances, after), torch.cat(latents).unbind(0), strict=True)
        )
        return chosen


def _keys(instances: Int8Array, plans: Int8Array) -> list[bytes]:
    return [row.tobytes() for row in np.concatenate([instances, plans], axis=1)]


@torch.no_grad()
def memories(
    model: TinyRecursiveModel, states: StateBatch, *, chunk: int = 1024
) -> Float[Tensor, "batch place channel"]:
    """Where the latents of many states end, which is where those of their successors start."""
    found = []
    for start in range(0, len(states), chunk):
        encoding = model.encode(states.select(slice(start, start + chunk)))
        found.append(model.memory(model.recur(encoding), encoding))
    return torch.cat(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentDrift:
    """How a latent tracks the fixed points of the states that it meets; arrays [step, plan]."""

    tracking: Float[Tensor, "step plan"]
    """||z_t^(n) - z*(s_t)|| from the carried latent: C_drift(n) is its maximum."""
    restarted: Float[Tensor, "step plan"]
    """The same at the same n from z = 0: what an episodic latent misses at equal compute."""
    moved: Float[Tensor, "step plan"]
    """||z*(s_t) - z*(s_t-1)||, variables that go left out, those that come counted whole; at the
    first edit of an episode, and of the rollout, ||z*(s_t) - start||."""
    bound: Float[Tensor, "step plan"]
    """Proven bound on `tracking`: b_t = L_z^n (b_{t-1} + moved_t), b = 0 before the first edit.
    Where the fixed point moves by D at most it stays below L_z^n D / (1 - L_z^n)."""
    missing: float
    """Bound on how far the fixed points themselves may be off; add it to `bound` twice over."""

    def metrics(self) -> dict[str, float]:
        """Largest of each, for the log."""
        return {
            "drift_tracking": float(self.tracking.max()),
            "drift_restarted": float(self.restarted.max()),
            "drift_tracking_mean": float(self.tracking.mean()),
            "drift_restarted_mean": float(self.restarted.mean()),
            "drift_moved": float(self.moved.max()),
            "drift_bound": float(self.bound.max()),
        }


@torch.no_grad()
def latent_drift(
    model: TinyRecursiveModel,
    states: StateBatch,
    ended: Bool[Tensor, "step plan"],
    *,
    modulus: float,
    tolerance: float = 1e-5,
    most: int = 200,
) -> LatentDrift:
    """Measure the tracking of persistent latents along rollouts with one set of weights.

    With e_t = ||z_t - z*_t||: z_{t+1} starts from z_t on the variables that stay, so it starts
    within e_t + moved_{t+1} of z*_{t+1}, and n unrolls shrink that by L_z^n.

    Args:
        model: whose latents they are.
        states: of all steps and plans, step by step, with the latents that they started from.
        ended: the episode ended after this edit.
        modulus: certified L_z < 1.
        tolerance: the last step of the recursion that stands for the fixed point.
        most: unrolls to the fixed point.
    """
    steps, plans = ended.shape
    encoding = model.encode(states)
    reached = model.recur(encoding)
    blank = torch.zeros_like(encoding.injection)
    fixed = unroll_until(
        lambda z: model.projected_step(z, encoding),
        blank,
        row_state=encoding.row_state,
        batch=encoding.batch,
        depth=most,
        tolerance=tolerance,
    )
    again = unroll(
        lambda z: model.projected_step(z, encoding),
        blank,
        depth=model.config.depth,
    )
    assert encoding.start is not None

    def aligned(rows: Tensor) -> Tensor:
        return model.memory(rows, encoding).view(steps, plans, -1)

    star, present = aligned(fixed.z), aligned(torch.ones_like(blank))
    tracking, restarted = (
        torch.linalg.vector_norm(aligned(z) - star, dim=2) for z in (reached, again)
    )
    before = aligned(encoding.start)
    goes_on = ~ended[:-1, :, None]
    before[1:] = torch.where(goes_on, star[:-1] * present[1:], before[1:])
    moved = torch.linalg.vector_norm(before - star, dim=2)
    shrink = modulus**model.config.depth
    bound = torch.zeros_like(moved)
    carried = torch.zeros_like(moved[0])
    for t in range(steps):
        carried = shrink * (carried + moved[t])
        bound[t] = carried
        carried = torch.where(ended[t], torch.zeros_like(carried), carried)
    return LatentDrift(
        tracking=tracking,
        restarted=restarted,
        moved=moved,
        bound=bound,
        missing=modulus / (1 - modulus) * float(fixed.last_step.max()),
    )
