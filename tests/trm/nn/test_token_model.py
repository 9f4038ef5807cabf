"""The token model: published sizes, the official implementation's numbers, and its own laws."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import TRM, Golden, build, ours
from torch import Tensor

from trm.nn.cells import _rotate, rotary_table
from trm.nn.recursion import Latents, RecursionSchedule, recur_pair
from trm.nn.stablemax import IGNORE, masked_mean, stablemax_cross_entropy
from trm.nn.token_model import TokenModelConfig, TokenShape, truncated_normal

DIS = RecursionSchedule(cycles=1, inner=2, supervision=6)
SUDOKU = TokenShape(vocab_size=11, num_positions=81)
ARC = TokenShape(vocab_size=12, num_positions=900)
MAZE = TokenShape(vocab_size=6, num_positions=900)
QUEENS = TokenShape(vocab_size=3, num_positions=64)


@pytest.mark.parametrize(
    ("shape", "schedule", "config", "parameters"),
    [
        (SUDOKU, TRM, {}, 6_828_034),
        (SUDOKU, TRM, {"mixing": "mixer", "positions": "none"}, 5_028_866),
        (ARC, TRM, {}, 6_829_058),
        (MAZE, TRM, {}, 6_822_914),
        (QUEENS, TRM, {}, 6_819_842),
        (SUDOKU, TRM, {"networks": "separate", "layers": 4, "prefix": 1}, 27_275_266),
        (ARC, DIS, {"step_embedding": True}, 6_833_154),
        (ARC, DIS, {"step_embedding": True, "halting_head": False}, 6_832_128),
        (ARC, DIS, {"width": 256, "layers": 1, "step_embedding": True}, 860_674),
        (
            ARC,
            DIS,
            {"width": 256, "layers": 1, "step_embedding": True, "halting_head": False},
            860_160,
        ),
    ],
    ids=[
        "trm-sudoku-att",
        "trm-sudoku-mlp",
        "trm-arc",
        "trm-maze",
        "trm-nqueens",
        "hrm-sudoku",
        "dis-medium-with-head",
        "dis-medium",
        "dis-compact-with-head",
        "dis-compact",
    ],
)
def test_the_number_of_parameters_is_the_published_one(
    shape: TokenShape, schedule: RecursionSchedule, config: dict[str, Any], parameters: int
) -> None:
    assert build(shape, schedule, **config).num_parameters == parameters


@pytest.mark.parametrize(("schedule", "passes"), [(TRM, 336), (DIS, 18)])
def test_a_sample_costs_as_many_calls_as_the_papers_say(
    schedule: RecursionSchedule, passes: int
) -> None:
    # DIS Sec. 4.4: "TRM does 16 * [3 * (6 + 1)] = 336, while we have 6(2 + 1) = 18".
    calls = 0

    def update(z: Tensor, injection: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z

    latents = Latents(z_h=torch.zeros(1, 1, 1), z_l=torch.zeros(1, 1, 1))
    for _ in range(schedule.supervision):
        latents = recur_pair(
            latents, torch.zeros(1, 1, 1), update_l=update, update_h=update, schedule=schedule
        )
    assert calls == schedule.calls == passes


@pytest.mark.parametrize(("gradient", "graded"), [("last_cycle", "lllh"), ("last_updates", "lh")])
def test_only_the_calls_that_the_schedule_names_carry_a_gradient(
    gradient: Any, graded: str
) -> None:
    schedule = RecursionSchedule(cycles=2, inner=3, gradient=gradient)
    seen: list[tuple[str, bool]] = []

    def watch(name: str) -> Any:
        def update(z: Tensor, injection: Tensor) -> Tensor:
            seen.append((name, torch.is_grad_enabled()))
            return z + injection

        return update

    zero = torch.zeros(1, 1, 1)
    latents = Latents(z_h=zero, z_l=zero)
    recur_pair(latents, zero, update_l=watch("l"), update_h=watch("h"), schedule=schedule)
    assert "".join(name for name, _ in seen) == "lllhlllh"
    assert "".join(name for name, with_gradient in seen if with_gradient) == graded
    assert len(graded) == schedule.gradient_calls_per_step


# --- the official implementation


def agree(ours: dict[str, Tensor], exact: dict[str, Tensor], official: dict[str, Tensor]) -> None:
    """Every tensor is within 1e-5 of the official one, or within what rounding itself moves it by.

    The mixer's golden recursion amplifies rounding: float64 and float32 runs of one code differ by
    up to 3e-4 after three steps. `exact` is ours in float64.
    """
    assert ours.keys() == official.keys()
    for key, tensor in ours.items():
        rounding = float((tensor.double() - exact[key].double()).abs().max())
        difference = float((tensor.double() - official[key].double()).abs().max())
        assert difference <= max(1e-5, 3 * rounding), (key, difference, rounding)


def evaluate(golden: Golden, dtype: torch.dtype) -> dict[str, Tensor]:
    """What three steps in evaluation mode give, under the keys of the golden file."""
    model, found = golden.model.to(dtype), {}
    latents = model.start(len(golden.inputs))
    for step in (1, 2, 3):
        with torch.no_grad():
            out = model(latents, golden.inputs, model.puzzle_rows(golden.puzzle))
        latents = out.latents
        found[f"eval.step{step}.logits"] = out.logits
        found[f"eval.step{step}.q_halt"] = out.halting[:, 0]
        found[f"eval.step{step}.z_H"] = latents.z_h
    return found


def train(golden: Golden, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and gradients of two steps, under the keys of the golden file."""
    model, found = golden.model.to(dtype), {}
    latents = start = model.start(len(golden.inputs))
    supervised = golden.labels != IGNORE
    summed = torch.zeros(1, dtype=dtype)
    for step in (1, 2):
        rows = model.puzzle_rows(golden.puzzle)
        out = model(latents, golden.inputs, rows)
        # A sequence that halted starts again, here with the same sample.
        halted = golden.tensors[f"train.step{step}.halted"]
        latents = out.latents.detach().restarted(halted, start)
        token_loss = masked_mean(stablemax_cross_entropy(out.logits, golden.labels), supervised)
        right = ((out.logits.argmax(-1) == golden.labels) | ~supervised).all(dim=1)
        halt_loss = torch.nn.functional.binary_cross_entropy_with_logits(
            out.halting[:, 0], right.float(), reduction="sum"
        )
        loss = token_loss.sum() + 0.5 * halt_loss
        model.zero_grad()
        loss.backward()
        found[f"train.step{step}.loss_sum"] = loss.detach()[None]
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        # The golden script cleared the gradients of parameters only; that of the rows went on.
        assert rows.grad is not None
        summed = summed + rows.grad
        for name, gradient in {**gradients, "rows": summed}.items():
            assert gradient is not None
            found[f"train.step{step}.grad.{name}"] = gradient.clone()
    return found


