"""The names of the classes that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convmixer.config.settings import Config
from convmixer.data.sources import CIFAR10_CLASSES
from convmixer.terminal import printable
from convmixer.training.run_state import read_checkpoint

IMAGENET_CLASSES = 1000


def stored_class_names(checkpoint: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names in the contents of a checkpoint of `convmixer train`, or None."""
    names = checkpoint.get("class_names")
    if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def class_names(checkpoint: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """Return a name for every class of a model.

    They are those in the checkpoint; else those of CIFAR-10 for its recipes, the descriptions of
    ImageNet-1k for models with its number of classes, and numbers for others.
    """
    count = config.model.n_classes
    stored = stored_class_names(checkpoint)
    if stored is not None and len(stored) == count:
        return stored
    if config.data.source == "cifar10" and count == len(CIFAR10_CLASSES):
        return CIFAR10_CLASSES
    if count == IMAGENET_CLASSES:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(count))
    return tuple(map(str, range(count)))


def class_name_warning(checkpoint: Path, names: Sequence[str]) -> str | None:
    """Return a line if a checkpoint was trained on other classes than `names`, else None.

    A class of another name counts by its position, which is that of the output of the model.
    """
    stored = stored_class_names(read_checkpoint(checkpoint))
    if stored is None or len(stored) != len(names) or stored == tuple(names):
        return None
    position = next(
        i for i, pair in enumerate(zip(stored, names, strict=True)) if pair[0] != pair[1]
    )
    return (
        f"warning: class {position} is {printable(names[position])!r} in the images and "
        f"{printable(stored[position])!r} in {checkpoint}: classes are matched by position"
    )
