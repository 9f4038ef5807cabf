"""No algorithm ever chooses an illegal edit, and its networks are those of UPI-TRM."""

from typing import Any

import numpy as np
import pytest
import torch
from baselines_cases import Judged, judge_of, make_env, tiny_model
from stable_baselines3.common.base_class import BaseAlgorithm

from baselines.algorithms import (
    METHODS,
    A2cConfig,
    Algorithm,
    DqnConfig,
    PpoConfig,
    make_algorithm,
    networks_of,
)
from baselines.masked_sb3 import (
    MaskedDQN,
    dueling_values,
    random_legal,
)
from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.catalogue import resolve_task
from trm.nn.model import ILLEGAL_LOGIT, ModelConfig
from upi_trm.learner import LearnerConfig, UpiLearner

STEPS = 4
ALGORITHMS: tuple[Algorithm, ...] = tuple(METHODS)


def section_of(algorithm: Algorithm, **options: Any) -> Any:
    """Few and small updates; both random branches of DQN are taken."""
    if algorithm == "a2c":
        return A2cConfig(**options)
    if algorithm == "dqn":
        small = {"replay_size": 400, "learning_starts": 40, "batch_size": 16, "target_every": 32}
        return DqnConfig(**{**small, "gradient_steps": 1, "epsilon_end": 0.3, **options})
    return PpoConfig(**{"batch_size": 8, "passes": 1, **options})


def build(
    algorithm: Algorithm,
    env: PlanEditVecEnv,
    *,
    model: ModelConfig | None = None,
    seed: int = 0,
    **options: Any,
) -> BaseAlgorithm:
    return make_algorithm(
        algorithm,
        section_of(algorithm, **options),
        env,
        model or tiny_model(env.vector_env.task),
        steps=STEPS,
        gamma=0.99,
        final_learning_rate=1.0,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )


