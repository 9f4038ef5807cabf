"""Parallel rollouts: E plans edited side by side by the current policy (UPI-TRM Sec. 3).

Input: a `PlanEditVectorEnv` and an `Actor`. Output: `Transitions`, which the learner replays for
the value regression, and the `Visits` among them that it looks ahead from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from plan_envs.domain import Int8Array, PlanDomain, potential
from plan_envs.vector_env import PlanEditVectorEnv
from trm.experiments.sections import check_at_least
from trm.experiments.states import Boards, EditPolicy, sample_edits, to_states
from trm.nn.model import StateBatch
from upi_trm.curriculum import Curriculum, Starts


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The `rollout` section of a recipe."""

    plans: int = 64
    """E: plans edited in parallel, at least 2."""
    steps: int = 8
    """Edits of each plan in one iteration."""
    actor: Literal["sample", "search"] = "sample"
    """sample: episodes of edits drawn from the policy (the paper); search: best-first over plans,
    led by the policy and verified by the checker, which goes back to plans that were set aside
    (`search_roller`)."""
    search_budget: int = 200
    """search: plans visited of a puzzle before it is given up."""
    visit_dead: bool = False
    """search: visit the plans too that the checker calls dead at once, each for one edit."""

    def __post_init__(self) -> None:
        """Check ranges: an iteration needs a state to distil on and one to measure on."""
        check_at_least(self, "rollout", 2, "plans")
        check_at_least(self, "rollout", 1, "steps", "search_budget")


FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Edits of E plans over T steps; arrays of shape [step, plan, ...]."""

    instance: Int8Array
    """Full instances, hidden boards included, shape [step, plan, instance]."""
    plan: Int8Array
    """Plan before the edit, shape [step, plan, cell]."""
    next_plan: Int8Array
    """Plan after the edit and before any reset, shape [step, plan, cell]."""
    score: FloatArray
    """Score before the edit."""
    next_score: FloatArray
    """Score after the edit."""
    action: NDArray[np.int32]
    reward: FloatArray
    """Folded reward (`plan_envs.domain.edit_reward`)."""
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    solved: NDArray[np.bool_]
    """The edit solved the plan."""
    advantage: FloatArray
    """Centred advantage of the edit under the policy that made it; 0 where it was not looked up."""
    policy_start: FloatArray
    """Where the policy's recursion started, shape [step, plan, place, channel]; an episodic latent
    starts at zero and has no places."""
    evaluator_start: FloatArray
    """Where the evaluator's recursion started, shape as `policy_start`."""

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, for a checkpoint."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @staticmethod
    def from_state(state: Mapping[str, NDArray[Any]]) -> "Transitions":
        """Counterpart of `state`; takes checkpoints that were written before starts were kept."""
        steps, plans = state["action"].shape
        none = np.zeros((steps, plans, 0, 0), np.float32)
        return Transitions(**{"policy_start": none, "evaluator_start": none, **state})


@dataclass(frozen=True, kw_only=True, slots=True)
class Visits(Boards):
    """States that rollouts met before their edits, in any order; arrays of shape [state, ...]."""

    score: FloatArray
    policy_start: FloatArray
    evaluator_start: FloatArray

    @staticmethod
    def of(pasts: Sequence[Transitions]) -> "Visits":
        """Every state of some rollouts: rollout by rollout, step by step, plan by plan."""
        names = {one.name: one.name for one in fields(Visits)}
        names |= {"instances": "instance", "plans": "plan"}
        return Visits(
            **{
                mine: np.concatenate([flat(getattr(past, name)) for past in pasts])
                for mine, name in names.items()
            }
        )

    def views(self, domain: PlanDomain, device: torch.device) -> tuple[StateBatch, StateBatch]:
        """The states as the policy and as the evaluator see them, each with its own starts."""
        states = self.batch(domain, device)
        return (
            replace(states, start=start_tensor(self.policy_start, device)),
            replace(states, start=start_tensor(self.evaluator_start, device)),
        )

    def phi(self, domain: PlanDomain, device: torch.device) -> Float[Tensor, " state"]:
        """Phi(s) in float32."""
        return phi_of(domain, self.score, device)


def start_tensor(
    start: FloatArray, device: torch.device
) -> Float[Tensor, "state place channel"] | None:
    """Starts as `StateBatch.start` takes them: None where the latent has no places to keep."""
    return None if start.shape[-2] == 0 else torch.from_numpy(start).to(device)


def phi_of(domain: PlanDomain, score: FloatArray, device: torch.device) -> Float[Tensor, " state"]:
    """Phi(s) of scores, float32."""
    value = potential(score, domain.spec.max_score).astype(np.float32)
    return torch.from_numpy(value).to(device)


