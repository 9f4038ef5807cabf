"""TRM-Planner and ARC voting from end to end: caches of runs, students, diagnosis, the commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_data_cases import build as build_arc
from arc_data_cases import write_tasks
from click.testing import CliRunner, Result

from supervised.cli import supervised
from supervised.commands.run_sources import ArcPredictor, open_teacher
from supervised.data_sets.arc import ArcIdentifiers
from supervised.data_sets.arc_guards import evaluation_tasks
from supervised.data_sets.datasets import TokenBatch
from supervised.measures.arc_voting import vote_on_task
from supervised.models import RUN_KIND, load_model
from supervised.planner.cache_manifest import CacheRecipe, teacher_hash
from supervised.planner.teacher_cache import TeacherCache
from supervised.recipe import CACHE_RECIPES, SupervisedRecipe
from supervised.shipped import RECIPES
from supervised.trainer import resume, train
from trm.compute.device import Placement
from trm.runs.recipe import load_recipe
from trm.runs.run import Run

HERE = Placement(threads=1)

SMALL = """
data: {task: sudoku4x4-hard, num: 12, seed: 0, augment: true, copies: 1}
model: {mixing: mixer, positions: none, width: 16, layers: 1, heads: 1, inner_multiple: 8,
  prefix: 1, puzzle_channels: 0}
recursion: {cycles: 1, inner: 1, supervision: 3}
act: {exploration: 0.5}
optimiser: {learning_rate: 0.003, warm_up: 3, average: 0.9}
batch_size: 4
schedule: {steps: 8, log_every: 2, evaluate_every: 4, evaluate_num: 10, checkpoint_every: 3}
"""


def call(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(supervised, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def last_json(done: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a cache of it built by two jobs, and the recipes of students."""
    folder = tmp_path_factory.mktemp("planner")
    train(recipe_path=write(folder / "t.yaml", SMALL), out=folder / "teacher", placement=HERE)
    for kind in ("hard", "soft"):
        text = f"{SMALL}start: teacher\ndistill: {{kind: {kind}, weight: 1.0, quality: null}}\n"
        write(folder / f"{kind}.yaml", text)
    write(folder / "control.yaml", f"{SMALL}start: teacher\n")
    built = call(
        *("cache", "build", folder / "teacher", "--out", folder / "cache"),
        *("--set", "planner.steps=3", "--set", "planner.rollouts=2"),
        *("--set", "storage.examples=12", "--set", "planner.noise=0.5"),
    )
    assert "24 examples x 2 entries" in built.stdout
    assert f"{24 * 3 * 2} teacher steps" in built.stdout
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return Run.open(run, kind=RUN_KIND).load_checkpoint().weights


# --- Caches of runs


@pytest.mark.slow
def test_a_cache_is_of_the_model_that_is_evaluated_and_of_all_its_examples(folder: Path) -> None:
    model, data = open_teacher(folder / "teacher", placement=HERE)
    cache = TeacherCache.open(folder / "cache", teacher=teacher_hash(model))
    cache.verify()
    assert cache.find(data.batch(range(24))).tolist() == sorted(range(24))
    info = last_json(call("cache", "info", folder / "cache", "--check", "--json"))
    assert info["teacher"] == teacher_hash(load_model(Run.open(folder / "teacher"))[0])
    assert info["teacher_steps"] == 24 * 3 * 2
    assert (info["shards_built"], info["num_shards"]) == (2, 2)
    audit = last_json(call("cache", "audit", folder / "cache", "--num", 10, "--json"))
    assert audit["num_examples"] == 10
    assert 0 <= audit["masked_identical"] <= 1
    assert 0 < audit["stablemax_js"] < np.log(2)


def test_building_again_finds_everything_and_another_recipe_is_refused(folder: Path) -> None:
    words = ["cache", "build", folder / "teacher", "--out", folder / "cache"]
    same = ["planner.steps=3", "planner.rollouts=2", "storage.examples=12", "planner.noise=0.5"]
    sets = [word for assignment in same for word in ("--set", assignment)]
    assert "skipped" in call(*words, *sets).stderr
    other = CliRunner().invoke(supervised, [*map(str, words), *sets, "--data", "num=11"])
    assert "another data set: sha256" in str(other.exception)
    other = CliRunner().invoke(supervised, [*map(str, words), *sets, "--checkpoint", "6"])
    assert "another teacher: sha256" in str(other.exception)


