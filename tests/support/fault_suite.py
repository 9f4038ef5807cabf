"""The fault suite: every writer broken off, every file damaged, and a table of what held.

    python tests/support/fault_suite.py            a part, as tests/project/test_faults.py runs it
    python tests/support/fault_suite.py --whole    all of it, and the table of docs/faults.md

A process of its own, because it forks: torch is imported once. It ends with exit code 1 where a
promise did not hold, and prints each case.
"""

import argparse
import contextlib
import io
import json
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cache_cases
import crash_points
import numpy as np
import torch
from counting import HERE, Counting
from fault_injection import (
    FAULT_KINDS,
    FaultKind,
    Tally,
    Writer,
    at_every_call,
    damages,
    problem_of,
    rewrite_table,
)
from kill_training import TINY

from baselines.recipe import BaselineRecipe
from baselines.replay_files import load_replay
from baselines.trainer import BaselineTraining
from plan_envs.catalogue import resolve_task
from plan_envs.instances import InstanceSet
from plan_envs.queens.instances import queens_instances
from plan_envs.queens.rules import Queens
from supervised.data_sets.building import BuildPlan, build_dataset
from supervised.data_sets.datasets import BoardDataset
from supervised.data_sets.folders import check_files, open_dataset, read_info
from supervised.planner.cache_audit import cache_info
from supervised.planner.cache_building import build_shard
from supervised.planner.cache_manifest import claim_folder
from supervised.planner.teacher_cache import TeacherCache
from supervised.recipe import SupervisedRecipe
from supervised.trainer import SupervisedTraining
from trm.compute.jobs import Job, JobResult
from trm.experiments import sweep_run
from trm.experiments.records import parse_record, records_in_file
from trm.experiments.sweep_spec import Sweep, plan_sweep
from trm.experiments.viewing.cli import report
from trm.runs.durable import replace_durably
from trm.runs.files import json_bytes, read_json, sha256_of
from trm.runs.packing import pack_state
from trm.runs.run import Run
from upi_trm.recipe import UpiRecipe
from upi_trm.trainer import UpiTraining

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"

STATED = {
    ("upi", "best.json", "deleted"),
    ("sb3", "best.json", "deleted"),
    ("supervised", "best.json", "deleted"),
    ("record", "record.json", "flipped bit"),
    ("sweep", "records", "flipped bit"),
    ("cache", "costs", "flipped bit"),
    ("cache", "costs", "deleted"),
}
"""(what, file, damage) that may pass without a word; docs/faults.md says so and why."""

DQN = [
    *("algorithm=dqn", "model.channels=4", "model.head_width=6", "model.depth=1"),
    *("rollout.plans=4", "rollout.steps=4", "instances.num=20", "dqn.learning_starts=16"),
    *("dqn.replay_size=200", "dqn.batch_size=8", "dqn.target_every=16", "dqn.gradient_steps=1"),
    *("schedule.evaluate_num=4", "schedule.evaluate_every=64", "schedule.checkpoint_every=32"),
    "schedule.log_every=16",
]
SMALL = """
data: {task: sudoku4x4-hard, num: 20}
model: {mixing: mixer, positions: none, width: 8, layers: 1, heads: 1, inner_multiple: 8,
  prefix: 1, puzzle_channels: 8}
recursion: {cycles: 1, inner: 1, supervision: 2}
optimiser: {learning_rate: 0.003, warm_up: 3, average: 0.9}
batch_size: 4
schedule: {steps: 8, log_every: 2, evaluate_every: 4, evaluate_num: 4, checkpoint_every: 4}
act: {exploration: 0.5}
"""


# --- Writers


def make_run(path: Path) -> None:
    Run.create(path, kind="k", env="e", seed=0, recipe=crash_points.Recipe()).close()


def check_made(path: Path) -> None:
    """The folder is a whole run, or can be made one."""
    if not (path / "run.json").exists():
        make_run(path)
    with Run.open(path, write=True) as run:
        run.load_recipe(crash_points.Recipe)
        assert not list(path.glob(".making"))
        crash_points.save(run, 1)
        assert run.load_checkpoint().step == 1


def prepare_saved(path: Path) -> None:
    with Run.create(path, kind="k", env="e", seed=0, recipe=crash_points.Recipe()) as run:
        for step in (1, 2, 3):
            crash_points.save(run, step, tag="best" if step == 2 else None)


def save_more(path: Path) -> None:
    with Run.open(path, write=True) as run:
        crash_points.save(run, 4)
        crash_points.save(run, 4)
        crash_points.save(run, 5, tag="best")
        run.log(6, {"a": 6})
        run.truncate_metrics(5)


