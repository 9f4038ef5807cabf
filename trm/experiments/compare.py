"""Runs side by side: one row a method, recipe and environment over its seeds, with references.

`compare_records` turns evaluation records (`trm.experiments.records`) into rows: mean, standard
deviation and 95% interval over seeds, costs, and the reference policies on the same instances.
`Comparison.tables`, `save_plot` and `Comparison.to_json_dict` show them. Every figure is computed
from the records, and a record whose improvement is not its mean score less that of the untouched
instances is refused.
"""

import itertools
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trm.experiments.intervals import spread_of, student_t_interval, wilson_interval
from trm.experiments.records import Record
from trm.runs.pictures import new_figure, save_figure

R = TypeVar("R")
K = TypeVar("K", bound=Hashable)

_CONFIDENCE = 0.95
_RESAMPLES = 2000
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """A recipe over several environments (rliable: interquartile mean, stratified bootstrap)."""

    method: str
    recipe: str
    envs: tuple[str, ...]
    iqm: float
    """Interquartile mean of the success rates of all its runs."""
    iqm_low: float
    iqm_high: float
    num_runs: int


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
    aggregate: tuple[Aggregate, ...]
    """One for each recipe that was trained on two environments or more."""
    curves: tuple[Curve, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """`rows` and `aggregate` as plain values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "aggregate": [asdict(aggregate) for aggregate in self.aggregate],
        }

    def tables(self) -> list[Table]:
        """Tables for the terminal, one for each environment and instance set."""
        tasks = dict.fromkeys((row.env, row.instances) for row in self.rows)
        return [
            _table([row for row in self.rows if (row.env, row.instances) == task]) for task in tasks
        ]


def compare_records(records: Sequence[Record]) -> Comparison:
    """Rows, aggregates and curves of some records.

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
    groups = list(
        group_runs(records, setting=_setting, seed=lambda record: record.seed, name=_name).values()
    )
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
        aggregate=_aggregates(records),
        curves=tuple(curve for curve in curves if curve is not None),
    )


def group_runs(
    records: Iterable[R],
    *,
    setting: Callable[[R], K],
    seed: Callable[[R], int],
    name: Callable[[R], str],
) -> dict[K, list[R]]:
    """Records by what they have in common, each group in the order of its seeds.

    Args:
        records: records of runs; groups come in the order of their first records.
        setting: gives what the runs of a group have in common.
        seed: gives the seed, in which they differ.
        name: names a group by one of its records, for the error message.

    Raises:
        ValueError: a group has two runs of one seed.
    """
    groups: dict[K, list[R]] = {}
    for record in records:
        groups.setdefault(setting(record), []).append(record)
    for runs in groups.values():
        runs.sort(key=seed)
        for one, other in itertools.pairwise(runs):
            if seed(one) == seed(other):
                raise ValueError(
                    f"{name(one)}: several runs have the seed {seed(one)}, the recipe and the"
                    " training in common; give one of them"
                )
    return groups


# --- Statistics


def interquartile_mean(scores: Float[np.ndarray, "*batch run"]) -> Float[np.ndarray, "*batch"]:
    """Mean of what is left when a quarter of the scores is cut off at each end."""
    cut = scores.shape[-1] // 4
    kept = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    return np.asarray(kept.mean(axis=-1))


