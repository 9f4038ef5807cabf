"""Rollouts: transitions are edits of the domain, plans go on until they end."""

import numpy as np
import pytest
from learner_cases import CPU, PLANS, SMALL, generator, make

from plan_envs.domain import edit_reward, potential
from upi_trm.learner import UpiLearner
from upi_trm.rollout import RolloutConfig, Transitions


@pytest.fixture(scope="module")
def rollout() -> tuple[UpiLearner, Transitions]:
    """A learner that has not learnt, and edits long enough for plans to end in every way."""
    learner, roller = make(SMALL, env="sudoku4x4-hard")
    fresh = roller.collect(
        learner.parts.actor, steps=40, generator=learner.parts.actions, device=CPU
    )
    return learner, fresh


# --- Rollouts


def test_transitions_are_edits_of_the_domain(rollout: tuple[UpiLearner, Transitions]) -> None:
    learner, fresh = rollout
    domain = learner.domain
    cells = domain.spec.num_cells
    instance, plan, after = (
        array.reshape(-1, cells) for array in (fresh.instance, fresh.plan, fresh.next_plan)
    )
    action = fresh.action.ravel()
    mask = domain.action_mask(instance, plan)
    assert bool((mask[np.arange(len(action)), action] == 1).all())
    assert np.array_equal(domain.edit(instance, plan, action), after)
    before_check, after_check = domain.check(instance, plan), domain.check(instance, after)
    assert np.array_equal(fresh.score.ravel(), before_check.score)
    assert np.array_equal(fresh.next_score.ravel(), after_check.score)
    assert np.array_equal(fresh.solved.ravel(), after_check.solved)
    reward = edit_reward(
        potential(before_check.score, 16.0),
        potential(after_check.score, 16.0),
        solved=after_check.solved,
        absorbed=fresh.terminated.ravel(),
        gamma=0.9,
    )
    np.testing.assert_allclose(fresh.reward.ravel(), reward, atol=1e-6)
    stopped = domain.is_stop(action)
    assert bool(fresh.terminated.ravel()[stopped | after_check.solved].all())


def test_plans_go_on_until_they_end_and_then_start_from_their_instance(
    rollout: tuple[UpiLearner, Transitions],
) -> None:
    _, fresh = rollout
    ended = fresh.terminated | fresh.truncated
    assert fresh.terminated.any()
    assert fresh.truncated.any()
    assert not (fresh.terminated & fresh.truncated).any()
    goes_on = ~ended[:-1]
    assert np.array_equal(fresh.plan[1:][goes_on], fresh.next_plan[:-1][goes_on])
    assert np.array_equal(fresh.instance[1:][goes_on], fresh.instance[:-1][goes_on])
    assert np.array_equal(fresh.plan[1:][~goes_on], fresh.instance[1:][~goes_on])
    # The horizon of 4x4 is 16 edits.
    for plan in range(PLANS):
        ends = np.flatnonzero(ended[:, plan])
        lengths = np.diff(ends, prepend=-1)
        assert lengths.max() == 16
        assert np.array_equal(fresh.truncated[ends, plan], lengths == 16) or (
            fresh.terminated[ends, plan][lengths == 16].any()
        )


def test_collecting_in_two_parts_equals_collecting_at_once() -> None:
    whole = Transitions.__dataclass_fields__
    learner, roller = make(SMALL)
    once = roller.collect(learner.parts.actor, steps=12, generator=generator(7), device=CPU)
    learner, roller = make(SMALL)
    draws = generator(7)
    parts = [
        roller.collect(learner.parts.actor, steps=steps, generator=draws, device=CPU)
        for steps in (5, 7)
    ]
    for name in whole:
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(once, name), joined), name


@pytest.mark.parametrize(("name", "least"), [("plans", 2), ("steps", 1)])
def test_a_rollout_too_small_to_hold_out_a_state_is_named(name: str, least: int) -> None:
    RolloutConfig(**{name: least})
    with pytest.raises(
        ValueError, match=f"rollout.{name} must be at least {least}, got {least - 1}"
    ):
        RolloutConfig(**{name: least - 1})


def test_transitions_of_an_older_checkpoint_are_taken_as_episodic(
    rollout: tuple[UpiLearner, Transitions],
) -> None:
    _, fresh = rollout
    state = fresh.state()
    older = {name: array for name, array in state.items() if not name.endswith("_start")}
    for given in (state, older):
        again = Transitions.from_state(given).state()
        assert set(again) == set(state)
        for name, array in state.items():
            assert np.array_equal(again[name], array), name
