"""Run folders (DESIGN.md section 8): recipe, provenance, metrics, checkpoints of one training run.

    recipe.yaml                       what was asked for, complete
    run.json                          format version, kind, environment, seed, command, provenance
    metrics.jsonl, tensorboard/       named numbers by step (`metrics_log`)
    checkpoints/                      weights and states by step, and tags (`checkpoints`)
    .lock                             held by the process that writes (`lock`)
    .making                           there until the folder is a whole run

A learner makes or opens a `Run`, logs to it and saves checkpoints; evaluation, comparison and
reports read it. A kill or a full disk at any moment leaves the run as it was before, or as it is
after. POSIX only (flock).
"""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

from filelock import BaseFileLock
from torch import Tensor

from trm.runs.checkpoints import Checkpoint, CheckpointFolder
from trm.runs.durable import replace_durably
from trm.runs.files import FORMAT_VERSION, RunError, explained, json_bytes, read_json, sha256_of
from trm.runs.lock import take_lock
from trm.runs.metrics_log import MetricsLog
from trm.runs.recipe import dump_recipe, load_recipe, recipe_hash

T = TypeVar("T")

_WORK = "is writing to this run"
_MAKING = ".making"
"""Left in a folder by a `create` that was killed: what is in the folder is ours to clear away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What run.json says."""

    format_version: int
    kind: str
    """The learner that made the run, e.g. "upi"."""
    env: str
    """Name of the task, as `--env` takes it."""
    seed: int
    created: str
    """UTC, ISO 8601."""
    command: str
    recipe_hash: str
    recipe_sha256: str
    """Hash of the text of recipe.yaml, which must not change while the run lives."""
    provenance: Mapping[str, Any]
    """Commit, package versions, python, platform, placement, torch threads."""
    extra: Mapping[str, Any]
    """Whatever else the learner wants to record; JSON values."""


