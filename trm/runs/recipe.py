"""Recipes: YAML files and `--set` overrides that become typed, frozen dataclasses.

An experiment is one complete YAML file (DESIGN.md section 8). Each dataclass lives beside the class
it configures and checks its own ranges in `__post_init__`; this module reads the file, checks names
and types, and says in one line what is wrong. It is the only one that sees OmegaConf: no
`DictConfig` ever leaves it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml  # type: ignore[import-untyped]  # only for its error types; stubs are no dependency of ours
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import (
    ConfigTypeError,
    OmegaConfBaseException,
    UnsupportedValueType,
    ValidationError,
)

from trm.bounded import YAML, read_bytes

T = TypeVar("T")


class Retired(NamedTuple):
    """A field that a section once had. `RETIRED`, a ClassVar of the section, maps its name here."""

    value: Any
    """What the program does now, as the field's value."""
    fate: str
    """A sentence that says what became of the field."""


def load_recipe(
    cls: type[T], path: Path | None, overrides: Sequence[str] = (), *, of_run: bool = False
) -> T:
    """Read a recipe file and overrides into the dataclass `cls`.

    Args:
        cls: a dataclass, usually frozen; fields may be dataclasses themselves.
        path: YAML file; None for the defaults of `cls`.
        overrides: assignments `field=value` or `outer.inner=value`, the value in YAML; later ones
            win.
        of_run: whether the file belongs to a run that was made before: a retired field is then
            skipped where its value is what the program does anyway, so that the run stays usable.

    Returns:
        An instance of `cls`; fields that neither the file nor an override names keep their
        defaults.

    Raises:
        ValueError: one line naming the file (or `--set`), the field and the value, for an unknown
            field (with the nearest valid one), a wrong type, a value out of range, malformed YAML
            or a missing file.
    """
    draft = _Draft(cls=cls, config=OmegaConf.structured(cls), path=path, origins={}, of_run=of_run)
    if path is not None:
        draft.assign(_read_yaml(path), source=str(path))
    for override in overrides:
        draft.assign(_parse_override(override), source="--set")
    recipe: T = draft.build()
    return recipe


def dump_recipe(recipe: object) -> str:
    """YAML text that `load_recipe` reads back into an equal recipe."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def recipe_hash(recipe: object) -> str:
    """Hash of every value in the recipe, 16 hexadecimal digits, the same in every process."""
    values = OmegaConf.to_container(OmegaConf.structured(recipe))
    text = json.dumps([type(recipe).__name__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(kw_only=True, slots=True)
class _Draft:
    """A recipe in the making, and which source last set each field."""

    cls: type
    config: DictConfig
    path: Path | None
    origins: dict[str, str]
    """Field -> the source that set it last; the field set last comes last."""
    of_run: bool
    """Whether retired fields are skipped where they ask for what the program does anyway."""

    def assign(self, values: Mapping[Any, Any], *, source: str) -> None:
        self._assign_record(self.config, self.cls, values, source=source, prefix="")

    def build(self) -> Any:
        for name in sorted(OmegaConf.missing_keys(self.config)):
            raise ValueError(
                f"{self.path or 'recipe'}: {name}: no value given, and there is no default"
            )
        try:
            return OmegaConf.to_object(self.config)
        except ValueError:
            self._blame(self.config, self.cls, prefix="")
            raise

    def _assign_record(
        self, node: DictConfig, cls: type, values: Mapping[Any, Any], *, source: str, prefix: str
    ) -> None:
        hints = _field_types(cls)
        for key, value in values.items():
            name = f"{prefix}{key}"
            retired = getattr(cls, "RETIRED", {}).get(key)
            if retired is not None:
                retired = Retired(*retired)
                if self.of_run and value == retired.value:
                    continue
                raise ValueError(f"{source}: {name} = {_show(value)}: {retired.fate}")
            if key not in hints:
                raise ValueError(
                    f"{source}: {name} = {_show(value)}: {self._unknown(str(key), hints, prefix)}"
                )
            record = _record_type(hints[key])
            if record is not None and isinstance(value, Mapping):
                if OmegaConf.is_missing(node, key) or node[key] is None:
                    with read_write(node):
                        node[key] = OmegaConf.structured(record)
                self._assign_record(node[key], record, value, source=source, prefix=f"{name}.")
            else:
                self._assign_value(node, key, value, hints[key], source=source, name=name)

    def _assign_value(
        self, node: DictConfig, key: str, value: object, hint: object, *, source: str, name: str
    ) -> None:
        problem = _unusable(value, hint)
        if problem is None:
            try:
                with read_write(node):
                    OmegaConf.update(node, key, value, merge=typing.get_origin(hint) is dict)
            except (ConfigTypeError, ValidationError, UnsupportedValueType):
                problem = f"expected {_describe(hint)}"
        if problem is not None:
            raise ValueError(f"{source}: {name} = {_show(value)}: {problem}")
        self.origins.pop(name, None)
        self.origins[name] = source

    def _unknown(self, key: str, hints: Mapping[str, object], prefix: str) -> str:
        near = difflib.get_close_matches(key, hints, n=1, cutoff=0.75)
        if near:
            return f"unknown field; did you mean {prefix}{near[0]}?"
        for name in _all_names(self.cls):
            if name.rpartition(".")[2] == key:
                return f"unknown field; did you mean {name}?"
        nearest = prefix + difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
        return f"unknown field; nearest is {nearest}, valid are {', '.join(hints)}"

    def _blame(self, node: DictConfig, cls: type, *, prefix: str) -> None:
        """Raise for the innermost record whose own check fails, naming source, field and value."""
        hints = _field_types(cls)
        for key, hint in hints.items():
            record = _record_type(hint)
            if record is not None and node[key] is not None:
                self._blame(node[key], record, prefix=f"{prefix}{key}.")
        try:
            OmegaConf.to_object(node)
        except ValueError as error:
            message = _one_line(str(error))
            named = [prefix + key for key in hints if re.search(rf"\b{key}\b", message)]
            given = [name for name in self.origins if name in named]
            for name in given[-1:] or named[:1]:
                value = _show(_plain(node[name.removeprefix(prefix)]))
                source = self.origins.get(name, "default")
                raise ValueError(f"{source}: {name} = {value}: {message}") from error
            raise ValueError(
                f"{self.path or '--set'}: {prefix.rstrip('.') or cls.__name__}: {message}"
            ) from error


def _read_yaml(path: Path) -> Mapping[Any, Any]:
    try:
        text = read_bytes(path, YAML).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    try:
        problem = _too_much(text)
        if problem is not None:
            raise ValueError(f"{path}: {problem}")
        values = OmegaConf.to_container(OmegaConf.create(text))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(
            f"{path}{line}: malformed YAML: {_one_line(error.problem or str(error))}"
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: malformed YAML: {_one_line(str(error))}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `field: value` lines, got a list")
    return values


def _too_much(text: str) -> str | None:
    """Why a YAML text is larger or deeper than may be read, or None; takes no memory for it.

    An alias counts as often as what it stands for, since OmegaConf writes it out.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    depth, count, open_anchors = 0, 0, list[tuple[str | None, int]]()
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        count += sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if depth > (YAML.depth or 0):
            return f"nested deeper than {YAML.depth} levels, the most of {YAML.kind}"
        if count > (YAML.count or 0):
            return f"has more than {YAML.count} values with aliases written out"
    return None


