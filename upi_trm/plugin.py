"""UPI-TRM as the rest of the program sees it (`trm.experiments.learners.Learner`).

The entry point `upi` of the group `upi_trm.learners` names `LEARNER`.
"""

from dataclasses import dataclass

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
from trm.nn.model import TinyRecursiveModel
from trm.runs.run import Run, fitting
from upi_trm.chain import MixturePolicy
from upi_trm.deployment import greedy_policy, load_deployed
from upi_trm.insight import UpiInsight
from upi_trm.recipe import UpiRecipe
from upi_trm.shipped import RECIPES
from upi_trm.theory.subjects import load_subject


@dataclass(frozen=True)
class UpiTrm:
    """The learner that writes runs of kind "upi"."""

    kind: str = "upi"
    commands: tuple[str, ...] = ("train",)

    def sweep_command(self, command: str) -> SweepCommand:
        """`upi-trm train`."""
        return SweepCommand(
            recipe=UpiRecipe,
            recipes=RECIPES,
            make_record=keep_record,
        )

    def method_of(self, run: Run) -> str:
        """The paper's name."""
        return "UPI-TRM"

    def load_policy(self, run: Run, *, placement: Placement, step: int | str | None) -> Policy:
        """What `deployment` makes of the recipe: a network, a mixture, or one that remembers."""
        return greedy_policy(_load(run, placement, step), task_of(run).domain, placement)

    def load_networks(self, run: Run, *, placement: Placement, step: int | str | None) -> Networks:
        """In float64, as `theory.subjects` studies them."""
        subject = load_subject(run, placement=placement, step=step)
        return Networks(
            policy=subject.learner.policy,
            evaluator=subject.learner.evaluator,
            model=subject.recipe.model,
            step=subject.step,
        )

    def load_insight(self, run: Run, *, placement: Placement, step: int | str | None) -> Insight:
        """Of the evaluator and the deployed policy."""
        placement.apply()
        checkpoint = run.load_checkpoint(step)
        with fitting(run, checkpoint):
            return UpiInsight.of(
                task_of(run).domain, run.load_recipe(UpiRecipe), checkpoint.weights, placement
            )

    def load_predictor(
        self, run: Run, *, placement: Placement, step: int | str | None
    ) -> Predictor | None:
        """Its runs play edits."""
        return None


LEARNER: Learner = UpiTrm()


def _load(
    run: Run, placement: Placement, step: int | str | None
) -> TinyRecursiveModel | MixturePolicy:
    placement.apply()
    checkpoint = run.load_checkpoint(step)
    with fitting(run, checkpoint):
        return load_deployed(
            task_of(run).domain, run.load_recipe(UpiRecipe), checkpoint.weights, placement
        )
