"""Edit values: corrections of Q change undecided edits only, and learn the returns."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from learner_cases import CPU, EVALUATOR, IMPROVEMENT, PAPER, SMALL, STEPS, make

from upi_trm.algorithm import regress
from upi_trm.edit_values import CorrectedValues, EditValues
from upi_trm.learner import UpiLearner
from upi_trm.rollout import Visits


def corrected(
    value: Literal["success", "score"], edit_values: Literal["corrected", "state"] = "corrected"
) -> tuple[UpiLearner, Visits]:
    evaluator = replace(EVALUATOR, edit_values=edit_values, value=value)
    candidate = "success_posterior" if value == "success" else "exp_advantage"
    config = replace(
        SMALL, evaluator=evaluator, improvement=replace(IMPROVEMENT, candidate=candidate)
    )
    learner, roller = make(config)
    parts = learner.parts
    fresh = roller.collect(parts.actor, steps=STEPS, generator=parts.actions, device=CPU)
    return learner, Visits.of([fresh])


def uncorrected(values: CorrectedValues) -> EditValues:
    """Q(s, a) = r + gamma U_n(s') of the same value function."""
    return EditValues(value=values.value, config=values.config, dead_end=values.dead_end)


@pytest.mark.parametrize("value", ["success", "score"])
def test_a_correction_changes_undecided_edits_only_and_none_where_it_says_nothing(
    value: Literal["success", "score"],
) -> None:
    learner, visits = corrected(value)
    _, states = visits.views(learner.domain, CPU)
    edit_values = learner.parts.edit_values
    assert isinstance(edit_values, CorrectedValues)
    plain = uncorrected(edit_values)(visits, states)
    assert bool((plain.mask & ~plain.undecided).any())
    assert bool(plain.undecided.any())
    found = edit_values(visits, states).q
    assert torch.equal(found[~plain.undecided], plain.q[~plain.undecided])
    assert not torch.allclose(found[plain.undecided], plain.q[plain.undecided], atol=1e-4)
    with torch.no_grad():
        learner.evaluator.edit_out.weight.zero_()
        learner.evaluator.edit_out.bias.zero_()
    silent = edit_values(visits, states).q
    torch.testing.assert_close(silent, plain.q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", ["success", "score"])
def test_edit_values_of_the_state_ask_for_no_successor(value: Literal["success", "score"]) -> None:
    learner, visits = corrected(value, "state")
    _, states = visits.views(learner.domain, CPU)
    edit_values = learner.parts.edit_values
    assert isinstance(edit_values, CorrectedValues)
    plain = uncorrected(edit_values)(visits, states)
    found = edit_values(visits, states)
    assert found.num_evaluated == 0 < plain.num_evaluated
    assert torch.equal(found.undecided, plain.undecided)
    assert torch.equal(found.q[~plain.undecided], plain.q[~plain.undecided])
    with torch.no_grad():
        learner.evaluator.edit_out.weight.zero_()
        learner.evaluator.edit_out.bias.zero_()
    silent = edit_values(visits, states).q
    own = learner.parts.value(states, visits.score)
    phi = visits.phi(learner.domain, CPU)
    gamma = learner.config.evaluator.gamma
    wanted = own if value == "score" else gamma * (own + phi) - phi
    wanted = wanted[:, None].expand_as(silent)[plain.undecided]
    torch.testing.assert_close(silent[plain.undecided], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("edit_values", ["corrected", "state"])
@pytest.mark.parametrize("value", ["success", "score"])
def test_a_correction_learns_the_returns_of_the_edits_made(
    value: Literal["success", "score"], edit_values: Literal["corrected", "state"]
) -> None:
    learner, roller = make(corrected(value, edit_values)[0].config)
    losses = [learner.iterate(roller, steps=STEPS)["edit_loss"] for _ in range(2)]
    learner.parts.replay.popleft()
    losses += [regress(learner.parts)["edit_loss"] for _ in range(60)]
    assert losses[-1] < 0.9 * losses[1]


def test_corrections_need_the_advantage_of_every_edit() -> None:
    with pytest.raises(ValueError, match=r"evaluator.edit_values 'corrected' needs .*'exact'"):
        replace(PAPER, evaluator=replace(EVALUATOR, edit_values="corrected", control_variate=False))
