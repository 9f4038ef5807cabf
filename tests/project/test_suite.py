"""The suite mirrors the layout: who looks for the tests of a module finds them by its path."""

from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TESTS = REPO / "tests"
PACKAGES = ("plan_envs", "trm", "upi_trm", "baselines", "supervised")

OF_SEVERAL_MODULES = {
    "plan_envs/arc/test_layouts.py": "the published layouts of ARC tasks",
    "plan_envs/test_boundary.py": "what comes from outside, on its way to the kernels",
    "plan_envs/test_laws.py": "what holds for every domain",
    "plan_envs/test_libraries.py": "the environments in the hands of other libraries",
    "plan_envs/test_new_domain.py": "what a domain from elsewhere gets without further work",
    "plan_envs/test_public_names.py": "what `dir(plan_envs)` shows",
    "plan_envs/test_registered.py": "every registered task",
    "plan_envs/sudoku/test_real_puzzles.py": "the puzzle files that are not in the wheel",
    "trm/experiments/viewing/test_browser.py": "the report in a browser",
    "trm/experiments/test_sweep.py": "sweep_spec, sweep_run and sweep_manifest",
    "trm/runs/test_kill.py": "a whole training that is killed again and again",
    "upi_trm/test_neighbour_contraction.py": "the contraction of one kind of cell",
    "supervised/commands/test_planner_commands.py": "caches, diagnose, vote and distill",
    "baselines/test_adapter.py": "vec_adapter and global_randomness",
    "baselines/test_masking.py": "masked_sb3 and deployment",
    "baselines/test_returns.py": "the returns of all baselines, by hand",
}
"""Test modules that belong to no one module, and what they test."""


def _mirrored() -> dict[str, Path | None]:
    """Each test module of the packages, with the module or folder that it is named after."""
    found: dict[str, Path | None] = {}
    for package in PACKAGES:
        for test in sorted((TESTS / package).rglob("test_*.py")):
            path, name = test.relative_to(TESTS), test.stem.removeprefix("test_")
            folder = REPO / path.parent
            named = [folder / f"{name}.py", folder / name, folder if folder.name == name else None]
            found[path.as_posix()] = next((p for p in named if p is not None and p.exists()), None)
    return found


def test_a_test_lies_where_a_module_or_folder_of_its_name_does() -> None:
    lost = {test for test, module in _mirrored().items() if module is None}
    assert lost == set(OF_SEVERAL_MODULES)


def test_no_module_or_folder_has_two_test_modules_of_its_name() -> None:
    count = Counter(module for module in _mirrored().values() if module is not None)
    assert [str(module) for module, times in count.items() if times > 1] == []


def test_every_package_has_tests_and_every_folder_of_tests_belongs_to_one() -> None:
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("**/*.py"))}
    assert folders == {*PACKAGES, "project", "support"}
