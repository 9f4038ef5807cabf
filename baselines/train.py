"""The training loop around an algorithm of SB3: run folder, evaluation, checkpoints, resuming.

Input: an environment's name and a recipe. Output: a `Run` folder of kind "sb3" that `upi-trm eval`
and `compare` take. SB3's `learn` is called for one rollout at a time, with the whole budget as its
total, so that its schedules are right; between two calls the run is evaluated, saved or stopped. A
run that was stopped and resumed equals one that never stopped, bit for bit on the CPU at the same
number of threads.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from baselines.algorithms import METHODS, compile_steps, make_algorithm, networks_of
from baselines.lookahead import ExactAdvantages
from baselines.policy import RUN_KIND, load_weights, weights_of
from baselines.recipe import BaselineRecipe, check_algorithm, read_recipe
from baselines.replay import load_replay, prune_replays, save_replay
from baselines.sealed import SealedRandomness
from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import EvalReport, evaluate_policy
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.device import Placement
from trm.compute.process import ResourceMeter, graceful_stop, provenance
from trm.compute.streams import named_streams
from trm.experiments.states import GreedyPolicy
from trm.runs.progress import TrainingProgress
from trm.runs.run import Run

COLUMNS = {"success": ".1%", "score": ".2f", "reward": ".3f", "solved in play": ".1%"}
"""What the live display shows, beside edits, edits per second and time left."""

_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
"""What SB3 counts; it goes into checkpoints."""
_DQN_COUNTERS = ("_n_calls", "exploration_rate")
_LEFT_OUT = ("time/", "rollout/ep_")
"""Figures of SB3's logger that we do not keep: they hold the time of day, or are ours below."""


