"""The lines of a study: accuracy over one numeric field while the others stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convmixer.config.fields import FIELDS, as_text, get_value
from convmixer.config.settings import Config

FEWEST_POINTS = 3
"""A line has at least this many points."""

Points = Sequence[tuple[Config, Sequence[float]]]
"""The settings of rows, and the accuracy of every seed in percent."""


@dataclass(frozen=True)
class Line:
    """Accuracies over the values of a field, ascending.

    Attributes:
        label: the fields in which the line differs from the others, empty for a single line.
        values: the values of the field.
        accuracies: the accuracy of every seed in percent, for each value.
    """

    label: str
    values: tuple[float, ...]
    accuracies: tuple[tuple[float, ...], ...]


def varied_fields(configs: Sequence[Config]) -> list[str]:
    """Return the full names of the fields in which settings differ."""
    return [
        name for name in FIELDS if len({as_text(get_value(each, name)) for each in configs}) > 1
    ]


def _is_number(name: str) -> bool:
    return FIELDS[name].hint in (int, float)


def lines_over(name: str, points: Points) -> list[Line]:
    """Return the lines over the field `name`, of `FEWEST_POINTS` points or more."""
    others = [each for each in varied_fields([config for config, _ in points]) if each != name]
    groups: dict[tuple[str, ...], dict[float, tuple[float, ...]]] = {}
    for config, accuracies in points:
        key = tuple(as_text(get_value(config, other)) for other in others)
        groups.setdefault(key, {})[get_value(config, name)] = tuple(accuracies)
    groups = {key: found for key, found in groups.items() if len(found) >= FEWEST_POINTS}
    differing = [
        position for position in range(len(others)) if len({key[position] for key in groups}) > 1
    ]
    lines = []
    for key, found in groups.items():
        words = [f"{others[i].rpartition('.')[2]} {key[i]}" for i in differing]
        values = tuple(sorted(found))
        lines.append(Line(", ".join(words), values, tuple(found[value] for value in values)))
    return lines


def panels(points: Points) -> dict[str, list[Line]]:
    """Return the lines over every numeric field that has some."""
    names = filter(_is_number, varied_fields([config for config, _ in points]))
    return {name: lines for name in names if (lines := lines_over(name, points))}


def words(config: Config, baseline: Config) -> str:
    """Return the fields in which two settings differ, with the values of the first."""
    different = varied_fields([config, baseline])
    values: Mapping[str, Any] = {name: get_value(config, name) for name in different}
    return "; ".join(f"{name} {value}" for name, value in values.items())
