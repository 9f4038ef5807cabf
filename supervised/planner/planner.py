"""Stage I of TRM-Planner (paper 003, Sec. 4): which steps of a frozen teacher to distil from.

A teacher is unrolled T_max steps, whatever its halting head says, in R noisy rollouts; labels score
every step; each rollout gives one candidate, and K of these become the entries that
`supervised.planner.cache_building` stores. Input: a model of `trm.nn.token_model` and batches of
`supervised.data_sets.datasets`.

The paper's beam over stop/continue decisions (Algorithm 1) always holds exactly one element that
still moves, and for a beam of two or more with ties kept in order it returns the step of the
highest score. So there is no beam here: one unroll with a running argmax, R x T_max calls of the
teacher instead of the R x K_b x T_max of the paper's estimate. The literal algorithm is the oracle
of the tests. A beam of one returns the last step, which is the control "rollout" (`choice: last`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trm.experiments.sections import check_at_least, check_within
from trm.nn.recursion import Latents
from trm.nn.stablemax import (
    IGNORE,
    js_divergence,
    masked_mean,
    stablemax_cross_entropy,
    stablemax_log_probabilities,
)
from trm.nn.token_model import StepOutput, TokenModel

Advance = Callable[[Latents, int], StepOutput]
"""One refinement step of a teacher on a batch: (latents, number of the step from 1) -> output."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """The `planner` section of a recipe; defaults are the paper's (Appendix B)."""

    choice: Literal["score", "last", "random"] = "score"
    """Which step of a rollout becomes its candidate: the one of the highest score (planner), the
    last one (control "rollout-KD"), or one drawn at random (control)."""
    steps: int = 16
    """T_max."""
    rollouts: int = 8
    """R; more than one is of use only with noise."""
    noise: float = 0.02
    """sigma: standard deviation of what is added to both latents after each step."""
    quality_weight: float = 1.0
    """alpha, the weight of exp(-loss)."""
    halting_weight: float = 0.0
    """beta, the weight of the halting probability."""
    step_cost: float = 0.01
    """lambda, subtracted for every step."""
    exact_weight: float = 0.0
    """Weight of 1[every supervised token is right], which the paper's score lacks. With 1, and
    halting_weight = step_cost = 0, exact steps come first, then the least loss."""
    entries: int = 2
    """K: entries kept for an example, at most one a rollout."""
    selector: Literal["mmr", "score"] = "mmr"
    """How the entries are chosen among the candidates: StableJS-MMR or the K highest scores."""
    score_share: float = 0.7
    """lambda_sel of MMR: weight of the score, the rest is the distance's."""
    seed: int = 0
    """Seed of noise and random steps."""

    def __post_init__(self) -> None:
        check_at_least(self, "planner", 1, "steps", "rollouts", "entries")
        check_at_least(self, "planner", 0, "noise", "seed")
        if self.entries > self.rollouts:
            raise ValueError(
                f"planner.entries must be at most planner.rollouts = {self.rollouts}, because a "
                f"rollout gives one candidate, got {self.entries}"
            )
        check_within(self, "planner", "[0, 1]", "score_share")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Teacher outputs of a batch, as the paper's entries have them (Eq. 11) but for the mask.

    A row is an example; its candidates are those of its rollouts, or the entries chosen from them,
    the one of the highest score first.
    """

    step: Int[Tensor, "batch candidate"]
    """t, from 1, int64."""
    logits: Float[Tensor, "batch candidate position vocab"]
    """z, float32; tokens are their argmax."""
    loss: Float[Tensor, "batch candidate"]
    """l: mean StableMax cross-entropy over the supervised tokens, nats, float64."""
    score: Float[Tensor, "batch candidate"]
    """The planner's score, float64."""

    def chosen(self, index: Int[Tensor, "batch entry"]) -> "Candidates":
        """The candidates of these numbers, in this order."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return Candidates(**{name: part[rows, index] for name, part in self._parts().items()})

    def replaced(self, where: Bool[Tensor, "batch candidate"], other: "Candidates") -> "Candidates":
        """`other` where True."""
        mixed = {}
        for name, part in self._parts().items():
            chosen = where.view(*where.shape, *[1] * (part.ndim - where.ndim))
            mixed[name] = torch.where(chosen, getattr(other, name), part)
        return Candidates(**mixed)

    def _parts(self) -> dict[str, Tensor]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def teacher_on(
    model: TokenModel, inputs: Int[Tensor, "batch position"], puzzle: Int[Tensor, " batch"]
) -> tuple[Latents, Advance]:
    """Where a model starts on a batch, and how it goes on."""
    rows = model.puzzle_rows(puzzle)

    def advance(latents: Latents, step: int) -> StepOutput:
        output: StepOutput = model(latents, inputs, rows, step=step)
        return output

    return model.start(len(inputs)), advance


@torch.no_grad()
def plan(
    start: Latents,
    advance: Advance,
    labels: Int[Tensor, "batch position"],
    config: PlannerConfig,
    *,
    keys: Sequence[bytes],
) -> Candidates:
    """Algorithm 1 for a batch: R rollouts, one candidate each, K of them kept.

    Costs R x T_max calls of `advance`, and memory for the logits of R + 1 steps.

    Args:
        start: the teacher's latents before the first step.
        advance: the teacher.
        labels: tokens, `IGNORE` where not supervised.
        config: see there.
        keys: one an example. Noise and random steps depend on key, rollout and `config.seed`, never
            on the batch that an example happens to be in.

    Returns:
        `config.entries` candidates a row.

    Raises:
        ValueError: a weight on halting for a teacher without halting head.
    """
    rollouts = [
        _roll_out(start, advance, labels, config, keys=keys, rollout=rollout)
        for rollout in range(config.rollouts)
    ]
    found = Candidates(
        **{
            item.name: torch.cat([getattr(one, item.name) for one in rollouts], dim=1)
            for item in fields(Candidates)
        }
    )
    if config.selector == "score" or config.rollouts == 1:
        return found.chosen(select_by_score(found.score, config.entries))
    distance = js_distances(found.logits, labels != IGNORE)
    return found.chosen(
        select_by_mmr(found.score, distance, config.entries, score_share=config.score_share)
    )


# --- One rollout


def _roll_out(
    latents: Latents,
    advance: Advance,
    labels: Tensor,
    config: PlannerConfig,
    *,
    keys: Sequence[bytes],
    rollout: int,
) -> Candidates:
    """The chosen step of one rollout, its only candidate, by a running argmax.

    The tie rule is the beam's: a step that equals the best so far replaces it only if that is the
    step just before.
    """
    noise = RolloutNoise(keys, rollout=rollout, config=config)
    drawn = noise.random_steps().to(labels.device) if config.choice == "random" else None
    best: Candidates | None = None
    for number in range(1, config.steps + 1):
        output = advance(latents, number)
        latents = noise.added(output.latents)
        now = _scored(output, labels, number, config)
        if best is None or config.choice == "last":
            best = now
        elif drawn is not None:
            best = best.replaced(drawn[:, None] == number, now)
        else:
            tie = (now.score == best.score) & (best.step == number - 1)
            best = best.replaced((now.score > best.score) | tie, now)
    assert best is not None
    return best


def _scored(output: StepOutput, labels: Tensor, number: int, config: PlannerConfig) -> Candidates:
    """A step as the only candidate of each example, with its loss and score (Eq. 9, 10)."""
    loss, exact = step_quality(output.logits, labels)
    score = config.quality_weight * torch.exp(-loss) - config.step_cost * number
    if config.halting_weight:
        if output.halting is None:
            raise ValueError("planner.halting_weight must be 0: the teacher has no halting head")
        score = score + config.halting_weight * torch.sigmoid(output.halting[:, 0].double())
    if config.exact_weight:
        score = score + config.exact_weight * exact
    return Candidates(
        step=torch.full_like(labels[:, :1], number),
        logits=output.logits.float()[:, None],
        loss=loss[:, None],
        score=score[:, None],
    )


def step_quality(
    logits: Float[Tensor, "batch position vocab"], labels: Int[Tensor, "batch position"]
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Mean StableMax cross-entropy over supervised tokens (float64), and whether all are right."""
    supervised = labels != IGNORE
    loss = masked_mean(stablemax_cross_entropy(logits, labels), supervised)
    right = (logits.argmax(dim=-1) == labels) | ~supervised
    return loss, right.all(dim=-1)