# --- Students


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_learns_from_its_cache_and_resumes_bit_by_bit(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    words = ("distill", folder / "teacher", "--recipe", folder / f"{kind}.yaml")
    call(*words, "--cache", folder / "cache", "--seed", 3, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-000000008")
    assert resume(tmp_path / "parts", placement=Placement()).finished
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    run = Run.open(tmp_path / "whole")
    assert run.info.extra["teacher"] == teacher_hash(load_model(Run.open(folder / "teacher"))[0])
    assert run.info.extra["cache"] == TeacherCache.open(folder / "cache").manifest.digest
    logged = run.read_metrics()[0]
    assert logged["train_taught"] == 1.0
    assert logged["train_distill_loss"] > 0


def test_without_weight_a_student_is_the_control_and_with_it_another(
    folder: Path, tmp_path: Path
) -> None:
    hard = ("distill", folder / "teacher", "--recipe", folder / "hard.yaml")
    hard = (*hard, "--cache", folder / "cache")
    call(*hard, "--out", tmp_path / "taught")
    call(*hard, "--set", "distill.weight=0", "--out", tmp_path / "untaught")
    control = ("distill", folder / "teacher", "--recipe", folder / "control.yaml")
    call(*control, "--out", tmp_path / "control")
    taught, untaught, alone = (
        weights_of(tmp_path / name) for name in ("taught", "untaught", "control")
    )
    assert all(torch.equal(untaught[name], alone[name]) for name in alone)
    assert not all(torch.equal(taught[name], alone[name]) for name in alone)


def test_a_student_starts_from_the_weights_that_its_teacher_is_evaluated_with(
    folder: Path, tmp_path: Path
) -> None:
    frozen = ["optimiser.learning_rate=1e-12", "optimiser.weight_decay=0"]
    words = [word for assignment in frozen for word in ("--set", assignment)]
    call(
        *("distill", folder / "teacher", "--recipe", folder / "control.yaml"),
        *(*words, "--steps", 1, "--out", tmp_path / "run"),
    )
    teacher = load_model(Run.open(folder / "teacher"))[0].state_dict()
    found = weights_of(tmp_path / "run")
    for name, value in teacher.items():
        assert torch.allclose(found[f"model.{name}"], value, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "data.num=11"], "another data set: sha256"),
        (["--set", "data.copies=2"], "another data set: sha256"),
        (["--set", "model.width=8"], "another model"),
        (["--set", "distill.kind=medium"], "expected one of hard, soft"),
    ],
)
def test_what_does_not_fit_to_the_cache_is_refused(
    folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    line = ["distill", folder / "teacher", "--recipe", folder / "hard.yaml", *words]
    line += ["--cache", folder / "cache", "--out", tmp_path / "run"]
    done = CliRunner().invoke(supervised, [str(word) for word in line])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)


def test_a_cache_goes_with_a_recipe_that_distils_and_with_no_other(folder: Path) -> None:
    words = ("distill", folder / "teacher", "--recipe")
    assert "--cache is missing" in call(*words, folder / "hard.yaml", code=2).output
    control = (*words, folder / "control.yaml", "--cache", folder / "cache")
    assert "the recipe uses none" in call(*control, code=2).output


def test_diagnosis_has_the_figures_of_table_6(folder: Path) -> None:
    found = last_json(call("diagnose", folder / "teacher", "--num", 20, "--json"))
    assert (found["num_examples"], found["steps"]) == (20, 3)
    assert 0 <= found["share_not_last"] <= 1
    assert 1 <= found["median_step"] <= 3
    assert found["mean_gap"] >= 0
    assert len(found["loss_by_step"]) == len(found["exact_by_step"]) == 3
    assert found["mean_gap"] <= found["loss_by_step"][-1]


