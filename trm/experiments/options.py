"""What the command lines of all learners share, so that a flag means the same everywhere.

Decorators for click commands, the values that their flags become (a placement, a checkpoint's name,
an open run), and refusals of flags that exclude each other. Nothing heavy is imported before a
command runs.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from trm.runs.shipped import ShippedFiles

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
"""Exit codes: one of many jobs failed; a signal ended the command early."""

Decorator = Callable[[Any], Any]


class RunPath(click.Path):
    """A run folder, or pretrained:NAME; the shell completes both."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Runs and folders that may hold some, and the shipped runs."""
        from trm.experiments.shipped_runs import PREFIX, pretrained_names

        above, _, begun = incomplete.rpartition("/")
        found = []
        for path in sorted(Path(f"{above}/" if "/" in incomplete else ".").glob(f"{begun}*")):
            if path.is_dir():
                found.append(str(path) if (path / "run.json").is_file() else f"{path}/")
        found += [PREFIX + name for name in pretrained_names()]
        return [CompletionItem(one) for one in found if one.startswith(incomplete)]


def _complete_env(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from plan_envs.catalogue import TASKS

    return [CompletionItem(name) for name in TASKS if name.startswith(incomplete)]


class CheckpointName(click.ParamType):  # type: ignore[type-arg]  # generic only in new click
    """A checkpoint: its step as a number, or the tag "best"."""

    name = "N|best"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """An integer, or "best"; anything else is refused."""
        if value == "best":
            return "best"
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number of edits nor best", param, ctx)
        return int(value)


json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on one line, last on stdout."
)
overrides_option: Decorator = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override a recipe's field; repeatable.",
)
skip_invalid_option: Decorator = click.option(
    "--skip-invalid",
    is_flag=True,
    help="Leave out ARC tasks that cannot be read (wider than 30, say), and name them.",
)
checkpoint_option: Decorator = click.option(
    "--step",
    type=CheckpointName(),
    help="Checkpoint to use: a number of edits, or best.  [default: the newest]",
)
plot_option: Decorator = click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the curves: .png, .svg, .pdf (extra `plot`).",
)
device_option: Decorator = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."
)
compile_option: Decorator = click.option(
    "--compile/--no-compile", "compiled", default=False, help="Use torch.compile."
)
# One by default: these models are small, and on shared cores a second thread waits more than it
# works (measured: 9 edits/s against 156). It also fixes the bits on every machine.
threads_option: Decorator = click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads.  [default: 1; a resumed run keeps its own]",
)
precision_option: Decorator = click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of matrix products.",
)
env_option: Decorator = click.option(
    "--env",
    shell_complete=_complete_env,
    help="sudoku4x4, ... or any PlanEdit id; `upi-trm envs` lists them.",
)
edits_option: Decorator = click.option(
    "--steps", type=click.IntRange(1), help="Edits over all parallel plans, never exceeded."
)
any_recipe_option: Decorator = click.option(
    "--any-recipe", is_flag=True, help="Take a shipped recipe that is for another environment."
)
eval_num_option: Decorator = click.option(
    "--eval-num",
    type=click.IntRange(0),
    default=500,
    show_default=True,
    help="Unseen puzzles to evaluate on at the end; 0 = none.",
)


def recipe_option(recipes: ShippedFiles, help: str, **more: Any) -> Decorator:
    """`--recipe`, whose shipped names the shell completes."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in recipes.names() if name.startswith(incomplete)]

    return click.option("--recipe", help=help, shell_complete=complete, **more)


def seed_option(help: str) -> Decorator:
    """`--seed`, 0 where it is not given."""
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=help)


def out_option(help: str) -> Decorator:
    """`--out`, a folder to make."""
    return click.option("--out", type=click.Path(path_type=Path), help=help)


def placement_options(command: Any) -> Any:
    """Where the numbers are computed: the same four flags on every command that runs a model."""
    return added(command, device_option, precision_option, compile_option, threads_option)


def run_options(command: Any) -> Any:
    """Which run is made, or gone on with."""
    return added(
        command,
        seed_option("Seed of all random streams."),
        out_option("Run folder to make.  [default: below runs/]"),
        click.option(
            "--resume",
            metavar="RUN",
            type=RunPath(),
            help="Go on with a run that stopped.",
        ),
    )


def job_options(command: Any) -> Any:
    """Where independent jobs run; see `trm.compute.jobs.map_jobs`."""
    return added(
        command,
        click.option(
            "--workers", type=click.IntRange(1), help="Jobs at once.  [default: one a core]"
        ),
        click.option(
            "--backend",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Processes of this machine, or a Ray cluster (extra `cluster`).",
        ),
        click.option(
            "--address", help="Address of the Ray cluster, e.g. auto.  [default: start a local one]"
        ),
    )


def added(command: Any, *options: Decorator) -> Any:
    """The command with the options, which its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


# --- What the flags become


