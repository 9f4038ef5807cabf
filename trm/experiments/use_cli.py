"""`upi-trm eval` and `upi-trm solve`: what a trained run is worth, and one puzzle solved by it.

Both take a run folder or a shipped run, of any learner (`trm.experiments.learners`); `eval` plays
whole instance sets beside the reference policies (`scoreboard`), `solve` one puzzle from text.
Heavy imports stand inside the functions that need them.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trm.experiments import options

_EXIT_NOT_SOLVED = 1
_DEFAULT_NUM = 500

_LIKE_A_PATH = re.compile(
    r"^(/|\.{1,2}/|~/)|[A-WYZa-wyz]{3}[^/]*/|\w\.[a-z][a-z0-9]{1,9}$|\.[A-Z]{3,4}$"
)
"""What no puzzle looks like: a beginning, a folder or an ending of a path."""
_SHORTEST_LETTERS = 256
"""Cells of a 16x16 Sudoku, the smallest puzzle that is written in letters."""


def _more_compute_options(command: Any) -> Any:
    """Further passes of the same policy, kept apart from its greedy one."""
    return options.added(
        command,
        click.option(
            "--samples",
            type=click.IntRange(1),
            metavar="N",
            help="Play N sampled episodes a puzzle and keep the best plan.",
        ),
        click.option(
            "--search",
            type=click.IntRange(1),
            metavar="N",
            help="Search, led by the policy and verified by the checker: the network may look at N"
            " plans a puzzle.",
        ),
    )


@click.command("eval")
@click.argument("run_path", metavar="RUN", type=options.RunPath())
@click.option(
    "--instances",
    "source",
    metavar="FILE|NAME",
    help="CSV, text of puzzles, .npz, ARC tasks, or a data set of the hub; the page of the"
    " environment lists the formats.  [default: the test split]",
)
@options.skip_invalid_option
@click.option(
    "--num", type=click.IntRange(1), help="Puzzles to play.  [default: 500, or the whole file]"
)
@options.seed_option("Seed of generated puzzles and of the reference policies.")
@options.checkpoint_option
@options.played_options
@_more_compute_options
@options.json_option
@options.placement_options
def evaluate(
    *,
    run_path: Path,
    env: str | None,
    depth: int | None,
    as_json: bool,
    device: str,
    precision: str,
    compiled: bool,
    threads: int | None,
    **chosen: Any,
) -> None:
    """Measure a run beside the reference policies.

    Greedy, one pass. --samples and --search add rows of their own.
    """
    placement = options.ready_placement(
        device=device, precision=precision, compiled=compiled, threads=threads
    )
    run = options.open_run(run_path, env=env, depth=depth)
    record = show_scoreboard(run, placement=placement, as_json=as_json, **chosen)
    if depth is not None:
        record["depth"] = depth
    if as_json:
        click.echo(json.dumps(record))


@click.command()
@click.argument("puzzle", metavar="PUZZLE|FILE|-")
@click.option(
    "--run",
    "run_path",
    metavar="RUN",
    type=options.RunPath(),
    help="Run folder of a trained model, or pretrained:NAME.  [default: the pretrained one that"
    " fits the puzzle]",
)
@options.checkpoint_option
@options.played_options
@_more_compute_options
@click.option("--show", is_flag=True, help="Step through the edits in the terminal.")
@click.option(
    "--gif",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the edits as a GIF (extra `render`).",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page that replays the edits and shows what the model held likely.",
)
@options.placement_options
def solve(
    *,
    puzzle: str,
    run_path: Path | None,
    step: int | str | None,
    env: str | None,
    depth: int | None,
    samples: int | None,
    search: int | None,
    show: bool,
    gif: Path | None,
    html: Path | None,
    **where: Any,
) -> None:
    """Let a trained model solve one puzzle.

    The puzzle is text in any format that the environment's page lists (Sudoku: a line or a grid of
    digits with . for blanks), a file of it, or - for stdin.

    Prints the final plan: greedy, one pass, unless --search or --samples asks for more. Exit code 1
    when it is not a solution.
    """
    if samples is not None and search is not None:
        raise click.UsageError("--samples and --search exclude each other")
    if (samples or search) and (show or gif or html):
        raise click.UsageError(
            "--show, --gif and --html show the greedy edits: leave --samples and --search out"
        )
    placement = options.ready_placement(**where)
    from plan_envs.rendering import render_ansi
    from trm.experiments.trained.model import Model

    def opened(path: Path) -> Any:
        opened_run = options.open_run(path, env=env, depth=depth)
        return Model(opened_run, placement=placement, step=step)

    if env is not None and run_path is None:
        raise click.UsageError("--env plays the weights of a run: name it with --run")
    given = None if run_path is None else _open_given_run(run_path, opened)
    source, text = _read_puzzle(puzzle)
    try:
        model, instance = _model_for(text, given, opened)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    solution = model.solve(instance, samples=samples, search=search)
    color = sys.stdout.isatty()
    if show or gif is not None or html is not None:
        _show_solution(model, solution, show=show, gif=gif, html=html)
    click.echo(render_ansi(model.domain, instance, solution.plan, color=color))
    click.echo(solution.reason)
    if not solution.solved:
        sys.exit(_EXIT_NOT_SOLVED)


def _show_solution(
    model: Any, solution: Any, *, show: bool, gif: Path | None, html: Path | None
) -> None:
    """Step through a solution, or write it to files."""
    from trm.experiments.viewing import film

    if show:
        film.show(solution, color=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    if gif is not None:
        film.save_gif(solution, gif)
        click.echo(f"wrote {gif}", err=True)
    if html is not None:
        from trm.experiments.viewing.report import solution_html
        from trm.runs.durable import replace_durably

        replace_durably(html, solution_html(model, solution).encode())
        click.echo(f"wrote {html}; open it in a browser", err=True)


def show_scoreboard(
    run: Any,
    *,
    placement: Any,
    source: str | None = None,
    num: int | None = None,
    seed: int = 0,
    step: int | str | None = None,
    samples: int | None = None,
    search: int | None = None,
    as_json: bool = False,
    skip_invalid: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and print the table, unless the caller prints JSON.

    Args:
        run: the `trm.runs.run.Run`.
        placement: where its networks compute.
        source: file or data set of the puzzles; None for the task's test split.
        num: puzzles; None for all of `source`, or 500 generated ones.
        seed: seed of generated puzzles, of sampling and of the reference policies.
        step: checkpoint, as `Learner` takes it.
        samples: episodes a puzzle of a further row; None for no such row.
        search: plans a puzzle that a search may look at; None for no such rows.
        as_json: whether to print nothing.
        skip_invalid: leave out ARC tasks of `source` that cannot be read, and name them on stderr.

    Returns:
        The record of `upi-trm eval --json`.
    """
    from dataclasses import replace

    from rich.console import Console

    from plan_envs.hub import read_instances
    from trm.experiments.trained.model import Model

    model = Model(run, placement=placement, step=step)
    task = model.task
    if source is not None:
        with options.skipping_invalid(skip_invalid) as on_invalid:
            instances = read_instances(source, domain=task.domain, limit=num, on_invalid=on_invalid)
    else:
        instances = task.instances("test", num=num or _DEFAULT_NUM, seed=seed)
    console = Console(stderr=True)
    with console.status("evaluating") as status:

        def announce(name: str) -> None:
            status.update(f"evaluating: {name}")
            if not console.is_terminal:  # a status line is for those who look on
                click.echo(f"evaluating: {name}", err=True)

        board = model.evaluate(instances, seed=seed, announce=announce)
        more: dict[str, Any] = {"seed": seed, "samples": samples, "search": search}
        assisted, figures = _more_compute(model, instances, announce, **more)
    if not as_json:
        Console().print(replace(board, assisted=assisted).table())
    tagged = run.tagged_step(step) if isinstance(step, str) else step
    return {
        **board.to_json_dict(),
        **figures,
        "run": model.name,
        "step": run.checkpoint_steps()[-1] if tagged is None else tagged,
        "seed": run.info.seed,
        "eval_seed": seed,
    }


