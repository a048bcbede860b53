"""Tensors as runs: how kernels walk over a tensor of which every channel is treated alike.

A run is a stretch of positions at equal distances. Planar tensors have a run for each image, along
which memory is contiguous; if images are adjacent (CNHW), one run for all. In channels_last there
is one run of all pixels, and it is channels that are contiguous. Kernels cut runs into tiles (RUNS,
CHANNELS, POSITIONS), in which two of the three sizes are often 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import launching

# Elements of a tile: a vector of 16 bytes in float16 for each of the threads.
_TILE = 1024
_WARPS = 4
_THREADS_PER_MULTIPROCESSOR = 2048
# Upper limit to the programs that share a channel, and thus to the partial sums of it.
_MOST_PARTS = 128


@dataclass(frozen=True)
class Walk:
    """How programs share tensors of one shape and layout.

    Args:
        tensors: what is accessed, an absent tensor among them as None.
        runs, channels, positions: sizes.
        strides: (run, channel, position) of each tensor, in elements.
        constants: the compile-time parameters of `tile` and the layout.
        parts: programs that share a channel.
    """

    tensors: tuple[Tensor | None, ...]
    runs: int
    channels: int
    positions: int
    strides: tuple[tuple[int, int, int], ...]
    constants: dict[str, int | bool]
    parts: int

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.channels, self.constants["CHANNELS"]) * self.parts,)

    @property
    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """The tensors, sizes and strides in the order of the kernels' parameters."""
        sizes = (self.runs, self.channels, self.positions, self.parts)
        return (*self.tensors, *sizes, *(each for stride in self.strides for each in stride))

    @property
    def options(self) -> dict[str, int | bool]:
        return {**self.constants, "num_warps": _WARPS}


def sizes_and_strides(*tensors: str) -> tuple[str, ...]:
    """The run-time integers of a kernel, none of which it is compiled anew for."""
    names = ["runs", "channels", "positions", "parts"]
    for tensor in tensors:
        names += [f"{tensor}_{stride}_stride" for stride in ("run", "channel", "position")]
    return tuple(names)


def walk(tensors: Sequence[Tensor | None], reduces: bool) -> Walk:
    """How to walk over `tensors`, of which the first is there; those of other layouts are copied.

    Args:
        reduces: whether programs leave a partial sum, so that there should not be many.
    """
    shaped = of_one_layout(tensors)
    value = shaped[0]
    assert value is not None
    images, channels, height, width = value.shape
    channels_last = layout.is_channels_last(value)
    runs, positions = images, height * width
    present = [each for each in shaped if each is not None]
    if channels_last or images == 1 or all(each.stride(0) == positions for each in present):
        runs, positions = 1, images * positions
    strides = tuple(_strides(each, runs, channels_last) for each in shaped)
    alignment = math.gcd(8, channels if channels_last else positions)
    for each in strides:
        along = (each[0], each[2]) if channels_last else each[:2]
        alignment = math.gcd(alignment, *along)
    tile = _tile(runs, channels, positions, channels_last)
    groups = math.ceil(channels / tile[1])
    tiles = math.ceil(runs / tile[0]) * math.ceil(positions / tile[2])
    resident = launching.device(value.device).multiprocessors * _THREADS_PER_MULTIPROCESSOR
    wanted = math.ceil(resident / (32 * _WARPS) / groups)
    parts = max(1, min(wanted, tiles, _MOST_PARTS if reduces else tiles))
    return Walk(
        tensors=shaped,
        runs=runs,
        channels=channels,
        positions=positions,
        strides=strides,
        constants={
            "RUNS": tile[0],
            "CHANNELS": tile[1],
            "POSITIONS": tile[2],
            "ALIGNMENT": alignment,
            "CHANNELS_LAST": channels_last,
        },
        parts=parts,
    )


