"""Where the YAML files that ship with a learner lie, and how they are found by name.

A checkout has them in `configs/<learner>`, a wheel in `configs` inside the learner's package. Input
is a name that somebody typed; `trm.runs.recipe.load_recipe` reads the file that comes out. Nothing
heavy is imported, since command lines use this module.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShippedFiles:
    """The YAML files of one kind that ship with a package."""

    package: Path
    """Folder of the package; in a wheel its files lie in `configs` below."""
    name: str
    """Their folder below `configs` in a checkout."""
    inside: str = "."
    """Their folder below that one."""
    kind: str = "recipe"
    """What errors call a file."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        own = self.package / "configs"
        found = own if own.is_dir() else self.package.parent / "configs" / self.name
        return found / self.inside

    def names(self) -> list[str]:
        """Their names, sorted, without `.yaml`."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def find(self, name: str) -> Path:
        """A file of the user's, or the shipped one of that name, with or without `.yaml`.

        Raises:
            ValueError: there is neither; names the nearest shipped one.
        """
        if Path(name).is_file():
            return Path(name)
        stem, names = name.removesuffix(".yaml"), self.names()
        if stem not in names:
            hint = nearest_hint(stem, names)
            raise ValueError(f"{self.kind}: no {self.kind} is called {name!r}; {hint}")
        return self.folder / f"{stem}.yaml"

    def find_or_default(self, name: str | None, default: str) -> Path | None:
        """`find`; without a name the shipped file of the default name, None where there is none."""
        if name is not None:
            return self.find(name)
        return self.find(default) if default in self.names() else None


def nearest_hint(name: str, known: Sequence[str], *, prefix: str = "", cutoff: float = 0.6) -> str:
    """How an error about an unknown name ends: the nearest known one, else all of them.

    Args:
        name: what somebody typed.
        known: the names that there are, in the order in which they are listed.
        prefix: goes before the nearest name, so that it can be copied as it is.
        cutoff: how near it must be, as `difflib.get_close_matches` measures it.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return f"there are {', '.join(known) or 'none'}"
