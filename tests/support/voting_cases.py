"""A predictor of known accuracy for the tests of voting on ARC; jobs can import it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plan_envs.arc.grids import LARGEST, board_of
from plan_envs.arc.rules import Arc
from plan_envs.arc.symmetry import ArcSymmetry
from plan_envs.arc.tasks import ArcTask
from supervised.measures.arc_voting import Predictor, Query


def symmetries(task: ArcTask, *, num: int) -> list[ArcSymmetry]:
    """The identity, then random ones, every eighth with another dihedral map."""
    rng = np.random.default_rng([num, *task.id.encode()])
    drawn = [Arc().random_symmetry(rng) for _ in range(num)]
    return [
        ArcSymmetry(LARGEST, k % 8, s.colours if k else tuple(range(10)))
        for k, s in enumerate(drawn)
    ]


def tokens_of(board: NDArray[np.int8]) -> NDArray[np.int64]:
    """Tokens of a board with EOS below and beside its grid, as models are trained to write."""
    canvas = board.reshape(LARGEST, LARGEST).astype(np.int64)
    tokens = np.where(canvas > 0, canvas + 1, 0)
    height, width = (canvas[:, 0] > 0).sum(), (canvas[0] > 0).sum()
    tokens[height : height + 1, :width] = 1
    tokens[:height, width : width + 1] = 1
    return tokens.reshape(-1)


class SyntheticPredictor:
    """Right with a probability, else one of some decoys; drawn for each query by itself.

    Right predictions halt with 0.9 and decoys with 0.1, so the label wins every tie.
    """

    def __init__(
        self, tasks: Sequence[ArcTask], *, num: int, accuracy: float, decoys: int = 1, seed: int = 0
    ) -> None:
        self._tasks = {task.id: task for task in tasks}
        self._symmetries = {task.id: symmetries(task, num=num) for task in tasks}
        self._accuracy, self._decoys, self._seed = accuracy, decoys, seed

    def __call__(self, queries: Sequence[Query]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        answers = [self._answer(query) for query in queries]
        boards, halting = zip(*answers, strict=True)
        return np.stack([tokens_of(board) for board in boards]), np.array(halting)

    def _answer(self, query: Query) -> tuple[NDArray[np.int8], float]:
        key = [self._seed, *query.task.encode(), query.test, query.augmentation]
        rng = np.random.default_rng(key)
        label = self._tasks[query.task].test[query.test][1]
        assert label is not None
        right = rng.random() < self._accuracy
        decoy = np.full((29, 1 + int(rng.integers(self._decoys))), 7)
        board = board_of(label if right else decoy, LARGEST)
        image = self._symmetries[query.task][query.augmentation].plans(board[None])[0]
        return image, 0.9 if right else 0.1


def open_synthetic(
    tasks: Sequence[ArcTask], num: int, accuracy: float, deadly: Path | None = None
) -> list[Predictor]:
    """Predictors of a job; with `deadly`, the first job that finds that file is killed."""
    if deadly is not None and deadly.exists():
        deadly.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [SyntheticPredictor(tasks, num=num, accuracy=accuracy, decoys=3)]
