"""Hyper-parameter search: the same number of configurations for every algorithm, on validation.

A search space (`configs/baselines/spaces/*.yaml`) names fields of a recipe with ranges or choices.
Trial 0 is the recipe as it ships; the others are proposed by optuna's TPE in batches of fixed size,
so that the outcome does not depend on how many run at once, and trained as jobs of
`trm.compute.jobs` on this machine or on Ray. What counts is greedy success on the run's validation
puzzles at the end of the budget, over all seeds; test puzzles are never played. Below the search's
folder lie

    trial-003/trial.json     its hyper-parameters, written before it starts
    trial-003/seed0/         a run folder
    trial-003/seed0.json     its validation figures: the job is finished
    tuning.json              the record: space, trials, winner, costs
    winner.yaml              the winner's recipe, complete

The same call goes on after an interruption: finished runs are kept, interrupted ones resumed.
"""

import contextlib
import functools
import json
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from baselines.recipe import BaselineRecipe
from baselines.shipped import RECIPES
from trm.bounded import one_line
from trm.compute.jobs import Job, JobResult, map_jobs
from trm.experiments.sections import check_at_least
from trm.runs.durable import replace_durably
from trm.runs.files import claim, read_json_object
from trm.runs.lock import locked
from trm.runs.recipe import dump_recipe, load_recipe, recipe_hash

SPACES = replace(RECIPES, inside="spaces", kind="search space")
"""The shipped search spaces."""

FORMAT_VERSION = 1
"""Of tuning.json."""

_SCORE_WEIGHT = 0.01
"""Share of the mean score (over the highest) in a trial's value: it orders configurations of equal
success, where all have none above all."""
_STARTUP = 6
"""Trials drawn at random before TPE proposes."""
_TRIES = 50
"""Proposals that the recipe may refuse, for one trial."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a search-space file says."""

    recipe: str
    """Name of a shipped recipe, or a file beside this one; `{env}` stands for the task."""
    space: dict[str, Any]
    """Dotted field of the recipe -> a list of choices, or {low, high} with `log: true` if wanted;
    integer ends make an integer."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of every trial."""
    trials: int = 16
    """Configurations, the recipe's own among them."""
    batch: int = 4
    """Trials that are proposed together."""
    seeds: tuple[int, ...] = (0,)
    """Each trial trains one run a seed."""
    steps: int | None = None
    """Budget of every run; null for the recipe's."""
    evaluate_num: int = 500
    """Validation puzzles."""

    def __post_init__(self) -> None:
        """Check what no recipe checks."""
        check_at_least(self, "", 1, "trials", "batch", "evaluate_num", "steps")
        if not self.space:
            raise ValueError("space must name a field at least, got none")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers from 0, got {self.seeds}")
        for name, values in self.space.items():
            _check_range(name, values)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search space, read for one environment."""

    name: str
    """The file's name without ending."""
    env: str
    spec: SearchSpace
    recipe_file: Path
    base: BaselineRecipe
    """The recipe as it ships, with the budget and the overrides of every trial."""

    def recipe(self, values: Mapping[str, Any]) -> BaselineRecipe:
        """The recipe of a trial.

        Raises:
            ValueError: one line, for values that the recipe refuses together.
        """
        return _load(self.spec, self.recipe_file, values) if values else self.base


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A configuration and how it did."""

    number: int
    values: Mapping[str, Any]
    """Field -> value; empty for the recipe as it ships."""
    value: float | None
    """What is maximised; None where a run failed."""
    runs: tuple[Mapping[str, Any], ...]
    """Validation figures and costs of each seed's run."""


def read_search(name: str, *, env: str) -> Search:
    """A search-space file, or the name of a shipped one, for an environment.

    Raises:
        ValueError: one line, for an unknown file, field or value: every field of the space must be
            one of the recipe's, its choices and the ends of its range allowed.
    """
    from plan_envs.catalogue import resolve_task

    path = SPACES.find(name)
    spec = load_recipe(SearchSpace, path)
    task = resolve_task(env).name
    wanted = spec.recipe.replace("{env}", task)
    beside = path.parent / wanted
    recipe_file = beside if beside.is_file() else RECIPES.find(wanted)
    search = Search(
        name=path.stem,
        env=task,
        spec=spec,
        recipe_file=recipe_file,
        base=_load(spec, recipe_file, {}),
    )
    ends = {
        name: values if isinstance(values, list) else [values["low"], values["high"]]
        for name, values in spec.space.items()
    }
    for turn in range(max(map(len, ends.values()))):
        _check_values(search, {name: v[turn] for name, v in ends.items() if turn < len(v)}, path)
    return search


