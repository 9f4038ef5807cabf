"""The laws of code repair under both masks, against oracles in plain Python; its instances."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_in_python import run_in_python, types_in_python

from plan_envs import testing
from plan_envs.catalogue import resolve_task
from plan_envs.domain import Int8Array
from plan_envs.engine import EngineOptions
from plan_envs.evaluation import evaluate_policy, reference_policies
from plan_envs.instances import SPLITS, InstanceSet
from plan_envs.playing.game import Game
from plan_envs.repair.instances import repair_instances, split_of
from plan_envs.repair.language import NAMES, NUM_TOKENS
from plan_envs.repair.rules import Repair
from plan_envs.repair.text import write_program

SEEDS = st.integers(0, 2**32 - 1)
DOMAINS = [
    pytest.param(domain, id=f"{domain.spec.name}-{domain.mask}")
    for domain in (Repair(6, 3, 2), Repair(6, 3, 0, "tokens"), Repair(9, 4, 3, "tokens"), Repair())
]
POOLS: dict[Repair, InstanceSet] = {}


def pool_of(domain: Repair) -> InstanceSet:
    """Some instances; made once."""
    if domain not in POOLS:
        room = {"length": domain.length, "tests": domain.tests, "hidden": domain.hidden}
        POOLS[domain] = repair_instances(**room, num=12, tokens=(3, 5), faults=(1, 2))
    return POOLS[domain]


def states_of(domain: Repair, seed: int, num: int = 4) -> testing.States:
    """Half of them after random edits, half at most one edit from a working program."""
    rng = np.random.default_rng(seed)
    pool = pool_of(domain).subset(rng.integers(0, 12, num))
    states = testing.random_states(domain, pool.instances, rng, max_edits=10)
    near = testing.random_states(domain, pool.instances, rng, max_edits=0)
    near.plans[:] = pool.solutions
    masks = domain.action_mask(near.instances, near.plans)
    actions = (rng.random(masks.shape) * masks).argmax(axis=1).astype(np.int32)
    actions[::2] = domain.spec.num_actions - 1
    states.plans[num // 2 :] = domain.edit(near.instances, near.plans, actions)[num // 2 :]
    return states


def edited_in_python(domain: Repair, plan: Int8Array, action: int) -> list[int]:
    """The tokens of a program after an edit, by the table of actions, legal or not."""
    spec = domain.spec
    tokens = [token for token in plan.tolist() if token]
    kind = spec.kind_names[spec.action_kind[action]]
    cell, value = int(spec.action_cell[action]), int(spec.action_value[action])
    if kind == "replace":
        tokens[cell] = value
    elif kind == "insert":
        tokens.insert(cell, value)
    elif kind == "delete":
        del tokens[cell]
    return tokens


def legal_in_python(domain: Repair, plan: Int8Array) -> list[int]:
    """Brute-force legality, straight from the rules."""
    spec, num = domain.spec, int((plan > 0).sum())
    legal = [spec.num_actions - 1]
    for action in range(spec.num_actions - 1):
        kind, cell = spec.kind_names[spec.action_kind[action]], spec.action_cell[action]
        if cell > num or (cell == num and kind != "insert"):
            continue
        if kind == "insert" and num == domain.length:
            continue
        tokens = edited_in_python(domain, plan, action)
        words = [NAMES[token - 1] for token in tokens]
        typed = domain.mask == "tokens" or types_in_python(words) is not None
        if typed and tokens != plan[:num].tolist():
            legal.append(action)
        elif typed and kind == "insert":
            raise AssertionError("a program cannot stay the same when it becomes longer")
    return legal


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=SEEDS)
@settings(max_examples=3)
def test_the_mask_equals_brute_force_legality(domain: Repair, seed: int) -> None:
    testing.check_mask(domain, states_of(domain, seed), lambda x, y: legal_in_python(domain, y))


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=SEEDS)
@settings(max_examples=3)
def test_an_edit_does_what_its_kind_says_or_nothing(domain: Repair, seed: int) -> None:
    states = states_of(domain, seed, 2)
    many, actions = testing.every_action(domain, states)
    edited = domain.edit(many.instances, many.plans, actions)
    legal = domain.action_mask(states.instances, states.plans).ravel() == 1
    for row, (plan, action) in enumerate(zip(many.plans, actions.tolist(), strict=True)):
        expected = plan.tolist()
        if legal[row]:
            tokens = edited_in_python(domain, plan, action)
            expected = tokens + [0] * (domain.length - len(tokens))
        assert edited[row].tolist() == expected


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=SEEDS)
@settings(max_examples=5)
def test_the_score_is_the_share_of_tests_that_python_sees_pass(domain: Repair, seed: int) -> None:
    states = states_of(domain, seed)
    verdict = domain.check(states.instances, states.plans)
    for row, (instance, plan) in enumerate(zip(states.instances, states.plans, strict=True)):
        passed: list[bool] = []
        for piece in domain.write_instance(instance).split(" | ")[1:]:
            given_, _, wanted = piece.removeprefix("hidden ").partition(" -> ")
            n, _, xs = given_.partition(" ")
            words = write_program(plan).replace(".", "").split()
            result = run_in_python(words, int(n), [int(x) for x in xs.strip("[]").split()])
            passed.append(str(result).replace(",", "") == wanted)
        visible, hidden = passed[: domain.tests], passed[domain.tests :]
        assert verdict.score[row] == np.float32(sum(visible) / len(visible))
        assert verdict.solved[row] == all(visible)
        assert verdict.violations[row] == visible.count(False)
        share = sum(hidden) / len(hidden) if hidden else 0.0
        assert verdict.details["hidden"][row] == np.float32(share)
    assert not verdict.dead.any()


@pytest.mark.parametrize("domain", DOMAINS)
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.5, 1.0]),
    reward=st.sampled_from(["shaped", "sparse"]),
    dead_end=st.sampled_from(["absorb", "continue"]),
)
@settings(max_examples=5)
def test_the_laws_of_every_domain_hold(
    domain: Repair, seed: int, gamma: float, reward: Any, dead_end: Any
) -> None:
    states = states_of(domain, seed)
    testing.check_live_states(domain, states)
    testing.check_potential(domain, states)
    testing.check_batch_equals_singles(domain, states)
    testing.check_successors(domain, states, gamma=gamma, reward=reward, dead_end=dead_end)


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=SEEDS, reward=st.sampled_from(["shaped", "sparse"]), limit=st.sampled_from([0, 5]))
@settings(max_examples=3)
def test_the_fast_engine_equals_the_engine_of_pure_functions(
    domain: Repair, seed: int, reward: Any, limit: int
) -> None:
    pool = pool_of(domain).instances
    options = EngineOptions(reward=reward, limit=limit)
    testing.check_engines(domain, pool, options, seed=seed, num_envs=4, steps=15)


def test_the_states_meet_what_the_laws_are_about() -> None:
    domain = Repair()
    states = [states_of(domain, seed, 8) for seed in range(10)]
    plans = np.concatenate([batch.plans for batch in states])
    verdict = domain.check(np.concatenate([batch.instances for batch in states]), plans)
    assert verdict.solved.any() and not verdict.solved.all()
    lengths = (plans > 0).sum(axis=1)
    assert lengths.min() < 3 and lengths.max() > 8


def test_no_edit_is_fatal() -> None:
    """From a typed program any other is reached: shorten it to what both share, then append."""
    domain = Repair(6, 3, 2)
    pool = pool_of(domain)
    for goal in pool.solutions[:4]:
        plans = domain.initial(pool.instances)
        for _ in range(2 * domain.length):
            num = (plans > 0).sum(axis=1)
            same = np.cumprod(plans == goal, axis=1).astype(bool)
            shared = np.minimum(same.sum(axis=1), num)
            at = np.minimum(num, domain.length - 1)
            append = domain.length * NUM_TOKENS + at * NUM_TOKENS + goal[at] - 1
            delete = 2 * domain.length * NUM_TOKENS + np.maximum(num - 1, 0)
            done = (plans == goal).all(axis=1)
            actions = np.where(num > shared, delete, append)
            actions = np.where(done, domain.spec.num_actions - 1, actions).astype(np.int32)
            masks = domain.action_mask(pool.instances, plans)
            assert masks[np.arange(len(plans)), actions].all()
            plans = domain.edit(pool.instances, plans, actions)
        assert (plans == goal).all()


def every_program(tokens: int, cells: int) -> Int8Array:
    """All programs of at most so many tokens, int8 [program, cell]."""
    boards = [np.zeros((1, cells), np.int8)]
    for length in range(1, tokens + 1):
        grid = np.indices((NUM_TOKENS,) * length, np.int8).reshape(length, -1).T + 1
        boards.append(np.pad(grid, ((0, 0), (0, cells - length))))
    return np.concatenate(boards)


def test_faults_are_the_distance_to_the_nearest_program_that_passes() -> None:
    """All 346,201 programs of at most four tokens, run on the tests of each instance."""
    domain = Repair(6, 6, 6)
    programs = every_program(4, 6)
    pool = repair_instances(length=6, num=6, tokens=(3, 4), faults=(1, 2))
    assert set(pool.ratings) == {1, 2}
    for instance, faults in zip(pool.instances, pool.ratings, strict=True):
        boards = np.broadcast_to(instance, (len(programs), len(instance)))
        right = programs[domain.check(boards, programs).solved]
        start = np.repeat(domain.initial(instance[None]), len(right), axis=0)
        assert domain.distance_to(start, right).min() == faults


def test_distances_between_programs_are_levenshteins() -> None:
    domain = Repair(6)
    pairs = {("n n +", "n +"): 1, ("n 2 +", "xs 1 2 +"): 2, (".", "xs sum"): 2, ("0 1", "1 0"): 2}
    for (one, other), expected in pairs.items():
        rows = [domain.read_instance(f"{text} | 0 [] -> 0")[None, :6] for text in (one, other)]
        assert domain.distance_to(*rows).tolist() == [expected]


@pytest.mark.parametrize("name", ["repair", "repair-tiny"])
def test_instances_are_what_the_generator_promises(name: str) -> None:
    task = resolve_task(name)
    domain: Any = task.domain
    pools = {split: task.instances(split, num=40, seed=3) for split in SPLITS}
    for split, pool in pools.items():
        assert split_of(pool.solutions) == [split] * 40
        assert [domain.why_invalid(instance) for instance in pool.instances] == [None] * 40
        starts = domain.initial(pool.instances)
        assert not domain.check(pool.instances, starts).solved.any()
        verdict = domain.check(pool.instances, pool.solutions)
        assert verdict.solved.all() and (verdict.details["hidden"] == 1).all()
        assert (domain.distance_to(starts, pool.solutions) == pool.ratings).all()
        few = task.instances(split, num=7, seed=3)
        assert np.array_equal(few.instances, pool.instances[:7])
        for program in np.concatenate([starts, pool.solutions]):
            assert types_in_python(write_program(program).replace(".", "").split()) is not None
    keys = [set(pool.keys.tolist()) for pool in pools.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_ranges_that_hold_nothing_are_refused() -> None:
    for options in (
        {"tokens": (1, 3)},
        {"tokens": (4, 13)},
        {"faults": (0, 1)},
        {"faults": (1, 5)},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            repair_instances(num=1, **options)  # type: ignore[arg-type]
    for field in ({"length": 5}, {"tests": 0}, {"hidden": 17}, {"mask": "none"}):
        with pytest.raises(ValueError, match=next(iter(field))):
            Repair(**field)  # type: ignore[arg-type]


def test_the_reference_policies_do_what_they_say() -> None:
    task = resolve_task("repair")
    domain: Any = task.domain
    pool = task.instances("test", num=60)
    rates = {
        name: evaluate_policy(policy, domain, pool).solved
        for name, policy in reference_policies(domain, pool).items()
    }
    one_fault = pool.ratings == 1
    assert rates["oracle"].all() and rates["two-edit"].all()
    assert rates["one-edit"][one_fault].all() and not rates["one-edit"].all()
    assert rates["random-legal"].mean() < 0.2


def test_a_search_counts_its_checker_calls() -> None:
    domain = Repair(6, 2, 0)
    instance = domain.read_instance("n 2 + | 4 [] -> 8 | 3 [1] -> 6")[None]
    start = domain.initial(instance)
    found, calls = domain.first_repairs(instance, start, depth=1)
    edited = domain.edit(instance, start, found[:, 0])
    assert domain.check(instance, edited).solved.all() and found[0, 1] == -1
    legal = np.flatnonzero(domain.action_mask(instance, start)[0])
    assert calls[0] == 1 + int((legal < found[0, 0]).sum())
    hopeless = domain.read_instance("n 2 + | 4 [] -> 77")[None]
    found, calls = domain.first_repairs(hopeless, start, depth=1)
    assert found.tolist() == [[-1, -1]] and calls[0] == len(legal) - 1  # all but STOP
    with pytest.raises(ValueError, match="depth must be 1 or 2, got 3"):
        domain.first_repairs(instance, start, depth=3)


def test_malformed_boards_are_refused_or_named() -> None:
    domain = Repair(6, 2, 1)
    instance = domain.read_instance("xs n take | 1 [3 5] -> [3] | hidden 0 [4] -> []")
    plan = domain.initial(instance[None])
    assert domain.why_invalid(instance) is None
    changes = {
        0: (0, "the first board is no program"),  # a hole
        1: (NUM_TOKENS + 1, "the first board is no program"),
        6: (0, "test 1 is no input with its output"),
        9: (110, "test 1 is no input with its output"),
        13: (0, None),  # an empty list is an output too
        17: (3, "test 1 is no input with its output"),
        30: (0, "test 3 is no input with its output"),
    }
    for place, (code, reason) in changes.items():
        wrong = instance.copy()
        wrong[place] = code
        told = domain.why_invalid(wrong)
        assert (told is None) if reason is None else str(told).startswith(reason), place
    with pytest.raises(ValueError, match="plans must hold tokens, then blanks; row 0 does not"):
        domain.check(instance[None], np.roll(plan, 1, axis=1))
    none = instance.copy()
    none[6:18] = 0
    assert domain.why_invalid(none) == "there is no visible test"
    assert not domain.check(none[None], plan).solved.any()


def test_a_program_is_edited_with_words() -> None:
    game = Game("repair-tiny", instance="n 2 + | 4 [] -> 8 | 3 [1] -> 6")
    assert "n 2 +" in " ".join(game.board(color=False).split())
    assert game.command("insert 1 1 sort").text == "insert at row 1, column 1 is not legal now"
    assert game.command("1 3 +").text == "row 1, column 3 is '+' already"
    assert game.command("insert 1 4 2").redraw
    assert game.command("delete 1 4").redraw
    assert game.command("replace 1 3 *").text.endswith(
        "solved in 3 edits; back, restart, new or quit"
    )
    assert " = " in game.board(color=False) and "!=" not in game.board(color=False)
