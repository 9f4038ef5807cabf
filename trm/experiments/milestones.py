"""What a learner spent until it solved 50, 80, 90 and 95% of the validation puzzles.

Input: records of the seeds of one row of `compare`, whose learning curves say edits, success and,
where the run logged them, CPU seconds. Output: one `Milestone` a level, for tables and JSON.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trm.experiments.records import Record

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Success rates on validation puzzles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Milestone:
    """The first evaluation at a level or above it, mean over the seeds that have one."""

    level: float
    reached: int
    """Number of seeds that reached it."""
    seeds: int
    edits: float | None = None
    """None where no seed reached it, like cpu_seconds."""
    cpu_seconds: float | None = None
    """Of training and of the evaluations before this one."""
    estimated: bool = False
    """A seed logged no CPU seconds: its own are the run's, in proportion to the edits."""

    def __str__(self) -> str:
        """Two lines, `2,560` and `~14 s (2)`: estimated seconds; not all seeds got there."""
        if self.edits is None:
            return "-"
        seconds = ""
        if self.cpu_seconds is not None:
            seconds = f"{'~' if self.estimated else ''}{self.cpu_seconds:,.0f} s"
        some = "" if self.reached == self.seeds else f" ({self.reached})"
        return f"{self.edits:,.0f}\n{seconds}{some}"


def milestones(records: Sequence[Record]) -> tuple[Milestone, ...]:
    """One for every level, of the seeds of one row; none where a record has no curve."""
    if not all(record.curve for record in records):
        return ()
    return tuple(_milestone(records, level) for level in LEVELS)


def _milestone(records: Sequence[Record], level: float) -> Milestone:
    edits: list[int] = []
    seconds: list[float | None] = []
    estimated = False
    for record in records:
        place = next((i for i, (_, rate) in enumerate(record.curve) if rate >= level), None)
        if place is None:
            continue
        step = record.curve[place][0]
        edits.append(step)
        logged = record.curve_cpu_seconds[place] if record.curve_cpu_seconds else None
        if logged is None and record.cpu_seconds is not None:
            logged, estimated = record.cpu_seconds * step / record.step, True
        seconds.append(logged)
    known = [one for one in seconds if one is not None]
    return Milestone(
        level=level,
        reached=len(edits),
        seeds=len(records),
        edits=statistics.fmean(edits) if edits else None,
        cpu_seconds=statistics.fmean(known) if edits and len(known) == len(edits) else None,
        estimated=estimated,
    )
