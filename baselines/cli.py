"""`upi-trm baselines`: train PPO, A2C, DQN and MaskablePPO, and tune them.

The entry point `baselines` of the group `upi_trm.commands` names `baselines`, the click group.
Everything that costs time to import (torch, SB3, numba) stands inside the commands.
"""

from pathlib import Path
from typing import Any

import click

from baselines.shipped import RECIPES
from trm.experiments import options
from trm.experiments.use_cli import show_scoreboard


@click.group()
def baselines() -> None:
    """PPO, A2C, DQN and MaskablePPO on the same environments, mask and backbone."""


@baselines.command()
@click.option("--algo", help="ppo, a2c, dqn or maskable-ppo.  [default: that of the recipe]")
@options.env_option
@options.recipe_option(
    RECIPES,
    "Name of a shipped recipe, or a YAML file.  [default: ALGO-ENV, or the algorithm's defaults]",
)
@options.any_recipe_option
@options.overrides_option
@options.edits_option
@options.run_options
@options.eval_num_option
@options.device_option
@options.compile_option
@options.threads_option
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    algo: str | None,
    env: str | None,
    recipe: str | None,
    any_recipe: bool,
    steps: int | None,
    resume: Path | None,
    eval_num: int,
    overrides: tuple[str, ...],
    seed: int,
    out: Path | None,
    **where: Any,
) -> None:
    """Train a baseline; --resume goes on.

    Ctrl-C saves and ends cleanly. At the end the greedy policy plays unseen puzzles beside the
    reference policies.
    """
    # --algo may be given with --resume: a sweep's command may hold it.
    options.refuse_mixed_resume(ctx, resume=resume, env=env)
    options.refuse_foreign_recipe(recipe, env, asked=any_recipe)
    require_sb3()
    placement = options.ready_placement(**where, resumed=resume is not None)
    from baselines import trainer

    if resume is not None:
        outcome = trainer.resume(resume, algorithm=algo, steps=steps, placement=placement)
    else:
        assert env is not None
        outcome = trainer.train(
            env=env,
            algorithm=algo,
            recipe_path=find_recipe(recipe, algorithm=algo, env=env),
            overrides=overrides,
            steps=steps,
            seed=seed,
            out=out,
            placement=placement,
        )
    options.end_unfinished(outcome)
    if not outcome.trained:
        return
    run = outcome.run
    if eval_num:
        show_scoreboard(run, placement=placement, num=eval_num)
    click.echo(
        f"\nThe run of {run.info.extra['method']} is in {run.path}; upi-trm eval {run.path} plays"
        " more unseen puzzles"
    )


@baselines.command()
@click.argument("space", metavar="SPACE.yaml|NAME")
@click.option("--env", required=True, help="sudoku4x4, ... or any PlanEdit id.")
@options.out_option("The search's folder.  [default: runs/tune-NAME-ENV]")
@options.job_options
def tune(*, space: str, env: str, out: Path | None, **jobs: Any) -> None:
    """Search hyper-parameters on validation puzzles.

    Give a search-space file or the name of a shipped one: ppo, a2c, dqn, maskable-ppo. The same
    command goes on after an interruption. Leaves tuning.json and winner.yaml in the search's
    folder; exit code 1 when a run failed, 130 after Ctrl-C, which lets runs save.
    """
    require_sb3()
    import shlex
    import sys

    from baselines.tuning import best_of, read_search, run_search

    search = read_search(space, env=env)
    out = Path("runs") / f"tune-{search.name}-{search.env}" if out is None else out

    def show(result: Any) -> None:
        text = f"{result.key}: {result.state}"
        text += f" ({result.seconds:.0f} s)" if result.seconds else ""
        click.echo(f"{text}: {result.detail}" if result.detail else text, err=True)
        for line in result.log_lines:
            click.echo(f"  {line}", err=True)

    trials = run_search(
        search,
        out,
        command=shlex.join(["upi-trm", *sys.argv[1:]]),
        report=show,
        **jobs,
    )
    if len(trials) < search.spec.trials:
        click.echo(f"stopped after {len(trials)} trials; the same command goes on", err=True)
        sys.exit(options.EXIT_INTERRUPTED)
    best = best_of(trials)
    rate = sum(run["success_rate"] for run in best.runs) / len(best.runs)
    values = ", ".join(f"{name}={value}" for name, value in best.values.items())
    click.echo(
        f"{search.env}: trial {best.number} of {len(trials)} solves {rate:.1%} of the validation"
        f" puzzles ({values or 'the recipe as it ships'}); {out / 'winner.yaml'}"
    )
    failed = sum(trial.value is None for trial in trials)
    if failed:
        click.echo(f"{failed} trials failed: see {out / 'logs'}", err=True)
        sys.exit(options.EXIT_FAILED)


def find_recipe(recipe: str | None, *, algorithm: str | None, env: str) -> Path | None:
    """A file, else a shipped recipe's name; by default the recipe of algorithm and task.

    Raises:
        ValueError: an unknown algorithm, environment or recipe.
    """
    from baselines.recipe import check_algorithm
    from plan_envs.catalogue import resolve_task

    check_algorithm(algorithm)
    return RECIPES.find_or_default(recipe, f"{algorithm}-{resolve_task(env).name}")


def require_sb3() -> None:
    """Say which extra is missing.

    Raises:
        ValueError: one line that names it.
    """
    from importlib.util import find_spec

    if find_spec("stable_baselines3") is None or find_spec("sb3_contrib") is None:
        raise ValueError(
            "baselines need stable-baselines3 and sb3-contrib: pip install 'upi-trm[baselines]'"
        )
