"""Checks that any plan-editing domain, environment or engine should pass; for test suites.

`check_vector_env` compares a native vector environment with as many single ones, by Gymnasium's own
`SyncVectorEnv`, in the three autoreset modes. The other checks are laws of a `PlanDomain`: each
takes the domain and a batch of states and raises AssertionError with the first counterexample.
Instances come from the caller (states from `random_states`), independent oracles too.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from plan_envs.domain import (
    C_MAX,
    DeadEnd,
    Int8Array,
    PlanDomain,
    RewardKind,
    Symmetry,
    Verdict,
    potential,
)
from plan_envs.engine import (
    NEVER,
    NEXT_STEP,
    SAME_STEP,
    Engine,
    EngineOptions,
    PureEngine,
    StepArrays,
)
from plan_envs.engines import make_engine
from plan_envs.generic import general_successors

_OUTCOMES = ("action", "plan", "score", "reward", "solved", "dead", "terminated")
"""Fields of `Successors` with a row for each edit."""

MakeVector = Callable[[int, AutoresetMode], VectorEnv[Any, Any, Any]]
"""(number of environments, autoreset mode) -> the vector environment to check."""
MakeSingle = Callable[[], gym.Env[Any, Any]]
Oracle = Callable[[Int8Array, Int8Array], Iterable[int]]
"""(instance [cell], plan [cell]) -> the legal actions, from first principles."""


def check_vector_env(
    make_vec: MakeVector,
    make_single: MakeSingle,
    *,
    num_envs: int = 3,
    steps: int = 60,
    seed: int = 0,
    legal_share: float = 0.9,
    modes: Iterable[AutoresetMode] = tuple(AutoresetMode),
) -> None:
    """A native vector environment equals `num_envs` single ones, in every autoreset mode.

    Compares observations, rewards, flags and infos (keys, types, shapes, values where a key's mask
    says present, final observations) after a seeded reset, at every step, after a partial reset and
    after a reset with a list of seeds.

    Args:
        make_vec: makes the environment to check.
        make_single: makes a single one, with its time limit (e.g. `gym.make(...)`).
        num_envs: environments side by side.
        steps: steps in each mode.
        seed: seeds the environments (seed + i) and the choice of actions.
        legal_share: share of legal actions; the others are uniform, most of them illegal.
        modes: autoreset modes to check.

    Raises:
        AssertionError: names the mode, the step and what differs.
    """
    for mode in modes:
        native = make_vec(num_envs, mode)
        reference: VectorEnv[Any, Any, Any] = SyncVectorEnv(
            [make_single] * num_envs, autoreset_mode=mode
        )
        try:
            assert native.metadata["autoreset_mode"] is mode, f"metadata do not say {mode}"
            assert native.single_observation_space == reference.single_observation_space
            assert native.single_action_space == reference.single_action_space
            assert native.observation_space == reference.observation_space
            assert native.action_space == reference.action_space
            _play_side_by_side(native, reference, mode, steps, seed, legal_share)
        finally:
            native.close()
            reference.close()


def _play_side_by_side(
    native: VectorEnv[Any, Any, Any],
    reference: VectorEnv[Any, Any, Any],
    mode: AutoresetMode,
    steps: int,
    seed: int,
    legal_share: float,
) -> None:
    rng = np.random.default_rng(seed)
    num_envs = native.num_envs

    def reset(where: str, **arguments: Any) -> dict[str, Any]:
        expected = reference.reset(**deepcopy(arguments))  # it takes reset_mask out of options
        got = native.reset(**arguments)
        _same(got[0], expected[0], f"{mode.value}, {where}, observation")
        _same(got[1], expected[1], f"{mode.value}, {where}, info")
        observation: dict[str, Any] = got[0]
        return observation

    observation = reset("reset(seed)", seed=seed)
    for step in range(steps):
        if step == steps // 2:
            observation = reset("reset(seeds)", seed=[seed + 7 * i for i in range(num_envs)])
        where = f"{mode.value}, step {step}"
        actions = _some_actions(observation["action_mask"], rng, legal_share)
        got, expected = native.step(actions), reference.step(actions)
        names = ("observation", "reward", "terminated", "truncated", "info")
        for name, one, other in zip(names, got, expected, strict=True):
            _same(one, other, f"{where}, {name}")
        observation = got[0]
        done = got[2] | got[3]
        if mode is AutoresetMode.DISABLED and done.any():
            observation = reset(f"reset_mask at {step}", options={"reset_mask": done})


def _some_actions(
    masks: Int8Array, rng: np.random.Generator, legal_share: float
) -> NDArray[np.int64]:
    """A legal action in most rows, any action in the others."""
    anything = rng.integers(0, masks.shape[1], len(masks))
    legal = (rng.random(masks.shape) * masks).argmax(axis=1)
    return np.where(rng.random(len(masks)) < legal_share, legal, anything)


def _same(got: Any, expected: Any, where: str) -> None:
    """Equal structures, types and values; of infos where the masks `_key` say there is a value."""
    assert type(got) is type(expected), f"{where}: {type(got)} instead of {type(expected)}"
    if isinstance(got, Mapping):
        assert set(got) == set(expected), f"{where}: keys {set(got)} instead of {set(expected)}"
        for key, one in got.items():
            other = expected[key]
            if f"_{key}" in expected and not isinstance(one, Mapping):
                one, other = one[expected[f"_{key}"]], other[expected[f"_{key}"]]
            _same(one, other, f"{where}[{key!r}]")
    elif isinstance(got, np.ndarray):
        assert got.dtype == expected.dtype, f"{where}: {got.dtype} instead of {expected.dtype}"
        assert got.shape == expected.shape, f"{where}: {got.shape} instead of {expected.shape}"
        if got.dtype == object:
            for i, (one, other) in enumerate(zip(got, expected, strict=True)):
                _same(one, other, f"{where}[{i}]")
        else:
            wrong = np.argwhere(got != expected)
            assert not len(wrong), f"{where} differs at {wrong[0]}: {got} instead of {expected}"
    else:
        assert got == expected, f"{where}: {got} instead of {expected}"


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """A batch of states."""

    instances: Int8Array
    """Shape [batch, cell]."""
    plans: Int8Array
    """Shape [batch, cell]."""

    def __len__(self) -> int:
        """Number of states."""
        return len(self.plans)


def random_states(
    domain: PlanDomain, instances: Int8Array, rng: np.random.Generator, *, max_edits: int
) -> States:
    """States that random legal edits reach: one an instance, after 0 to `max_edits` edits.

    A walk ends early where no edit is legal; solved and dead plans are walked through.
    """
    plans = domain.initial(instances)
    left = rng.integers(0, max_edits + 1, len(plans))
    for _ in range(max_edits):
        masks = domain.action_mask(instances, plans)
        actions = (rng.random(masks.shape) * masks).argmax(axis=1).astype(np.int32)
        moves = (left > 0) & masks.any(axis=1)
        plans = np.where(moves[:, None], domain.edit(instances, plans, actions), plans)
        left -= 1
    return States(instances=instances.copy(), plans=plans)


def every_action(domain: PlanDomain, states: States) -> tuple[States, NDArray[np.int32]]:
    """Each state with each action: states repeated, and the actions, [batch * action]."""
    num = domain.spec.num_actions
    x, y = (np.repeat(boards, num, axis=0) for boards in (states.instances, states.plans))
    return States(instances=x, plans=y), np.tile(np.arange(num, dtype=np.int32), len(states))


def check_edits(domain: PlanDomain, states: States) -> None:
    """An edit changes the cell it names to its value and no other; a forbidden one changes nothing.

    Givens never move, arguments are never modified.
    """
    spec = domain.spec
    before = states.instances.copy(), states.plans.copy()
    legal = domain.action_mask(states.instances, states.plans).ravel() == 1
    many, actions = every_action(domain, states)
    edited = domain.edit(many.instances, many.plans, actions)
    assert np.array_equal(states.instances, before[0]), "edit modified the instances"
    assert np.array_equal(states.plans, before[1]), "edit modified the plans"
    expected = many.plans.copy()
    writes = legal & ~domain.is_stop(actions)
    rows = np.flatnonzero(writes)
    cells = spec.action_cell[actions[rows]]
    expected[rows, cells] = spec.action_value[actions[rows]]
    _no_counterexample((edited != expected).any(axis=1), actions, "edit is wrong for action")
    moved = ((many.instances > 0) & (edited != many.instances)).any(axis=1)
    kept = ~((many.instances > 0) & (many.plans != many.instances)).any(axis=1)
    _no_counterexample(moved & kept, actions, "a given moved under action")
    unchanged = writes & (edited == many.plans).all(axis=1)
    _no_counterexample(unchanged, actions, "the mask allows an edit without effect, action")


def check_mask(domain: PlanDomain, states: States, oracle: Oracle) -> None:
    """The mask is exactly what an independent oracle calls legal."""
    masks = domain.action_mask(states.instances, states.plans)
    assert masks.dtype == np.int8, f"masks are {masks.dtype}"
    assert masks.shape == (len(states), domain.spec.num_actions)
    for row, mask in enumerate(masks):
        expected = set(oracle(states.instances[row], states.plans[row]))
        got = set(np.flatnonzero(mask).tolist())
        assert got == expected, f"state {row}: {got ^ expected} differ from the oracle"
        assert set(np.unique(mask)) <= {0, 1}, f"state {row}: a mask holds 0 and 1 only"


def check_live_states(domain: PlanDomain, states: States) -> None:
    """Where an edit leads without absorbing, there is a legal edit again."""
    found = domain.successors(states.instances, states.plans, dead_end="continue")
    live = ~found.terminated
    masks = domain.action_mask(states.instances[found.state[live]], found.plan[live])
    _no_counterexample(~masks.any(axis=1), found.action[live], "a live state has no legal edit")


def check_potential(domain: PlanDomain, states: States) -> None:
    """Phi lies in [0, C_max], and a solved plan reaches the maximum."""
    verdict = domain.check(states.instances, states.plans)
    phi = potential(verdict.score, domain.spec.max_score)
    assert ((phi >= 0) & (phi <= C_MAX)).all(), f"Phi outside [0, {C_MAX}]: {phi}"
    assert (phi[verdict.solved] == C_MAX).all(), "a solved plan has not the highest potential"
    assert not (verdict.solved & (verdict.violations > 0)).any(), "a solved plan has violations"
    assert not (verdict.solved & verdict.dead).any(), "a solved plan is called dead"


def check_batch_equals_singles(domain: PlanDomain, states: States) -> None:
    """Every function of a batch is that function of each row."""
    x, y = states.instances, states.plans
    actions = np.arange(len(states), dtype=np.int32) * 7 % domain.spec.num_actions

    def results(chosen: slice) -> dict[str, NDArray[Any]]:
        one, other = x[chosen], y[chosen]
        return {
            "initial": domain.initial(one),
            "mask": domain.action_mask(one, other),
            "edit": domain.edit(one, other, actions[chosen]),
            **_named(domain.check(one, other)),
        }

    whole, found = results(slice(None)), domain.successors(x, y)
    for i in range(len(states)):
        one = slice(i, i + 1)
        for name, values in results(one).items():
            _same(values, whole[name][one], f"state {i}: {name}")
        rows = slice(found.offsets[i], found.offsets[i + 1])
        alone = domain.successors(x[one], y[one])
        assert (alone.state == 0).all()
        for name in _OUTCOMES:
            assert np.array_equal(getattr(alone, name), getattr(found, name)[rows]), name


def check_successors(domain: PlanDomain, states: States, **options: Any) -> None:
    """Successors are what mask, edit and check say one by one, in CSR form, with folded rewards.

    `plan_envs.generic.general_successors` puts these together; `options` are those that it takes.
    """
    x, y = states.instances, states.plans
    expected = general_successors(domain, x, y, **options)
    found = domain.successors(x, y, **options)
    bare = domain.successors(x, y, **options, with_plans=False)
    _same(found.offsets, expected.offsets, "offsets of successors")
    _same(found.state, expected.state, "states of successors")
    for name in _OUTCOMES:
        got, wanted = getattr(found, name), getattr(expected, name)
        assert got.shape == wanted.shape and got.dtype == wanted.dtype, f"successor {name}"
        wrong = (got != wanted).any(axis=tuple(range(1, got.ndim)))
        _no_counterexample(wrong, expected.action, f"successor {name} differs for action")
        if name != "plan":
            assert np.array_equal(getattr(bare, name), got), f"{name}, without plans"
    assert bare.plan.shape == (0, domain.spec.num_cells)


def check_symmetry(
    domain: PlanDomain,
    states: States,
    symmetry: Symmetry,
    *,
    changes: Collection[str] = (),
) -> None:
    """A symmetry of the puzzle commutes with mask, edit and checker, and has an inverse.

    Args:
        domain: the domain.
        states: a batch of states.
        symmetry: of the domain.
        changes: names of `Verdict.details` that the symmetry may change (Maze: label, whose
            tie-break has an orientation).
    """
    action_map, back = symmetry.actions(), symmetry.inverse()
    x, y = symmetry.instances(states.instances), symmetry.plans(states.plans)
    assert np.array_equal(back.instances(x), states.instances), "instances do not come back"
    assert np.array_equal(back.plans(y), states.plans), "plans do not come back"
    assert np.array_equal(back.actions()[action_map], np.arange(len(action_map))), "actions"
    masks, images = domain.action_mask(states.instances, states.plans), domain.action_mask(x, y)
    assert np.array_equal(images[:, action_map], masks), "the mask does not commute"
    verdict = _named(domain.check(states.instances, states.plans))
    for name, values in _named(domain.check(x, y)).items():
        assert name in changes or np.array_equal(verdict[name], values), f"{name} changes"
    many, actions = every_action(domain, states)
    edited = symmetry.plans(domain.edit(many.instances, many.plans, actions))
    other = domain.edit(
        symmetry.instances(many.instances), symmetry.plans(many.plans), action_map[actions]
    )
    wrong = (edited != other).any(axis=1)
    _no_counterexample(wrong, actions, "edit does not commute for action")


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One random episode of an engine, as a learner would see it."""

    phi: NDArray[np.float64]
    """Potential before each edit, and after the last; shape [step + 1]."""
    shaped: NDArray[np.float64]
    """Folded shaped rewards, shape [step]."""
    sparse: NDArray[np.float64]
    """Rewards r0 alone, shape [step]."""
    terminated: bool
    """The last edit was absorbed; else the episode was cut off."""


