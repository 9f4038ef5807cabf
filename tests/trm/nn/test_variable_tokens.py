"""The relational and the neighbour token model: the rules' variables, symmetries, the recursion."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from plan_envs.catalogue import resolve_task
from supervised.data_sets.datasets import BoardDataset, TokenBatch
from supervised.recipe import shape_of
from trm.nn.recursion import RecursionSchedule
from trm.nn.token_model import StepOutput, TokenModel, TokenModelConfig
from trm.nn.variable_tokens import BLANK, CERTAIN, FIRST_VALUE
from upi_trm.contraction import joint_patterns, relational_norm

SUDOKU = {"mixing": "relational", "tied_groups": ("row", "column")}
QUEENS = {
    "mixing": "relational",
    "tied_groups": (("row", "column"), ("diagonal", "antidiagonal")),
}
MAZE = {"mixing": "neighbour"}
EVERY = pytest.mark.parametrize(
    ("task", "config"),
    [("sudoku4x4", SUDOKU), ("sudoku6x6", SUDOKU), ("nqueens8", QUEENS), ("maze10", MAZE)],
)


def build(
    domain: str, seed: int = 0, *, unrolls: tuple[int, ...] = (), **config: Any
) -> TokenModel:
    plain = {"positions": "none", "layers": 1, "heads": 1, "prefix": 0, "puzzle_channels": 0}
    model = TokenModel(
        shape_of(domain),
        TokenModelConfig(**{"width": 12, "radius": 3.0, **plain, **config}),
        RecursionSchedule(cycles=2, inner=3, supervision=4, supervised_unrolls=unrolls),
        generator=torch.Generator().manual_seed(seed),
    )
    assert model.halt is not None
    torch.nn.init.normal_(model.halt.weight, generator=torch.Generator().manual_seed(seed))
    return model.double()


def examples(task: str, num: int = 4) -> tuple[BoardDataset, TokenBatch]:
    found = resolve_task(task)
    data = BoardDataset.of(found.domain, found.instances("test", num=num))
    return data, data.batch(np.arange(num))


def run(model: TokenModel, inputs: Int[Tensor, "batch position"], steps: int = 2) -> StepOutput:
    latents = model.start(len(inputs))
    rows = model.puzzle_rows(torch.zeros(len(inputs), dtype=torch.long))
    for step in range(1, steps + 1):
        out: StepOutput = model(latents, inputs, rows, step=step)
        latents = out.latents.detach()
    return out


@pytest.mark.parametrize("task", ["sudoku4x4", "sudoku9x9", "nqueens8"])
def test_open_variables_are_the_edits_that_the_rules_allow(task: str) -> None:
    domain: Any = resolve_task(task).domain
    domain = replace(domain, edits="fill", mask="constraint")
    data, batch = examples(task, 20)
    # Some of the label's values too, as on the way to a solution.
    shown = torch.rand(batch.inputs.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    values = shown & (batch.labels >= FIRST_VALUE)
    inputs = torch.where(values, batch.labels, batch.inputs)
    _, plans = data.codec.decode(batch.inputs.numpy(), inputs.numpy())
    spec = domain.spec
    writes = spec.action_value > 0
    variable = spec.action_cell[writes] * spec.num_values + spec.action_value[writes] - 1
    legal = np.zeros((len(plans), spec.num_cells * spec.num_values), bool)
    legal[:, variable] = domain.action_mask(plans, plans)[:, writes] == 1
    config = QUEENS if task == "nqueens8" else SUDOKU
    tokens = build(spec.name, **config).variables
    assert tokens is not None
    open_ = tokens.open(inputs)
    found = np.zeros_like(legal)
    found[open_.state.numpy(), open_.variable.numpy()] = True
    assert np.array_equal(found, legal) and legal.any()


@EVERY
def test_logits_and_halting_commute_with_the_symmetries_of_the_rules(
    task: str, config: dict[str, Any]
) -> None:
    data, batch = examples(task)
    domain = data.info.domain
    model, rng = build(domain, **config), np.random.default_rng(3)
    whole = run(model, batch.inputs)
    for _ in range(4):
        symmetry = data.codec.random_symmetry(rng)

        def image(tokens: Tensor, by: Any = symmetry) -> Tensor:
            moved = data.codec.transform(by, tokens.numpy().astype(np.uint8))
            return torch.from_numpy(moved.astype(np.int64))

        moved = run(model, image(batch.inputs))
        torch.testing.assert_close(moved.halting, whole.halting)
        # The probability of a token moves with it: compare those of the label, token by token.
        label = batch.labels.clamp_min(0)
        before = whole.logits.gather(2, label[..., None]).squeeze(2)
        after = moved.logits.gather(2, image(label)[..., None]).squeeze(2)
        assert torch.allclose(before.sum(1), after.sum(1), atol=1e-9)
        assert torch.allclose(before.sort(dim=1)[0], after.sort(dim=1)[0], atol=1e-9)


@EVERY
def test_a_batch_is_its_boards_one_by_one(task: str, config: dict[str, Any]) -> None:
    data, batch = examples(task)
    model = build(data.info.domain, **config)
    whole = run(model, batch.inputs)
    assert whole.logits.shape == (4, model.shape.num_positions, model.shape.vocab_size)
    for row in range(4):
        one = run(model, batch.inputs[row : row + 1])
        torch.testing.assert_close(one.logits[0], whole.logits[row])
        torch.testing.assert_close(one.latents.z_l[0], whole.latents.z_l[row])


@EVERY
def test_a_step_calls_the_network_as_often_as_the_schedule_says(
    task: str, config: dict[str, Any]
) -> None:
    data, batch = examples(task)
    model = build(data.info.domain, unrolls=(1, 2), **config)
    calls = []
    model.net_l.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    out = run(model, batch.inputs, steps=1)
    # T (n + 1) calls and one more for each early readout; the first cycle has no gradient.
    assert calls == [False] * 4 + [True] * 6
    assert len(out.early_logits) == 2
    with torch.no_grad():
        calls.clear()
        assert run(model, batch.inputs, steps=1).early_logits == ()
    assert len(calls) == model.schedule.calls_per_step


@EVERY
def test_an_early_readout_is_that_of_a_shorter_last_cycle(
    task: str, config: dict[str, Any]
) -> None:
    data, batch = examples(task)
    model = build(data.info.domain, **config)
    model.schedule = RecursionSchedule(cycles=1, inner=2)
    shorter = run(model, batch.inputs, steps=1)
    model.schedule = RecursionSchedule(cycles=1, inner=3, supervised_unrolls=(2,))
    out = run(model, batch.inputs, steps=1)
    torch.testing.assert_close(out.early_logits[0], shorter.logits)
    assert not torch.equal(out.early_logits[0], out.logits)


@EVERY
def test_every_parameter_gets_a_gradient(task: str, config: dict[str, Any]) -> None:
    data, batch = examples(task)
    model = build(data.info.domain, step_embedding=True, networks="separate", **config)
    out = run(model, batch.inputs)
    assert out.halting is not None
    (out.logits.square().sum() + out.halting.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_what_is_written_or_excluded_is_certain_and_the_rest_is_not() -> None:
    model = build("sudoku4x4", **SUDOKU)
    inputs = torch.full((1, 16), BLANK)
    inputs[0, 0] = FIRST_VALUE  # a 1 in the corner
    logits = run(model, inputs).logits[0].detach()
    assert logits[0].tolist() == [-CERTAIN, -CERTAIN, CERTAIN, *[-CERTAIN] * 3]
    for cell in (1, 2, 3, 4, 5, 8, 12):  # row, box and column hold no second 1
        assert float(logits[cell, FIRST_VALUE]) == -CERTAIN
        assert bool((logits[cell, FIRST_VALUE + 1 :].abs() < CERTAIN).all())
    assert float(logits[10, FIRST_VALUE]) > -CERTAIN
    values = logits[:, FIRST_VALUE:]
    assert torch.equal(logits[:, BLANK], -values.amax(dim=1))


@EVERY
def test_reading_latents_gives_the_logits_of_their_step(task: str, config: dict[str, Any]) -> None:
    data, batch = examples(task)
    model = build(data.info.domain, **config)
    out = run(model, batch.inputs)
    torch.testing.assert_close(model.read(out.latents, batch.inputs), out.logits)


def test_weights_of_one_size_play_another() -> None:
    for small, large, config in (
        ("sudoku4x4", "sudoku9x9", SUDOKU),
        ("queens6x6", "queens12x12", QUEENS),
        ("maze5x5", "maze30x30", MAZE),
    ):
        first, other = build(small, seed=1, **config), build(large, seed=2, **config)
        other.load_state_dict(first.state_dict())
        inputs = torch.full((1, other.shape.num_positions), BLANK)
        assert run(other, inputs).logits.isfinite().all()


def test_one_call_moves_latents_apart_by_no_more_than_the_certificate() -> None:
    model = build("sudoku4x4", **SUDOKU)
    network = model.net_l
    bound = relational_norm(network.map, joint_patterns(network.map.structure))  # type: ignore[arg-type, union-attr]
    tokens = model.variables
    assert tokens is not None
    variables = tokens.open(torch.full((1, 16), BLANK))
    draws = torch.Generator().manual_seed(0)
    size = (1, len(variables.state), 12)
    u, z, other = torch.randn(3, *size, generator=draws, dtype=torch.float64)
    moved = network(z, u, variables) - network(other, u, variables)
    assert float(moved.detach().norm()) <= bound * float((z - other).norm())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SUDOKU, "prefix": 4}, "model.prefix must be 0 with mixing 'relational', got 4"),
        ({**MAZE, "layers": 2}, "model.layers must be 1 with mixing 'neighbour', got 2"),
        ({**MAZE, "tied_groups": ("row",)}, "model.tied_groups needs mixing 'relational'"),
        ({"mixing": "mixer"}, "model.radius needs mixing 'relational' or 'neighbour'"),
        ({**SUDOKU, "radius": 0.0}, "model.radius"),
        ({**SUDOKU, "tied_groups": ("row", "rows")}, "tied_groups names 'rows'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("sudoku4x4", **config)


def test_a_domain_without_groups_or_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="'relational' needs a domain with constraint groups"):
        build("maze5x5", mixing="relational")
    with pytest.raises(ValueError, match="'neighbour' needs a domain with neighbours"):
        build("sudoku4x4", **MAZE)


@pytest.mark.parametrize("unrolls", [(0,), (3,), (2, 1), (1, 1)])
def test_unrolls_that_no_step_has_are_refused(unrolls: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must ascend within 1\.\.inner - 1 = 2, got"):
        RecursionSchedule(inner=3, supervised_unrolls=unrolls)
    with pytest.raises(ValueError, match="supervised_unrolls needs gradient 'last_cycle'"):
        RecursionSchedule(inner=4, gradient="last_updates", supervised_unrolls=(1,))
