"""Lookahead against an explicit loop, exact centring, and GAE against its closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import CPU, generator, random_boards
from numpy.typing import NDArray
from tabular import FILL, FULL, OVERWRITE, random_policy, tabular
from torch import Tensor

from plan_envs.domain import DeadEnd, Int8Array, edit_reward, potential
from plan_envs.sudoku.rules import Sudoku
from trm.experiments.states import Boards
from upi_trm.advantage import centred_advantage, centring_defect, look_ahead
from upi_trm.gae import gae

SEEDS = st.integers(0, 10_000)
GAMMA = 0.9


class HashedValue:
    """A value that differs from plan to plan, and remembers what it was asked."""

    def __init__(self, domain: Sudoku) -> None:
        self.domain = domain
        self.asked: list[tuple[bytes, bytes]] = []

    def __call__(
        self, boards: Boards, score: NDArray[np.float32], parents: NDArray[np.int64]
    ) -> Tensor:
        instances, plans = boards.instances, boards.plans
        self.asked += [(x.tobytes(), y.tobytes()) for x, y in zip(instances, plans, strict=True)]
        assert np.array_equal(score, self.domain.check(instances, plans).score)
        return torch.from_numpy(self.of(instances, plans))

    @staticmethod
    def of(instances: Int8Array, plans: Int8Array) -> NDArray[np.float32]:
        weight = np.sin(np.arange(1, 2 * plans.shape[1] + 1) * 1.7)
        boards = np.concatenate([instances, plans], axis=1)
        return np.sin(boards @ weight).astype(np.float32)


DOMAINS = {
    "fill, givens mask": Sudoku(4, "digits", "fill", "givens"),
    "fill, constraint mask": Sudoku(4, "digits", "fill", "constraint"),
    "overwrite": Sudoku(4, "digits", "overwrite", "givens"),
    "full": Sudoku(4),
    "9x9": Sudoku(9),
}


def live_boards(
    domain: Sudoku, dead_end: DeadEnd, count: int, seed: int
) -> tuple[Int8Array, Int8Array]:
    """Random plans from which an edit can be made."""
    wrong = 0.0 if domain.side == 9 else 0.3
    instances, plans = random_boards(domain.side, count, seed, wrong=wrong)
    verdict = domain.check(instances, plans)
    live = ~verdict.solved & domain.action_mask(instances, plans).any(axis=1)
    if dead_end == "absorb":
        live &= ~verdict.dead
    return instances[live], plans[live]


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS.keys())
@pytest.mark.parametrize("dead_end", ["absorb", "continue"])
def test_lookahead_matches_a_loop_over_edits(domain: Sudoku, dead_end: DeadEnd) -> None:
    instances, plans = live_boards(domain, dead_end, 6 if domain.side == 9 else 24, seed=3)
    value = HashedValue(domain)
    ahead = look_ahead(
        domain,
        Boards(instances=instances, plans=plans),
        value,
        gamma=GAMMA,
        dead_end=dead_end,
        device=CPU,
    )
    mask = domain.action_mask(instances, plans)
    assert len(plans) > 2
    assert torch.equal(ahead.mask, torch.from_numpy(mask > 0))
    needed = set()
    for i in range(len(plans)):
        x, y = instances[i : i + 1], plans[i : i + 1]
        phi = potential(domain.check(x, y).score, domain.spec.max_score)
        for action in range(domain.spec.num_actions):
            if not mask[i, action]:
                assert float(ahead.q[i, action]) == 0.0
                continue
            chosen = np.array([action], np.int32)
            after = domain.edit(x, y, chosen)
            verdict = domain.check(x, after)
            absorbed = (
                verdict.solved
                | domain.is_stop(chosen)
                | (verdict.dead & (dead_end == "absorb"))
                | ~domain.action_mask(x, after).any(axis=1)
            )
            next_phi = potential(verdict.score, domain.spec.max_score)
            reward = edit_reward(
                phi, next_phi, solved=verdict.solved, absorbed=absorbed, gamma=GAMMA
            )
            wanted = float(reward[0])
            if not absorbed[0]:
                wanted += GAMMA * float(HashedValue.of(x, after)[0])
                needed.add((x[0].tobytes(), after[0].tobytes()))
            assert float(ahead.q[i, action]) == pytest.approx(wanted, abs=1e-5)
    assert sorted(value.asked) == sorted(needed), "every live successor once, no other"
    assert ahead.num_evaluated == len(needed)
    assert ahead.num_successors == int(mask.sum())


def test_equal_plans_of_different_instances_are_different_states() -> None:
    # The same plan, reached from puzzles with other givens.
    domain = Sudoku(4, "digits", "overwrite", "givens")
    plan = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 0, 0, 0, 0]], np.int8)
    fewer = plan.copy()
    fewer[0, :4] = 0
    value = HashedValue(domain)
    instances, plans = np.concatenate([plan, fewer]), np.concatenate([plan, plan])
    ahead = look_ahead(
        domain,
        Boards(instances=instances, plans=plans),
        value,
        gamma=GAMMA,
        dead_end="absorb",
        device=CPU,
    )
    both = ahead.mask.all(dim=0)
    assert int(both.sum()) == 16
    assert not torch.isclose(ahead.q[0, both], ahead.q[1, both], atol=1e-3).any()


def test_states_whose_every_edit_ends_need_no_network() -> None:
    # One blank and constraint mask: the only edit solves the puzzle.
    domain = Sudoku(4, "digits", "fill", "constraint")
    plan = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 0]], np.int8)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("asked for a value")

    ahead = look_ahead(
        domain,
        Boards(instances=plan, plans=plan),
        refuse,
        gamma=GAMMA,
        dead_end="absorb",
        device=CPU,
    )
    assert (ahead.num_evaluated, ahead.num_successors) == (0, 1)
    # r = 1 - Phi, Phi = 15 / 16.
    assert ahead.q.sum() == pytest.approx(1 / 16)


@pytest.mark.parametrize("domain", [FILL, OVERWRITE, FULL], ids=["fill", "overwrite", "full"])
@pytest.mark.parametrize("dead_end", ["absorb", "continue"])
def test_lookahead_with_exact_values_gives_exact_action_values(
    domain: Sudoku, dead_end: DeadEnd
) -> None:
    mdp = tabular(domain, gamma=GAMMA, dead_end=dead_end)
    policy = random_policy(mdp, 0)
    exact = mdp.value(policy)

    def state_value(
        boards: Boards, score: NDArray[np.float32], parents: NDArray[np.int64]
    ) -> Tensor:
        return torch.from_numpy(exact[mdp.index(boards.plans)].astype(np.float32))

    ahead = look_ahead(
        domain,
        Boards(instances=mdp.instances, plans=mdp.plans),
        state_value,
        gamma=GAMMA,
        dead_end=dead_end,
        device=CPU,
    )
    np.testing.assert_array_equal(ahead.mask.numpy(), mdp.mask)
    np.testing.assert_allclose(ahead.q.numpy(), mdp.action_value(exact), atol=1e-5)
    pi = torch.from_numpy(policy.astype(np.float32))
    advantage = centred_advantage(ahead.q, pi, ahead.mask)
    np.testing.assert_allclose(advantage.numpy(), mdp.advantage(policy), atol=1e-5)


# --- Centring


def random_case(seed: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, policy and mask of 6 states with 9 edits."""
    draws = generator(seed)
    mask = torch.rand(6, 9, generator=draws) < 0.6
    mask[:, 4] = True
    logits = torch.randn(6, 9, generator=draws) * 3
    policy = torch.softmax(logits.masked_fill(~mask, -1e9), dim=1)
    q = torch.randn(6, 9, generator=draws) * scale
    return q, policy, mask


