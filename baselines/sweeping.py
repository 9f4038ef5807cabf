"""What `upi-trm sweep` must know of `upi-trm baselines train`.

The entry point `baselines.train` of the group `upi_trm.sweeps` names this module; its attributes
are those of `upi_trm.sweep.SweepCommand`, which a learner may not import.
"""

from typing import Any

from baselines.recipe import BaselineRecipe, recipe_names, recipe_path

__all__ = [
    "finished_at",
    "options",
    "recipe",
    "recipe_names",
    "recipe_path",
    "resume_words",
    "steps_field",
]

recipe = BaselineRecipe
"""Dataclass of the recipes."""

steps_field = "schedule.edits"
"""The recipe's field that `--steps` overrides."""

options = ("--eval-num", "0")
"""Given always, so that the command does not evaluate by itself."""

resume_words = True
"""Further words of the command, such as `--device cuda`, are given again when a run is resumed."""


def finished_at(recipe: Any) -> int:
    """Edits of a finished run: the budget, less what is too little for one more of every plan."""
    return int(recipe.schedule.edits // recipe.rollout.plans * recipe.rollout.plans)
