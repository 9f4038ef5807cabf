"""One training on two processes (gloo): alike everywhere, resumable, each on plans of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy
from trm.compute.device import Placement
from trm.compute.streams import named_streams
from trm.compute.workers import ALONE, Workers, joined
from trm.experiments.learners import load_policy
from trm.runs.run import Run
from upi_trm.recipe import UpiRecipe
from upi_trm.trainer import resume, share_of

HERE = Placement(threads=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the runs, and what the processes saw."""
    folder = tmp_path_factory.mktemp("two")
    script, result = (
        Path(__file__).resolve().parents[3] / "tests" / "support" / "train_on_two.py",
        folder / "result.json",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder), str(result)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(result.read_text())


def checkpoint(folder: Path) -> Any:
    return Run.open(folder).load_checkpoint()


@pytest.mark.slow
def test_averaged_gradients_of_the_parts_are_the_gradient_of_the_whole(two: Any) -> None:
    assert two[1]["difference"] < 1e-6


@pytest.mark.slow
def test_all_processes_end_with_equal_weights_from_plans_of_their_own(two: Any) -> None:
    first, second = two[1]["everybody"]
    assert first["weights"] == second["weights"]
    for one, other in zip(first["actions"], second["actions"], strict=True):
        assert one[:2] == other[:2] == [4, 4]  # half of the 8 plans, 4 edits each
        assert one != other


@pytest.mark.slow
def test_a_resumed_training_equals_one_that_never_stopped(two: Any) -> None:
    whole, parts = checkpoint(two[0] / "whole"), checkpoint(two[0] / "parts")
    assert whole.step == parts.step == 128
    for name, weight in whole.weights.items():
        assert torch.equal(weight, parts.weights[name]), name


@pytest.mark.slow
def test_the_run_counts_the_edits_of_all_and_says_how_many_trained(two: Any) -> None:
    run = Run.open(two[0] / "whole")
    lines = list(run.read_metrics())
    assert [line["step"] for line in lines] == [32, 64, 96, 128]
    assert run.info.extra == {"processes": 2}
    assert all(line["certified_modulus"] <= 0.7 + 1e-9 for line in lines)
    assert all(line["successors"] > 0 for line in lines)


@pytest.mark.slow
def test_one_process_evaluates_the_run_and_does_not_train_on_alone(two: Any) -> None:
    run, task = Run.open(two[0] / "whole"), resolve_task("sudoku4x4-hard")
    pool = task.instances("validation", num=6)
    report = evaluate_policy(load_policy(run, placement=HERE), task.domain, pool)
    assert report.mean_score == list(run.read_metrics())[-1]["mean_score"]
    with pytest.raises(ValueError, match=r"on 2 processes .*, got 1 \(torchrun --nproc-per-node 2"):
        resume(two[0] / "whole", steps=256, placement=HERE)


@pytest.mark.slow
def test_a_number_that_cannot_be_shared_is_refused_before_there_is_a_run(two: Any) -> None:
    assert two[1]["refused"] == "rollout.plans must be a multiple of 2 processes, got 9"
    assert not (two[0] / "odd").exists()


def test_alone_nothing_changes() -> None:
    recipe = UpiRecipe()
    with joined() as workers:
        assert workers is ALONE
    assert share_of(recipe, ALONE) == recipe
    assert ALONE.mean(0.3) == 0.3
    assert ALONE.combine({"a": 1.0}, sums=("a",)) == {"a": 1.0}


def test_each_process_draws_its_own_streams_and_process_0_those_of_a_run_alone() -> None:
    alone, *members = (named_streams(5, member=member) for member in (0, 0, 1, 2))
    draws = [streams.torch("policy").initial_seed() for streams in (alone, *members)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_several_processes_on_one_named_gpu_are_refused() -> None:
    if not torch.cuda.is_available():
        pytest.skip("a placement on a GPU can only be made where there is one")
    with pytest.raises(ValueError, match="device must be cuda on 2 processes"):
        Workers(rank=0, size=2).place(Placement(device="cuda:0"))
