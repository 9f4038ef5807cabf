"""How TRM and HRM train: deep supervision with adaptive computation time (REFERENCE.md A).

The batch has slots. Each call takes one supervision step in every slot; a slot whose sequence has
halted first pulls a new sample and starts from the initial latents, so a sample costs only as many
steps as it needs, and no sample that is drawn is dropped. The loss is that of the present step;
there is one optimiser step a call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from supervised.data_sets.datasets import TokenBatch
from supervised.data_sets.sampling import SampleStream
from supervised.objectives.losses import LossKind, exact, step_losses, token_accuracy
from supervised.objectives.supervision_step import CarriedBatch, Step
from supervised.planner.distill import Distillation
from trm.experiments.sections import check_within
from trm.nn.token_model import TokenModel
from trm.runs.recipe import Retired

HALTING_WEIGHT = 0.5
"""Of the halting loss: binary cross-entropy of the halting logit against whether every token is
right now. The number is hard-coded in the official code."""


@dataclass(frozen=True, kw_only=True)
class ActConfig:
    """The `act` section of a recipe."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "halting_weight": Retired(0.5, "The halting loss has the official weight, 0.5."),
    }

    exploration: float = 0.1
    """Probability, at every step, that halting needs a number of steps drawn from 2..N_sup."""
    continue_loss: bool = False
    """HRM: a second logit is regressed on the value of going on, which costs one more forward pass
    a step, and a sequence halts once halting has the larger value. False: it halts on a positive
    logit."""
    loss: LossKind = "stablemax"
    """The loss of the tokens; the papers' is StableMax cross-entropy."""

    def __post_init__(self) -> None:
        check_within(self, "act", "[0, 1]", "exploration")


class ActObjective:
    """The carried batch and its next step; see the module's docstring."""

    def __init__(
        self,
        model: TokenModel,
        stream: SampleStream,
        config: ActConfig,
        *,
        batch_size: int,
        noise: torch.Generator,
        distillation: Distillation | None = None,
    ) -> None:
        """All slots start halted.

        Args:
            model: with a halting head and without step embedding, as recipes are checked.
            stream: where slots get their samples.
            config: the recipe's section.
            batch_size: slots.
            noise: on the CPU; drawn from for exploration.
            distillation: adds to the loss of every sample at every step.
        """
        self.model, self.stream, self.config, self.noise = model, stream, config, noise
        self.distillation = distillation
        self.carried = CarriedBatch(model, batch_size)
        self.figures = self.carried.figures
        device = model.start_h.device
        self.steps: Int[Tensor, " batch"] = torch.zeros(batch_size, dtype=torch.long, device=device)
        """Supervision steps that the sample of each slot has had."""
        self.halted: Bool[Tensor, " batch"] = torch.ones(
            batch_size, dtype=torch.bool, device=device
        )
        """Slots that pull a new sample at the next step."""

    def step(self) -> Step:
        """One supervision step in every slot."""
        batch = self._refill()
        rows = self.model.puzzle_rows(batch.puzzle)
        out = self.model(self.carried.latents, batch.inputs, rows)
        assert out.halting is not None
        self.carried.latents = out.latents.detach()
        self.steps = self.steps + 1
        predicted = out.logits.detach().argmax(dim=-1)
        right = exact(predicted, batch.labels)
        token_loss = step_losses(out, batch.labels, kind=self.config.loss)
        halting_loss = _binary(out.halting[:, 0], right.float())
        self.halted = self._decide(out.halting.detach())
        auxiliary = halting_loss
        if self.config.continue_loss:
            auxiliary = auxiliary + _binary(out.halting[:, 1], self._value_of_going_on())
        losses = token_loss + HALTING_WEIGHT * auxiliary
        if self.distillation is not None:
            distilled = self.distillation.losses(out.logits, batch.labels)
            losses = losses + distilled
            self.figures.add("distill_loss", distilled, where=self.distillation.available)
            self.figures.add("taught", self.distillation.available.float())
        loss = losses.mean()
        self.figures.add("token_loss", token_loss)
        self.figures.add("halting_loss", halting_loss)
        # The other figures are those of the slots that halt, as in the official code.
        for name, values in (
            ("exact", right.float()),
            ("token_accuracy", token_accuracy(predicted, batch.labels)),
            ("halting_accuracy", ((out.halting[:, 0] > 0) == right).float()),
            ("steps", self.steps.float()),
        ):
            self.figures.add(name, values, where=self.halted)
        return Step(loss=loss, puzzle=batch.puzzle, rows=rows)

    def _refill(self) -> TokenBatch:
        """New samples and initial latents where a sequence has halted."""
        carried, halted = self.carried, self.halted
        count = int(halted.sum())
        if count:
            new = self.stream.take(count)
            if self.distillation is not None:
                self.distillation.refill(halted, new)
            new = new.to(halted.device)
            if carried.samples is None:
                carried.samples = new
            else:
                parts = {name: part.clone() for name, part in carried.samples.parts().items()}
                for name, fresh in new.parts().items():
                    parts[name][halted] = fresh
                carried.samples = TokenBatch(**parts)
            start = self.model.start(len(halted))
            carried.latents = carried.latents.restarted(halted, start)
            self.steps = self.steps.masked_fill(halted, 0)
        assert carried.samples is not None
        return carried.samples

    def _decide(self, halting: Float[Tensor, "batch two"]) -> Bool[Tensor, " batch"]:
        """Which sequences end with this step."""
        most = self.model.schedule.supervision
        last = self.steps >= most
        if most == 1:
            return last
        bar = halting[:, 1] if self.config.continue_loss else torch.zeros_like(halting[:, 0])
        wants = halting[:, 0] > bar
        size = (len(wants),)
        explores = torch.rand(size, generator=self.noise) < self.config.exploration
        least = torch.randint(2, most + 1, size, generator=self.noise)
        needed = torch.where(explores, least, 0).to(wants.device)
        return (last | wants) & (self.steps >= needed)

    @torch.no_grad()
    def _value_of_going_on(self) -> Float[Tensor, " batch"]:
        """HRM's target of the continue logit, from one more forward pass of what is carried now."""
        batch = self.carried.samples
        assert batch is not None
        rows = self.model.puzzle_rows(batch.puzzle)
        after = self.model(self.carried.latents, batch.inputs, rows)
        assert after.halting is not None
        halt, go_on = after.halting.unbind(dim=1)
        last = self.steps >= self.model.schedule.supervision
        return torch.sigmoid(torch.where(last, halt, torch.maximum(halt, go_on)))

    def state(self) -> dict[str, Any]:
        """The slots, their latents and the figures gathered since the last log."""
        return {
            **self.carried.state(),
            "steps": self.steps,
            "halted": self.halted,
            "distillation": None if self.distillation is None else self.distillation.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.carried.load_state(state)
        device = self.halted.device
        self.steps, self.halted = state["steps"].to(device), state["halted"].to(device)
        if self.distillation is not None:
            self.distillation.load_state(state["distillation"])


def _binary(logits: Tensor, targets: Tensor) -> Float[Tensor, " batch"]:
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
