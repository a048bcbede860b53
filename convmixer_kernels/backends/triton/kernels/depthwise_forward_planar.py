"""Forward pass and input gradient of planar tensors in float16 and bfloat16."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import (
    check_window,
    load_band_pairs,
    load_bands,
    multiply_row,
    multiply_two_rows,
)
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
def forward_planar_kernel(
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
    ALIGNMENT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Convolve. Grid: channels * splits; the programs of a channel share its tiles.

    A wide input window has 24 columns: the first 16 are one matrix product a row; the last 8 of two
    successive rows are one product together.
    """
    WIDE: tl.constexpr = WINDOW > 16
    PADDING_BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    # Rows that the accumulators advance at a time.
    ADVANCE: tl.constexpr = 2 if WIDE else 1
    tl.static_assert(UNROLLED_ROWS % ADVANCE == 0, "an iteration would leave out a row")
    check_window(24 if WIDE else 16, LEFT - PADDING, KERNEL_SIZE)
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    output = Planes(output_ptr, output_image_stride, output_channel_stride, WIDTH)
    addend = Planes(addend_ptr, addend_image_stride, addend_channel_stride, WIDTH)
    channel = (tl.program_id(0) % channels).to(tl.int64)
    filter_ptr += channel * (KERNEL_SIZE * KERNEL_SIZE)
    bands = load_bands(filter_ptr, LEFT - PADDING, KERNEL_SIZE, FLIPPED)
    pairs = ()
    if WIDE:
        pairs = load_band_pairs(filter_ptr, LEFT - PADDING, KERNEL_SIZE, FLIPPED)
    start = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + channel).to(tl.float32)
    normalisation = None
    if normalisation_ptr is not None:
        normalisation = load_normalisation(normalisation_ptr, channel, channels)
    # A row block also reads the rows around it; a whole image needs none, its padding adds nothing.
    if CUT_IMAGES:
        steps = block_rows + (KERNEL_SIZE - 1)
    else:
        steps = height

    for group in range(tl.program_id(0) // channels, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(
            group, tiles, row_blocks, block_rows, WIDTH, TILES, CUT_IMAGES, HALO=PADDING
        )
        exists = located.exists[:, None]
        first_row = located.first_row[:, None]
        first_column = located.first_column[:, None]
        i = tl.arange(0, 16)[None, :]
        column = first_column - LEFT + i
        input_mask = exists & (column >= 0) & (column < WIDTH)
        inputs = tile_pointers(input, located, channel, 0, column, ALIGNMENT, CUT_IMAGES)
        if WIDE:
            column = first_column - LEFT + 16 + i % 8
            right_mask = exists & (column < WIDTH)
            rights = tile_pointers(input, located, channel, i // 8, column, ALIGNMENT, CUT_IMAGES)
        # Row r of the input completes row r - PADDING_BELOW of the output.
        column = first_column + tl.arange(0, TILE_COLUMNS)[None, :]
        output_mask = exists & (column < WIDTH)
        outputs = tile_pointers(
            output, located, channel, -PADDING_BELOW, column, ALIGNMENT, CUT_IMAGES
        )
        addends = None
        if addend_ptr is not None:
            addends = tile_pointers(
                addend, located, channel, -PADDING_BELOW, column, ALIGNMENT, CUT_IMAGES
            )

        # Output rows in progress, the newest first.
        accumulators = ()
        for _ in tl.static_range(KERNEL_SIZE - 1):
            accumulators = accumulators + (start,)
        for step in tl.range(0, tl.cdiv(steps, UNROLLED_ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(0, UNROLLED_ROWS, ADVANCE):
                row = step * UNROLLED_ROWS + unrolled
                row_start = tl.cast(row, tl.int64) * WIDTH
                mask = row_exists(row, first_row, height, CUT_IMAGES, MASK_ROWS)
                window = tl.load(inputs + row_start, mask=input_mask & mask, other=0.0)
                if WIDE:
                    mask = row_exists(row + 1, first_row, height, CUT_IMAGES, MASK_ROWS)
                    lower = tl.load(inputs + (row_start + WIDTH), mask=input_mask & mask, other=0.0)
                    mask = row_exists(row + i // 8, first_row, height, CUT_IMAGES, MASK_ROWS)
                    right = tl.load(rights + row_start, mask=right_mask & mask, other=0.0)
                    updated = multiply_two_rows(
                        window, lower, right, bands, pairs, accumulators, start, KERNEL_SIZE
                    )
                else:
                    updated = multiply_row(window, bands, accumulators, start, KERNEL_SIZE)
                accumulators = updated[: KERNEL_SIZE - 1]
                for done in tl.static_range(ADVANCE):
                    mask = output_mask & output_row_exists(
                        row + done,
                        steps,
                        first_row,
                        height,
                        KERNEL_SIZE,
                        PADDING_BELOW,
                        CUT_IMAGES,
                        MASK_ROWS,
                    )
                    store_row(
                        outputs,
                        row + done,
                        mask,
                        WIDTH,
                        updated[KERNEL_SIZE - 2 + ADVANCE - done],
                        normalisation,
                        addends,
                        load_addend(addends, row + done, mask, WIDTH),
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
                    WIDTH,
                    accumulators[KERNEL_SIZE - 2 - remaining],
                    normalisation,
                    addends,
                    load_addend(addends, row, mask, WIDTH),
                    ACTIVATION,
                    False,
                )
