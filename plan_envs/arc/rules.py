"""ARC as a plan-editing MDP (UPI-TRM Sec. 2): a canvas is painted and resized until it is right.

An instance is a test input with the demonstrations of its task, a plan is a canvas. `Arc` fulfils
`plan_envs.domain.PlanDomain`: pure functions over batches, one or two numba calls each
(`plan_envs.arc.kernels`). Tasks and instance sets come from `plan_envs.arc.instances`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc import kernels
from plan_envs.arc.grids import (
    LARGEST,
    MOST_DEMONSTRATIONS,
    NUM_COLOURS,
    board_of,
    crop,
    extent_of,
)
from plan_envs.arc.picture import draw
from plan_envs.arc.symmetry import ArcSymmetry, canvases
from plan_envs.cells import choose_cells, neighbours_of
from plan_envs.checks import check_choices
from plan_envs.compiled.kernel_domain import KernelDomain
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.evaluation import Policy
from plan_envs.instances import InstanceSet, solutions_by_content
from plan_envs.rendering import Picture
from plan_envs.texts import read_text
from trm.bounded import one_line, parse_json

Start = Literal["input", "blank"]
Shaping = Literal["none", "agreement"]

KIND_NAMES: Final = ("paint", "height", "width", "submit")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""


@dataclass(frozen=True)
class Arc(KernelDomain):
    """The ARC editor as pure functions over batches; `PlanDomain` says what each one promises.

    A board has size x size cells: 0 = outside of the grid, colour + 1 inside; the grid is the
    rectangle at the top left. An instance has 2 + 2 x demonstrations boards: the test input, each
    demonstration's input and output (empty boards where a task has fewer), and, for the checker
    alone, the target. A plan is one board, the canvas.

    Actions: (row * size + column) * 10 + colour paints a cell of the canvas in another colour; then
    `size` actions set the height to 1..size and `size` more the width, where a canvas grows with
    colour 0 and is cropped when it shrinks; the last action submits. The mask follows the canvas
    alone, never the target. Submitting ends the episode and is legal at any time. It means giving
    up: a right canvas ends the episode by itself, so an agent never needs to submit one, and no
    action but the last edit earns the reward.

    Score: with shaping "none" 1 for the target, else 0, so that shaped and sparse rewards coincide
    but for the last one. With "agreement" the share of agreeing cells among those that the canvas
    or the target covers, so a wrong size costs too: THIS LOOKS AT THE TARGET, also where an agent
    asks for successors. The verdict's details hold `exact` and `agreement` in any case. No plan is
    dead. Violations: disagreeing cells with shaping "agreement", else 0.

    An instance without target (an empty board, for a test input whose output is not known) can be
    edited, but nothing solves it.

    Args:
        size: rows and columns of a board, 2..30.
        demonstrations: pairs that an instance holds, 0..10.
        start: "input" begins with a copy of the test input, "blank" with a canvas of its size in
            colour 0.
        shaping: "none" or "agreement".

    Raises:
        ValueError: for an option out of range.
    """

    size: int = LARGEST
    demonstrations: int = MOST_DEMONSTRATIONS
    start: Start = "input"
    shaping: Shaping = "none"

    _kernels: ClassVar[Any] = kernels
    _details: ClassVar[tuple[str, ...]] = ("exact", "agreement")

    def __post_init__(self) -> None:
        ranges = {"size": (2, LARGEST), "demonstrations": (0, MOST_DEMONSTRATIONS)}
        for field, (low, high) in ranges.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{field} must be an integer in {low}..{high}, got {value!r}")
        choices = {"start": ("input", "blank"), "shaping": ("none", "agreement")}
        check_choices(self, choices)

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the four neighbours of each cell (up, down, left, right)."""
        return _spec(self.size, self.demonstrations)

    @property
    def kernel_rules(self) -> tuple[tuple[int, int, bool]]:
        """(size, place of the target in an instance, does the score look at the target?)."""
        return ((self.size, self.spec.observed_size, self.shaping == "agreement"),)

    def initial(self, instances: Int8Array) -> Int8Array:
        """The test input, or with start="blank" a canvas of its size; shape [batch, cell]."""
        plans = super().initial(instances)
        if self.start == "blank":
            np.minimum(plans, 1, out=plans)
        return plans

    def keeps_instance(self, instances: Int8Array, plans: Int8Array) -> NDArray[np.bool_]:
        """Any canvas belongs to any instance, but an empty one to none."""
        _, plans = self._pair(instances, plans)
        shown: NDArray[np.bool_] = plans[:, 0] > 0
        return shown

    def read_instance(self, text: str) -> Int8Array:
        """Read one task in ARC's JSON format, shape [instance].

        Args:
            text: the JSON itself or the path of a file, with "#k" appended to choose test input k
                (0 if there is none), and "#ID" before it to choose a task of Kaggle's form. The
                test input's output may be missing. Of more than `demonstrations` pairs the first
                ones are taken.

        Raises:
            ValueError: names the file, the grid and what is wrong with it.
        """
        from plan_envs.arc.tasks import choose_task, parse_task

        source, index = text.removeprefix("\ufeff").strip(), 0
        head, mark, tail = source.rpartition("#")
        if mark and tail.strip().isdecimal():
            source, index = head.strip(), int(tail)
        head, mark, chosen = source.rpartition("#")
        chosen = chosen if mark and head.endswith(("}", ".json")) else ""
        source = head if chosen else source
        name = "instance"
        if not source.startswith("{"):
            name = one_line(source)
            try:
                source = read_text(Path(source))
            except (OSError, ValueError) as error:
                raise ValueError(f"{name}: not a task in JSON, nor a readable file") from error
        try:
            value = parse_json(source)
        except ValueError as error:
            raise ValueError(f"{name}: not valid JSON: {error}") from None
        task = parse_task(choose_task(value, chosen, name=name), name=name)
        if index >= len(task.test):
            raise ValueError(f"{name}: there is no test input {index}, only {len(task.test)}")
        return self.instance_of(task.train, *task.test[index], name=name)

    def instance_of(
        self,
        demonstrations: Sequence[tuple[Int8Array, Int8Array]],
        test_input: Int8Array,
        target: Int8Array | None,
        *,
        name: str = "task",
    ) -> Int8Array:
        """An instance from grids of colours 0..9, int8 [instance].

        Args:
            demonstrations: (input, output) pairs, of which the first `self.demonstrations` are
                taken.
            test_input: shape [row, column].
            target: the right output; None if it is not known.
            name: named in errors.
        """
        cells = self.size**2
        boards = np.zeros((self.spec.instance_layers + 1, cells), np.int8)
        boards[0] = board_of(test_input, self.size, name=f"{name}: test input")
        for k, (before, after) in enumerate(demonstrations[: self.demonstrations]):
            place = f"{name}: demonstration {k}"
            boards[1 + 2 * k] = board_of(before, self.size, name=f"{place}, input")
            boards[2 + 2 * k] = board_of(after, self.size, name=f"{place}, output")
        if target is not None:
            boards[-1] = board_of(target, self.size, name=f"{name}: test output")
        return boards.reshape(-1)

    def why_invalid(self, instance: Int8Array) -> str | None:
        """Say which board is no grid; None if the instance can be played."""
        boards = np.ascontiguousarray(instance, np.int8).reshape(-1, self.size**2)
        names = ["the test input"]
        for k in range(self.demonstrations):
            names += [f"the input of demonstration {k}", f"the output of demonstration {k}"]
        wrong = kernels.first_malformed(boards, self.size)
        if wrong >= 0:
            name = [*names, "the target"][wrong]
            return f"{name} is no rectangle of colours at the top left of its board"
        if not boards[0, 0]:
            return "the test input is empty"
        shown = boards[1:-1, 0].reshape(-1, 2) > 0
        if (shown[:, 0] != shown[:, 1]).any():
            k = int((shown[:, 0] != shown[:, 1]).argmax())
            return f"demonstration {k} lacks its {'output' if shown[k, 0] else 'input'}"
        return None

    def random_symmetry(self, rng: np.random.Generator, *, flips: bool = True) -> ArcSymmetry:
        """A random symmetry of tasks: a dihedral one, with permuted colours but for colour 0.

        Without `flips` the identity and the transposition are left; only these commute with growing
        and shrinking, which happens below and on the right.
        """
        dihedral = int(rng.integers(8 if flips else 2))
        colours = 1 + rng.permutation(NUM_COLOURS - 1)
        return ArcSymmetry(self.size, dihedral, (0, *colours.tolist()))

    def reference_policies(self, instances: InstanceSet) -> dict[str, Policy]:
        """Policies that tables show beside a learned one.

        "copy-input" submits the first canvas. What it agrees with is what a task's input and output
        have in common, which is much. "oracle" sets the stored target's height, then its width,
        then paints the cells that are still wrong, and submits where no target is known.
        """
        submit = self.spec.num_actions - 1

        def copy_input(
            boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
        ) -> NDArray[np.int32]:
            return np.full(len(boards), submit, np.int32)

        return {"copy-input": copy_input, "oracle": _oracle(self, instances)}

    def distance(self, instances: Int8Array) -> NDArray[np.int64]:
        """Edits of the direct way from the first canvas to the target; 0 if it is not known.

        Set the height, set the width, paint every cell that is still wrong. Shrinking and growing
        again can be shorter where much must become colour 0.
        """
        start, goal = self.initial(instances), instances[:, self.spec.observed_size :]
        edits = self._wrong_after_resizing(start, goal).sum(axis=1)
        for before, after in zip(_sizes(start, self.size), _sizes(goal, self.size), strict=True):
            edits += before != after
        known: NDArray[np.int64] = np.where(goal[:, 0] > 0, edits, 0)
        return known

    def advance(
        self,
        instances: Int8Array,
        solutions: Int8Array,
        distance: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Int8Array:
        """Canvases of the target's size in which at most `distance` cells are still wrong.

        A canvas that resizing alone makes right stays as it begins. See `KernelDomain.advance`.
        """
        start = self.initial(instances)
        wrong = self._wrong_after_resizing(start, solutions)
        left = choose_cells(wrong, distance, rng)
        resized = np.where(solutions > 0, np.maximum(start, 1), 0)
        plans = np.where(left, resized, solutions)
        paints: NDArray[np.bool_] = np.any(wrong, axis=1, keepdims=True)
        return np.ascontiguousarray(np.where(paints, plans, start), np.int8)

    @staticmethod
    def _wrong_after_resizing(start: Int8Array, goal: Int8Array) -> NDArray[np.bool_]:
        """The cells of the goal that a canvas of its size does not show yet, [batch, cell]."""
        wrong: NDArray[np.bool_] = np.where(goal > 0, np.maximum(start, 1), 0) != goal
        return wrong

    def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
        """Demonstrations as pairs (input, output), then the test input and, framed, the canvas.

        Cells of the canvas that differ from its start show their digit; elsewhere the colour says
        it all, and digits stand in text without colours only. An output lies beside or below its
        input, whatever makes the picture more nearly square.
        """
        size = self.size
        boards = np.asarray(instance, np.int8)[: self.spec.observed_size].reshape(-1, size, size)
        canvas = np.asarray(plan, np.int8).reshape(size, size)
        start = np.minimum(boards[0], 1) if self.start == "blank" else boards[0]
        grids = [crop(board) for board in boards]
        pairs = [pair for pair in zip(grids[1::2], grids[2::2], strict=True) if pair[0].size]
        extent = extent_of(canvas)
        return draw([*pairs, (grids[0], canvas[extent])], edited=(canvas != start)[extent])

    def _plans(self, plans: Int8Array) -> Int8Array:
        """The plans, checked: canvases, and nothing around them."""
        return canvases("plans", plans, self.size)


def _oracle(domain: Arc, instances: InstanceSet) -> Policy:
    """The policy that heads straight for the stored target; see `Arc.reference_policies`."""
    size = domain.size
    paints, submit = NUM_COLOURS * size * size, domain.spec.num_actions - 1
    goals_of = solutions_by_content(instances, domain.spec.observed_size)

    def policy(
        boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        goals = goals_of(boards)
        cell = (plans != goals).argmax(axis=1)
        actions = NUM_COLOURS * cell + goals[np.arange(len(goals)), cell] - 1
        now, then = (np.stack(_sizes(some, size)) for some in (plans, goals))
        for first, have, want in zip((paints, paints + size), now, then, strict=True):
            resize = (have != want) & (actions < paints)
            actions = np.where(resize, first + want - 1, actions)
        return np.where(then[0] > 0, actions, submit).astype(np.int32)

    return policy


def _sizes(boards: Int8Array, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths of the grids of boards, each of shape [batch]."""
    grids = boards.reshape(-1, size, size) > 0
    return grids[:, :, 0].sum(axis=1), grids[:, 0].sum(axis=1)


@cache
def _spec(size: int, demonstrations: int) -> DomainSpec:
    cells = size * size
    every_cell = np.arange(cells, dtype=np.int32)
    no_cell = np.full(2 * size + 1, -1, np.int32)
    sizes = np.arange(1, size + 1, dtype=np.int32)
    return DomainSpec(
        name=f"arc{size}x{size}",
        num_cells=cells,
        num_values=NUM_COLOURS,
        grid_shape=(size, size),
        num_actions=NUM_COLOURS * cells + 2 * size + 1,
        horizon=cells + 3,
        max_score=1.0,
        action_cell=np.concatenate([np.repeat(every_cell, NUM_COLOURS), no_cell]),
        action_value=np.concatenate(
            [np.tile(np.arange(1, 11, dtype=np.int32), cells), sizes, sizes, np.zeros(1, np.int32)]
        ),
        action_kind=np.repeat(np.arange(4, dtype=np.int32), [NUM_COLOURS * cells, size, size, 1]),
        kind_names=KIND_NAMES,
        neighbours=neighbours_of(size),
        instance_layers=1 + 2 * demonstrations,
        hidden_layers=1,
        num_instance_values=NUM_COLOURS,
        symbols=" 0123456789",
    )
