"""The training loop: it learns, keeps to its budget, and resumes as if it had never stopped."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import KilledError, assert_same, kill, terminate

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy, random_legal
from trm.compute.device import Placement
from trm.experiments.learners import load_policy
from trm.experiments.training import NotFiniteError
from trm.runs.checkpoints import Checkpoint
from trm.runs.files import RunError
from trm.runs.recipe import dump_recipe
from trm.runs.run import Run
from upi_trm.learner import UpiLearner
from upi_trm.recipe import UpiRecipe
from upi_trm.trainer import resume, train

HERE = Placement(threads=1)
TINY = (
    *("model.channels=4", "model.head_width=6", "model.depth=1"),
    *("rollout.plans=8", "rollout.steps=4"),
    *("evaluator.passes=1.0", "evaluator.batch_size=32", "evaluator.replay_iterations=2"),
    *("improvement.distil_passes=1.0", "improvement.batch_size=16"),
    *("instances.num=20", "schedule.evaluate_num=6"),
    *("schedule.evaluate_every=96", "schedule.checkpoint_every=64"),
)
"""32 edits an iteration, a checkpoint after every second one."""
EDITS = 32 * 6
CERTIFIED = (
    *("evaluator.edit_values=certified", "evaluator.control_variate=off"),
    *("evaluator.supervised_unrolls=[1]", "model.depth=2", "evaluator.certified_states=8"),
    *("improvement.candidate=odds", "improvement.lookahead_states=16"),
)
VARIANTS = {
    "relational": (),
    "relational, curriculum, explicit mixture": (
        *("curriculum.kind=adaptive", "curriculum.start=1", "curriculum.step=1"),
        *("curriculum.window=3", "curriculum.threshold=0.3"),
        *("improvement.distil=off", "improvement.chain_length=3"),
    ),
    "flat, clamped, gradient, curriculum": (
        *("model.update_map=mlp", "contraction.modulus=0.7", "curriculum.kind=adaptive"),
        "improvement.candidate=policy_gradient",
        "improvement.candidate_steps=3",
        *("improvement.average_rate=0.1", "schedule.final_learning_rate=0.2"),
    ),
    "certified search, shared trunk": (
        *CERTIFIED,
        *("rollout.actor=search", "rollout.search_budget=10"),
        *("improvement.trunk=shared", "improvement.deploy=improved"),
    ),
    "certified search, two environments, clamped": (
        *CERTIFIED,
        *("rollout.actor=search", "rollout.search_budget=10", "contraction.modulus=0.7"),
        "instances.also={sudoku4x4: {blanks: [4, 8]}}",
    ),
    "certified samples, curriculum": (
        *CERTIFIED,
        *("curriculum.kind=adaptive", "curriculum.start=1", "curriculum.step=1"),
    ),
}


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let something happen once the learner has finished so many iterations, counted from now."""
    iterate = UpiLearner.iterate

    def at(iterations: int, happens: Any) -> None:
        left = [iterations]

        def counted(self: UpiLearner, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = iterate(self, *args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                happens()
            return metrics

        monkeypatch.setattr(UpiLearner, "iterate", counted)

    return at


def start(out: Path, *overrides: str, steps: int = EDITS, seed: int = 3) -> Run:
    return train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=[*TINY, *overrides],
        steps=steps,
        seed=seed,
        out=out,
        placement=HERE,
    ).run


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Overrides, and the run that never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    start(path, *request.param)
    yield request.param, path


def assert_same_runs(first: Path, second: Path, *, metrics: bool = True) -> None:
    """Newest checkpoint and metrics, but for what was spent to get there."""
    ends = [Run.open(path).load_checkpoint() for path in (first, second)]
    assert ends[0].step == ends[1].step
    assert_same(ends[0].weights, ends[1].weights, "weights")
    states = [{k: v for k, v in end.state.items() if k != "usage"} for end in ends]
    assert_same(*states)
    if metrics:
        assert logged(first) == logged(second)


def logged(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("seconds_")} for line in lines]