class Actor:
    """The policy of a rollout, with what it carries from one edit of a plan to the next.

    This one carries nothing: the recursion of every edit starts at zero (the paper).
    """

    def __init__(self, policy: EditPolicy, plans: int) -> None:
        """`plans` are edited side by side."""
        self._policy = policy
        self._none = np.zeros((plans, 0, 0), np.float32)

    def starts(self) -> tuple[FloatArray, FloatArray]:
        """Where the recursions of policy and evaluator start next, shape [plan, place, channel]."""
        return self._none, self._none

    def probabilities(self, states: StateBatch) -> Float[Tensor, "plan action"]:
        """pi(a | s) of the plans in play; moves on what is carried."""
        return self._policy(states)

    def ended(self, done: Bool[NDArray[np.bool_], " plan"]) -> None:
        """Forget what was carried of episodes that are over."""

    def metrics(self, fresh: Transitions) -> dict[str, float]:
        """Figures of a rollout about what was carried."""
        return {}

    def state(self) -> dict[str, Any]:
        """What is carried, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""


SEARCH_COUNTS = ("returns", "edits_if_replayed", "checked")
"""Metrics of a search: plans it went back to, edits that playing each of these again from its start
would have taken, and successors that the checker looked at."""


@runtime_checkable
class Rollout(Protocol):
    """What edits E plans and goes on between iterations: `Roller`, or `SearchRoller`."""

    metrics: dict[str, float]
    """Figures of the last `collect`."""

    def collect(
        self, actor: Actor, *, steps: int, generator: torch.Generator, device: torch.device
    ) -> Transitions:
        """Edit every plan `steps` times."""
        ...

    def figures(self) -> dict[str, float]:
        """How far it has got, for the metrics."""
        ...

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        ...


class Roller:
    """Keeps E plans going between iterations; finished ones restart on an instance drawn anew."""

    def __init__(self, env: PlanEditVectorEnv, curriculum: Curriculum, *, seed: int) -> None:
        """`env` must use AutoresetMode.DISABLED: truncation bootstraps from the last state."""
        self.env, self.curriculum = env, curriculum
        self.metrics: dict[str, float] = {}
        self.starts = curriculum.draw(env.num_envs)
        options = {"instance": self.starts.instances, "plan": self.starts.plans}
        self.observation, self.info = env.reset(seed=seed, options=options)

    def collect(
        self, actor: Actor, *, steps: int, generator: torch.Generator, device: torch.device
    ) -> Transitions:
        """Edit every plan `steps` times with actions sampled from `actor`'s probabilities."""
        rows: list[dict[str, Any]] = []
        for _ in range(steps):
            before, before_info = self.observation, self.info
            states = to_states(before["instance"], before["plan"], before["action_mask"], device)
            policy_start, evaluator_start = actor.starts()
            probability = actor.probabilities(states).cpu()
            action = sample_edits(probability, generator).numpy()
            after, reward, terminated, truncated, info = self.env.step(action)
            done = terminated | truncated
            actor.ended(done)
            rows.append(
                {
                    "instance": self.starts.instances.copy(),
                    "plan": before["plan"],
                    "next_plan": after["plan"],
                    "score": before_info["score"].astype(np.float32),
                    "next_score": info["score"].astype(np.float32),
                    "action": action.astype(np.int32),
                    "reward": reward.astype(np.float32),
                    "terminated": terminated,
                    "truncated": truncated,
                    "solved": info["solved"] & terminated,
                    "policy_start": policy_start,
                    "evaluator_start": evaluator_start,
                }
            )
            self.observation, self.info = after, info
            if done.any():
                self._restart(done, info["solved"])
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return Transitions(**stacked, advantage=np.zeros_like(stacked["reward"]))

    def figures(self) -> dict[str, float]:
        """Edits that an adaptive curriculum leaves."""
        if self.curriculum.config.kind != "adaptive":
            return {}
        return {"curriculum_distance": float(self.curriculum.distance)}

    def _restart(self, done: NDArray[np.bool_], solved: NDArray[np.bool_]) -> None:
        self.curriculum.update(self.starts.distance[done], solved[done])
        drawn = self.curriculum.draw(int(done.sum()))
        self.starts.instances[done] = drawn.instances
        self.starts.plans[done] = drawn.plans
        self.starts.distance[done] = drawn.distance
        options = {"instance": self.starts.instances, "plan": self.starts.plans}
        self.observation, self.info = self.env.reset(options={"reset_mask": done, **options})

    def state(self) -> dict[str, Any]:
        """Environment and curriculum, for a checkpoint."""
        return {
            "env": self.env.get_state(),
            "curriculum": self.curriculum.state(),
            "starts": self.starts._asdict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.observation, self.info = self.env.set_state(state["env"])
        self.starts = Starts(**{name: rows.copy() for name, rows in state["starts"].items()})
        self.curriculum.load_state(state["curriculum"])


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """[step, plan, ...] -> [step * plan, ...]."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