def of_one_layout(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """All planar or all channels_last, whichever the first is, with pixels at equal distances.

    The first is channels_last or becomes planar; others are copied where they differ.
    """
    first = tensors[0]
    assert first is not None
    if not layout.is_channels_last(first):
        return tuple(None if each is None else layout.planar(each) for each in tensors)
    return tuple(
        each
        if each is None or _is_run_of_pixels(each)
        else each.contiguous(memory_format=torch.channels_last)
        for each in tensors
    )


def _is_run_of_pixels(tensor: Tensor) -> bool:
    images, _, height, width = tensor.shape
    if tensor.stride(1) != 1:
        return False
    pixel = _pixel_stride(tensor)
    return (
        (images == 1 or tensor.stride(0) == height * width * pixel)
        and (height == 1 or tensor.stride(2) == width * pixel)
        and (width == 1 or tensor.stride(3) == pixel)
    )


def _pixel_stride(tensor: Tensor) -> int:
    images, channels, height, width = tensor.shape
    if width > 1:
        return tensor.stride(3)
    if height > 1:
        return tensor.stride(2)
    return tensor.stride(0) if images > 1 else channels


def _strides(tensor: Tensor | None, runs: int, channels_last: bool) -> tuple[int, int, int]:
    if tensor is None:
        return 0, 0, 0
    if channels_last:
        return 0, 1, _pixel_stride(tensor)
    return tensor.stride(0) if runs > 1 else 0, tensor.stride(1), 1


def _tile(runs: int, channels: int, positions: int, channels_last: bool) -> tuple[int, int, int]:
    if channels_last:
        block = min(64, triton.next_power_of_2(channels))
        return 1, block, _TILE // block
    # Of a tile with one element, the compiler would make a number, and fail at hints for tensors.
    stretch = max(2, min(_TILE, triton.next_power_of_2(positions)))
    together = min(_TILE // stretch, triton.next_power_of_2(runs))
    beside = min(_TILE // (stretch * together), triton.next_power_of_2(channels))
    return together, beside, stretch


@triton.jit
def tile(
    number,
    first_channel,
    runs,
    channels,
    positions,
    RUNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Run, channel and position of tile `number`, a mask, and how many elements a channel has."""
    across = tl.cdiv(positions, POSITIONS)
    first_run = (number // across) * RUNS
    first_position = (number % across) * POSITIONS
    run = first_run + tl.arange(0, RUNS)[:, None, None]
    channel = first_channel + tl.arange(0, CHANNELS)[None, :, None]
    position = first_position + tl.arange(0, POSITIONS)[None, None, :]
    mask = (run < runs) & (channel < channels) & (position < positions)
    # The mask is the same for the elements of a vector.
    if CHANNELS_LAST:
        mask = tl.max_constancy(mask, [1, ALIGNMENT, 1])
    else:
        mask = tl.max_constancy(mask, [1, 1, ALIGNMENT])
    count = tl.minimum(RUNS, runs - first_run) * tl.minimum(POSITIONS, positions - first_position)
    return run.to(tl.int64), channel, position.to(tl.int64), mask, count


@triton.jit
def offsets(
    run,
    channel,
    position,
    run_stride,
    channel_stride,
    position_stride,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Where the elements of a tile lie, in vectors of ALIGNMENT elements.

    The compiler is told so of the whole tile: of parts of it that have a single element, it drops
    the hint or fails.
    """
    if CHANNELS_LAST:
        pixel = run * run_stride + position * position_stride
        return tl.multiple_of(pixel + channel, [1, ALIGNMENT, 1])
    else:
        plane = run * run_stride + channel.to(tl.int64) * channel_stride
        return tl.multiple_of(plane + position, [1, 1, ALIGNMENT])


@triton.jit
def load_bias(bias_ptr, parameter):
    """What is added to the values of a channel."""
    if bias_ptr is not None:
        return tl.load(bias_ptr + parameter)
    else:
        return 0.0


@triton.jit
def sum_of_tile(tensor):
    """Over the runs and the positions of a tile: (CHANNELS,)."""
    return tl.sum(tl.sum(tensor, axis=2), axis=0)
