"""The command line: what it prints, where, with which exit code, and what it does not import.

Training and loading a policy have stand-ins here, so that each test takes milliseconds; run folders
and environments are the real ones. test_end_to_end.py has the real trainer.
"""

import io
import json
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import gymnasium
import numpy as np
import pytest
from click.shell_completion import ShellComplete

import upi_trm
from plan_envs.catalogue import TASKS, resolve_task
from plan_envs.compiled import disk_cache
from plan_envs.evaluation import random_legal
from plan_envs.sudoku.instances import solve
from trm.experiments import cli, learners
from trm.experiments.shipped_runs import FOLDER
from trm.experiments.training import Outcome as Trained
from trm.runs.files import RunError
from trm.runs.run import Run
from upi_trm.cli import twice_about
from upi_trm.shipped import RECIPES

EASY_4X4 = "12.4 3412 2143 4321"
LINE_9X9 = "..2...4..5....6......5......7......635..81.....1.7...3.9...3.612......3.6..74..9."


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a user of the command sees."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `upi-trm` with some words in this process; nothing is said of kernels to compile."""
    monkeypatch.setattr(disk_cache, "announce_compilation", lambda: None)

    def run(*words: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Outcome(code=stop.value.code, out=out, err=err)

    return run


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Only what the command line asks of it."""

    plans: int = 8


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Only what the command line asks of it."""

    edits: int = 40


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """In place of `upi_trm.recipe.UpiRecipe`."""

    rollout: Rollout = field(default_factory=Rollout)
    schedule: Schedule = field(default_factory=Schedule)


class StandIns:
    """In place of `upi_trm.trainer` and `load_policy`: remembers calls, plays a given policy."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.policy: Any = _solver
        self.error: Exception | None = None
        self.trained = True

    def train(self, **arguments: Any) -> Trained:
        self.calls.append(arguments)
        if self.error is not None:
            raise self.error
        path = arguments["out"]
        with Run.create(path, kind="upi", env=arguments["env"], seed=7, recipe=Recipe()) as run:
            run.save_checkpoint(40, weights={}, state={})
        return Trained(run=Run.open(path), finished=True, is_main=True)

    def resume(self, path: Path, **arguments: Any) -> Trained:
        self.calls.append({"resume": path, **arguments})
        finished = (arguments["steps"] or 40) <= 40  # this stand-in stays at 40
        run = Run.open(path)
        return Trained(run=run, finished=finished, is_main=True, trained=self.trained)

    def load_policy(self, run: Run, *, placement: object, step: int | None = None) -> Any:
        self.calls.append({"load": run.path, "step": step})
        return self.policy


def _solver(instances: Any, plans: Any, mask: Any, rng: Any) -> Any:
    """Writes the first digit that the solver knows and the plan lacks; works for 4x4 only."""
    solutions = solve(instances, side=4)
    cells = (plans == 0).argmax(axis=1)
    digits = solutions[np.arange(len(cells)), cells]
    return (cells * 6 + digits + 1).astype(np.int32)


def _stopper(instances: Any, plans: Any, mask: Any, rng: Any) -> Any:
    """Gives up at once."""
    return np.full(len(plans), 96, np.int32)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    fake = StandIns()
    trainer = types.ModuleType("upi_trm.trainer")
    vars(trainer).update(train=fake.train, resume=fake.resume)
    monkeypatch.setitem(sys.modules, "upi_trm.trainer", trainer)
    monkeypatch.setattr(upi_trm, "trainer", trainer, raising=False)
    monkeypatch.setattr(learners, "load_policy", fake.load_policy)
    return fake


@pytest.fixture
def run_4x4(tmp_path: Path, stand_ins: StandIns) -> Path:
    path = tmp_path / "run"
    stand_ins.train(env="sudoku4x4", out=path).run.close()
    stand_ins.calls.clear()
    return path


def _error(outcome: Outcome) -> str:
    """The one line on stderr of a mistake of the user."""
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    return outcome.err


# Help.


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["train"]])
def test_help_and_usage_errors_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom trm.experiments.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "numba", "numpy", "gymnasium", "rich", "omegaconf", "tensorboard"}
    assert not heavy & set(run.stderr.split())


def test_help_names_every_command_once_in_a_section(call: Call) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    for name in cli.cli.commands:
        assert sum(line.split()[:1] == [name] for line in outcome.out.splitlines()) == 1


def test_a_learners_command_is_listed_without_being_imported_and_runs_when_called(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("other_learner")
    vars(module)["group"] = click.Command("other", callback=lambda: click.echo("hello"))
    point = EntryPoint("other", "other_learner:group", cli.PLUGIN_GROUP)
    monkeypatch.setattr(cli, "_plugins", lambda: (point,))
    assert "upi-trm other --help" in call("--help").out  # there is no such module yet
    monkeypatch.setitem(sys.modules, "other_learner", module)
    assert call("other").out == "hello\n"


def test_a_learners_command_that_does_not_load_is_an_error_of_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("other", "no_such_module:group", cli.PLUGIN_GROUP)
    monkeypatch.setattr(cli, "_plugins", lambda: (point,))
    assert "no_such_module" in _error(call("other"))


# Mistakes.


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trian"], "trian"),
        (["train"], "--env"),
        (["train", "--env", "sudoku4x4", "--stepz", "3"], "--stepz"),
        (["train", "--env", "sudoku4x4", "--steps", "many"], "many"),
        (["train", "--env", "sudoku4x4", "--steps", "-1"], "-1"),
        (["train", "--env", "sudoku4x5"], "sudoku4x4"),
        (["train", "--env", "sudoku4x4", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--env", "sudoku4x4", "--device", "tpu"], "tpu"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--resume", "nowhere", "--seed", "3"], "--seed"),
        (["eval", "nowhere"], "nowhere"),
        (["eval"], "RUN"),
        (["solve", EASY_4X4, "--search", "5", "--samples", "5"], "--search"),
        (["solve", EASY_4X4, "--run", "nowhere"], "nowhere"),
        (["envs", "sudoku5x5"], "'sudoku5x5': side must be one of [4, 6, 9, 16], got 5"),
        (["train", "--env", "nqueens3"], "'nqueens3': n must lie in 4..32, got 3"),
        (["train", "--env", "sudoku4x4", "--steps", "0"], "0 is not in the range x>=1"),
        (
            ["train", "--env", "maze10", "--recipe", "sudoku4x4-contraction"],
            "is for sudoku4x4, --env is maze10; add --any-recipe",
        ),
        (["runs", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    call: Call, stand_ins: StandIns, words: list[str], named: str
) -> None:
    outcome = call(*words)
    assert named in _error(outcome)
    assert outcome.out == ""


def test_a_message_names_no_folder_that_the_program_is_installed_in() -> None:
    error = ValueError(f"{FOLDER / 'maze10' / 'run.json'}: damaged")
    assert cli._one_line(error) == "pretrained:maze10/run.json: damaged"
    recipe = RECIPES.find("maze10")
    assert not cli._one_line(ValueError(f"{recipe}: no")).startswith("/")


def test_an_error_of_several_lines_is_told_in_one(
    call: Call, stand_ins: StandIns, tmp_path: Path
) -> None:
    stand_ins.error = RunError("run.json: broken\n  in line 3")
    outcome = call("train", "--env", "sudoku4x4", "--out", tmp_path / "run")
    assert _error(outcome) == "error: run.json: broken in line 3\n"


def test_trouble_with_the_disk_names_the_file(
    call: Call, stand_ins: StandIns, tmp_path: Path
) -> None:
    stand_ins.error = OSError(28, "No space left on device", "runs/a/metrics.jsonl")
    outcome = call("train", "--env", "sudoku4x4", "--out", tmp_path / "run")
    assert _error(outcome) == "error: runs/a/metrics.jsonl: No space left on device\n"


def test_debug_and_bugs_show_the_traceback(
    stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--env", "sudoku4x4", "--out", str(tmp_path / "run")]
    stand_ins.error = ValueError("asked for it")
    with pytest.raises(ValueError, match="asked for it"):
        cli.main(["--debug", *words])
    stand_ins.error = AssertionError("a bug")
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(words)


# Train.


def test_train_hands_its_words_to_the_trainer_and_shows_where_to_look_next(
    call: Call, stand_ins: StandIns, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.touch()
    outcome = call(
        *("train", "--env", "PlanEdit/Sudoku4x4-v0", "--recipe", recipe, "--out", out),
        *("--set", "depth=3", "--set", "model.width=8", "--steps", "40", "--seed", "5"),
        *("--threads", "2", "--eval-num", "10"),
    )
    assert outcome.code == 0
    told = stand_ins.calls[0]
    placement = told.pop("placement")
    assert (placement.device, placement.threads) == ("cpu", 2)
    assert told == {
        "env": "PlanEdit/Sudoku4x4-v0",
        "recipe_path": recipe,
        "overrides": ("depth=3", "model.width=8"),
        "steps": 40,
        "seed": 5,
        "out": out,
    }
    for policy in ("learned", "random-legal", "fewest-candidates", "singles", "oracle"):
        assert policy in outcome.out
    assert f"eval {out}" in outcome.out
    assert f"--run {out}" in outcome.out


def test_resume_hands_the_run_and_the_new_total_to_the_trainer(
    call: Call, stand_ins: StandIns, run_4x4: Path
) -> None:
    outcome = call("train", "--resume", run_4x4, "--steps", "35", "--eval-num", "0")
    assert outcome.code == 0
    assert stand_ins.calls[0]["resume"] == run_4x4
    assert stand_ins.calls[0]["steps"] == 35


def test_one_thread_is_the_default_but_a_resumed_run_keeps_its_own_count(
    call: Call, stand_ins: StandIns, run_4x4: Path, tmp_path: Path
) -> None:
    call("train", "--env", "sudoku4x4", "--out", tmp_path / "run", "--eval-num", "0")
    call("train", "--resume", run_4x4, "--eval-num", "0")
    call("train", "--resume", run_4x4, "--eval-num", "0", "--threads", "2")
    assert [told["placement"].threads for told in stand_ins.calls] == [1, None, 2]


def test_a_training_that_a_signal_stopped_ends_without_evaluation(
    call: Call, stand_ins: StandIns, run_4x4: Path
) -> None:
    outcome = call("train", "--resume", run_4x4, "--steps", "400")  # the stand-in stays at 40
    assert outcome.code == 130
    assert outcome.out == ""


def test_a_resumed_run_that_was_finished_is_not_evaluated_again(
    call: Call, stand_ins: StandIns, run_4x4: Path
) -> None:
    stand_ins.trained = False
    outcome = call("train", "--resume", run_4x4)
    assert (outcome.code, outcome.out) == (0, "")


@pytest.mark.parametrize(
    ("step", "twice"), [(4992, 10_000), (11_968, 24_000), (99_968, 200_000), (40, 80), (3, 6)]
)
def test_the_budget_that_a_hint_names_is_round(step: int, twice: int) -> None:
    assert twice_about(step) == twice


def test_a_recipe_of_another_environment_is_taken_when_asked_for_twice(
    call: Call, stand_ins: StandIns, tmp_path: Path
) -> None:
    words = ["train", "--env", "sudoku6x6", "--recipe", "sudoku4x4", "--eval-num", "0"]
    assert call(*words, "--any-recipe", "--out", tmp_path / "run").code == 0
    assert stand_ins.calls[0]["recipe_path"].name == "sudoku4x4.yaml"


# Eval.


def test_eval_json_is_one_line_and_alone_on_stdout(call: Call, run_4x4: Path) -> None:
    outcome = call("eval", run_4x4, "--num", "30", "--json", "--seed", "2")
    assert outcome.code == 0
    assert outcome.out.count("\n") == 1
    record = json.loads(outcome.out)
    assert record["success_rate"] == 1.0
    assert record["mean_score"] == 16.0
    assert record["num_instances"] == 30
    assert record["env"] == "sudoku4x4"
    assert (record["run"], record["step"], record["seed"]) == (str(run_4x4), 40, 7)
    measured = {"success_rate", "mean_score", "improvement", "num_instances"}
    assert set(record["reference"]) == {"random-legal", "fewest-candidates", "singles", "oracle"}
    assert all(set(reference) == measured for reference in record["reference"].values())
    assert record["reference"]["oracle"]["success_rate"] == 1.0
    assert record["reference"]["random-legal"]["success_rate"] < 1.0
    # Every policy played the same puzzles: two that solve them all improve by the same.
    assert record["reference"]["oracle"]["improvement"] == record["improvement"]


def test_eval_plays_the_puzzles_of_a_file(call: Call, run_4x4: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    answer = "1234341221434321"
    rows = [f"me,{'.' * blanks}{answer[blanks:]},{answer},0" for blanks in (1, 2, 3)]
    file.write_text("\n".join(["source,question,answer,rating", *rows]))
    record = json.loads(call("eval", run_4x4, "--instances", file, "--json").out)
    assert (record["num_instances"], record["instances"]) == (3, "mine.csv")
    assert record["improvement"] == 2.0


def test_eval_of_a_malformed_file_names_file_line_and_value(
    call: Call, run_4x4: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("source,question,answer,rating\nme,12z4341221434321,1234341221434321,0\n")
    line = _error(call("eval", run_4x4, "--instances", file))
    assert f"{file}:2" in line
    assert "'Z' at row 1, column 3" in line


def test_a_run_plays_another_size_at_another_depth(call: Call) -> None:
    run = "pretrained:nqueens8"
    words = ("eval", run, "--env", "nqueens6", "--depth", "8", "--num", "20", "--json")
    record = json.loads(call(*words).out)
    assert (record["env"], record["depth"], record["num_instances"]) == ("nqueens6", 8, 20)
    assert record["success_rate"] > record["reference"]["random-legal"]["success_rate"]
    line = _error(call("eval", run, "--env", "maze10", "--num", "5"))
    assert "nqueens8: checkpoint" in line
    assert "does not fit maze10" in line
    line = _error(call("solve", EASY_4X4, "--env", "sudoku6x6"))
    assert "--run" in line


def test_eval_prints_a_table_without_json(call: Call, run_4x4: Path) -> None:
    out = call("eval", run_4x4, "--num", "10").out
    assert "10 puzzles" in out
    assert [word for word in ("learned", "singles") if word in out] == ["learned", "singles"]


# Solve.


def test_solve_prints_the_grid_and_succeeds(call: Call, run_4x4: Path) -> None:
    outcome = call("solve", EASY_4X4, "--run", run_4x4)
    assert outcome.code == 0
    assert outcome.out.startswith("1 2 | 3 4\n")
    assert "solved in 1 edit" in outcome.out


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_solve_reads_a_drawn_grid(
    call: Call, run_4x4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    drawn = "1 2 | . 4\n3 4 | 1 2\n----+----\n2 1 | 4 3\n4 3 | 2 1\n"
    file = tmp_path / "puzzle.txt"
    file.write_text(drawn)
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        outcome = call("solve", file if way == "file" else "-", "--run", run_4x4)
    assert outcome.code == 0
    assert "solved" in outcome.out


def test_solve_says_when_the_plan_is_not_a_solution(
    call: Call, run_4x4: Path, stand_ins: StandIns
) -> None:
    stand_ins.policy = _stopper
    outcome = call("solve", EASY_4X4, "--run", run_4x4)
    assert outcome.code == 1
    assert "NOT solved: score 15 of 16, 0 violations" in outcome.out
    assert "no solution" not in outcome.out


def test_solve_says_when_there_is_no_solution_to_find(
    call: Call, run_4x4: Path, stand_ins: StandIns
) -> None:
    stand_ins.policy = random_legal
    # Row 1 wants a 4 in its last cell, the column has it; no two givens conflict.
    outcome = call("solve", "123. .... .... ...4", "--run", run_4x4)
    assert outcome.code == 1
    assert "the puzzle has no solution" in outcome.out


@pytest.mark.parametrize(
    ("puzzle", "named"),
    [
        ("11.. .... .... ....", "digit 1 stands at row 1, column 1 and at row 1, column 2"),
        ("1... 1... .... ....", "at row 1, column 1 and at row 2, column 1"),
        ("1... .1.. .... ....", "at row 1, column 1 and at row 2, column 2"),
        ("1... .... .... ...", "15"),
        (LINE_9X9, "4x4"),
        ("5... .... .... ....", "'5'"),
        ("nowhere/puzzle.txt", "neither a file nor a puzzle"),
    ],
)
def test_solve_refuses_what_is_no_puzzle_of_the_run(
    call: Call, run_4x4: Path, puzzle: str, named: str
) -> None:
    assert named in _error(call("solve", puzzle, "--run", run_4x4))


@pytest.mark.parametrize(
    ("puzzle", "named"),
    [
        (LINE_9X9[:80], "read as sudoku9x9: a 9x9 puzzle has 81 cells, got 80"),
        ("55" + LINE_9X9[2:], "digit 5 stands at row 1, column 1 and at row 1, column 2"),
        ("~" + LINE_9X9[1:], "'~' at row 1, column 1 is no blank (. _ 0 - * ? x)"),
        ("0" + LINE_9X9[1:], "'0' at row 1, column 1 is a second sign for blanks beside '.'"),
        ("1234341221434321", "read as sudoku4x4: instance is solved already"),
        ("1" + "." * 34, "read as sudoku6x6: a 6x6 puzzle has 36 cells, got 35"),
        ("1" + "." * 35, "no run that ships is for sudoku6x6"),
        ("Q......." * 8, "read as queens8x8: instance cannot be played: the queens at row 1"),
        ("S.#\n#x#\nG..", "read as maze3x3: 'x' at row 2, column 2 is none of"),
        ("puzzle.txt", "no such file"),
        ("nowhere/puzzle.txt", "no such file"),
        ("nowhere/puzzle", "no such file"),
        ("./1", "no such file"),
        ("12", "a puzzle has 16, 36, 81, 256 cells, got 2"),
    ],
)
def test_solve_says_what_is_wrong_with_a_puzzle_as_the_one_it_looks_like(
    call: Call, puzzle: str, named: str
) -> None:
    assert named in _error(call("solve", puzzle))


def test_solve_blames_run_for_a_run_that_is_not_there(call: Call) -> None:
    for puzzle in (EASY_4X4, "no puzzle"):
        said = _error(call("solve", puzzle, "--run", "nonexist"))
        assert said == "error: --run: nonexist: no such run folder\n"
    assert "error: --run: pretrained:x" in _error(call("solve", "1", "--run", "pretrained:x"))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff12.4\r\n3412\r\n2143\r\n4321\r\n",
        "12-4/3412/2143/4321",
        "*-----*\n|12|x4|\n|34|12|\n|--+--|\n|21|43|\n|43|21|\n*-----*\n",
        "#Amine\n[Puzzle]\n12.4\n3412\n2143\n4321\n",
        "12.4341221434321 # mine 7.2",
        "<opensudoku><game data='1204341221434321'/></opensudoku>",
    ],
)
@pytest.mark.parametrize("way", ["file", "stdin", "argument"])
def test_solve_reads_puzzles_of_the_wild(
    call: Call, run_4x4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, way: str
) -> None:
    file = tmp_path / "puzzle.any"
    file.write_text(text, encoding="utf-8", newline="")
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        words = {"file": str(file), "stdin": "-", "argument": text}
        outcome = call("solve", words[way], "--run", run_4x4)
    assert "solved in 1 edit" in outcome.out, outcome.err


def test_solve_sends_a_file_of_many_puzzles_elsewhere(
    call: Call, run_4x4: Path, tmp_path: Path
) -> None:
    file = tmp_path / "many.sdm"
    file.write_text("12.4341221434321\n" * 3)
    assert "holds 3 puzzles, not one" in _error(call("solve", file, "--run", run_4x4))
    outcome = call("eval", run_4x4, "--instances", file, "--json")
    assert outcome.code == 0, outcome.err
    skipping = call("eval", run_4x4, "--instances", file, "--skip-invalid")
    assert "only ARC tasks can be left out" in _error(skipping)


# Envs.


def test_envs_lists_ids_that_train_takes(call: Call) -> None:
    out = call("envs").out
    for name in ("sudoku4x4", "sudoku4x4-hard", "sudoku6x6", "sudoku9x9"):
        assert name in out
        assert resolve_task(name).env_id in out


def test_envs_describes_one_and_measures_the_references(call: Call) -> None:
    out = call("envs", "sudoku4x4", "--measure", "--num", "20").out
    assert "97 (64 write, 16 erase, 16 pad, 1 stop)" in out
    assert "side=4, blanks=1-4, unique=False" in out
    assert "edits=full" in out
    assert "singles" in out


# Every line that is printed can be run.

OWN_TASK = """from plan_envs.catalogue import Task, register_task
from plan_envs.sudoku.rules import Sudoku

options = {"side": 4, "blanks": (1, 4), "unique": False}
register_task(Task("mine4", "PlanEdit/Mine4-v0", Sudoku(side=4), options))
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A task of the user's own, as it is named."""
    (tmp_path / "task_of_mine.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    yield "task_of_mine:mine4"
    TASKS.pop("mine4", None)
    gymnasium.registry.pop("PlanEdit/Mine4-v0", None)
    sys.modules.pop("task_of_mine", None)


@pytest.mark.parametrize("name", ["sudoku4x4", "nqueens12", "maze15", "nqueens8-classes", "own"])
def test_every_line_that_envs_prints_can_be_run(
    call: Call,
    stand_ins: StandIns,
    own_task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    name = own_task if name == "own" else name
    described = call("envs", name).out.partition("\n\n")[0].splitlines()
    facts = dict(line.split(maxsplit=1) for line in described[1:])
    env = eval(facts["make"], {"gym": gymnasium})
    assert env.unwrapped.task.domain.spec.name == resolve_task(name).domain.spec.name
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert call(*shlex.split(facts["play"])[1:]).code == 0
    words = [*shlex.split(facts["train"])[1:], "--eval-num", "0", "--out", tmp_path / "run"]
    assert call(*words).code == 0
    assert resolve_task(stand_ins.calls[-1]["env"]).name == resolve_task(name).name


# Lists.


def test_recipes_lists_those_of_every_learner_in_80_columns(call: Call) -> None:
    lines = call("recipes").out.splitlines()
    assert "upi-trm train --env ENV --recipe NAME" in lines
    assert "upi-trm baselines train --env ENV --recipe NAME" in lines
    assert "upi-trm supervised train --recipe NAME" in lines
    assert max(map(len, lines)) <= 80
    place = lines.index("  sudoku4x4-contraction")
    assert lines[place + 1].startswith("      4x4 Sudoku, 1-4 blanks")


def test_runs_says_what_a_run_trained_and_its_result(call: Call, run_4x4: Path) -> None:
    head, story = call("runs", run_4x4.parent).out.splitlines()
    assert head == str(run_4x4)
    assert story.startswith("    UPI-TRM on sudoku4x4, 20")
    assert story.endswith("40 edits: not evaluated yet")
    (run_4x4 / "eval.json").write_text('{"success_rate": 0.934, "num_instances": 500}')
    assert "93.4% solved of 500 unseen puzzles" in " ".join(call("runs", run_4x4).out.split())
    (run_4x4 / "run.json").write_text("{}")
    assert "cannot be read" in call("runs", run_4x4).out


# Completion.


@pytest.mark.parametrize(
    ("words", "begun", "found"),
    [
        ([], "rec", ["recipes"]),
        (["train", "--env"], "sudoku4", ["sudoku4x4", "sudoku4x4-hard"]),
        (["train", "--recipe"], "maze", ["maze10"]),
        (["eval"], "pretrained:m", ["pretrained:maze10"]),
        (["train", "--resume"], "ru", ["run", "runs/"]),
        (["solve", "123", "--run"], "runs/", ["runs/a"]),
    ],
)
def test_the_shell_completes_names_and_run_folders(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    begun: str,
    found: list[str],
) -> None:
    for folder in ("run", "runs/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    complete = ShellComplete(cli.cli, {}, "upi-trm", "_UPI_TRM_COMPLETE")
    assert [item.value for item in complete.get_completions(words, begun)] == found


def test_completion_imports_no_torch() -> None:
    code = (
        "import os, sys\n"
        "os.environ |= {'_UPI_TRM_COMPLETE': 'zsh_complete', 'COMP_CWORD': '2',"
        " 'COMP_WORDS': 'upi-trm eval pre'}\n"
        "from trm.experiments.cli import main\n"
        "try: main([])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pretrained:maze10" in run.stdout
    assert not {"torch", "numba", "numpy", "rich"} & set(run.stderr.split())
