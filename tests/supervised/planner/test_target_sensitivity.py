"""How much targets depend on the step that they are taken from: Table 6, worked out by hand."""

import pytest
import torch
from cache_cases import teacher

from supervised.planner.planner import PlannerConfig, plan, teacher_on
from supervised.planner.target_sensitivity import target_sensitivity, unrolled_quality


def test_target_sensitivity_is_worked_out_by_hand() -> None:
    loss = torch.tensor(
        [
            [0.5, 0.1, 0.3],  # t* = 2, Delta = 0.2
            [0.5, 0.4, 0.2],  # t* = 3, Delta = 0
            [0.1, 0.1, 0.5],  # a tie: the first, t* = 1, Delta = 0.4
            [0.9, 0.3, 0.7],  # t* = 2, Delta = 0.4
        ],
        dtype=torch.float64,
    )
    exact = torch.tensor(
        [[False, True, False], [False, False, True], [False, False, False], [True, True, True]]
    )
    found = target_sensitivity(loss, exact)
    assert (found.num_examples, found.steps) == (4, 3)
    assert found.share_not_last == 0.75
    assert found.median_step == 2
    assert found.quartiles == (1.75, 2.25)
    assert found.mean_gap == pytest.approx(0.25)
    assert found.median_gap == pytest.approx(0.3)
    assert found.share_exact_elsewhere == 0.25
    assert found.loss_by_step == pytest.approx((0.5, 0.225, 0.425))
    assert found.exact_by_step == (0.25, 0.5, 0.5)


def test_the_unrolled_losses_are_those_that_the_planner_sees() -> None:
    model, steps = teacher(), 5
    inputs = torch.randint(6, (6, 16), generator=torch.Generator().manual_seed(3))
    start, advance = teacher_on(model, inputs, torch.zeros(6, dtype=torch.int64))
    loss, exact = unrolled_quality(start, advance, inputs, steps)
    assert loss.shape == exact.shape == (6, steps)
    config = PlannerConfig(steps=steps, rollouts=1, entries=1, noise=0.0, step_cost=0.0)
    found = plan(start, advance, inputs, config, keys=[b""] * 6)
    assert torch.equal(found.step[:, 0], loss.argmin(dim=1) + 1)
    assert torch.equal(found.loss[:, 0], loss.min(dim=1).values)
