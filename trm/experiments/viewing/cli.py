"""`upi-trm report`: a page about runs, with replays; heavy imports stand inside the command."""

from pathlib import Path
from typing import Any

import click

from trm.experiments.options import RunPath, placement_options, ready_placement, seed_option


@click.command()
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=RunPath())
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--replays",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Unseen puzzles to replay, of each run.",
)
@click.option(
    "--num",
    type=click.IntRange(1),
    help="Unseen puzzles to evaluate on.  [default: as recorded, 500 where nothing is]",
)
@click.option(
    "--study",
    "studies",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="What drift --json or bounds --json printed, as tables; repeatable.",
)
@seed_option("Seed of the puzzles that are replayed.")
@placement_options
def report(
    *,
    paths: tuple[Path, ...],
    out: Path,
    replays: int,
    num: int | None,
    studies: tuple[Path, ...],
    seed: int,
    **where: Any,
) -> None:
    """Write a page about runs: learning curves, comparison, replays.

    The page is one file that needs no network. A replay shows each edit with the probabilities and
    values that the model gave to all legal edits. Runs that have no evaluation record yet are
    evaluated, and keep it (eval.json).
    """
    placement = ready_placement(**where)
    from trm.experiments.viewing.report import open_models, report_html
    from trm.runs.durable import replace_durably

    models = open_models(paths, placement=placement)

    def announce(text: str) -> None:
        click.echo(text, err=True)

    page = report_html(
        models, replays=replays, num=num, seed=seed, studies=studies, announce=announce
    )
    replace_durably(out, page.encode())
    click.echo(f"{out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")
