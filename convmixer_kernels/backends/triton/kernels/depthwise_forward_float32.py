"""Forward pass and input gradient in float32, by multiply-adds."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import load_tap
from convmixer_kernels.backends.triton.kernels.epilogue import load_addend, store_row
from convmixer_kernels.backends.triton.kernels.normalisation import load_normalisation
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    output_row_exists,
    row_exists,
    run_time_sizes,
    tile_pointers,
)


@triton.jit(do_not_specialize=run_time_sizes("input", "output", "addend"))
def forward_float32_kernel(
    input_ptr,
    filter_ptr,
    bias_ptr,
    normalisation_ptr,
    addend_ptr,
    output_ptr,
    tiles,
    channels,
    height,
    row_blocks,
    block_rows,
    splits,
    input_image_stride,
    input_channel_stride,
    output_image_stride,
    output_channel_stride,
    addend_image_stride,
    addend_channel_stride,
    WIDTH: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
):
    """Convolve without rounding to tf32: one multiply-add for each tap, no matrix product.

    ``tl.dot`` with ``input_precision="ieee"`` would take 16/9 of the multiply-adds, and it spills.
    """
    PADDING_BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    output = Planes(output_ptr, output_image_stride, output_channel_stride, WIDTH)
    addend = Planes(addend_ptr, addend_image_stride, addend_channel_stride, WIDTH)
    channel = (tl.program_id(0) % channels).to(tl.int64)
    filter_ptr += channel * (KERNEL_SIZE * KERNEL_SIZE)
    zeros = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(tl.float32)
    normalisation = None
    if normalisation_ptr is not None:
        normalisation = load_normalisation(normalisation_ptr, channel, channels)
    if CUT_IMAGES:
        steps = block_rows + (KERNEL_SIZE - 1)
    else:
        steps = height + PADDING_BELOW

    for group in range(tl.program_id(0) // channels, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(
            group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES, HALO=PADDING
        )
        exists = located.exists[:, None]
        first_row = located.first_row[:, None]
        column = located.first_column[:, None] + tl.arange(0, TILE_COLUMNS)[None, :]
        inputs = tile_pointers(input, located, channel, 0, column - PADDING, 1, CUT_IMAGES)
        outputs = tile_pointers(output, located, channel, -PADDING_BELOW, column, 1, CUT_IMAGES)
        addends = None
        if addend_ptr is not None:
            addends = tile_pointers(addend, located, channel, -PADDING_BELOW, column, 1, CUT_IMAGES)
        accumulators = ()
        for _ in tl.static_range(KERNEL_SIZE):
            accumulators = accumulators + (zeros,)
        for row in tl.range(0, steps):
            row_start = tl.cast(row, tl.int64) * WIDTH
            mask = exists & row_exists(row, first_row, height, CUT_IMAGES, True)
            for tap in tl.static_range(KERNEL_SIZE):
                input_column = column + (tap - PADDING)
                value = tl.load(
                    inputs + (row_start + tap),
                    mask=mask & (input_column >= 0) & (input_column < WIDTH),
                    other=0.0,
                )
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    weight = load_tap(filter_ptr, filter_row, tap, KERNEL_SIZE, FLIPPED)
                    updated = updated + (accumulators[filter_row] + value * weight,)
                accumulators = updated
            mask = output_row_exists(
                row, steps, first_row, height, KERNEL_SIZE, PADDING_BELOW, CUT_IMAGES, True
            )
            mask = exists & (column < WIDTH) & mask
            store_row(
                outputs,
                row,
                mask,
                WIDTH,
                accumulators[KERNEL_SIZE - 1] + bias,
                normalisation,
                addends,
                load_addend(addends, row, mask, WIDTH),
                ACTIVATION,
                True,
            )
            accumulators = (zeros,) + accumulators[: KERNEL_SIZE - 1]
