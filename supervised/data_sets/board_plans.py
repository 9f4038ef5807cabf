"""What the data sets of Sudoku, N-Queens and Maze are built from: seeded plans for `building`.

Puzzles come from `plan_envs` (generators, CSV files, the hub), which also keeps the splits apart;
out go `BuildPlan`s whose pieces are tokens. `arc_plan` has the data sets of ARC.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from plan_envs.catalogue import resolve_task
from plan_envs.domain import PlanDomain
from plan_envs.hub import HUB_NAMES, HUB_SPLITS, read_instances
from plan_envs.instances import SPLITS, InstanceSet, stream_key
from plan_envs.maze.instances import maze_instances
from plan_envs.maze.rules import Maze
from plan_envs.queens.instances import (
    count_completions,
    enumerate_solutions,
    keep_queens,
    queens_instances,
)
from plan_envs.queens.rules import Queens
from plan_envs.sudoku.rules import Sudoku
from supervised.data_sets.building import Arrays, BuildPlan
from supervised.data_sets.codecs import Tokens, codec_of
from supervised.data_sets.datasets import DatasetInfo, info_of

HOLD_OUTS: Final = ("random", "solution", "class")
"""Ways to keep test boards of N-Queens apart from training; see `queens_plan`."""

SUDOKU_EXTREME, MAZE_HARD = HUB_NAMES
"""The public data sets, by their names on the hub."""

EXTREME_ROWS: Final = 3_831_994
"""Rows of Sudoku-Extreme's train.csv, from which the committed index was drawn."""

PIECE_SIZES: Final = {"sudoku": 10_000, "queens": 10_000, "maze": 50}
"""Puzzles of a generated piece, which take seconds to make."""


class Examples(TypedDict, total=False):
    """How many examples a data set has; each plan has defaults of its own."""

    train: int
    """Number of training puzzles, 1 or more; fewer where a file has fewer."""
    validation: int
    """Number of validation puzzles; 0 = none."""
    test: int | None
    """Number of test puzzles; 0 = none; None, for plans that read files, = all."""
    seed: int
    """Seed of everything: the puzzles or the choice of rows, and the images."""
    images: int
    """Random images of each training puzzle, stored behind it; 0 leaves augmentation to
    `TokenDataset.batch`."""


def sudoku_plan(
    *,
    side: int = 9,
    givens: tuple[int, int] | None = None,
    blanks: tuple[int, int] | None = None,
    unique: bool = True,
    **examples: Unpack[Examples],
) -> BuildPlan:
    """Generated Sudoku, splits disjoint up to symmetry; see `plan_envs.sudoku.instances`.

    Args:
        side: 4, 6, 9 or 16.
        givens: range of givens; None leaves it to the generator.
        blanks: range of blanks, instead of `givens`.
        unique: whether every puzzle has exactly one solution.
        **examples: see `Examples`.
    """
    task = resolve_task(f"sudoku{side}x{side}")
    own = {"side": side, "givens": givens, "blanks": blanks, "unique": unique}
    sizes = _sizes(examples, train=10_000, validation=1000, test=1000)
    return _generated("sudoku", task.domain, own | sizes, partial(task.generator, **own))


def maze_plan(
    *, size: int = 30, path: tuple[int, int | None] | None = None, **examples: Unpack[Examples]
) -> BuildPlan:
    """Generated mazes with long shortest paths, splits disjoint up to symmetry.

    Args:
        size: rows and columns.
        path: range of the cells on a shortest path; None leaves it to `plan_envs.maze.instances`.
        **examples: see `Examples`; images are dihedral.
    """
    task = resolve_task(f"maze{size}")
    own = {"size": size, "path": path}
    sizes = _sizes(examples, train=1000, validation=100, test=1000)
    return _generated("maze", task.domain, own | sizes, partial(task.generator, **own))