@given(seed=SEEDS)
def test_centring_is_exact_for_any_policy_whatever_stands_at_illegal_edits(seed: int) -> None:
    q, policy, mask = random_case(seed)
    q = torch.where(mask, q, torch.full_like(q, 1e30))
    advantage = centred_advantage(q, policy, mask)
    assert float(centring_defect(advantage, policy).max()) <= 1e-6
    assert bool((advantage[~mask] == 0).all())
    # Only a constant per state is taken away.
    shift = torch.where(mask, q - advantage, torch.zeros_like(q))
    for row in range(6):
        values = shift[row][mask[row]]
        torch.testing.assert_close(values, values[:1].expand_as(values), atol=1e-5, rtol=0)


def test_centring_defect_of_a_hand_derived_example() -> None:
    # 0.25 * 2 + 0.75 * (-1) = -0.25
    advantage, policy = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.25, 0.75]])
    assert centring_defect(advantage, policy).tolist() == [0.25]


def test_a_state_without_a_legal_edit_is_named() -> None:
    q, policy, mask = random_case(0)
    mask[3] = False
    with pytest.raises(ValueError, match="state 3 has no legal edit"):
        centred_advantage(q, policy, mask)


# --- Generalised advantage estimates


def random_rollout(seed: int, steps: int = 7, plans: int = 4) -> tuple[Tensor, ...]:
    """reward, value, next_value, terminated, truncated; values chain within an episode."""
    draws = generator(seed)
    shape = (steps, plans)
    reward, value, after = torch.randn(3, *shape, generator=draws, dtype=torch.float64)
    terminated = torch.rand(shape, generator=draws) < 0.2
    truncated = (torch.rand(shape, generator=draws) < 0.2) & ~terminated
    goes_on = ~(terminated | truncated)
    next_value = after.clone()
    next_value[:-1] = torch.where(goes_on[:-1], value[1:], after[:-1])
    return reward, value, next_value, terminated, truncated


