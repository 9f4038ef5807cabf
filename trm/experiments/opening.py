"""What commands share: opening a run, placement."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from trm.experiments.options import make_placement


class CheckpointName(click.ParamType):  # type: ignore[type-arg]  # generic only in new click
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


def ready_placement(**flags: Any) -> Any:
    """What the four flags say, once the environments are sure to be ready."""
    from plan_envs.compiled.disk_cache import announce_compilation

    placement = make_placement(**flags)
    announce_compilation()
    return placement


def open_run(path: Path) -> Any:
    """A run folder, or a run that ships by its name `pretrained:NAME`."""
    from trm.experiments.shipped_runs import run_path
    from trm.runs.run import Run

    return Run.open(run_path(path))


def program_path(name: str = "upi-trm") -> str:
    """How the user can call a program of this environment from where they are."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)
