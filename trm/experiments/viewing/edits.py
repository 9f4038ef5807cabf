"""Edits in words, for people: "7 at row 2, column 5"."""

import numpy as np

from plan_envs.domain import DomainSpec


def edit_name(spec: DomainSpec, action: int) -> str:
    """What an action does; rows and columns count from 1, values are written as they are drawn."""
    cell, value = int(spec.action_cell[action]), int(spec.action_value[action])
    kind = spec.kind_names[int(spec.action_kind[action])]
    if cell < 0:
        return f"{kind} {value}" if value else kind
    row, column = divmod(cell, spec.grid_shape[1])
    place = f"row {row + 1}, column {column + 1}"
    writing = np.unique(spec.action_kind[(spec.action_cell >= 0) & (spec.action_value > 0)])
    if value and spec.num_values > 1 and spec.neighbours is None and len(writing) == 1:
        return f"{spec.symbols[value]} at {place}"
    if value and (spec.action_cell == cell).sum() > 1:
        return f"{kind} {spec.symbols[value]} at {place}"
    return f"{kind} at {place}"
