"""The tasks by name: which domain, which instances, which Gymnasium id.

`resolve_task` turns a task name or an environment id, with options, into a `Task`; the Gymnasium
environments, the trainers and the command line start from it. A new domain adds its rows to
`TASKS`.
"""

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any, Final

from plan_envs.arc.instances import arc_instances
from plan_envs.arc.rules import Arc
from plan_envs.checks import ArgumentError
from plan_envs.domain import PlanDomain
from plan_envs.instances import InstanceSet
from plan_envs.maze.instances import maze_instances
from plan_envs.maze.rules import Maze
from plan_envs.queens.instances import queens_instances
from plan_envs.queens.rules import Queens
from plan_envs.registration import register_env
from plan_envs.repair.instances import repair_instances
from plan_envs.repair.rules import Repair
from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku

TINY_DEMONSTRATIONS: Final = 6
"""Demonstrations that an instance of arc-tiny shows at most."""
_RANGES: Final = ("givens", "blanks", "given", "path", "walls", "tokens", "faults")
"""Instance options that are a range (low, high); a single number is that range alone."""


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
    pool_size: int | None = 1000
    """Instances of a pool when a caller names no number: made within a second or so; None = all
    that there are."""

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
            num: number of instances; None = the task's `pool_size`.
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
            num=self.pool_size if num is None else num,
            seed=seed,
            progress=progress,
            **merged,
        )


def _sudoku(side: int, name: str = "", env_id: str = "", **instance_options: Any) -> Task:
    return Task(
        name or f"sudoku{side}x{side}",
        f"PlanEdit/{env_id or f'Sudoku{side}x{side}'}-v0",
        Sudoku(side=side),
        {"side": side, **instance_options},
        pool_size=100 if side == 16 else 1000,
    )


def _queens(n: int, classes: bool = False) -> Task:
    suffix, ending, holdout = (
        ("-classes", "Classes", "classes") if classes else ("", "", "instances")
    )
    options = {"n": n, "holdout": holdout}
    env_id = f"PlanEdit/NQueens{n}{ending}-v0"
    return Task(f"nqueens{n}{suffix}", env_id, Queens(n=n), options, queens_instances)


def _maze(size: int) -> Task:
    env_id, options = f"PlanEdit/Maze{size}-v0", {"size": size}
    num = 100 if size > 20 else 1000
    return Task(f"maze{size}", env_id, Maze(size=size), options, maze_instances, num)


def _arc(name: str, env_id: str, domain: Arc, **options: Any) -> Task:
    shapes = {"size": domain.size, "demonstrations": domain.demonstrations}
    return Task(name, f"PlanEdit/{env_id}-v0", domain, shapes | options, arc_instances, None)


def _repair(name: str, env_id: str, domain: Repair, **options: Any) -> Task:
    room = {"length": domain.length, "tests": domain.tests, "hidden": domain.hidden}
    return Task(name, f"PlanEdit/{env_id}-v0", domain, room | options, repair_instances)


_LISTED: Final = (
    # The paper's 4x4 tasks: solved grids with random blanks, which may have several completions.
    _sudoku(4, blanks=(1, 4), unique=False),
    _sudoku(4, "sudoku4x4-hard", "Sudoku4x4Hard", blanks=(6, 8), unique=False),
    _sudoku(6),
    _sudoku(9, givens=(26, 28)),
    _sudoku(16),
    # Boards with some queens given; -classes holds out whole symmetry classes of solutions.
    _queens(8),
    _queens(8, classes=True),
    _maze(10),
    _maze(30),
    _arc("arc", "ARC", Arc()),
    # The tasks of ARC-AGI-1 that fit into 5x5: trained on demonstrations, tested on test inputs.
    _arc(
        "arc-tiny",
        "ARCTiny",
        Arc(size=5, demonstrations=TINY_DEMONSTRATIONS, shaping="agreement"),
        tasks="arc-tiny",
    ),
    _repair("repair", "Repair", Repair(), tokens=(4, 9), faults=(1, 2)),
    _repair("repair-tiny", "RepairTiny", Repair(6, 4, 4), tokens=(3, 5), faults=(1, 1)),
)

TASKS: Final[dict[str, Task]] = {task.name: task for task in _LISTED}
"""Task name -> task with its default options; these are registered with Gymnasium."""

_FAMILIES: Final[Mapping[type, tuple[str, Callable[[int], Task]]]] = {
    Sudoku: ("side", _sudoku),
    Queens: ("n", _queens),
    Maze: ("size", _maze),
}
"""Domain class -> its option for the size, and the task of a size."""


