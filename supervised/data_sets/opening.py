"""Opens a data set of any kind."""

from pathlib import Path

from supervised.data_sets.datasets import (
    INFO_FILE,
    BoardDataset,
    TokenDataset,
    read_array,
    read_info,
)


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
    if info.domain == "arc":
        from supervised.data_sets.arc import ArcDataset  # it stands on this module

        return ArcDataset(folder, split, info)
    arrays = {name: read_array(folder / split / f"{name}.npy") for name in ("inputs", "labels")}
    for name, array in arrays.items():
        if len(array) != info.counts[split]:
            raise ValueError(
                f"{folder / split / name}.npy has {len(array)} examples, "
                f"{INFO_FILE} says {info.counts[split]}"
            )
    return BoardDataset(info, **arrays, name=str(folder / split))
