"""The one training loop of all learners: run folder, evaluations, checkpoints, signals, resuming.

Input: a recipe and a learner's `Trainee`, which is advanced piece by piece. Output: a run folder
(`trm.runs.run`) and an `Outcome`. A run that was stopped and resumed equals one that never stopped,
bit for bit on the CPU at the same number of threads, as long as `Trainee.state` is whole. Nothing
that is not finite is saved: `NotFiniteError` ends the training before. Several processes
(`trm.compute.workers`) go through the loop in step; process 0 writes.
"""

import dataclasses
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import torch
from rich.console import Console

from plan_envs.catalogue import Task, resolve_task
from plan_envs.evaluation import Policy, evaluate_policy
from plan_envs.instances import InstanceSet
from trm.bounded import one_line
from trm.compute.device import Placement
from trm.compute.process import ResourceMeter, graceful_stop, provenance
from trm.compute.workers import Workers, joined
from trm.runs.checkpoints import Checkpoint
from trm.runs.files import RunError
from trm.runs.progress import TrainingProgress
from trm.runs.recipe import load_recipe
from trm.runs.run import Run

_NAN = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)

Callback = Callable[[int, Mapping[str, float]], bool | None]
"""Called with the units made and the figures of each line of metrics.jsonl, in process 0; False
stops the training as a signal does."""


class NotFiniteError(ValueError):
    """A loss, gradient, optimiser or weight is NaN or infinite; one line, with step and name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a trainee is built with, besides its recipe."""

    env: str
    """The environment as run.json names it."""
    seed: int
    """Of every random stream."""
    placement: Placement
    """Where this process computes."""
    workers: Workers
    """The processes that train together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a training ended."""

    run: Run
    """Closed for writing."""
    finished: bool
    """Whether the budget is spent; otherwise a signal or the callback asked to stop, and the loop
    has said so."""
    is_main: bool
    """Whether this process speaks for all."""


