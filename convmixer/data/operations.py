"""The operations on an image that augmentation consists of, drawn at random and applied by Pillow.

An `Operation` holds all that was drawn, so that it can be applied to one image by Pillow, here, or
to many images at once (`convmixer.data.batched_operations`) with the same result.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Resampling = Image.Resampling

LARGEST_NUMBER_OF_VALUES = 6
"""The most values of an operation, those of `AFFINE`."""


class Kind(IntEnum):
    """The kind of an operation; its values stand in brackets."""

    NOTHING = 0
    CROP = 1
    """Crop a box (top, left, height, width) and resize it to the square of the images of a batch.

    What of the box lies beyond the image is black."""
    FLIP = 2
    AFFINE = 3
    """Take the pixel (x, y) from (a x + b y + c, d x + e y + f), given (a, b, c, d, e, f)."""
    INVERT = 4
    AUTO_CONTRAST = 5
    EQUALIZE = 6
    POSTERIZE = 7
    """Keep the highest bits (bits)."""
    SOLARIZE = 8
    """Invert the values from a threshold on (threshold)."""
    SOLARIZE_ADD = 9
    """Add to values below 128 (addend)."""
    BRIGHTNESS = 10
    """Move away from black, for factors below 1 towards it (factor)."""
    CONTRAST = 11
    """Move away from the mean grey (factor)."""
    COLOR = 12
    """Move away from the grey image (factor)."""
    SHARPNESS = 13
    """Move away from the smoothed image (factor)."""
    BLUR = 14
    """Blur by a Gaussian (radius)."""


class Operation(NamedTuple):
    """An operation with its values; CROP and AFFINE take the interpolation as well."""

    kind: Kind
    values: tuple[float, ...] = ()
    interpolation: Resampling = Resampling.NEAREST


NOTHING = Operation(Kind.NOTHING)


def rotation(degrees: float, width: int, height: int, interpolation: Resampling) -> Operation:
    """Return the rotation about the centre, counter-clockwise, with the numbers of Pillow's."""
    # Pillow rounds so that turns by 90 degrees are exact.
    angle = -math.radians(degrees % 360.0)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
    x, y = width / 2.0, height / 2.0
    values = (a, b, a * -x + b * -y + x, d, e, d * -x + e * -y + y)
    return Operation(Kind.AFFINE, values, interpolation)


def apply(
    image: Image.Image, operation: Operation, size: int, fill: tuple[int, ...]
) -> Image.Image:
    """Apply an operation to an image.

    Args:
        image: in mode "RGB" or "L".
        operation: what to do.
        size: the side of the square that a crop is resized to.
        fill: the colour of what an affine map takes from beyond the image, a value for a channel.
    """
    kind, values, interpolation = operation
    if kind is Kind.NOTHING:
        return image
    if kind is Kind.CROP:
        top, left, height, width = map(int, values)
        cropped = image.crop((left, top, left + width, top + height))
        return cropped.resize((size, size), interpolation)
    if kind is Kind.FLIP:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind is Kind.AFFINE:
        colour = fill if len(fill) > 1 else fill[0]
        return image.transform(
            image.size, Image.Transform.AFFINE, values, interpolation, fillcolor=colour
        )
    if kind is Kind.INVERT:
        return ImageOps.invert(image)
    if kind is Kind.AUTO_CONTRAST:
        return ImageOps.autocontrast(image)
    if kind is Kind.EQUALIZE:
        return ImageOps.equalize(image)
    (value,) = values
    if kind is Kind.POSTERIZE:
        # Pillow refuses to keep 0 bits, which leaves black.
        return ImageOps.posterize(image, int(value)) if value > 0 else image.point(lambda _: 0)
    if kind is Kind.SOLARIZE:
        return ImageOps.solarize(image, math.ceil(value))
    if kind is Kind.SOLARIZE_ADD:
        table = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
        return image.point(table * len(image.getbands()))
    if kind is Kind.BLUR:
        return image.filter(ImageFilter.GaussianBlur(value))
    return _ENHANCERS[kind](image).enhance(value)


_ENHANCERS = {
    Kind.BRIGHTNESS: ImageEnhance.Brightness,
    Kind.CONTRAST: ImageEnhance.Contrast,
    Kind.COLOR: ImageEnhance.Color,
    Kind.SHARPNESS: ImageEnhance.Sharpness,
}
