"""Reading, overriding and writing the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from convmixer.config import Config, check
from convmixer.errors import UsageError, closest
from convmixer.fields import FieldInfo, parse_value, walk

RECIPE_FOLDER = Path(__file__).parent / "recipes"

FIELDS: dict[str, FieldInfo] = {info.name: info for info in walk(Config)}
"""Every field by its full name, e.g. `epochs` or `model.dim`."""

_BY_LAST_PART = {name.rsplit(".", 1)[-1]: name for name in FIELDS}


def resolve(name: str) -> str:
    """Return the full name of a field given by its full or its last name.

    Dashes and underscores mean the same: `dw-impl`, `dw_impl`, `model.dw_impl`.

    Raises:
        UsageError: for an unknown field, naming the closest one.
    """
    plain = name.replace("-", "_")
    if plain in FIELDS:
        return plain
    if plain in _BY_LAST_PART:
        return _BY_LAST_PART[plain]
    near = closest(plain, FIELDS) or closest(plain, _BY_LAST_PART)
    raise UsageError(f"unknown field {name!r}{near}")


def get_value(config: Config, name: str) -> Any:
    """Return the field with the full name `name`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def set_value(config: Config, name: str, value: Any) -> None:
    """Set the field with the full name `name` to `value`, parsed and checked."""
    *sections, last = name.split(".")
    target: Any = config
    for part in sections:
        target = getattr(target, part)
    setattr(target, last, parse_value(FIELDS[name], value))


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a copy of `config` with the named fields changed, and check how they fit together."""
    changed = from_dict(to_dict(config))
    for name, value in overrides.items():
        set_value(changed, resolve(name), value)
    check(changed)
    return changed


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def from_dict(tree: Mapping[str, Any], where: str = "") -> Config:
    """Return the settings of a nested dictionary; fields it does not name keep their defaults.

    Raises:
        UsageError: for an unknown field or a wrong value, naming `where` it stands.
    """
    config = Config()
    for name, value in _flatten(tree):
        try:
            if name not in FIELDS:
                raise UsageError(f"unknown field {name!r}{closest(name, FIELDS)}")
            set_value(config, name, value)
        except UsageError as error:
            raise UsageError(f"{where}: {error}" if where else str(error)) from None
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested dictionaries of plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """Return the complete settings as YAML."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
    return text


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def load_yaml(path: Path) -> Config:
    """Return the settings in a YAML file.

    Raises:
        UsageError: for a file that is missing, is not YAML or names unknown fields.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{path} is not valid YAML") from None
    if not isinstance(tree, Mapping):
        raise UsageError(f"{path} holds no settings")
    return from_dict(tree, where=str(path))


def load_recipe(name: str) -> Config:
    """Return the recipe `name`, one that ships with the package or the path of a YAML file.

    Raises:
        UsageError: for an unknown recipe, naming the closest one.
    """
    if name.endswith((".yaml", ".yml")):
        config = load_yaml(Path(name))
    elif name in recipe_names():
        config = load_yaml(RECIPE_FOLDER / f"{name}.yaml")
    else:
        known = recipe_names()
        raise UsageError(
            f"unknown recipe {name!r}{closest(name, known)}; recipes: {', '.join(known)}, "
            "or the path of a .yaml file"
        )
    check(config)
    return config
