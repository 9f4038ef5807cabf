"""The benchmark that files a Sudoku policy's edits under the rules of a solver."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import fewest_candidates, singles
from plan_envs.sudoku.rules import Sudoku


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "sudoku_techniques.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rules_find_what_a_slow_search_finds(script: ModuleType) -> None:
    domain = Sudoku(6, mask="constraint")
    pool = resolve_task("sudoku6x6").instances("test", num=20)
    masks = domain.action_mask(pool.instances, domain.initial(pool.instances))
    found = script.found_by(domain, masks.astype(bool))
    row, column = np.divmod(np.arange(36), 6)
    units = {"column": column, "row": row, "box": 3 * (row // 2) // 3 * 2 + column // 3}
    for board, mask in enumerate(masks.reshape(-1, 36, 6)):
        for cell, digit in np.argwhere(mask).tolist():
            at = 6 * cell + digit
            assert found["naked single"][board, at] == (mask[cell].sum() == 1)
            alone = {
                kind: mask[units[kind] == units[kind][cell], digit].sum() == 1 for kind in units
            }
            assert found["hidden single of a box"][board, at] == alone["box"]
            line = alone["row"] or alone["column"]
            assert found["hidden single of a line"][board, at] == line


def test_the_singles_rule_is_judged_as_what_it_is(script: ModuleType) -> None:
    task = resolve_task("sudoku9x9")
    assert isinstance(task.domain, Sudoku)
    pool = task.instances("test", num=40)
    judged = script.judged(singles(task.domain), task.domain, pool)
    *rules, none = judged["rules"].values()
    for rule in rules:
        assert rule["states"] > 0
        assert (rule["right"], rule["by_rule"], rule["lost"]) == (1.0, 1.0, 0)
    assert none["by_rule"] == 0.0
    assert none["lost"] == round((1 - judged["solved"]) * 40) > 0
    weaker = script.judged(fewest_candidates(task.domain), task.domain, pool)
    assert weaker["rules"]["naked single"]["right"] == 1.0
    assert weaker["rules"]["hidden single of a box"]["by_rule"] < 0.5
    assert weaker["solved"] < judged["solved"]
