"""Sweeps: one YAML file that stands for many training runs, and the runs (DESIGN.md section 7).

A spec names environments, a recipe, overrides, a grid over recipe fields and seeds; `plan_sweep`
turns it into points, each checked against the recipe's dataclass before anything starts, and
`run_sweep` prepares what the points share (data sets, a teacher, its caches) and trains what is not
finished, through `trm.jobs`. Which commands train, and what their records say, learners tell by
entry points. Below the sweep's folder lie

    manifest.json             the spec, every point and its state, commands, commits
    prepared/NAME/            what `prepare` made; NAME.json beside it once it is whole
    NAME-seedN/               a run folder for each point; interrupted ones are resumed
    records/NAME-seedN.json   its evaluation record (`upi_trm.records`): the point is finished
    logs/NAME-seedN.log       what its processes printed
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from trm.durable import FolderLock, LockedError, replace_durably
from trm.jobs import Backend, Job, JobResult, map_jobs, run_command
from trm.shipped import shipped_file, shipped_folder, shipped_names

FORMAT_VERSION = 1
"""Of manifest.json."""

PLUGIN_GROUP = "upi_trm.sweeps"
"""Entry-point group of other learners' commands: `baselines.train` names a module or an object with
the attributes of `SweepCommand`, for `upi-trm baselines train`."""

_FOLDER = shipped_folder(Path(__file__).resolve().parent, "sweeps", inside="configs/sweeps")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9][\w.-]*)\}")
_PLAIN_TEXT = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][\w./-]*", re.I)

PointState = Literal["pending", "interrupted", "running", "finished", "failed", "stopped"]


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
    """Of the runs."""
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
        if self.eval_num < 1:
            raise ValueError(f"eval_num must be at least 1, got {self.eval_num}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid: {name} must be a list of values, got {values!r}")
        for name, values in self.cases.items():
            if not isinstance(values, dict):
                raise ValueError(f"cases: {name} must be `field: value` lines, got {values!r}")
            twice = [key for key in values if key in self.grid]
            if twice:
                raise ValueError(f"cases: {name} sets {twice[0]}, which the grid sets too")


def keep_record_of(folder: Path, num: int) -> dict[str, Any]:
    """The evaluation record of a run that plays, kept in its folder."""
    from upi_trm.records import keep_record  # torch, which the wait for a training spares

    return keep_record(folder, num=num)


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """What a sweep must know of a command that trains runs; its functions can be imported."""

    recipe: type
    """Dataclass of its recipes."""
    recipe_names: Callable[[], Sequence[str]]
    recipe_path: Callable[[str], Path]
    """File of a shipped recipe."""
    steps_field: str
    """The recipe's field that `--steps` overrides."""
    finished_at: Callable[[Any], int]
    """Step that a finished run of a recipe has reached at least."""
    make_record: Callable[[Path, int], dict[str, Any]] = keep_record_of
    """Evaluates a run folder on so many unseen puzzles; the record has `seed` and `step`."""
    figures: tuple[str, ...] = ("success_rate",)
    """Shares in a record, or null there, that the manifest and the display show."""
    options: tuple[str, ...] = ("--eval-num", "0")
    """Given always, so that the command does not evaluate by itself."""
    takes_env: bool = True
    """Whether it has `--env`; else its recipes name their data."""
    path_words: tuple[str, ...] = ()
    """Fields of the recipe that the first further words of `command`, which are paths, fill."""
    resume: tuple[str, ...] = ()
    """Words of the command that goes on with a run; empty for its own."""
    resume_words: bool = True
    """Whether the other further words of `command` are given again when a run is resumed."""
    compare: tuple[str, ...] = ("compare",)
    """Words of the command that shows runs side by side."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Something that points share, made before them."""

    name: str
    words: tuple[str, ...]
    """After `upi-trm`; `--out FOLDER` is added."""
    training: SweepCommand | None
    """What it trains a run with, if it does; other commands go on when they are given again."""
    resume: tuple[str, ...]
    """Of a training: see `Point.resume`."""


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
    spec: SweepSpec
    command: SweepCommand
    preparations: tuple[Preparation, ...]
    """In the order of the spec; one uses earlier ones alone."""
    points: tuple[Point, ...]


# --- From the file to points


def sweep_names() -> list[str]:
    """Names of the shipped specs, sorted."""
    return shipped_names(_FOLDER)