def play_episode(
    domain: PlanDomain,
    instance: Int8Array,
    rng: np.random.Generator,
    *,
    gamma: float,
    dead_end: DeadEnd,
    limit: int,
) -> Episode:
    """Random legal edits from an instance until absorption or `limit`."""
    pool, only = instance[None], np.zeros(1, np.int64)
    rewards: tuple[RewardKind, ...] = ("shaped", "sparse")
    engines = []
    for reward in rewards:
        options = EngineOptions(gamma=gamma, reward=reward, dead_end=dead_end, limit=limit)
        engines.append(make_engine(domain, 1, pool, options))
        engines[-1].load(only, pool, domain.initial(pool))
    plans = [engines[0].plans[0].copy()]
    steps: list[tuple[float, float, bool, bool]] = []
    while not steps or not any(steps[-1][2:]):
        action = int(rng.choice(np.flatnonzero(engines[0].masks[0])))
        (shaped, ended, late, *_), (sparse, *_) = (engine.step_one(action) for engine in engines)
        steps.append((shaped, sparse, ended, late))
        plans.append(engines[0].plans[0].copy())
    score = domain.check(np.repeat(pool, len(plans), axis=0), np.stack(plans)).score
    return Episode(
        phi=potential(score, domain.spec.max_score),
        shaped=np.array([step[0] for step in steps]),
        sparse=np.array([step[1] for step in steps]),
        terminated=steps[-1][2],
    )


