"""A game for people over any plan-editing environment: typed edits, hints, a way back.

`Game` holds an environment and its history and answers lines of text; `Keyboard` does the same for
single keys with a cursor. Both build their words from the tables of `DomainSpec` alone and neither
reads or prints anything: `upi-trm play` does.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import Int8Array, potential
from plan_envs.env import PlanEditEnv
from plan_envs.rendering import Picture, default_picture, draw_text, picture_of

_POOL: Final = 20
"""Puzzles that a game draws from, where the task does not say."""
_SHOWN: Final = 6
"""Lines of a hint."""
_DIRECTIONS: Final = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_NEVER_LEGAL: Final = ("pad",)
"""Kinds of actions that exist for the numbering alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a game answers."""

    text: str
    """One line or several, without a line break at the end; may be empty."""
    redraw: bool = False
    """The plan has changed: show the board again."""
    leave: bool = False
    """The player wants to leave."""


class Mistake(ValueError):  # noqa: N818 (the player's, not the program's)
    """What the player typed cannot be done; one line says why. Nothing has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of actions and how it is typed."""

    name: str
    actions: Mapping[tuple[int, int], int]
    """(cell, value) -> action; the cell is -1 for kinds without one."""
    has_cell: bool
    has_value: bool
    """The value must be typed: the kind has several a cell."""

    @property
    def values(self) -> list[int]:
        """What may be typed as value, ascending."""
        return sorted({value for _, value in self.actions})


class _Turn:
    """A state that `back` returns to."""

    def __init__(self, env: PlanEditEnv, info: Mapping[str, Any]) -> None:
        self.state = env.get_state()
        self.score, self.violations = float(info["score"]), int(info["violations"])
        self.reward, self.total = 0.0, 0.0
        self.ended = ""


class Game:
    """A puzzle in play.

    Edits are typed by the names of their kinds; the first kind that edits a cell needs no name.
    Rows and columns count from 1, values are typed as they are drawn. Illegal edits are refused
    with a reason and cost nothing.

    Args:
        task: a task's name or id, or a `Task`.
        seed: of the puzzles.
        split: "train", "validation" or "test".
        instance: the first puzzle as text, if the domain reads text.

    Raises:
        ValueError: for an unknown task or split, or an instance that cannot be played.
    """

    def __init__(
        self,
        task: str | Task,
        *,
        seed: int = 0,
        split: str = "train",
        instance: str | None = None,
    ) -> None:
        self.task = resolve_task(task) if isinstance(task, str) else task
        self.domain = self.task.domain
        self.spec = self.domain.spec
        num = None if self.task.pool_size is None else min(_POOL, self.task.pool_size)
        pool = self.task.instances(split, num=num, seed=seed)
        horizon = self.spec.horizon
        self.env = PlanEditEnv(self.task, instances=pool, max_episode_steps=horizon)
        self.kinds = _kinds_of(self.spec)
        self.main = next(kind for kind in self.kinds.values() if kind.has_cell)
        self._turns: list[_Turn] = []
        self._start(seed=seed, options=None if instance is None else {"instance": instance})

    # ---- the state

    @property
    def instance(self) -> Int8Array:
        """Shape [instance]."""
        board: Int8Array = self._turns[-1].state["instance"][0]
        return board

    @property
    def plan(self) -> Int8Array:
        """Shape [cell]."""
        board: Int8Array = self._turns[-1].state["plan"][0]
        return board

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Legal edits, shape [action]; none once the episode has ended."""
        return self.env.action_masks() & (not self.ended)

    @property
    def edits(self) -> int:
        """Edits since the start."""
        return len(self._turns) - 1

    @property
    def ended(self) -> str:
        """Why the episode has ended: solved, stopped, dead, stuck, horizon; "" while it runs."""
        return self._turns[-1].ended

    @property
    def head(self) -> int | None:
        """The cell from which directions lead on; None in domains without (all but mazes).

        A domain has directions if its cells have neighbours and its main kind writes one value,
        which marks one cell of the plan.
        """
        if self.spec.neighbours is None or self.main.has_value:
            return None
        marked = np.flatnonzero(self.plan == self.main.values[0])
        return int(marked[0]) if len(marked) == 1 else None

    # ---- what is shown

    def picture(self) -> Picture:
        """The plan, as the domain draws it."""
        return picture_of(self.domain, self.instance, self.plan)

    def board(self, *, color: bool = True) -> str:
        """The plan as text, with numbers at its border."""
        return draw_text(self.picture(), color=color, numbered=True)

    def status(self) -> str:
        """Score, reward of the last edit, edits; and how the episode ended, if it did."""
        turn = self._turns[-1]
        line = f"score {turn.score:g} of {self.spec.max_score:g}"
        if self.edits:
            line += f", reward {turn.reward:+.3f}"
        line += f", edit {self.edits} of {self.spec.horizon}"
        return f"{line}\n{self._ending()}" if self.ended else line

    def score_text(self) -> str:
        """Everything that the checker says of the plan."""
        turn = self._turns[-1]
        verdict = self.domain.check(self.instance[None], self.plan[None])
        facts = {
            "score": f"{turn.score:g} of {self.spec.max_score:g}",
            "potential": f"{potential(verdict.score, self.spec.max_score)[0]:.3f}",
            "violations": f"{turn.violations}",
            **{name: f"{values[0]:g}" for name, values in verdict.details.items()},
            "rewards so far": f"{turn.total:+.3f}",
            "edits": f"{self.edits} of {self.spec.horizon}",
        }
        return "\n".join(f"{name:<14} {fact}" for name, fact in facts.items())

    def mask_text(self) -> str:
        """The number of legal edits of every cell, and of the kinds that need no cell."""
        counts = np.zeros(self.spec.num_cells, np.int64)
        legal = np.flatnonzero(self.mask)
        cells = self.spec.action_cell[legal]
        np.add.at(counts, cells[cells >= 0], 1)
        signs = np.array([*".123456789", "+"])[np.minimum(counts, 10)]
        blank = default_picture(self.spec, self.instance, self.plan)
        picture = replace(blank, symbols=signs.reshape(self.spec.grid_shape))
        drawn = draw_text(picture, color=False, numbered=True)
        edits = "1 legal edit" if len(legal) == 1 else f"{len(legal)} legal edits"
        return f"{drawn}\n{edits}{self._further(self.mask)}"

    def help_text(self) -> str:
        """How edits are typed, and the commands."""
        lines = {
            self._usage(kind): _does(kind, main=kind is self.main) for kind in self.kinds.values()
        }
        if self.head is not None:
            lines["u d l r"] = f"{self.main.name} up, down, left, right"
        lines |= {
            "hint": "some legal edits",
            "hint ROW COLUMN": "the legal edits there",
            "mask": "how many edits are legal where",
            "back": "take the last edit back",
            "restart": "the same puzzle from its start",
            "new": "another puzzle",
            "score": "what the checker says",
            "quit": "leave",
        }
        return "\n".join(f"  {typed:<22} {what}" for typed, what in lines.items())

    # ---- what is played

    def command(self, line: str) -> Reply:
        """Carry out a typed line."""
        words = line.replace(",", " ").lower().split()
        if not words:
            return Reply(text="")
        try:
            return self._carry_out(words, line.replace(",", " ").split())
        except Mistake as mistake:
            return Reply(text=str(mistake))

    def take(self, action: int) -> Reply:
        """Take one action.

        Raises:
            Mistake: if it is not legal, with the reason.
        """
        if self.ended:
            raise Mistake(self._ending())
        if not self.mask[action]:
            raise Mistake(self.why_not(action))
        _, reward, terminated, truncated, info = self.env.step(action)
        turn = _Turn(self.env, info)
        turn.reward, turn.total = reward, self._turns[-1].total + reward
        self._turns.append(turn)
        if terminated or truncated:
            turn.ended = self._reason(action, bool(info["solved"]), terminated=terminated)
        return Reply(text=self.status(), redraw=True)

    def back(self) -> Reply:
        """Take the last edit back."""
        if not self.edits:
            raise Mistake("there is nothing to take back")
        self._turns.pop()
        self.env.set_state(self._turns[-1].state)
        return Reply(text=self.status(), redraw=True)

    def restart(self) -> Reply:
        """The same puzzle from its start."""
        del self._turns[1:]
        self.env.set_state(self._turns[0].state)
        return Reply(text=self.status(), redraw=True)

    def new(self) -> Reply:
        """Another puzzle of the pool."""
        self._start()
        return Reply(text=self.status(), redraw=True)

    def hint(self, cell: int | None = None) -> str:
        """Some legal edits, those with the fewest alternatives first; or those of one cell."""
        if self.ended:
            return self._ending()
        mask = self.mask
        if cell is not None:
            return self._hint_at(cell, mask)
        legal = [key for key, action in self.main.actions.items() if mask[action]]
        lines = self._moves(legal) or self._choices(legal)
        further = self._further(mask)
        shown = lines[:_SHOWN] or [f"nothing to {self.main.name}"]
        if len(lines) > _SHOWN:
            shown.append(f"and {len(lines) - _SHOWN} more")
        return "\n".join(shown) + (
            f"\nalso legal: {further.removeprefix(', among them ')}" if further else ""
        )

    def step_towards(self, direction: str) -> Reply:
        """One edit of the main kind beside the head; `direction` is up, down, left or right."""
        rows, columns = self.spec.grid_shape
        head = self.head
        if head is None:
            raise Mistake(f"{self.task.name} has no directions; edits are typed with row column")
        row, column = (
            place + move
            for place, move in zip(divmod(head, columns), _DIRECTIONS[direction], strict=True)
        )
        if not (0 <= row < rows and 0 <= column < columns):
            raise Mistake(f"{direction}: the border of the grid")
        return self.take(self.main.actions[row * columns + column, self.main.values[0]])

    def why_not(self, action: int) -> str:
        """Why an action is not legal, as far as the tables and the plan tell."""
        spec = self.spec
        cell, value = int(spec.action_cell[action]), int(spec.action_value[action])
        kind = spec.kind_names[spec.action_kind[action]]
        if cell < 0:
            return f"{kind} is not legal now"
        place, shown = self._place(cell), int(self.plan[cell])
        if self._is_given(cell):
            return f"{place} is given"
        if shown == value:
            look = "blank" if value == 0 else repr(spec.symbols[value])
            return f"{place} is {look} already"
        head = self.head
        if shown and value and head is None and not self.mask[spec.action_cell == cell].any():
            return f"{place} is filled already"
        conflict = self._conflict(cell, value) if value else None
        if conflict is not None:
            return f"not legal: {conflict}"
        if head is not None and spec.neighbours is not None:
            if cell not in spec.neighbours[head]:
                return f"{place} is not next to the head, which is at {self._place(head)}"
            return f"{place} is not free"
        return f"{kind} at {place} is not legal now"

    def cell_of(self, row: str, column: str) -> int:
        """The cell of a typed row and column.

        Raises:
            Mistake: names what is out of range.
        """
        rows, columns = self.spec.grid_shape
        return (_number(row, "row", rows) - 1) * columns + _number(column, "column", columns) - 1

    # ---- below the public things

    def _start(self, **arguments: Any) -> None:
        _, info = self.env.reset(**arguments)
        self._turns = [_Turn(self.env, info)]

    def _carry_out(self, words: list[str], typed: list[str]) -> Reply:
        name, rest = words[0], words[1:]
        if name == "undo" and "undo" not in self.kinds:
            name = "back"
        plain: dict[str, Callable[[], Reply]] = {
            "back": self.back,
            "restart": self.restart,
            "new": self.new,
            "mask": lambda: Reply(text=self.mask_text()),
            "score": lambda: Reply(text=self.score_text()),
            "help": lambda: Reply(text=self.help_text()),
            "?": lambda: Reply(text=self.help_text()),
            "quit": lambda: Reply(text="", leave=True),
            "exit": lambda: Reply(text="", leave=True),
            "q": lambda: Reply(text="", leave=True),
        }
        if name == "hint":
            if len(rest) not in (0, 2):
                raise Mistake("hint takes nothing, or ROW COLUMN")
            return Reply(text=self.hint(self.cell_of(*rest) if rest else None))
        if name in self.kinds:
            return self.take(self._action_of(self.kinds[name], typed[1:]))
        if name in plain:
            if rest:
                raise Mistake(f"{name} takes no {rest[0]!r}")
            return plain[name]()
        if name.lstrip("-").isdecimal():
            return self.take(self._action_of(self.main, typed))
        towards = [word for word in _DIRECTIONS if name in (word, word[0])]
        if towards and self.head is not None:
            return self.step_towards(towards[0])
        known = [*self.kinds, *plain, "hint", *(_DIRECTIONS if self.head is not None else ())]
        close = difflib.get_close_matches(name, known, n=1)
        near = f"; did you mean {close[0]}?" if close else "; help lists what there is"
        raise Mistake(f"{typed[0]!r} is no command{near}")

    def _action_of(self, kind: Kind, words: list[str]) -> int:
        """The action that a kind's typed words name."""
        wanted = 2 * kind.has_cell + kind.has_value
        if len(words) != wanted:
            named = self._usage(kind).removeprefix(f"{kind.name} ")
            takes = named if wanted else "nothing"
            raise Mistake(f"{kind.name} takes {takes}, got {' '.join(words) or 'nothing'}")
        cell = self.cell_of(words[0], words[1]) if kind.has_cell else -1
        if not kind.has_value:
            value = kind.values[0]
        elif kind.has_cell:
            value = self._value_of(words[2], kind)
        else:
            value = _number(words[0], kind.name, max(kind.values), least=min(kind.values))
        return kind.actions[cell, value]

    def _value_of(self, word: str, kind: Kind) -> int:
        """The value of a typed symbol; values without a digit of their own also as numbers."""
        signs = {self.spec.symbols[value]: value for value in kind.values}
        for sign in (word, word.upper()):
            if sign in signs:
                return signs[sign]
        if len(word) > 1 and word.isdecimal() and int(word) in kind.values:
            return int(word)
        raise Mistake(f"{word!r} is no value; there are {' '.join(signs)}")

    def _usage(self, kind: Kind) -> str:
        words = [] if kind is self.main else [kind.name]
        words += ["ROW COLUMN"] * kind.has_cell + ["VALUE"] * (kind.has_value and kind.has_cell)
        if kind.has_value and not kind.has_cell:
            words.append(f"{min(kind.values)}-{max(kind.values)}")
        return " ".join(words)

    def _reason(self, action: int, solved: bool, *, terminated: bool) -> str:
        if solved:
            return "solved"
        if not terminated:
            return "horizon"
        if self.domain.is_stop(np.array([action], np.int32))[0]:
            return "stopped"
        verdict = self.domain.check(self.instance[None], self.plan[None])
        return "dead" if verdict.dead[0] else "stuck"

    def _ending(self) -> str:
        edits = f"{self.edits} edit{'' if self.edits == 1 else 's'}"
        what = {
            "solved": f"solved in {edits}",
            "horizon": f"the horizon of {edits} is reached",
            "stopped": "stopped",
            "dead": "dead end: no edits can repair this plan",
            "stuck": "stuck: no edit is legal",
        }[self.ended]
        return f"{what}; back, restart, new or quit"

    def _place(self, cell: int) -> str:
        row, column = divmod(cell, self.spec.grid_shape[1])
        return f"row {row + 1}, column {column + 1}"

    def _is_given(self, cell: int) -> bool:
        """Whether the instance, where it is a board of givens, sets this cell."""
        spec = self.spec
        of_givens = spec.instance_size == spec.num_cells
        if not of_givens or spec.num_instance_values != spec.num_values:
            return False
        return bool(self.instance[cell]) and bool(self.instance[cell] == self.plan[cell])

    def _conflict(self, cell: int, value: int) -> str | None:
        """The first value of another cell that shares a constraint group with this one."""
        spec = self.spec
        variable = cell * spec.num_values + value - 1
        for name, labels in spec.groups.items():
            for other in np.flatnonzero(self.plan):
                theirs = int(self.plan[other])
                same = labels[other * spec.num_values + theirs - 1] == labels[variable]
                if same and other != cell:
                    where = self._place(int(other))
                    return f"{spec.symbols[theirs]} stands in the same {name}, at {where}"
        return None

    def _further(self, mask: NDArray[np.bool_]) -> str:
        """The legal edits of the other kinds: `, among them erase (3), stop`."""
        parts = []
        for kind in self.kinds.values():
            legal = int(mask[list(kind.actions.values())].sum())
            if legal and kind is not self.main:
                parts.append(f"{kind.name} ({legal})" if len(kind.actions) > 1 else kind.name)
        return f", among them {', '.join(parts)}" if parts else ""

    def _hint_at(self, cell: int, mask: NDArray[np.bool_]) -> str:
        words = []
        for kind in self.kinds.values():
            values = [v for (at, v), action in kind.actions.items() if at == cell and mask[action]]
            if values and kind.has_value:
                words.append(" ".join(self.spec.symbols[value] for value in values))
            elif values:
                words.append(kind.name)
        place = self._place(cell)
        if words:
            return f"{place}: {', '.join(words)}"
        if self._is_given(cell):
            return f"{place} is given"
        blank = [a for (at, _), a in self.main.actions.items() if at == cell]
        return self.why_not(blank[0]) if len(blank) == 1 else f"{place}: nothing is legal"

    def _moves(self, legal: list[tuple[int, int]]) -> list[str]:
        """Legal steps from the head, by direction."""
        head = self.head
        if head is None:
            return []
        columns = self.spec.grid_shape[1]
        names = {row * columns + column: name for name, (row, column) in _DIRECTIONS.items()}
        return [f"{names[cell - head]} to {self._place(cell)}" for cell, _ in legal]

    def _choices(self, legal: list[tuple[int, int]]) -> list[str]:
        """Cells with their legal values, or rows with their legal columns; the fewest first."""
        columns = self.spec.grid_shape[1]
        choices: dict[int, list[str]] = {}
        for cell, value in legal:
            if self.main.has_value:
                choices.setdefault(cell, []).append(self.spec.symbols[value])
            else:
                choices.setdefault(cell // columns, []).append(str(cell % columns + 1))
        ordered = sorted(choices.items(), key=lambda item: len(item[1]))
        if self.main.has_value:
            return [f"{self._place(cell)}: {' '.join(values)}" for cell, values in ordered]
        return [f"row {row + 1}: column {' '.join(values)}" for row, values in ordered]


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
        if key in _DIRECTIONS:
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
        down, right = _DIRECTIONS[direction]
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


def _kinds_of(spec: Any) -> dict[str, Kind]:
    """How the actions of every kind are typed."""
    kinds = {}
    for index, name in enumerate(spec.kind_names):
        actions = np.flatnonzero(spec.action_kind == index)
        cells, values = spec.action_cell[actions].tolist(), spec.action_value[actions].tolist()
        if not cells or name in _NEVER_LEGAL:
            continue
        kinds[name] = Kind(
            name=name,
            actions=dict(zip(zip(cells, values, strict=True), actions.tolist(), strict=True)),
            has_cell=cells[0] >= 0,
            has_value=len(cells) > len(set(cells)),
        )
    return kinds


def _does(kind: Kind, *, main: bool) -> str:
    """A line of the help."""
    return f"{kind.name}, e.g. 1 2 3" if main and kind.has_value else kind.name


def _number(word: str, name: str, most: int, *, least: int = 1) -> int:
    """A typed number in a range."""
    if not word.lstrip("-").isdecimal():
        raise Mistake(f"{name} must be a number from {least} to {most}, got {word!r}")
    if not least <= int(word) <= most:
        raise Mistake(f"{name} must lie in {least}..{most}, got {word}")
    return int(word)
