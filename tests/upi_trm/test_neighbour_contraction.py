"""The neighbour map's certificate: dense operators, worst cases, the clamp, unrolling on mazes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from plan_envs.catalogue import resolve_task
from trm.experiments.states import model_shape, to_states
from trm.nn.cells import NeighbourMap, neighbour_max
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.nn.recursion import project_ball
from upi_trm.contraction import (
    Certificate,
    ContractionClamp,
    certificate,
    neighbour_norm,
    unroll_bias,
)

SEEDS = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(height: int, width: int) -> Tensor:
    """The four neighbours of every cell, -1 outside."""
    rows = []
    for cell in range(height * width):
        y, x = divmod(cell, width)
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(0 <= i < height and 0 <= j < width) for i, j in around]
        rows.append(
            [i * width + j if ok else -1 for (i, j), ok in zip(around, inside, strict=True)]
        )
    return torch.tensor(rows)


TABLES = {
    "grid": grid(3, 4),
    "line and a cell alone": torch.tensor([[1, -1], [0, 2], [1, -1], [-1, -1]]),
    "triangle": torch.tensor([[1, 2], [0, 2], [0, 1]]),
    "star that is heard": torch.tensor([[-1], [0], [0], [0]]),
}


def random_map(table: Tensor, seed: int, *, channels: int = 3) -> NeighbourMap:
    update = NeighbourMap(table, channels, generator=seeded(seed)).double()
    with torch.no_grad():
        for weight in update.parameters():
            weight.add_(torch.randn(weight.shape, generator=seeded(seed + 1), dtype=weight.dtype))
    return update


def test_one_neighbour_of_many_moves_the_maxima_by_the_root_of_their_number() -> None:
    # Four cells listen to one: moving it by 1 moves four outputs by 1, so sqrt(4) is attained.
    update = NeighbourMap(grid(3, 3), 1, generator=seeded()).double()
    with torch.no_grad():
        update.own.zero_()
        update.message.fill_(1.0)
    moved = torch.zeros(9, 1, dtype=torch.float64)
    moved[4] = 1.0
    start = torch.full((9, 1), 0.0).double()
    heard = [neighbour_max(z, update.neighbours) for z in (start, moved)]
    assert float((heard[1] - heard[0]).norm()) == pytest.approx(2.0)
    assert certificate(update) == pytest.approx(2.0)


@pytest.mark.parametrize("radius", [None, 1.5])
@given(seed=SEEDS, name=st.sampled_from(sorted(TABLES)), apart=st.sampled_from([1e-3, 1.0, 30.0]))
def test_measured_ratios_never_exceed_the_certificate(
    radius: float | None, seed: int, name: str, apart: float
) -> None:
    update = random_map(TABLES[name], seed)
    cells, draws = len(TABLES[name]), seeded(seed + 2)
    one, noise, injection = torch.randn(3, cells, 3, generator=draws, dtype=torch.float64)
    # Few cells move: where the maximum is worst.
    noise = noise * (torch.rand(cells, 1, generator=draws) < 0.4)
    other = one + apart * noise
    with torch.no_grad():
        after = [project_ball(update(z, injection), radius) for z in (one, other)]
    moved, distance = float((after[0] - after[1]).norm()), float((one - other).norm())
    assert moved <= certificate(update) * distance * (1 + 1e-9) + 1e-12


@given(seed=SEEDS, modulus=st.sampled_from([0.3, 0.9]), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_clamp_reaches_the_modulus_and_never_enlarges_a_weight(
    seed: int, modulus: float, scale: float
) -> None:
    update = random_map(TABLES["grid"], seed).float()
    with torch.no_grad():
        for weight in update.parameters():
            weight.mul_(scale)
    before = copy.deepcopy(update)
    within = certificate(before) <= modulus
    assert ContractionClamp(update, modulus).apply() == certificate(update) <= modulus
    for old, new in zip(before.parameters(), update.parameters(), strict=True):
        assert bool((new.abs() <= old.abs()).all())
        assert torch.equal(old, new) == within
    if not within:
        assert certificate(update) == pytest.approx(modulus, rel=1e-5)


@pytest.mark.parametrize("radius", [None, 2.0])
def test_on_mazes_the_unrolling_error_stays_below_proposition_2_3(radius: float | None) -> None:
    task = resolve_task("maze10")
    config = ModelConfig(
        update_map="neighbour",
        channels=5,
        head_width=6,
        radius=radius,
    )
    model = TinyRecursiveModel(model_shape(task.domain.spec), config, generator=seeded()).double()
    ContractionClamp(model.update, 0.9)
    bound = certificate(model.update)
    assert bound == pytest.approx(0.9, rel=1e-5)
    states = maze_states(3)
    with torch.no_grad():
        encoding = model.encode(states)
        fixed = model.recur(encoding, depth=400).view(3, -1)
        first = model.recur(encoding, depth=1).view(3, -1).norm(dim=1)
        for depth in range(0, 24, 3):
            error = (model.recur(encoding, depth=depth).view(3, -1) - fixed).norm(dim=1)
            for miss, step in zip(error.tolist(), first.tolist(), strict=True):
                assert miss <= unroll_bias(bound, depth, step) * (1 + 1e-9) + 1e-12


def maze_states(num: int) -> StateBatch:
    task = resolve_task("maze10")
    boards = task.instances("train", num=num).instances
    plans = task.domain.initial(boards)
    masks = task.domain.action_mask(boards, plans)
    return to_states(boards, plans, masks, torch.device("cpu"))


def test_certificate_computes_in_float64_from_float32_weights() -> None:
    update = random_map(TABLES["grid"], 3).float()
    wide = copy.deepcopy(update).double()
    assert Certificate(update).bound() == pytest.approx(neighbour_norm(wide), rel=1e-14)


def test_a_neighbour_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="a cell is listed twice next to another one"):
        NeighbourMap(torch.tensor([[1, 1], [0, -1]]), 2, generator=seeded())
