"""ACT or DIS on labelled boards, as `trm.experiments.training` trains them.

Input: a recipe. Output: a `Run` folder that `upi-trm supervised eval` takes. The carried batch, the
stream of samples, the optimiser, the running average and every random stream are in its
checkpoints. Several processes take their shares of each batch and average the gradients.
"""

import contextlib
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from supervised.data_sets.datasets import TokenDataset
from supervised.data_sets.sampling import Reveal, SampleStream
from supervised.measures.evaluation import EvalOptions, evaluate
from supervised.models import RUN_KIND, load_model, make_model, open_data
from supervised.objectives.act import ActObjective
from supervised.objectives.dis import DisObjective
from supervised.planner.cache_manifest import data_hash, teacher_hash
from supervised.planner.distill import Distillation
from supervised.planner.teacher_cache import TeacherCache
from supervised.recipe import SupervisedRecipe, shape_of
from trm.compute.streams import named_streams
from trm.experiments.training import Setting, Trainee
from trm.nn.optim import RunningAverage, set_learning_rate, sign_sgd_
from trm.nn.token_model import TokenModel
from trm.runs.checkpoints import Checkpoint, part_of
from trm.runs.run import Run

_LOGGED = ("exact", "valid", "token_accuracy", "loss", "hamming", "margin")
"""Figures of an evaluation's last step that metrics.jsonl holds."""


