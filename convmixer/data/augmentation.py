"""The transforms of images: augmentation for training, preparation for evaluation, mixing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from convmixer.config.settings import Config
from convmixer.errors import UsageError

Transform = Callable[[Image.Image], Tensor]

TRANSLATE_FRACTION = 0.45
"""timm's RandAugment moves an image by up to this part of its size."""


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of every channel.

    timm's RandAugment at its strongest keeps no bits, which leaves black. Newer versions of Pillow
    refuse 0 bits, so this function takes the place of timm's.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


def _rand_augment(text: str, config: Config) -> Any:
    """Return RandAugment in timm's form (`rand-m9-mstd0.5-inc1`) or torchvision's.

    `torchvision-n1-m8` is torchvision's RandAugment with one operation of magnitude 8.
    """
    mean = [round(255 * value) for value in config.data.mean]
    if text.startswith("rand"):
        fill = tuple(mean) if len(mean) == 3 else mean[0]
        hparams: dict[str, Any] = {
            "translate_const": int(config.data.image_size * TRANSLATE_FRACTION),
            "img_mean": fill,
        }
        try:
            policy = rand_augment_transform(text, hparams)
        except (AssertionError, ValueError, KeyError):
            raise UsageError(f"augment.rand_augment: timm does not know {text!r}") from None
        for operation in policy.ops:  # Each is an AugmentOp of timm, which calls its aug_fn.
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
        return policy
    if text.startswith("torchvision-"):
        options = {part[:1]: part[1:] for part in text.split("-")[1:]}
        if options.keys() <= {"n", "m"} and all(value.isdigit() for value in options.values()):
            policy = transforms.RandAugment(
                num_ops=int(options.get("n", 2)), magnitude=int(options.get("m", 9))
            )
            if policy.magnitude >= policy.num_magnitude_bins:
                raise UsageError(
                    "augment.rand_augment: torchvision's magnitude is at most "
                    f"{policy.num_magnitude_bins - 1}, got {text!r}"
                )
            return policy
    raise UsageError(
        "augment.rand_augment: expected timm's form such as rand-m9-mstd0.5-inc1 or "
        f"torchvision's such as torchvision-n1-m8, got {text!r}"
    )


def training_transform(config: Config) -> Transform:
    """Return the augmentation of one training image: crop, flip, colours, erasing."""
    augment, data = config.augment, config.data
    steps: list[Any] = []
    if augment.crop_padding:
        steps.append(transforms.Resize((data.image_size, data.image_size)))
        steps.append(transforms.RandomCrop(data.image_size, padding=augment.crop_padding))
    if augment.scale != [1.0, 1.0] or augment.ratio != [1.0, 1.0] or not augment.crop_padding:
        steps.append(
            RandomResizedCropAndInterpolation(
                data.image_size,
                scale=tuple(augment.scale),
                ratio=tuple(augment.ratio),
                interpolation=augment.train_interpolation,
            )
        )
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip(augment.flip))
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, config))
    if augment.color_jitter:
        steps.append(transforms.ColorJitter(*[augment.color_jitter] * 3))
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    if augment.random_erasing:
        steps.append(RandomErasing(augment.random_erasing, mode=augment.erasing_mode, device="cpu"))
    return transforms.Compose(steps)


def evaluation_transform(config: Config) -> Transform:
    """Return the preparation of one image for evaluation: resize, centre crop, normalise."""
    data = config.data
    resized = math.floor(data.image_size / data.crop_fraction)
    return transforms.Compose(
        [
            transforms.Resize(resized, InterpolationMode(data.interpolation)),
            transforms.CenterCrop(data.image_size),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )


def batch_mixing(config: Config) -> Mixup | None:
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
