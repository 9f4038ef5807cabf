"""Instance sets of any domain: sizes, keys, files, memory."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_envs.instances import InstanceSet, content_keys, stream_key
from plan_envs.maze.instances import read_maze_csv
from plan_envs.queens.instances import read_queens_csv
from plan_envs.sudoku.instances import read_sudoku_csv, sudoku_instances
from plan_envs.sudoku.rules import Sudoku


def numbered(first: int, last: int, *, name: str = "numbered") -> InstanceSet:
    """Instances of three integers around a solution of two; instance n is rated n."""
    numbers = np.arange(first, last)
    instances = np.stack([numbers // 100, numbers % 100, 0 * numbers], axis=1)
    return InstanceSet.of(name, instances, instances[:, :2], numbers)


def ratings(pool: InstanceSet) -> list[int]:
    return pool.ratings.astype(int).tolist()


def consistent(pool: InstanceSet) -> bool:
    """Every row still has its own solution, rating and key."""
    number = pool.instances[:, 0].astype(int) * 100 + pool.instances[:, 1]
    return (
        np.array_equal(number, pool.ratings)
        and np.array_equal(pool.instances[:, :2], pool.solutions)
        and np.array_equal(pool.keys, content_keys(pool.instances))
    )


# ---- what a set holds


def test_an_instance_may_have_more_boards_than_its_solution() -> None:
    boards = np.array([[0, 1, 2, 0, 0, 0]], np.int8)
    wide = InstanceSet.of("wide", boards, boards[:, :3])
    assert wide.ratings.tolist() == [1]  # the blanks of the first board alone
    assert wide.keys != InstanceSet.of("narrow", boards[:, :3], boards[:, :3]).keys


def test_keys_are_the_same_on_every_machine() -> None:
    boards = np.array([[0] * 16, [1] + [0] * 15], np.int8)
    assert content_keys(boards).tolist() == [13908203925316237456, 1508982209933734677]
    assert stream_key("sudoku/9/train/0") == 4075745494693040994


@pytest.mark.parametrize(
    ("instances", "solutions", "ratings", "message"),
    [
        (np.zeros((2, 4)), np.zeros((3, 4)), None, r"set: .* got \[2, 4\] and \[3, 4\]"),
        (np.zeros(4), np.zeros((1, 4)), None, r"set: .* got \[4\] and \[1, 4\]"),
        (np.full((1, 4), 128), np.zeros((1, 4)), None, "set: instances must be integers"),
        (np.zeros((1, 4)), np.full((1, 4), 0.5), None, "set: solutions must be integers"),
        (np.zeros((2, 4)), np.zeros((2, 4)), [1], r"set: ratings must have shape \[2\], got \[1\]"),
        (np.zeros((2, 4)), np.zeros((2, 4)), [1, np.nan], "set: ratings: that of instance 1"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    instances: np.ndarray, solutions: np.ndarray, ratings: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceSet.of("set", instances, solutions, ratings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("instances", "solutions", "message"),
    [
        (
            np.zeros((1, 81)),
            np.zeros((1, 81)),
            r"set: instances .*batch, 16\], got .*1, 81\]",
        ),
        (
            np.zeros((1, 16)),
            np.zeros((1, 81)),
            r"set: solutions .*batch, 16\], got .*1, 81\]",
        ),
        (np.full((1, 16), 5), np.zeros((1, 16)), r"instances of sudoku4x4 must hold 0\.\.4, got 5"),
        (np.zeros((1, 16)), np.full((1, 16), -1), r"solutions of .* must hold 0\.\.4, got -1"),
    ],
)
def test_a_set_of_another_domain_is_refused(
    instances: np.ndarray, solutions: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceSet.of("set", instances, solutions).check_fits(Sudoku(4).spec)
    sudoku_instances(side=4, num=3).check_fits(Sudoku(4).spec)


def test_a_pool_of_100k_sudokus_takes_under_50_mb() -> None:
    few = sudoku_instances(num=1000, unique=False, blanks=(40, 50))
    boards = [np.tile(rows, (100, 1)) for rows in (few.instances, few.solutions)]
    pool = InstanceSet.of("many", *boards)
    part, front = (
        pool.subset(slice(0, 10)),
        InstanceSet.of("front", pool.instances[:10], few.solutions[:10]),
    )
    arrays = [pool.instances, pool.solutions, pool.ratings, pool.keys]
    assert sum(array.nbytes for array in arrays) == 100_000 * (81 + 81 + 4 + 8)  # 17.4 MB
    # An array that is a view would hold on to the memory of another.
    for one in (few, pool, part, front):
        for name in ("instances", "solutions", "ratings", "keys"):
            assert getattr(one, name).base is None, f"{name} of {one.name}"


# ---- parts of a set


def test_subset_keeps_rows_together() -> None:
    part = numbered(0, 20).subset([3, 1])
    assert ratings(part) == [3, 1] and consistent(part)


# ---- files


def same(one: InstanceSet, other: InstanceSet) -> bool:
    names = ("instances", "solutions", "ratings", "keys")
    equal = (np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return one.name == other.name and all(equal)


def test_a_saved_set_comes_back(tmp_path: Path) -> None:
    for pool in (sudoku_instances(num=20), numbered(0, 5), numbered(0, 0)):
        pool.save(tmp_path / "pool.npz")
        assert same(InstanceSet.load(tmp_path / "pool.npz"), pool)


def rewrite(path: Path, **changes: object) -> None:
    """Write the file again with other arrays; None leaves one out."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_a_file_of_the_first_version_has_no_keys_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.npz"
    numbered(0, 5).save(path)
    rewrite(path, keys=None)
    assert same(InstanceSet.load(path), numbered(0, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": np.zeros(5, np.uint64)}, "keys: they are not those of the instances"),
        ({"instances": np.zeros((5, 3), np.int8)}, "keys: they are not those of the instances"),
        ({"solutions": None}, r"not an InstanceSet, lacks \['solutions'\]"),
        ({"solutions": np.full((5, 2), 300)}, "numbered: solutions must be integers of -128..127"),
        ({"ratings": np.zeros(4)}, "numbered: ratings must have shape"),
        ({"ratings": np.array([object()])}, "ratings: damaged: Object arrays cannot be loaded"),
    ],
)
def test_a_file_with_a_wrong_field_is_refused_by_file_and_field(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "wrong.npz"
    numbered(0, 5).save(path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        InstanceSet.load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["name", "instances", "solutions", "ratings", "keys"])
def test_a_damaged_field_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "damaged.npz"
    numbered(0, 5).save(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{field}.npy").header_offset
    content[start + 80] ^= 255  # within the compressed array
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^.*damaged\.npz: {field}: damaged: [^\n]*$"):
        InstanceSet.load(path)


@given(place=st.floats(0, 1), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_in_one_line_or_unharmed(
    tmp_path_factory: pytest.TempPathFactory, place: float, flip: int, cut: bool
) -> None:
    path, pool = tmp_path_factory.getbasetemp() / "flipped.npz", numbered(0, 5)
    pool.save(path)
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    content[at] ^= flip
    path.write_bytes(content[:at] if cut else content)
    try:
        assert same(InstanceSet.load(path), pool)  # a date, say
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "puzzles.csv"
    path.write_text("question\n1234\n")
    with pytest.raises(ValueError, match=r"puzzles\.csv: not an \.npz file"):
        InstanceSet.load(path)
    with pytest.raises(FileNotFoundError):
        InstanceSet.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ('\n".Q.\n', ":2: not readable as CSV: unexpected end of data"),
        ('\n".Q."x\n', ":2: not readable as CSV: ',' expected after '\"'"),
        (f"\n{'.' * 131_073}\n", r":2: not readable as CSV: field larger than field limit"),
        ('"\n', ":1: header must name|:1: not readable as CSV: "),
        ("\n.\0Q.\n", ":2: "),
        ("\n.Q\r.Q\n", ":2: "),
        ("\n\xe9\n", ":1: not readable as CSV: 'utf-8' codec can't decode"),
    ],
    ids=["open quote", "closed too soon", "long field", "header", "NUL", "return", "not UTF-8"],
)
@pytest.mark.parametrize(
    ("read", "column"),
    [(read_queens_csv, "board"), (read_sudoku_csv, "question"), (read_maze_csv, "question")],
)
def test_what_pythons_csv_refuses_is_an_error_of_one_line_that_names_the_place(
    read: Callable[[Path], Any], column: str, rest: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(f"{column}{rest}".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^.*table\.csv({reason})") as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