def queens_plan(
    *,
    n: int = 8,
    hold_out: str = "random",
    given: tuple[int, int] | None = None,
    **examples: Unpack[Examples],
) -> BuildPlan:
    """N-Queens with some queens given (DIS, Sec. 5.1), held out in one of three ways.

    - "random": boards are drawn alike for every split, as in the paper; test boards come back in
      training (the notes say how many), and training has every solution.
    - "solution": a fifth of the solutions, and a tenth for validation, only make boards of their
      split; their mirror images may be trained on.
    - "class": whole symmetry classes, and a board is held out only if *all* its completions lie in
      held-out classes (`plan_envs.queens_instances`).

    Args:
        n: rows of the board; 4..12.
        hold_out: how splits are kept apart.
        given: range of the number of given queens, drawn uniformly; None for 1 to n - 1.
        **examples: see `Examples`.

    Raises:
        ValueError: for an unknown way, or a range of queens that the board does not have.
    """
    if hold_out not in HOLD_OUTS:
        raise ValueError(f"hold_out must be one of {', '.join(HOLD_OUTS)}, got {hold_out!r}")
    given = (1, n - 1) if given is None else given
    if not 0 <= given[0] <= given[1] < n:
        raise ValueError(f"given must be (low, high) with 0 <= low <= high < {n}, got {given}")
    options: dict[str, Any] = {"n": n, "hold_out": hold_out, "given": given}
    options |= _sizes(examples, train=7200, validation=200, test=200)

    def generate(split: str, num: int, seed: int) -> InstanceSet:
        if hold_out == "class":
            return queens_instances(n=n, split=split, num=num, seed=seed, given=given)
        pool = enumerate_solutions(n)
        if hold_out == "solution":
            pool = pool[_deal_solutions(len(pool), options["seed"]) == SPLITS.index(split)]
        rng = np.random.default_rng([stream_key(f"queens/{hold_out}/{split}"), seed])
        solutions = pool[rng.integers(len(pool), size=num)]
        return InstanceSet.of(split, keep_queens(solutions, given, rng), solutions)

    return _generated("nqueens", Queens(n), options, generate, notes=_queens_notes)


def sudoku_extreme_plan(
    *,
    source: str = SUDOKU_EXTREME,
    test_source: str | None = None,
    **examples: Unpack[Examples],
) -> BuildPlan:
    """Sudoku-Extreme (TRM, Sec. 5): 1,000 training puzzles, the same ones for everybody.

    From the public set with the default numbers and seed, the training puzzles are those of
    `extreme_index`, which is committed; else a seeded choice from the file. Validation puzzles come
    from the training file too.

    Args:
        source: name of the public set on the hub, or a CSV file in its format.
        test_source: CSV file of test puzzles; None = that of the public set, or no tests.
        **examples: see `Examples`; the reference stores 1,000 images.
    """
    options = _sizes(examples, train=1000, validation=1000, test=None)
    return _from_files("sudoku-extreme", Sudoku(9), source, test_source, options)


def maze_hard_plan(
    *, source: str = MAZE_HARD, test_source: str | None = None, **examples: Unpack[Examples]
) -> BuildPlan:
    """Maze-30x30-Hard (TRM, Sec. 5), from the hub or a CSV file; arguments as sudoku-extreme's.

    The public training file has no more than the 1,000 mazes that are trained on, so validation
    mazes are generated ones like them (`plan_envs.maze.instances`: 110 cells or more).
    """
    options = _sizes(examples, train=1000, validation=100, test=None)
    return _from_files(
        "maze-hard",
        Maze(30),
        source,
        test_source,
        options,
        partial(maze_instances, size=30, split="validation", seed=options["seed"]),
    )


def choose_rows(num_rows: int, num: int, seed: int) -> Int64[np.ndarray, " row"]:
    """A seeded choice of `num` rows of a file, in random order; [num] or fewer, all different."""
    rng = np.random.default_rng([stream_key("supervised/rows"), seed])
    return rng.permutation(num_rows)[:num].astype(np.int64)


@cache
def extreme_index() -> tuple[int, ...]:
    """The 1,000 rows of Sudoku-Extreme's train.csv, from 0, that are trained on.

    Committed, so that no change of a random generator changes them; they are
    `choose_rows(EXTREME_ROWS, 1000, seed=0)`.
    """
    file = resources.files("supervised") / "data" / "sudoku_extreme_1000.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(int(line) for line in lines if line and not line.startswith("#"))


def _sizes(examples: Examples, **defaults: int | None) -> dict[str, Any]:
    """The numbers of examples that were asked for over a plan's defaults, checked."""
    options: dict[str, Any] = {**defaults, "seed": 0, "images": 0, **examples}
    for name, value in options.items():
        least = 1 if name == "train" else 0
        if value is not None and value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    return options


