"""Adaptive unrolling: each state stops for itself, at the distance that the theory says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import generator, jitter, random_states, small_model

from plan_envs.catalogue import resolve_task
from plan_envs.sudoku.rules import Sudoku
from plan_envs.testing import random_states as states_on_the_way
from trm.experiments.states import model_shape, to_states
from trm.nn.model import ModelConfig, StateBatch, TinyRecursiveModel
from trm.nn.recursion import Unrolled, unroll, unroll_until
from upi_trm.contraction import ContractionClamp, certificate, posterior_bias, unroll_bias
from upi_trm.theory.lipschitz import state_norms

MAPS = ("mlp", "relational", "neighbour")


def model_and_states(
    update_map: str, seed: int = 0, *, modulus: float | None = None, **options: object
) -> tuple[TinyRecursiveModel, StateBatch]:
    """A float64 model, and states of Sudoku or, for maps over cells, of a maze."""
    if update_map != "neighbour":
        domain = Sudoku(4)
        model = small_model(domain, seed, update_map=update_map, **options).double()
        states = random_states(domain, 7, seed)
    else:
        task = resolve_task("maze10")
        config = ModelConfig(update_map="neighbour", channels=5, head_width=6, **options)  # type: ignore[arg-type]
        shape = model_shape(task.domain.spec)
        model = TinyRecursiveModel(shape, config, generator=generator(seed)).double()
        jitter(model, seed + 1, 0.3)
        pool = task.instances("train", num=4).instances
        found = states_on_the_way(task.domain, pool, np.random.default_rng(seed), max_edits=3)
        masks = task.domain.action_mask(found.instances, found.plans)
        states = to_states(found.instances, found.plans, masks, torch.device("cpu"))
    if modulus is not None:
        ContractionClamp(model.update, modulus)
    return model, states


def counted(model: TinyRecursiveModel, states: StateBatch, tolerance: float | None) -> Unrolled:
    """The recursion of a model from 0, each state until it rests."""
    encoding = model.encode(states)
    return unroll_until(
        lambda z: model.projected_step(z, encoding),
        torch.zeros_like(encoding.injection),
        row_state=encoding.row_state,
        batch=encoding.batch,
        depth=model.config.depth,
        tolerance=tolerance,
    )


def test_a_linear_contraction_stops_where_its_steps_fall_below_the_tolerance() -> None:
    # z -> 0.5 z + 1 from 0: z = 1, 1.5, 1.75, ..., steps 1, 0.5, 0.25, ...; at most 0.3 is the
    # third. With twice the injection the steps are 2, 1, 0.5, 0.25: the fourth.
    injection = torch.tensor([[1.0], [2.0]])
    found = unroll_until(
        lambda z: 0.5 * z + injection,
        torch.zeros(2, 1),
        row_state=torch.tensor([0, 1]),
        batch=2,
        depth=10,
        tolerance=0.3,
    )
    assert found.unrolls.tolist() == [3, 4]
    assert found.last_step.tolist() == [0.25, 0.25]
    assert found.z.flatten().tolist() == [1.75, 3.75]
    # The fixed points are 2 and 4, and 0.5 / (1 - 0.5) x 0.25 is exactly what is missing.
    assert posterior_bias(0.5, 0.25) == 0.25


@pytest.mark.parametrize("update_map", MAPS)
def test_without_tolerance_it_is_the_plain_recursion(update_map: str) -> None:
    model, states = model_and_states(update_map, depth=4)
    with torch.no_grad():
        encoding = model.encode(states)
        found = counted(model, states, None)
        assert torch.equal(found.z, model.recur(encoding))
        before = model.recur(encoding, depth=3)
    assert found.unrolls.tolist() == [4] * len(states)
    torch.testing.assert_close(found.last_step, state_norms(found.z - before, encoding))


@pytest.mark.parametrize("update_map", MAPS)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), tolerance=st.sampled_from([1e-5, 1e-2, 0.3]))
def test_each_state_stops_for_itself_and_within_the_a_posteriori_bound(
    update_map: str, seed: int, tolerance: float
) -> None:
    model, states = model_and_states(update_map, seed, modulus=0.8, depth=25, radius=None)
    bound = certificate(model.update)
    with torch.no_grad():
        encoding = model.encode(states)
        found = counted(model, states, tolerance)
        fixed = unroll(lambda z: model.projected_step(z, encoding), found.z, depth=300)
        missing = state_norms(found.z - fixed, encoding)
        first = state_norms(model.recur(encoding, depth=1), encoding)
    for row, (n, last) in enumerate(
        zip(found.unrolls.tolist(), found.last_step.tolist(), strict=True)
    ):
        assert 1 <= n <= 25
        assert last <= tolerance or n == 25
        limit = posterior_bias(bound, last)
        assert float(missing[row]) <= limit * (1 + 1e-9) + 1e-12
        assert limit <= unroll_bias(bound, n, float(first[row])) * (1 + 1e-9)
        with torch.no_grad():  # alone in its batch it stops at the same place
            alone = counted(model, states.select(slice(row, row + 1)), tolerance)
        assert alone.unrolls.tolist() == [n]
        torch.testing.assert_close(alone.z, found.z[encoding.row_state == row])


def test_a_larger_tolerance_takes_fewer_unrolls() -> None:
    counts = []
    for tolerance in (1e-6, 1e-3, 1e-1, 10.0):
        model, states = model_and_states("relational", modulus=0.8, depth=60, radius=None)
        with torch.no_grad():
            counts.append(float(counted(model, states, tolerance).unrolls.double().mean()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] + 5


def test_gradients_flow_through_the_updates_that_were_made() -> None:
    weight = torch.tensor(0.5, requires_grad=True)

    def run(tolerance: float | None, depth: int) -> Unrolled:
        return unroll_until(
            lambda z: weight * z + torch.tensor([[1.0], [4.0]]),
            torch.zeros(2, 1),
            row_state=torch.arange(2),
            batch=2,
            depth=depth,
            tolerance=tolerance,
        )

    # Steps 1, 0.5, ... and 4, 2, 1, 0.5, ...: the first state stops after 2 updates, the second
    # after 4. z = 1 + w has slope 1; z = 4 (1 + w + w^2 + w^3) has slope 4 (1 + 2 w + 3 w^2) = 11.
    found = run(0.5, 10)
    assert found.unrolls.tolist() == [2, 4]
    slopes = [torch.autograd.grad(z, weight, retain_graph=True)[0].item() for z in found.z[:, 0]]
    assert slopes == pytest.approx([1.0, 11.0])