def sweep_path(name: str) -> Path:
    """The file of a spec: a path, or the name of a shipped one.

    Raises:
        ValueError: there is neither; names the nearest shipped one.
    """
    return Path(name) if Path(name).is_file() else shipped_file(name, _FOLDER, kind="sweep")


def plan_sweep(path: Path) -> Sweep:
    """Read a spec and check every point of it; nothing is started or written.

    What `prepare` makes is still called `{name}`; `place_sweep` puts it into a folder.

    Raises:
        ValueError: one line with file, field and value, for an unknown key or field (with the
            nearest valid name), a value that the recipe refuses, or two points that are one.
    """
    from trm.recipe import load_recipe

    spec = load_recipe(SweepSpec, path)
    try:
        command, words, further = _find_command(spec.command)
        _check_envs(spec, command, " ".join(words))
        preparations = tuple(_preparations(spec))
        _check_references(spec)
        points = tuple(_points(spec, path, command, words, further))
        _check_distinct(points)
    except ValueError as error:
        message = str(error).removeprefix("--set: ")
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from (
            error
        )
    return Sweep(
        name=path.stem, spec=spec, command=command, preparations=preparations, points=points
    )


def place_sweep(sweep: Sweep, out: Path) -> Sweep:
    """The sweep with the folders below `out` in the place of every `{name}`."""
    folders = {one.name: str(prepared_path(out, one.name)) for one in sweep.preparations}
    if not folders:
        return sweep
    return dataclasses.replace(
        sweep,
        preparations=tuple(
            dataclasses.replace(one, words=_filled(one.words, folders))
            for one in sweep.preparations
        ),
        points=tuple(
            dataclasses.replace(
                point,
                start=_filled(point.start, folders),
                resume=_filled(point.resume, folders),
                recipe=_filled(point.recipe, folders),
            )
            for point in sweep.points
        ),
    )


