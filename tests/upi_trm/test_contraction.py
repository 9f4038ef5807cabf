"""Certificate and clamp: exact norms by brute force, and bounds that measurements never exceed."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import generator, jitter, random_states, small_model, structure_of
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.sudoku.rules import Sudoku
from trm.nn.blocks import GroupStructure, MLPMap, RelationalMap, VariableBatch
from trm.nn.model import Encoding, TinyRecursiveModel
from trm.nn.recursion import project_ball, unroll
from trm.runs.recipe import load_recipe
from upi_trm.contraction import (
    Certificate,
    ContractionClamp,
    ContractionConfig,
    NotContractive,
    certificate,
    joint_patterns,
    relational_norm,
    unroll_bias,
)
from upi_trm.recipe import UpiRecipe

SEEDS = st.integers(0, 10_000)
MAPS = ("mlp", "relational")

# 12 variables in three partitions; `thirds` and `quarters` are rows and columns of a 3 x 4 table.
THIRDS, QUARTERS = [i // 4 for i in range(12)], [i % 4 for i in range(12)]
STRUCTURES = {
    "commuting": {"thirds": THIRDS, "quarters": QUARTERS},
    "nested": {"halves": [i // 6 for i in range(12)], "pairs": [i // 2 for i in range(12)]},
    "not commuting": {
        "pairs": [i // 2 for i in range(12)],
        "shifted pairs": [(i + 1) % 12 // 2 for i in range(12)],
    },
    "overlapping unevenly": {"thirds": THIRDS, "halves": [i // 6 for i in range(12)]},
    "unequal sizes": {"uneven": [0] * 7 + [1] * 4 + [2], "all": [0] * 12},
}


def relational(structure: GroupStructure, seed: int, *, channels: int = 3) -> RelationalMap:
    """A relational map with random weights, in float64."""
    update = RelationalMap(structure, channels, generator=generator(seed)).double()
    jitter(update, seed + 1, 0.7)
    return update


def dense_matrix(update: RelationalMap) -> Tensor:
    """The linear map z -> W_z z + sum_g sqrt(k) W_g P_g z, on all variables, as one matrix."""
    structure, channels = update.structure, update.mix.own.shape[0]
    size = structure.num_variables * channels
    everything = torch.ones(size, structure.num_variables, dtype=torch.bool)
    basis = torch.eye(size, dtype=torch.float64).reshape(-1, channels)
    with torch.no_grad():
        images = update.mix(basis, VariableBatch.select(structure, everything))
    return images.reshape(size, size)


def operator_norm(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


def sum_of_norms(update: RelationalMap) -> float:
    mix = update.mix
    return operator_norm(mix.own.detach()) + sum(
        math.sqrt(float(sizes.max())) * operator_norm(mix.grouped[index].detach())
        for sizes, index in zip(update.structure.sizes, mix.weight_of_kind, strict=True)
    )


# --- The exact norm from joint patterns


@pytest.mark.parametrize("side", [4, 6, 9, 16])
def test_sudoku_groups_take_seven_joint_patterns_with_and_without_cell(side: int) -> None:
    # S in {none, r, c, b, rb, cb, rcb} x {cell or not}. Row and column
    # together force the box: constant on rows and on columns is constant everywhere.
    structure = structure_of(side)
    assert structure.names == ("cell", "row", "column", "box")
    seven = ["", "r", "c", "b", "rb", "cb", "rcb"]
    wanted = {(cell, *(k in s for k in "rcb")) for s in seven for cell in (False, True)}
    found = joint_patterns(structure)
    assert found is not None
    assert set(found) == wanted
    assert len(found) == 14


@pytest.mark.parametrize(("side", "channels"), [(4, 3), (6, 2), (9, 1)])
def test_relational_norm_equals_brute_force_svd_of_the_whole_map(side: int, channels: int) -> None:
    for seed in range(3 if side == 4 else 1):
        update = relational(structure_of(side), seed, channels=channels)
        exact = operator_norm(dense_matrix(update))
        assert certificate(update) == pytest.approx(exact, rel=1e-10)
        assert exact < 0.95 * sum_of_norms(update)


@given(seed=SEEDS)
def test_tied_weights_have_the_norm_of_the_same_weights_written_twice(seed: int) -> None:
    structure = structure_of(4)
    pair = [("row", "column")]
    tied = RelationalMap(structure, 2, tied=pair, generator=generator(seed)).double()
    assert certificate(tied) == pytest.approx(operator_norm(dense_matrix(tied)), rel=1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
@given(seed=SEEDS)
def test_certificate_bounds_the_dense_norm_for_any_partitions(name: str, seed: int) -> None:
    update = relational(GroupStructure(STRUCTURES[name], 12), seed)
    patterns = joint_patterns(update.structure)
    bound, exact = relational_norm(update, patterns), operator_norm(dense_matrix(update))
    assert exact <= bound * (1 + 1e-10)
    assert bound <= sum_of_norms(update) * (1 + 1e-10)
    if patterns is not None:
        assert bound == pytest.approx(exact, rel=1e-10)


def test_partitions_that_do_not_commute_or_have_unequal_sizes_fall_back_to_the_sum() -> None:
    falls_back = {
        name: joint_patterns(GroupStructure(groups, 12)) is None
        for name, groups in STRUCTURES.items()
    }
    assert falls_back == {
        "commuting": False,
        "nested": False,
        "not commuting": True,
        "overlapping unevenly": True,
        "unequal sizes": True,
    }


@given(seed=SEEDS)
def test_joint_patterns_are_found_exactly_when_the_projections_commute(seed: int) -> None:
    # Partitions of 8 variables by some of their 3 bits commute; other equal groups mostly do not.
    rng = np.random.default_rng(seed)
    groups = {}
    for name in "abc":
        label = np.arange(8) & rng.integers(8)
        groups[name] = (rng.permutation(label) if rng.random() < 0.2 else label).tolist()
    structure = GroupStructure(groups, 8)
    means = []
    for label in groups.values():
        same = np.equal.outer(label, label)
        means.append(same / same.sum(axis=1, keepdims=True))
    commute = all(np.allclose(a @ b, b @ a) for a in means for b in means)
    patterns = joint_patterns(structure)
    assert (patterns is not None) == commute
    if patterns is not None:
        assert set(patterns) == joint_eigenvalues(means)


def joint_eigenvalues(means: list[NDArray[np.float64]]) -> set[tuple[bool, ...]]:
    """0-1 patterns of commuting projections, from eigenvectors of a generic combination."""
    _, vectors = np.linalg.eigh(sum(m * 7.0**i for i, m in enumerate(means)))
    values = np.array([np.diag(vectors.T @ mean @ vectors) for mean in means])
    assert np.allclose(values * (1 - values), 0)
    return {tuple(bool(on) for on in column > 0.5) for column in values.T}


def test_certificate_of_the_flat_map_is_the_product_of_both_norms() -> None:
    update = MLPMap(7, generator=generator()).double()
    jitter(update, 1, 0.5)
    product = operator_norm(update.first.detach()) * operator_norm(update.second.detach())
    assert certificate(update) == pytest.approx(product, rel=1e-12)


def test_certificate_computes_in_float64_from_float32_weights() -> None:
    update = RelationalMap(structure_of(4), 8, generator=generator())
    wide = copy.deepcopy(update).double()
    assert certificate(update) == pytest.approx(certificate(wide), rel=1e-14)


# --- Measurements never exceed the certificate


def recursion(
    update_map: str, seed: int, *, radius: float | None, modulus: float | None = None
) -> tuple[TinyRecursiveModel, Encoding]:
    """A float64 model with random weights, and the encodings of random states: ragged rows."""
    domain = Sudoku(4, "digits", "fill", "constraint") if seed % 2 else Sudoku(4)
    model = small_model(
        domain, seed, spread=0.6, update_map=update_map, radius=radius, variables="legal"
    ).double()
    if modulus is not None:
        ContractionClamp(model.update, modulus)
    with torch.no_grad():
        return model, model.encode(random_states(domain, 5, seed))


def rows_by_state(encoding: Encoding) -> list[Tensor]:
    """The rows of each state that has any: one latent each for the flat map."""
    if encoding.variables is None:
        return [torch.tensor([i]) for i in range(encoding.batch)]
    found = [(encoding.variables.state == i).nonzero().flatten() for i in range(encoding.batch)]
    return [rows for rows in found if len(rows)]


@pytest.mark.parametrize("update_map", MAPS)
@pytest.mark.parametrize("radius", [None, 1.5])
@given(seed=SEEDS, apart=st.sampled_from([1e-4, 1.0, 30.0]))
def test_measured_lipschitz_ratio_never_exceeds_the_certificate(
    update_map: str, radius: float | None, seed: int, apart: float
) -> None:
    model, encoding = recursion(update_map, seed, radius=radius)
    bound = certificate(model.update)
    draws = generator(seed + 1)
    shape = encoding.injection.shape
    z = torch.randn(shape, generator=draws, dtype=torch.float64) * 2
    other = z + torch.randn(shape, generator=draws, dtype=torch.float64) * apart
    with torch.no_grad():
        after = [project_ball(model.step(latent, encoding), radius) for latent in (z, other)]
    for rows in rows_by_state(encoding):
        moved = float((after[0][rows] - after[1][rows]).norm())
        assert moved <= bound * float((z[rows] - other[rows]).norm()) * (1 + 1e-9)


def test_certificate_of_the_relational_map_is_attained() -> None:
    # With a large injection every relu is open, and the top singular vector moves by the norm.
    update = relational(structure_of(4), 5)
    variables = VariableBatch.select(update.structure, torch.ones(1, 64, dtype=torch.bool))
    # Rows of the dense matrix are images, so the direction stretched most is a left vector.
    direction = torch.linalg.svd(dense_matrix(update)).U[:, 0].reshape(64, 3)
    z, injection = torch.zeros(64, 3, dtype=torch.float64), torch.full((64, 3), 50.0).double()
    with torch.no_grad():
        after = [update(latent, injection, variables) for latent in (z, direction)]
    ratio = float((after[1] - after[0]).norm() / (direction - z).norm())
    assert ratio == pytest.approx(certificate(update), rel=1e-10)


@pytest.mark.parametrize("update_map", MAPS)
@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("modulus", [0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_unrolling_error_stays_below_the_bound_of_proposition_2_3(
    update_map: str, radius: float | None, modulus: float, seed: int
) -> None:
    model, encoding = recursion(update_map, seed, radius=radius, modulus=modulus)
    bound = certificate(model.update)
    assert bound <= modulus
    with torch.no_grad():
        fixed_point = model.recur(encoding, depth=500)
        first = model.recur(encoding, depth=1)
        tight = 0.0
        for depth in range(33):
            z = model.recur(encoding, depth=depth)
            for rows in rows_by_state(encoding):
                error = float((z[rows] - fixed_point[rows]).norm())
                limit = unroll_bias(bound, depth, float(first[rows].norm()))
                assert error <= limit * (1 + 1e-9) + 1e-12
                tight = max(tight, error / limit)
    assert tight > 0.05


def test_a_linear_contraction_decays_exactly_as_the_bound_says() -> None:
    # f(z) = 0.8 z + b from z = 0 has z* = 5 b and error 0.8^n ||z*||, with C_z = ||b||: the bound
    # 0.8^n C_z / (1 - 0.8) is an equality. The flat map is this f while its relu is open.
    update = MLPMap(3, generator=generator()).double()
    with torch.no_grad():
        update.first.copy_(torch.eye(3))
        update.second.copy_(0.8 * torch.eye(3, dtype=torch.float64))
    assert certificate(update) == pytest.approx(0.8)
    b = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for depth in range(33):
        z = unroll(lambda z: update(z, b / 0.8), torch.zeros_like(b), depth=depth).detach()
        error = float((z - 5 * b).norm())
        assert error == pytest.approx(unroll_bias(0.8, depth, float(b.norm())), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_linear_contraction_approaches_the_fixed_point_of_its_linear_system(
    seed: int,
) -> None:
    update = relational(structure_of(4), seed)
    ContractionClamp(update, 0.9)
    variables = VariableBatch.select(update.structure, torch.ones(1, 64, dtype=torch.bool))
    # Around z* = (40, 40, ...) every relu is open: f(z) = z A + u with A the dense matrix.
    fixed_point = torch.full((64, 3), 40.0, dtype=torch.float64)
    injection = fixed_point - (fixed_point.flatten() @ dense_matrix(update)).reshape(64, 3)
    bound = certificate(update)
    z = fixed_point + torch.randn(64, 3, generator=generator(seed + 9), dtype=torch.float64)
    with torch.no_grad():
        first = float((update(z, injection, variables) - z).norm())
        for depth in range(33):
            error = float((z - fixed_point).norm())
            assert error <= unroll_bias(bound, depth, first) * (1 + 1e-9) + 1e-10
            z = update(z, injection, variables)


# --- The clamp


def random_map(update_map: str, seed: int, scale: float) -> RelationalMap | MLPMap:
    """Float32 weights of the given size, as in training."""
    update: RelationalMap | MLPMap
    if update_map == "mlp":
        update = MLPMap(16, generator=generator(seed))
    else:
        update = RelationalMap(structure_of(4), 16, generator=generator(seed))
    jitter(update, seed + 1, 0.2)
    with torch.no_grad():
        for weight in update.parameters():
            weight.mul_(scale)
    return update


@pytest.mark.parametrize("update_map", MAPS)
@given(
    seed=SEEDS,
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e6]),
    modulus=st.sampled_from([0.05, 0.5, 0.9, 0.999]),
)
def test_clamp_reaches_the_modulus_and_never_enlarges_a_weight(
    update_map: str, seed: int, scale: float, modulus: float
) -> None:
    update = random_map(update_map, seed, scale)
    before = copy.deepcopy(update)
    reported = ContractionClamp(update, modulus).apply()
    assert reported == certificate(update) <= modulus
    for old, new in zip(before.parameters(), update.parameters(), strict=True):
        assert bool((new.abs() <= old.abs()).all())
        assert torch.equal(new.sign(), old.sign())


@pytest.mark.parametrize("update_map", MAPS)
def test_clamp_leaves_a_map_within_the_modulus_bit_for_bit(update_map: str) -> None:
    update = random_map(update_map, 0, 1e-3)
    before = copy.deepcopy(update)
    ContractionClamp(update, 0.9).apply()
    for old, new in zip(before.parameters(), update.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("update_map", MAPS)
def test_clamp_goes_no_further_than_needed(update_map: str) -> None:
    update = random_map(update_map, 0, 30.0)
    ContractionClamp(update, 0.9)
    assert certificate(update) == pytest.approx(0.9, rel=1e-5)
    for _ in range(5):
        ContractionClamp(update, 0.9)
    assert certificate(update) == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("update_map", MAPS)
def test_clamp_follows_an_optimiser_step(update_map: str) -> None:
    update = random_map(update_map, 0, 1.0)
    clamp = ContractionClamp(update, 0.7)
    for step in range(5):
        jitter(update, step, 0.5)
        assert certificate(update) > 0.7
        assert clamp.apply() <= 0.7


# --- What is refused


@pytest.mark.parametrize(
    "module",
    [nn.MultiheadAttention(8, 2), nn.RNN(4, 4), nn.Linear(4, 4)],
    ids=lambda module: type(module).__name__,
)
def test_maps_without_a_proven_bound_are_refused_by_name(module: nn.Module) -> None:
    name = type(module).__name__
    with pytest.raises(NotContractive, match=f"^{name} has no proven bound"):
        ContractionClamp(module, 0.9)
    with pytest.raises(NotContractive, match=f"^{name} has no proven bound"):
        Certificate(module)


@pytest.mark.parametrize("modulus", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_modulus_outside_the_open_unit_interval_is_refused(modulus: float) -> None:
    with pytest.raises(ValueError, match=r"contraction\.modulus must lie in \(0, 1\), got"):
        ContractionClamp(MLPMap(3, generator=generator()), modulus)


def test_no_bound_on_unrolling_without_contraction() -> None:
    with pytest.raises(NotContractive, match=r"needs L_z < 1, got 1\.0"):
        unroll_bias(1.0, 4, 1.0)


@pytest.mark.parametrize(
    ("field", "value"), [("schedule", "linear"), ("start", 2.0), ("ramp", 0.25)]
)
def test_a_schedule_of_l_z_is_refused_and_recipes_of_old_runs_without_one_are_read(
    field: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"contraction\.{field} = .*: it was removed"):
        load_recipe(UpiRecipe, None, [f"contraction.{field}={value}"])
    file = tmp_path / "recipe.yaml"
    file.write_text("contraction: {modulus: 0.9, schedule: constant, start: null, ramp: 0.5}\n")
    assert load_recipe(UpiRecipe, file, of_run=True).contraction == ContractionConfig(modulus=0.9)
