"""What users are told while numba compiles a kernel that is not on the disk."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numba.core import event

from plan_envs.compiled import disk_cache
from plan_envs.sudoku.rules import Sudoku


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that has just begun; one that another test called in this process stays silent."""
    monkeypatch.setattr(disk_cache._ANNOUNCER, "said", True)
    monkeypatch.setattr(disk_cache, "_ANNOUNCER", disk_cache._Announcer())
    disk_cache.announce_compilation()
    yield
    event.unregister("numba:compile", disk_cache._ANNOUNCER)


def loaded(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fresh", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compiling_is_announced_once_and_loading_from_the_disk_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "fresh.py"
    source.write_text(
        "from numba import njit\n\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n\n\n"
        "@njit(cache=True)\ndef half(x):\n    return x / 2\n"
    )
    fresh = loaded(source)
    assert capsys.readouterr().err == ""
    assert (fresh.double(2), fresh.half(2)) == (4, 1)
    assert capsys.readouterr().err.count("compiling the environments' kernels") == 1
    disk_cache._ANNOUNCER.said = False
    assert loaded(source).double(2) == 4
    assert capsys.readouterr().err == ""


def test_kernels_that_were_used_before_are_not_announced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    board = np.zeros((1, 81), np.int8)
    Sudoku(9).action_mask(board, board)
    disk_cache._ANNOUNCER.said = False
    capsys.readouterr()
    Sudoku(9).action_mask(board, board)
    assert capsys.readouterr().err == ""


KEYS = "import numpy as np; from plan_envs.instances import content_keys; "
KEYS += "print(content_keys(np.zeros((1, 16), np.int8))[0])"
NOWHERE = """
import tempfile

def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")

tempfile.TemporaryFile = refuse  # what numba tries a folder with
"""


def start(code: str, cache: str) -> subprocess.Popen[str]:
    places = {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_compile_the_same_kernels_at_once_both_get_them_right(
    tmp_path: Path,
) -> None:
    for process in [start(KEYS, str(tmp_path)) for _ in range(2)]:
        out, err = process.communicate()
        assert out == "13908203925316237456\n", err
    kept = [file.name for file in tmp_path.rglob("*.*") if file.is_file()]
    assert any(name.startswith("instances.hash_rows-") for name in kept)
    assert {name.rpartition(".")[2] for name in kept} == {"nbi", "nbc"}  # nothing half written


def test_where_machine_code_can_be_kept_nowhere_a_command_says_so_in_one_line() -> None:
    command = "from trm.experiments.cli import main; main(['envs'])"
    process = start(NOWHERE + command, os.devnull)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: machine code can be kept neither beside the package nor")
    assert err.count("\n") == 1
