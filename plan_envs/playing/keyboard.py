"""A game played with single keys and a cursor; `upi-trm play` reads keys and prints replies."""

from dataclasses import replace
from typing import Final

from plan_envs.playing.game import Game, Reply
from plan_envs.playing.hints import DIRECTIONS
from plan_envs.playing.kinds import Kind, Mistake
from plan_envs.rendering import draw_text


class Keyboard:
    """A game played with single keys and a cursor.

    Keys are characters, or the names up, down, left, right, enter, backspace. Arrows move the
    cursor; in a maze they take the step.

    Args:
        game: the game.
    """

    HELP: Final = "arrows move; b back, h hint, m mask, s score, r restart, n new, q quit, : type"

    def __init__(self, game: Game) -> None:
        self.game = game
        self._cell = 0

    @property
    def cursor(self) -> int:
        """The cell at the cursor."""
        head = self.game.head
        return self._cell if head is None else head

    def board(self, *, color: bool = True) -> str:
        """The board with the cursor's colours turned round."""
        picture = self.game.picture()
        row, column = divmod(self.cursor, self.game.spec.grid_shape[1])
        at = row + picture.origin[0], column + picture.origin[1]
        ink, paper = picture.ink.copy(), picture.paper.copy()
        ink[at], paper[at] = (255, 255, 255), (200, 60, 0)
        symbols = picture.symbols
        if not color:
            symbols = symbols.copy()
            symbols[at] = "_" if symbols[at] in (".", "", " ") else symbols[at]
        picture = replace(picture, ink=ink, paper=paper, symbols=symbols)
        return draw_text(picture, color=color, numbered=True)

    def press(self, key: str) -> Reply:
        """Carry out one key."""
        try:
            return self._carry_out(key)
        except Mistake as mistake:
            return Reply(text=str(mistake))

    def help_text(self) -> str:
        """The keys of this game, in one line or two."""
        game = self.game
        if game.head is not None:
            return Keyboard.HELP.replace("arrows move", "arrows take a step")
        signs = [game.spec.symbols[value] for value in game.main.values]
        write = f"{signs[0]}-{signs[-1]} write" if game.main.has_value else "space places"
        erase = ", backspace erases" if self._eraser() is not None else ""
        return f"{write}{erase}; {Keyboard.HELP}"

    def _carry_out(self, key: str) -> Reply:
        game = self.game
        if key in DIRECTIONS:
            return self._move(key)
        if game.main.has_value:
            signs = {game.spec.symbols[value]: value for value in game.main.values}
            if key in signs:
                return game.take(game.main.actions[self.cursor, signs[key]])
        elif key in (" ", "enter") and game.head is None:
            return self._toggle()
        if key == "backspace":
            return self._erase()
        if key == "h":
            place = self.cursor if game.head is None and game.main.has_value else None
            return Reply(text=game.hint(place))
        lines = {"b": "back", "r": "restart", "n": "new", "m": "mask", "s": "score", "q": "quit"}
        if key in lines:
            return game.command(lines[key])
        return Reply(text=self.help_text())

    def _move(self, direction: str) -> Reply:
        if self.game.head is not None:
            return self.game.step_towards(direction)
        rows, columns = self.game.spec.grid_shape
        row, column = divmod(self._cell, columns)
        down, right = DIRECTIONS[direction]
        row, column = (row + down) % rows, (column + right) % columns
        self._cell = row * columns + column
        return Reply(text="", redraw=True)

    def _eraser(self) -> Kind | None:
        """The kind that makes a cell blank, if there is one."""
        kinds = self.game.kinds.values()
        erasers = [k for k in kinds if k.has_cell and k.values == [0]]
        return erasers[0] if erasers else None

    def _toggle(self) -> Reply:
        """The main kind at the cursor, or its eraser where that alone is legal."""
        game, eraser = self.game, self._eraser()
        action = game.main.actions[self.cursor, game.main.values[0]]
        if not game.mask[action] and eraser is not None:
            other = eraser.actions[self.cursor, 0]
            if game.mask[other]:
                return game.take(other)
        return game.take(action)

    def _erase(self) -> Reply:
        eraser = self._eraser()
        if eraser is not None:
            return self.game.take(eraser.actions[self.cursor, 0])
        if "undo" in self.game.kinds:
            return self.game.command("undo")
        raise Mistake("nothing can be erased under these rules; b takes the last edit back")
