"""Speed and memory of one supervision step of a recipe (`--help` says how to choose them).

Time: forward, StableMax loss and backward of one step on one core, against the matrix products that
it contains, done alone with operands of the same sizes (of attention the linear layers only). Times
are CPU seconds of the process, the fastest of some rounds, both in one run. Memory: from the
resident memory before a step to its peak, by Linux's own account, in a process of its own, with
activations kept and with `recompute`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from supervised.commands.costs import call_flops
from supervised.objectives.losses import sample_losses
from supervised.recipe import SupervisedRecipe, token_shape
from supervised.shipped import RECIPES
from trm.compute.device import Placement
from trm.nn.token_model import TokenModel
from trm.runs.recipe import load_recipe


def model_of(recipe: str, *, recompute: bool = False) -> TokenModel:
    loaded = load_recipe(SupervisedRecipe, RECIPES.find(recipe))
    generator = torch.Generator().manual_seed(0)
    shape = token_shape(loaded)
    model = TokenModel(shape, loaded.model, loaded.recursion, generator=generator)
    model.recompute = recompute
    return model


def step_of(model: TokenModel, batch: int, *, bf16: bool) -> Callable[[], None]:
    tokens = torch.randint(1, model.shape.vocab_size, (batch, model.shape.num_positions))
    puzzle = torch.zeros(batch, dtype=torch.long)
    start = model.start(batch)

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out = model(start, tokens, model.puzzle_rows(puzzle), step=1)
        sample_losses(out.logits, tokens, kind="stablemax").mean().backward()

    return step


def products_of(model: TokenModel, batch: int, *, bf16: bool) -> Callable[[], None]:
    """The step's matrix products: one a linear layer and call, two more where it has a gradient."""
    schedule, places = model.schedule, model.config.prefix + model.shape.num_positions
    dtype = torch.bfloat16 if bf16 else torch.float32
    operands = []
    for name, layer in model.net_l.named_modules():
        if isinstance(layer, nn.Linear):
            rows = batch * (model.config.width if ".places." in name else places)
            outputs, inputs = layer.weight.shape
            x, g = torch.randn(rows, inputs, dtype=dtype), torch.randn(rows, outputs, dtype=dtype)
            operands.append((x, layer.weight.detach().to(dtype), g))

    def products() -> None:
        for _ in range(schedule.calls_per_step):
            for x, weight, _gradient in operands:
                torch.mm(x, weight.T)
        for _ in range(schedule.gradient_calls_per_step):
            for x, weight, gradient in operands:
                torch.mm(gradient, weight)
                torch.mm(gradient.T, x)

    return products


def fastest(action: Callable[[], None], rounds: int) -> float:
    seconds = []
    action()
    for _ in range(rounds):
        began = time.process_time()
        action()
        seconds.append(time.process_time() - began)
    return min(seconds)


def kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def peak_of_step(recipe: str, batch: int, recompute: bool) -> float:
    """MB, in this process: call it in a fresh one."""
    step = step_of(model_of(recipe, recompute=recompute), batch, bf16=False)
    step_of(model_of(recipe, recompute=recompute), 1, bf16=False)()
    before = kilobytes("VmRSS")
    step()
    return (kilobytes("VmHWM") - before) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("recipe", nargs="?", default="trm-sudoku-mlp")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="Measure bfloat16 too.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=["kept", "recomputed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    Placement(threads=1).apply()
    if options.peak:
        print(peak_of_step(options.recipe, options.batch, options.peak == "recomputed"))
        return
    model = model_of(options.recipe)
    calls = model.schedule.calls_per_step + 2 * model.schedule.gradient_calls_per_step
    flops = calls * call_flops(model) * options.batch
    record: dict[str, object] = {"recipe": options.recipe, "batch": options.batch, "flops": flops}
    for bf16 in [False, True] if options.bf16 else [False]:
        step = fastest(step_of(model, options.batch, bf16=bf16), options.rounds)
        products = fastest(products_of(model, options.batch, bf16=bf16), options.rounds)
        name = "bfloat16" if bf16 else "float32"
        record[name] = {"step": step, "products": products, "share": products / step}
        print(
            f"{name}: a step {step:.3f} CPU s ({flops / step / 1e9:.1f} GFLOP/s),"
            f" its products alone {products:.3f}: {products / step:.1%}"
        )
    peaks = {}
    for kind in ("kept", "recomputed"):
        command = [sys.executable, __file__, options.recipe, "--batch", str(options.batch)]
        done = subprocess.run(
            [*command, "--peak", kind], capture_output=True, text=True, check=True
        )
        peaks[kind] = float(done.stdout)
    record["peak_mb"] = peaks
    share = peaks["recomputed"] / peaks["kept"]
    print(f"peak of a step: {peaks['kept']:.0f} MB kept, {peaks['recomputed']:.0f} MB: {share:.1%}")
    if options.json:
        options.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
