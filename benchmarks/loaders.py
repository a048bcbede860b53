"""Measure loaders of training images against timm's: ``python benchmarks/loaders.py``.

All read the same folder of JPEGs with the settings of a recipe, in this process and on one thread:
once up to what the processes that load images hand over, for which a GPU waits, and once up to
mixed, normalised and erased batches on the device. timm's loader mixes before the hand-over, and
the one of this project after it. Ratios are those of epochs that are timed in turn.
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
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.data.mixup import FastCollateMixup

from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.data.sources import load_splits
from convmixer.training.loaders import EpochBatches, TrainingLoader

_CLASSES = 4


class Folder(NamedTuple):
    """Training images of one size, and the settings with which they are loaded."""

    recipe: str
    width: int
    height: int
    images: int
    batch: int


SMALL = Folder("cifar10", 48, 48, 256, 64)
PHOTOGRAPHS = Folder("imagenet", 500, 375, 64, 32)
LARGE_PHOTOGRAPHS = Folder("imagenet", 1600, 1200, 32, 32)
LOADERS = {
    "small, resident": (SMALL, "true"),
    "small, one by one": (SMALL, "false"),
    "photographs of 500 x 375": (PHOTOGRAPHS, "false"),
    "photographs of 1600 x 1200": (LARGE_PHOTOGRAPHS, "false"),
}
"""The images and `data.device_resident` of each loader that is measured."""


class Measured(NamedTuple):
    """Seconds of an image, and how many times the images a second of timm's loader, per round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]


class LoaderTimes(NamedTuple):
    """A loader up to the hand-over to the device, and up to batches on the device."""

    handed_over: Measured
    on_device: Measured


class _Epochs(NamedTuple):
    """Epochs of a loader: as in `LoaderTimes`."""

    handed_over: Callable[[], Iterable[object]]
    on_device: Callable[[], Iterable[object]]


def _photographs() -> list[NDArray[np.uint8]]:
    """Return the two photographs that ship with scikit-learn, continued by their mirror images."""
    found: list[NDArray[np.uint8]] = []
    for pixels in load_sample_images().images:
        wide = np.concatenate([pixels, pixels[:, ::-1], pixels], axis=1)
        found.append(np.concatenate([wide, wide[::-1], wide], axis=0))
    return found


def write_images(place: Path, folder: Folder) -> None:
    """Write parts of photographs as `train/` and `test/`, a folder for each class."""
    generator = np.random.default_rng(0)
    photographs = _photographs()
    for split, count in (("train", folder.images), ("test", _CLASSES)):
        for number in range(count):
            pixels = photographs[number % len(photographs)]
            top, left = generator.integers(np.subtract(pixels.shape[:2], folder[2:0:-1]))
            part = pixels[top : top + folder.height, left : left + folder.width]
            own = place / split / f"class{number % _CLASSES}"
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part).save(own / f"{number}.jpg", quality=90)


def settings(place: Path, folder: Folder, resident: str) -> Config:
    """Return the settings of a loader of `LOADERS`."""
    changes = {
        "data.source": "images",
        "data.folder": str(place),
        "data.device_resident": resident,
        "model.n_classes": _CLASSES,
        "batch_size": folder.batch,
        # At magnitude 9 timm now and then keeps no bits of a level, which Pillow refuses.
        "augment.rand_augment": "rand-m7-mstd0.5-inc1",
    }
    return load_recipe(folder.recipe, changes)


def _ours(config: Config, device: torch.device) -> _Epochs:
    images = load_splits(config.data, 3).train
    batches = EpochBatches(len(images.labels), config.batch_size, seed=0)
    loader = TrainingLoader(images, config, batches, workers=0, device=device)
    return _Epochs(lambda: loader.loaded(0), lambda: loader.epoch(0))


def _timms(config: Config, device: torch.device) -> _Epochs:
    augment, data = config.augment, config.data
    mixing = FastCollateMixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=_CLASSES,
    )
    loader = create_loader(
        ImageDataset(f"{data.folder}/train"),
        (3, data.image_size, data.image_size),
        config.batch_size,
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
    return _Epochs(lambda: loader.loader, lambda: loader)


def _seconds(epoch: Callable[[], Iterable[object]], images: int, device: torch.device) -> float:
    """Return the time of an image: of the processor here, or until a GPU is done."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for _ in epoch():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / images


def measure(name: str, device: torch.device, rounds: int) -> LoaderTimes:
    """Time epochs of timm's loader and of one of `LOADERS` in turn, `rounds` times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as place:
            return _measure(Path(place), name, device, rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(place: Path, name: str, device: torch.device, rounds: int) -> LoaderTimes:
    folder, resident = LOADERS[name]
    write_images(place, folder)
    config = settings(place, folder, resident)
    theirs, ours = _timms(config, device), _ours(config, device)
    for epoch in (*theirs, *ours):
        _seconds(epoch, folder.images, device)
    found: tuple[list[tuple[float, float]], ...] = ([], [])
    for _ in range(rounds):
        for pairs, reference, epoch in zip(found, theirs, ours, strict=True):
            expected = _seconds(reference, folder.images, device)
            seconds = _seconds(epoch, folder.images, device)
            pairs.append((seconds, expected / seconds))
    return LoaderTimes(*(Measured(*zip(*pairs, strict=True)) for pairs in found))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in LOADERS:
        for part, measured in measure(name, device, options.rounds)._asdict().items():
            seconds, ratio = map(statistics.median, measured)
            sys.stdout.write(
                f"{name:26} {part.replace('_', ' '):11} {1 / seconds:6.0f} images/s "
                f"{ratio:5.2f} times timm's loader\n"
            )


if __name__ == "__main__":
    main()
