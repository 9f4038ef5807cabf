"""The backbone: masked heads, ragged batches, symmetries, depth, weights from one generator."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import (
    band_swap,
    generator,
    random_boards,
    random_states,
    relabelling,
    small_model,
    states_of,
    transposition,
)
from torch import Tensor

from plan_envs.catalogue import resolve_task
from plan_envs.sudoku.rules import Sudoku
from trm.experiments.states import model_shape
from trm.nn.model import ILLEGAL_LOGIT, ModelConfig, StateBatch, TinyRecursiveModel
from trm.nn.recursion import project_ball, unroll
from trm.runs.recipe import load_recipe

DOMAINS = {
    "4-tokens-full": Sudoku(4),
    "4-digits-overwrite": Sudoku(4, "digits", "overwrite", "givens"),
    "9-digits-fill": Sudoku(9),
}
MODELS = {
    "mlp": {"update_map": "mlp"},
    "relational": {"update_map": "relational"},
    "relational-legal": {"update_map": "relational", "variables": "legal"},
    "relational-tied": {"update_map": "relational", "tied_groups": ("row", "column")},
}

domains = pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS.keys())
models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())


# --- Masked edit head, ragged batches


@domains
@models
def test_illegal_edits_get_the_illegal_logit_and_probability_zero(
    domain: Sudoku, config: dict[str, object]
) -> None:
    states = random_states(domain, 12)
    _, logits = small_model(domain, **config)(states)
    legal = states.mask > 0
    assert bool((logits[~legal] == ILLEGAL_LOGIT).all())
    assert bool((logits[legal].abs() < 1e3).all())
    assert bool((torch.softmax(logits, dim=1)[~legal] == 0).all())


@domains
@models
def test_a_batch_equals_its_states_one_by_one(domain: Sudoku, config: dict[str, object]) -> None:
    states = random_states(domain, 9)
    model = small_model(domain, **config)
    value, logits = model(states)
    for i in range(9):
        value_i, logits_i = model(states.select(slice(i, i + 1)))
        torch.testing.assert_close(value_i[0], value[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits_i[0], logits[i], atol=1e-5, rtol=1e-4)


@domains
@models
def test_distinct_states_get_distinct_values_and_logits(
    domain: Sudoku, config: dict[str, object]
) -> None:
    states = random_states(domain, 6)
    value, logits = small_model(domain, **config)(states)
    assert len(set(value.tolist())) == 6
    spread = torch.where(states.mask > 0, logits, 0.0).std(dim=1)
    assert bool((spread > 1e-4).all())


@models
def test_states_without_any_legal_edit_still_have_a_value(config: dict[str, object]) -> None:
    # With `legal` no variable takes part: the batch has no rows at all.
    domain = Sudoku(4, "digits", "fill", "givens")
    instances, _ = random_boards(4, 3)
    full = np.maximum(instances, 1).astype(np.int8)
    states = states_of(domain, instances, full)
    assert int(states.mask.sum()) == 0
    value, logits = small_model(domain, **config)(states)
    assert bool(value.isfinite().all())
    assert bool((logits == ILLEGAL_LOGIT).all())


def test_a_kind_of_edit_reads_its_own_output_of_the_head() -> None:
    domain = Sudoku(4)
    model = small_model(domain)
    states = random_states(domain, 8)
    before = model(states)[1]
    kinds = torch.from_numpy(domain.spec.action_kind.copy())
    for kind, name in enumerate(domain.spec.kind_names):
        with torch.no_grad():
            model.edit_out.bias.zero_()
            model.edit_out.bias[kind] = 5.0
        moved = (model(states)[1] - before).abs() > 1.0
        assert torch.equal(moved, (states.mask > 0) & (kinds == kind)), name


def test_every_parameter_gets_a_gradient() -> None:
    for config in ({"update_map": "mlp"}, {"update_map": "relational"}):
        domain = Sudoku(4)
        model = small_model(domain, **config)
        states = random_states(domain, 16)
        value, logits = model(states)
        policy = torch.log_softmax(logits, dim=1)
        (value.square().sum() + policy[states.mask > 0].square().sum()).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert float(weight.grad.abs().max()) > 0, name


# --- Symmetries


def moved_states(domain: Sudoku, states: StateBatch, symmetry: str) -> tuple[StateBatch, Tensor]:
    """The states under a symmetry, and for each new action the old one it stands for."""
    side = domain.side
    cells, digits = np.arange(side * side), np.arange(side + 1, dtype=np.int8)
    if symmetry == "relabelling":
        digits = relabelling(side, seed=3)
    else:
        cells = band_swap(side) if symmetry == "band_swap" else transposition(side)
    boards = [digits[board.numpy()[:, cells]] for board in (states.instance, states.plan)]
    back = np.argsort(digits)
    spec = domain.spec
    index = {
        (int(c), int(v), int(k)): action
        for action, (c, v, k) in enumerate(
            zip(spec.action_cell, spec.action_value, spec.action_kind, strict=True)
        )
    }
    old = [index[int(cells[c]) if c >= 0 else -1, int(back[v]), k] for c, v, k in index]
    return states_of(domain, *boards), torch.tensor(old)


@domains
@pytest.mark.parametrize("symmetry", ["relabelling", "band_swap", "transposition"])
@pytest.mark.parametrize("variables", ["legal", "legal_and_plan"])
def test_relational_model_commutes_with_symmetries_of_sudoku(
    domain: Sudoku, symmetry: str, variables: str
) -> None:
    states = random_states(domain, 6)
    model = small_model(domain, tied_groups=("row", "column"), variables=variables)
    moved, old_action = moved_states(domain, states, symmetry)
    value, logits = model(states)
    moved_value, moved_logits = model(moved)
    torch.testing.assert_close(moved_value, value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved_logits, logits[:, old_action], atol=1e-4, rtol=1e-4)
    assert not torch.equal(moved.plan, states.plan)


BOTH_PAIRS = (("row", "column"), ("diagonal", "antidiagonal"))


@pytest.mark.parametrize("tied", [BOTH_PAIRS, BOTH_PAIRS[:1]])
def test_queens_need_both_pairs_tied_to_commute_with_the_square(tied: Any) -> None:
    task = resolve_task("nqueens8")
    domain, rng = task.domain, np.random.default_rng(1)
    model = TinyRecursiveModel(
        model_shape(domain.spec),
        ModelConfig(channels=6, head_width=8, depth=3, tied_groups=tied),
        generator=generator(),
    )
    boards = task.instances("train", num=5).instances
    value, logits = model(states_of(domain, boards, domain.initial(boards)))
    apart = []
    for _ in range(8):
        symmetry = domain.random_symmetry(rng)
        turned = symmetry.instances(boards)
        other_value, other_logits = model(states_of(domain, turned, domain.initial(turned)))
        image = torch.from_numpy(symmetry.actions()).long()
        apart.append((other_value - value).abs().max().item())
        apart.append((other_logits[:, image] - logits).abs().max().item())
    # A quarter turn swaps rows with columns and the two kinds of diagonals at once; a reflection
    # in the vertical axis swaps the diagonals alone.
    assert (max(apart) < 1e-4) == (tied == BOTH_PAIRS)


def test_one_set_of_tied_groups_may_be_written_flat() -> None:
    flat, nested = (
        load_recipe(ModelConfig, None, [f"tied_groups={text}"])
        for text in ("[row,column]", "[[row,column]]")
    )
    assert flat == nested
    assert nested.tied_groups == (("row", "column"),)
    assert load_recipe(ModelConfig, None, ["tied_groups=[[a,b],[c,d]]"]).tied_groups == (
        ("a", "b"),
        ("c", "d"),
    )


def test_flat_model_does_not_commute_with_relabelling() -> None:
    domain = Sudoku(4)
    states = random_states(domain, 6)
    model = small_model(domain, update_map="mlp")
    moved, _ = moved_states(domain, states, "relabelling")
    assert not torch.allclose(model(moved)[0], model(states)[0], atol=1e-2)


# --- Recursion


@models
def test_depth_zero_reads_the_initial_latent_which_is_zero(config: dict[str, object]) -> None:
    domain = Sudoku(4)
    states = random_states(domain, 5)
    model = small_model(domain, **config)
    encoding = model.encode(states)
    z = model.recur(encoding, depth=0)
    assert torch.equal(z, torch.zeros_like(encoding.injection))
    torch.testing.assert_close(model(states, depth=0)[0], model.value(z, encoding))
    assert model(states, depth=0)[1].isfinite().all()
    torch.testing.assert_close(
        small_model(domain, depth=0, **config)(states), model(states, depth=0)
    )


@models
def test_depth_given_to_a_call_equals_depth_of_the_recipe(config: dict[str, object]) -> None:
    domain = Sudoku(4)
    states = random_states(domain, 5)
    deep, shallow = small_model(domain, depth=7, **config), small_model(domain, depth=2, **config)
    assert torch.equal(deep(states, depth=2)[0], shallow(states)[0])
    assert not torch.allclose(deep(states)[0], shallow(states)[0], atol=1e-3)


def test_unroll_applies_the_step_depth_times_and_projects_after_each() -> None:
    # z -> 2z from 1 inside the ball of radius 5: 1, 2, 4, then 8 is pulled back to 5, and so on.
    start = torch.tensor([[1.0, 0.0]])
    reached = [
        float(unroll(lambda z: project_ball(2 * z, 5.0), start, depth=n)[0, 0]) for n in range(6)
    ]
    assert reached == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert float(unroll(lambda z: 2 * z, start, depth=5)[0, 0]) == 32.0


def test_projection_gives_the_nearest_point_of_the_ball_and_never_moves_points_apart() -> None:
    draws = generator(0)
    z, other = torch.randn(2, 200, 4, generator=draws, dtype=torch.float64) * 3
    inside = project_ball(z, 2.0)
    norm = z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(inside, torch.where(norm <= 2.0, z, 2.0 * z / norm))
    apart = (inside - project_ball(other, 2.0)).norm(dim=1)
    assert bool((apart <= (z - other).norm(dim=1) + 1e-12).all())
    assert project_ball(z, None) is z


@models
def test_latents_of_the_model_stay_in_the_ball(config: dict[str, object]) -> None:
    domain = Sudoku(4)
    model = small_model(domain, radius=0.5, spread=1.0, **config)
    z = model.recur(model.encode(random_states(domain, 5))).detach()
    assert float(z.norm(dim=1).max()) == pytest.approx(0.5, rel=1e-5)


# --- Weights, and bad input


@models
def test_weights_come_from_the_generator_alone(config: dict[str, object]) -> None:
    shape = model_shape(Sudoku(4).spec)
    settings = ModelConfig(channels=6, **config)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = TinyRecursiveModel(shape, settings, generator=generator(5)).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = TinyRecursiveModel(shape, settings, generator=generator(5)).state_dict()
    other = TinyRecursiveModel(shape, settings, generator=generator(6)).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, weight in first.items() if bool((weight != 0).any())]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_state_dict_holds_parameters_and_no_tables() -> None:
    model = small_model(Sudoku(4))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channels": 0}, "model.channels must be at least 1, got 0"),
        ({"head_width": -1}, "model.head_width must be at least 1, got -1"),
        ({"depth": -1}, "model.depth must be at least 0, got -1"),
        ({"radius": 0.0}, "model.radius must be positive, got 0.0"),
        ({"tied_groups": ("rows",)}, "tied_groups names 'rows'"),
        ({"tied_groups": (("row", "box"), ("box", "cell"))}, "names 'box' more than once"),
        ({"tied_groups": ("row", ("box", "cell"))}, "must be a list of lists of names"),
        ({"update_map": "mlp", "tied_groups": ("row",)}, "tied_groups needs update_map"),
    ],
)
def test_a_bad_setting_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(Sudoku(4), **config)


def test_relational_map_without_groups_is_refused() -> None:
    shape = model_shape(Sudoku(4).spec)
    bare = type(shape)(**{**vars(shape), "groups": {}})
    with pytest.raises(ValueError, match="needs a domain with constraint groups"):
        TinyRecursiveModel(bare, ModelConfig(), generator=generator())


def test_a_deep_copy_of_a_compiled_model_steps_with_its_own_weights() -> None:
    domain = Sudoku(4)
    model = small_model(domain, update_map="relational")
    model.compile_step(lambda step: lambda own, z, encoding: step(own, z, encoding))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.update.parameters():
            weight.zero_()
    encoding = model.encode(random_states(domain, 3))
    # Without z -> z weights a step is relu(u), and more steps change nothing.
    once = torch.relu(encoding.injection)
    torch.testing.assert_close(other.recur(encoding, depth=3), once)
    assert not torch.allclose(model.recur(encoding, depth=3), once)
