"""The operations of `convmixer.data.operations` on many images at once, on any device.

Each image has values of its own. Levels are those of Pillow, but for one of 255 here and there
where it rounds otherwise, and for a tie of two pixels that are equally near.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from convmixer.data.operations import (
    LARGEST_NUMBER_OF_VALUES,
    NOTHING,
    Kind,
    Operation,
    Resampling,
)
from convmixer.data.transfer import uploaded

_KIND, _INTERPOLATION, _VALUES = 0, 1, 2
_COLUMNS = _VALUES + LARGEST_NUMBER_OF_VALUES
_KINDS_APART = 16
"""More than the largest code of an interpolation."""

_WEIGHT_STEPS = 2.0**22
"""The inverse of the last bit of Pillow's weights."""
_GREY_WEIGHTS = (19595, 38470, 7471)
"""Red, green and blue in a grey level, of 65,536 parts."""


def as_row(operation: Operation) -> list[float]:
    """Return an operation as 8 numbers."""
    kind, values, interpolation = operation
    return [kind, interpolation, *values, *[0.0] * (LARGEST_NUMBER_OF_VALUES - len(values))]


def as_table(drawn: Sequence[Sequence[Operation]]) -> NDArray[np.float64]:
    """Return the operations of N images as numbers, float64 (N, most operations of one, 8)."""
    length = max(map(len, drawn))
    nothing = as_row(NOTHING)
    rows = [
        [*map(as_row, operations), *[nothing] * (length - len(operations))] for operations in drawn
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), length, _COLUMNS)


def apply(images: Tensor, tables: NDArray[np.float64], size: int, fill: tuple[int, ...]) -> Tensor:
    """Apply to every image its operations, one after another.

    A GPU is never waited for.

    Args:
        images: uint8 (N, C, H, W), whose contents are lost.
        tables: the operations of the images as from `as_table`; a crop of one image stands where
            all images have one.
        size: the side of the square that crops are resized to.
        fill: the colour of what an affine map takes from beyond an image, a value for a channel.

    Returns:
        uint8 (N, C, size, size), or (N, C, H, W) without crops.
    """
    columns = tables.transpose(1, 0, 2)
    kinds = columns[:, :, _KIND].astype(np.int64) * _KINDS_APART
    kinds += columns[:, :, _INTERPOLATION].astype(np.int64)
    # Images with the same operation and interpolation stand side by side in the order of a column.
    order = np.argsort(kinds, axis=1, kind="stable")
    places = uploaded(order, images.device)
    values = uploaded(
        np.take_along_axis(columns[:, :, _VALUES:], order[:, :, None], axis=1), images.device
    )
    for in_order, column_places, column_values in zip(
        np.take_along_axis(kinds, order, axis=1), places, values, strict=True
    ):
        changes = np.flatnonzero(np.diff(in_order)) + 1
        bounds = [0, *changes.tolist(), len(in_order)]
        before = images
        if in_order[0] // _KINDS_APART == Kind.CROP:
            images = images.new_empty((*images.shape[:2], size, size))
        for start, end in pairwise(bounds):
            kind, code = divmod(int(in_order[start]), _KINDS_APART)
            if kind == Kind.NOTHING:
                continue
            index, numbers = column_places[start:end], column_values[start:end]
            chosen = before.index_select(0, index)
            if kind == Kind.CROP:
                changed = _crop(chosen, numbers, size, Resampling(code))
            elif kind == Kind.AFFINE:
                changed = _affine(chosen, numbers, fill, Resampling(code))
            else:
                number = numbers[:, 0, None, None, None].float()
                changed = _OPERATIONS[Kind(kind)](chosen, number)
            images.index_copy_(0, index, changed)
    return images


@functools.cache
def _constant(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a value for each channel, (C, 1, 1), which is copied to a device once."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _crop(images: Tensor, boxes: Tensor, size: int, interpolation: Resampling) -> Tensor:
    """Crop and resize, along the rows and then along the columns, rounded after each."""
    top, left, height, width, *_ = boxes.unbind(1)
    across = _resizing(images.shape[3], left, width, size, interpolation)
    down = _resizing(images.shape[2], top, height, size, interpolation)
    count, channels, rows, _ = images.shape
    narrow = _rounded(images.double().reshape(count, channels * rows, -1) @ across.mT)
    lines = narrow.view(count, channels, rows, size).transpose(1, 2).reshape(count, rows, -1)
    resized = _rounded(down @ lines).view(count, size, channels, size)
    return resized.transpose(1, 2).byte()


def _resizing(
    length: int, start: Tensor, extent: Tensor, size: int, interpolation: Resampling
) -> Tensor:
    """Return the matrices (N, size, length) that resize `extent` pixels from `start` on to `size`.

    As in Pillow, filters are widened where the image is made smaller, weights are normalised over
    the pixels of the crop, and have so many bits that sums of them are exact.
    """
    pixels = torch.arange(length, device=start.device, dtype=torch.float64) + 0.5
    outputs = torch.arange(size, device=start.device, dtype=torch.float64) + 0.5
    scale = (extent / size)[:, None, None]
    centres = start[:, None, None] + outputs[:, None] * scale
    inside = (pixels > start[:, None]) & (pixels < (start + extent)[:, None])
    if interpolation == Resampling.NEAREST:
        return (pixels == centres.floor() + 0.5).double() * inside[:, None]
    distance = ((pixels - centres) / scale.clamp(min=1.0)).abs_()
    if interpolation == Resampling.BILINEAR:
        weights = (1.0 - distance).clamp_(min=0.0)
    else:
        near = (1.5 * distance - 2.5) * distance.square() + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))
    weights *= inside[:, None]
    total = weights.sum(2, keepdim=True)
    # Rows of a box that lie beyond the image have no weights, and stay black.
    weights *= _WEIGHT_STEPS / total.where(total != 0, 1.0)
    return weights.round_() / _WEIGHT_STEPS


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0.0, 255.0)