def check_saved(path: Path) -> None:
    assert Run.open(path).checkpoint_steps()[-1] >= 3
    crash_points.verify(path, at_least=3, tagged=lambda newest: 5 if newest >= 5 else 2)


def count_on(path: Path) -> None:
    """Begin a training, or go on with it."""
    if (path / "run.json").exists():
        Counting.resume(path, placement=HERE)
        return
    budget = ["schedule.units=9", "schedule.piece=2"]
    Counting.train(recipe_path=None, overrides=budget, seed=3, out=path, placement=HERE)


def train_on(train: Callable[[Path], Any], resume: Callable[..., Any], path: Path) -> None:
    if (path / "run.json").exists():
        resume(path, placement=HERE)
    else:
        train(path)


def train_upi(path: Path) -> None:
    UpiTraining.train(
        env="sudoku4x4-hard",
        recipe_path=None,
        overrides=TINY,
        steps=96,
        seed=1,
        out=path,
        placement=HERE,
    )


def train_dqn(path: Path) -> None:
    BaselineTraining.train(
        env="sudoku4x4",
        algorithm=None,
        recipe_path=None,
        overrides=DQN,
        steps=96,
        seed=1,
        out=path,
        placement=HERE,
    )


def train_supervised(path: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(SMALL)
        file.flush()
        SupervisedTraining.train(recipe_path=Path(file.name), seed=1, out=path, placement=HERE)


def weights_equal(path: Path, whole: dict[str, torch.Tensor], go_on: Callable[[Path], Any]) -> None:
    """What was saved is whole, and going on ends with the weights of an unbroken training."""
    if (path / "run.json").exists():
        run = Run.open(path)
        for step in run.checkpoint_steps():
            run.load_checkpoint(step)
    go_on(path)
    found = Run.open(path).load_checkpoint().weights
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def dataset_plan() -> BuildPlan:
    """Two pieces of 5x5 Queens."""

    def piece(split: str) -> dict[str, Any]:
        pool = queens_instances(n=5, split=split, num=6, holdout="instances")
        batch = BoardDataset.of(Queens(5), pool).batch(range(6))
        return {
            "inputs": batch.inputs.numpy().astype(np.uint8),
            "labels": batch.labels.clamp(min=0).numpy().astype(np.uint8),
        }

    def finish(pieces: Any) -> Any:
        info = BoardDataset.of(Queens(5), queens_instances(n=5, num=6, holdout="instances")).info
        arrays = {
            f"{split}/{name}.npy": array
            for split, part in pieces.items()
            for name, array in part.items()
        }
        fields = asdict(info) | {"counts": dict.fromkeys(pieces, 6), "name": "queens"}
        return type(info)(**fields), arrays

    pieces = {split: partial(piece, split) for split in ("train", "test")}
    return BuildPlan(name="queens", options={"seed": 0}, pieces=pieces, finish=finish)


def build_data(path: Path) -> None:
    build_dataset(path, dataset_plan())


def check_data(path: Path) -> None:
    build_data(path)
    check_files(path, read_info(path))
    assert len(open_dataset(path, "train")) == 6


def claim_cache(path: Path) -> None:
    manifest = cache_cases.manifest_of(*cache_cases.open_source(), cache_cases.RECIPE)
    claim_folder(path, manifest)


def build_cache(path: Path) -> None:
    claim_cache(path)
    for number in (0, 1):
        build_shard(path, cache_cases.RECIPE, cache_cases.open_source, number)


def check_cache(path: Path) -> None:
    cache_cases.build_here(path)
    TeacherCache.open(path).verify()


@cache
def planned_sweep() -> Sweep:
    """Two points that differ in the seed."""
    with tempfile.TemporaryDirectory() as name:
        spec = Path(name) / "mine.yaml"
        spec.write_text("envs: [sudoku4x4]\nseeds: [0, 1]\nsteps: 64\neval_num: 20\n")
        return plan_sweep(spec)


def run_sweep_here(path: Path) -> str:
    """Run the sweep with its jobs in this process; what people read of it afterwards.

    What trains and evaluates is left out: a run is one checkpoint, its record the same for all.
    """
    points = {point.name: point for point in planned_sweep().points}

    def train(folder: Path, **_: Any) -> None:
        point = points[folder.name]
        if (folder / "run.json").exists():
            run = Run.open(folder, write=True)
        else:
            settings = {"env": str(point.env), "seed": point.seed, "recipe": point.recipe}
            run = Run.create(folder, kind="upi", **settings)
        with run:
            crash_points.save(run, point.finished_at)

    def record(folder: Path, num: int) -> dict[str, Any]:
        run = Run.open(folder)
        changes = {"seed": run.info.seed, "step": run.checkpoint_steps()[-1], "num_instances": num}
        return records_in_file(SHIPPED_RECORD)[0] | changes

    def run_jobs(
        jobs: Sequence[Job], *, report: Callable[[JobResult], None] = lambda _: None
    ) -> list[JobResult]:
        results = []
        for job in jobs:
            there = job.output.exists()
            if not there:
                assert callable(job.work)
                job.work()
            result = JobResult(key=job.key, state="skipped" if there else "done", log=job.log)
            results.append(result)
            report(result)
        return results

    command = replace(planned_sweep().command, make_record=record)
    sweep = replace(planned_sweep(), out=path, command=command)
    with (
        mock.patch.object(sweep_run, "map_jobs", run_jobs),
        mock.patch.object(sweep_run, "_train", train),
    ):
        states = sweep_run.run_sweep(sweep)
    manifest = json.loads((path / "manifest.json").read_bytes())
    records = [json.loads(file.read_bytes()) for file in sorted((path / "records").iterdir())]
    lines = [(point["name"], point["state"], point["success_rate"]) for point in manifest["points"]]
    return repr((states, lines, [repr(parse_record(one, source="here")) for one in records]))


def check_sweep(path: Path) -> None:
    found = run_sweep_here(path)
    assert found.count("'finished'") == 4, found
    assert len(list((path / "records").iterdir())) == 2


SHIPPED_RECORD = ROOT / "trm/experiments/pretrained/sudoku4x4/eval.json"


def prepare_report(run: Path, path: Path) -> None:
    """A run, and a page from before."""
    path.mkdir()
    shutil.copytree(run, path / "run")
    write_report(path)
    (path / "run" / "eval.json").unlink()


def write_report(path: Path) -> None:
    words = [str(path / "run"), "--out", str(path / "page.html"), "--replays", "0", "--num", "4"]
    with contextlib.redirect_stdout(io.StringIO()):
        report.main(words, standalone_mode=False)


def check_report(path: Path) -> None:
    before = (path / "page.html").read_bytes()
    write_report(path)
    assert (path / "page.html").read_bytes() == before
    assert {file.name for file in path.iterdir()} == {"run", "page.html"}


OLD, NEW = b'{"old": 1}\n' * 99, b'{"new": 2}\n' * 99


def write_old(path: Path) -> None:
    path.mkdir()
    (path / "file.json").write_bytes(OLD)


def write_new(path: Path) -> None:
    replace_durably(path / "file.json", NEW)


def check_replaced(path: Path) -> None:
    assert (path / "file.json").read_bytes() in (OLD, NEW)
    write_new(path)
    assert (path / "file.json").read_bytes() == NEW


def small_set(seed: int) -> InstanceSet:
    return queens_instances(n=5, num=9, seed=seed, holdout="instances")


def save_set(path: Path) -> None:
    small_set(1).save(path / "set.npz")


def prepare_set(path: Path) -> None:
    path.mkdir()
    small_set(0).save(path / "set.npz")


def check_set(path: Path) -> None:
    found = InstanceSet.load(path / "set.npz").instances
    assert any(np.array_equal(found, small_set(seed).instances) for seed in (0, 1))


def nothing(path: Path) -> None:
    """The folder is not there."""


LEARNERS = {
    "upi": (train_upi, UpiTraining.resume),
    "sb3": (train_dqn, BaselineTraining.resume),
    "supervised": (train_supervised, SupervisedTraining.resume),
}
RECIPES = {"upi": UpiRecipe, "sb3": BaselineRecipe, "supervised": SupervisedRecipe}


def writers(runs: dict[str, Path], counted: Path) -> dict[str, tuple[Writer, int, int]]:
    """Name -> writer, and the stride over its call points in a part and in the whole.

    Args:
        runs: learner -> a run that was trained without a fault.
        counted: the same of `count_on`.
    """
    saved = "no finished checkpoint is lost, and the next writer goes on"
    equal = "what was saved is whole, and resuming ends with the weights of an unbroken training"
    again = "the same command completes it"
    found = {
        "create": (Writer("Run.create", again, nothing, make_run, check_made), 3, 1),
        "save": (
            Writer("checkpoints, tags, metrics", saved, prepare_saved, save_more, check_saved),
            19,
            1,
        ),
        "loop": (
            Writer(
                "the training loop",
                equal,
                nothing,
                count_on,
                partial(weights_equal, whole=weights_in(counted), go_on=count_on),
            ),
            41,
            4,
        ),
        "data": (Writer("supervised data build", again, nothing, build_data, check_data), 13, 1),
        "cache": (
            Writer("supervised cache build", again, nothing, build_cache, check_cache),
            23,
            4,
        ),
        "file": (
            Writer(
                "records, manifests of sweeps, votes, searches",
                "the old file or the new one, never half",
                write_old,
                write_new,
                check_replaced,
            ),
            2,
            1,
        ),
        "set": (
            Writer(
                "InstanceSet.save", "the old set or the new one", prepare_set, save_set, check_set
            ),
            2,
            1,
        ),
    }
    found["sweep"] = (Writer("sweep", again, nothing, run_sweep_here, check_sweep), 61, 4)
    if "upi" in runs:
        whole_page = "the old page or the new one, and the same command writes it"
        prepare = partial(prepare_report, runs["upi"])
        found["report"] = (Writer("report", whole_page, prepare, write_report, check_report), 23, 5)
    for name, path in runs.items():
        go_on = partial(train_on, *LEARNERS[name])
        check = partial(weights_equal, whole=weights_in(path), go_on=go_on)
        found[name] = (Writer(f"{name} training", equal, nothing, go_on, check), 0, 149)
    return found


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return Run.open(path).load_checkpoint().weights


# --- Readers


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Files that are read, and what a reader makes of them."""

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    """What is read, as something that can be compared."""
    forge: Callable[[Path], list[tuple[str, bytes]]] = lambda _: []
    """Contents of a state.pt that a manifest's hash fits, but no trainer wrote."""
    files: tuple[str, ...] = ("**/*",)
    """Patterns of those that are damaged."""


def read_run(kind: str, path: Path) -> Any:
    """Everything that resuming and playing read of a run."""
    run = Run.open(path, kind=kind)
    recipe = run.load_recipe(RECIPES[kind])
    newest, best = run.load_checkpoint(), run.load_checkpoint("best")
    lost = not run.check_metrics(newest)
    if "replay" in newest.state:
        load_replay(run, newest.state["replay"], blank_replay())
    if lost:
        raise ValueError("metrics.jsonl: missing, as the training loop says")
    info = (run.info.env, run.info.seed, run.info.command, run.info.extra, run.info.provenance)
    contents = [(c.step, weights_hash(c.weights), repr(sorted(c.state))) for c in (newest, best)]
    return repr((recipe, info, contents, run.read_metrics(), run.tagged_step("best")))


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    return sha256_of(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))


