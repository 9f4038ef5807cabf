"""The recipe of a UPI-TRM run."""

from dataclasses import dataclass, field
from typing import Any

from plan_envs.catalogue import Task, resolve_task
from trm.experiments.sections import InstancesConfig, ScheduleConfig, check_at_least
from upi_trm.curriculum import CurriculumConfig
from upi_trm.learner import LearnerConfig

RUN_KIND = "upi"
"""`kind` of the runs that this learner writes."""


@dataclass(frozen=True, kw_only=True)
class InstancesOfSizes(InstancesConfig):
    """The `instances` section of a recipe, of one environment or of several."""

    also: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further environments that the same weights are trained on in turn, an iteration each, with
    the options of their pools, e.g. {sudoku4x4: {}, sudoku6x6: {blanks: [10, 20]}}. The weights of
    maps over variables or cells do not depend on how many there are."""

    def tasks(self, env: str) -> list[tuple[Task, InstancesConfig]]:
        """The environment of the run and the further ones, each with its pool.

        Raises:
            ValueError: an environment that is named twice; what `resolve_task` raises.
        """
        found = [(resolve_task(env), InstancesConfig(num=self.num, options=self.options))]
        for name, options in self.also.items():
            found.append((resolve_task(name), InstancesConfig(num=self.num, options=options)))
        names = [task.name for task, _ in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"instances.also names {twice} once more: the run trains on {names}")
        return found


@dataclass(frozen=True, kw_only=True)
class UpiRecipe(LearnerConfig):
    """A complete recipe of `upi-trm train`."""

    instances: InstancesOfSizes = field(default_factory=InstancesOfSizes)
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
        if self.instances.also and (
            not self.improvement.distil or self.model.latent == "persistent"
        ):
            raise ValueError(
                "instances.also needs improvement.distil true and model.latent 'episodic', got"
                f" {str(self.improvement.distil).lower()} and {self.model.latent!r}"
            )
        check_at_least(self.schedule, "schedule", plans, "edits", named="rollout.plans")
