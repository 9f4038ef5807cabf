"""The rules of Sudoku by hand: numbering of actions, scores, dead ends, what may be edited when."""

import numpy as np
import pytest

from plan_envs.domain import Int8Array, potential
from plan_envs.engine import below, splitmix
from plan_envs.sudoku.geometry import BOX_SHAPES, peers_of
from plan_envs.sudoku.instances import solve, sudoku_instances
from plan_envs.sudoku.rules import Sudoku

# One row a line; the solution of the puzzle that newspapers print as the first example.
PUZZLE_9 = """
530070000 600195000 098000060
800060003 400803001 700020006
060000280 000419005 000080079
"""


def board(text: str) -> Int8Array:
    """One row of digits, blanks as 0 or '.', shape [1, cell]."""
    digits = [0 if c == "." else int(c) for c in text if not c.isspace()]
    return np.array([digits], np.int8)


def solved_4() -> Int8Array:
    return board("1234 3412 2143 4321")


def action_4(row: int, column: int, token: int) -> int:
    """4x4 numbering: cell * 6 + token; 0 PAD, 1 blank, digit + 1."""
    return (row * 4 + column) * 6 + token


def test_4x4_has_97_actions_and_9x9_has_729() -> None:
    """UPI-TRM, experiments: 97 actions on 4x4, 729 on 9x9."""
    assert Sudoku(4).spec.num_actions == 97
    assert Sudoku(9).spec.num_actions == 729


