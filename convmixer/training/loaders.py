"""Batches in a reproducible order.

Seed, epoch and index of an image determine the random numbers of its augmentation, and those of its
batch. Therefore the images of a run do not depend on the number of worker processes, and a run that
continues in the middle of an epoch gets the batches of an uninterrupted run.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from convmixer.config.settings import Config, DataConfig
from convmixer.data import batched_operations
from convmixer.data.augmentation import (
    NO_BOX,
    Augmentation,
    draw_erased_box,
    evaluation_crop,
)
from convmixer.data.operations import Operation
from convmixer.data.packaged import PACKAGED
from convmixer.data.preparation import BatchPreparation, Normalization
from convmixer.data.sources import Images, Indices
from convmixer.data.transfer import uploaded
from convmixer.errors import UsageError
from convmixer.torchrun import processes_of_machine
from convmixer.training.bad_images import BadImages, ImageReader
from convmixer.training.distributed import Processes
from convmixer.training.prefetching import prefetched
from convmixer.training.resident import LARGEST_SIDE, MOST_BYTES, resident_images
from convmixer.training.run_state import seed_cpu

Key = tuple[int, int]
Batch = tuple[Tensor, Tensor]
"""Normalised images, float32 (N, C, H, W), and their targets (N, n_classes) or classes (N,)."""

MOST_WORKERS = 8
"""The most processes that load images if the settings leave their number open."""
IMAGES_AUGMENTED_TOGETHER = 4096
PIXELS_AUGMENTED_TOGETHER = 2**22
"""The most images, and pixels of theirs, that are augmented at once on the device, or one batch.

The start of an operation costs the processor the same for many images as for few.
"""


@functools.lru_cache(maxsize=2)
def image_seeds(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return two seeds below 2**63 for each of `size` images in an epoch, int64 (size, 2).

    The first is that of its augmentation, the second that of mixing and of the noise in it.
    """
    # The order of the images comes from the sequence (seed, epoch).
    generator = np.random.default_rng([seed, epoch, 1])
    return generator.integers(2**63, size=(size, 2), dtype=np.int64)


class TrainingBatch(NamedTuple):
    """A batch as it comes from the processes that load images."""

    content: Tensor | NDArray[np.float64]
    """Augmented images, uint8 (N, C, H, W) in channels_last order, or what
    `batched_operations.apply` is to do."""
    indices: Indices
    """The place of each image in the training images, int64 (N,)."""
    labels: Indices
    """int64 (N,)."""
    seeds: Indices
    """The second of `image_seeds`, int64 (N,)."""
    boxes: NDArray[np.int64]
    """The rectangle to erase in each image, or zeros: int64 (N, 4)."""
    bad: list[str]
    """Lines that name images which could not be read."""


class _Sample(NamedTuple):
    """An image of a `TrainingBatch`."""

    content: Tensor | list[Operation]
    image_index: int
    label: int
    seed: int
    box: tuple[int, int, int, int]
    bad: list[str]


def _collate(samples: list[_Sample]) -> TrainingBatch:
    contents, *numbers, bad = zip(*samples, strict=True)
    # Arrays come through the pipe of a process, and each tensor through a connection of its own.
    indices, labels, seeds, boxes = (np.array(each, dtype=np.int64) for each in numbers)
    content: Tensor | NDArray[np.float64]
    if isinstance(contents[0], list):
        content = batched_operations.as_table(list(contents))
    else:
        content = _stacked(contents)
    reasons = [reason for each in bad for reason in each]
    return TrainingBatch(content, indices, labels, seeds, boxes, reasons)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Stack images (C, H, W), with the channels of a pixel side by side, as they lie in memory."""
    stacked: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
    return stacked.permute(0, 3, 1, 2)


class _KeyedImages(Dataset[_Sample]):
    """Training images, addressed by (epoch, index)."""

    def __init__(self, labels: Indices, config: Config) -> None:
        self._labels, self._config = labels, config
        self.augmentation = Augmentation(config)

    def __len__(self) -> int:
        return len(self._labels)

    def _content(self, index: int, seed: int) -> tuple[Tensor | list[Operation], int, list[str]]:
        """Return the content of a sample, the index of the image, and lines on those skipped."""
        raise NotImplementedError

    def _sample(self, key: Key) -> _Sample:
        epoch, index = key
        config = self._config
        seed, batch_seed = image_seeds(config.seed, epoch, len(self))[index].tolist()
        content, index, bad = self._content(index, seed)
        erasing = config.augment.random_erasing
        box = draw_erased_box(erasing, config.data.image_size) if erasing else NO_BOX
        return _Sample(content, index, int(self._labels[index]), batch_seed, box, bad)

    def __getitem__(self, key: Key) -> _Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[_Sample]:
        python, numpy = random.getstate(), np.random.get_state()
        pytorch = torch.random.get_rng_state()
        try:
            return [self._sample(key) for key in keys]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.random.set_rng_state(pytorch)


class AugmentedImages(_KeyedImages):
    """Images that are read and augmented one by one.

    An image that cannot be read is replaced by the next one that can, in the order of the source.
    """

    def __init__(self, images: Images, config: Config) -> None:
        super().__init__(images.labels, config)
        self._reader = ImageReader(images, config.data.bad_images)

    def _content(self, index: int, seed: int) -> tuple[Tensor, int, list[str]]:
        image, found, bad = self._reader.readable(index)
        seed_cpu(seed)
        return self.augmentation(image), found, bad


class DrawnOperations(_KeyedImages):
    """The operations drawn for training images of one size, which are applied to many at once."""

    def __init__(self, labels: Indices, size: tuple[int, int], config: Config) -> None:
        super().__init__(labels, config)
        self._size = size

    def _content(self, index: int, seed: int) -> tuple[list[Operation], int, list[str]]:
        seed_cpu(seed)
        return self.augmentation.draw(*self._size), index, []


class EvaluationBatch(NamedTuple):
    """A batch as it comes from the processes that load images."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,)."""
    bad: list[str]
    """Lines that name images which could not be read, and are left out."""


