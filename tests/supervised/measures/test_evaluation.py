"""Guidance, margin and curves: autograd, worked numbers, and predictors whose figures are known."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plan_envs.catalogue import resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.queens.instances import count_completions
from supervised.data_sets.datasets import BoardDataset
from supervised.measures.commit import commit_decode, evaluate_commit
from supervised.measures.evaluation import EvalOptions, evaluate, unroll_steps
from supervised.measures.guidance import advantage_margin, guided_logits, hamming_distance
from trm.compute.workers import Workers
from trm.nn.recursion import RecursionSchedule
from trm.nn.stablemax import IGNORE
from trm.nn.token_model import TokenModel, TokenModelConfig, TokenShape


@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_the_margin_is_minus_the_derivative_of_the_loss_in_w(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reference, conditional = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (3, 4), generator=generator)
    w = torch.full((3, 4), weight, dtype=torch.float64, requires_grad=True)
    logits = reference + w[..., None] * (conditional - reference)
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, w)
    margin = advantage_margin(reference, conditional, labels, weight=weight)
    torch.testing.assert_close(margin, -gradient)


def test_the_margin_of_two_tokens_is_worked_out_by_hand() -> None:
    # Delta = (1, 0), w = 1 from equal logits: pi_w(y) = e / (e + 1), margin = 1 - e / (e + 1).
    reference, conditional = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    margin = advantage_margin(reference, conditional, torch.tensor([[0, IGNORE]]))
    assert margin.tolist() == [[pytest.approx(1 / (1 + np.e)), 0.0]]


def test_guidance_interpolates_between_the_readouts() -> None:
    before, after = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert torch.equal(guided_logits(before, after, weight=1.0), after)
    assert torch.equal(guided_logits(before, after, weight=0.0), before)
    assert guided_logits(before, after, weight=2.0).tolist() == [[2.0, -2.0]]


def test_hamming_distance_counts_supervised_tokens_alone() -> None:
    predicted, labels = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, IGNORE]])
    assert hamming_distance(predicted, labels).tolist() == [1]


def sudoku(num: int = 6) -> BoardDataset:
    task = resolve_task("sudoku4x4-hard")
    return BoardDataset.of(task.domain, task.instances("test", num=num))


def model_for(data: BoardDataset, **config: Any) -> TokenModel:
    info = data.info
    return TokenModel(
        TokenShape(vocab_size=info.vocab_size, num_positions=info.num_positions),
        TokenModelConfig(width=16, heads=2, layers=1, prefix=1, puzzle_channels=0, **config),
        RecursionSchedule(cycles=1, inner=1, supervision=4),
        generator=torch.Generator().manual_seed(0),
    )


class Oracle(TokenModel):
    """Predicts the label in some rows of a batch from some step on, nonsense before."""

    solves: dict[int, int]
    labels: torch.Tensor

    def forward(self, latents: Any, inputs: Any, puzzle_rows: Any, *, step: Any = None) -> Any:
        out = super().forward(latents, inputs, puzzle_rows, step=step)
        tokens = torch.ones_like(self.labels)
        for row, first in self.solves.items():
            if step >= first:
                tokens[row] = self.labels[row]
        logits = nn.functional.one_hot(tokens, self.shape.vocab_size).float() * 9
        halting = torch.full((len(inputs), 2), -1.0)
        for row, first in self.solves.items():
            halting[row, 0] = 1.0 if step >= first else -1.0
        return type(out)(latents=out.latents, logits=logits, halting=halting)


def oracle(data: BoardDataset, solves: dict[int, int]) -> TokenModel:
    model = model_for(data)
    model.__class__ = Oracle
    assert isinstance(model, Oracle)
    model.solves, model.labels = solves, data.batch(np.arange(len(data))).labels
    return model


def test_a_curve_shows_which_step_solves_what_and_early_exit_stops_there() -> None:
    data = sudoku(6)
    found = evaluate(oracle(data, {0: 1, 1: 2, 2: 2, 3: 4}), data, EvalOptions(batch_size=6))
    assert [round(point.exact * 6) for point in found.curve] == [1, 3, 3, 4]
    assert [round(point.valid * 6) for point in found.curve] == [1, 3, 3, 4]
    assert found.curve[2].changed == 0.0 and found.curve[1].changed > 0
    assert found.last.hamming == pytest.approx(16 * 2 / 6)  # two boards of blanks
    assert found.early_exit is not None
    # Rows 0-3 stop at 1, 2, 2, 4 and the two that never want to at the last step, 4.
    assert found.early_exit["steps"] == pytest.approx((1 + 2 + 2 + 4 + 4 + 4) / 6)
    assert found.early_exit["exact"] == pytest.approx(4 / 6)


def test_valid_counts_another_completion_that_exact_does_not() -> None:
    task = resolve_task("sudoku4x4-hard")
    empty = np.zeros((1, 16), np.int8)
    solution = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]], np.int8)
    data = BoardDataset.of(task.domain, InstanceSet.of("empty", empty, solution))
    model = oracle(data, {0: 1})
    assert isinstance(model, Oracle)
    swap = {2: 3, 3: 2}  # tokens of the digits 1 and 2 swapped: solved too, but not the label
    model.labels = model.labels.clone().apply_(lambda token: swap.get(token, token))
    found = evaluate(model, data)
    assert found.last.valid == 1.0 and found.last.exact == 0.0


def test_a_batch_of_many_is_as_many_batches_of_one() -> None:
    data = sudoku(5)
    model = model_for(data)
    whole = evaluate(model, data, EvalOptions(batch_size=5))
    single = evaluate(model, data, EvalOptions(batch_size=1))
    for a, b in zip(whole.curve, single.curve, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.exact == b.exact
        assert a.margin == pytest.approx(b.margin, abs=1e-5)


@pytest.mark.parametrize("num", [5, 1])
def test_processes_that_share_the_examples_get_the_figures_of_all(num: int) -> None:
    data = sudoku(5)
    model = model_for(data)
    parts: dict[int, Any] = {}

    class OneOfTwo(Workers):
        def gather(self, value: Any) -> list[Any]:
            parts[self.rank] = value
            return [parts[rank] for rank in sorted(parts)]

    alone = evaluate(model, data, EvalOptions(batch_size=1, num=num))
    for rank in (1, 0):
        shared = EvalOptions(batch_size=1, num=num)
        found = evaluate(model, data, shared, workers=OneOfTwo(rank=rank, size=2))
    assert found == alone
    assert [len(tables) for tables, _ in (parts[0], parts[1])] == [num // 2, num - num // 2]


def test_guidance_one_is_the_model_and_zero_repeats_the_step_before() -> None:
    data = sudoku(3)
    model, batch = model_for(data), data.batch([0, 1, 2])
    plain = list(unroll_steps(model, batch, EvalOptions(steps=3)))
    for readout in plain:
        assert torch.equal(readout.guided, readout.conditional)
    undone = list(unroll_steps(model, batch, EvalOptions(steps=3, guidance=0.0)))
    for readout in undone:
        assert torch.equal(readout.guided, readout.reference)
    assert torch.equal(plain[0].conditional, plain[1].reference)


def test_noise_is_seeded_and_selection_needs_samples_and_noise() -> None:
    data = sudoku(4)
    model = model_for(data)
    options = EvalOptions(noise=0.5, samples=3)

    def run(seed: int) -> Any:
        return evaluate(model, data, options, generator=torch.Generator().manual_seed(seed))

    assert run(1) == run(1)
    assert run(1).curve[-1].loss != run(2).curve[-1].loss
    assert set(run(1).selected) >= {"valid_by_checker", "valid_by_halting", "exact_by_halting"}
    with pytest.raises(ValueError, match="noise needs a generator"):
        evaluate(model, data, options)
    with pytest.raises(ValueError, match="samples 3 need noise above 0"):
        EvalOptions(samples=3)


class QueenOracle(TokenModel):
    """Sure of one queen at a time: the first free square of the label that is not on the board."""

    labels: torch.Tensor
    asked: list[int]

    def forward(self, latents: Any, inputs: Any, puzzle_rows: Any, *, step: Any = None) -> Any:
        out = super().forward(latents, inputs, puzzle_rows, step=step)
        self.asked.append(len(inputs))
        logits = torch.zeros(*inputs.shape, self.shape.vocab_size)
        for row, board in enumerate(inputs):
            # The one label that agrees with the queens on the board (the tests use such boards).
            fits = [label for label in self.labels if bool((label[board == 2] == 2).all())]
            missing = (fits[0] == 2) & (board != 2)
            logits[row, missing, 2] = 1.0
            logits[row, missing.nonzero()[0], 2] = 9.0
        return type(out)(latents=out.latents, logits=logits, halting=out.halting)


def test_commit_decoding_places_one_queen_a_pass_until_the_board_is_full() -> None:
    task = resolve_task("nqueens8")
    data = BoardDataset.of(task.domain, task.instances("test", num=12))
    model = model_for(data)
    model.__class__ = QueenOracle
    assert isinstance(model, QueenOracle)
    model.asked = []
    boards = data.batch(np.arange(12))
    # Each board with the queens of its own label alone.
    given = (boards.inputs == 2).sum(dim=1)
    found = []
    for row in range(12):
        model.labels = boards.labels[row : row + 1]
        board, passes = commit_decode(model, data.batch([row]), EvalOptions(steps=2), writes=8)
        assert torch.equal(board, boards.labels[row : row + 1])
        found.append(int(passes))
    assert found == (8 - given).tolist()
    assert sum(model.asked) == 2 * sum(found)


class TwoMinds(TokenModel):
    """One square is the likeliest among its own tokens, another has the better odds."""

    def forward(self, latents: Any, inputs: Any, puzzle_rows: Any, *, step: Any = None) -> Any:
        out = super().forward(latents, inputs, puzzle_rows, step=step)
        logits = torch.zeros(*inputs.shape, 3)
        logits[:, 0] = torch.tensor([-9.0, -9.0, 1.0])  # likely among its tokens, odds of e
        logits[:, 7] = torch.tensor([2.0, 2.0, 2.0])  # a third among its tokens, odds of e^2
        return type(out)(latents=out.latents, logits=logits, halting=out.halting)


@pytest.mark.parametrize(("loss", "first"), [("stablemax", 0), ("softmax", 0), ("bce", 7)])
def test_commit_decoding_is_sure_by_the_probabilities_that_were_trained(
    loss: Any, first: int
) -> None:
    task = resolve_task("nqueens8")
    data = BoardDataset.of(task.domain, task.instances("test", num=1))
    model = model_for(data)
    model.__class__ = TwoMinds
    batch = data.batch([0])
    empty = dataclasses.replace(batch, inputs=torch.ones_like(batch.inputs))
    board, _ = commit_decode(model, empty, EvalOptions(steps=1, loss=loss), writes=1)
    assert (board[0] == 2).nonzero().flatten().tolist() == [first]


def test_a_committed_board_is_judged_by_the_checker_and_among_the_unique_ones() -> None:
    task = resolve_task("nqueens8")
    data = BoardDataset.of(task.domain, task.instances("test", num=30))
    model = model_for(data)
    found = evaluate_commit(model, data, EvalOptions(batch_size=7))
    assert found.num == 30 and found.valid < 0.5  # an untrained model
    batch = data.batch(np.arange(30))
    counts = count_completions((batch.inputs.numpy() - 1).astype(np.int8), n=8)
    assert found.unique == pytest.approx((counts == 1).mean())
    given = (batch.inputs == 2).sum(dim=1).double().mean()
    assert found.passes == pytest.approx(8 - float(given))


def test_commit_decoding_is_refused_where_blanks_are_no_token() -> None:
    task = resolve_task("maze10")
    data = BoardDataset.of(task.domain, task.instances("test", num=2))
    with pytest.raises(ValueError, match="is for Sudoku and N-Queens, not for 'maze10x10'"):
        evaluate_commit(model_for(data), data, EvalOptions())
