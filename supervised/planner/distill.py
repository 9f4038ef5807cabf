"""Stage II of TRM-Planner (paper 003, Sec. 5): learn from a teacher's cached entries as well.

To the base loss of each example, w times a distillation loss is added, at every refinement step
that the example is active for (Eq. 15): cross-entropy to the teacher's tokens (hard, Eq. 17) or KL
to its StableMax distribution (soft, Eq. 18). Both are means over an example's supervised tokens,
like the base loss. Entries come from `teacher_cache`; an example without one is trained on its
labels alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from supervised.data_sets.datasets import TokenBatch
from supervised.planner.teacher_cache import TeacherCache, TeacherTargets
from trm.experiments.sections import check_at_least, check_positive
from trm.nn.stablemax import (
    IGNORE,
    kl_divergence,
    masked_mean,
    stablemax_cross_entropy,
    stablemax_log_probabilities,
)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The `distill` section of a recipe; defaults are the paper's."""

    cache: str | None = None
    """Folder of the teacher cache; null in recipes that ship, and given when they run."""
    kind: Literal["hard", "soft"] = "soft"
    """Tokens, or distributions."""
    weight: float = 0.25
    """w."""
    quality: float | None = 0.5
    """q: entries of a larger loss (nats, mean over tokens) are left out; null keeps all."""
    temperature: float = 1.0
    """T of soft distillation."""

    def __post_init__(self) -> None:
        check_at_least(self, "distill", 0, "weight")
        check_positive(self, "distill", "quality", "temperature")
        if self.kind == "hard" and self.temperature != 1:
            raise ValueError(f"distill.temperature is for kind soft, got {self.temperature}")


def hard_losses(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch position"],
    targets: TeacherTargets,
) -> Float[Tensor, " batch"]:
    """StableMax cross-entropy to the teacher's tokens (Eq. 17), nats, float64.

    A mean over the supervised tokens of each example; 0 where it has no entry.
    """
    mask = distilled(labels, targets)
    return masked_mean(
        stablemax_cross_entropy(logits, torch.where(mask, targets.tokens, IGNORE)), mask
    )


def soft_losses(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch position"],
    targets: TeacherTargets,
    *,
    temperature: float,
) -> Float[Tensor, " batch"]:
    """T^2 KL(StableMax(z_teacher / T) || StableMax(z_student / T)) (Eq. 18), nats, float64.

    A mean over the supervised tokens of each example; 0 where it has no entry.

    Args:
        logits: z_student.
        labels: tokens, `IGNORE` where not supervised.
        targets: z_teacher, and where there are entries.
        temperature: T.
    """
    if targets.logits is None:
        raise ValueError("distill.kind must be hard: the cache holds tokens alone")
    log_p = stablemax_log_probabilities(targets.logits / temperature)
    log_q = stablemax_log_probabilities(logits / temperature)
    return temperature**2 * masked_mean(kl_divergence(log_p, log_q), distilled(labels, targets))


def distilled(
    labels: Int[Tensor, "batch position"], targets: TeacherTargets
) -> Bool[Tensor, "batch position"]:
    """Where distillation applies: at supervised positions of examples with an entry (Eq. 16)."""
    return (labels != IGNORE) & targets.available[:, None]


class Distillation:
    """The entries that the slots of a streamed batch learn from, and their losses.

    An example keeps the entry that it was given when it came into its slot, for all its steps.

    Args:
        cache: where entries come from.
        config: the recipe's section.
        batch_size: slots.
        rng: draws the entries; belongs to the caller, who saves it.
        device: of the student.

    Raises:
        ValueError: soft distillation from a cache of tokens alone.
    """

    def __init__(
        self,
        cache: TeacherCache,
        config: DistillConfig,
        *,
        batch_size: int,
        rng: np.random.Generator,
        device: torch.device,
    ) -> None:
        if config.kind == "soft" and not cache.has_logits:
            raise ValueError(f"distill.kind must be hard: {cache.folder} holds tokens alone")
        self.cache, self.config = cache, config
        self._rng, self._device = rng, device
        self._chosen = np.full((batch_size, 2), -1, np.int64)
        self._targets = cache.targets(self._chosen).to(device)

    @property
    def available(self) -> Bool[Tensor, " batch"]:
        """Slots whose example has an entry that is good enough."""
        return self._targets.available

    def refill(self, fresh: Bool[Tensor, " batch"], samples: TokenBatch) -> None:
        """Choose entries for the samples that the slots `fresh` have just taken, in their order."""
        self._chosen[fresh.cpu().numpy()] = self.cache.choose(
            samples, self._rng, quality=self.config.quality
        )
        self._targets = self.cache.targets(self._chosen).to(self._device)

    def losses(
        self,
        logits: Float[Tensor, "batch position vocab"],
        labels: Int[Tensor, "batch position"],
    ) -> Float[Tensor, " batch"]:
        """The distillation loss of every slot times w, to be added to its base loss."""
        if self.config.kind == "hard":
            losses = hard_losses(logits, labels, self._targets)
        else:
            losses = soft_losses(logits, labels, self._targets, temperature=self.config.temperature)
        return self.config.weight * losses

    def state(self) -> dict[str, Any]:
        """Which entry each slot has; the cache itself stays on disk."""
        return {"chosen": self._chosen.copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._chosen = state["chosen"].copy()
        self._targets = self.cache.targets(self._chosen).to(self._device)
