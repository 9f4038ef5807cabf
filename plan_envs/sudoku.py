"""Sudoku of side 4, 6, 9 and 16 as a plan-editing MDP (UPI-TRM Sec. 2): rules, checker, legal edits, successors.

An instance is a board of givens, a plan is that board with more cells filled; int8, 0 = blank, else the digit.
`Sudoku` fulfils `plan_envs.domain.PlanDomain`: pure functions over batches, each one numba call. The shells in
`gym_envs` and the learners stand on it; instances come from `plan_envs.instances`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from plan_envs.domain import DeadEnd, DomainSpec, Int8Array, RewardKind, Successors, Verdict

Codec = Literal["digits", "tokens"]
EditSet = Literal["fill", "overwrite", "full"]
MaskRule = Literal["givens", "constraint"]

BOX_SHAPES: Final = {4: (2, 2), 6: (2, 3), 9: (3, 3), 16: (4, 4)}
"""Side -> rows and columns of a box."""

KIND_NAMES: Final = ("write", "erase", "pad", "stop")
"""Kinds of actions, in the order of `DomainSpec.action_kind`."""

_FILL, _OVERWRITE, _FULL = 0, 1, 2
_EDIT_SETS: Final = {"fill": _FILL, "overwrite": _OVERWRITE, "full": _FULL}


@dataclass(frozen=True)
class Sudoku:
    """Sudoku as pure functions over batches; see `PlanDomain` for what each function promises.

    Score = filled cells - 2 x violations - 5 x zero-candidate cells. A violation is an unordered pair of equal
    digits that share a row, column or box, counted once; a zero-candidate cell is a blank whose peers show every
    digit. A plan is dead only under fill edits, where neither fault can ever be undone.

    Actions, `digits` codec: cell * side + digit - 1. `tokens` codec: cell * (side + 2) + token with token 0 = PAD
    (never legal), 1 = blank, digit + 1; the last action is STOP.

    Args:
        side: 4 (boxes of 2 x 2), 6 (2 rows x 3 columns), 9 or 16.
        codec: "digits" or "tokens"; None = tokens for side 4, digits otherwise.
        edits: "fill" (blank cells), "overwrite" (any cell that is not given), "full" (overwrite, erase and STOP; needs
            tokens); None = full for side 4, fill otherwise.
        mask: "givens" (every edit of the set that changes the plan) or "constraint" (of these, digits that no peer
            shows); None = givens for side 4, constraint otherwise.

    Raises:
        ValueError: for an unknown side or option, or full edits with the digits codec.
    """

    side: int = 9
    codec: Codec | None = None
    edits: EditSet | None = None
    mask: MaskRule | None = None

    def __post_init__(self) -> None:
        """Fill in the defaults of the side and check the options."""
        if self.side not in BOX_SHAPES:
            raise ValueError(f"side must be one of {sorted(BOX_SHAPES)}, got {self.side!r}")
        small = self.side == 4
        defaults = {
            "codec": "tokens" if small else "digits",
            "edits": "full" if small and self.codec != "digits" else "fill",
            "mask": "givens" if small else "constraint",
        }
        choices = {
            "codec": ("digits", "tokens"),
            "edits": tuple(_EDIT_SETS),
            "mask": ("givens", "constraint"),
        }
        for field, allowed in choices.items():
            value = getattr(self, field)
            if value is None:
                object.__setattr__(self, field, defaults[field])
            elif value not in allowed:
                raise ValueError(f"{field} must be one of {list(allowed)}, got {value!r}")
        if self.edits == "full" and self.codec != "tokens":
            raise ValueError("edits='full' needs codec='tokens', got codec='digits'")

    @property
    def spec(self) -> DomainSpec:
        """Sizes, action table and the constraint groups cell, row, column and box."""
        assert self.codec is not None
        return _spec(self.side, self.codec)

    def initial(self, instances: Int8Array) -> Int8Array:
        """The givens themselves, copied; shape [batch, cell]."""
        return self._boards("instances", instances).copy()

    def action_mask(self, instances: Int8Array, plans: Int8Array) -> Int8Array:
        """Legal edits, int8 [batch, action]."""
        instances, plans = self._pair(instances, plans)
        masks = np.zeros((len(plans), self.spec.num_actions), np.int8)
        _masks(instances, plans, self._rules, *_geometry(self.side), masks)
        return masks

    def edit(self, instances: Int8Array, plans: Int8Array, actions: NDArray[np.int32]) -> Int8Array:
        """The plans after one edit a row; illegal actions and STOP leave their row unchanged."""
        instances, plans = self._pair(instances, plans)
        edited = plans.copy()
        _edit(
            instances,
            edited,
            self._actions(actions, len(plans)),
            self._rules,
            *_geometry(self.side),
        )
        return edited

    def check(self, instances: Int8Array, plans: Int8Array) -> Verdict:
        """Score the plans; see the class docstring for the rules."""
        instances, plans = self._pair(instances, plans)
        batch = len(plans)
        verdict = Verdict(
            score=np.empty(batch, np.float32),
            violations=np.empty(batch, np.int32),
            solved=np.empty(batch, np.bool_),
            dead=np.empty(batch, np.bool_),
        )
        _check(
            instances,
            plans,
            self._rules,
            *_geometry(self.side),
            verdict.score,
            verdict.violations,
            verdict.solved,
            verdict.dead,
        )
        return verdict

    def successors(
        self,
        instances: Int8Array,
        plans: Int8Array,
        *,
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        with_plans: bool = True,
    ) -> Successors:
        """Every legal edit of every plan with its outcome; no edit is simulated, all scores are differences."""
        instances, plans = self._pair(instances, plans)
        rules = self._rules
        offsets = np.zeros(len(plans) + 1, np.int64)
        legal = np.empty(plans.shape, np.uint32)
        facts = np.empty((len(plans), 5), np.int32)
        _count_successors(instances, plans, rules, *_geometry(self.side), legal, facts, offsets)
        total = int(offsets[-1])
        found = Successors(
            offsets=offsets,
            state=np.empty(total, np.int32),
            action=np.empty(total, np.int32),
            plan=np.empty((total if with_plans else 0, plans.shape[1]), np.int8),
            score=np.empty(total, np.float32),
            reward=np.empty(total, np.float32),
            solved=np.empty(total, np.bool_),
            dead=np.empty(total, np.bool_),
            terminated=np.empty(total, np.bool_),
        )
        fill = (
            _fill_constraint_successors if rules[1] == _FILL and rules[2] else _general_successors
        )
        fill(
            instances,
            plans,
            rules,
            *_geometry(self.side),
            legal,
            facts,
            (float(gamma), _is_shaped(reward), _absorbs(dead_end)),
            offsets,
            found.state,
            found.action,
            found.plan,
            found.score,
            found.reward,
            found.solved,
            found.dead,
            found.terminated,
        )
        return found

    def is_stop(self, actions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """True for STOP; the digits codec has none."""
        actions = np.asarray(actions)
        if self.codec == "digits":
            return np.zeros(actions.shape, np.bool_)
        stopped: NDArray[np.bool_] = actions == self.spec.num_actions - 1
        return stopped

    @property
    def _rules(self) -> tuple[int, int, bool, bool]:
        """What kernels need to know: side, edit set, constraint mask?, tokens codec?"""
        assert self.edits is not None
        return self.side, _EDIT_SETS[self.edits], self.mask == "constraint", self.codec == "tokens"

    def _boards(self, name: str, boards: Int8Array) -> Int8Array:
        """Check shape, dtype and range; C-contiguous and writable, so that each kernel compiles once."""
        boards = np.asarray(boards)
        if boards.ndim != 2 or boards.shape[1] != self.side**2 or boards.dtype != np.int8:
            raise ValueError(
                f"{name} must be int8 of shape [batch, {self.side**2}], got {boards.dtype} {list(boards.shape)}"
            )
        if boards.size and boards.view(np.uint8).max() > self.side:
            wrong = boards[boards.view(np.uint8) > self.side][0]
            raise ValueError(f"{name} must hold 0..{self.side}, got {wrong}")
        return np.require(boards, requirements=("C", "W"))

    def _pair(self, instances: Int8Array, plans: Int8Array) -> tuple[Int8Array, Int8Array]:
        if len(instances) != len(plans):
            raise ValueError(f"got {len(instances)} instances but {len(plans)} plans")
        return self._boards("instances", instances), self._boards("plans", plans)

    def _actions(self, actions: NDArray[np.int32], batch: int) -> NDArray[np.int32]:
        actions = np.require(actions, np.int32, ("C", "W"))
        if actions.shape != (batch,):
            raise ValueError(f"actions must have shape [{batch}], got {list(actions.shape)}")
        if batch and not 0 <= actions.min() <= actions.max() < self.spec.num_actions:
            wrong = actions[(actions < 0) | (actions >= self.spec.num_actions)][0]
            raise ValueError(f"actions must lie in 0..{self.spec.num_actions - 1}, got {wrong}")
        return actions


def _is_shaped(reward: RewardKind) -> bool:
    if reward not in ("shaped", "sparse"):
        raise ValueError(f"reward must be 'shaped' or 'sparse', got {reward!r}")
    return reward == "shaped"


def _absorbs(dead_end: DeadEnd) -> bool:
    if dead_end not in ("absorb", "continue"):
        raise ValueError(f"dead_end must be 'absorb' or 'continue', got {dead_end!r}")
    return dead_end == "absorb"


@lru_cache(maxsize=None)
def _geometry(side: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Units [cell, 3] (row, side + column, 2 side + box) and peers [cell, peer], ascending."""
    box_rows, box_cols = BOX_SHAPES[side]
    row, col = np.divmod(np.arange(side * side, dtype=np.int32), np.int32(side))
    box = row // box_rows * (side // box_cols) + col // box_cols
    units = np.stack([row, side + col, 2 * side + box], axis=1).astype(np.int32)
    related = (units[:, None, :] == units[None, :, :]).any(axis=-1)
    np.fill_diagonal(related, False)
    peers = np.stack([np.flatnonzero(mates) for mates in related]).astype(np.int32)
    return units, peers


