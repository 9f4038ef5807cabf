"""The recipe of a baseline run, and where the shipped ones lie.

One YAML file is one reported number: `configs/baselines/<algorithm>-<task>.yaml` in a checkout,
`baselines/configs` in a wheel. `trm.runs.recipe.load_recipe` reads them into a `BaselineRecipe`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from baselines.algorithms import METHODS, SECTIONS, A2cConfig, Algorithm, DqnConfig, PpoConfig
from trm.nn.model import ModelConfig
from trm.runs.recipe import load_recipe
from trm.runs.shipped import shipped_file, shipped_folder, shipped_names


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The `rollout` section of a recipe."""

    plans: int = 64
    """Plans edited in parallel (SB3: n_envs)."""
    steps: int = 8
    """Edits of every plan between two updates (SB3: n_steps, for DQN train_freq)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("plans", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class InstancesConfig:
    """The `instances` section of a recipe."""

    num: int = 1000
    """Puzzles in the training pool, drawn with the run's seed from the train split."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the training pool in place of the task's own, e.g. {givens: [26, 34]}. Validation
    and test puzzles stay the task's."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.num < 1:
            raise ValueError(f"instances.num must be at least 1, got {self.num}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The `schedule` section of a recipe; all in edits over all parallel plans."""

    edits: int = 5_000
    """Budget of the run; `--steps` overrides it."""
    log_every: int = 500
    """Between two lines of metrics."""
    evaluate_every: int = 1_000
    """Between two evaluations on validation puzzles."""
    evaluate_num: int = 200
    """Validation puzzles."""
    checkpoint_every: int = 1_000
    """Between two checkpoints: what a killed run loses at most."""
    final_learning_rate: float = 1.0
    """Share of the learning rate that is left at the end of the budget; it falls linearly."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("edits", "log_every", "evaluate_every", "evaluate_num", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.final_learning_rate <= 1:
            raise ValueError(
                f"schedule.final_learning_rate must lie in (0, 1], got {self.final_learning_rate}"
            )


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
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Check combinations of sections."""
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        for name in sorted(set(SECTIONS.values())):
            given, needed = getattr(self, name) is not None, name == SECTIONS[self.algorithm]
            if given != needed:
                verb = "needs the" if needed else "does not read a"
                raise ValueError(f"algorithm {self.algorithm!r} {verb} section {name}")
        plans, steps = self.rollout.plans, self.rollout.steps
        if self.schedule.edits < plans:
            raise ValueError(
                f"schedule.edits must be at least rollout.plans = {plans},"
                f" got {self.schedule.edits}"
            )
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
            for name in ("replay_size", "target_every"):
                if getattr(self.dqn, name) < plans:
                    raise ValueError(
                        f"dqn.{name} must be at least rollout.plans = {plans},"
                        f" got {getattr(self.dqn, name)}"
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
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"--algo: no algorithm is called {name!r}; {hint}")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted: `<algorithm>-<task>`."""
    return shipped_names(config_folder())


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        ValueError: if no such recipe ships; names the nearest one.
    """
    return shipped_file(name, config_folder())


def config_folder() -> Path:
    """Where the shipped recipes and search spaces lie."""
    return shipped_folder(Path(__file__).resolve().parent, "baselines")
