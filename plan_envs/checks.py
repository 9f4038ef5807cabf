"""Checks of what callers hand to a domain or an environment, so that errors read alike everywhere.

Kernels check nothing. The functions here give them contiguous arrays of one type, or raise an error
that names the argument and its value. Type, shape and range are checked before any cast, which
could make a wrong value a right one (256 as int8 is 0).

The ways by which values from outside reach a kernel, and what checks them:

- actions of `PlanEditEnv.step`: `operator.index`, then the range in `packed_kernels.step_single`;
- actions of `PlanEditVectorEnv.step` and SB3's adapter: `as_choices`, then the range in
  `packed_kernels.refuse`;
- `options["instance"]` and `options["plan"]` of `reset`: `episodes.read_instance` and
  `episodes.read_plans`;
- `set_state`: `PlanEditing.set_state`;
- the instances of an `InstanceSet`: `InstanceSet.check_fits` when an environment is made; later
  nobody can change them, since sets and engines keep `frozen` arrays;
- arguments of a domain's functions: `as_boards` and `as_actions` in `compiled.kernel_domain`, and
  what else is no plan in the domain's `_plans` (ARC: no canvas, Repair: no program).

What goes out cannot come back in: observations are copies, or with `copy=False` read-only views.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, one_of


class ArgumentError(TypeError, ValueError):
    """An argument of a wrong type, or one that there is not.

    Python says `TypeError` there, which libraries that make environments look for, and this package
    says `ValueError` of every argument that it refuses.
    """


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """An array that nobody can change: itself where that is so already, else a copy."""
    if array.flags.writeable or array.base is not None or not array.flags.c_contiguous:
        array = np.array(array, order="C")
        array.flags.writeable = False
    return array


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view of an array through which it cannot be changed."""
    view = array.view()
    view.flags.writeable = False
    return view


def as_integers(name: str, values: Any, largest: int) -> NDArray[Any]:
    """An array of integers in 0..largest, of any shape and integer type.

    Raises:
        ValueError: names the type, or the first value that is out of range.
    """
    given = np.asarray(values)
    if given.dtype.kind not in "iu":  # neither bool nor timedelta, which count as integers
        raise ValueError(f"{name} must hold integers, got {given.dtype}")
    outside = given[(given < 0) | (given > largest)]
    if len(outside):
        raise ValueError(f"{name} must hold 0..{largest}, got {outside[0]}")
    return given


def as_choices(actions: Any, num_envs: int) -> NDArray[np.int64]:
    """An action for every environment, int64 and contiguous; the engine checks the range.

    Args:
        actions: integers of any type, shape [n].
        num_envs: n.

    Raises:
        ValueError: for another shape or type, or a number beyond int64.
    """
    given = np.asarray(actions)
    if given.shape != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {given.shape}")
    if given.dtype == np.int64 and given.flags.carray:  # as most come: a step takes 10 us
        return given
    if given.dtype.kind not in "iu":
        raise ValueError(f"actions must be integers, got {given.dtype}")
    if given.dtype == np.uint64 and given.max() > np.iinfo(np.int64).max:
        raise ValueError(f"action {given.max()} is outside the action space")
    return np.require(given, np.int64, ("C", "W"))


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
    given = np.atleast_2d(as_integers("boards", boards, largest))
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
    given = np.asarray(actions)
    if given.shape != (batch,):
        raise ValueError(f"actions must have shape [{batch}], got {list(given.shape)}")
    if given.dtype.kind not in "iu":
        raise ValueError(f"actions must be integers, got {given.dtype}")
    if batch and not 0 <= given.min() <= given.max() < num_actions:
        wrong = given[(given < 0) | (given >= num_actions)][0]
        raise ValueError(f"actions must lie in 0..{num_actions - 1}, got {wrong}")
    return np.require(given, np.int32, ("C", "W"))