def make_placement(
    *,
    device: str,
    compiled: bool,
    threads: int | None,
    precision: Any = "float32",
    resumed: bool = False,
) -> Any:
    """The `trm.compute.device.Placement` that the flags ask for.

    Where the CPU is slower in bfloat16, which is measured, a warning on stderr says so.

    Args:
        device: device of torch, e.g. "cuda:1".
        compiled: whether to use torch.compile.
        threads: CPU threads; None = 1, or those that a resumed run has recorded.
        precision: "float32" or "bfloat16".
        resumed: whether a run goes on.
    """
    from trm.compute.device import Placement, bfloat16_speedup

    threads = 1 if threads is None and not resumed else threads
    placement = Placement(device=device, precision=precision, compile=compiled, threads=threads)
    if placement.precision == "bfloat16" and placement.kind == "cpu":
        speedup = bfloat16_speedup()
        if speedup < 1:
            click.echo(
                f"warning: this CPU multiplies matrices {1 / speedup:.1f} times slower in bfloat16"
                " than in float32",
                err=True,
            )
    return placement


def ready_placement(**flags: Any) -> Any:
    """`make_placement`, after a notice where the environments' kernels must be compiled first."""
    from plan_envs.compiled.disk_cache import announce_compilation

    placement = make_placement(**flags)
    announce_compilation()
    return placement


@contextmanager
def skipping_invalid(asked: bool) -> Iterator[Callable[[str], None] | None]:
    """What readers call for a task that cannot be read, None unless asked; names and counts them.

    The lines go to stderr when the block ends.
    """
    if not asked:
        yield None
        return
    reasons: list[str] = []
    yield reasons.append
    for reason in reasons:
        click.echo(f"skipped: {reason}", err=True)
    click.echo(f"skipped {len(reasons)} task{'' if len(reasons) == 1 else 's'}", err=True)


def open_run(path: Path, *, env: str | None = None, depth: int | None = None) -> Any:
    """The `trm.runs.run.Run` of a folder, or of a shipped run by its name `pretrained:NAME`.

    Args:
        path: as a user writes it.
        env: an environment to play in place of the one that it was trained on.
        depth: unrolls to play with in place of the recipe's.
    """
    from trm.experiments.shipped_runs import run_path
    from trm.runs.run import Run

    run = Run.open(run_path(path))
    if env is None and depth is None:
        return run
    from plan_envs.catalogue import resolve_task

    return run.played(env=None if env is None else resolve_task(env).name, depth=depth)


def played_options(command: Any) -> Any:
    """--env and --depth: the same weights on other sizes, and with more or fewer unrolls."""
    return added(
        command,
        click.option(
            "--env",
            "env",
            metavar="NAME",
            help="Play another environment with the same weights, e.g. nqueens12 with those of"
            " nqueens8.  [default: the one it was trained on]",
        ),
        click.option(
            "--depth",
            type=click.IntRange(0),
            metavar="N",
            help="Unroll the recursion N times.  [default: the recipe's]",
        ),
    )


def end_unfinished(outcome: Any) -> None:
    """End the program as a signal does where a training stopped early; it has said how to go on."""
    if not outcome.finished:
        sys.exit(EXIT_INTERRUPTED)


def program_path(name: str = "upi-trm") -> str:
    """How the user can call a program of this environment from where they are."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


# --- Flags that exclude each other


def refuse_foreign_recipe(recipe: str | None, env: str | None, *, asked: bool) -> None:
    """A shipped recipe that is named after another environment must be asked for twice.

    Raises:
        click.UsageError: names both environments and the second word, --any-recipe.
    """
    from plan_envs.catalogue import resolve_task
    from trm.experiments.learners import recipe_is_for

    made_for = None if recipe is None or env is None else recipe_is_for(recipe)
    if made_for is None or asked or resolve_task(str(env)).name == made_for:
        return
    raise click.UsageError(
        f"--recipe {recipe} is for {made_for}, --env is {env}; add --any-recipe if that is meant"
    )


def refuse_mixed_resume(ctx: click.Context, *, resume: Path | None, env: str | None) -> None:
    """A learner in environments begins with an environment, or goes on with a run as it began.

    Raises:
        click.UsageError: neither is given, or a parameter that the run's folder records.
    """
    if resume is not None:
        refuse_with_resume(ctx, ("env", "recipe", "overrides", "seed", "out"))
    elif env is None:
        raise click.UsageError("--env is missing (or --resume RUN); `upi-trm envs` lists them")


def refuse_with_resume(ctx: click.Context, parameters: Sequence[str]) -> None:
    """A run goes on as it began: what its folder records can't be given again.

    Raises:
        click.UsageError: names the first of these parameters that was given.
    """
    for parameter in parameters:
        if ctx.get_parameter_source(parameter) is not click.core.ParameterSource.DEFAULT:
            flag = "set" if parameter == "overrides" else parameter
            raise click.UsageError(f"--{flag} can't be combined with --resume: the run records it")
