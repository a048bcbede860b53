"""Forward pass and input gradient where the channels of a pixel are adjacent in memory.

The matrix products of `depthwise_forward`, for CHANNELS channels at a time: memory is read and
written by 16 bytes, eight channels of a pixel, and every warp multiplies for a channel of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import launching
from convmixer_kernels.backends.triton.channels_last import as_words, pair_up, toeplitz_matrices
from convmixer_kernels.backends.triton.epilogue import finish, load_addend, load_normalisation
from convmixer_kernels.backends.triton.strips import (
    locate_strips,
    row_exists,
    store_mask,
    strip_offset,
)


@triton.jit(do_not_specialize=launching.run_time_sizes("input", "output", "addend"))
def tensor_core_kernel(
    input_ptr,
    filter_ptr,
    bias_ptr,
    normalisation_ptr,
    addend_ptr,
    output_ptr,
    strips,
    channels,
    height,
    bands,
    band_rows,
    programs,
    input_image_stride,
    input_channel_stride,
    output_image_stride,
    output_channel_stride,
    addend_image_stride,
    addend_channel_stride,
    WIDTH: tl.constexpr,
    INPUT_ROW_STRIDE: tl.constexpr,
    INPUT_PIXEL_STRIDE: tl.constexpr,
    OUTPUT_ROW_STRIDE: tl.constexpr,
    OUTPUT_PIXEL_STRIDE: tl.constexpr,
    ADDEND_ROW_STRIDE: tl.constexpr,
    ADDEND_PIXEL_STRIDE: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OFFSET: tl.constexpr,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """float16 and bfloat16. Grid: groups of CHANNELS channels * programs.

    Channels, and all strides but those between channels, which are 1, are multiples of eight.
    """
    BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    element = output_ptr.dtype.element_ty
    groups = tl.cdiv(channels, CHANNELS)
    first_channel = (tl.program_id(0) % groups) * CHANNELS
    channel = first_channel + tl.arange(0, CHANNELS)
    channel_exists = tl.max_constancy(channel < channels, [8])[:, None, None]
    word = tl.arange(0, CHANNELS // 2)
    word_exists = tl.max_constancy(first_channel + 2 * word < channels, [4])[:, None, None]
    word = word[:, None, None]
    # The parameters of the last channel stand in for those that do not exist.
    parameter = tl.minimum(channel, channels - 1)
    matrices = ()
    for filter_row in tl.static_range(KERNEL_SIZE):
        matrices = matrices + (
            toeplitz_matrices(
                filter_ptr,
                parameter,
                filter_row,
                OFFSET - PADDING,
                WINDOW,
                COLUMNS,
                KERNEL_SIZE,
                FLIPPED,
            ),
        )
    parameter = parameter[:, None, None]
    start = tl.zeros((CHANNELS, STRIPS, COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + parameter).to(tl.float32)
    mean, scale, shift = load_normalisation(normalisation_ptr, parameter, channels)
    if BANDED:
        steps = band_rows + (KERNEL_SIZE - 1)
    else:
        steps = height

    for block in range(tl.program_id(0) // groups, tl.cdiv(strips, STRIPS), programs):
        exists, image, first_row, first_column = locate_strips(
            block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED
        )
        if BANDED:
            first_row -= PADDING
        input_offset = strip_offset(
            image,
            input_image_stride,
            first_channel,
            input_channel_stride,
            first_row,
            INPUT_ROW_STRIDE,
            8,
            BANDED,
        )
        output_offset = strip_offset(
            image,
            output_image_stride,
            first_channel,
            output_channel_stride,
            first_row,
            OUTPUT_ROW_STRIDE,
            8,
            BANDED,
        )
        addend_offset = strip_offset(
            image,
            addend_image_stride,
            first_channel,
            addend_channel_stride,
            first_row,
            ADDEND_ROW_STRIDE,
            8,
            BANDED,
        )
        exists = exists[None, :, None]
        first_row = first_row[None, :, None]
        first_column = first_column[None, :, None]
        even_column = first_column - OFFSET + 2 * tl.arange(0, WINDOW // 2)[None, None, :]
        even_mask = exists & word_exists & (even_column >= 0) & (even_column < WIDTH)
        odd_mask = exists & word_exists & (even_column >= -1) & (even_column < WIDTH - 1)
        evens = as_words(input_ptr) + (
            (input_offset // 2)[None, :, None]
            + even_column.to(tl.int64) * (INPUT_PIXEL_STRIDE // 2)
            + word
        )
        output_column = first_column + tl.arange(0, COLUMNS)[None, None, :]
        output_mask = exists & channel_exists & (output_column < WIDTH)
        outputs = output_ptr + (
            output_offset[None, :, None]
            + output_column.to(tl.int64) * OUTPUT_PIXEL_STRIDE
            + tl.arange(0, CHANNELS)[:, None, None]
            - BELOW * OUTPUT_ROW_STRIDE
        )
        addends = output_mask
        if addend_ptr is not None:
            addends = addend_ptr + (
                addend_offset[None, :, None]
                + output_column.to(tl.int64) * ADDEND_PIXEL_STRIDE
                + tl.arange(0, CHANNELS)[:, None, None]
                - BELOW * ADDEND_ROW_STRIDE
            )

        sums = ()
        for _ in tl.static_range(KERNEL_SIZE - 1):
            sums = sums + (start,)
        for step in tl.range(0, tl.cdiv(steps, ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(ROWS):
                row = step * ROWS + unrolled
                row_start = tl.cast(row, tl.int64) * (INPUT_ROW_STRIDE // 2)
                mask = row_exists(row, first_row, height, BANDED, MASK_ROWS)
                even = tl.load(evens + row_start, mask=even_mask & mask, other=0)
                odd = tl.load(
                    evens + (row_start + INPUT_PIXEL_STRIDE // 2), mask=odd_mask & mask, other=0
                )
                mask = output_mask & store_mask(
                    row, steps, first_row, height, KERNEL_SIZE, BELOW, BANDED, MASK_ROWS
                )
                # Asked for before the products, so that they hide the latency.
                distance = tl.cast(row, tl.int64) * ADDEND_ROW_STRIDE
                added = load_addend(addends + distance, mask, addend_ptr)
                window = pair_up(even, odd, element)
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    total = start
                    if filter_row > 0:
                        total = sums[filter_row - 1]
                    updated = updated + (tl.dot(window, matrices[filter_row], total),)
                sums = updated[: KERNEL_SIZE - 1]
                result = finish(
                    updated[KERNEL_SIZE - 1],
                    mean,
                    scale,
                    shift,
                    added,
                    normalisation_ptr,
                    addend_ptr,
                    ACTIVATION,
                    False,
                )
                tl.store(
                    outputs + tl.cast(row, tl.int64) * OUTPUT_ROW_STRIDE,
                    result.to(element),
                    mask=mask,
                )
        if not BANDED:
            for remaining in tl.static_range(BELOW):
                row = tl.cdiv(steps, ROWS) * ROWS + remaining
                mask = output_mask & (row >= BELOW) & (row < height + BELOW)
                distance = tl.cast(row, tl.int64) * ADDEND_ROW_STRIDE
                result = finish(
                    sums[KERNEL_SIZE - 2 - remaining],
                    mean,
                    scale,
                    shift,
                    load_addend(addends + distance, mask, addend_ptr),
                    normalisation_ptr,
                    addend_ptr,
                    ACTIVATION,
                    False,
                )
                tl.store(
                    outputs + tl.cast(row, tl.int64) * OUTPUT_ROW_STRIDE,
                    result.to(element),
                    mask=mask,
                )
