"""`upi-trm envs`."""

from collections.abc import Iterable
from typing import Any

import click

from trm.experiments.options import program_path


@click.command()
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
    _print_env(task, name)
    if measure:
        _print_references(task, num=num)


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


def _print_env(task: Any, name: str) -> None:
    """Everything about one environment, and the options that `gym.make` takes for it.

    Args:
        task: what `name` stands for.
        name: as the user wrote it, with the module that registers the task.
    """
    import inspect

    from plan_envs.catalogue import make_call

    domain, spec = task.domain, task.domain.spec
    kinds = [int((spec.action_kind == kind).sum()) for kind in range(len(spec.kind_names))]
    actions = ", ".join(f"{n} {kind}" for n, kind in zip(kinds, spec.kind_names, strict=True) if n)
    generator = set(inspect.signature(task.generator).parameters)
    further = sorted(generator - {"split", "num", "seed", "progress"} - set(_own_fields(domain)))
    module = name.rpartition(":")[0]
    known = f"{module}:{task.name}" if module else task.name
    facts = {
        "grid": "{} x {}, values 1-{}".format(*spec.grid_shape, spec.num_values),
        "actions": f"{spec.num_actions} ({actions})",
        "horizon": f"{spec.horizon} edits",
        "score": f"{spec.max_score:g} when solved",
        "rules": _settings(_own_fields(domain)),
        "puzzles": _settings(task.instance_options) + f"; further options {', '.join(further)}",
        "make": make_call(name),
        "play": f"{program_path()} play {known}",
        "train": f"{program_path()} train --env {known}",
    }
    click.echo(task.name)
    for heading, fact in facts.items():
        click.echo(f"  {heading:<8} {fact}")
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

    from trm.experiments.scoreboard import Scoreboard, score_references

    instances = task.instances("test", num=num)
    board = Scoreboard(
        env=task.name, instances=instances.name, reference=score_references(task, instances)
    )
    Console().print(board.table())
