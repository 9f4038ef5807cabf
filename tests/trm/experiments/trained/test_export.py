"""An exported run: its graph says what the run says, for any number of states."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plan_envs.domain import potential
from trm.experiments.trained import export
from trm.experiments.trained.export import INPUTS, export_onnx
from trm.experiments.trained.model import Model, load

EXAMPLE = Path(__file__).resolve().parents[4] / "examples/export_onnx.py"
slow = pytest.mark.slow
MISSING = "the extra export (onnx, onnxscript, onnxruntime) is not installed"


def one_unroll(name: str) -> Model:
    """A shipped run at the smallest depth that uses its map: the graph repeats it n times."""
    return load(f"pretrained:{name}", depth=1, threads=1)


@slow
@pytest.mark.parametrize(("name", "depth"), [("sudoku4x4", 1), ("maze10", 1)])
def test_the_graph_says_what_the_run_says_of_any_number_of_states(
    name: str, depth: int, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=MISSING)
    onnxruntime = pytest.importorskip("onnxruntime", reason=MISSING)
    path = tmp_path / "policy.onnx"
    # Outside this process, whose shape checks refuse the symbols that a graph is traced with.
    code = (
        "from pathlib import Path\n"
        "from trm.experiments.trained.export import export_onnx\n"
        "from trm.experiments.trained.model import load\n"
        f"model = load('pretrained:{name}', depth={depth}, threads=1)\n"
        f"written = export_onnx(model, Path({str(path)!r}))\n"
        "assert written.difference <= 1e-5 and written.states > 8"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    model = load(f"pretrained:{name}", depth=depth, threads=1)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert tuple(one.name for one in session.get_inputs()) == INPUTS
    for number in (1, 3):
        instances = model.unseen(number)
        plans = model.domain.initial(instances)
        batch = model.boards(instances, plans).batch(model.domain, torch.device("cpu"))
        arrays = (batch.instance, batch.plan, batch.mask)
        said = session.run(None, {k: v.numpy() for k, v in zip(INPUTS, arrays, strict=True)})
        found = dict(zip((one.name for one in session.get_outputs()), said, strict=True))
        chance = model.probabilities(instances, plans)
        np.testing.assert_allclose(found["probabilities"], chance, atol=1e-5)
        assert found["values"].shape == (number,)
    if name == "sudoku4x4":
        played = [sys.executable, str(EXAMPLE), str(path)]
        assert b"solved with onnxruntime:" in subprocess.run(played, capture_output=True).stdout


@pytest.mark.parametrize("name", ["sudoku4x4", "nqueens8", "sudoku9x9"])
def test_readings_are_the_runs_own_figures_without_the_checker(name: str) -> None:
    model = one_unroll(name)
    instances = model.unseen(4)
    plans = model.domain.initial(instances)
    states = model.boards(instances, plans).batch(model.domain, torch.device("cpu"))
    with torch.no_grad():
        found = {name: one.numpy() for name, one in model.insight.readings(states).items()}
    verdict = model.domain.check(instances, plans)
    phi = potential(verdict.score, model.domain.spec.max_score)
    success = name != "sudoku4x4"  # whose value head means the shaped value itself
    np.testing.assert_allclose(
        found["values"], model.values(instances, plans) + phi * success, atol=1e-5
    )
    np.testing.assert_allclose(
        found["probabilities"], model.probabilities(instances, plans), atol=1e-6
    )
    assert ("edit_values" in found) is (name == "sudoku9x9")
    if "edit_values" in found:
        # Only the run knows from the checker which edits leave a cell without a digit: worth 0.
        wanted = model.edit_values(instances, plans) + phi[:, None]
        undecided = wanted > 1e-6
        np.testing.assert_allclose(found["edit_values"][undecided], wanted[undecided], atol=1e-5)
        assert (np.isnan(found["edit_values"]) == np.isnan(wanted)).all()


def test_a_graph_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = one_unroll("sudoku4x4")
    monkeypatch.setattr(export, "find_spec", lambda name: name)
    monkeypatch.setattr(export, "_traced", lambda *words, **about: b"")
    monkeypatch.setattr(export, "_difference", lambda *words: 2e-5)
    with pytest.raises(ValueError, match=r"differ from the run's by 2\.0e-05, more than 1e-05"):
        export_onnx(model, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'upi-trm\[export\]'"):
        export_onnx(one_unroll("sudoku4x4"), tmp_path / "policy.onnx")


def test_a_policy_that_remembers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = one_unroll("sudoku4x4")
    monkeypatch.setattr(type(model.insight), "quantities", frozenset())
    with pytest.raises(ValueError, match="depends on the edits before"):
        export_onnx(model, tmp_path / "policy.onnx")
