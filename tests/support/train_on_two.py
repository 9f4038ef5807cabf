"""What each of two processes does in test_workers.py, under torchrun: FOLDER RESULT."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from trm.compute.device import Placement
from trm.compute.workers import Workers, joined
from trm.runs.run import Run
from upi_trm.learner import UpiLearner
from upi_trm.trainer import resume, train

TINY = (
    *("model.channels=4", "model.head_width=6", "model.depth=1", "contraction.modulus=0.7"),
    *("rollout.plans=8", "rollout.steps=4"),
    *("evaluator.passes=1.0", "evaluator.batch_size=32", "evaluator.replay_iterations=2"),
    *("improvement.distil_passes=2.0", "improvement.batch_size=16"),
    *("instances.num=20", "schedule.evaluate_num=6"),
    *("schedule.evaluate_every=64", "schedule.checkpoint_every=64"),
)
HERE = Placement(threads=1)


def halves_make_the_whole(workers: Workers) -> float:
    """Largest difference between the averaged gradient of two halves and that of the whole."""
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(torch.linspace(-1 - number, 1, weight.numel()).view_as(weight))
    rows = torch.linspace(-2, 3, 40).view(8, 5)
    model(rows).square().mean().backward()
    whole = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    half = len(rows) // workers.size
    model(rows[workers.rank * half :][:half]).square().mean().backward()
    workers.average_gradients(model)
    pairs = zip(whole, model.parameters(), strict=True)
    return max(float((one - two.grad).abs().max()) for one, two in pairs)


def start(out: Path, steps: int) -> Run:
    return train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=TINY,
        steps=steps,
        seed=3,
        out=out,
        placement=HERE,
    ).run


def main(workers: Workers) -> None:
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    difference = halves_make_the_whole(workers)
    seen: list[tuple[UpiLearner, list[int]]] = []
    iterate = UpiLearner.iterate

    def watched(self: UpiLearner, *args: object, **kwargs: object) -> dict[str, float]:
        metrics = iterate(self, *args, **kwargs)  # type: ignore[arg-type]  # passed on
        actions = self.parts.replay[-1].action
        seen.append((self, [*actions.shape, *actions.ravel().tolist()]))
        return metrics

    UpiLearner.iterate = watched  # type: ignore[method-assign]  # to look in, nothing else
    start(folder / "whole", 128)
    start(folder / "parts", 64)
    resume(folder / "parts", steps=128, placement=HERE)
    weights = {name: value.tolist() for name, value in seen[-1][0].weights().items()}
    everybody = workers.gather({"weights": weights, "actions": [actions for _, actions in seen]})
    refused = ""
    try:
        train(
            env="sudoku4x4-hard",
            recipe_path=None,
            overrides=[*TINY, "rollout.plans=9"],
            out=folder / "odd",
            placement=HERE,
        )
    except ValueError as error:
        refused = str(error)
    if workers.is_main:
        result.write_text(
            json.dumps({"difference": difference, "everybody": everybody, "refused": refused})
        )


if __name__ == "__main__":
    with joined() as processes:
        main(processes)
