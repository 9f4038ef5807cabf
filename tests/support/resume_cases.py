"""How a training ends early, and equality bit for bit: for the tests of what goes on afterwards."""

import os
import signal
from typing import Any

import numpy as np
import torch

from trm.runs.run import Run


class KilledError(Exception):
    """Stands for a SIGKILL: nothing is saved on the way out."""


def kill() -> None:
    raise KilledError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def metrics_without_clocks(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for the times in them, which differ from run to run."""
    return [
        {name: value for name, value in line.items() if not name.startswith("seconds_")}
        for line in run.read_metrics()
    ]


def assert_same(first: Any, second: Any, place: str = "state") -> None:
    """Equal bit for bit, all the way down."""
    assert type(first) is type(second), place
    if isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first:
            assert_same(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for i, (one, two) in enumerate(zip(first, second, strict=True)):
            assert_same(one, two, f"{place}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
        assert first.dtype == second.dtype, place
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), place
        assert first.dtype == second.dtype, place
    elif isinstance(first, np.random.Generator):
        assert first.bit_generator.state == second.bit_generator.state, place
    elif isinstance(first, torch.Generator):
        assert torch.equal(first.get_state(), second.get_state()), place
    else:
        assert first == second, place
