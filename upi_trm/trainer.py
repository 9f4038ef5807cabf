"""UPI-TRM as `trm.experiments.training` trains it: `learner.UpiLearner` in an environment.

Input: an environment's name and a recipe. Output: a `Run` folder that `upi-trm eval` and `solve`
take. Several processes share the recipe's plans and minibatches; process 0 evaluates.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from gymnasium.vector import AutoresetMode

from plan_envs.catalogue import Task
from plan_envs.instances import InstanceSet
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.streams import named_streams
from trm.compute.workers import Workers
from trm.experiments import training
from trm.experiments.training import Setting, Trainee
from trm.runs.checkpoints import Checkpoint
from trm.runs.packing import pack_state
from trm.runs.run import Run
from upi_trm.curriculum import Curriculum
from upi_trm.deployment import greedy_policy
from upi_trm.learner import UpiLearner
from upi_trm.recipe import RUN_KIND, UpiRecipe
from upi_trm.rollout import Roller, Rollout
from upi_trm.search_roller import SearchRoller


def share_of(recipe: UpiRecipe, workers: Workers) -> UpiRecipe:
    """What one of several processes does of a recipe: its part of the plans and minibatches.

    With gradients averaged, an optimiser step is then over as many states as the recipe says.

    Raises:
        ValueError: a number that can't be divided; names the field.
    """

    def part(section: str, *fields: str) -> Any:
        config: Any = getattr(recipe, section)
        shares = {
            name: workers.share(getattr(config, name), f"{section}.{name}") for name in fields
        }
        return replace(config, **shares)

    return replace(
        recipe,
        rollout=part("rollout", "plans"),
        evaluator=part("evaluator", "batch_size", "certified_states"),
        improvement=part("improvement", "batch_size", "lookahead_states"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Environment:
    """An environment that the weights are trained on; all learners share the networks."""

    task: Task
    learner: UpiLearner
    roller: Rollout
    validation: InstanceSet


class UpiTraining(Trainee):
    """The learner, the plans that it edits, and their random streams."""

    kind = RUN_KIND
    recipe_type = UpiRecipe
    command = "train"
    unit = "edits"
    columns: ClassVar = {
        "success": ("success_rate", ".1%"),
        "score": ("mean_score", ".2f"),
        "KL": ("kl", ".1e"),
        "L_z": ("certified_modulus", ".3f"),
        "centring": ("centring_defect", ".0e"),
    }
    best_by = "success_rate"
    recipe: UpiRecipe

    def __init__(self, recipe: UpiRecipe, setting: Setting) -> None:
        """Draw the weights, the pool and the first plans.

        Raises:
            ValueError: the processes can't share the recipe's numbers evenly.
        """
        super().__init__(recipe, setting)
        self.done = 0
        self.metrics: dict[str, float] = {}
        workers, placement = setting.workers, setting.placement
        mine = share_of(recipe, workers)
        self.streams = named_streams(setting.seed, member=workers.rank)
        # The same weights everywhere to begin with; all other draws are a process's own.
        init = self.streams if workers.is_main else named_streams(setting.seed)
        (task, instances), *others = recipe.instances.tasks(setting.env)
        pool = instances.pool(task, seed=setting.seed)
        self.learner = UpiLearner(
            task.domain,
            mine,
            dead_end="absorb",
            device=placement.torch_device,
            init=init.torch("init"),
            noise=self.streams.torch("noise"),
            actions=self.streams.torch("policy"),
            lessons=self.streams.numpy("noise"),
            workers=workers,
        )
        self.environments = [self._environment(mine, task, self.learner, pool)]
        for task, further in others:
            pool = further.pool(task, seed=setting.seed)
            self.environments.append(self._environment(mine, task, self._beside(task), pool))
        for one in self.environments:
            one.learner.compile_steps(placement)

    @classmethod
    def pieces(cls, recipe: UpiRecipe) -> tuple[int, int]:
        """An edit of every plan, and a rollout."""
        return recipe.rollout.plans, recipe.rollout.plans * recipe.rollout.steps

    def _beside(self, task: Task) -> UpiLearner:
        try:
            return self.learner.beside(task.domain)
        except ValueError as error:
            raise ValueError(f"instances.also {task.name}: {error}") from error

    def _environment(
        self, mine: UpiRecipe, task: Task, learner: UpiLearner, pool: InstanceSet
    ) -> _Environment:
        return _Environment(
            task=task,
            learner=learner,
            roller=self._roller(mine, task, learner, pool),
            validation=task.instances("validation", num=self.recipe.schedule.evaluate_num),
        )

    def _roller(
        self, mine: UpiRecipe, task: Task, learner: UpiLearner, pool: InstanceSet
    ) -> Rollout:
        draws = self.streams.numpy("instances")
        if mine.rollout.actor == "search":
            return SearchRoller(
                task.domain,
                pool,
                mine.rollout,
                gamma=mine.evaluator.gamma,
                led=self._leads,
                generator=draws,
            )
        env = PlanEditVectorEnv(
            task,
            num_envs=mine.rollout.plans,
            instances=pool,
            gamma=mine.evaluator.gamma,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        curriculum = Curriculum(task.domain, pool, mine.curriculum, draws)
        return Roller(env, curriculum, seed=int(draws.integers(2**31)))

    def _leads(self) -> bool:
        """Whether the networks have learned anything that can lead a search, of any size."""
        return any(one.learner.parts.edit_values.ready for one in self.environments)

    def spent(self, budget: int) -> bool:
        """Whether the budget has no edit left for every plan."""
        return budget - self.done < self.recipe.rollout.plans

    def advance(self, budget: int) -> None:
        """One iteration, shorter where the budget ends."""
        plans, final = self.recipe.rollout.plans, self.recipe.schedule.final_learning_rate
        steps = min(self.recipe.rollout.steps, (budget - self.done) // plans)
        self.learner.scale_learning_rates(1.0 - (1.0 - final) * self.done / budget)
        turn = self.done // (plans * self.recipe.rollout.steps) % len(self.environments)
        one = self.environments[turn]
        self.done += steps * plans
        with self.setting.placement.autocast():
            metrics = one.learner.iterate(one.roller, steps=steps)
        self.metrics = metrics | one.roller.figures()

    def figures(self) -> dict[str, float]:
        """Metrics of the last iteration."""
        return self.metrics

    def evaluate(self) -> dict[str, float]:
        """Greedy success on validation puzzles; the mean over the environments, where several."""
        found = None
        if self.setting.workers.is_main:
            found, *further = [self._played(one) for one in self.environments]
            if further:
                rates = [played["success_rate"] for played in (found, *further)]
                found["success_rate"] = sum(rates) / len(rates)
                for one, rate in zip(self.environments, rates, strict=True):
                    found[f"success_rate_{one.task.name}"] = rate
        figures: dict[str, float] = self.setting.workers.from_main(found)
        return figures

    def _played(self, one: _Environment) -> dict[str, float]:
        domain = one.task.domain
        policy = greedy_policy(one.learner.deployed, domain, self.setting.placement)
        return training.play_validation(policy, one.task, one.validation)

    def weights(self) -> dict[str, torch.Tensor]:
        """Of every network."""
        return self.learner.weights()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Of evaluator and policy."""
        parts = self.learner.parts
        return {
            "evaluator's optimiser": parts.value_optimiser,
            "policy's optimiser": parts.policy_optimiser,
        }

    def state(self, run: Run) -> dict[str, Any]:
        """Of this process; in `others` that of the others."""
        mine = {
            "edits": self.done,
            "learner": self.learner.state(),
            "roller": self.environments[0].roller.state(),
            "also": {
                one.task.name: {"learner": one.learner.memory(), "roller": one.roller.state()}
                for one in self.environments[1:]
            },
            "streams": self.streams.state_dict(),
        }
        if self.setting.workers.size > 1:
            mine["others"] = self.setting.workers.gather(pack_state(mine))[1:]
        return mine

    def restore(self, checkpoint: Checkpoint, run: Run) -> None:
        """Take up this process's part of a checkpoint."""
        states = [checkpoint.state, *checkpoint.state.get("others", [])]
        state = states[self.setting.workers.rank]
        self.done = state["edits"]
        self.learner.load_weights(checkpoint.weights)
        self.learner.load_state(state["learner"])
        self.environments[0].roller.load_state(state["roller"])
        for one in self.environments[1:]:
            kept = state["also"][one.task.name]
            one.learner.load_memory(kept["learner"])
            one.roller.load_state(kept["roller"])
        self.streams.load_state_dict(state["streams"])


train, resume = UpiTraining.train, UpiTraining.resume