def _filled(value: Any, folders: Mapping[str, str]) -> Any:
    """A value with the folders in all its texts, dataclasses and collections included."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: folders.get(found[1], found[0]), value)
    if isinstance(value, tuple | list):
        return type(value)(_filled(one, folders) for one in value)
    if isinstance(value, dict):
        return {key: _filled(one, folders) for key, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {one.name: _filled(getattr(value, one.name), folders) for one in fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def _upi_command() -> SweepCommand:
    from upi_trm.recipes import recipe_names, recipe_path
    from upi_trm.trainer import UpiRecipe

    return SweepCommand(
        recipe=UpiRecipe,
        recipe_names=recipe_names,
        recipe_path=recipe_path,
        steps_field="schedule.edits",
        finished_at=_edits_of,
    )


def _edits_of(recipe: Any) -> int:
    """The budget, less what is too little for one more edit of every plan."""
    return int(recipe.schedule.edits // recipe.rollout.plans * recipe.rollout.plans)


def _find_command(text: str) -> tuple[SweepCommand, list[str], list[str]]:
    """The command, the words that name it, and the words that follow them.

    Raises:
        ValueError: the words name no command that trains; says the nearest one.
    """
    words = shlex.split(text)
    if words[:1] == ["train"]:
        return _upi_command(), words[:1], words[1:]
    plugins = {point.name: point for point in entry_points(group=PLUGIN_GROUP)}
    for count in range(len(words), 0, -1):
        plugin = plugins.get(".".join(words[:count]))
        if plugin is not None:
            told: Any = plugin.load()
            names = (one.name for one in fields(SweepCommand))
            values = {name: getattr(told, name) for name in names if hasattr(told, name)}
            return SweepCommand(**values), words[:count], words[count:]
    known = ["train", *(name.replace(".", " ") for name in sorted(plugins))]
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"command: {text!r} trains no runs; {hint}")


def _check_envs(spec: SweepSpec, command: SweepCommand, name: str) -> None:
    if command.takes_env and spec.envs is None:
        raise ValueError(f"envs: no value given; {name} needs environments")
    if not command.takes_env and spec.envs is not None:
        raise ValueError(f"envs: {name} takes none, its recipes name their data; got {spec.envs}")


def _preparations(spec: SweepSpec) -> Iterator[Preparation]:
    for name, text in spec.prepare.items():
        try:
            training, words, further = _find_command(text)
        except ValueError:  # nothing that trains: a data set, a cache
            yield Preparation(name=name, words=tuple(shlex.split(text)), training=None, resume=())
        else:
            yield Preparation(
                name=name,
                words=(*words, *further),
                training=training,
                resume=training.resume or tuple(words),
            )


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
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {{{near[0]}}}?" if near else f"there are {list(known)}"
                raise ValueError(f"{place}: {{{name}}} is not prepared before; {hint}")


def _points(
    spec: SweepSpec, path: Path, command: SweepCommand, words: list[str], further: list[str]
) -> Iterator[Point]:
    paths = further[: len(command.path_words)]
    if len(paths) < len(command.path_words):
        missing = command.path_words[len(paths)]
        raise ValueError(f"command: {spec.command!r} must name the {missing}'s path")
    variants = list(_variants(spec, path, command, paths))
    again = further[len(paths) :] if command.resume_words else ()
    always = (*(command.resume or words), *again, *command.options)
    steps = () if spec.steps is None else ("--steps", str(spec.steps))
    # Seeds outermost: the first third of a sweep over three seeds already shows the whole picture.
    for seed, variant in itertools.product(spec.seeds, variants):
        recipe_words = () if variant.recipe_word is None else ("--recipe", variant.recipe_word)
        yield Point(
            name=f"{variant.label}-seed{seed}",
            env=variant.env,
            seed=seed,
            settings=variant.settings,
            recipe=variant.recipe,
            start=(
                *(*words, *further, *_env_words(variant.env), *recipe_words),
                *(word for override in variant.overrides for word in ("--set", override)),
                *(*steps, "--seed", str(seed), *command.options),
            ),
            resume=always,
            finished_at=command.finished_at(variant.recipe),
        )


def _env_words(env: str | None) -> tuple[str, ...]:
    return () if env is None else ("--env", env)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """What the runs of all seeds have in common."""

    label: str
    env: str | None
    settings: Mapping[str, Any]
    overrides: tuple[str, ...]
    recipe_word: str | None
    recipe: Any


def _variants(
    spec: SweepSpec, path: Path, command: SweepCommand, paths: Sequence[str]
) -> Iterator[_Variant]:
    from plan_envs.catalogue import resolve_task
    from trm.recipe import load_recipe

    cases: list[tuple[str | None, Mapping[str, Any]]] = [*spec.cases.items()] or [(None, {})]
    combinations = [
        dict(zip(spec.grid, values, strict=True))
        for values in itertools.product(*spec.grid.values())
    ]
    short = _short_names(list(spec.grid))
    told = [] if spec.steps is None else [f"{command.steps_field}={spec.steps}"]
    told += [
        f"{name}={json.dumps(word if _REFERENCE.fullmatch(word) else str(Path(word).resolve()))}"
        for name, word in zip(command.path_words, paths, strict=True)
    ]
    envs = [None] if spec.envs is None else [resolve_task(env).name for env in spec.envs]
    for env in envs:
        for (case, changes), point in itertools.product(cases, combinations):
            recipe_word, recipe_file = _find_recipe(spec.recipe, env, case, path, command)
            parts = [part for part in (env, case) if part]
            parts += [f"{short[name]}={_as_label(value)}" for name, value in point.items()]
            label = _safe(",".join(parts)) or path.stem
            values = {**spec.set, **changes, **point}
            overrides = tuple(f"{name}={_as_text(value)}" for name, value in values.items())
            try:
                recipe: Any = load_recipe(command.recipe, recipe_file, [*overrides, *told])
            except ValueError as error:
                raise ValueError(f"{label}: {str(error).removeprefix('--set: ')}") from error
            yield _Variant(
                label=label,
                env=env,
                settings={**({"case": case} if case else {}), **point},
                overrides=overrides,
                recipe_word=recipe_word,
                recipe=recipe,
            )


def _find_recipe(
    name: str | None, env: str | None, case: str | None, spec_path: Path, command: SweepCommand
) -> tuple[str | None, Path | None]:
    """What `--recipe` gets, and the file; both None for the defaults of the dataclass."""
    if name is None:
        if env is None:
            raise ValueError("recipe: no value given; only environments have recipes of their own")
        shipped = env in command.recipe_names()
        return (env, command.recipe_path(env)) if shipped else (None, None)
    name = name.replace("{env}", env or "").replace("{case}", case or "")
    beside = spec_path.parent / name
    if beside.is_file():
        return str(beside), beside
    return name, command.recipe_path(name)


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


# --- Running


@dataclass(frozen=True, kw_only=True, slots=True)
class PointReport:
    """A change that `run_sweep` tells of."""

    point: Point
    state: PointState
    detail: str
    seconds: float
    num_finished: int
    """Points finished by now, of all."""
    figures: Mapping[str, float]
    """Of a finished point: those of its record that `SweepCommand.figures` names."""


def point_states(sweep: Sweep, out: Path) -> dict[str, PointState]:
    """What is there of every point: finished, interrupted (a run folder) or pending.

    Raises:
        ValueError: a folder holds a run of other settings than the spec's.
    """
    placed = place_sweep(sweep, out)
    return {point.name: _state_of(placed, point, out) for point in placed.points}


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    backend: Backend = "local",
    workers: int | None = None,
    address: str | None = None,
    command: str = "",
    only: Sequence[str] = ("*",),
    report: Callable[[PointReport], None] = lambda _: None,
) -> dict[str, PointState]:
    """Prepare, then train and evaluate every point that is not finished; see `trm.jobs.map_jobs`.

    Args:
        sweep: what to run.
        out: the sweep's folder; made where it is missing.
        backend: "local" or "ray".
        workers: runs at once; None for one a core.
        address: of the Ray cluster.
        command: for the manifest: how this was called.
        only: patterns of the names of points to run, as `fnmatch` has them; the others stay as
            they are.
        report: is told of every point that starts, ends or was finished before.

    Returns:
        The state of every point at the end.

    Raises:
        ValueError: the folder holds another sweep or runs of other settings, another process is
            running it, no point matches a pattern, or a preparation failed.
    """
    sweep = place_sweep(sweep, out)
    chosen = matching_points(sweep, only)
    run_jobs = functools.partial(map_jobs, backend=backend, workers=workers, address=address)
    with _locked(out):
        manifest = _Manifest(sweep, out, command)
        states = point_states(sweep, out)
        points = {point.name: point for point in sweep.points}
        for name, state in states.items():
            manifest.update(name, state)
            if state != "finished":
                record_path(out, name).unlink(missing_ok=True)
        manifest.write()
        if not _prepare(sweep, out, manifest, run_jobs):
            return states

        def keep(result: JobResult) -> None:
            point = points[result.key]
            state = _job_state(result)
            states[point.name] = state
            manifest.update(point.name, state, detail=result.detail, seconds=result.seconds)
            manifest.write()
            report(
                PointReport(
                    point=point,
                    state=state,
                    detail=result.detail,
                    seconds=result.seconds,
                    num_finished=sum(state == "finished" for state in states.values()),
                    figures=manifest.figures(point.name),
                )
            )

        run_jobs([_job(sweep, point, out) for point in chosen], report=keep)
    return states


def matching_points(sweep: Sweep, only: Sequence[str]) -> list[Point]:
    """The points whose names match one of the patterns as `fnmatch` has it, in the sweep's order.

    Raises:
        ValueError: no point matches a pattern; names it and the nearest point.
    """
    names = [point.name for point in sweep.points]
    matching: set[str] = set()
    for pattern in only:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"no point of {sweep.name} matches {pattern!r}; one of {len(names)} is {near!r}"
            )
        matching.update(found)
    return [point for point in sweep.points if point.name in matching]


def prepared_path(out: Path, name: str) -> Path:
    """Where a preparation puts what it makes; the same path in every working directory."""
    return out.resolve() / "prepared" / name


def record_path(out: Path, name: str) -> Path:
    """Where a finished point's record lies."""
    return out / "records" / f"{name}.json"


