"""Numba kernels of `plan_envs.queens.rules`: checker, legal edits and successors of plans.

`KernelDomain` hands them checked arrays, and allocates the arrays that they fill.
`rules` = (n, full edits?, constraint mask?).
What a plan attacks fits into four integers, with one bit a line that holds a queen: `rows`,
`columns`, `diagonals` (column - row + n - 1) and `antidiagonals` (row + column); shifted by the row
(`free_squares`), they give the squares of a row that are not attacked. `counts` has the queens of
each line: n rows, n columns, 2n - 1 diagonals, 2n - 1 antidiagonals.
"""
# mypy: ignore-errors

import numpy as np
from numba import njit

from plan_envs.compiled.bits import borrowed, copy_bytes, folded, lowest, phi, popcount


@njit(cache=True)
def survey(plan, n, counts):
    """(queens, attacking pairs, rows, columns, diagonals, antidiagonals); fills `counts` [6n]."""
    counts[:] = 0
    queens, pairs, rows, columns, diagonals, antidiagonals = 0, 0, 0, 0, 0, 0
    cell = 0
    for row in range(n):
        for column in range(n):
            if plan[cell] > 0:
                one, other = column - row + n - 1, row + column
                pairs += attackers(counts, n, row, column)
                counts[row] += 1
                counts[n + column] += 1
                counts[2 * n + one] += 1
                counts[4 * n - 1 + other] += 1
                rows |= 1 << row
                columns |= 1 << column
                diagonals |= 1 << one
                antidiagonals |= 1 << other
                queens += 1
            cell += 1
    return queens, pairs, rows, columns, diagonals, antidiagonals


@njit(cache=True, forceinline=True)
def attackers(counts, n, row, column):
    """Queens in the four lines of a square; a queen on the square itself counts four times."""
    return (
        np.int64(counts[row])
        + counts[n + column]
        + counts[2 * n + column - row + n - 1]
        + counts[4 * n - 1 + row + column]
    )


@njit(cache=True, forceinline=True)
def free_squares(row, n, columns, diagonals, antidiagonals):
    """The squares of a row that no column or diagonal attacks, bit `column` of an integer."""
    attacked = columns | (diagonals >> (n - 1 - row)) | (antidiagonals >> row)
    return ((1 << n) - 1) & ~attacked


@njit(cache=True, forceinline=True)
def starved_rows(n, rows, columns, diagonals, antidiagonals):
    """Rows without a queen in which every square is attacked."""
    starved = 0
    for row in range(n):
        closed = (rows >> row) & 1
        starved += (closed | free_squares(row, n, columns, diagonals, antidiagonals)) == 0
    return starved


@njit(cache=True)
def keeps_givens(instance, plan):
    """Does the plan hold every queen of the instance?"""
    lost = 0
    for cell in range(len(plan)):
        lost += (instance[cell] > 0) & (plan[cell] == 0)
    return lost == 0


@njit(cache=True)
def check_plans(instances, plans, rules, verdict):
    """Write the verdict of every plan."""
    n, full, _ = rules
    score, violations, solved, dead = verdict
    counts = np.empty(6 * n, np.uint8)
    for i in range(len(plans)):
        queens, pairs, rows, columns, diagonals, antidiagonals = survey(plans[i], n, counts)
        starved = starved_rows(n, rows, columns, diagonals, antidiagonals)
        score[i] = queens - 2 * pairs - 5 * starved
        violations[i] = pairs
        solved[i] = queens == n and pairs == 0 and keeps_givens(instances[i], plans[i])
        dead[i] = not full and (pairs > 0 or starved > 0) and not solved[i]


@njit(cache=True)
def write_masks(instances, plans, rules, masks):
    """Write the legal edits of every plan."""
    n, full, constraint = rules
    counts = np.empty(6 * n, np.uint8)
    for i in range(len(plans)):
        facts = survey(plans[i], n, counts)
        write_mask(instances[i], plans[i], n, full, constraint, facts, masks[i])


@njit(cache=True)
def write_mask(instance, plan, n, full, constraint, facts, mask):
    """Write the legal edits of one plan over all of `mask`; `facts` is what `survey` found."""
    queens, pairs, rows, columns, diagonals, antidiagonals = facts
    cells = n * n
    for row in range(n):
        bits = free_squares(row, n, columns, diagonals, antidiagonals)
        if (rows >> row) & 1:
            bits = 0
        for column in range(n):
            cell = row * n + column
            blank = (plan[cell] | instance[cell]) == 0
            mask[cell] = blank and (not constraint or (bits >> column) & 1 == 1)
    if full:
        for cell in range(cells):
            mask[cells + cell] = plan[cell] > 0 and instance[cell] == 0
        mask[2 * cells] = not (queens == n and pairs == 0 and keeps_givens(instance, plan))


@njit(cache=True)
def is_attacked(plan, n, cell):
    """Does a queen elsewhere share a row, column or diagonal with the square?"""
    row, column = cell // n, cell % n
    found = 0
    for k in range(n):
        shift = k - row
        if k != column:
            found |= plan[row * n + k]
        if shift != 0:
            found |= plan[k * n + column]
            if 0 <= column + shift < n:
                found |= plan[k * n + column + shift]
            if 0 <= column - shift < n:
                found |= plan[k * n + column - shift]
    return found > 0


@njit(cache=True)
def apply_edits(instances, plans, rules, actions):
    """Carry out legal edits in place."""
    n, _, constraint = rules
    cells = n * n
    for i in range(len(plans)):
        cell = actions[i] % cells
        if actions[i] >= 2 * cells or instances[i, cell] > 0:  # STOP, or a given's square
            continue
        if actions[i] >= cells:
            plans[i, cell] = 0
        elif not (constraint and is_attacked(plans[i], n, cell)):
            plans[i, cell] = 1


