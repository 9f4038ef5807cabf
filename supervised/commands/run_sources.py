"""TRM-Planner and ARC voting on run folders: what commands and their jobs open.

Jobs run in processes of their own, so what they need is named by paths and plain values, and opened
by functions that can be imported.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask
from supervised.data_sets.arc import ArcIdentifiers, encode_boards
from supervised.data_sets.arc_guards import refuse_arc_leaks
from supervised.data_sets.datasets import TokenDataset
from supervised.data_sets.folders import read_info
from supervised.measures.arc_voting import Predictor, Query
from supervised.models import RUN_KIND, load_model, open_data
from supervised.planner.planner import teacher_on
from supervised.recipe import SupervisedRecipe
from trm.compute.device import Placement
from trm.nn.token_model import TokenModel
from trm.runs.run import Run


def open_teacher(
    run_path: Path,
    *,
    checkpoint: int | str | None = None,
    data: Sequence[str] = (),
    placement: Placement,
) -> tuple[TokenModel, TokenDataset]:
    """The model of a run as it is evaluated, and the examples that it was trained on.

    Args:
        run_path: the run's folder.
        checkpoint: a step, "best", or None for the newest.
        data: overrides of the recipe's `data` section, e.g. "copies=7".
        placement: where the model goes.
    """
    placement.apply()
    run = Run.open(run_path, kind=RUN_KIND)
    model, _ = load_model(run, step=checkpoint, placement=placement)
    recipe = run.load_recipe(SupervisedRecipe, [f"data.{assignment}" for assignment in data])
    return model.eval(), open_data(recipe.data, "train", seed=run.info.seed)


# --- ARC


class ArcPredictor:
    """A predictor of `arc_voting`: a model that knows tasks by the identifiers of a data set."""

    def __init__(self, model: TokenModel, identifiers: ArcIdentifiers) -> None:
        self._model, self._identifiers = model, identifiers

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens after the last supervision step, and halting probabilities (0 without a head)."""
        model, device = self._model, self._model.start_h.device
        tokens = encode_boards(np.stack([query.board for query in queries]))
        puzzle = [self._identifiers.puzzle(query.task, query.augmentation) for query in queries]
        inputs = torch.from_numpy(tokens.astype(np.int64)).to(device)
        latents, advance = teacher_on(model, inputs, torch.tensor(puzzle, device=device))
        for step in range(1, model.schedule.supervision + 1):
            output = advance(latents, step)
            latents = output.latents
        halting = np.zeros(len(queries))
        if output.halting is not None:
            halting = torch.sigmoid(output.halting[:, 0].double()).cpu().numpy()
        return output.logits.argmax(dim=-1).cpu().numpy(), halting


def open_predictors(
    run_path: Path, checkpoints: Sequence[int | str | None], folder: Path, placement: Placement
) -> list[Predictor]:
    """One predictor a checkpoint; several vote together."""
    placement.apply()
    run = Run.open(run_path, kind=RUN_KIND)
    identifiers = ArcIdentifiers.open(folder)
    models = [load_model(run, step=step, placement=placement)[0].eval() for step in checkpoints]
    return [ArcPredictor(model, identifiers) for model in models]


def symmetries_of(task: ArcTask, *, folder: Path, num: int) -> list[ArcSymmetry]:
    """The identity and the first `num` symmetries that a data set has for a task."""
    return _identifiers(folder).symmetries(task.id)[: num + 1]


@functools.cache
def _identifiers(folder: Path) -> ArcIdentifiers:
    return ArcIdentifiers.open(folder)


def protocol_line(trained: Path, evaluated: Path) -> str:
    """What of the evaluated tasks a model has seen, in words; never a test output.

    Raises:
        ValueError: a test pair was trained on.
    """
    refuse_arc_leaks(trained, evaluated)
    notes: dict[str, Any] = dict(read_info(trained).notes)
    left_out = notes["left_out_of_training"]
    return (
        f"protocol: trained on all pairs of {notes['tasks'] - notes['evaluated_tasks']} tasks and "
        f"on the demonstrations of the {notes['evaluated_tasks']} evaluated ones (test-time "
        f"training); {len(left_out)} pairs that equal a test pair were left out; no test output "
        "was trained on"
    )


def arc_folder_of(recipe: SupervisedRecipe) -> Path:
    """The ARC data set that a recipe trains on.

    Raises:
        ValueError: it trains on something else.
    """
    if recipe.data.domain != "arc" or recipe.data.folder is None:
        raise ValueError(f"data.domain must be arc to vote, got {recipe.data.domain!r}")
    return Path(recipe.data.folder)
