"""Measure loaders of training images against timm's: ``python benchmarks/loaders.py``.

All read the same folder of small JPEGs with the settings of the recipe cifar10, in this process and
on one thread, up to mixed, normalised and erased batches on the device. Ratios are those of epochs
that are timed in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.data.mixup import FastCollateMixup

from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.data.sources import load_splits
from convmixer.training.loaders import EpochBatches, TrainingLoader

LOADERS = ("resident", "one by one")
_CLASSES = 4
_IMAGES = 256
_SIDE = 48
_BATCH = 64


class Measured(NamedTuple):
    """Seconds of an image, and how many times the images a second of timm's loader, per round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]


def write_images(folder: Path) -> None:
    """Write JPEGs of 48 x 48 pixels as `train/` and `test/`, a folder for each class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", _IMAGES), ("test", _CLASSES)):
        for number in range(count):
            place = folder / split / f"class{number % _CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            image.save(place / f"{number}.jpg", quality=90)


def settings(folder: Path, name: str) -> Config:
    """Return the settings of one of `LOADERS`."""
    changes = {
        "data.source": "images",
        "data.folder": str(folder),
        "data.device_resident": "true" if name == "resident" else "false",
        "model.n_classes": _CLASSES,
        "batch_size": _BATCH,
        # At magnitude 9 timm now and then keeps no bits of a level, which Pillow refuses.
        "augment.rand_augment": "rand-m7-mstd0.5-inc1",
    }
    return load_recipe("cifar10", changes)


def _epoch_of_ours(folder: Path, name: str, device: torch.device) -> Callable[[], Iterable[object]]:
    config = settings(folder, name)
    images = load_splits(config.data, 3).train
    batches = EpochBatches(len(images.labels), _BATCH, seed=0)
    loader = TrainingLoader(images, config, batches, workers=0, device=device)
    return lambda: loader.epoch(0)


def _epoch_of_timm(folder: Path, device: torch.device) -> Callable[[], Iterable[object]]:
    config = settings(folder, "")
    augment, data = config.augment, config.data
    mixing = FastCollateMixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=_CLASSES,
    )
    loader = create_loader(
        ImageDataset(str(folder / "train")),
        (3, data.image_size, data.image_size),
        _BATCH,
        is_training=True,
        scale=(augment.scale[0], augment.scale[1]),
        ratio=(augment.ratio[0], augment.ratio[1]),
        hflip=augment.flip,
        color_jitter=0.0,
        auto_augment=augment.rand_augment,
        interpolation=augment.train_interpolation,
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
        mean=tuple(data.mean),
        std=tuple(data.std),
        num_workers=0,
        persistent_workers=False,
        collate_fn=mixing,
        device=device,
    )
    return lambda: loader


def _seconds(epoch: Callable[[], Iterable[object]], device: torch.device) -> float:
    """Return the time of an image: of the processor here, or until a GPU is done."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for _ in epoch():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / _IMAGES


def measure(device: torch.device, rounds: int) -> dict[str, Measured]:
    """Time an epoch of timm's loader and of each of `LOADERS` in turn, `rounds` times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(Path(folder), device, rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(folder: Path, device: torch.device, rounds: int) -> dict[str, Measured]:
    write_images(folder)
    theirs = _epoch_of_timm(folder, device)
    ours = {name: _epoch_of_ours(folder, name, device) for name in LOADERS}
    for epoch in (theirs, *ours.values()):
        _seconds(epoch, device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        reference = _seconds(theirs, device)
        for name, epoch in ours.items():
            seconds = _seconds(epoch, device)
            found[name].append((seconds, reference / seconds))
    return {name: Measured(*zip(*pairs, strict=True)) for name, pairs in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, measured in measure(device, options.rounds).items():
        seconds, ratio = map(statistics.median, measured)
        sys.stdout.write(
            f"{name:12} {1 / seconds:6.0f} images/s {ratio:5.2f} times timm's loader\n"
        )


if __name__ == "__main__":
    main()
