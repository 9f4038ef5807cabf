"""Whatever a file holds, its reader raises its declared error, in one line, or reads it.

Inputs are bytes, texts and mutations of what a writer wrote. CI tries a few of each; `make fuzz`
sets FUZZ_EXAMPLES to 100,000.
"""

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_cases import build_here
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_envs.arc.rules import Arc
from plan_envs.arc.tasks import load_arc
from plan_envs.catalogue import resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.maze.instances import read_maze_csv
from plan_envs.queens.instances import queens_instances, read_queens_csv
from plan_envs.sudoku.instances import read_sudoku_csv
from supervised.data_sets.datasets import read_array
from supervised.data_sets.folders import read_info
from supervised.planner.cache_manifest import read_manifest
from supervised.planner.shards import Shard
from trm.bounded import parse_array, parse_json
from trm.experiments.records import parse_record, records_in_file
from trm.runs.checkpoints import _state_of, _weights_of
from trm.runs.files import json_bytes, read_json
from trm.runs.metrics_log import MetricsLog
from trm.runs.packing import pack_state
from trm.runs.recipe import load_recipe
from trm.runs.run import Run
from upi_trm.recipe import UpiRecipe

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))

Mutation = tuple[str, float, bytes]
"""What is done, where (share of the length), and the bytes that it needs."""

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([b"[" * 400, b"{", b"\x00", b"-", b"1e99"]),
    ),
    min_size=1,
    max_size=4,
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([2**40, -1, 10**400, "x" * 500]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutated(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    for kind, share, piece in mutations:
        place = int(share * len(data))
        match kind:
            case "flip" if data:
                changed = bytes([data[place] ^ (piece[0] or 1)])
                data = data[:place] + changed + data[place + 1 :]
            case "cut":
                data = data[:place]
            case "insert":
                data = data[:place] + piece + data[place:]
            case "overwrite":
                data = data[:place] + piece + data[place + len(piece) :]
            case "repeat":
                data = data[:place] + data[place : place + 40] * 3 + data[place:]
    return data


def edited(record: dict[str, Any], field: int, value: Any) -> dict[str, Any]:
    """The record with another value in one of its fields."""
    return record | {sorted(record)[field % len(record)]: value}


def declared(read: Callable[[], Any]) -> None:
    """Call a reader; only `ValueError` and `OSError` may come out, with a message of one line."""
    try:
        read()
    except (ValueError, OSError) as error:
        message = str(error).strip()
        assert message and "\n" not in message, message
        assert len(message) < 2000, message


# --- Files as bytes


@cache
def written(what: str) -> bytes:
    """What a writer of the project wrote."""
    buffer = io.BytesIO()
    match what:
        case "set":
            np.savez(
                buffer,
                name=np.array("a set"),
                instances=np.zeros((3, 16), np.int8),
                solutions=np.ones((3, 16), np.int8),
                ratings=np.zeros(3, np.float32),
            )
        case "array":
            np.save(buffer, np.arange(6, dtype=np.uint8).reshape(2, 3))
        case "state":
            torch.save(pack_state({"a": torch.ones(2), "rng": np.random.default_rng(0)}), buffer)
        case "weights":
            import safetensors.torch

            return safetensors.torch.save({"w": torch.ones(3), "b": torch.zeros(2)})
        case "metrics":
            return b'{"step": 1, "a": 0.5}\n{"step": 2, "a": "nan"}\n'
        case "record":
            return json.dumps({"env": "e", "num_instances": 3, "curve": [[1, 0.5]]}).encode()
        case "tag":
            return json_bytes({"format_version": 2, "step": 3})
        case "task":
            pair = {"input": [[1, 2], [3, 4]], "output": [[0]]}
            return json.dumps({"train": [pair, pair], "test": [pair]}).encode()
        case "recipe":
            return b"rollout:\n  plans: 8\n  steps: &s 2\nevaluator: {gamma: 0.9}\nlist: [*s, *s]\n"
        case "sudoku csv":
            return b"source,question,answer,rating\na,1234341221434321,1234341221434321,0\n"
        case "maze csv":
            return b'source,question,answer,rating\na,"S  ### G ",,\n'
        case "queens csv":
            return b"board\n.Q.....QQ.....Q.\n"
    return buffer.getvalue()


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "set": (".npz", InstanceSet.load),
    "array": (".npy", read_array),
    "state": (".pt", lambda path: _state_of(path, path.read_bytes())),
    "weights": (".safetensors", lambda path: _weights_of(path, path.read_bytes())),
    "metrics": (".jsonl", lambda path: _lines_of(path)),
    "record": (".json", lambda path: [parse_record(r, source="r") for r in records_in_file(path)]),
    "tag": (".json", read_json),
    "task": (".json", load_arc),
    "recipe": (".yaml", lambda path: load_recipe(UpiRecipe, path)),
    "sudoku csv": (".csv", read_sudoku_csv),
    "maze csv": (".csv", read_maze_csv),
    "queens csv": (".csv", read_queens_csv),
}


def _lines_of(path: Path) -> Any:
    path.replace(path.with_name("metrics.jsonl"))
    return MetricsLog(path.parent).read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all inputs, in memory where there is such a place."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_was_mutated_is_read_or_refused_in_one_line(what: str, folder: Path) -> None:
    suffix, read = FILES[what]
    path = folder / f"input{suffix}"

    @settings(max_examples=EXAMPLES)
    @given(MUTATIONS)
    def law(mutations: list[Mutation]) -> None:
        path.write_bytes(mutated(written(what), mutations))
        declared(lambda: read(path))

    law()


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_any_bytes_is_read_or_refused_in_one_line(what: str, folder: Path) -> None:
    suffix, read = FILES[what]
    path = folder / f"input{suffix}"

    @settings(max_examples=EXAMPLES // 4)
    @given(st.binary(max_size=60))
    def law(data: bytes) -> None:
        path.write_bytes(data)
        declared(lambda: read(path))

    law()


def test_a_set_with_a_mutated_member_is_read_or_refused_in_one_line(folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(written("set"))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = folder / "members.npz"

    @settings(max_examples=EXAMPLES)
    @given(st.sampled_from(sorted(members)), MUTATIONS)
    def law(name: str, mutations: list[Mutation]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, mutated(data, mutations) if member == name else data)
        declared(lambda: InstanceSet.load(path))

    law()


# --- Records with a field of another kind, hashes fitting


RECORDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run.json": ("run", Run.open),
    "cache.json": ("cache", read_manifest),
    "dataset.json": ("data set", read_info),
    "checkpoint.json": ("checkpoint", lambda path: Run.open(path).load_checkpoint()),
}


@pytest.fixture(scope="module")
def written_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, as its writer left it."""
    import fault_suite

    base = tmp_path_factory.mktemp("written")
    fault_suite.prepare_saved(base / "run")
    fault_suite.build_data(base / "data set")
    build_here(base / "cache", shards=0)
    return {
        "run.json": base / "run",
        "checkpoint.json": base / "run",
        "dataset.json": base / "data set",
        "cache.json": base / "cache",
    }


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_any_value_in_a_field_is_read_or_refused_in_one_line(
    name: str, written_folders: dict[str, Path]
) -> None:
    read, path = RECORDS[name][1], written_folders[name]
    file = (
        path / "checkpoints" / "step-000000003" / name if name == "checkpoint.json" else path / name
    )
    before = file.read_bytes()
    record = json.loads(before)
    sealed = record.pop("sha256", None) is not None

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, 30), VALUES)
    def law(field: int, value: Any) -> None:
        other = edited(record, field, value)
        file.write_bytes(json_bytes(other) if sealed else json.dumps(other).encode())
        declared(lambda: read(path))

    law()
    file.write_bytes(before)


# --- Texts


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=60) | st.text(alphabet='[]{}",:0123456789.e-', max_size=300))
def test_json_of_any_text_is_read_or_refused(text: str) -> None:
    declared(lambda: parse_json(text))


@settings(max_examples=EXAMPLES)
@given(st.text(alphabet="abcrolutpns.=[]{}&*:-, 0", max_size=60) | st.text(max_size=30))
def test_an_override_of_any_text_is_read_or_refused(text: str) -> None:
    declared(lambda: load_recipe(UpiRecipe, None, [text]))


@pytest.mark.parametrize("env", ["sudoku4x4", "nqueens8", "maze10"])
def test_a_puzzle_of_any_text_is_read_or_refused(env: str) -> None:
    domain = resolve_task(env).domain
    alphabet = "0123456789.SG#Qx_-|+ \n*"

    @settings(max_examples=EXAMPLES)
    @given(st.text(alphabet=alphabet, max_size=120) | st.text(max_size=40))
    def law(text: str) -> None:
        declared(lambda: domain.read_instance(text))

    law()


@settings(max_examples=EXAMPLES)
@given(MUTATIONS)
def test_an_arc_task_of_any_text_is_read_or_refused(mutations: list[Mutation]) -> None:
    text = mutated(written("task"), mutations).decode(errors="replace")
    declared(lambda: Arc(size=5, demonstrations=2).read_instance(text))


# --- Those that once took all memory, all time, or the process


def test_brackets_nested_ten_thousand_deep_are_refused_by_every_reader_of_json(
    tmp_path: Path, written_folders: dict[str, Path]
) -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    for name in ("run.json", "dataset.json", "cache.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b'{"a": ' + deep + b"}")
        with pytest.raises(ValueError, match=f"{name}: .*nested deeper than 64 levels"):
            RECORDS[name][1](folder)
    (tmp_path / "task.json").write_bytes(deep)
    with pytest.raises(ValueError, match=r"task\.json: not valid JSON: nested deeper"):
        load_arc(tmp_path / "task.json")
    (tmp_path / "recipe.yaml").write_bytes(b"a: " + deep)
    with pytest.raises(ValueError, match=r"recipe\.yaml: nested deeper than 32 levels"):
        load_recipe(UpiRecipe, tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"--set: .*5001 names, at most 32 are read"):
        load_recipe(UpiRecipe, None, ["a" + ".a" * 5000 + "=1"])
    with pytest.raises(ValueError, match=r"--set: .*nested deeper than 32 levels"):
        load_recipe(UpiRecipe, None, [f"a={deep.decode()}"])


def test_brackets_inside_of_strings_do_not_count_as_depth() -> None:
    assert parse_json(json.dumps({"a": "[" * 500, "b": '"' + "{" * 500})) is not None


def test_aliases_that_stand_for_a_million_values_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for k in range(1, 8):
        lines.append(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]")
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="more than 100000 values with aliases written out"):
        load_recipe(UpiRecipe, tmp_path / "recipe.yaml")


@pytest.mark.parametrize("read", [lambda p: load_recipe(UpiRecipe, p), read_json])
def test_a_device_without_end_is_refused(read: Callable[[Path], Any]) -> None:
    with pytest.raises(ValueError, match="/dev/zero: larger than"):
        read(Path("/dev/zero"))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/dev/zero:1: longer than 1 MiB"):
        read_queens_csv("/dev/zero")


def test_an_array_that_claims_more_than_it_holds_is_refused_before_memory_is_taken() -> None:
    buffer = io.BytesIO()
    header = {"descr": "|i1", "fortran_order": False, "shape": (10 * 2**30,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with pytest.raises(ValueError, match="its header asks for 10737418240 bytes where 4 follow"):
        parse_array(buffer.getvalue() + b"1234")


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.npz"
    queens_instances(n=8, num=200).save(path)
    from trm import bounded

    small = bounded.Limit(kind=bounded.ARRAYS.kind, size=2 * bounded.MIB // 1000)
    monkeypatch.setattr(bounded, "ARRAYS", small)
    with pytest.raises(ValueError, match=r"set\.npz: unpacks to \d+ bytes, at most 2097 bytes"):
        InstanceSet.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 2**40}, r"\d+ shards, at most 100000 are read"),
        ({"shard_examples": 0}, "shard_examples is 0, expected a positive integer"),
        ({"shard_examples": None}, "shard_examples is None, expected a positive integer"),
        ({"teacher": 3}, "teacher is 3, expected text"),
    ],
)
def test_a_cache_of_impossible_size_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    build_here(tmp_path / "cache", shards=0)
    file = tmp_path / "cache" / "cache.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"cache\.json: damaged: {message}"):
        read_manifest(tmp_path / "cache")


def test_a_shard_of_any_bytes_is_refused(tmp_path: Path) -> None:
    build_here(tmp_path / "cache", shards=1)
    manifest = read_manifest(tmp_path / "cache")
    file = tmp_path / "cache" / "shards" / "shard-00000.safetensors"
    data = file.read_bytes()

    @settings(max_examples=EXAMPLES)
    @given(MUTATIONS)
    def law(mutations: list[Mutation]) -> None:
        file.write_bytes(mutated(data, mutations))
        declared(lambda: Shard(file, manifest, 0).arrays())

    law()
