"""Supervised runs: they learn and resume bit by bit, two processes equal one, and the commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from golden_cases import ours as golden_name
from resume_cases import metrics_without_clocks
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supervised.cli import supervised
from supervised.commands.costs import call_flops, costs_of
from supervised.commands.official import import_model, our_name
from supervised.data_sets.board_plans import sudoku_plan
from supervised.data_sets.building import build_dataset
from supervised.models import RUN_KIND, load_model
from supervised.recipe import SupervisedRecipe, token_shape
from supervised.shipped import RECIPES
from supervised.trainer import resume, train
from trm.compute.device import Placement
from trm.experiments.training import NotFiniteError
from trm.nn.token_model import TokenModel, TokenModelConfig, TokenShape
from trm.runs.recipe import load_recipe
from trm.runs.run import Run

HERE = Placement(threads=1)

SMALL = """
data: {task: sudoku4x4-hard, num: 50}
model: {mixing: mixer, positions: none, width: 16, layers: 1, heads: 1, inner_multiple: 8,
  prefix: 1, puzzle_channels: 16}
recursion: {cycles: 1, inner: 1, supervision: 3}
optimiser: {learning_rate: 0.003, warm_up: 3, average: 0.9}
batch_size: 4
schedule: {steps: 10, log_every: 2, evaluate_every: 5, evaluate_num: 20, checkpoint_every: 4}
"""
ACT = "act: {exploration: 0.5}\n"
DIS = "dis: {targets: nested, corrupted_as: input}\n"
SUM = "dis: {targets: independent, updates: sum, terms: dual}\n"
GRAPH = "act: {exploration: 0.5, loss: bce}\n"


def recipe_file(folder: Path, method: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(SMALL + method)
    if method == GRAPH:
        path.write_text(
            "data: {task: sudoku4x4-hard, num: 50, revealed: 0.5}\n"
            "model: {mixing: relational, positions: none, width: 8, layers: 1, heads: 1,\n"
            "  prefix: 0, puzzle_channels: 0, tied_groups: [[row, column]], radius: 2.0}\n"
            "recursion: {cycles: 1, inner: 3, supervision: 3, supervised_unrolls: [2]}\n"
            + SMALL[SMALL.index("optimiser:") :]
            + method
        )
    return path


def weights_of(run: Run, step: int | None = None) -> dict[str, torch.Tensor]:
    return run.load_checkpoint(step).weights


@pytest.mark.parametrize(
    "method", [ACT, DIS, SUM, GRAPH], ids=["act", "dis", "dis-sum", "relational"]
)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, method: str) -> None:
    path = recipe_file(tmp_path, method)
    whole = train(recipe_path=path, out=tmp_path / "whole", placement=HERE, seed=3).run
    # Stopped at 4, away from the end of a DIS sequence of 3, and within a log interval at 7.
    train(recipe_path=path, out=tmp_path / "parts", placement=HERE, seed=3)
    for folder in (tmp_path / "parts" / "checkpoints").iterdir():
        if folder.name not in ("step-000000008",):
            (shutil.rmtree if folder.is_dir() else Path.unlink)(folder)
    outcome = resume(tmp_path / "parts", placement=Placement())
    again = outcome.run
    assert outcome.finished
    first, second = weights_of(whole, 10), weights_of(again, 10)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert metrics_without_clocks(whole) == metrics_without_clocks(again)
    states = [run.load_checkpoint(10).state["shares"] for run in (whole, again)]
    assert torch.equal(
        states[0][0]["objective"]["latents"]["z_h"], states[1][0]["objective"]["latents"]["z_h"]
    )


def test_the_puzzle_table_learns_and_the_average_is_what_is_evaluated(tmp_path: Path) -> None:
    run = train(recipe_path=recipe_file(tmp_path, ACT), out=tmp_path / "run", placement=HERE).run
    weights = weights_of(run)
    assert float(weights["model.puzzle_table"].abs().max()) > 0
    model, _ = load_model(run)
    name = "readout.weight"
    assert torch.equal(model.state_dict()[name], weights["average." + name])
    assert not torch.equal(weights["model." + name], weights["average." + name])
    assert torch.equal(model.puzzle_table, weights["model.puzzle_table"])


@pytest.mark.parametrize("recipe", ["dis-sudoku4x4", "trm-sudoku4x4"])
def test_a_shipped_recipe_learns_within_seconds(tmp_path: Path, recipe: str) -> None:
    # Random predictions of 16 tokens have a third of the cells right: the givens' share alone.
    run = train(
        recipe_path=RECIPES.find(recipe),
        overrides=[
            "schedule.steps=150",
            "schedule.evaluate_every=150",
            "model.width=32",
            "optimiser.warm_up=20",
            "optimiser.learning_rate=0.004",
        ],
        out=tmp_path / "run",
        placement=HERE,
    ).run
    last = run.read_metrics()[-1]
    assert last["token_accuracy"] > 0.7
    passes = last["sample_passes"]
    # DIS: six steps a sample; ACT: between one and sixteen.
    assert passes == 150 // 6 * 32 if recipe.startswith("dis") else 32 * 10 <= passes <= 32 * 150


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_the_same_batch(tmp_path: Path) -> None:
    # DIS without augmentation: both draw the same samples in the same passes; the label at every
    # step needs no noise. Hence one process sees in a batch what two see in their halves.
    path = recipe_file(tmp_path, "dis: {targets: final}\n")
    path.write_text(path.read_text().replace("num: 50}", "num: 48, augment: false}"))
    alone = train(recipe_path=path, out=tmp_path / "one", placement=HERE).run
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\n"
        "from supervised.trainer import train\n"
        "from trm.compute.device import Placement\n"
        f"train(recipe_path=Path({str(path)!r}), out=Path({str(tmp_path / 'two')!r}),"
        " placement=Placement(threads=1))\n"
    )
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = Run.open(tmp_path / "two", kind=RUN_KIND)
    for name, weight in weights_of(alone).items():
        torch.testing.assert_close(weights_of(two)[name], weight, rtol=1e-4, atol=1e-5)
    name = "train_token_loss_3"
    one, both = (
        [line[name] for line in run.read_metrics() if name in line] for run in (alone, two)
    )
    assert len(one) == 3 and one == pytest.approx(both, rel=1e-4)
    last, both_last = alone.read_metrics()[-1], two.read_metrics()[-1]
    assert both_last["sample_passes"] == last["sample_passes"]
    # Each evaluates half of the 20 validation examples; one token of theirs is 1 / 320.
    assert both_last["token_accuracy"] == pytest.approx(last["token_accuracy"], abs=0.01)
    assert both_last["loss"] == pytest.approx(last["loss"], rel=1e-3)


# --- recipes


@pytest.mark.parametrize("name", RECIPES.names())
def test_a_shipped_recipe_loads_and_says_its_expectation(name: str) -> None:
    path = RECIPES.find(name)
    recipe = load_recipe(SupervisedRecipe, path)
    assert token_shape(recipe).vocab_size > 2
    header = path.read_text().split("data:")[0]
    assert "# Expected: " in header
    measured = "(results/" in header
    assert ("Not run here" in header) == (recipe.data.folder is not None and not measured)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("trm-sudoku-att", 6_828_034),
        ("trm-sudoku-mlp", 5_028_866),
        ("trm-maze", 6_822_914),
        ("trm-arc", 6_829_058),
        ("hrm-sudoku", 27_275_266),
        ("dis-medium", 6_832_128),
        ("dis-compact", 860_160),
    ],
)
def test_a_full_recipe_builds_the_model_of_the_papers(name: str, parameters: int) -> None:
    recipe = load_recipe(SupervisedRecipe, RECIPES.find(name))
    model = TokenModel(
        token_shape(recipe), recipe.model, recipe.recursion, generator=torch.Generator()
    )
    assert model.num_parameters == parameters
    assert recipe.recursion.calls == {"dis": 18, "hrm": 96}.get(name[:3], recipe.recursion.calls)


@pytest.mark.parametrize(
    ("method", "old", "new", "message"),
    [
        (ACT, "task: sudoku4x4-hard", "task: sudoku5x5", "sudoku5x5"),
        (ACT, "num: 50", "folder: x, domain: sudoku4x4, num: 50", "either folder or task"),
        (ACT + DIS, "num: 50", "num: 50", "exactly one of the sections act and dis"),
        ("", "num: 50", "num: 50", "exactly one of the sections act and dis"),
        (ACT, "prefix: 1,", "prefix: 1, halting_head: false,", "halting_head"),
        (ACT, "prefix: 1,", "prefix: 1, step_embedding: true,", "step_embedding"),
        (ACT, "batch_size: 4", "batch_size: 0", "batch_size must be at least 1, got 0"),
        (ACT, "task: sudoku4x4-hard, num: 50", "folder: nowhere, domain: sudoku4x4", "nowhere"),
        (ACT, "width: 16", "widthh: 16", "did you mean model.width"),
        (GRAPH, "[row, column]", "[row, rows]", "tied_groups names 'rows'"),
        (GRAPH, "revealed: 0.5", "revealed: 1.5", r"data.revealed must .* \[0, 1\], got 1.5"),
        (GRAPH, "task: sudoku4x4-hard", "task: maze10", "data.revealed is for Sudoku and N-Queens"),
        (GRAPH, "mixing: relational", "mixing: neighbour", "needs mixing 'relational'"),
        (GRAPH, "act: {exploration: 0.5, loss: bce}", "dis: {feeds: prediction}", "dis.feeds must"),
        (GRAPH, "act: {exploration: 0.5, loss: bce}", "dis: {}", "dis.corrupted_as 'mask'"),
    ],
)
def test_a_bad_recipe_ends_in_one_line(
    tmp_path: Path, method: str, old: str, new: str, message: str
) -> None:
    path = recipe_file(tmp_path, method)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        train(recipe_path=path, out=tmp_path / "run", placement=HERE)
    assert "\n" not in str(error.value)


# --- costs


@pytest.mark.parametrize("mixing", ["attention", "mixer"])
def test_flops_of_a_call_are_those_that_torch_counts(mixing: Any) -> None:
    model = TokenModel(
        TokenShape(vocab_size=5, num_positions=20),
        TokenModelConfig(
            mixing=mixing,
            positions="rotary" if mixing == "attention" else "none",
            width=32,
            heads=2,
            prefix=4,
            puzzle_channels=32,
        ),
        load_recipe(SupervisedRecipe, RECIPES.find("trm-arc")).recursion,
        generator=torch.Generator(),
    )
    z = model.start(3).z_h
    # The fused kernels of attention are not counted, the plain one is.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model._update(model.net_l)(z, z)
    assert call_flops(model) * 3 == counter.get_total_flops()


def test_flops_of_a_relational_call_are_those_of_an_empty_board() -> None:
    recipe = load_recipe(SupervisedRecipe, RECIPES.find("trm-sudoku9x9-relational"))
    model = TokenModel(
        token_shape(recipe), recipe.model, recipe.recursion, generator=torch.Generator()
    )
    model.bfloat16()  # the kernels of float32 are not counted, torch's products are
    inputs, rows = torch.ones(3, 81, dtype=torch.long), torch.zeros(3, 0)
    calls = []
    model.net_l.register_forward_pre_hook(lambda *_: calls.append(counter.get_total_flops()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.start(3), inputs, rows, step=1)
    assert calls[1] - calls[0] == 3 * call_flops(model)


def test_recomputing_keeps_less_and_costs_a_third_more_of_the_graded_calls() -> None:
    recipe = load_recipe(SupervisedRecipe, RECIPES.find("trm-nqueens"))
    light = load_recipe(SupervisedRecipe, RECIPES.find("trm-nqueens"), ["recompute=true"])
    kept, computed = (costs_of(r, token_shape(r)) for r in (recipe, light))
    assert computed.activation_bytes < 0.6 * kept.activation_bytes
    assert computed.flops_per_step / kept.flops_per_step == pytest.approx(4 / 3, rel=0.01)


# --- official checkpoints


def golden_checkpoint(data_folder: Path, out: Path, prefix: str) -> tuple[Path, Path]:
    """A checkpoint with the golden weights under public names, and its recipe."""
    source = data_folder / "golden" / "trm_mlp.safetensors"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    tensors = {
        prefix + name.removeprefix("weights."): value
        for name, value in load_file(source).items()
        if name.startswith("weights.")
    }
    recipe = out / "recipe.yaml"
    recipe.write_text(
        "data: {task: sudoku4x4-hard}\n"
        "model: {mixing: mixer, positions: none, width: 64, heads: 2, prefix: 4,"
        " puzzle_channels: 64}\n"
        "recursion: {cycles: 2, inner: 3, supervision: 4}\nact: {}\n"
    )
    path = out / "checkpoint.pt"
    torch.save(tensors, path)
    return path, recipe


@pytest.mark.parametrize("prefix", ["", "model.inner.", "_orig_mod.model.inner."])
def test_a_public_checkpoint_is_loaded_under_each_of_its_prefixes(
    data_folder: Path, tmp_path: Path, prefix: str
) -> None:
    path, recipe = golden_checkpoint(data_folder, tmp_path, prefix)
    model = import_model(
        path, load_recipe(SupervisedRecipe, recipe), TokenShape(vocab_size=7, num_positions=16)
    )
    for key, value in torch.load(path, weights_only=True).items():
        assert our_name(key) == golden_name(key.removeprefix(prefix))
        assert torch.equal(model.state_dict()[our_name(key)], value)


def test_a_checkpoint_with_a_key_too_many_too_few_or_of_another_shape_is_refused(
    data_folder: Path, tmp_path: Path
) -> None:
    path, recipe_path = golden_checkpoint(data_folder, tmp_path, "model.inner.")
    recipe = load_recipe(SupervisedRecipe, recipe_path)
    shape = TokenShape(vocab_size=7, num_positions=16)
    whole = torch.load(path, weights_only=True)
    for change, message in (
        ({"model.inner.extra": torch.zeros(1)}, r'Unexpected key\(s\) in state_dict: "extra"'),
        ({"model.inner.H_init": torch.zeros(3)}, r"size mismatch for start_h: .*\[3\].*\[64\]"),
        ({"H_init": torch.zeros(64)}, "appears twice"),
    ):
        torch.save(whole | change, path)
        with pytest.raises(ValueError, match=message):
            import_model(path, recipe, shape)
    del whole["model.inner.lm_head.weight"]
    save_file(whole, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r'Missing key\(s\) in state_dict: "readout\.weight"'):
        import_model(tmp_path / "cut.safetensors", recipe, shape)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.pt: cannot be read"):
        import_model(tmp_path / "junk.pt", recipe, shape)


# --- commands


def test_train_and_eval_from_the_command_line(tmp_path: Path) -> None:
    runner, path = CliRunner(), recipe_file(tmp_path, DIS)
    run = tmp_path / "run"
    done = runner.invoke(
        supervised, ["train", "--recipe", str(path), "--out", str(run), "--steps", "4"]
    )
    assert done.exit_code == 0, done.output
    again = runner.invoke(supervised, ["train", "--resume", str(run), "--steps", "6"])
    assert again.exit_code == 0, again.output
    assert Run.open(run).checkpoint_steps()[-1] == 6
    arguments = ["eval", str(run), "--num", "10", "--steps", "5", "--guidance", "1.5", "--json"]
    shown = runner.invoke(supervised, arguments)
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout.splitlines()[-1])
    assert record["num"] == 10 and record["steps"] == 5 and len(record["curve"]) == 5
    assert {"exact", "token_accuracy", "valid", "margin", "hamming"} <= set(record)
    mixed = runner.invoke(supervised, ["train", "--resume", str(run), "--seed", "1"])
    assert mixed.exit_code == 2 and "--seed can't be combined with --resume" in mixed.output


def test_a_relational_run_is_evaluated_on_boards_of_another_size(tmp_path: Path) -> None:
    runner, run, boards = CliRunner(), tmp_path / "run", tmp_path / "boards"
    train(recipe_path=recipe_file(tmp_path, GRAPH), out=run, placement=HERE)
    build_dataset(boards, sudoku_plan(side=6, train=1, validation=0, test=4))
    command = ["eval", str(run), "--data", str(boards), "--commit", "--json"]
    shown = runner.invoke(supervised, command)
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout.splitlines()[-1])
    assert record["num"] == 4 and 0 <= record["commit"]["valid"] <= 1
    train(recipe_path=recipe_file(tmp_path, ACT), out=tmp_path / "act", placement=HERE)
    command[1] = str(tmp_path / "act")
    refused = runner.invoke(supervised, command)
    assert "36 positions of 8 tokens, the run's model takes 16 of 6" in str(refused.exception)


def test_info_counts_what_a_recipe_costs() -> None:
    shown = CliRunner().invoke(supervised, ["info", "dis-nqueens", "--json"])
    record = json.loads(shown.stdout)
    assert record["forward_passes"] == 18 and record["parameters"] <= 65_000


def test_an_imported_run_is_evaluated_but_not_resumed(data_folder: Path, tmp_path: Path) -> None:
    path, recipe = golden_checkpoint(data_folder, tmp_path, "model.inner.")
    # A 4x4 board has six tokens where the golden model has seven: drop one, and its row.
    tensors = torch.load(path, weights_only=True)
    for name in ("embed_tokens.embedding_weight", "lm_head.weight"):
        tensors[f"model.inner.{name}"] = tensors[f"model.inner.{name}"][:6].clone()
    torch.save(tensors, path)
    runner, run = CliRunner(), tmp_path / "run"
    made = runner.invoke(
        supervised, ["import", str(path), "--recipe", str(recipe), "--out", str(run)]
    )
    assert made.exit_code == 0, made.output
    shown = runner.invoke(supervised, ["eval", str(run), "--num", "5", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout.splitlines()[-1])["early_exit"] is not None
    with pytest.raises(ValueError, match="imported weights alone"):
        resume(run, placement=HERE)


def test_a_learning_rate_that_explodes_ends_in_one_line_and_no_checkpoint_holds_nan(
    tmp_path: Path,
) -> None:
    path = recipe_file(tmp_path, ACT)
    with pytest.raises(NotFiniteError, match=r"training stopped at \d+ steps: ") as end:
        train(
            recipe_path=path,
            overrides=["optimiser.learning_rate=1e30", "optimiser.warm_up=1"],
            out=tmp_path / "run",
            placement=HERE,
        )
    assert "\n" not in str(end.value)
    run = Run.open(tmp_path / "run")
    for step in run.checkpoint_steps():
        assert all(torch.isfinite(tensor).all() for tensor in weights_of(run, step).values())
