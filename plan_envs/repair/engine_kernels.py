"""Numba kernels of `plan_envs.repair.engine`: a step runs the edited program on its visible tests.

The row of an environment (`plan_envs.compiled.packed_kernels`) keeps how many tests pass, so that
an edit runs its program once.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from numba import njit

from plan_envs.compiled import packed_kernels as packed
from plan_envs.compiled.bits import copy_bytes
from plan_envs.repair import kernels
from plan_envs.repair.language import new_stack

PASSED, PRESENT = range(packed.OWN, packed.OWN + 2)
CELLS, TESTS, MORE, TYPED = range(packed.OWN + 2, packed.OWN + 6)
HEAD_SIZE: Final = packed.OWN + 6
"""Integers of a row: visible tests that pass and that there are, the options of the domain, then
their number."""

fetch = packed.fetch_nothing


@njit(cache=True, forceinline=True)
def rules_of(head):
    """(cells, visible tests, hidden tests, typed?) of all rows."""
    return head[CELLS], head[TESTS], head[MORE], head[TYPED]


@njit(cache=True, forceinline=True)
def places(at, rules):
    """Where in `data` a row's instance, plan and legal edits begin, and where these end."""
    cells, tests, more, _ = rules
    instance = 8 * (at + HEAD_SIZE)
    plan = instance + cells * (1 + 2 * (tests + more))
    mask = plan + cells
    return instance, plan, mask, mask + kernels.num_actions(cells)


@njit(cache=True)
def survey(head, data, at, rules):
    """Write the legal edits of the plan, and how many tests it passes."""
    cells, tests, _, _ = rules
    o_instance, o_plan, o_mask, _ = places(at, rules)
    kernels.write_mask(data, o_plan, rules, data, o_mask)
    head[at + PASSED], head[at + PRESENT] = kernels.judge(
        data, o_plan, cells, data, o_instance + cells, tests, new_stack(cells)
    )


@njit(cache=True)
def load(head, data, at, tables, instance, plan):
    """Put one environment into a given state."""
    rules = (head[at + CELLS], head[at + TESTS], head[at + MORE], head[at + TYPED])
    o_instance, o_plan, _, _ = places(at, rules)
    for k in range(len(instance)):
        data[o_instance + k] = instance[k]
    for k in range(len(plan)):
        data[o_plan + k] = plan[k]
    head[at + packed.STEPS] = head[at + packed.FINISHED] = 0
    survey(head, data, at, rules)


draw = packed.draw_ready(load)


@njit(cache=True, forceinline=True)
def is_solved(head, at):
    """Every visible test passes, and there is one."""
    return 0 < head[at + PRESENT] == head[at + PASSED]


@njit(cache=True, forceinline=True)
def figures(head, data, at, rules):
    """(potential, score, violations, solved) of the plan; rounded as the verdict rounds it."""
    passed, present = head[at + PASSED], head[at + PRESENT]
    score = np.float64(kernels.points(passed, present))
    return score, score, present - passed, is_solved(head, at)


@njit(cache=True, forceinline=True)
def move(head, data, at, rules, action):
    """(ended, solved) of a legal action, carried out."""
    cells = rules[0]
    stops = action == kernels.num_actions(cells) - 1
    if not stops:
        kernels.apply_edit(data, places(at, rules)[1], cells, action)
        survey(head, data, at, rules)
    solved = is_solved(head, at)
    return stops or solved, solved


@njit(cache=True, forceinline=True)
def show(places, head, data, at, rules, resets, instance, row):
    """Write what learners see of an instance: all but its hidden tests, which lie last."""
    observed = instance.shape[1]
    copy_bytes(instance, row * observed, data, places(at, rules)[0], observed)


@njit(cache=True)
def load_all(head, data, index, tables, instances, plans):
    """Put environments into given states and compute their caches."""
    packed.load_rows(load, head, data, index, tables, instances, plans)


@njit(cache=True)
def draw_all(head, data, index, resets):
    """Reset environments to instances of the pool."""
    packed.draw_rows(draw, rules_of(head), head, data, index, resets)


@njit(cache=True)
def step_one(head, action):
    """Step the only environment; see `plan_envs.engine.Engine.step_one`."""
    return packed.step_single(places, move, figures, rules_of(head), head, action)


@njit(cache=True, nogil=True)
def step_all(head, data, call):
    """Step every environment; `packed_kernels.step_rows` says what is in `call`."""
    rules = rules_of(head)
    return packed.step_rows(places, move, figures, draw, show, fetch, rules, head, data, call)


@njit(cache=True, nogil=True)
def observe_all(head, data, resets, out):
    """Write the current states of all environments into `out`, with no reward and no flags."""
    packed.observe_rows(places, figures, show, rules_of(head), head, data, resets, out)


sample_all = packed.sample_all
