"""Work for the tests of `trm.compute.jobs`: functions that a job's process imports quickly."""

import os
import signal
import sys
import time
from pathlib import Path

from trm.compute.jobs import run_command

FOR_EVER = 3600
"""Seconds, for work that is ended by a signal only: longer than any test may take."""

SAVES_WHEN_TOLD = f"""
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(0.3)
    (folder / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(folder / "at-work").touch()
time.sleep({FOR_EVER})
"""


def write(output: Path, text: str = "whole") -> None:
    partial = output.with_name(f".{output.name}.tmp")
    partial.write_text(text)
    os.replace(partial, output)


def write_threads(output: Path) -> None:
    write(output, os.environ["OMP_NUM_THREADS"] + os.environ["NUMBA_NUM_THREADS"])


def count_and_write(output: Path, tally: Path) -> None:
    with open(tally, "a") as file:
        file.write("once\n")
    time.sleep(0.5)
    write(output)


def fail() -> None:
    print("about to fail")
    raise ValueError("temperature must be positive, got -1")


def forget_to_write() -> None:
    print("forgetful")


def die(output: Path, tally: Path, deaths: int, *, parent: bool = False) -> None:
    """Killed half-way, the first few times; then it takes up what it had begun."""
    attempt = len(tally.read_text()) if tally.exists() else 0
    tally.write_text("x" * (attempt + 1))
    print(f"attempt {attempt}", flush=True)
    if attempt < deaths:
        output.with_name(f".{output.name}.tmp").write_text("half")
        os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
        time.sleep(FOR_EVER)
    write(output, f"after {attempt} deaths")


def program_dies() -> None:
    run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


def save_when_told(folder: Path) -> None:
    run_command([sys.executable, "-c", SAVES_WHEN_TOLD, str(folder)])
