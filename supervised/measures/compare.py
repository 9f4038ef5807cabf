"""Supervised runs side by side, from the records that sweeps leave (`supervised.plugin`).

`rows_of` gives means and standard deviations over the seeds of each setting, `differences` pairs
settings seed by seed: with the data and the order of samples in common, what is left is the method.
Input: folders of sweeps or files of records; output: rows, and tables for the terminal.
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from supervised.measures.records import RECORD_VERSION
from trm.experiments.intervals import student_t_interval
from trm.experiments.records import natural_key, records_in_file
from trm.runs.pictures import new_figure, save_figure

Record = Mapping[str, Any]


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None for one seed."""


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Mean and deviation of a figure over seeds; None where a seed lacks the figure."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A setting over its seeds; None where a run has no such figure."""

    recipe: str
    data: str
    """Name of the data set."""
    seeds: tuple[int, ...]
    num_instances: int
    step: int
    """Optimiser steps, the largest over seeds."""
    exact: Spread
    valid: Spread
    commit_valid: Spread | None
    commit_valid_of_unique: Spread | None
    """N-Queens: of the boards with one completion."""
    violated: Spread
    """Predictions in which the checker finds a violated constraint."""
    peak_exact: Spread | None
    """Best of the evaluations on validation examples: post hoc."""
    train_exact: Spread | None
    train_cpu_seconds: float
    """Mean over seeds; without the cache."""
    cache_cpu_seconds: float | None
    parameters: int
    passes: int
    """Forward passes of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far a setting is ahead of another, over the seeds that both have."""

    recipe: str
    against: str
    figure: str
    mean: float
    low: float | None
    """Ends of the 95% interval by Student's t; None for one pair."""
    high: float | None
    wins: int
    """Pairs in which `recipe` is ahead."""
    pairs: int


