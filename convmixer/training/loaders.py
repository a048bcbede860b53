"""Batches in a reproducible order.

Seed, epoch and index of an image determine the random state of its augmentation. Therefore the
images of a run do not depend on the number of worker processes, and a run that continues in the
middle of an epoch gets the batches of an uninterrupted run.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from convmixer.config.settings import DataConfig
from convmixer.data.augmentation import Transform
from convmixer.data.packaged import PACKAGED
from convmixer.data.sources import Images
from convmixer.errors import UsageError
from convmixer.torchrun import processes_of_machine
from convmixer.training.run_state import seed_cpu

Key = tuple[int, int]
Batch = tuple[Tensor, Tensor]
EvaluationLoader = DataLoader[tuple[Tensor, int]]

MOST_WORKERS = 8
"""The most processes that load images if the settings leave their number open."""


def image_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one augmented image, a hash of its arguments below 2**63."""
    (word,) = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return int(word) >> 1


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images, addressed by (epoch, index)."""

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images.labels)

    def _augmented(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        seed_cpu(image_seed(self.seed, epoch, index))
        return self.transform(self.images.image(index)), int(self.images.labels[index])

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[tuple[Tensor, int]]:
        python, numpy = random.getstate(), np.random.get_state()
        pytorch = torch.random.get_rng_state()
        try:
            return [self._augmented(key) for key in keys]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.random.set_rng_state(pytorch)


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Images prepared for evaluation, in order."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.image(index)), int(self.images.labels[index])


class EpochBatches(Sampler[list[Key]]):
    """The keys (epoch, index) of this process for the batches of an epoch, from `first_step` on.

    Each optimizer step takes the next `batch_size` images of the epoch's permutation, divides them
    between accumulation steps, and those between processes. Images that do not fill a last batch
    are left out.

    Args:
        size: number of training images.
        batch_size: images of an optimizer step, over all processes and accumulation steps.
        seed: seed of the permutations.
        parts: number of accumulation steps.
        rank, world: this process and the number of processes.

    Raises:
        UsageError: the sizes do not divide.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size > size:
            raise UsageError(f"batch_size {batch_size} exceeds the {size} training images")
        if batch_size % (parts * world):
            raise UsageError(
                f"batch_size {batch_size} is not a multiple of accumulation_steps {parts} times "
                f"{world} processes"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.parts, self.rank, self.world = parts, rank, world
        self.epoch, self.first_step = 0, 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.size // self.batch_size

    @property
    def images_at_once(self) -> int:
        """Images that one process takes through the model together."""
        return self.batch_size // (self.parts * self.world)

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        steps = order[: self.steps * self.batch_size].reshape(
            self.steps, self.parts, self.world, -1
        )
        for step in steps[self.first_step :]:
            for part in step:
                yield [(self.epoch, int(index)) for index in part[self.rank]]


def _start_worker(_: int) -> None:
    """Keep signals from a process that loads images, so that the main process can save the run.

    A terminal and torchrun send signals to the whole process group of a run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def worker_count(data: DataConfig) -> int:
    """Return the number of processes that load images for this process."""
    if data.workers is not None:
        return data.workers
    if data.source in PACKAGED:
        return 0
    return max(1, min(MOST_WORKERS, _processors() // processes_of_machine()))


def _processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _loader_options(workers: int, device: torch.device) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device.type == "cuda",
        "worker_init_fn": _start_worker if workers else None,
        # A loader draws a number when it starts; its own generator leaves that of the run alone.
        "generator": torch.Generator(),
    }


class TrainingLoader:
    """The batches of every epoch."""

    def __init__(
        self, images: TrainingImages, batches: EpochBatches, workers: int, device: torch.device
    ) -> None:
        self._batches = batches
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            images, batch_sampler=batches, **_loader_options(workers, device)
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self._batches.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Iterate over (images, labels), a pair an accumulation step, from `first_step` on."""
        self._batches.epoch, self._batches.first_step = epoch, first_step
        return iter(self._loader)


def evaluation_loader(
    images: Images,
    transform: Transform,
    batch_size: int,
    *,
    workers: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> EvaluationLoader:
    """Return a loader over every `world`-th image from `rank` on, in order."""
    indices: NDArray[np.int64] = np.arange(rank, len(images.labels), world)
    part = EvaluationImages(images.select(indices), transform)
    return DataLoader(part, batch_size, **_loader_options(workers, device))
