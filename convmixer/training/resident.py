"""Training images that stay on the device of the model, all in one tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convmixer.config.settings import Config
from convmixer.data.augmentation import Augmentation
from convmixer.data.operations import as_tensor
from convmixer.data.sources import Images, Indices
from convmixer.errors import UsageError
from convmixer.training.bad_images import BadImages, ImageReader

MOST_BYTES = 2**30
LARGEST_SIDE = 64
"""Images of at most so many bytes and pixels a side stay on the device if that is left open.

Crops are products with matrices, whose cost goes with the third power of the side: on a CPU the
whole augmentation is faster than Pillow's for 64 x 64 pixels, and a sixth as fast for 500 x 375.
"""


class ResidentImages(NamedTuple):
    """Images of one size."""

    pixels: Tensor
    """uint8 (N, C, H, W), on the device of the model."""
    labels: Indices
    """The class of each image, int64 (N,)."""

    @property
    def size(self) -> tuple[int, int]:
        """The width and the height of an image."""
        return self.pixels.shape[3], self.pixels.shape[2]


def resident_images(
    images: Images, config: Config, device: torch.device, bad_images: BadImages
) -> ResidentImages | None:
    """Read all images if they are to stay on the device, or return None.

    They stay there if `data.device_resident` says so, or leaves it open and they have one size, are
    small, and the operations of the augmentation can be applied to many at once. In place of an
    image that cannot be read stands the next one.

    Args:
        images: the training images.
        config: the settings.
        device: of the model.
        bad_images: takes those that cannot be read.

    Raises:
        UsageError: the settings ask for it and images or augmentation do not allow it, or too many
            images cannot be read.
    """
    wanted = config.data.device_resident
    is_batched = Augmentation(config).is_batched
    if wanted == "true" and not is_batched:
        raise UsageError(
            f"data.device_resident: augment.rand_augment {config.augment.rand_augment} blurs "
            "images, which cannot be done to many at once"
        )
    if wanted == "false" or not is_batched:
        return None
    reader = ImageReader(images, config.data.bad_images)
    count = len(images.labels)
    pixels: list[Tensor] = []
    sources: list[int] = []
    for index in range(count):
        image, source, reasons = reader.readable(index)
        bad_images.add(reasons)
        pixels.append(as_tensor(image))
        sources.append(source)
        first, last = pixels[0], pixels[-1]
        sides = (config.data.image_size, *first.shape[1:])
        is_small = first.nbytes * count <= MOST_BYTES and max(sides) <= LARGEST_SIDE
        if wanted == "auto" and not (is_small and last.shape == first.shape):
            return None
        if last.shape != first.shape:
            raise UsageError(
                "data.device_resident: images on the device have one size, and here are "
                f"{first.shape[2]} x {first.shape[1]} and {last.shape[2]} x {last.shape[1]} pixels"
            )
    return ResidentImages(torch.stack(pixels).to(device), images.labels[sources])