class Run:
    """A run folder, open for reading, or for writing by one process at a time.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, path: Path, info: RunInfo, lock: BaseFileLock | None) -> None:
        """Use `Run.create` or `Run.open`."""
        self.path = path
        self.info = info
        self._lock = lock
        self._overrides: list[str] = []
        self._checkpoints = CheckpointFolder(path / "checkpoints")
        self._metrics = MetricsLog(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kind: str,
        env: str,
        seed: int,
        recipe: object,
        command: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a run folder and open it for writing.

        Args:
            path: must not exist, be an empty folder, or one that a `create` was killed in.
            kind: the learner, e.g. "upi"; `open` can insist on it.
            env: name of the task.
            seed: the seed of the named streams.
            recipe: a dataclass; written to recipe.yaml.
            command: the command line; None for that of this process.
            provenance: commit, packages, machine and placement, as `trm.compute.process.provenance`
                has them; recorded in run.json.
            extra: JSON values to record beside.

        Raises:
            RunError: the folder exists and is not empty, or can't be written.
        """
        path = Path(path)
        text = dump_recipe(recipe).encode()
        with explained(path, "cannot be made"):
            path.mkdir(parents=True, exist_ok=True)
            _check_empty(path)
            lock = take_lock(path, _WORK)
        try:
            # Again, now that nobody else can be filling it.
            _check_empty(path)
            info = RunInfo(
                format_version=FORMAT_VERSION,
                kind=kind,
                env=env,
                seed=seed,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                command=_command_line() if command is None else command,
                recipe_hash=recipe_hash(recipe),
                recipe_sha256=sha256_of(text),
                provenance=dict(provenance or {}),
                extra=dict(extra or {}),
            )
            # run.json comes last: a folder without it is no run yet.
            with explained(path, "cannot be written"):
                try:
                    (path / _MAKING).touch()
                    _clear(path)
                    (path / "checkpoints").mkdir()
                    replace_durably(path / "recipe.yaml", text)
                    replace_durably(path / "run.json", json_bytes(asdict(info)))
                    (path / _MAKING).unlink()
                except BaseException:
                    _empty(path)
                    raise
        except BaseException:
            lock.release()
            raise
        return cls(path, info, lock)

    @classmethod
    def open(cls, path: Path, *, kind: str | None = None, write: bool = False) -> "Run":
        """Open a run folder.

        Args:
            path: the folder that `create` made.
            kind: the learner that must have made it; None for any.
            write: take the writer's lock and clear away what an interrupted writer left half-done.

        Raises:
            RunError: not a run folder, another format version or kind, or, with `write`, another
                process writes to it.
        """
        path = Path(path)
        run = cls(path, _read_info(path), None)
        if kind is not None:
            run.require_kind(kind)
        if not write:
            return run
        run = cls(path, run.info, take_lock(path, _WORK))
        try:
            with explained(path, "cannot be opened for writing"):
                run._recover()
        except BaseException:
            run.close()
            raise
        return run

    def require_kind(self, kind: str) -> None:
        """Refuse a run of another learner.

        Raises:
            RunError: names the file, its kind and the one that is needed.
        """
        if self.info.kind != kind:
            where = self.path / "run.json"
            raise RunError(f"{where}: kind is {self.info.kind!r} where {kind!r} is needed")

    def close(self) -> None:
        """Close the logs and give the writer's lock back; safe to call twice."""
        self._metrics.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        """The run itself; it is closed at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def load_recipe(self, cls: type[T], overrides: Sequence[str] = ()) -> T:
        """The recipe of this run.

        Raises:
            RunError: recipe.yaml is not the file that the run was made with.
            ValueError: it does not fit `cls` (see `trm.runs.recipe.load_recipe`).
        """
        path = self.path / "recipe.yaml"
        with explained(path, "cannot be read"):
            found = sha256_of(path.read_bytes())
        if found != self.info.recipe_sha256:
            raise RunError(
                f"{path}: changed since the run was made (sha256 {found[:12]} where run.json says"
                f" {self.info.recipe_sha256[:12]}); put it back, or start a new run from it"
            )
        return load_recipe(cls, path, [*self._overrides, *overrides], of_run=True)

    def played(self, *, env: str | None = None, depth: int | None = None) -> "Run":
        """This run, read as if it were of another environment or unrolled to another depth.

        The weights of maps over variables or cells do not depend on how many there are, so that
        they play puzzles of other sizes; what does not fit is refused when they are loaded.

        Args:
            env: the environment to play; None for the one it was trained on.
            depth: n, the unrolls of the latent recursion; None for the recipe's.
        """
        other = Run(self.path, replace(self.info, env=env or self.info.env), None)
        other._overrides = [*self._overrides, *([] if depth is None else [f"model.depth={depth}"])]
        return other

    def save_checkpoint(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        tag: str | None = None,
    ) -> Path:
        """Save a checkpoint: whole and on disk when this returns, else not there at all.

        Afterwards the two newest up to this step stay (`KEEP_NEWEST`), and tagged ones; older ones,
        and those of a later step (left over from before the run was taken back to an earlier
        checkpoint), are deleted. Log the metrics of this step before: they are on disk too when
        this returns.

        Args:
            step: the learner's counter, at least 0; an existing checkpoint of the same step is
                replaced.
            weights: named tensors.
            state: everything else that resuming needs; see `pack_state` for what it may hold.
            tag: move this tag ("best") here; a tagged checkpoint is never deleted while it carries
                the tag.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: it can't be written (disk full); the earlier checkpoints are as they were.
            ValueError: `state` holds something that can't be stored.
        """
        self._check_writable()
        with explained(self.path / "metrics.jsonl", "could not be written"):
            self._metrics.sync()
            metrics = self._metrics.checksum()
        return self._checkpoints.save(step, weights=weights, state=state, metrics=metrics, tag=tag)

    def load_checkpoint(self, step: int | str | None = None) -> Checkpoint:
        """Read a checkpoint and check its sizes and hashes; never deletes or changes anything.

        Args:
            step: a step, a tag such as "best", or None for the newest.

        Raises:
            RunError: there is none, or a file of it is missing, truncated or corrupt; says which
                earlier one is whole.
        """
        return self._checkpoints.load(step)

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending; they are not read."""
        return self._checkpoints.steps()

    def tagged_step(self, tag: str) -> int | None:
        """The step that a tag stands for; None when nothing carries it."""
        return self._checkpoints.tagged_step(tag)

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Append one line to metrics.jsonl and the same numbers to TensorBoard.

        Raises:
            RunError: it can't be written; the file is as it was.
        """
        self._check_writable()
        self._metrics.append(step, metrics)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first; a last line that is only half written is left out.

        Raises:
            RunError: a line is damaged, or the lines are those that no checkpoint of this run was
                saved with.
        """
        lines = self._metrics.read()
        self._checkpoints.check_metrics(self._metrics.matches)
        return lines

    def check_metrics(self, checkpoint: Checkpoint) -> bool:
        """Compare metrics.jsonl with what it was when a checkpoint was saved.

        Returns:
            False where the file is gone, so that the lines up to the checkpoint are lost.

        Raises:
            RunError: it does not begin with the lines that the checkpoint was saved with.
        """
        wanted = checkpoint.metrics
        if wanted is None or self._metrics.matches(wanted):
            return True
        if not self._metrics.exists():
            return False
        raise RunError(
            f"{self.path / 'metrics.jsonl'}: damaged: its first {wanted.bytes} bytes are not those"
            f" that checkpoint {checkpoint.step} was saved with; put it back, or move it away to go"
            " on without them"
        )

    def truncate_metrics(self, after_step: int) -> None:
        """Drop every line of a later step, in TensorBoard too; the log goes on from there."""
        self._check_writable()
        self._metrics.truncate(after_step)

    def _recover(self) -> None:
        """Finish or take back what an interrupted writer left half-done."""
        for file in (*self.path.glob(".*.tmp"), *self.path.glob(_MAKING)):
            file.unlink()
        self._checkpoints.recover()
        self._metrics.recover()

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RunError(f"{self.path}: opened for reading only, or closed")


