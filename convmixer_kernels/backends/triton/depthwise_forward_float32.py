"""Forward pass and input gradient in float32, by multiply-adds."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import launching
from convmixer_kernels.backends.triton.epilogue import finish, load_addend, load_normalisation
from convmixer_kernels.backends.triton.strips import (
    locate_strips,
    row_exists,
    store_mask,
    strip_offset,
)
from convmixer_kernels.backends.triton.toeplitz import load_tap


@triton.jit(do_not_specialize=launching.run_time_sizes("input", "output", "addend"))
def fma_kernel(
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
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BANDED: tl.constexpr,
):
    """float32 without rounding to tf32: one multiply-add for each tap, no matrix product.

    ``tl.dot`` with ``input_precision="ieee"`` would take 16/9 of the multiply-adds, and it spills.
    """
    BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    channel = (tl.program_id(0) % channels).to(tl.int64)
    filter_ptr += channel * (KERNEL_SIZE * KERNEL_SIZE)
    start = tl.zeros((STRIPS, COLUMNS), dtype=tl.float32)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(tl.float32)
    mean, scale, shift = load_normalisation(normalisation_ptr, channel, channels)
    if BANDED:
        steps = band_rows + (KERNEL_SIZE - 1)
    else:
        steps = height + BELOW

    for block in range(tl.program_id(0) // channels, tl.cdiv(strips, STRIPS), programs):
        exists, image, first_row, first_column = locate_strips(
            block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED
        )
        if BANDED:
            first_row -= PADDING
        input_offset = strip_offset(
            image,
            input_image_stride,
            channel,
            input_channel_stride,
            first_row,
            INPUT_ROW_STRIDE,
            1,
            BANDED,
        )
        output_offset = strip_offset(
            image,
            output_image_stride,
            channel,
            output_channel_stride,
            first_row,
            OUTPUT_ROW_STRIDE,
            1,
            BANDED,
        )
        addend_offset = strip_offset(
            image,
            addend_image_stride,
            channel,
            addend_channel_stride,
            first_row,
            ADDEND_ROW_STRIDE,
            1,
            BANDED,
        )
        exists = exists[:, None]
        first_row = first_row[:, None]
        column = first_column[:, None] + tl.arange(0, COLUMNS)[None, :]
        inputs = input_ptr + (
            input_offset[:, None] + (column - PADDING).to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        outputs = output_ptr + (
            output_offset[:, None]
            + column.to(tl.int64) * OUTPUT_PIXEL_STRIDE
            - BELOW * OUTPUT_ROW_STRIDE
        )
        addends = exists
        if addend_ptr is not None:
            addends = addend_ptr + (
                addend_offset[:, None]
                + column.to(tl.int64) * ADDEND_PIXEL_STRIDE
                - BELOW * ADDEND_ROW_STRIDE
            )
        sums = ()
        for _ in tl.static_range(KERNEL_SIZE):
            sums = sums + (start,)
        for row in tl.range(0, steps):
            mask = exists & row_exists(row, first_row, height, BANDED, True)
            for tap in tl.static_range(KERNEL_SIZE):
                input_column = column + (tap - PADDING)
                value = tl.load(
                    inputs + (tl.cast(row, tl.int64) * INPUT_ROW_STRIDE + tap * INPUT_PIXEL_STRIDE),
                    mask=mask & (input_column >= 0) & (input_column < WIDTH),
                    other=0.0,
                )
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    weight = load_tap(filter_ptr, filter_row, tap, KERNEL_SIZE, FLIPPED)
                    updated = updated + (sums[filter_row] + value * weight,)
                sums = updated
            mask = store_mask(row, steps, first_row, height, KERNEL_SIZE, BELOW, BANDED, True)
            mask = exists & (column < WIDTH) & mask
            distance = tl.cast(row, tl.int64) * ADDEND_ROW_STRIDE
            result = finish(
                sums[KERNEL_SIZE - 1] + bias,
                mean,
                scale,
                shift,
                load_addend(addends + distance, mask, addend_ptr),
                normalisation_ptr,
                addend_ptr,
                ACTIVATION,
                True,
            )
            tl.store(
                outputs + tl.cast(row, tl.int64) * OUTPUT_ROW_STRIDE,
                result,
                mask=mask,
            )
            sums = (start,) + sums[: KERNEL_SIZE - 1]
