"""What the domains have in common around their kernels: checked arrays, room for successors.

A domain checks what a caller hands it with these functions, so that errors read alike everywhere
and kernels, which check nothing, see contiguous arrays of one type.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, RewardKind, Successors


def check_choices(domain: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a field of a domain that is none of its choices.

    Raises:
        ValueError: names the field, its choices and its value.
    """
    for field, allowed in choices.items():
        value = getattr(domain, field)
        if value not in allowed:
            raise ValueError(f"{field} must be one of {list(allowed)}, got {value!r}")


def as_boards(name: str, boards: Int8Array, width: int, largest: int | None = None) -> Int8Array:
    """Check shape, dtype and range; contiguous and writable, so that a kernel compiles once.

    Args:
        name: named in errors.
        boards: shape [batch, width], int8.
        width: integers a row.
        largest: they lie in 0..largest; None = any.

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


def is_shaped(reward: RewardKind) -> bool:
    """True for shaped rewards, False for sparse ones; other words are refused."""
    if reward not in ("shaped", "sparse"):
        raise ValueError(f"reward must be 'shaped' or 'sparse', got {reward!r}")
    return reward == "shaped"


def absorbs_dead(dead_end: DeadEnd) -> bool:
    """True when entering a dead plan ends the episode; other words are refused."""
    if dead_end not in ("absorb", "continue"):
        raise ValueError(f"dead_end must be 'absorb' or 'continue', got {dead_end!r}")
    return dead_end == "absorb"


_VECTORS: Final = {
    "state": np.dtype(np.int32),
    "action": np.dtype(np.int32),
    "score": np.dtype(np.float32),
    "reward": np.dtype(np.float32),
    "solved": np.dtype(np.bool_),
    "dead": np.dtype(np.bool_),
    "terminated": np.dtype(np.bool_),
}


def empty_successors(
    offsets: NDArray[np.int64], cells: int, *, with_plans: bool, spare: int = 0
) -> Successors:
    """Room for as many successors as `offsets` counts, to be filled in.

    All in one fresh block of memory, with room for `spare` more elements behind each vector. With
    an allocation for each, glibc hands the pages back to the operating system at every call; the
    page faults then cost as much as the successors do.
    """
    total = int(offsets[-1])
    length = (total + spare + 15) // 16 * 16
    num_plans = total if with_plans else 0
    end = length * sum(dtype.itemsize for dtype in _VECTORS.values())
    block = np.empty(end + num_plans * cells, np.uint8)
    arrays: dict[str, NDArray[Any]] = {}
    begin = 0
    for name, dtype in _VECTORS.items():
        arrays[name] = np.ndarray(total, dtype, block, begin)
        begin += length * dtype.itemsize
    plan: Int8Array = np.ndarray((num_plans, cells), np.int8, block, end)
    return Successors(offsets=offsets, plan=plan, **arrays)


def outcome_arrays(found: Successors) -> tuple[NDArray[Any], ...]:
    """State, action, plan, score, reward, solved, dead and terminated, for the kernels."""
    return (
        found.state,
        found.action,
        found.plan,
        found.score,
        found.reward,
        found.solved,
        found.dead,
        found.terminated,
    )


def choose_cells(
    cells: NDArray[np.bool_], number: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose up to `number` [batch] of the True cells of every row, uniformly; [batch, cell]."""
    keys = np.where(cells, rng.random(cells.shape), np.inf)
    ranks = np.argsort(np.argsort(keys, axis=1), axis=1)
    chosen: NDArray[np.bool_] = cells & (ranks < np.asarray(number)[:, None])
    return chosen


@cache
def neighbours_of(size: int) -> NDArray[np.int32]:
    """The cells up, down, left and right of every cell of a square, -1 outside; [cell, direction].

    Shared: not to be written to.
    """
    row, column = np.divmod(np.arange(size * size, dtype=np.int32), np.int32(size))
    found = np.full((size * size, 4), -1, np.int32)
    for direction, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
        r, c = row + down, column + right
        inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
        found[inside, direction] = (r * size + c)[inside]
    return found


def with_fixed_tables(spec: DomainSpec) -> DomainSpec:
    """The same spec, whose arrays can no longer be written to: domains share them."""
    tables = [spec.action_cell, spec.action_value, spec.action_kind, *spec.groups.values()]
    if spec.neighbours is not None:
        tables.append(spec.neighbours)
    for table in tables:
        table.flags.writeable = False
    return spec
