"""Sections that the recipes of several learners share, and the checks of ranges that sections make.

`InstancesConfig` and `ScheduleConfig` belong to the learners that train in environments; a learner
adds a field of its own by inheriting. The checks name section, field and value in one line, as
`trm.runs.recipe` wants them.
"""

from dataclasses import dataclass, field
from typing import Any

from plan_envs.catalogue import Task
from plan_envs.instances import InstanceSet


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
        """Check ranges."""
        check_at_least(
            self, "schedule", 1, "edits", "evaluate_every", "evaluate_num", "checkpoint_every"
        )
        check_within(self, "schedule", "(0, 1]", "final_learning_rate")


def check_at_least(config: object, section: str, least: int, *fields: str, named: str = "") -> None:
    """Refuse a field below `least`; a field that is None passes.

    Args:
        config: the section as an object.
        section: its name in the recipe, for the message; empty for the recipe itself.
        least: the smallest value that is allowed.
        fields: names of the fields to check.
        named: the field that `least` is the value of, if any.

    Raises:
        ValueError: names section, field and value.
    """
    bound = f"{named} = {least}" if named else str(least)
    for name, value in _given(config, section, fields):
        if not value >= least:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


def check_positive(config: object, section: str, *fields: str) -> None:
    """Refuse a field that is not above 0; arguments and errors as of `check_at_least`."""
    for name, value in _given(config, section, fields):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_within(config: object, section: str, interval: str, *fields: str) -> None:
    """Refuse a field outside an interval such as "(0, 1]"; the rest is as of `check_at_least`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in _given(config, section, fields):
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must lie in {interval}, got {value}")


def _given(config: object, section: str, fields: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Full name and value of the fields that are not None."""
    prefix = f"{section}." if section else ""
    values = ((f"{prefix}{field}", getattr(config, field)) for field in fields)
    return [(name, value) for name, value in values if value is not None]
