"""The fingerprint of the images of a run, by which a continued run knows them again."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from convmixer.data.sources import ArrayImages, FileImages, Images, Splits
from convmixer.errors import UsageError
from convmixer.terminal import few

_DIGEST_BYTES = 8


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _names(images: FileImages) -> bytes:
    """Return the names of the files in order, below the folder that they share."""
    ends = (min(images.paths), max(images.paths))
    shared = os.path.commonpath([os.path.dirname(path) for path in ends])
    return b"\0".join(os.fsencode(path[len(shared) :]) for path in images.paths)


def _of_images(images: Images) -> dict[str, Any]:
    found = {
        "images": len(images.labels),
        "labels": _digest(np.ascontiguousarray(images.labels, dtype=np.int64)),
    }
    if isinstance(images, FileImages):
        found["file names"] = _digest(_names(images))
    elif isinstance(images, ArrayImages):
        found["pixels"] = _digest(np.ascontiguousarray(images.pixels))
    return found


def fingerprint(splits: Splits) -> dict[str, Any]:
    """Return the names of the classes, and of every split the number of images and digests.

    The digests are of the labels, and of the names of files below the folder that they share or of
    the pixels of images in memory, all in order. Files are not opened, so that a large set costs
    no time.
    """
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        "class names": list(splits.class_names),
        **{name: _of_images(images) for name, images in parts.items() if images is not None},
    }


def check_same_images(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the images are those of the run.

    Args:
        saved: the fingerprint of the images with which the run was started.
        now: that of the images with which it is to go on.

    Raises:
        UsageError: they differ; the message names what differs, and both values.
    """
    for name in saved | now:
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            part = next(key for key in before | after if before.get(key) != after.get(key))
            name, before, after = f"{name} {part}", before.get(part), after.get(part)
        raise UsageError(
            f"the images are not those of the run: {name} {_shown(before)} in its state, "
            f"{_shown(after)} in the data"
        )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({few(value)})"
    if isinstance(value, dict):
        return str(value["images"])
    return "none" if value is None else str(value)
