"""Streamed ACT and DIS: which samples, which steps, which targets, and the official numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import Golden
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.catalogue import resolve_task
from plan_envs.domain import Verdict
from supervised.data_sets.datasets import BoardDataset, DatasetInfo, TokenBatch
from supervised.data_sets.sampling import Reveal, SampleStream
from supervised.objectives.act import ActConfig, ActObjective
from supervised.objectives.dis import DisConfig, DisObjective
from supervised.objectives.losses import probabilities, sample_losses, step_losses
from trm.nn.recursion import Latents, RecursionSchedule
from trm.nn.stablemax import IGNORE
from trm.nn.token_model import StepOutput, TokenModel, TokenModelConfig, TokenShape

TINY: dict[str, Any] = {"width": 16, "heads": 2, "layers": 1, "prefix": 2, "puzzle_channels": 16}


class Rows:
    """A data set of given tensors; image drawing is not its business."""

    def __init__(self, inputs: Tensor, labels: Tensor, puzzle: Tensor, vocab: int) -> None:
        self.inputs, self.labels, self.puzzle = inputs, labels, puzzle
        self.info = DatasetInfo(
            name="rows",
            domain="none",
            vocab_size=vocab,
            num_positions=inputs.shape[1],
            num_puzzles=int(puzzle.max()) + 1,
            counts={"train": len(inputs)},
        )
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Any, generator: np.random.Generator | None = None) -> TokenBatch:
        index = torch.from_numpy(np.asarray(indices))
        self.asked += index.tolist()
        return TokenBatch(
            inputs=self.inputs[index],
            labels=self.labels[index],
            puzzle=self.puzzle[index],
            example=index,
        )

    def verdict(self, batch: TokenBatch, predicted: Tensor) -> Verdict:
        raise NotImplementedError


def rows(count: int = 7, positions: int = 5) -> Rows:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 4, (2, count, positions), generator=generator)
    return Rows(tokens[0], tokens[1], torch.arange(count) % 3, vocab=4)


def tiny(data: Rows, *, supervision: int, cycles: int = 2, **config: Any) -> TokenModel:
    info = data.info
    return TokenModel(
        TokenShape(
            vocab_size=info.vocab_size,
            num_positions=info.num_positions,
            num_puzzles=info.num_puzzles,
        ),
        TokenModelConfig(**{**TINY, **config}),
        RecursionSchedule(cycles=cycles, inner=2, supervision=supervision),
        generator=torch.Generator().manual_seed(0),
    )


def stream(data: Any, seed: int = 0) -> SampleStream:
    return SampleStream(data, order=np.random.default_rng(seed))


def act(data: Rows, *, halting: float, supervision: int = 4, **config: Any) -> ActObjective:
    """An objective whose halting logit is a constant."""
    model = tiny(data, supervision=supervision)
    assert model.halt is not None
    nn.init.constant_(model.halt.bias, halting)
    return ActObjective(
        model,
        stream(data),
        ActConfig(**{"exploration": 0.0, **config}),
        batch_size=3,
        noise=torch.Generator().manual_seed(1),
    )


# --- the stream


def test_every_pass_visits_each_example_once_and_processes_share_it_without_overlap() -> None:
    data = rows(count=8)
    parts = [
        SampleStream(data, order=np.random.default_rng(5), rank=rank, world=2).take(4)
        for rank in (0, 1)
    ]
    seen = torch.cat([part.example for part in parts]).tolist()
    assert sorted(seen) == list(range(8))
    alone = stream(data)
    for _ in range(3):
        assert sorted(alone.take(8).example.tolist()) == list(range(8))
    assert alone.drawn == 24


# --- ACT


def test_a_sequence_that_never_wants_to_halt_keeps_its_sample_for_all_steps() -> None:
    data = rows()
    objective = act(data, halting=-5.0, supervision=4)
    for call in range(8):
        objective.step()
        assert objective.steps.tolist() == [call % 4 + 1] * 3
        assert objective.stream.drawn == (3 if call < 4 else 6)
    assert data.asked == stream(rows()).take(6).example.tolist()


def test_a_sequence_that_always_halts_pulls_a_sample_every_step() -> None:
    objective = act(rows(), halting=5.0)
    for call in range(1, 6):
        objective.step()
        assert bool(objective.halted.all()) and objective.stream.drawn == 3 * call
    assert objective.figures.take()["steps"] == 1.0


def test_exploration_makes_halting_wait_for_a_number_of_steps_drawn_anew_each_step() -> None:
    # Every logit wants to halt, exploration 1: no sequence ends at step 1, and at step 2 one in
    # three does (min ~ U{2, 3, 4}); at step 3 two in three of the rest, at step 4 all.
    data = rows()
    model = tiny(data, supervision=4)
    assert model.halt is not None
    nn.init.constant_(model.halt.bias, 5.0)
    objective = ActObjective(
        model,
        stream(data),
        ActConfig(exploration=1.0),
        batch_size=600,
        noise=torch.Generator().manual_seed(1),
    )
    objective.step()
    assert not bool(objective.halted.any())
    objective.step()
    second = float(objective.halted.float().mean())
    assert second == pytest.approx(1 / 3, abs=0.06)
    running = ~objective.halted
    objective.step()
    third = float(objective.halted[running].float().mean())
    assert third == pytest.approx(2 / 3, abs=0.08)
    objective.step()
    assert bool(objective.halted[objective.steps == 4].all())


def test_a_new_sample_starts_from_the_initial_latents_and_others_go_on() -> None:
    data = rows(count=40)
    objective = act(data, halting=0.0)
    model = objective.model
    objective.step()
    before = objective.state()
    before = {name: before[name] for name in ("batch", "latents")}
    objective.halted = torch.tensor([True, False, True])
    example = before["batch"]["example"].clone()
    with torch.no_grad():
        start = model.start(3)
        latents = objective.carried.latents.restarted(objective.halted, start)
        expected_examples = objective.stream
    loss = objective.step().loss
    now = objective.state()["batch"]["example"]
    assert now[1] == example[1] and now[0] != example[0] and now[2] != example[2]
    assert expected_examples.drawn == 5
    batch = data.batch(now.numpy())
    out = model(latents, batch.inputs, model.puzzle_rows(batch.puzzle))
    token = sample_losses(out.logits, batch.labels, kind="stablemax").mean()
    # The halting logit is 0 everywhere: its loss is ln 2 whatever the target.
    assert float(loss.detach()) == pytest.approx(float(token.detach()) + 0.5 * np.log(2), rel=1e-5)


@pytest.mark.parametrize("name", ["att", "mlp"])
def test_two_streamed_steps_have_the_losses_and_flags_of_the_official_code(
    data_folder: Path, name: str
) -> None:
    golden = Golden(data_folder, name)
    data = Rows(golden.inputs, golden.labels, golden.puzzle, vocab=7)

    class InOrder(SampleStream):
        """Slots pull the sample that they had: [0, 1, 2], then those that halted."""

        def take(self, count: int) -> TokenBatch:
            wanted: NDArray[Any] = np.flatnonzero(objective.halted.numpy())
            assert len(wanted) == count
            return data.batch(wanted)

    objective = ActObjective(
        golden.model,
        InOrder(data, order=np.random.default_rng(0)),
        ActConfig(exploration=0.0),
        batch_size=3,
        noise=torch.Generator(),
    )
    for step in (1, 2):
        loss = objective.step().loss.detach()
        expected = {key: golden.tensors[f"train.step{step}.{key}"] for key in ("halted", "steps")}
        official = golden.tensors[f"train.step{step}.loss_sum"]
        torch.testing.assert_close(loss[None] * 3, official, rtol=3e-5, atol=0)
        assert torch.equal(objective.halted, expected["halted"])
        assert torch.equal(objective.steps, expected["steps"].long())


def test_the_continue_logit_is_regressed_on_the_value_of_the_next_step() -> None:
    data = rows()
    model = tiny(data, supervision=3)
    assert model.halt is not None
    nn.init.normal_(model.halt.weight, generator=torch.Generator().manual_seed(2))
    nn.init.constant_(model.halt.bias, 0.0)
    objective = ActObjective(
        model,
        stream(data),
        ActConfig(continue_loss=True, exploration=0.0),
        batch_size=3,
        noise=torch.Generator(),
    )
    objective.step()
    state = objective.state()
    batch = TokenBatch(**state["batch"])
    with torch.no_grad():
        after = model(objective.carried.latents, batch.inputs, model.puzzle_rows(batch.puzzle))
    best = after.halting.amax(dim=1).sigmoid()
    assert torch.allclose(objective._value_of_going_on(), best)
    objective.steps = torch.full((3,), 3)
    assert torch.allclose(objective._value_of_going_on(), after.halting[:, 0].sigmoid())


# --- DIS


def dis(data: Rows, *, supervision: int = 6, **config: Any) -> DisObjective:
    model = tiny(data, supervision=supervision, cycles=1, step_embedding=True, halting_head=False)
    return DisObjective(
        model,
        stream(data),
        DisConfig(**config),
        batch_size=3,
        noise=torch.Generator().manual_seed(1),
    )


def test_dis_spends_eighteen_network_calls_on_a_sample() -> None:
    objective = dis(rows())
    calls = 0
    run = objective.model._run

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return run(*arguments)

    objective.model._run = counted
    for _ in range(6):
        objective.step()
    assert calls == 18 and objective.stream.drawn == 3
    objective.step()
    assert objective.stream.drawn == 6


def test_step_s_is_trained_on_frame_s_with_its_weight() -> None:
    data = rows()
    objective = dis(data, targets="nested", weights="linear")
    twin = dis(data, targets="nested").model
    latents = twin.start(3)
    losses = []
    for s in range(1, 7):
        step = objective.step()
        state = objective.state()
        batch, frames = TokenBatch(**state["batch"]), state["frames"]
        out = twin(latents, batch.inputs, twin.puzzle_rows(batch.puzzle), step=s)
        latents = out.latents.detach()
        expected = sample_losses(out.logits, frames[s], kind="stablemax").mean() * s / 3.5
        losses.append(float(step.loss.detach()))
        assert losses[-1] == pytest.approx(float(expected.detach()), rel=1e-6)
        assert step.complete
    assert torch.equal(frames[6], batch.labels)


def test_predictions_are_fed_back_in_place_of_the_input_when_asked_for() -> None:
    objective = dis(rows(), feeds="prediction")
    objective.step()
    state = objective.state()
    batch = TokenBatch(**state["batch"])
    with torch.no_grad():
        model = objective.model
        out = model(model.start(3), batch.inputs, model.puzzle_rows(batch.puzzle), step=1)
    assert torch.equal(state["inputs"], out.logits.argmax(dim=-1))
    fixed = dis(rows(), feeds="input")
    fixed.step()
    assert torch.equal(fixed.state()["inputs"], fixed.state()["batch"]["inputs"])


def test_the_dual_loss_adds_the_anchor_of_the_readout_before_the_step() -> None:
    single, dual = (dis(rows(), terms=terms, weights="uniform") for terms in ("single", "dual"))
    difference = float(dual.step().loss.detach() - single.step().loss.detach())
    state = dual.state()
    anchor = dual.model.read(dual.model.start(3), TokenBatch(**state["batch"]).inputs)
    expected = sample_losses(anchor, state["frames"][0], kind="stablemax").mean()
    assert difference == pytest.approx(float(expected.detach()), rel=1e-6)


def test_with_updates_sum_only_the_last_step_of_a_sample_is_complete() -> None:
    objective = dis(rows(), updates="sum")
    complete = [objective.step().complete for _ in range(12)]
    assert complete == [False] * 5 + [True] + [False] * 5 + [True]


@pytest.mark.parametrize("kind", ["act", "dis"])
def test_an_objective_goes_on_from_its_state_bit_by_bit(kind: str) -> None:
    def make() -> Any:
        return act(rows(), halting=-0.1, exploration=0.3) if kind == "act" else dis(rows())

    first = make()
    for _ in range(5):
        first.step()
    second = make()
    second.load_state(first.state())
    second.stream.load_state(first.stream.state())
    second.noise.set_state(first.noise.get_state())
    second.stream._order.bit_generator.state = first.stream._order.bit_generator.state
    for _ in range(9):
        a, b = first.step(), second.step()
        assert torch.equal(a.loss, b.loss) and torch.equal(a.rows, b.rows)
    assert first.figures.take() == second.figures.take()


def test_the_binary_loss_asks_every_token_of_the_vocabulary_by_itself() -> None:
    logits = torch.tensor([[[2.0, -1.0, 0.0], [5.0, 5.0, 5.0]]])
    labels = torch.tensor([[0, IGNORE]])
    # -log sigmoid(2) - log sigmoid(1) - log sigmoid(0)
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)
    (ours,) = sample_losses(logits, labels, kind="bce").tolist()
    assert ours == pytest.approx(expected, rel=1e-6)
    assert torch.equal(probabilities(logits, kind="bce"), logits.sigmoid())
    for kind in ("softmax", "stablemax"):
        total = probabilities(logits, kind=kind).sum(dim=-1)  # type: ignore[arg-type]
        assert total.flatten().tolist() == pytest.approx([1.0, 1.0])


def test_a_step_is_trained_on_the_mean_of_all_that_it_read() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, 4, generator=draws) for _ in range(3)]
    labels = torch.tensor([[1, IGNORE, 2], [3, 0, 0]])
    zero = torch.zeros(2, 1, 1)
    out = StepOutput(
        latents=Latents(z_h=zero, z_l=zero),
        logits=logits[0],
        halting=None,
        early_logits=tuple(logits[1:]),
    )
    each = torch.stack([sample_losses(one, labels, kind="stablemax") for one in logits])
    torch.testing.assert_close(step_losses(out, labels, kind="stablemax"), each.mean(dim=0))


def test_revealing_writes_labels_into_blanks_alone_and_in_every_share() -> None:
    data = BoardDataset.of(*_queens(200))
    plain = SampleStream(data, order=np.random.default_rng(0)).take(200)
    reveal = Reveal(1.0, np.random.default_rng(1))
    shown = SampleStream(data, order=np.random.default_rng(0), reveal=reveal).take(200)
    assert torch.equal(plain.labels, shown.labels) and torch.equal(plain.example, shown.example)
    changed = plain.inputs != shown.inputs
    assert bool((plain.inputs[changed] == 1).all())
    assert torch.equal(shown.inputs[changed], plain.labels[changed])
    missing = ((plain.labels == 2) & (plain.inputs == 1)).sum(dim=1)
    share = changed.sum(dim=1) / missing
    # Uniform from 0 to 1: its mean is a half, and all and none of the queens occur.
    assert float(share.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(share.min()) == 0.0 and float(share.max()) == 1.0
    none = Reveal(0.0, np.random.default_rng(1))(plain)
    assert torch.equal(none.inputs, plain.inputs)


def _queens(num: int) -> Any:
    task = resolve_task("nqueens8")
    return task.domain, task.instances("test", num=num)


def test_softmax_losses_are_those_of_torch_per_sample() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, IGNORE, 2], [IGNORE, IGNORE, IGNORE]])
    ours = sample_losses(logits, labels, kind="softmax")
    expected = nn.functional.cross_entropy(logits[0, [0, 2]], torch.tensor([1, 2]))
    assert ours.tolist() == pytest.approx([float(expected), 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActConfig(exploration=1.5), r"act.exploration must lie in \[0, 1\], got 1.5"),
        (lambda: DisConfig(initial_corruption=0.0), "dis.initial_corruption must lie in"),
        (lambda: DisConfig(corruption_power=0.0), "dis.corruption_power must be positive"),
    ],
)
def test_a_section_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
