"""Numba kernels that all packed engines share: refusing, stepping, resetting, observing, sampling.

Everything that an environment knows lies in one row, which `plan_envs.compiled.packed_engine` lays
out: its integers (those named here, then the domain's own), then as bytes its instance, plan and
legal edits. The rows of all environments are one flat vector, `head` as int64 and `data` as int8;
`at` is where a row begins in `head`. What a domain does differently, it hands over as functions,
which numba resolves when it compiles the kernels of that domain:

- `places(at, rules)` = where in `data` a row's instance, plan and legal edits begin, and the end;
- `move(head, data, at, rules, action)` = (ended, solved) of a legal action, carried out;
- `figures(head, data, at, rules)` = (potential, score, violations, solved) of the plan;
- `draw(head, data, at, rules, resets)` resets an environment to an instance of the pool;
- `show(places, head, data, at, rules, resets, instance, row)` writes what learners see of the
  instance.

`rules` are the domain's options as a tuple; constants in it are constants in what numba compiles.
`resets` is a tuple of what a reset needs. Kernels that take functions are compiled into those of
the domains, whose machine code numba keeps; their own it could not find again.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import (
    GAMMA,
    below,
    borrowed,
    copy_bytes,
    count_ones,
    folded,
    next_word,
    ones_of,
    place_of_one,
    prefetch,
    word_at,
    word_before,
)
from plan_envs.engine import FINISHED as REASON_FINISHED
from plan_envs.engine import ILLEGAL, NEVER, NEXT_STEP, OUT_OF_RANGE, SAME_STEP
from plan_envs.instances import mix

STREAM, SAMPLER, STEPS, FINISHED, DISCOUNT, LIMIT = range(6)
SHAPED, ABSORB, REFUSE, ACTIONS, WIDTH, MASK = range(6, 12)
"""Integers at the beginning of a row: random streams, counters, the engine's options (from DISCOUNT
on; that one is the bits of a float), then the row's number of actions, its size in integers and the
byte at which its legal edits begin."""
OWN = 12
"""The first integer of a row that belongs to the domain."""


@njit(cache=True)
def refuse(head, data, actions, autoreset):
    """(environment, reason) of the first action that must not be taken; reason 0 when all may."""
    num_actions = head[ACTIONS]
    outside = 0
    for env in range(len(actions)):
        outside |= not 0 <= actions[env] < num_actions
    if outside == 0 and autoreset != NEVER and not head[REFUSE]:
        return 0, 0
    for env in range(len(actions)):
        at = env * head[WIDTH]
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            continue
        if head[at + FINISHED] and autoreset == NEVER:
            return env, REASON_FINISHED
        if not 0 <= actions[env] < num_actions:
            return env, OUT_OF_RANGE
        if head[REFUSE] and data[8 * at + head[MASK] + actions[env]] == 0:
            return env, ILLEGAL
    return 0, 0


@njit(forceinline=True)
def take(places, move, figures, head, data, at, rules, action):
    """One action that is in range: (reward, terminated, truncated, illegal).

    Where an episode ends without a legal edit, all are shown as legal (`plan_envs.engine.Engine`).
    """
    before, _, _, _ = figures(head, data, at, rules)
    illegal = data[places(at, rules)[2] + action] == 0
    ended, solved = False, False
    if not illegal:
        ended, solved = move(head, data, at, rules, action)
    if ended:
        _, _, first, end = places(at, rules)
        if count_ones(data, first, end) == 0:
            data[first:end] = 1
    after, _, _, _ = figures(head, data, at, rules)
    gamma = head.view(np.float64)[DISCOUNT]
    worth = folded(solved, ended, before, after, gamma, head[SHAPED] == 1)
    head[at + STEPS] += 1
    timeout = 0 < head[LIMIT] <= head[at + STEPS]
    head[at + FINISHED] = ended or timeout
    return worth, ended, timeout, illegal


@njit(forceinline=True)
def step_single(places, move, figures, rules, head, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    head = borrowed(head)
    data = borrowed(head.view(np.int8))
    reason = 0
    if head[FINISHED] == 1:
        reason = REASON_FINISHED
    elif not 0 <= action < head[ACTIONS]:
        reason = OUT_OF_RANGE
    elif head[REFUSE] == 1 and data[head[MASK] + action] == 0:
        reason = ILLEGAL
    if reason:
        return 0.0, False, False, 1 + reason, 0.0, 0, False
    worth, ended, timeout, illegal = take(places, move, figures, head, data, 0, rules, action)
    _, score, violations, solved = figures(head, data, 0, rules)
    code = 1 if illegal else 0
    return worth, ended, timeout, code, np.float64(score), np.int64(violations), solved


@njit(forceinline=True)
def step_rows(
    places,
    move,
    figures,
    draw,
    show,
    fetch,
    rules,
    head,
    data,
    call,
):
    """Step every environment; no action is one that `refuse` names.

    `call` = (resets, actions, autoreset, shown, out, index, finals). `shown` says that `out` holds
    the instances already, but for environments that are reset now. Under SAME_STEP, final states
    are written into the first rows of `finals`, and their environments into `index`.
    `fetch(head, data, at, autoreset, resets)` asks for the memory that the next environments need.

    Returns the number of final states.
    """
    # Tuples are unpacked before the loop, because taking an array out of one counts a reference.
    head, data = borrowed(head), borrowed(data)
    resets, actions, autoreset, shown, out, index, finals = borrowed(call)
    instance, plan, mask, reward, ended, timeout, score, wrong, solved, illegal = out
    instance_, plan_, mask_, reward_, ended_, timeout_, score_, wrong_, solved_, illegal_ = finals
    num_final = 0
    width, num_envs = head[WIDTH], len(actions)
    for env in range(num_envs):
        at = env * width
        if env + 2 < num_envs:
            fetch(head, data, at, autoreset, resets)
        fresh = not shown
        if head[at + FINISHED] and autoreset == NEXT_STEP:
            draw(head, data, at, rules, resets)
            fresh = True
            reward[env] = 0.0
            ended[env] = timeout[env] = illegal[env] = False
        else:
            worth, end, late, refused = take(
                places, move, figures, head, data, at, rules, actions[env]
            )
            reward[env] = worth
            ended[env] = end
            timeout[env] = late
            illegal[env] = refused
            if (end or late) and autoreset == SAME_STEP:
                index[num_final] = env
                reward_[num_final] = worth
                ended_[num_final] = end
                timeout_[num_final] = late
                illegal_[num_final] = refused
                show(places, head, data, at, rules, resets, instance_, num_final)
                observe(
                    places,
                    figures,
                    head,
                    data,
                    at,
                    rules,
                    plan_,
                    mask_,
                    score_,
                    wrong_,
                    solved_,
                    num_final,
                )
                num_final += 1
                illegal[env] = False
                draw(head, data, at, rules, resets)
                fresh = True
        if fresh:
            show(places, head, data, at, rules, resets, instance, env)
        observe(places, figures, head, data, at, rules, plan, mask, score, wrong, solved, env)
    return num_final


@njit(forceinline=True)
def observe_rows(places, figures, show, rules, head, data, resets, out):
    """Write the current states of all environments into `out`, with no reward and no flags."""
    head, data, resets = borrowed(head), borrowed(data), borrowed(resets)
    instance, plan, mask, reward, ended, timeout, score, wrong, solved, illegal = borrowed(out)
    for env in range(len(reward)):
        at = env * head[WIDTH]
        show(places, head, data, at, rules, resets, instance, env)
        observe(places, figures, head, data, at, rules, plan, mask, score, wrong, solved, env)
        reward[env] = 0.0
        ended[env] = timeout[env] = illegal[env] = False


@njit(forceinline=True)
def observe(places, figures, head, data, at, rules, plan, mask, score, wrong, solved, row):
    """Write the current state of an environment, but its instance, into a row of the arrays."""
    _, o_plan, o_mask, end = places(at, rules)
    cells, num_actions = o_mask - o_plan, end - o_mask
    copy_bytes(plan, row * cells, data, o_plan, cells)
    copy_bytes(mask, row * num_actions, data, o_mask, num_actions)
    _, score[row], wrong[row], solved[row] = figures(head, data, at, rules)


@njit(forceinline=True)
def show_packed(places, head, data, at, rules, resets, instance, row):
    """Write an instance that lies in the row of its environment, all of which learners see."""
    o_instance, o_plan, _, _ = places(at, rules)
    copy_bytes(instance, row * (o_plan - o_instance), data, o_instance, o_plan - o_instance)


@njit(forceinline=True)
def load_rows(load, head, data, index, tables, instances, plans):
    """Put environments into given states and compute their caches, with the domain's `load`."""
    for i in range(len(index)):
        load(head, data, index[i] * head[WIDTH], tables, instances[i], plans[i])