# --- Shipped recipes


def test_every_shipped_recipe_of_caches_and_students_is_valid() -> None:
    assert set(CACHE_RECIPES.names()) == {
        "planner",
        "rollout",
        "random-step",
        "exact-first",
    }
    for name in CACHE_RECIPES.names():
        load_recipe(CacheRecipe, CACHE_RECIPES.find(name))
    students = [name for name in RECIPES.names() if name.startswith("planner-")]
    assert len(students) == 15
    for name in students:
        recipe = load_recipe(SupervisedRecipe, RECIPES.find(name))
        assert recipe.start == "teacher"
        kind = None if recipe.distill is None else recipe.distill.kind
        assert kind == {"control": None}.get(name.rsplit("-", 1)[1], name.rsplit("-", 1)[1])
    assert load_recipe(CacheRecipe, CACHE_RECIPES.find("planner")) == CacheRecipe()


# --- ARC


ARC = """
data: {{folder: {folder}, domain: arc}}
model: {{width: 8, layers: 1, heads: 1, inner_multiple: 8, prefix: 1, puzzle_channels: 8}}
recursion: {{cycles: 1, inner: 1, supervision: 2}}
act: {{exploration: 0.1}}
optimiser: {{learning_rate: 0.003, warm_up: 1, average: null}}
batch_size: 2
schedule: {{steps: 2, log_every: 1, evaluate_every: 2, evaluate_num: 2, checkpoint_every: 1}}
"""


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ARC and a run on it."""
    folder = tmp_path_factory.mktemp("arc")
    data = build_arc(write_tasks(folder / "tasks"), folder / "data", validation=1)
    recipe = write(folder / "arc.yaml", ARC.format(folder=data))
    train(recipe_path=recipe, out=folder / "run", placement=HERE)
    return folder


@pytest.mark.slow
def test_voting_on_a_run_is_that_of_its_model(arc: Path, tmp_path: Path) -> None:
    words = ("vote", arc / "run", "--out", tmp_path / "votes", "--augmentations", 3)
    words = (*words, "--submission", tmp_path / "submission.json", "--tasks-per-job", 8, "--json")
    done = call(*words)
    record = last_json(done)
    assert "no test output was trained on" in done.stderr
    model, _ = load_model(Run.open(arc / "run"))
    identifiers = ArcIdentifiers.open(arc / "data")
    tasks = evaluation_tasks(arc / "data")
    predictor = ArcPredictor(model, identifiers)
    expected = [
        result
        for task in tasks
        for result in vote_on_task(task, identifiers.symmetries(task.id)[:4], [predictor])
    ]
    assert record["num_inputs"] == sum(result.known for result in expected) == 2
    assert record["mean_votes"] == 4
    passed = [result.rank is not None and result.rank <= 2 for result in expected if result.known]
    assert record["pooled"]["pass@2"]["value"] == sum(passed) / 2
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert {task: len(rows) for task, rows in submission.items()} == {"cc": 1, "dd": 2}
    other = CliRunner().invoke(supervised, [str(w) for w in (*words, "--checkpoint", 1)])
    assert "another evaluation: weights is" in str(other.exception)


def test_only_runs_on_arc_can_vote(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        supervised, ["vote", str(folder / "teacher"), "--out", str(tmp_path / "votes")]
    )
    assert "data.domain must be arc to vote" in str(done.exception)


def test_a_prediction_depends_on_the_identifier_of_its_task_and_symmetry(arc: Path) -> None:
    model, data = open_teacher(arc / "run", placement=HERE)
    batch: TokenBatch = data.batch([0])
    assert int(batch.puzzle[0]) > 0
    torch.nn.init.normal_(model.puzzle_table, generator=torch.Generator().manual_seed(0))
    rows = [model.puzzle_rows(torch.tensor([puzzle])) for puzzle in (1, 2)]
    with torch.no_grad():
        first, second = (model(model.start(1), batch.inputs, row).logits for row in rows)
    assert not torch.allclose(first, second)
