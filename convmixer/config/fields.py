"""The fields of the settings by name: looking up, overriding, converting and comparing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from convmixer.config.setting_types import FieldInfo, parse_value, walk
from convmixer.config.settings import Config, check
from convmixer.errors import UsageError, closest

CHANGEABLE_ON_RESUME = frozenset(
    {
        "device",
        "data.folder",
        "data.workers",
        "data.bad_images",
        "log_interval",
        "save_every",
        "keep",
        "tracker",
    }
)
"""Fields that do not change the result of a run, so that a resumed run may change them."""

FIELDS: dict[str, FieldInfo] = {info.name: info for info in walk(Config)}
"""Every field by its full name, such as `epochs` or `model.dim`."""

_BY_LAST_PART = {name.rsplit(".", 1)[-1]: name for name in FIELDS}

ELSEWHERE = {
    "aa": "augment.rand_augment",
    "autoaugment": "augment.rand_augment",
    "bs": "batch_size",
    "checkpointhist": "keep",
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
"""Fields by the names that other training programs give them, without separators."""


def resolve(name: str) -> str:
    """Return the full name of a field given by its full or its last name.

    Dashes and underscores mean the same: `dw-impl`, `dw_impl`, `model.dw_impl`.

    Raises:
        UsageError: the field is unknown; the message names the closest one.
    """
    plain = name.replace("-", "_")
    if plain in FIELDS:
        return plain
    if plain in _BY_LAST_PART:
        return _BY_LAST_PART[plain]
    raise UsageError(f"unknown field {name!r}{suggestion(plain)}")


def usual_name(name: str) -> str:
    """Return the field to which other programs give this name, or the name if there is none."""
    plain = name.replace("-", "_").lower()
    return ELSEWHERE.get(plain.rpartition(".")[2].replace("_", ""), plain)


def suggestion(name: str) -> str:
    """Return " (did you mean 'x'?)" with the field nearest to an unknown name, or ""."""
    return closest(usual_name(name), [*FIELDS, *_BY_LAST_PART])


def as_text(value: Any) -> str:
    """Return the value of a field as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields in a nested dictionary, each with its full name and its value."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def from_dict(tree: Mapping[str, Any], where: str = "") -> Config:
    """Return the settings in a nested dictionary; fields that it lacks keep their defaults.

    Args:
        tree: sections and fields by their names.
        where: the file that holds the dictionary, for messages.

    Raises:
        UsageError: a field is unknown or has a wrong value.
    """
    config, seen = Config(), set()
    for name, value in flatten(tree):
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


def check_same_run(saved: Config, wanted: Config, run: str) -> None:
    """Check that a run can continue with the settings `wanted`.

    Args:
        saved: the settings with which the run was started.
        wanted: the settings with which it is to go on.
        run: the name of the run in the message.

    Raises:
        UsageError: a field differs that would change the result; the message names it.
    """
    for name in FIELDS:
        before, now = get_value(saved, name), get_value(wanted, name)
        if before != now and name not in CHANGEABLE_ON_RESUME:
            raise UsageError(
                f"{run} has {name} {before}, not {now}: a resumed run keeps its "
                f"settings, except {', '.join(sorted(CHANGEABLE_ON_RESUME))}"
            )