@njit(forceinline=True)
def draw_rows(draw, rules, head, data, index, resets):
    """Reset environments to instances of the pool."""
    head, data, resets = borrowed(head), borrowed(data), borrowed(resets)
    for i in range(len(index)):
        draw(head, data, index[i] * head[WIDTH], rules, resets)


def draw_ready(load):
    """`draw` from a pool of `plan_envs.compiled.packed_engine.Pool`, with the domain's `load`."""

    @njit(forceinline=True)
    def draw(head, data, at, rules, resets):
        tables, instances, starts, ready = resets
        chosen = below(next_word(head, at + STREAM), len(instances))
        width = head[at + WIDTH]
        if len(ready):
            first = chosen * width + STEPS
            copy_bytes(head, 8 * (at + STEPS), ready, 8 * first, 8 * (width - STEPS))
        else:
            load(head, data, at, tables, instances[chosen], starts[chosen])

    return draw


@njit(forceinline=True)
def fetch_ready(head, data, at, autoreset, resets):
    """Ask for the row after the next one, and for what the next one is reset to, if it will be.

    It pays where rows are short and touched in many places.
    """
    _, instances, _, ready = resets
    width = head[WIDTH]
    for line in range(0, 8 * width, 64):
        prefetch(data, 8 * (at + 2 * width) + line)
    at += width
    if head[at + FINISHED] and autoreset == NEXT_STEP:
        state = np.uint64(head[at + STREAM]) + GAMMA
        chosen = below(mix(state), len(instances))
        for line in range(0, 8 * width, 64):
            prefetch(ready, 8 * chosen * width + line)