def train(
    *,
    env: str,
    algorithm: str | None,
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
        algorithm: ppo, a2c, dqn or maskable-ppo; None for the recipe's.
        recipe_path: YAML file; None for the algorithm's defaults.
        overrides: `field=value` assignments.
        steps: budget in edits over all parallel plans, never exceeded; None for the recipe's.
        seed: of every random stream.
        out: run folder to make; None for `runs/<algorithm>-<env>-seed<seed>-<time>`.
        placement: device and threads.

    Returns:
        The run, closed for writing.

    Raises:
        ValueError: bad input, named in one line.
    """
    task = resolve_task(env)
    _require_full_precision(placement)
    if steps is not None:
        overrides = [*overrides, f"schedule.edits={steps}"]
    recipe = read_recipe(recipe_path, overrides, algorithm=algorithm)
    placement.apply()
    if out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{recipe.algorithm}-{task.name}-seed{seed}-{stamp}"
    module, _, _ = env.rpartition(":")  # of a task that is registered outside of plan_envs
    with Run.create(
        out,
        kind=RUN_KIND,
        env=f"{module}:{task.name}" if module not in ("", "plan_envs") else task.name,
        seed=seed,
        recipe=recipe,
        provenance=provenance(placement),
        extra={"method": METHODS[recipe.algorithm], "packages": _versions()},
    ) as run:
        _Training(run, recipe, placement).loop(recipe.schedule.edits)
    return run


def resume(
    run_path: Path,
    *,
    algorithm: str | None = None,
    steps: int | None = None,
    placement: Placement,
) -> Run:
    """Go on with a run from its newest checkpoint; see `train`.

    `algorithm` may say again what the run records. `steps` extends or shortens the budget; the
    recipe stays as it was. Without a thread count in `placement` the run keeps its own.
    """
    _require_full_precision(placement)
    check_algorithm(algorithm)
    with Run.open(run_path, kind=RUN_KIND, write=True) as run:
        if placement.threads is None:
            recorded = run.info.provenance.get("torch_threads")
            placement = dataclasses.replace(placement, threads=recorded)
        placement.apply()
        recipe = run.load_recipe(BaselineRecipe)
        if algorithm not in (None, recipe.algorithm):
            raise ValueError(f"{run_path}: is a run of {recipe.algorithm}, --algo says {algorithm}")
        training = _Training(run, recipe, placement)
        if run.checkpoint_steps():
            training.restore()
        else:
            run.truncate_metrics(0)  # stopped before its first checkpoint: it starts again
        training.loop(recipe.schedule.edits if steps is None else steps)
    return run


def stopped_early(run: Run, *, steps: int | None) -> bool:
    """Whether a signal ended the training before its budget of edits did."""
    recipe = run.load_recipe(BaselineRecipe)
    budget = recipe.schedule.edits if steps is None else steps
    return budget - run.checkpoint_steps()[-1] >= recipe.rollout.plans


class RolloutDone(Exception):  # noqa: N818 (no error: it leaves SB3's loop)
    """The rollout that was asked for is over and the networks are updated."""


class OneRollout(BaseCallback):
    """Lets SB3's `learn` go through one rollout and its update, and leaves at the next rollout.

    There nothing of the next one is drawn yet, so that a run can be saved and taken up again.
    """

    def __init__(self) -> None:
        """Ask for one with `begin`."""
        super().__init__()
        self._begun = False

    def begin(self) -> None:
        """The next rollout is the one."""
        self._begun = False

    def _on_rollout_start(self) -> None:
        if self._begun:
            raise RolloutDone
        self._begun = True

    def _on_step(self) -> bool:
        return True


class _Training:
    """Everything that changes while a run is trained; `state` and `restore` make it whole again."""

    def __init__(self, run: Run, recipe: BaselineRecipe, placement: Placement) -> None:
        self.run, self.recipe, self.placement = run, recipe, placement
        self.task = resolve_task(run.info.env)
        self.streams = named_streams(run.info.seed)
        self.validation = self.task.instances("validation", num=recipe.schedule.evaluate_num)
        pool = self.task.instances(
            "train", num=recipe.instances.num, seed=run.info.seed, **recipe.instances.options
        )
        draws = self.streams.numpy("instances")
        self.env = PlanEditVecEnv(
            PlanEditVectorEnv(
                self.task,
                num_envs=recipe.rollout.plans,
                instances=pool,
                gamma=recipe.gamma,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        )
        self.env.seed(int(draws.integers(2**31)))
        self.randomness = SealedRandomness(self.streams, placement.torch_device)
        with self.randomness.active():
            self.sb3 = make_algorithm(
                recipe.algorithm,
                recipe.section,
                self.env,
                recipe.model,
                steps=recipe.rollout.steps,
                gamma=recipe.gamma,
                final_learning_rate=recipe.schedule.final_learning_rate,
                generator=self.streams.torch("init"),
                device=placement.torch_device,
            )
            # Now, not at the first `learn`: it resets the plans and makes SB3's statistics.
            self.sb3._setup_learn(0, reset_num_timesteps=False)
        compile_steps(self.sb3, placement.compiled)
        self.networks = networks_of(self.sb3)
        self.rollout = OneRollout()
        self.callbacks: list[BaseCallback] = [self.rollout]
        if recipe.ppo is not None and recipe.ppo.advantage == "exact":
            self.callbacks.append(ExactAdvantages(self.env))
        self.best = -1.0
        self.meter = ResourceMeter()

    @property
    def edits(self) -> int:
        """Made so far, over all plans."""
        return self.sb3.num_timesteps

    def loop(self, budget: int) -> None:
        """Go on until `budget` edits are spent; save on a signal and at the end."""
        with (
            graceful_stop() as stop,
            TrainingProgress(budget, COLUMNS, unit="edits", start=self.edits) as progress,
            self.randomness.active(),
        ):
            plans, schedule = self.recipe.rollout.plans, self.recipe.schedule
            last_saved = self.edits if self.run.checkpoint_steps() else -1
            while not stop.requested and budget - self.edits >= plans:
                before = self.edits
                self.one_rollout(budget)
                finished = budget - self.edits < plans
                metrics, tag = {}, None
                if finished or _crossed(before, self.edits, schedule.evaluate_every):
                    metrics = self.evaluate()
                    tag = "best" if self._is_best(metrics["success_rate"]) else None
                if metrics or _crossed(before, self.edits, schedule.log_every):
                    metrics = self.figures() | metrics
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
                    f" upi-trm baselines train --resume {self.run.path}"
                )

    def one_rollout(self, budget: int) -> None:
        """SB3 collects a rollout, shorter where the budget ends, and updates the networks."""
        left = (budget - self.edits) // self.recipe.rollout.plans
        steps = min(self.recipe.rollout.steps, left)
        if isinstance(self.sb3, OnPolicyAlgorithm):
            self.sb3.n_steps = self.sb3.rollout_buffer.buffer_size = steps
        elif isinstance(self.sb3, OffPolicyAlgorithm):
            cast(Any, self.sb3).train_freq = TrainFreq(steps, TrainFrequencyUnit.STEP)
        self.rollout.begin()
        with contextlib.suppress(RolloutDone):
            self.sb3.learn(
                budget - self.edits,
                callback=CallbackList(self.callbacks),
                log_interval=cast(int, None),  # SB3 prints nothing then
                reset_num_timesteps=False,
            )

    def evaluate(self) -> dict[str, float]:
        """Greedy success on validation puzzles."""
        policy = GreedyPolicy(self.networks["policy"], self.placement)
        report: EvalReport = evaluate_policy(policy, self.task.domain, self.validation)
        return {
            "success_rate": report.success_rate,
            "mean_score": report.mean_score,
            "improvement": report.improvement,
            **report.details,
        }

    def figures(self) -> dict[str, float]:
        """What SB3 logged of its last update, and the last hundred episodes of training."""
        logged = {
            name.rpartition("/")[2]: float(value)
            for name, value in self.sb3.logger.name_to_value.items()
            if not name.startswith(_LEFT_OUT)
        }
        episodes, solved = self.sb3.ep_info_buffer or (), self.sb3.ep_success_buffer or ()
        return {
            **logged,
            "episode_reward": _mean(episode["r"] for episode in episodes),
            "episode_edits": _mean(episode["l"] for episode in episodes),
            "episode_success": _mean(map(float, solved)),
        }

    def _show(self, progress: TrainingProgress, metrics: dict[str, float]) -> None:
        progress.update(self.edits)
        if "success_rate" in metrics:
            progress.report(
                self.edits,
                {
                    "success": metrics["success_rate"],
                    "score": metrics["mean_score"],
                    "reward": metrics["episode_reward"],
                    "solved in play": metrics["episode_success"],
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
        replay = getattr(self.sb3, "replay_buffer", None)
        if isinstance(replay, DictReplayBuffer):
            state["replay"] = save_replay(self.run, self.edits, replay)
        self.run.save_checkpoint(
            self.edits, weights=weights_of(self.networks), state=state, tag=tag
        )
        if "replay" in state:
            prune_replays(self.run)

    def state(self) -> dict[str, Any]:
        """Everything but the weights and DQN's replay."""
        sb3 = cast(Any, self.sb3)
        return {
            "edits": self.edits,
            "best": self.best,
            "optimiser": sb3.policy.optimizer.state_dict(),
            "counters": {name: getattr(sb3, name) for name in self._counters()},
            "env": self.env.get_state(),
            "episode_starts": sb3._last_episode_starts,
            "episodes": [[info["r"], info["l"]] for info in sb3.ep_info_buffer],
            "successes": list(sb3.ep_success_buffer),
            "streams": self.streams.state_dict(),
            "global_streams": self.randomness.state_dict(),
            "usage": self.meter.state_dict(),
            "torch_threads": torch.get_num_threads(),
        }

    def restore(self) -> None:
        """Take up the newest checkpoint; metrics written after it are dropped."""
        checkpoint = self.run.load_checkpoint()
        state, sb3 = checkpoint.state, cast(Any, self.sb3)
        load_weights(self.networks, checkpoint, self.run)
        sb3.policy.optimizer.load_state_dict(state["optimiser"])
        for name in self._counters():
            setattr(sb3, name, state["counters"][name])
        sb3._last_obs = self.env.set_state(state["env"])
        sb3._last_episode_starts = np.asarray(state["episode_starts"], np.bool_)
        sb3.ep_info_buffer.extend({"r": r, "l": length} for r, length in state["episodes"])
        sb3.ep_success_buffer.extend(state["successes"])
        if "replay" in state:
            load_replay(self.run, state["replay"], sb3.replay_buffer)
        self.streams.load_state_dict(state["streams"])
        self.randomness.load_state_dict(state["global_streams"])
        self.best = state["best"]
        self.meter = ResourceMeter(state["usage"])
        self.run.truncate_metrics(self.edits)

    def _counters(self) -> tuple[str, ...]:
        return _COUNTERS + (_DQN_COUNTERS if self.recipe.dqn is not None else ())


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def _require_full_precision(placement: Placement) -> None:
    if placement.precision != "float32":
        raise ValueError(
            f"precision must be float32 for baselines, got {placement.precision!r}:"
            " SB3's updates know no other"
        )


def _versions() -> dict[str, str]:
    import sb3_contrib
    import stable_baselines3

    return {
        "stable-baselines3": stable_baselines3.__version__,
        "sb3-contrib": sb3_contrib.__version__,
    }
