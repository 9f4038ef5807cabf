"""Deep Improvement Supervision: a fixed number of steps, each with a target of its own (paper 001).

No halting. All slots start together; step s = 1..N_sup is trained on frame s of a target generator
(`targets`), after step N_sup every slot pulls a new sample. With `targets: final` this is the
control that the paper lacks: the same steps with the label at each. Where the paper and its
authors' code differ there is a switch (REFERENCE.md C2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from supervised.data_sets.codecs import codec_of
from supervised.data_sets.datasets import TokenDataset
from supervised.data_sets.sampling import SampleStream
from supervised.objectives.losses import (
    LossKind,
    exact,
    sample_losses,
    step_losses,
    token_accuracy,
)
from supervised.objectives.supervision_step import CarriedBatch, Step
from supervised.objectives.targets import (
    CorruptedAs,
    Corruption,
    InputPath,
    SolverOrder,
    TargetGenerator,
    final_targets,
    random_order,
)
from trm.experiments.sections import check_positive, check_within
from trm.nn.token_model import TokenModel
from trm.runs.recipe import Retired


@dataclass(frozen=True, kw_only=True)
class DisConfig:
    """The `dis` section of a recipe."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "file": Retired(None, "Targets are never read from a file."),
    }

    targets: Literal["independent", "nested", "input_path", "solver", "final"] = "nested"
    """Where targets come from: q_beta drawn anew at each step (the paper's Eq. 15) or once a path;
    the random path from input to label (the authors' code); the same in a solver's order; the
    label at every step (the control)."""
    corrupted_as: CorruptedAs = "mask"
    """What q_beta shows in place of a token."""
    initial_corruption: float = 1.0
    """beta before the first step; beta_s = initial (1 - s / N)^power."""
    corruption_power: float = 1.0
    """1 = linear, as in the paper."""
    weights: Literal["uniform", "linear"] = "linear"
    """w_s of the steps' losses: 1, or proportional to s with mean 1 (the paper; the authors' code
    has none)."""
    feeds: Literal["input", "prediction"] = "input"
    """What later steps embed: the input (the paper) or their predecessor's prediction in its place
    (the authors' code)."""
    loss: LossKind = "stablemax"
    """The paper's text says StableMax, its pseudo-code softmax."""
    terms: Literal["single", "dual"] = "single"
    """Eq. 12, or Eq. 11: besides, the readout before the step is trained on the frame before."""
    updates: Literal["each_step", "sum"] = "each_step"
    """One optimiser step for each supervision step (pseudo-code), or one for the sum over s."""

    def __post_init__(self) -> None:
        check_within(self, "dis", "(0, 1]", "initial_corruption")
        check_positive(self, "dis", "corruption_power")

    def generator(self, dataset: TokenDataset) -> TargetGenerator:
        """The target generator for a data set.

        Raises:
            ValueError: for `solver` on a data set without one.
        """
        if self.targets == "final":
            return final_targets
        if self.targets == "input_path":
            return InputPath(random_order)
        if self.targets == "solver":
            return InputPath(SolverOrder(codec_of(dataset.info.domain)))
        return Corruption(
            nested=self.targets == "nested",
            shown=self.corrupted_as,
            vocab_size=dataset.info.vocab_size,
            initial=self.initial_corruption,
            power=self.corruption_power,
        )

    def weight(self, step: int, *, steps: int) -> float:
        """w_s."""
        return 1.0 if self.weights == "uniform" else 2 * step / (steps + 1)


class DisObjective:
    """The carried batch and its next step; see the module's docstring."""

    def __init__(
        self,
        model: TokenModel,
        stream: SampleStream,
        config: DisConfig,
        *,
        batch_size: int,
        noise: torch.Generator,
    ) -> None:
        """The first step draws the first samples.

        Args:
            model: with or without step embedding and halting head; the head is not trained.
            stream: where slots get their samples.
            config: the recipe's section.
            batch_size: slots.
            noise: on the CPU; drawn from for targets.
        """
        self.model, self.stream, self.config, self.noise = model, stream, config, noise
        self.batch_size = batch_size
        self.targets = config.generator(stream.dataset)
        self.carried = CarriedBatch(model, batch_size)
        self.figures = self.carried.figures
        self._step = 0
        self._frames: Tensor | None = None
        self._inputs: Tensor | None = None

    def step(self) -> Step:
        """Supervision step s of all slots."""
        config, steps = self.config, self.model.schedule.supervision
        if self._step in (0, steps):
            self._restart()
        self._step += 1
        batch, frames, inputs = self.carried.samples, self._frames, self._inputs
        assert batch is not None and frames is not None and inputs is not None
        before = self.carried.latents
        rows = self.model.puzzle_rows(batch.puzzle)
        out = self.model(before, inputs, rows, step=self._step)
        self.carried.latents = out.latents.detach()
        losses = step_losses(out, frames[self._step], kind=config.loss)
        if config.terms == "dual":
            anchor = self.model.read(before, inputs)
            losses = losses + sample_losses(anchor, frames[self._step - 1], kind=config.loss)
        predicted = out.logits.detach().argmax(dim=-1)
        if config.feeds == "prediction":
            self._inputs = predicted
        self.figures.add(f"token_loss_{self._step}", losses)
        if self._step == steps:
            self.figures.add("exact", exact(predicted, batch.labels).float())
            self.figures.add("token_accuracy", token_accuracy(predicted, batch.labels))
        complete = config.updates == "each_step" or self._step == steps
        loss = config.weight(self._step, steps=steps) * losses.mean()
        return Step(loss=loss, puzzle=batch.puzzle, rows=rows, complete=complete)

    def _restart(self) -> None:
        samples = self.stream.take(self.batch_size).to(self.model.start_h.device)
        self._frames = self.targets(samples, self.model.schedule.supervision, self.noise)
        self._inputs = samples.inputs
        self.carried.samples, self.carried.latents = samples, self.model.start(self.batch_size)
        self._step = 0

    def state(self) -> dict[str, Any]:
        """The slots, their latents and targets, and the figures gathered since the last log."""
        return {
            **self.carried.state(),
            "step": self._step,
            "frames": self._frames,
            "inputs": self._inputs,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.carried.load_state(state)
        self._step = state["step"]
        if state["frames"] is not None:
            device = self.model.start_h.device
            self._frames, self._inputs = (state[name].to(device) for name in ("frames", "inputs"))
