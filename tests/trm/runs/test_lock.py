"""The lock of a folder: one writer at a time, across processes and forks."""

import os
import subprocess
import sys

import pytest
from run_cases import assert_whole, edit_json, save

from trm.runs.files import RunError
from trm.runs.lock import take_lock
from trm.runs.run import Run

HOLDER = """
import os, sys
from pathlib import Path
from trm.runs.lock import take_lock
lock = take_lock(Path(sys.argv[1]), "is writing to this run")
if sys.argv[2] == "fork":
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"x")
        os.read(0, 1)  # the worker lives on until the test closes the pipe
        os._exit(0)
    os.read(reader, 1)
print("held", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_second_writer_is_refused_until_the_first_has_died(made: Run, how: str) -> None:
    save(made, 1)
    made.close()
    command = [sys.executable, "-c", HOLDER, str(made.path), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as caught:
            Run.open(made.path, write=True)
        assert str(caught.value) == (
            f"{made.path}: process {holder.pid} is writing to this run;"
            " wait for it or stop it first"
        )
        assert_whole(Run.open(made.path), 1)
        # Workers that the first one forked may live on; they don't keep the lock.
        holder.kill()
        holder.wait()
        Run.open(made.path, write=True).close()


def test_a_lock_is_free_after_close_and_after_a_refused_open(made: Run) -> None:
    with pytest.raises(RunError, match=f"process {os.getpid()} is writing"):
        Run.open(made.path, write=True)
    made.close()
    made.close()
    edit_json(made.path / "run.json", kind="other")
    with pytest.raises(RunError, match="kind is"):
        Run.open(made.path, kind="upi", write=True)
    take_lock(made.path, "works here").release()
