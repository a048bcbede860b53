"""Weight gradient and bias gradient in float32, by multiply-adds."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import launching
from convmixer_kernels.backends.triton.strips import locate_strips, row_exists, strip_offset


@triton.jit(do_not_specialize=launching.run_time_sizes("input", "grad"))
def fma_kernel(
    input_ptr,
    grad_ptr,
    weight_sums_ptr,
    bias_sums_ptr,
    strips,
    channels,
    height,
    bands,
    band_rows,
    programs,
    input_image_stride,
    input_channel_stride,
    grad_image_stride,
    grad_channel_stride,
    WIDTH: tl.constexpr,
    INPUT_ROW_STRIDE: tl.constexpr,
    INPUT_PIXEL_STRIDE: tl.constexpr,
    GRAD_ROW_STRIDE: tl.constexpr,
    GRAD_PIXEL_STRIDE: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FILTER_ROWS: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BANDED: tl.constexpr,
):
    """float32 without rounding to tf32. Grid: (channels * programs, groups of filter rows).

    Every tap of FILTER_ROWS rows of the filter has a sum of its own in every thread.
    """
    program = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    first_filter_row = tl.program_id(1) * FILTER_ROWS
    sums = ()
    for _ in tl.static_range(FILTER_ROWS * KERNEL_SIZE):
        sums = sums + (tl.zeros((STRIPS, COLUMNS), dtype=tl.float32),)
    bias_sums = tl.zeros((STRIPS, COLUMNS), dtype=tl.float32)
    if BANDED:
        steps = band_rows
    else:
        steps = height

    for block in range(program, tl.cdiv(strips, STRIPS), programs):
        exists, image, first_row, first_column = locate_strips(
            block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED
        )
        column = first_column[:, None] + tl.arange(0, COLUMNS)[None, :]
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
        grad_offset = strip_offset(
            image,
            grad_image_stride,
            channel,
            grad_channel_stride,
            first_row,
            GRAD_ROW_STRIDE,
            1,
            BANDED,
        )
        inputs = input_ptr + (
            input_offset[:, None] + (column - PADDING).to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        grads = grad_ptr + (grad_offset[:, None] + column.to(tl.int64) * GRAD_PIXEL_STRIDE)
        grad_mask = exists[:, None] & (column < WIDTH)
        newest = PADDING - first_filter_row
        recent = ()
        for back in tl.static_range(1, FILTER_ROWS):
            grad_row = newest - back
            above = row_exists(grad_row, first_row[:, None], height, BANDED, True)
            recent = recent + (
                tl.load(
                    grads + tl.cast(grad_row, tl.int64) * GRAD_ROW_STRIDE,
                    mask=grad_mask & above,
                    other=0.0,
                ),
            )
        for row in tl.range(0, steps):
            mask = exists & row_exists(row, first_row, height, BANDED, True)
            if bias_sums_ptr is not None:
                bias_sums += tl.load(
                    grads + tl.cast(row, tl.int64) * GRAD_ROW_STRIDE,
                    mask=grad_mask & mask[:, None],
                    other=0.0,
                )
            grad_mask_here = grad_mask & row_exists(
                row + newest, first_row[:, None], height, BANDED, True
            )
            grad = tl.load(
                grads + tl.cast(row + newest, tl.int64) * GRAD_ROW_STRIDE,
                mask=grad_mask_here,
                other=0.0,
            )
            recent = (grad,) + recent
            updated = ()
            for tap in tl.static_range(KERNEL_SIZE):
                input_column = column + (tap - PADDING)
                value = tl.load(
                    inputs + (tl.cast(row, tl.int64) * INPUT_ROW_STRIDE + tap * INPUT_PIXEL_STRIDE),
                    mask=mask[:, None] & (input_column >= 0) & (input_column < WIDTH),
                    other=0.0,
                )
                for filter_row in tl.static_range(FILTER_ROWS):
                    updated = updated + (
                        sums[tap * FILTER_ROWS + filter_row] + value * recent[filter_row],
                    )
            sums = updated
            recent = recent[: FILTER_ROWS - 1]

    share = program * channels + channel
    weight_sums_ptr += share * (KERNEL_SIZE * KERNEL_SIZE)
    for filter_row in tl.static_range(FILTER_ROWS):
        for tap in tl.static_range(KERNEL_SIZE):
            tl.store(
                weight_sums_ptr + (first_filter_row + filter_row) * KERNEL_SIZE + tap,
                tl.sum(tl.sum(sums[tap * FILTER_ROWS + filter_row], axis=1), axis=0),
                mask=first_filter_row + filter_row < KERNEL_SIZE,
            )
    if bias_sums_ptr is not None:
        tl.store(
            bias_sums_ptr + share,
            tl.sum(tl.sum(bias_sums, axis=1), axis=0),
            mask=first_filter_row == 0,
        )
