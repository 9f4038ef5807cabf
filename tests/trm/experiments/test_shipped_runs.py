"""Runs that ship: small, with recipe and provenance, and named `pretrained:NAME` like any RUN."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from click.testing import CliRunner
from study_cases import make_run

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy
from trm.compute.device import Placement
from trm.experiments import cli, shipped_runs
from trm.experiments.learners import load_policy, task_of
from trm.experiments.records import read_records
from trm.experiments.shipped_runs import PREFIX, fitting_run, pretrained_names, run_name, run_path
from trm.runs.run import Run
from upi_trm.deployment import deployed_part
from upi_trm.recipe import UpiRecipe
from upi_trm.theory.subjects import load_subject

_SPEC = importlib.util.spec_from_file_location(
    "ship_run", Path(__file__).parents[3] / "tools" / "ship_run.py"
)
assert _SPEC is not None and _SPEC.loader is not None
ship_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ship_run)
MOST_BYTES, ship = ship_run.MOST_BYTES, ship_run.ship

HERE = Placement(threads=1)
CLEAN = {"git": {"commit": "0" * 40, "dirty": False}, "packages": {}, "torch_threads": 1}


def upi_trm(*words: str) -> Any:
    return CliRunner().invoke(cli.cli, words, standalone_mode=False)


@pytest.mark.parametrize("name", pretrained_names())
def test_a_shipped_run_is_small_clean_and_as_good_as_its_record(name: str) -> None:
    folder = run_path(PREFIX + name)
    run = Run.open(folder)
    (file,) = folder.rglob("weights.safetensors")
    assert file.stat().st_size < MOST_BYTES
    assert run.info.provenance["git"]["dirty"] is False
    run.load_recipe(UpiRecipe)  # the recipe's hash is that of run.json
    record = json.loads((folder / "eval.json").read_text())
    task = task_of(run)
    some = task.instances("test", num=100)
    found = evaluate_policy(load_policy(run, placement=HERE), task.domain, some)
    # The record's 500 puzzles begin with these; four standard errors of 100 of them.
    rate = record["success_rate"]
    assert record["num_instances"] == 500
    assert abs(found.success_rate - rate) <= 4 * np.sqrt(rate * (1 - rate) / 100) + 1e-9


@pytest.mark.parametrize("name", pretrained_names())
def test_a_shipped_run_holds_what_the_studies_need(name: str) -> None:
    run = Run.open(run_path(PREFIX + name))
    subject = load_subject(run, placement=HERE)
    assert subject.name == PREFIX + name
    (file,) = run.path.rglob("weights.safetensors")
    parts = {key.partition(".")[0] for key in safetensors.torch.load_file(file)}
    assert parts == {"evaluator", deployed_part(run.load_recipe(UpiRecipe))}


def test_a_name_that_does_not_ship_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"pretrained:sudoku4x5: .* mean pretrained:sudoku4x4\?"):
        run_path("pretrained:sudoku4x5")
    assert run_path("runs/mine") == Path("runs/mine")
    assert run_name(Path("runs/mine")) == "runs/mine"


@pytest.mark.parametrize("env", ["sudoku4x4", "sudoku4x4-hard", "nqueens8"])
def test_a_puzzle_goes_to_the_run_of_puzzles_like_it(env: str) -> None:
    task = resolve_task(env)
    text = task.domain.write_instance(task.instances("test", num=1).instances[0])  # type: ignore[attr-defined]  # Sudoku has it
    name, instance = fitting_run(text)
    assert name == PREFIX + env
    assert (instance == task.instances("test", num=1).instances[0]).all()


def test_a_puzzle_that_no_shipped_run_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no run that ships .* name one with --run"):
        fitting_run("12")


def test_solve_needs_no_run_and_searches_or_samples_when_asked() -> None:
    task = resolve_task("sudoku4x4-hard")
    text = task.domain.write_instance(task.instances("test", num=1).instances[0])  # type: ignore[attr-defined]  # Sudoku has it
    for words, says in (
        ((), "solved in "),
        (("--search", "200"), "solved by a search that looked at "),
        (("--samples", "8"), "solved by sampling, in "),
    ):
        outcome = upi_trm("solve", text, *words)
        assert outcome.exit_code == 0, outcome.exception
        assert says in outcome.stdout
        assert "using pretrained:sudoku4x4-hard" in outcome.stderr


def test_eval_shows_search_and_samples_apart_from_the_greedy_headline() -> None:
    words = ("eval", "pretrained:sudoku4x4-hard", "--num", "20", "--json")
    plain = json.loads(upi_trm(*words).stdout.splitlines()[-1])
    more = json.loads(upi_trm(*words, "--search", "50", "--samples", "3").stdout.splitlines()[-1])
    assert plain["run"] == "pretrained:sudoku4x4-hard"
    assert {key: more[key] for key in plain} == plain
    assert set(more) - set(plain) == {"search", "samples"}
    assert (more["search"]["budget"], more["samples"]["num_samples"]) == (50, 3)
    assert more["search"]["success_rate"] >= plain["success_rate"]
    alone = more["search"]["reference"]["uniform"]
    assert alone["budget"] == 50
    assert alone["success_rate"] < more["search"]["success_rate"]


def test_compare_takes_shipped_runs_and_writes_nothing_to_them() -> None:
    before = (run_path("pretrained:sudoku4x4") / "eval.json").read_bytes()
    (record,) = read_records([Path("pretrained:sudoku4x4")], num=10)
    assert record["num_instances"] == 10
    assert (run_path("pretrained:sudoku4x4") / "eval.json").read_bytes() == before


def test_a_shipped_run_is_not_trained_on() -> None:
    outcome = upi_trm("train", "--resume", "pretrained:sudoku4x4")
    assert "can't be trained on" in str(outcome.exception)


@pytest.mark.parametrize("average", ["null", "0.1"])
def test_shipping_keeps_the_deployed_policy_and_the_evaluator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    for module in (shipped_runs, ship_run):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "pretrained")
    source = make_run(tmp_path / "run", f"improvement.average_rate={average}", provenance=CLEAN)
    ship(source, "mine")
    assert pretrained_names() == ["mine"]
    task = resolve_task("sudoku4x4")
    pool = task.instances("test", num=10)
    plans = [
        evaluate_policy(load_policy(Run.open(path), placement=HERE), task.domain, pool).final_plans
        for path in (source, run_path("pretrained:mine"))
    ]
    assert (plans[0] == plans[1]).all()
    assert not list((tmp_path / "pretrained").rglob(".lock"))


def test_a_run_of_a_changed_working_tree_does_not_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shipped_runs, ship_run):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "pretrained")
    changed = CLEAN | {"git": {"dirty": True}}
    with pytest.raises(ValueError, match="not trained from a clean commit"):
        ship(make_run(tmp_path / "run", provenance=changed), "mine")
    assert not (tmp_path / "pretrained").exists()
