"""Guards against ARC tasks on both sides of a measurement."""

from pathlib import Path

from plan_envs.arc.grids import LARGEST, grid_of
from plan_envs.arc.tasks import ArcTask
from plan_envs.domain import Int8Array
from supervised.data_sets.arc import ArcDataset, decode_tokens, known_among
from supervised.data_sets.folders import open_dataset, read_info


def refuse_arc_leaks(trained: str | Path, evaluated: str | Path, *, split: str = "test") -> None:
    """Refuse to evaluate on a data set what was trained on another (or the same).

    A model trained for ARC-2 knows 376 of the 400 evaluation tasks of ARC-1, tests included.

    Args:
        trained: folder of the data set whose training split was trained on.
        evaluated: folder of the one to evaluate on.
        split: of the latter.

    Raises:
        ValueError: says how many examples of the split were trained on, up to symmetry.
    """
    known, asked = open_dataset(trained, "train"), open_dataset(evaluated, split)
    if not isinstance(known, ArcDataset) or not isinstance(asked, ArcDataset):
        raise ValueError(f"{trained} and {evaluated} must be data sets of ARC")
    leaks = sum(known_among(asked.marks(), known.marks()))
    if leaks:
        raise ValueError(
            f"{evaluated}: {leaks} of its {len(asked)} {split} pairs are in the training split of "
            f"{trained}"
        )


def check_arc_evaluation(trained: str | Path, evaluated: str | Path, *, split: str) -> None:
    """Refuse to evaluate a model on a data set that cannot say anything of it.

    The data set that was trained on is always fine. Another one must hold nothing that was trained
    on (`refuse_arc_leaks`), and have the same puzzle identifiers: a model has learnt those of its
    own tasks alone.

    Raises:
        ValueError: says which of the two does not hold.
    """
    infos = [read_info(folder) for folder in (trained, evaluated)]
    if infos[0].hash == infos[1].hash:
        return
    refuse_arc_leaks(trained, evaluated, split=split)
    for name in ("tasks.npy", "offsets.npy", "symmetries.npy"):
        if infos[0].files[name] != infos[1].files[name]:
            raise ValueError(
                f"{evaluated}: its puzzle identifiers are not those of {trained} ({name} differs), "
                "and a model knows no others"
            )


def evaluation_tasks(folder: str | Path) -> list[ArcTask]:
    """The evaluated tasks of a data set, without demonstrations: test inputs and known outputs."""
    dataset = open_dataset(folder, "test")
    if not isinstance(dataset, ArcDataset):
        raise ValueError(f"{folder}: domain must be arc, got {dataset.info.domain!r}")
    batch = dataset.batch(range(len(dataset)))
    boards = (decode_tokens(part.numpy()) for part in (batch.inputs, batch.labels))
    tests: dict[str, list[tuple[Int8Array, Int8Array | None]]] = {}
    for k, (asked, answer) in enumerate(zip(*boards, strict=True)):
        output = grid_of(answer, LARGEST) if answer.any() else None
        tests.setdefault(dataset.task_of(k)[0], []).append((grid_of(asked, LARGEST), output))
    return [
        ArcTask(id=name, train=(), test=tuple(pairs), subset="evaluation")
        for name, pairs in tests.items()
    ]
