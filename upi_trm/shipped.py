"""Where the recipes of the learner lie; light, since command lines complete their names."""

from pathlib import Path

from trm.runs.shipped import ShippedFiles

RECIPES = ShippedFiles(Path(__file__).resolve().parent, "upi")
"""The shipped recipes; the recipe of a task bears the task's name."""
