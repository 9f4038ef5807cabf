"""Speed of the relational map on one core: `python benchmarks/relational_map.py [--json FILE]`.

One latent update of the 9x9 recipe (16 channels, rows and columns tied) with its projection, and
its gradient, by the fused kernels of `trm.nn.group_linear` and by the torch operations that other
devices run. Processor time, the fastest of some rounds, both in turn in every round.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from plan_envs.catalogue import resolve_task
from trm.compute.process import provenance
from trm.experiments.states import model_shape
from trm.nn.blocks import GroupStructure, RelationalMap, VariableBatch

CHANNELS, RADIUS = 16, 2.0
LEGAL = 0.28
"""Share of the variables that take part, as in puzzles of the recipe."""


def updates(states: int) -> tuple[dict[str, Callable[[], object]], int]:
    """The update and its gradient, by name, and how many rows they have."""
    generator = torch.Generator().manual_seed(0)
    shape = model_shape(resolve_task("sudoku9x9").domain.spec)
    structure = GroupStructure(shape.groups, shape.num_cells * shape.num_values)
    tied = [("row", "column")]
    update = RelationalMap(structure, CHANNELS, tied=tied, generator=generator)
    active = torch.rand(states, structure.num_variables, generator=generator) < LEGAL
    variables = VariableBatch.select(structure, active)
    rows = len(variables.state)
    z, injection, upstream = (torch.randn(rows, CHANNELS, generator=generator) for _ in range(3))
    z.requires_grad_(), injection.requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return update(z, injection, variables, radius=RADIUS)

    def gradient() -> object:
        out = update(z, injection, variables, radius=RADIUS)
        return torch.autograd.grad(out, [z, injection, *update.parameters()], upstream)

    return {"forward": forward, "forward and backward": gradient}, rows


def measure(states: int, rounds: int) -> list[dict[str, object]]:
    """One record an operation: nanoseconds a row of both ways, and their ratio."""
    named, rows = updates(states)
    fastest: dict[tuple[str, str], float] = {}
    for number in range(rounds + 1):
        for name, call in named.items():
            for way in ("fused", "torch"):
                with mock.patch(
                    "trm.nn.group_linear.has_kernel", lambda _, way=way: way == "fused"
                ):
                    begin = time.process_time()
                    call()
                    spent = time.process_time() - begin
                if number:  # the first round compiles
                    fastest[name, way] = min(fastest.get((name, way), spent), spent)
    return [
        {
            "name": name,
            "states": states,
            "fused_ns": 1e9 * fastest[name, "fused"] / rows,
            "torch_ns": 1e9 * fastest[name, "torch"] / rows,
            "times_as_fast": fastest[name, "torch"] / fastest[name, "fused"],
        }
        for name in named
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for states in (32, 256):
        for record in measure(states, 3 if options.quick else 25):
            records.append(record)
            print(
                f"{record['name']}, {states} states: {record['fused_ns']:.0f} ns a row, torch"
                f" {record['torch_ns']:.0f}: {record['times_as_fast']:.2f} times as fast",
                flush=True,
            )
    if options.json is not None:
        document = {"records": records, "provenance": provenance()}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
