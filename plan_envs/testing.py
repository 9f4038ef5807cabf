"""Checks that any plan-editing domain, environment or engine should pass; for test suites.

`check_vector_env` compares a native vector environment with as many single ones, by Gymnasium's own
`SyncVectorEnv`, in the three autoreset modes. The other checks are laws of a `PlanDomain`: each
takes the domain and a batch of states and raises AssertionError with the first counterexample.
Instances come from the caller (states from `random_states`), independent oracles too.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
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
    edit_reward,
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
        copies = [
            {**arguments, "options": dict(arguments["options"])}
            if "options" in arguments
            else arguments
            for _ in range(2)
        ]
        got, expected = native.reset(**copies[0]), reference.reset(**copies[1])
        _same(got[0], expected[0], f"{mode.value}, {where}, observation")
        _same_infos(got[1], expected[1], f"{mode.value}, {where}, info")
        observation: dict[str, Any] = got[0]
        return observation

    observation = reset("reset(seed)", seed=seed)
    for step in range(steps):
        if step == steps // 2:
            observation = reset("reset(seeds)", seed=[seed + 7 * i for i in range(num_envs)])
        where = f"{mode.value}, step {step}"
        actions = _some_actions(observation["action_mask"], rng, legal_share)
        got, expected = native.step(actions), reference.step(actions)
        for name, one, other in zip(
            ("observation", "reward", "terminated", "truncated"), got, expected, strict=False
        ):
            _same(one, other, f"{where}, {name}")
        _same_infos(got[4], expected[4], f"{where}, info")
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
    """Equal structures, types and values."""
    assert type(got) is type(expected), f"{where}: {type(got)} instead of {type(expected)}"
    if isinstance(got, Mapping):
        assert set(got) == set(expected), f"{where}: keys {set(got)} instead of {set(expected)}"
        for key in got:
            _same(got[key], expected[key], f"{where}[{key!r}]")
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


def _same_infos(got: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Equal infos where the masks `_key` say that a value is present."""
    assert set(got) == set(expected), f"{where}: keys {sorted(got)} instead of {sorted(expected)}"
    for key, value in got.items():
        place = f"{where}[{key!r}]"
        if isinstance(value, Mapping):
            _same_infos(value, expected[key], place)
        elif key.startswith("_"):
            _same(value, expected[key], place)
        else:
            present = expected[f"_{key}"]
            _same(value[present], expected[key][present], place)


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
    return States(instances=instances, plans=plans)


def every_action(domain: PlanDomain, states: States) -> tuple[States, NDArray[np.int32]]:
    """Each state with each action: states repeated, and the actions, [batch * action]."""
    num_actions = domain.spec.num_actions
    repeated = States(
        instances=np.repeat(states.instances, num_actions, axis=0),
        plans=np.repeat(states.plans, num_actions, axis=0),
    )
    return repeated, np.tile(np.arange(num_actions, dtype=np.int32), len(states))


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
    whole = domain.check(x, y)
    found = domain.successors(x, y)
    for i in range(len(states)):
        one = slice(i, i + 1)
        assert np.array_equal(domain.initial(x[one])[0], domain.initial(x)[i])
        assert np.array_equal(domain.action_mask(x[one], y[one])[0], domain.action_mask(x, y)[i])
        assert np.array_equal(
            domain.edit(x[one], y[one], actions[one])[0], domain.edit(x, y, actions)[i]
        )
        single = _figures(domain.check(x[one], y[one]))
        for name, values in _figures(whole).items():
            assert single[name][0] == values[i], f"state {i}: {name}"
        rows = slice(found.offsets[i], found.offsets[i + 1])
        alone = domain.successors(x[one], y[one])
        assert (alone.state == 0).all()
        for name in ("action", "plan", "score", "reward", "solved", "dead", "terminated"):
            assert np.array_equal(getattr(alone, name), getattr(found, name)[rows]), name


