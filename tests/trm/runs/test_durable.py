"""Files that are old or new and never half of each."""

import errno
import os
from pathlib import Path

import pytest
from run_cases import (
    failing,
)

from trm.runs import durable

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


def test_replacing_a_file_keeps_the_old_one_when_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.replace_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, at=0, number=errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        durable.replace_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