class RolloutNoise:
    """Gaussian noise of one rollout of a batch (Eq. 8): a stream of its own for every example.

    The streams are numpy's Philox, keyed by seed, example and rollout: the same on every device and
    in every batch.
    """

    def __init__(self, keys: Sequence[bytes], *, rollout: int, config: PlannerConfig) -> None:
        self._scale, self._steps = config.noise, config.steps
        self._streams = [_stream(key, rollout, config.seed) for key in keys]

    def random_steps(self) -> Int[Tensor, " batch"]:
        """A step from 1 to T_max for every example, uniform; drawn before any noise."""
        return torch.tensor([int(rng.integers(1, self._steps + 1)) for rng in self._streams])

    def added(self, latents: Latents) -> Latents:
        """The latents with noise added to both, or themselves where sigma = 0."""
        if self._scale == 0:
            return latents
        return Latents(z_h=self._added(latents.z_h), z_l=self._added(latents.z_l))

    def _added(self, z: Tensor) -> Tensor:
        size = tuple(z.shape[1:])
        drawn = np.stack([rng.standard_normal(size, np.float32) for rng in self._streams])
        return z + self._scale * torch.from_numpy(drawn).to(z.device, z.dtype)


def _stream(key: bytes, rollout: int, seed: int) -> np.random.Generator:
    text = b"/".join([b"planner", str(seed).encode(), str(rollout).encode(), key])
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


