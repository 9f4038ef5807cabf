"""Update maps: sums over groups, the algebra of their projections, and equivariance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import band_swap, generator, relabelling, structure_of, transposition
from torch import Tensor

from trm.nn.blocks import (
    GroupLinear,
    GroupReadout,
    GroupStructure,
    MLPMap,
    RelationalMap,
    VariableBatch,
)

SEEDS = st.integers(0, 10_000)


def random_structure(seed: int) -> GroupStructure:
    """Three partitions of 12 variables: equal groups, unequal ones, singletons."""
    rng = np.random.default_rng(seed)
    groups = {
        "equal": rng.permutation(np.repeat([7, -3, 5], 4)).tolist(),
        "unequal": rng.integers(0, 4, 12).tolist(),
        "single": list(range(100, 112)),
    }
    return GroupStructure(groups, 12)


def random_rows(
    structure: GroupStructure, seed: int, *, batch: int = 4, channels: int = 3
) -> tuple[Tensor, VariableBatch, Tensor]:
    """Which variables are active [batch, variable], the batch of rows, and values for the rows."""
    draws = generator(seed)
    active = torch.rand(batch, structure.num_variables, generator=draws) < 0.6
    active[1] = False
    variables = VariableBatch.select(structure, active)
    rows = torch.randn(len(variables.variable), channels, generator=draws)
    return active, variables, rows


def full_batch(structure: GroupStructure, batch: int = 1) -> VariableBatch:
    everything = torch.ones(batch, structure.num_variables, dtype=torch.bool)
    return VariableBatch.select(structure, everything)


def scaled_sums(structure: GroupStructure, kind: int) -> Tensor:
    """The matrix of z -> (sum over the group) / sqrt(k), written back to every member."""
    structure = structure.double()
    variables = full_batch(structure)
    rows = torch.eye(structure.num_variables, dtype=torch.float64)
    total = structure.scaled_product(variables.group_sums(rows)[kind], rows, kind)
    return total[variables.groups.group[kind]]


# --- Ragged batches


@given(seed=SEEDS)
def test_rows_run_through_states_and_variables_in_ascending_order(seed: int) -> None:
    structure = random_structure(seed)
    active, variables, _ = random_rows(structure, seed)
    wanted = [(s, v) for s in range(4) for v in range(12) if active[s, v]]
    assert list(zip(variables.state.tolist(), variables.variable.tolist(), strict=True)) == wanted


@given(seed=SEEDS)
def test_rows_share_a_group_exactly_when_state_and_label_agree(seed: int) -> None:
    structure = random_structure(seed)
    _, variables, _ = random_rows(structure, seed)
    for kind in range(len(structure)):
        label = structure.labels[kind][variables.variable]
        same_label = (label[:, None] == label) & (variables.state[:, None] == variables.state)
        group = variables.groups.group[kind]
        assert torch.equal(group[:, None] == group, same_label)
        assert int(group.max()) < variables.groups.num_groups[kind]


@given(seed=SEEDS)
def test_group_sums_match_a_loop_over_the_members(seed: int) -> None:
    structure = random_structure(seed)
    active, variables, rows = random_rows(structure, seed)
    dense = torch.zeros(4, 12, 3)
    dense[active] = rows
    for kind in range(len(structure)):
        label = structure.labels[kind].tolist()
        got = variables.group_sums(rows)[kind][variables.groups.group[kind]]
        for row, (state, variable) in enumerate(active.nonzero().tolist()):
            members = [v for v in range(12) if label[v] == label[variable]]
            wanted = sum((dense[state, v] for v in members), torch.zeros(3))
            torch.testing.assert_close(got[row], wanted, atol=1e-6, rtol=0)
            assert float(structure.sizes[kind][variable]) == len(members)


@given(seed=SEEDS)
def test_sums_and_maxima_over_a_state_match_a_loop(seed: int) -> None:
    structure = random_structure(seed)
    active, variables, rows = random_rows(structure, seed)
    parts = rows.split(active.sum(dim=1).tolist())
    for state, part in enumerate(parts):
        total = part.sum(dim=0)
        torch.testing.assert_close(variables.state_sum(rows)[state], total, atol=1e-6, rtol=0)
        if len(part):
            assert torch.equal(variables.state_max(rows)[state], part.max(dim=0).values)


def test_a_state_without_variables_sums_and_maximises_to_zero() -> None:
    _, variables, rows = random_rows(random_structure(0), 0)
    below_zero = -rows.abs() - 1.0
    assert torch.equal(variables.state_max(below_zero)[1], torch.zeros(3))
    assert torch.equal(variables.state_sum(below_zero)[1], torch.zeros(3))
    assert bool((variables.state_max(below_zero)[0] < 0).all())


# --- Projections


@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("kind", range(4))
def test_a_group_mean_is_an_orthogonal_projection_of_norm_one(side: int, kind: int) -> None:
    structure = structure_of(side)
    mean = scaled_sums(structure, kind) / side**0.5  # every group of Sudoku has `side` members
    torch.testing.assert_close(mean, mean.T)
    torch.testing.assert_close(mean @ mean, mean)
    # One dimension for each group; a projection of rank >= 1 has norm 1.
    assert float(mean.trace()) == pytest.approx(side * side)


def test_scaled_sums_twice_are_sqrt_k_scaled_sums_for_unequal_groups_too() -> None:
    structure = random_structure(3)
    for kind in range(len(structure)):
        once = scaled_sums(structure, kind)
        sqrt_k = structure.sizes[kind].sqrt()[:, None]
        torch.testing.assert_close(once @ once, sqrt_k * once)
        assert float(torch.linalg.matrix_norm(once, 2)) == pytest.approx(float(sqrt_k.max()))


@given(seed=SEEDS)
def test_dropping_variables_equals_zeros_in_their_place(seed: int) -> None:
    structure = random_structure(seed)
    active, variables, rows = random_rows(structure, seed)
    mix = GroupLinear(structure, 3, 2, bias=False, generator=generator(seed))
    dense = torch.zeros(4, 12, 3)
    dense[active] = rows
    everything = mix(dense.flatten(0, 1), full_batch(structure, 4)).unflatten(0, (4, 12))
    torch.testing.assert_close(mix(rows, variables), everything[active], atol=1e-5, rtol=1e-5)


@given(seed=SEEDS)
def test_group_linear_is_the_sum_of_own_and_group_means_times_sqrt_k(seed: int) -> None:
    structure = random_structure(seed).double()
    mix = GroupLinear(structure, 3, 2, generator=generator(seed)).double()
    with torch.no_grad():
        assert mix.bias is not None
        mix.bias.copy_(torch.tensor([0.25, -2.0]))
    rows = torch.randn(12, 3, generator=generator(seed + 1), dtype=torch.float64)
    wanted = rows @ mix.own + mix.bias
    for kind in range(3):
        label = structure.labels[kind]
        members = (label[:, None] == label).double()
        size = members.sum(dim=1, keepdim=True)
        wanted = wanted + size.sqrt() * (members / size @ rows) @ mix.grouped[kind]
    torch.testing.assert_close(mix(rows, full_batch(structure)), wanted)


def test_readout_matches_a_loop_over_the_groups_empty_ones_too() -> None:
    # Groups 0, 1 | 2, 3 of kind `pairs` and the one group of kind `all`, two states.
    structure = GroupStructure({"pairs": [0, 0, 1, 1], "all": [0, 0, 0, 0]}, 4)
    readout = GroupReadout(structure, 2, generator=generator(0))
    with torch.no_grad():
        readout.bias.copy_(torch.tensor([[0.5, -0.1], [0.2, 0.3]]))
    active = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]]) > 0
    placed = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]]) > 0
    rows = torch.randn(5, 2, generator=generator(1))
    dense = torch.zeros(2, 4, 2)
    dense[active] = rows
    wanted = []
    for state in range(2):
        means, maxima = [], []
        for kind, groups in enumerate(([[0, 1], [2, 3]], [[0, 1, 2, 3]])):
            read = []
            for group in groups:
                k = len(group)
                present = float(active[state, group].sum())
                total = torch.cat([dense[state, group].sum(dim=0), torch.tensor([present])])
                filled = torch.tensor([float(placed[state, group].sum())])
                features = torch.cat([total * k**-0.5, filled])
                read.append(torch.relu(features @ readout.weight[kind] + readout.bias[kind]))
            means.append(torch.stack(read).mean(dim=0))
            maxima.append(torch.stack(read).amax(dim=0))
        wanted.append(torch.cat(means + maxima))
    got = readout(
        rows, VariableBatch.select(structure, active), VariableBatch.select(structure, placed)
    )
    torch.testing.assert_close(got, torch.stack(wanted))
    assert got.shape[1] == readout.out_features


def test_tied_kinds_are_pooled_as_one_kind_in_the_readout() -> None:
    structure = structure_of(4)
    readout = GroupReadout(structure, 3, tied=[("row", "column")], generator=generator())
    z = torch.randn(64, 3, generator=generator(1))
    variables = full_batch(structure)
    order = variable_order(4, "transposition")
    torch.testing.assert_close(
        readout(z[order], variables, variables), readout(z, variables, variables)
    )
    assert readout.out_features == 2 * 3 * 3


# --- Equivariance


@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("symmetry", ["relabelling", "band_swap", "transposition"])
def test_relational_map_commutes_with_symmetries_of_sudoku(side: int, symmetry: str) -> None:
    structure = structure_of(side)
    update = RelationalMap(structure, 4, tied=[("row", "column")], generator=generator(1))
    variables = full_batch(structure)
    draws = generator(2)
    z = torch.randn(side**3, 4, generator=draws)
    injection = torch.randn(side**3, 4, generator=draws)
    order = variable_order(side, symmetry)
    moved = update(z[order], injection[order], variables)
    plain = update(z, injection, variables)[order]
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, update(z, injection, variables), atol=0.1)


@pytest.mark.parametrize("side", [4, 9])
def test_only_tied_row_and_column_weights_commute_with_transposition(side: int) -> None:
    structure = structure_of(side)
    update = RelationalMap(structure, 4, generator=generator(1))
    variables = full_batch(structure)
    z = torch.randn(side**3, 4, generator=generator(2))
    nothing = torch.zeros_like(z)
    order = variable_order(side, "transposition")
    assert not torch.allclose(
        update(z[order], nothing, variables), update(z, nothing, variables)[order], atol=0.05
    )


def variable_order(side: int, symmetry: str) -> Tensor:
    """New order of the (cell, value) variables under a symmetry."""
    index = np.arange(side**3).reshape(side * side, side)
    if symmetry == "relabelling":
        return torch.from_numpy(index[:, np.argsort(relabelling(side)[1:])].ravel().copy())
    order = band_swap(side) if symmetry == "band_swap" else transposition(side)
    return torch.from_numpy(index[order].ravel().copy())


def test_tied_kinds_share_one_weight_and_the_others_have_their_own() -> None:
    structure = structure_of(4)
    tied = GroupLinear(structure, 3, 3, tied=[("row", "column")], generator=generator())
    assert structure.names == ("cell", "row", "column", "box")
    assert tied.weight_of_kind == [0, 1, 1, 2]
    assert len(tied.grouped) == 3
    assert len(GroupLinear(structure, 3, 3, generator=generator()).grouped) == 4


# --- Bad input, and the flat map


def test_a_tied_kind_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="tied_groups names 'diagonal'"):
        GroupLinear(structure_of(4), 3, 3, tied=[("row", "diagonal")], generator=generator())


def test_labels_of_the_wrong_length_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"groups\['row'\] must label 4 variables, got \(3,\)"):
        GroupStructure({"row": [0, 0, 1]}, 4)


def test_flat_map_treats_every_state_of_a_batch_alone() -> None:
    update = MLPMap(5, generator=generator())
    z, injection = torch.randn(2, 7, 5, generator=generator(1))
    singles = torch.cat([update(z[i : i + 1], injection[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(update(z, injection), singles)