def _affine(
    images: Tensor, maps: Tensor, fill: tuple[int, ...], interpolation: Resampling
) -> Tensor:
    count, channels, height, width = images.shape
    device = images.device
    if interpolation == Resampling.NEAREST:
        across, down = _nearest(maps, height, width)
    else:
        x = torch.arange(width, device=device, dtype=torch.float64) + 0.5
        y = (torch.arange(height, device=device, dtype=torch.float64) + 0.5)[:, None]
        a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
        across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    flat = images.reshape(count, channels, -1)

    def pixels(levels: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the levels at the columns and starts of rows that are within the image."""
        index = (row + column).reshape(count, 1, -1).expand(-1, channels, -1)
        return levels.gather(2, index).view(images.shape)

    if interpolation == Resampling.NEAREST:
        found = pixels(flat, down.clamp(0, height - 1) * width, across.clamp(0, width - 1))
    else:
        taps = (0, 1) if interpolation == Resampling.BILINEAR else (-1, 0, 1, 2)
        between = _linear if interpolation == Resampling.BILINEAR else _cubic
        left, top = (across - 0.5).floor(), (down - 0.5).floor()
        right_of, below = (
            (across - 0.5 - left)[:, None].float(),
            (down - 0.5 - top)[:, None].float(),
        )
        columns = [(left.long() + tap).clamp_(0, width - 1) for tap in taps]
        rows = [(top.long() + tap).clamp_(0, height - 1) * width for tap in taps]
        levels = flat.float()
        lines = [between([pixels(levels, y, x) for x in columns], right_of) for y in rows]
        found = between(lines, below).clamp_(0.0, 255.0).byte()
    return torch.where(inside[:, None], found, _constant(fill, torch.uint8, device))


def _nearest(maps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return columns and rows of the nearest pixels, int64 (N, H, W), in Pillow's fixed point."""
    x = torch.arange(width, device=maps.device)
    y = torch.arange(height, device=maps.device)[:, None]
    a, b, c, d, e, f = maps.unbind(1)
    first = torch.stack([c + 0.5 * a + 0.5 * b, f + 0.5 * d + 0.5 * e], dim=1)
    steps = torch.stack([a, b, d, e], dim=1)
    fixed = torch.cat([steps, first], dim=1).mul(2**16).add(0.5).floor().long()
    a, b, d, e, c, f = fixed[:, :, None, None].unbind(1)
    return (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16


def _linear(values: list[Tensor], t: Tensor) -> Tensor:
    """Return what lies at `t` between two values."""
    first, second = values
    return torch.addcmul(first, second - first, t)


def _cubic(values: list[Tensor], t: Tensor) -> Tensor:
    """Return what lies at `t` between the inner two of four values.

    Pillow's filter of affine maps has the parameter -1, other than that of its resizing.
    """
    before, first, second, after = values
    straight = second - before
    bend = 2.0 * (before - first) + second - after
    twist = first - before - second + after
    return first + t * (straight + t * (bend + t * twist))


def _flip(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(3)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low = images.amin((2, 3), keepdim=True).double()
    high = images.amax((2, 3), keepdim=True).double()
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1.0)
    stretched = (images * scale + -low * scale).clamp(0.0, 255.0).byte()
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    return vision.equalize(images)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    return images & (256 - 2 ** (8 - bits.int())).clamp(max=255).byte()


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


def _solarize_add(images: Tensor, addend: Tensor) -> Tensor:
    brighter = (images.int() + addend.int()).clamp(max=255).byte()
    return torch.where(images < 128, brighter, images)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Go from `degenerate` towards the images and, for factors above 1, beyond."""
    return (degenerate + factor * (images - degenerate)).clamp_(0.0, 255.0).byte()


def _grey(images: Tensor) -> Tensor:
    """Return grey levels, float32 (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    weights = _constant(_GREY_WEIGHTS, torch.int32, images.device)
    return ((images.int() * weights).sum(1, keepdim=True) + 0x8000 >> 16).float()


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    levels = images.float()
    return _blend(torch.zeros_like(levels), levels, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor().float()
    return _blend(mean, images.float(), factor)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images.float(), factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    levels = images.float()
    smoothed = levels.clone()
    if min(images.shape[2:]) > 2:
        inner = levels[:, :, 1:-1, 1:-1]
        around = F.avg_pool2d(levels, 3, stride=1, divisor_override=1)
        smoothed[:, :, 1:-1, 1:-1] = _rounded((around + 4.0 * inner) / 13.0)
    return _blend(smoothed, levels, factor)


_OPERATIONS: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    Kind.FLIP: _flip,
    Kind.INVERT: _invert,
    Kind.AUTO_CONTRAST: _auto_contrast,
    Kind.EQUALIZE: _equalize,
    Kind.POSTERIZE: _posterize,
    Kind.SOLARIZE: _solarize,
    Kind.SOLARIZE_ADD: _solarize_add,
    Kind.BRIGHTNESS: _brightness,
    Kind.CONTRAST: _contrast,
    Kind.COLOR: _color,
    Kind.SHARPNESS: _sharpness,
}