def judged(name: str, algorithm: Algorithm, plans: int, **options: Any) -> tuple[Any, Judged]:
    """An algorithm whose environments stand behind a judge."""
    env = make_env(name, plans=plans)
    sb3: Any = build(algorithm, env, **options)
    sb3.env = Judged(env, judge_of(name))
    return sb3, sb3.env


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What SB3 draws from; nobody else in these tests."""
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


# --- 0 illegal actions


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("name", "edits"),
    [("sudoku4x4", 160), ("sudoku9x9", 320), ("nqueens8", 160), ("maze10", 160)],
)
def test_no_edit_of_training_or_prediction_is_illegal(
    algorithm: Algorithm, name: str, edits: int
) -> None:
    sb3, judge = judged(name, algorithm, plans=16)
    sb3.learn(edits, log_interval=None)
    assert judge.seen >= edits
    assert judge.illegal == 0
    observation = judge.reset()
    for step in range(8):
        actions, _ = sb3.predict(observation, deterministic=step % 2 == 0)
        observation = judge.step(actions)[0]
    assert judge.illegal == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_9061_actions_pass_every_check_of_the_distributions(algorithm: Algorithm) -> None:
    """Older versions failed at a probability simplex check from 600 actions on."""
    sb3, judge = judged(
        "arc", algorithm, plans=2, **({"replay_size": 60} if algorithm == "dqn" else {})
    )
    sb3.learn(56, log_interval=None)
    assert judge.seen >= 56
    assert judge.illegal == 0


def test_the_judge_objects_to_what_the_rules_forbid() -> None:
    """Uniformly drawn actions, most of them illegal: he agrees with the environments on each."""
    rng = np.random.default_rng(0)
    for name in ("sudoku4x4", "sudoku9x9", "nqueens8", "maze10", "arc"):
        env = make_env(name, plans=16)
        judge, observation = judge_of(name), env.reset()
        illegal = 0
        for _ in range(12):
            legal = env.env_method("sample_legal")
            actions = np.where(
                rng.random(16) < 0.5, legal, rng.integers(env.action_space.n, size=16)
            )
            boards = zip(observation["instance"], observation["plan"], actions, strict=True)
            allowed = [judge(instance, plan, int(action)) for instance, plan, action in boards]
            observation, _, _, infos = env.step(actions)
            refused = [
                info.get("illegal_action", bool(now))
                for info, now in zip(infos, env._out.illegal_action, strict=True)
            ]
            assert allowed == [not one for one in refused], name
            illegal += 16 - sum(allowed)
        assert illegal > 10, name


# --- Distributions and action values


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "maskable-ppo"])
def test_probability_and_entropy_are_those_of_a_softmax_over_the_legal_edits(
    algorithm: Any,
) -> None:
    env = make_env("sudoku9x9", plans=6)
    policy: Any = build(algorithm, env).policy
    observation = {key: torch.from_numpy(value) for key, value in env.reset().items()}
    legal = observation["action_mask"] > 0
    chosen = torch.tensor([int(row.nonzero()[0]) for row in legal])
    extracted = policy.extract_features(observation)[:, 1:]
    expected = [torch.log_softmax(row[mask], 0) for row, mask in zip(extracted, legal, strict=True)]
    found = policy.get_distribution(observation).distribution
    assert (found.probs[~legal] == 0).all()
    for row, log_p in enumerate(expected):
        assert torch.allclose(found.probs[row][legal[row]].log(), log_p, atol=1e-5)
    _, log_prob, entropy = policy.evaluate_actions(observation, chosen)
    assert torch.allclose(log_prob, torch.stack([log_p[0] for log_p in expected]), atol=1e-5)
    entropies = torch.stack([-(log_p.exp() * log_p).sum() for log_p in expected])
    assert torch.allclose(entropy, entropies, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_mask_outlives_the_call_it_came_with(algorithm: Algorithm) -> None:
    """Predictions for one batch do not depend on what another way through the policy saw before."""
    env = make_env("sudoku4x4", plans=8)
    sb3 = build(algorithm, env)
    first = env.reset()
    second = env.step(env.env_method("sample_legal"))[0]
    expected, _ = sb3.predict(second, deterministic=True)
    tensors = {key: torch.from_numpy(value) for key, value in first.items()}
    policy: Any = sb3.policy
    policy(tensors)
    if algorithm != "dqn":
        policy.evaluate_actions(tensors, torch.zeros(8, dtype=torch.long))
        policy.predict_values(tensors)
    found, _ = sb3.predict(second, deterministic=True)
    assert np.array_equal(found, expected)
    single = {key: value[3] for key, value in second.items()}
    alone, _ = sb3.predict(single, deterministic=True)
    assert alone.shape == () and alone == expected[3]


def test_dueling_values_are_centred_over_the_legal_edits() -> None:
    """By hand: A = (1, 3) on the legal edits has mean 2; the third is masked, whatever it says."""
    value, advantage = torch.tensor([[10.0], [7.0]]), torch.tensor([[1.0, 3.0, 99.0]] * 2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = dueling_values(value, advantage, mask)
    assert found[0].tolist() == [9.0, 11.0, ILLEGAL_LOGIT]
    assert found[1].tolist() == [ILLEGAL_LOGIT] * 3


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("name", ["sudoku9x9", "nqueens8", "maze10"])
def test_states_without_a_legal_edit_have_finite_values_and_gradients(
    name: str, dueling: bool
) -> None:
    """A solved board: its value is multiplied by 0, which only NaN and infinity survive."""
    env = make_env(name, plans=2)
    sb3: Any = build("dqn", env, dueling=dueling)
    pool = env.vector_env.instances
    observation = env.reset()
    observation["instance"][0] = pool.instances[0]
    observation["plan"][0] = pool.solutions[0]
    observation["action_mask"][0] = 0
    tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
    values = sb3.q_net(tensors)
    assert torch.isfinite(values).all()
    values.max(dim=1).values[1].backward()
    gradients = [p.grad for p in sb3.q_net.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


# --- Exploration


def test_random_edits_are_uniform_over_the_legal_ones() -> None:
    masks = np.zeros((6000, 7), np.int8)
    masks[:, [1, 2, 6]] = 1
    counts = np.bincount(random_legal(masks), minlength=7)
    assert counts[[0, 3, 4, 5]].sum() == 0
    # Each count is binomial(6000, 1/3): standard deviation 36.5.
    assert np.abs(counts[[1, 2, 6]] - 2000).max() < 4 * 36.5


@pytest.mark.parametrize("draw", ["together", "each"])
def test_plans_explore_together_or_each_by_itself(draw: Any) -> None:
    env = make_env("sudoku9x9", plans=16)
    sb3 = build("dqn", env, epsilon_draw=draw)
    assert isinstance(sb3, MaskedDQN)
    sb3.exploration_rate = 0.5
    observation = env.reset()
    greedy, _ = sb3.predict(observation, deterministic=True)
    # A random edit of about 150 legal ones is hardly ever the greedy one.
    shares = [np.mean(sb3.predict(observation)[0] != greedy) for _ in range(40)]
    extreme = sum(share == 0 or share > 0.8 for share in shares)
    assert extreme == 40 if draw == "together" else extreme == 0
    assert 0.3 < np.mean(shares) < 0.7


# --- The same network


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("update_map", ["relational", "mlp", "mixer"])
def test_the_policy_has_exactly_the_parameters_of_upi_trms_policy(
    algorithm: Algorithm, update_map: Any
) -> None:
    config = ModelConfig(update_map=update_map, channels=8, head_width=10, depth=2)
    domain = resolve_task("sudoku4x4").domain
    generators = [torch.Generator() for _ in range(3)]
    upi = UpiLearner(
        domain,
        LearnerConfig(model=config),
        dead_end="absorb",
        device=torch.device("cpu"),
        init=generators[0],
        noise=generators[1],
        actions=generators[2],
        lessons=np.random.default_rng(0),
    )
    sb3 = build(algorithm, make_env("sudoku4x4"), model=config)
    networks = networks_of(sb3)
    theirs = {name: tensor.shape for name, tensor in upi.policy.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in networks["policy"].state_dict().items()}
    assert ours == theirs
    # All of SB3's parameters are the networks': heads, dummies and action nets add none.
    total = sum(p.numel() for network in networks.values() for p in network.parameters())
    assert sum(p.numel() for p in sb3.policy.parameters()) == total


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "maskable-ppo"])
def test_a_critic_of_its_own_shares_nothing_with_the_actor(algorithm: Any) -> None:
    env = make_env("sudoku4x4", plans=8)
    sb3: Any = build(algorithm, env, own_critic=True)
    networks = networks_of(sb3)
    actor, critic = (dict(networks[role].named_parameters()) for role in ("policy", "critic"))
    assert actor.keys() == critic.keys()
    assert not any(actor[name] is critic[name] for name in actor)
    observation = {key: torch.from_numpy(value) for key, value in env.reset().items()}
    values, log_prob, _ = sb3.policy.evaluate_actions(
        observation, observation["action_mask"].argmax(dim=1)
    )
    values.sum().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in actor.values())
    assert critic["value_out.weight"].grad is not None
    log_prob.sum().backward()
    assert actor["edit_out.weight"].grad is not None
    assert critic["edit_out.weight"].grad is None
    shared: Any = build(algorithm, env, own_critic=False)
    assert set(networks_of(shared)) == {"policy"}


def test_the_recursion_depth_of_the_recipe_is_the_one_that_runs() -> None:
    env = make_env("sudoku4x4", plans=2)
    observation = {key: torch.from_numpy(value) for key, value in env.reset().items()}
    seen = {}
    for depth in (0, 1, 3):
        config = ModelConfig(channels=6, head_width=6, depth=depth)
        sb3: Any = build("ppo", env, model=config)
        seen[depth] = sb3.policy.predict_values(observation)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[3])
