"""The search: the same configurations whatever runs at once, on validation, taken up again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from baselines.algorithms import METHODS
from baselines.recipe import read_recipe
from baselines.tuning import (
    SPACES as SEARCH_SPACES,
)
from baselines.tuning import (
    Search,
    SearchSpace,
    Trial,
    _propose,
    best_of,
    read_search,
    run_search,
    train_trial,
)
from trm.compute.jobs import JobResult
from trm.runs.recipe import dump_recipe

SPACES = SEARCH_SPACES.names()

SPACE = """\
recipe: a2c-{env}
set:
  model.channels: 4
  model.head_width: 6
  model.depth: 1
  instances.num: 20
  schedule.evaluate_every: 1000
  rollout.plans: 8
space:
  a2c.learning_rate: {low: 0.001, high: 0.1, log: true}
  rollout.plans: [2, 4]
  rollout.steps: {low: 2, high: 4}
trials: 6
batch: 3
seeds: [3, 4]
steps: 16
evaluate_num: 5
"""


def space(folder: Path, text: str = SPACE) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


class Oracle:
    """Stands for the training of a run: success depends on the hyper-parameters alone."""

    def __init__(self) -> None:
        self.trained: list[str] = []

    def __call__(self, folder: Path, record: Path, *, env: str, recipe: str, seed: int) -> None:
        self.trained.append(f"{folder.parent.name}/{folder.name}")
        file = folder.parent / "recipe.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(recipe)
        found = read_recipe(file)
        assert found.a2c is not None
        rate = found.a2c.learning_rate * 10 / (1 + found.rollout.steps)
        figures = {"seed": seed, "step": 16, "success_rate": rate, "mean_score": 8.0}
        costs = {"wall_seconds": 1.0, "cpu_seconds": 0.5, "best_success_rate": rate}
        record.write_text(json.dumps(figures | costs))


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Jobs run here and now, trained by the oracle."""
    told = Oracle()

    def here(jobs: Any, **_: Any) -> list[JobResult]:
        for job in jobs:
            if not job.output.exists():
                job.work()
        return [JobResult(key=job.key, state="done", log=job.log) for job in jobs]

    monkeypatch.setattr("baselines.tuning.map_jobs", here)
    monkeypatch.setattr("baselines.tuning.train_trial", told)
    return told


def test_a_search_tries_the_recipe_first_and_then_what_lies_in_the_space(
    tmp_path: Path, oracle: Oracle
) -> None:
    search = read_search(space(tmp_path), env="sudoku4x4")
    trials = run_search(search, tmp_path / "out", command="upi-trm ...")
    assert [trial.number for trial in trials] == list(range(6))
    assert trials[0].values == {}
    seen = [tuple(trial.values.items()) for trial in trials]
    assert len(set(seen)) == 6
    for trial in trials[1:]:
        assert 0.001 <= trial.values["a2c.learning_rate"] <= 0.1
        assert trial.values["rollout.plans"] in (2, 4)
        assert trial.values["rollout.steps"] in (2, 3, 4)
        assert [run["seed"] for run in trial.runs] == [3, 4]
    record = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert record["num_trials"] == 6 and record["num_failed"] == 0
    assert record["algorithm"] == "a2c" and record["env"] == "sudoku4x4"
    assert record["cpu_seconds"] == 6 * 2 * 0.5
    best = max(trials, key=lambda trial: trial.value or 0.0)
    assert record["winner"]["number"] == best.number == best_of(trials).number
    # By hand: mean over seeds of the success, and a hundredth of the score over the highest.
    rates = [run["success_rate"] for run in best.runs]
    assert best.value == pytest.approx(sum(rates) / 2 + 0.01 * 8 / 16)


def test_the_winners_recipe_is_complete_and_trains_what_won(tmp_path: Path, oracle: Oracle) -> None:
    search = read_search(space(tmp_path), env="sudoku4x4")
    best = best_of(run_search(search, tmp_path / "out"))
    winner = read_recipe(tmp_path / "out" / "winner.yaml")
    assert winner == search.recipe(best.values)
    assert winner.schedule.edits == 16 and winner.schedule.evaluate_num == 5


def test_the_configurations_do_not_depend_on_interruptions(tmp_path: Path, oracle: Oracle) -> None:
    """A search whose second half was lost proposes it again, and trains only what is missing."""
    search = read_search(space(tmp_path), env="sudoku4x4")
    trials = run_search(search, tmp_path / "out")
    for number in (4, 5):
        shutil.rmtree(tmp_path / "out" / f"trial-{number:03d}")
    (tmp_path / "out" / "trial-002" / "seed4.json").unlink()
    oracle.trained.clear()
    assert run_search(search, tmp_path / "out") == trials
    assert oracle.trained == [
        "trial-002/seed4", "trial-004/seed3", "trial-004/seed4", "trial-005/seed3",
        "trial-005/seed4",
    ]  # fmt: skip
    run_search(search, tmp_path / "other")
    for name in ("trial-001", "trial-005"):
        files = [tmp_path / out / name / "trial.json" for out in ("out", "other")]
        assert files[0].read_text() == files[1].read_text()


def test_proposals_go_where_earlier_trials_did_well(tmp_path: Path) -> None:
    """Success grows with the rate; a uniform draw in the logarithm is above 0.03 in 2 of 8."""
    search = read_search(space(tmp_path), env="sudoku4x4")
    earlier = [
        Trial(
            number=number,
            values={
                "a2c.learning_rate": 0.001 * 100 ** (number / 20),
                "rollout.plans": 4,
                "rollout.steps": 2 + number % 3,
            },
            value=number / 20,
            runs=(),
        )
        for number in range(1, 21)
    ]
    rates = [_propose(search, 21 + k, earlier)["a2c.learning_rate"] for k in range(8)]
    assert sum(rate > 0.03 for rate in rates) >= 5


