"""The type of a field of the settings: its documentation, the values it accepts, its parsing."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convmixer.errors import UsageError, closest


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    length: int | None = None,
) -> Any:
    """Return a dataclass field with its documentation and the values it accepts."""
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "length": length,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class FieldInfo:
    """A field of the settings: its full name, its type, and the arguments of `setting`."""

    name: str
    hint: Any
    metadata: Mapping[str, Any]

    @property
    def type_name(self) -> str:
        """The name of the type in words."""
        if is_list(self.hint):
            return "numbers separated by commas"
        word = {int: "a whole number", float: "a number", bool: "true or false"}
        kind = next((word[t] for t in _alternatives(self.hint) if t in word), "text")
        return f"{kind} or none" if type(None) in _alternatives(self.hint) else kind


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.get_args(hint)
    return (hint,)


def is_list(hint: Any) -> bool:
    """Return whether a field holds several numbers."""
    return typing.get_origin(hint) is list


def walk(section: type, prefix: str = "") -> Iterator[FieldInfo]:
    """Yield every leaf of a nested dataclass under its dotted name."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from walk(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield FieldInfo(prefix + field.name, hint, field.metadata)


def _parse_scalar(value: Any, hint: Any) -> Any:
    """Return `value` as one of the types of `hint`; raise ValueError if it is none of them."""
    kinds = _alternatives(hint)
    text = value.strip() if isinstance(value, str) else value
    if type(None) in kinds and (text is None or text in ("none", "None", "null", "")):
        return None
    if bool in kinds:
        if isinstance(text, str) and text.lower() in ("true", "false", "yes", "no"):
            return text.lower() in ("true", "yes")
        if isinstance(text, bool):
            return text
    elif isinstance(text, bool):
        raise ValueError
    elif int in kinds:
        if isinstance(text, (int, str)):
            return int(text)
    elif float in kinds:
        if isinstance(text, (int, float, str)) and math.isfinite(float(text)):
            return float(text)
    elif str in kinds and isinstance(text, (str, int, float)):
        return str(text)
    raise ValueError


def _split(text: str) -> list[str]:
    """Split a list at its commas or spaces."""
    return re.split(r"\s*,\s*|\s+", text.strip("[]() "))


def parse_value(info: FieldInfo, value: Any) -> Any:
    """Return `value`, from YAML or the command line, as the type of the field.

    Raises:
        UsageError: the value has another type or is outside the accepted range.
    """
    if isinstance(value, bool) and str(value).lower() in info.metadata["choices"]:
        value = str(value).lower()
    try:
        if is_list(info.hint):
            parts = _split(value) if isinstance(value, str) else list(value)
            (element,) = typing.get_args(info.hint)
            parsed: Any = [_parse_scalar(part, element) for part in parts]
        else:
            parsed = _parse_scalar(value, info.hint)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{info.name}: expected {info.type_name}, got {value!r}") from None
    _check_range(info, parsed)
    return parsed


def _check_range(info: FieldInfo, value: Any) -> None:
    choices, low, high = (info.metadata[key] for key in ("choices", "minimum", "maximum"))
    if value is None:
        return
    if choices and value not in choices:
        near = closest(value, choices)
        raise UsageError(f"{info.name}: expected one of {', '.join(choices)}, got {value!r}{near}")
    if low is not None and value < low:
        raise UsageError(f"{info.name}: expected at least {low}, got {value}")
    if high is not None and value > high:
        raise UsageError(f"{info.name}: expected at most {high}, got {value}")
    length = info.metadata["length"]
    if length is not None and len(value) != length:
        raise UsageError(f"{info.name}: expected {length} numbers, got {len(value)}")
