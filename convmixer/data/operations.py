"""The operations on an image that augmentation consists of, drawn at random and applied to it.

An `Operation` holds all that was drawn, so that it can be applied to one image, here, or to many at
once (`convmixer.data.batched_operations`) with the same result, which is that of Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

Resampling = Image.Resampling

LARGEST_SIDE_OF_PILLOW = 64
"""Squares of more pixels a side are resized and sheared by PyTorch in place of Pillow.

At 224 x 224 it takes 0.3 to 0.5 times as long; at 32 x 32 its calls alone take longer.
"""

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
    pixels: Tensor, operations: Sequence[Operation], size: int, fill: tuple[int, ...]
) -> Tensor:
    """Apply operations to an image, one after another.

    Args:
        pixels: uint8 (C, H, W), with the channels of a pixel side by side in memory.
        operations: what to do.
        size: the side of the square that a crop is resized to.
        fill: the colour of what an affine map takes from beyond the image, a value for a channel.

    Returns:
        uint8 (C, size, size), or (C, H, W) without a crop, in memory as before.
    """
    for place, operation in enumerate(operations):
        found = _by_pytorch(pixels, operation, size)
        if found is None:
            image = _image(pixels)
            for each in operations[place:]:
                image = _by_pillow(image, each, size, fill)
            return _tensor(image)
        pixels = found
    return pixels


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def _by_pytorch(pixels: Tensor, operation: Operation, size: int) -> Tensor | None:
    """Return the result of an operation, or None if it is left to Pillow.

    PyTorch resizes by the filters of Pillow with weights of fewer bits. It clips bicubic levels
    after the rows and after the columns, of which Pillow may take either first.
    """
    kind, values, interpolation = operation
    if kind is Kind.NOTHING:
        return pixels
    if kind is Kind.FLIP:
        return pixels.flip(2)
    if kind is not Kind.CROP or interpolation not in _MODES or size <= LARGEST_SIDE_OF_PILLOW:
        return None
    top, left, height, width = map(int, values)
    _, rows, columns = pixels.shape
    if min(top, left) < 0 or top + height > rows or left + width > columns:
        return None
    cropped = pixels[:, top : top + height, left : left + width]
    # PyTorch keeps the order in memory, which the strides of four axes show and those of three not.
    images = cropped.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    mode = _MODES[interpolation]
    return F.interpolate(images, (size, size), mode=mode, antialias=True)[0]


_MODES = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}


def _by_pillow(
    image: Image.Image, operation: Operation, size: int, fill: tuple[int, ...]
) -> Image.Image:
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
        return _mapped(image, values, interpolation, size, fill)
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


def _mapped(
    image: Image.Image,
    values: tuple[float, ...],
    interpolation: Resampling,
    size: int,
    fill: tuple[int, ...],
) -> Image.Image:
    """Apply an affine map."""
    colour = fill if len(fill) > 1 else fill[0]
    if interpolation is Resampling.BICUBIC and size > LARGEST_SIDE_OF_PILLOW:
        a, b, c, d, e, f = values
        if (a, d, e, f) == (1.0, 0.0, 1.0, 0.0):
            return _with_moved_rows(image, b, c, colour)
        if (a, b, c, e) == (1.0, 0.0, 0.0, 1.0):
            turned = image.transpose(Image.Transpose.TRANSPOSE)
            moved = _with_moved_rows(turned, d, f, colour)
            return moved.transpose(Image.Transpose.TRANSPOSE)
    return image.transform(
        image.size, Image.Transform.AFFINE, values, interpolation, fillcolor=colour
    )


def _with_moved_rows(
    image: Image.Image, slope: float, offset: float, colour: tuple[int, ...] | int
) -> Image.Image:
    """Take the pixel (x, y) from (x + slope y + offset, y), between four pixels of its row.

    Pillow's bicubic filter weights 4 x 4 pixels, of which those of other rows have the weight 0.
    """
    pixels = _tensor(image).permute(1, 2, 0)
    height, width, channels = pixels.shape
    shifts = slope * (torch.arange(height, dtype=torch.float64) + 0.5) + offset
    first = shifts.floor()
    t = (shifts - first).float()[:, None]
    # A row that lies wholly beyond the image takes the colour, however far it lies.
    first = first.clamp_(-width - 2, width + 1).long()
    left, right = max(0, 1 - int(first.min())), max(0, 2 + int(first.max()))
    before, after = pixels[:, :1].expand(-1, left, -1), pixels[:, -1:].expand(-1, right, -1)
    padded = torch.cat([before, pixels, after], dim=1)
    starts = torch.arange(height) * padded.shape[1] + left + first - 1
    windows = padded.flatten().unfold(0, (width + 3) * channels, 1)
    taken = windows.index_select(0, starts * channels).float()
    weights = (
        t * (-1.0 + t * (2.0 - t)),
        1.0 + t.square() * (t - 2.0),
        t * (1.0 + t * (1.0 - t)),
        t.square() * (t - 1.0),
    )
    # Levels are cut off to whole numbers, which errors of rounding must not take to the next lower.
    levels = torch.full((height, width * channels), 1e-3)
    for tap, weight in enumerate(weights):
        levels.addcmul_(taken[:, tap * channels : (tap + width) * channels], weight)
    moved = _image(levels.clamp_(0.0, 255.0).byte().view(height, width, channels).permute(2, 0, 1))
    columns = np.arange(width, dtype=np.int16)
    low = (-0.5 - shifts).ceil().clamp_(0, width).short().numpy()[:, None]
    high = (width - 0.5 - shifts).ceil().clamp_(0, width).short().numpy()[:, None]
    moved.paste(colour, mask=Image.fromarray((columns < low) | (columns >= high)))
    return moved