def _generated(
    name: str,
    domain: PlanDomain,
    options: Mapping[str, Any],
    generate: Callable[..., InstanceSet],
    *,
    notes: Callable[[PlanDomain, Arrays], Mapping[str, Any]] | None = None,
) -> BuildPlan:
    """A plan whose pieces are generated, each with a seed of its own.

    Args:
        name: of the builder.
        domain: rules of the puzzles.
        options: of the puzzles, and what `_sizes` returned.
        generate: makes the puzzles of a piece from its `split`, `num` and `seed`.
        notes: describes the finished data set.
    """
    most = PIECE_SIZES[domain.spec.name.rstrip("0123456789x")]

    def make(split: str, num: int, seed: int) -> Arrays:
        puzzles = generate(split=split, num=num, seed=seed)
        return _tokens(puzzles, domain, split, options["images"], seed)

    pieces = {}
    for split in SPLITS:
        for part, start in enumerate(range(0, options[split], most)):
            num = min(most, options[split] - start)
            seed = options["seed"] if part == 0 else _seed_of(options["seed"], part)
            pieces[f"{split}-{part:05d}"] = partial(make, split, num, seed)

    finish = partial(_finish_boards, name, domain, notes)
    return BuildPlan(name=name, options=options, pieces=pieces, finish=finish)


def _from_files(
    name: str,
    domain: PlanDomain,
    source: str,
    test_source: str | None,
    options: Mapping[str, Any],
    validation_like: Callable[..., InstanceSet] | None = None,
) -> BuildPlan:
    """A plan that reads a public set, whose files it knows by name and content.

    Args:
        name: of the builder.
        domain: rules of the puzzles.
        source: of training puzzles, and of validation puzzles where no more is said.
        test_source: of test puzzles; None = that of the hub, or no tests.
        options: what `_sizes` returned.
        validation_like: makes `num` validation puzzles; None = further rows of `source`.
    """
    if test_source is None and source in HUB_NAMES:
        test_source = f"{source}:{HUB_SPLITS[1]}"
    if test_source is None and options["test"]:
        raise ValueError(f"test must be 0 without a file of test puzzles, got {options['test']}")
    train, seed = options["train"], options["seed"]

    @cache
    def rows() -> InstanceSet:
        return read_instances(source, domain=domain)

    @cache
    def order() -> NDArray[np.int64]:
        return _row_order(len(rows()), train, seed, public=source == SUDOKU_EXTREME)

    def make(split: str) -> Arrays:
        if split == "validation" and validation_like is not None:
            puzzles = validation_like(num=options["validation"])
            return _tokens(puzzles, domain, split, options["images"], seed)
        if split == "test":
            found = read_instances(str(test_source), domain=domain)
            every, few = np.arange(len(found)), options["test"]
            taken = every if few is None else choose_rows(len(found), few, seed)
            trained = rows().subset(order()[:train])
            _refuse_shared(trained, found.subset(taken), name=str(test_source))
        else:
            first, num = (0, train) if split == "train" else (train, options["validation"])
            found, taken = rows(), order()[first : first + num]
        tokens = _tokens(found.subset(taken), domain, split, options["images"], seed)
        return {**tokens, "rows": taken}

    wanted = [s for s in SPLITS if options[s] != 0 and not (s == "test" and test_source is None)]
    pieces = {f"{split}-00000": partial(make, split) for split in wanted}
    notes = _index_notes if name == "sudoku-extreme" else None
    finish = partial(_finish_boards, name, domain, notes)
    sources = {"source": _named(source), "test_source": test_source and _named(test_source)}
    return BuildPlan(name=name, options={**sources, **options}, pieces=pieces, finish=finish)


def _row_order(num_rows: int, train: int, seed: int, *, public: bool) -> NDArray[np.int64]:
    """Rows in the order in which they are taken; the committed index first where it applies.

    That is: for the default number and seed, and the public set from the hub or a file as long.
    """
    order = choose_rows(num_rows, num_rows, seed)
    index = np.array(extreme_index())
    fits = num_rows == EXTREME_ROWS or (public and index.max() < num_rows)
    if not fits or train != len(index) or seed != 0:
        return order
    return np.concatenate([index, order[~np.isin(order, index)]])


