"""What every test shares: quiet threads, no display, short hypothesis runs, real data files.

A failure is printed when it happens, not only at the end of the session.
"""

import gc
import os
from pathlib import Path

# Before numpy, numba and torch start their pools: the suite runs on two cores, one worker each.
for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

REPO = Path(__file__).resolve().parent.parent

# The first example of a law may compile a kernel, so no deadline; derandomised, so that CI
# repeats itself.
settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real puzzle files: PLAN_ENVS_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PLAN_ENVS_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real puzzle files are not here ({folder}); set PLAN_ENVS_DATA to use them")
    return folder


class FailuresAtOnce:
    """Prints a failed test's traceback and output when its report comes in, under -q and -n too."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the report of a failed phase, after the terminal's own letter F or E for it."""
        if not report.failed:
            return
        self.terminal.line("")  # the progress letters may have left the line half full
        self.terminal.section(f"{report.nodeid}, {report.when}", sep="_", red=True)
        for text in (report.longreprtext, *(f"{name}:\n{text}" for name, text in report.sections)):
            self.terminal.write_line(text.rstrip())


@pytest.hookimpl(trylast=True)  # after the terminal has been registered
def pytest_configure(config: pytest.Config) -> None:
    """Print failures at once in the process that owns the terminal; a worker of xdist has none."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(terminal), "failures-at-once")


# What imports leave is no garbage, but numba and torch make and drop so many other objects that
# walking it again and again took up to a fifth of the time of a test.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on, collect garbage, though more seldom than usual, and only that of tests."""
    gc.enable()
    gc.set_threshold(10_000, 20, 20)
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files; tests marked gpu are skipped on a machine without CUDA."""
    # A worker of xdist gets one file at a time (--dist loadfile): a long one must not come last,
    # and two that compile the same kernels must not come at once. So the file that compiles those
    # of all engines is first, and those that only play with them come after the other long ones.
    long = {item.path for item in items if "slow" in item.keywords}
    tests = REPO / "tests"
    first, players = tests / "plan_envs" / "test_boundary.py", tests / "baselines"

    def turn(item: pytest.Item) -> int:
        if item.path == first:
            return 0
        return 3 if item.path not in long else 2 if item.path.is_relative_to(players) else 1

    items.sort(key=turn)
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
