"""Data sets as folders: what one holds, whether its files are whole, and its splits opened.

A data set is a folder: `dataset.json` says what it holds, and each split has memory-mapped arrays
(docs/supervised-data.md). The folders come from `supervised.data_sets.building`; `open_dataset`
gives one split as a `TokenDataset` of whatever kind it is.
"""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Final

from plan_envs.instances import SPLITS
from supervised.data_sets.arc import ArcDataset
from supervised.data_sets.datasets import (
    FORMAT,
    BoardDataset,
    DatasetInfo,
    TokenDataset,
    read_split,
)
from trm.bounded import one_line
from trm.runs.files import read_json_object, unsealed

INFO_FILE: Final = "dataset.json"
"""The file that says what a folder holds; written last, so a folder that has it is complete."""


def open_dataset(folder: str | Path, split: str) -> TokenDataset:
    """One split of the data set in a folder, its arrays memory-mapped.

    Raises:
        ValueError: names the file and what is wrong with it, or the splits that there are.
    """
    folder = Path(folder)
    info = read_info(folder)
    if split not in info.counts:
        hint = "; build one with --validation N" if split == "validation" else ""
        raise ValueError(f"{folder}: split must be one of {list(info.counts)}, got {split!r}{hint}")
    check_files(folder, info, split=split)
    if info.domain == "arc":
        return ArcDataset(folder, split, info)
    arrays = read_split(folder, split, info, ("inputs", "labels"))
    return BoardDataset(info, **arrays, name=str(folder / split))


def read_info(folder: str | Path) -> DatasetInfo:
    """What the data set in a folder holds.

    Raises:
        ValueError: if there is none, or `dataset.json` is not what a builder wrote.
    """
    path = Path(folder) / INFO_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: no data set, or one whose building has not ended ({INFO_FILE} is missing); "
            "`upi-trm supervised data build` makes one, or goes on with it"
        )
    record = read_json_object(path)
    if record.get("format") not in (1, FORMAT):
        raise ValueError(f"{path}: format must be {FORMAT}, got {record.get('format')!r}")
    if record["format"] == FORMAT:
        record = unsealed(record, path)
    wrong = sorted(set(record) ^ {item.name for item in fields(DatasetInfo)})
    if wrong:
        raise ValueError(f"{path}: fields missing or unknown: {one_line(', '.join(wrong))}")
    for key in ("vocab_size", "num_positions", "num_puzzles"):
        if type(record[key]) is not int or record[key] < 1:
            raise ValueError(
                f"{path}: {key} must be a positive integer, got {one_line(repr(record[key]))}"
            )
    for key in ("name", "domain"):
        if not isinstance(record[key], str):
            raise ValueError(f"{path}: {key} must be text, got {one_line(repr(record[key]))}")
    for key in ("counts", "options", "notes", "files"):
        if not isinstance(record[key], dict):
            raise ValueError(f"{path}: {key} must be an object, got {one_line(repr(record[key]))}")
    for key, count in record["counts"].items():
        if key not in SPLITS or type(count) is not int or count < 1:
            found = one_line(repr(count))
            raise ValueError(f"{path}: counts: {key!r} must be a split with examples, got {found}")
    for key, entry in record["files"].items():
        if not isinstance(entry, dict) or not {"size", "sha256"} <= set(entry):
            found = one_line(repr(entry))
            raise ValueError(f"{path}: files: {key!r} must have size and sha256, got {found}")
    return DatasetInfo(**record)


def check_files(folder: str | Path, info: DatasetInfo, *, split: str | None = None) -> None:
    """Compare the files of a data set with what `dataset.json` says of them.

    Args:
        folder: of the data set.
        info: what it holds.
        split: leaves out the files of other splits; None for all files.

    Raises:
        ValueError: names the first file that is missing or differs.
    """
    others = tuple(f"{one}/" for one in info.counts if split not in (None, one))
    for name, expected in info.files.items():
        path = Path(folder) / name
        if name.startswith(others):
            continue
        if not path.is_file():
            raise ValueError(f"{path}: missing")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected["sha256"]:
            raise ValueError(
                f"{path}: damaged: sha256 is {found}, {INFO_FILE} says {expected['sha256']}"
            )
