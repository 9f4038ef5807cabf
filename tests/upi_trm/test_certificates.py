"""Certificates: labels are the exact Q*, none reaches beyond a start, the memory is bounded."""

from typing import Any

import numpy as np
import pytest
from learner_cases import CPU, SMALL, make
from numpy.typing import NDArray
from resume_cases import assert_same

from plan_envs.catalogue import resolve_task
from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.maze.kernels import HEAD
from trm.runs.packing import pack_state, unpack_state
from upi_trm.certificates import MOST_TOGETHER, Certificates
from upi_trm.rollout import Transitions


def memory(
    domain: PlanDomain, *, capacity: int = 50, plans: int = 6, seed: int = 0
) -> Certificates:
    return Certificates(
        domain, capacity=capacity, plans=plans, generator=np.random.default_rng(seed)
    )


def way(
    domain: PlanDomain, instance: Int8Array, solution: Int8Array, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Legal edits that lead from the instance to this solution, in random order."""
    plan, actions = domain.initial(instance[None]), []
    for _ in range(domain.spec.horizon):
        if np.array_equal(plan[0], solution):
            break
        legal = np.flatnonzero(domain.action_mask(instance[None], plan)[0]).astype(np.int32)
        many = [np.repeat(board, len(legal), axis=0) for board in (instance[None], plan)]
        after = domain.edit(*many, legal)
        good = [agrees(one, solution) and (one > 0).sum() > (plan > 0).sum() for one in after]
        pick = int(rng.choice(np.flatnonzero(good)))
        actions.append(int(legal[pick]))
        plan = after[pick][None]
    assert np.array_equal(plan[0], solution)
    return np.array(actions, np.int32)


def agrees(plan: Int8Array, solution: Int8Array) -> bool:
    """Whether a plan holds nothing but what the solution has; a maze's path ends with its head."""
    head = solution.max() == HEAD
    return bool(((plan == 0) | (plan == solution) | (head & (plan == HEAD) & (solution > 0))).all())


def filled(env: str, *, num: int = 8, seed: int = 0) -> tuple[Certificates, Any]:
    task = resolve_task(env)
    pool = task.instances("train", num=num, seed=seed)
    held, rng = memory(task.domain), np.random.default_rng(seed)
    for instance, solution in zip(pool.instances, pool.solutions, strict=True):
        start = task.domain.initial(instance[None])[0]
        held.add(instance, start, solution, way(task.domain, instance, solution, rng))
    return held, pool


@pytest.mark.parametrize("env", ["sudoku4x4", "sudoku9x9", "nqueens8", "maze10"])
def test_states_are_live_and_right_edits_agree_with_a_certificate(env: str) -> None:
    held, pool = filled(env)
    domain = held.domain
    lesson = held.draw(100)
    mask = domain.action_mask(lesson.boards.instances, lesson.boards.plans) != 0
    assert lesson.right.any(axis=1).all()
    assert not (lesson.right & ~mask).any()
    solutions = {i.tobytes(): s for i, s in zip(pool.instances, pool.solutions, strict=True)}
    for instance, plan, right in zip(
        lesson.boards.instances, lesson.boards.plans, lesson.right, strict=True
    ):
        solution = solutions[instance.tobytes()]
        assert agrees(plan, solution)
        for action in np.flatnonzero(right):
            after = domain.edit(instance[None], plan[None], np.array([action], np.int32))[0]
            assert agrees(after, solution)
    assert not domain.check(lesson.boards.instances, lesson.boards.plans).solved.any()


@pytest.mark.parametrize("env", ["sudoku6x6", "sudoku9x9"])
def test_labels_of_unique_puzzles_are_the_exact_q(env: str) -> None:
    held, _ = filled(env, num=4)
    domain = held.domain
    lesson = held.draw(12)
    for instance, plan, right in zip(
        lesson.boards.instances, lesson.boards.plans, lesson.right, strict=True
    ):
        legal = np.flatnonzero(domain.action_mask(instance[None], plan[None])[0])
        many = [np.repeat(board[None], len(legal), axis=0) for board in (instance, plan)]
        after = domain.edit(*many, legal.astype(np.int32))
        # A plan that keeps the givens is an instance of its own: Q* asks whether it is solvable.
        solvable = [domain.solvable(one) for one in after]  # type: ignore[attr-defined]
        assert right[legal].tolist() == solvable


def test_certificates_of_one_start_speak_together() -> None:
    task = resolve_task("nqueens8")
    domain, rng = task.domain, np.random.default_rng(0)
    instance = np.zeros(domain.spec.instance_size, np.int8)
    start = domain.initial(instance[None])[0]
    boards = task.instances("train", num=30, seed=0).solutions
    held = memory(domain)
    kept = {board.tobytes(): board for board in boards}
    for board in kept.values():
        held.add(instance, start, board, way(domain, instance, board, rng))
    kept_finals = list(kept.values())[:MOST_TOGETHER]
    assert len(held) == 1
    spec, cell = domain.spec, domain.spec.action_cell
    for plan, right in zip(
        *(lambda one: (one.boards.plans, one.right))(held.draw(60)), strict=True
    ):
        agree = [f for f in kept_finals if ((plan == 0) | (plan == f)).all()]
        mask = domain.action_mask(instance[None], plan[None])[0] != 0
        expected = [
            bool(mask[a])
            and spec.action_value[a] > 0
            and plan[cell[a]] != spec.action_value[a]
            and any(f[cell[a]] == spec.action_value[a] for f in agree)
            for a in range(spec.num_actions)
        ]
        assert right.tolist() == expected


def test_a_shorter_certificate_replaces_longer_ones() -> None:
    domain = resolve_task("sudoku4x4").domain
    instance = np.zeros(16, np.int8)
    held = memory(domain)
    long, short, later = (np.arange(n, dtype=np.int32) for n in (9, 7, 8))
    plans = [np.full(16, value, np.int8) for value in (1, 2, 3)]
    for plan, actions in zip(plans, (long, short, later), strict=True):
        held.add(instance, instance, plan, actions)
    (entry,) = held.state()["solved"]
    assert entry["plans"].tolist() == [plans[1].tolist()]
    assert entry["actions"].tolist() == [short.tolist()]


def test_the_start_that_was_certified_first_is_forgotten_first() -> None:
    domain = resolve_task("sudoku4x4").domain
    held = memory(domain, capacity=3)
    instances = [np.full(16, value, np.int8) for value in range(5)]
    for instance in instances:
        held.add(instance, instance, instance, np.zeros(1, np.int32))
    assert len(held) == 3
    kept = [one["instance"].tolist() for one in held.state()["solved"]]
    assert kept == [one.tolist() for one in instances[2:]]


def test_an_empty_memory_says_so() -> None:
    with pytest.raises(ValueError, match="no plan has been certified"):
        memory(resolve_task("sudoku4x4").domain).draw(1)


@pytest.fixture(scope="module")
def rollouts() -> tuple[PlanDomain, list[Transitions]]:
    """Successive rollouts that begin on easier copies of puzzles."""
    learner, roller = make(SMALL, env="sudoku6x6", curriculum=True)
    parts = learner.parts
    found = [
        roller.collect(parts.actor, steps=7, generator=parts.actions, device=CPU) for _ in range(12)
    ]
    return learner.domain, found


def followed(domain: PlanDomain, found: list[Transitions]) -> Certificates:
    """The certificates of successive rollouts."""
    held = memory(domain)
    for fresh in found:
        held.follow(fresh)
    return held


def test_certificates_of_rollouts_lead_from_the_start_of_the_episode_by_its_edits(
    rollouts: tuple[PlanDomain, list[Transitions]],
) -> None:
    domain, found = rollouts
    held = followed(domain, found)
    solved = held.state()["solved"]
    finals = {final.tobytes() for one in solved for final in one["plans"]}
    reached = {plan.tobytes() for fresh in found for plan in fresh.next_plan[fresh.solved]}
    assert finals == reached != set()
    met = {
        (instance.tobytes(), plan.tobytes())
        for fresh in found
        for instance, plan in zip(
            fresh.instance.reshape(-1, 36), fresh.plan.reshape(-1, 36), strict=True
        )
    }
    for one in solved:
        assert (one["instance"].tobytes(), one["start"].tobytes()) in met
        for final, actions in zip(one["plans"], one["actions"], strict=True):
            plan = one["start"][None]
            for action in actions:
                assert (one["instance"].tobytes(), plan[0].tobytes()) in met
                plan = domain.edit(one["instance"][None], plan, np.array([action], np.int32))
            assert np.array_equal(plan[0], final)
            assert domain.check(one["instance"][None], plan).solved[0]


def test_labels_never_reach_beyond_the_start_of_the_episode(
    rollouts: tuple[PlanDomain, list[Transitions]],
) -> None:
    held = followed(*rollouts)
    starts: dict[bytes, list[Int8Array]] = {}
    for one in held.state()["solved"]:
        starts.setdefault(one["instance"].tobytes(), []).append(one["start"])
    lesson = held.draw(300)
    # Some start was given more than the puzzle: what it was given is in every state drawn for it.
    assert any((one["start"] != one["instance"]).any() for one in held.state()["solved"])
    for instance, plan in zip(lesson.boards.instances, lesson.boards.plans, strict=True):
        given = starts[instance.tobytes()]
        assert any(((start == 0) | (start == plan)).all() for start in given)


def test_a_memory_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    rollouts: tuple[PlanDomain, list[Transitions]],
) -> None:
    domain, found = rollouts
    first = followed(domain, found[:6])
    first.draw(20).doubt(np.linspace(0, 1, 20, dtype=np.float32))
    second = memory(domain)
    second.load_state(unpack_state(pack_state(first.state())))
    second.generator = np.random.default_rng()
    second.generator.bit_generator.state = first.generator.bit_generator.state
    for held in (first, second):
        for fresh in found[6:]:
            held.follow(fresh)
    assert_same(first.state(), second.state())
    assert_same(first.draw(50).right, second.draw(50).right)


def test_states_in_doubt_are_drawn_more_often() -> None:
    held, _ = filled("sudoku9x9", num=1)
    (entry,) = held.state()["solved"]
    length = entry["actions"].shape[1]
    certain = np.zeros(length, np.float32)
    certain[length // 2] = 1.0
    for _ in range(60):  # every state of the own order is drawn at some time
        lesson = held.draw(64)
        lesson.doubt(
            np.array([0.0 if p is None else certain[p[2]] for p in lesson.place], np.float32)
        )
    counts = np.bincount([p[2] for p in held.draw(2000).place if p is not None], minlength=length)
    assert counts.argmax() == length // 2
    assert counts[length // 2] > 0.4 * counts.sum()
