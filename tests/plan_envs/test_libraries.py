"""What other people's libraries do with the environments: checkers, wrappers, collectors, learners.

A library that is not installed is skipped with its name. The page docs/environments/libraries.md
says what these tests show; a wrapper that can't work is named here with the library's own reason.
"""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium.wrappers as single
import gymnasium.wrappers.vector as many
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.vector import AutoresetMode

import plan_envs
from plan_envs.vector_env import PlanEditVectorEnv

ENV_ID = "PlanEdit/Sudoku4x4-v0"
FLAT = 16 + 16 + 97
MODES = [pytest.param(mode, id=mode.name) for mode in AutoresetMode]
Wrap = Callable[[Any], Any]


def flat(env: Any) -> Any:
    return single.FlattenObservation(env)


def plans(env: Any) -> Any:
    space = env.observation_space["plan"]
    return single.TransformObservation(env, lambda seen: seen["plan"], space)


SINGLE: dict[str, Wrap] = {
    "DelayObservation": lambda env: single.DelayObservation(env, 2),
    "DtypeObservation": lambda env: single.DtypeObservation(flat(env), np.float32),
    "DiscretizeObservation": lambda env: single.DiscretizeObservation(plans(env), 5),
    "FilterObservation": lambda env: single.FilterObservation(env, ["plan", "action_mask"]),
    "FlattenObservation": flat,
    "FrameStackObservation": lambda env: single.FrameStackObservation(env, 2),
    "TransformObservation": plans,
    "MaxAndSkipObservation": lambda env: single.MaxAndSkipObservation(plans(env), 2),
    "NormalizeObservation": lambda env: single.NormalizeObservation(flat(env)),
    "ReshapeObservation": lambda env: single.ReshapeObservation(flat(env), (3, FLAT // 3)),
    "RescaleObservation": lambda env: single.RescaleObservation(
        single.DtypeObservation(flat(env), np.float32), np.float32(0), np.float32(1)
    ),
    "TimeAwareObservation": lambda env: single.TimeAwareObservation(env, flatten=False),
    "TransformAction": lambda env: single.TransformAction(env, lambda action: action, None),
    "StickyAction": lambda env: single.StickyAction(env, 0.2),
    "RepeatAction": lambda env: single.RepeatAction(env, 2),
    "ClipReward": lambda env: single.ClipReward(env, -1, 1),
    "TransformReward": lambda env: single.TransformReward(env, lambda reward: 2 * float(reward)),
    "NormalizeReward": lambda env: single.NormalizeReward(env),
    "TimeLimit": lambda env: single.TimeLimit(env, 5),
    "Autoreset": lambda env: single.Autoreset(env),
    "PassiveEnvChecker": lambda env: single.PassiveEnvChecker(env),
    "OrderEnforcing": lambda env: single.OrderEnforcing(env),
    "RecordEpisodeStatistics": lambda env: single.RecordEpisodeStatistics(env),
    "AddRenderObservation": lambda env: single.AddRenderObservation(env, render_only=False),
    "GrayscaleObservation": lambda env: single.GrayscaleObservation(
        single.AddRenderObservation(env)
    ),
    "ResizeObservation": lambda env: single.ResizeObservation(
        single.AddRenderObservation(env), (32, 32)
    ),
    "AddWhiteNoise": lambda env: single.AddWhiteNoise(env, 0.1),
    "ObstructView": lambda env: single.ObstructView(env, 0.1, 2),
    "RenderCollection": lambda env: single.RenderCollection(env),
    "HumanRendering": lambda env: single.HumanRendering(env),
    "NumpyToTorch": lambda env: single.NumpyToTorch(env),
    "RecordVideo": lambda env: single.RecordVideo(env, env.folder),
}
"""Wrapper -> how it is put around a single environment."""

NOT_SINGLE: dict[str, tuple[Wrap, str]] = {
    "DtypeObservation": (lambda env: single.DtypeObservation(env, np.float32), "Dict"),
    "DiscretizeObservation": (
        lambda env: single.DiscretizeObservation(env, 5),
        "only compatible with Box continuous",
    ),
    "MaxAndSkipObservation": (lambda env: single.MaxAndSkipObservation(env, 2), "shape"),
    "NormalizeObservation": (lambda env: single.NormalizeObservation(env), "shape"),
    "ClipAction": (lambda env: single.ClipAction(env), "requires a Box action space"),
    "DiscretizeAction": (lambda env: single.DiscretizeAction(env, 5), "Box continuous actions"),
    "RescaleAction": (
        lambda env: single.RescaleAction(env, np.float32(0), np.float32(1)),
        "requires a Box action space",
    ),
}
"""Wrapper -> how it refuses observations of several parts, or actions that are no numbers."""

NOT_MEANT = {"AtariPreprocessing", "ArrayConversion", "JaxToNumpy", "JaxToTorch"}
"""For games of the Atari, and for environments that are written in JAX."""

VECTOR: dict[str, Wrap] = {
    "VectorizeTransformObservation": lambda env: many.VectorizeTransformObservation(
        env, single.FilterObservation, filter_keys=["plan", "action_mask"]
    ),
    "VectorizeTransformAction": lambda env: many.VectorizeTransformAction(
        env, single.TransformAction, func=lambda action: action, action_space=None
    ),
    "VectorizeTransformReward": lambda env: many.VectorizeTransformReward(
        env, single.ClipReward, min_reward=-1, max_reward=1
    ),
    "DictInfoToList": lambda env: many.DictInfoToList(env),
    "TransformObservation": lambda env: many.TransformObservation(
        env,
        lambda seen: seen["plan"],
        env.observation_space["plan"],
        env.single_observation_space["plan"],
    ),
    "FilterObservation": lambda env: many.FilterObservation(env, ["plan", "action_mask"]),
    "FlattenObservation": lambda env: many.FlattenObservation(env),
    "ReshapeObservation": lambda env: many.ReshapeObservation(
        many.FlattenObservation(env), (3, FLAT // 3)
    ),
    "RescaleObservation": lambda env: many.RescaleObservation(
        many.DtypeObservation(many.FlattenObservation(env), np.float32),
        np.float32(0),
        np.float32(1),
    ),
    "DtypeObservation": lambda env: many.DtypeObservation(many.FlattenObservation(env), np.float32),
    "NormalizeObservation": lambda env: many.NormalizeObservation(many.FlattenObservation(env)),
    "TransformAction": lambda env: many.TransformAction(env, lambda actions: actions, None),
    "TransformReward": lambda env: many.TransformReward(env, lambda rewards: 2 * rewards),
    "ClipReward": lambda env: many.ClipReward(env, -1, 1),
    "NormalizeReward": lambda env: many.NormalizeReward(env),
    "RecordEpisodeStatistics": lambda env: many.RecordEpisodeStatistics(env),
    "HumanRendering": lambda env: many.HumanRendering(env),
    "NumpyToTorch": lambda env: many.NumpyToTorch(env),
    "RecordVideo": lambda env: many.RecordVideo(env, env.folder),
}
"""Wrapper -> how it is put around a vector environment."""

_OF_OBSERVATIONS = {name for name in VECTOR if name.endswith("Observation")}
GYMNASIUM_REFUSES = {
    AutoresetMode.NEXT_STEP: set(),
    AutoresetMode.SAME_STEP: _OF_OBSERVATIONS,
    AutoresetMode.DISABLED: {"NormalizeObservation"},
}
"""Vector wrappers that take no environment in this mode, whoever wrote it."""

NOT_VECTOR: dict[str, tuple[Wrap, str]] = {
    "ClipAction": (lambda env: many.ClipAction(env), "Box"),
    "RescaleAction": (lambda env: many.RescaleAction(env, 0, 1), "Box"),
    "GrayscaleObservation": (lambda env: many.GrayscaleObservation(env), "Dict"),
    "ResizeObservation": (lambda env: many.ResizeObservation(env, (32, 32)), "Dict"),
}
"""Wrapper -> how it refuses actions that are no numbers, or boards that are no pictures."""


@contextlib.contextmanager
def parts_may_be_missing(name: str) -> Any:
    """Skip where a wrapper needs a library that is not installed."""
    try:
        yield
    except (DependencyNotInstalled, ModuleNotFoundError) as error:
        pytest.skip(f"{name}: {error}")


def test_every_wrapper_of_gymnasium_has_its_place_here() -> None:
    assert set(single.__all__) - {"vector"} == {*SINGLE, *NOT_SINGLE, *NOT_MEANT}
    assert set(many.__all__) == {*VECTOR, *NOT_VECTOR, *(NOT_MEANT - {"AtariPreprocessing"})}


@pytest.mark.parametrize("name", SINGLE)
def test_a_wrapper_takes_the_single_environment(name: str, tmp_path: Path) -> None:
    bare: Any = gym.make(ENV_ID, render_mode="rgb_array")
    bare.folder = str(tmp_path / "videos")
    with parts_may_be_missing(name):
        env = SINGLE[name](bare)
        observation, _ = env.reset(seed=0)
        endings = 0
        for _ in range(40):
            if name != "NumpyToTorch":
                assert env.observation_space.contains(observation)
            try:
                action = env.unwrapped.sample_legal()
            except ResetNeeded:
                action = 0  # the wrapper `Autoreset` takes any
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                endings += 1
                if name != "Autoreset":
                    observation, _ = env.reset()
        env.close()
    assert endings > 2


@pytest.mark.parametrize("name", NOT_SINGLE)
def test_a_wrapper_that_cannot_take_the_single_environment_says_so(name: str) -> None:
    wrap, reason = NOT_SINGLE[name]
    with pytest.raises((TypeError, ValueError), match=reason):
        wrap(gym.make(ENV_ID))


@pytest.mark.filterwarnings("ignore:.*Recorded episodes will not contain the last frame")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VECTOR)
def test_a_wrapper_takes_the_vector_environment(
    name: str, mode: AutoresetMode, tmp_path: Path
) -> None:
    bare: Any = gym.make_vec(
        ENV_ID, num_envs=3, autoreset_mode=mode, render_mode="rgb_array", max_episode_steps=9
    )
    bare.folder = str(tmp_path / "videos")
    if name in GYMNASIUM_REFUSES[mode]:
        with pytest.raises(ValueError, match="autoreset_mode"):
            VECTOR[name](bare)
        return
    if name == "NumpyToTorch" and mode is AutoresetMode.SAME_STEP:
        pytest.skip("final observations are an array of objects, which Gymnasium does not convert")
    with parts_may_be_missing(name):
        env = VECTOR[name](bare)
        observation, _ = env.reset(seed=0)
        endings = 0
        for _ in range(25):
            if name != "NumpyToTorch":
                assert env.observation_space.contains(observation)
            actions: Any = bare.sample_legal()
            if name == "NumpyToTorch":
                actions = torch.from_numpy(actions)
            observation, _, terminated, truncated, _ = env.step(actions)
            over = np.logical_or(np.asarray(terminated), np.asarray(truncated))
            endings += int(over.sum())
            if mode is AutoresetMode.DISABLED and over.any():
                observation, _ = env.reset(options={"reset_mask": over})
        env.close()
    assert endings > 2


@pytest.mark.parametrize("name", NOT_VECTOR)
def test_a_wrapper_that_cannot_take_the_vector_environment_says_so(name: str) -> None:
    wrap, reason = NOT_VECTOR[name]
    with pytest.raises((TypeError, ValueError, AssertionError), match=reason):
        wrap(gym.make_vec(ENV_ID, num_envs=2))


@pytest.mark.parametrize("env_id", plan_envs.ENV_IDS)
def test_the_checker_of_sb3_passes(env_id: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id)
        checker.check_env(env.unwrapped)
        env.close()


def test_frames_of_sb3_stack_in_a_vector_of_single_environments_but_masks_do_not() -> None:
    """What the page says of `VecFrameStack`: it takes no `MultiBinary`, and the mask is one."""
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    with pytest.raises((AssertionError, TypeError, ValueError, NotImplementedError)):
        vec.VecFrameStack(vec.DummyVecEnv([lambda: gym.make(ENV_ID)]), 2)
    stacked = vec.VecFrameStack(vec.DummyVecEnv([lambda: plans(gym.make(ENV_ID))]), 2)
    assert stacked.reset().shape == (1, 32)


FORKED = "ignore:.*multi-threaded, use of fork"


@pytest.mark.filterwarnings(FORKED)
def test_environments_in_processes_of_their_own_play_as_those_of_this_one() -> None:
    """Gymnasium's `AsyncVectorEnv` and SB3's `SubprocVecEnv`, beside the vector in one process."""
    here, there = (
        gym.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode) for mode in ("sync", "async")
    )
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    others = vec.SubprocVecEnv([lambda: gym.make(ENV_ID)] * 2, start_method="fork")
    others.seed(7)
    seen = [here.reset(seed=7)[0], there.reset(seed=7)[0], others.reset()]
    for _ in range(8):
        for name, boards in seen[0].items():
            assert np.array_equal(boards, seen[1][name])
            assert np.array_equal(boards, seen[2][name])
        actions = seen[0]["action_mask"][:, :-1].argmax(axis=1)  # an edit, not STOP
        stepped = [env.step(actions) for env in (here, there, others)]
        over = stepped[0][2] | stepped[0][3]
        assert np.array_equal(over, stepped[1][2] | stepped[1][3])
        assert np.array_equal(over, stepped[2][2])
        if over.any():  # from here on SB3 has reset, and Gymnasium does so in the next step
            break
        seen = [found[0] for found in stepped]
    for env in (here, there, others):
        env.close()


class Masks(torch.utils.data.Dataset[torch.Tensor]):
    """The legal edits of each puzzle of a pool, from kernels."""

    def __init__(self) -> None:
        self.task = plan_envs.resolve_task("sudoku4x4")
        self.boards = self.task.instances("test", num=12).instances

    def __len__(self) -> int:
        return len(self.boards)

    def __getitem__(self, index: int) -> torch.Tensor:
        board = self.boards[index : index + 1]
        return torch.from_numpy(self.task.domain.action_mask(board, board)[0])


@pytest.mark.filterwarnings(FORKED)
def test_workers_of_a_data_loader_compute_what_this_process_does() -> None:
    masks = Masks()
    truth = masks.task.domain.action_mask(masks.boards, masks.boards)
    loaded = torch.utils.data.DataLoader(masks, batch_size=4, num_workers=2)
    assert np.array_equal(torch.cat(list(loaded)).numpy(), truth)


TORCHRL_IDS = ("PlanEdit/Sudoku4x4-v0", "PlanEdit/NQueens8-v0", "PlanEdit/ARCTiny-v0")


@pytest.mark.parametrize("env_id", TORCHRL_IDS)
def test_torchrl_collects_legal_edits_under_its_action_mask(env_id: str) -> None:
    envs = pytest.importorskip("torchrl.envs")
    utils = pytest.importorskip("torchrl.envs.utils")
    env = envs.TransformedEnv(envs.GymEnv(env_id), envs.ActionMask())
    utils.check_env_specs(env)
    env.set_seed(0)
    seen = env.rollout(60, break_when_any_done=False)
    chosen = seen["action"].bool()
    assert bool((seen["action_mask"].bool() | ~chosen).all())
    assert bool(seen["next", "action_mask"].any(-1).all())
    assert int(seen["next", "done"].sum()) > 0


@pytest.mark.filterwarnings("ignore:Nested TransformedEnvs")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # bounds of a Box
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_torchrl_wraps_the_vector_environment(mode: AutoresetMode) -> None:
    envs = pytest.importorskip("torchrl.envs")
    utils = pytest.importorskip("torchrl.envs.utils")
    env = envs.GymWrapper(PlanEditVectorEnv("sudoku4x4", num_envs=3, autoreset_mode=mode))
    utils.check_env_specs(env)
    env = envs.TransformedEnv(env, envs.ActionMask())
    seen = env.rollout(40, break_when_any_done=False)
    assert seen.batch_size == (3, 40)
    assert int(seen["next", "done"].sum()) > 0


def test_torchrl_refuses_a_vector_environment_that_resets_in_the_next_step() -> None:
    envs = pytest.importorskip("torchrl.envs")
    with pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"):
        envs.GymWrapper(PlanEditVectorEnv("sudoku4x4", num_envs=3))


class EditNet(torch.nn.Module):
    """A small network over the plan, with the signature that tianshou wants."""

    def __init__(self, cells: int, outputs: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(cells, 64), torch.nn.Tanh(), torch.nn.Linear(64, outputs)
        )

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        del info
        boards = torch.as_tensor(np.asarray(getattr(obs, "obs", obs)), dtype=torch.float32)
        return self.layers(boards), state


def for_tianshou() -> Any:
    """Its learners look for the board under "obs" and for the mask under "mask"."""
    env = gym.make("PlanEdit/NQueens8-v0")
    inner: Any = env.observation_space
    names = {"obs": "plan", "mask": "action_mask"}
    space = gym.spaces.Dict({new: inner[old] for new, old in names.items()})
    return single.TransformObservation(
        env, lambda seen: {new: seen[old] for new, old in names.items()}, space
    )


def test_tianshous_masked_dqn_trains_on_legal_edits() -> None:
    data = pytest.importorskip("tianshou.data")
    vector = pytest.importorskip("tianshou.env")
    dqn = pytest.importorskip("tianshou.algorithm.modelfree.dqn")
    optim = pytest.importorskip("tianshou.algorithm.optim")
    tools = pytest.importorskip("tianshou.utils.torch_utils")
    torch.manual_seed(0)
    envs = vector.DummyVectorEnv([for_tianshou] * 4)
    net = EditNet(64, 64)
    before = [weight.clone() for weight in net.parameters()]
    policy = dqn.DiscreteQLearningPolicy(
        model=net, action_space=envs.action_space[0], eps_training=0.3
    )
    adam = optim.AdamOptimizerFactory(lr=1e-3)
    learner = dqn.DQN(policy=policy, optim=adam, target_update_freq=10)
    replay = data.VectorReplayBuffer(1000, 4)
    collector = data.Collector(learner, envs, replay)
    with tools.policy_within_training_step(policy):
        collector.reset()
        for _ in range(5):
            collector.collect(n_step=80)
            learner.update(replay, 64)
    everything = replay.sample_indices(0)
    assert len(everything) == 400
    assert bool((replay.obs.mask[everything, replay.act[everything]] == 1).all())
    assert all(bool(weight.isfinite().all()) for weight in net.parameters())
    assert any(not torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


class Agent(torch.nn.Module):
    """Actor and critic over plan and mask, as CleanRL's single file has them."""

    def __init__(self, cells: int, actions: int) -> None:
        super().__init__()
        self.actor, self.critic = EditNet(cells, actions), EditNet(cells, 1)

    def policy(self, plan: Any, mask: Any) -> torch.distributions.Categorical:
        """Illegal edits have probability 0: an empty mask would make every logit NaN."""
        logits, _ = self.actor(plan)
        legal = torch.as_tensor(mask) == 1
        return torch.distributions.Categorical(logits=logits.masked_fill(~legal, -torch.inf))

    def value(self, plan: Any) -> torch.Tensor:
        return self.critic(plan)[0].squeeze(-1)


def collect(envs: Any, agent: Agent, start: Any, steps: int) -> tuple[dict[str, Any], Any, int]:
    """A rollout as lists of arrays, the observation after it, and how many episodes ended."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("plan", "mask", "action", "log", "value", "reward", "done")
    }
    seen, endings = start, 0
    for _ in range(steps):
        with torch.no_grad():
            choice = agent.policy(seen["plan"], seen["action_mask"])
            action = choice.sample()
            log, value = choice.log_prob(action), agent.value(seen["plan"])
        after, reward, terminated, truncated, infos = envs.step(action.numpy())
        assert not infos["illegal_action"].any()
        done = terminated | truncated
        found = (seen["plan"], seen["action_mask"], action, log, value, reward, done)
        for name, part in zip(rows, found, strict=True):
            rows[name].append(torch.as_tensor(part))
        seen, endings = after, endings + int(done.sum())
    return {name: torch.stack(part) for name, part in rows.items()}, seen, endings


def update(agent: Agent, adam: Any, rollout: dict[str, Any], last: Any) -> torch.Tensor:
    """One pass of clipped PPO with GAE; returns the loss."""
    gamma, lam = 0.99, 0.95
    reward, done, value = (rollout[name].float() for name in ("reward", "done", "value"))
    advantage, tail = torch.zeros_like(reward), torch.zeros(reward.shape[1])
    with torch.no_grad():
        following = agent.value(last["plan"])
    for step in range(len(reward) - 1, -1, -1):
        live = 1 - done[step]
        delta = reward[step] + gamma * following * live - value[step]
        tail = delta + gamma * lam * live * tail
        advantage[step], following = tail, value[step]
    columns = {name: part.flatten(0, 1) for name, part in rollout.items()}
    choice = agent.policy(columns["plan"], columns["mask"])
    ratio = (choice.log_prob(columns["action"]) - columns["log"]).exp()
    gain = advantage.flatten()
    surrogate = torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
    target = (advantage + value).flatten()
    error = (agent.value(columns["plan"]) - target).square().mean()
    loss = -surrogate + 0.5 * error - 0.01 * choice.entropy().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.detach()


@pytest.mark.parametrize("env_id", ["PlanEdit/NQueens8-v0", "PlanEdit/Maze10-v0", ENV_ID])
def test_a_masked_ppo_in_a_single_file_trains_over_make_vec(env_id: str) -> None:
    """Gymnasium's default vector, NEXT_STEP, masked logits and nothing for the endings."""
    torch.manual_seed(0)
    envs: Any = gym.make_vec(env_id, num_envs=8)
    spaces = envs.single_observation_space
    agent = Agent(spaces["plan"].shape[0], int(envs.single_action_space.n))
    adam = torch.optim.Adam(agent.parameters(), lr=1e-3)
    seen, _ = envs.reset(seed=0)
    endings = 0
    for _ in range(3):
        rollout, seen, ended = collect(envs, agent, seen, 48)
        endings += ended
        assert bool(update(agent, adam, rollout, seen).isfinite())
    assert endings > 8
    assert all(bool(weight.isfinite().all()) for weight in agent.parameters())
