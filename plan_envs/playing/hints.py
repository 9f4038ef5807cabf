"""What a game says of a position: legal edits, reasons for refusals, how edits are typed.

All functions take a `Position` and return text.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.env import PlanEditEnv
from plan_envs.playing.kinds import Kind, kinds_of, usage
from plan_envs.rendering import default_picture, draw_text

DIRECTIONS: Final = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Name -> rows down and columns right."""
_SHOWN: Final = 6
"""Lines of a hint."""


class Turn:
    """A state of a game that `back` returns to."""

    def __init__(self, env: PlanEditEnv, info: Mapping[str, Any]) -> None:
        self.state = env.get_state()
        self.score, self.violations = float(info["score"]), int(info["violations"])
        self.reward, self.total = 0.0, 0.0
        self.ended = ""


class Position:
    """The state of a game, as far as hints look at it: an environment, and the turns so far."""

    def __init__(self, env: PlanEditEnv) -> None:
        self.env = env
        self.domain = env.task.domain
        self.spec = self.domain.spec
        self.kinds = kinds_of(self.spec)
        self.main = next(kind for kind in self.kinds.values() if kind.has_cell)
        """The first kind that edits a cell; it needs no name when it is typed."""
        self.turns: list[Turn] = []

    @property
    def instance(self) -> Int8Array:
        """Shape [instance]."""
        board: Int8Array = self.turns[-1].state["instance"][0]
        return board

    @property
    def plan(self) -> Int8Array:
        """Shape [cell]."""
        board: Int8Array = self.turns[-1].state["plan"][0]
        return board

    @property
    def ended(self) -> str:
        """Why the episode has ended: solved, stopped, dead, stuck, horizon; "" while it runs."""
        return self.turns[-1].ended

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Legal edits, shape [action]; none once the episode has ended."""
        return self.env.action_masks() & (not self.ended)

    @property
    def head(self) -> int | None:
        """The cell from which directions lead on; None in domains without (all but mazes).

        A domain has directions if its cells have neighbours and its main kind writes one value,
        which marks one cell of the plan.
        """
        if self.spec.neighbours is None or self.main.has_value:
            return None
        marked = np.flatnonzero(self.plan == self.main.values[0])
        return int(marked[0]) if len(marked) == 1 else None


def hint(at: Position) -> str:
    """Some legal edits, those with the fewest alternatives first."""
    legal = [key for key, action in at.main.actions.items() if at.mask[action]]
    lines = _moves(at, legal) or _choices(at, legal)
    further = _further(at)
    shown = lines[:_SHOWN] or [f"nothing to {at.main.name}"]
    if len(lines) > _SHOWN:
        shown.append(f"and {len(lines) - _SHOWN} more")
    return "\n".join(shown) + (
        f"\nalso legal: {further.removeprefix(', among them ')}" if further else ""
    )


def hint_at(at: Position, cell: int) -> str:
    """The legal edits of one cell, or why there are none."""
    words = []
    for kind in at.kinds.values():
        values = [v for (c, v), action in kind.actions.items() if c == cell and at.mask[action]]
        if values and kind.has_value:
            words.append(" ".join(at.spec.symbols[value] for value in values))
        elif values:
            words.append(kind.name)
    place = place_of(at.spec, cell)
    if words:
        return f"{place}: {', '.join(words)}"
    if _is_given(at, cell):
        return f"{place} is given"
    blank = [a for (c, _), a in at.main.actions.items() if c == cell]
    return why_not(at, blank[0]) if len(blank) == 1 else f"{place}: nothing is legal"


def mask_text(at: Position) -> str:
    """The number of legal edits of every cell, and of the kinds that need no cell."""
    counts = np.zeros(at.spec.num_cells, np.int64)
    legal = np.flatnonzero(at.mask)
    cells = at.spec.action_cell[legal]
    np.add.at(counts, cells[cells >= 0], 1)
    signs = np.array([*".123456789", "+"])[np.minimum(counts, 10)]
    blank = default_picture(at.spec, at.instance, at.plan)
    picture = replace(blank, symbols=signs.reshape(at.spec.grid_shape))
    drawn = draw_text(picture, color=False, numbered=True)
    edits = "1 legal edit" if len(legal) == 1 else f"{len(legal)} legal edits"
    return f"{drawn}\n{edits}{_further(at)}"


def help_text(at: Position) -> str:
    """How edits are typed, and the commands."""
    lines = {_typed(at, kind): kind.name for kind in at.kinds.values()}
    if at.main.has_value:
        third = at.spec.symbols[at.main.values[:3][-1]]
        lines[_typed(at, at.main)] += f", e.g. 1 2 {third}"
    if at.head is not None:
        lines["u d l r"] = f"{at.main.name} up, down, left, right"
    lines |= {
        "hint": "some legal edits",
        "hint ROW COLUMN": "the legal edits there",
        "mask": "how many edits are legal where",
        "back": "take the last edit back",
        "restart": "the same puzzle from its start",
        "new": "another puzzle",
        "score": "what the checker says",
        "quit": "leave",
    }
    return "\n".join(f"  {typed:<22} {what}" for typed, what in lines.items())


def why_not(at: Position, action: int) -> str:
    """Why an action is not legal, as far as the tables and the plan tell."""
    spec = at.spec
    cell, value = int(spec.action_cell[action]), int(spec.action_value[action])
    kind = spec.kind_names[spec.action_kind[action]]
    if cell < 0:
        return f"{kind} is not legal now"
    place, shown = place_of(spec, cell), int(at.plan[cell])
    if _is_given(at, cell):
        return f"{place} is given"
    if shown == value and not (value and kind != at.main.name):
        look = "blank" if value == 0 else repr(spec.symbols[value])
        return f"{place} is {look} already"
    head = at.head
    if shown and value and head is None and not at.mask[spec.action_cell == cell].any():
        return f"{place} is filled already"
    conflict = _conflict(at, cell, value) if value else None
    if conflict is not None:
        return f"not legal: {conflict}"
    if head is not None and spec.neighbours is not None:
        if cell not in spec.neighbours[head]:
            return f"{place} is not next to the head, which is at {place_of(spec, head)}"
        return f"{place} is not free"
    return f"{kind} at {place} is not legal now"


def place_of(spec: DomainSpec, cell: int) -> str:
    """A cell in words; rows and columns count from 1."""
    row, column = divmod(cell, spec.grid_shape[1])
    return f"row {row + 1}, column {column + 1}"


def _typed(at: Position, kind: Kind) -> str:
    """How an edit of a kind is typed."""
    return usage(kind) if kind is at.main else f"{kind.name} {usage(kind)}".rstrip()


def _is_given(at: Position, cell: int) -> bool:
    """Whether the instance, where it is a board of givens, sets this cell."""
    spec = at.spec
    of_givens = spec.instance_size == spec.num_cells
    if not of_givens or spec.num_instance_values != spec.num_values:
        return False
    return bool(at.instance[cell]) and bool(at.instance[cell] == at.plan[cell])


def _conflict(at: Position, cell: int, value: int) -> str | None:
    """The first value of another cell that shares a constraint group with this one."""
    spec = at.spec
    variable = cell * spec.num_values + value - 1
    for name, labels in spec.groups.items():
        for other in np.flatnonzero(at.plan):
            theirs = int(at.plan[other])
            same = labels[other * spec.num_values + theirs - 1] == labels[variable]
            if same and other != cell:
                where = place_of(spec, int(other))
                return f"{spec.symbols[theirs]} stands in the same {name}, at {where}"
    return None


def _further(at: Position) -> str:
    """The legal edits of the other kinds: `, among them erase (3), stop`."""
    parts = []
    for kind in at.kinds.values():
        legal = int(at.mask[list(kind.actions.values())].sum())
        if legal and kind is not at.main:
            parts.append(f"{kind.name} ({legal})" if len(kind.actions) > 1 else kind.name)
    return f", among them {', '.join(parts)}" if parts else ""


def _moves(at: Position, legal: list[tuple[int, int]]) -> list[str]:
    """Legal steps from the head, by direction."""
    head = at.head
    if head is None:
        return []
    columns = at.spec.grid_shape[1]
    names = {row * columns + column: name for name, (row, column) in DIRECTIONS.items()}
    return [f"{names[cell - head]} to {place_of(at.spec, cell)}" for cell, _ in legal]


def _choices(at: Position, legal: list[tuple[int, int]]) -> list[str]:
    """Cells with their legal values, or rows with their legal columns; the fewest first."""
    columns = at.spec.grid_shape[1]
    choices: dict[int, list[str]] = {}
    for cell, value in legal:
        if at.main.has_value:
            choices.setdefault(cell, []).append(at.spec.symbols[value])
        else:
            choices.setdefault(cell // columns, []).append(str(cell % columns + 1))
    ordered = sorted(choices.items(), key=lambda item: len(item[1]))
    if at.main.has_value:
        return [f"{place_of(at.spec, cell)}: {' '.join(values)}" for cell, values in ordered]
    return [f"row {row + 1}: column {' '.join(values)}" for row, values in ordered]
