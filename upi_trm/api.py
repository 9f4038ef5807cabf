"""`upi_trm.train`: what `upi-trm train` does, from Python; the package's `__init__` exports it."""

from collections.abc import Sequence
from pathlib import Path

from plan_envs.catalogue import resolve_task
from trm.compute.device import Placement, Precision
from trm.experiments.trained.model import Model
from trm.experiments.training import Callback
from upi_trm import trainer
from upi_trm.shipped import RECIPES


def train(
    env: str,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    threads: int | None = 1,
    callback: Callback | None = None,
) -> Model:
    """Train a run by unrolled policy iteration, and load its newest checkpoint.

    Args:
        env: a task's name or a PlanEdit id, e.g. "sudoku4x4".
        recipe: name of a shipped recipe, or a YAML file; None for that of the environment.
        overrides: `field=value` assignments, e.g. "rollout.plans=32".
        steps: budget in edits over all parallel plans, never exceeded; None for the recipe's.
        seed: of every random stream.
        out: run folder to make; None for `runs/<env>-seed<seed>-<time>`.
        device: of the networks, e.g. "cuda:1".
        precision: of matrix products, "float32" or "bfloat16".
        threads: CPU threads of torch, for the whole process; None leaves them as they are.
        callback: called as `callback(step, metrics)` after each line of metrics.jsonl; False stops
            the training, which is then saved and can go on with `upi-trm train --resume`.

    Returns:
        The trained run; `model.run.path` is its folder.

    Raises:
        ValueError: bad input, named in one line.
    """
    placement = Placement(device=device, precision=precision, threads=threads)
    outcome = trainer.train(
        env=env,
        recipe_path=RECIPES.find_or_default(recipe, resolve_task(env).name),
        overrides=overrides,
        steps=steps,
        seed=seed,
        out=None if out is None else Path(out),
        placement=placement,
        callback=callback,
    )
    return Model(outcome.run, placement=placement)
