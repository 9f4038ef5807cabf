"""JSON files of a run folder, and errors that name the file.

Everything that a run folder holds as JSON goes through here, so that a damaged file or one of
another format version is refused in one line. A file of version 2 holds the hash of its own
content, so that a flipped bit which leaves valid JSON is noticed. Input is a path, output a checked
record.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trm.bounded import JSON, one_line, parse_json, read_bytes
from trm.runs.durable import replace_durably

FORMAT_VERSION = 2
"""Version of the folder's layout and of its JSON files."""

READABLE = (1, 2)
"""Versions that are read; files of version 1 have no hash of their own. Others are refused."""

_SEAL = "sha256"


class RunError(ValueError):
    """A run folder can't be used as asked; one line that names the file and what is wrong."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file that `json_bytes` made, without the hash of its content.

    Raises:
        RunError: for another version, a file that changed since it was written, or one that
            `read_json_object` refuses.
    """
    record = read_json_object(path)
    version = record.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise RunError(
            f"{path}: format_version is {version!r}, this program reads"
            f" {' and '.join(map(str, READABLE))}"
        )
    return unsealed(record, path) if version >= 2 else record


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        RunError: for a file that can't be read or holds something else; names it.
    """
    with explained(path, "cannot be read"):
        data = read_bounded(path)
    try:
        record = parse_json(data)
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({one_line(error)})") from error
    if not isinstance(record, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def unsealed(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A record of `json_bytes` without the hash of its content.

    Raises:
        RunError: the hash is another one; names the file.
    """
    content = {name: value for name, value in record.items() if name != _SEAL}
    if record.get(_SEAL) != _seal_of(content):
        raise RunError(
            f"{path}: changed since it was written: its content has another sha256 than it says;"
            " put it back"
        )
    return content


def read_bounded(path: Path) -> bytes:
    """The bytes of a JSON file.

    Raises:
        OSError: it can't be read.
        RunError: it is too large.
    """
    try:
        return read_bytes(path, JSON)
    except ValueError as error:
        raise RunError(str(error)) from None


def claim(file: Path, record: Mapping[str, Any], *, kind: str) -> None:
    """Write what a folder is for into a file of it, or check that the file says the very same.

    Args:
        file: its folder is made where it is missing.
        record: JSON values.
        kind: what the folder holds, for errors.

    Raises:
        RunError: the file says something else; names the first field that differs.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(file, (json.dumps(record, indent=1) + "\n").encode())
    found, wanted = read_json_object(file), json.loads(json.dumps(record))
    for key in (*wanted, *found):
        if found.get(key) != wanted.get(key):
            raise RunError(
                f"{file}: another {kind}: {key} is {found.get(key)!r} there and"
                f" {wanted.get(key)!r} here; choose another folder"
            )


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """The content of a JSON file with its hash: indented by two, with a line end."""
    return (json.dumps({**record, _SEAL: _seal_of(record)}, indent=2) + "\n").encode()


def _seal_of(record: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(record, sort_keys=True).encode())


def sha256_of(data: bytes) -> str:
    """The SHA-256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def explained(path: Path, problem: str) -> Iterator[None]:
    """Turn the operating system's refusal into one line that names the file and the cause.

    Args:
        path: the file, where the error itself does not name one.
        problem: what went wrong, e.g. "cannot be read".

    Raises:
        RunError: for an `OSError` in the block.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise RunError(f"{where}: {problem}: {error.strerror or error}") from error
