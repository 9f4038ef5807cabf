"""Checks of what callers hand to a domain, so that errors read alike everywhere.

Kernels check nothing. The functions here give them contiguous arrays of one type, or raise an error
that names the argument and its value.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, one_of


def check_choices(domain: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a field of a domain that is none of its choices.

    Raises:
        ValueError: names the field, its choices and its value.
    """
    for field, allowed in choices.items():
        one_of(field, getattr(domain, field), *allowed)


def as_boards(name: str, boards: Int8Array, width: int, largest: int | None = None) -> Int8Array:
    """Check shape, dtype and range of boards.

    Args:
        name: the name of the argument, for errors.
        boards: int8, shape [batch, width].
        width: the integers of a row.
        largest: the integers must lie in 0..largest; None = any.

    Returns:
        The boards, contiguous and writable, so that a kernel is compiled for one type alone.

    Raises:
        ValueError: for another shape, dtype or value.
    """
    boards = np.asarray(boards)
    if boards.ndim != 2 or boards.shape[1] != width or boards.dtype != np.int8:
        raise ValueError(
            f"{name} must be int8 of shape [batch, {width}], "
            f"got {boards.dtype} of shape {list(boards.shape)}"
        )
    if not (boards.flags.c_contiguous and boards.flags.writeable):
        boards = np.require(boards, requirements=("C", "W"))
    if largest is not None and boards.size and boards.view(np.uint8).max() > largest:
        wrong = boards[boards.view(np.uint8) > largest][0]
        raise ValueError(f"{name} must hold 0..{largest}, got {wrong}")
    return boards


def as_puzzles(boards: Any, width: int, largest: int) -> Int8Array:
    """Boards of any integer type, or a single one, as `as_boards` gives them.

    Raises:
        ValueError: for another shape than [num, width] or [width], or values outside 0..largest.
    """
    given = np.atleast_2d(np.asarray(boards))
    if given.size and not 0 <= given.min() <= given.max() <= largest:
        raise ValueError(f"boards must hold 0..{largest}, got {given.min()} to {given.max()}")
    return as_boards("boards", given.astype(np.int8, copy=False), width)


def as_range(
    name: str, asked: Any, *, least: float, most: float, convert: Any = operator.index
) -> tuple[Any, Any]:
    """The bounds of an inclusive range that a caller asks for.

    Args:
        name: the name of the argument, for errors.
        asked: (low, high).
        least: no bound is smaller.
        most: no bound is larger.
        convert: makes numbers of the bounds, by default of integers alone.

    Raises:
        ValueError: for something else, or bounds out of range or order.
    """
    try:
        low, high = map(convert, asked)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {asked!r}") from None
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name} must be (low, high) with {least} <= low <= high <= {most}, got {(low, high)}"
        )
    return low, high


def check_batch(instances: Int8Array, plans: Int8Array) -> None:
    """Refuse batches of different sizes.

    Raises:
        ValueError: names both sizes.
    """
    if len(instances) != len(plans):
        raise ValueError(f"got {len(instances)} instances but {len(plans)} plans")


def as_actions(actions: NDArray[np.int32], batch: int, num_actions: int) -> NDArray[np.int32]:
    """Check shape [batch] and range; contiguous int32.

    Raises:
        ValueError: for another shape, or an action out of range.
    """
    actions = np.require(actions, np.int32, ("C", "W"))
    if actions.shape != (batch,):
        raise ValueError(f"actions must have shape [{batch}], got {list(actions.shape)}")
    if batch and not 0 <= actions.min() <= actions.max() < num_actions:
        wrong = actions[(actions < 0) | (actions >= num_actions)][0]
        raise ValueError(f"actions must lie in 0..{num_actions - 1}, got {wrong}")
    return actions