# --- From candidates to entries


def js_distances(
    logits: Float[Tensor, "batch candidate position vocab"], mask: Bool[Tensor, "batch position"]
) -> Float[Tensor, "batch candidate candidate"]:
    """d_JS of every two candidates (Eq. 12): mean over the mask, in [0, ln 2], float64.

    The candidates of an example share its mask; where that is empty, all distances are 0.
    """
    num = logits.shape[1]
    log_p = stablemax_log_probabilities(logits)
    distances = log_p.new_zeros((len(logits), num, num))
    for i in range(num):
        for j in range(i):
            distance = masked_mean(js_divergence(log_p[:, i], log_p[:, j]), mask)
            distances[:, i, j] = distances[:, j, i] = distance
    return distances


def select_by_mmr(
    score: Float[Tensor, "batch candidate"],
    distance: Float[Tensor, "batch candidate candidate"],
    entries: int,
    *,
    score_share: float,
) -> Int[Tensor, "batch entry"]:
    """StableJS-MMR: greedy choice by score and distance to those chosen already (Eq. 13).

    What the paper leaves open is decided so: scores are scaled to [0, 1] by the least and largest
    of the example's candidates, all to 0 where these are equal; the distance (at most ln 2) is not
    scaled; ties go to the candidate of the lower number, the earlier rollout.

    Args:
        score: of each candidate.
        distance: of every two candidates of an example, see `js_distances`.
        entries: how many are chosen.
        score_share: lambda_sel, the weight of the score; the rest is the distance's.
    """
    low, high = score.min(dim=1, keepdim=True).values, score.max(dim=1, keepdim=True).values
    scaled = torch.where(high > low, (score - low) / torch.where(high > low, high - low, 1.0), 0.0)
    chosen = [score.argmax(dim=1)]
    rows = torch.arange(len(score), device=score.device)
    taken = torch.zeros_like(score, dtype=torch.bool)
    nearest = torch.full_like(score, torch.inf)
    while len(chosen) < entries:
        taken[rows, chosen[-1]] = True
        nearest = torch.minimum(nearest, distance[rows, chosen[-1]])
        value = score_share * scaled + (1 - score_share) * nearest
        chosen.append(value.masked_fill(taken, -torch.inf).argmax(dim=1))
    return torch.stack(chosen, dim=1)


def select_by_score(
    score: Float[Tensor, "batch candidate"], entries: int
) -> Int[Tensor, "batch entry"]:
    """The candidates of the highest scores; ties go to the lower number."""
    return score.sort(dim=1, descending=True, stable=True).indices[:, :entries]
