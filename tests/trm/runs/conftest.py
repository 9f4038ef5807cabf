"""Fixtures of the tests of run folders."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_cases import create

from trm.runs.run import Run


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Run]:
    """A run that was just made, open for writing."""
    with create(tmp_path / "run") as new:
        yield new


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A function that lets no file of this process grow beyond a size: writes fail for real."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
