"""The training loop around an `Objective`: run folder, evaluation, checkpoints, resuming.

Input: a recipe. Output: a `Run` folder that `upi-trm supervised eval` takes. A run that was stopped
and resumed equals one that never stopped, bit for bit on the CPU at the same number of threads: the
carried batch, the stream of samples, the optimiser, the running average and every random stream are
in its checkpoints.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from plan_envs.catalogue import resolve_task
from supervised.data_sets.datasets import BoardDataset, TokenDataset
from supervised.data_sets.fixed_images import FixedImages
from supervised.data_sets.folders import open_dataset
from supervised.data_sets.sampling import SampleStream
from supervised.measures.evaluation import EvalOptions, Evaluation, evaluate
from supervised.objectives.act import ActObjective
from supervised.objectives.dis import DisObjective
from supervised.objectives.supervision_step import Objective
from supervised.planner.cache_manifest import data_hash, teacher_hash
from supervised.planner.distill import Distillation
from supervised.planner.teacher_cache import TeacherCache
from supervised.processes import Processes, joined
from supervised.recipe import DataConfig, SupervisedRecipe
from trm.compute.device import Placement
from trm.compute.process import ResourceMeter, graceful_stop, provenance
from trm.compute.streams import named_streams
from trm.nn.optim import RunningAverage, set_learning_rate, sign_sgd_
from trm.nn.token_model import TokenModel, TokenShape
from trm.runs.checkpoints import Checkpoint
from trm.runs.progress import TrainingProgress
from trm.runs.recipe import load_recipe
from trm.runs.run import Run

RUN_KIND = "supervised"
"""`kind` of the runs that this learner writes."""

COLUMNS = {"exact": ".1%", "valid": ".1%", "tokens": ".1%", "loss": ".3f", "passes": ".2f"}
"""What the live display shows, beside optimiser steps, their speed and time left."""

_AVERAGE = "average."
"""Before the name of a weight in a checkpoint: its running average."""


def train(
    *,
    recipe_path: Path | None,
    overrides: Sequence[str] = (),
    name: str = "run",
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    placement: Placement,
) -> Run | None:
    """Start a run and train until its budget is spent or a signal asks to stop.

    Args:
        recipe_path: YAML file.
        overrides: `field=value` assignments.
        name: of the recipe, for the default of `out`.
        steps: budget in optimiser steps; None for the recipe's.
        seed: of every random stream.
        out: run folder to make; None for `runs/<name>-seed<seed>-<time>`.
        placement: device, precision, threads.

    Returns:
        The run, closed for writing; None in a process that does not lead.

    Raises:
        ValueError: bad input, named in one line.
    """
    if steps is not None:
        overrides = [*overrides, f"schedule.steps={steps}"]
    recipe = load_recipe(SupervisedRecipe, recipe_path, overrides)
    placement.apply()
    if out is None:
        out = Path("runs") / f"{name}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    with joined(placement.kind) as processes:
        training = _Training(recipe, seed, placement, processes)
        if not processes.leads:
            training.loop(recipe.schedule.steps)
            return None
        info = training.stream.dataset.info
        with Run.create(
            out,
            kind=RUN_KIND,
            env=info.domain,
            seed=seed,
            recipe=recipe,
            provenance=provenance(placement),
            extra={
                "data": info.name,
                "data_hash": info.hash,
                "num_positions": info.num_positions,
                "world": processes.world,
                **training.taught_by,
            },
        ) as run:
            training.run = run
            training.loop(recipe.schedule.steps)
        return run


def resume(run_path: Path, *, steps: int | None = None, placement: Placement) -> Run | None:
    """Go on with a run from its newest checkpoint; see `train`.

    `steps` extends or shortens the budget. Without a thread count in `placement` the run keeps that
    of its newest checkpoint, since sums over other threads round differently.
    """
    with joined(placement.kind) as processes:
        with Run.open(run_path, kind=RUN_KIND, write=processes.leads) as run:
            checkpoint = run.load_checkpoint() if run.checkpoint_steps() else None
            if run.info.extra.get("world", 1) != processes.world:
                raise ValueError(
                    f"{run_path}: made by {run.info.extra.get('world', 1)} processes, resumed by"
                    f" {processes.world}"
                )
            if placement.threads is None:
                last = run.info.provenance if checkpoint is None else checkpoint.state
                placement = dataclasses.replace(placement, threads=last.get("torch_threads"))
            placement.apply()
            recipe = run.load_recipe(SupervisedRecipe)
            training = _Training(recipe, run.info.seed, placement, processes)
            if processes.leads:
                training.run = run
            if checkpoint is not None:
                training.restore(checkpoint)
            elif processes.leads:
                run.truncate_metrics(0)  # stopped before its first checkpoint: it starts again
            training.loop(recipe.schedule.steps if steps is None else steps)
        return run if processes.leads else None


def load_model(
    run: Run, *, step: int | str | None = None, placement: Placement | None = None
) -> tuple[TokenModel, SupervisedRecipe]:
    """The model of a run with the weights to evaluate: the running average where there is one.

    Args:
        run: of kind `RUN_KIND`.
        step: checkpoint, "best", or None for the newest.
        placement: where the model goes; None for the CPU.
    """
    recipe = run.load_recipe(SupervisedRecipe)
    weights = run.load_checkpoint(step).weights
    table = weights["model.puzzle_table"]
    shape = TokenShape(
        vocab_size=len(weights["model.token_table"]),
        num_positions=run.info.extra["num_positions"],
        num_puzzles=len(table),
    )
    model = make_model(recipe, shape, torch.Generator())
    load_weights(model, weights)
    for name, parameter in model.named_parameters():
        if _AVERAGE + name in weights:
            parameter.data.copy_(weights[_AVERAGE + name])
    model.requires_grad_(False)
    return model.to(placement.torch_device if placement else "cpu"), recipe


def save_import(model: TokenModel, recipe: SupervisedRecipe, out: Path, *, source: str) -> None:
    """A run folder of weights that were made elsewhere; it can be evaluated, not resumed.

    Raises:
        RunError: the folder exists and is not empty, or can't be written.
    """
    domain = recipe.data.domain
    if domain is None:
        assert recipe.data.task is not None
        domain = resolve_task(recipe.data.task).domain.spec.name
    extra = {"imported": source, "num_positions": model.shape.num_positions, "world": 1}
    with Run.create(
        out,
        kind=RUN_KIND,
        env=domain,
        seed=0,
        recipe=recipe,
        provenance=provenance(Placement()),
        extra=extra,
    ) as run:
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        run.save_checkpoint(0, weights=weights, state={"steps": 0})


def make_model(
    recipe: SupervisedRecipe, shape: TokenShape, generator: torch.Generator
) -> TokenModel:
    """A fresh model of a recipe."""
    model = TokenModel(shape, recipe.model, recipe.recursion, generator=generator)
    model.recompute = recipe.recompute
    return model


def load_weights(model: TokenModel, weights: Mapping[str, Tensor]) -> None:
    """The weights of a checkpoint, running average aside, every key accounted for."""
    prefix = "model."
    model.load_state_dict(
        {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    )


def open_data(config: DataConfig, split: str, *, seed: int, num: int | None = None) -> TokenDataset:
    """One split of a recipe's data.

    Args:
        config: the recipe's section.
        split: train, validation or test.
        seed: of the training examples of a task and of fixed copies, where the recipe names none.
        num: examples of a task's other splits, None for the task's own number.
    """
    seed = seed if config.seed is None else config.seed
    dataset: TokenDataset
    if config.folder is not None:
        dataset = open_dataset(config.folder, split)
        if dataset.info.domain != config.domain:
            raise ValueError(
                f"{config.folder}: domain is {dataset.info.domain!r}, data.domain says"
                f" {config.domain!r}"
            )
    else:
        assert config.task is not None
        task = resolve_task(config.task)
        if split == "train":
            instances = task.instances("train", num=config.num, seed=seed, **config.options)
        else:
            instances = task.instances(split, num=num, **config.options)
        dataset = BoardDataset.of(task.domain, instances)
    if split == "train" and config.copies is not None:
        return FixedImages(dataset, config.copies, seed=seed)
    return dataset


class _Training:
    """Everything that changes while a run is trained; `state` and `restore` make it whole again."""

    def __init__(
        self, recipe: SupervisedRecipe, seed: int, placement: Placement, processes: Processes
    ) -> None:
        self.run: Run | None = None
        self.recipe, self.placement, self.processes = recipe, placement, processes
        own = "" if processes.rank == 0 else f"-{processes.rank}"
        self._images, self._noise = f"images{own}", f"noise{own}"
        names: tuple[str, ...] = ("order", "init", self._images, self._noise)
        self._entries = f"entries{own}"
        if recipe.distill is not None:
            names = (*names, self._entries)
        self.streams = named_streams(seed, names)
        data = recipe.data
        num = recipe.schedule.evaluate_num
        self.validation = open_data(data, "validation", seed=seed, num=num)
        dataset = open_data(data, "train", seed=seed)
        self.stream = SampleStream(
            dataset,
            order=self.streams.numpy("order"),
            images=self.streams.numpy(self._images) if data.augment and not data.copies else None,
            rank=processes.rank,
            world=processes.world,
        )
        info = dataset.info
        shape = TokenShape(
            vocab_size=info.vocab_size,
            num_positions=info.num_positions,
            num_puzzles=info.num_puzzles,
        )
        model = make_model(recipe, shape, self.streams.torch("init"))
        self.taught_by: dict[str, str] = {}
        """Hashes of the teacher and of its cache's manifest, for run.json."""
        cache = self._teach(model, dataset)
        self.model = model.to(placement.torch_device)
        self.model.compile_networks(placement.compiled)
        self.optimiser = recipe.optimiser.dense(self.model.parameters())
        decay = recipe.optimiser.average
        self.average = None if decay is None else RunningAverage(self.model, decay)
        self.objective = self._make_objective(cache)
        self.steps = 0
        self.best = -1.0
        self.train_seconds = 0.0
        self.meter = ResourceMeter()

    def _teach(self, model: TokenModel, dataset: TokenDataset) -> TeacherCache | None:
        """Give a fresh model the teacher's weights, and open its cache, as the recipe says."""
        recipe = self.recipe
        if recipe.distill is None and recipe.start == "fresh":
            return None
        if recipe.teacher is None:
            raise ValueError("teacher: a run is needed by distill and by start 'teacher', got null")
        teacher, _ = load_model(Run.open(Path(recipe.teacher), kind=RUN_KIND))
        self.taught_by["teacher"] = teacher_hash(teacher)
        if recipe.start == "teacher":
            try:
                model.load_state_dict(teacher.state_dict())
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"teacher: {recipe.teacher}: another model: {reason}") from None
        if recipe.distill is None:
            return None
        if recipe.distill.cache is None:
            raise ValueError("distill.cache: the folder of a teacher cache is needed, got null")
        cache = TeacherCache.open(
            Path(recipe.distill.cache), teacher=self.taught_by["teacher"], data=data_hash(dataset)
        )
        self.taught_by["cache"] = cache.manifest.digest
        return cache

    def _make_objective(self, cache: TeacherCache | None) -> Objective:
        recipe, world = self.recipe, self.processes.world
        if recipe.batch_size % world:
            raise ValueError(
                f"batch_size must be a multiple of {world} processes, got {recipe.batch_size}"
            )
        size, noise = recipe.batch_size // world, self.streams.torch(self._noise)
        if recipe.act is not None:
            distillation = None
            if cache is not None and recipe.distill is not None:
                distillation = Distillation(
                    cache,
                    recipe.distill,
                    batch_size=size,
                    rng=self.streams.numpy(self._entries),
                    device=self.placement.torch_device,
                )
            return ActObjective(
                self.model,
                self.stream,
                recipe.act,
                batch_size=size,
                noise=noise,
                distillation=distillation,
            )
        assert recipe.dis is not None
        return DisObjective(self.model, self.stream, recipe.dis, batch_size=size, noise=noise)

    def loop(self, budget: int) -> None:
        """Optimise until `budget` steps are done; save on a signal and at the end."""
        schedule = self.recipe.schedule
        last_saved = self.steps if self.run and self.run.checkpoint_steps() else -1
        with (
            graceful_stop() as stop,
            TrainingProgress(budget, COLUMNS, unit="steps", start=self.steps) as progress,
        ):
            spent = False
            while self.steps < budget and not spent:
                if self.processes.any(stop.requested):
                    break
                self.optimise(budget)
                spent = self._spent()
                finished = self.steps == budget or spent
                metrics: dict[str, float] = {}
                if finished or self.steps % schedule.log_every == 0:
                    metrics |= self.figures()
                tag = None
                if finished or self.steps % schedule.evaluate_every == 0:
                    found = self.evaluate()
                    metrics |= {name: getattr(found.last, name) for name in _LOGGED}
                    tag = "best" if self._is_best(found.last.valid) else None
                if metrics:
                    self._log(metrics, progress)
                if tag or self.steps % schedule.checkpoint_every == 0:
                    self.save(tag)
                    last_saved = self.steps
            if last_saved != self.steps:
                self.save()
            if stop.requested and self.run is not None:
                progress.note(
                    f"stopped by {stop.signal_name} after {self.steps} steps; go on with"
                    f" upi-trm supervised train --resume {self.run.path}"
                )

    def optimise(self, budget: int) -> None:
        """One optimiser step, over as many supervision steps as the objective asks for."""
        began = time.process_time()
        optimiser = self.recipe.optimiser
        share = optimiser.share(self.steps + 1, total=budget)
        self.optimiser.zero_grad(set_to_none=True)
        read: list[tuple[Tensor, Tensor]] = []
        complete = False
        while not complete:
            with self.placement.autocast():
                step = self.objective.step()
            step.loss.backward()
            if step.rows.grad is not None:
                read.append((step.puzzle, step.rows.grad))
            complete = step.complete
        self.processes.average_gradients(self.model.parameters())
        if optimiser.gradient_limit is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), optimiser.gradient_limit)
        set_learning_rate(self.optimiser, share * optimiser.learning_rate)
        self.optimiser.step()
        if read and self.model.config.puzzle_channels:
            puzzle, gradient = (torch.cat(parts) for parts in zip(*read, strict=True))
            puzzle, gradient = self.processes.gather_rows(puzzle, gradient)
            sign_sgd_(
                self.model.puzzle_table,
                puzzle,
                gradient,
                learning_rate=share * optimiser.puzzle_learning_rate,
                weight_decay=optimiser.puzzle_weight_decay,
            )
        if self.average is not None:
            self.average.update()
        self.steps += 1
        self.train_seconds += time.process_time() - began

    def _spent(self) -> bool:
        limit = self.recipe.schedule.cpu_seconds
        return limit is not None and self.processes.any(self.train_seconds >= limit)

    def figures(self) -> dict[str, float]:
        """What the objective gathered, means over processes, and how many passes it took."""
        every = self.processes.gather((self.objective.figures.take(), self.stream.drawn))
        names = {name for figures, _ in every for name in figures}
        means = {
            f"train_{name}": sum(values) / len(values)
            for name in sorted(names)
            for values in [[figures[name] for figures, _ in every if name in figures]]
        }
        return means | {"sample_passes": sum(drawn for _, drawn in every)}

    def evaluate(self) -> Evaluation:
        """Validation examples, shared among the processes, with the running average if any."""
        options = EvalOptions(
            num=self.recipe.schedule.evaluate_num,
            feeds="input" if self.recipe.dis is None else self.recipe.dis.feeds,
        )
        with self.placement.autocast():
            swapped = self.average.in_place() if self.average else contextlib.nullcontext()
            with swapped:
                return evaluate(self.model, self.validation, options, processes=self.processes)

    def _log(self, metrics: Mapping[str, float], progress: TrainingProgress) -> None:
        if self.run is not None:
            self.run.log(self.steps, metrics)
        progress.update(self.steps)
        if "exact" in metrics:
            shown = {
                "exact": metrics["exact"],
                "valid": metrics["valid"],
                "tokens": metrics["token_accuracy"],
                "loss": metrics["loss"],
            }
            if "sample_passes" in metrics:
                shown["passes"] = metrics["sample_passes"] / len(self.stream.dataset)
            progress.report(self.steps, shown)

    def _is_best(self, valid: float) -> bool:
        """Whether no earlier evaluation on the validation examples was as good; remembers it."""
        better = valid > self.best
        self.best = max(self.best, valid)
        return better

    def save(self, tag: str | None = None) -> None:
        """Write a checkpoint; the tag "best" marks the most valid validation examples so far."""
        shares = self.processes.gather(
            {
                "objective": self.objective.state(),
                "stream": self.stream.state(),
                "streams": self.streams.state_dict(),
            }
        )
        if self.run is None:
            return
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            weights |= {_AVERAGE + name: v for name, v in self.average.average.items()}
        state = {
            "steps": self.steps,
            "best": self.best,
            "train_seconds": self.train_seconds,
            "optimiser": self.optimiser.state_dict(),
            "shares": shares,
            "usage": self.meter.state_dict(),
            "torch_threads": torch.get_num_threads(),
        }
        self.run.save_checkpoint(self.steps, weights=weights, state=state, tag=tag)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint; metrics written after it are dropped."""
        state = checkpoint.state
        if "optimiser" not in state:
            raise ValueError(
                f"{self.run.path if self.run else 'run'}: holds imported weights alone, without the"
                " optimiser that resuming needs"
            )
        self.steps, self.best = state["steps"], state["best"]
        self.train_seconds = state["train_seconds"]
        load_weights(self.model, checkpoint.weights)
        if self.average is not None:
            self.average.load(
                {
                    name.removeprefix(_AVERAGE): value
                    for name, value in checkpoint.weights.items()
                    if name.startswith(_AVERAGE)
                }
            )
        self.optimiser.load_state_dict(state["optimiser"])
        share = state["shares"][self.processes.rank]
        self.objective.load_state(share["objective"])
        self.stream.load_state(share["stream"])
        self.streams.load_state_dict(share["streams"])
        self.meter = ResourceMeter(state["usage"])
        if self.run is not None:
            self.run.truncate_metrics(self.steps)


_LOGGED = ("exact", "valid", "token_accuracy", "loss", "hamming", "margin")
"""Figures of an evaluation's last step that metrics.jsonl holds."""
