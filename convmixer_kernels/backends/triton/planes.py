"""Copy images from channels_last to the planes that convolutions take, and their results back.

The matrix products of a convolution take neighbouring columns of a channel. In planes these are
neighbours in memory, too; in channels_last all other channels lie between them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton.kernels.transpose import transpose_kernel

_VECTOR_BYTES = 16
# Channels and positions of a tile, fewer where the image has fewer.
_TILE = 64
_WARPS = 4


def planar(tensor: Tensor) -> Tensor:
    """Return `tensor` itself if it is planar, otherwise a contiguous copy."""
    if not layout.is_channels_last(tensor):
        return layout.planar(tensor)
    planes = tensor.new_empty(tensor.shape)
    _transpose(tensor, planes, to_planes=True)
    return planes


def arranged_like(planes: Tensor, source: Tensor) -> Tensor:
    """Return what was computed from `planar(source)` in the layout of an output for `source`.

    Args:
        planes: with the strides of `layout.empty_like_input(planar(source))`.

    Returns:
        A tensor with the strides of `layout.empty_like_input(source)`: `planes` or a copy.
    """
    if not layout.is_channels_last(source):
        return planes
    output = layout.empty_like_input(source)
    _transpose(output, planes, to_planes=False)
    return output


def arranged(grad: Tensor, channels_last: bool) -> Tensor:
    """Return what `layout.arranged` does."""
    if layout.is_arranged(grad, channels_last):
        return grad
    return to_channels_last(grad) if channels_last else planar(grad)


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return `tensor` itself if it is dense in channels_last, otherwise a copy that is."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    pixels = torch.empty_like(tensor, memory_format=torch.channels_last)
    if not tensor.is_contiguous():
        return pixels.copy_(tensor)
    _transpose(pixels, tensor, to_planes=False)
    return pixels


def _transpose(pixels: Tensor, planes: Tensor, to_planes: bool) -> None:
    launch = plan(pixels, to_planes)
    with torch.cuda.device_of(pixels):
        transpose_kernel[launch.grid](
            *(pixels, planes, *launch.sizes, *planes.stride()[:2]), **launch.options
        )


class Transposition(NamedTuple):
    """The launch of a copy between channels_last and planes.

    Args:
        sizes: sizes and strides of the tensor in channels_last, in the order of the kernel.
        options: the compile-time parameters and the options of Triton.
    """

    grid: tuple[int]
    sizes: tuple[int, ...]
    options: dict[str, Any]


def plan(pixels: Tensor, to_planes: bool) -> Transposition:
    """Plan a copy of `pixels`, in channels_last of any strides, to dense planes, or back."""
    images, channels, height, width = pixels.shape
    image_stride, _, run_stride, pixel_stride = pixels.stride()
    # The stride along a dimension of size 1 means nothing.
    if images == 1:
        image_stride = 0
    if width == 1:
        pixel_stride = run_stride
    runs, positions = height, width
    if height == 1 or run_stride == width * pixel_stride:
        runs, positions, run_stride = 1, height * width, 0
    vector = _VECTOR_BYTES // pixels.element_size()
    tile_channels = min(_TILE, triton.next_power_of_2(channels))
    tile_positions = min(_TILE, triton.next_power_of_2(positions))
    tiles = triton.cdiv(channels, tile_channels) * triton.cdiv(positions, tile_positions)
    return Transposition(
        grid=(images * runs * tiles,),
        sizes=(channels, runs, positions, image_stride, run_stride, pixel_stride),
        options={
            "TO_PLANES": to_planes,
            "CHANNELS": tile_channels,
            "POSITIONS": tile_positions,
            "CHANNEL_ALIGNMENT": math.gcd(vector, channels, image_stride, run_stride, pixel_stride),
            "POSITION_ALIGNMENT": math.gcd(vector, positions),
            "num_warps": _WARPS,
        },
    )
