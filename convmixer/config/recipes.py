"""Recipes, files in YAML that hold the settings of a run.

The folder `convmixer/recipes` holds the recipes that ship with the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convmixer.config.fields import flatten, from_dict, override, to_dict
from convmixer.config.settings import Config, check
from convmixer.errors import UsageError, closest

RECIPE_FOLDER = Path(__file__).parents[1] / "recipes"


def to_yaml(config: Config) -> str:
    """Return the complete settings as YAML."""
    from convmixer.config import strict_yaml

    return strict_yaml.dump(to_dict(config))


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def load_yaml(path: Path) -> Config:
    """Return the settings in a YAML file.

    Raises:
        UsageError: the file is missing, is not YAML, names a field twice or an unknown one, or its
            fields do not fit together.
    """
    # The command line needs the names of recipes for its help, and PyYAML only for their contents.
    from convmixer.config import strict_yaml

    try:
        tree = strict_yaml.parse(path.read_text(encoding="utf-8"), file=str(path))
        config = from_dict(tree, where=str(path)) if isinstance(tree, Mapping) else None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UsageError:
        raise
    except Exception as error:  # A date may have a month 13, and a mapping may hold itself.
        raise UsageError(f"{path} is not valid YAML: {type(error).__name__}") from None
    if config is None:
        raise UsageError(f"{path} holds no settings")
    try:
        check(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return config


def recipe_file(name: str) -> Path:
    """Return the file of a recipe that ships with the package, or `name` as the path of a file.

    Raises:
        UsageError: the recipe is unknown; the message names the closest one.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = recipe_names()
    if name not in known:
        raise UsageError(
            f"unknown recipe {name!r}{closest(name, known)}; recipes: {', '.join(known)}, "
            "or the path of a .yaml file"
        )
    return RECIPE_FOLDER / f"{name}.yaml"


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a recipe.

    Args:
        name: a recipe of the package, such as ``"digits"``, or the path of a .yaml file.
        overrides: fields to change by their full or last names, as in
            ``{"epochs": 5, "model.dim": 32}``.

    Raises:
        UsageError: the recipe or a field is unknown, and the message names the closest one; or a
            value is out of range.
    """
    config = load_yaml(recipe_file(name))
    return override(config, overrides) if overrides else config


def fields_of(name: str) -> set[str]:
    """Return the full names of the fields that a recipe sets; see `load_recipe`."""
    from convmixer.config import strict_yaml

    path = recipe_file(name)
    return {field for field, _ in flatten(strict_yaml.parse(path.read_text("utf-8"), str(path)))}