def train_point(
    folder: Path,
    record: Path,
    *,
    start: Sequence[str],
    resume: Sequence[str],
    finished_at: int,
    eval_num: int,
    make_record: Callable[[Path, int], dict[str, Any]] = keep_record_of,
) -> None:
    """The work of a point's job: train or go on, evaluate, leave the record.

    Raises:
        subprocess.CalledProcessError: the training failed.
        RuntimeError: it ended before its budget did.
    """
    _train(folder, start=start, resume=resume)
    found = make_record(folder, eval_num)
    _check_spent(folder, step=found["step"], finished_at=finished_at)
    record.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**found, "eval_num": eval_num}, allow_nan=False)
    replace_durably(record, f"{text}\n".encode())


def prepare_folder(
    folder: Path,
    done: Path,
    *,
    words: Sequence[str],
    resume: Sequence[str],
    training: SweepCommand | None,
) -> None:
    """The work of a preparation's job: run the command, or go on with it; leave `done`.

    Raises:
        subprocess.CalledProcessError: the command failed.
        RuntimeError: a training ended before its budget did.
    """
    if training is None:
        run_command([sys.executable, "-m", "upi_trm", *words, "--out", str(folder)])
    else:
        from trm.run import Run

        _train(folder, start=words, resume=resume)
        run = Run.open(folder)
        wanted = training.finished_at(run.load_recipe(training.recipe))
        _check_spent(folder, step=run.checkpoint_steps()[-1], finished_at=wanted)
    replace_durably(done, (json.dumps({"command": shlex.join(words)}) + "\n").encode())


