"""Weight and bias gradient of planar tensors in float16 and bfloat16, summed in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.diagonals import MOST_TAPS, sum_diagonals
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    row_exists,
    row_offsets,
    run_time_sizes,
    tile_pointers,
)


@triton.jit(do_not_specialize=run_time_sizes("input", "grad"))
def weight_gradient_planar_kernel(
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
    ALIGNMENT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Sum the gradients. Grid: channels * splits.

    Writes weight_sums[split, channel, row, column] and bias_sums[split, channel].
    """
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    grad = Planes(grad_ptr, grad_image_stride, grad_channel_stride, WIDTH)
    split = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    i = tl.arange(0, WINDOW)[:, None]
    j = tl.arange(0, TILE_COLUMNS)[None, :]
    products = ()
    for _ in tl.static_range(KERNEL_SIZE):
        products = products + (tl.zeros((WINDOW, TILE_COLUMNS), dtype=tl.float32),)
    # The bias gradient is one more matrix product: unpacking and adding costs four times as much.
    ones = tl.full((16, TILES), 1.0, dtype=grad_ptr.dtype.element_ty)
    bias_sums = tl.zeros((16, TILE_COLUMNS), dtype=tl.float32)
    if CUT_IMAGES:
        steps = block_rows
    else:
        steps = height

    for group in range(split, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES)
        # The input window is loaded transposed, (WINDOW, TILES).
        column = located.first_column[None, :] - LEFT + i
        input_mask = located.exists[None, :] & (column >= 0) & (column < WIDTH)
        offset = row_offsets(input, located, channel, ALIGNMENT, CUT_IMAGES)
        inputs = input_ptr + (offset[None, :] + column.to(tl.int64))
        first_row = located.first_row[:, None]
        column = located.first_column[:, None] + j
        grad_mask = located.exists[:, None] & (column < WIDTH)
        grads = tile_pointers(grad, located, channel, 0, column, ALIGNMENT, CUT_IMAGES)
        # Rows of the output gradient that meet an input row, from the bottom up.
        grad_rows = ()
        for back in tl.static_range(KERNEL_SIZE - 1):
            mask = row_exists(PADDING - 1 - back, first_row, height, CUT_IMAGES, True)
            grad_row = tl.load(
                grads + (PADDING - 1 - back) * WIDTH, mask=grad_mask & mask, other=0.0
            )
            grad_rows = grad_rows + (grad_row,)
        for step in tl.range(0, tl.cdiv(steps, UNROLLED_ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(UNROLLED_ROWS):
                row = step * UNROLLED_ROWS + unrolled
                mask = row_exists(row, located.first_row[None, :], height, CUT_IMAGES, MASK_ROWS)
                row_start = tl.cast(row, tl.int64) * WIDTH
                window = tl.load(inputs + row_start, mask=input_mask & mask, other=0.0)
                row += PADDING
                mask = row_exists(row, first_row, height, CUT_IMAGES, True)
                row_start = tl.cast(row, tl.int64) * WIDTH
                grad_row = tl.load(grads + row_start, mask=grad_mask & mask, other=0.0)
                grad_rows = (grad_row,) + grad_rows
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    total = tl.dot(window, grad_rows[filter_row], products[filter_row])
                    updated = updated + (total,)
                products = updated
                if bias_sums_ptr is not None:
                    bias_sums = tl.dot(ones, grad_rows[PADDING], bias_sums)
                grad_rows = grad_rows[: KERNEL_SIZE - 1]

    tap = tl.arange(0, MOST_TAPS)
    entry = split * channels + channel
    weight_sums_ptr += entry * (KERNEL_SIZE * KERNEL_SIZE)
    for filter_row in tl.static_range(KERNEL_SIZE):
        tl.store(
            weight_sums_ptr + filter_row * KERNEL_SIZE + tap,
            sum_diagonals(products[filter_row], LEFT - PADDING, KERNEL_SIZE),
            mask=tap < KERNEL_SIZE,
        )
    if bias_sums_ptr is not None:
        # All 16 rows of the product are the same.
        tl.store(bias_sums_ptr + entry + tap, tl.sum(bias_sums, axis=1), mask=tap == 0)
