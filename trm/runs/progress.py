"""What a person sees while a model trains: a bar, the speed, the time left and the latest figures.

Learners name their own figures; nothing here knows what they mean. Everything goes to stderr, so
that stdout stays free for results. On a terminal the display is live; in a log file it is a plain
line now and then.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import SupportsFloat

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_ROWS = 8
"""Evaluations that stay visible in the live table."""
_LINE_SECONDS = 10.0
"""Shortest time between two plain lines that no evaluation asked for."""


class TrainingProgress:
    """Live display of a training run; a context manager.

    Args:
        total: steps at which the run ends.
        columns: figure -> format, in the order shown, e.g. {"success": ".1%", "KL": ".1e"}.
        unit: what a step is, e.g. "edits".
        start: the step a resumed run starts at.
        console: where to write; None for stderr.
    """

    def __init__(
        self,
        total: int,
        columns: Mapping[str, str],
        *,
        unit: str = "edits",
        start: int = 0,
        console: Console | None = None,
    ) -> None:
        self._total = total
        self._columns = dict(columns)
        self._unit = unit
        self._step = start
        self._console = console or Console(stderr=True)
        self._rows: deque[tuple[int, Mapping[str, SupportsFloat]]] = deque(maxlen=_ROWS)
        self._last_line = time.monotonic()
        # At the start, and after the first steps of this session, which wait for compilers.
        self._marks = [(start, self._last_line)]
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._task = self._bar.add_task(unit, total=total, completed=start, rate="")
        self._live = (
            Live(self._render(), console=self._console, refresh_per_second=4)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> "TrainingProgress":
        """Start the clock and the display."""
        self._last_line = time.monotonic()
        self._marks = [(self._step, self._last_line)]
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    @property
    def rate(self) -> float:
        """Steps per second of this session; the first ones count until there are others."""
        step, then = self._marks[-1 if self._under_way else 0]
        seconds = time.monotonic() - then
        return (self._step - step) / seconds if seconds > 0 else 0.0

    @property
    def _under_way(self) -> bool:
        """Whether there are steps after the first ones."""
        return len(self._marks) > 1 and self._step > self._marks[-1][0]

    def update(self, step: int) -> None:
        """The run has reached this step. Cheap; call it every iteration."""
        self._move_to(step)
        if self._live is None and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._print_line({})

    def report(self, step: int, figures: Mapping[str, SupportsFloat]) -> None:
        """New figures; those without a column are left out, missing ones stay empty."""
        self._rows.append((step, dict(figures)))
        self._move_to(step)
        if self._live is None:
            self._print_line(figures)
        else:
            self._live.update(self._render(), refresh=True)

    def note(self, text: str) -> None:
        """One line that stays, above the live display."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _move_to(self, step: int) -> None:
        if len(self._marks) == 1 and step > self._step:
            self._marks.append((step, time.monotonic()))
        self._step = step
        self._bar.update(self._task, completed=step, rate=f"{self.rate:,.0f} {self._unit}/s")

    def _render(self) -> Group:
        if not self._rows:
            return Group(self._bar)
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(self._unit, justify="right")
        for name in self._columns:
            table.add_column(name, justify="right")
        for step, figures in self._rows:
            table.add_row(f"{step:,}", *(self._format(name, figures) for name in self._columns))
        return Group(table, self._bar)

    def _print_line(self, figures: Mapping[str, SupportsFloat]) -> None:
        self._last_line = time.monotonic()
        rate = self.rate
        left = _clock((self._total - self._step) / rate) if rate > 0 and self._under_way else "?"
        head = f"{self._unit} {self._step:,}/{self._total:,}  {rate:,.0f}/s  {left} left"
        shown = (
            f"{name} {self._format(name, figures)}" for name in self._columns if name in figures
        )
        self.note("  ".join([head, *shown]))

    def _format(self, name: str, figures: Mapping[str, SupportsFloat]) -> str:
        return format(float(figures[name]), self._columns[name]) if name in figures else ""


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
