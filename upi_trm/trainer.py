"""The training loop around `learner.UpiLearner`: run folder, evaluation, checkpoints, resuming.

Input: an environment's name and a recipe. Output: a `Run` folder that `upi-trm eval` and `solve`
take. A run that was stopped and resumed equals one that never stopped, bit for bit on the CPU at
the same number of threads. Several processes (`trm.compute.workers`) share the recipe's plans and
minibatches; process 0 evaluates and writes.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from rich.console import Console

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import EvalReport, evaluate_policy
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.device import Placement
from trm.compute.process import ResourceMeter, graceful_stop, provenance
from trm.compute.streams import named_streams
from trm.compute.workers import Workers
from trm.runs.checkpoints import Checkpoint
from trm.runs.packing import pack_state
from trm.runs.progress import TrainingProgress
from trm.runs.recipe import load_recipe
from trm.runs.run import Run
from upi_trm.curriculum import Curriculum
from upi_trm.deployment import greedy_policy
from upi_trm.learner import UpiLearner
from upi_trm.recipe import RUN_KIND, UpiRecipe
from upi_trm.rollout import Roller

COLUMNS = {
    "success": ".1%",
    "score": ".2f",
    "KL": ".1e",
    "L_z": ".3f",
    "centring": ".0e",
}
"""What the live display shows, beside edits, edits per second and time left."""


def train(
    *,
    env: str,
    recipe_path: Path | None,
    overrides: Sequence[str] = (),
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    placement: Placement,
) -> Run:
    """Start a run and train until its budget of edits is spent or a signal asks to stop.

    Args:
        env: a task's name or a PlanEdit id.
        recipe_path: YAML file; None for the defaults.
        overrides: `field=value` assignments.
        steps: budget in edits over all parallel plans, never exceeded; None for the recipe's.
        seed: of every random stream.
        out: run folder to make; None for `runs/<env>-seed<seed>-<time>`.
        placement: device, precision, threads.

    Returns:
        The run, closed for writing.

    Raises:
        ValueError: bad input, named in one line.
    """
    workers = Workers.join()
    placement = workers.place(placement)
    task = resolve_task(env)
    if steps is not None:
        overrides = [*overrides, f"schedule.edits={steps}"]
    recipe = load_recipe(UpiRecipe, recipe_path, overrides)
    placement.apply()
    if out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{task.name}-seed{seed}-{stamp}"
    module, _, _ = env.rpartition(":")  # of a task that is registered outside of plan_envs
    known_as = f"{module}:{task.name}" if module not in ("", "plan_envs") else task.name
    share_of(recipe, workers)  # refused before there is a folder
    run = None
    if workers.is_main:
        run = Run.create(
            out,
            kind=RUN_KIND,
            env=known_as,
            seed=seed,
            recipe=recipe,
            provenance=provenance(placement),
            extra={} if workers.size == 1 else {"processes": workers.size},
        )
    path = workers.from_main(str(out))
    with run or Run.open(Path(path)) as run:
        _Training(run, recipe, placement, workers).loop(recipe.schedule.edits)
    return run


def resume(run_path: Path, *, steps: int | None = None, placement: Placement) -> Run:
    """Go on with a run from its newest checkpoint; see `train`.

    `steps` extends or shortens the budget; the recipe stays as it was. Without a thread count in
    `placement` the run keeps that of its newest checkpoint, since sums over other threads round
    differently.
    """
    workers = Workers.join()
    placement = workers.place(placement)
    run = Run.open(run_path, kind=RUN_KIND, write=True) if workers.is_main else None
    workers.from_main(None)  # what an interrupted writer left is cleared away
    with run or Run.open(run_path, kind=RUN_KIND) as run:
        checkpoint = run.load_checkpoint() if run.checkpoint_steps() else None
        if placement.threads is None:
            last = run.info.provenance if checkpoint is None else checkpoint.state
            placement = dataclasses.replace(placement, threads=last.get("torch_threads"))
        placement.apply()
        recipe = run.load_recipe(UpiRecipe)
        training = _Training(run, recipe, placement, workers)
        if checkpoint is not None:
            training.restore(checkpoint)
        elif workers.is_main:
            run.truncate_metrics(0)  # stopped before its first checkpoint: it starts again
        training.loop(recipe.schedule.edits if steps is None else steps)
    return run


def share_of(recipe: UpiRecipe, workers: Workers) -> UpiRecipe:
    """What one of several processes does of a recipe: its part of the plans and minibatches.

    With gradients averaged, an optimiser step is then over as many states as the recipe says.

    Raises:
        ValueError: a number that can't be divided; names the field.
    """
    rollout, evaluator, improvement = recipe.rollout, recipe.evaluator, recipe.improvement
    return dataclasses.replace(
        recipe,
        rollout=dataclasses.replace(rollout, plans=workers.share(rollout.plans, "rollout.plans")),
        evaluator=dataclasses.replace(
            evaluator, batch_size=workers.share(evaluator.batch_size, "evaluator.batch_size")
        ),
        improvement=dataclasses.replace(
            improvement,
            batch_size=workers.share(improvement.batch_size, "improvement.batch_size"),
            lookahead_states=workers.share(
                improvement.lookahead_states, "improvement.lookahead_states"
            ),
        ),
    )


class _Training:
    """Everything that changes while a run is trained; `state` and `restore` make it whole again."""

    def __init__(self, run: Run, recipe: UpiRecipe, placement: Placement, workers: Workers) -> None:
        self.run, self.recipe, self.placement, self.workers = run, recipe, placement, workers
        mine = share_of(recipe, workers)
        self.task = resolve_task(run.info.env)
        self.streams = named_streams(run.info.seed, member=workers.rank)
        # The same weights everywhere to begin with; all other draws are a process's own.
        init = self.streams if workers.is_main else named_streams(run.info.seed)
        self.validation = self.task.instances("validation", num=recipe.schedule.evaluate_num)
        pool = self.task.instances(
            "train", num=recipe.instances.num, seed=run.info.seed, **recipe.instances.options
        )
        draws = self.streams.numpy("instances")
        self.roller = Roller(
            PlanEditVectorEnv(
                self.task,
                num_envs=mine.rollout.plans,
                instances=pool,
                gamma=recipe.evaluator.gamma,
                autoreset_mode=AutoresetMode.DISABLED,
            ),
            Curriculum(self.task.domain, pool, recipe.curriculum, draws),
            seed=int(draws.integers(2**31)),
        )
        self.learner = UpiLearner(
            self.task.domain,
            mine,
            dead_end="absorb",
            device=placement.torch_device,
            init=init.torch("init"),
            noise=self.streams.torch("noise"),
            actions=self.streams.torch("policy"),
            workers=workers,
        )
        self.learner.compile_steps(placement)
        self.edits = 0
        self.best = -1.0
        self.meter = ResourceMeter()

    def loop(self, budget: int) -> None:
        """Iterate until `budget` edits are spent; save on a signal and at the end."""
        plans, schedule = self.recipe.rollout.plans, self.recipe.schedule
        last_saved = self.edits if self.run.checkpoint_steps() else -1
        with (
            graceful_stop() as stop,
            TrainingProgress(
                budget,
                COLUMNS,
                unit="edits",
                start=self.edits,
                console=None if self.workers.is_main else Console(quiet=True),
            ) as progress,
        ):
            while budget - self.edits >= plans and not self.workers.any(stop.requested):
                steps = min(self.recipe.rollout.steps, (budget - self.edits) // plans)
                self.learner.scale_learning_rates(
                    1.0 - (1.0 - schedule.final_learning_rate) * self.edits / budget
                )
                before, self.edits = self.edits, self.edits + steps * plans
                finished = budget - self.edits < plans
                with self.placement.autocast():
                    metrics = self.learner.iterate(self.roller, steps=steps)
                if self.recipe.curriculum.kind == "adaptive":
                    metrics["curriculum_distance"] = float(self.roller.curriculum.distance)
                tag = None
                if finished or _crossed(before, self.edits, schedule.evaluate_every):
                    metrics |= self.workers.from_main(
                        self.evaluate() if self.workers.is_main else None
                    )
                    tag = "best" if self._is_best(metrics["success_rate"]) else None
                if self.workers.is_main:
                    self.run.log(self.edits, metrics)
                self._show(progress, metrics)
                if tag or _crossed(before, self.edits, schedule.checkpoint_every):
                    self.save(tag)
                    last_saved = self.edits
            if last_saved != self.edits:
                self.save()
            if stop.requested:
                progress.note(
                    f"stopped by {stop.signal_name} after {self.edits} edits; go on with"
                    f" upi-trm train --resume {self.run.path}"
                )

    def evaluate(self) -> dict[str, float]:
        """Greedy success on validation puzzles."""
        policy = greedy_policy(self.learner, self.placement)
        report: EvalReport = evaluate_policy(policy, self.task.domain, self.validation)
        return {
            "success_rate": report.success_rate,
            "mean_score": report.mean_score,
            "improvement": report.improvement,
            **report.details,
        }

    def _show(self, progress: TrainingProgress, metrics: dict[str, float]) -> None:
        progress.update(self.edits)
        if "success_rate" in metrics:
            progress.report(
                self.edits,
                {
                    "success": metrics["success_rate"],
                    "score": metrics["mean_score"],
                    "KL": metrics["kl"],
                    "L_z": metrics.get("certified_modulus", float("nan")),
                    "centring": metrics["centring_defect"],
                },
            )

    def _is_best(self, success_rate: float) -> bool:
        """Whether no earlier evaluation on the validation puzzles was as good; remembers it."""
        better = success_rate > self.best
        self.best = max(self.best, success_rate)
        return better

    def save(self, tag: str | None = None) -> None:
        """Write a checkpoint; the tag "best" marks the best validation success so far."""
        state = self.state()
        if self.workers.size > 1:
            state["others"] = self.workers.gather(pack_state(state))[1:]
        if self.workers.is_main:
            self.run.save_checkpoint(
                self.edits, weights=self.learner.weights(), state=state, tag=tag
            )
        self.workers.from_main(None)  # a checkpoint is there for all before anyone goes on

    def state(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "edits": self.edits,
            "best": self.best,
            "learner": self.learner.state(),
            "roller": self.roller.state(),
            "streams": self.streams.state_dict(),
            "usage": self.meter.state_dict(),
            "torch_threads": torch.get_num_threads(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint; metrics written after it are dropped."""
        states = [checkpoint.state, *checkpoint.state.get("others", [])]
        if len(states) != self.workers.size:
            raise ValueError(
                f"{self.run.path}: was trained on {len(states)} processes and goes on with as many,"
                f" got {self.workers.size} (torchrun --nproc-per-node {len(states)} -m upi_trm ...)"
            )
        state = states[self.workers.rank]
        self.edits, self.best = state["edits"], state["best"]
        self.learner.load_weights(checkpoint.weights)
        self.learner.load_state(state["learner"])
        self.roller.load_state(state["roller"])
        self.streams.load_state_dict(state["streams"])
        self.meter = ResourceMeter(state["usage"])
        if self.workers.is_main:
            self.run.truncate_metrics(self.edits)


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
