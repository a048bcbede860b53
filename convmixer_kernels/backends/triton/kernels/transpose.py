"""Copies of images between channels_last and planes."""

from __future__ import annotations

import triton
import triton.language as tl

# Integer parameters for whose values the kernel is not compiled anew.
_RUN_TIME_SIZES = (
    *("channels", "runs", "positions", "image_stride", "run_stride", "pixel_stride"),
    *("plane_image_stride", "plane_stride"),
)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def transpose_kernel(
    pixels_ptr,
    planes_ptr,
    channels,
    runs,
    positions,
    image_stride,
    run_stride,
    pixel_stride,
    plane_image_stride,
    plane_stride,
    TO_PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNEL_ALIGNMENT: tl.constexpr,
    POSITION_ALIGNMENT: tl.constexpr,
):
    """Copy `pixels` to `planes`, or back. Grid: images * runs * tiles of a run.

    `pixels` has adjacent channels, `planes` adjacent positions. A *run* is a stretch of pixels at
    equal distances: a row, or all rows of an image. A program copies a tile of POSITIONS positions
    and CHANNELS channels; it loads and stores along what is adjacent on either side, so that the
    tile changes its layout in shared memory.
    """
    across = tl.cdiv(channels, CHANNELS)
    down = tl.cdiv(positions, POSITIONS)
    tile = tl.program_id(0) % (across * down)
    run = tl.program_id(0) // (across * down)
    image = (run // runs).to(tl.int64)
    run = (run % runs).to(tl.int64)
    channel = ((tile % across) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    position = ((tile // across) * POSITIONS + tl.arange(0, POSITIONS))[:, None]
    exists = (position < positions) & (channel < channels)
    exists = tl.max_constancy(exists, [POSITION_ALIGNMENT, CHANNEL_ALIGNMENT])
    channel, position = channel.to(tl.int64), position.to(tl.int64)
    offset = image * image_stride + run * run_stride + position * pixel_stride + channel
    pixels = pixels_ptr + tl.multiple_of(offset, [1, CHANNEL_ALIGNMENT])
    offset = image * plane_image_stride + channel * plane_stride + run * positions + position
    planes = planes_ptr + tl.multiple_of(offset, [POSITION_ALIGNMENT, 1])
    if TO_PLANES:
        tl.store(planes, tl.load(pixels, mask=exists), mask=exists)
    else:
        tl.store(pixels, tl.load(planes, mask=exists), mask=exists)
