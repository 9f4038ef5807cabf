"""What a recipe of the learner refuses, and what became of fields that it once had."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learner_cases import EVALUATOR, IMPROVEMENT, PAPER, SMALL

from trm.runs.recipe import load_recipe
from upi_trm.contraction import ContractionConfig
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
