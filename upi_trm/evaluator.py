"""The value side of UPI-TRM: U_n, K-step targets, target network, regression (Sec. 3, phase 1).

Input: transitions from `rollout.py`. Output: the value function U_n that `advantage.py` looks ahead
with, and the pieces of its regression, which `algorithm.py` puts together.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import PlanDomain
from trm.experiments.sections import check_at_least, check_positive, check_within
from trm.experiments.states import Boards
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.runs.recipe import Retired
from upi_trm.advantage import SuccessorValue
from upi_trm.persistent_z import memories
from upi_trm.rollout import FloatArray, Transitions, flat, phi_of, start_tensor


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """The `evaluator` section of a recipe."""

    value: Literal["success", "score"] = "success"
    """What V_psi means: the logit of P(solve), U_n = sigmoid(v) - Phi(s), regressed by binary
    cross-entropy; or the shaped value itself, U_n = v, regressed by squared error (the paper)."""
    gamma: float = 0.99
    """gamma: discount in (0, 1]."""
    k_steps: int = 8
    """K: bootstrap horizon of the targets (Eq. 2)."""
    target_rate: float = 0.02
    """Rate of the target network: psi_bar <- psi_bar + rate (psi - psi_bar) after every optimiser
    step."""
    passes: float = 4.0
    """Passes over the replayed transitions in an iteration."""
    batch_size: int = 256
    """States in a minibatch."""
    learning_rate: float = 2e-3
    """Adam's step size."""
    replay_iterations: int = 4
    """Iterations whose transitions are replayed."""
    control_variate: bool = True
    """Subtract the centred advantage of every edit made from its reward in the targets: it has mean
    zero under pi, so the target stays unbiased and loses most of its variance. Needs
    improvement.advantage 'exact' and looks ahead from every state."""
    edit_values: Literal["successor", "corrected", "state", "certified"] = "successor"
    """Q(s, a) of an edit that the checker does not decide: r + gamma U_n(s') (the paper), or the
    same with a correction c(s, a) that the evaluator's edit head reads from the state before, added
    to the logit (success) or to the value (score). A successor does not show whether the edit that
    led to it was forced or guessed, the state before does. `state` corrects U_n(s) instead: no
    successor is evaluated. `certified` reads Q = sigmoid(e(s, a)) from the edit head alone, learned
    from plans that the checker called solved (`certificates`). All but the first need
    improvement.advantage 'exact'."""
    supervised_unrolls: tuple[int, ...] = ()
    """certified: numbers of unrolls after which the edit values are learned too, beside model.depth
    (deep supervision); the policy is distilled at the same ones."""
    unroll_on: float = 0.0
    """certified: share of the minibatches that unroll on beyond model.depth, up to as many times
    again, from the latent without its gradient, and learn there too: playing with more unrolls than
    trained then helps instead of hurting."""
    certified_states: int = 64
    """certified: states of certificates in a minibatch, beside those of the regression."""
    certificates: int = 4096
    """certified: starts whose certificates are remembered."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "target_policy": Retired(
            "current", "it was removed: targets are always those of the policy that made the edits"
        ),
    }

    def __post_init__(self) -> None:
        """Check ranges."""
        check_within(self, "evaluator", "(0, 1]", "gamma", "target_rate")
        check_within(self, "evaluator", "[0, 1]", "unroll_on")
        check_at_least(self, "evaluator", 1, "k_steps", "batch_size", "replay_iterations")
        check_at_least(self, "evaluator", 1, "certificates", "certified_states")
        unrolls = tuple(self.supervised_unrolls)
        if list(unrolls) != sorted(set(unrolls)) or any(n < 1 for n in unrolls):
            raise ValueError(
                "evaluator.supervised_unrolls must be ascending numbers of at least 1, got"
                f" {list(unrolls)}"
            )
        object.__setattr__(self, "supervised_unrolls", unrolls)
        check_positive(self, "evaluator", "passes", "learning_rate")


def shaped_value(
    raw: Float[Tensor, " batch"],
    phi: Float[Tensor, " batch"],
    *,
    value: Literal["success", "score"],
) -> Float[Tensor, " batch"]:
    """U_n(s) in the units of the shaped return, from the head's output.

    V_shaped = V_sparse - Phi exactly (potential-based shaping), and V_sparse lies in [0, 1]: so a
    success head gives U_n = sigmoid(v) - Phi(s).
    """
    return torch.sigmoid(raw) - phi if value == "success" else raw


def targets_of_rollouts(
    pasts: Sequence[Transitions],
    next_values: Sequence[Float[Tensor, "_ plan"]],
    *,
    config: EvaluatorConfig,
) -> list[Float[Tensor, "_ plan"]]:
    """K-step targets of successive rollouts, each of which goes on where the one before ended.

    What became of a plan after its rollout is known except for the last one's, which alone end with
    a bootstrapped value where K or the episode would reach further.

    Args:
        pasts: rollouts of the same plans, oldest first.
        next_values: V_bar of the states after their edits, a tensor [step, plan] each.
        config: K, gamma and whether the advantages serve as control variates.
    """
    device = next_values[0].device

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(one, name) for one in pasts])).to(device)

    reward = joined("reward")
    if config.control_variate:
        reward = reward - joined("advantage")
    target = k_step_targets(
        reward,
        torch.cat(list(next_values)),
        joined("terminated"),
        joined("truncated"),
        k_steps=config.k_steps,
        gamma=config.gamma,
    )
    return list(target.split([len(past.reward) for past in pasts]))


def value_loss(
    raw: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    phi: Float[Tensor, " batch"],
    *,
    value: Literal["success", "score"],
) -> Float[Tensor, ""]:
    """Regression on the targets G (UPI-TRM Sec. 3): squared error, or cross-entropy on G + Phi.

    Both have the conditional mean of the target as their minimiser. Control variates can carry a
    single target of the cross-entropy outside [0, 1]; it is clamped there, which costs a small bias
    and keeps the logit finite.
    """
    if value == "score":
        return nn.functional.mse_loss(raw, target)
    return nn.functional.binary_cross_entropy_with_logits(raw, (target + phi).clamp(0.0, 1.0))


def k_step_targets(
    reward: Float[Tensor, "step plan"],
    next_value: Float[Tensor, "step plan"],
    terminated: Bool[Tensor, "step plan"],
    truncated: Bool[Tensor, "step plan"],
    *,
    k_steps: int,
    gamma: float,
) -> Float[Tensor, "step plan"]:
    """G^(K)(s_t) = sum_{k<K} gamma^k r_{t+k} + gamma^K V_bar(s_{t+K})  (UPI-TRM Eq. 2).

    Absorption bootstraps with 0 (the rewards are folded, see `plan_envs.domain`), truncation with
    the value of the state that was cut off, and so does the end of the rollout, where fewer than K
    steps are left.

    Args:
        reward: folded reward of the edit made at step t.
        next_value: V_bar of the state after that edit (before any reset); ignored where terminated.
        terminated: the edit entered the absorbing state.
        truncated: the episode was cut off after the edit.
        k_steps: K >= 1.
        gamma: discount.

    Returns:
        Targets of the states at which the edits were made.
    """
    steps = len(reward)
    after = torch.where(terminated, torch.zeros_like(next_value), next_value)
    ended = terminated | truncated
    one_step = reward + gamma * after
    target = one_step
    for _ in range(min(k_steps, steps) - 1):
        # After this pass, target[t] looks one step further: through t + 1 unless the episode or the
        # rollout ends.
        further = one_step.clone()
        further[:-1] = torch.where(ended[:-1], one_step[:-1], reward[:-1] + gamma * target[1:])
        target = further
    return target


def bootstrapped(
    terminated: Bool[Tensor, "step plan"], truncated: Bool[Tensor, "step plan"], *, k_steps: int
) -> Bool[Tensor, "step plan"]:
    """Where `k_step_targets` reads `next_value`; nowhere else need V_bar be computed.

    That is K edits into an episode and later, at truncation, and at the end of the rollout.
    """
    edits = torch.ones_like(terminated[0], dtype=torch.int64)  # of the episode, this one included
    reads = []
    for absorbed, cut in zip(terminated, truncated, strict=True):
        reads.append(cut | (edits >= k_steps))
        edits = torch.where(absorbed | cut, 1, edits + 1)
    read = torch.stack(reads)
    read[-1] = True
    return read & ~terminated


@dataclass(frozen=True, kw_only=True)
class ValueFunction:
    """U_n of one network on one domain, in the units of the shaped return."""

    model: TinyRecursiveModel
    domain: PlanDomain
    value: Literal["success", "score"]
    """What the network's value head means."""
    device: torch.device

    def __call__(self, states: StateBatch, score: FloatArray) -> Float[Tensor, " batch"]:
        """U_n of states with these scores."""
        phi = phi_of(self.domain, score, self.device)
        return evaluate_states(self.model, states, phi, value=self.value)

    def of_successors(self, parents: StateBatch) -> SuccessorValue:
        """U_n of the states that edits of `parents` lead to.

        With a persistent latent each starts where the recursion of its parent ends.
        """
        memory = None if parents.start is None else memories(self.model, parents)

        def value(boards: Boards, score: FloatArray, parent: NDArray[np.int64]) -> Tensor:
            states = boards.batch(self.domain, self.device)
            if memory is not None:
                states = replace(states, start=memory[torch.from_numpy(parent).to(self.device)])
            return self(states, score)

        return value

    def of_next_states(
        self, past: Transitions, read: Bool[NDArray[np.bool_], "step plan"]
    ) -> Float[Tensor, "step plan"]:
        """U_n of the states after the edits of a rollout; 0 where `read` is False."""
        values = torch.zeros(past.action.size, device=self.device)
        chosen = np.flatnonzero(read)
        if len(chosen):
            instances = flat(past.instance)[chosen]
            before, after = (
                Boards(instances=instances, plans=flat(plan)[chosen])
                for plan in (past.plan, past.next_plan)
            )
            states = after.batch(self.domain, self.device)
            start = start_tensor(flat(past.evaluator_start)[chosen], self.device)
            if start is not None:
                parents = replace(before.batch(self.domain, self.device), start=start)
                states = replace(states, start=memories(self.model, parents))
            index = torch.from_numpy(chosen).to(self.device)
            values[index] = self(states, past.next_score.ravel()[chosen])
        return values.view(past.action.shape)