class Trainee(ABC):
    """Everything that changes while a run is trained; a learner fulfils it by inheriting.

    `train` and `resume` begin a run and go on with one; `state` and `restore` make a trainee whole
    again. With several processes the loop calls each method in all of them at the same time.
    """

    kind: ClassVar[str]
    """Of the runs, as run.json records it."""
    recipe_type: ClassVar[type]
    """Dataclass of the recipes; their section `schedule` has `evaluate_every`, `checkpoint_every`
    and a field named by `unit`, the budget."""
    command: ClassVar[str]
    """Words after `upi-trm` that train and resume."""
    unit: ClassVar[str]
    """What `done` counts: edits or steps."""
    columns: ClassVar[Mapping[str, tuple[str, str]]]
    """Headings of the live display, each with a logged figure and its format."""
    best_by: ClassVar[str]
    """Figure of `evaluate` whose highest value gets the tag "best"; at least 0."""

    log_every: int = 1
    """Units between two lines of metrics."""
    done: int
    """Units made so far, over all processes."""

    @abstractmethod
    def __init__(self, recipe: Any, setting: Setting) -> None:
        """Build everything as it is before the first unit."""
        self.recipe, self.setting = recipe, setting

    @classmethod
    def pieces(cls, recipe: Any) -> tuple[int, int]:
        """Units of the shortest piece that `advance` makes, and of a whole one."""
        return 1, 1

    @classmethod
    def read_recipe(cls, path: Path | None, overrides: Sequence[str], **choice: Any) -> Any:
        """The recipe of a YAML file, None for the defaults, with `field=value` overrides.

        Args:
            path: the file.
            overrides: the assignments.
            choice: what a learner asks for besides, as `train` was given it.

        Raises:
            ValueError: one line that names file, field and value.
        """
        return load_recipe(cls.recipe_type, path, overrides, **choice)

    @classmethod
    def subject(cls, env: str, recipe: Any) -> tuple[str, str]:
        """What run.json keeps of an environment's name, and what a run of it is called.

        That is the task, with the module that registers it.

        Args:
            env: as the user wrote it, e.g. "sudoku4x4" or "my_module:MyTask".
            recipe: of the run.
        """
        task, (module, _, _) = resolve_task(env), env.rpartition(":")
        recorded = task.name if module in ("", "plan_envs") else f"{module}:{task.name}"
        return recorded, task.name

    @classmethod
    def train(
        cls,
        *,
        env: str = "",
        recipe_path: Path | None,
        overrides: Sequence[str] = (),
        name: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        out: Path | None = None,
        placement: Placement,
        callback: Callback | None = None,
        **choice: Any,
    ) -> Outcome:
        """Start a run and train until its budget is spent, or a signal or the callback stops it.

        Args:
            env: a task's name or a PlanEdit id, for learners whose recipes name no data.
            recipe_path: YAML file; None for the defaults.
            overrides: `field=value` assignments.
            name: for the default of `out`; None for that of `subject`.
            steps: budget in units (edits over all parallel plans, optimiser steps), never exceeded;
                None for the recipe's.
            seed: of every random stream.
            out: run folder to make; None for `runs/<name>-seed<seed>-<time>`.
            placement: device, precision, threads.
            callback: sees the metrics as they are logged.
            choice: what `read_recipe` asks for besides.

        Raises:
            ValueError: bad input, named in one line; then there is no folder.
            RunError: the folder exists and is not empty, or can't be written.
        """
        budget = [] if steps is None else [f"schedule.{cls.unit}={steps}"]
        recipe = cls.read_recipe(recipe_path, [*overrides, *budget], **choice)
        env, usual_name = cls.subject(env, recipe)
        if out is None:
            time_of_day = time.strftime("%Y%m%d-%H%M%S")
            out = Path("runs") / f"{name or usual_name}-seed{seed}-{time_of_day}"
        with joined() as workers:
            placement = workers.place(placement)
            placement.apply()
            trainee = cls(recipe, Setting(env=env, seed=seed, placement=placement, workers=workers))
            run = None
            if workers.is_main:
                processes = {} if workers.size == 1 else {"processes": workers.size}
                run = Run.create(
                    out,
                    kind=cls.kind,
                    env=env,
                    seed=seed,
                    recipe=recipe,
                    provenance=provenance(placement),
                    extra={**processes, **trainee.recorded()},
                )
            path = workers.from_main(str(out))
            with run or Run.open(Path(path)) as run:
                return _Loop(run, trainee, callback).train()

    @classmethod
    def resume(cls, run_path: Path, *, steps: int | None = None, placement: Placement) -> Outcome:
        """Go on with a run from its newest checkpoint.

        Args:
            run_path: the run's folder.
            steps: extends or shortens the budget; the recipe stays as it was. A run whose last
                piece was cut short by an earlier budget goes on from before that piece, so that it
                equals a training in one go, as far as its schedules do not depend on budgets.
            placement: without a thread count the run keeps that of its newest checkpoint, since
                sums over other threads round differently.

        Raises:
            RunError: not a run of this kind, or its newest checkpoint or metrics.jsonl is damaged.
            NotFiniteError: the newest checkpoint holds what is not finite.
            ValueError: it was begun by another number of processes, or can't be trained on.
        """
        with joined() as workers:
            placement = workers.place(placement)
            run = Run.open(run_path, kind=cls.kind, write=True) if workers.is_main else None
            workers.from_main(None)  # what an interrupted writer left is cleared away
            with run or Run.open(run_path, kind=cls.kind) as run:
                _check_size(run, workers)
                recipe: Any = run.load_recipe(cls.recipe_type)
                step = _step_to_go_on_from(run, cls, recipe, steps)
                checkpoint = None if step is None else run.load_checkpoint(step)
                placement = _with_threads(placement, run, checkpoint)
                placement.apply()
                setting = Setting(
                    env=run.info.env, seed=run.info.seed, placement=placement, workers=workers
                )
                loop = _Loop(run, cls(recipe, setting))
                loop.begin_at(checkpoint)
                return loop.train(steps)

    def recorded(self) -> dict[str, Any]:
        """JSON values that run.json records, beside what it has of every run."""
        return {}

    @abstractmethod
    def spent(self, budget: int) -> bool:
        """Whether nothing more fits into the budget."""

    @abstractmethod
    def advance(self, budget: int) -> None:
        """Train a piece; the budget is the end of its schedules and is not exceeded."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """What training has to say since it was last asked."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures on validation instances, the same in every process."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Named tensors of a checkpoint."""

    @abstractmethod
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """By name; their gradients and their own tensors must stay finite, as the weights must."""

    @abstractmethod
    def state(self, run: Run) -> dict[str, Any]:
        """Everything else that resuming needs, of all processes; see `trm.runs.packing`.

        What is too large for it may be written to files of its own in the run's folder.
        """

    def saved(self, run: Run) -> None:  # noqa: B027 (most learners keep all in the state)
        """The checkpoint of the last `state` is whole: files of older ones may be deleted."""

    @abstractmethod
    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        """Take up a checkpoint: the counterpart of `weights` and `state`.

        Raises:
            RunError: it does not fit the recipe, or a file is missing.
            ValueError: it can't be trained on.
        """


def play_validation(policy: Policy, task: Task, instances: InstanceSet) -> dict[str, float]:
    """The figures of a greedy policy on validation puzzles, as metrics.jsonl names them."""
    report = evaluate_policy(policy, task.domain, instances)
    return {
        "success_rate": report.success_rate,
        "mean_score": report.mean_score,
        "improvement": report.improvement,
        **report.details,
    }


class _Loop:
    """A run being trained: its trainee, the best evaluation, what it cost, what is saved."""

    def __init__(self, run: Run, trainee: Trainee, callback: Callback | None = None) -> None:
        self.run, self.trainee, self.workers = run, trainee, trainee.setting.workers
        self.callback, self.called_off = callback, False
        self.best = -1.0
        self.saved_at = -1
        self.meter = ResourceMeter()

    def begin_at(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint, or start again; metrics that were written later are dropped.

        Raises:
            RunError: the checkpoint is of another recipe, or metrics.jsonl is damaged.
            NotFiniteError: the checkpoint holds what is not finite.
        """
        if checkpoint is not None:
            _restore(self.trainee, checkpoint, self.run)
            self.best = checkpoint.state["best"]
            self.meter = ResourceMeter(checkpoint.state["usage"])
            self.saved_at = self.trainee.done
            problem = next(self._not_finite({}), None)
            if problem is not None:
                raise NotFiniteError(
                    f"{self.run.path}: checkpoint {checkpoint.step} can't be trained on: {problem}"
                )
            if self.workers.is_main and not self.run.check_metrics(checkpoint):
                click.echo(
                    f"warning: {self.run.path / 'metrics.jsonl'}: missing: its lines up to"
                    f" {self.saved_at} are lost",
                    err=True,
                )
        if self.workers.is_main:
            self.run.truncate_metrics(self.trainee.done)

    def train(self, steps: int | None = None) -> Outcome:
        """Advance until the budget is spent; save on a signal and at the end."""
        trainee, workers = self.trainee, self.workers
        of_recipe: int = getattr(trainee.recipe.schedule, trainee.unit)
        budget = of_recipe if steps is None else steps
        spent = trainee.spent(budget)
        with (
            graceful_stop() as stop,
            TrainingProgress(
                budget,
                {heading: form for heading, (_, form) in trainee.columns.items()},
                unit=trainee.unit,
                start=trainee.done,
                console=None if workers.is_main else Console(quiet=True),
            ) as progress,
        ):
            while not spent and not workers.any(stop.requested or self.called_off):
                if self._is_cut_short(budget) and self.saved_at != trainee.done > 0:
                    self._save()
                before = trainee.done
                try:
                    trainee.advance(budget)
                    spent = trainee.spent(budget)
                    self._after(before, spent, progress)
                except NotFiniteError:
                    raise
                except Exception as error:
                    # Linear algebra and distributions refuse NaN in words of their own.
                    problem = next(self._not_finite({}), None) or _said_of_nan(error)
                    if problem is None:
                        raise
                    raise self._stopped_at(problem) from error
            if self.saved_at != trainee.done:
                self._save()
            if not spent:
                callback = "the callback" if self.called_off else None
                who = stop.signal_name or callback or "another process"
                progress.note(
                    f"stopped by {who} after {trainee.done}"
                    f" {trainee.unit}; go on with upi-trm {trainee.command} --resume"
                    f" {self.run.path}"
                )
        return Outcome(run=self.run, finished=spent, is_main=workers.is_main)

    def _after(self, before: int, spent: bool, progress: TrainingProgress) -> None:
        """Log, evaluate and save what is due after the trainee advanced from `before`."""
        trainee, schedule = self.trainee, self.trainee.recipe.schedule

        def due(every: int) -> bool:
            """Whether a multiple of `every` lies in (before, done]."""
            return before // every != trainee.done // every

        figures = trainee.figures() if spent or due(trainee.log_every) else {}
        if figures or due(schedule.evaluate_every):
            self._check_finite(figures)
        evaluation: dict[str, float] = {}
        if spent or due(schedule.evaluate_every):
            cost = {"seconds_cpu": self.meter.state_dict()["cpu_seconds"]}
            evaluation = trainee.evaluate() | cost
        metrics, tag = figures | evaluation, None
        if metrics and self.workers.is_main:
            self.run.log(trainee.done, metrics)
            if self.callback is not None and self.callback(trainee.done, metrics) is False:
                self.called_off = True
        progress.update(trainee.done)
        if evaluation:
            shown = {heading: figure for heading, (figure, _) in trainee.columns.items()}
            progress.report(
                trainee.done, {h: metrics[name] for h, name in shown.items() if name in metrics}
            )
            if evaluation[trainee.best_by] > self.best:
                self.best, tag = evaluation[trainee.best_by], "best"
        if tag or due(schedule.checkpoint_every):
            self._save(tag)

    def _save(self, tag: str | None = None) -> None:
        """Write a checkpoint; the tag "best" marks the best evaluation so far.

        Raises:
            NotFiniteError: there is something in it that is not finite; nothing is written.
        """
        self._check_finite({})
        trainee = self.trainee
        state = {
            **trainee.state(self.run),
            "best": self.best,
            "usage": self.meter.state_dict(),
            "torch_threads": torch.get_num_threads(),
        }
        if self.workers.is_main:
            self.run.save_checkpoint(trainee.done, weights=trainee.weights(), state=state, tag=tag)
            trainee.saved(self.run)
        self.workers.from_main(None)  # a checkpoint is there for all before anyone goes on
        self.saved_at = trainee.done

    def _is_cut_short(self, budget: int) -> bool:
        """Whether the next piece is shorter than others, since the budget ends."""
        shortest, whole = self.trainee.pieces(self.trainee.recipe)
        return shortest <= budget - self.trainee.done < whole

    def _check_finite(self, figures: Mapping[str, float]) -> None:
        problem = next(self._not_finite(figures), None)
        if self.workers.any(problem is not None):
            raise self._stopped_at(problem or "another process has found what is not finite")

    def _not_finite(self, figures: Mapping[str, float]) -> Iterator[str]:
        """What is NaN or infinite among losses, gradients, optimisers and weights, in words."""
        tensors = self.trainee.weights()
        for name, value in figures.items():
            if "loss" in name and not math.isfinite(value):
                yield f"the loss {name} is {value}"
        for optimiser, found in self.trainee.optimisers().items():
            for tensor in _gradients(found):
                if not torch.isfinite(tensor).all():
                    yield f"the gradient's norm is {float(tensor.norm())} in the {optimiser}"
            for tensor in _moments(found):
                if not torch.isfinite(tensor).all():
                    yield f"a moment of the {optimiser} is not finite"
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                yield f"the weight {name} is not finite"

    def _stopped_at(self, problem: str) -> NotFiniteError:
        trainee, steps = self.trainee, self.run.checkpoint_steps()
        last = f"checkpoint {steps[-1]} is the last finite one" if steps else "nothing was saved"
        return NotFiniteError(
            f"{self.run.path}: training stopped at {trainee.done} {trainee.unit}: {problem}; {last}"
        )


