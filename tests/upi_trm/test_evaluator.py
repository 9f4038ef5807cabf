"""The value side: K-step targets, what the loss fits, the target network, batched evaluation."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import generator, random_states, small_model, states_of
from tabular import (
    FILL,
    FULL,
    OVERWRITE,
    Array,
    TabularMDP,
    deterministic_policy,
    random_policy,
    tabular,
)

from plan_envs.sudoku.rules import Sudoku
from trm.experiments.states import model_shape
from upi_trm.edit_values import corrected_values, correction_loss
from upi_trm.evaluator import (
    EvaluatorConfig,
    TargetNetwork,
    bootstrapped,
    evaluate_states,
    k_step_targets,
    minibatches,
    shaped_value,
    value_loss,
)

SEEDS = st.integers(0, 10_000)
WORLDS = {
    "fill": {"domain": FILL},
    "fill, dead ends go on": {"domain": FILL, "dead_end": "continue"},
    "overwrite": {"domain": OVERWRITE},
    "full": {"domain": FULL},
}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


# --- K-step targets


def slow_target(
    t: int, plan: int, rewards: Array, values: Array, ends: Array, absorbs: Array, k: int, g: float
) -> float:
    """Eq. 2 for one state, edit by edit: at most k rewards, then the value of where it stopped."""
    total, discount = 0.0, 1.0
    for step in range(t, min(t + k, len(rewards))):
        total += discount * rewards[step, plan]
        discount *= g
        last = step
        if ends[step, plan]:
            break
    return total if absorbs[last, plan] else total + discount * values[last, plan]


@given(
    seed=SEEDS,
    k_steps=st.sampled_from([1, 2, 3, 9, 50]),
    steps=st.integers(1, 9),
    gamma=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_targets_match_a_slow_implementation(
    seed: int, k_steps: int, steps: int, gamma: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (steps, 5)
    reward, value = rng.standard_normal((2, *shape))
    terminated = rng.random(shape) < 0.2
    truncated = (rng.random(shape) < 0.2) & ~terminated
    got = k_step_targets(
        *(torch.from_numpy(array) for array in (reward, value, terminated, truncated)),
        k_steps=k_steps,
        gamma=gamma,
    )
    for t in range(steps):
        for plan in range(5):
            ended = terminated | truncated
            wanted = slow_target(t, plan, reward, value, ended, terminated, k_steps, gamma)
            assert float(got[t, plan]) == pytest.approx(wanted, abs=1e-12)


def test_targets_of_a_hand_derived_example() -> None:
    # gamma = 1/2, K = 2, four steps of three plans.
    # plan 0 never ends: G_0 = 1 + 2/2 + 12/4 = 5, G_1 = 2 + 4/2 + 16/4 = 8,
    #   G_2 = 4 + 8/2 + 20/4 = 13; the rollout ends: G_3 = 8 + 20/2 = 18.
    # plan 1 is absorbed by its second edit (V = 0): G_0 = 1 + 2/2 = 2, G_1 = 2; then as plan 0.
    # plan 2 is cut off after its second edit: G_0 = 1 + 2/2 + 12/4 = 5, G_1 = 2 + 12/2 = 8.
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None].expand(4, 3)
    value = torch.tensor([10.0, 12.0, 16.0, 20.0])[:, None].expand(4, 3)
    terminated, truncated = torch.zeros(2, 4, 3, dtype=torch.bool)
    terminated[1, 1] = True
    truncated[1, 2] = True
    target = k_step_targets(reward, value, terminated, truncated, k_steps=2, gamma=0.5)
    assert target.T.tolist() == [[5, 8, 13, 18], [2, 2, 13, 18], [5, 8, 13, 18]]


@given(seed=SEEDS, k_steps=st.sampled_from([1, 2, 3, 9, 50]), steps=st.integers(1, 9))
def test_only_the_values_that_targets_bootstrap_with_are_read(
    seed: int, k_steps: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (steps, 5)
    reward, value = (torch.from_numpy(array) for array in rng.standard_normal((2, *shape)))
    terminated = torch.from_numpy(rng.random(shape) < 0.2)
    truncated = torch.from_numpy(rng.random(shape) < 0.2) & ~terminated

    def targets(value: torch.Tensor) -> torch.Tensor:
        return k_step_targets(reward, value, terminated, truncated, k_steps=k_steps, gamma=0.9)

    read = bootstrapped(terminated, truncated, k_steps=k_steps)
    poisoned = value.masked_fill(~read, torch.nan)
    torch.testing.assert_close(targets(poisoned), targets(value), rtol=0.0, atol=0.0)
    for step, plan in read.nonzero().tolist():
        poisoned = value.clone()
        poisoned[step, plan] = torch.nan
        assert targets(poisoned).isnan().any()


def test_value_after_absorption_is_never_read() -> None:
    nothing = torch.zeros(3, 1)
    poison = torch.tensor([[1.0], [float("nan")], [1.0]])
    ended = torch.tensor([[False], [True], [False]])
    target = k_step_targets(nothing, poison, ended, ~ended & False, k_steps=3, gamma=0.9)
    assert bool(target.isfinite().all())


def paths(mdp: TabularMDP, policy: Array, depth: int) -> tuple[Array, Array, Array, Array]:
    """All paths of `depth` edits from every state: source, probability, states, actions.

    A path that ends early repeats its last edit, which the targets must not look at.
    """
    source = np.arange(len(mdp.plans))[:, None]
    states, actions = source, np.zeros((len(mdp.plans), 0), np.int64)
    probability, ended = np.ones(len(source)), np.zeros(len(source), bool)
    for _ in range(depth):
        here = states[:, -1]
        row, action = np.nonzero(mdp.mask[here])
        after = mdp.next_state[here[row], action]
        odds = np.where(
            ended[row], 1.0 / mdp.mask[here].sum(axis=1)[row], policy[here[row], action]
        )
        probability, ended = probability[row] * odds, ended[row] | (after < 0)
        source = source[row]
        actions = np.column_stack([actions[row], action])
        states = np.column_stack([states[row], np.where(after < 0, here[row], after)])
    return source[:, 0], probability, states, actions


def targets_along(
    mdp: TabularMDP, states: Array, actions: Array, reward: Array, value: Array, k_steps: int
) -> Array:
    """`k_step_targets` of the first state of every path."""
    here = states[:, :-1].T
    after = mdp.next_state[here, actions.T]
    tensors = (reward[here, actions.T], value[after], after < 0, np.zeros_like(after, bool))
    target = k_step_targets(*map(torch.from_numpy, tensors), k_steps=k_steps, gamma=mdp.gamma)
    return target[0].numpy()


@pytest.mark.parametrize("depth", [1, 2])
@worlds
def test_expected_targets_are_the_k_step_bellman_operator(
    world: dict[str, object], depth: int
) -> None:
    mdp = tabular(**world)
    policy = random_policy(mdp, 1)
    source, probability, states, actions = paths(mdp, policy, depth)
    number = len(mdp.plans)

    def expected(value: Array) -> Array:
        target = targets_along(mdp, states, actions, mdp.reward, value, depth)
        return np.bincount(source, probability * target, number)

    # T_K V by matrices: T V = R_pi + gamma P_pi V, K times.
    value = np.random.default_rng(0).standard_normal(number)
    wanted = value
    for _ in range(depth):
        wanted = (policy * mdp.action_value(wanted)).sum(axis=1)
    np.testing.assert_allclose(expected(value), wanted, atol=1e-9)
    # V^pi is its fixed point, and it contracts by gamma^K (Prop. 5.1).
    exact = mdp.value(policy)
    np.testing.assert_allclose(expected(exact), exact, atol=1e-9)
    apart = np.abs(expected(value) - exact).max()
    assert apart <= mdp.gamma**depth * np.abs(value - exact).max() + 1e-9


@worlds
def test_along_a_deterministic_policy_every_target_is_the_exact_value(
    world: dict[str, object],
) -> None:
    mdp = tabular(**world)
    policy = deterministic_policy(mdp, 2)
    exact = mdp.value(policy)
    steps = 12
    state, rows = np.arange(len(mdp.plans)), []
    for step in range(steps):
        action = policy[state].argmax(axis=1)
        after = mdp.next_state[state, action]
        cut = np.full(len(state), step % 5 == 4)
        rows.append((mdp.reward[state, action], exact[after], after < 0, cut & (after >= 0), state))
        # What ended starts again, so that the next row belongs to another episode.
        state = np.where((after < 0) | cut, np.roll(np.arange(len(mdp.plans)), step), after)
    reward, value, ended, cut, visited = map(np.stack, zip(*rows, strict=True))
    for k_steps in (1, 3, 8, 20):
        target = k_step_targets(
            *map(torch.from_numpy, (reward, value, ended, cut)), k_steps=k_steps, gamma=mdp.gamma
        )
        np.testing.assert_allclose(target.numpy(), exact[visited], atol=1e-9)


@worlds
def test_exact_advantages_as_control_variate_leave_no_variance(world: dict[str, object]) -> None:
    # r - A = V(s) - gamma V(s') along any path: with exact values every target telescopes to V(s).
    mdp = tabular(**world)
    policy = random_policy(mdp, 3)
    exact = mdp.value(policy)
    source, _, states, actions = paths(mdp, policy, 2)
    target = targets_along(
        mdp, states, actions, mdp.reward - mdp.advantage(policy), exact, k_steps=2
    )
    np.testing.assert_allclose(target, exact[source], atol=1e-9)


@worlds
def test_control_variates_evaluate_a_policy_along_the_edits_of_another(
    world: dict[str, object],
) -> None:
    # `target_policy: improved`: pi made the edits, the advantages are centred under pi_new.
    mdp = tabular(**world)
    improved = random_policy(mdp, 5)
    exact = mdp.value(improved)
    source, _, states, actions = paths(mdp, random_policy(mdp, 3), 2)
    reward = mdp.reward - mdp.advantage(improved)
    target = targets_along(mdp, states, actions, reward, exact, k_steps=2)
    np.testing.assert_allclose(target, exact[source], atol=1e-9)


# --- What the head means and what the loss fits


@worlds
def test_shaped_values_are_sparse_values_minus_the_potential(world: dict[str, object]) -> None:
    shaped, sparse = tabular(**world), tabular(**world, reward="sparse")
    policy = random_policy(shaped, 4)
    sparse_value = sparse.value(policy)
    np.testing.assert_allclose(shaped.value(policy), sparse_value - shaped.phi, atol=1e-6)
    np.testing.assert_allclose(shaped.advantage(policy), sparse.advantage(policy), atol=1e-6)
    assert sparse_value.min() >= 0
    assert sparse_value.max() <= 1
    # Hence a success head that knows P(solve), discounted, gives the shaped value.
    possible = sparse_value > 0
    raw = torch.logit(torch.from_numpy(sparse_value[possible]))
    from_head = shaped_value(raw, torch.from_numpy(shaped.phi[possible]), value="success")
    np.testing.assert_allclose(from_head, shaped.value(policy)[possible], atol=1e-6)


@pytest.mark.parametrize("value", ["success", "score"])
@given(seed=SEEDS)
def test_the_loss_is_least_at_the_mean_of_the_targets(value: str, seed: int) -> None:
    # 40 targets of one state; with a success head they must be values in [0, 1] minus Phi.
    draws = generator(seed)
    phi = torch.rand((), generator=draws, dtype=torch.float64)
    outcome = torch.rand(40, generator=draws, dtype=torch.float64)
    target = outcome - phi if value == "success" else outcome * 7 - 3
    best = target.mean() if value == "score" else torch.logit(outcome.mean())
    raw = best.clone().requires_grad_()
    loss = value_loss(raw.expand(40), target, phi.expand(40), value=value)
    loss.backward()
    assert float(raw.grad) == pytest.approx(0.0, abs=1e-12)
    for off in (-0.1, 0.1):
        worse = value_loss((best + off).expand(40), target, phi.expand(40), value=value)
        assert float(worse) > float(loss.detach())
    torch.testing.assert_close(shaped_value(best[None], phi[None], value=value)[0], target.mean())


# --- Target network


def test_target_network_moves_by_its_rate_and_never_trains() -> None:
    online = small_model(Sudoku(4), 0)
    target = TargetNetwork(online, 0.25)
    start = {name: weight.clone() for name, weight in target.model.named_parameters()}
    assert all(torch.equal(start[name], weight) for name, weight in online.named_parameters())
    with torch.no_grad():
        for weight in online.parameters():
            weight.add_(1.0)
    for _ in range(3):
        target.update(online)
    # psi_bar = psi + (1 - rate)^3 (psi_0 - psi), psi_0 - psi = -1.
    for name, weight in target.model.named_parameters():
        assert not weight.requires_grad
        torch.testing.assert_close(weight, start[name] + 1.0 - 0.75**3)


# --- Batches


@pytest.mark.parametrize("update_map", ["mlp", "relational"])
def test_evaluation_by_chunks_equals_evaluation_at_once(update_map: str) -> None:
    domain = Sudoku(4)
    model, states = small_model(domain, update_map=update_map), random_states(domain, 10)
    phi = torch.rand(10, generator=generator())
    whole = evaluate_states(model, states, phi, value="success")
    parts = evaluate_states(model, states, phi, value="success", chunk=3)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    raw = model(states)[0].detach()
    torch.testing.assert_close(whole, torch.sigmoid(raw) - phi, atol=1e-6, rtol=1e-5)
    assert not whole.requires_grad


def test_no_states_have_no_values() -> None:
    domain = Sudoku(4)
    nothing = np.zeros((0, 16), np.int8)
    states = states_of(domain, nothing, nothing)
    assert evaluate_states(small_model(domain), states, torch.zeros(0), value="score").shape == (0,)


@pytest.mark.parametrize(
    ("count", "batch_size", "passes", "batches"),
    [(10, 4, 2.0, 5), (10, 4, 1.0, 2), (10, 100, 3.0, 1), (100, 8, 0.5, 6), (5, 5, 4.0, 4)],
)
def test_minibatches_are_as_many_as_the_passes_say(
    count: int, batch_size: int, passes: float, batches: int
) -> None:
    found = minibatches(count, batch_size=batch_size, passes=passes, generator=generator())
    assert len(found) == batches
    assert all(0 < len(index) <= batch_size for index in found)


def test_minibatches_visit_every_row_once_in_a_pass_and_reshuffle() -> None:
    found = minibatches(12, batch_size=4, passes=3.0, generator=generator())
    orders = [torch.cat(found[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_model_shape_copies_the_tables_of_the_domain() -> None:
    spec = Sudoku(4).spec
    shape = model_shape(spec)
    assert (shape.num_cells, shape.num_values, shape.num_actions) == (16, 4, 97)
    assert shape.action_cell.tolist() == spec.action_cell.tolist()
    assert {name: label.tolist() for name, label in shape.groups.items()} == {
        name: label.tolist() for name, label in spec.groups.items()
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gamma": 0.0}, "evaluator.gamma must lie in"),
        ({"gamma": 1.01}, "evaluator.gamma must lie in"),
        ({"target_rate": 0.0}, "evaluator.target_rate must lie in"),
        ({"k_steps": 0}, "evaluator.k_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "evaluator.batch_size must be at least 1, got 0"),
        ({"replay_iterations": 0}, "evaluator.replay_iterations must be at least 1, got 0"),
        ({"passes": 0.0}, "evaluator.passes must be positive"),
        ({"learning_rate": -1.0}, "evaluator.learning_rate must be positive"),
    ],
)
def test_a_bad_setting_is_named(config: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluatorConfig(**config)


# --- Corrections of edit values


@given(seed=SEEDS, gamma=st.sampled_from([0.5, 0.9, 1.0]))
def test_a_corrected_success_is_the_heads_logit_plus_the_correction(
    seed: int, gamma: float
) -> None:
    draws = generator(seed)
    logit, correction = (2 * torch.randn(4, 3, generator=draws) for _ in range(2))
    phi = torch.rand(4, 1, generator=draws)
    q = gamma * torch.sigmoid(logit) - phi
    found = corrected_values(q, correction, phi, EvaluatorConfig(gamma=gamma, value="success"))
    wanted = gamma * torch.sigmoid(logit + correction) - phi
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    score = corrected_values(q, correction, phi, EvaluatorConfig(gamma=gamma, value="score"))
    assert torch.equal(score, q + correction)


@pytest.mark.parametrize("value", ["success", "score"])
def test_the_correction_of_least_loss_is_right_on_average(
    value: Literal["success", "score"],
) -> None:
    """Ten edits that look alike and return 1 three times: the corrected value becomes 0.3."""
    phi, q = torch.full((10,), 0.2), torch.full((10,), 0.5 * 0.9 - 0.2)
    target = (torch.arange(10) < 3).float() * 0.9 - phi
    right = torch.logit(torch.tensor(0.3)) if value == "success" else torch.tensor(-0.18)
    config, slopes = EvaluatorConfig(gamma=0.9, value=value), []
    for wrong_by in (-0.5, 0.0, 0.5):
        correction = (right + wrong_by).expand(10).clone().requires_grad_()
        loss = correction_loss(q, correction, target, phi, config)
        (slope,) = torch.autograd.grad(loss, correction)
        slopes.append(float(slope.sum()))
    assert slopes == [pytest.approx(-abs(slopes[0])), pytest.approx(0, abs=1e-5), abs(slopes[2])]
    assert min(abs(slopes[0]), slopes[2]) > 0.01
    found = corrected_values(q, right.expand(10), phi, config)
    torch.testing.assert_close(found, torch.full((10,), 0.3 * 0.9 - 0.2), atol=1e-5, rtol=0)
