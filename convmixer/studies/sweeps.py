"""Studies of one's own: every combination of some values of some fields."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convmixer.config.fields import FIELDS, as_text, get_value, override, resolve
from convmixer.config.setting_types import is_list, parse_value
from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.studies.running import same_study
from convmixer.studies.study import Row, Study, folder_name
from convmixer.training.run_folder import RunFolder

NOT_SWEPT = frozenset({"seed", "recipe", "description", "device"})


def parse_sweep(word: str) -> tuple[str, list[Any]]:
    """Return the field and the values of a word such as ``kernel_size=3,5,7``.

    Values of fields that hold several numbers are separated by semicolons: ``scale=0.5,1;1,1``.

    Raises:
        UsageError: the word has another form, or the field does not take a value.
    """
    name, equals, text = word.partition("=")
    if not equals or not text:
        raise UsageError(f"expected FIELD=VALUE,VALUE,..., got {word!r}")
    field = resolve(name.strip())
    if field in NOT_SWEPT:
        hint = ": --seeds N trains several" if field == "seed" else ""
        raise UsageError(f"{field}: a sweep does not vary this field{hint}")
    separator = ";" if is_list(FIELDS[field].hint) else ","
    values = [parse_value(FIELDS[field], part) for part in text.split(separator)]
    return field, [value for i, value in enumerate(values) if value not in values[:i]]


def sweep_study(axes: Mapping[str, Sequence[Any]], earlier: Sequence[Config] = ()) -> Study:
    """Return the study of every combination of the values of some fields.

    Args:
        axes: the values by the full names of their fields.
        earlier: settings of runs whose values are rows too.
    """
    combinations = list(itertools.product(*axes.values()))
    for config in earlier:
        found = tuple(get_value(config, name) for name in axes)
        if found not in combinations:
            combinations.append(found)
    if all(isinstance(value, (int, float)) for values in combinations for value in values):
        combinations.sort()
    names = " and ".join(axes)
    rows = tuple(
        Row(_label(axes, values), dict(zip(axes, values, strict=True))) for values in combinations
    )
    return Study(name=f"sweep of {names}", title="accuracy on the test images", rows=rows)


def _label(axes: Mapping[str, Any], values: Sequence[Any]) -> str:
    words = (f"{n.rpartition('.')[2]} {as_text(v)}" for n, v in zip(axes, values, strict=True))
    return ", ".join(words).replace("{", "{{").replace("}", "}}")


def sweep_labels(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the labels of the rows of `axes` as `run_study` takes them."""
    return [folder_name(_label(axes, values)) for values in itertools.product(*axes.values())]


def earlier_runs(axes: Mapping[str, Any], base: Config, out: Path) -> list[Config]:
    """Return the settings of the runs in the folder of a sweep that differ from `base` in `axes`.

    Raises:
        UsageError: the settings of a run are damaged.
    """
    found = []
    for path in sorted((out / "runs").glob("*")):
        folder = RunFolder(path)
        if folder.seeds:
            config = folder.load_config()
            own = {name: get_value(config, name) for name in axes}
            if same_study(config, override(base, own)):
                found.append(config)
    return found
