"""Persistent z: latents carried across the edits of an episode, and how well they track (App. F).

The paper leaves persistent z as a sketch: the fixed point z*(x, y_t) moves with every edit, and
L_z^n C_z / (1 - L_z) becomes a drift term C_drift(n). Here the latents are aligned by variable
(`TinyRecursiveModel.memory`), and the term is measured. Input: rollouts of `learner.py`; output:
their latents for the replay, and metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.nn.recursion import unroll_until
from upi_trm.contraction import posterior_bias


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Where the recursions of policy and evaluator start at some states."""

    policy: Float[Tensor, "*batch place channel"]
    evaluator: Float[Tensor, "*batch place channel"]

    @staticmethod
    def stack(steps: Sequence["Latents"]) -> "Latents":
        """[plan, ...] of each step -> [step, plan, ...]."""
        return Latents(
            policy=torch.stack([one.policy for one in steps]),
            evaluator=torch.stack([one.evaluator for one in steps]),
        )

    @staticmethod
    def join(rollouts: Sequence["Latents"]) -> "Latents":
        """[step, plan, ...] of each rollout -> [state, ...]."""
        return Latents(
            policy=torch.cat([one.policy.flatten(0, 1) for one in rollouts]),
            evaluator=torch.cat([one.evaluator.flatten(0, 1) for one in rollouts]),
        )

    def select(self, index: Int[Tensor, " chosen"] | slice | int) -> "Latents":
        """The chosen states, or steps of a rollout."""
        return Latents(policy=self.policy[index], evaluator=self.evaluator[index])

    def restarted(self, ended: Bool[Tensor, " plan"]) -> "Latents":
        """Zero where an episode ended."""
        return Latents(
            policy=self.policy.masked_fill(ended[:, None, None], 0.0),
            evaluator=self.evaluator.masked_fill(ended[:, None, None], 0.0),
        )

    def to(self, device: torch.device) -> "Latents":
        """The same on a device."""
        return Latents(policy=self.policy.to(device), evaluator=self.evaluator.to(device))

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"policy": self.policy, "evaluator": self.evaluator}


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
    Where the fixed point moves by D at most it stays below L_z^n D / (1 - L_z^n). With an adaptive
    recursion at least L_z / (1 - L_z) times its tolerance."""
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
        lambda z: model.step(z, encoding),
        blank,
        row_state=encoding.row_state,
        batch=encoding.batch,
        depth=most,
        tolerance=tolerance,
        radius=model.config.radius,
    )
    again = unroll_until(
        lambda z: model.step(z, encoding),
        blank,
        row_state=encoding.row_state,
        batch=encoding.batch,
        depth=model.config.depth,
        tolerance=model.config.tolerance,
        radius=model.config.radius,
    )
    assert encoding.start is not None

    def aligned(rows: Tensor) -> Tensor:
        return model.memory(rows, encoding).view(steps, plans, -1)

    star, present = aligned(fixed.z), aligned(torch.ones_like(blank))
    tracking, restarted = (
        torch.linalg.vector_norm(aligned(z) - star, dim=2) for z in (reached, again.z)
    )
    before = aligned(encoding.start)
    goes_on = ~ended[:-1, :, None]
    before[1:] = torch.where(goes_on, star[:-1] * present[1:], before[1:])
    moved = torch.linalg.vector_norm(before - star, dim=2)
    shrink = modulus**model.config.depth
    # An adaptive recursion may rest earlier, within its a-posteriori bound.
    rest = posterior_bias(modulus, model.config.tolerance or 0.0)
    bound = torch.zeros_like(moved)
    carried = torch.zeros_like(moved[0])
    for t in range(steps):
        carried = (shrink * (carried + moved[t])).clamp_min(rest)
        bound[t] = carried
        carried = torch.where(ended[t], torch.zeros_like(carried), carried)
    return LatentDrift(
        tracking=tracking,
        restarted=restarted,
        moved=moved,
        bound=bound,
        missing=modulus / (1 - modulus) * float(fixed.last_step.max()),
    )
