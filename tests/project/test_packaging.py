"""What ships: the wheel's contents, the pins, and one version number everywhere."""

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
from upi_trm import recipe as recipes

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


def test_the_wheel_holds_every_module_and_marker_and_no_test(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in (REPO / package).rglob("*"):
            pretrained = path.is_file() and "pretrained" in path.parts
            if path.suffix == ".py" or path.name == "py.typed" or pretrained:
                assert str(path.relative_to(REPO)) in shipped
    tops = {name.split("/")[0] for name in shipped}
    assert tops == {*PACKAGES, f"upi_trm-{upi_trm.__version__}.dist-info"}


def test_an_installed_wheel_finds_the_recipes_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import upi_trm.recipes as r\n"
        "print(r.__file__)\n"
        "for name in r.recipe_names(): print(name, len(r.recipe_path(name).read_bytes()))"
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
    where, *found = run.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert found == [
        f"{name} {recipes.recipe_path(name).stat().st_size}" for name in recipes.recipe_names()
    ]


def test_an_unknown_recipe_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sudoku4x4.yaml").touch()
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    assert recipes.recipe_path("sudoku4x4.yaml") == tmp_path / "sudoku4x4.yaml"
    with pytest.raises(ValueError, match=r"'sudoku4x5'; did you mean sudoku4x4\?"):
        recipes.recipe_path("sudoku4x5")


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
