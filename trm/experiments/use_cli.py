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
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
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
@_more_compute_options
@options.json_option
@options.placement_options
def evaluate(
    *,
    run_path: Path,
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
    record = show_scoreboard(
        options.open_run(run_path), placement=placement, as_json=as_json, **chosen
    )
    if as_json:
        click.echo(json.dumps(record))


@click.command()
@click.argument("puzzle", metavar="PUZZLE|FILE|-")
@click.option(
    "--run",
    "run_path",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run folder of a trained model, or pretrained:NAME.  [default: the pretrained one that"
    " fits the puzzle]",
)
@options.checkpoint_option
@_more_compute_options
@options.placement_options
def solve(
    *,
    puzzle: str,
    run_path: Path | None,
    step: int | str | None,
    samples: int | None,
    search: int | None,
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
    placement = options.ready_placement(**where)
    from plan_envs.instances import InstanceSet
    from plan_envs.rendering import render_ansi
    from trm.experiments.learners import task_of

    given = None if run_path is None else _open_given_run(run_path)
    source, text = _read_puzzle(puzzle)
    try:
        run, instance = _run_for(text, given)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    domain = task_of(run).domain
    lone = InstanceSet.of(source, instance[None], domain.initial(instance[None]))
    report, how = _play_one(run, lone, samples, search, placement=placement, step=step)
    plan = report.final_plans[0]
    click.echo(render_ansi(domain, instance, plan, color=sys.stdout.isatty()))
    if report.solved[0]:
        click.echo(f"solved {how}")
        return
    click.echo(_why_not_solved(domain, instance[None], plan))
    sys.exit(_EXIT_NOT_SOLVED)


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
    from trm.experiments.learners import load_policy, task_of
    from trm.experiments.scoreboard import score_policies
    from trm.experiments.shipped_runs import run_name

    task = task_of(run)
    if source is not None:
        with options.skipping_invalid(skip_invalid) as on_invalid:
            instances = read_instances(source, domain=task.domain, limit=num, on_invalid=on_invalid)
    else:
        instances = task.instances("test", num=num or _DEFAULT_NUM, seed=seed)
    where: dict[str, Any] = {"placement": placement, "step": step}
    policy = load_policy(run, **where)
    with Console(stderr=True).status("evaluating") as status:

        def announce(name: str) -> None:
            status.update(f"evaluating: {name}")

        board = score_policies(policy, task, instances, seed=seed, announce=announce)
        more: dict[str, Any] = {"seed": seed, "samples": samples, "search": search}
        assisted, figures = _more_compute(run, instances, announce, **more, **where)
    if not as_json:
        Console().print(replace(board, assisted=assisted).table())
    tagged = run.tagged_step(step) if isinstance(step, str) else step
    return {
        **board.to_json_dict(),
        **figures,
        "run": run_name(run.path),
        "step": run.checkpoint_steps()[-1] if tagged is None else tagged,
        "seed": run.info.seed,
        "eval_seed": seed,
    }


def _more_compute(
    run: Any,
    instances: Any,
    announce: Callable[[str], None],
    *,
    seed: int,
    samples: int | None,
    search: int | None,
    **where: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports of the sampled and the searching policy by name, and their figures for JSON."""
    if samples is None and search is None:
        return {}, {}
    from trm.experiments.learners import load_probabilities, task_of
    from trm.experiments.search import best_of_samples, uniform_policy, verified_search

    domain, device = task_of(run).domain, where["placement"].torch_device
    chances = load_probabilities(run, **where)
    reports: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    if samples is not None:
        name = f"learned, best of {samples} samples"
        announce(name)
        report = best_of_samples(chances, domain, instances, num=samples, device=device, seed=seed)
        reports[name] = report
        figures["samples"] = {**report.to_json_dict(), "num_samples": samples}
    if search is not None:
        name = f"learned, search of {search} plans"
        announce(name)
        found = verified_search(chances, domain, instances, budget=search, device=device)
        reports[name] = found.report
        # What the search solves by itself, as the mask does for the greedy row.
        alone = verified_search(uniform_policy, domain, instances, budget=search, device=device)
        reports[f"uniform, search of {search} plans"] = alone.report
        figures["search"] = {**found.to_json_dict(), "reference": {"uniform": alone.to_json_dict()}}
    return reports, figures


def _open_given_run(path: Path) -> Any:
    """The run that --run names."""
    try:
        return options.open_run(path)
    except ValueError as error:
        raise ValueError(f"--run: {error}") from error


def _run_for(text: str, given: Any) -> tuple[Any, Any]:
    """The run that is to solve a puzzle, and the puzzle as its domain reads it."""
    from plan_envs.episodes import read_instance
    from trm.experiments.learners import task_of
    from trm.experiments.shipped_runs import fitting_run

    if given is None:
        name, instance = fitting_run(text)
        click.echo(f"using {name}", err=True)
        return options.open_run(Path(name)), instance
    task = task_of(given)
    try:
        return given, read_instance(task.domain, text, dead_end="continue")
    except ValueError as error:
        raise ValueError(f"{error} (the run was trained on {task.name})") from error


def _play_one(
    run: Any, lone: Any, samples: int | None, search: int | None, **where: Any
) -> tuple[Any, str]:
    """The report of one puzzle, and in words what it took."""
    from plan_envs.evaluation import evaluate_policy
    from trm.experiments.learners import load_policy, load_probabilities, task_of
    from trm.experiments.search import best_of_samples, verified_search

    domain, device = task_of(run).domain, where["placement"].torch_device
    if samples is None and search is None:
        report = evaluate_policy(load_policy(run, **where), domain, lone)
        return report, f"in {report.edits} edit{'' if report.edits == 1 else 's'}"
    chances = load_probabilities(run, **where)
    if search is not None:
        found = verified_search(chances, domain, lone, budget=search, device=device)
        return found.report, f"by a search that looked at {found.expanded[0]} plans"
    assert samples is not None
    report = best_of_samples(chances, domain, lone, num=samples, device=device)
    return report, f"by sampling, in {report.edits} edits over all episodes"


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


def _why_not_solved(domain: Any, instance: Any, plan: Any) -> str:
    verdict = domain.check(instance, plan[None])
    message = (
        f"NOT solved: score {verdict.score[0]:g} of {domain.spec.max_score:g}, "
        f"{int(verdict.violations[0])} violations"
    )
    if not getattr(domain, "solvable", lambda _: True)(instance[0]):
        message += "; the puzzle has no solution"
    return message
