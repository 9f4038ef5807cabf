"""`upi-trm train`: learn an environment's puzzles by unrolled policy iteration.

The entry point `train` of the group `upi_trm.commands` names the command. Every import that costs
time stands inside the functions that need it.
"""

import shlex
from pathlib import Path
from typing import Any

import click

from trm.experiments import options
from trm.experiments.use_cli import show_scoreboard
from upi_trm.shipped import RECIPES


@click.command()
@options.env_option
@options.recipe_option(
    RECIPES,
    "Name of a shipped recipe (`upi-trm recipes`), or a YAML file.  [default: that of the env]",
)
@options.any_recipe_option
@options.overrides_option
@options.edits_option
@options.run_options
@options.eval_num_option
@options.placement_options
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    env: str | None,
    recipe: str | None,
    any_recipe: bool,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int,
    out: Path | None,
    resume: Path | None,
    eval_num: int,
    **place: Any,
) -> None:
    """Learn to solve an environment's puzzles; --resume goes on.

    Ctrl-C saves and ends cleanly. At the end the greedy policy plays unseen puzzles beside the
    reference policies.
    """
    options.refuse_mixed_resume(ctx, resume=resume, env=env)
    _refuse_shipped(resume)
    options.refuse_foreign_recipe(recipe, env, asked=any_recipe)
    placement = options.ready_placement(resumed=resume is not None, **place)
    from plan_envs.catalogue import resolve_task
    from upi_trm import trainer

    if resume is not None:
        outcome = trainer.resume(resume, steps=steps, placement=placement)
    else:
        assert env is not None
        outcome = trainer.train(
            env=env,
            recipe_path=RECIPES.find_or_default(recipe, resolve_task(env).name),
            overrides=overrides,
            steps=steps,
            seed=seed,
            out=out,
            placement=placement,
        )
    options.end_unfinished(outcome)
    if not (outcome.trained and outcome.is_main):
        return
    if eval_num:
        show_scoreboard(outcome.run, placement=placement, num=eval_num)
    _show_next_steps(outcome.run)


def _refuse_shipped(resume: Path | None) -> None:
    from trm.experiments.shipped_runs import PREFIX

    if resume is not None and str(resume).startswith(PREFIX):
        raise click.UsageError(
            f"--resume: {resume} can't be trained on, it ships without optimisers and replay; train"
            " its recipe anew"
        )


def twice_about(step: int) -> int:
    """A round number of edits near 2 `step` and at least that, of two digits that are not 0."""
    unit: int = 10 ** max(0, len(str(2 * step)) - 2)
    return -(-2 * step // unit) * unit


def _show_next_steps(run: Any) -> None:
    """Commands to try, ready to be copied: the puzzle is an unseen one of the run's task."""
    from trm.experiments.learners import task_of

    task = task_of(run)
    write = getattr(task.domain, "write_instance", None)
    program, path = options.program_path(), run.path
    further = {f"{program} eval {path} --num 2000": "more unseen puzzles"}
    if write is not None:
        puzzle = write(task.instances("test", num=1, seed=1).instances[0])
        words = f"solve {shlex.quote(puzzle)} --run {path}"
        further[f"{program} {words}"] = "one of them; or a puzzle of yours"
    twice = twice_about(run.checkpoint_steps()[-1])
    further |= {
        f"{program} train --resume {path} --steps {twice}": "train on",
        f"{options.program_path('tensorboard')} --logdir {path}": "curves",
    }
    click.echo(f"\nThe run is in {path}. Where to look next:")
    for command, what in further.items():
        click.echo(f"  {command}\n      {what}")
