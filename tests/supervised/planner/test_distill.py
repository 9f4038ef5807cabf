"""Distillation losses token by token; which slot learns from which entry."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_cases import build_here, dataset, with_storage
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from supervised.data_sets.datasets import IGNORE, TokenBatch
from supervised.planner.distill import Distillation, DistillConfig, hard_losses, soft_losses
from supervised.planner.teacher_cache import TeacherCache, TeacherTargets
from trm.nn.stablemax import stablemax_probabilities

BATCH, LENGTH, VOCAB = 3, 5, 4


def case(seed: int) -> tuple[Tensor, Tensor, TeacherTargets]:
    """Student logits, labels with unsupervised tokens, targets of which the second has none."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(BATCH, LENGTH, VOCAB, generator=generator)
    labels = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
    labels[0, :2] = labels[2, 4] = IGNORE
    teacher = 4 * torch.randn(BATCH, LENGTH, VOCAB, generator=generator)
    targets = TeacherTargets(
        available=torch.tensor([True, False, True]),
        tokens=teacher.argmax(dim=-1),
        logits=teacher,
        loss=torch.zeros(BATCH),
        step=torch.ones(BATCH, dtype=torch.int64),
    )
    return logits, labels, targets


@given(st.integers(0, 2**32 - 1))
def test_hard_losses_are_those_of_eq_17(seed: int) -> None:
    logits, labels, targets = case(seed)
    found = hard_losses(logits, labels, targets)
    for row in range(BATCH):
        terms = [
            -math.log(float(stablemax_probabilities(logits[row, i])[targets.tokens[row, i]]))
            for i in range(LENGTH)
            if labels[row, i] != IGNORE and targets.available[row]
        ]
        assert float(found[row]) == pytest.approx(sum(terms) / len(terms) if terms else 0.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_soft_losses_are_those_of_eq_18(seed: int, temperature: float) -> None:
    logits, labels, targets = case(seed)
    assert targets.logits is not None
    found = soft_losses(logits, labels, targets, temperature=temperature)
    for row in range(BATCH):
        terms = []
        for i in range(LENGTH):
            if labels[row, i] != IGNORE and targets.available[row]:
                p = stablemax_probabilities(targets.logits[row, i] / temperature)
                q = stablemax_probabilities(logits[row, i] / temperature)
                terms.append(float((p * (p / q).log()).sum()))
        mean = sum(terms) / len(terms) if terms else 0.0
        assert float(found[row]) == pytest.approx(temperature**2 * mean, abs=1e-9)


def test_a_student_that_equals_its_teacher_has_no_soft_loss_and_no_gradient() -> None:
    _, labels, targets = case(0)
    assert targets.logits is not None
    logits = targets.logits.clone().requires_grad_()
    losses = soft_losses(logits, labels, targets, temperature=2.0)
    losses.sum().backward()
    assert losses.detach().abs().max() < 1e-12
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_only_supervised_tokens_of_examples_with_an_entry_get_a_gradient() -> None:
    logits, labels, targets = case(1)
    for losses in (hard_losses, lambda *a: soft_losses(*a, temperature=1.0)):
        student = logits.clone().requires_grad_()
        losses(student, labels, targets).sum().backward()
        assert student.grad is not None
        moved = student.grad.abs().sum(dim=-1) > 0
        assert torch.equal(moved, (labels != IGNORE) & targets.available[:, None])


def test_every_example_weighs_the_same_however_many_tokens_it_has() -> None:
    logits, labels, targets = case(2)
    alone = hard_losses(logits, labels, targets)
    fewer = labels.clone()
    fewer[2, 1:] = IGNORE
    changed = hard_losses(logits, fewer, targets)
    assert changed[0] == alone[0]
    one = -math.log(float(stablemax_probabilities(logits[2, 0])[targets.tokens[2, 0]]))
    assert float(changed[2]) == pytest.approx(one)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"distill\.weight"),
        ({"quality": 0.0}, r"distill\.quality"),
        ({"temperature": 0.0}, r"distill\.temperature"),
        ({"kind": "hard", "temperature": 2.0}, r"distill\.temperature is for kind soft"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**fields)  # type: ignore[arg-type]


# --- Slots


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return TeacherCache.open(build_here(tmp_path_factory.mktemp("built") / "cache"))


def slots(cache: TeacherCache, **fields: object) -> Distillation:
    config = DistillConfig(**{"quality": None, **fields})  # type: ignore[arg-type]
    return Distillation(
        cache,
        config,
        batch_size=3,
        rng=np.random.default_rng(0),
        device=torch.device("cpu"),
    )


def logits_of(batch: TokenBatch) -> Tensor:
    return torch.randn(len(batch.inputs), 16, 6, generator=torch.Generator().manual_seed(0))


def test_a_slot_keeps_its_entry_until_it_takes_another_example(cache: TeacherCache) -> None:
    learning = slots(cache)
    assert not learning.available.any()
    batch = dataset().batch([0, 1, 2])
    logits = logits_of(batch)
    assert not learning.losses(logits, batch.labels).any()
    learning.refill(torch.tensor([True, True, True]), batch)
    first = learning.losses(logits, batch.labels)
    assert (first > 0).all()
    learning.refill(torch.tensor([False, True, False]), dataset().batch([7]))
    second = learning.losses(logits, dataset().batch([0, 7, 2]).labels)
    assert torch.equal(second[[0, 2]], first[[0, 2]])
    assert second[1] != first[1]
    expected = soft_losses(
        logits[1:2],
        dataset().batch([7]).labels,
        cache.entry([7], int(learning.state()["chosen"][1, 1])),
        temperature=1.0,
    )
    assert float(second[1]) == pytest.approx(0.25 * float(expected[0]))


def test_the_weight_scales_and_the_filter_takes_away(cache: TeacherCache) -> None:
    batch = dataset().batch([0, 1, 2])
    logits = logits_of(batch)
    light, heavy = slots(cache, weight=0.25), slots(cache, weight=1.0)
    strict = slots(cache, quality=1e-6)
    for learning in (light, heavy, strict):
        learning.refill(torch.tensor([True, True, True]), batch)
    first = light.losses(logits, batch.labels)
    assert torch.allclose(4 * first, heavy.losses(logits, batch.labels))
    assert not strict.available.any()
    assert not strict.losses(logits, batch.labels).any()


def test_a_restored_distillation_goes_on_the_same(cache: TeacherCache) -> None:
    batch = dataset().batch([3, 4, 5])
    one, other = slots(cache, kind="hard"), slots(cache, kind="hard")
    one.refill(torch.tensor([True, True, True]), batch)
    other.load_state(one.state())
    logits = logits_of(batch)
    assert torch.equal(other.losses(logits, batch.labels), one.losses(logits, batch.labels))


def test_soft_distillation_needs_logits(tmp_path: Path) -> None:
    tokens = TeacherCache.open(build_here(tmp_path / "cache", with_storage(logits="none")))
    with pytest.raises(ValueError, match=r"distill\.kind must be hard: .* holds tokens alone"):
        slots(tokens)
    learning = slots(tokens, kind="hard")
    batch = dataset().batch(range(3))
    learning.refill(torch.tensor([True, True, True]), batch)
    assert (learning.losses(logits_of(batch), batch.labels) > 0).all()
    with pytest.raises(ValueError, match="holds tokens alone"):
        soft_losses(logits_of(batch), batch.labels, tokens.entry([0, 1, 2], 0), temperature=1.0)
