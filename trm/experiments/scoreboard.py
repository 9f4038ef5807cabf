"""The learned policy beside the reference policies on the same instances.

Success and scores are those of `plan_envs.evaluation`: greedy, one episode and one pass an
instance, dead ends continue as in the paper's protocol. Every results table needs the references,
because a mask may give most of a puzzle away.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from plan_envs.catalogue import Task
from plan_envs.evaluation import EvalReport, Policy, evaluate_policy, reference_policies
from plan_envs.instances import InstanceSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoreboard:
    """Reports of several policies on one set of instances."""

    env: str
    """Name of the task."""
    instances: str
    """Where the instances come from, e.g. "sudoku9x9:test:seed0" or a file name."""
    reference: Mapping[str, EvalReport]
    """Reference policy name -> its report."""
    learned: EvalReport | None = None
    """The run's greedy policy; None when only the references play."""
    assisted: Mapping[str, EvalReport] = field(default_factory=dict)
    """Name -> the run's policy with more than one pass (`search`), in rows of their own."""

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values: rates in [0, 1], scores in points; `reference` has the same keys."""
        learned = {} if self.learned is None else self.learned.to_json_dict()
        return {
            **learned,
            "reference": {name: report.to_json_dict() for name, report in self.reference.items()},
            "env": self.env,
            "instances": self.instances,
        }

    def table(self) -> Table:
        """A table for the terminal, the learned policy first."""
        learned = {} if self.learned is None else {"learned": self.learned}
        reports = {**learned, **self.assisted, **self.reference}
        num = next(iter(reports.values())).num_instances
        table = Table(
            title=f"{self.env}: {num} puzzles of {self.instances}",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("policy")
        details = list(next(iter(reports.values())).details)
        for heading in ("solved", "mean score", "improvement", *details):
            table.add_column(heading, justify="right")
        for name, report in reports.items():
            table.add_row(
                name,
                f"{report.success_rate:.1%}",
                f"{report.mean_score:.2f}",
                f"{report.improvement:+.2f}",
                *(f"{report.details[name]:.1%}" for name in details),
                style="bold green" if report is self.learned else None,
            )
        return table


def score_policies(
    learned: Policy,
    task: Task,
    instances: InstanceSet,
    *,
    seed: int = 0,
    announce: Callable[[str], None] = lambda _: None,
) -> Scoreboard:
    """Play the learned policy and every reference policy on the same instances.

    Args:
        learned: greedy policy of a run.
        task: names the environment and holds its domain.
        instances: puzzles, one episode each.
        seed: seed of the reference policies' random choices.
        announce: called with each policy's name before it plays.
    """
    announce("learned")
    report = evaluate_policy(learned, task.domain, instances, seed=seed)
    return Scoreboard(
        env=task.name,
        instances=instances.name,
        learned=report,
        reference=score_references(task, instances, seed=seed, announce=announce),
    )


def score_references(
    task: Task,
    instances: InstanceSet,
    *,
    seed: int = 0,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, EvalReport]:
    """Play every reference policy; arguments as for `score_policies`."""
    reports = {}
    for name, policy in reference_policies(task.domain, instances).items():
        announce(name)
        reports[name] = evaluate_policy(policy, task.domain, instances, seed=seed)
    return reports
