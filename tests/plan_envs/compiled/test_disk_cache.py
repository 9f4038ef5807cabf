"""Whether numba keeps machine code on the disk, asked of the kernels themselves."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plan_envs.compiled import disk_cache
from plan_envs.instances import content_keys
from plan_envs.sudoku import kernels as sudoku_kernels
from plan_envs.sudoku.rules import Sudoku


def test_a_kernel_that_was_compiled_is_in_the_disk_cache() -> None:
    board = np.zeros((1, 81), np.int8)
    content_keys(board)
    Sudoku(9).action_mask(board, board)
    assert disk_cache.in_disk_cache()
    assert disk_cache.in_disk_cache(sudoku_kernels.write_masks)


def test_a_kernel_that_was_never_compiled_is_not(tmp_path: Path) -> None:
    source = tmp_path / "fresh.py"
    source.write_text(
        "from numba import njit\n\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n"
    )
    spec = importlib.util.spec_from_file_location("fresh", source)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert not disk_cache.in_disk_cache(fresh.double)
    assert fresh.double(2) == 4
    assert disk_cache.in_disk_cache(fresh.double)


def test_the_first_use_on_a_machine_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk_cache.announce_compilation()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(disk_cache, "in_disk_cache", lambda: False)
    disk_cache.announce_compilation()
    assert "compiling the environments' kernels" in capsys.readouterr().err


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
