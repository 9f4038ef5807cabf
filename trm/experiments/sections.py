"""Sections that the recipes of several learners share, and `trm.ranges` for all of their sections.

`InstancesConfig` and `ScheduleConfig` belong to the learners that train in environments; a learner
adds a field of its own by inheriting.
"""

from dataclasses import dataclass, field
from typing import Any

from plan_envs.catalogue import Task
from plan_envs.instances import InstanceSet
from trm.ranges import check_at_least as check_at_least
from trm.ranges import check_positive as check_positive
from trm.ranges import check_within as check_within


@dataclass(frozen=True, kw_only=True)
class InstancesConfig:
    """The `instances` section of a recipe."""

    num: int = 1000
    """Puzzles in the training pool, drawn with the run's seed from the train split."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the training pool in place of the task's own, e.g. {givens: [26, 34]}: easier,
    mixed or augmented puzzles to train on. Validation and test puzzles stay the task's."""

    def __post_init__(self) -> None:
        check_at_least(self, "instances", 1, "num")

    def pool(self, task: Task, *, seed: int) -> InstanceSet:
        """The training pool of a run with this seed."""
        return task.instances("train", num=self.num, seed=seed, **self.options)


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
    """Share of the learning rates that is left at the end of the budget; they fall linearly. Below
    1 a run whose budget is raised later differs from one that had it from the start."""

    def __post_init__(self) -> None:
        check_at_least(
            self, "schedule", 1, "edits", "evaluate_every", "evaluate_num", "checkpoint_every"
        )
        check_within(self, "schedule", "(0, 1]", "final_learning_rate")
