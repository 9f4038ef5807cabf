"""A puzzle in play: `Game` holds an environment and its history, and answers lines of text.

It builds its words from the tables of `DomainSpec` alone, and it neither reads input nor prints:
`upi-trm play` does.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from plan_envs.catalogue import Task, resolve_task
from plan_envs.domain import potential
from plan_envs.env import PlanEditEnv
from plan_envs.playing import hints
from plan_envs.playing.hints import DIRECTIONS, Position, Turn
from plan_envs.playing.kinds import Mistake, action_of, cell_of
from plan_envs.rendering import Picture, draw_text, picture_of

_POOL: Final = 20
"""Puzzles that a game draws from, where the task does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a game answers."""

    text: str
    """One line or several, without a line break at the end; may be empty."""
    redraw: bool = False
    """The plan has changed: show the board again."""
    leave: bool = False
    """The player wants to leave."""


class Game(Position):
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
        num = None if self.task.pool_size is None else min(_POOL, self.task.pool_size)
        pool = self.task.instances(split, num=num, seed=seed)
        horizon = self.task.domain.spec.horizon
        super().__init__(PlanEditEnv(self.task, instances=pool, max_episode_steps=horizon))
        self._start(seed=seed, options=None if instance is None else {"instance": instance})

    @property
    def edits(self) -> int:
        """Edits since the start."""
        return len(self.turns) - 1

    # ---- what is shown

    def picture(self) -> Picture:
        """The plan, as the domain draws it."""
        return picture_of(self.domain, self.instance, self.plan)

    def board(self, *, color: bool = True) -> str:
        """The plan as text, with numbers at its border."""
        return draw_text(self.picture(), color=color, numbered=True)

    def status(self) -> str:
        """Score, reward of the last edit, edits; and how the episode ended, if it did."""
        turn = self.turns[-1]
        line = f"score {turn.score:g} of {self.spec.max_score:g}"
        if self.edits:
            line += f", reward {turn.reward:+.3f}"
        line += f", edit {self.edits} of {self.spec.horizon}"
        return f"{line}\n{self._ending()}" if self.ended else line

    def score_text(self) -> str:
        """Everything that the checker says of the plan."""
        turn = self.turns[-1]
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
            raise Mistake(hints.why_not(self, action))
        _, reward, terminated, truncated, info = self.env.step(action)
        turn = Turn(self.env, info)
        turn.reward, turn.total = reward, self.turns[-1].total + reward
        self.turns.append(turn)
        if terminated or truncated:
            turn.ended = self._reason(action, bool(info["solved"]), terminated=terminated)
        return Reply(text=self.status(), redraw=True)

    def back(self) -> Reply:
        """Take the last edit back."""
        if not self.edits:
            raise Mistake("there is nothing to take back")
        self.turns.pop()
        self.env.set_state(self.turns[-1].state)
        return Reply(text=self.status(), redraw=True)

    def restart(self) -> Reply:
        """The same puzzle from its start."""
        del self.turns[1:]
        self.env.set_state(self.turns[0].state)
        return Reply(text=self.status(), redraw=True)

    def new(self) -> Reply:
        """Another puzzle of the pool."""
        self._start()
        return Reply(text=self.status(), redraw=True)

    def hint(self, cell: int | None = None) -> str:
        """Some legal edits, those with the fewest alternatives first; or those of one cell."""
        if self.ended:
            return self._ending()
        return hints.hint(self) if cell is None else hints.hint_at(self, cell)

    def step_towards(self, direction: str) -> Reply:
        """One edit of the main kind beside the head; `direction` is up, down, left or right."""
        rows, columns = self.spec.grid_shape
        head = self.head
        if head is None:
            raise Mistake(f"{self.task.name} has no directions; edits are typed with row column")
        row, column = (
            place + move
            for place, move in zip(divmod(head, columns), DIRECTIONS[direction], strict=True)
        )
        if not (0 <= row < rows and 0 <= column < columns):
            raise Mistake(f"{direction}: the border of the grid")
        return self.take(self.main.actions[row * columns + column, self.main.values[0]])

    def _start(self, **arguments: Any) -> None:
        _, info = self.env.reset(**arguments)
        self.turns = [Turn(self.env, info)]

    def _carry_out(self, words: list[str], typed: list[str]) -> Reply:
        name, rest = words[0], words[1:]
        if name == "undo" and "undo" not in self.kinds:
            name = "back"
        plain: dict[str, Callable[[], Reply]] = {
            "back": self.back,
            "restart": self.restart,
            "new": self.new,
            "mask": lambda: Reply(text=hints.mask_text(self)),
            "score": lambda: Reply(text=self.score_text()),
            **dict.fromkeys(("help", "?"), lambda: Reply(text=hints.help_text(self))),
            **dict.fromkeys(("quit", "exit", "q"), lambda: Reply(text="", leave=True)),
        }
        if name == "hint":
            if len(rest) not in (0, 2):
                raise Mistake("hint takes nothing, or ROW COLUMN")
            return Reply(text=self.hint(cell_of(self.spec, *rest) if rest else None))
        if name in self.kinds:
            return self.take(action_of(self.spec, self.kinds[name], typed[1:]))
        if name in plain:
            if rest:
                raise Mistake(f"{name} takes no {rest[0]!r}")
            return plain[name]()
        if name.lstrip("-").isdecimal():
            return self.take(action_of(self.spec, self.main, typed))
        towards = [word for word in DIRECTIONS if name in (word, word[0])]
        if towards and self.head is not None:
            return self.step_towards(towards[0])
        known = [*self.kinds, *plain, "hint", *(DIRECTIONS if self.head is not None else ())]
        close = difflib.get_close_matches(name, known, n=1)
        near = f"; did you mean {close[0]}?" if close else "; help lists what there is"
        raise Mistake(f"{typed[0]!r} is no command{near}")

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
