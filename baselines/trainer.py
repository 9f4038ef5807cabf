"""An algorithm of SB3 as `trm.experiments.training` trains it.

Input: an environment's name and a recipe. Output: a `Run` folder of kind "sb3" that `upi-trm eval`
and `compare` take. SB3's `learn` is called for one rollout at a time, with the whole budget as its
total, so that its schedules are right; between two calls the run is evaluated, saved or stopped.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from baselines.algorithms import METHODS, make_algorithm, networks_of
from baselines.deployment import RUN_KIND, load_weights, weights_of
from baselines.global_randomness import GlobalRandomness
from baselines.lookahead import ExactAdvantages
from baselines.recipe import BaselineRecipe, check_algorithm, read_recipe
from baselines.replay_files import load_replay, prune_replays, save_replay
from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.catalogue import resolve_task
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.device import Placement
from trm.compute.streams import named_streams
from trm.experiments import training
from trm.experiments.states import GreedyPolicy, edit_logits
from trm.experiments.training import Outcome, Setting, Trainee
from trm.runs.checkpoints import Checkpoint
from trm.runs.run import Run

_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
"""What SB3 counts; it goes into checkpoints."""
_DQN_COUNTERS = ("_n_calls", "exploration_rate")
_LEFT_OUT = ("time/", "rollout/ep_")
"""Figures of SB3's logger that we do not keep: they hold the time of day, or are ours below."""


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


