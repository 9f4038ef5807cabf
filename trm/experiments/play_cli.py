"""`upi-trm play ENV`: edit a plan by hand in the terminal, typed or with single keys.

The game itself is `plan_envs.playing`; here are the terminal's two ends. Typed play reads lines, so
a pipe can script it; `--keys` reads single keys from a POSIX terminal.
"""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from trm.experiments.options import seed_option

_CLEAR = "\x1b[H\x1b[2J"
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
_NAMED = {"\n": "enter", "\r": "enter", "\x7f": "backspace", "\x08": "backspace"}
_END_OF_INPUT = "\x04"


@click.command()
@click.argument("env")
@seed_option("Seed of the puzzles.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="train",
    show_default=True,
    help="Where the puzzles come from.",
)
@click.option(
    "--instance", metavar="TEXT", help="Play this puzzle, written as the domain reads it."
)
@click.option("--keys", is_flag=True, help="Single keys and a cursor instead of typed lines.")
def play(*, env: str, seed: int, split: str, instance: str | None, keys: bool) -> None:
    """Play an environment by hand: edits, hints from the mask, a way back.

    Type help for the commands. Edits are ROW COLUMN VALUE (Sudoku), ROW COLUMN (queens), u d l r
    (mazes); lines may come from a pipe.
    """
    from plan_envs.playing.game import Game

    try:
        game = Game(env, seed=seed, split=split, instance=instance)
    except ImportError as error:  # names the extra that the instances need
        raise click.ClickException(str(error)) from error
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        if keys:
            _play_with_keys(game, color=color)
        else:
            _play_typed(game, color=color)
    except KeyboardInterrupt:
        click.echo()


def _play_typed(game: Any, *, color: bool) -> None:
    """Read lines until the player leaves or the input ends."""
    asks = sys.stdin.isatty()
    if asks:
        _remember_lines()
    click.echo(f"{game.board(color=color)}\n{game.status()}", color=color)
    click.echo("Type help for the commands.")
    while True:
        try:
            line = input("> " if asks else "")
        except EOFError:
            click.echo()
            return
        if not asks:
            click.echo(f"> {line}")
        reply = game.command(line)
        if reply.leave:
            return
        if reply.redraw:
            click.echo(game.board(color=color), color=color)
        if reply.text:
            click.echo(reply.text)


def _remember_lines() -> None:
    """Let the arrow keys walk through earlier lines, where Python has readline."""
    try:
        import readline  # noqa: F401 (importing it is what it takes)
    except ImportError:
        return


def _play_with_keys(game: Any, *, color: bool) -> None:
    """Read single keys until the player leaves; the screen is drawn anew after each."""
    from plan_envs.playing.keyboard import Keyboard

    keyboard, fd = Keyboard(game), _terminal()
    text = game.status()
    with single_keys(fd):
        while True:
            board = keyboard.board(color=color)
            click.echo(f"{_CLEAR}{board}\n\n{text}\n\n{keyboard.help_text()}", color=True)
            key = read_key(fd)
            if key is None:
                return
            reply = game.command(_typed_line(fd)) if key == ":" else keyboard.press(key)
            if reply.leave:
                return
            text = reply.text or game.status()


def _terminal() -> int:
    """The file descriptor of the terminal that keys come from."""
    try:
        import termios  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            "--keys needs a POSIX terminal, which this system lacks; play without --keys"
        ) from error
    if not sys.stdin.isatty():
        raise click.ClickException("--keys needs a terminal, but stdin is none; play without it")
    return sys.stdin.fileno()


@contextmanager
def single_keys(fd: int) -> Iterator[None]:
    """Let a terminal hand over every key at once, without echo; restored at the end."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)  # keeps the keys that were typed already
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def read_key(fd: int) -> str | None:
    """One key: a character, or the name of an arrow, enter or backspace; None at the end of input.

    Keys that have no name here read as "escape".
    """
    sign = _read_sign(fd)
    if sign in ("", _END_OF_INPUT):
        return None
    if sign != "\x1b":
        return _NAMED.get(sign, sign)
    if not select.select([fd], [], [], 0.05)[0] or _read_sign(fd) not in ("[", "O"):
        return "escape"
    last = _read_sign(fd)
    while last and not "@" <= last <= "~":  # parameters of keys such as page up
        last = _read_sign(fd)
    return _ARROWS.get(last, "escape")


def _read_sign(fd: int) -> str:
    """One character, whatever its length in UTF-8."""
    sign = os.read(fd, 1)
    while sign and sign[0] >= 0xC0 and len(sign) < 2 + (sign[0] >= 0xE0) + (sign[0] >= 0xF0):
        sign += os.read(fd, 1)
    return sign.decode("utf-8", errors="replace")


def _typed_line(fd: int) -> str:
    """A line typed key by key, shown as it grows."""
    line = ""
    click.echo(": ", nl=False)
    while (key := read_key(fd)) not in (None, "enter", "escape"):
        if key == "backspace":
            line = line[:-1]
        elif key is not None and len(key) == 1:
            line += key
        click.echo(f"\r\x1b[K: {line}", nl=False, color=True)
    return line