def _read_info(path: Path) -> RunInfo:
    file = path / "run.json"
    if not path.exists():
        raise RunError(f"{path}: no such run folder")
    if not file.is_file() and (path / _MAKING).exists():
        raise RunError(f"{path}: the making of this run was interrupted; start it there once more")
    if not file.is_file():
        inside = [parent for parent in path.resolve().parents if (parent / "run.json").is_file()]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise RunError(f"{path}: not a run folder (it holds no run.json){hint}")
    record = read_json(file)
    types: dict[str, type] = {
        "seed": int,
        **dict.fromkeys(("kind", "env", "created", "command", "recipe_hash", "recipe_sha256"), str),
        **dict.fromkeys(("provenance", "extra"), dict),
    }
    for name, kind in types.items():
        if not isinstance(record.get(name), kind):
            raise RunError(f"{file}: {name} is {record.get(name)!r}, expected {kind.__name__}")
    return RunInfo(format_version=FORMAT_VERSION, **{name: record[name] for name in types})


@contextlib.contextmanager
def fitting(run: Run, checkpoint: Checkpoint) -> Iterator[None]:
    """Name run, checkpoint and environment where the weights are refused inside the block.

    Raises:
        RunError: the weights are of other networks.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise RunError(
            f"{run.path}: checkpoint {checkpoint.step} does not fit {run.info.env}: {detail}"
        ) from error


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _check_empty(path: Path) -> None:
    made = (path / "run.json").exists()
    if not made and (path / _MAKING).exists():
        return
    if any(entry.name != ".lock" for entry in path.iterdir()):
        hint = "resume it" if made else "empty it"
        raise RunError(f"{path}: the folder exists and is not empty; {hint}, or choose another one")


def _clear(path: Path) -> None:
    """Remove what a `create` writes, run.json first: without it the folder is no run."""
    for file in (path / "run.json", path / "recipe.yaml", *path.glob(".*.tmp")):
        file.unlink(missing_ok=True)
    shutil.rmtree(path / "checkpoints", ignore_errors=True)


def _empty(path: Path) -> None:
    """Take back what a failed `create` wrote, so that the same path can be tried again."""
    with contextlib.suppress(OSError):
        _clear(path)
        (path / _MAKING).unlink(missing_ok=True)
        (path / ".lock").unlink(missing_ok=True)
