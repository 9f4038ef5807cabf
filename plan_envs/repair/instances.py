"""Repair instances: seeded generation, texts of one's own, splits disjoint by behaviour.

An `InstanceSet` for `plan_envs.repair.rules.Repair` leaves here. Its solutions are working programs
and its ratings the edits to the nearest known one. Each instance has a random stream of its own, so
the first k instances of a set do not depend on its size.
"""

import os
from pathlib import Path
from typing import Final

import numpy as np

from plan_envs.checks import as_puzzles, as_range
from plan_envs.domain import Int8Array
from plan_envs.instances import (
    SPLITS,
    InstanceSet,
    check_request,
    fill_in_chunks,
    stream_key,
)
from plan_envs.repair import generation
from plan_envs.repair.language import NUM_TOKENS
from plan_envs.repair.rules import Repair
from plan_envs.repair.text import instance_of, read_program, texts_of
from plan_envs.texts import read_text

MOST_FAULTS: Final = 4
"""Edits at most by which a generated program is broken."""

_CHUNK: Final = 64
"""Instances a kernel call, so that Ctrl-C gets through between calls."""


def repair_instances(
    *,
    length: int = 12,
    tests: int = 6,
    hidden: int = 6,
    split: str = "train",
    num: int = 1000,
    seed: int = 0,
    tokens: tuple[int, int] = (4, 9),
    faults: tuple[int, int] = (1, 2),
    progress: bool = False,
) -> InstanceSet:
    """Seeded programs with faults; equal arguments give equal instances.

    A working program is well-typed, of a number of tokens drawn uniformly, each token uniform among
    those that fit, and leaves one value. It is kept if no token can be deleted without changing
    what it makes of 64 fixed inputs, and if no output is that of more than two thirds of its
    visible tests. Inputs are an integer of -2..6 and a list of 0-5 integers of -9..9, drawn
    uniformly. Then as many legal edits as there are faults break it, each replacing, inserting or
    deleting a token, so that the program stays well-typed; it is kept if a visible test fails. Of
    two or more faults, no single edit is a repair: one or two faults are the distance to the
    nearest program that passes the visible tests.

    Splits are disjoint by behaviour: the split is a function of a hash of what the working program
    makes of the 64 fixed inputs, with shares of 8:1:1. Programs that behave alike there are in the
    same split, however they are written.

    Args:
        length: tokens that a program has room for, 6-32.
        tests: visible tests, 1-16.
        hidden: hidden tests, 0-16.
        split: "train", "validation" or "test".
        num: number of instances.
        seed: non-negative; each (seed, split, options) has its own random streams.
        tokens: inclusive range of the tokens of the working program, within 2..length.
        faults: inclusive range of the edits that break it, within 1..4.
        progress: show a progress bar on stderr.

    Returns:
        The instances; solutions are the working programs, ratings the faults.

    Raises:
        ValueError: for a value out of range, or ranges for which bounded effort found no instance.
    """
    spec = Repair(length, tests, hidden).spec
    check_request(split, num, seed)
    least, most = as_range("tokens", tokens, least=2, most=length)
    low, high = as_range("faults", faults, least=1, most=MOST_FAULTS)
    shape = length, tests, hidden
    stream = np.uint64(stream_key(f"repair/{shape}/{split}/{seed}/{least}-{most}/{low}-{high}"))
    instances = np.zeros((num, spec.instance_size), np.int8)
    solutions = np.zeros((num, length), np.int8)
    ratings = np.zeros((num, 1), np.int8)
    failed = fill_in_chunks(
        generation.generate,
        (instances, solutions, ratings),
        (stream, SPLITS.index(split), shape, (least, most), (low, high)),
        chunk=_CHUNK,
        label=f"programs {split}",
        shown=progress,
    )
    if failed >= 0:
        raise ValueError(
            f"no program of split {split!r} with tokens={(least, most)} and faults={(low, high)} "
            f"found in {generation.MAX_TRIES} tries (program {failed} of seed {seed}); widen the "
            f"ranges"
        )
    name = f"repair{length}:{split}:seed{seed}"
    return InstanceSet.of(name, instances, solutions, ratings[:, 0])


def split_of(programs: Int8Array) -> list[str]:
    """The split of each working program, shape [num]; equal for programs that behave alike."""
    programs = as_puzzles(programs, np.shape(programs)[-1], NUM_TOKENS)
    splits = np.empty(len(programs), np.int64)
    generation.write_splits(programs, splits)
    return [SPLITS[split] for split in splits]


def read_repair_text(
    path: str | os.PathLike[str], *, domain: Repair, limit: int | None = None
) -> InstanceSet:
    """Read the instances of a text file, in any form that `plan_envs.repair.text` reads.

    The solution of an instance is the program behind `fixed`, or else the first that a search of
    one or two edits finds; ratings are the edits to it.

    Args:
        path: file to read.
        domain: the rules.
        limit: keep at most so many.

    Raises:
        ValueError: one line that names file and line of the first instance that cannot be read or
            played, or has no known solution.
    """
    try:
        found = texts_of(read_text(Path(path)))[:limit]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path}: no programs")
    room = {"length": domain.length, "tests": domain.tests, "hidden": domain.hidden}
    instances, solutions = [], []
    for line, parts in found:
        try:
            instance = instance_of(parts, **room)
            fixed = None if parts.fixed is None else read_program(parts.fixed, domain.length)
            solutions.append(_solution(domain, instance, fixed))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
        instances.append(instance)
    boards, goals = np.stack(instances), np.stack(solutions)
    return InstanceSet.of(
        Path(path).name, boards, goals, domain.distance_to(domain.initial(boards), goals)
    )


def _solution(domain: Repair, instance: Int8Array, fixed: Int8Array | None) -> Int8Array:
    """A program that passes the visible tests of an instance: the given one, or one nearby."""
    reason = domain.why_invalid(instance)
    if reason is not None:
        raise ValueError(reason)
    start = domain.initial(instance[None])
    if fixed is not None:
        if not domain.check(instance[None], fixed[None]).solved[0]:
            raise ValueError("the program behind 'fixed' fails a visible test")
        return fixed
    edits, _ = domain.first_repairs(instance[None], start, depth=2)
    if edits[0, 0] < 0:
        raise ValueError(
            "one or two edits do not repair the program: name one that works behind 'fixed'"
        )
    plan = start
    for action in edits[0][edits[0] >= 0]:
        plan = domain.edit(instance[None], plan, np.array([action], np.int32))
    repaired: Int8Array = plan[0]
    return repaired