class BaselineTraining(Trainee):
    """The SB3 object, its environments, its replay and all random streams."""

    kind = RUN_KIND
    recipe_type = BaselineRecipe
    command = "baselines train"
    unit = "edits"
    columns: ClassVar = {
        "success": ("success_rate", ".1%"),
        "score": ("mean_score", ".2f"),
        "reward": ("episode_reward", ".3f"),
        "solved in play": ("episode_success", ".1%"),
    }
    best_by = "success_rate"
    recipe: BaselineRecipe

    @classmethod
    def read_recipe(
        cls, path: Path | None, overrides: Sequence[str], **choice: Any
    ) -> BaselineRecipe:
        """Of `algorithm`, where it is among the arguments; see `baselines.recipe.read_recipe`."""
        return read_recipe(path, overrides, **choice)

    @classmethod
    def subject(cls, env: str, recipe: BaselineRecipe) -> tuple[str, str]:
        """The task, and the algorithm before its name."""
        env, name = super().subject(env, recipe)
        return env, f"{recipe.algorithm}-{name}"

    @classmethod
    def resume(
        cls,
        run_path: Path,
        *,
        algorithm: str | None = None,
        steps: int | None = None,
        placement: Placement,
    ) -> Outcome:
        """Go on with a run; see `Trainee.resume`.

        Raises:
            ValueError: `algorithm` is not the run's, which it may say again.
        """
        check_algorithm(algorithm)
        if algorithm is not None:
            found = Run.open(run_path, kind=RUN_KIND).load_recipe(BaselineRecipe).algorithm
            if algorithm != found:
                raise ValueError(f"{run_path}: is a run of {found}, --algo says {algorithm}")
        return super().resume(run_path, steps=steps, placement=placement)

    def __init__(self, recipe: BaselineRecipe, setting: Setting) -> None:
        """Draw the weights, the pool and the first plans.

        Raises:
            ValueError: there are several processes, or another precision than float32.
        """
        if setting.placement.precision != "float32":
            raise ValueError(
                f"precision must be float32 for baselines, got {setting.placement.precision!r}:"
                " SB3's updates know no other"
            )
        if setting.workers.size > 1:
            raise ValueError(f"baselines train on 1 process, got {setting.workers.size}")
        super().__init__(recipe, setting)
        schedule = recipe.schedule
        self.log_every = schedule.log_every
        placement = setting.placement
        self.task = resolve_task(setting.env)
        self.streams = named_streams(setting.seed)
        self.validation = self.task.instances("validation", num=schedule.evaluate_num)
        self.env = PlanEditVecEnv(
            PlanEditVectorEnv(
                self.task,
                num_envs=recipe.rollout.plans,
                instances=recipe.instances.pool(self.task, seed=setting.seed),
                gamma=recipe.gamma,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        )
        self.env.seed(int(self.streams.numpy("instances").integers(2**31)))
        self.randomness = GlobalRandomness(self.streams, placement.torch_device)
        with self.randomness.active():
            self.sb3: Any = make_algorithm(
                recipe.algorithm,
                recipe.section,
                self.env,
                recipe.model,
                steps=recipe.rollout.steps,
                gamma=recipe.gamma,
                final_learning_rate=schedule.final_learning_rate,
                generator=self.streams.torch("init"),
                device=placement.torch_device,
            )
            # Now, not at the first `learn`: it resets the plans and makes SB3's statistics.
            self.sb3._setup_learn(0, reset_num_timesteps=False)
        self.networks = networks_of(self.sb3)
        for network in self.networks.values():
            network.compile_step(placement.compiled)
        self.rollout = OneRollout()
        self.callbacks: list[BaseCallback] = [self.rollout]
        if recipe.ppo is not None and recipe.ppo.advantage == "exact":
            self.callbacks.append(ExactAdvantages(self.env))
        self.counters = _COUNTERS + (_DQN_COUNTERS if recipe.dqn is not None else ())

    @property
    def done(self) -> int:  # type: ignore[override]  # SB3 keeps the count
        """Edits over all plans."""
        return int(self.sb3.num_timesteps)

    def recorded(self) -> dict[str, Any]:
        """The method's name in tables, and versions."""
        versions = {
            "stable-baselines3": stable_baselines3.__version__,
            "sb3-contrib": sb3_contrib.__version__,
        }
        return {"method": METHODS[self.recipe.algorithm], "packages": versions}

    @classmethod
    def pieces(cls, recipe: BaselineRecipe) -> tuple[int, int]:
        """An edit of every plan, and a rollout."""
        return recipe.rollout.plans, recipe.rollout.plans * recipe.rollout.steps

    def spent(self, budget: int) -> bool:
        """Whether the budget has no edit left for every plan."""
        return budget - self.done < self.recipe.rollout.plans

    def advance(self, budget: int) -> None:
        """SB3 collects a rollout, shorter where the budget ends, and updates the networks."""
        left = (budget - self.done) // self.recipe.rollout.plans
        steps = min(self.recipe.rollout.steps, left)
        if isinstance(self.sb3, OnPolicyAlgorithm):
            self.sb3.n_steps = self.sb3.rollout_buffer.buffer_size = steps
        elif isinstance(self.sb3, OffPolicyAlgorithm):
            cast(Any, self.sb3).train_freq = TrainFreq(steps, TrainFrequencyUnit.STEP)
        self.rollout.begin()
        with self.randomness.active(), contextlib.suppress(RolloutDone):
            self.sb3.learn(
                budget - self.done,
                callback=CallbackList(self.callbacks),
                log_interval=cast(int, None),  # SB3 prints nothing then
                reset_num_timesteps=False,
            )

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

    def evaluate(self) -> dict[str, float]:
        """Greedy success on validation puzzles, and how training goes at that moment."""
        policy = GreedyPolicy(partial(edit_logits, self.networks["policy"]), self.setting.placement)
        return self.figures() | training.play_validation(policy, self.task, self.validation)

    def weights(self) -> dict[str, torch.Tensor]:
        """Of every backbone."""
        return weights_of(self.networks)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """SB3's one."""
        return {"optimiser": self.sb3.policy.optimizer}

    def state(self, run: Run) -> dict[str, Any]:
        """Everything but the weights; of DQN's replay the name of its file."""
        state = {
            "edits": self.done,
            "optimiser": self.sb3.policy.optimizer.state_dict(),
            "counters": {name: getattr(self.sb3, name) for name in self.counters},
            "env": self.env.get_state(),
            "episode_starts": self.sb3._last_episode_starts,
            "episodes": [[info["r"], info["l"]] for info in self.sb3.ep_info_buffer],
            "successes": list(self.sb3.ep_success_buffer),
            "streams": self.streams.state_dict(),
            "global_streams": self.randomness.state_dict(),
        }
        replay = getattr(self.sb3, "replay_buffer", None)
        if isinstance(replay, DictReplayBuffer):
            state["replay"] = save_replay(run, self.done, replay)
        return state

    def saved(self, run: Run) -> None:
        """Delete the replays of checkpoints that nobody can resume from any more."""
        if self.recipe.dqn is not None:
            prune_replays(run)

    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        """Take up a checkpoint."""
        state, sb3 = checkpoint.state, self.sb3
        load_weights(self.networks, checkpoint, run)
        sb3.policy.optimizer.load_state_dict(state["optimiser"])
        for name in self.counters:
            setattr(sb3, name, state["counters"][name])
        sb3._last_obs = self.env.set_state(state["env"])
        sb3._last_episode_starts = np.asarray(state["episode_starts"], np.bool_)
        sb3.ep_info_buffer.extend({"r": r, "l": length} for r, length in state["episodes"])
        sb3.ep_success_buffer.extend(state["successes"])
        if "replay" in state:
            load_replay(run, state["replay"], sb3.replay_buffer)
        self.streams.load_state_dict(state["streams"])
        self.randomness.load_state_dict(state["global_streams"])


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


train, resume = BaselineTraining.train, BaselineTraining.resume