@pytest.mark.parametrize(
    ("side", "codec", "edits", "mask", "horizon"),
    [
        (4, "tokens", "full", "givens", 16),
        (6, "digits", "fill", "constraint", 36),
        (9, "digits", "fill", "constraint", 81),
        (16, "digits", "fill", "constraint", 256),
    ],
)
def test_each_side_has_its_defaults(
    side: int, codec: str, edits: str, mask: str, horizon: int
) -> None:
    domain = Sudoku(side)
    assert (domain.codec, domain.edits, domain.mask) == (codec, edits, mask)
    assert domain.spec.horizon == horizon
    assert domain.spec.max_score == side * side
    assert domain == Sudoku(side, codec, edits, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 5}, "side must be one of .*got 5"),
        ({"edits": "paint"}, "edits must be one of .*got 'paint'"),
        ({"mask": "all"}, "mask must be one of .*got 'all'"),
        ({"codec": "rows"}, "codec must be one of .*got 'rows'"),
        ({"edits": "full", "codec": "digits"}, "needs codec='tokens'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sudoku(**options)  # type: ignore[arg-type]


def test_tokens_are_numbered_pad_blank_digits_and_stop_comes_last() -> None:
    spec = Sudoku(4).spec
    kinds = [spec.kind_names[kind] for kind in spec.action_kind]
    assert kinds[:6] == ["pad", "erase", "write", "write", "write", "write"]
    assert kinds[96] == "stop"
    assert spec.action_value[:6].tolist() == [0, 0, 1, 2, 3, 4]
    assert spec.action_cell[5:8].tolist() == [0, 1, 1]
    assert spec.action_cell[96] == -1
    stops = Sudoku(4).is_stop(np.arange(97, dtype=np.int32))
    assert np.flatnonzero(stops).tolist() == [96]
    assert not Sudoku(9).is_stop(np.arange(729, dtype=np.int32)).any()


@pytest.mark.parametrize("side", BOX_SHAPES)
def test_groups_are_cells_rows_columns_and_boxes(side: int) -> None:
    """Two variables share a group iff they exclude one another: peers with one digit, or a cell."""
    spec = Sudoku(side).spec
    groups = spec.groups
    assert set(groups) == {"cell", "row", "column", "box"}
    for labels in groups.values():
        _, sizes = np.unique(labels, return_counts=True)
        assert (sizes == side).all()
        assert len(sizes) == side * side
    rng = np.random.default_rng(0)
    peers = peers_of(side)
    for one, other in rng.integers(0, side**3, (200, 2)):
        if one == other:
            continue
        cells, values = np.divmod([one, other], side)
        excludes = cells[0] == cells[1] or (
            values[0] == values[1] and bool((peers[cells[0]] == cells[1]).any())
        )
        assert excludes == any(labels[one] == labels[other] for labels in groups.values())


@pytest.mark.parametrize(("side", "number"), [(4, 7), (6, 12), (9, 20), (16, 39)])
def test_every_cell_has_as_many_peers(side: int, number: int) -> None:
    """2 (side - 1) in row and column, and those of its box in neither: 8 + 8 + 4 = 20 on 9x9."""
    assert peers_of(side).shape == (side * side, number)


def test_a_solved_board_scores_its_cells_and_is_solved() -> None:
    verdict = Sudoku(4).check(solved_4(), solved_4())
    assert verdict.score.tolist() == [16.0]
    assert verdict.solved.tolist() == [True]
    assert potential(verdict.score, 16.0).tolist() == [1.0]


def test_a_pair_in_row_and_box_counts_once() -> None:
    """Two 1s side by side share a row and a box: one violation. 2 filled - 2 x 1 = 0 points."""
    plan = board("11.. .... .... ....")
    verdict = Sudoku(4).check(np.zeros_like(plan), plan)
    assert verdict.violations.tolist() == [1]
    assert verdict.score.tolist() == [0.0]


def test_three_equal_digits_in_a_row_are_three_pairs() -> None:
    plan = board("111. .... .... ....")
    verdict = Sudoku(4).check(np.zeros_like(plan), plan)
    assert verdict.violations.tolist() == [3]
    assert verdict.score.tolist() == [3 - 2 * 3]


def test_a_blank_cell_without_candidate_costs_5_and_kills_fill_edits_only() -> None:
    """Row 1 shows 1 2 3 and column 4 shows 4: cell (1, 4) has no candidate. 4 filled - 5 = -1."""
    plan = board("123. .... ...4 ....")
    blank = np.zeros_like(plan)
    verdict = Sudoku(4).check(blank, plan)
    assert verdict.score.tolist() == [-1.0]
    assert verdict.violations.tolist() == [0]
    assert verdict.dead.tolist() == [False]
    assert Sudoku(4, edits="overwrite").check(blank, plan).dead.tolist() == [False]
    assert Sudoku(4, edits="fill").check(blank, plan).dead.tolist() == [True]
    assert potential(verdict.score, 16.0).tolist() == [0.0]


def test_a_full_board_with_a_violation_is_dead_under_fill_edits() -> None:
    plan = solved_4()
    plan[0, 0] = 2
    blank = np.zeros_like(plan)
    verdict = Sudoku(4, edits="fill").check(blank, plan)
    # 2 at (1, 1) meets the 2 at (1, 2), which is in its row and box, and the one at (3, 1).
    assert verdict.violations.tolist() == [2]
    assert verdict.dead.tolist() == [True]
    assert verdict.solved.tolist() == [False]


def test_a_valid_completion_that_changes_a_given_is_not_solved() -> None:
    instance = np.zeros_like(solved_4())
    instance[0, 0] = 4
    assert Sudoku(4).check(instance, solved_4()).solved.tolist() == [False]


def test_the_default_4x4_mask_allows_all_but_pad_no_ops_and_givens() -> None:
    """Given 1 at cell 0, 2 written at cell 1: 15 free cells; cell 1: erase or 3 other digits."""
    instance, plan = board("1... .... .... ...."), board("12.. .... .... ....")
    mask = Sudoku(4).action_mask(instance, plan)[0]
    assert mask[:6].tolist() == [0, 0, 0, 0, 0, 0]
    assert mask[6:12].tolist() == [0, 1, 1, 0, 1, 1]
    assert mask[12:18].tolist() == [0, 0, 1, 1, 1, 1]
    assert mask[96] == 1
    assert mask.sum() == 4 + 14 * 4 + 1


def test_stop_is_legal_until_the_plan_is_solved() -> None:
    domain = Sudoku(4)
    instance = solved_4()
    instance[0, 0] = 0
    assert domain.action_mask(instance, instance)[0, 96] == 1
    assert domain.action_mask(instance, solved_4())[0, 96] == 0


def test_the_default_9x9_mask_forbids_digits_that_a_peer_shows() -> None:
    """Cell (1, 3) of the puzzle: row 5 3 7, column 8, box 5 3 6 9 8; left are 1, 2 and 4."""
    instance = board(PUZZLE_9)
    mask = Sudoku(9).action_mask(instance, instance)[0].reshape(81, 9)
    assert (np.flatnonzero(mask[2]) + 1).tolist() == [1, 2, 4]
    assert not mask[0].any()


def test_solving_the_puzzle_cell_by_cell_ends_in_a_solved_plan() -> None:
    domain = Sudoku(9)
    instance = board(PUZZLE_9)
    solution = solve(instance, side=9)
    plan = domain.initial(instance)
    for cell in np.flatnonzero(instance[0] == 0):
        found = domain.successors(instance, plan)
        action = np.int32(cell * 9 + solution[0, cell] - 1)
        row = int(np.flatnonzero(found.action == action)[0])
        plan = domain.edit(instance, plan, np.array([action]))
        assert np.array_equal(found.plan[row], plan[0])
        assert found.score[row] == (plan > 0).sum()
        assert found.solved[row] == found.terminated[row] == np.array_equal(plan, solution)
    assert domain.check(instance, plan).solved.all()


def test_the_last_fill_earns_1_minus_phi() -> None:
    """One blank: score 80 before, Phi = 80/81; r = 1 - 80/81 if it solves, 0 - 80/81 if not."""
    domain = Sudoku(9, mask="givens")
    solution = solve(board(PUZZLE_9), side=9)
    instance = solution.copy()
    instance[0, 40] = 0
    found = domain.successors(instance, instance)
    assert found.terminated.all()
    right = found.action == 40 * 9 + int(solution[0, 40]) - 1
    assert found.solved.tolist() == right.tolist()
    assert found.reward[right] == pytest.approx(1 - 80 / 81)
    assert found.reward[~right] == pytest.approx(-80 / 81)
    sparse = domain.successors(instance, instance, reward="sparse")
    assert sparse.reward.tolist() == right.astype(np.float32).tolist()


def test_dead_ends_end_an_episode_only_when_they_absorb() -> None:
    domain = Sudoku(9)
    instances = sudoku_instances(num=20).instances
    absorbing = domain.successors(instances, instances)
    going_on = domain.successors(instances, instances, dead_end="continue")
    assert absorbing.dead.any()
    assert absorbing.terminated[absorbing.dead].all()
    assert not going_on.terminated.any()
    # The reward of a dead end: 0 - Phi(s), against gamma Phi(s') - Phi(s).
    assert (absorbing.reward[absorbing.dead] < going_on.reward[absorbing.dead]).all()


def test_stop_ends_the_episode_with_minus_phi() -> None:
    domain = Sudoku(4)
    instance = board("12.. .... .... ....")
    found = domain.successors(instance, instance)
    assert found.action[-1] == 96
    assert found.terminated[-1]
    assert not found.terminated[:-1].any()
    assert found.reward[-1] == pytest.approx(-2 / 16)
    assert np.array_equal(found.plan[-1], instance[0])


def test_erasing_is_an_edit_only_under_full_edits() -> None:
    instance, plan = board("1... .... .... ...."), board("12.. .... .... ....")
    erase = np.array([action_4(0, 1, 1)], np.int32)
    assert Sudoku(4).edit(instance, plan, erase)[0, 1] == 0
    assert Sudoku(4, edits="overwrite").edit(instance, plan, erase)[0, 1] == 2


def test_brute_force_over_all_fillings_of_a_4x4_agrees_with_the_checker() -> None:
    """All 4^4 fillings of four blanks: exactly the completions that solve() finds are solved."""
    instance = board("12.4 3.12 2143 ..21")
    blanks = np.flatnonzero(instance[0] == 0)
    plans = np.repeat(instance, 4 ** len(blanks), axis=0)
    plans[:, blanks] = np.indices((4,) * len(blanks)).reshape(len(blanks), -1).T + 1
    instances = np.repeat(instance, len(plans), axis=0)
    verdict = Sudoku(4).check(instances, plans)
    rows_right = [
        all(
            len(set(unit.tolist())) == 4
            for grid in [plan.reshape(4, 4)]
            for unit in [*grid, *grid.T, *grid.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)]
        )
        for plan in plans
    ]
    assert verdict.solved.tolist() == rows_right
    assert verdict.solved.sum() == 1


