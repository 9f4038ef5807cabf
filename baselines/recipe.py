"""The recipe of a baseline run.

One YAML file is one reported number: `configs/baselines/<algorithm>-<task>.yaml` in a checkout,
`baselines/configs` in a wheel. `trm.runs.recipe.load_recipe` reads them into a `BaselineRecipe`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from baselines.algorithms import METHODS, SECTIONS, A2cConfig, Algorithm, DqnConfig, PpoConfig
from trm.experiments.sections import (
    InstancesConfig,
    ScheduleConfig,
    check_at_least,
    check_within,
)
from trm.nn.model import ModelConfig
from trm.runs.recipe import load_recipe
from trm.runs.shipped import nearest_hint


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The `rollout` section of a recipe."""

    plans: int = 64
    """Plans edited in parallel (SB3: n_envs)."""
    steps: int = 8
    """Edits of every plan between two updates (SB3: n_steps, for DQN train_freq)."""

    def __post_init__(self) -> None:
        check_at_least(self, "rollout", 1, "plans", "steps")


@dataclass(frozen=True, kw_only=True)
class BaselineScheduleConfig(ScheduleConfig):
    """The `schedule` section of a recipe; all in edits over all parallel plans."""

    log_every: int = 500
    """Between two lines of metrics; an evaluation is logged at any rate."""

    def __post_init__(self) -> None:
        ScheduleConfig.__post_init__(self)
        check_at_least(self, "schedule", 1, "log_every")


@dataclass(frozen=True, kw_only=True)
class BaselineRecipe:
    """A complete recipe of `upi-trm baselines train`."""

    algorithm: Algorithm
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    gamma: float = 0.99
    """Discount of the returns and of the shaping."""
    ppo: PpoConfig | None = None
    """For ppo and maskable-ppo; of these three sections there is exactly the algorithm's."""
    a2c: A2cConfig | None = None
    dqn: DqnConfig | None = None
    instances: InstancesConfig = field(default_factory=InstancesConfig)
    schedule: BaselineScheduleConfig = field(default_factory=BaselineScheduleConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        check_within(self, "", "(0, 1]", "gamma")
        for name in sorted(set(SECTIONS.values())):
            given, needed = getattr(self, name) is not None, name == SECTIONS[self.algorithm]
            if given != needed:
                verb = "needs the" if needed else "does not read a"
                raise ValueError(f"algorithm {self.algorithm!r} {verb} section {name}")
        plans, steps = self.rollout.plans, self.rollout.steps
        check_at_least(self.schedule, "schedule", plans, "edits", named="rollout.plans")
        if self.ppo is not None:
            size = self.ppo.batch_size
            if plans * steps % size:
                raise ValueError(
                    f"ppo.batch_size must divide rollout.plans * rollout.steps = {plans * steps},"
                    f" got {size}"
                )
            if self.algorithm == "maskable-ppo" and (plans % 2 or size % 2):
                # It divides by the deviation of each minibatch; one left-over state has none.
                raise ValueError(
                    "maskable-ppo needs even rollout.plans and ppo.batch_size,"
                    f" got {plans} and {size}"
                )
        if self.dqn is not None:
            check_at_least(
                self.dqn, "dqn", plans, "replay_size", "target_every", named="rollout.plans"
            )

    @property
    def section(self) -> PpoConfig | A2cConfig | DqnConfig:
        """The algorithm's hyper-parameters."""
        return cast(PpoConfig | A2cConfig | DqnConfig, getattr(self, SECTIONS[self.algorithm]))


def read_recipe(
    path: Path | None, overrides: Sequence[str] = (), *, algorithm: str | None = None
) -> BaselineRecipe:
    """A recipe file with overrides, or the defaults of an algorithm.

    Raises:
        ValueError: one line naming file, field and value; the file is of another algorithm.
    """
    check_algorithm(algorithm)
    if path is None and algorithm is not None:
        name = SECTIONS[cast(Algorithm, algorithm)]
        overrides = [f"algorithm={algorithm}", f"{name}={{}}", *overrides]
    elif path is None and not any(word.startswith("algorithm=") for word in overrides):
        raise ValueError(f"--algo is missing: one of {', '.join(METHODS)} (or a --recipe)")
    recipe = load_recipe(BaselineRecipe, path, overrides)
    if algorithm not in (None, recipe.algorithm):
        raise ValueError(f"{path}: algorithm is {recipe.algorithm!r}, --algo says {algorithm!r}")
    return recipe


def check_algorithm(name: str | None) -> None:
    """Refuse the name of an algorithm that there is not.

    Raises:
        ValueError: names the nearest one.
    """
    if name is not None and name not in METHODS:
        hint = nearest_hint(name, list(METHODS), cutoff=0.5)
        raise ValueError(f"--algo: no algorithm is called {name!r}; {hint}")