def stratified_bootstrap(
    scores: Sequence[Sequence[float]], rng: np.random.Generator, *, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """95% percentile interval of the interquartile mean over all runs of several environments.

    Args:
        scores: one sequence an environment; its runs are drawn again from itself only.
        rng: consumed.
        resamples: number of bootstrap samples.
    """
    draws = [
        rng.choice(np.asarray(runs, np.float64), size=(resamples, len(runs))) for runs in scores
    ]
    means = interquartile_mean(np.concatenate(draws, axis=1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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
    spread, first, several = spread_of(rates), records[0], len(records) > 1
    assert spread is not None
    low, high = (
        student_t_interval(rates) if several else wilson_interval(rates[0], first.num_instances)
    )
    return Row(
        method=first.method,
        recipe=label,
        env=first.env,
        success_rate=spread.mean,
        success_rate_std=spread.std,
        success_rate_low=max(0.0, low),
        success_rate_high=min(1.0, high),
        interval="student-t" if several else "wilson",
        mean_score=statistics.mean(record.mean_score for record in records),
        improvement=statistics.mean(record.improvement for record in records),
        parameters=_largest([record.parameters for record in records]),
        edits=first.step,
        wall_seconds=_mean([record.wall_seconds for record in records]),
        cpu_seconds=_mean([record.cpu_seconds for record in records]),
        peak_memory_bytes=_largest([record.peak_memory_bytes for record in records]),
        num_seeds=len(records),
        seeds=tuple(record.seed for record in records),
        instances=first.instances,
        num_instances=first.num_instances,
        recipe_hash=first.recipe_hash,
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


def _aggregates(records: Sequence[Record]) -> tuple[Aggregate, ...]:
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in records:
        by_env = found.setdefault(
            (record.method, _settings(record.recipe, record.env) or "own recipe"), {}
        )
        by_env.setdefault(record.env, []).append(record.success_rate)
    return tuple(
        _aggregate(method, recipe, by_env)
        for (method, recipe), by_env in found.items()
        if len(by_env) > 1
    )


def _aggregate(method: str, recipe: str, by_env: Mapping[str, Sequence[float]]) -> Aggregate:
    scores = list(by_env.values())
    low, high = stratified_bootstrap(scores, np.random.default_rng(0))
    pooled = np.concatenate([np.asarray(runs, np.float64) for runs in scores])
    return Aggregate(
        method=method,
        recipe=recipe,
        envs=tuple(by_env),
        iqm=float(interquartile_mean(pooled)),
        iqm_low=low,
        iqm_high=high,
        num_runs=len(pooled),
    )


def _settings(recipe: str, env: str) -> str:
    """A recipe's label without the environment that the names of recipes and sweeps begin with."""
    return recipe.removeprefix(env).lstrip(",- ")


def _initial_score(record: Record) -> float:
    """Mean score of the untouched instances."""
    for report in record.reference.values():
        return report["mean_score"] - report["improvement"]
    return record.mean_score - record.improvement


def _mean(values: Sequence[float | None]) -> float | None:
    spread = spread_of(values)
    return None if spread is None else spread.mean


def _largest(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _setting(record: Record) -> tuple[Any, ...]:
    recipe = record.recipe_hash or record.recipe
    return record.method, record.env, record.instances, recipe, record.step


def _name(record: Record) -> str:
    return f"{record.recipe} on {record.env}"


def _task(record: Record) -> tuple[str, str]:
    return record.env, record.instances


def _labels(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A name for every row; rows that would bear the same one add what they differ in."""
    names = [group[0].recipe for group in groups]
    places = [(group[0].method, *_task(group[0])) for group in groups]
    labels = []
    for place, name, group in zip(places, names, groups, strict=True):
        same = [
            other
            for there, twin, other in zip(places, names, groups, strict=True)
            if (there, twin) == (place, name)
        ]
        marks = []
        if len({other[0].recipe_hash for other in same}) > 1:
            marks.append((group[0].recipe_hash or "no hash")[:6])
        if len({other[0].step for other in same}) > 1:
            marks.append(f"{group[0].step} edits")
        labels.append(f"{name} ({', '.join(marks)})" if marks else name)
    return labels


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
    initial = _initial_score(record)
    for name, report in reports.items():
        expected = report["mean_score"] - initial
        if abs(report["improvement"] - expected) > _TOLERANCE * max(1.0, abs(initial)):
            raise ValueError(
                f"{record.recipe}, seed {record.seed}: improvement of {name} is "
                f"{report['improvement']:g} where mean_score - initial score = {expected:g}"
            )


# --- Showing


def _table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    table = Table(
        title=f"{first.env}: {first.num_instances} puzzles of {first.instances}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", overflow="fold")
    for heading in ("solved", "95%", "score", "improve-\nment", "edits", "wall", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        std = "" if row.success_rate_std is None else f" ± {row.success_rate_std:.1%}"
        learned = row.recipe is not None
        table.add_row(
            f"{row.method} {_settings(row.recipe or '', row.env)}".strip(),
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
