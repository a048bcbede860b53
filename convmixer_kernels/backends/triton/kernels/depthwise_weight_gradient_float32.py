"""Weight and bias gradient in float32, by multiply-adds, summed in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    row_exists,
    run_time_sizes,
    tile_pointers,
)


@triton.jit(do_not_specialize=run_time_sizes("input", "grad"))
def weight_gradient_float32_kernel(
    input_ptr,
    grad_ptr,
    weight_sums_ptr,
    bias_sums_ptr,
    tiles,
    channels,
    height,
    row_blocks,
    block_rows,
    splits,
    input_image_stride,
    input_channel_stride,
    grad_image_stride,
    grad_channel_stride,
    WIDTH: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FILTER_ROWS: tl.constexpr,
    TILES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
):
    """Sum the gradients without rounding to tf32. Grid: (channels * splits, filter row groups).

    Every thread sums every tap of FILTER_ROWS rows of the filter.
    """
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    grad = Planes(grad_ptr, grad_image_stride, grad_channel_stride, WIDTH)
    split = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    first_filter_row = tl.program_id(1) * FILTER_ROWS
    sums = ()
    for _ in tl.static_range(FILTER_ROWS * KERNEL_SIZE):
        sums = sums + (tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32),)
    bias_sums = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    if CUT_IMAGES:
        steps = block_rows
    else:
        steps = height

    for group in range(split, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES)
        exists = located.exists[:, None]
        first_row = located.first_row[:, None]
        column = located.first_column[:, None] + tl.arange(0, TILE_COLUMNS)[None, :]
        inputs = tile_pointers(input, located, channel, 0, column - PADDING, 1, CUT_IMAGES)
        grads = tile_pointers(grad, located, channel, 0, column, 1, CUT_IMAGES)
        grad_mask = exists & (column < WIDTH)
        # Rows of the output gradient that meet an input row, from the bottom up.
        newest = PADDING - first_filter_row
        grad_rows = ()
        for back in tl.static_range(1, FILTER_ROWS):
            row = newest - back
            mask = row_exists(row, first_row, height, CUT_IMAGES, True)
            row_start = tl.cast(row, tl.int64) * WIDTH
            grad_row = tl.load(grads + row_start, mask=grad_mask & mask, other=0.0)
            grad_rows = grad_rows + (grad_row,)
        for row in tl.range(0, steps):
            input_mask = exists & row_exists(row, first_row, height, CUT_IMAGES, True)
            input_start = tl.cast(row, tl.int64) * WIDTH
            if bias_sums_ptr is not None:
                bias_sums += tl.load(grads + input_start, mask=grad_mask & input_mask, other=0.0)
            mask = row_exists(row + newest, first_row, height, CUT_IMAGES, True)
            row_start = tl.cast(row + newest, tl.int64) * WIDTH
            grad_row = tl.load(grads + row_start, mask=grad_mask & mask, other=0.0)
            grad_rows = (grad_row,) + grad_rows
            updated = ()
            for tap in tl.static_range(KERNEL_SIZE):
                input_column = column + (tap - PADDING)
                value = tl.load(
                    inputs + (input_start + tap),
                    mask=input_mask & (input_column >= 0) & (input_column < WIDTH),
                    other=0.0,
                )
                for filter_row in tl.static_range(FILTER_ROWS):
                    total = sums[tap * FILTER_ROWS + filter_row] + value * grad_rows[filter_row]
                    updated = updated + (total,)
            sums = updated
            grad_rows = grad_rows[: FILTER_ROWS - 1]

    entry = split * channels + channel
    weight_sums_ptr += entry * (KERNEL_SIZE * KERNEL_SIZE)
    for filter_row in tl.static_range(FILTER_ROWS):
        for tap in tl.static_range(KERNEL_SIZE):
            tl.store(
                weight_sums_ptr + (first_filter_row + filter_row) * KERNEL_SIZE + tap,
                tl.sum(tl.sum(sums[tap * FILTER_ROWS + filter_row], axis=1), axis=0),
                mask=first_filter_row + filter_row < KERNEL_SIZE,
            )
    if bias_sums_ptr is not None:
        tl.store(
            bias_sums_ptr + entry,
            tl.sum(tl.sum(bias_sums, axis=1), axis=0),
            mask=first_filter_row == 0,
        )
