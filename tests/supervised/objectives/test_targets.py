"""Target generators: every path ends in the label, nested ones only ever come closer."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from plan_envs.catalogue import resolve_task
from supervised.data_sets.datasets import BoardDataset, TokenBatch
from supervised.objectives.targets import (
    Corruption,
    InputPath,
    SolverOrder,
    corruption_rate,
    final_targets,
    random_order,
)
from trm.nn.stablemax import IGNORE

STEPS = st.integers(1, 9)


def board(task_name: str, num: int = 4) -> BoardDataset:
    task = resolve_task(task_name)
    return BoardDataset.of(task.domain, task.instances("train", num=num))


def batch(seed: int = 0, rows: int = 4, positions: int = 12) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randint(1, 6, (2, rows, positions), generator=generator)
    labels[:, :2] = IGNORE
    return TokenBatch(
        inputs=inputs,
        labels=labels,
        puzzle=torch.zeros(rows, dtype=torch.long),
        example=torch.arange(rows),
    )


def distance(frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (frames != labels).sum(dim=-1)


GENERATORS: dict[str, Any] = {
    "final": final_targets,
    "input_path": InputPath(random_order),
} | {
    f"{kind}-{shown}": Corruption(nested=kind == "nested", shown=shown, vocab_size=6)
    for kind in ("nested", "independent")
    for shown in ("mask", "input", "ignored", "random")
}


@pytest.mark.parametrize("name", GENERATORS)
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_a_path_ends_in_the_label_and_keeps_what_is_not_supervised(
    name: str, steps: int, seed: int
) -> None:
    given_batch = batch(seed)
    frames = GENERATORS[name](given_batch, steps, torch.Generator().manual_seed(seed))
    assert frames.shape == (steps + 1, *given_batch.labels.shape)
    assert torch.equal(frames[-1], given_batch.labels)
    assert bool((frames[:, :, :2] == IGNORE).all())


@pytest.mark.parametrize("name", [n for n in GENERATORS if not n.startswith("independent")])
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_along_a_nested_path_no_position_turns_away_from_the_label(
    name: str, steps: int, seed: int
) -> None:
    given_batch = batch(seed)
    frames = GENERATORS[name](given_batch, steps, torch.Generator().manual_seed(seed))
    wrong = frames != given_batch.labels
    assert not bool((wrong[1:] & ~wrong[:-1]).any())


@pytest.mark.parametrize("nested", [True, False])
def test_the_share_of_corrupted_tokens_falls_by_the_schedule(nested: bool) -> None:
    given_batch = batch(rows=400, positions=40)
    generator = Corruption(nested=nested, shown="mask", vocab_size=6, initial=0.8, power=2.0)
    frames = generator(given_batch, 4, torch.Generator().manual_seed(0))
    shares = (frames[:, :, 2:] == 0).double().mean(dim=(1, 2)).tolist()
    expected = [0.8 * (1 - s / 4) ** 2 for s in range(5)]
    assert shares == pytest.approx(expected, abs=0.015)
    assert [corruption_rate(s, steps=4, initial=0.8, power=2.0) for s in range(5)] == expected


def test_independent_corruption_may_turn_back_and_nested_may_not() -> None:
    given_batch = batch(rows=50)
    frames = GENERATORS["independent-mask"](given_batch, 6, torch.Generator())
    wrong = frames != given_batch.labels
    assert bool((wrong[1:] & ~wrong[:-1]).any())


@given(steps=STEPS, seed=st.integers(0, 1000))
def test_frame_s_of_an_input_path_shows_the_authors_number_of_edits(steps: int, seed: int) -> None:
    given_batch = batch(seed)
    frames = InputPath(random_order)(given_batch, steps, torch.Generator().manual_seed(seed))
    differs = (given_batch.inputs != given_batch.labels) & (given_batch.labels != IGNORE)
    edits = differs.sum(dim=1)
    for step in range(steps + 1):
        left = distance(frames[step], given_batch.labels)
        assert torch.equal(left, edits - step * edits // steps)
    first = torch.where(given_batch.labels == IGNORE, IGNORE, given_batch.inputs)
    assert torch.equal(frames[0], first)


@pytest.mark.parametrize("task_name", ["sudoku4x4-hard", "nqueens8", "maze10"])
def test_a_solver_edits_every_position_that_differs_in_a_legal_order(task_name: str) -> None:
    data = board(task_name)
    given_batch = data.batch(np.arange(len(data)))
    order = SolverOrder(data.codec)(given_batch, torch.Generator().manual_seed(0))
    differs = (given_batch.inputs != given_batch.labels) & (given_batch.labels != IGNORE)
    domain = data.codec.domain
    instances, solutions = data.codec.decode(given_batch.inputs.numpy(), given_batch.labels.numpy())
    plans = domain.initial(instances)
    for row in range(len(given_batch.inputs)):
        moves = order[row].isfinite()
        if task_name != "maze10":  # the last move of a path goes to the goal, which shows already
            assert torch.equal(moves, differs[row])
        assert bool(moves[differs[row]].all())
        finite = order[row][moves]
        assert sorted(finite.tolist()) == list(range(len(finite)))
        state, plan = instances[row : row + 1], plans[row : row + 1]
        for cell in order[row].argsort()[: len(finite)].tolist():
            legal = np.flatnonzero(domain.action_mask(state, plan)[0])
            edited = [
                domain.edit(state, plan, np.array([action], np.int32))
                for action in legal
                if domain.spec.action_cell[action] == cell
            ]
            free = task_name == "maze10"  # a cell of a path is written when the path goes on
            right = [e for e in edited if free or e[0, cell] == solutions[row, cell]]
            assert len(right) == 1
            plan = right[0]
        assert bool(domain.check(state, plan).solved[0])


def test_a_sudoku_solver_fills_cells_with_one_candidate_first() -> None:
    data = board("sudoku4x4-hard", num=20)
    given_batch = data.batch(np.arange(20))
    order = SolverOrder(data.codec)(given_batch, torch.Generator().manual_seed(0))
    domain = data.codec.domain
    instances, _ = data.codec.decode(given_batch.inputs.numpy(), given_batch.inputs.numpy())
    legal = domain.action_mask(instances, domain.initial(instances))
    value, cell = domain.spec.action_value, domain.spec.action_cell
    for row in range(20):
        counts = np.bincount(cell[(legal[row] == 1) & (value > 0)], minlength=16)
        first = int(order[row].argmin())
        open_cells = np.flatnonzero(counts)
        assert counts[first] == counts[open_cells].min()