@njit(forceinline=True)
def fetch_nothing(head, data, at, autoreset, resets):
    """Leave it to the processor, which finds long rows by itself."""


@njit(cache=True, nogil=True)
def sample_all(head, data, actions):
    """Draw a legal action for every environment, uniformly; -1 where the episode is over."""
    head, data = borrowed(head), borrowed(data)
    num_actions = head[ACTIONS]
    up_to = np.zeros((num_actions + 63) // 64, np.int64)  # legal actions in blocks of 64, summed
    for env in range(len(actions)):
        at = env * head[WIDTH]
        mask = 8 * at + head[MASK]
        end = mask + num_actions
        total = 0
        for block in range(len(up_to)):
            first = mask + 64 * block
            if first + 64 <= end:
                for byte in range(first, first + 64, 8):
                    total += ones_of(word_at(data, byte))
            else:
                for byte in range(first, end, 8):
                    total += ones_of(word_before(data, byte, end))
            up_to[block] = total
        rank = below(next_word(head, at + SAMPLER), max(total, 1))
        if total == 0 or head[at + FINISHED]:
            actions[env] = -1
            continue
        block = 0  # without branches, which nobody could predict
        for other in range(len(up_to) - 1):
            block += up_to[other] <= rank
        if block > 0:
            rank -= up_to[block - 1]
        first, seen, before = mask + 64 * block, 0, 0
        place = first
        for byte in range(first, min(first + 56, end - 8), 8):
            seen += ones_of(word_at(data, byte))
            place += 8 * (seen <= rank)
            before = seen if seen <= rank else before
        word = word_before(data, place, end)
        actions[env] = place - mask + place_of_one(word, rank - before)
