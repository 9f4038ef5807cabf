"""The recipe of a supervised run.

One YAML file is one run: `configs/supervised/<method>-<data>[-<size>].yaml` in a checkout,
`supervised/configs` in a wheel. `trm.runs.recipe.load_recipe` reads them into a `SupervisedRecipe`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from plan_envs.catalogue import resolve_task
from supervised.data_sets.codecs import codec_of
from supervised.objectives.act import ActConfig
from supervised.objectives.dis import DisConfig
from supervised.planner.distill import DistillConfig
from supervised.shipped import RECIPES
from trm.experiments.sections import check_at_least, check_positive, check_within
from trm.nn.optim import OptimiserConfig
from trm.nn.recursion import RecursionSchedule
from trm.nn.token_model import TokenModelConfig, TokenShape
from trm.runs.recipe import Retired

ARC_VOCABULARY, ARC_POSITIONS = 12, 900
"""Padding, end of grid and ten colours, on a canvas of 30 x 30 (REFERENCE.md A)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` section: a data set on disk, or a task whose examples are generated in memory."""

    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "options": Retired({}, "The examples have the task's own options; name another task."),
    }

    folder: str | None = None
    """Made by `upi-trm supervised data build`; of `folder` and `task` there is exactly one."""
    domain: str | None = None
    """Of the data set in `folder`, e.g. sudoku9x9, queens8x8, maze30x30 or arc; another is
    refused."""
    task: str | None = None
    """A task of `plan_envs`, e.g. nqueens8 or sudoku4x4; its splits are disjoint."""
    num: int | None = None
    """Training examples of a task, drawn with the run's seed; null = the task's own number."""
    seed: int | None = None
    """Of a task's training examples and of fixed copies; null = the run's seed."""
    augment: bool = True
    """Whether every training sample is drawn as an image under the rules' symmetries."""
    copies: int | None = None
    """With `augment`: draw from a fixed list of so many images of each example and the example
    itself, as a teacher cache needs; null = a new image every time."""
    revealed: float = 0.0
    """Sudoku, N-Queens: largest share of a training sample's missing values that its input shows
    already. Each sample draws its own share from 0 up to it, so that training sees the boards that
    commit decoding goes through."""

    def __post_init__(self) -> None:
        """Exactly one source."""
        if (self.folder is None) == (self.task is None):
            raise ValueError(
                f"data needs either folder or task, got {self.folder!r} and {self.task!r}"
            )
        if (self.folder is None) != (self.domain is None):
            raise ValueError(
                f"data.domain goes with data.folder, got {self.domain!r} and {self.folder!r}"
            )
        if self.task is None and self.num is not None:
            raise ValueError("data.num goes with data.task")
        check_at_least(self, "data", 1, "num")
        check_at_least(self, "data", 0, "seed")
        check_within(self, "data", "[0, 1]", "revealed")
        if self.revealed and not self.domain_name.startswith(("sudoku", "queens")):
            raise ValueError(
                f"data.revealed is for Sudoku and N-Queens, not for {self.domain_name!r}"
            )
        if self.copies is not None and (self.copies < 1 or not self.augment):
            raise ValueError(
                f"data.copies must be at least 1, and null without data.augment, got {self.copies}"
            )

    @property
    def domain_name(self) -> str:
        """The domain of the data, e.g. sudoku9x9.

        Raises:
            ValueError: there is no such task.
        """
        if self.domain is not None:
            return self.domain
        assert self.task is not None
        return resolve_task(self.task).domain.spec.name


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The `schedule` section; all in optimiser steps."""

    steps: int = 1000
    """Budget of the run; `--steps` overrides it."""
    cpu_seconds: float | None = None
    """Ends the run earlier, once training alone (no evaluation) has taken so much CPU time; null =
    never. Then a run depends on the machine's speed."""
    log_every: int = 50
    """Between two lines of metrics."""
    evaluate_every: int = 250
    """Between two evaluations on validation examples."""
    evaluate_num: int = 500
    """Validation examples."""
    checkpoint_every: int = 250
    """Between two checkpoints: what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_at_least(self, "schedule", 1, "steps", "log_every", "evaluate_every")
        check_at_least(self, "schedule", 1, "evaluate_num", "checkpoint_every")
        check_positive(self, "schedule", "cpu_seconds")


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe:
    """A complete recipe of `upi-trm supervised train`."""

    data: DataConfig
    model: TokenModelConfig = field(default_factory=TokenModelConfig)
    recursion: RecursionSchedule = field(default_factory=RecursionSchedule)
    act: ActConfig | None = None
    """Streamed training with halting (TRM, HRM); of `act` and `dis` there is exactly one."""
    dis: DisConfig | None = None
    """Fixed steps with a target each."""
    distill: DistillConfig | None = None
    """Learning from a teacher's cached entries beside the labels (TRM-Planner); needs `act`."""
    teacher: str | None = None
    """Run folder of the teacher, for `distill` and `start`."""
    start: Literal["fresh", "teacher"] = "fresh"
    """Whose weights the run begins with: fresh ones, or the teacher's as they are evaluated (the
    running average where there is one). Optimiser and warm-up begin anew in either case."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 768
    """Slots, over all processes."""
    recompute: bool = False
    """Whether the backward pass computes activations again instead of keeping them: less memory,
    more time, the same numbers."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        if (self.act is None) == (self.dis is None):
            raise ValueError("a recipe needs exactly one of the sections act and dis")
        if self.act is not None and not self.model.halting_head:
            raise ValueError("act needs model.halting_head true")
        if self.act is not None and self.model.step_embedding:
            raise ValueError("act needs model.step_embedding false: slots are at different steps")
        if self.distill is not None and self.act is None:
            raise ValueError("distill needs the section act: it adds to that loss")
        if self.distill is not None and self.data.revealed:
            raise ValueError("distill needs data.revealed 0: a cache knows the inputs as they are")
        if self.model.mixing == "relational" and self.dis is not None:
            # A full board leaves no variable open, and padding is no value of one.
            if self.dis.feeds == "prediction":
                raise ValueError("dis.feeds must be 'input' with model.mixing 'relational'")
            if self.dis.targets in ("nested", "independent") and self.dis.corrupted_as == "mask":
                raise ValueError("dis.corrupted_as 'mask' does not go with mixing 'relational'")
        check_at_least(self, "", 1, "batch_size")

    @property
    def as_trained(self) -> dict[str, Any]:
        """The fields of `EvalOptions` in which an evaluation is to do as training did."""
        if self.dis is not None:
            return {"feeds": self.dis.feeds, "loss": self.dis.loss}
        assert self.act is not None
        return {"loss": self.act.loss}


def token_shape(recipe: SupervisedRecipe) -> TokenShape:
    """`shape_of` the recipe's data, without reading it; blank puzzle identifier only."""
    return shape_of(recipe.data.domain_name)


def shape_of(domain: str, *, num_puzzles: int = 1) -> TokenShape:
    """What a model must know of a domain's tokens.

    Raises:
        ValueError: for a task or a domain that there is not.
    """
    if domain == "arc":
        return TokenShape(
            vocab_size=ARC_VOCABULARY, num_positions=ARC_POSITIONS, num_puzzles=num_puzzles
        )
    codec = codec_of(domain)
    spec = codec.domain.spec
    return TokenShape(
        vocab_size=codec.vocab_size,
        num_positions=spec.num_cells,
        num_puzzles=num_puzzles,
        groups={name: torch.from_numpy(label.copy()) for name, label in spec.groups.items()},
        neighbours=None if spec.neighbours is None else torch.from_numpy(spec.neighbours.copy()),
    )


CACHE_RECIPES = replace(RECIPES, inside="caches")
"""The shipped recipes of teacher caches."""