class SupervisedTraining(Trainee):
    """The model, its optimiser and running average, the objective and the stream of samples."""

    kind = RUN_KIND
    recipe_type = SupervisedRecipe
    command = "supervised train"
    unit = "steps"
    columns: ClassVar = {
        "exact": ("exact", ".1%"),
        "valid": ("valid", ".1%"),
        "tokens": ("token_accuracy", ".1%"),
        "loss": ("loss", ".3f"),
        "samples": ("sample_passes", ",.0f"),
    }
    best_by = "valid"
    recipe: SupervisedRecipe

    @classmethod
    def subject(cls, env: str, recipe: SupervisedRecipe) -> tuple[str, str]:
        """The domain of the recipe's data."""
        return recipe.data.domain_name, "run"

    def __init__(self, recipe: SupervisedRecipe, setting: Setting) -> None:
        """Read the data, draw the weights or take the teacher's.

        Raises:
            ValueError: data, teacher or cache are missing or do not fit, or the processes can't
                share the batch evenly.
        """
        super().__init__(recipe, setting)
        self.log_every = recipe.schedule.log_every
        self.done = 0
        self.train_seconds = 0.0
        """CPU time of training alone, without evaluations."""
        data, seed, workers = recipe.data, setting.seed, setting.workers
        own = "" if workers.is_main else f"-{workers.rank}"
        images, self._noise, self._entries = (f"{n}{own}" for n in ("images", "noise", "entries"))
        distils = () if recipe.distill is None else (self._entries,)
        reveals = (f"reveals{own}",) if data.revealed else ()
        self.streams = named_streams(
            seed, ("order", "init", images, self._noise, *distils, *reveals)
        )
        self.validation = open_data(data, "validation", seed=seed, num=recipe.schedule.evaluate_num)
        dataset = open_data(data, "train", seed=seed)
        self.stream = SampleStream(
            dataset,
            order=self.streams.numpy("order"),
            images=self.streams.numpy(images) if data.augment and not data.copies else None,
            reveal=Reveal(data.revealed, self.streams.numpy(*reveals)) if reveals else None,
            rank=workers.rank,
            world=workers.size,
        )
        info = dataset.info
        shape = shape_of(info.domain, num_puzzles=info.num_puzzles)
        model = make_model(recipe, shape, self.streams.torch("init"))
        self.taught_by: dict[str, str] = {}
        """Hashes of the teacher and of its cache's manifest, for run.json."""
        cache = self._teach(model, dataset)
        self.model = model.to(setting.placement.torch_device)
        self.model.compile_networks(setting.placement.compiled)
        self.optimiser = recipe.optimiser.dense(self.model.parameters())
        decay = recipe.optimiser.average
        self.average = None if decay is None else RunningAverage(self.model, decay)
        self.objective = self._make_objective(cache)

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

    def _make_objective(self, cache: TeacherCache | None) -> ActObjective | DisObjective:
        recipe = self.recipe
        size = self.setting.workers.share(recipe.batch_size, "batch_size")
        noise = self.streams.torch(self._noise)
        if recipe.dis is not None:
            return DisObjective(self.model, self.stream, recipe.dis, batch_size=size, noise=noise)
        assert recipe.act is not None
        distillation = None
        if cache is not None and recipe.distill is not None:
            distillation = Distillation(
                cache,
                recipe.distill,
                batch_size=size,
                rng=self.streams.numpy(self._entries),
                device=self.setting.placement.torch_device,
            )
        return ActObjective(
            self.model,
            self.stream,
            recipe.act,
            batch_size=size,
            noise=noise,
            distillation=distillation,
        )

    def recorded(self) -> dict[str, Any]:
        """The data set, and what taught the model."""
        info = self.stream.dataset.info
        data = {"data": info.name, "data_hash": info.hash, "num_positions": info.num_positions}
        return {**data, **self.taught_by}

    def spent(self, budget: int) -> bool:
        """Whether the steps are done, or some process has used up its CPU seconds."""
        limit = self.recipe.schedule.cpu_seconds
        late = limit is not None and self.setting.workers.any(self.train_seconds >= limit)
        return self.done >= budget or late

    def advance(self, budget: int) -> None:
        """One optimiser step, over as many supervision steps as the objective asks for."""
        began = time.process_time()
        optimiser, workers = self.recipe.optimiser, self.setting.workers
        share = optimiser.share(self.done + 1, total=budget)
        self.optimiser.zero_grad(set_to_none=True)
        read = self._backward()
        workers.average_gradients(self.model)
        if optimiser.gradient_limit is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), optimiser.gradient_limit)
        set_learning_rate(self.optimiser, share * optimiser.learning_rate)
        self.optimiser.step()
        if read and self.model.config.puzzle_channels:
            puzzle, gradient = (torch.cat(parts) for parts in zip(*read, strict=True))
            sign_sgd_(
                self.model.puzzle_table,
                workers.join_rows(puzzle),
                workers.join_rows(gradient),
                learning_rate=share * optimiser.puzzle_learning_rate,
                weight_decay=optimiser.puzzle_weight_decay,
            )
        if self.average is not None:
            self.average.update()
        self.done += 1
        self.train_seconds += time.process_time() - began

    def _backward(self) -> list[tuple[Tensor, Tensor]]:
        """Gather gradients; returns the puzzle rows that were read and their gradients."""
        read: list[tuple[Tensor, Tensor]] = []
        complete = False
        while not complete:
            with self.setting.placement.autocast():
                step = self.objective.step()
            step.loss.backward()
            if step.rows.grad is not None:
                read.append((step.puzzle, step.rows.grad))
            complete = step.complete
        return read

    def figures(self) -> dict[str, float]:
        """What the objective gathered, means over processes, and how many passes it took."""
        taken = (self.objective.figures.take(), self.stream.drawn)
        every = self.setting.workers.gather(taken)
        names = {name for figures, _ in every for name in figures}
        means = {
            f"train_{name}": sum(values) / len(values)
            for name in sorted(names)
            for values in [[figures[name] for figures, _ in every if name in figures]]
        }
        return means | {"sample_passes": sum(drawn for _, drawn in every)}

    def evaluate(self) -> dict[str, float]:
        """Validation examples, shared among the processes, with the running average if any."""
        options = EvalOptions(num=self.recipe.schedule.evaluate_num, **self.recipe.as_trained)
        swapped = self.average.in_place() if self.average else contextlib.nullcontext()
        with self.setting.placement.autocast(), swapped:
            found = evaluate(self.model, self.validation, options, workers=self.setting.workers)
        return {name: getattr(found.last, name) for name in _LOGGED}

    def weights(self) -> dict[str, Tensor]:
        """Of the model, and their running average."""
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        average = {} if self.average is None else self.average.average
        return weights | {f"average.{name}": value for name, value in average.items()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The dense one; the puzzle table has none of its own."""
        return {"optimiser": self.optimiser}

    def state(self, run: Run) -> dict[str, Any]:
        """Of the optimiser, which is the same everywhere, and the share of every process."""
        share = {
            "objective": self.objective.state(),
            "stream": self.stream.state(),
            "streams": self.streams.state_dict(),
        }
        return {
            "steps": self.done,
            "train_seconds": self.train_seconds,
            "optimiser": self.optimiser.state_dict(),
            "shares": self.setting.workers.gather(share),
        }

    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        """Take up a checkpoint.

        Raises:
            ValueError: the run holds imported weights alone.
        """
        state = checkpoint.state
        if "optimiser" not in state:
            raise ValueError(
                f"{run.path}: holds imported weights alone, without the optimiser that resuming"
                " needs"
            )
        self.done = state["steps"]
        self.train_seconds = state["train_seconds"]
        self.model.load_state_dict(part_of(checkpoint.weights, "model"))
        if self.average is not None:
            self.average.load(part_of(checkpoint.weights, "average"))
        self.optimiser.load_state_dict(state["optimiser"])
        share = state["shares"][self.setting.workers.rank]
        self.objective.load_state(share["objective"])
        self.stream.load_state(share["stream"])
        self.streams.load_state_dict(share["streams"])


train, resume = SupervisedTraining.train, SupervisedTraining.resume
