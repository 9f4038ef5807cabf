"""How edits are typed: the kinds of actions of a domain, and the words that name an action.

Everything follows from the tables of `DomainSpec`. Rows and columns count from 1, and values are
typed as they are drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from plan_envs.domain import DomainSpec

_NEVER_LEGAL: Final = ("pad",)
"""Kinds of actions that exist for the numbering alone."""


class Mistake(ValueError):  # noqa: N818 (the player's, not the program's)
    """What the player typed cannot be done; one line says why. Nothing has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of actions and how it is typed."""

    name: str
    actions: Mapping[tuple[int, int], int]
    """(cell, value) -> action; the cell is -1 for kinds without one."""
    has_cell: bool
    has_value: bool
    """The value must be typed: the kind has several a cell."""

    @property
    def values(self) -> list[int]:
        """What may be typed as value, ascending."""
        return sorted({value for _, value in self.actions})


def kinds_of(spec: DomainSpec) -> dict[str, Kind]:
    """How the actions of every kind are typed."""
    kinds = {}
    for index, name in enumerate(spec.kind_names):
        actions = np.flatnonzero(spec.action_kind == index)
        cells, values = spec.action_cell[actions].tolist(), spec.action_value[actions].tolist()
        if not cells or name in _NEVER_LEGAL:
            continue
        kinds[name] = Kind(
            name=name,
            actions=dict(zip(zip(cells, values, strict=True), actions.tolist(), strict=True)),
            has_cell=cells[0] >= 0,
            has_value=len(cells) > len(set(cells)),
        )
    return kinds


def usage(kind: Kind) -> str:
    """What is typed behind the name of a kind, e.g. "ROW COLUMN VALUE"."""
    words = ["ROW COLUMN"] * kind.has_cell + ["VALUE"] * (kind.has_value and kind.has_cell)
    if kind.has_value and not kind.has_cell:
        words.append(f"{min(kind.values)}-{max(kind.values)}")
    return " ".join(words)


def action_of(spec: DomainSpec, kind: Kind, words: list[str]) -> int:
    """The action that a kind's typed words name.

    Raises:
        Mistake: names the word that is wrong, or what the kind takes.
    """
    wanted = 2 * kind.has_cell + kind.has_value
    if len(words) != wanted:
        named = usage(kind)
        takes = named if wanted else "nothing"
        raise Mistake(f"{kind.name} takes {takes}, got {' '.join(words) or 'nothing'}")
    cell = cell_of(spec, words[0], words[1]) if kind.has_cell else -1
    if not kind.has_value:
        value = kind.values[0]
    elif kind.has_cell:
        value = _value_of(spec, words[2], kind)
    else:
        value = _number(words[0], kind.name, max(kind.values), least=min(kind.values))
    return kind.actions[cell, value]


def cell_of(spec: DomainSpec, row: str, column: str) -> int:
    """The cell of a typed row and column.

    Raises:
        Mistake: names what is out of range.
    """
    rows, columns = spec.grid_shape
    return (_number(row, "row", rows) - 1) * columns + _number(column, "column", columns) - 1


def _value_of(spec: DomainSpec, word: str, kind: Kind) -> int:
    """The value of a typed symbol; a value above 9, drawn as a letter, may be typed as a number."""
    signs = {spec.symbols[value]: value for value in kind.values}
    for sign in (word, word.upper()):
        if sign in signs:
            return signs[sign]
    if len(word) > 1 and word.isdecimal() and int(word) in kind.values:
        return int(word)
    raise Mistake(f"{word!r} is no value; there are {' '.join(signs)}")


def _number(word: str, name: str, most: int, *, least: int = 1) -> int:
    """A typed number in a range."""
    if not word.lstrip("-").isdecimal():
        raise Mistake(f"{name} must be a number from {least} to {most}, got {word!r}")
    if not least <= int(word) <= most:
        raise Mistake(f"{name} must lie in {least}..{most}, got {word}")
    return int(word)
