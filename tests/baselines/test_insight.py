"""What a baseline says of states: the algorithm's own quantities, and no others."""

import numpy as np
import pytest
import torch
from baselines_cases import TINY

from baselines.insight import Sb3Insight
from baselines.recipe import BaselineRecipe, read_recipe
from plan_envs.catalogue import resolve_task
from trm.compute.device import Placement
from trm.experiments.learners import Networks
from trm.experiments.states import Boards, edit_logits, model_shape
from trm.nn.model import TinyRecursiveModel

TASK = resolve_task("sudoku4x4")


def _insight(recipe: BaselineRecipe) -> tuple[Sb3Insight, Boards]:
    draw = torch.Generator().manual_seed(0)
    policy, critic = (
        TinyRecursiveModel(model_shape(TASK.domain.spec), TINY, generator=draw) for _ in range(2)
    )
    networks = Networks(policy=policy, evaluator=critic, model=TINY, step=0)
    instances = TASK.instances("test", num=5).instances
    boards = Boards(instances=instances, plans=TASK.domain.initial(instances))
    placement = Placement(threads=1)
    insight = Sb3Insight(domain=TASK.domain, recipe=recipe, networks=networks, placement=placement)
    return insight, boards


def test_an_actor_critic_has_probabilities_values_and_their_deepening() -> None:
    insight, boards = _insight(read_recipe(None, algorithm="ppo"))
    assert insight.quantities == {"probabilities", "values", "deepen"}
    states = boards.batch(TASK.domain, torch.device("cpu"))
    chance = insight.probabilities(states)
    assert (chance[states.mask == 0] == 0).all()
    torch.testing.assert_close(chance.sum(dim=1), torch.ones(5))
    deep = insight.deepen(boards, depth=3)
    assert deep.trained_depth == TINY.depth and deep.modulus is None
    np.testing.assert_allclose(deep.values[TINY.depth], insight.values(boards), atol=1e-6)
    np.testing.assert_allclose(deep.probabilities[TINY.depth], chance, atol=1e-6)


def test_dueling_action_values_average_to_the_value_and_rank_as_the_logits() -> None:
    """Q = V + A - mean of A over the legal edits, so that the mean of Q over them is V."""
    insight, boards = _insight(read_recipe(None, algorithm="dqn"))
    assert insight.quantities == {"edit_values", "values"}
    q = insight.edit_values(boards)
    np.testing.assert_allclose(np.nanmean(q, axis=1), insight.values(boards), atol=1e-5)
    states = boards.batch(TASK.domain, torch.device("cpu"))
    with torch.no_grad():
        logits = edit_logits(insight.networks.policy, states)
    assert np.array_equal(np.nanargmax(q, axis=1), logits.argmax(dim=1).numpy())
    assert np.array_equal(np.isnan(q), states.mask.numpy() == 0)


def test_without_dueling_the_edit_head_is_q_and_there_is_no_value() -> None:
    recipe = read_recipe(None, ["dqn.dueling=false"], algorithm="dqn")
    insight, boards = _insight(recipe)
    assert insight.quantities == {"edit_values"}
    states = boards.batch(TASK.domain, torch.device("cpu"))
    with torch.no_grad():
        logits = edit_logits(insight.networks.policy, states).numpy()
    q = insight.edit_values(boards)
    legal = states.mask.numpy() > 0
    np.testing.assert_array_equal(q[legal], logits[legal])


@pytest.mark.parametrize(
    ("algorithm", "quantities"),
    [("ppo", {"probabilities", "values"}), ("dqn", {"values", "edit_values"})],
)
def test_readings_are_the_same_figures_as_tensors(algorithm: str, quantities: set[str]) -> None:
    insight, boards = _insight(read_recipe(None, algorithm=algorithm))
    states = boards.batch(TASK.domain, torch.device("cpu"))
    with torch.no_grad():
        found = insight.readings(states)
    assert set(found) == quantities
    np.testing.assert_allclose(found["values"], insight.values(boards), atol=1e-6)
    if algorithm == "ppo":
        torch.testing.assert_close(found["probabilities"], insight.probabilities(states))
    else:
        np.testing.assert_allclose(found["edit_values"], insight.edit_values(boards), atol=1e-6)
