"""Kill a training with SIGKILL at random moments and resume it each time; run by test_kill.py.

A process of its own, because it forks: torch and the kernels are loaded once. Prints one JSON line.
"""

import functools
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from trm.compute.device import Placement
from trm.runs.run import Run
from upi_trm.learner import UpiLearner
from upi_trm.trainer import resume, train

KILLS, ITERATIONS, EDITS_PER_ITERATION, ITERATIONS_PER_CHECKPOINT = 20, 60, 16, 2
MOST_ITERATIONS = 2 * ITERATIONS_PER_CHECKPOINT + 1
INTERVAL = EDITS_PER_ITERATION * ITERATIONS_PER_CHECKPOINT
SECONDS_TO_SAVE = 0.005
HERE = Placement(threads=1)
TINY = [
    *("model.channels=4", "model.head_width=6", "model.depth=1", "contraction.modulus=0.8"),
    *("rollout.plans=8", "rollout.steps=2", "instances.num=20"),
    *("evaluator.passes=1.0", "evaluator.batch_size=16", "improvement.batch_size=16"),
    *("improvement.distil_passes=2.0", "improvement.state_weight=value"),
    *("curriculum.kind=adaptive", "curriculum.start=1", "curriculum.step=1"),
    *("curriculum.window=3", "curriculum.threshold=0.3"),
    *("schedule.evaluate_num=4", f"schedule.evaluate_every={5 * INTERVAL}"),
    f"schedule.checkpoint_every={INTERVAL}",
]
iterate, save_checkpoint = UpiLearner.iterate, Run.save_checkpoint


def begin(path: Path, iterations: int = ITERATIONS) -> None:
    train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=TINY,
        steps=iterations * EDITS_PER_ITERATION,
        seed=1,
        out=path,
        placement=HERE,
    )


def go_on(path: Path) -> None:
    resume(path, placement=HERE)


class Child:
    """A forked trainer that reports the start of every iteration (i) and of every save (s).

    It goes on to the start of iteration `hold_at`, where it waits to be killed. So a killer that a
    busy machine keeps waiting is late, but the training cannot end before the kill.
    """

    def __init__(self, work: Callable[[], None], *, hold_at: int | None = None) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        os.close(self._read)
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)

            begun = itertools.count(1)

            def reporting(learner: UpiLearner, *args: Any, **options: Any) -> dict[str, float]:
                os.write(write, b"i")
                if next(begun) == hold_at:
                    time.sleep(3600)
                return iterate(learner, *args, **options)

            def reporting_save(run: Run, *args: Any, **options: Any) -> Path:
                os.write(write, b"s")
                return save_checkpoint(run, *args, **options)

            UpiLearner.iterate, Run.save_checkpoint = reporting, reporting_save
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def wait_for(self, mark: bytes) -> bool:
        """False once the child has ended."""
        while (seen := os.read(self._read, 1)) not in (mark, b""):
            pass
        return seen == mark

    def kill(self) -> bool:
        """Whether the kill came before the end."""
        os.kill(self.pid, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._read)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def finish(self) -> tuple[float, float]:
        """Wait for the end; seconds until the first iteration, and seconds an iteration."""
        marks = [time.perf_counter()]
        while self.wait_for(b"i"):
            marks.append(time.perf_counter())
        assert os.WEXITSTATUS(os.waitpid(self.pid, 0)[1]) == 0
        os.close(self._read)
        rest = time.perf_counter() - marks[1] if len(marks) > 1 else 0.0
        return marks[min(1, len(marks) - 1)] - marks[0], rest / max(1, len(marks) - 1)


def numbers(path: Path) -> list[dict[str, Any]]:
    """Everything logged but the clock."""
    lines = Run.open(path).read_metrics()
    return [{k: v for k, v in line.items() if not k.startswith("seconds_")} for line in lines]


def look_after_a_kill(path: Path, before: int) -> tuple[int, int]:
    """Newest checkpoint, and edits that are lost."""
    run = Run.open(path)
    steps = run.checkpoint_steps()
    newest = steps[-1] if steps else 0
    assert newest >= before, "a checkpoint that was there is gone"
    if newest:
        run.load_checkpoint()  # checks sizes and hashes
    logged = max((line["step"] for line in run.read_metrics()), default=0)
    return newest, logged - newest


def main(folder: Path) -> dict[str, Any]:
    begin(folder / "warm", iterations=ITERATIONS_PER_CHECKPOINT)
    go_on(folder / "warm")
    assert threading.active_count() == 1, "forking a process of many threads is not safe"
    setup, iteration = Child(lambda: begin(folder / "whole")).finish()

    path, rng = folder / "killed", random.Random(0)
    kills = newest = 0
    lost = []
    while kills < KILLS:
        # One kill in five while the run is opened and restored, one while a checkpoint is saved,
        # the others anywhere in the loop.
        moment = {4: "opening", 2: "saving"}.get(kills % 5, "training")
        iterations = 0 if moment == "opening" else rng.randint(1, MOST_ITERATIONS)
        more = ITERATIONS_PER_CHECKPOINT if moment == "saving" else 1
        work = functools.partial(begin if kills == 0 else go_on, path)
        child = Child(work, hold_at=iterations + more)
        for _ in range(iterations):
            assert child.wait_for(b"i"), "finished before it could be killed"
        if moment == "saving":
            assert child.wait_for(b"s"), "finished before it could be killed"
        longest = {"opening": setup, "saving": SECONDS_TO_SAVE, "training": iteration}[moment]
        time.sleep(rng.random() * longest)
        assert child.kill(), "finished before it could be killed"
        kills += 1
        newest, gone = look_after_a_kill(path, newest)
        lost.append(gone)
    Child(lambda: go_on(path)).finish()

    ends = [Run.open(folder / name).load_checkpoint() for name in ("whole", "killed")]
    assert ends[0].step == ends[1].step == ITERATIONS * EDITS_PER_ITERATION
    weights = [end.weights for end in ends]
    assert weights[0].keys() == weights[1].keys()
    return {
        "kills": kills,
        "checkpoint_when_last_killed": newest,
        "most_lost": max(lost),
        "some_lost": sum(edits > 0 for edits in lost),
        "killed_while_saving": sum(edits == INTERVAL for edits in lost),
        "interval": INTERVAL,
        "weights_equal": all(torch.equal(w, weights[1][name]) for name, w in weights[0].items()),
        "metrics_equal": numbers(folder / "whole") == numbers(path),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    # In memory where there is such a folder: a kill loses nothing that the system has taken over.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        print(json.dumps(main(Path(name))))