def check_telescoping(episode: Episode, gamma: float) -> None:
    """The shaped return is the sparse one - Phi(s_0), + gamma^T Phi(s_T) if it was cut off."""
    tail = 0.0 if episode.terminated else episode.phi[-1]
    expected = _returns(episode.sparse, gamma, tail) - episode.phi[:-1]
    np.testing.assert_allclose(_returns(episode.shaped, gamma, 0.0), expected, rtol=0, atol=1e-9)


def check_conventions(episode: Episode, gamma: float) -> None:
    """From every state, the paper's raw convention and the folded one give equal returns.

    Raw (UPI-TRM Sec. 2): r = r0 + gamma Phi(s') - Phi(s) throughout, with Phi(s_abs) = C_max, and
    V(s_abs) = -C_max is bootstrapped. Folded: the rewards of this package, bootstrapped with 0.
    """
    last_phi = C_MAX if episode.terminated else episode.phi[-1]
    after = np.append(episode.phi[1:-1], last_phi)
    raw = episode.sparse + gamma * after - episode.phi[:-1]
    paper = _returns(raw, gamma, -C_MAX if episode.terminated else 0.0)
    np.testing.assert_allclose(paper, _returns(episode.shaped, gamma, 0.0), rtol=0, atol=1e-9)


def _returns(rewards: NDArray[np.float64], gamma: float, tail: float) -> NDArray[np.float64]:
    """The discounted return from every step on, with a value behind the last one; [step]."""
    found = [tail]
    for reward in rewards[::-1]:
        found.append(reward + gamma * found[-1])
    return np.array(found[:0:-1])


