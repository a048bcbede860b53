"""Forward pass and input gradient in channels_last, float16 and bfloat16.

The matrix products are those of the planar kernel, for CHANNELS channels at a time: memory is read
and written by 16 bytes, eight channels of a pixel, and every warp multiplies for a channel of its
own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import load_bands_of_channels, multiply_row
from convmixer_kernels.backends.triton.kernels.epilogue import load_addend, store_row
from convmixer_kernels.backends.triton.kernels.normalisation import load_normalisation
from convmixer_kernels.backends.triton.kernels.packed16 import (
    locate_words,
    pair_up,
    word_pointers,
)
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    output_row_exists,
    row_exists,
    row_offsets,
    run_time_sizes,
)


@triton.jit
def _element_pointers(
    planes, tiles, first_channel, row, column, CHANNELS: tl.constexpr, CUT_IMAGES: tl.constexpr
):
    """Return pointers to row `row` and columns `column` (1, TILES, n): (CHANNELS, TILES, n)."""
    offset = row_offsets(planes, tiles, first_channel, 8, CUT_IMAGES)[None, :, None]
    offset = offset + column.to(tl.int64) * planes.pixel_stride
    offset = offset + tl.arange(0, CHANNELS)[:, None, None]
    return planes.pointer + (offset + row * planes.row_stride)


@triton.jit(do_not_specialize=run_time_sizes("input", "output", "addend"))
def forward_channels_last_kernel(
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
    INPUT_STRIDES: tl.constexpr,
    OUTPUT_STRIDES: tl.constexpr,
    ADDEND_STRIDES: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Convolve. Grid: groups of CHANNELS channels * splits.

    Channels, and all strides but those between channels, which are 1, are multiples of eight.
    """
    PADDING_BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    input = Planes(
        input_ptr, input_image_stride, input_channel_stride, INPUT_STRIDES[0], INPUT_STRIDES[1]
    )
    output = Planes(
        output_ptr, output_image_stride, output_channel_stride, OUTPUT_STRIDES[0], OUTPUT_STRIDES[1]
    )
    addend = Planes(
        addend_ptr, addend_image_stride, addend_channel_stride, ADDEND_STRIDES[0], ADDEND_STRIDES[1]
    )
    channel_groups = tl.cdiv(channels, CHANNELS)
    first_channel = (tl.program_id(0) % channel_groups) * CHANNELS
    channel = first_channel + tl.arange(0, CHANNELS)
    channel_exists = tl.max_constancy(channel < channels, [8])[:, None, None]
    word, word_exists = locate_words(first_channel, channels, CHANNELS)
    # Channels beyond the last one take its parameters, and store nothing.
    parameter = tl.minimum(channel, channels - 1)
    bands = load_bands_of_channels(
        filter_ptr, parameter, WINDOW, LEFT - PADDING, KERNEL_SIZE, FLIPPED
    )
    parameter = parameter[:, None, None]
    start = tl.zeros((CHANNELS, TILES, TILE_COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + parameter).to(tl.float32)
    normalisation = None
    if normalisation_ptr is not None:
        normalisation = load_normalisation(normalisation_ptr, parameter, channels)
    if CUT_IMAGES:
        steps = block_rows + (KERNEL_SIZE - 1)
    else:
        steps = height

    for group in range(tl.program_id(0) // channel_groups, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(
            group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES, HALO=PADDING
        )
        exists = located.exists[None, :, None]
        first_row = located.first_row[None, :, None]
        first_column = located.first_column[None, :, None]
        even_column = first_column - LEFT + 2 * tl.arange(0, WINDOW // 2)[None, None, :]
        even_mask = exists & word_exists & (even_column >= 0) & (even_column < WIDTH)
        odd_mask = exists & word_exists & (even_column >= -1) & (even_column < WIDTH - 1)
        evens = word_pointers(input, located, first_channel, word, even_column, CUT_IMAGES)
        # Row r of the input completes row r - PADDING_BELOW of the output.
        column = first_column + tl.arange(0, TILE_COLUMNS)[None, None, :]
        output_mask = exists & channel_exists & (column < WIDTH)
        outputs = _element_pointers(
            output, located, first_channel, -PADDING_BELOW, column, CHANNELS, CUT_IMAGES
        )
        addends = None
        if addend_ptr is not None:
            addends = _element_pointers(
                addend, located, first_channel, -PADDING_BELOW, column, CHANNELS, CUT_IMAGES
            )

        # Output rows in progress, the newest first.
        accumulators = ()
        for _ in tl.static_range(KERNEL_SIZE - 1):
            accumulators = accumulators + (start,)
        for step in tl.range(0, tl.cdiv(steps, UNROLLED_ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(UNROLLED_ROWS):
                row = step * UNROLLED_ROWS + unrolled
                row_start = tl.cast(row, tl.int64) * (INPUT_STRIDES[0] // 2)
                mask = row_exists(row, first_row, height, CUT_IMAGES, MASK_ROWS)
                even = tl.load(evens + row_start, mask=even_mask & mask, other=0)
                odd = tl.load(
                    evens + (row_start + INPUT_STRIDES[1] // 2), mask=odd_mask & mask, other=0
                )
                mask = output_mask & output_row_exists(
                    row, steps, first_row, height, KERNEL_SIZE, PADDING_BELOW, CUT_IMAGES, MASK_ROWS
                )
                # The products hide the latency of this load.
                added = load_addend(addends, row, mask, ADDEND_STRIDES)
                window = pair_up(even, odd, output_ptr.dtype.element_ty)
                updated = multiply_row(window, bands, accumulators, start, KERNEL_SIZE)
                accumulators = updated[: KERNEL_SIZE - 1]
                store_row(
                    outputs,
                    row,
                    mask,
                    OUTPUT_STRIDES,
                    updated[KERNEL_SIZE - 1],
                    normalisation,
                    addends,
                    added,
                    ACTIVATION,
                    False,
                )
        if not CUT_IMAGES:
            for remaining in tl.static_range(PADDING_BELOW):
                row = tl.cdiv(steps, UNROLLED_ROWS) * UNROLLED_ROWS + remaining
                mask = output_mask & (row >= PADDING_BELOW) & (row < height + PADDING_BELOW)
                store_row(
                    outputs,
                    row,
                    mask,
                    OUTPUT_STRIDES,
                    accumulators[KERNEL_SIZE - 2 - remaining],
                    normalisation,
                    addends,
                    load_addend(addends, row, mask, ADDEND_STRIDES),
                    ACTIVATION,
                    False,
                )