def _parse_override(text: str) -> Mapping[str, Any]:
    """`a.b=3` becomes {"a": {"b": 3}}."""
    name, equals, value_text = text.removeprefix("\ufeff").partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"--set: {_short(repr(text))}: expected FIELD=VALUE or OUTER.INNER=VALUE")
    if len(parts) > (YAML.depth or 0):
        raise ValueError(f"--set: {_show(name)}: {len(parts)} names, at most {YAML.depth} are read")
    try:
        problem = _too_much(value_text)
        if problem is not None:
            raise ValueError(f"--set: {_show(name)}: {problem}")
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value_text}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(
            f"--set: {_one_line(name)} = {_show(value_text)}: malformed YAML value"
        ) from error
    assert isinstance(value, dict)
    nested: Any = value["value"]
    for part in reversed(parts):
        nested = {part: nested}
    return typing.cast(Mapping[str, Any], nested)


def _field_types(cls: type) -> dict[str, object]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _record_type(hint: object) -> type | None:
    """The dataclass in `hint`, which may be optional; None where the field is a plain value."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    records = [option for option in options if dataclasses.is_dataclass(option)]
    return typing.cast(type, records[0]) if records else None


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _all_names(cls: type, prefix: str = "") -> Iterator[str]:
    for key, hint in _field_types(cls).items():
        yield f"{prefix}{key}"
        record = _record_type(hint)
        if record is not None:
            yield from _all_names(record, f"{prefix}{key}.")


def _unusable(value: object, hint: object) -> str | None:
    """Why a value that OmegaConf would let pass can't stand in a recipe, or None."""
    if isinstance(value, bool) and hint is str:
        return "expected text; YAML reads a bare yes, no, on or off as true or false, so quote it"
    if isinstance(value, str) and ("${" in value or value == "???"):
        return "a recipe is complete: `${...}` and `???` are not allowed"
    if isinstance(value, float) and math.isnan(value):
        return "not a number"
    return None


def _describe(hint: object) -> str:
    """A type in the words of somebody who writes YAML."""
    plain = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    if isinstance(hint, type) and hint in plain:
        return plain[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if _is_union(hint):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin in (list, tuple):
        many = origin is list or arguments[-1] is Ellipsis
        inside = _describe(arguments[0]) if many else ", ".join(_describe(a) for a in arguments)
        return f"a list, each {inside}" if many else f"a list of {len(arguments)}: {inside}"
    if origin is dict:
        return f"`name: value` lines, each value {_describe(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "`field: value` lines (" + ", ".join(_field_types(typing.cast(type, hint))) + ")"
    return str(getattr(hint, "__name__", hint))


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _show(value: object) -> str:
    """A value as YAML would write it, on one line, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return _short(text)


def _short(text: str) -> str:
    text = _one_line(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
