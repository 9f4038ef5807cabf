"""Curricula over givens: easier copies of the training puzzles, harder as success grows.

Input: the training pool, whose stored completions serve only to reveal more givens, never as
labels. Output: the instances that `rollout.Roller` restarts on. Works for every domain whose
completion is a plan.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array
from plan_envs.instances import InstanceSet


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The `curriculum` section of a recipe."""

    kind: Literal["none", "adaptive", "mixed"] = "none"
    """none: every episode plays a puzzle of the pool as it is; adaptive: all have `start_blanks`
    blanks, and more as success grows; mixed: each has its own number of blanks, uniform between
    `start_blanks` and as it is."""
    start_blanks: int = 10
    """Blank cells left; more givens are revealed until so many are left."""
    step_blanks: int = 2
    """adaptive: blanks added each time the success is high enough."""
    threshold: float = 0.55
    """adaptive: success over the last `window` episodes at which the puzzles get harder."""
    window: int = 48
    """adaptive: episodes over which the success is measured."""
    full_share: float = 0.1
    """Share of episodes on puzzles as they are, whatever the curriculum says."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("start_blanks", "step_blanks", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"curriculum.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("threshold", "full_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"curriculum.{name} must lie in [0, 1], got {getattr(self, name)}")


class Curriculum:
    """Draws instances from a pool with givens added, as the curriculum wants them."""

    def __init__(
        self, pool: InstanceSet, config: CurriculumConfig, generator: np.random.Generator
    ) -> None:
        """`generator` draws puzzles and revealed cells."""
        self.pool, self.config, self.generator = pool, config, generator
        self.most_blanks = int((pool.instances == 0).sum(axis=1).max())
        self.blanks = min(config.start_blanks, self.most_blanks)
        self._recent: deque[bool] = deque(maxlen=config.window)

    def draw(self, count: int) -> Int8Array:
        """Instances for `count` plans, shape [count, cell]."""
        index = self.generator.integers(len(self.pool), size=count)
        puzzles, completions = self.pool.instances[index], self.pool.solutions[index]
        if self.config.kind == "none":
            return puzzles
        blanks = np.full(count, self.blanks)
        if self.config.kind == "mixed":
            blanks = self.generator.integers(self.blanks, self.most_blanks + 1, size=count)
        # Keep the `blanks` blank cells with the smallest random keys, reveal the others.
        keys = np.where(puzzles == 0, self.generator.random(puzzles.shape), np.inf)
        kept = np.argsort(np.argsort(keys, axis=1), axis=1) < blanks[:, None]
        easier = np.where((puzzles == 0) & ~kept, completions, puzzles)
        full = self.generator.random(count) < self.config.full_share
        return np.ascontiguousarray(np.where(full[:, None], puzzles, easier))

    def update(self, blanks: NDArray[np.int64], solved: NDArray[np.bool_]) -> None:
        """Count finished episodes: blanks of their instances, and whether they were solved."""
        if self.config.kind != "adaptive":
            return
        self._recent.extend(bool(won) for won in solved[blanks >= self.blanks])
        enough = len(self._recent) == self.config.window
        if enough and sum(self._recent) >= self.config.threshold * self.config.window:
            self.blanks = min(self.blanks + self.config.step_blanks, self.most_blanks)
            self._recent.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the generator is saved with the run's streams."""
        return {"blanks": self.blanks, "recent": list(self._recent)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state`."""
        self.blanks = state["blanks"]
        self._recent.clear()
        self._recent.extend(state["recent"])
