"""JSON files of a run folder, and errors that name the file."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
"""Version of the folder's layout and of its JSON files; another version is refused."""


class RunError(ValueError):
    """A run folder can't be used as asked; one line that names the file and what is wrong."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of this format version."""
    record = read_json_object(path)
    if record.get("format_version") != FORMAT_VERSION:
        version = record.get("format_version")
        raise RunError(
            f"{path}: format_version is {version!r}, this program reads and writes {FORMAT_VERSION}"
        )
    return record


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        RunError: for a file that can't be read or holds something else; names it.
    """
    with explained(path, "cannot be read"):
        data = path.read_bytes()
    try:
        record = json.loads(data)
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def json_bytes(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def explained(path: Path, problem: str) -> Iterator[None]:
    """Turn the operating system's refusal into one line that names the file and the cause."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise RunError(f"{where}: {problem}: {error.strerror or error}") from error
