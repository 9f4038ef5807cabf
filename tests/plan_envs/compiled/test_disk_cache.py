"""Whether numba keeps machine code on the disk, asked of the kernels themselves."""

import importlib.util
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
