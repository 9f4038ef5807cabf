"""The tasks by name: which domain, which instances, which Gymnasium id.

`resolve_task` turns a task name or an environment id, with options, into a `Task`; the Gymnasium
shells, the trainers and the command line start from it. A new domain adds its rows to `TASKS`.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final

from plan_envs.domain import PlanDomain
from plan_envs.instances import InstanceSet
from plan_envs.sudoku import Sudoku
from plan_envs.sudoku_instances import sudoku_instances

_POOL_SIZES: Final = {"sudoku16x16": 100}
_POOL_SIZE: Final = 1000
"""Instances of a pool when a caller names no number: generated within a fraction of a second."""


@dataclass(frozen=True)
class Task:
    """A domain with the distribution of its instances."""

    name: str
    """Short name, e.g. "sudoku9x9"."""
    env_id: str
    """Gymnasium id, e.g. "PlanEdit/Sudoku9x9-v0"."""
    domain: PlanDomain
    """The rules."""
    instance_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the generator, e.g. {"side": 9, "givens": (26, 28)}."""
    generator: Callable[..., InstanceSet] = sudoku_instances
    """Makes instances from (split, num, seed) and the options."""

    def instances(
        self,
        split: str = "train",
        *,
        num: int | None = None,
        seed: int = 0,
        progress: bool = False,
        **options: Any,
    ) -> InstanceSet:
        """Seeded instances of a split; a set of `num` starts with the smaller sets of its seed.

        Args:
            split: "train", "validation" or "test", disjoint up to symmetry.
            num: number of instances; None = 1000 (100 for 16x16).
            seed: seed of the generator.
            progress: show a progress bar on stderr.
            **options: instance options that replace the task's own, e.g. `givens=(30, 32)`.

        Raises:
            ValueError: for an option the generator does not have, or a value it refuses.
        """
        _refuse_unknown(options, _instance_option_names(self), self.name)
        merged = _merge_ranges(self.instance_options, options)
        return self.generator(
            split=split,
            num=_POOL_SIZES.get(self.name, _POOL_SIZE) if num is None else num,
            seed=seed,
            progress=progress,
            **merged,
        )


def _sudoku_task(name: str, env_id: str, **instance_options: Any) -> Task:
    side = instance_options["side"]
    return Task(name, f"PlanEdit/{env_id}", Sudoku(side=side), instance_options)


_SUDOKU_TASKS: Final = (
    # The paper's 4x4 tasks: solved grids with random blanks, which may have several completions.
    _sudoku_task("sudoku4x4", "Sudoku4x4-v0", side=4, blanks=(1, 4), unique=False),
    _sudoku_task("sudoku4x4-hard", "Sudoku4x4Hard-v0", side=4, blanks=(6, 8), unique=False),
    _sudoku_task("sudoku6x6", "Sudoku6x6-v0", side=6),
    _sudoku_task("sudoku9x9", "Sudoku9x9-v0", side=9, givens=(26, 28)),
    _sudoku_task("sudoku16x16", "Sudoku16x16-v0", side=16),
)

TASKS: Final[Mapping[str, Task]] = {task.name: task for task in _SUDOKU_TASKS}
"""Task name -> task with its default options."""


def resolve_task(name: str, **options: Any) -> Task:
    """The task of a name or Gymnasium id, with options.

    Args:
        name: a name of `TASKS` or an id such as "PlanEdit/Sudoku9x9-v0", with or without the prefix
            "plan_envs:"; case does not matter.
        **options: options of the domain (Sudoku: codec, edits, mask, side) and of its instances
            (givens, blanks, unique). `side` picks the task of that side.

    Returns:
        The task; its name stays that of `TASKS`, whatever the options.

    Raises:
        ValueError: names an unknown task or option and the nearest valid one, or a refused value.
    """
    task = _find(name)
    if not options:
        return task
    side = options.get("side", task.instance_options.get("side"))
    if side != task.instance_options.get("side"):
        task = _find(f"sudoku{side}x{side}")
    domain_names = {item.name for item in fields(task.domain)}  # type: ignore[arg-type]
    _refuse_unknown(options, domain_names | _instance_option_names(task), task.name)
    of_domain = {key: value for key, value in options.items() if key in domain_names}
    of_instances = {key: value for key, value in options.items() if key not in domain_names}
    domain_class = type(task.domain)
    return Task(
        task.name,
        task.env_id,
        domain_class(**{"side": side, **of_domain}),
        _merge_ranges(task.instance_options, of_instances),
        task.generator,
    )


@cache
def shared_pool(task_name: str, split: str, options: tuple[tuple[str, Any], ...]) -> InstanceSet:
    """The instances that environments draw from when none are given; built once per process.

    Args:
        task_name: a name of `TASKS`.
        split: name of the split.
        options: the task's instance options as sorted pairs.
    """
    return TASKS[task_name].instances(split, **dict(options))


def pool_of(task: Task, split: str) -> InstanceSet:
    """The shared pool of a task of `TASKS`; a task of the caller's own generates its pool."""
    known = TASKS.get(task.name)
    if known is None or known.generator is not task.generator:
        return task.instances(split)
    return shared_pool(task.name, split, tuple(sorted(task.instance_options.items())))


def _find(name: str) -> Task:
    key = name.removeprefix("plan_envs:")
    by_name = {task.name.lower(): task for task in TASKS.values()}
    by_id = {task.env_id.lower(): task for task in TASKS.values()}
    found = by_name.get(key.lower()) or by_id.get(key.lower())
    if found is None:
        known = [*TASKS, *(task.env_id for task in TASKS.values())]
        raise ValueError(f"unknown task {name!r}{_nearest(key, known)}")
    return found


def _instance_option_names(task: Task) -> set[str]:
    return set(inspect.signature(task.generator).parameters) - {"split", "num", "seed", "progress"}


def _refuse_unknown(options: Mapping[str, Any], known: set[str], task_name: str) -> None:
    for key in options:
        if key not in known:
            raise ValueError(f"{task_name} has no option {key!r}{_nearest(key, sorted(known))}")


def _nearest(word: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {lower[close[0]]!r}?"
    return f"; there are {', '.join(known)}"


def _merge_ranges(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options over the base; `givens` and `blanks` exclude each other, ranges become tuples."""
    merged = dict(base)
    if options.get("givens") is not None:
        merged.pop("blanks", None)
    if options.get("blanks") is not None:
        merged.pop("givens", None)
    merged.update(options)
    for key in ("givens", "blanks"):
        value = merged.get(key)
        if isinstance(value, int):
            merged[key] = (value, value)
        elif isinstance(value, list):
            merged[key] = tuple(value)
    return merged