def run_search(
    search: Search,
    out: Path,
    *,
    command: str = "",
    report: Callable[[JobResult], None] = lambda _: None,
    **where: Any,
) -> list[Trial]:
    """Train every trial that is not finished; see `trm.compute.jobs.map_jobs`.

    Args:
        search: what to try.
        out: the search's folder; made where it is missing.
        command: for the record: how this was called.
        report: is called for every run that starts or ends.
        where: backend, workers and address of `map_jobs`.

    Returns:
        The trials in order; fewer than asked for where a signal asked to stop.

    Raises:
        ValueError: optuna is not installed; the folder holds another search.
    """
    _optuna()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "is tuning here"):
        _claim(search, out)
        trials: list[Trial] = []
        while len(trials) < search.spec.trials:
            first, count = len(trials), search.spec.trials - len(trials)
            numbers = range(first, first + min(count, 1 if first == 0 else search.spec.batch))
            planned = {number: _planned(search, out, number, trials) for number in numbers}
            jobs = [job for item in planned.items() for job in _jobs(search, out, *item)]
            results = map_jobs(jobs, report=report, **where)
            if any(result.state == "stopped" for result in results):
                break
            trials += [_finished(search, out, *item) for item in planned.items()]
            _write_record(search, out, trials, command)
        return trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """The winner: the largest value, the earlier trial on a tie.

    Raises:
        ValueError: every trial failed.
    """
    counted = [trial for trial in trials if trial.value is not None]
    if not counted:
        raise ValueError("tuning: no trial was trained to its end")
    return max(counted, key=lambda trial: (trial.value, -trial.number))


def train_trial(folder: Path, record: Path, *, env: str, recipe: str, seed: int) -> None:
    """The work of a job: train or go on, leave the validation figures.

    Args:
        folder: the run folder.
        record: where the figures go; it appears when the run is finished.
        env: the task.
        recipe: text of the trial's recipe.
        seed: of the run.
    """
    from baselines.trainer import resume, train
    from trm.compute.device import Placement

    placement = Placement(threads=1)
    if (folder / "run.json").exists():
        outcome = resume(folder, placement=placement)
    else:
        file = folder.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(file, recipe.encode())
        outcome = train(
            env=env, algorithm=None, recipe_path=file, seed=seed, out=folder, placement=placement
        )
    if not outcome.finished:
        return
    run = outcome.run
    evaluated = [line for line in run.read_metrics() if "success_rate" in line]
    usage = run.load_checkpoint().state["usage"]
    figures = {
        "seed": seed,
        **{name: evaluated[-1][name] for name in ("step", "success_rate", "mean_score")},
        "best_success_rate": max(line["success_rate"] for line in evaluated),
        **{name: usage[name] for name in ("wall_seconds", "cpu_seconds")},
    }
    replace_durably(record, (json.dumps(figures) + "\n").encode())


def _load(spec: SearchSpace, recipe_file: Path, values: Mapping[str, Any]) -> BaselineRecipe:
    merged = {**spec.set, **values, "schedule.evaluate_num": spec.evaluate_num}
    if spec.steps is not None:
        merged["schedule.edits"] = spec.steps
    overrides = [f"{name}={json.dumps(value)}" for name, value in merged.items()]
    return load_recipe(BaselineRecipe, recipe_file, overrides)


# --- Trials


def _planned(search: Search, out: Path, number: int, earlier: Sequence[Trial]) -> dict[str, Any]:
    """A trial's hyper-parameters: those on disk, else new ones."""
    file = _trial_folder(out, number) / "trial.json"
    if file.exists():
        values = read_json_object(file).get("values")
        if not isinstance(values, dict):
            raise ValueError(f"{file}: values is {one_line(repr(values))}, expected an object")
        return values
    values = {} if number == 0 else _propose(search, number, earlier)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(file, (json.dumps({"number": number, "values": values}) + "\n").encode())
    return values


def _propose(search: Search, number: int, earlier: Sequence[Trial]) -> dict[str, Any]:
    """What TPE makes of the earlier trials; the same for the same ones, in every process."""
    optuna = _optuna()
    ranges = {name: _distribution(values) for name, values in search.spec.space.items()}
    sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=_STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in earlier:
        values = trial.values or {name: operator.attrgetter(name)(search.base) for name in ranges}
        # The recipe as it ships may lie outside the ranges, which optuna refuses.
        with contextlib.suppress(ValueError):
            if trial.value is not None:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(values), distributions=ranges, value=trial.value
                    )
                )
    tried = [dict(trial.values) for trial in earlier]
    for _ in range(_TRIES):
        proposal = study.ask(ranges)
        try:
            search.recipe(proposal.params)
        except ValueError:
            study.tell(proposal, state=optuna.trial.TrialState.FAIL)
            continue
        if proposal.params not in tried:
            return dict(proposal.params)
    raise ValueError(f"{search.name}: {_TRIES} proposals for trial {number} were refused or known")


