"""Weight and bias gradient in channels_last, float16 and bfloat16, summed in a fixed order.

The matrix products are those of the planar kernel, for CHANNELS channels at a time. Their inner
dimension runs over tiles, so here the even and the odd tiles are loaded apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.diagonals import MOST_TAPS, sum_diagonals
from convmixer_kernels.backends.triton.kernels.packed16 import (
    locate_words,
    pair_up,
    word_pointers,
)
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    row_exists,
    run_time_sizes,
)


@triton.jit
def _load_row(
    pointers,
    masks,
    row,
    first_rows,
    height,
    ROW_STRIDE: tl.constexpr,
    element: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Load a row of the even and the odd tiles, a matrix for each channel: (CHANNELS, n, TILES)."""
    distance = tl.cast(row, tl.int64) * (ROW_STRIDE // 2)
    mask = row_exists(row, first_rows[0], height, CUT_IMAGES, MASK_ROWS)
    even = tl.load(pointers[0] + distance, mask=masks[0] & mask, other=0)
    mask = row_exists(row, first_rows[1], height, CUT_IMAGES, MASK_ROWS)
    odd = tl.load(pointers[1] + distance, mask=masks[1] & mask, other=0)
    return pair_up(tl.permute(even, (0, 2, 1)), tl.permute(odd, (0, 2, 1)), element)


@triton.jit(do_not_specialize=run_time_sizes("input", "grad"))
def weight_gradient_channels_last_kernel(
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
    INPUT_STRIDES: tl.constexpr,
    GRAD_STRIDES: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Sum the gradients. Grid: groups of CHANNELS channels * splits.

    Writes weight_sums[split, channel, row, column] and bias_sums[split, channel].
    """
    element = input_ptr.dtype.element_ty
    input = Planes(
        input_ptr, input_image_stride, input_channel_stride, INPUT_STRIDES[0], INPUT_STRIDES[1]
    )
    grad = Planes(
        grad_ptr, grad_image_stride, grad_channel_stride, GRAD_STRIDES[0], GRAD_STRIDES[1]
    )
    channel_groups = tl.cdiv(channels, CHANNELS)
    split = tl.program_id(0) // channel_groups
    first_channel = (tl.program_id(0) % channel_groups) * CHANNELS
    word, word_exists = locate_words(first_channel, channels, CHANNELS)
    products = ()
    for _ in tl.static_range(KERNEL_SIZE):
        products = products + (tl.zeros((CHANNELS, WINDOW, TILE_COLUMNS), dtype=tl.float32),)
    ones = tl.full((CHANNELS, 16, TILES), 1.0, dtype=element)
    bias_sums = tl.zeros((CHANNELS, 16, TILE_COLUMNS), dtype=tl.float32)
    if CUT_IMAGES:
        steps = block_rows
    else:
        steps = height

    for group in range(split, tl.cdiv(tiles, TILES), splits):
        inputs = ()
        grads = ()
        input_masks = ()
        grad_masks = ()
        first_rows = ()
        for odd in tl.static_range(2):
            located = locate_tiles(
                group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES, FIRST=odd, EVERY=2
            )
            exists = located.exists[None, :, None] & word_exists
            first_column = located.first_column[None, :, None]
            first_rows = first_rows + (located.first_row[None, :, None],)
            column = first_column - LEFT + tl.arange(0, WINDOW)[None, None, :]
            input_masks = input_masks + (exists & (column >= 0) & (column < WIDTH),)
            inputs = inputs + (
                word_pointers(input, located, first_channel, word, column, CUT_IMAGES),
            )
            column = first_column + tl.arange(0, TILE_COLUMNS)[None, None, :]
            grad_masks = grad_masks + (exists & (column < WIDTH),)
            grads = grads + (word_pointers(grad, located, first_channel, word, column, CUT_IMAGES),)
        # Rows of the output gradient that meet an input row, from the bottom up.
        grad_rows = ()
        for back in tl.static_range(KERNEL_SIZE - 1):
            grad_row = _load_row(
                grads,
                grad_masks,
                PADDING - 1 - back,
                first_rows,
                height,
                GRAD_STRIDES[0],
                element,
                CUT_IMAGES,
                True,
            )
            grad_rows = grad_rows + (grad_row,)
        for step in tl.range(0, tl.cdiv(steps, UNROLLED_ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(UNROLLED_ROWS):
                row = step * UNROLLED_ROWS + unrolled
                window = _load_row(
                    inputs,
                    input_masks,
                    row,
                    first_rows,
                    height,
                    INPUT_STRIDES[0],
                    element,
                    CUT_IMAGES,
                    MASK_ROWS,
                )
                grad_row = _load_row(
                    grads,
                    grad_masks,
                    row + PADDING,
                    first_rows,
                    height,
                    GRAD_STRIDES[0],
                    element,
                    CUT_IMAGES,
                    True,
                )
                grad_rows = (grad_row,) + grad_rows
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    total = tl.dot(
                        window, tl.permute(grad_rows[filter_row], (0, 2, 1)), products[filter_row]
                    )
                    updated = updated + (total,)
                products = updated
                if bias_sums_ptr is not None:
                    bias_sums = tl.dot(ones, tl.permute(grad_rows[PADDING], (0, 2, 1)), bias_sums)
                grad_rows = grad_rows[: KERNEL_SIZE - 1]

    channel = first_channel + tl.arange(0, CHANNELS)[:, None]
    tap = tl.arange(0, MOST_TAPS)[None, :]
    entry = split.to(tl.int64) * channels + channel
    for filter_row in tl.static_range(KERNEL_SIZE):
        tl.store(
            weight_sums_ptr
            + (entry * (KERNEL_SIZE * KERNEL_SIZE) + filter_row * KERNEL_SIZE + tap),
            sum_diagonals(products[filter_row], LEFT - PADDING, KERNEL_SIZE),
            mask=(tap < KERNEL_SIZE) & (channel < channels),
        )
    if bias_sums_ptr is not None:
        # All 16 rows of the product are the same.
        tl.store(
            bias_sums_ptr + entry + tap,
            tl.sum(bias_sums, axis=2),
            mask=(tap == 0) & (channel < channels),
        )