def _refuse_shared(trained: InstanceSet, tested: InstanceSet, *, name: str) -> None:
    shared = np.isin(tested.keys, trained.keys)
    if shared.any():
        raise ValueError(
            f"{name}: {shared.sum()} of the {len(tested)} test puzzles are in {trained.name} too, "
            f"the first is number {shared.argmax()}"
        )


def _tokens(
    puzzles: InstanceSet, domain: PlanDomain, split: str, images: int, seed: int
) -> dict[str, Tokens]:
    """Inputs and labels; each training puzzle followed by its images."""
    if not len(puzzles):
        raise ValueError(f"{puzzles.name}: no puzzles for split {split!r}")
    codec = codec_of(domain.spec.name)
    inputs, labels = codec.encode(puzzles.instances, puzzles.solutions)
    if split == "train" and images:
        rng = np.random.default_rng([stream_key("supervised/images"), seed])
        pairs = np.repeat(np.stack([inputs, labels], axis=1)[:, None], images + 1, axis=1)
        for versions in pairs:
            for k in range(1, images + 1):
                versions[k] = codec.transform(codec.random_symmetry(rng), versions[0])
        pairs = pairs.reshape(-1, 2, inputs.shape[1])
        inputs, labels = pairs[:, 0], pairs[:, 1]
    return {"inputs": inputs, "labels": labels}


def _finish_boards(
    name: str,
    domain: PlanDomain,
    notes: Callable[[PlanDomain, Arrays], Mapping[str, Any]] | None,
    made: Mapping[str, Arrays],
) -> tuple[DatasetInfo, Arrays]:
    files: dict[str, NDArray[Any]] = {}
    counts: dict[str, int] = {}
    for split in SPLITS:
        pieces = [arrays for key, arrays in made.items() if key.startswith(f"{split}-")]
        if pieces:
            for part in pieces[0]:
                files[f"{split}/{part}.npy"] = np.concatenate([piece[part] for piece in pieces])
            counts[split] = len(files[f"{split}/inputs.npy"])
    found = notes(domain, files) if notes is not None else {}
    return info_of(codec_of(domain.spec.name), name=name, counts=counts, notes=found), files


def _index_notes(domain: PlanDomain, files: Arrays) -> Mapping[str, Any]:
    """Whether the training puzzles are those of the committed index."""
    return {"committed_index": np.array_equal(files["train/rows.npy"], extreme_index())}


def _queens_notes(domain: PlanDomain, files: Arrays) -> Mapping[str, Any]:
    """How far the test split is known from training: shares of its boards, and of unique ones."""
    if "test/inputs.npy" not in files:
        return {}
    inputs, labels = files["test/inputs.npy"], files["test/labels.npy"]
    trained = (files["train/inputs.npy"], files["train/labels.npy"])
    seen = {row.tobytes() for row in trained[0]}
    pairs = {row.tobytes() for row in np.hstack(trained)}
    n = round(inputs.shape[1] ** 0.5)
    boards, _ = codec_of(domain.spec.name).decode(inputs, labels)
    shares = {
        "test_pairs_in_train": [row.tobytes() in pairs for row in np.hstack([inputs, labels])],
        "test_inputs_in_train": [row.tobytes() in seen for row in inputs],
        "test_inputs_with_one_completion": count_completions(boards, n=n, limit=2) == 1,
    }
    return {name: round(float(np.mean(flags)), 4) for name, flags in shares.items()}


def _deal_solutions(num: int, seed: int) -> NDArray[np.int64]:
    """Index of the split of every solution: a fifth for test, a tenth for validation."""
    rank = np.random.default_rng([stream_key("queens/deal"), seed]).permutation(num)
    tested, held = -(-num // 5), -(-num // 10)
    return np.where(rank < tested, 2, np.where(rank < tested + held, 1, 0))


def _seed_of(seed: int, part: int) -> int:
    return stream_key(f"supervised/part/{seed}/{part}")


def _named(source: str) -> dict[str, str] | str:
    """A file by its name and content, so that a build never goes on with another one."""
    path = Path(source)
    if not path.is_file():
        return source
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
