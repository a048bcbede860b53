"""Launch the kernels of filters that reach over more rows or columns than square ones have.

Height, width and dilation of the filter are known at run time alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import configurations, launching, planes
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.kernels.depthwise_forward_large import forward_large_kernel
from convmixer_kernels.backends.triton.kernels.depthwise_forward_large_float32 import (
    forward_large_float32_kernel,
)
from convmixer_kernels.backends.triton.kernels.depthwise_weight_gradient_large import (
    weight_gradient_large_kernel,
)
from convmixer_kernels.backends.triton.kernels.depthwise_weight_gradient_large_float32 import (
    weight_gradient_large_float32_kernel,
)
from convmixer_kernels.backends.triton.kernels.large_bands import expand_bands_kernel
from convmixer_kernels.backends.triton.launch_context import launch_context
from convmixer_kernels.backends.triton.shape_key import TILE_COLUMNS, ShapeKey
from convmixer_kernels.filters import Filter

_BANDS_OF_PROGRAM = 8


def convolve(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: tuple[int, int],
    flipped: bool,
) -> Tensor:
    """Do what `depthwise_forward.forward` does; `flipped` turns the filters by half a turn."""
    if source.numel() == 0:
        return layout.empty_like_input(source)
    filter = _normal(Filter.of(weight, dilation))
    input = planes.planar(source)
    output = layout.empty_like_input(input)
    key = ShapeKey.of((input, output), filter.extent[1])
    configuration = configurations.large_forward(key, filter.row_dilation)
    bias = None if bias is None else bias.contiguous()
    weight = weight.contiguous()
    with torch.cuda.device_of(source):
        if key.tensor_cores:
            weight = _bands(weight, key, filter, flipped)
        forward_kernel(key)[forward_grid(key, configuration)](
            *(input, weight, bias, output),
            *_forward_sizes(key, configuration, filter, flipped),
            *(input.stride()[:2] + output.stride()[:2]),
            **forward_constants(key, configuration, flipped),
            **launching.options(configuration),
        )
    return planes.arranged_like(output, source)


def weight_gradient(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Do what `depthwise_weight_gradient.weight_gradient` does."""
    channels = input.shape[1]
    shape = (channels, 1, *filter.shape)
    if input.numel() == 0:
        weight_sums = torch.zeros(shape, dtype=torch.float32, device=input.device)
        return weight_sums, weight_sums.new_zeros(channels) if with_bias else None
    filter = _normal(filter)
    input, grad_output = planes.planar(input), planes.planar(grad_output)
    key = ShapeKey.of((input, grad_output), filter.extent[1])
    context = launch_context(input.device)
    configuration = configurations.large_weight_gradient(key, filter, context)
    splits = configuration.splits
    leading = () if splits == 1 else (splits,)
    weight_sums = torch.empty((*leading, *shape), dtype=torch.float32, device=input.device)
    bias_sums = weight_sums.new_empty((*leading, channels)) if with_bias else None
    with torch.cuda.device_of(input):
        weight_gradient_kernel(key)[weight_gradient_grid(key, configuration, filter)](
            *(input, grad_output, weight_sums, bias_sums),
            *_weight_gradient_sizes(key, configuration, filter),
            *(input.stride()[:2] + grad_output.stride()[:2]),
            **weight_gradient_constants(key, configuration),
            **launching.options(configuration),
        )
    if splits == 1:
        return weight_sums, bias_sums
    return weight_sums.sum(0), bias_sums.sum(0) if bias_sums is not None else None


def _normal(filter: Filter) -> Filter:
    """Return the filter without dilation where it has a single row or column."""
    rows = filter.row_dilation if filter.height > 1 else 1
    columns = filter.column_dilation if filter.width > 1 else 1
    return Filter(filter.height, filter.width, rows, columns)