def blank_replay() -> Any:
    """A buffer as SB3 has it, of the size of `DQN`."""
    spec = resolve_task("sudoku4x4").domain.spec
    rows, plans, cells, actions = 50, 4, spec.num_cells, spec.num_actions
    sides = {
        key: np.zeros((rows, plans, size), np.int8)
        for key, size in (("instance", cells), ("plan", cells), ("action_mask", actions))
    }
    columns = {
        name: np.zeros((rows, plans), np.float32) for name in ("rewards", "dones", "timeouts")
    }
    return SimpleNamespace(
        buffer_size=rows,
        pos=0,
        full=False,
        actions=np.zeros((rows, plans, 1), np.int64),
        observations=sides,
        next_observations={key: value.copy() for key, value in sides.items()},
        **columns,
    )


def read_data(path: Path) -> Any:
    info, parts = read_info(path), {}
    for split in info.counts:
        batch = open_dataset(path, split).batch(range(6))
        parts[split] = sha256_of(batch.inputs.numpy().tobytes() + batch.labels.numpy().tobytes())
    return repr((info, parts))


def read_cache(path: Path) -> Any:
    cache = TeacherCache.open(path)
    cache.verify()
    chosen = cache.choose(
        cache_cases.dataset().batch(range(9)), np.random.default_rng(0), quality=None
    )
    targets = cache.targets(chosen)
    info = cache_info(path)
    return repr((cache.manifest, targets.tokens.tolist(), info.teacher_steps, info.cpu_seconds))