def _train(folder: Path, *, start: Sequence[str], resume: Sequence[str]) -> None:
    if (folder / "run.json").exists():
        words = [*resume, "--resume", str(folder)]
    else:
        _clear_unborn(folder)
        words = [*start, "--out", str(folder)]
    run_command([sys.executable, "-m", "upi_trm", *words])


def _check_spent(folder: Path, *, step: int, finished_at: int) -> None:
    if step < finished_at:
        raise RuntimeError(
            f"{folder}: stopped after {step} of {finished_at} steps; run the sweep again"
        )


def _prepare(
    sweep: Sweep, out: Path, manifest: "_Manifest", run_jobs: Callable[..., list[JobResult]]
) -> bool:
    """Run the preparations, those at once that do not wait for one another.

    Returns:
        False when they were told to stop.

    Raises:
        ValueError: one failed.
    """
    waiting = list(sweep.preparations)
    folders = {one.name: prepared_path(out, one.name) for one in waiting}
    while waiting:
        # What a command uses stands in its words, and comes before it.
        blocked = {
            one.name
            for place, one in enumerate(waiting)
            for earlier in waiting[:place]
            if any(str(folders[earlier.name]) in word for word in one.words)
        }
        now = [one for one in waiting if one.name not in blocked]
        results = run_jobs([_preparation_job(one, out) for one in now])
        for one, result in zip(now, results, strict=True):
            manifest.prepared(one.name, result)
        manifest.write()
        for one, result in zip(now, results, strict=True):
            if result.state == "failed":
                raise ValueError(f"prepare: {one.name} failed: {result.detail}")
        if any(result.state == "stopped" for result in results):
            return False
        waiting = [one for one in waiting if one.name in blocked]
    return True


def _preparation_job(one: Preparation, out: Path) -> Job:
    folder = prepared_path(out, one.name)
    done = folder.with_name(f"{one.name}.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = functools.partial(
        prepare_folder, folder, done, words=one.words, resume=one.resume, training=one.training
    )
    key = f"prepare-{one.name}"
    return Job(key=key, work=work, output=done, log=out / "logs" / f"{key}.log")


def _job(sweep: Sweep, point: Point, out: Path) -> Job:
    record = record_path(out, point.name)
    work = functools.partial(
        train_point,
        out / point.name,
        record,
        start=point.start,
        resume=point.resume,
        finished_at=point.finished_at,
        eval_num=sweep.spec.eval_num,
        make_record=sweep.command.make_record,
    )
    return Job(key=point.name, work=work, output=record, log=out / "logs" / f"{point.name}.log")


def _job_state(result: JobResult) -> PointState:
    if result.state in ("done", "skipped"):
        return "finished"
    if result.state == "stopped":
        return "stopped" if result.attempts else "pending"
    return "running" if result.state == "running" else "failed"


def _state_of(sweep: Sweep, point: Point, out: Path) -> PointState:
    from trm.run import Run

    folder = out / point.name
    if (folder / "run.json").exists():
        run = Run.open(folder)
        recipe: Any = run.load_recipe(sweep.command.recipe)
        env = run.info.env if sweep.command.takes_env else None
        if (env, run.info.seed, recipe) != (point.env, point.seed, point.recipe):
            raise ValueError(
                f"{folder}: was trained with other settings than {sweep.name} asks for now; choose"
                " another --out, or move it away"
            )
    if _is_finished(point, record_path(out, point.name), sweep.spec.eval_num):
        return "finished"
    return "interrupted" if folder.exists() else "pending"


