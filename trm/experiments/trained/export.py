"""A trained run as one ONNX graph, which needs neither torch nor this package to be played.

Input: a `Model` whose run plays edits. Output: a file whose graph computes what the networks say of
states (`Insight.readings`), checked against the run itself before it is written. The rules stay
outside: masks, edits and the checker are those of `plan_envs`, or of whoever plays.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.evaluation import random_legal
from trm.experiments.learners import Insight
from trm.experiments.states import Boards
from trm.experiments.trained.model import Model
from trm.nn.model import StateBatch
from trm.runs.durable import replace_durably

OPSET = 20
"""Version of ONNX's operators."""
TOLERANCE = 1e-5
"""Largest difference between an output of the graph and the run's."""
INPUTS = ("instance", "plan", "mask")
"""int8 [batch, observed], [batch, cell] and [batch, action], as an observation has them."""

_INSTANCES, _EDITS = 8, 4
"""The graph is checked on so many unseen instances, before and after random legal edits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    outputs: tuple[str, ...]
    """Names of the graph's outputs, all float32: probabilities [batch, action], values [batch],
    edit_values [batch, action]."""
    states: int
    """On which the graph was compared with the run."""
    difference: float
    """The largest one seen."""


def export_onnx(model: Model, path: Path) -> Exported:
    """Write the networks of a run as an ONNX graph of any batch size.

    Illegal edits have probability 0 and the value NaN. Where `Insight.readings` counts in the
    units of the sparse return, so does the graph.

    Args:
        model: of a run that plays edits, on the CPU in float32.
        path: the file to make.

    Raises:
        ValueError: the run can't be exported, a package is missing, or an output differs from the
            run's by more than `TOLERANCE`; then there is no file.
    """
    _refuse(model)
    insight, boards = model.insight, _states(model.domain, model.unseen(_INSTANCES))
    states = boards.batch(model.domain, torch.device("cpu"))
    arrays = (states.instance, states.plan, states.mask)
    with torch.no_grad():
        found = {name: tensor.numpy() for name, tensor in insight.readings(states).items()}
    outputs, wanted = tuple(found), list(found.values())
    data = _traced(_Graph(insight), arrays, outputs, about=_about(model))
    difference = max(
        _difference(data, [tensor[part].numpy() for tensor in arrays], [w[part] for w in wanted])
        for part in (slice(None), slice(0, 1))  # the batch size is free
    )
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{model.name}: the graph's outputs differ from the run's by {difference:.1e}, more"
            f" than {TOLERANCE:.0e}; nothing was written"
        )
    replace_durably(path, data)
    return Exported(outputs=outputs, states=len(boards), difference=difference)


class _Graph(nn.Module):
    """`Insight.readings` as a module of three arrays."""

    def __init__(self, insight: Insight) -> None:
        super().__init__()
        self.parts = nn.ModuleList(insight.modules)
        self._insight = insight

    def forward(self, instance: Tensor, plan: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = StateBatch(instance=instance, plan=plan, mask=mask)
        return tuple(self._insight.readings(states).values())


def _refuse(model: Model) -> None:
    if model.predictor is not None:
        raise ValueError(
            f"{model.name}: a {model.method} run predicts whole boards; only runs that play edits"
            " are exported"
        )
    if not model.insight.quantities:
        raise ValueError(
            f"{model.name}: its policy depends on the edits before, and a graph knows only the"
            " state"
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f"export needs {', '.join(missing)}: pip install 'upi-trm[export]'")


def _states(domain: PlanDomain, instances: Int8Array) -> Boards:
    """Instances before and after some random legal edits, as far as their episodes go."""
    rng = np.random.default_rng(0)
    plans = domain.initial(instances)
    parts = [Boards(instances=instances, plans=plans)]
    for _ in range(_EDITS):
        mask = domain.action_mask(instances, plans)
        live = mask.any(axis=1)
        instances, plans, mask = instances[live], plans[live], mask[live]
        plans = domain.edit(instances, plans, random_legal(instances, plans, mask, rng))
        parts.append(Boards(instances=instances, plans=plans))
    return Boards.join(parts)


def _traced(
    network: _Graph,
    arrays: tuple[Tensor, ...],
    outputs: tuple[str, ...],
    *,
    about: dict[str, str],
) -> bytes:
    """The graph as the bytes of a file."""
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _silence():
        program: Any = torch.onnx.export(
            network.eval(),
            arrays,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in INPUTS),
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=outputs,
            verbose=False,
        )
    proto = program.model_proto
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    return data


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter prints every pass, and warns of operators that nothing here uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _about(model: Model) -> dict[str, str]:
    spec = model.domain.spec
    actions = {
        "cell": spec.action_cell.tolist(),
        "value": spec.action_value.tolist(),
    }
    return {"run": model.name, "env": model.run.info.env, "actions": json.dumps(actions)}


def _difference(data: bytes, arrays: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> float:
    """The largest one over all outputs; infinite where one is NaN and the other is not."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(INPUTS, arrays, strict=True)))
    largest = 0.0
    for here, there in zip(found, wanted, strict=True):
        if here.shape != there.shape or (np.isnan(here) != np.isnan(there)).any():
            return float("inf")
        largest = max(largest, float(np.nan_to_num(np.abs(here - there)).max(initial=0.0)))
    return largest
