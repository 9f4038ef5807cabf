"""The root of the `upi-trm` command: its sub-commands, and how a mistake of the user ends.

Every import that costs time (torch, numba, gymnasium, rich) is inside the command that needs it,
so that `upi-trm --help` answers at once. The learners add sub-commands with the entry-point
group `upi_trm.commands`; an entry point names a click command. Mistakes of the user end in one line
on stderr and exit code 2; `--debug` shows the traceback.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from trm.experiments.envs_cli import envs
from trm.experiments.lists_cli import recipes, runs
from trm.experiments.options import EXIT_INTERRUPTED
from trm.experiments.play_cli import play
from trm.experiments.shipped_runs import FOLDER, PREFIX
from trm.experiments.sweep_cli import compare, sweep
from trm.experiments.trained.cli import export
from trm.experiments.use_cli import evaluate, solve
from trm.experiments.viewing.cli import report

PLUGIN_GROUP = "upi_trm.commands"
"""Entry-point group of the learners' click commands; the entry point's name is the command's."""

_SECTIONS = {
    "Learn": ["train", "sweep"],
    "Measure and use": ["eval", "solve", "compare", "report", "export", "drift", "bounds"],
    "Look around": ["envs", "recipes", "runs", "play"],
}

_EXIT_USER_ERROR = 2


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        args: words after the program's name; None for those of the process.
    """
    debug = _Debug()
    try:
        code = cli.main(args=args, prog_name="upi-trm", standalone_mode=False, obj=debug)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(EXIT_INTERRUPTED)
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
    """The commands in sections; what learners add beside them is not loaded until it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        known = {*self.commands, *(point.name for point in _plugins())}
        shown = [name for names in _SECTIONS.values() for name in names if name in known]
        return shown + sorted(known - set(shown))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = {point.name: point for point in _plugins()}.get(cmd_name)
        return super().get_command(ctx, cmd_name) or (None if found is None else _load(found))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = self.list_commands(ctx)
        for section, names in _SECTIONS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            lines = [(name, one.get_short_help_str(90)) for name, one in found if one is not None]
            with formatter.section(section):
                formatter.write_dl(lines)
            others = [name for name in others if name not in names]
        if others:
            with formatter.section("Other learners"):
                formatter.write_dl([(name, f"see upi-trm {name} --help") for name in others])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="upi-trm", prog_name="upi-trm")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(settings: Any, debug: bool) -> None:
    """Tiny recursive models that learn to solve puzzles from checker feedback alone.

    Start with `upi-trm train --env sudoku4x4`.
    """
    if debug and settings is not None:
        settings.shown = True


for _command in (sweep, evaluate, solve, compare, report, export, envs, recipes, runs, play):
    cli.add_command(_command)


@cache
def _plugins() -> Sequence[EntryPoint]:
    """Read once: the metadata of every installed package is searched."""
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
    return _is_nowhere_to_cache(error) or isinstance(
        error, (click.ClickException, ValueError, OSError, ImportError)
    )


def _is_nowhere_to_cache(error: Exception) -> bool:
    """Numba's error where it can write to none of the folders that may keep machine code."""
    return isinstance(error, RuntimeError) and "cannot cache function" in str(error)


def _one_line(error: Exception) -> str:
    if _is_nowhere_to_cache(error):
        message = (
            "machine code can be kept neither beside the package nor in the user's cache;"
            " set NUMBA_CACHE_DIR to a folder that can be written"
        )
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" (see {error.ctx.command_path} --help)"
    return _named_as_users_do(" ".join(message.split())) or type(error).__name__


def _named_as_users_do(message: str) -> str:
    """A message without the folder that this program is installed in: shipped runs by name."""
    installed = f"{Path(__file__).resolve().parents[2]}/"
    return message.replace(f"{FOLDER}/", PREFIX).replace(installed, "")
