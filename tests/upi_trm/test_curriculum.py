"""Curricula: starts nearer to a solution, farther as success grows."""

import numpy as np
import pytest

from plan_envs.catalogue import resolve_task
from plan_envs.sudoku.rules import Sudoku
from upi_trm.curriculum import Curriculum, CurriculumConfig


def test_curriculum_reveals_givens_and_gets_harder_with_success() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    config = CurriculumConfig(
        kind="adaptive", start=2, step=3, threshold=0.5, window=4, full_share=0.0
    )
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    starts = curriculum.draw(30)
    drawn = starts.plans
    assert set((drawn == 0).sum(axis=1)) == {2}
    assert starts.distance.tolist() == [2] * 30
    assert {board.tobytes() for board in starts.instances} <= {
        board.tobytes() for board in pool.instances
    }
    solutions = {board.tobytes() for board in pool.solutions}
    known = {tuple(x): s for x, s in zip(pool.instances.tolist(), pool.solutions, strict=True)}
    assert len(solutions) > 5
    for board in drawn:
        sources = [
            s
            for x, s in known.items()
            if np.all((np.array(x) == 0) | (np.array(x) == board))
            and np.all((board == 0) | (board == s))
        ]
        assert sources, "a puzzle of the pool with cells filled in"
    curriculum.update(starts.distance[:4], np.array([True, False, False, True]))
    assert curriculum.distance == 5
    # Easier puzzles than asked for do not count, and failures do not make it easier.
    curriculum.update(starts.distance[:8], np.ones(8, bool))
    curriculum.update(curriculum.draw(8).distance, np.zeros(8, bool))
    assert curriculum.distance == 5
    for _ in range(5):
        curriculum.update(curriculum.draw(60).distance, np.ones(60, bool))
    assert curriculum.distance == curriculum.most == 8


def test_curriculum_retreats_where_too_little_succeeds() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    config = CurriculumConfig(
        kind="adaptive", start=2, step=3, threshold=0.75, retreat=0.25, window=4, full_share=0.0
    )
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    reached = []
    for wins in (4, 3, 2, 1, 0, 0):
        outcomes = np.arange(4) < wins
        curriculum.update(np.full(4, 8), outcomes)
        if wins == 2:  # neither: the window goes on, and three failures more end it
            assert curriculum.distance == 8
            curriculum.update(np.full(1, 8), np.zeros(1, bool))
        reached.append(curriculum.distance)
    assert reached == [5, 8, 5, 2, 2, 2], "3 of 4: harder, 1 of 4: easier, never below 2"
    with pytest.raises(ValueError, match=r"curriculum\.retreat must lie in \[0, threshold"):
        CurriculumConfig(threshold=0.5, retreat=0.5)


def test_mixed_curriculum_draws_every_number_of_blanks_and_never_changes() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)  # 6 to 8 blanks
    config = CurriculumConfig(kind="mixed", start=3, window=4, full_share=0.0)
    curriculum = Curriculum(Sudoku(4), pool, config, np.random.default_rng(0))
    blanks, count = np.unique((curriculum.draw(3000).plans == 0).sum(axis=1), return_counts=True)
    assert blanks.tolist() == [3, 4, 5, 6, 7, 8]
    # 3, 4 and 5 each with probability 1/6 of the numbers 3..8.
    assert count[:3] / 3000 == pytest.approx(1 / 6, abs=0.03)
    curriculum.update(np.full(20, 8), np.ones(20, bool))
    assert (curriculum.draw(200).plans == 0).sum(axis=1).min() == 3


def test_without_curriculum_episodes_play_puzzles_of_the_pool() -> None:
    pool = resolve_task("sudoku4x4-hard").instances("train", num=20)
    curriculum = Curriculum(Sudoku(4), pool, CurriculumConfig(), np.random.default_rng(0))
    inside = {board.tobytes() for board in pool.instances}
    assert {board.tobytes() for board in curriculum.draw(50).instances} <= inside
    curriculum.update(np.full(20, 8), np.ones(20, bool))
    assert curriculum.state() == {"distance": curriculum.distance, "recent": []}


class _Plain(Sudoku):
    """A domain without plans on the way to a solution."""

    @property
    def advance(self) -> None:  # type: ignore[override]
        raise AttributeError


def test_a_curriculum_needs_a_domain_with_plans_on_the_way() -> None:
    pool = resolve_task("sudoku4x4").instances("train", num=5)
    config = CurriculumConfig(kind="mixed")
    with pytest.raises(ValueError, match=r"curriculum\.kind must be none for sudoku4x4"):
        Curriculum(_Plain(4), pool, config, np.random.default_rng(0))