def test_a_failed_run_fails_its_trial_and_not_the_search() -> None:
    failed = Trial(number=0, values={}, value=None, runs=())
    good = Trial(number=1, values={}, value=0.5, runs=())
    equal = Trial(number=2, values={}, value=0.5, runs=())
    assert best_of([failed, good, equal]) is good
    with pytest.raises(ValueError, match="no trial was trained to its end"):
        best_of([failed])


def test_a_job_trains_a_run_and_leaves_its_validation_figures(tmp_path: Path) -> None:
    search = read_search(space(tmp_path), env="sudoku4x4")
    text = dump_recipe(search.recipe({"rollout.plans": 4}))
    record, folder = tmp_path / "seed3.json", tmp_path / "seed3"
    train_trial(folder, record, env="sudoku4x4", recipe=text, seed=3)
    found = json.loads(record.read_text())
    assert found["step"] == 16 and found["seed"] == 3
    assert 0 <= found["success_rate"] <= found["best_success_rate"] <= 1
    record.unlink()
    train_trial(folder, record, env="sudoku4x4", recipe=text, seed=3)  # resumes
    again = json.loads(record.read_text())
    assert again["mean_score"] == found["mean_score"]


@pytest.mark.slow
def test_real_jobs_of_a_search_run_on_processes_of_this_machine(tmp_path: Path) -> None:
    text = SPACE.replace("trials: 6", "trials: 2").replace("seeds: [3, 4]", "seeds: [3]")
    search = read_search(space(tmp_path, text), env="sudoku4x4")
    states: list[tuple[str, str]] = []
    trials = run_search(
        search, tmp_path / "out", workers=1, report=lambda r: states.append((r.key, r.state))
    )
    assert len(trials) == 2 and all(trial.value is not None for trial in trials)
    assert ("trial-000-seed3", "done") in states


# --- Files


@pytest.mark.parametrize("name", SPACES)
def test_every_shipped_space_is_as_large_for_each_algorithm_and_has_valid_ranges(
    name: str,
) -> None:
    search = read_search(name, env="sudoku9x9")
    short = name.endswith("-9x9")  # around the winner of the others
    assert search.spec.trials == (4 if short else 12)  # the same for all; the paper: 11
    assert len(search.spec.seeds) == (1 if short else 2)
    assert search.recipe({}).algorithm == name.removesuffix("-9x9")


def test_there_is_a_space_for_every_algorithm() -> None:
    assert set(SPACES) == {name + end for name in METHODS for end in ("", "-9x9")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a2c.learning_rate:", "a2c.lerning_rate:"), "did you mean a2c.learning_rate"),
        (("low: 0.001", "low: -1"), "must have low > 0 where it is log"),
        (("[2, 4]", "[2]"), "rollout.plans must have two choices at least"),
        (("[2, 4]", "[2, 0]"), "rollout.plans = 0: rollout.plans must be at least 1"),
        (("{low: 2, high: 4}", "{low: 4, high: 2}"), "rollout.steps must have low < high"),
        (("{low: 2, high: 4}", "{min: 2}"), r"rollout.steps must be a list or {low, high, log}"),
        (("recipe: a2c-{env}", "recipe: a2d-{env}"), "did you mean a2c-sudoku4x4"),
        (("trials: 6", "trials: 0"), "trials must be at least 1"),
        (("seeds: [3, 4]", "seeds: [3, 3]"), "seeds must be different integers"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused_in_one_line(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read_search(space(tmp_path, SPACE.replace(*change)), env="sudoku4x4")
    assert "\n" not in str(refused.value)


def test_an_unknown_space_and_a_folder_of_another_search_are_refused(
    tmp_path: Path, oracle: Oracle
) -> None:
    with pytest.raises(ValueError, match="no search space is called 'sac'; did you mean a2c"):
        read_search("sac", env="sudoku4x4")
    run_search(read_search(space(tmp_path), env="sudoku4x4"), tmp_path / "out")
    other = read_search(space(tmp_path, SPACE.replace("steps: 16", "steps: 24")), env="sudoku4x4")
    with pytest.raises(ValueError, match=r"out/search\.json: another search: recipe is "):
        run_search(other, tmp_path / "out")
    more = read_search(space(tmp_path, SPACE.replace("trials: 6", "trials: 7")), env="sudoku4x4")
    assert len(run_search(more, tmp_path / "out")) == 7


def test_proposals_that_the_recipe_refuses_are_not_trained(tmp_path: Path, oracle: Oracle) -> None:
    spec = SearchSpace(
        recipe="ppo-{env}",
        space={"ppo.batch_size": [24, 32, 48, 64], "rollout.steps": [2, 3, 4]},
        trials=5,
    )
    recipe_file = Path(__file__).parents[2] / "configs" / "baselines" / "ppo-sudoku4x4.yaml"
    base = read_recipe(recipe_file)
    search = Search(name="mine", env="sudoku4x4", spec=spec, recipe_file=recipe_file, base=base)
    tried: list[Trial] = []
    for number in range(1, 5):
        values = _propose(search, number, tried)
        assert 64 * values["rollout.steps"] % values["ppo.batch_size"] == 0
        tried.append(Trial(number=number, values=values, value=0.1, runs=()))