def check_successors(
    domain: PlanDomain,
    states: States,
    *,
    gamma: float = 0.99,
    reward: RewardKind = "shaped",
    dead_end: DeadEnd = "absorb",
) -> None:
    """Successors are what mask, edit and check say one by one, in CSR form, with folded rewards."""
    found = domain.successors(
        states.instances, states.plans, gamma=gamma, reward=reward, dead_end=dead_end
    )
    masks = domain.action_mask(states.instances, states.plans)
    state, action = np.nonzero(masks)
    assert np.array_equal(found.offsets, np.append(0, masks.sum(axis=1, dtype=np.int64).cumsum()))
    assert np.array_equal(found.state, state), "successors belong to other states"
    assert np.array_equal(found.action, action), "successors are not the legal actions in order"
    x, y = states.instances[state], states.plans[state]
    edited = domain.edit(x, y, action.astype(np.int32))
    assert np.array_equal(found.plan, edited), "successor plans differ from edit"
    before, after = domain.check(x, y), domain.check(x, edited)
    for name in ("score", "solved", "dead"):
        wrong = getattr(found, name) != getattr(after, name)
        _no_counterexample(wrong, found.action, f"successor {name} differs for action")
    absorbed = (
        after.solved
        | domain.is_stop(action.astype(np.int32))
        | (after.dead & (dead_end == "absorb"))
        | ~domain.action_mask(x, edited).any(axis=1)
    )
    _no_counterexample(found.terminated != absorbed, found.action, "terminated differs for action")
    max_score = domain.spec.max_score
    expected = edit_reward(
        potential(before.score, max_score),
        potential(after.score, max_score),
        solved=after.solved,
        absorbed=absorbed,
        gamma=gamma,
        reward=reward,
    )
    wrong = found.reward != expected.astype(np.float32)
    _no_counterexample(wrong, found.action, "reward differs for action")
    bare = domain.successors(
        states.instances,
        states.plans,
        gamma=gamma,
        reward=reward,
        dead_end=dead_end,
        with_plans=False,
    )
    assert bare.plan.shape == (0, domain.spec.num_cells)
    for name in ("action", "score", "reward", "solved", "dead", "terminated"):
        assert np.array_equal(getattr(bare, name), getattr(found, name)), f"{name}, without plans"


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
    verdict = _figures(domain.check(states.instances, states.plans))
    for name, values in _figures(domain.check(x, y)).items():
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
    pool = instance[None]
    engines = [
        make_engine(
            domain,
            1,
            pool,
            EngineOptions(gamma=gamma, reward=reward, dead_end=dead_end, limit=limit),
        )
        for reward in ("shaped", "sparse")
    ]
    only = np.zeros(1, np.int64)
    for engine in engines:
        engine.load(only, pool, domain.initial(pool))
    phi = [_phi(domain, engines[0])]
    rewards: list[tuple[float, float]] = []
    while True:
        action = int(rng.choice(np.flatnonzero(engines[0].masks[0])))
        outcomes = [engine.step_one(action) for engine in engines]
        rewards.append((outcomes[0][0], outcomes[1][0]))
        phi.append(_phi(domain, engines[0]))
        if outcomes[0][1] or outcomes[0][2]:
            break
    shaped, sparse = np.array(rewards).T
    return Episode(phi=np.array(phi), shaped=shaped, sparse=sparse, terminated=bool(outcomes[0][1]))


def _phi(domain: PlanDomain, engine: Engine) -> float:
    verdict = domain.check(engine.instances.copy(), engine.plans.copy())
    return float(potential(verdict.score, domain.spec.max_score)[0])


def check_telescoping(episode: Episode, gamma: float) -> None:
    """The shaped return is the sparse one - Phi(s_0), + gamma^T Phi(s_T) if it was cut off."""
    for start in range(len(episode.shaped)):
        discount = gamma ** np.arange(len(episode.shaped) - start)
        shaped = (discount * episode.shaped[start:]).sum()
        sparse = (discount * episode.sparse[start:]).sum()
        tail = 0.0 if episode.terminated else gamma ** len(discount) * episode.phi[-1]
        assert abs(shaped - (sparse - episode.phi[start] + tail)) < 1e-9, f"from step {start}"


def check_conventions(episode: Episode, gamma: float) -> None:
    """From every state, the paper's raw convention and the folded one give equal returns.

    Raw (UPI-TRM Sec. 2): r = r0 + gamma Phi(s') - Phi(s) throughout, with Phi(s_abs) = C_max, and
    V(s_abs) = -C_max is bootstrapped. Folded: the rewards of this package, bootstrapped with 0.
    """
    last_phi = C_MAX if episode.terminated else episode.phi[-1]
    after = np.append(episode.phi[1:-1], last_phi)
    raw = episode.sparse + gamma * after - episode.phi[:-1]
    for start in range(len(raw)):
        discount = gamma ** np.arange(len(raw) - start)
        bootstrap = gamma ** len(discount) * (-C_MAX if episode.terminated else 0.0)
        paper = (discount * raw[start:]).sum() + bootstrap
        folded = (discount * episode.shaped[start:]).sum()
        assert abs(paper - folded) < 1e-9, f"from step {start}: {paper} and {folded}"


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
            _same_outcomes(outs[0], outs[1], where)
            assert (finals[0] is None) == (finals[1] is None), f"{where}: finals"
            if finals[0] is not None and finals[1] is not None:
                assert np.array_equal(finals[0].index, finals[1].index), f"{where}: finals"
                _same_outcomes(finals[0].arrays, finals[1].arrays, f"{where}, finals")
            over = np.flatnonzero(outs[0].terminated | outs[0].truncated)
            if autoreset == NEVER and len(over):
                for engine in (own, pure):
                    engine.draw(over)
            _same_engines(own, pure, where)


def _same_engines(own: Engine, pure: Engine, where: str) -> None:
    for name in ("instances", "plans", "masks", "streams", "samplers", "steps", "finished"):
        same = np.array_equal(getattr(own, name), getattr(pure, name))
        assert same, f"{where}: {name} differ"


def _same_outcomes(one: StepArrays, other: StepArrays, where: str) -> None:
    for name in StepArrays._fields:
        _same(getattr(one, name), getattr(other, name), f"{where}, {name}")


def _no_counterexample(wrong: Any, actions: NDArray[Any], claim: str) -> None:
    rows = np.flatnonzero(wrong)
    assert not len(rows), f"{claim} {actions[rows[0]]} (row {rows[0]}, {len(rows)} in all)"


def _figures(verdict: Verdict) -> dict[str, NDArray[Any]]:
    """Every array of a verdict by name."""
    named = {item.name: getattr(verdict, item.name) for item in fields(verdict)}
    details: dict[str, NDArray[Any]] = named.pop("details")
    return named | details