def fingerprint(path: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# --- It learns


@pytest.mark.slow
def test_four_by_four_is_learnt_in_a_thousand_edits(tmp_path: Path) -> None:
    # In a process of its own: checking the shapes of every call takes most of the time here.
    settings = (
        *("model.channels=12", "model.head_width=24", "model.depth=3"),
        *("model.tied_groups=[row,column]", "rollout.plans=32", "rollout.steps=4"),
        *("evaluator.value=score", "evaluator.gamma=0.9", "improvement.alpha=0.5"),
        *("improvement.candidate=exp_advantage", "instances.num=200"),
        *("schedule.evaluate_num=10", "schedule.evaluate_every=100000"),
    )
    words = [word for setting in settings for word in ("--set", setting)]
    recipe = tmp_path / "defaults.yaml"
    recipe.write_text(dump_recipe(UpiRecipe()))
    command = [sys.executable, "-m", "upi_trm", "train", "--env", "sudoku4x4", "--recipe", recipe]
    budget = ["--steps", "1024", "--seed", "1", "--eval-num", "0", "--out", tmp_path / "run"]
    subprocess.run([*command, *budget, *words], check=True)
    run = Run.open(tmp_path / "run")
    task = resolve_task("sudoku4x4")
    unseen = task.instances("test", num=150)
    learnt = evaluate_policy(load_policy(run, placement=HERE), task.domain, unseen)
    chance = evaluate_policy(random_legal, task.domain, unseen)
    assert chance.success_rate < 0.35
    assert learnt.success_rate > chance.success_rate + 0.45
    assert learnt.mean_score > chance.mean_score + 1.0


# --- Budget


@pytest.mark.parametrize(("steps", "spent"), [(8, 8), (15, 8), (32, 32), (63, 56)])
def test_the_budget_is_never_exceeded_and_used_up_to_a_last_edit_of_every_plan(
    tmp_path: Path, steps: int, spent: int
) -> None:
    run = start(tmp_path / "run", steps=steps)
    assert run.checkpoint_steps()[-1] == spent
    steps_logged = [line["step"] for line in run.read_metrics()]
    assert steps_logged[-1] == spent
    assert all(step % 8 == 0 for step in steps_logged)
    assert steps_logged == sorted(set(steps_logged))
    assert "success_rate" in run.read_metrics()[-1]


def test_a_budget_below_one_edit_of_every_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least rollout\.plans = 8, got 7"):
        start(tmp_path / "run", steps=7)


# --- Resuming equals never having stopped


@pytest.mark.parametrize("iterations", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_never_stopped(
    uninterrupted: tuple[tuple[str, ...], Path], interrupt: Any, tmp_path: Path, iterations: int
) -> None:
    # Iteration 2 is the first that saves a checkpoint: the first kill comes when only metrics were
    # written, the second when two iterations lie behind the newest checkpoint.
    overrides, whole = uninterrupted
    path = tmp_path / "run"
    interrupt(iterations, kill)
    with pytest.raises(KilledError):
        start(path, *overrides)
    interrupt(10**9, kill)
    resume(path, placement=HERE)
    assert_same_runs(path, whole)


def test_a_run_stopped_by_sigterm_saves_and_goes_on_as_if_never_stopped(
    uninterrupted: tuple[tuple[str, ...], Path],
    interrupt: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    overrides, whole = uninterrupted
    path = tmp_path / "run"
    interrupt(3, terminate)
    start(path, *overrides)
    assert f"--resume {path}" in capfd.readouterr().err
    assert Run.open(path).checkpoint_steps()[-1] == 3 * 32
    interrupt(1, terminate)
    assert not resume(path, placement=HERE).finished
    assert Run.open(path).checkpoint_steps()[-1] == 4 * 32
    interrupt(10**9, terminate)
    assert resume(path, placement=HERE).finished
    assert_same_runs(path, whole)


def test_a_run_whose_budget_is_raised_equals_one_that_had_it_from_the_start(
    tmp_path: Path,
) -> None:
    start(tmp_path / "whole", steps=128)
    start(tmp_path / "raised", steps=64)
    resume(tmp_path / "raised", steps=128, placement=HERE)
    ends = [Run.open(tmp_path / name).load_checkpoint() for name in ("raised", "whole")]
    assert_same(ends[0].weights, ends[1].weights, "weights")
    for part in ("learner", "roller", "streams"):
        assert_same(ends[0].state[part], ends[1].state[part], part)
    # A smaller budget than what was spent changes nothing.
    before = fingerprint(tmp_path / "raised")
    resume(tmp_path / "raised", steps=64, placement=HERE)
    after = fingerprint(tmp_path / "raised")
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not {name for name in changed if "tensorboard" not in name}


def test_a_run_goes_on_with_the_threads_of_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "run", steps=32)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        resume(tmp_path / "run", steps=64, placement=HERE)
    asked: list[int | None] = []
    monkeypatch.setattr(Placement, "apply", lambda self: asked.append(self.threads))
    resume(tmp_path / "run", steps=64, placement=Placement())
    resume(tmp_path / "run", steps=64, placement=Placement(threads=3))
    assert asked == [2, 3]


def test_generators_are_saved_once(tmp_path: Path) -> None:
    state = start(tmp_path / "run", steps=32).load_checkpoint().state
    assert set(state["streams"]["torch"]) == {"instances", "policy", "init", "noise"}
    assert not {"noise", "actions"} & set(state["learner"])


def test_runs_of_another_seed_differ(tmp_path: Path) -> None:
    ends = [
        start(tmp_path / str(seed), steps=32, seed=seed).load_checkpoint().weights
        for seed in (3, 4)
    ]
    assert any(not torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_the_curriculum_of_the_test_does_get_harder(tmp_path: Path) -> None:
    # Else the tests above would not show that its state is saved.
    run = start(tmp_path / "run", *VARIANTS["relational, curriculum, explicit mixture"])
    blanks = [line["curriculum_distance"] for line in run.read_metrics()]
    assert blanks == sorted(blanks)
    assert blanks[-1] > 1


@pytest.mark.parametrize("value", ["success", "score"])
def test_training_runs_in_bfloat16(tmp_path: Path, value: str) -> None:
    run = train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=[*TINY, f"evaluator.value={value}", "improvement.candidate=exp_advantage"],
        steps=64,
        seed=0,
        out=tmp_path / "run",
        placement=Placement(threads=1, precision="bfloat16"),
    ).run
    assert all(weight.isfinite().all() for weight in run.load_checkpoint().weights.values())
    assert run.load_checkpoint().weights["policy.edit_out.weight"].dtype == torch.float32


# --- Damage


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_truncated_checkpoint_is_one_line_and_nothing_is_lost(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    start(path, "schedule.evaluate_every=100000", steps=128)
    newest = path / "checkpoints" / f"step-{128:09d}"
    damaged = newest / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    before = fingerprint(path)
    with pytest.raises(RunError) as refusal:
        resume(path, placement=HERE)
    assert "\n" not in str(refusal.value)
    assert str(damaged) in str(refusal.value)
    assert "step 64 is whole" in str(refusal.value)
    assert fingerprint(path) == before
    with pytest.raises(RunError, match="step 64 is whole"):
        load_policy(Run.open(path), placement=HERE)
    # Doing what the message says goes on from the earlier one.
    newest.rename(tmp_path / "damaged")
    resume(path, placement=HERE)
    assert Run.open(path).checkpoint_steps()[-1] == 128


def test_a_checkpoint_holds_what_was_trained(tmp_path: Path) -> None:
    checkpoint: Checkpoint = start(tmp_path / "run", steps=64).load_checkpoint()
    assert {name.split(".")[0] for name in checkpoint.weights} == {"evaluator", "policy", "target"}
    assert checkpoint.state["edits"] == 64
    assert checkpoint.state["torch_threads"] == 1
    assert len(checkpoint.state["learner"]["replay"]) == 2
    assert checkpoint.state["usage"]["wall_seconds"] > 0


@pytest.mark.parametrize(
    ("overrides", "plays"),
    [
        ((), "GreedyPolicy"),
        (("improvement.distil=off",), "GreedyPolicy"),
        (("model.latent=persistent",), "GreedyPersistent"),
    ],
)
def test_a_loaded_policy_is_what_the_recipe_deploys_and_logs(
    tmp_path: Path, overrides: tuple[str, ...], plays: str
) -> None:
    run = start(tmp_path / "run", *overrides, steps=64)
    policy = load_policy(run, placement=HERE)
    assert type(policy).__name__ == plays
    validation = resolve_task("sudoku4x4-hard").instances("validation", num=6)
    report = evaluate_policy(policy, resolve_task("sudoku4x4-hard").domain, validation)
    last = list(run.read_metrics())[-1]
    assert report.mean_score == last["mean_score"]
    assert report.success_rate == last["success_rate"]


def test_a_learning_rate_that_explodes_ends_in_one_line_and_saves_nothing(tmp_path: Path) -> None:
    rates = ("evaluator.learning_rate=1e30", "improvement.learning_rate=1e30")
    with pytest.raises(NotFiniteError, match=r"stopped at \d+ edits: .*; nothing was saved") as end:
        start(tmp_path / "run", *rates)
    assert "\n" not in str(end.value)
    assert Run.open(tmp_path / "run").checkpoint_steps() == []


def test_weights_that_turn_nan_in_the_middle_leave_the_last_finite_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate, calls = UpiLearner.iterate, iter(range(100))

    def exploding(learner: UpiLearner, *arguments: Any, **options: Any) -> dict[str, float]:
        if next(calls) == 3:
            next(learner.phi.parameters()).data.fill_(float("nan"))
        return iterate(learner, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(UpiLearner, "iterate", exploding)
        with pytest.raises(NotFiniteError, match=r"at 128 edits: .*; checkpoint 96 is the last"):
            start(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.checkpoint_steps() == [64, 96]
    assert all(torch.isfinite(tensor).all() for tensor in run.load_checkpoint().weights.values())
    assert resume(tmp_path / "run", placement=HERE).finished
