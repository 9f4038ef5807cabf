"""A teacher cache that several test modules only read."""

from pathlib import Path

import pytest
from cache_cases import build_here


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_here(tmp_path_factory.mktemp("built") / "cache")
