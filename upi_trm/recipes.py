"""Where the shipped recipes lie: `configs/upi` in a checkout, `upi_trm/configs` in a wheel.

One YAML file is one reported number. `trm.recipe.load_recipe` reads the file that `recipe_path`
finds.
"""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs" / "upi")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted; the recipe of a task bears the task's name."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe.

    Args:
        name: a name from `recipe_names`, with or without `.yaml`.

    Raises:
        ValueError: if no such recipe ships; names the nearest one.
    """
    stem = name.removesuffix(".yaml")
    names = recipe_names()
    if stem not in names:
        near = difflib.get_close_matches(stem, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
        raise ValueError(f"recipe: no recipe is called {name!r}; {hint}")
    return _folder() / f"{stem}.yaml"


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
