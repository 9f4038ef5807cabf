"""The recipe of a UPI-TRM run, and where the shipped ones lie."""

from dataclasses import dataclass, field
from pathlib import Path

from trm.experiments.sections import InstancesConfig, ScheduleConfig, check_at_least
from trm.runs.shipped import ShippedFiles
from upi_trm.curriculum import CurriculumConfig
from upi_trm.learner import LearnerConfig

RUN_KIND = "upi"
"""`kind` of the runs that this learner writes."""


@dataclass(frozen=True, kw_only=True)
class UpiRecipe(LearnerConfig):
    """A complete recipe of `upi-trm train`."""

    instances: InstancesConfig = field(default_factory=InstancesConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        LearnerConfig.__post_init__(self)
        plans = self.rollout.plans
        if self.rollout.actor == "search" and self.curriculum.kind != "none":
            raise ValueError(
                "rollout.actor 'search' starts on puzzles as they are and needs curriculum.kind"
                f" 'none', got {self.curriculum.kind!r}"
            )
        check_at_least(self.schedule, "schedule", plans, "edits", named="rollout.plans")


RECIPES = ShippedFiles(Path(__file__).resolve().parent, "upi")
"""The shipped recipes; the recipe of a task bears the task's name."""