def _jobs(search: Search, out: Path, number: int, values: Mapping[str, Any]) -> list[Job]:
    folder = _trial_folder(out, number)
    recipe = dump_recipe(search.recipe(values))
    jobs = []
    for seed in search.spec.seeds:
        record = folder / f"seed{seed}.json"
        work = functools.partial(
            train_trial, folder / f"seed{seed}", record, env=search.env, recipe=recipe, seed=seed
        )
        name = f"{folder.name}-seed{seed}"
        jobs.append(Job(key=name, work=work, output=record, log=out / "logs" / f"{name}.log"))
    return jobs


def _finished(search: Search, out: Path, number: int, values: Mapping[str, Any]) -> Trial:
    from plan_envs.catalogue import resolve_task

    files = [_trial_folder(out, number) / f"seed{seed}.json" for seed in search.spec.seeds]
    runs = tuple(_figures_in(file) for file in files if file.exists())
    value = None
    if len(runs) == len(files):
        most = resolve_task(search.env).domain.spec.max_score
        value = statistics.fmean(
            run["success_rate"] + _SCORE_WEIGHT * run["mean_score"] / most for run in runs
        )
    return Trial(number=number, values=values, value=value, runs=runs)


def _figures_in(file: Path) -> dict[str, Any]:
    found = read_json_object(file)
    for name in ("success_rate", "mean_score"):
        if type(found.get(name)) not in (int, float):
            raise ValueError(f"{file}: {name} is {one_line(repr(found.get(name)))}, no number")
    return found


def _trial_folder(out: Path, number: int) -> Path:
    return out / f"trial-{number:03d}"


def _claim(search: Search, out: Path) -> None:
    """Refuse a folder of another search; one with more trials is the same."""
    spec = {key: value for key, value in asdict(search.spec).items() if key != "trials"}
    own = {"env": search.env, "recipe": recipe_hash(search.base), "spec": spec}
    claim(out / "search.json", own, kind="search")


def _write_record(search: Search, out: Path, trials: Sequence[Trial], command: str) -> None:
    from trm.compute.process import provenance

    counted = [trial for trial in trials if trial.value is not None]
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "search": search.name,
        "env": search.env,
        "algorithm": search.base.algorithm,
        "recipe": search.recipe_file.stem,
        "command": command,
        "spec": asdict(search.spec),
        "num_trials": len(trials),
        "num_failed": len(trials) - len(counted),
        "cpu_seconds": math.fsum(run["cpu_seconds"] for trial in trials for run in trial.runs),
        "trials": [asdict(trial) for trial in trials],
        "provenance": provenance(),
    }
    if counted:
        best = best_of(trials)
        record["winner"] = asdict(best)
        runs = ", ".join(f"{run['success_rate']:.1%}" for run in best.runs)
        head = (
            f"# {search.env}: winner of {len(trials)} configurations"
            f" (search space {search.name}, trial {best.number})\n"
            f"# Expected: {runs} of {search.spec.evaluate_num} validation puzzles, seeds"
            f" {', '.join(map(str, search.spec.seeds))}\n"
        )
        text = head + dump_recipe(search.recipe(best.values))
        replace_durably(out / "winner.yaml", text.encode())
    replace_durably(out / "tuning.json", (json.dumps(record, indent=1) + "\n").encode())


# --- Ranges


def _check_range(name: str, values: Any) -> None:
    """A list of at least two choices, or {low, high[, log]}."""
    if isinstance(values, list):
        if len(values) < 2:
            raise ValueError(f"space: {name} must have two choices at least, got {values}")
        return
    keys = set(values) if isinstance(values, dict) else set()
    if not {"low", "high"} <= keys <= {"low", "high", "log"}:
        raise ValueError(f"space: {name} must be a list or {{low, high, log}}, got {values}")
    if not values["low"] < values["high"]:
        raise ValueError(f"space: {name} must have low < high, got {values}")
    if values.get("log") and not values["low"] > 0:
        raise ValueError(f"space: {name} must have low > 0 where it is log, got {values}")


def _check_values(search: Search, values: Mapping[str, Any], path: Path) -> None:
    """Refuse fields that the recipe lacks, and values that their own section refuses."""
    try:
        search.recipe(values)
    except ValueError as error:
        # Not where two sections do not fit together: proposals see to that.
        if any(f"{name} = " in str(error) for name in values):
            raise ValueError(f"{path}: space: {str(error).removeprefix('--set: ')}") from error


def _distribution(values: Any) -> Any:
    distributions = _optuna().distributions
    if isinstance(values, list):
        return distributions.CategoricalDistribution(values)
    low, high, log = values["low"], values["high"], bool(values.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, log=log)
    return distributions.FloatDistribution(low, high, log=log)


def _optuna() -> Any:
    """Optuna, silent.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("tuning needs optuna: pip install 'upi-trm[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
