"""The `upi-trm` command: train, evaluate, use and look at what was trained (README, Commands).

Every import that costs time (torch, numba, gymnasium, rich) stands inside the command that needs
it, so that `upi-trm --help` answers at once. Other learners add sub-commands with the entry-point
group `upi_trm.commands`; an entry point names a click command and is loaded only when called.
Mistakes of the user end in one line on stderr and exit code 2; `--debug` shows the traceback.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from trm.options import (
    added,
    edits_option,
    env_option,
    eval_num_option,
    json_option,
    make_placement,
    overrides_option,
    placement_options,
    refuse_mixed_resume,
    run_options,
)
from upi_trm import __version__
from upi_trm.experiments_cli import compare, sweep
from upi_trm.play import play
from upi_trm.study_cli import bounds, drift

PLUGIN_GROUP = "upi_trm.commands"
"""Entry-point group of the learners' click commands; the entry point's name is the command's."""

_SECTIONS = {
    "Learn": ["train", "sweep"],
    "Measure and use": ["eval", "solve", "compare", "drift", "bounds"],
    "Look around": ["envs", "play"],
}
_EXIT_NOT_SOLVED = 1
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        args: words after the program's name; None for those of the process.
    """
    debug = _Debug()
    try:
        code = cli.main(args=args, prog_name="upi-trm", standalone_mode=False, obj=debug)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug.shown or not _is_users(error):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(_EXIT_USER_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


class _Debug:
    """Whether mistakes of the user show their traceback; set by `--debug`, read by `main`."""

    shown = bool(os.environ.get("UPI_TRM_DEBUG"))


class _Commands(click.Group):
    """Our commands in sections, and those of other learners, unloaded until one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = [name for names in _SECTIONS.values() for name in names]
        return own + sorted(point.name for point in _plugins() if point.name not in own)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in _plugins():
            if point.name == cmd_name:
                return _load(point)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                commands = [(name, self.commands[name]) for name in names]
                formatter.write_dl([(name, c.get_short_help_str(90)) for name, c in commands])
        others = [name for name in self.list_commands(ctx) if name not in self.commands]
        if others:
            with formatter.section("Other learners"):
                formatter.write_dl([(name, f"see upi-trm {name} --help") for name in others])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="upi-trm")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(settings: Any, debug: bool) -> None:
    """Tiny recursive models that learn to solve puzzles from checker feedback alone.

    Start with `upi-trm train --env sudoku4x4`.
    """
    if debug and settings is not None:
        settings.shown = True


class _CheckpointName(click.ParamType):  # type: ignore[type-arg]  # generic only in new click
    """A checkpoint: its step as a number, or the tag "best"."""

    name = "N|best"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if isinstance(value, int):
            return value
        if value == "best":
            return "best"
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number of edits nor best", param, ctx)
        return int(value)


def _more_compute_options(command: Any) -> Any:
    """Further passes of the same policy, kept apart from its greedy one."""
    return added(
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


@cli.command()
@env_option
@click.option(
    "--recipe", help="Name of a shipped recipe, or a YAML file.  [default: that of the env]"
)
@overrides_option
@edits_option
@run_options
@eval_num_option
@placement_options
@click.pass_context
def train(
    ctx: click.Context,
    *,
    env: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int,
    out: Path | None,
    resume: Path | None,
    eval_num: int,
    device: str,
    precision: str,
    compiled: bool,
    threads: int | None,
) -> None:
    """Learn to solve an environment's puzzles; --resume goes on.

    Ctrl-C saves and ends cleanly. At the end the greedy policy plays unseen puzzles beside the
    reference policies.
    """
    refuse_mixed_resume(ctx, resume=resume, env=env)
    _refuse_shipped(resume)
    placement = _placement(
        device=device,
        precision=precision,
        compiled=compiled,
        threads=threads,
        resumed=resume is not None,
    )
    from upi_trm import trainer

    if resume is not None:
        run = trainer.resume(resume, steps=steps, placement=placement)
    else:
        assert env is not None
        run = trainer.train(
            env=env,
            recipe_path=_find_recipe(recipe, env),
            overrides=overrides,
            steps=steps,
            seed=seed,
            out=out,
            placement=placement,
        )
    if _stopped_early(run, steps=steps) or os.environ.get("RANK", "0") != "0":
        return  # the trainer has said how to go on, process 0 of several says the rest
    if eval_num:
        _show_scoreboard(run, placement=placement, num=eval_num)
    _show_next_steps(run)


@cli.command("eval")
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--instances",
    "source",
    metavar="FILE|NAME",
    help="CSV (source,question,answer,rating), .npz, folder of ARC tasks, or a data set of the"
    " hub.  [default: the test split]",
)
@click.option(
    "--num", type=click.IntRange(1), help="Puzzles to play.  [default: 500, or the whole file]"
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of generated puzzles and of the reference policies.",
)
@click.option(
    "--step",
    type=_CheckpointName(),
    help="Checkpoint to use: a number of edits, or best.  [default: the newest]",
)
@_more_compute_options
@json_option
@placement_options
def evaluate(
    *,
    run_path: Path,
    source: str | None,
    num: int | None,
    seed: int,
    step: int | str | None,
    samples: int | None,
    search: int | None,
    as_json: bool,
    device: str,
    precision: str,
    compiled: bool,
    threads: int | None,
) -> None:
    """Measure a run beside the reference policies.

    Greedy, one pass. --samples and --search add rows of their own.
    """
    placement = _placement(device=device, precision=precision, compiled=compiled, threads=threads)
    run = _open_run(run_path)
    record = _show_scoreboard(
        run,
        placement=placement,
        source=source,
        num=num,
        seed=seed,
        step=step,
        samples=samples,
        search=search,
        as_json=as_json,
    )
    if as_json:
        click.echo(json.dumps(record))