def _more_compute(
    model: Any,
    instances: Any,
    announce: Callable[[str], None],
    *,
    seed: int,
    samples: int | None,
    search: int | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports of the sampled and the searching policy by name, and their figures for JSON."""
    from trm.experiments.search import uniform_policy, verified_search

    reports: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    if samples is not None:
        name = f"learned, best of {samples} samples"
        announce(name)
        report = model.best_of_samples(instances, num=samples, seed=seed)
        reports[name] = report
        figures["samples"] = {**report.to_json_dict(), "num_samples": samples}
    if search is not None:
        name = f"learned, search of {search} plans"
        announce(name)
        found = model.search(instances, budget=search)
        reports[name] = found.report
        # What the search solves by itself, as the mask does for the greedy row.
        domain, device = model.domain, model.device
        alone = verified_search(uniform_policy, domain, instances, budget=search, device=device)
        reports[f"uniform, search of {search} plans"] = alone.report
        figures["search"] = {**found.to_json_dict(), "reference": {"uniform": alone.to_json_dict()}}
    return reports, figures


def _open_given_run(path: Path, opened: Callable[[Path], Any]) -> Any:
    """The model of the run that --run names."""
    try:
        return opened(path)
    except ValueError as error:
        raise ValueError(f"--run: {error}") from error


def _model_for(text: str, given: Any, opened: Callable[[Path], Any]) -> tuple[Any, Any]:
    """The model that is to solve a puzzle, and the puzzle as its domain reads it."""
    from trm.experiments.shipped_runs import fitting_run

    if given is None:
        name, instance = fitting_run(text)
        click.echo(f"using {name}", err=True)
        return opened(Path(name)), instance
    try:
        return given, given.read(text)
    except ValueError as error:
        raise ValueError(f"{error} (the run was trained on {given.run.info.env})") from error


def _read_puzzle(puzzle: str) -> tuple[str, str]:
    """Where the puzzle comes from, for messages, and its text."""
    from plan_envs.texts import read_stream, read_text

    if puzzle == "-":
        return "stdin", read_stream(sys.stdin.buffer, "stdin")
    if not os.path.isfile(puzzle):
        plain = len(puzzle) < _SHORTEST_LETTERS and puzzle[:1] not in "<{"
        if plain and _LIKE_A_PATH.search(puzzle):
            raise click.UsageError(f"{puzzle!r} is neither a file nor a puzzle: no such file")
        if not any(sign.isdigit() or sign in "._#-*?/{Q" for sign in puzzle):
            raise click.UsageError(f"{puzzle!r} is neither a file nor a puzzle")
        return "puzzle", puzzle
    if puzzle.lower().endswith(".csv"):
        raise click.UsageError(f"{puzzle} holds many puzzles; use eval RUN --instances {puzzle}")
    return puzzle, read_text(Path(puzzle))