@given(seed=SEEDS, decay=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_gae_is_the_decayed_sum_of_differences_until_the_episode_ends(
    seed: int, decay: float
) -> None:
    case = random_rollout(seed)
    reward, value, next_value, terminated, truncated = case
    got = gae(*case, gamma=GAMMA, decay=decay)
    for t in range(7):
        for plan in range(4):
            total, weight = 0.0, 1.0
            for k in range(t, 7):
                after = 0.0 if terminated[k, plan] else float(next_value[k, plan])
                total += weight * float(reward[k, plan] + GAMMA * after - value[k, plan])
                weight *= GAMMA * decay
                if terminated[k, plan] or truncated[k, plan]:
                    break
            assert float(got[t, plan]) == pytest.approx(total, abs=1e-12)


@given(seed=SEEDS)
def test_gae_without_decay_is_the_return_minus_the_value(seed: int) -> None:
    # lambda = 1 telescopes: discounted rewards, then the value where the episode was cut off.
    case = random_rollout(seed)
    reward, value, next_value, terminated, truncated = case
    got = gae(*case, gamma=GAMMA, decay=1.0)
    for plan in range(4):
        for t in range(7):
            total, discount = 0.0, 1.0
            for k in range(t, 7):
                total += discount * float(reward[k, plan])
                discount *= GAMMA
                if terminated[k, plan] or truncated[k, plan]:
                    break
            if not terminated[k, plan]:
                total += discount * float(next_value[k, plan])
            wanted = total - float(value[t, plan])
            assert float(got[t, plan]) == pytest.approx(wanted, abs=1e-12)


def test_gae_with_full_decay_is_the_one_step_difference() -> None:
    reward, value, next_value, terminated, truncated = random_rollout(1)
    got = gae(reward, value, next_value, terminated, truncated, gamma=GAMMA, decay=0.0)
    after = torch.where(terminated, 0.0, next_value)
    torch.testing.assert_close(got, reward + GAMMA * after - value)


def test_gae_of_exact_values_is_centred_where_its_defect_is_zero() -> None:
    # With V = V^pi and lambda = 0, the mean of GAE over the edits of a state is E_pi[A] = 0.
    mdp = tabular(OVERWRITE, gamma=GAMMA)
    policy = random_policy(mdp, 5)
    exact = mdp.value(policy)
    state, action = np.nonzero(mdp.mask)
    after = mdp.next_state[state, action]
    row = [mdp.reward[state, action], exact[state], exact[after], after < 0, after < -1]
    estimates = gae(*(torch.from_numpy(a[None]) for a in row), gamma=GAMMA, decay=0.0)
    advantage = np.zeros(mdp.mask.shape)
    advantage[state, action] = estimates[0].numpy()
    defect = centring_defect(torch.from_numpy(advantage), torch.from_numpy(policy))
    assert float(defect.max()) <= 1e-9
    off = centring_defect(torch.from_numpy(advantage + 0.01), torch.from_numpy(policy))
    assert off.numpy() == pytest.approx(0.01)
