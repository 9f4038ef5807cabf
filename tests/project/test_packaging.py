"""What ships: the wheel's contents, the pins, and one version number everywhere."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import upi_trm
from trm.experiments.shipped_runs import pretrained_names, run_path
from trm.experiments.sweep_spec import SWEEPS
from trm.runs.shipped import ShippedFiles
from upi_trm.shipped import RECIPES

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("plan_envs", "trm", "upi_trm", "baselines", "supervised")
PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the test extra has it")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found.group().lower().replace("_", "-")


def _pins() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {_name(name): version for name, version in pins.items()}


def _files(folder: Path) -> dict[str, int]:
    """Size of each file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def test_the_wheel_holds_every_module_and_marker_and_no_test(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in (REPO / package).rglob("*"):
            if path.suffix == ".py" or path.name == "py.typed":
                assert str(path.relative_to(REPO)) in shipped
    tops = {name.split("/")[0] for name in shipped}
    assert tops == {*PACKAGES, f"upi_trm-{upi_trm.__version__}.dist-info"}


def test_the_wheel_holds_the_recipes_of_each_learner_the_sweeps_and_the_shipped_runs(
    wheel: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    homes = {
        "configs/upi": "upi_trm/configs",
        "configs/baselines": "baselines/configs",
        "configs/supervised": "supervised/configs",
        "configs/sweeps": "trm/configs",
        "trm/experiments/pretrained": "trm/experiments/pretrained",
    }
    for checkout, home in homes.items():
        assert _files(REPO / checkout) == _files(tmp_path / home) != {}
    assert any(name.endswith("weights.safetensors") for name in _files(tmp_path / home))


def test_an_installed_wheel_finds_recipes_sweeps_and_shipped_runs_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import json\n"
        "from trm.experiments.shipped_runs import pretrained_names, run_path\n"
        "from trm.experiments.sweep_spec import SWEEPS\n"
        "from upi_trm.shipped import RECIPES\n"
        "paths = [kind.find(name) for kind in (RECIPES, SWEEPS) for name in kind.names()]\n"
        "paths += [run_path(f'pretrained:{name}') / 'run.json' for name in pretrained_names()]\n"
        "print(json.dumps([[str(path), path.stat().st_size] for path in paths]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    assert all(Path(path).is_relative_to(site) for path, _ in found)
    here = [
        *(kind.find(name) for kind in (RECIPES, SWEEPS) for name in kind.names()),
        *(run_path(f"pretrained:{name}") / "run.json" for name in pretrained_names()),
    ]
    named = [(Path(path).name, size) for path, size in found]
    assert named == [(path.name, path.stat().st_size) for path in here]


def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sudoku4x4.yaml").touch()
    files = ShippedFiles(tmp_path, "upi")
    assert files.find("sudoku4x4.yaml") == tmp_path / "configs" / "sudoku4x4.yaml"
    with pytest.raises(ValueError, match=r"'sudoku4x5'; did you mean sudoku4x4\?"):
        files.find("sudoku4x5")
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert files.find(str(mine)) == mine
    assert files.find_or_default(None, "sudoku4x4") == files.find("sudoku4x4")
    assert files.find_or_default(None, "maze10") is None


def test_the_version_is_the_same_in_the_project_the_package_and_the_changelog() -> None:
    assert PROJECT["project"]["version"] == upi_trm.__version__
    assert f"## {upi_trm.__version__}" in (REPO / "CHANGELOG.md").read_text()


def test_every_requirement_is_pinned_and_no_pin_names_a_place() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    pins = _pins()
    assert {_name(line) for line in required} <= set(pins)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, upi_trm, trm.runs.shipped; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"torch", "numba", "gymnasium", "numpy"}