@njit(cache=True)
def count_successors(instances, plans, rules, legal, offsets):
    """First pass: legal placements as bits, [batch, row], and offsets."""
    n, full, constraint = rules
    offsets[0] = 0
    counts = np.empty(6 * n, np.uint8)
    for i in range(len(plans)):
        instance, plan = instances[i], plans[i]
        queens, pairs, rows, columns, diagonals, antidiagonals = survey(plan, n, counts)
        keeps = keeps_givens(instance, plan)
        count = 0
        for row in range(n):
            bits = (1 << n) - 1
            if constraint:
                bits = free_squares(row, n, columns, diagonals, antidiagonals)
                if (rows >> row) & 1:
                    bits = 0
            if not (constraint and keeps):
                for column in range(n):
                    cell = row * n + column
                    if (plan[cell] | instance[cell]) > 0:
                        bits &= ~(1 << column)
            legal[i, row] = bits
            count += popcount(bits)
        if full:
            for cell in range(n * n):
                count += (plan[cell] > 0) & (instance[cell] == 0)
            count += not (keeps and queens == n and pairs == 0)  # STOP
        offsets[i + 1] = offsets[i] + count


@njit(cache=True)
def write_successors(instances, plans, rules, legal, terms, offsets, outcomes):
    """Second pass: every outcome as a difference.

    A new queen takes at most three free squares from a row, so only rows with one to three (the
    `tight` ones) can starve; while another row has four or more, an edit is left. Removals count
    the starved rows anew from the four integers.
    """
    n, full, constraint = rules
    gamma, shaped, absorb = terms
    instances, plans = borrowed(instances), borrowed(plans)
    legal, offsets = borrowed(legal), borrowed(offsets)
    state, action, plan, score, reward, solved, dead, terminated = borrowed(outcomes)
    cells = n * n
    counts = np.empty(6 * n, np.uint8)
    free = np.empty(n, np.int64)
    tight = np.empty(n, np.int64)
    for i in range(len(plans)):
        queens, pairs, rows, columns, diagonals, antidiagonals = survey(plans[i], n, counts)
        keeps = keeps_givens(instances[i], plans[i])
        starved, roomy, num_tight, num_legal = 0, 0, 0, 0
        for row in range(n):
            free[row] = -1
            num_legal += popcount(legal[i, row])
            if (rows >> row) & 1 == 0:
                free[row] = free_squares(row, n, columns, diagonals, antidiagonals)
                starved += free[row] == 0
                if popcount(free[row] & legal[i, row]) > 3:
                    roomy += 1
                elif free[row] != 0:
                    tight[num_tight] = row
                    num_tight += 1
        before = phi(queens - 2 * pairs - 5 * starved, n)
        at = offsets[i]
        if len(plan):
            for k in range(at, offsets[i + 1]):
                copy_bytes(plan, k * cells, plans, i * cells, cells)
        for row in range(n):
            bits = legal[i, row]
            others = roomy - (free[row] >= 0 and popcount(free[row] & bits) > 3)
            while bits:
                column = lowest(bits)
                bits &= bits - 1
                one, other = 1 << (column - row + n - 1), 1 << (row + column)
                more, left = 0, others > 0
                for k in range(num_tight):
                    mate = tight[k]
                    if mate != row:
                        rest = free[mate] & ~(
                            (1 << column) | (one >> (n - 1 - mate)) | (other >> mate)
                        )
                        more += rest == 0
                        left |= (rest & legal[i, mate]) != 0
                new_starved = starved + more - (free[row] == 0)
                new_pairs = pairs + attackers(counts, n, row, column)
                points = queens + 1 - 2 * new_pairs - 5 * new_starved
                done = keeps and queens + 1 == n and new_pairs == 0
                lost = not full and (new_pairs > 0 or new_starved > 0) and not done
                stuck = not full and (not left if constraint else num_legal == 1)
                ended = done or (lost and absorb) or stuck
                state[at] = i
                action[at] = row * n + column
                score[at] = points
                reward[at] = folded(done, ended, before, phi(points, n), gamma, shaped)
                solved[at] = done
                dead[at] = lost
                terminated[at] = ended
                if len(plan):
                    plan[at, row * n + column] = 1
                at += 1
        if not full:
            continue
        for cell in range(cells):
            if plans[i, cell] == 0 or instances[i, cell] > 0:
                continue
            row, column = cell // n, cell % n
            one, other = column - row + n - 1, row + column
            new_starved = starved_rows(
                n,
                rows & ~(np.int64(counts[row] == 1) << row),
                columns & ~(np.int64(counts[n + column] == 1) << column),
                diagonals & ~(np.int64(counts[2 * n + one] == 1) << one),
                antidiagonals & ~(np.int64(counts[4 * n - 1 + other] == 1) << other),
            )
            new_pairs = pairs - attackers(counts, n, row, column) + 4
            points = queens - 1 - 2 * new_pairs - 5 * new_starved
            done = keeps and queens - 1 == n and new_pairs == 0
            state[at] = i
            action[at] = cells + cell
            score[at] = points
            reward[at] = folded(done, done, before, phi(points, n), gamma, shaped)
            solved[at] = done
            dead[at] = False
            terminated[at] = done
            if len(plan):
                plan[at, cell] = 0
            at += 1
        if at < offsets[i + 1]:  # STOP
            state[at] = i
            action[at] = 2 * cells
            score[at] = queens - 2 * pairs - 5 * starved
            reward[at] = folded(False, True, before, before, gamma, shaped)
            solved[at] = False
            dead[at] = False
            terminated[at] = True