def check_engines(
    domain: PlanDomain,
    pool: Int8Array,
    options: EngineOptions,
    *,
    seed: int,
    num_envs: int = 8,
    steps: int = 30,
) -> None:
    """The domain's own engine equals `PureEngine` in every number, under all autoreset modes."""
    rng = np.random.default_rng(seed)
    every = np.arange(num_envs)
    for autoreset in (NEXT_STEP, SAME_STEP, NEVER):
        own = make_engine(domain, num_envs, pool, options)
        pure: Engine = PureEngine(domain, num_envs, pool, options)
        words = rng.integers(0, 2**64 - 1, (2, num_envs), np.uint64)
        for engine in (own, pure):
            engine.streams[:], engine.samplers[:] = words
            engine.draw(every)
        _same_engines(own, pure, "reset")
        for step in range(steps):
            where = f"autoreset {autoreset}, step {step}"
            sampled = own.sample()
            assert np.array_equal(sampled, pure.sample()), f"{where}: samples differ"
            anything = rng.integers(0, domain.spec.num_actions, num_envs)
            actions = np.where((sampled < 0) | (rng.random(num_envs) < 0.1), anything, sampled)
            outs = [StepArrays.empty(num_envs, domain.spec) for _ in range(2)]
            finals = [
                engine.step(actions, autoreset, out)
                for engine, out in zip((own, pure), outs, strict=True)
            ]
            _same(outs[0]._asdict(), outs[1]._asdict(), where)
            assert (finals[0] is None) == (finals[1] is None), f"{where}: finals"
            if finals[0] is not None and finals[1] is not None:
                assert np.array_equal(finals[0].index, finals[1].index), f"{where}: finals"
                _same(finals[0].arrays._asdict(), finals[1].arrays._asdict(), f"{where}, finals")
            over = np.flatnonzero(outs[0].terminated | outs[0].truncated)
            if autoreset == NEVER and len(over):
                for engine in (own, pure):
                    engine.draw(over)
            _same_engines(own, pure, where)


def _same_engines(own: Engine, pure: Engine, where: str) -> None:
    for name in ("instances", "plans", "masks", "streams", "samplers", "steps", "finished"):
        same = np.array_equal(getattr(own, name), getattr(pure, name))
        assert same, f"{where}: {name} differ"


def _no_counterexample(wrong: Any, actions: NDArray[Any], claim: str) -> None:
    rows = np.flatnonzero(wrong)
    assert not len(rows), f"{claim} {actions[rows[0]]} (row {rows[0]}, {len(rows)} in all)"


def _named(verdict: Verdict) -> dict[str, NDArray[Any]]:
    """Every array of a verdict by name."""
    named = asdict(verdict)
    details: dict[str, NDArray[Any]] = named.pop("details")
    return named | details