@cli.command()
@click.argument("puzzle", metavar="PUZZLE|FILE|-")
@click.option(
    "--run",
    "run_path",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run folder of a trained model, or pretrained:NAME.  [default: the pretrained one that"
    " fits the puzzle]",
)
@click.option(
    "--step",
    type=_CheckpointName(),
    help="Checkpoint to use: a number of edits, or best.  [default: the newest]",
)
@_more_compute_options
@placement_options
def solve(
    *,
    puzzle: str,
    run_path: Path | None,
    step: int | str | None,
    samples: int | None,
    search: int | None,
    device: str,
    precision: str,
    compiled: bool,
    threads: int | None,
) -> None:
    """Let a trained model solve one puzzle.

    The puzzle is text as the environment's page shows it (Sudoku: a line or a grid of digits with .
    for blanks), a file of it, or - for stdin.

    Prints the final plan: greedy, one pass, unless --search or --samples asks for more. Exit code 1
    when it is not a solution.
    """
    if samples is not None and search is not None:
        raise click.UsageError("--samples and --search exclude each other")
    placement = _placement(device=device, precision=precision, compiled=compiled, threads=threads)
    from plan_envs.instances import InstanceSet
    from plan_envs.rendering import render_ansi
    from upi_trm.policy import task_of

    source, text = _read_puzzle(puzzle)
    try:
        run, instance = _run_for(text, run_path)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    domain = task_of(run).domain
    lone = InstanceSet.of(source, instance[None], domain.initial(instance[None]))
    report, how = _play_one(
        run, lone, placement=placement, step=step, samples=samples, search=search
    )
    plan = report.final_plans[0]
    click.echo(render_ansi(domain, instance, plan, color=sys.stdout.isatty()))
    if report.solved[0]:
        click.echo(f"solved {how}")
        return
    click.echo(_why_not_solved(domain, instance[None], plan))
    sys.exit(_EXIT_NOT_SOLVED)


@cli.command()
@click.argument("name", required=False)
@click.option("--measure", is_flag=True, help="Play the reference policies on the test split now.")
@click.option(
    "--num", type=click.IntRange(1), default=500, show_default=True, help="Puzzles to measure on."
)
def envs(*, name: str | None, measure: bool, num: int) -> None:
    """List the environments; with NAME, describe one."""
    from plan_envs.catalogue import TASKS, resolve_task

    if name is None:
        if measure:
            raise click.UsageError("--measure needs the NAME of an environment")
        _print_env_list([resolve_task(task) for task in TASKS])
        return
    task = resolve_task(name)
    _print_env(task)
    if measure:
        _print_references(task, num=num)


for _command in (sweep, compare, drift, bounds, play):
    cli.add_command(_command)


# Helpers of `train`, `eval` and `solve`.


def _refuse_shipped(resume: Path | None) -> None:
    from upi_trm.shipped_runs import PREFIX

    if resume is not None and str(resume).startswith(PREFIX):
        raise click.UsageError(
            f"--resume: {resume} can't be trained on, it ships without optimisers and replay; train"
            " its recipe anew"
        )


def _stopped_early(run: Any, *, steps: int | None) -> bool:
    """Whether a signal ended the training before its budget of edits did."""
    from upi_trm.trainer import UpiRecipe

    recipe = run.load_recipe(UpiRecipe)
    budget = recipe.schedule.edits if steps is None else steps
    return bool(budget - run.checkpoint_steps()[-1] >= recipe.rollout.plans)


def _find_recipe(recipe: str | None, env: str) -> Path | None:
    """A file, else a shipped recipe's name; by default the recipe that bears the task's name."""
    from plan_envs.catalogue import resolve_task
    from upi_trm.recipes import recipe_names, recipe_path

    if recipe is not None:
        return Path(recipe) if os.path.isfile(recipe) else recipe_path(recipe)
    name = resolve_task(env).name
    return recipe_path(name) if name in recipe_names() else None


def _placement(**flags: Any) -> Any:
    """What the four flags say, once the environments are sure to be ready."""
    from plan_envs.sudoku_kernels import announce_compilation

    placement = make_placement(**flags)
    announce_compilation()
    return placement


def _open_run(path: Path) -> Any:
    from trm.run import Run
    from upi_trm.shipped_runs import run_path

    return Run.open(run_path(path))


def _show_scoreboard(
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
) -> dict[str, Any]:
    """Evaluate a run and print the table, unless the caller prints JSON; returns the record."""
    from dataclasses import replace

    from rich.console import Console

    from plan_envs.hub import read_instances
    from upi_trm.policy import load_policy, task_of
    from upi_trm.scoreboard import score_policies
    from upi_trm.shipped_runs import run_name

    task = task_of(run)
    if source is not None:
        instances = read_instances(source, domain=task.domain, limit=num)
    else:
        instances = task.instances("test", num=num or 500, seed=seed)
    policy = load_policy(run, placement=placement, step=step)
    progress = Console(stderr=True)
    with progress.status("evaluating") as status:
        board = score_policies(
            policy,
            task,
            instances,
            seed=seed,
            announce=lambda name: status.update(f"evaluating: {name}"),
        )
        assisted, figures = _more_compute(
            run,
            instances,
            placement=placement,
            step=step,
            seed=seed,
            samples=samples,
            search=search,
            announce=lambda name: status.update(f"evaluating: {name}"),
        )
    if not as_json:
        Console().print(replace(board, assisted=assisted).table())
    return {
        **board.to_json_dict(),
        **figures,
        "run": run_name(run.path),
        "step": run.tagged_step(step)
        if isinstance(step, str)
        else step or run.checkpoint_steps()[-1],
        "seed": run.info.seed,
        "eval_seed": seed,
    }


def _more_compute(
    run: Any,
    instances: Any,
    *,
    placement: Any,
    step: int | str | None,
    seed: int,
    samples: int | None,
    search: int | None,
    announce: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports of the sampled and the searching policy by name, and their figures for JSON."""
    if samples is None and search is None:
        return {}, {}
    from upi_trm.policy import load_probabilities, task_of
    from upi_trm.search import best_of_samples, uniform_policy, verified_search

    domain, device = task_of(run).domain, placement.torch_device
    chances = load_probabilities(run, placement=placement, step=step)
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


def _run_for(text: str, path: Path | None) -> tuple[Any, Any]:
    """The run that is to solve a puzzle, and the puzzle as its domain reads it."""
    from plan_envs.gym_envs import read_instance
    from upi_trm.policy import task_of
    from upi_trm.shipped_runs import fitting_run

    if path is None:
        name, instance = fitting_run(text)
        click.echo(f"using {name}", err=True)
        return _open_run(Path(name)), instance
    run = _open_run(path)
    task = task_of(run)
    try:
        return run, read_instance(task.domain, text, dead_end="continue")
    except ValueError as error:
        raise ValueError(f"{error} (the run was trained on {task.name})") from error


def _play_one(
    run: Any,
    lone: Any,
    *,
    placement: Any,
    step: int | str | None,
    samples: int | None,
    search: int | None,
) -> tuple[Any, str]:
    """The report of one puzzle, and in words what it took."""
    from plan_envs.evaluation import evaluate_policy
    from upi_trm.policy import load_policy, task_of

    domain = task_of(run).domain
    if samples is None and search is None:
        policy = load_policy(run, placement=placement, step=step)
        report = evaluate_policy(policy, domain, lone)
        return report, f"in {report.edits} edit{'' if report.edits == 1 else 's'}"
    from upi_trm.policy import load_probabilities
    from upi_trm.search import best_of_samples, verified_search

    chances = load_probabilities(run, placement=placement, step=step)
    device = placement.torch_device
    if search is not None:
        found = verified_search(chances, domain, lone, budget=search, device=device)
        return found.report, f"by a search that looked at {found.expanded[0]} plans"
    assert samples is not None
    report = best_of_samples(chances, domain, lone, num=samples, device=device)
    return report, f"by sampling, in {report.edits} edits over all episodes"


def _show_next_steps(run: Any) -> None:
    """Commands to try, ready to be copied: the puzzle is an unseen one of the run's task."""
    from upi_trm.policy import task_of

    task = task_of(run)
    write = getattr(task.domain, "write_instance", None)
    program, path = _program(), run.path
    further = {f"{program} eval {path} --num 2000": "more unseen puzzles"}
    if write is not None:
        puzzle = write(task.instances("test", num=1, seed=1).instances[0])
        words = f"solve {shlex.quote(puzzle)} --run {path}"
        further[f"{program} {words}"] = "one of them; or a puzzle of yours"
    further |= {
        f"{program} train --resume {path} --steps {2 * run.checkpoint_steps()[-1]}": "train on",
        f"{_program('tensorboard')} --logdir {path}": "curves",
    }
    click.echo(f"\nThe run is in {path}. Where to look next:")
    for command, what in further.items():
        click.echo(f"  {command}\n      {what}")


def _program(name: str = "upi-trm") -> str:
    """How the user can call a program of this environment from where they are."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


def _read_puzzle(puzzle: str) -> tuple[str, str]:
    """Where the puzzle comes from, for messages, and its text."""
    if puzzle != "-" and not os.path.isfile(puzzle):
        if os.sep in puzzle or not any(sign.isdigit() or sign in "._#" for sign in puzzle):
            raise click.UsageError(f"{puzzle!r} is neither a file nor a puzzle")
        return "puzzle", puzzle
    if puzzle.endswith(".csv"):
        raise click.UsageError(f"{puzzle} holds many puzzles; use eval RUN --instances {puzzle}")
    source = "stdin" if puzzle == "-" else puzzle
    try:
        text = sys.stdin.read() if puzzle == "-" else Path(puzzle).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not text (byte {error.start} is not UTF-8)") from error
    return source, text


def _why_not_solved(domain: Any, instance: Any, plan: Any) -> str:
    verdict = domain.check(instance, plan[None])
    message = (
        f"NOT solved: score {verdict.score[0]:g} of {domain.spec.max_score:g}, "
        f"{int(verdict.violations[0])} violations"
    )
    if not getattr(domain, "solvable", lambda _: True)(instance[0]):
        message += "; the puzzle has no solution"
    return message


# Helpers of `envs`.


def _print_env_list(tasks: Iterable[Any]) -> None:
    for task in tasks:
        spec = task.domain.spec
        click.echo(f"{task.name:<17} {task.env_id:<30} {_settings(task.instance_options)}")
        click.echo(
            f"{'':<17} {spec.num_actions} actions, horizon {spec.horizon}"
            f" ({_settings(_own_fields(task.domain))})"
        )
    click.echo(
        "\nOther sizes go by their name too, such as nqueens12 and maze15."
        "\n`upi-trm envs NAME` describes one; with --measure it plays the reference policies."
    )


def _print_env(task: Any) -> None:
    """Everything about one environment, and the options that `gym.make` takes for it."""
    import inspect

    domain, spec = task.domain, task.domain.spec
    kinds = [int((spec.action_kind == kind).sum()) for kind in range(len(spec.kind_names))]
    actions = ", ".join(f"{n} {kind}" for n, kind in zip(kinds, spec.kind_names, strict=True) if n)
    generator = set(inspect.signature(task.generator).parameters)
    further = sorted(generator - {"split", "num", "seed", "progress"} - set(_own_fields(domain)))
    facts = {
        "id": task.env_id,
        "grid": "{} x {}, values 1-{}".format(*spec.grid_shape, spec.num_values),
        "actions": f"{spec.num_actions} ({actions})",
        "horizon": f"{spec.horizon} edits",
        "score": f"{spec.max_score:g} when solved",
        "rules": _settings(_own_fields(domain)),
        "puzzles": _settings(task.instance_options) + f"; further options {', '.join(further)}",
        "make": f'gym.make("plan_envs:{task.env_id}")',
        "play": f"{_program()} play {task.name}",
        "train": f"{_program()} train --env {task.name}",
    }
    click.echo(task.name)
    for name, fact in facts.items():
        click.echo(f"  {name:<8} {fact}")
    click.echo(f"\n{inspect.getdoc(type(domain))}")


def _own_fields(domain: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {item.name: getattr(domain, item.name) for item in fields(domain)}


def _settings(options: Any) -> str:
    """Options in words: `side=9, givens=26-28`."""
    return ", ".join(
        f"{name}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in options.items()
    )


def _print_references(task: Any, *, num: int) -> None:
    from rich.console import Console

    from upi_trm.scoreboard import Scoreboard, score_references

    instances = task.instances("test", num=num)
    board = Scoreboard(
        env=task.name, instances=instances.name, reference=score_references(task, instances)
    )
    Console().print(board.table())


# Plug-ins and errors.


def _plugins() -> Sequence[EntryPoint]:
    return tuple(entry_points(group=PLUGIN_GROUP))


def _load(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:
        raise click.ClickException(
            f"sub-command {point.name} ({point.value}) does not load: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(f"sub-command {point.name}: {point.value} is no click command")
    return command


def _is_users(error: Exception) -> bool:
    """Mistakes in what the user gave us, a missing extra, troubles of the disk; else a bug."""
    return isinstance(error, (click.ClickException, ValueError, OSError, ImportError))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" (see {error.ctx.command_path} --help)"
    return " ".join(message.split()) or type(error).__name__
