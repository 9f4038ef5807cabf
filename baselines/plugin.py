"""PPO, A2C, DQN and MaskablePPO as the rest of the program sees them.

The entry point `sb3` of the group `upi_trm.learners` names `LEARNER`, which fulfils
`trm.experiments.learners.Learner`. SB3 and torch are imported when they are asked for.
"""

from dataclasses import dataclass
from functools import partial

from plan_envs.evaluation import Policy
from trm.compute.device import Placement
from trm.experiments.learners import (
    Insight,
    Learner,
    Networks,
    Predictor,
    SweepCommand,
    task_of,
)
from trm.experiments.records import keep_record
from trm.experiments.states import GreedyPolicy, edit_logits
from trm.runs.run import Run


@dataclass(frozen=True)
class Baselines:
    """The learner that writes runs of kind "sb3"."""

    kind: str = "sb3"
    commands: tuple[str, ...] = ("baselines train",)

    def sweep_command(self, command: str) -> SweepCommand:
        """`upi-trm baselines train`."""
        from baselines.recipe import BaselineRecipe
        from baselines.shipped import RECIPES

        return SweepCommand(
            recipe=BaselineRecipe,
            recipes=RECIPES,
            make_record=keep_record,
        )

    def method_of(self, run: Run) -> str:
        """The algorithm, as the run records it."""
        return str(run.info.extra.get("method", self.kind))

    def load_policy(self, run: Run, *, placement: Placement, step: int | str | None) -> Policy:
        """The most probable edit, or that of the largest action value."""
        networks = self.load_networks(run, placement=placement, step=step)
        return GreedyPolicy(partial(edit_logits, networks.policy), placement)

    def load_networks(self, run: Run, *, placement: Placement, step: int | str | None) -> Networks:
        """Policy and critic."""
        from baselines.deployment import load_networks

        return load_networks(run, placement=placement, step=step)

    def load_insight(self, run: Run, *, placement: Placement, step: int | str | None) -> Insight:
        """As far as the algorithm has it."""
        from baselines.insight import Sb3Insight
        from baselines.recipe import BaselineRecipe

        return Sb3Insight(
            domain=task_of(run).domain,
            recipe=run.load_recipe(BaselineRecipe),
            networks=self.load_networks(run, placement=placement, step=step),
            placement=placement,
        )

    def load_predictor(
        self, run: Run, *, placement: Placement, step: int | str | None
    ) -> Predictor | None:
        """Its runs play edits."""
        return None


LEARNER: Learner = Baselines()