class EvaluationImages(Dataset[tuple[Tensor | str, int]]):
    """Images prepared for evaluation, in order; a line in place of one that cannot be read."""

    def __init__(self, images: Images, config: Config) -> None:
        self.images = images
        self._crop = evaluation_crop(config)
        self._reader = ImageReader(images, config.data.bad_images)

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor | str, int]:
        image = self._reader.read(index)
        content = image if isinstance(image, str) else self._crop(image)
        return content, int(self.images.labels[index])


def _collate_evaluation(samples: list[tuple[Tensor | str, int]]) -> EvaluationBatch:
    bad = [content for content, _ in samples if isinstance(content, str)]
    read = [(content, label) for content, label in samples if not isinstance(content, str)]
    if not read:
        return EvaluationBatch(torch.empty(0), torch.empty(0, dtype=torch.int64), bad)
    images, labels = default_collate(read)
    return EvaluationBatch(images, labels, bad)


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


def worker_count(data: DataConfig, *, trains_on_gpu: bool = False) -> int:
    """Return the number of processes that load images for this process.

    Args:
        data: the settings.
        trains_on_gpu: the images are those that a model is trained with on a GPU.
    """
    if data.workers is not None:
        return data.workers
    if data.source in PACKAGED:
        # This process cannot give a GPU work while it draws the numbers of the next images.
        return int(trains_on_gpu)
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
    """The batches of every epoch, on the device of the model.

    Args:
        images: the training images.
        config: the settings.
        batches: the order of the images.
        workers: number of processes that load images.
        device: of the model.

    Raises:
        UsageError: settings and images do not fit together.
    """

    def __init__(
        self,
        images: Images,
        config: Config,
        batches: EpochBatches,
        *,
        workers: int,
        device: torch.device,
    ) -> None:
        self.bad_images = BadImages(config.data.bad_images)
        self.prepare = BatchPreparation(config, device)
        self._batches, self._device, self._workers = batches, device, workers
        self._resident = resident_images(images, config, device, self.bad_images)
        dataset = (
            AugmentedImages(images, config)
            if self._resident is None
            else DrawnOperations(self._resident.labels, self._resident.size, config)
        )
        self._augmentation = dataset.augmentation
        self._together = _batches_together(batches.images_at_once, config.data.image_size)
        options = _loader_options(workers, device)
        if self._resident is not None and workers:
            # The next group is drawn while the model uses this one.
            options["prefetch_factor"] = max(2, math.ceil(self._together / workers))
        self._loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=batches, collate_fn=_collate, **options
        )
        self._epochs = config.epochs
        self._begun: tuple[int, Iterator[TrainingBatch]] | None = None

    @property
    def is_resident(self) -> bool:
        """True if the images stay on the device and are augmented there."""
        return self._resident is not None

    @property
    def description(self) -> str:
        """A line on where the images are augmented."""
        if self._resident is None:
            where = f"{self._workers} processes" if self._workers else "this process"
            return f"images: augmented one by one, in {where}"
        size = self._resident.pixels.nbytes / 2**20
        return f"images: all on {self._device} ({size:.1f} MiB), augmented there many at once"

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self._batches.steps

    @property
    def images_at_once(self) -> int:
        """Images of each batch of this process."""
        return self._batches.images_at_once

    def loaded(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """Iterate over batches as they come from the processes that load images.

        Processes that only draw numbers go on with the next epoch as soon as this one is drawn.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == epoch and not first_step:
            batches = begun[1]
        else:
            batches = self._begin(epoch, first_step)
        goes_on = self._resident is not None and self._workers and epoch + 1 < self._epochs
        count = len(self._batches)
        for number, batch in enumerate(itertools.islice(batches, count), 1):
            if number == count and goes_on:
                self._begun = epoch + 1, self._begin(epoch + 1)
            yield batch

    def _begin(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        self._batches.epoch, self._batches.first_step = epoch, first_step
        return iter(self._loader)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Iterate over (images, targets), a pair an accumulation step, from `first_step` on."""
        loaded = self.loaded(epoch, first_step)
        if self._resident is None:
            return prefetched(map(self._transferred, loaded), self._device)
        return itertools.chain.from_iterable(map(self._augmented, _groups(loaded, self._together)))

    def _transferred(self, batch: TrainingBatch) -> Batch:
        self.bad_images.add(batch.bad)
        assert isinstance(batch.content, Tensor)
        images = batch.content.to(self._device, non_blocking=True)
        return self.prepare(images.contiguous(), batch.labels, batch.seeds, batch.boxes)

    def _augmented(self, batches: list[TrainingBatch]) -> Iterator[Batch]:
        """Augment and prepare several batches at once."""
        assert self._resident is not None
        tables = [batch.content for batch in batches]
        most = max(table.shape[1] for table in tables)
        indices, labels, seeds, boxes = (
            np.concatenate(each)
            for each in zip(
                *((b.indices, b.labels, b.seeds, b.boxes) for b in batches), strict=True
            )
        )
        images = batched_operations.apply(
            self._resident.pixels.index_select(0, uploaded(indices, self._device)),
            np.concatenate(
                [np.pad(table, ((0, 0), (0, most - table.shape[1]), (0, 0))) for table in tables]
            ),
            self._augmentation.size,
            self._augmentation.fill,
        )
        size = len(batches[0].labels)
        prepared, targets = self.prepare(images, labels, seeds, boxes, size)
        return zip(prepared.split(size), targets.split(size), strict=True)


def _batches_together(images: int, side: int) -> int:
    """Return how many batches are augmented at once, given the images of each and their side."""
    most = min(IMAGES_AUGMENTED_TOGETHER, PIXELS_AUGMENTED_TOGETHER // side**2)
    return max(1, most // images)


def _groups(batches: Iterator[TrainingBatch], size: int) -> Iterator[list[TrainingBatch]]:
    """Yield lists of `size` batches; the last one may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


class EvaluationLoader:
    """Every `world`-th image from `rank` on, in order, on the device of the model.

    Images that cannot be read are left out. Small images are prepared once and stay on the device.

    Args:
        images: the images.
        config: the settings.
        batch_size: images of a batch.
        processes: this process among those that share the images.
        workers: number of processes that load images.
    """

    def __init__(
        self,
        images: Images,
        config: Config,
        batch_size: int,
        processes: Processes,
        *,
        workers: int,
    ) -> None:
        self.bad_images = BadImages(config.data.bad_images)
        self._device = processes.device
        self._normalize = Normalization(config.data, processes.device)
        side, wanted = config.data.image_size, config.data.device_resident
        bytes_of_all = len(images.labels) * config.model.in_chans * side**2
        is_small = bytes_of_all <= MOST_BYTES and side <= LARGEST_SIDE
        self._keeps = wanted == "true" or (wanted == "auto" and is_small)
        self._kept: list[Batch] | None = None
        indices: NDArray[np.int64] = np.arange(processes.rank, len(images.labels), processes.world)
        self._loader: DataLoader[Any] = DataLoader(
            EvaluationImages(images.select(indices), config),
            batch_size,
            collate_fn=_collate_evaluation,
            **_loader_options(workers, processes.device),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over (images, classes)."""
        if self._kept is not None:
            batches: Iterable[Batch] = self._kept
        elif self._keeps:
            batches = self._kept = list(self._loaded())
        else:
            batches = prefetched(self._loaded(), self._device)
        return ((self._normalize(images), labels) for images, labels in batches)

    def _loaded(self) -> Iterator[Batch]:
        """Iterate over images, uint8 (N, C, H, W), and classes."""
        for batch in self._loader:
            self.bad_images.add(batch.bad)
            if len(batch.labels):
                labels = batch.labels.to(self._device, non_blocking=True)
                yield batch.images.to(self._device, non_blocking=True), labels
