"""Reading what somebody else may have written: how large and how deep it may be, in one place.

Every reader of a file takes its limit from here, so that a file from elsewhere (a zip that unpacks
to gigabytes, brackets nested ten thousand deep, `/dev/zero`) is refused in one line before memory
is taken for it. Input is a path or bytes, output bytes, JSON values or arrays. `OSError` comes
through as it is; everything else that is wrong with a file is a `ValueError` of one line.
docs/faults.md lists the limits for users.
"""

import io
import itertools
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The most that a reader takes of one kind of file."""

    kind: str
    """What errors call such a file."""
    size: int
    """Bytes; of an archive the bytes that its members unpack to."""
    depth: int | None = None
    """Levels of lists and objects inside one another; None where the format does not nest."""
    count: int | None = None
    """Items: values of a YAML file with its aliases written out, files of a cache; None = any."""


JSON: Final = Limit(kind="a JSON file", size=64 * MIB, depth=64)
YAML: Final = Limit(kind="a YAML file", size=MIB, depth=32, count=100_000)
METRICS: Final = Limit(kind="a log of metrics", size=1024 * MIB, depth=4)
TEXT: Final = Limit(kind="a text of puzzles", size=512 * MIB)
CSV_LINE: Final = Limit(kind="a line of a CSV file", size=MIB)
ARRAYS: Final = Limit(kind="an .npz file", size=2048 * MIB)
CHECKPOINT_FILE: Final = Limit(kind="a file of a checkpoint", size=65_536 * MIB, depth=200)
PARTS: Final = Limit(kind="a teacher cache or a folder of votes", size=65_536 * MIB, count=100_000)

LIMITS: Final = (JSON, YAML, METRICS, TEXT, CSV_LINE, ARRAYS, CHECKPOINT_FILE, PARTS)
"""All of them, in the order of the table in docs/faults.md."""

_STRINGS: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}


def one_line(problem: object) -> str:
    """A message, or the message of an error, on one line of readable length."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def read_bytes(path: Path, limit: Limit) -> bytes:
    """The content of a file, which may be a device or a pipe.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds more than the limit; nothing beyond the limit is read.
    """
    with open(path, "rb") as file:
        data = file.read(limit.size + 1)
    if len(data) > limit.size:
        raise ValueError(f"{path}: larger than {_bytes(limit.size)}, the most of {limit.kind}")
    return data


def parse_json(data: bytes | str, limit: Limit = JSON) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: no JSON, or one nested deeper than the limit; one line without a file name.
    """
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    deepest = limit.depth or 0
    if text.count("[") + text.count("{") > deepest:
        signs = (_BRACKETS[sign] for sign in _STRINGS.sub("", text) if sign in _BRACKETS)
        if any(level > deepest for level in itertools.accumulate(signs)):
            raise ValueError(f"nested deeper than {deepest} levels, the most of {limit.kind}")
    try:
        return json.loads(text)
    except RecursionError:  # a bracket inside what is no JSON string
        raise ValueError("nested too deep") from None


def bounded_lines(file: TextIO, place: str, limit: Limit = CSV_LINE) -> Iterator[str]:
    """The lines of a text file, none of which is read beyond the limit.

    Raises:
        ValueError: a line is longer; names the place and the line.
    """
    for number in itertools.count(1):
        line = file.readline(limit.size + 1)
        if len(line) > limit.size:
            raise ValueError(
                f"{place}:{number}: longer than {_bytes(limit.size)}, the most of {limit.kind}"
            )
        if not line:
            return
        yield line


def parse_array(data: bytes) -> NDArray[Any]:
    """The array of an .npy file; its header must ask for as many bytes as follow.

    Raises:
        ValueError: no such file, or one of Python objects; one line without a file name.
    """
    content = io.BytesIO(data)
    shape, dtype = _array_header(content)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    needed, found = math.prod(shape) * dtype.itemsize, len(data) - content.tell()
    if needed != found:
        raise ValueError(f"its header asks for {needed} bytes where {found} follow")
    try:
        content.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    except Exception as error:  # numpy declares no errors, see `_array_header`
        raise ValueError(one_line(error)) from None
    return array


def map_array(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory.

    Raises:
        OSError: the file can't be read.
        ValueError: no array, or one of Python objects; one line without a file name.
    """
    with open(path, "rb") as file:
        shape, dtype = _array_header(file)
        start, end = file.tell(), file.seek(0, io.SEEK_END)
    needed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or needed != end - start:
        raise ValueError(
            f"its header asks for {needed} bytes of {dtype} where {end - start} follow"
        )
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy declares no errors, see `_array_header`
        raise ValueError(one_line(error)) from None
    return array


def read_npz(path: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name, checksums verified.

    Args:
        path: the file.
        names: the arrays to read, as far as the file has them; None for all of them.

    Raises:
        OSError: the file can't be opened.
        ValueError: one line that names the file and the array that is damaged, or that the file
            unpacks to more than the limit.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile declares BadZipFile alone, and raises others
        raise ValueError(f"{path}: not an .npz file: {one_line(error)}") from None
    with archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        chosen = [name for name in (members if names is None else names) if name in members]
        total = sum(members[name].file_size for name in chosen)
        if total > ARRAYS.size:
            raise ValueError(
                f"{path}: unpacks to {_bytes(total)}, at most {_bytes(ARRAYS.size)} of"
                f" {ARRAYS.kind} are read"
            )
        return {name: _member(archive, members[name], path, name) for name in chosen}


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str
) -> NDArray[Any]:
    damage = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError)
    try:
        return parse_array(archive.read(member))
    except (*damage, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: {name}: damaged: {one_line(error)}") from None


def _array_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type as an .npy file's header has them; the file stands behind it afterwards."""
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"shape {shape}")
    except Exception as error:  # a header is Python text: numpy lets tokenize's errors through
        raise ValueError(f"no array: {one_line(error)}") from None
    return shape, dtype


def _bytes(number: int) -> str:
    """A size in the unit that it is a multiple of, e.g. "64 MiB"."""
    return f"{number // MIB} MiB" if number >= MIB else f"{number} bytes"
