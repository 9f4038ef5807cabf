"""The recipe of a UPI-TRM run, and where the shipped ones lie."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trm.runs.shipped import shipped_file, shipped_folder, shipped_names
from upi_trm.curriculum import CurriculumConfig
from upi_trm.learner import LearnerConfig

RUN_KIND = "upi"
"""`kind` of the runs that this learner writes."""


@dataclass(frozen=True, kw_only=True)
class InstancesConfig:
    """The `instances` section of a recipe."""

    num: int = 1000
    """Puzzles in the training pool, drawn with the run's seed from the train split."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the training pool in place of the task's own, e.g. {givens: [26, 34]}: easier,
    mixed or augmented puzzles to train on. Validation and test puzzles stay the task's."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.num < 1:
            raise ValueError(f"instances.num must be at least 1, got {self.num}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The `schedule` section of a recipe; all in edits over all parallel plans."""

    edits: int = 5_000
    """Budget of the run; `--steps` overrides it."""
    evaluate_every: int = 1_000
    """Between two evaluations on validation puzzles."""
    evaluate_num: int = 200
    """Validation puzzles."""
    checkpoint_every: int = 1_000
    """Between two checkpoints: what a killed run loses at most."""
    final_learning_rate: float = 1.0
    """Share of both learning rates that is left at the end of the budget; they fall linearly. Below
    1 a run whose budget is raised later differs from one that had it from the start."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("edits", "evaluate_every", "evaluate_num", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.final_learning_rate <= 1:
            raise ValueError(
                f"schedule.final_learning_rate must lie in (0, 1], got {self.final_learning_rate}"
            )


@dataclass(frozen=True, kw_only=True)
class UpiRecipe(LearnerConfig):
    """A complete recipe of `upi-trm train`."""

    instances: InstancesConfig = field(default_factory=InstancesConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        LearnerConfig.__post_init__(self)
        if self.schedule.edits < self.rollout.plans:
            raise ValueError(
                f"schedule.edits must be at least rollout.plans = {self.rollout.plans},"
                f" got {self.schedule.edits}"
            )


_FOLDER = shipped_folder(Path(__file__).resolve().parent, "upi")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted; the recipe of a task bears the task's name."""
    return shipped_names(_FOLDER)


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, named with or without `.yaml`.

    Raises:
        ValueError: if no such recipe ships; names the nearest one.
    """
    return shipped_file(name, _FOLDER)
