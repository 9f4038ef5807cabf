"""The model of a recipe or of a run, and the data that a recipe names.

Input: a `SupervisedRecipe`, and for a trained model the run's folder. Output: a `TokenModel` with
the weights to evaluate, and the splits of the data. `supervised.trainer` trains such models;
commands and measures open them here.
"""

from pathlib import Path

import torch

from plan_envs.catalogue import resolve_task
from supervised.data_sets.datasets import BoardDataset, TokenDataset
from supervised.data_sets.fixed_images import FixedImages
from supervised.data_sets.folders import open_dataset
from supervised.recipe import DataConfig, SupervisedRecipe, shape_of
from trm.compute.device import Placement
from trm.compute.process import provenance
from trm.nn.token_model import TokenModel, TokenShape
from trm.runs.checkpoints import part_of
from trm.runs.run import Run

RUN_KIND = "supervised"
"""`kind` of the runs that this learner writes."""


def make_model(
    recipe: SupervisedRecipe, shape: TokenShape, generator: torch.Generator
) -> TokenModel:
    """A fresh model of a recipe."""
    model = TokenModel(shape, recipe.model, recipe.recursion, generator=generator)
    model.recompute = recipe.recompute
    return model


def load_model(
    run: Run,
    *,
    step: int | str | None = None,
    placement: Placement | None = None,
    domain: str | None = None,
) -> tuple[TokenModel, SupervisedRecipe]:
    """The model of a run with the weights to evaluate: the running average where there is one.

    Args:
        run: of kind `RUN_KIND`.
        step: checkpoint, "best", or None for the newest.
        placement: where the model goes; None for the CPU.
        domain: of the boards that it is to take, where `model.mixing` serves every size; None = of
            those that it was trained on.
    """
    recipe = run.load_recipe(SupervisedRecipe)
    weights = run.load_checkpoint(step).weights
    shape = shape_of(
        domain or recipe.data.domain_name, num_puzzles=len(weights["model.puzzle_table"])
    )
    model = make_model(recipe, shape, torch.Generator())
    model.load_state_dict(part_of(weights, "model") | part_of(weights, "average"))
    model.requires_grad_(False)
    return model.to(placement.torch_device if placement else "cpu"), recipe


def save_import(model: TokenModel, recipe: SupervisedRecipe, out: Path, *, source: str) -> None:
    """A run folder of weights that were made elsewhere; it can be evaluated, not resumed.

    Args:
        model: with these weights.
        recipe: of the model.
        out: the folder to make.
        source: where the weights come from, for the record.

    Raises:
        RunError: the folder exists and is not empty, or can't be written.
    """
    with Run.create(
        out,
        kind=RUN_KIND,
        env=recipe.data.domain_name,
        seed=0,
        recipe=recipe,
        provenance=provenance(Placement()),
        extra={"imported": source, "num_positions": model.shape.num_positions},
    ) as run:
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        run.save_checkpoint(0, weights=weights, state={"steps": 0})


def open_data(config: DataConfig, split: str, *, seed: int, num: int | None = None) -> TokenDataset:
    """One split of a recipe's data.

    Args:
        config: the recipe's section.
        split: train, validation or test.
        seed: of the training examples of a task and of fixed copies, where the recipe names none.
        num: examples of a task's other splits, None for the task's own number.

    Raises:
        ValueError: the folder holds data of another domain than the recipe says.
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
            instances = task.instances("train", num=config.num, seed=seed)
        else:
            instances = task.instances(split, num=num)
        dataset = BoardDataset.of(task.domain, instances)
    if split == "train" and config.copies is not None:
        return FixedImages(dataset, config.copies, seed=seed)
    return dataset
