"""What a sweep is: the spec that a YAML file holds, and the points that it stands for.

A spec names environments, a recipe, overrides, a grid over recipe fields and seeds. `plan_sweep`
turns it into points, each checked against the recipe's dataclass before anything starts.
`sweep_run` runs them.
"""

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trm.experiments.learners import SweepCommand, find_command, recipe_is_for
from trm.ranges import check_at_least
from trm.runs.shipped import ShippedFiles, nearest_hint

SWEEPS = ShippedFiles(Path(__file__).resolve().parents[1], "sweeps", kind="sweep")
"""The shipped specs."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9][\w.-]*)\}")
_PLAIN_TEXT = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][\w./-]*", re.I)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What a spec file may say."""

    command: str = "train"
    """Words after `upi-trm`; more than the command's name is passed on, e.g. `--device cuda`."""
    prepare: dict[str, str] = field(default_factory=dict)
    """Name -> words after `upi-trm` of a command with `--out` that is run before the points, e.g.
    one that trains their teacher; in what follows, `{name}` stands for its folder: in later ones
    and in `command`, `set`, `cases`, `grid`."""
    envs: tuple[str, ...] | None = None
    """Environments, as `--env` takes them; null for commands whose recipes name their data."""
    recipe: str | None = None
    """A shipped recipe, or a file beside the spec; `{env}` and `{case}` in it stand for a point's
    environment and case. Null for each environment's own."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of every point: dotted field -> value."""
    cases: dict[str, Any] = field(default_factory=dict)
    """Name -> overrides; each case is combined with the whole grid."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Dotted field -> list of values; all combinations."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs."""
    steps: int | None = None
    """Budget of every run, as `--steps`; null for the recipe's."""
    eval_num: int = 500
    """Unseen puzzles of the evaluation at the end, the same for all."""

    def __post_init__(self) -> None:
        """Check what no recipe checks."""
        for name in ("envs", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} must be different values, at least one, got {values}")
        for name in self.prepare:
            if not _NAME.fullmatch(name):
                raise ValueError(f"prepare: a name must be letters, digits, _, -, ., got {name!r}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {self.seeds}")
        check_at_least(self, "", 1, "eval_num", "steps")
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid: {name} must be a list of values, got {values!r}")
        for name, values in self.cases.items():
            if not isinstance(values, dict):
                raise ValueError(f"cases: {name} must be `field: value` lines, got {values!r}")
            twice = [key for key in values if key in self.grid]
            if twice:
                raise ValueError(f"cases: {name} sets {twice[0]}, which the grid sets too")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Something that points share, made before them."""

    name: str
    words: tuple[str, ...]
    """Words after `upi-trm`; `--out FOLDER` is added."""
    training: SweepCommand | None
    """What it trains a run with, if it does; other commands go on when they are given again."""
    resume: tuple[str, ...]
    """Words that go on with a training; see `Point.resume`."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    name: str
    """Name of its folder: environment, case, grid values, seed."""
    env: str | None
    """None where the recipe names the data."""
    seed: int
    settings: Mapping[str, Any]
    """Values of the grid, and the case's name."""
    recipe: Any
    """The recipe that it trains, checked."""
    start: tuple[str, ...]
    """Words after `upi-trm` that begin it; `--out FOLDER` is added."""
    resume: tuple[str, ...]
    """Words that go on with it; `--resume FOLDER` is added."""
    finished_at: int
    """Step that it has reached at least when it is finished."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A spec and its points."""

    name: str
    """The file's name without ending."""
    out: Path
    """Its folder, which may be missing."""
    spec: SweepSpec
    command: SweepCommand
    preparations: tuple[Preparation, ...]
    """Preparations in the order of the spec; each uses earlier ones only."""
    points: tuple[Point, ...]


