"""Recipes, files in YAML that hold the settings of a run.

The folder `convmixer/recipes` holds the recipes that ship with the package.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from convmixer.config.fields import from_dict, to_dict
from convmixer.config.settings import Config, check
from convmixer.errors import UsageError, closest
from convmixer.terminal import printable

RECIPE_FOLDER = Path(__file__).parents[1] / "recipes"


def to_yaml(config: Config) -> str:
    """Return the complete settings as YAML."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
    return text


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


class _StrictLoader(yaml.SafeLoader):
    """A loader of plain values that refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            # A key of the mapping may repeat a key that is merged in, and overrides it.
            merged = key_node.tag == "tag:yaml.org,2002:merge"
            key = None if merged else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            if key in seen:
                mark = key_node.start_mark
                problem = f"{printable(str(key))} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load_yaml(path: Path) -> Config:
    """Return the settings in a YAML file.

    Raises:
        UsageError: the file is missing, is not YAML, names a field twice or an unknown one, or its
            fields do not fit together.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
        config = from_dict(tree, where=str(path)) if isinstance(tree, Mapping) else None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UsageError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path} is not valid YAML{line}: {error.problem}") from None
    except Exception as error:  # PyYAML lets Python's errors through, as for a date in month 13.
        raise UsageError(f"{path} is not valid YAML: {type(error).__name__}") from None
    if config is None:
        raise UsageError(f"{path} holds no settings")
    try:
        check(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return config


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
    return config