def _is_finished(point: Point, record: Path, eval_num: int) -> bool:
    """Whether the record is there and is of this budget and this evaluation."""
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return False
    # A set may have fewer puzzles than were asked for; older records have the number alone.
    num = found.get("eval_num", found.get("num_instances"))
    same = point.env in (None, found.get("env")) and found.get("seed") == point.seed
    return same and num == eval_num and found.get("step", -1) >= point.finished_at


def _clear_unborn(folder: Path) -> None:
    """Remove what a training left that was killed before its folder became a run."""
    if folder.is_dir():
        known = {".lock", "recipe.yaml", "checkpoints"}
        foreign = [e.name for e in folder.iterdir() if e.name not in known and e.suffix != ".tmp"]
        if foreign:
            raise ValueError(f"{folder}: holds {foreign[0]} but no run.json; move it away")
        shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out / ".lock")
    except LockedError as error:
        raise ValueError(
            f"{out}: {error} is running a sweep here; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Manifest:
    """manifest.json: the record of a sweep that people read and commit."""

    def __init__(self, sweep: Sweep, out: Path, command: str) -> None:
        from trm.process import provenance

        self._path = out / "manifest.json"
        earlier = self._read(sweep.name)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": started, "command": command, "provenance": provenance()}
        known = {point["name"]: point for point in earlier.get("points", [])}
        self._out, self._figures = out, sweep.command.figures
        self._prepared = self._prepare_lines(sweep, earlier)
        self._points = {
            point.name: {
                "name": point.name,
                "env": point.env,
                "seed": point.seed,
                "settings": dict(point.settings),
                "command": shlex.join(["upi-trm", *point.start, "--out", str(out / point.name)]),
                "state": "pending",
                "detail": "",
                "seconds": known.get(point.name, {}).get("seconds", 0.0),
                **dict.fromkeys(sweep.command.figures),
            }
            for point in sweep.points
        }
        self._head = {
            "format_version": FORMAT_VERSION,
            "sweep": sweep.name,
            "spec": asdict(sweep.spec),
            "sessions": [*earlier.get("sessions", []), session],
        }

    def update(
        self, name: str, state: PointState, *, detail: str = "", seconds: float = 0.0
    ) -> None:
        point = self._points[name]
        point |= {"state": state, "detail": detail}
        if seconds:
            point["seconds"] = round(seconds, 1)
        if state == "finished":
            found = json.loads(record_path(self._out, name).read_bytes())
            point |= {figure: found[figure] for figure in self._figures}

    def figures(self, name: str) -> dict[str, float]:
        point = self._points[name]
        return {figure: point[figure] for figure in self._figures if point[figure] is not None}

    def prepared(self, name: str, result: JobResult) -> None:
        line = self._prepared[name]
        line |= {"state": _job_state(result), "detail": result.detail}
        if result.seconds:
            line["seconds"] = round(result.seconds, 1)

    def write(self) -> None:
        prepared = list(self._prepared.values())
        record = {
            **self._head,
            **({"prepare": prepared} if prepared else {}),
            "points": list(self._points.values()),
        }
        replace_durably(self._path, (json.dumps(record, indent=1) + "\n").encode())

    def _prepare_lines(self, sweep: Sweep, earlier: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """A line for each preparation; one that was begun with other words is refused."""
        known = {line["name"]: line for line in earlier.get("prepare", [])}
        lines = {}
        for one in sweep.preparations:
            folder = prepared_path(self._out, one.name)
            command = shlex.join(["upi-trm", *one.words, "--out", str(folder)])
            before = known.get(one.name, {})
            if folder.exists() and before.get("command", command) != command:
                raise ValueError(
                    f"{folder}: was made by {before['command']!r}, {sweep.name} asks for"
                    f" {command!r} now; choose another --out, or move it away"
                )
            lines[one.name] = {
                "name": one.name,
                "command": command,
                "state": "pending",
                "detail": "",
                "seconds": before.get("seconds", 0.0),
            }
        return lines

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found: Any = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{self._path}: not valid JSON ({error})") from error
        if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{self._path}: not a manifest of format version {FORMAT_VERSION}")
        if found.get("sweep") != name:
            raise ValueError(
                f"{self._path}: this folder holds the sweep {found.get('sweep')!r}, not {name!r};"
                " choose another --out"
            )
        return found
