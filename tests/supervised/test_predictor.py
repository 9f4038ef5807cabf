"""A supervised run in Python: its boards are those that its evaluation judges."""

import numpy as np
import pytest

from supervised.measures.evaluation import EvalOptions, evaluate
from supervised.models import load_model, open_data
from supervised.trainer import train
from trm.compute.device import Placement
from trm.experiments.trained.model import Model
from trm.runs.run import Run

HERE = Placement(threads=1)
RECIPE = """
data: {task: sudoku4x4-hard, num: 12, seed: 0, augment: false}
model: {mixing: mixer, positions: none, width: 8, layers: 1, heads: 1, inner_multiple: 8,
  prefix: 1, puzzle_channels: 0}
recursion: {cycles: 1, inner: 1, supervision: 3}
act: {exploration: 0.5}
batch_size: 4
schedule: {steps: 2, log_every: 2, evaluate_every: 2, evaluate_num: 4, checkpoint_every: 2}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("supervised")
    (folder / "recipe.yaml").write_text(RECIPE)
    train(recipe_path=folder / "recipe.yaml", out=folder / "run", placement=HERE)
    return Model(Run.open(folder / "run"), placement=HERE)


def test_a_solution_is_the_board_after_each_supervision_step(model: Model) -> None:
    instance = model.unseen(1)[0]
    solution = model.solve(instance)
    assert solution.plans.shape == (4, 16) and solution.edits is None
    assert (solution.plans[0] == instance).all()
    verdict = model.domain.check(instance[None], solution.plan[None])
    assert solution.solved == verdict.solved[0]


def test_its_boards_are_as_wrong_as_the_evaluation_says(model: Model) -> None:
    assert model.predictor is not None
    instances = model.unseen(6)
    prediction = model.predictor.predict(instances)
    network, recipe = load_model(model.run, placement=HERE)
    data = open_data(recipe.data, "test", seed=model.run.info.seed, num=6)
    found = evaluate(network.eval(), data, EvalOptions(num=6))
    for step, figures in enumerate(found.curve):
        verdict = model.domain.check(instances, prediction.plans[step])
        assert figures.valid == verdict.solved.mean()
        assert figures.violated == (~verdict.solved & (verdict.violations > 0)).mean()
        assert prediction.halting is not None
        assert figures.halting == pytest.approx(prediction.halting[step].mean(), abs=1e-5)
    assert prediction.entropy.shape == (3, 6, 16)
    # No distribution over the six tokens has more than log 6 nats.
    assert (prediction.entropy > 0).all() and (prediction.entropy <= np.log(6) + 1e-5).all()


def test_what_belongs_to_edits_is_refused_by_kind(model: Model) -> None:
    instance = model.unseen(1)
    for ask in (
        lambda: model.probabilities(instance, instance),
        lambda: model.edit_values(instance, instance),
        lambda: model.solve(instance[0], search=4),
        lambda: model.act(
            {"instance": instance[0], "plan": instance[0], "action_mask": np.ones(97)}
        ),
    ):
        with pytest.raises(ValueError, match="whose runs predict whole boards and play no edits"):
            ask()
