"""Launch arguments of elementwise passes: how programs share tensors of one shape and layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import planes
from convmixer_kernels.backends.triton.launch_context import launch_context

# Elements of a chunk: a vector of 16 bytes in float16 for each of the threads.
_CHUNK = 1024
_WARPS = 4
_THREADS_PER_MULTIPROCESSOR = 2048
# Upper limit to the programs that share a channel, and thus to its partial sums.
_MOST_PARTIAL_SUMS = 128


@dataclass(frozen=True)
class ElementwisePass:
    """Launch arguments of an elementwise pass; see `kernels.elementwise` for runs and chunks.

    Args:
        tensors: the tensors of the pass, an absent one as None.
        runs, channels, positions: sizes.
        strides: (run, channel, position) of each tensor, in elements.
        constants: the compile-time parameters of every kernel.
        splits: programs that share a channel.
    """

    tensors: tuple[Tensor | None, ...]
    runs: int
    channels: int
    positions: int
    strides: tuple[tuple[int, int, int], ...]
    constants: dict[str, Any]
    splits: int

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.channels, self.constants["SHAPE"][1]) * self.splits,)

    @property
    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """The tensors, sizes and strides in the order of the kernels' parameters."""
        sizes = (self.runs, self.channels, self.positions, self.splits)
        return (*self.tensors, *sizes, *(each for stride in self.strides for each in stride))

    @property
    def options(self) -> dict[str, Any]:
        return {**self.constants, "num_warps": _WARPS}


def plan(tensors: Sequence[Tensor | None], reduces: bool) -> ElementwisePass:
    """Plan a pass over `tensors`, of which the first is there; those of other layouts are copied.

    Args:
        reduces: whether programs leave a partial sum, so that there should not be many.
    """
    tensors = of_one_layout(tensors)
    first = tensors[0]
    assert first is not None
    images, channels, height, width = first.shape
    channels_last = layout.is_channels_last(first)
    runs, positions = images, height * width
    present = [each for each in tensors if each is not None]
    if channels_last or images == 1 or all(each.stride(0) == positions for each in present):
        runs, positions = 1, images * positions
    strides = tuple(_strides(each, runs, channels_last) for each in tensors)
    shape = _chunk_shape(runs, channels, positions, channels_last)
    channel_groups = math.ceil(channels / shape[1])
    chunks = math.ceil(runs / shape[0]) * math.ceil(positions / shape[2])
    resident = launch_context(first.device).multiprocessors * _THREADS_PER_MULTIPROCESSOR
    wanted = math.ceil(resident / (32 * _WARPS) / channel_groups)
    return ElementwisePass(
        tensors=tensors,
        runs=runs,
        channels=channels,
        positions=positions,
        strides=strides,
        constants={
            "SHAPE": shape,
            "ALIGNMENT": _alignment(strides, channels, positions, channels_last),
            "CHANNELS_LAST": channels_last,
        },
        splits=max(1, min(wanted, chunks, _MOST_PARTIAL_SUMS if reduces else chunks)),
    )


def _alignment(
    strides: tuple[tuple[int, int, int], ...], channels: int, positions: int, channels_last: bool
) -> int:
    """Return the elements of a vector that is whole and aligned in every tensor, up to 8."""
    alignment = math.gcd(8, channels if channels_last else positions)
    for run, channel, position in strides:
        alignment = math.gcd(alignment, run, position if channels_last else channel)
    return alignment


def of_one_layout(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Make all planar or all channels_last, as the first is, with pixels at equal distances.

    A first tensor that is not channels_last becomes planar; others are copied if they differ.
    """
    first = tensors[0]
    assert first is not None
    if not layout.is_channels_last(first):
        return tuple(None if each is None else planes.planar(each) for each in tensors)
    return tuple(
        each if each is None or _is_run_of_pixels(each) else planes.to_channels_last(each)
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


def _chunk_shape(
    runs: int, channels: int, positions: int, channels_last: bool
) -> tuple[int, int, int]:
    """Return the runs, channels and positions of a chunk, powers of two."""
    if channels_last:
        chunk_channels = min(64, triton.next_power_of_2(channels))
        return 1, chunk_channels, _CHUNK // chunk_channels
    # Of a chunk with one element, the compiler would make a number, and fail at hints for tensors.
    chunk_positions = max(2, min(_CHUNK, triton.next_power_of_2(positions)))
    chunk_runs = min(_CHUNK // chunk_positions, triton.next_power_of_2(runs))
    chunk_channels = min(_CHUNK // (chunk_positions * chunk_runs), triton.next_power_of_2(channels))
    return chunk_runs, chunk_channels, chunk_positions
