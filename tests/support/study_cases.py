"""Runs and enumerated puzzles that the tests of stability and bounds share."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from learner_cases import CPU, generator, jitter, small_model
from numpy.typing import NDArray
from tabular import FULL

from plan_envs.catalogue import resolve_task
from trm.experiments.states import Boards, policy_probabilities
from trm.nn.model import StateBatch, TinyRecursiveModel
from trm.runs.recipe import load_recipe
from trm.runs.run import Run
from upi_trm.contraction import ContractionClamp
from upi_trm.learner import UpiLearner
from upi_trm.recipe import RUN_KIND, UpiRecipe
from upi_trm.theory.bounds import Bound
from upi_trm.theory.exact import ExactMDP, enumerate_states

Array = NDArray[np.float64]

TINY = (
    "model.channels=6",
    "model.head_width=8",
    "model.depth=2",
    "model.tied_groups=[row,column]",
    "evaluator.gamma=0.9",
    "evaluator.value=score",
    "evaluator.k_steps=3",
    "improvement.candidate=exp_advantage",
    "improvement.distil_passes=1",
)
"""Overrides of the default recipe for runs that tests can afford."""


def make_run(
    path: Path,
    *overrides: str,
    env: str = "sudoku4x4",
    seed: int = 0,
    spread: float = 0.3,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """A run folder with one checkpoint of random weights (clamped where the recipe says so)."""
    words = {word.partition("=")[0]: word for word in (*TINY, *overrides)}
    recipe = load_recipe(UpiRecipe, None, list(words.values()))
    learner = UpiLearner(
        resolve_task(env).domain,
        recipe,
        dead_end="absorb",
        device=CPU,
        init=generator(seed),
        noise=generator(seed + 1),
        actions=generator(seed + 2),
        lessons=np.random.default_rng(seed),
    )
    for offset, model in enumerate((learner.evaluator, learner.policy)):
        jitter(model, seed + 10 + offset, spread)
    for clamp in learner.clamps:
        clamp.apply()
    with Run.create(
        path, kind=RUN_KIND, env=env, seed=seed, recipe=recipe, provenance=provenance
    ) as run:
        run.save_checkpoint(64, weights=learner.weights(), state={})
    return path


def called(
    command: click.Command, *words: str | Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """What a command prints as JSON, on the last line."""
    command.main([*(str(word) for word in words), "--json"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


@cache
def small_mdp(gamma: float = 0.9) -> ExactMDP:
    """Two 4x4 puzzles with two and three blanks under full edits: 148 plans."""
    task = resolve_task("sudoku4x4")
    puzzles = np.concatenate(
        [task.instances(num=1, blanks=(blanks, blanks)).instances for blanks in (2, 3)]
    )
    return enumerate_states(FULL, puzzles, gamma=gamma)


def states_of_mdp(mdp: ExactMDP) -> tuple[StateBatch, torch.Tensor]:
    """Every state as a model sees it, and Phi."""
    boards = Boards(instances=mdp.instances, plans=mdp.plans)
    return boards.batch(mdp.domain, CPU), boards.phi(mdp.domain, CPU)


def contraction(update_map: str, seed: int, *, modulus: float, **config: Any) -> TinyRecursiveModel:
    """A clamped float64 evaluator with random weights."""
    model = small_model(FULL, seed, spread=0.5, update_map=update_map, **config).double()
    ContractionClamp(model.update, modulus)
    return model


def policy_on(mdp: ExactMDP, seed: int, sharpness: float = 2.0) -> Array:
    """A random policy, positive on every legal edit."""
    noise = np.random.default_rng(seed).standard_normal(mdp.mask.shape)
    weight = np.where(mdp.mask, np.exp(sharpness * noise), 0.0)
    policy: Array = weight / weight.sum(axis=1, keepdims=True)
    return policy


def network_policy(mdp: ExactMDP, seed: int) -> Array:
    """The policy of an untrained network."""
    states, _ = states_of_mdp(mdp)
    model = small_model(FULL, seed, spread=0.5).double()
    policy: Array = policy_probabilities(model, states).numpy()
    return policy


def random_values(mdp: ExactMDP, seed: int, policy: Array) -> Array:
    """V^pi with errors: of every size, and on one state only for some seeds."""
    rng = np.random.default_rng(seed)
    error = rng.standard_normal(len(mdp)) * 10.0 ** rng.uniform(-3, 1)
    if seed % 3 == 0:
        error *= np.arange(len(mdp)) == rng.integers(len(mdp))
    values: Array = mdp.value(policy) + error
    return values


def never_absorbed(mdp: ExactMDP) -> Array:
    """A deterministic policy that edits for ever."""
    stays = mdp.next_state >= 0
    assert stays.any(axis=1).all()
    policy: Array = np.eye(stays.shape[1])[stays.argmax(axis=1)]
    return policy


def assert_all_hold(found: list[Bound]) -> None:
    for bound in found:
        assert bound.holds or not bound.proven, bound