@lru_cache(maxsize=None)
def _spec(side: int, codec: Codec) -> DomainSpec:
    units, _ = _geometry(side)
    cells = side * side
    first = np.arange(side, dtype=np.int32)
    if codec == "digits":
        cell = np.repeat(np.arange(cells, dtype=np.int32), side)
        value = np.tile(first + 1, cells)
        kind = np.zeros(cells * side, np.int32)
    else:
        cell = np.append(np.repeat(np.arange(cells, dtype=np.int32), side + 2), -1)
        value = np.append(np.tile(np.concatenate(([0, 0], first + 1)), cells), 0)
        kind = np.append(np.tile(np.array([2, 1] + [0] * side), cells), 3)
    labels = {
        "cell": np.arange(cells),
        "row": units[:, 0],
        "column": units[:, 1] - side,
        "box": units[:, 2] - 2 * side,
    }
    groups = {
        name: (
            np.repeat(label, side) if name == "cell" else np.add.outer(label * side, first).ravel()
        )
        for name, label in labels.items()
    }
    spec = DomainSpec(
        name=f"sudoku{side}x{side}",
        num_cells=cells,
        num_values=side,
        grid_shape=(side, side),
        num_actions=len(cell),
        horizon=16 if side == 4 else cells,
        max_score=float(cells),
        action_cell=cell.astype(np.int32),
        action_value=value.astype(np.int32),
        action_kind=kind.astype(np.int32),
        kind_names=KIND_NAMES,
        groups={name: label.astype(np.int32) for name, label in groups.items()},
    )
    for table in (spec.action_cell, spec.action_value, spec.action_kind, *spec.groups.values()):
        table.flags.writeable = False
    return spec


