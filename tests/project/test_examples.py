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
RUN_ALL = """
import os, runpy, sys
from pathlib import Path

import gymnasium, numba, stable_baselines3, torch  # once for all; nothing of ours

folder, *files = map(Path, sys.argv[1:])
for file in files:
    said = os.open(folder / f"{file.stem}.txt", os.O_CREAT | os.O_WRONLY)
    child = os.fork()
    if child == 0:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder / file.stem)
        runpy.run_path(str(file), run_name="__main__")
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(said, f"exit code {code}\\n".encode())
"""
"""Runs each file in a process of its own, forked from one that has imported what takes long."""


def test_each_example_is_in_the_table_of_its_page_and_is_tested() -> None:
    files = sorted(file.stem for file in FOLDER.glob("*.py"))
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert files == sorted([*SAYS, "export_onnx"])  # which tests/trm/experiments/trained runs
    assert all(f"`examples/{name}.py`" in page for name in files)


def test_the_notebook_holds_no_outputs_and_runs() -> None:
    missing = "the notebook needs nbclient and ipykernel"
    nbformat = pytest.importorskip("nbformat", reason=missing)
    nbclient = pytest.importorskip("nbclient", reason=missing)
    pytest.importorskip("ipykernel", reason=missing)
    notebook = nbformat.read(FOLDER / "first_look.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPO))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    said = str([cell.outputs for cell in code])
    assert "solved in " in said and said.count("image/png") == 2


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each example printed, NAME.txt, and the folder it ran in, NAME."""
    folder = tmp_path_factory.mktemp("examples")
    for name in SAYS:
        (folder / name).mkdir()
    files = [str(FOLDER / f"{name}.py") for name in SAYS]
    subprocess.run(
        [sys.executable, "-c", RUN_ALL, str(folder), *files],
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    return folder


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_says_what_it_promises(name: str, ran: Path) -> None:
    said = (ran / f"{name}.txt").read_text()
    assert said.endswith("exit code 0\n"), said
    assert SAYS[name] in said
    assert list((ran / name).iterdir()) == []
