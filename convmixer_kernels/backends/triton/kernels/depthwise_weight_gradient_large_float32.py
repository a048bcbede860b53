"""Weight and bias gradient of filters of any size and dilation in float32, in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    row_exists,
    sum_tiles,
    tile_pointers,
)

_RUN_TIME_SIZES = (
    *("tiles", "channels", "height", "splits", "filter_height", "filter_width"),
    *("row_dilation", "column_dilation", "padding", "left_padding"),
    *("input_image_stride", "input_channel_stride", "grad_image_stride", "grad_channel_stride"),
)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def weight_gradient_large_float32_kernel(
    input_ptr,
    grad_ptr,
    weight_sums_ptr,
    bias_sums_ptr,
    tiles,
    channels,
    height,
    splits,
    filter_height,
    filter_width,
    row_dilation,
    column_dilation,
    padding,
    left_padding,
    input_image_stride,
    input_channel_stride,
    grad_image_stride,
    grad_channel_stride,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    FILTER_ROWS: tl.constexpr,
    FILTER_COLUMNS: tl.constexpr,
):
    """Sum the gradients by multiply-adds.

    Grid: (channels * splits, groups of FILTER_ROWS rows, groups of FILTER_COLUMNS columns). Every
    thread sums every tap of its group.
    """
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    grad = Planes(grad_ptr, grad_image_stride, grad_channel_stride, WIDTH)
    split = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    first_filter_row = tl.program_id(1) * FILTER_ROWS
    first_tap = tl.program_id(2) * FILTER_COLUMNS
    sums = ()
    for _ in tl.static_range(FILTER_ROWS * FILTER_COLUMNS):
        sums = sums + (tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32),)

    for group in range(split, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(group, tiles, 1, height, WIDTH, TILES, False)
        exists = located.exists[:, None]
        column = located.first_column[:, None] + tl.arange(0, TILE_COLUMNS)[None, :]
        grads = tile_pointers(grad, located, channel, 0, column, 1, False)
        grad_mask = exists & (column < WIDTH)
        column += first_tap * column_dilation - left_padding
        inputs = tile_pointers(input, located, channel, 0, column, 1, False)
        for row in tl.range(0, height):
            grad_rows = ()
            for number in tl.static_range(FILTER_ROWS):
                grad_row = row + padding - (first_filter_row + number) * row_dilation
                mask = grad_mask & row_exists(grad_row, 0, height, False, True)
                row_start = tl.cast(grad_row, tl.int64) * WIDTH
                grad_rows = grad_rows + (tl.load(grads + row_start, mask=mask, other=0.0),)
            row_start = tl.cast(row, tl.int64) * WIDTH
            updated = ()
            for tap in tl.static_range(FILTER_COLUMNS):
                reach = tap * column_dilation
                inside = (column + reach >= 0) & (column + reach < WIDTH)
                value = tl.load(inputs + (row_start + reach), mask=exists & inside, other=0.0)
                for number in tl.static_range(FILTER_ROWS):
                    total = sums[tap * FILTER_ROWS + number] + value * grad_rows[number]
                    updated = updated + (total,)
            sums = updated

    entry = split * channels + channel
    for number in tl.static_range(FILTER_ROWS):
        filter_row = first_filter_row + number
        for tap in tl.static_range(FILTER_COLUMNS):
            filter_column = first_tap + tap
            tl.store(
                weight_sums_ptr
                + ((entry * filter_height + filter_row) * filter_width + filter_column),
                tl.sum(tl.sum(sums[tap * FILTER_ROWS + number], axis=1), axis=0),
                mask=(filter_row < filter_height) & (filter_column < filter_width),
            )
    if bias_sums_ptr is not None and first_filter_row + first_tap == 0:
        total = sum_tiles(grad, channel, split, splits, tiles, height, WIDTH, 1, TILES)
        tl.store(bias_sums_ptr + entry, total)