def write_record(path: Path) -> None:
    path.mkdir()
    (path / "record.json").write_bytes(SHIPPED_RECORD.read_bytes())


def read_record(path: Path) -> Any:
    file = path / "record.json"
    return [repr(parse_record(one, source=str(file))) for one in records_in_file(file)]


def forged_states(path: Path) -> list[tuple[str, bytes]]:
    """Bytes for state.pt that are no state of this run."""

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    nested = saved({"a": deep})
    sys.setrecursionlimit(limit)
    state = Run.open(path).load_checkpoint().state
    cut = saved(pack_state(state))
    return [
        ("empty", b""),
        ("zeros", bytes(1000)),
        ("a pickle", pickle.dumps({"a": 1})),
        ("a pickle that runs code", pickle.dumps(partial(print, "run"))),
        ("a compressed archive", squeezed.getvalue()),
        ("a list", saved([1, 2])),
        ("half", cut[: len(cut) // 2]),
        ("nested 900 deep", nested),
        ("an unknown mark", saved({"__packed__": "gift"})),
        ("a generator that is none", saved({"__packed__": "numpy generator", "kind": "seed"})),
    ]


FOLDERS = [
    *(
        Folder(name=name, make=LEARNERS[name][0], read=partial(read_run, name), forge=forged_states)
        for name in LEARNERS
    ),
    Folder(name="data set", make=build_data, read=read_data),
    Folder(name="cache", make=cache_cases.build_here, read=read_cache),
    Folder(
        name="set", make=prepare_set, read=lambda path: repr(InstanceSet.load(path / "set.npz"))
    ),
    Folder(name="record", make=write_record, read=read_record),
    Folder(
        name="sweep",
        make=run_sweep_here,
        read=run_sweep_here,
        files=("manifest.json", "records/*"),
    ),
]


def damage_all(folder: Folder, path: Path, tally: Tally, *, flips: int) -> None:
    """Damage each file of a folder in every way and read the folder."""
    expected = folder.read(path)
    for file in sorted(file for pattern in folder.files for file in path.glob(pattern)):
        name = str(file.relative_to(path))
        if not file.is_file() or "tensorboard" in name or file.name == ".lock":
            continue
        data = file.read_bytes()
        for number, (kind, damaged) in enumerate(damages(data, flips=flips, seed=len(data))):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            problem = problem_of(lambda: folder.read(path), expected)
            many = file.parent.name in ("costs", "records")
            stated = (folder.name, file.parent.name if many else file.name, kind)
            if problem == "accepted without a word" and stated in STATED:
                problem = None
            promise = f"{folder.name}: {kind}: refused in one line, or nothing that is read differs"
            tally.count(promise, f"{name}, {number}", problem)
            file.write_bytes(data)
    for kind, state in folder.forge(path):
        newest = path / "checkpoints" / f"step-{Run.open(path).checkpoint_steps()[-1]:09d}"
        kept = {name: (newest / name).read_bytes() for name in ("state.pt", "checkpoint.json")}
        manifest = read_json(newest / "checkpoint.json")
        manifest["files"]["state.pt"] = {"bytes": len(state), "sha256": sha256_of(state)}
        (newest / "state.pt").write_bytes(state)
        (newest / "checkpoint.json").write_bytes(json_bytes(manifest))
        problem = problem_of(lambda: folder.read(path), None)
        tally.count(f"{folder.name}: a forged state with fitting hashes: refused", kind, problem)
        for name, data in kept.items():
            (newest / name).write_bytes(data)


# --- Both


def main(words: list[str]) -> int:
    """Run a part or the whole; 0 where every promise held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--only", help="of the writers and folders")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    tally = Tally()
    # In memory where there is such a folder: a kill loses nothing that the system has taken over.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        scratch = Path(name)
        count_on(scratch / "counted")
        made = {folder.name: scratch / folder.name for folder in FOLDERS}
        wanted = {"report": "upi"}.get(options.only, options.only)
        for folder in FOLDERS:
            if wanted in (None, folder.name):
                folder.make(made[folder.name])
        runs = {learner: made[learner] for learner in LEARNERS if made[learner].exists()}
        for number, (key, (writer, part, whole)) in enumerate(
            writers(runs, scratch / "counted").items()
        ):
            stride = whole if options.whole else part
            if stride and options.only in (None, key):
                say(f"{writer.name}, every {stride} calls")
                place = scratch / f"broken-{number}"
                place.mkdir()
                kinds: tuple[FaultKind, ...] = FAULT_KINDS
                at_every_call(writer, place, tally, kinds=kinds, stride=stride)
        for folder in FOLDERS:
            if options.only in (None, folder.name):
                say(f"files of {folder.name}")
                damage_all(folder, made[folder.name], tally, flips=12 if options.whole else 3)
    print(tally.table())
    for promise, cases in tally.broken.items():
        print(f"\nNOT HELD: {promise}", *cases[:5], sep="\n  ")
    if options.whole and not options.only and not tally.broken:
        rewrite_table(PAGE, tally.table())
    return 1 if tally.broken else 0


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