class _Padding(NamedTuple):
    """Rows above and columns left of an output that its filter reaches."""

    top: int
    left: int

    @classmethod
    def of(cls, filter: Filter, flipped: bool) -> _Padding:
        """An even extent has one more below and right; turned by half a turn, above and left."""
        top, left = ((extent - 1 + flipped) // 2 for extent in filter.extent)
        return cls(top, left)


def _bands(weight: Tensor, key: ShapeKey, filter: Filter, flipped: bool) -> Tensor:
    """Return the bands of the rows of all filters: (C, height, 8, window)."""
    channels = weight.shape[0]
    bands = weight.new_empty((channels, filter.height, TILE_COLUMNS, key.window))
    count = channels * filter.height
    expand_bands_kernel[(-(-count // _BANDS_OF_PROGRAM),)](
        *(weight, bands, count, *filter.shape, filter.column_dilation),
        key.left - _Padding.of(filter, flipped).left,
        FLIPPED=flipped,
        WINDOW=key.window,
        ROWS=_BANDS_OF_PROGRAM,
        num_warps=4,
    )
    return bands


def forward_kernel(key: ShapeKey) -> Any:
    """Return the kernel for a dtype."""
    return forward_large_kernel if key.tensor_cores else forward_large_float32_kernel


def forward_grid(key: ShapeKey, configuration: Configuration) -> tuple[int]:
    """Return the grid: groups of tiles * channels."""
    tiles = key.images * configuration.row_blocks * key.tiles_across
    return (-(-tiles // configuration.tiles) * key.channels,)


def _forward_sizes(
    key: ShapeKey, configuration: Configuration, filter: Filter, flipped: bool
) -> tuple[int, ...]:
    padding = _Padding.of(filter, flipped)
    tiles = key.images * configuration.row_blocks * key.tiles_across
    sizes = (tiles, key.height, configuration.row_blocks)
    if key.tensor_cores:
        return (*sizes, filter.height, filter.row_dilation, padding.top)
    return (*sizes, *filter, *padding)


def forward_constants(key: ShapeKey, configuration: Configuration, flipped: bool) -> dict[str, Any]:
    """Return the compile-time parameters of the kernel."""
    values: dict[str, Any] = {
        "WIDTH": key.width,
        "TILES": configuration.tiles,
        "OUTPUT_ROWS": configuration.block_rows,
    }
    if not key.tensor_cores:
        return values | {"FLIPPED": flipped}
    return values | _tensor_core_constants(key, configuration)


def weight_gradient_kernel(key: ShapeKey) -> Any:
    """Return the kernel for a dtype."""
    if key.tensor_cores:
        return weight_gradient_large_kernel
    return weight_gradient_large_float32_kernel


def weight_gradient_grid(
    key: ShapeKey, configuration: Configuration, filter: Filter
) -> tuple[int, ...]:
    """Return the grid: channels * splits, groups of filter rows, in float32 those of columns."""
    row_groups = -(-filter.height // configuration.filter_rows)
    grid = (key.channels * configuration.splits, row_groups)
    if key.tensor_cores:
        return grid
    return (*grid, -(-filter.width // configurations.LARGE_FLOAT32_COLUMNS))


def _weight_gradient_sizes(
    key: ShapeKey, configuration: Configuration, filter: Filter
) -> tuple[int, ...]:
    top, left = _Padding.of(filter, flipped=False)
    return (
        *(key.images * key.tiles_across, key.channels, key.height, configuration.splits),
        *(*filter, top, key.left - left if key.tensor_cores else left),
    )


def weight_gradient_constants(key: ShapeKey, configuration: Configuration) -> dict[str, Any]:
    """Return the compile-time parameters of the kernel."""
    values: dict[str, Any] = {
        "WIDTH": key.width,
        "TILES": configuration.tiles,
        "FILTER_ROWS": configuration.filter_rows,
    }
    if not key.tensor_cores:
        return values | {"FILTER_COLUMNS": configurations.LARGE_FLOAT32_COLUMNS}
    return values | _tensor_core_constants(key, configuration)


def _tensor_core_constants(key: ShapeKey, configuration: Configuration) -> dict[str, Any]:
    return {
        "ALIGNMENT": key.alignment,
        "LEFT": key.left,
        "WINDOW": key.window,
        "UNROLLED_ROWS": configuration.unrolled_rows,
        "STAGES": configuration.num_stages,
    }
