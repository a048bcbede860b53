"""Preparation of batches on the device of the model: mixing, normalisation, erasing.

The order is that of the code of the paper's authors, who mix the 8-bit images of a batch, then
normalise them, and then erase rectangles, so that the noise in these is not mixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from convmixer.config.settings import Config, DataConfig


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
        self._noise = torch.Generator(device)
        self._fill: Callable[[Tensor, torch.Generator], object] = {
            "pixel": _fill_with_noise,
            "rand": _fill_with_colour,
            "const": _fill_with_zero,
        }[config.augment.erasing_mode]

    @property
    def mixes(self) -> bool:
        """True if images are mixed in pairs."""
        return self._mixup is not None

    def __call__(
        self, images: Tensor, labels: Tensor, seeds: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prepare a batch.

        Args:
            images: uint8 (N, C, H, W).
            labels: int64 (N,).
            seeds: the seed of each image, int64 (N,), on the CPU.
            boxes: top, left, height and width of the rectangle to erase in each image, or zeros;
                int64 (N, 4), on the CPU.

        Returns:
            the images, float32 (N, C, H, W), and the targets, float32 (N, n_classes).
        """
        levels, targets = self._mix(images, labels, seeds)
        normalised = self._normalize(levels)
        for image, seed, box in zip(normalised, seeds.tolist(), boxes.tolist(), strict=True):
            top, left, height, width = box
            if height:
                self._noise.manual_seed(seed)
                self._fill(image[:, top : top + height, left : left + width], self._noise)
        return normalised, targets

    def _mix(self, images: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images of each group by one draw, and round them to 8 bits again."""
        config = self._config
        if self._mixup is None:
            return images, soft_targets(labels, config.model.n_classes, config.label_smoothing)
        levels, size = images.float(), config.augment.mix_images
        targets = []
        state = np.random.get_state()
        try:
            for group, classes, seed in zip(
                levels.split(size), labels.split(size), seeds[::size].tolist(), strict=True
            ):
                # The noise of an image takes the lower bits of its seed.
                np.random.seed(seed >> 32)
                _, mixed_targets = self._mixup(group, classes)
                targets.append(mixed_targets)
        finally:
            np.random.set_state(state)
        return levels.round_(), torch.cat(targets)


def _fill_with_noise(rectangle: Tensor, noise: torch.Generator) -> object:
    return rectangle.normal_(generator=noise)


def _fill_with_colour(rectangle: Tensor, noise: torch.Generator) -> object:
    channels = len(rectangle)
    colour = torch.randn(channels, 1, 1, generator=noise, device=rectangle.device)
    return rectangle.copy_(colour)


def _fill_with_zero(rectangle: Tensor, _: torch.Generator) -> object:
    return rectangle.zero_()
