"""Code repair as a plan-editing MDP (UPI-TRM Sec. 2, App. E): a program is edited token by token.

An instance is a broken program with its unit tests, a plan is a program in the language of
`plan_envs.repair.language`. `Repair` fulfils `plan_envs.domain.PlanDomain`: pure functions over
batches, one or two numba calls each (`plan_envs.repair.kernels`). Instances come from
`plan_envs.repair.instances`.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from plan_envs.checks import check_batch, check_choices
from plan_envs.compiled.kernel_domain import KernelDomain
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.evaluation import Policy
from plan_envs.instances import InstanceSet, solutions_by_content
from plan_envs.rendering import Picture
from plan_envs.repair import kernels, search
from plan_envs.repair.language import LIST, NAMES, NUM_TOKENS, WIDEST
from plan_envs.repair.picture import draw
from plan_envs.repair.text import read_repair, write_repair

Mask = Literal["types", "tokens"]

KIND_NAMES: Final = ("replace", "insert", "delete", "stop")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""
LENGTHS: Final = range(WIDEST + 1, 33)
"""Tokens that a program may have room for."""
MOST_TESTS: Final = 16
"""Visible tests at most, and hidden ones."""

Rules = tuple[int, int, int, bool]
"""What kernels know of a domain: cells, visible tests, hidden tests, do programs stay typed?"""


@dataclass(frozen=True)
class Repair(KernelDomain):
    """Programs under repair, over batches; `PlanDomain` says what each function promises.

    A program is a row of at most `length` tokens in postfix order, blanks behind it. It works on a
    stack of integers and lists of up to five integers, all clamped to -9..99. Its input is an
    integer `n` and a list `xs`, its result what lies on top of the stack in the end. Every program
    halts after one pass, and a token whose operands do not lie on the stack does nothing, so there
    are no errors. The tokens, with what they take from the stack and what they leave there:

    | tokens | meaning |
    |---|---|
    | `0` `1` `2` `n` `xs` | push a constant, the integer or the list of the input |
    | `+` `-` `*` `<` `=` | of two integers a and b; comparisons give 1 or 0 |
    | `if` | of three integers c, a and b: a if c > 0, else b |
    | `sum` `max` `len` `head` | of a list: an integer, 0 for the empty list |
    | `sort` `rev` `even` | of a list: ascending, reversed, its even elements |
    | `take` `drop` | of a list and an integer k: its first k elements, all but these |
    | `add` `mul` `gt` | k added to each element, each times k, those greater than k |
    | `cons` | of a list and an integer: the list with the integer before it, at most five long |

    An instance is the broken program and an input and an output board for each test: visible tests,
    then hidden ones that the checker alone reads. An input is its integer and its list, an output
    an integer, or the code of a list and its elements. Codes: 0 = nothing, 1-109 = -9..99, 110 = a
    list. A test whose boards are empty is none.

    Actions, with 24 tokens: cell * 24 + token - 1 replaces the token of a cell; then as many insert
    a token before a cell, or behind the program while there is room; then one a cell deletes its
    token and closes the gap; the last action stops. Under `mask="types"` an edit is legal if
    afterwards each token finds its operands on the stack, under "tokens" any edit that changes
    something. Stopping is legal at any time. It means giving up: a program that passes ends the
    episode by itself. The mask follows the program alone, never the tests. No edit is fatal: from
    every program every other is reached.

    Score: the share of the visible tests that pass. A plan is solved when all do, whatever else it
    may compute, and violations are the visible tests that fail. No plan is dead.

    `Verdict.details`: `visible` and `hidden`, the shares of the visible and the hidden tests that
    pass; where the second is lower, a repair fits the visible tests by chance.

    Args:
        length: tokens that a program has room for, 6-32.
        tests: visible tests that an instance has room for, 1-16.
        hidden: hidden tests, 0-16.
        mask: "types" or "tokens".

    Raises:
        ValueError: for an option out of range.
    """

    length: int = 12
    tests: int = 6
    hidden: int = 6
    mask: Mask = "types"

    _kernels: ClassVar[Any] = kernels
    _details: ClassVar[tuple[str, ...]] = ("visible", "hidden")

    def __post_init__(self) -> None:
        ranges = {
            "length": LENGTHS,
            "tests": range(1, MOST_TESTS + 1),
            "hidden": range(MOST_TESTS + 1),
        }
        for field, allowed in ranges.items():
            value = getattr(self, field)
            if not isinstance(value, int) or value not in allowed:
                raise ValueError(
                    f"{field} must be an integer in {allowed[0]}..{allowed[-1]}, got {value!r}"
                )
        check_choices(self, {"mask": ("types", "tokens")})

    @property
    def spec(self) -> DomainSpec:
        """Sizes and action table."""
        return _spec(self.length, self.tests, self.hidden)

    @property
    def rules(self) -> Rules:
        """The options as numbers, for the kernels."""
        return self.length, self.tests, self.hidden, self.mask == "types"

    @property
    def kernel_rules(self) -> tuple[Rules]:
        """The options as numbers."""
        return (self.rules,)

    def _scratch(self, batch: int) -> tuple[NDArray[Any], ...]:
        """The legal edits of every plan."""
        return (np.empty((batch, self.spec.num_actions), np.int8),)

    def initial(self, instances: Int8Array) -> Int8Array:
        """The broken program; shape [batch, cell]."""
        return self._plans(super().initial(instances))

    def read_instance(self, text: str) -> Int8Array:
        """Read a program and its tests as `plan_envs.repair.text` says, shape [instance].

        Raises:
            ValueError: names the word, or the test, that is wrong.
        """
        return read_repair(text, length=self.length, tests=self.tests, hidden=self.hidden)

    def write_instance(self, instance: Int8Array) -> str:
        """One line, as `read_instance` reads it back."""
        return write_repair(np.asarray(instance), length=self.length, tests=self.tests)

    def why_invalid(self, instance: Int8Array) -> str | None:
        """Say what makes an instance unplayable; None if nothing does."""
        instance = self._instances(np.ascontiguousarray(instance, np.int8)[None])[0]
        program = instance[None, : self.length]
        if (program > NUM_TOKENS).any() or kernels.first_malformed(program) >= 0:
            return "the first board is no program: tokens, then blanks"
        wrong = int(kernels.first_malformed_test(instance, self.length, self.tests + self.hidden))
        if wrong < self.tests + self.hidden:
            return f"test {wrong + 1} is no input with its output"
        if not instance[self.length : self.spec.observed_size : 2 * self.length].any():
            return "there is no visible test"
        return None

    def keeps_instance(self, instances: Int8Array, plans: Int8Array) -> NDArray[np.bool_]:
        """Any program belongs to any instance, shape [batch]."""
        self._pair(instances, plans)
        return np.ones(len(plans), np.bool_)

    def first_repairs(
        self, instances: Int8Array, plans: Int8Array, *, depth: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The first repair of at most `depth` edits that a search in their order finds.

        Args:
            instances: shape [batch, instance].
            plans: shape [batch, cell].
            depth: 1 = every legal edit is tried, 2 = then every pair of legal edits.

        Returns:
            The edits, shape [batch, 2], -1 where there is none, and the checker calls that the
            search took, shape [batch].

        Raises:
            ValueError: for another depth.
        """
        if depth not in (1, 2):
            raise ValueError(f"depth must be 1 or 2, got {depth!r}")
        instances, plans = self._pair(instances, plans)
        found = np.empty((len(plans), 2), np.int32)
        calls = np.empty(len(plans), np.int64)
        search.first_repairs(instances, plans, self.rules, depth, found, calls)
        return found, calls

    def distance_to(self, plans: Int8Array, goals: Int8Array) -> NDArray[np.int64]:
        """Token edits between programs (Levenshtein distance), each of shape [batch, cell]."""
        plans, goals = self._plans(plans), self._plans(goals)
        check_batch(plans, goals)
        distances = np.empty(len(plans), np.int64)
        search.write_distances(plans, goals, distances)
        return distances

    def reference_policies(self, instances: InstanceSet) -> dict[str, Policy]:
        """Policies that tables show beside a learned one.

        "one-edit" makes the edit after which most visible tests pass, ties drawn uniformly; it
        calls the checker for every legal edit. "two-edit" makes the first edit of a repair of one
        or two edits, all of which it tries, and where there is none the edit of "one-edit".
        "oracle" edits towards the stored program, by an edit that brings it nearer where one is
        legal.
        """
        goals = solutions_by_content(instances, self.spec.observed_size)

        def oracle(
            boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
        ) -> NDArray[np.int32]:
            actions = np.empty(len(plans), np.int32)
            search.write_towards(plans, goals(boards), mask, rng.random(mask.shape), actions)
            return actions

        return {"one-edit": self._best_edit, "two-edit": self._first_repair, "oracle": oracle}

    def _best_edit(
        self, boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        found = self.successors(self._whole(boards), plans, with_plans=False)
        worth = found.score + rng.random(len(found.score)) / (4 * MOST_TESTS)
        worth[self.is_stop(found.action)] = -1.0
        best = [first + worth[first:last].argmax() for first, last in pairwise(found.offsets)]
        return found.action[np.array(best, np.int64)]

    def _first_repair(
        self, boards: Int8Array, plans: Int8Array, mask: Int8Array, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        found, _ = self.first_repairs(self._whole(boards), plans, depth=2)
        best = self._best_edit(boards, plans, mask, rng)
        return np.where(found[:, 0] >= 0, found[:, 0], best)

    def _whole(self, boards: Int8Array) -> Int8Array:
        """Instances without hidden tests, from what learners see of them."""
        hidden = self.spec.instance_size - self.spec.observed_size
        return np.ascontiguousarray(np.pad(boards, ((0, 0), (0, hidden))))

    def picture(self, instance: Int8Array, plan: Int8Array) -> Picture:
        """The program over the tests: input, expected output, and what the program makes of it.

        Tokens that differ from the broken program are blue, a passing test is green.
        """
        return draw(np.asarray(instance), np.asarray(plan), self.tests)

    def _plans(self, plans: Int8Array) -> Int8Array:
        """The plans, checked: tokens, then blanks."""
        plans = super()._plans(plans)
        wrong = int(kernels.first_malformed(plans))
        if wrong >= 0:
            raise ValueError(f"plans must hold tokens, then blanks; row {wrong} does not")
        return plans


@cache
def _spec(length: int, tests: int, hidden: int) -> DomainSpec:
    writes = length * NUM_TOKENS
    cells = np.arange(length, dtype=np.int32)
    tokens = np.tile(np.arange(1, NUM_TOKENS + 1, dtype=np.int32), length)
    return DomainSpec(
        name=f"repair{length}",
        num_cells=length,
        num_values=NUM_TOKENS,
        grid_shape=(1, length),
        num_actions=2 * writes + length + 1,
        horizon=2 * length,
        max_score=1.0,
        action_cell=np.concatenate(
            [np.repeat(cells, NUM_TOKENS), np.repeat(cells, NUM_TOKENS), cells, [-1]]
        ).astype(np.int32),
        action_value=np.concatenate([tokens, tokens, 0 * cells, [0]]).astype(np.int32),
        action_kind=np.repeat(np.arange(4), [writes, writes, length, 1]).astype(np.int32),
        kind_names=KIND_NAMES,
        instance_layers=1 + 2 * tests,
        hidden_layers=2 * hidden,
        num_instance_values=LIST,
        symbols=(".", *NAMES),
    )
