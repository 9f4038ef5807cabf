"""Runs side by side: one row a method, recipe and environment over its seeds, with references.

`compare_records` turns evaluation records (`trm.experiments.records`) into rows: mean, standard
deviation and 95% interval over seeds, costs, and the reference policies on the same instances.
`Comparison.tables`, `save_plot` and `Comparison.to_json_dict` show them. Every figure is computed
from the records, and a record whose improvement is not its mean score less that of the untouched
instances is refused.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trm.experiments.intervals import student_t_interval, wilson_interval
from trm.experiments.milestones import LEVELS, Milestone, milestones
from trm.experiments.records import Record
from trm.runs.pictures import new_figure, save_figure

_TOLERANCE = 1e-3
"""Deviation that sums of float32 scores may have, in points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table; None where nothing was measured."""

    method: str
    recipe: str | None = None
    """None for a reference policy."""
    env: str
    success_rate: float
    """Mean over seeds."""
    success_rate_std: float | None = None
    """Sample standard deviation over seeds; None for one seed."""
    success_rate_low: float
    success_rate_high: float
    """Ends of the 95% interval, in [0, 1]."""
    interval: Literal["student-t", "wilson"] = "wilson"
    """Student's t over seeds; Wilson's over the instances where there is one seed."""
    mean_score: float
    improvement: float
    """Mean of final minus initial score."""
    parameters: int | None = None
    edits: int = 0
    """Edits of training; 0 for a reference policy."""
    wall_seconds: float | None = None
    """Mean over seeds, like cpu_seconds."""
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    """Largest over seeds."""
    num_seeds: int = 1
    seeds: tuple[int, ...] = ()
    instances: str
    num_instances: int
    recipe_hash: str | None = None
    milestones: tuple[Milestone, ...] = ()
    """Edits and CPU seconds to 50, 80, 90 and 95% of the validation puzzles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Success on validation puzzles against edits, over the seeds of a row."""

    label: str
    """Method and what is particular about the recipe."""
    env: str
    edits: Float[np.ndarray, " point"]
    mean: Float[np.ndarray, " point"]
    std: Float[np.ndarray, " point"]
    num_seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What `upi-trm compare` shows."""

    rows: tuple[Row, ...]
    """Rows by environment; each environment's reference policies come last."""
    curves: tuple[Curve, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """`rows` as plain values."""
        return {"rows": [asdict(row) for row in self.rows]}

    def tables(self) -> list[Table]:
        """For the terminal: results of each environment and instance set, then milestones."""
        tasks = dict.fromkeys((row.env, row.instances) for row in self.rows)
        found = [
            _table([row for row in self.rows if (row.env, row.instances) == task]) for task in tasks
        ]
        for env in dict.fromkeys(row.env for row in self.rows):
            rows = [(_name(row), row.milestones) for row in self.rows if row.env == env]
            timed = [(name, reached) for name, reached in rows if reached]
            if timed:
                found.append(_milestone_table(env, timed))
        return found


def compare_records(records: Sequence[Record]) -> Comparison:
    """Rows and curves of some records.

    Runs belong to one row when they agree in method, environment, instances, recipe and edits.

    Raises:
        ValueError: no record; instance sets of different sizes for one environment; a run that is
            given twice; an improvement that does not add up.
    """
    if not records:
        raise ValueError("compare: no results to compare")
    _check_instances(records)
    for record in records:
        _check_sums(record)
    groups = _groups(records)
    labels = _labels(groups)
    rows: list[Row] = []
    # In the order in which the records were given, environments kept together.
    for task in dict.fromkeys(map(_task, records)):
        members = [place for place, (first, *_) in enumerate(groups) if _task(first) == task]
        rows += [_row(groups[place], labels[place]) for place in members]
        rows += _reference_rows(groups[members[0]][0])
    curves = map(learning_curve, groups, labels)
    return Comparison(
        rows=tuple(rows),
        curves=tuple(curve for curve in curves if curve is not None),
    )


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """The runs of each row in the order of their seeds; rows in the order of their first runs."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        recipe = record.recipe_hash or record.recipe
        setting = (record.method, *_task(record), recipe, record.step)
        groups.setdefault(setting, []).append(record)
    for runs in groups.values():
        runs.sort(key=lambda record: record.seed)
        for one, other in itertools.pairwise(runs):
            if one.seed == other.seed:
                raise ValueError(
                    f"{one.recipe} on {one.env}: several runs have the seed {one.seed}, the recipe"
                    " and the training in common; give one of them"
                )
    return list(groups.values())


def learning_curve(records: Sequence[Record], label: str) -> Curve | None:
    """Mean and standard deviation over seeds at every edit count that all of them have reached.

    A seed that was not evaluated there counts with the straight line between its neighbours. None
    when a record has no curve.
    """
    if not all(record.curve for record in records):
        return None
    tracks = [np.asarray(record.curve, np.float64).T for record in records]
    first, last = max(track[0][0] for track in tracks), min(track[0][-1] for track in tracks)
    edits = np.unique(np.concatenate([track[0] for track in tracks]))
    edits = edits[(edits >= first) & (edits <= last)]
    if not len(edits):
        return None
    rates = np.stack([np.interp(edits, *track) for track in tracks])
    std = rates.std(axis=0, ddof=1) if len(rates) > 1 else np.zeros(len(edits))
    return Curve(
        label=f"{records[0].method} {_settings(label, records[0].env)}".strip(),
        env=records[0].env,
        edits=edits,
        mean=rates.mean(axis=0),
        std=std,
        num_seeds=len(records),
    )


# --- Rows


def _row(records: Sequence[Record], label: str) -> Row:
    rates = [record.success_rate for record in records]
    first, several = records[0], len(records) > 1
    # Seeds that agree say nothing of their spread: the puzzles still do.
    spread = several and len(set(rates)) > 1
    low, high = (
        student_t_interval(rates) if spread else wilson_interval(rates[0], first.num_instances)
    )
    return Row(
        method=first.method,
        recipe=label,
        env=first.env,
        success_rate=statistics.mean(rates),
        success_rate_std=statistics.stdev(rates) if several else None,
        success_rate_low=max(0.0, low),
        success_rate_high=min(1.0, high),
        interval="student-t" if spread else "wilson",
        mean_score=_over_seeds(statistics.mean, records, "mean_score"),
        improvement=_over_seeds(statistics.mean, records, "improvement"),
        parameters=_over_seeds(max, records, "parameters"),
        edits=first.step,
        wall_seconds=_over_seeds(statistics.mean, records, "wall_seconds"),
        cpu_seconds=_over_seeds(statistics.mean, records, "cpu_seconds"),
        peak_memory_bytes=_over_seeds(max, records, "peak_memory_bytes"),
        num_seeds=len(records),
        seeds=tuple(record.seed for record in records),
        instances=first.instances,
        num_instances=first.num_instances,
        recipe_hash=first.recipe_hash,
        milestones=milestones(records),
    )


def _reference_rows(record: Record) -> list[Row]:
    """The reference policies, which chose their edits once on the instances of this record."""
    rows = []
    for name, report in record.reference.items():
        low, high = wilson_interval(report["success_rate"], record.num_instances)
        rows.append(
            Row(
                method=name,
                env=record.env,
                success_rate=float(report["success_rate"]),
                success_rate_low=low,
                success_rate_high=high,
                mean_score=float(report["mean_score"]),
                improvement=float(report["improvement"]),
                instances=record.instances,
                num_instances=record.num_instances,
            )
        )
    return rows


def _name(row: Row) -> str:
    """What a table calls a row."""
    return f"{row.method} {_settings(row.recipe or '', row.env)}".strip()


def _settings(recipe: str, env: str) -> str:
    """A recipe's label without the environment that the names of recipes and sweeps begin with."""
    return recipe.removeprefix(env).lstrip(",- ")


def _over_seeds(reduce: Callable[[list[Any]], Any], records: Sequence[Record], figure: str) -> Any:
    """A figure over the seeds of a row; None where a seed lacks it."""
    values = [getattr(record, figure) for record in records]
    return None if None in values else reduce(values)


def _task(record: Record) -> tuple[str, str]:
    return record.env, record.instances


def _labels(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A name for every row; rows that would bear the same one add what they differ in."""
    firsts = [group[0] for group in groups]
    labels = []
    for record in firsts:
        same = [other for other in firsts if _claimed_label(other) == _claimed_label(record)]
        marks = []
        if len({other.recipe_hash for other in same}) > 1:
            marks.append((record.recipe_hash or "no hash")[:6])
        if len({other.step for other in same}) > 1:
            marks.append(f"{record.step} edits")
        labels.append(f"{record.recipe} ({', '.join(marks)})" if marks else record.recipe)
    return labels


def _claimed_label(record: Record) -> tuple[str, ...]:
    return (record.method, *_task(record), record.recipe)


def _check_instances(records: Sequence[Record]) -> None:
    sizes: dict[tuple[str, str], Record] = {}
    for record in records:
        first = sizes.setdefault(_task(record), record)
        if first.num_instances != record.num_instances:
            raise ValueError(
                f"{record.env}: {first.recipe} was evaluated on {first.num_instances} puzzles of "
                f"{record.instances}, {record.recipe} on {record.num_instances}; --num N evaluates "
                "every run on the same"
            )


def _check_sums(record: Record) -> None:
    reports = {
        record.recipe: {"mean_score": record.mean_score, "improvement": record.improvement},
        **record.reference,
    }
    # Of the untouched instances, by any of the reports on them.
    any_report = next(iter(record.reference.values()), reports[record.recipe])
    initial = any_report["mean_score"] - any_report["improvement"]
    for name, report in reports.items():
        expected = report["mean_score"] - initial
        if abs(report["improvement"] - expected) > _TOLERANCE * max(1.0, abs(initial)):
            raise ValueError(
                f"{record.recipe}, seed {record.seed}: improvement of {name} is "
                f"{report['improvement']:g} where mean_score - initial score = {expected:g}"
            )


# --- Showing


def _headed(title: str, *headings: str) -> Table:
    """A table without lines: policies, then figures that do not wrap."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _milestone_table(env: str, rows: Sequence[tuple[str, Sequence[Milestone]]]) -> Table:
    """Edits and CPU seconds to every level, a line a policy."""
    title = f"{env}: edits and CPU seconds until so many are solved"
    table = _headed(title, *(f"{level:.0%}" for level in LEVELS))
    for label, found in rows:
        table.add_row(label, *map(str, found))
    return table


def _table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    table = _headed(
        f"{first.env}: {first.num_instances} puzzles of {first.instances}",
        *("solved", "95%", "score", "improve-\nment", "edits", "wall", "seeds"),
    )
    for row in rows:
        std = "" if row.success_rate_std is None else f" ± {row.success_rate_std:.1%}"
        learned = row.recipe is not None
        table.add_row(
            _name(row),
            f"{row.success_rate:.1%}{std}",
            f"{100 * row.success_rate_low:.1f}-{100 * row.success_rate_high:.1f}",
            f"{row.mean_score:.2f}",
            f"{row.improvement:+.2f}",
            f"{row.edits:,}" if learned else "",
            "" if row.wall_seconds is None else _duration(row.wall_seconds),
            str(row.num_seeds) if learned else "",
            style=None if learned else "dim",
        )
    return table


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def save_plot(comparison: Comparison, path: Path) -> None:
    """Draw the learning curves: success against edits, mean and standard deviation over seeds.

    Dotted lines are the reference policies, on the test puzzles. Of more than four recipes only the
    means are drawn, and the legend is beside them, best first.

    Args:
        comparison: has at least one curve.
        path: the picture; its ending names the format, e.g. .png, .svg or .pdf.

    Raises:
        ValueError: matplotlib is not installed or does not know the format; there is no curve.
    """
    envs = list(dict.fromkeys(curve.env for curve in comparison.curves))
    if not envs:
        raise ValueError("--plot: no run logged a success rate while it trained")
    by_env = {env: [curve for curve in comparison.curves if curve.env == env] for env in envs}
    crowded = any(len(curves) > 4 for curves in by_env.values())
    width = 10.0 if crowded else 6.4
    figure = new_figure(width * len(envs), 4.8)
    for number, (env, curves) in enumerate(by_env.items(), start=1):
        axes = figure.add_subplot(1, len(envs), number)
        if crowded:
            curves.sort(key=lambda curve: -curve.mean[-1])
        for curve, marker in zip(curves, itertools.cycle("osD^vP*X<>")):
            label = f"{curve.label} ({curve.num_seeds} seed{'s' * (curve.num_seeds > 1)})"
            style = {"marker": marker, "markersize": 4} if crowded else {}
            (line,) = axes.plot(curve.edits, 100 * curve.mean, label=label, **style)
            if crowded:
                continue
            axes.fill_between(
                curve.edits,
                100 * np.clip(curve.mean - curve.std, 0, 1),
                100 * np.clip(curve.mean + curve.std, 0, 1),
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        for rate, names in _reference_levels(comparison.rows, env).items():
            axes.axhline(100 * rate, color="grey", linestyle=":", linewidth=1)
            axes.annotate(
                ", ".join(names),
                (1, 100 * rate),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize="x-small",
                color="grey",
            )
        axes.set(
            title=env,
            xlabel="edits",
            ylabel=f"validation puzzles solved, % (mean {'' if crowded else '± std '}over seeds)",
            ylim=(-2, 104),
        )
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if crowded else {}
        axes.legend(fontsize="small", **beside)
    save_figure(figure, path)


def _reference_levels(rows: Sequence[Row], env: str) -> dict[float, list[str]]:
    """Success rate -> the reference policies that have it; the oracle says nothing in a plot."""
    levels: dict[float, list[str]] = {}
    for row in rows:
        if row.env == env and row.recipe is None and row.method != "oracle":
            names = levels.setdefault(row.success_rate, [])
            names += [] if row.method in names else [row.method]
    return levels
