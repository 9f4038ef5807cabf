"""Where the shipped recipes lie: `configs/upi` in a checkout, `upi_trm/configs` in a wheel.

One YAML file is one reported number. `trm.recipe.load_recipe` reads the file that `recipe_path`
finds.
"""

from pathlib import Path

from trm.shipped import shipped_file, shipped_folder, shipped_names

_FOLDER = shipped_folder(Path(__file__).resolve().parent, "upi")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted; the recipe of a task bears the task's name."""
    return shipped_names(_FOLDER)


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, named with or without `.yaml`.

    Raises:
        ValueError: if no such recipe ships; names the nearest one.
    """
    return shipped_file(name, _FOLDER)
