"""Kill a writer of a run folder with SIGKILL and look at what is left; run by test_run.py.

First before and after each system call that changes the disk, one after the other, until the
writer gets through; then at random moments. A process of its own, because it forks: torch is
imported once.
"""

import builtins
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from trm.runs.run import Run

KILLS = 15
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "ftruncate", "write")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int = 5


def save(run: Run, step: int, *, tag: str | None = None) -> None:
    run.log(step, {"a": step})
    weights = {"w": torch.full((2000,), float(step))}
    run.save_checkpoint(step, weights=weights, state={"step": step}, tag=tag)


def verify(path: Path, *, at_least: int, tagged: Callable[[int], int] | None = None) -> int:
    """The folder is usable, its newest checkpoint whole and no older than the last that was
    finished, and the tag where the newest checkpoint wanted it."""
    reader = Run.open(path)
    assert reader.checkpoint_steps()[-1] >= at_least, (reader.checkpoint_steps(), at_least)
    for checkpoint_step in reader.checkpoint_steps():
        reader.load_checkpoint(checkpoint_step)
    with Run.open(path, write=True) as run:
        newest = run.load_checkpoint()
        assert newest.step >= at_least, (newest.step, at_least)
        assert newest.weights["w"].tolist() == [float(newest.step)] * 2000
        for step in run.checkpoint_steps():
            assert run.load_checkpoint(step).state == {"step": step}
        best = run.tagged_step("best")
        if best is not None:
            assert run.load_checkpoint("best").step == best
        if tagged is not None:
            assert best == tagged(newest.step), (best, newest.step)
        assert not list(path.glob("checkpoints/*/wanted-tag.json"))
        hidden = [p.name for p in path.rglob(".*") if p.name != ".lock"]
        assert not hidden, hidden
        logged = [record["step"] for record in run.read_metrics()]
        assert set(logged) >= set(range(1, newest.step + 1)), logged
        run.truncate_metrics(newest.step)
        save(run, newest.step + 1)
        assert run.load_checkpoint().step == newest.step + 1
        return newest.step


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def kill_at(count: int, *, before: bool) -> None:
    """From now on, die at the `count`-th call that changes the disk."""
    calls = iter(range(10**9))

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            now = next(calls) == count
            if now and before:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **options)
            finally:
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    builtins.open = deadly(builtins.open)


def every_call(folder: Path) -> None:
    template = folder / "template"
    with Run.create(template, kind="k", env="e", seed=0, recipe=Recipe()) as run:
        for step in (1, 2, 3):
            save(run, step, tag="best" if step == 2 else None)
    points = 0
    for before in (True, False):
        for count in range(10**6):
            path = folder / f"{before}-{count}"
            shutil.copytree(template, path)

            def work(path: Path = path, count: int = count, before: bool = before) -> None:
                run = Run.open(path, write=True)
                kill_at(count, before=before)
                save(run, 4)
                save(run, 4)
                save(run, 5, tag="best")
                run.log(6, {"a": 6})
                run.truncate_metrics(5)

            child = in_child(work)
            status = os.waitpid(child, 0)[1]
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            points += 1
            # Step 5 comes with the tag: whoever sees the checkpoint sees its tag too.
            verify(path, at_least=3, tagged=lambda newest: 5 if newest >= 5 else 2)
            shutil.rmtree(path)
    print(points, "kills at system calls")


def at_random(folder: Path) -> None:
    path = folder / "run"
    with Run.create(path, kind="k", env="e", seed=0, recipe=Recipe()) as run:
        save(run, 1)
    rng = random.Random(0)

    def work() -> None:
        with Run.open(path, write=True) as run:
            step = run.load_checkpoint().step
            run.truncate_metrics(step)
            while True:
                step += 1
                save(run, step, tag="best" if step % 3 == 0 else None)

    reached = 1
    for _ in range(KILLS):
        child = in_child(work)
        time.sleep(0.02 + 0.1 * rng.random())
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status)
        reached = verify(path, at_least=reached) + 1
    print(KILLS, "kills at random moments,", reached, "steps reached")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # In memory where there is such a folder: a kill loses nothing that the system has taken over.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        every_call(Path(name))
        at_random(Path(name))