def _said_of_nan(error: Exception) -> str | None:
    """What an error of torch or numpy says of NaN and infinity, cut to a readable length."""
    message = one_line(error)
    if isinstance(error, RunError | OSError) or not _NAN.search(message):
        return None
    return f"a value is not finite: {message[:100]}"


def _gradients(optimiser: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter.grad


def _moments(optimiser: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimiser.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                yield value


def _restore(trainee: Trainee, checkpoint: Checkpoint, run: Run) -> None:
    """Take up a checkpoint whose state may have been written by another program.

    Raises:
        RunError: it lacks what the trainee needs.
        ValueError: the trainee refuses it.
    """
    try:
        trainee.restore(checkpoint, run)
        float(checkpoint.state["best"]), checkpoint.state["usage"]
    except ValueError:
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"{run.path}: checkpoint {checkpoint.step} does not fit:"
            f" {type(error).__name__}: {one_line(error)}"
        ) from error


def _step_to_go_on_from(
    run: Run, make: type[Trainee], recipe: Any, steps: int | None
) -> int | None:
    """The newest checkpoint; but one at the end of a whole piece, where the budget asks for more.

    A budget that is no multiple of a piece ends with a shorter one; an optimiser step over it is
    another than that over the whole piece. None begins again.

    Raises:
        RunError: there is no checkpoint before the short piece; names the budgets that can be
            extended.
    """
    present = run.checkpoint_steps()
    if not present:
        return None
    newest = present[-1]
    shortest, whole = make.pieces(recipe)
    budget: int = getattr(recipe.schedule, make.unit) if steps is None else steps
    if newest % whole == 0 or budget - newest < shortest:
        return newest
    before = [step for step in present if step % whole == 0]
    if before or newest < whole:
        return before[-1] if before else None
    raise RunError(
        f"{run.path}: its training ended at {newest} {make.unit}, inside a piece of {whole}, and no"
        f" checkpoint at a multiple of {whole} is left to go on from; a training to a multiple can"
        f" be extended ({newest // whole * whole}, {(newest // whole + 1) * whole}, ...)"
    )


def _check_size(run: Run, workers: Workers) -> None:
    # Runs of kind "supervised" said "world" before they said "processes".
    size = run.info.extra.get("processes", run.info.extra.get("world", 1))
    if size != workers.size:
        raise ValueError(
            f"{run.path}: was trained on {size} processes and goes on with as many, got"
            f" {workers.size} (torchrun --nproc-per-node {size} -m upi_trm ...)"
        )


def _with_threads(placement: Placement, run: Run, checkpoint: Checkpoint | None) -> Placement:
    if placement.threads is not None:
        return placement
    last = run.info.provenance if checkpoint is None else checkpoint.state
    return dataclasses.replace(placement, threads=last.get("torch_threads"))
