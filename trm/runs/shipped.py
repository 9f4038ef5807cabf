"""Where the YAML files that ship with a learner lie, and how they are found by name.

A checkout has them in `configs/<learner>`, a wheel in `configs` inside the learner's package. Input
is a name that somebody typed; `trm.runs.recipe.load_recipe` reads the file that comes out. Nothing
heavy is imported, since command lines use this module.
"""

import difflib
from pathlib import Path


def shipped_folder(package: Path, name: str) -> Path:
    """The folder of a package's shipped files.

    Args:
        package: folder of the package; in a wheel its files lie in `configs` below.
        name: name of their folder below `configs` in a checkout.
    """
    own = package / "configs"
    return own if own.is_dir() else package.parent / "configs" / name


def shipped_names(folder: Path) -> list[str]:
    """Names of the files of a folder, sorted, without `.yaml`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def shipped_file(name: str, folder: Path, *, kind: str = "recipe") -> Path:
    """The file of that name, with or without `.yaml`; errors call it a `kind`.

    Raises:
        ValueError: if there is none; names the nearest one.
    """
    stem, names = name.removesuffix(".yaml"), shipped_names(folder)
    if stem not in names:
        near = difflib.get_close_matches(stem, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
        raise ValueError(f"{kind}: no {kind} is called {name!r}; {hint}")
    return folder / f"{stem}.yaml"
