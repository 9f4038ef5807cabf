"""A process stops when told to, counts what it used, and says what it is."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from trm.compute import process
from trm.compute.process import ResourceMeter, graceful_stop, provenance


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with graceful_stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_name == number.name
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ECHO_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), graceful_stop():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_echo_of_the_same_ctrl_c_does_not_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ECHO_SECONDS", 3600.0)  # however busy the machine is
    with graceful_stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal_name == "SIGINT"


def test_the_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), graceful_stop():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def loop() -> None:
        with graceful_stop() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_usage_adds_up_over_sessions() -> None:
    first = ResourceMeter()
    deadline = time.process_time() + 0.02
    while time.process_time() < deadline:
        pass
    earlier = first.state_dict()
    assert 0.02 <= earlier["cpu_seconds"] <= earlier["wall_seconds"] + 0.01
    # A Python with torch in it is larger than 50 MB and smaller than 50 GB.
    assert 5e7 < earlier["peak_memory_bytes"] < 5e10

    huge = {**first.state_dict(), "peak_memory_bytes": 10**12}
    later = ResourceMeter(huge).state_dict()
    assert later["peak_memory_bytes"] == 10**12
    assert earlier["cpu_seconds"] <= later["cpu_seconds"] < earlier["cpu_seconds"] + 1.0
    assert earlier["wall_seconds"] <= later["wall_seconds"]


def test_provenance_is_json_and_names_no_host_or_folder() -> None:
    text = json.dumps(provenance())
    assert str(Path(process.__file__).resolve().parent) not in text
    assert socket.gethostname() not in text
    assert json.loads(text)["packages"].keys() >= {"torch", "numpy", "safetensors"}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_source_and_dirty_when_changed(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    # An environment inside somebody's checkout: the file is not theirs.
    assert process.git_state(source) is None
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert process.git_state(source) == {"commit": commit, "dirty": False}
    (tmp_path / "notes.txt").write_text("untracked\n")
    assert process.git_state(source) == {"commit": commit, "dirty": False}
    source.write_text("a = 2\n")
    assert process.git_state(source) == {"commit": commit, "dirty": True}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.git_state(tmp_path / "module.py") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.git_state(Path(process.__file__)) is None