def read_records(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records of sweeps' folders and of files, in the order given.

    Raises:
        ValueError: a path that holds none, or a file that is no supervised record; names it.
    """
    found = []
    for path in paths:
        folder = path / "records" if (path / "records").is_dir() else path
        files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
        if not files:
            raise ValueError(f"{path}: holds no records (*.json)")
        found += [record for file in files for record in _records_in(file)]
    return found


def _records_in(file: Path) -> Iterator[dict[str, Any]]:
    for record in records_in_file(file):
        if record.get("kind") != "supervised" or record.get("format_version") != RECORD_VERSION:
            raise ValueError(f"{file}: not a supervised record of format version {RECORD_VERSION}")
        yield record


def rows_of(records: Sequence[Record]) -> list[Row]:
    """A row for each setting, in the order of the records.

    Raises:
        ValueError: two records of one setting and seed.
    """
    return [_row(recipe, runs) for recipe, runs in _by_recipe(records).items()]


def differences(records: Sequence[Record], *, against: str, figure: str) -> list[Difference]:
    """Every setting that has a counterpart, less that.

    Args:
        records: of any number of settings.
        against: a setting; or its first word (its case), whose counterpart shares the others.
        figure: a share in the records; `exact` replaces it where it was not measured.

    Raises:
        ValueError: no setting has such a counterpart, or the figure is unknown.
    """
    groups = _by_recipe(records)
    found = []
    for recipe, runs in groups.items():
        _, *others = recipe.split(",")
        other = against if against in groups else ",".join([against, *others])
        if other in groups and other != recipe:
            found.append(_difference(recipe, other, runs, groups[other], figure))
    if not found:
        raise ValueError(f"--against: no row is {against!r} or begins so; there are {list(groups)}")
    return found


def _by_recipe(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record["recipe"]), []).append(record)
    for recipe, runs in groups.items():
        runs.sort(key=lambda record: int(record["seed"]))
        for one, other in itertools.pairwise(runs):
            if one["seed"] == other["seed"]:
                raise ValueError(
                    f"{recipe}: several runs have the seed {one['seed']}, the recipe and the"
                    " training in common; give one of them"
                )
    return groups


def _row(recipe: str, runs: Sequence[Record]) -> Row:
    first = runs[0]
    figures = ("exact", "valid", "commit_valid", "violated", "train_exact")
    spreads: dict[str, Any] = {name: spread_of([run[name] for run in runs]) for name in figures}
    of_unique = [(run["committed"] or {}).get("valid_of_unique") for run in runs]
    caches = [run["cache"] for run in runs if run["cache"] is not None]
    return Row(
        recipe=recipe,
        data=first["data"],
        seeds=tuple(run["seed"] for run in runs),
        num_instances=first["num_instances"],
        step=max(run["step"] for run in runs),
        commit_valid_of_unique=spread_of(of_unique),
        peak_exact=spread_of([(run["peak"] or {}).get("exact") for run in runs]),
        train_cpu_seconds=statistics.mean(run["train_cpu_seconds"] for run in runs),
        cache_cpu_seconds=caches[0]["cpu_seconds"] if caches else None,
        parameters=first["parameters"],
        passes=first["passes"],
        **spreads,
    )


def _difference(
    recipe: str, other: str, runs: Sequence[Record], others: Sequence[Record], figure: str
) -> Difference:
    partners = {run["seed"]: run for run in others}
    pairs = [(run, partners[run["seed"]]) for run in runs if run["seed"] in partners]
    if not pairs:
        raise ValueError(f"--against: {recipe} and {other} have no seed in common")
    measured = [
        name
        for name in (figure, "exact")
        if all(one.get(name) is not None for pair in pairs for one in pair)
    ]
    if not measured:
        raise ValueError(f"--figure: the records have no {figure!r}")
    name = measured[0]
    values = [float(run[name]) - float(partner[name]) for run, partner in pairs]
    low, high = student_t_interval(values) if len(values) > 1 else (None, None)
    return Difference(
        recipe=recipe,
        against=other,
        figure=name,
        mean=statistics.mean(values),
        low=low,
        high=high,
        wins=sum(value > 0 for value in values),
        pairs=len(values),
    )


def tables(rows: Sequence[Row], found: Sequence[Difference]) -> Iterator[Table]:
    """Tables for the terminal: the rows, without figures that no row has, and the differences."""
    table = Table("recipe", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    columns = {
        "seeds": [str(len(row.seeds)) for row in rows],
        **{heading: [_text(getattr(row, name)) for row in rows] for name, heading in _SHARES},
        "steps": [str(row.step) for row in rows],
        "CPU s": [f"{row.train_cpu_seconds:.0f}" for row in rows],
        "cache": ["" if (s := row.cache_cpu_seconds) is None else f"{s:.0f}" for row in rows],
        "passes": [str(row.passes) for row in rows],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in shown:
        table.add_column(heading, justify="right")
    for row, *cells in zip(rows, *shown.values(), strict=True):
        table.add_row(row.recipe, *cells)
    yield table
    if found:
        table = Table(box=SIMPLE_HEAD, title="differences in points, paired by seed")
        for name in ("recipe", "against", "figure", "mean", "95%", "ahead in"):
            table.add_column(name, overflow="fold")
        for one in found:
            ends = () if one.low is None or one.high is None else (one.low, one.high)
            interval = " to ".join(f"{100 * end:+.1f}" for end in ends)
            mean, ahead = f"{100 * one.mean:+.1f}", f"{one.wins} of {one.pairs}"
            table.add_row(one.recipe, one.against, one.figure, mean, interval, ahead)
        yield table


_SHARES = (
    ("exact", "exact"),
    ("valid", "valid"),
    ("commit_valid", "commit"),
    ("commit_valid_of_unique", "of unique"),
    ("violated", "violated"),
    ("peak_exact", "peak"),
    ("train_exact", "train"),
)
"""Shares of a `Row`, and their headings."""

Curve = list[tuple[float, float]]
"""CPU seconds of training, share of valid predictions on validation examples."""


def curves_of(records: Sequence[Record]) -> dict[str, dict[str, list[Curve]]]:
    """The rest of a setting's name -> the name's first word -> a curve for each seed.

    Only the whole time of a run is recorded; its steps are taken to be equally long. Runs without
    evaluations have no curve. Numbers in names are ordered as numbers.
    """
    found: dict[str, dict[str, list[Curve]]] = {}
    for record in records:
        if record["validation"]:
            word, _, rest = record["recipe"].partition(",")
            second = record["train_cpu_seconds"] / record["step"]
            curve = [(second * point["step"], point["valid"]) for point in record["validation"]]
            found.setdefault(rest, {}).setdefault(word, []).append(curve)
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def save_plot(records: Sequence[Record], path: Path) -> None:
    """Draw `curves_of` records: panels side by side, a colour a word, a line a seed.

    Args:
        records: of sweeps.
        path: the picture; its ending names the format, e.g. .png, .svg or .pdf.

    Raises:
        ValueError: matplotlib is not installed or does not know the format; there is no curve.
    """
    panels = curves_of(records)
    if not panels:
        raise ValueError("--plot: no run was evaluated on validation examples while it trained")
    figure = new_figure(1.4 + 3.8 * len(panels), 3.8)
    words = list(dict.fromkeys(word for panel in panels.values() for word in panel))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    legend = {}
    for axes, (rest, panel) in zip(row, panels.items(), strict=True):
        for word, curves in panel.items():
            for curve in curves:
                seconds, valid = zip(*curve, strict=True)
                percent = [100 * share for share in valid]
                color = f"C{words.index(word)}"
                (legend[word],) = axes.plot(seconds, percent, ".-", color=color, linewidth=1)
        axes.set(title=rest, xlabel="CPU seconds of training", ylim=(-2, 102))
        axes.set_xlim(left=0)
    row[0].set_ylabel("valid predictions, % of validation examples")
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize="small")
    save_figure(figure, path)


def _text(spread: Spread | None) -> str:
    if spread is None:
        return ""
    std = "" if spread.std is None else f" ± {100 * spread.std:.1f}"
    return f"{100 * spread.mean:.1f}{std}"
