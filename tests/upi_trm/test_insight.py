"""What a mixture says as operations on tensors: its own probabilities."""

from copy import deepcopy
from dataclasses import replace

import torch

from trm.experiments.trained.model import load
from upi_trm.chain import MixturePolicy
from upi_trm.insight import UpiInsight


def test_readings_of_a_mixture_are_its_probabilities() -> None:
    model = load("pretrained:sudoku4x4", depth=1, threads=1)
    insight = model.insight
    assert isinstance(insight, UpiInsight) and not isinstance(insight.policy, MixturePolicy)
    other = deepcopy(insight.policy)
    with torch.no_grad():
        other.edit_out.weight.mul_(-2)
    mixture = MixturePolicy(insight.policy, length=2)
    mixture.append(other, 0.25)
    instances = model.unseen(3)
    boards = model.boards(instances, model.domain.initial(instances))
    states = boards.batch(model.domain, torch.device("cpu"))
    with torch.no_grad():
        found = replace(insight, policy=mixture).readings(states)["probabilities"]
    torch.testing.assert_close(found, mixture.probabilities(states))
    assert not torch.allclose(found, insight.probabilities(states), atol=1e-3)
