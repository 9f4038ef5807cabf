"""Shared sections and checks of ranges: one line that names section, field and value."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from plan_envs.catalogue import resolve_task
from trm.experiments.sections import (
    InstancesConfig,
    ScheduleConfig,
    check_at_least,
    check_positive,
    check_within,
)

CONFIG = SimpleNamespace(low=0, one=1, half=0.5, nothing=None)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_at_least(CONFIG, "s", 1, "one", "low"), "s.low must be at least 1, got 0"),
        (
            lambda: check_at_least(CONFIG, "s", 8, "one", named="rollout.plans"),
            "s.one must be at least rollout.plans = 8, got 1",
        ),
        (lambda: check_at_least(CONFIG, "", 1, "low"), "low must be at least 1, got 0"),
        (lambda: check_positive(CONFIG, "s", "half", "low"), "s.low must be positive, got 0"),
        (lambda: check_within(CONFIG, "s", "(0, 1]", "low"), r"s.low must lie in \(0, 1\], got 0"),
        (lambda: check_within(CONFIG, "s", "[0, 1)", "one"), r"s.one must lie in \[0, 1\), got 1"),
        (lambda: ScheduleConfig(evaluate_num=0), "schedule.evaluate_num must be at least 1, got 0"),
        (lambda: InstancesConfig(num=0), "instances.num must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check()


def test_ends_that_belong_to_an_interval_and_missing_values_pass() -> None:
    check_within(CONFIG, "s", "[0, 1]", "low", "one", "half", "nothing")
    check_at_least(CONFIG, "s", 1, "one", "nothing")
    check_positive(CONFIG, "s", "half", "nothing")


def test_a_pool_is_drawn_from_the_train_split_with_its_options() -> None:
    task = resolve_task("sudoku4x4-hard")
    pool = InstancesConfig(num=5, options={"givens": [10, 10]}).pool(task, seed=2)
    assert len(pool) == 5
    assert ((pool.instances != 0).sum(axis=1) == 10).all()