@pytest.mark.parametrize("name", ["att", "mlp"])
def test_evaluation_agrees_with_the_official_code_step_by_step(
    data_folder: Path, name: str
) -> None:
    golden = Golden(data_folder, name)
    official = {key: t for key, t in golden.tensors.items() if key.startswith("eval.")}
    agree(evaluate(golden, torch.float32), evaluate(golden, torch.float64), official)


@pytest.mark.parametrize("name", ["att", "mlp"])
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_every_gradient_agree_with_the_official_code(
    data_folder: Path, name: str, recompute: bool
) -> None:
    golden = Golden(data_folder, name)
    golden.model.recompute = recompute
    official = {}
    for key, tensor in golden.tensors.items():
        prefix, _, weight = key.partition(".grad.")
        if weight:
            weight = "rows" if weight == "puzzle_emb_rows" else ours(weight)
            official[f"{prefix}.grad.{weight}"] = tensor
        elif key.endswith("loss_sum"):
            official[key] = tensor
    agree(train(golden, torch.float32), train(golden, torch.float64), official)


# --- laws


def test_initial_weights_are_truncated_at_two_deviations_and_have_variance_one() -> None:
    values = truncated_normal((200_000,), torch.Generator().manual_seed(1))
    # Var of a normal cut at +-2 is 1 - 4 phi(2) / (Phi(2) - Phi(-2)) = 0.7737.
    assert float(values.std()) == pytest.approx(1.0, abs=0.01)
    assert float(values.abs().max()) <= 2 / math.sqrt(0.77374) + 1e-3
    model = build(SUDOKU, width=64, heads=2, puzzle_channels=64)
    assert float(model.readout.weight.detach().std()) * math.sqrt(64) == pytest.approx(1.0, abs=0.1)


def test_a_fresh_model_reads_a_puzzle_row_only_in_the_first_place() -> None:
    model = build(QUEENS, width=64, heads=2, puzzle_channels=64)
    rows = torch.ones(2, 64)
    x = model.embed(torch.ones(2, 64, dtype=torch.long), rows)
    assert x.shape == (2, 80, 64)
    assert x[:, 0].eq(8.0).all()
    assert x[:, 1:16].eq(0.0).all()
    assert float(x.detach()[:, 16:].square().mean().sqrt()) == pytest.approx(1.0, abs=0.3)


def test_attention_with_rotary_positions_depends_on_distances_only() -> None:
    cosine, sine = rotary_table(50, 16)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)

    def score(i: int, j: int) -> float:
        turned = [
            _rotate(v[None], cosine[k : k + 1], sine[k : k + 1]) for v, k in ((query, i), (key, j))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 10) == pytest.approx(score(40, 47), abs=1e-4)
    assert score(3, 10) != pytest.approx(score(3, 11), abs=1e-3)


def test_bf16_autocast_keeps_the_gradient_of_weights_that_no_grad_cycles_used_first() -> None:
    model = build(QUEENS, width=64, heads=2, puzzle_channels=0, prefix=1)
    inputs = torch.ones(2, 64, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(model.start(2), inputs, model.puzzle_rows(torch.zeros(2, dtype=torch.long)))
    stablemax_cross_entropy(out.logits, inputs).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("halt"):
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_the_step_embedding_stays_at_the_last_trained_step() -> None:
    model = build(QUEENS, DIS, width=64, heads=2, puzzle_channels=0, step_embedding=True)
    inputs, rows = torch.ones(1, 64, dtype=torch.long), torch.zeros(1, 0)
    six, seven, five = (model.embed(inputs, rows, step=step) for step in (6, 7, 5))
    assert torch.equal(six, seven) and not torch.equal(six, five)
    with pytest.raises(ValueError, match="step must count from 1"):
        model.embed(inputs, rows)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 100, "heads": 3}, "model.width must be an even multiple of model.heads = 3"),
        ({"puzzle_channels": 9000}, r"must fit the prefix, 16 x 512 numbers, got 9000"),
        ({"mixing": "mixer"}, "'rotary' needs mixing 'attention'"),
        ({"prefix": 0, "puzzle_channels": 0}, "halting_head reads the prefix"),
        ({"layers": 0}, "model.layers must be at least 1, got 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenModelConfig(**config)
