"""Numba kernels of `plan_envs.sudoku.rules`: checker, legal edits and successors of plans.

`KernelDomain` hands them checked arrays, and allocates the arrays that they fill.
`rules` = (side, rows of a box, edit set, constraint mask?, tokens codec?); `peers` uint8
[cell, peer], ascending; a set of digits is an integer with bit digit - 1.
"""
# mypy: ignore-errors

from typing import Any, Final

import numpy as np
from numba import njit

from plan_envs.compiled.bits import borrowed, copy_bytes, folded, lowest, phi, popcount

FILL: Final = 0
OVERWRITE: Final = 1
FULL: Final = 2

TABLE_SIDE: Final = 9
"""Largest side whose sets of digits index `DIGITS`."""

DIGITS: Final = np.zeros((1 << TABLE_SIDE, 16), np.uint8)
"""DIGITS[set] lists the members of a set of digits (digit - 1), ascending, then zeros."""
for _set in range(len(DIGITS)):
    _members = [digit for digit in range(TABLE_SIDE) if _set >> digit & 1]
    DIGITS[_set, : len(_members)] = _members


@njit(cache=True)
def survey(plan, rules, peers, bits, lines, free):
    """`_survey`, compiled once for 9x9 with its sizes as constants and once for the other sides."""
    if rules[0] == 9:
        return _survey(plan, 9, 3, peers, bits, lines, free)
    return _survey(plan, rules[0], rules[1], peers, bits, lines, free)


