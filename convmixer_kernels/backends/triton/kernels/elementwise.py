"""Chunks of a tensor in an elementwise pass, which treats all elements of a channel alike.

A *run* is a stretch of positions at equal distances. Planar tensors have a run for each image,
along which memory is contiguous; if images are adjacent (CNHW), one run for all. In channels_last
there is one run of all pixels, and the channels are contiguous. Programs cut runs into *chunks* of
(runs, channels, positions); two of these three sizes are often 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Runs(NamedTuple):
    """A tensor as elementwise passes address it; strides in elements.

    Args:
        pointer: first element, None for a tensor that is left out.
    """

    pointer: Any
    run_stride: Any
    channel_stride: Any
    position_stride: Any


class Chunk(NamedTuple):
    """The elements that a program takes at a time.

    Args:
        run, channel, position: indices, (RUNS, 1, 1), (1, CHANNELS, 1) and (1, 1, POSITIONS).
        mask: False for what is beyond the tensor.
        count: how many elements of each channel are in the chunk.
    """

    run: Any
    channel: Any
    position: Any
    mask: Any
    count: Any


def run_time_sizes(*tensors: str) -> tuple[str, ...]:
    """Name the integer parameters for whose values a kernel is not compiled anew."""
    names = ["runs", "channels", "positions", "splits"]
    for tensor in tensors:
        names += [f"{tensor}_{stride}_stride" for stride in ("run", "channel", "position")]
    return tuple(names)


@triton.jit
def locate_program(channels, CHANNELS: tl.constexpr):
    """Return the split of this program, and the first of its CHANNELS channels."""
    groups = tl.cdiv(channels, CHANNELS)
    return tl.program_id(0) // groups, (tl.program_id(0) % groups) * CHANNELS


@triton.jit
def count_chunks(runs, positions, SHAPE: tl.constexpr):
    """Count the chunks of a channel."""
    return tl.cdiv(runs, SHAPE[0]) * tl.cdiv(positions, SHAPE[2])


@triton.jit
def locate_chunk(
    number,
    first_channel,
    runs,
    channels,
    positions,
    SHAPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Locate a chunk of shape (RUNS, CHANNELS, POSITIONS) by its number."""
    across = tl.cdiv(positions, SHAPE[2])
    first_run = (number // across) * SHAPE[0]
    first_position = (number % across) * SHAPE[2]
    run = first_run + tl.arange(0, SHAPE[0])[:, None, None]
    channel = first_channel + tl.arange(0, SHAPE[1])[None, :, None]
    position = first_position + tl.arange(0, SHAPE[2])[None, None, :]
    mask = (run < runs) & (channel < channels) & (position < positions)
    # The mask is the same for the elements of a vector.
    if CHANNELS_LAST:
        mask = tl.max_constancy(mask, [1, ALIGNMENT, 1])
    else:
        mask = tl.max_constancy(mask, [1, 1, ALIGNMENT])
    count = tl.minimum(SHAPE[0], runs - first_run) * tl.minimum(
        SHAPE[2], positions - first_position
    )
    return Chunk(run.to(tl.int64), channel, position.to(tl.int64), mask, count)


@triton.jit
def _pointers(tensor, chunk, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return pointers to the elements of a chunk, in vectors of ALIGNMENT elements.

    The compiler is told so of the whole chunk: of parts of it that have a single element, it drops
    the hint or fails.
    """
    if CHANNELS_LAST:
        pixel = chunk.run * tensor.run_stride + chunk.position * tensor.position_stride
        return tensor.pointer + tl.multiple_of(pixel + chunk.channel, [1, ALIGNMENT, 1])
    else:
        plane = chunk.run * tensor.run_stride + chunk.channel.to(tl.int64) * tensor.channel_stride
        return tensor.pointer + tl.multiple_of(plane + chunk.position, [1, 1, ALIGNMENT])


@triton.jit
def load_chunk(tensor, chunk, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Load a chunk as float32, zero for what is beyond the tensor."""
    pointers = _pointers(tensor, chunk, ALIGNMENT, CHANNELS_LAST)
    return tl.load(pointers, mask=chunk.mask, other=0.0).to(tl.float32)


@triton.jit
def store_chunk(tensor, chunk, values, ALIGNMENT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Round a chunk to the dtype of the tensor and store it."""
    pointers = _pointers(tensor, chunk, ALIGNMENT, CHANNELS_LAST)
    tl.store(pointers, values.to(tensor.pointer.dtype.element_ty), mask=chunk.mask)


@triton.jit
def load_bias(bias_ptr, channel):
    """Load the bias of channels, 0 if there is none."""
    if bias_ptr is not None:
        return tl.load(bias_ptr + channel)
    else:
        return 0.0


@triton.jit
def sum_by_channel(values):
    """Sum over the runs and the positions of a chunk: (CHANNELS,)."""
    return tl.sum(tl.sum(values, axis=2), axis=0)
