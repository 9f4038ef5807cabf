"""The contract of a learner: how its runs are swept, played, recorded and studied.

A learner is an object that fulfils `Learner`; an entry point of the group `upi_trm.learners` names
it by the kind of the runs that it writes. Sweeps, records, `eval`, `solve`, `compare` and `drift`
find it here and know no learner by name. A learner whose dependencies are an extra (SB3) imports
them when it is asked for something.
"""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.catalogue import TASKS, Task, resolve_task
from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.evaluation import Policy
from trm.compute.device import Placement
from trm.experiments.states import Boards, Deepening
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.runs.files import RunError
from trm.runs.run import Run
from trm.runs.shipped import ShippedFiles, nearest_hint

LEARNER_GROUP = "upi_trm.learners"
"""Entry-point group of the learners: kind of run -> `package.module:OBJECT`."""


def edits_when_finished(recipe: Any) -> int:
    """Edits of a finished run: the budget, less what is too little for one more of every plan.

    Args:
        recipe: has `schedule.edits` and `rollout.plans`.
    """
    return int(recipe.schedule.edits // recipe.rollout.plans * recipe.rollout.plans)


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """What a sweep must know of a command that trains runs; its functions can be imported."""

    recipe: type
    """Dataclass of its recipes."""
    recipes: ShippedFiles
    """The shipped ones."""
    steps_field: str = "schedule.edits"
    """The recipe's field that `--steps` overrides."""
    finished_at: Callable[[Any], int] = edits_when_finished
    """Step that a finished run of a recipe has reached at least."""
    make_record: Callable[[Path, int], dict[str, Any]]
    """Evaluates a run folder on so many unseen puzzles; the record has `seed` and `step`."""
    figures: tuple[str, ...] = ("success_rate",)
    """Shares in a record, or null there, that the manifest and the display show."""
    options: tuple[str, ...] = ("--eval-num", "0")
    """Words that are always added, so that the command does not evaluate by itself."""
    takes_env: bool = True
    """Whether it has `--env`; else its recipes name their data."""
    path_words: tuple[str, ...] = ()
    """Fields of the recipe that the first further words of `command`, which are paths, fill."""
    resume: tuple[str, ...] = ()
    """Words of the command that goes on with a run; empty for its own."""
    compare: tuple[str, ...] = ("compare",)
    """Words of the command that shows runs side by side."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of a checkpoint, in evaluation mode on the placement's device."""

    policy: TinyRecursiveModel
    """Its edit logits are those of the policy, or action values up to a constant a state (DQN)."""
    evaluator: TinyRecursiveModel
    """Its value is V(s), in the units of the shaped return; the policy itself where both share one
    backbone. Of DQN without `dueling` the value head was never trained."""
    model: ModelConfig
    step: int
    """Edits at the checkpoint."""


@runtime_checkable
class Insight(Protocol):
    """What a checkpoint that plays edits says of states, beside its greedy policy.

    `quantities` names the methods that may be called. `Boards` are full instances with plans.
    """

    @property
    def quantities(self) -> frozenset[str]:
        """Of "probabilities", "values", "edit_values" and "deepen" those that the run has."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The networks that `readings` reads."""

    def readings(self, states: StateBatch) -> dict[str, Tensor]:
        """What the networks alone say of states, by quantity; of it `export` makes a graph.

        Nothing here asks the checker, so that a head which means a chance to be solved is given as
        that: V(s) + Phi(s), and Q(s, a) + Phi(s) of undecided edits. Other heads give V and Q.
        """

    def probabilities(self, states: StateBatch) -> Float[Tensor, "batch action"]:
        """pi(a | s), 0 at illegal edits (an `EditPolicy`)."""

    def values(self, boards: Boards) -> NDArray[np.float32]:
        """V(s), shape [batch], in the units of the shaped return."""

    def edit_values(self, boards: Boards) -> NDArray[np.float32]:
        """Q(s, a), shape [batch, action], in the same units; NaN at illegal edits."""

    def deepen(self, boards: Boards, *, depth: int) -> Deepening:
        """What is said after each of `depth` updates of the latent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a run that predicts whole boards answers, after each of its supervision steps."""

    plans: Int8Array
    """Shape [step, batch, cell]."""
    entropy: NDArray[np.float32]
    """Entropy of the distribution over tokens, nats, shape [step, batch, cell]."""
    halting: NDArray[np.float32] | None
    """Probability of halting, shape [step, batch]; None without a halting head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A checkpoint that predicts whole boards."""

    domain: PlanDomain
    """Whose boards it predicts."""
    predict: Callable[[Int8Array], Prediction]
    """From instances, shape [batch, instance]."""
    unseen: Callable[[int], Int8Array]
    """The first so many instances of the run's test split, shape [num, instance]."""


@runtime_checkable
class Learner(Protocol):
    """A learner as the rest of the program sees it.

    In all methods `step` is a checkpoint's step or its tag ("best"); None means the newest.
    """

    @property
    def kind(self) -> str:
        """Kind of the runs that it writes, as run.json records it."""

    @property
    def commands(self) -> Sequence[str]:
        """Its commands that train runs, as words after `upi-trm`, e.g. "baselines train"."""

    def sweep_command(self, command: str) -> SweepCommand:
        """What a sweep must know of one of `commands`."""

    def method_of(self, run: Run) -> str:
        """The name of the method in tables, e.g. "UPI-TRM" or "PPO"."""

    def load_policy(self, run: Run, *, placement: Placement, step: int | str | None) -> Policy:
        """The greedy policy of a checkpoint.

        Raises:
            RunError: a run that plays no edits, or weights that do not fit its recipe.
        """

    def load_networks(self, run: Run, *, placement: Placement, step: int | str | None) -> Networks:
        """Policy and evaluator of a checkpoint, for studies; errors as of `load_policy`."""

    def load_insight(self, run: Run, *, placement: Placement, step: int | str | None) -> Insight:
        """Probabilities and values of a checkpoint; errors as of `load_policy`."""

    def load_predictor(
        self, run: Run, *, placement: Placement, step: int | str | None
    ) -> Predictor | None:
        """The model of a run that predicts whole boards; None of a run that plays edits.

        Raises:
            RunError: the boards are those of a domain whose puzzles are not one board each.
        """


def learner_of(run: Run) -> Learner:
    """The learner that wrote a run.

    Raises:
        RunError: no installed learner writes runs of its kind, or it does not load.
    """
    points = _learners()
    kind, where = run.info.kind, run.path / "run.json"
    if kind not in points:
        known = ", ".join(repr(name) for name in sorted(points))
        raise RunError(f"{where}: kind is {kind!r}, not one of {known}")
    try:
        found: Learner = points[kind].load()
    except ImportError as error:
        raise RunError(f"{where}: a run of kind {kind!r} can't be loaded: {error}") from error
    return found


def find_command(text: str) -> tuple[SweepCommand, list[str], list[str]]:
    """The command, the words that name it, and the words that follow them.

    Raises:
        ValueError: the words name no command that trains; says the nearest one.
    """
    words = shlex.split(text)
    homes: dict[str, Learner] = {}
    for point in _learners().values():
        learner: Learner = point.load()
        homes |= dict.fromkeys(learner.commands, learner)
    for count in range(len(words), 0, -1):
        name = " ".join(words[:count])
        if name in homes:
            return homes[name].sweep_command(name), words[:count], words[count:]
    hint = nearest_hint(text, sorted(homes))
    raise ValueError(f"command: {text!r} trains no runs; {hint}")


def task_of(run: Run) -> Task:
    """The task that a run was trained on."""
    return resolve_task(run.info.env)


def load_policy(run: Run, *, placement: Placement, step: int | str | None = None) -> Policy:
    """The greedy policy of a checkpoint of any learner; see `Learner.load_policy`."""
    return learner_of(run).load_policy(run, placement=placement, step=step)


def recipe_is_for(name: str) -> str | None:
    """The task that a shipped recipe's name begins or ends with; None of a file or another name."""
    if Path(name).is_file():
        return None
    stem = name.removesuffix(".yaml")
    named = [
        task
        for task in TASKS
        if stem == task or stem.startswith(f"{task}-") or stem.endswith(f"-{task}")
    ]
    return max(named, key=len, default=None)


def all_learners() -> list[Learner]:
    """Every installed learner that loads, by its kind."""
    found = []
    for _, point in sorted(_learners().items()):
        with contextlib.suppress(ImportError):
            found.append(point.load())
    return found


def _learners() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=LEARNER_GROUP)}
