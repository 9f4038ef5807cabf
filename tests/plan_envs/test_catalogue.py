"""Tasks by name and id, with options, and what is said when a name or an option is wrong."""

import gymnasium as gym
import numpy as np
import pytest

import plan_envs
from plan_envs.catalogue import TASKS, pool_of, resolve_task
from plan_envs.sudoku.rules import Sudoku


def test_every_task_has_its_id_registered_with_its_horizon() -> None:
    assert {task.env_id for task in TASKS.values()} == set(plan_envs.ENV_IDS)
    for task in TASKS.values():
        spec = gym.spec(task.env_id)
        assert spec.max_episode_steps == task.domain.spec.horizon
        assert spec.kwargs == {"task": task.name}
        assert plan_envs.ENV_IDS[task.env_id] == (task.name, task.domain.spec.horizon)


@pytest.mark.parametrize(
    "name",
    ["sudoku9x9", "Sudoku9x9", "PlanEdit/Sudoku9x9-v0", "plan_envs:PlanEdit/Sudoku9x9-v0"],
)
def test_a_task_is_found_by_name_and_by_id(name: str) -> None:
    assert resolve_task(name) is TASKS["sudoku9x9"]


def test_domain_options_go_to_the_domain_and_instance_options_to_the_instances() -> None:
    task = resolve_task("sudoku9x9", edits="overwrite", givens=[40, 41], unique=False)
    assert task.domain == Sudoku(9, edits="overwrite")
    assert task.instance_options == {"side": 9, "givens": (40, 41), "unique": False}
    assert task.name == "sudoku9x9"
    givens = (task.instances(num=10).instances > 0).sum(axis=1)
    assert givens.min() >= 40
    assert givens.max() <= 41


def test_blanks_replace_givens_and_one_number_is_a_range() -> None:
    task = resolve_task("sudoku9x9", blanks=10)
    assert task.instance_options == {"side": 9, "blanks": (10, 10)}
    assert (task.instances(num=3).instances == 0).sum(axis=1).tolist() == [10, 10, 10]


def test_another_side_is_the_task_of_that_side() -> None:
    task = resolve_task("sudoku9x9", side=6, mask="givens")
    assert task.name == "sudoku6x6"
    assert task.domain == Sudoku(6, mask="givens")
    assert resolve_task("sudoku4x4-hard", side=4).name == "sudoku4x4-hard"


def test_the_codec_decides_the_default_edits_again() -> None:
    assert resolve_task("sudoku4x4", codec="digits").domain == Sudoku(4, codec="digits")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sudoku9x8", {}, "unknown task 'sudoku9x8'; did you mean 'sudoku9x9'"),
        ("PlanEdit/Sudoku4x4-v1", {}, "did you mean 'PlanEdit/Sudoku4x4-v0'"),
        ("chess", {}, "unknown task 'chess'"),
        ("sudoku9x9", {"edit": "fill"}, "no option 'edit'; did you mean 'edits'"),
        ("sudoku9x9", {"given": 30}, "did you mean 'givens'"),
        ("sudoku9x9", {"edits": "paint"}, "edits must be one of"),
        ("sudoku9x9", {"side": 8}, "side must be one of"),
    ],
)
def test_a_wrong_name_or_option_is_named_with_the_nearest(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_task(name, **options)


def test_instances_refuse_an_unknown_option() -> None:
    with pytest.raises(ValueError, match="no option 'blank'; did you mean 'blanks'"):
        TASKS["sudoku4x4"].instances(num=1, blank=3)


def test_the_paper_tasks_have_their_blanks() -> None:
    for name, low, high in (("sudoku4x4", 1, 4), ("sudoku4x4-hard", 6, 8)):
        blanks = (TASKS[name].instances(num=200).instances == 0).sum(axis=1)
        assert (blanks.min(), blanks.max()) == (low, high)


def test_9x9_instances_have_26_to_28_givens() -> None:
    givens = (TASKS["sudoku9x9"].instances(num=60).instances > 0).sum(axis=1)
    assert set(np.unique(givens)) <= {26, 27, 28}


def test_environments_share_one_pool_a_task_and_split() -> None:
    task = resolve_task("sudoku4x4")
    assert pool_of(task, "train") is pool_of(resolve_task("sudoku4x4", mask="constraint"), "train")
    assert pool_of(task, "train") is not pool_of(task, "test")
    other = resolve_task("sudoku4x4", blanks=(2, 2))
    assert pool_of(other, "train") is not pool_of(task, "train")


def test_every_public_name_can_be_imported() -> None:
    assert sorted(plan_envs.__all__) == sorted({"ENV_IDS", *plan_envs._HOMES})
    for name in plan_envs.__all__:
        assert getattr(plan_envs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Chess'"):
        plan_envs.Chess  # noqa: B018
