"""Sudoku instances: solver against brute force, generator laws, splits, symmetries, reading and
printing."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.instances import SPLITS
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.instances import (
    count_solutions,
    format_line,
    parse_puzzle,
    read_sudoku_csv,
    solve,
    split_of,
    sudoku_instances,
)
from plan_envs.sudoku.rules import Sudoku
from plan_envs.testing import check_symmetry, random_states

SIDES = tuple(BOX_SHAPES)


def peers_of(side: int) -> list[list[int]]:
    """Cells that share a row, column or box, written out cell by cell."""
    height, width = BOX_SHAPES[side]
    cells = list(product(range(side), repeat=2))
    return [
        [
            i
            for i, (r, c) in enumerate(cells)
            if (r, c) != (row, column)
            and (
                r == row
                or c == column
                or (r // height, c // width) == (row // height, column // width)
            )
        ]
        for row, column in cells
    ]


def brute_force(puzzle: np.ndarray, side: int) -> list[tuple[int, ...]]:
    """All solutions, cell after cell in reading order, without any propagation."""
    peers = peers_of(side)
    board = [int(v) for v in puzzle]
    if any(v and any(board[p] == v for p in peers[c]) for c, v in enumerate(board)):
        return []
    blanks = [c for c, v in enumerate(board) if v == 0]
    found = []

    def fill(k: int) -> None:
        if k == len(blanks):
            found.append(tuple(board))
            return
        cell = blanks[k]
        for value in range(1, side + 1):
            if all(board[p] != value for p in peers[cell]):
                board[cell] = value
                fill(k + 1)
        board[cell] = 0

    fill(0)
    return found


def all_grids_4x4() -> np.ndarray:
    """The solved 4x4 grids, from all arrangements of four permutation rows."""
    rows = list(permutations(range(1, 5)))
    grids = []
    for stack in product(rows, repeat=4):
        if any(len({row[c] for row in stack}) < 4 for c in range(4)):
            continue
        boxes = [
            {stack[r + i][c + j] for i in (0, 1) for j in (0, 1)} for r in (0, 2) for c in (0, 2)
        ]
        if all(len(box) == 4 for box in boxes):
            grids.append([v for row in stack for v in row])
    return np.array(grids, np.int8)


def random_partial(side: int, blanks: int, seed: int, wrong: int = 0) -> np.ndarray:
    """A solved grid with random blanks and `wrong` random digits written over the rest."""
    rng = np.random.default_rng(seed)
    board = sudoku_instances(side=side, num=1, seed=seed).solutions[0].copy()
    cells = rng.permutation(side * side)
    board[cells[:blanks]] = 0
    board[cells[blanks : blanks + wrong]] = rng.integers(1, side + 1, wrong)
    return board


# ---- solver


def test_there_are_288_solved_4x4_grids_and_the_solver_counts_them() -> None:
    grids = all_grids_4x4()
    assert len(grids) == 288
    empty = np.zeros((1, 16), np.int8)
    assert count_solutions(empty, side=4, limit=1000).tolist() == [288]
    assert (count_solutions(grids, side=4) == 1).all()


@given(seed=st.integers(0, 10_000), blanks=st.integers(0, 16), wrong=st.integers(0, 3))
def test_the_solver_counts_what_brute_force_finds_on_4x4(
    seed: int, blanks: int, wrong: int
) -> None:
    puzzle = random_partial(4, blanks, seed, min(wrong, 16 - blanks))
    solutions = brute_force(puzzle, 4)
    assert count_solutions(puzzle[None], side=4, limit=1000)[0] == len(solutions)
    if solutions:
        assert tuple(solve(puzzle[None], side=4)[0].tolist()) in solutions


@given(seed=st.integers(0, 10_000), blanks=st.integers(10, 24), wrong=st.integers(0, 1))
def test_the_solver_counts_what_brute_force_finds_on_6x6(
    seed: int, blanks: int, wrong: int
) -> None:
    puzzle = random_partial(6, blanks, seed, wrong)
    solutions = brute_force(puzzle, 6)
    assert count_solutions(puzzle[None], side=6, limit=100_000)[0] == len(solutions)
    if solutions:
        assert tuple(solve(puzzle[None], side=6)[0].tolist()) in solutions


def test_there_are_28200960_solved_6x6_grids_counted_from_a_fixed_first_row_and_box() -> None:
    # Relabelling fixes the first row (6! = 720 ways); what is left must number 28,200,960 / 720.
    board = np.zeros((1, 36), np.int8)
    board[0, :6] = range(1, 7)
    assert count_solutions(board, side=6, limit=10**9)[0] == 28_200_960 // 720


def test_counting_stops_at_the_limit() -> None:
    empty = np.zeros((2, 81), np.int8)
    assert count_solutions(empty, side=9, limit=5).tolist() == [5, 5]


def test_solve_names_the_puzzle_without_a_solution_and_the_conflict() -> None:
    good = sudoku_instances(side=4, num=1).instances
    bad = np.zeros((1, 16), np.int8)
    bad[0, [4, 6]] = 3
    with pytest.raises(ValueError, match=r"puzzle 1 .*3 twice in row 2"):
        solve(np.concatenate([good, bad]), side=4)


# ---- generator


@pytest.mark.parametrize(
    ("side", "givens", "num"),
    [
        (4, (4, 9), 100),
        (6, (9, 20), 50),
        (9, (17, 60), 50),
        (9, (26, 28), 200),
        (16, (130, 140), 3),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_generated_puzzles_are_unique_with_the_stated_solution_and_count(
    side: int, givens: tuple[int, int], num: int, split: str
) -> None:
    puzzles = sudoku_instances(side=side, split=split, num=num, givens=givens)
    assert (count_solutions(puzzles.instances, side=side) == 1).all()
    assert np.array_equal(solve(puzzles.instances, side=side), puzzles.solutions)
    shown = (puzzles.instances > 0).sum(axis=1)
    assert shown.min() >= givens[0] and shown.max() <= givens[1]
    assert np.array_equal(puzzles.ratings, side * side - shown)
    assert set(split_of(puzzles.solutions, side=side, instances=puzzles.instances)) == {split}


def test_4x4_puzzles_are_unique_by_brute_force_too() -> None:
    puzzles = sudoku_instances(side=4, num=60, givens=(4, 8))
    for puzzle, solution in zip(puzzles.instances, puzzles.solutions, strict=True):
        assert brute_force(puzzle, 4) == [tuple(solution.tolist())]


def test_blanks_are_drawn_uniformly_and_non_unique_puzzles_keep_their_solution() -> None:
    puzzles = sudoku_instances(side=4, num=3000, blanks=(6, 8), unique=False)
    counts = np.bincount((puzzles.instances == 0).sum(axis=1), minlength=9)
    assert counts[:6].sum() == 0 and (abs(counts[6:9] - 1000) < 120).all()  # 4.6 sigma
    kept = (puzzles.instances == 0) | (puzzles.instances == puzzles.solutions)
    assert kept.all() and (count_solutions(puzzles.solutions, side=4) == 1).all()
    assert (count_solutions(puzzles.instances, side=4) > 1).any()


def test_4x4_grids_are_drawn_uniformly() -> None:
    # All puzzles with one given are symmetric, so one split has them all and accepts every grid.
    given = np.eye(16, dtype=np.int8)[:1]
    (split,) = split_of(solve(given, side=4), side=4, instances=given)
    pool = sudoku_instances(side=4, split=split, num=14_400, givens=(1, 1), unique=False)
    counts = np.unique(pool.solutions, axis=0, return_counts=True)[1]
    assert len(counts) == 288
    assert ((counts - 50.0) ** 2 / 50.0).sum() < 287 + 5 * 24  # chi-square, 5 sigma


@pytest.mark.parametrize("side", SIDES)
def test_a_set_begins_with_every_smaller_set_of_the_same_seed(side: int) -> None:
    large = sudoku_instances(side=side, num=6, seed=3)
    small = sudoku_instances(side=side, num=4, seed=3, progress=side == 9)
    assert np.array_equal(large.instances[:4], small.instances)
    assert np.array_equal(large.keys[:4], small.keys)


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}, {"givens": (25, 28)}])
def test_seeds_splits_and_options_have_independent_streams(change: dict[str, object]) -> None:
    base = sudoku_instances(num=50)
    other = sudoku_instances(num=50, **change)  # type: ignore[arg-type]
    assert not set(base.keys.tolist()) & set(other.keys.tolist())


def test_generated_puzzles_stay_what_they_were() -> None:
    # A change here changes every seeded result: bump the ids and say so in the changelog.
    assert format_line(sudoku_instances(side=4, num=1).instances, 4) == "...11..3.2.4.1.2"
    assert format_line(sudoku_instances(num=1).instances, 9) == (
        "6.....1.3...9...2.7...2....45.....7.....8...2..3.4..19..8.7.69416.8....7.....43.."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 5}, "side must be one of 4, 6, 9, 16, got 5"),
        ({"split": "dev"}, "split must be one of .*got 'dev'"),
        ({"num": -1}, "num"),
        ({"seed": -1}, "seed"),
        ({"givens": (26, 28), "blanks": (1, 4)}, "one of givens and blanks"),
        (
            {"givens": (16, 20)},
            r"givens of a 9x9 puzzle .* 17 <= low <= high <= 80, got \(16, 20\)",
        ),
        ({"blanks": (50, 65)}, r"blanks of a 9x9 puzzle .* 1 <= low <= high <= 64, got \(50, 65\)"),
        ({"givens": (28, 26)}, "low <= high"),
        ({"givens": 27}, r"givens .* must be a pair \(low, high\), got 27"),
        (
            {"side": 4, "split": "test", "blanks": (1, 1), "unique": False},
            "no 4x4 puzzle of split 'test' with 15-15 givens",
        ),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sudoku_instances(**{"num": 1, **options})  # type: ignore[arg-type]


# ---- splits and symmetries


@given(seed=st.integers(0, 2**32), side=st.sampled_from(SIDES))
def test_symmetric_images_keep_split_solution_and_uniqueness(seed: int, side: int) -> None:
    puzzles = sudoku_instances(side=side, num=2, seed=seed % 5)
    symmetry = Sudoku(side).random_symmetry(np.random.default_rng(seed))
    images, solutions = symmetry.instances(puzzles.instances), symmetry.plans(puzzles.solutions)
    assert (count_solutions(images, side=side) == 1).all()
    assert np.array_equal(solve(images, side=side), solutions)
    assert set(split_of(solutions, side=side, instances=images)) == {"train"}


@pytest.mark.parametrize(
    "domain",
    [Sudoku(side, codec) for side in SIDES for codec in ("digits", "tokens")],
    ids=lambda domain: f"{domain.side}-{domain.codec}",
)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5)
def test_symmetries_commute_with_mask_edit_and_checker(domain: Sudoku, seed: int) -> None:
    rng = np.random.default_rng(seed)
    puzzles = sudoku_instances(side=domain.side, num=2, seed=seed % 5)
    states = random_states(domain, puzzles.instances, rng, max_edits=8)
    check_symmetry(domain, states, domain.random_symmetry(rng))


@pytest.mark.parametrize(("side", "transposed"), [(4, True), (6, False), (9, True)])
def test_random_symmetries_reach_every_place_and_every_digit(side: int, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    found = [Sudoku(side).random_symmetry(rng) for _ in range(1000)]
    assert {(cell, image) for s in found for cell, image in enumerate(s.cells.tolist())} == set(
        product(range(side * side), repeat=2)
    )
    digits = {(digit, image) for s in found for digit, image in enumerate(s.values.tolist())}
    assert digits == {(0, 0), *product(range(1, side + 1), repeat=2)}
    # Cells 0 and 1 stay neighbours in a row, unless the board was transposed.
    columns = {int(s.cells[0]) % side == int(s.cells[1]) % side for s in found}
    assert columns == ({False, True} if transposed else {False})


def test_4x4_splits_share_no_puzzle_up_to_symmetry() -> None:
    # Independent canonical form: the smallest of all 128 x 24 images, from every row and column
    # order.
    def canonical(puzzle: np.ndarray) -> tuple[int, ...]:
        grid = puzzle.reshape(4, 4)
        orders = [o for o in permutations(range(4)) if o[0] // 2 == o[1] // 2]
        images = []
        for base in (grid, grid.T):
            for rows, columns in product(orders, repeat=2):
                flat = base[np.ix_(rows, columns)].ravel().tolist()
                names = {0: 0}
                images.append(tuple(names.setdefault(v, len(names)) for v in flat))
        return min(images)

    seen = {}
    for split in SPLITS:
        pool = sudoku_instances(side=4, split=split, num=60, blanks=(2, 4), unique=False)
        seen[split] = {canonical(puzzle) for puzzle in pool.instances}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize("side", [4, 6, 9])
def test_splits_have_shares_of_about_eight_to_one_to_one(side: int) -> None:
    # Solving puzzles with many solutions leads to grids of any class.
    if side == 4:
        rng = np.random.default_rng(0)
        grids = all_grids_4x4()[rng.integers(288, size=4000)]
        puzzles = np.where(rng.random(grids.shape) < 0.4, 0, grids).astype(np.int8)
    else:
        few = (side, side)
        puzzles = sudoku_instances(side=side, num=1500, givens=few, unique=False).instances
        grids = solve(puzzles, side=side)
    splits = split_of(grids, side=side, instances=puzzles)
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert abs(shares[0] - 0.8) < 0.06 and min(shares) > 0.06


def test_split_of_4x4_needs_the_puzzles() -> None:
    with pytest.raises(ValueError, match="pass instances"):
        split_of(np.ones((1, 16), np.int8), side=4)


# ---- what the domain says of instances


@given(seed=st.integers(0, 2**32), side=st.sampled_from(SIDES))
def test_plans_on_the_way_have_the_blanks_asked_for_and_the_same_solution(
    seed: int, side: int
) -> None:
    rng, domain = np.random.default_rng(seed), Sudoku(side)
    puzzles = sudoku_instances(side=side, num=4, seed=seed % 5)
    blanks = domain.distance(puzzles.instances)
    assert np.array_equal(blanks, puzzles.ratings)
    wanted = rng.integers(0, blanks.max() + 3, len(puzzles))
    easier = domain.advance(puzzles.instances, puzzles.solutions, wanted, rng)
    assert np.array_equal(domain.distance(easier), np.minimum(wanted, blanks))
    assert domain.keeps_instance(puzzles.instances, easier).all()
    assert domain.keeps_instance(easier, puzzles.solutions).all()


def test_plans_on_the_way_fill_every_blank_equally_often() -> None:
    rng, domain = np.random.default_rng(0), Sudoku(4)
    puzzle = sudoku_instances(side=4, num=1, blanks=(8, 8)).subset([0] * 4000)
    easier = domain.advance(puzzle.instances, puzzle.solutions, np.full(4000, 2), rng)
    shown = (easier > puzzle.instances).mean(axis=0)[puzzle.instances[0] == 0]
    assert (abs(shown - 0.75) < 0.035).all()  # 5 sigma


def test_a_plan_keeps_its_instance_as_long_as_no_given_is_changed_or_erased() -> None:
    domain, puzzle = Sudoku(4), parse_puzzle("1...............")
    plans = [parse_puzzle(text + "." * 14)[0] for text in ("1.", "12", "2.", "..", ".1")]
    kept = domain.keeps_instance(np.repeat(puzzle, 5, axis=0), np.stack(plans))
    assert kept.tolist() == [True, True, False, False, False]


# ---- text


@given(seed=st.integers(0, 2**32), side=st.sampled_from(SIDES))
def test_printed_puzzles_read_back(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    board = rng.integers(0, side + 1, side * side).astype(np.int8)
    line = format_line(board, side)
    rows = [line[start : start + side] for start in range(0, side * side, side)]
    for text in (line, "\n".join(rows), " | ".join(rows), line.replace(".", "_").lower()):
        assert np.array_equal(parse_puzzle(text)[0], board)


@pytest.mark.parametrize(
    ("text", "side", "message"),
    [
        ("1234", None, "16, 36, 81, 256 cells, got 4"),
        ("1234" * 4, 9, "9x9 puzzle has 81 cells, got 16"),
        ("12x4" + "." * 12, None, "'x' at row 1, column 3"),
        ("..." + "5" + "." * 12, None, "'5' at row 1, column 4"),
        ("." * 15 + "²", None, "'²' at row 4, column 4"),
    ],
)
def test_a_malformed_puzzle_is_refused_with_its_place(
    text: str, side: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_puzzle(text, side=side)


# ---- files

HEADER = "source,question,answer,rating\n"
QUESTION = "1.....3..4.....2"
ANSWER = "1324423124133142"


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "puzzles.csv"
    path.write_text(header + "".join(row + "\n" for row in rows))
    return path


def test_a_file_of_puzzles_is_read_and_missing_answers_are_solved(tmp_path: Path) -> None:
    assert brute_force(parse_puzzle(QUESTION)[0], 4) == [tuple(map(int, ANSWER))]
    dotted = write(tmp_path, f"mine,{QUESTION},{ANSWER},7", f"mine,{QUESTION.replace('.', '0')},,")
    puzzles = read_sudoku_csv(dotted)
    assert puzzles.name == "puzzles.csv" and puzzles.ratings.tolist() == [7, 12]
    assert format_line(puzzles.solutions[1], 4) == ANSWER
    assert len(read_sudoku_csv(dotted, limit=1)) == 1
    only = write(tmp_path, QUESTION, header="question\n")
    assert format_line(read_sudoku_csv(only).solutions, 4) == ANSWER


def test_several_solutions_are_read_only_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, f"mine,{'.' * 16},,0")
    with pytest.raises(ValueError, match="several solutions"):
        read_sudoku_csv(path)
    assert len(read_sudoku_csv(path, require_unique=False)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"s,{QUESTION},{ANSWER[:-1]},0", "answer: a 4x4 puzzle has 16 cells, got 15"),
        (f"s,{QUESTION},{ANSWER[:-1]}.,0", "answer has blanks"),
        (f"s,{QUESTION},{'1234341221434321'},0", "answer does not solve the question"),
        (f"s,{QUESTION},{ANSWER},hard", "rating must be a number, got 'hard'"),
        (f"s,{QUESTION},{ANSWER},nan", "rating must be a number, got 'nan'"),
        (f"s,{QUESTION},{ANSWER},0,extra", "more fields than the header"),
        (f"s,{QUESTION[:-1]}?,{ANSWER},0", "question: '\\?' at row 4, column 4"),
        (f"s,{QUESTION[:-1]},{ANSWER},0", "question: a 4x4 puzzle has 16 cells, got 15"),
        ("s,11..............,,0", r"conflicting givens \(1 twice in row 1\)"),
        ("s,12..34..........,,0", "several solutions"),
        ("s,12....3...4.....,,0", "no solution"),
        (f's,"{QUESTION},{ANSWER},0', "not readable as CSV"),
    ],
)
def test_a_malformed_row_is_refused_with_file_line_field_and_value(
    tmp_path: Path, row: str, message: str
) -> None:
    path = write(tmp_path, f"s,{QUESTION},{ANSWER},0", row)
    with pytest.raises(ValueError, match=message) as error:
        read_sudoku_csv(path)
    assert "puzzles.csv:3: " in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_the_columns_or_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"puzzles.csv:1: header must name .*got \['grid'\]"):
        read_sudoku_csv(write(tmp_path, QUESTION, header="grid\n"))
    with pytest.raises(ValueError, match="no puzzles"):
        read_sudoku_csv(write(tmp_path))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(HEADER.encode() + b"\xff\xfe\x00\n")
    with pytest.raises(ValueError, match=r"binary\.csv:"):
        read_sudoku_csv(binary)
