"""Lipschitz estimates against dense Jacobians, drift against the networks themselves."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import CPU, generator, random_states, small_model
from study_cases import called, contraction, make_run, small_mdp, states_of_mdp
from tabular import FULL
from torch import Tensor

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy
from trm.compute.device import Placement
from trm.experiments.states import Boards, GreedyPolicy, edit_logits
from trm.nn.model import Encoding, TinyRecursiveModel
from trm.nn.recursion import project_ball
from trm.runs.files import RunError
from trm.runs.run import Run
from upi_trm.contraction import certificate, unroll_bias
from upi_trm.evaluator import shaped_value
from upi_trm.theory.cli import drift
from upi_trm.theory.lipschitz import (
    certified_modulus,
    certified_value_lipschitz,
    latent_path,
    local_lipschitz,
    recursion_lipschitz,
    state_norms,
    value_lipschitz,
)
from upi_trm.theory.stability import (
    MEASURES,
    Correlation,
    drift_correlations,
    greedy_success,
    measure_drift,
    total_variation,
)
from upi_trm.theory.subjects import Subject, load_subject, visited_states, with_dials

ONE_THREAD = Placement(threads=1)
SEEDS = st.integers(0, 999)


def encoded(model: TinyRecursiveModel, seed: int, count: int = 3) -> Encoding:
    with torch.no_grad():
        return model.encode(random_states(FULL, count, seed))


def dense_norms(model: TinyRecursiveModel, encoding: Encoding, z: Tensor) -> Tensor:
    """Norm of the full Jacobian of one update, state by state."""
    point = z.detach().requires_grad_(True)
    image = project_ball(model.step(point, encoding), model.config.radius)
    rows = []
    for i in range(image.numel()):
        (row,) = torch.autograd.grad(image.flatten()[i], point, retain_graph=True)
        rows.append(row.flatten())
    jacobian, owner = torch.stack(rows), encoding.row_state.repeat_interleave(z.shape[1])
    return torch.stack(
        [
            torch.linalg.matrix_norm(jacobian[owner == s][:, owner == s], ord=2)
            for s in range(encoding.batch)
        ]
    )


# --- L_z


@pytest.mark.parametrize("update_map", ["mlp", "relational"])
@pytest.mark.parametrize("radius", [None, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_local_estimate_is_the_norm_of_the_jacobian(
    update_map: str, radius: float | None, seed: int
) -> None:
    model = small_model(
        FULL, seed, update_map=update_map, channels=3, radius=radius, variables="legal"
    ).double()
    encoding = encoded(model, seed, count=2)
    z = latent_path(model, encoding, depth=2)[-1]
    found = local_lipschitz(model, encoding, z, generator=generator(), iterations=60)
    wanted = dense_norms(model, encoding, z)
    assert (found <= wanted * (1 + 1e-5) + 1e-9).all()
    assert torch.allclose(found, wanted, rtol=0.02, atol=1e-6)
    few = local_lipschitz(model, encoding, z, generator=generator(), iterations=2)
    assert (few <= wanted * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("update_map", ["mlp", "relational"])
@settings(max_examples=6)
@given(seed=SEEDS, radius=st.sampled_from([None, 1.5]), spread=st.sampled_from([0.1, 1.0]))
def test_estimates_never_exceed_the_certificate(
    update_map: str, seed: int, radius: float | None, spread: float
) -> None:
    model = small_model(FULL, seed, spread=spread, update_map=update_map, radius=radius).double()
    found = recursion_lipschitz(model, random_states(FULL, 4, seed), generator=generator(seed))
    assert found.certified == certificate(model.update)
    assert 0 < found.local_mean <= found.local <= found.certified * (1 + 1e-5)
    assert 0 < found.empirical <= found.certified * (1 + 1e-5)


def test_a_map_without_a_certificate_has_estimates_only() -> None:
    model = small_model(FULL, 0, update_map="mixer", spread=0.05).double()
    found = recursion_lipschitz(model, random_states(FULL, 3), generator=generator())
    assert found.certified is None
    assert certified_modulus(model) is None
    assert found.local > 0 and found.empirical > 0


def test_norms_are_of_whole_states() -> None:
    for update_map in ("mlp", "relational", "mixer"):
        model = small_model(FULL, 1, update_map=update_map, spread=0.1).double()
        encoding = encoded(model, 1, count=4)
        z = latent_path(model, encoding, depth=1)[-1]
        if encoding.variables is not None:
            owner = encoding.variables.state
        else:  # one row a state for the flat map, one a cell for the mixer
            owner = torch.arange(4).repeat_interleave(len(z) // 4)
        assert owner.bincount(minlength=4).min() > 0
        assert torch.equal(encoding.row_state, owner)
        wanted = torch.stack([z[owner == s].norm() for s in range(4)])
        assert torch.allclose(state_norms(z, encoding), wanted)


# --- L_V


@pytest.mark.parametrize("update_map", ["mlp", "relational", "mixer"])
@pytest.mark.parametrize("value", ["score", "success"])
@settings(max_examples=5)
@given(seed=SEEDS, spread=st.sampled_from([0.1, 1.0]))
def test_the_value_head_never_moves_more_than_its_certificate(
    update_map: str, value: Any, seed: int, spread: float
) -> None:
    model = small_model(
        FULL, seed, spread=spread, update_map=update_map, tied_groups=TIED[update_map]
    ).double()
    states = random_states(FULL, 4, seed)
    phi = torch.rand(4, generator=generator(seed), dtype=torch.float64)
    found = value_lipschitz(model, states, phi, value=value, generator=generator(seed))
    assert found.certified is not None
    assert 0 <= found.local_mean <= found.local <= found.certified
    assert 0 <= found.empirical <= found.certified
    # Far away too, where other units are open.
    encoding = encoded(model, seed, count=4)
    shape = encoding.injection.shape
    one, two = torch.randn((2, *shape), generator=generator(seed), dtype=torch.float64) * 5
    with torch.no_grad():
        bound = certified_value_lipschitz(model, encoding, value=value)
        moved = (
            shaped_value(model.value(one, encoding), phi, value=value)
            - shaped_value(model.value(two, encoding), phi, value=value)
        ).abs()
    assert (moved <= bound * state_norms(one - two, encoding)).all()


TIED = {"mlp": (), "mixer": (), "relational": ("row", "column")}


def test_the_certificate_of_a_flat_head_is_attained_when_all_units_are_open() -> None:
    # V = w relu(W z + b) with every unit open and W = v u', w parallel to v: slope ||w|| ||W||.
    model = small_model(FULL, 0, update_map="mlp", channels=4, head_width=3).double()
    weight = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        model.value_hidden.weight.copy_(weight[:, None] * torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
        model.value_hidden.bias.fill_(100.0)
        model.value_out.weight.copy_(weight[None])
    encoding = encoded(model, 0)
    z = torch.zeros_like(encoding.injection)
    moved = z.clone()
    moved[:, 0] = 1.0
    with torch.no_grad():
        slope = model.value(moved, encoding) - model.value(z, encoding)
    assert slope.tolist() == pytest.approx([4.5] * 3)
    assert certified_value_lipschitz(model, encoding, value="score") == pytest.approx(4.5)


def test_the_local_slope_is_that_of_finite_differences() -> None:
    # The flat map: maxima over variables have ties at the zeros that relu leaves.
    model = small_model(FULL, 3, update_map="mlp").double()
    states = random_states(FULL, 1, 3)
    phi = torch.zeros(1, dtype=torch.float64)
    dialled = with_dials(model, depth=1, radius=None)
    found = value_lipschitz(dialled, states, phi, value="success", generator=generator())
    with torch.no_grad():
        encoding = model.encode(states)
        z = latent_path(dialled, encoding, depth=1)[-1]
        slopes = torch.zeros_like(z)
        for row in range(z.shape[0]):
            for channel in range(z.shape[1]):
                step = torch.zeros_like(z)
                step[row, channel] = 1e-6
                ends = [torch.sigmoid(model.value(z + s * step, encoding)) for s in (1, -1)]
                slopes[row, channel] = (ends[0] - ends[1]).item() / 2e-6
    assert found.local == pytest.approx(float(slopes.norm()), rel=1e-5)


# --- Drift


@pytest.fixture(scope="module")
def clamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "clamped", "contraction.modulus=0.9", seed=1)


@pytest.fixture(scope="module")
def unclamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "unclamped", spread=0.6, seed=2)


def subject_of(path: Path) -> Subject:
    return load_subject(Run.open(path), placement=ONE_THREAD)


def puzzles(num: int) -> Any:
    return resolve_task("sudoku4x4").instances("test", num=num)


@pytest.mark.parametrize("radius", [0.5, None])
def test_drift_is_what_the_networks_say_at_the_two_depths(
    unclamped: Path, radius: float | None
) -> None:
    subject = subject_of(unclamped)
    boards = puzzles(6).instances
    report = measure_drift(
        subject, boards, most=20, depths=[0, 2, 7], radii=[radius], lipschitz_states=2
    )
    initial = Boards(instances=boards, plans=boards)
    states, phi = initial.batch(FULL, CPU), initial.phi(FULL, CPU)
    value, chance = {}, {}
    for depth in (0, 2, 7):
        for model in (subject.learner.evaluator, subject.learner.policy):
            turned = with_dials(model, depth=depth, radius=radius)
            with torch.no_grad():
                raw, logits = turned(states)
            value.setdefault(depth, raw)
            chance[depth] = torch.softmax(logits, dim=1)
    assert phi.shape == (6,)
    for depth in (0, 7):
        found = report.tables[0].cells[depth]["initial"]
        moved = (value[depth] - value[2]).abs().mean()
        assert found.delta_v == pytest.approx(float(moved), rel=1e-9)
        spread = float(np.std(value[2].numpy()))
        assert found.delta_v_relative == pytest.approx(float(moved) / spread, rel=1e-9)
        apart = 0.5 * (chance[depth] - chance[2]).abs().sum(dim=1)
        assert found.delta_pi == pytest.approx(float(apart.mean()), rel=1e-9)
        divergence = torch.special.xlogy(chance[2], chance[2] / chance[depth].clamp_min(1e-300))
        assert found.delta_pi_kl == pytest.approx(float(divergence.sum(dim=1).mean()), rel=1e-6)
    same = report.tables[0].cells[2]
    for where in ("initial", "visited"):
        assert same[where].delta_v == same[where].delta_pi == 0.0
        assert same[where].delta_pi_kl == pytest.approx(0.0, abs=1e-12)


def test_drift_stays_within_what_the_contraction_allows(clamped: Path) -> None:
    # |U_n - U_m| <= L_V (L_z^n + L_z^m) C_z / (1 - L_z)
    subject = subject_of(clamped)
    evaluator = subject.learner.evaluator
    boards = puzzles(6).instances
    report = measure_drift(subject, boards, depths=[0, 1, 4, 8], lipschitz_states=4)
    initial = Boards(instances=boards, plans=boards)
    with torch.no_grad():
        encoding = evaluator.encode(initial.batch(FULL, CPU))
    first = float(state_norms(latent_path(evaluator, encoding, depth=1)[1], encoding).max())
    head = certified_value_lipschitz(evaluator, encoding, value="score")
    modulus = certificate(evaluator.update)
    assert modulus <= 0.9
    for depth, row in report.tables[0].cells.items():
        bias = unroll_bias(modulus, depth, first) + unroll_bias(modulus, 2, first)
        assert 0 < row["initial"].delta_v <= head * bias


def test_greedy_success_is_that_of_the_evaluation(unclamped: Path) -> None:
    subject = subject_of(unclamped)
    pool = puzzles(40)
    boards = Boards(instances=pool.instances, plans=pool.instances)
    for depth in (2, 5):
        model = with_dials(subject.learner.policy, depth=depth, radius=None)
        wanted = evaluate_policy(GreedyPolicy(partial(edit_logits, model), ONE_THREAD), FULL, pool)
        found = greedy_success(subject, boards, depth=depth, radius=None)
        assert found == wanted.success_rate


def test_a_solved_plan_counts_as_a_success(unclamped: Path) -> None:
    pool = puzzles(3)
    boards = Boards(instances=pool.instances, plans=pool.solutions)
    assert greedy_success(subject_of(unclamped), boards, depth=2, radius=None) == 1.0


def test_visited_states_are_live_and_start_with_the_initial_ones() -> None:
    pool = puzzles(10)

    def uniform(states: Any) -> Tensor:
        legal = states.mask.double()
        return legal / legal.sum(dim=1, keepdim=True)

    def visit(seed: int, most: int = 10_000) -> Boards:
        return visited_states(
            FULL, uniform, pool.instances, generator=generator(seed), device=CPU, most=most
        )

    boards = visit(0)
    assert np.array_equal(boards.plans[:10], pool.instances)
    assert len(boards) > 20
    assert not FULL.check(boards.instances, boards.plans).solved.any()
    assert ((boards.instances == 0) | (boards.plans == boards.instances)).all()
    again, fewer = visit(0), visit(0, most=15)
    assert np.array_equal(boards.plans, again.plans)
    assert len(fewer) == 15
    joined = {plan.tobytes() for plan in boards.plans}
    assert {plan.tobytes() for plan in fewer.plans} <= joined


def test_visited_states_of_nothing_to_edit_are_refused() -> None:
    pool = puzzles(2)
    with pytest.raises(ValueError, match="none of them has anything left to edit"):
        visited_states(
            FULL, lambda _: torch.zeros(0), pool.solutions, generator=generator(), device=CPU
        )


def test_dials_leave_the_network_as_it_was(unclamped: Path) -> None:
    model = subject_of(unclamped).learner.policy
    turned = with_dials(model, depth=9, radius=None)
    assert (turned.config.depth, turned.config.radius) == (9, None)
    assert (model.config.depth, model.config.radius) == (2, 10.0)
    assert turned.edit_out.weight is model.edit_out.weight


def test_the_deployed_average_is_what_is_studied(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run", "improvement.average_rate=0.1"))
    weights = run.load_checkpoint().weights
    name = "edit_hidden.weight"
    # The jitter of `make_run` left the average behind.
    assert not torch.equal(weights[f"average.{name}"], weights[f"policy.{name}"])
    studied = load_subject(run, placement=ONE_THREAD).learner.policy.state_dict()[name]
    assert torch.equal(studied, weights[f"average.{name}"].double())


def test_a_run_of_another_learner_is_refused(tmp_path: Path) -> None:
    with Run.create(
        tmp_path / "run",
        kind="ppo",
        env="sudoku4x4",
        seed=0,
        recipe=Correlation(pearson=None, pearson_log=None, points=0),
    ) as run:
        pass
    with pytest.raises(RunError, match="kind is 'ppo' where 'upi' is needed"):
        load_subject(run, placement=ONE_THREAD)


def test_total_variation_is_half_the_absolute_difference() -> None:
    one = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    two = torch.tensor([[0.0, 0.0, 1.0], [0.25, 0.5, 0.25]])
    assert total_variation(one, two).tolist() == [1.0, 0.25]


# --- Correlations


def test_correlations_of_known_columns() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    assert Correlation.of([(v, 2 * v + 1) for v in x]).pearson == pytest.approx(1.0)
    squares = Correlation.of([(v, v**-3) for v in x])
    assert squares.pearson_log == pytest.approx(-1.0)
    assert squares.pearson is not None
    assert -1 < squares.pearson < -0.7
    assert Correlation.of([(v, 1.0) for v in x]).pearson is None
    assert Correlation.of([(v, v) for v in x[:2]]).pearson is None
    # A drift of exactly 0 has no logarithm: the other points count.
    assert Correlation.of([(v, v) for v in (0.0, *x)]).pearson_log == pytest.approx(1.0)


def test_the_depth_of_training_does_not_enter_the_correlation(
    clamped: Path, unclamped: Path
) -> None:
    boards = puzzles(4).instances
    reports = [
        measure_drift(subject_of(path), boards, depths=[2, 4, 8], most=8, lipschitz_states=2)
        for path in (clamped, unclamped)
    ]
    found = drift_correlations(reports)
    for where in ("initial", "visited"):
        assert found[where]["delta_v_delta_pi"].points == 4
        assert found[where]["certified_modulus_delta_v"].points == 2
        assert found[where]["certified_modulus_delta_v"].pearson is None


# --- The command


def test_drift_json_has_every_measure_by_depth_and_state_set(
    clamped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = called(drift, clamped, "--num", "5", "--depths", "2,4", capsys=capsys)
    for name in MEASURES:
        assert list(record[name]) == ["2", "4"]
        for row in record[name].values():
            assert list(row) == ["initial", "visited"]
        assert record["projections"]["10"][name] == record[name]
        assert set(record["projections"]) == {"10", "none"}
    assert record["delta_v"]["2"] == {"initial": 0.0, "visited": 0.0}
    assert record["delta_v"]["4"]["initial"] > 0
    assert (record["train_depth"], record["train_radius"], record["modulus"]) == (2, 10.0, 0.9)
    assert record["num_states"]["initial"] == 5
    for part in ("evaluator", "policy"):
        assert 0 < record["lipschitz"][part]["local"] <= record["lipschitz"][part]["certified"]
        assert record["lipschitz"][part]["certified"] <= 0.9


@pytest.mark.slow
def test_several_runs_are_compared_and_drawn(
    clamped: Path, unclamped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "drift.png"
    words = ("--num", "2", "--depths", "4,8", "--radius", "none", "--plot", figure)
    record = called(drift, clamped, unclamped, *words, capsys=capsys)
    assert [Path(run["run"]).name for run in record["runs"]] == ["clamped", "unclamped"]
    assert all(set(run["projections"]) == {"none"} for run in record["runs"])
    assert record["correlations"]["visited"]["delta_v_delta_pi"]["points"] == 4
    assert record["runs"][1]["lipschitz"]["evaluator"]["certified"] > 1
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_names_the_extra(
    clamped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"--plot needs matplotlib: pip install 'upi-trm\[plot\]'"):
        drift.main([str(clamped), "--plot", str(tmp_path / "x.png")], standalone_mode=False)


def test_the_tables_show_drift_and_constants(
    unclamped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    drift.main([str(unclamped), "--num", "3", "--depths", "3"], standalone_mode=False)
    out = capsys.readouterr().out
    for word in ("no contraction, n_train = 2", "initial (3)", "Delta_pi", "value_head"):
        assert word in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "4,x"], "'4,x' is no list of depths"),
        (["--radius", "0"], "'0' is no list of radii"),
        (["--step", "newest"], "neither a number of edits nor best"),
        (["--step", "5"], "no checkpoint 5"),
    ],
)
def test_bad_words_are_refused(clamped: Path, words: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        drift.main([str(clamped), *words], standalone_mode=False)


def test_a_run_on_another_domain_drifts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "model.update_map=mixer", "model.tied_groups=[]", spread=0.02)
    record = called(drift, run, "--num", "2", "--depths", "3", capsys=capsys)
    assert record["lipschitz"]["evaluator"]["certified"] is None
    assert record["lipschitz"]["evaluator"]["local"] > 0


def test_the_bound_on_all_states_is_the_bound_on_any(clamped: Path) -> None:
    # L_V counts variables: more states can only raise it.
    model = contraction("relational", 0, modulus=0.9)
    states, _ = states_of_mdp(small_mdp())
    with torch.no_grad():
        every = certified_value_lipschitz(model, model.encode(states), value="score")
        few = certified_value_lipschitz(
            model, model.encode(states.select(slice(0, 3))), value="score"
        )
    assert few <= every
