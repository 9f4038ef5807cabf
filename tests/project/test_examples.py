"""Every file of examples/ runs by itself and says what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "examples"
SAYS = {
    "custom_policy": "first legal ",
    "own_csv": "2 puzzles of",
    "own_puzzle": "solved in 10 edits",
    "query_values": "as the recursion deepens:",
    "sb3_loop": "episodes solved",
    "train_with_callback": "of the validation puzzles solved",
}


def test_each_example_is_in_the_table_of_its_page_and_is_tested() -> None:
    files = sorted(file.stem for file in FOLDER.glob("*.py"))
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert files == sorted(SAYS)
    assert all(f"`examples/{name}.py`" in page for name in files)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_says_what_it_promises(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert ran.returncode == 0, ran.stderr
    assert SAYS[name] in ran.stdout
    assert list(tmp_path.iterdir()) == []
