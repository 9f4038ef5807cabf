"""Other suites, measured beside ours by `benchmarks/environments.py`: Jumanji, ARCLE, Gymnasium.

Each function prepares one measurement and returns a function that measures once, in processor
seconds per unit. Actions are recorded or made beforehand, compilation and resets are not timed
unless the name says so. The suites are imported when they are asked for.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

Measure = Callable[[], float]
"""Measures once: processor seconds per unit."""

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def _jumanji() -> Any:
    """Jumanji on one thread, as far as XLA can be told so before it is imported."""
    os.environ.setdefault("XLA_FLAGS", _ONE_THREAD)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jumanji

    return jumanji


def jumanji_sudoku_gym(steps: int) -> Measure:
    """`JumanjiToGymWrapper(Sudoku-v0)`: recorded legal edits."""
    jumanji = _jumanji()
    from jumanji.wrappers import JumanjiToGymWrapper

    env = JumanjiToGymWrapper(jumanji.make("Sudoku-v0"))
    rng = np.random.default_rng(0)
    episodes: list[list[Any]] = []
    recorded = 0
    while recorded < steps:
        observation, _ = env.reset(seed=len(episodes))
        actions, ended = [], False
        while not ended:
            legal = np.argwhere(observation["action_mask"])
            actions.append(rng.choice(legal).astype(np.int32))
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            ended = terminated or truncated
        episodes.append(actions)
        recorded += len(actions)

    def seconds() -> float:
        spent = 0.0
        for seed, actions in enumerate(episodes):
            env.reset(seed=seed)
            begin = time.process_time()
            for action in actions:
                env.step(action)
            spent += time.process_time() - begin
        return spent / recorded

    return seconds


def jumanji_sudoku_batch(num_envs: int, steps: int) -> Measure:
    """`jit(vmap(Sudoku.step))` from a Python loop; mask and reward as numpy arrays."""
    jumanji = _jumanji()
    import jax

    env = jumanji.make("Sudoku-v0")
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    start, first = reset(jax.random.split(jax.random.PRNGKey(0), num_envs))
    rng = np.random.default_rng(0)
    recorded = []
    state, mask = start, np.asarray(first.observation.action_mask)
    for _ in range(steps):
        flat = (rng.random((num_envs, 729)) * mask.reshape(num_envs, -1)).argmax(axis=1)
        recorded.append(np.stack(np.unravel_index(flat, (9, 9, 9)), axis=1).astype(np.int32))
        state, timestep = step(state, recorded[-1])
        mask = np.asarray(timestep.observation.action_mask)

    def seconds() -> float:
        state = start
        begin = time.process_time()
        for actions in recorded:
            state, timestep = step(state, actions)
            np.asarray(timestep.observation.action_mask)
            np.asarray(timestep.reward)
        return (time.process_time() - begin) / (steps * num_envs)

    return seconds


def jumanji_sudoku_successors(calls: int) -> Measure:
    """`jit(vmap(Sudoku.step))` of one state over all 729 edits; rewards and ends as numpy."""
    jumanji = _jumanji()
    import jax

    env = jumanji.make("Sudoku-v0")
    state, _ = jax.jit(env.reset)(jax.random.PRNGKey(0))
    every = np.stack(np.unravel_index(np.arange(729), (9, 9, 9)), axis=1).astype(np.int32)
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0)))

    def seconds() -> float:
        begin = time.process_time()
        for _ in range(calls):
            _, timestep = step(state, every)
            np.asarray(timestep.reward)
            np.asarray(timestep.discount)
        return (time.process_time() - begin) / calls

    seconds()
    return seconds


def jumanji_maze(size: int, num_envs: int, steps: int, *, autoreset: bool) -> Measure:
    """`jit` of Jumanji's batched Maze, with its own autoreset or without; mask and reward as numpy.

    Actions go to the first open neighbour. With autoreset every maze is generated anew in every
    step, finished or not: that is what a condition under `vmap` means.
    """
    _jumanji()
    import jax
    from jumanji.environments import Maze
    from jumanji.environments.routing.maze.generator import RandomGenerator
    from jumanji.wrappers import AutoResetWrapper, VmapWrapper

    plain = Maze(generator=RandomGenerator(size, size))
    env = VmapWrapper(AutoResetWrapper(plain) if autoreset else plain)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    start, first = reset(jax.random.split(jax.random.PRNGKey(0), num_envs))
    recorded = []
    state, mask = start, np.asarray(first.observation.action_mask)
    for _ in range(steps):
        recorded.append(mask.argmax(axis=1).astype(np.int32))
        state, timestep = step(state, recorded[-1])
        mask = np.asarray(timestep.observation.action_mask)

    def seconds() -> float:
        state = start
        begin = time.process_time()
        for actions in recorded:
            state, timestep = step(state, actions)
            np.asarray(timestep.observation.action_mask)
            np.asarray(timestep.reward)
        return (time.process_time() - begin) / (steps * num_envs)

    return seconds


def arcle_paint(env_name: str, steps: int) -> Measure:
    """An ARCLE environment of 30x30 that paints single cells; it hands out its live arrays."""
    from arcle import envs, loaders

    class OneTask(loaders.Loader):
        """A single task with a 10x10 grid."""

        def get_path(self, **_: Any) -> list[str]:
            return []

        def parse(self, **_: Any) -> list[Any]:
            grid = np.random.default_rng(0).integers(0, 10, (10, 10)).astype(np.int8)
            return [([grid], [grid.T.copy()], [grid], [grid.T.copy()], {"id": "one"})]

    env: Any = getattr(envs, env_name)(data_loader=OneTask(), max_grid_size=(30, 30))
    rng = np.random.default_rng(0)
    actions = []
    for _ in range(steps):
        selection = np.zeros((30, 30), np.int8)
        selection[rng.integers(10), rng.integers(10)] = 1
        actions.append({"selection": selection, "operation": int(rng.integers(10))})
    env.reset()

    def seconds() -> float:
        begin = time.process_time()
        for action in actions:
            env.step(action)
        return (time.process_time() - begin) / steps

    return seconds


def cartpole(steps: int) -> Measure:
    """`gym.make("CartPole-v1")` with alternating pushes; resets are not timed."""
    env = gym.make("CartPole-v1")

    def seconds() -> float:
        spent, done = 0.0, 0
        while done < steps:
            env.reset(seed=done)
            ended = False
            begin = time.process_time()
            while not ended:
                _, _, terminated, truncated, _ = env.step(done % 2)
                ended = terminated or truncated
                done += 1
            spent += time.process_time() - begin
        return spent / done

    return seconds


def cartpole_vector(num_envs: int, steps: int) -> Measure:
    """Gymnasium's native CartPole vector environment, resets included."""
    env = gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    actions = np.random.default_rng(0).integers(0, 2, (steps, num_envs))

    def seconds() -> float:
        env.reset(seed=0)
        begin = time.process_time()
        for action in actions:
            env.step(action)
        return (time.process_time() - begin) / (steps * num_envs)

    return seconds
