"""What a recipe refuses, what became of old fields, and learners that share weights."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learner_cases import EVALUATOR, IMPROVEMENT, PAPER, SMALL, make

from plan_envs.catalogue import resolve_task
from trm.runs.recipe import load_recipe
from upi_trm.contraction import Certificate, ContractionConfig
from upi_trm.learner import LearnerConfig


def test_success_posterior_needs_a_value_that_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"needs evaluator\.value 'success', got 'score'"):
        replace(SMALL, evaluator=replace(EVALUATOR, value="score"))


def test_control_variates_need_the_advantage_of_every_edit_made() -> None:
    for improvement in (PAPER.improvement, replace(IMPROVEMENT, lookahead_states=5)):
        with pytest.raises(ValueError, match=r"evaluator\.control_variate needs"):
            replace(SMALL, improvement=improvement)


@pytest.mark.parametrize("modulus", [0.0, 1.0, -1.0, math.nan])
def test_a_modulus_outside_the_open_unit_interval_is_named(modulus: float) -> None:
    with pytest.raises(ValueError, match=r"contraction\.modulus must lie in \(0, 1\)"):
        ContractionConfig(modulus=modulus)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("improvement.alpha_rule", "fixed"),
        ("improvement.alpha_penalty", "paper"),
        ("improvement.gae_decay", 0.95),
        ("improvement.entropy", 0.01),
        ("improvement.held_out", 0.1),
        ("evaluator.target_policy", "current"),
        ("model.tolerance", None),
        ("model.attention_heads", 4),
        ("model.neighbour_pool", "max"),
        ("contraction.schedule", "constant"),
        ("contraction.start", None),
        ("contraction.ramp", 0.5),
        ("contraction.value_head", None),
    ],
)
def test_a_retired_field_is_refused_and_an_older_run_that_asks_for_nothing_else_is_read(
    field: str, value: Any, tmp_path: Path
) -> None:
    section, name = field.split(".")
    recipe = tmp_path / "recipe.yaml"
    shown = "null" if value is None else value
    recipe.write_text(f"{section}:\n  {name}: {shown}\n")
    with pytest.raises(ValueError, match=rf"recipe\.yaml: {field} = .*: it was removed"):
        load_recipe(LearnerConfig, recipe)
    assert load_recipe(LearnerConfig, recipe, of_run=True) == LearnerConfig()
    recipe.write_text(f"{section}:\n  {name}: 0.123\n")
    with pytest.raises(ValueError, match=rf"{field} = 0\.123: it was removed"):
        load_recipe(LearnerConfig, recipe, of_run=True)


def test_learners_of_several_sizes_train_the_same_weights_within_the_bounds_of_all() -> None:
    clamped = replace(
        SMALL,
        contraction=ContractionConfig(modulus=0.5),
        improvement=replace(IMPROVEMENT, distil_kl=1e-9),
    )
    learner, roller = make(clamped, env="nqueens5")
    other = learner.beside(resolve_task("nqueens7").domain)
    for name, module in learner.modules.items():
        shared = dict(other.modules[name].named_parameters())
        assert all(shared[key] is weight for key, weight in module.named_parameters())
    before = {name: weight.clone() for name, weight in other.weights().items()}
    for _ in range(3):
        learner.iterate(roller, steps=4)
    moved = {name for name, weight in other.weights().items() if not weight.equal(before[name])}
    assert {name.split(".")[0] for name in moved} == set(learner.modules)
    bounds = [
        Certificate(module.update).bound()
        for one in (learner, other)
        for module in (one.evaluator, one.phi)
    ]
    assert max(bounds) <= 0.5
    assert len(set(bounds)) > 2  # they are bounds of different maps


def test_an_environment_whose_actions_need_other_weights_cannot_be_trained_beside() -> None:
    learner, _ = make(SMALL, env="sudoku4x4")
    with pytest.raises(ValueError, match=r"edit_out\.weight depends on the size"):
        learner.beside(resolve_task("sudoku6x6").domain)
