"""Preparation of batches on the device of the model: mixing, normalisation, erasing.

The order is that of the code of the paper's authors, who mix the 8-bit images of a batch, then
normalise them, and then erase rectangles, so that the noise in these is not mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor

from convmixer.config.settings import Config, DataConfig
from convmixer.data.sources import Indices
from convmixer.data.transfer import uploaded


class Normalization:
    """Conversion of 8-bit images to normalised ones.

    Args:
        data: means and standard deviations of images in 0..1.
        device: of the images.
    """

    def __init__(self, data: DataConfig, device: torch.device) -> None:
        self._mean, self._std = (
            torch.tensor([255.0 * value for value in values], device=device)[:, None, None]
            for values in (data.mean, data.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return (..., C, H, W) in 0..255 normalised, in float32; float32 is overwritten."""
        return images.float().sub_(self._mean).div_(self._std)


def build_mixup(config: Config) -> Mixup | None:
    """Return timm's mixup and CutMix with label smoothing, or None if both are off."""
    augment = config.augment
    if augment.mixup == 0 and augment.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_probability,
        switch_prob=augment.switch_probability,
        label_smoothing=config.label_smoothing,
        num_classes=config.model.n_classes,
    )


def soft_targets(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """Return one-hot targets (N, n_classes), smoothed: `smoothing / n_classes` on every class."""
    targets = torch.full((len(labels), n_classes), smoothing / n_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0 - smoothing + smoothing / n_classes)


class BatchPreparation:
    """The last steps of augmentation, on whole batches.

    All random numbers come from the seeds of the images of a batch, so that they depend neither on
    the batches before it nor on the generators of the program.

    Args:
        config: the settings.
        device: of the batches.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config = config
        self._mixup = build_mixup(config)
        self._normalize = Normalization(config.data, device)
        self._fill = _RANDOM_FILLS.get(config.augment.erasing_mode)

    @property
    def mixes(self) -> bool:
        """True if images are mixed in pairs."""
        return self._mixup is not None

    def __call__(
        self,
        images: Tensor,
        labels: Indices,
        seeds: Indices,
        boxes: NDArray[np.int64],
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prepare a batch, or several at once, of which a GPU is given the work without waiting.

        Args:
            images: uint8 (N, C, H, W).
            labels: the class of each image, int64 (N,).
            seeds: the seed of each image, int64 (N,).
            boxes: top, left, height and width of the rectangle to erase in each image, or zeros;
                int64 (N, 4).
            batch_size: images of each batch, beyond which none is mixed; None if there is one.

        Returns:
            the images, float32 (N, C, H, W), and the targets, float32 (N, n_classes).
        """
        config = self._config
        targets = soft_targets(
            uploaded(labels, images.device), config.model.n_classes, config.label_smoothing
        )
        if self._mixup is not None:
            mixing = self._drawn_mixing(self._mixup, images.shape, seeds, batch_size or len(images))
            images, targets = _mixed(images, targets, mixing)
        normalised = self._normalize(images)
        self._erase(normalised, seeds, boxes)
        return normalised, targets

    def _drawn_mixing(
        self, mixup: Mixup, shape: torch.Size, seeds: Indices, batch_size: int
    ) -> _Mixing:
        """Draw how the images of each group are mixed, as timm does for a batch."""
        count, size = len(seeds), self._config.augment.mix_images
        mixing = _Mixing(np.empty(count, np.int64), np.empty(count), np.zeros((count, 4), np.int64))
        state = np.random.get_state()
        try:
            for first in range(0, count, batch_size):
                last = min(first + batch_size, count)
                for start in range(first, last, size):
                    group = slice(start, min(start + size, last))
                    mixing.partners[group] = np.arange(group.start, group.stop)[::-1]
                    # The noise of an image takes the lower bits of its seed.
                    np.random.seed(seeds[start] >> 32)
                    share, cuts = mixup._params_per_batch()
                    if cuts and share < 1.0:
                        (top, bottom, left, right), share = cutmix_bbox_and_lam(shape, share)
                        mixing.boxes[group] = top, left, bottom - top, right - left
                    mixing.shares[group] = share
        finally:
            np.random.set_state(state)
        return mixing

    def _erase(self, images: Tensor, seeds: Indices, boxes: NDArray[np.int64]) -> None:
        """Fill a rectangle of each image that has one."""
        erased = np.flatnonzero(boxes[:, 2])
        if self._fill is None:
            if len(erased):
                images.masked_fill_(_inside(boxes, images), 0.0)
            return
        noise = torch.Generator(images.device)
        channels, strides = images.shape[1], images.stride()
        for index, seed, box in zip(
            erased.tolist(), seeds[erased].tolist(), boxes[erased].tolist(), strict=True
        ):
            top, left, height, width = box
            # An index and two slices would take the processor 2.4 times as long.
            start = images.storage_offset() + index * strides[0] + top * strides[2]
            rectangle = images.as_strided(
                (channels, height, width), strides[1:], start + left * strides[3]
            )
            self._fill(rectangle, noise.manual_seed(seed))


class _Mixing(NamedTuple):
    """The numbers with which each image is mixed."""

    partners: NDArray[np.int64]
    """The place of the other image, (N,)."""
    shares: NDArray[np.float64]
    """The share of the image itself in its target, (N,)."""
    boxes: NDArray[np.int64]
    """Top, left, height and width of what CutMix takes from the other image, or zeros, (N, 4)."""


def _mixed(images: Tensor, targets: Tensor, mixing: _Mixing) -> tuple[Tensor, Tensor]:
    """Return the mixed images, float32 levels that are rounded to 8 bits again, and targets."""
    partners = uploaded(mixing.partners, images.device)
    # The share of the other image is a difference of float64 numbers, as it is in timm.
    shares = np.stack([mixing.shares, 1.0 - mixing.shares]).astype(np.float32)
    own, other = uploaded(shares, images.device)[:, :, None, None, None]
    targets = targets * own[:, :, 0, 0] + targets[partners] * other[:, :, 0, 0]
    cut = mixing.boxes.any(1)
    if cut.any():
        shares[:, cut] = [[1.0], [0.0]]
        inside = _inside(mixing.boxes, images)
        own, other = (
            each.masked_fill(inside, value)
            for each, value in zip(
                uploaded(shares, images.device)[:, :, None, None, None], (0.0, 1.0), strict=True
            )
        )
    others = images.index_select(0, partners).float().mul_(other)
    return images.float().mul_(own).add_(others).round_(), targets


def _inside(boxes: NDArray[np.int64], images: Tensor) -> Tensor:
    """Return which pixels lie in the boxes (top, left, height, width), bool (N, 1, H, W)."""
    height, width = images.shape[2:]
    rows, columns = np.arange(height), np.arange(width)
    top, left, tall, wide = boxes.T[:, :, None]
    within = (
        ((rows >= top) & (rows < top + tall))[:, None, :, None],
        ((columns >= left) & (columns < left + wide))[:, None, None, :],
    )
    down, across = (uploaded(each, images.device) for each in within)
    return down & across


def _fill_with_noise(rectangle: Tensor, noise: torch.Generator) -> object:
    return rectangle.normal_(generator=noise)


def _fill_with_colour(rectangle: Tensor, noise: torch.Generator) -> object:
    channels = len(rectangle)
    colour = torch.randn(channels, 1, 1, generator=noise, device=rectangle.device)
    return rectangle.copy_(colour)


_RANDOM_FILLS: dict[str, Callable[[Tensor, torch.Generator], object]] = {
    "pixel": _fill_with_noise,
    "rand": _fill_with_colour,
}
"""The fillings of erased rectangles by `augment.erasing_mode`, but for zero."""
