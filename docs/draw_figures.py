"""The figures of the pages that are drawn from the records in results/, one idea each.

`python docs/draw_figures.py` writes them below docs/pictures; it needs the extra `plot`. Lines are
labelled where they end, in colours of Okabe and Ito, which colour-blind readers can tell apart. The
background is opaque, so that a figure reads alike on a light and on a dark page.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from trm.runs.pictures import new_figure

DOCS: Final = Path(__file__).parent
RESULTS: Final = DOCS.parent / "results"
PAPER, INK, QUIET = "#fbfaf7", "#2d333d", "#6b6f76"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#00785a", "#a0527f"


def learning_curve() -> Any:
    """How fast 9x9 Sudoku is learned, beside the policies that learn nothing."""
    records = _records("certified-9x9")
    figure, axes = _panel(
        "9x9 Sudoku from the checker's feedback alone", "edits", "puzzles solved, %"
    )
    for recipe, label, colour in (
        ("sudoku9x9,recipe", "UPI-TRM", BLUE),
        ("sudoku9x9,contraction", "UPI-TRM, certified\ncontraction", ORANGE),
    ):
        runs = [record for record in records if record["recipe"] == recipe]
        curves = [[(0, 0.0), *record["curve"]] for record in runs]
        mean = [
            (points[0][0], statistics.mean(100 * share for _, share in points))
            for points in zip(*curves, strict=True)
        ]
        for curve in curves:
            axes.plot(
                *zip(*[(step, 100 * share) for step, share in curve], strict=True),
                color=colour,
                linewidth=0.8,
                alpha=0.45,
            )
        axes.plot(*zip(*mean, strict=True), color=colour, linewidth=2.6)
        low = recipe.endswith("contraction")
        _label(axes, label, mean[-1][0], mean[-1][1] - (6 if low else -3), colour)
    reference = records[0]["reference"]
    for policy in ("singles", "fewest-candidates", "random-legal"):
        share = 100 * reference[policy]["success_rate"]
        axes.axhline(share, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
        _label(axes, f"{policy} {share:.1f}", mean[-1][0], share, QUIET)
    axes.set_xlim(0, mean[-1][0])
    axes.set_ylim(-2, 100)
    axes.set_xticks([0, 10_000, 20_000, 30_000], ["0", "10,000", "20,000", "30,000"])
    return figure


def drift() -> Any:
    """How far values move at other depths than trained, with and without contraction."""
    runs = json.loads((RESULTS / "depth-hard-drift.json").read_text("utf-8"))["drift"]["runs"]
    figure, axes = _panel(
        "Contraction keeps the values at other depths",
        "unrolls played (trained with 2)",
        "largest change of a value, Delta_V",
    )
    for certified, projection, label, colour in (
        (False, "none", "no contraction,\nno projection", ORANGE),
        (False, "10", "no contraction,\nprojected to R = 10", PURPLE),
        (True, "10", "certified L_z <= 0.9,\nprojected or not", BLUE),
    ):
        ends = []
        for run in runs:
            if ("certified" in run["run"]) == certified:
                drifts = run["projections"][projection]["delta_v"]
                points = [(int(depth), value["initial"]) for depth, value in drifts.items()]
                axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=5)
                ends.append(points[-1][1])
        _label(axes, label, 16, statistics.geometric_mean(ends), colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([1, 4, 8, 16], ["1", "4", "8", "16"])
    return figure


def queens_time() -> Any:
    """Which supervised method completes most boards within a minute of one core."""
    records = _records("supervised-nqueens8-time")
    figure, axes = _panel(
        "8x8 N-Queens with labels: a minute of one core, width 64",
        "CPU seconds of training",
        "validation boards completed at once, %",
    )
    for method, label, colour, shift in (
        ("final", "label at every step", GREEN, 3.5),
        ("dis", "DIS, nested corruption", BLUE, -2.5),
        ("trm", "TRM medium, with halting", ORANGE, 0),
        ("trm-full", "TRM full, with halting", PURPLE, 0),
    ):
        ends = []
        for record in records:
            if record["recipe"] == f"{method},width=64":
                second = record["train_cpu_seconds"] / record["step"]
                points = [(0.0, 0.0)]
                points += [(p["step"] * second, 100 * p["valid"]) for p in record["validation"]]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8)
                ends.append(points[-1][1])
        _label(axes, label, 60, statistics.mean(ends) + shift, colour)
    axes.set_xlim(0, 60)
    axes.set_ylim(0, 100)
    return figure


FIGURES: Final[Mapping[str, Callable[[], Any]]] = {
    "learning-9x9": learning_curve,
    "drift-4x4-hard": drift,
    "nqueens8-time": queens_time,
}
"""File below docs/pictures, without its ending -> what draws it."""


def _records(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["records"]


def _panel(title: str, across: str, up: str) -> tuple[Any, Any]:
    """A figure with one panel and room for labels on its right."""
    figure = new_figure(8.4, 4.4)
    figure.set_facecolor(PAPER)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", color=INK, fontsize=13, pad=12)
    axes.set_xlabel(across, color=INK, fontsize=11)
    axes.set_ylabel(up, color=INK, fontsize=11)
    axes.tick_params(colors=INK, labelsize=10.5)
    for side, line in axes.spines.items():
        line.set_visible(side in ("left", "bottom"))
        line.set_color(QUIET)
    return figure, axes


def _label(axes: Any, text: str, x: float, y: float, colour: str) -> None:
    """Words right of the point where a line ends."""
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 0),
        textcoords="offset points",
        color=colour,
        fontsize=11,
        va="center",
        annotation_clip=False,
    )


def draw(name: str, folder: Path) -> Path:
    """Write one figure as PNG and return its file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(FIGURES[name]())
    canvas.figure.set_dpi(130)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = folder / f"{name}.png"
    image.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    return file


def main(words: Sequence[str] | None = None) -> None:
    """Draw every figure."""
    parser = argparse.ArgumentParser(prog="python docs/draw_figures.py", description=__doc__)
    parser.add_argument("--folder", type=Path, default=DOCS / "pictures", help="where to")
    folder = parser.parse_args(words).folder
    for name in FIGURES:
        print(draw(name, folder))


if __name__ == "__main__":
    main()