def plan_sweep(path: Path, out: Path | None = None) -> Sweep:
    """Read a spec and check every point of it; nothing is started or written.

    Args:
        path: the spec.
        out: the sweep's folder, below which lies what `{name}` stands for; None for runs/NAME.

    Raises:
        ValueError: one line with file, field and value, for an unknown key or field (with the
            nearest valid name), a value that the recipe refuses, or two points that are one.
    """
    from trm.runs.recipe import load_recipe

    spec = load_recipe(SweepSpec, path)
    out = Path("runs") / path.stem if out is None else out
    folders = {name: str(prepared_path(out, name)) for name in spec.prepare}
    try:
        command, words, further = find_command(spec.command)
        _check_envs(spec, command, " ".join(words))
        _check_references(spec)
        preparations = tuple(_preparations(spec, folders))
        points = tuple(_points(spec, path, command, words, _filled(further, folders), folders))
        _check_distinct(points)
    except ValueError as error:
        message = str(error).removeprefix("--set: ")
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from (
            error
        )
    return Sweep(
        name=path.stem,
        out=out,
        spec=spec,
        command=command,
        preparations=preparations,
        points=points,
    )


def _filled(value: Any, folders: Mapping[str, str]) -> Any:
    """A value of the spec with the folder for every `{name}` in its texts."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: folders.get(found[1], found[0]), value)
    if isinstance(value, list):
        return [_filled(one, folders) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, folders) for key, one in value.items()}
    return value


def _check_envs(spec: SweepSpec, command: SweepCommand, name: str) -> None:
    if command.takes_env and spec.envs is None:
        raise ValueError(f"envs: no value given; {name} needs environments")
    if not command.takes_env and spec.envs is not None:
        raise ValueError(f"envs: {name} takes none, its recipes name their data; got {spec.envs}")


def _preparations(spec: SweepSpec, folders: Mapping[str, str]) -> Iterator[Preparation]:
    for name, text in spec.prepare.items():
        training: SweepCommand | None
        resume: tuple[str, ...]
        try:
            training, words, _ = find_command(text)
            resume = training.resume or tuple(words)
        except ValueError:  # nothing that trains: a data set, a cache
            training, resume = None, ()
        filled = tuple(_filled(shlex.split(text), folders))
        yield Preparation(name=name, words=filled, training=training, resume=resume)


def _check_references(spec: SweepSpec) -> None:
    """Every `{name}` is one of `prepare`, and comes after it."""
    known: list[str] = []
    for name, text in spec.prepare.items():
        _refuse_unknown(f"prepare: {name}", text, known)
        known.append(name)
    for place in ("command", "set", "cases", "grid"):
        _refuse_unknown(place, getattr(spec, place), known)


def _refuse_unknown(place: str, value: Any, known: Sequence[str]) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            _refuse_unknown(f"{place}: {key}", one, known)
    elif isinstance(value, list):
        for one in value:
            _refuse_unknown(place, one, known)
    elif isinstance(value, str):
        for name in _REFERENCE.findall(value):
            if name not in known:
                hint = nearest_hint(name, known)
                raise ValueError(f"{place}: {{{name}}} is not prepared before; {hint}")


def _points(
    spec: SweepSpec,
    path: Path,
    command: SweepCommand,
    words: list[str],
    further: list[str],
    folders: Mapping[str, str],
) -> Iterator[Point]:
    paths = further[: len(command.path_words)]
    if len(paths) < len(command.path_words):
        missing = command.path_words[len(paths)]
        raise ValueError(f"command: {spec.command!r} must name the {missing}'s path")
    resume = (*(command.resume or words), *further[len(paths) :], *command.options)
    variants = [
        Point(
            name=label,
            env=env,
            seed=0,
            settings=settings,
            recipe=recipe,
            start=(*words, *further, *flags),
            resume=resume,
            finished_at=command.finished_at(recipe),
        )
        for label, env, settings, recipe, flags in _variants(spec, path, command, paths, folders)
    ]
    # Seeds outermost: the first third of a sweep over three seeds already shows the whole picture.
    for seed, one in itertools.product(spec.seeds, variants):
        start = (*one.start, "--seed", str(seed), *command.options)
        yield replace(one, name=f"{one.name}-seed{seed}", seed=seed, start=start)


def _variants(
    spec: SweepSpec,
    path: Path,
    command: SweepCommand,
    paths: Sequence[str],
    folders: Mapping[str, str],
) -> Iterator[tuple[str, str | None, Mapping[str, Any], Any, list[str]]]:
    """Label, environment, settings, recipe and flags that the runs of all seeds have in common."""
    from plan_envs.catalogue import resolve_task
    from trm.runs.recipe import load_recipe

    cases: list[tuple[str | None, Mapping[str, Any]]] = [*spec.cases.items()] or [(None, {})]
    combinations = [
        dict(zip(spec.grid, values, strict=True))
        for values in itertools.product(*spec.grid.values())
    ]
    short = _short_names(list(spec.grid))
    steps = [] if spec.steps is None else ["--steps", str(spec.steps)]
    by_flags = [f"{command.steps_field}={spec.steps}"] if steps else []
    by_flags += [
        f"{name}={json.dumps(str(Path(word).resolve()))}"
        for name, word in zip(command.path_words, paths, strict=True)
    ]
    envs = [None] if spec.envs is None else [resolve_task(env).name for env in spec.envs]
    for env in envs:
        for (case, changes), point in itertools.product(cases, combinations):
            recipe_word, recipe_file = _find_recipe(spec.recipe, env, case, path, command)
            parts = [part for part in (env, case) if part]
            parts += [f"{short[name]}={_as_label(value)}" for name, value in point.items()]
            label = _safe(",".join(parts)) or path.stem
            values = _filled({**spec.set, **changes, **point}, folders)
            overrides = [f"{name}={_as_text(value)}" for name, value in values.items()]
            try:
                recipe: Any = load_recipe(command.recipe, recipe_file, [*overrides, *by_flags])
            except ValueError as error:
                raise ValueError(f"{label}: {str(error).removeprefix('--set: ')}") from error
            flags = [] if env is None else ["--env", env]
            flags += [] if recipe_word is None else ["--recipe", recipe_word]
            flags += [word for override in overrides for word in ("--set", override)]
            yield label, env, {**({"case": case} if case else {}), **point}, recipe, flags + steps


def _find_recipe(
    name: str | None, env: str | None, case: str | None, spec_path: Path, command: SweepCommand
) -> tuple[str | None, Path | None]:
    """What `--recipe` gets, and the file; both None for the defaults of the dataclass."""
    if name is None:
        if env is None:
            raise ValueError("recipe: no value given; only environments have recipes of their own")
        shipped = command.recipes.find_or_default(None, env)
        return (env if shipped else None), shipped
    name = name.replace("{env}", env or "").replace("{case}", case or "")
    beside = spec_path.parent / name
    if beside.is_file():
        return str(beside), beside
    found = command.recipes.find(name)
    # A spec that names a recipe of another environment means it; `--recipe` takes a file as it is.
    foreign = env is not None and recipe_is_for(name) not in (None, env)
    return (str(found) if foreign else name), found


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """`improvement.alpha` -> `alpha`, where no other field of the grid ends so."""
    last = [name.rpartition(".")[2] for name in fields]
    return {
        name: short if last.count(short) == 1 else name
        for name, short in zip(fields, last, strict=True)
    }


def _as_text(value: object) -> str:
    """A value as `--set` reads it: plain where YAML lets it be."""
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return value
    return json.dumps(value)


def _as_label(value: object) -> str:
    """A value in a folder's name: of what was prepared, its name."""
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return reference[1] if reference else _as_text(value)


def _safe(name: str) -> str:
    """A folder name without anything that a shell or a file system would trip over."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", name).strip("_")


def _check_distinct(points: Sequence[Point]) -> None:
    names: dict[str, Point] = {}
    recipes: dict[tuple[str | None, int, str], Point] = {}
    for point in points:
        if point.name in names:
            raise ValueError(f"two points would share the folder {point.name}; rename a case")
        names[point.name] = point
        twin = recipes.setdefault((point.env, point.seed, repr(point.recipe)), point)
        if twin is not point:
            raise ValueError(f"{twin.name} and {point.name} are the same run; drop one of them")


def command_line(words: Sequence[str], folder: Path) -> str:
    """The shell command that makes a point's or a preparation's folder."""
    return shlex.join(["upi-trm", *words, "--out", str(folder)])


def prepared_path(out: Path, name: str) -> Path:
    """Where a preparation puts what it makes; the same path in every working directory."""
    return out.resolve() / "prepared" / name


def record_path(out: Path, name: str) -> Path:
    """Where a finished point's record lies."""
    return out / "records" / f"{name}.json"