class TargetNetwork:
    """Slow copy psi_bar of an evaluator, moved towards it by `rate` after every optimiser step."""

    def __init__(self, online: TinyRecursiveModel, rate: float) -> None:
        self.rate = rate
        self.model = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def update(self, online: TinyRecursiveModel) -> None:
        """psi_bar <- psi_bar + rate (psi - psi_bar)."""
        for slow, fast in zip(self.model.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, self.rate)


@torch.no_grad()
def evaluate_states(
    model: TinyRecursiveModel,
    states: StateBatch,
    phi: Float[Tensor, " batch"],
    *,
    value: Literal["success", "score"],
    depth: int | None = None,
    chunk: int = 1024,
) -> Float[Tensor, " batch"]:
    """U_n of many states, `chunk` at a time."""
    values = []
    for start in range(0, len(states), chunk):
        part = states.select(slice(start, start + chunk))
        encoding = model.encode(part)
        values.append(model.value(model.recur(encoding, depth=depth), encoding))
    # Under autocast the head may answer in bfloat16.
    raw = torch.cat(values).to(phi.dtype) if values else phi.new_zeros(0)
    return shaped_value(raw, phi, value=value)


def minibatches(
    count: int, *, batch_size: int, passes: float, generator: torch.Generator
) -> list[Int[Tensor, " chosen"]]:
    """Index sets for `passes` shuffled passes over `count` rows, the last one cut short."""
    batches: list[Tensor] = []
    wanted = max(1, round(passes * count / batch_size))
    while len(batches) < wanted:
        batches.extend(torch.randperm(count, generator=generator).split(batch_size))
    return batches[:wanted]
