"""What the tests of the baselines share: tiny recipes, small pools, and a judge of every action.

The judge knows the rules of each puzzle in plain Python and nothing of plan_envs: it stands between
an algorithm and its environments and counts actions that the rules forbid.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvWrapper

from baselines.vec_adapter import PlanEditVecEnv
from plan_envs.arc.rules import Arc
from plan_envs.catalogue import Task, resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.vector_env import PlanEditVectorEnv
from trm.nn.model import ModelConfig

Board = NDArray[np.int8]
Judge = Callable[[Board, Board, int], bool]
"""(instance, plan, action) -> whether the rules allow it."""

TINY = ModelConfig(channels=4, head_width=6, depth=1)
FLAT = ModelConfig(update_map="mlp", channels=6, head_width=6, depth=1)


def tiny_model(task: Task) -> ModelConfig:
    """A few weights; flat where the domain has no constraint groups."""
    return TINY if task.domain.spec.groups else FLAT


def pool_of(task: Task, num: int = 20) -> InstanceSet:
    """Training puzzles; small random canvases for ARC, whose public tasks take long to load."""
    if not isinstance(task.domain, Arc):
        return task.instances("train", num=num)
    rng, size = np.random.default_rng(0), task.domain.size
    boards = np.zeros((num, task.domain.spec.instance_size // size**2, size, size), np.int8)
    for board in boards.reshape(-1, size, size):
        height, width = rng.integers(1, size + 1, 2)
        board[:height, :width] = rng.integers(1, 4, (height, width))
    return InstanceSet.of(
        "random canvases", boards.reshape(num, -1), boards[:, -1].reshape(num, -1)
    )


def make_env(
    name: str, *, plans: int = 4, limit: int | None = None, **options: Any
) -> PlanEditVecEnv:
    """The adapter over a task, its pool small."""
    task = resolve_task(name)
    vector = PlanEditVectorEnv(
        task,
        num_envs=plans,
        instances=pool_of(task),
        max_episode_steps=limit,
        autoreset_mode="SameStep",
        **options,
    )
    env = PlanEditVecEnv(vector)
    env.seed(0)
    return env


class Judged(VecEnvWrapper):
    """Lets a judge see every action before the environments do; `illegal` counts his objections."""

    def __init__(self, venv: VecEnv, judge: Judge) -> None:
        super().__init__(venv)
        self.judge, self.seen, self.illegal = judge, 0, 0
        self._now: dict[str, Board] = {}

    def reset(self) -> Any:
        self._now = self.venv.reset()  # type: ignore[assignment]
        return self._now

    def step_async(self, actions: NDArray[Any]) -> None:
        boards = zip(self._now["instance"], self._now["plan"], actions, strict=True)
        allowed = [self.judge(instance, plan, int(action)) for instance, plan, action in boards]
        self.seen += len(allowed)
        self.illegal += len(allowed) - sum(allowed)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        step = self.venv.step_wait()
        self._now = step[0]  # type: ignore[assignment]
        return step


def judge_of(name: str) -> Judge:
    """The rules of a task."""
    rules = {
        "sudoku4x4": _sudoku4x4,
        "sudoku4x4-hard": _sudoku4x4,
        "sudoku9x9": _sudoku9x9,
        "nqueens8": _queens8,
        "maze10": _maze10,
        "arc": _arc30,
    }
    return rules[name]


def _clash(plan: Board, side: int, cell: int, value: int, height: int, width: int) -> bool:
    """Whether a row, column or box of the cell holds the value elsewhere."""
    row, column = divmod(cell, side)
    box = (row // height, column // width)
    for other, found in enumerate(plan.tolist()):
        if found == value and other != cell:
            r, c = divmod(other, side)
            if r == row or c == column or (r // height, c // width) == box:
                return True
    return False


def _sudoku9x9(instance: Board, plan: Board, action: int) -> bool:
    cell, digit = action // 9, action % 9 + 1
    return bool(plan[cell] == 0) and not _clash(plan, 9, cell, digit, 3, 3)


def _sudoku4x4(instance: Board, plan: Board, action: int) -> bool:
    if action == 96:  # STOP, while the plan is not solved
        done = all(plan) and not any(_clash(plan, 4, c, int(plan[c]), 2, 2) for c in range(16))
        return not done
    cell, token = divmod(action, 6)
    return token > 0 and not instance[cell] and bool(plan[cell] != token - 1)


def _queens8(instance: Board, plan: Board, action: int) -> bool:
    row, column = divmod(action, 8)
    queens = [divmod(square, 8) for square in np.flatnonzero(plan).tolist()]
    return not any(r == row or c == column or abs(r - row) == abs(c - column) for r, c in queens)


def _maze10(instance: Board, plan: Board, action: int) -> bool:
    head = plan.tolist().index(5)
    (r, c), (row, column) = divmod(head, 10), divmod(action, 10)
    return bool(abs(r - row) + abs(c - column) == 1 and instance[action] != 1 and not plan[action])


def _arc30(instance: Board, plan: Board, action: int) -> bool:
    grid = plan.reshape(30, 30)
    height, width = int((grid[:, 0] > 0).sum()), int((grid[0] > 0).sum())
    if action < 9000:
        row, column, colour = action // 300, action // 10 % 30, action % 10
        return row < height and column < width and bool(grid[row, column] != colour + 1)
    if action < 9030:
        return action - 9000 + 1 != height
    return action - 9030 + 1 != width if action < 9060 else action == 9060
