"""The pages on domains of one's own keep their word: their file gets everything for free."""

import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium.envs.registration import registry
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from plan_envs import TASKS, testing
from plan_envs.domain import Int8Array, PlanDomain
from plan_envs.evaluation import evaluate_policy, random_legal, reference_policies
from plan_envs.instances import SPLITS
from plan_envs.rendering import render_ansi, render_rgb
from plan_envs.vector_env import PlanEditVectorEnv
from trm.compute.device import Placement
from trm.experiments.learners import load_policy
from trm.experiments.play_cli import play
from upi_trm.trainer import train

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = [
    block
    for page in ("new_domain.md", "how-to/own-domain.md")
    for block in re.findall(r"^```py\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
]
ENV_ID = "PlanEdit/Latin5-v0"
SMALL = (
    *("model.channels=8", "model.head_width=16", "model.depth=2"),
    *("rollout.plans=16", "rollout.steps=4", "instances.num=200", "schedule.evaluate_num=6"),
)


@pytest.fixture(scope="module", autouse=True)
def latin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page's first block as the module `latin`, forgotten afterwards."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "latin.py").write_text(BLOCKS[0])
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("latin")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("latin", None)
        TASKS.pop("latin5", None)
        registry.pop(ENV_ID, None)


def states_of(latin: ModuleType, num: int = 6) -> testing.States:
    """States after random edits, the first one edit before its solution."""
    pool = latin.latin_instances(num=num)
    rng = np.random.default_rng(0)
    states = testing.random_states(latin.Latin(5), pool.instances, rng, max_edits=10)
    states.plans[0] = pool.solutions[0]
    states.plans[0, np.flatnonzero(pool.instances[0] == 0)[0]] = 0
    return states


def test_the_file_has_fewer_than_sixty_lines() -> None:
    assert len(BLOCKS[0].splitlines()) < 60
    assert all(len(line) <= 100 for line in BLOCKS[0].splitlines())


def test_the_page_names_the_optional_methods_of_the_protocol() -> None:
    methods = (DOCS / "how-to" / "own-domain.md").read_text().split("## More methods")[1]
    named = re.findall(r"^\| (`.*?`) \|", methods, re.MULTILINE)
    told = {call.split("(")[0] for cell in named for call in re.findall(r"`(.*?)`", cell)}
    optional = (PlanDomain.__doc__ or "").split("following methods")[1]
    assert told == set(re.findall(r"`(\w+)\(.*?\)[^`]*`", optional))


def test_the_laws_hold_as_the_page_checks_them() -> None:
    exec(BLOCKS[1], {})


def test_the_mask_is_the_rule_of_latin_squares(latin: ModuleType) -> None:
    def legal(instance: Int8Array, plan: Int8Array) -> list[int]:
        square = plan.reshape(5, 5)
        return [
            (row * 5 + column) * 5 + value - 1
            for row, column, value in itertools.product(range(5), range(5), range(1, 6))
            if not square[row, column]
            and value not in square[row]
            and value not in square[:, column]
        ]

    testing.check_mask(latin.Latin(5), states_of(latin), legal)


def test_the_checker_counts_clashes_and_blanks_without_candidate(latin: ModuleType) -> None:
    blank = np.zeros((1, 16), np.int8)
    plans = np.zeros((3, 4, 4), np.int8)
    plans[0, 0] = [1, 1, 1, 0]  # three pairs
    plans[1, 0], plans[1, 1, 3] = [1, 2, 3, 0], 4  # nothing fits the corner
    plans[2] = (np.add.outer(range(4), range(4)) % 4) + 1
    verdict = latin.Latin(4).check(blank.repeat(3, axis=0), plans.reshape(3, 16))
    assert verdict.violations.tolist() == [3, 0, 0]
    assert verdict.score.tolist() == [3 - 6, 4 - 5, 16]
    assert verdict.solved.tolist() == [False, False, True]
    assert verdict.dead.tolist() == [True, True, False]
    given = plans[2].reshape(1, 16) % 4 + 1
    assert not latin.Latin(4).check(given, plans[2:].reshape(1, 16)).solved[0]


def test_successors_hold_for_other_rewards_too(latin: ModuleType) -> None:
    domain, states = latin.Latin(5), states_of(latin)
    testing.check_successors(domain, states, reward="sparse", dead_end="continue", gamma=0.9)
    assert domain.successors(states.instances, states.plans).solved.any()


def test_the_splits_are_disjoint_and_a_set_starts_with_its_smaller_ones(latin: ModuleType) -> None:
    sets = [latin.latin_instances(num=40, split=split) for split in SPLITS]
    squares = [{bytes(solution) for solution in found.solutions} for found in sets]
    assert not any(one & other for one, other in itertools.combinations(squares, 2))
    few = latin.latin_instances(num=5)
    assert np.array_equal(few.instances, sets[0].instances[:5])
    for found in sets:
        assert latin.Latin(5).check(found.instances, found.solutions).solved.all()


@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_is_content() -> None:
    check_env(gym.make(f"latin:{ENV_ID}").unwrapped)


def test_the_vector_environment_equals_single_ones(latin: ModuleType) -> None:
    def make(num_envs: int, mode: AutoresetMode) -> PlanEditVectorEnv:
        return PlanEditVectorEnv("latin5", num_envs=num_envs, autoreset_mode=mode)

    testing.check_vector_env(make, lambda: gym.make(ENV_ID), steps=30)
    testing.check_vector_env(
        make, lambda: gym.make(ENV_ID), steps=10, modes=[AutoresetMode.SAME_STEP]
    )


def test_it_is_drawn(latin: ModuleType) -> None:
    pool = latin.latin_instances(num=1)
    text = render_ansi(latin.Latin(5), pool.instances[0], pool.solutions[0], color=False)
    assert [line.split() for line in text.splitlines()] == [
        [str(value) for value in row] for row in pool.solutions[0].reshape(5, 5)
    ]
    pytest.importorskip("pygame", reason="frames need the extra render")
    assert render_rgb(latin.Latin(5), pool.instances[0], pool.solutions[0]).shape == (576, 576, 3)


def test_it_is_played(latin: ModuleType) -> None:
    pool = latin.latin_instances(num=1, split="test")
    cell = np.flatnonzero(pool.instances[0] == 0)[0]
    edit = f"{cell // 5 + 1} {cell % 5 + 1} {pool.solutions[0, cell]}"
    run = CliRunner().invoke(
        play, ["latin:latin5", "--split", "test"], input=f"hint\n{edit}\nscore\n"
    )
    assert run.exit_code == 0, run.output
    assert "score" in run.output and "violations     0" in run.output


def test_reference_policies_play_it(latin: ModuleType) -> None:
    domain, pool = latin.Latin(5), latin.latin_instances(num=60, split="test")
    shares = {
        name: evaluate_policy(policy, domain, pool).success_rate
        for name, policy in reference_policies(domain, pool).items()
    }
    assert shares["oracle"] == 1.0
    assert shares["random-legal"] < shares["fewest-candidates"] <= shares["singles"]


def trained(folder: Path, *, update_map: str, edits: int) -> float:
    """Share of unseen squares that a short training solves."""
    here = Placement(threads=1)
    run = train(
        env="latin:latin5",
        recipe_path=None,
        overrides=[*SMALL, f"model.update_map={update_map}"],
        steps=edits,
        seed=1,
        out=folder / "run",
        placement=here,
    ).run
    assert run.checkpoint_steps()[-1] == edits
    task = TASKS["latin5"]
    pool = task.instances("test", num=100)
    return evaluate_policy(load_policy(run, placement=here), task.domain, pool).success_rate


@pytest.mark.slow
def test_the_trainer_learns_it_through_its_groups(latin: ModuleType, tmp_path: Path) -> None:
    pool = latin.latin_instances(num=100, split="test")
    by_chance = evaluate_policy(random_legal, latin.Latin(5), pool).success_rate
    share = trained(tmp_path, update_map="relational", edits=512)
    assert by_chance < 0.6 < 0.75 < share


def test_the_trainer_takes_the_flat_map_too(tmp_path: Path) -> None:
    assert 0 <= trained(tmp_path, update_map="mlp", edits=192) <= 1