@pytest.mark.parametrize(
    ("boards", "message"),
    [
        (np.zeros((2, 80), np.int8), r"instances must be int8 of shape \[batch, 81\]"),
        (np.zeros((2, 81), np.int64), "got int64"),
        (np.full((1, 81), 10, np.int8), r"must hold 0\.\.9, got 10"),
        (np.full((1, 81), -1, np.int8), r"must hold 0\.\.9, got -1"),
    ],
)
def test_a_board_of_the_wrong_kind_is_refused(boards: Int8Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sudoku(9).check(boards, boards)


def test_an_action_out_of_range_is_refused() -> None:
    blank = np.zeros((2, 81), np.int8)
    with pytest.raises(ValueError, match=r"actions must lie in 0\.\.728, got 729"):
        Sudoku(9).edit(blank, blank, np.array([0, 729], np.int32))
    with pytest.raises(ValueError, match=r"actions must have shape \[2\]"):
        Sudoku(9).edit(blank, blank, np.array([0], np.int32))
    with pytest.raises(ValueError, match="1 instances but 2 plans"):
        Sudoku(9).check(blank[:1], blank)
    with pytest.raises(ValueError, match="reward must be"):
        Sudoku(9).successors(blank, blank, reward="dense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dead_end must be"):
        Sudoku(9).successors(blank, blank, dead_end="stop")  # type: ignore[arg-type]


def test_read_only_and_strided_boards_give_the_same_answers() -> None:
    domain = Sudoku(9)
    instances = sudoku_instances(num=8).instances
    expected = domain.check(instances, instances)
    frozen = instances.copy()
    frozen.flags.writeable = False
    strided = np.repeat(instances, 2, axis=0)[::2]
    for boards in (frozen, strided, np.asfortranarray(instances)):
        assert np.array_equal(domain.check(boards, boards).score, expected.score)


def test_an_empty_batch_is_an_answer_too() -> None:
    domain = Sudoku(9)
    none = np.zeros((0, 81), np.int8)
    assert domain.action_mask(none, none).shape == (0, 729)
    found = domain.successors(none, none)
    assert found.offsets.tolist() == [0]
    assert found.reward.shape == (0,)


def test_splitmix64_gives_the_published_numbers() -> None:
    """First outputs for seed 1234567 (Vigna's splitmix64.c, as listed on Rosetta Code)."""
    state = np.array([1234567], np.uint64)
    words = []
    for _ in range(5):
        state, word = splitmix(state)
        words.append(int(word[0]))
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_below_is_uniform_within_its_bound() -> None:
    words = splitmix(np.arange(20_000, dtype=np.uint64) * np.uint64(7919))[1]
    drawn = below(words, np.full(20_000, 5))
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}
    assert np.bincount(drawn).min() > 3700  # 4000 expected, standard deviation 57
