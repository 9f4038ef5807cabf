"""Small cases that the tests of `trm` and `upi_trm` share: Sudoku states, symmetries, models."""

from dataclasses import replace

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import nn

from plan_envs.catalogue import resolve_task
from plan_envs.domain import Int8Array
from plan_envs.sudoku.geometry import BOX_SHAPES
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from plan_envs.vector_env import PlanEditVectorEnv
from trm.experiments.states import model_shape, to_states
from trm.nn.blocks import GroupStructure
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from upi_trm.curriculum import Curriculum, CurriculumConfig
from upi_trm.evaluator import EvaluatorConfig
from upi_trm.improvement import ImprovementConfig
from upi_trm.learner import LearnerConfig, UpiLearner
from upi_trm.rollout import Roller, RolloutConfig

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def structure_of(side: int) -> GroupStructure:
    """The (cell, value) variables of Sudoku and their groups cell, row, column, box."""
    shape = model_shape(Sudoku(side).spec)
    return GroupStructure(shape.groups, shape.num_cells * shape.num_values)


def random_boards(
    side: int, count: int, seed: int = 0, *, wrong: float = 0.15
) -> tuple[Int8Array, Int8Array]:
    """Instances, and plans with some blanks filled, most of them rightly."""
    options = {"blanks": (4, 10), "unique": False} if side == 4 else {}
    pool = sudoku_instances(side=side, num=count, seed=seed, **options)
    rng = np.random.default_rng(seed)
    cells = pool.instances.shape
    digits = np.where(rng.random(cells) < wrong, rng.integers(1, side + 1, cells), pool.solutions)
    filled = (pool.instances == 0) & (rng.random(cells) < rng.random((count, 1)))
    return pool.instances, np.where(filled, digits, pool.instances).astype(np.int8)


def states_of(domain: Sudoku, instances: Int8Array, plans: Int8Array) -> StateBatch:
    return to_states(instances, plans, domain.action_mask(instances, plans), CPU)


def random_states(domain: Sudoku, count: int, seed: int = 0) -> StateBatch:
    return states_of(domain, *random_boards(domain.side, count, seed))


def small_model(
    domain: Sudoku, seed: int = 0, *, spread: float = 0.3, **config: object
) -> TinyRecursiveModel:
    """A model with few channels and no zero biases, so that a symmetry is not met by chance."""
    settings = {"channels": 6, "head_width": 8, "depth": 3} | config
    model = TinyRecursiveModel(
        model_shape(domain.spec),
        ModelConfig(**settings),
        generator=generator(seed),
    )
    jitter(model, seed + 1, spread)
    return model


@torch.no_grad()
def jitter(module: nn.Module, seed: int, spread: float) -> None:
    """Add noise to every parameter."""
    draws = generator(seed)
    for weight in module.parameters():
        weight.add_(torch.randn(weight.shape, generator=draws, dtype=weight.dtype) * spread)


# Symmetries of the grid, as a new order of the cells: new[i] = old[order[i]].


def band_swap(side: int) -> NDArray[np.int64]:
    """Swaps the first two rows, which lie in one band of boxes."""
    cells = np.arange(side * side).reshape(side, side)
    assert BOX_SHAPES[side][0] >= 2
    cells[[0, 1]] = cells[[1, 0]]
    return cells.ravel()


def transposition(side: int) -> NDArray[np.int64]:
    return np.arange(side * side).reshape(side, side).T.ravel().copy()


def relabelling(side: int, seed: int = 0) -> NDArray[np.int8]:
    """new digit = table[old digit]; blank stays blank, and no digit keeps its name for seed 0."""
    table = np.roll(np.arange(1, side + 1), 1)
    table = table if seed == 0 else np.random.default_rng(seed).permutation(table)
    return np.concatenate([[0], table]).astype(np.int8)


PLANS = 6


STEPS = 4


MODEL = ModelConfig(channels=4, head_width=6, depth=2)


EVALUATOR = EvaluatorConfig(gamma=0.9, k_steps=3, passes=2.0, batch_size=16, replay_iterations=2)


IMPROVEMENT = ImprovementConfig(distil_passes=2.0, batch_size=8, candidate_steps=3)


SMALL = LearnerConfig(
    model=MODEL,
    rollout=RolloutConfig(plans=PLANS, steps=STEPS),
    evaluator=EVALUATOR,
    improvement=IMPROVEMENT,
)


PAPER = replace(
    SMALL,
    model=replace(MODEL, update_map="mlp"),
    evaluator=replace(EVALUATOR, value="score", control_variate=False),
    improvement=replace(IMPROVEMENT, candidate="policy_gradient", advantage="gae"),
)


def make(
    config: LearnerConfig, *, env: str = "sudoku4x4", seed: int = 0, curriculum: bool = False
) -> tuple[UpiLearner, Roller]:
    task = resolve_task(env)
    pool = task.instances("train", num=20, seed=1)
    vector_env = PlanEditVectorEnv(
        task,
        num_envs=config.rollout.plans,
        instances=pool,
        gamma=config.evaluator.gamma,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    easier = CurriculumConfig(
        kind="adaptive" if curriculum else "none", start=2, window=4, threshold=0.5
    )
    roller = Roller(
        vector_env, Curriculum(task.domain, pool, easier, np.random.default_rng(seed)), seed=seed
    )
    learner = UpiLearner(
        task.domain,
        config,
        dead_end="absorb",
        device=CPU,
        init=generator(seed),
        noise=generator(seed + 1),
        actions=generator(seed + 2),
        lessons=np.random.default_rng(seed),
    )
    return learner, roller
