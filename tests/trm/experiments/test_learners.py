"""The contract of a learner, for each one that is installed, and what is refused in which words."""

import dataclasses
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from run_cases import create

from trm.compute.device import Placement
from trm.experiments import learners
from trm.experiments.learners import LEARNER_GROUP, Learner, find_command, learner_of
from trm.runs.files import RunError
from trm.runs.run import Run

HERE = Placement(threads=1)
POINTS = list(entry_points(group=LEARNER_GROUP))


def _run(path: Path, kind: str) -> Run:
    create(path, kind=kind).close()
    return Run.open(path)


@pytest.fixture(params=POINTS, ids=lambda point: point.name)
def learner(request: pytest.FixtureRequest) -> Learner:
    found: Learner = request.param.load()
    return found


def test_a_learner_fulfils_the_protocol_and_writes_runs_of_its_kind(
    learner: Learner, tmp_path: Path
) -> None:
    assert isinstance(learner, Learner)
    assert learner.kind in {point.name for point in POINTS}
    run = _run(tmp_path / "run", learner.kind)
    assert learner_of(run) == learner
    assert learner.method_of(run)


def test_every_command_of_a_learner_is_found_by_its_words_and_fits_its_recipes(
    learner: Learner,
) -> None:
    assert learner.commands
    for name in learner.commands:
        command, words, further = find_command(f"{name} --device cuda")
        assert (" ".join(words), further) == (name, ["--device", "cuda"])
        assert command == learner.sweep_command(name)
        section, _, field = command.steps_field.partition(".")
        hint = {one.name: one.type for one in dataclasses.fields(command.recipe)}[section]
        assert field in {one.name for one in dataclasses.fields(hint)}  # type: ignore[arg-type]  # a section
        shipped = command.recipes.names()
        assert shipped
        assert command.recipes.find(shipped[0]).is_file()


@pytest.mark.parametrize(
    ("kind", "what", "refusal"),
    [
        ("supervised", "load_policy", "whose runs predict whole boards and play no edits"),
        ("supervised", "load_insight", "whose runs predict whole boards"),
        ("supervised", "load_networks", "whose runs predict whole boards"),
    ],
)
def test_what_a_learner_cannot_do_it_refuses_by_run_and_kind(
    tmp_path: Path, kind: str, what: str, refusal: str
) -> None:
    run = _run(tmp_path / "run", kind)
    with pytest.raises(RunError) as caught:
        getattr(learner_of(run), what)(run, placement=HERE, step=None)
    assert str(caught.value).startswith(f"{run.path / 'run.json'}: kind is '{kind}'")
    assert refusal in str(caught.value)


def test_a_run_of_an_unknown_kind_and_a_learner_that_does_not_load_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "run", "alpha-zero")
    with pytest.raises(RunError, match=r"kind is 'alpha-zero', not one of 'sb3', 'supervised'"):
        learner_of(run)
    broken = EntryPoint("alpha-zero", "no_such_module:LEARNER", LEARNER_GROUP)
    monkeypatch.setattr(learners, "entry_points", lambda group: [broken])
    with pytest.raises(RunError, match="a run of kind 'alpha-zero' can't be loaded: No module"):
        learner_of(run)


def test_words_that_name_no_training_command_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="'trian' trains no runs; did you mean train"):
        find_command("trian")
    with pytest.raises(ValueError, match="there are baselines train, supervised distill"):
        find_command("quux")