def resolve_task(name: str, **options: Any) -> Task:
    """The task of a name or Gymnasium id, with options.

    Args:
        name: a name of `TASKS` or an id such as "PlanEdit/Sudoku9x9-v0", with or without the prefix
            "plan_envs:"; case does not matter. Names and ids of other sizes, such as "nqueens12",
            work too where the rules allow that size.
        **options: options of the domain (Sudoku: codec, edits, mask, side) and of its instances
            (givens, blanks, unique); a name that both have goes to both. The option for the size
            (side, n, size) picks the task of that size.

    Returns:
        The task; its name says nothing of the other options.

    Raises:
        ValueError: names an unknown task or option and the nearest valid one, or a refused value;
            an unknown option is also a `TypeError`, as an unknown argument is elsewhere.
    """
    task = _find(name)
    if not options:
        return task
    task = _resized(task, options)
    of_domain = {item.name for item in fields(task.domain)}  # type: ignore[arg-type]
    of_instances = _instance_option_names(task)
    _refuse_unknown(options, of_domain | of_instances, task.name)
    chosen = {key: value for key, value in options.items() if key in of_domain}
    return replace(
        task,
        domain=type(task.domain)(**{**_own_options(task), **chosen}),
        instance_options=_merge_ranges(
            task.instance_options, {k: v for k, v in options.items() if k in of_instances}
        ),
    )


def register_task(task: Task) -> None:
    """Make a task known by its name and its Gymnasium id, as the tasks of this package are.

    A module that registers its tasks when it is imported can be named before a colon wherever a
    task is named: `gym.make("my_puzzles:PlanEdit/Latin5-v0")`,
    `upi-trm train --env my_puzzles:latin5`.

    Raises:
        ValueError: if another task has the name or the id.
    """
    for known in TASKS.values():
        if known != task and (known.name == task.name or known.env_id == task.env_id):
            raise ValueError(f"there is a task {known.name!r} with id {known.env_id!r} already")
    TASKS[task.name] = task
    register_env(task.env_id, task.name, task.domain.spec.horizon)


@cache
def shared_pool(task_name: str, split: str, options: tuple[tuple[str, Any], ...]) -> InstanceSet:
    """The pool of a task of `TASKS` with these options, as sorted pairs; built once a process."""
    return TASKS[task_name].instances(split, **dict(options))


def pool_of(task: Task, split: str) -> InstanceSet:
    """The shared pool of a task of `TASKS`; a task of the caller's own generates its pool."""
    known = TASKS.get(task.name)
    if known is None or known.generator is not task.generator:
        return task.instances(split)
    return shared_pool(task.name, split, tuple(sorted(task.instance_options.items())))


def _find(name: str) -> Task:
    module, _, bare = name.rpartition(":")
    if module not in ("", "plan_envs"):
        import_module(module)
    key = bare.lower()
    for task in chain(TASKS.values(), _other_sizes(key)):
        if key in (task.name.lower(), task.env_id.lower()):
            return task
    known = [*TASKS, *(task.env_id for task in TASKS.values())]
    raise ValueError(f"unknown task {name!r}{_nearest(bare, known)}")


def _other_sizes(key: str) -> Iterator[Task]:
    """The tasks of every family at the first number that a name holds, where the rules have it."""
    number = re.search(r"\d+", key)
    for _, build in _FAMILIES.values():
        if number is not None:
            with contextlib.suppress(ValueError):
                yield build(int(number[0]))


def _resized(task: Task, options: Mapping[str, Any]) -> Task:
    """The task that the option for the size asks for."""
    option, build = _FAMILIES.get(type(task.domain), ("", None))
    if build is None or option not in options:
        return task
    size = options[option]
    if size == getattr(task.domain, option):
        return task
    other = build(size)
    return TASKS.get(other.name, other)


def _own_options(task: Task) -> dict[str, Any]:
    """Options in which a task's domain differs from the default domain of its size.

    The others are left out: their defaults may depend on the options that a caller chooses.
    """
    domain = task.domain
    names = [item.name for item in fields(domain)]  # type: ignore[arg-type]
    size = {name: getattr(domain, name) for name in names if name in task.instance_options}
    plain = type(domain)(**size)
    differs = {k: getattr(domain, k) for k in names if getattr(domain, k) != getattr(plain, k)}
    return size | differs


def _instance_option_names(task: Task) -> set[str]:
    asked = {"split", "num", "seed", "progress", "on_invalid"}
    return set(inspect.signature(task.generator).parameters) - asked


def _refuse_unknown(options: Mapping[str, Any], known: set[str], task_name: str) -> None:
    for key in options:
        if key not in known:
            # torchrl looks for Python's own words at the end
            raise ArgumentError(
                f"{task_name} has no option {key!r}{_nearest(key, sorted(known))}"
                f" (unexpected keyword argument {key!r})"
            )


def _nearest(word: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {lower[close[0]]!r}?"
    return f"; there are {', '.join(known)}"


def _merge_ranges(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options over the base; `givens` and `blanks` exclude each other, ranges become tuples."""
    merged = dict(base)
    for chosen, other in (("givens", "blanks"), ("blanks", "givens")):
        if options.get(chosen) is not None:
            merged.pop(other, None)
    for key, value in options.items():
        if key in _RANGES and isinstance(value, int | list):
            value = (value, value) if isinstance(value, int) else tuple(value)
        merged[key] = value
    return merged
