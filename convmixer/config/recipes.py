"""Reading, overriding and writing the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from convmixer.config.setting_types import FieldInfo, parse_value, walk
from convmixer.config.settings import Config, check
from convmixer.errors import UsageError, closest
from convmixer.terminal import printable

CHANGEABLE_ON_RESUME = frozenset({"device", "data.folder", "data.workers", "log_interval"})
"""Fields that say where and how a run is computed, not what; a resumed run may change them."""

RECIPE_FOLDER = Path(__file__).parents[1] / "recipes"

FIELDS: dict[str, FieldInfo] = {info.name: info for info in walk(Config)}
"""Every field by its full name, e.g. `epochs` or `model.dim`."""

_BY_LAST_PART = {name.rsplit(".", 1)[-1]: name for name in FIELDS}

ELSEWHERE = {
    "aa": "augment.rand_augment",
    "autoaugment": "augment.rand_augment",
    "bs": "batch_size",
    "clipgrad": "optimizer.clip_grad_norm",
    "croppct": "data.crop_fraction",
    "datadir": "data.folder",
    "datapath": "data.folder",
    "dataset": "data.source",
    "finetune": "initial_checkpoint",
    "gpu": "device",
    "gradaccumsteps": "accumulation_steps",
    "hflip": "augment.flip",
    "imgsize": "data.image_size",
    "inputsize": "data.image_size",
    "learningrate": "optimizer.lr",
    "maxepochs": "epochs",
    "modelemadecay": "ema_decay",
    "numclasses": "model.n_classes",
    "numepochs": "epochs",
    "numworkers": "data.workers",
    "optbetas": "optimizer.betas",
    "opteps": "optimizer.eps",
    "precision": "amp",
    "pretrained": "initial_checkpoint",
    "randomseed": "seed",
    "remode": "augment.erasing_mode",
    "reprob": "augment.random_erasing",
    "sched": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "smoothing": "label_smoothing",
    "syncbn": "sync_batch_norm",
    "wd": "optimizer.weight_decay",
    "weights": "initial_checkpoint",
    "width": "model.dim",
}
"""Fields by the names that other training programs give them, in letters alone."""


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
    raise UsageError(f"unknown field {name!r}{suggestion(plain)}")


def usual_name(name: str) -> str:
    """Return the field that other programs give this name to, or else the name itself."""
    plain = name.replace("-", "_").lower()
    return ELSEWHERE.get(plain.rpartition(".")[2].replace("_", ""), plain)


def suggestion(name: str) -> str:
    """Return " (did you mean 'x'?)" for the field that an unknown name may mean, or ""."""
    return closest(usual_name(name), [*FIELDS, *_BY_LAST_PART])


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
    config, seen = Config(), set()
    for name, value in _flatten(tree):
        try:
            if name not in FIELDS:
                raise UsageError(f"unknown field {name!r}{suggestion(name)}")
            if name in seen:
                raise UsageError(f"field {name!r} stands twice")
            seen.add(name)
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


def check_same_run(saved: Config, wanted: Config, run: str) -> None:
    """Check that a run can continue under `wanted`.

    Args:
        saved: the settings it was started with.
        wanted: the settings to go on with.
        run: what it is called in the message.

    Raises:
        UsageError: naming the first field that differs and would change the result.
    """
    for name in FIELDS:
        before, now = get_value(saved, name), get_value(wanted, name)
        if before != now and name not in CHANGEABLE_ON_RESUME:
            raise UsageError(
                f"{run} has {name} {before}, not {now}: a resumed run keeps its "
                f"settings, except {', '.join(sorted(CHANGEABLE_ON_RESUME))}"
            )


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


class _StrictLoader(yaml.SafeLoader):
    """Reads plain values, and refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            # A key of the mapping takes the place of one that is merged in.
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
        UsageError: for a file that is missing, is not YAML, names a field twice or an unknown one,
            or whose fields do not fit together.
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
    except Exception as error:  # PyYAML lets errors of Python pass, as for a date in month 13.
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