# Kernels. `rules` = (side, edit set, constraint mask?, tokens codec?), `units` and `peers` as in `_geometry`;
# a set of digits is a uint32 with bit digit - 1.


@njit(cache=True, inline="always")
def _popcount(bits):
    bits = np.uint32(bits)
    bits = bits - ((bits >> np.uint32(1)) & np.uint32(0x55555555))
    bits = (bits & np.uint32(0x33333333)) + ((bits >> np.uint32(2)) & np.uint32(0x33333333))
    bits = (bits + (bits >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.int64(np.uint32(bits * np.uint32(0x01010101)) >> np.uint32(24))


@njit(cache=True)
def _survey(plan, units, peers, shown, free):
    """free[cell] = digits that no cell of its units shows; returns (filled, violations, zero-candidate cells).

    `shown` is scratch, uint32 [3 side]. For a blank cell `free` are its candidates; for a filled one, the other
    digits that could stand there.
    """
    side = len(shown) // 3
    every = np.uint32((1 << side) - 1)
    shown[:] = 0
    filled = 0
    clash = np.uint32(0)
    for cell in range(len(plan)):
        if plan[cell] > 0:
            bit = np.uint32(1) << np.uint32(plan[cell] - 1)
            row, col, box = units[cell, 0], units[cell, 1], units[cell, 2]
            clash |= (shown[row] | shown[col] | shown[box]) & bit
            shown[row] |= bit
            shown[col] |= bit
            shown[box] |= bit
            filled += 1
    zero = 0
    for cell in range(len(plan)):
        digits = every & ~(shown[units[cell, 0]] | shown[units[cell, 1]] | shown[units[cell, 2]])
        free[cell] = digits
        if plan[cell] == 0 and digits == 0:
            zero += 1
    violations = 0
    if clash:
        for cell in range(len(plan)):
            if plan[cell] > 0:
                for i in range(peers.shape[1]):
                    peer = peers[cell, i]
                    if peer > cell and plan[peer] == plan[cell]:
                        violations += 1
    return filled, violations, zero


@njit(cache=True)
def _keeps(instance, plan):
    for cell in range(len(plan)):
        if instance[cell] > 0 and plan[cell] != instance[cell]:
            return False
    return True


@njit(cache=True, inline="always")
def _legal_digits(given, value, free, rules):
    """Digits that may be written into a cell with this given, current value and `free` set."""
    side, edits, constraint, _ = rules
    if given > 0 or (value > 0 and edits == 0):
        return np.uint32(0)
    if constraint:
        return np.uint32(free)
    every = np.uint32((1 << side) - 1)
    if value > 0:
        every &= ~(np.uint32(1) << np.uint32(value - 1))
    return every


@njit(cache=True)
def _mask(instance, plan, free, solved, rules, mask):
    """Write the legal edits of one plan; `mask` arrives as zeros."""
    side, edits, _, tokens = rules
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    for cell in range(len(plan)):
        digits = _legal_digits(instance[cell], plan[cell], free[cell], rules)
        at = cell * stride + shift
        for digit in range(side):
            mask[at + digit] = (digits >> np.uint32(digit)) & np.uint32(1)
        if edits == 2 and plan[cell] > 0 and instance[cell] == 0:
            mask[at - 1] = 1
    if edits == 2 and not solved:
        mask[len(mask) - 1] = 1


@njit(cache=True)
def _masks(instances, plans, rules, units, peers, masks):
    side = rules[0]
    shown = np.empty(3 * side, np.uint32)
    free = np.empty(side * side, np.uint32)
    for i in range(len(plans)):
        filled, violations, _ = _survey(plans[i], units, peers, shown, free)
        solved = filled == side * side and violations == 0 and _keeps(instances[i], plans[i])
        _mask(instances[i], plans[i], free, solved, rules, masks[i])


@njit(cache=True)
def _decode(action, rules):
    """(cell, value) of an action: value 1..side writes, 0 erases, -1 is PAD, -2 is STOP (cell -1)."""
    side, _, _, tokens = rules
    if not tokens:
        return action // side, action % side + 1
    if action == side * side * (side + 2):
        return -1, -2
    return action // (side + 2), action % (side + 2) - 1


@njit(cache=True)
def _is_edit_legal(instance, plan, cell, value, rules, peers):
    """May `value` (0 = erase) be put into `cell`? PAD and STOP are for the caller to tell."""
    _, edits, constraint, _ = rules
    if value < 0 or instance[cell] > 0 or plan[cell] == value:
        return False
    if value == 0:
        return edits == 2
    if plan[cell] > 0 and edits == 0:
        return False
    if constraint:
        for i in range(peers.shape[1]):
            if plan[peers[cell, i]] == value:
                return False
    return True


@njit(cache=True)
def _edit(instances, plans, actions, rules, units, peers):
    for i in range(len(plans)):
        cell, value = _decode(actions[i], rules)
        if _is_edit_legal(instances[i], plans[i], cell, value, rules, peers):
            plans[i, cell] = value


@njit(cache=True)
def _check(instances, plans, rules, units, peers, score, violations, solved, dead):
    side = rules[0]
    shown = np.empty(3 * side, np.uint32)
    free = np.empty(side * side, np.uint32)
    for i in range(len(plans)):
        filled, pairs, zero = _survey(plans[i], units, peers, shown, free)
        score[i] = filled - 2 * pairs - 5 * zero
        violations[i] = pairs
        solved[i] = filled == side * side and pairs == 0 and _keeps(instances[i], plans[i])
        dead[i] = rules[1] == 0 and (zero > 0 or pairs > 0) and not solved[i]


@njit(cache=True)
def _count_successors(instances, plans, rules, units, peers, legal, facts, offsets):
    """First pass: legal digits of each cell, facts (filled, violations, zero, keeps givens, solved), offsets."""
    side, edits = rules[0], rules[1]
    shown = np.empty(3 * side, np.uint32)
    for i in range(len(plans)):
        free = legal[i]
        filled, violations, zero = _survey(plans[i], units, peers, shown, free)
        keeps = _keeps(instances[i], plans[i])
        solved = keeps and filled == side * side and violations == 0
        facts[i, 0] = filled
        facts[i, 1] = violations
        facts[i, 2] = zero
        facts[i, 3] = keeps
        facts[i, 4] = solved
        count = 1 if edits == 2 and not solved else 0
        for cell in range(side * side):
            free[cell] = _legal_digits(instances[i, cell], plans[i, cell], free[cell], rules)
            count += _popcount(free[cell])
            if edits == 2 and plans[i, cell] > 0 and instances[i, cell] == 0:
                count += 1
        offsets[i + 1] = offsets[i] + count


@njit(cache=True, inline="always")
def _phi(score, cells):
    return min(max(score, 0), cells) / cells


@njit(cache=True)
def _fill_constraint_successors(
    instances,
    plans,
    rules,
    units,
    peers,
    legal,
    facts,
    terms,
    offsets,
    state,
    action,
    plan,
    score,
    reward,
    solved,
    dead,
    terminated,
):
    """Fill edits under the constraint mask: violations stay, and a digit starves the peers whose only candidate it is.

    Each naked single adds 1 to `starved` at (peer, its digit); a successor's zero-candidate cells are then one
    look-up. A cell that is filled was no zero-candidate cell, it had a legal digit.
    """
    side, _, _, tokens = rules
    gamma, shaped, absorb = terms
    cells = side * side
    num_peers = peers.shape[1]
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    starved = np.zeros(cells * side, np.int32)
    singles = np.empty(cells, np.int32)
    # outcome by number of starved peers: score, reward, solved, dead, terminated
    scores = np.empty(num_peers + 1, np.float32)
    rewards = np.empty(num_peers + 1, np.float32)
    flags = np.empty((num_peers + 1, 3), np.bool_)
    for i in range(len(plans)):
        filled, violations, zero = facts[i, 0] + 1, facts[i, 1], facts[i, 2]
        phi = _phi(filled - 1 - 2 * violations - 5 * zero, cells)
        for more in range(num_peers + 1):
            points = filled - 2 * violations - 5 * (zero + more)
            done = facts[i, 3] == 1 and filled == cells and violations == 0
            lost = (zero + more > 0 or violations > 0) and not done
            ended = done or (lost and absorb) or zero + more == cells - filled
            worth = 1.0 if done else 0.0
            if shaped:
                worth += (0.0 if ended else gamma * _phi(points, cells)) - phi
            scores[more] = points
            rewards[more] = worth
            flags[more, 0] = done
            flags[more, 1] = lost
            flags[more, 2] = ended
        num_singles = 0
        for cell in range(cells):
            digits = legal[i, cell]
            if digits != 0 and digits & (digits - np.uint32(1)) == 0:
                singles[num_singles] = cell
                num_singles += 1
                digit = _popcount(digits - np.uint32(1))
                for k in range(num_peers):
                    starved[peers[cell, k] * side + digit] += 1
        at = offsets[i]
        for cell in range(cells):
            digits = legal[i, cell]
            while digits:
                digit = _popcount((digits & (~digits + np.uint32(1))) - np.uint32(1))
                digits &= digits - np.uint32(1)
                more = starved[cell * side + digit]
                state[at] = i
                action[at] = cell * stride + shift + digit
                score[at] = scores[more]
                reward[at] = rewards[more]
                solved[at] = flags[more, 0]
                dead[at] = flags[more, 1]
                terminated[at] = flags[more, 2]
                if len(plan):
                    plan[at] = plans[i]
                    plan[at, cell] = digit + 1
                at += 1
        for j in range(num_singles):
            digit = _popcount(legal[i, singles[j]] - np.uint32(1))
            for k in range(num_peers):
                starved[peers[singles[j], k] * side + digit] = 0


@njit(cache=True)
def _tally(plan, peers, side, counts, blank_free):
    """counts[cell * side + digit - 1] = peers of the cell that show the digit; blank_free[cell] = digits none shows."""
    counts[:] = 0
    for cell in range(len(plan)):
        if plan[cell] > 0:
            for k in range(peers.shape[1]):
                counts[peers[cell, k] * side + plan[cell] - 1] += 1
    for cell in range(len(plan)):
        number = 0
        for digit in range(side):
            if counts[cell * side + digit] == 0:
                number += 1
        blank_free[cell] = number


@njit(cache=True)
def _general_successors(
    instances,
    plans,
    rules,
    units,
    peers,
    legal,
    facts,
    terms,
    offsets,
    state,
    action,
    plan,
    score,
    reward,
    solved,
    dead,
    terminated,
):
    """Any edit set and mask. With `counts` of equal peers each outcome is a difference to the plan's own verdict.

    Replacing digit o of a cell by v: violations + counts[v] - counts[o]; zero-candidate cells - `freed` (blanks that
    only miss o's removal) + `starved` (blanks whose only candidate is v, unless o's removal gives them another).
    """
    side, edits, constraint, tokens = rules
    gamma, shaped, absorb = terms
    cells = side * side
    num_peers = peers.shape[1]
    stride = side + 2 if tokens else side
    shift = 2 if tokens else 0
    counts = np.empty(cells * side, np.int32)
    num_free = np.empty(cells, np.int32)
    starved = np.empty(cells * side, np.int32)
    freed = np.empty(cells, np.int32)
    for i in range(len(plans)):
        filled, violations, zero = facts[i, 0], facts[i, 1], facts[i, 2]
        phi = _phi(filled - 2 * violations - 5 * zero, cells)
        _tally(plans[i], peers, side, counts, num_free)
        _starve_and_free(plans[i], peers, side, counts, num_free, starved, freed)
        num_legal = offsets[i + 1] - offsets[i]
        at = offsets[i]
        for cell in range(cells):
            old = plans[i, cell]
            erasable = edits == 2 and old > 0 and instances[i, cell] == 0
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
                    new_zero = base_zero + (1 if num_free[cell] == 0 else 0)
                elif (legal[i, cell] >> np.uint32(value - 1)) & np.uint32(1):
                    variable = cell * side + value - 1
                    new_filled = base_filled + 1
                    new_violations = base_violations + counts[variable]
                    new_zero = base_zero + starved[variable]
                else:
                    continue
                points = new_filled - 2 * new_violations - 5 * new_zero
                done = facts[i, 3] == 1 and new_filled == cells and new_violations == 0
                lost = edits == 0 and (new_zero > 0 or new_violations > 0) and not done
                stuck = False
                if edits == 0:
                    stuck = new_filled == cells or (constraint and new_zero == cells - new_filled)
                elif edits == 1 and constraint and num_legal <= num_peers + 1:
                    stuck = not _overwrite_left(
                        instances[i], plans[i], peers, side, counts, num_free, cell, value
                    )
                ended = done or (lost and absorb) or stuck
                worth = 1.0 if done else 0.0
                if shaped:
                    worth += (0.0 if ended else gamma * _phi(points, cells)) - phi
                state[at] = i
                action[at] = cell * stride + shift + value - 1
                score[at] = points
                reward[at] = worth
                solved[at] = done
                dead[at] = lost
                terminated[at] = ended
                if len(plan):
                    plan[at] = plans[i]
                    plan[at, cell] = value
                at += 1
        if edits == 2 and facts[i, 4] == 0:
            state[at] = i
            action[at] = cells * stride
            score[at] = filled - 2 * violations - 5 * zero
            reward[at] = -phi if shaped else 0.0
            solved[at] = False
            dead[at] = False
            terminated[at] = True
            if len(plan):
                plan[at] = plans[i]


@njit(cache=True)
def _starve_and_free(plan, peers, side, counts, num_free, starved, freed):
    """starved[cell, digit]: blanks left without candidate if the digit is put there; freed[cell]: blanks that get one
    if the cell's digit goes.
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
                freed[peer] += 1 if lone else 0
            elif not lone:
                starved[peer * side + single] += 1


@njit(cache=True)
def _overwrite_left(instance, plan, peers, side, counts, num_free, edited, value):
    """Overwriting under the constraint mask: is any edit legal once `edited` holds `value`?

    A cell can be changed when a digit other than its own is shown by no peer; `num_free` also counts its own digit.
    """
    if num_free[edited] - (1 if counts[edited * side + value - 1] == 0 else 0) > 0:
        return True
    old = plan[edited]
    touched = 0  # position in the ascending list of peers of `edited`
    for cell in range(len(plan)):
        is_peer = touched < peers.shape[1] and peers[edited, touched] == cell
        touched += 1 if is_peer else 0
        if instance[cell] > 0 or cell == edited:
            continue
        for digit in range(1, side + 1):
            if digit == plan[cell]:
                continue
            count = counts[cell * side + digit - 1]
            if is_peer:
                count += (1 if digit == value else 0) - (1 if digit == old else 0)
            if count == 0:
                return True
    return False
