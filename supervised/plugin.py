"""TRM, HRM and DIS as the rest of the program sees them (`trm.experiments.learners.Learner`).

The entry point `supervised` of the group `upi_trm.learners` names `LEARNER`. Its runs predict whole
boards and play no edits, so that only sweeps and records take them.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from supervised.measures.records import make_record
from supervised.recipe import SupervisedRecipe
from supervised.shipped import RECIPES
from trm.compute.device import Placement
from trm.experiments.learners import Learner, Predictor, SweepCommand
from trm.runs.files import RunError
from trm.runs.run import Run

_DISTILL = "supervised distill"


@dataclass(frozen=True)
class Supervised:
    """The learner that writes runs of kind "supervised"."""

    kind: str = "supervised"
    commands: tuple[str, ...] = ("supervised train", _DISTILL)

    def sweep_command(self, command: str) -> SweepCommand:
        """`upi-trm supervised train`, or `distill`, which takes its teacher as a word."""
        return SweepCommand(
            recipe=SupervisedRecipe,
            recipes=RECIPES,
            steps_field="schedule.steps",
            finished_at=steps_when_finished,
            make_record=make_record,
            figures=("exact", "valid", "commit_valid"),
            options=(),
            takes_env=False,
            path_words=("teacher",) if command == _DISTILL else (),
            resume=("supervised", "train"),
            compare=("supervised", "compare"),
        )

    def method_of(self, run: Run) -> str:
        """The learner's own name; its records name their recipes."""
        return self.kind

    def load_policy(self, run: Run, *, placement: Placement, step: int | str | None) -> NoReturn:
        """Refuse: these runs have no policy over edits."""
        raise RunError(
            f"{run.path / 'run.json'}: kind is 'supervised', whose runs predict whole boards and"
            f" play no edits; `upi-trm supervised eval {run.path}` measures them"
        )

    load_networks = load_insight = load_policy

    def load_predictor(
        self, run: Run, *, placement: Placement, step: int | str | None
    ) -> Predictor | None:
        """The model and the codec of its boards."""
        from supervised.predictor import load_predictor

        return load_predictor(run, placement=placement, step=step)


LEARNER: Learner = Supervised()


def steps_when_finished(recipe: Any) -> int:
    """Optimiser steps of a finished run; 0 where CPU time ends it, which `make_record` checks."""
    return 0 if recipe.schedule.cpu_seconds is not None else int(recipe.schedule.steps)
