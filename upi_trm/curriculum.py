"""Curricula: starts nearer to the solution of a training puzzle, farther as success grows.

Input: the training pool, whose stored completions serve only to make such starts, never as
labels. Output: the instances and plans that `rollout.Roller` restarts on. Works for every domain
that has `distance` and `advance` (see `plan_envs.domain.PlanDomain`).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.instances import InstanceSet
from trm.experiments.sections import check_at_least, check_within


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The `curriculum` section of a recipe."""

    kind: Literal["none", "adaptive", "mixed"] = "none"
    """none: every episode plays a puzzle of the pool as it is; adaptive: all are `start` edits from
    solved, and more as success grows; mixed: each has its own distance, uniform between `start`
    and as it is."""
    start: int = 10
    """Edits left to a solution (Sudoku: blanks): the others are made beforehand."""
    step: int = 2
    """adaptive: edits added each time the success is high enough."""
    threshold: float = 0.55
    """adaptive: success over the last `window` episodes at which the puzzles get harder."""
    retreat: float | None = None
    """adaptive: success over the last `window` episodes at which the puzzles get easier again, by
    `step`, never nearer than `start`; null = never."""
    window: int = 48
    """adaptive: episodes over which the success is measured."""
    full_share: float = 0.1
    """Share of episodes on puzzles as they are, whatever the curriculum says."""

    def __post_init__(self) -> None:
        check_at_least(self, "curriculum", 1, "start", "step", "window")
        check_within(self, "curriculum", "[0, 1]", "threshold", "full_share")
        if self.retreat is not None and not 0 <= self.retreat < self.threshold:
            raise ValueError(
                f"curriculum.retreat must lie in [0, threshold = {self.threshold}) or be null, got"
                f" {self.retreat}"
            )


class Starts(NamedTuple):
    """Where episodes begin."""

    instances: Int8Array
    """Shape [count, instance]."""
    plans: Int8Array
    """Shape [count, cell]."""
    distance: NDArray[np.int64]
    """Edits that were left to a solution, shape [count]; 0 without a curriculum."""


class Curriculum:
    """Draws instances from a pool with plans as near to solved as it wants them."""

    def __init__(
        self,
        domain: PlanDomain,
        pool: InstanceSet,
        config: CurriculumConfig,
        generator: np.random.Generator,
    ) -> None:
        """`generator` draws puzzles and what is revealed of them.

        Raises:
            ValueError: for a curriculum over a domain that has no plans on the way to a solution.
        """
        self.pool, self.config, self.generator = pool, config, generator
        self._domain = cast(Any, domain)
        self.most = self.distance = 0
        if config.kind != "none":
            if getattr(domain, "advance", None) is None:
                raise ValueError(
                    f"curriculum.kind must be none for {domain.spec.name}, got {config.kind}:"
                    " the domain has no `advance`"
                )
            self.most = int(self._domain.distance(pool.instances).max())
            self.distance = min(config.start, self.most)
        self._recent: deque[bool] = deque(maxlen=config.window)

    def draw(self, count: int) -> Starts:
        """What `count` episodes start from."""
        index = self.generator.integers(len(self.pool), size=count)
        puzzles, completions = self.pool.instances[index], self.pool.solutions[index]
        initial = self._domain.initial(puzzles)
        if self.config.kind == "none":
            return Starts(puzzles, initial, np.zeros(count, np.int64))
        wanted = np.full(count, self.distance)
        if self.config.kind == "mixed":
            wanted = self.generator.integers(self.distance, self.most + 1, size=count)
        whole = self._domain.distance(puzzles)
        full = self.generator.random(count) < self.config.full_share
        wanted = np.where(full, whole, np.minimum(wanted, whole))
        nearer = self._domain.advance(puzzles, completions, wanted, self.generator)
        plans = np.where((wanted == whole)[:, None], initial, nearer)
        return Starts(puzzles, np.ascontiguousarray(plans), np.asarray(wanted, np.int64))

    def update(self, distance: NDArray[np.int64], solved: NDArray[np.bool_]) -> None:
        """Count finished episodes: edits that were left at their start, and whether solved."""
        if self.config.kind != "adaptive":
            return
        self._recent.extend(bool(won) for won in solved[distance >= self.distance])
        config = self.config
        if len(self._recent) < config.window:
            return
        success = sum(self._recent) / config.window
        if success >= config.threshold:
            self.distance = min(self.distance + config.step, self.most)
            self._recent.clear()
        elif config.retreat is not None and success <= config.retreat:
            self.distance = max(self.distance - config.step, min(config.start, self.most))
            self._recent.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the generator is saved with the run's streams."""
        return {"distance": self.distance, "recent": list(self._recent)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.distance = state["distance"]
        self._recent.clear()
        self._recent.extend(state["recent"])
