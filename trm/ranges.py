"""Checks of the ranges of a section's fields: one line that names section, field and value.

The sections of recipes call them in `__post_init__`, in the wording that `trm.runs.recipe` wants.
Input is the section as an object; a field that is None passes.
"""

from typing import Any


def check_at_least(config: object, section: str, least: int, *fields: str, named: str = "") -> None:
    """Refuse a field below `least`; a field that is None passes.

    Args:
        config: the section as an object.
        section: its name in the recipe, for the message; empty for the recipe itself.
        least: the smallest value that is allowed.
        fields: names of the fields to check.
        named: the field that `least` is the value of, if any.

    Raises:
        ValueError: names section, field and value.
    """
    bound = f"{named} = {least}" if named else str(least)
    for name, value in _given(config, section, fields):
        if not value >= least:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


def check_positive(config: object, section: str, *fields: str) -> None:
    """Refuse a field that is not above 0; arguments and errors as of `check_at_least`."""
    for name, value in _given(config, section, fields):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_within(config: object, section: str, interval: str, *fields: str) -> None:
    """Refuse a field outside an interval such as "(0, 1]"; the rest is as of `check_at_least`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in _given(config, section, fields):
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must lie in {interval}, got {value}")


def _given(config: object, section: str, fields: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Full name and value of the fields that are not None."""
    prefix = f"{section}." if section else ""
    values = ((f"{prefix}{field}", getattr(config, field)) for field in fields)
    return [(name, value) for name, value in values if value is not None]
