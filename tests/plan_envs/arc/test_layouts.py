"""ARC tasks as they are published: folders of concepts, Kaggle's one file, too wide tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plan_envs.arc.rules import Arc
from plan_envs.arc.tasks import load_arc
from plan_envs.hub import read_instances

Task = dict[str, Any]


def task(colour: int, *, tests: int = 1, known: bool = True, width: int = 2) -> Task:
    """A task that paints everything in one colour."""
    pair = {"input": [[1, 2]], "output": [[colour, colour]]}
    test: Task = {"input": [[1] * width]}
    if known:
        test["output"] = [[colour] * width]
    return {"train": [pair, pair], "test": [test] * tests}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8-sig")  # with a byte order mark
    return path


@pytest.mark.parametrize("base", ["", "corpus", "dataset", "data"])
def test_a_folder_of_concepts_is_read_from_its_root_and_from_below(
    tmp_path: Path, base: str
) -> None:
    root = tmp_path / "repository"
    names = ("Above/Above1", "Above/Above2", "Copy/Copy1")
    for colour, name in enumerate(names):
        write(root / base / f"{name}.json", task(colour))
    if base:
        write(root / "MinimalTasks" / "Minimal1.json", task(9))
    for folder in (root, root / base):
        assert [one.id for one in load_arc(folder)] == ["Above1", "Above2", "Copy1"]
    found = read_instances(root, domain=Arc(2, 2))
    assert found.solutions[:, 0].tolist() == [1, 2, 3]  # colour + 1


def test_the_official_repository_is_read_from_its_root(tmp_path: Path) -> None:
    for colour, subset in enumerate(("training", "evaluation")):
        write(tmp_path / "data" / subset / f"{subset[:4]}.json", task(colour))
    for folder in (tmp_path, tmp_path / "data"):
        assert [(one.id, one.subset) for one in load_arc(folder)] == [
            ("trai", "training"),
            ("eval", "evaluation"),
        ]


def test_kaggles_file_is_read_with_and_without_its_solutions(tmp_path: Path) -> None:
    tasks = {"aa": task(3, tests=2, known=False), "bb": task(4, known=False)}
    file = write(tmp_path / "arc-agi_training_challenges.json", tasks)
    blind = load_arc(file)
    assert [(one.id, len(one.test)) for one in blind] == [("aa", 2), ("bb", 1)]
    assert all(output is None for one in blind for _, output in one.test)
    solutions = {"aa": [[[3, 3]], [[5, 5]]], "bb": [[[4, 4]]]}
    write(tmp_path / "arc-agi_training_solutions.json", solutions)
    shown = [
        output.tolist() for one in load_arc(file) for _, output in one.test if output is not None
    ]
    assert shown == [[[3, 3]], [[5, 5]], [[4, 4]]]
    write(tmp_path / "arc-agi_evaluation_challenges.json", {"cc": task(5)})
    write(tmp_path / "sample_submission.json", {"aa": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    assert {(one.id, one.subset) for one in load_arc(tmp_path)} == {
        ("aa", "training"),
        ("bb", "training"),
        ("cc", "evaluation"),
    }
    for wrong, message in (
        ({"aa": [[[3, 3]]], "bb": [[[4, 4]]]}, "task 'aa' has 1 outputs for 2 test inputs"),
        ({"aa": solutions["aa"]}, "task 'bb' must have a list of outputs"),
        ([], "task 'aa' must have a list of outputs"),
    ):
        write(tmp_path / "arc-agi_training_solutions.json", wrong)
        with pytest.raises(ValueError, match=rf"training_solutions\.json: {message}"):
            load_arc(file)


def test_a_task_of_kaggles_file_is_chosen_by_its_id(tmp_path: Path) -> None:
    domain = Arc(2, 2)
    text = json.dumps({"aa": task(3), "bb": task(4, tests=2)})
    file = tmp_path / "tasks.json"
    file.write_text(text, encoding="utf-8-sig")
    for source in (str(file), text, "\ufeff" + text):
        assert domain.read_instance(f"{source}#aa")[-4] == 4
        assert domain.read_instance(f"{source}#bb#1")[-4] == 5
    for source, message in (
        (str(file), "holds 2 tasks; append #ID"),
        (f"{file}#cc", "there is no task 'cc'"),
        (f"{file}#aa#1", "there is no test input 1, only 1"),
    ):
        with pytest.raises(ValueError, match=message):
            domain.read_instance(source)
    alone = json.dumps({"aa": task(3)})
    assert np.array_equal(domain.read_instance(alone), domain.read_instance(json.dumps(task(3))))


def test_tasks_that_cannot_be_read_are_left_out_by_name_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "good.json", task(3))
    write(tmp_path / "wide.json", task(3, width=31))
    write(tmp_path / "many.json", {"aa": task(4), "bb": {"train": [], "test": []}})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        load_arc(tmp_path)
    reasons: list[str] = []
    found = load_arc(tmp_path, on_invalid=reasons.append)
    assert [one.id for one in found] == ["good", "aa"]
    assert len(reasons) == 3
    assert "broken.json: not valid JSON" in reasons[0]
    assert "many.json: bb: 'test' must hold at least one test input" in reasons[1]
    assert "wide.json: test[0].output is 1x31, larger than 30x30" in reasons[2]
    reasons.clear()
    assert len(read_instances(tmp_path, domain=Arc(2, 2), on_invalid=reasons.append)) == 2
    assert len(reasons) == 3


def test_an_id_that_stands_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one" / "aa.json", task(3))
    write(tmp_path / "two" / "aa.json", task(4))
    with pytest.raises(ValueError, match=r"two.aa\.json: task 'aa' is in .*one.aa\.json, too"):
        load_arc(tmp_path)


def test_the_public_concepts_are_read_in_their_own_layout(
    tmp_path: Path, data_folder: Path
) -> None:
    files = sorted((data_folder / "conceptarc").glob("*__*.json"))
    for file in files:
        concept, name = file.name.split("__")
        (tmp_path / "corpus" / concept).mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / concept / name).symlink_to(file)
    assert len(load_arc(tmp_path)) == len(files) == 128