@njit(cache=True, forceinline=True)
def _survey(plan, side, box_rows, peers, bits, lines, free):
    """free[cell] = digits that no cell of its row, column or box shows; (filled, violations, zero).

    For a blank cell these are its candidates, for a filled one the other digits that could stand
    there. `bits` [cell] and `lines` [4, side] are scratch.
    """
    box_cols = side // box_rows
    cells = side * side
    every = (1 << side) - 1
    rows, columns, boxes, line = lines[0], lines[1], lines[2], lines[3]
    filled = 0
    for cell in range(cells):
        bits[cell] = (np.uint32(1) << np.uint32(plan[cell])) >> np.uint32(1)
        filled += plan[cell] > 0
    columns[:] = 0
    distinct = 0
    for row in range(side):
        shown = np.uint16(0)
        for column in range(side):
            bit = bits[row * side + column]
            shown |= bit
            columns[column] |= bit
        rows[row] = shown
        distinct += popcount(shown)
    for column in range(side):
        distinct += popcount(columns[column])
    zero = 0
    for band in range(side // box_rows):
        for stack in range(box_rows):
            shown = np.uint16(0)
            for row in range(band * box_rows, (band + 1) * box_rows):
                for column in range(stack * box_cols, (stack + 1) * box_cols):
                    shown |= bits[row * side + column]
            boxes[stack] = shown
            distinct += popcount(shown)
            for column in range(stack * box_cols, (stack + 1) * box_cols):
                line[column] = columns[column] | shown
        for row in range(band * box_rows, (band + 1) * box_rows):
            shown = rows[row]
            for column in range(side):
                cell = row * side + column
                free[cell] = every & ~(shown | line[column])
    for cell in range(cells):
        zero += (free[cell] | bits[cell]) == 0
    violations = 0
    if distinct != 3 * filled:
        for cell in range(cells):
            if plan[cell] > 0:
                for k in range(peers.shape[1]):
                    peer = peers[cell, k]
                    if peer > cell and plan[peer] == plan[cell]:
                        violations += 1
    return filled, violations, zero


@njit(cache=True)
def keeps_givens(instance, plan):
    """Does the plan show every given of the instance?"""
    changed = 0
    for cell in range(len(plan)):
        changed += (instance[cell] > 0) & (plan[cell] != instance[cell])
    return changed == 0


@njit(cache=True, inline="always")
def legal_digits(given, value, free, rules):
    """Digits that may be written into a cell with this given, current value and `free` set."""
    every = (1 << rules[0]) - 1
    if given > 0 or (value > 0 and rules[2] == FILL):
        return 0
    if rules[3]:
        return np.int64(free)
    if value > 0:
        every &= ~(1 << (value - 1))
    return every


@njit(cache=True)
def write_mask(instance, plan, free, solved, rules, mask):
    """Write the legal edits of one plan over all of `mask`."""
    side, _, edits, _, tokens = rules
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    mask[:] = 0
    for cell in range(side * side):
        digits = legal_digits(instance[cell], plan[cell], free[cell], rules)
        at = cell * stride + shift
        for digit in range(side):
            mask[at + digit] = (digits >> digit) & 1
        if edits == FULL and plan[cell] > 0 and instance[cell] == 0:
            mask[at - 1] = 1
    if edits == FULL and not solved:
        mask[len(mask) - 1] = 1


@njit(cache=True)
def write_masks(instances, plans, rules, peers, masks):
    """Legal edits of every plan."""
    side = rules[0]
    bits = np.empty(side * side, np.uint16)
    lines = np.empty((4, side), np.uint16)
    free = np.empty(side * side, np.uint16)
    for i in range(len(plans)):
        filled, violations, _ = survey(plans[i], rules, peers, bits, lines, free)
        complete = filled == side * side and violations == 0
        solved = complete and keeps_givens(instances[i], plans[i])
        write_mask(instances[i], plans[i], free, solved, rules, masks[i])


@njit(cache=True, inline="always")
def decode(action, rules):
    """(cell, value) of an action: value 1..side writes, 0 erases, -1 is PAD, -2 STOP (cell -1)."""
    side = rules[0]
    if not rules[4]:
        return action // side, action % side + 1
    if action == side * side * (side + 2):
        return -1, -2
    return action // (side + 2), action % (side + 2) - 1


@njit(cache=True)
def is_edit_legal(instance, plan, cell, value, rules, peers):
    """May `value` (0 = erase) be put into `cell`? False for PAD and STOP."""
    edits, constraint = rules[2], rules[3]
    if value < 0 or instance[cell] > 0 or plan[cell] == value:
        return False
    if value == 0:
        return edits == FULL
    if plan[cell] > 0 and edits == FILL:
        return False
    if constraint:
        for k in range(peers.shape[1]):
            if plan[peers[cell, k]] == value:
                return False
    return True


@njit(cache=True)
def apply_edits(instances, plans, rules, peers, actions):
    """Carry out legal edits in place."""
    for i in range(len(plans)):
        cell, value = decode(actions[i], rules)
        if is_edit_legal(instances[i], plans[i], cell, value, rules, peers):
            plans[i, cell] = value


@njit(cache=True)
def check_plans(instances, plans, rules, peers, verdict):
    """Write the verdict of every plan."""
    score, violations, solved, dead = verdict
    side = rules[0]
    bits = np.empty(side * side, np.uint16)
    lines = np.empty((4, side), np.uint16)
    free = np.empty(side * side, np.uint16)
    for i in range(len(plans)):
        filled, pairs, zero = survey(plans[i], rules, peers, bits, lines, free)
        score[i] = filled - 2 * pairs - 5 * zero
        violations[i] = pairs
        complete = filled == side * side and pairs == 0
        solved[i] = complete and keeps_givens(instances[i], plans[i])
        dead[i] = rules[2] == FILL and (zero > 0 or pairs > 0) and not solved[i]


@njit(cache=True, nogil=True)
def count_successors(instances, plans, rules, peers, legal, facts, offsets):
    """First pass: legal digits, facts (filled, violations, zero, keeps givens), offsets."""
    side, edits, constraint = rules[0], rules[2], rules[3]
    cells = side * side
    bits = np.empty(cells, np.uint16)
    lines = np.empty((4, side), np.uint16)
    instances, plans, peers = borrowed(instances), borrowed(plans), borrowed(peers)
    legal, facts, offsets = borrowed(legal), borrowed(facts), borrowed(offsets)
    offsets[0] = 0
    count = 0
    for i in range(len(plans)):
        free = legal[i]
        instance = instances[i]
        plan = plans[i]
        filled, violations, zero = survey(plan, rules, peers, bits, lines, free)
        keeps = keeps_givens(instance, plan)
        facts[i, 0] = filled
        facts[i, 1] = violations
        facts[i, 2] = zero
        facts[i, 3] = keeps
        if edits == FILL and constraint:
            for cell in range(cells):
                digits = free[cell] if (instance[cell] | bits[cell]) == 0 else np.uint16(0)
                free[cell] = digits
                count += popcount(digits)
        else:
            for cell in range(cells):
                free[cell] = legal_digits(instance[cell], plan[cell], free[cell], rules)
                count += popcount(free[cell])
                count += edits == FULL and plan[cell] > 0 and instance[cell] == 0
            if edits == FULL and not (keeps and filled == cells and violations == 0):
                count += 1  # STOP
        offsets[i + 1] = count


def write_successors(
    instances: Any, plans: Any, rules: Any, peers: Any, legal: Any, facts: Any, *rest: Any
) -> None:
    """Second pass: the outcome of every legal edit; `rest` = (terms, offsets, outcomes)."""
    if rules[2] == FILL and rules[3]:
        fill_successors(plans, rules, peers, legal, facts, *rest)
    else:
        general_successors(instances, plans, rules, peers, legal, facts, *rest)


@njit(cache=True, nogil=True)
def fill_successors(plans, rules, peers, legal, facts, terms, offsets, outcomes):
    """`_fill_successors`, compiled with the sizes of 9x9 as constants and without."""
    side, tokens = rules[0], rules[4]
    if side == 9 and not tokens:
        _fill_successors(plans, (9, 9, 0), peers, legal, facts, terms, offsets, outcomes)
    else:
        sizes = (side, side + 2 if tokens else side, 2 if tokens else 0)
        _fill_successors(plans, sizes, peers, legal, facts, terms, offsets, outcomes)


@njit(cache=True, forceinline=True)
def _fill_successors(plans, sizes, peers, legal, facts, terms, offsets, outcomes):
    """Fill edits under the constraint mask, where violations stay as they are.

    A digit starves the peers whose only candidate it is, so most edits of a state share one
    outcome: it is streamed out first, then the peers of each naked single are corrected. The cell
    itself was no zero-candidate cell, it had a legal digit. Up to TABLE_SIDE actions are written
    behind the last one, into memory that is reserved for it. With unsigned indices numba omits its
    test for negative ones, which doubles the speed here.

    `sizes` = (side, actions of a cell, action of a cell's first digit).
    """
    side, stride, shift = sizes
    gamma, shaped, absorb = terms
    cells = side * side
    num_peers = 20 if side == 9 else peers.shape[1]
    plans, peers, legal, facts = borrowed(plans), borrowed(peers), borrowed(legal), borrowed(facts)
    offsets = borrowed(offsets)
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    peer_list = peers.reshape(-1)
    open_cells = np.empty(cells + 1, np.uint8)
    singles = np.empty(cells + 1, np.uint8)
    start = np.empty(cells, np.uint64)
    starved = np.zeros(cells * side, np.int8)
    hit = np.empty(num_peers + 1, np.uint8)
    scores = np.empty(num_peers + 1, np.float32)
    rewards = np.empty(num_peers + 1, np.float32)
    ends = np.empty(num_peers + 1, np.bool_)
    for i in range(np.uint64(len(plans))):
        filled, violations, zero = facts[i, 0] + 1, facts[i, 1], facts[i, 2]
        before = phi(filled - 1 - 2 * violations - 5 * zero, cells)
        first, last = offsets[i], offsets[i + np.uint64(1)]
        digits_of = legal[i]
        num_open = np.uint64(0)
        for cell in range(cells):
            open_cells[num_open] = cell
            num_open += np.uint64(digits_of[cell] != 0)
        num_singles = np.uint64(0)
        at = np.uint64(first)
        for k in range(num_open):
            cell = np.uint64(open_cells[k])
            digits = np.uint64(digits_of[cell])
            count = np.uint64(popcount(digits))
            start[cell] = at
            base = np.int32(cell * np.uint64(stride) + np.uint64(shift))
            if side <= TABLE_SIDE:  # always TABLE_SIDE stores: the next cell overwrites the excess
                for j in range(TABLE_SIDE):
                    action[at + np.uint64(j)] = base + np.int32(DIGITS[digits, j])
                at += count
            else:
                rest = np.int64(digits)
                while rest:
                    action[at] = base + np.int32(lowest(rest))
                    rest &= rest - 1
                    at += np.uint64(1)
            singles[num_singles] = cell
            num_singles += np.uint64(count == np.uint64(1))
        points = filled - 2 * violations - 5 * zero
        done = facts[i, 3] == 1 and filled == cells and violations == 0
        lost = (zero > 0 or violations > 0) and not done
        ended = done or (lost and absorb) or zero == cells - filled
        state[first:last] = i
        score[first:last] = points
        reward[first:last] = folded(done, ended, before, phi(points, cells), gamma, shaped)
        solved[first:last] = done
        dead[first:last] = lost
        terminated[first:last] = ended
        for more in range(1, min(np.int64(num_singles), num_peers) + 1):
            points = filled - 2 * violations - 5 * (zero + more)
            ends[more] = absorb or zero + more == cells - filled
            scores[more] = points
            after = phi(points, cells)
            rewards[more] = folded(False, ends[more], before, after, gamma, shaped)
        for j in range(num_singles):
            digit = np.uint64(lowest(np.int64(digits_of[singles[j]])))
            below = (np.uint64(1) << digit) - np.uint64(1)
            num_hit = np.uint64(0)
            row = np.uint64(singles[j]) * np.uint64(num_peers)
            for k in range(np.uint64(num_peers)):
                peer = np.uint64(peer_list[row + k])
                hit[num_hit] = peer
                num_hit += (np.uint64(digits_of[peer]) >> digit) & np.uint64(1)
            for k in range(num_hit):
                peer = np.uint64(hit[k])
                at = start[peer] + np.uint64(popcount(np.uint64(digits_of[peer]) & below))
                place = at - np.uint64(first)
                more = np.uint64(starved[place] + 1)
                starved[place] = more
                score[at] = scores[more]
                reward[at] = rewards[more]
                dead[at] = True
                terminated[at] = ends[more]
        starved[: last - first] = 0
        if len(plan):
            row = first
            for k in range(num_open):
                cell = open_cells[k]
                rest = np.int64(digits_of[cell])
                while rest:
                    copy_bytes(plan, row * cells, plans, np.int64(i) * cells, cells)
                    plan[row, cell] = lowest(rest) + 1
                    rest &= rest - 1
                    row += 1


@njit(cache=True)
def tally(plan, peers, side, counts, num_free):
    """Per (cell, digit) the peers that show it, and per cell the digits that none shows."""
    counts[:] = 0
    for cell in range(len(plan)):
        if plan[cell] > 0:
            for k in range(peers.shape[1]):
                counts[peers[cell, k] * side + plan[cell] - 1] += 1
    for cell in range(len(plan)):
        number = 0
        for digit in range(side):
            number += counts[cell * side + digit] == 0
        num_free[cell] = number


@njit(cache=True, nogil=True)
def general_successors(instances, plans, rules, peers, legal, facts, terms, offsets, outcomes):
    """Successors for any edit set and mask; `counts` turn each outcome into a difference.

    Replacing digit o of a cell by v: violations + counts[v] - counts[o]; zero-candidate cells
    - `freed` (blanks that only o keeps without candidate) + `starved` (blanks whose only candidate
    is v, unless o's removal gives them another).
    """
    side, _, edits, constraint, tokens = rules
    gamma, shaped, absorb = terms
    cells = side * side
    num_peers = peers.shape[1]
    instances, plans, peers = borrowed(instances), borrowed(plans), borrowed(peers)
    legal, facts, offsets = borrowed(legal), borrowed(facts), borrowed(offsets)
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    counts = np.empty(cells * side, np.int8)
    num_free = np.empty(cells, np.int8)
    starved = np.empty(cells * side, np.int8)
    freed = np.empty(cells, np.int8)
    for i in range(len(plans)):
        filled, violations, zero = facts[i, 0], facts[i, 1], facts[i, 2]
        before = phi(filled - 2 * violations - 5 * zero, cells)
        tally(plans[i], peers, side, counts, num_free)
        starve_and_free(plans[i], peers, side, counts, num_free, starved, freed)
        num_legal = offsets[i + 1] - offsets[i]
        at = offsets[i]
        for cell in range(cells):
            old = plans[i, cell]
            erasable = edits == FULL and old > 0 and instances[i, cell] == 0
            if legal[i, cell] == 0 and not erasable:
                continue
            base_filled, base_violations, base_zero = filled, violations, zero
            if old > 0:
                base_filled -= 1
                base_violations -= counts[cell * side + old - 1]
                base_zero -= freed[cell]
            elif num_free[cell] == 0:
                base_zero -= 1
            for value in range(0 if erasable else 1, side + 1):
                if value == 0:
                    new_filled, new_violations = base_filled, base_violations
                    new_zero = base_zero + (num_free[cell] == 0)
                elif (legal[i, cell] >> (value - 1)) & 1:
                    variable = cell * side + value - 1
                    new_filled = base_filled + 1
                    new_violations = base_violations + counts[variable]
                    new_zero = base_zero + starved[variable]
                else:
                    continue
                points = new_filled - 2 * new_violations - 5 * new_zero
                done = facts[i, 3] == 1 and new_filled == cells and new_violations == 0
                lost = edits == FILL and (new_zero > 0 or new_violations > 0) and not done
                stuck = False
                if edits == FILL:
                    stuck = new_filled == cells or (constraint and new_zero == cells - new_filled)
                elif edits == OVERWRITE and constraint and num_legal <= num_peers + 1:
                    stuck = not overwrite_left(
                        instances[i], plans[i], peers, side, counts, num_free, cell, value
                    )
                ended = done or (lost and absorb) or stuck
                state[at] = i
                action[at] = cell * stride + shift + value - 1
                score[at] = points
                reward[at] = folded(done, ended, before, phi(points, cells), gamma, shaped)
                solved[at] = done
                dead[at] = lost
                terminated[at] = ended
                if len(plan):
                    copy_bytes(plan, at * cells, plans, i * cells, cells)
                    plan[at, cell] = value
                at += 1
        if at < offsets[i + 1]:  # STOP
            state[at] = i
            action[at] = cells * stride
            score[at] = filled - 2 * violations - 5 * zero
            reward[at] = folded(False, True, before, before, gamma, shaped)
            solved[at] = False
            dead[at] = False
            terminated[at] = True
            if len(plan):
                copy_bytes(plan, at * cells, plans, i * cells, cells)


@njit(cache=True)
def starve_and_free(plan, peers, side, counts, num_free, starved, freed):
    """starved[cell, digit], freed[cell]: blanks that lose or gain their only candidate.

    Lose if the digit is put into the cell, gain if the cell's digit goes.
    """
    starved[:] = 0
    freed[:] = 0
    for cell in range(len(plan)):
        if plan[cell] > 0 or num_free[cell] > 1:
            continue
        single = -1
        for digit in range(side):
            if counts[cell * side + digit] == 0:
                single = digit
        for k in range(peers.shape[1]):
            peer = peers[cell, k]
            lone = plan[peer] > 0 and counts[cell * side + plan[peer] - 1] == 1
            if single < 0:
                freed[peer] += lone
            elif not lone:
                starved[peer * side + single] += 1


@njit(cache=True)
def overwrite_left(instance, plan, peers, side, counts, num_free, edited, value):
    """Overwriting under the constraint mask: is any edit legal once `edited` holds `value`?

    A cell can be changed when no peer shows some digit other than its own; `num_free` counts its
    own digit too.
    """
    if num_free[edited] - (counts[edited * side + value - 1] == 0) > 0:
        return True
    old = plan[edited]
    touched = 0  # place in the ascending list of peers of `edited`
    for cell in range(len(plan)):
        is_peer = touched < peers.shape[1] and peers[edited, touched] == cell
        touched += is_peer
        if instance[cell] > 0 or cell == edited:
            continue
        for digit in range(1, side + 1):
            count = np.int64(counts[cell * side + digit - 1])
            if is_peer:
                count += (digit == value) - (digit == old)
            if count == 0 and digit != plan[cell]:
                return True
    return False
