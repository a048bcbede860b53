"""Forward pass, and input gradient: the same convolution with the filter turned by half a turn.

Eight adjacent output columns depend on 16 input columns for kernel sizes up to 9, on 24 above. A
program walks down the rows of its strips. Every input row is read once and meets all rows of the
filter, each of which is a banded Toeplitz matrix (input columns by output columns) in registers:

    sums[row - filter row] += window[row] @ matrix[filter row]

Of the output rows in progress, one is finished with every input row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import configurations, launching
from convmixer_kernels.backends.triton.configurations import Configuration, Problem
from convmixer_kernels.backends.triton.toeplitz import (
    load_tap,
    locate_strips,
    plane_offset,
    row_exists,
    toeplitz_matrix,
    toeplitz_pair,
)

# Compiled once for all values. WIDTH and the strides within a plane are constants instead: that
# saves an addition for every address in the main loop.
_RUN_TIME_SIZES = (
    "strips",
    "channels",
    "height",
    "bands",
    "band_rows",
    "programs",
    "input_image_stride",
    "input_channel_stride",
    "output_image_stride",
    "output_channel_stride",
)


@triton.jit
def _store_mask(
    row,
    steps,
    first_row,
    height,
    KERNEL_SIZE: tl.constexpr,
    BELOW: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Whether the output row that is done after input row `row`, BELOW rows above it, is wanted."""
    if BANDED:
        inside = row_exists(row - BELOW, first_row, height, BANDED, MASK_ROWS)
        return ((row >= KERNEL_SIZE - 1) & (row < steps) & inside)[:, None]
    elif MASK_ROWS:
        return (row >= BELOW) & (row < height + BELOW)
    else:
        return row >= BELOW


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def tensor_core_kernel(
    input_ptr,
    filter_ptr,
    bias_ptr,
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
    WIDTH: tl.constexpr,
    INPUT_ROW_STRIDE: tl.constexpr,
    INPUT_PIXEL_STRIDE: tl.constexpr,
    OUTPUT_ROW_STRIDE: tl.constexpr,
    OUTPUT_PIXEL_STRIDE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDE: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """float16 and bfloat16. Grid: channels * programs; the programs of a channel share its strips.

    The window of a strip begins OFFSET columns before it. If WIDE, it has 24 columns: the first 16
    are one matrix product a row; the last 8 of two successive rows are one product together.
    """
    BELOW: tl.constexpr = KERNEL_SIZE - 1 - PADDING
    ADVANCE: tl.constexpr = 2 if WIDE else 1
    element = output_ptr.dtype.element_ty
    channel = (tl.program_id(0) % channels).to(tl.int64)
    filter_ptr += channel * (KERNEL_SIZE * KERNEL_SIZE)
    matrices = ()
    for filter_row in tl.static_range(KERNEL_SIZE):
        matrices = matrices + (
            toeplitz_matrix(
                filter_ptr, filter_row, OFFSET - PADDING, COLUMNS, KERNEL_SIZE, FLIPPED
            ),
        )
    pairs = ()
    if WIDE:
        for filter_row in tl.static_range(-1, KERNEL_SIZE):
            pairs = pairs + (
                toeplitz_pair(
                    filter_ptr, filter_row, OFFSET - PADDING - 16, COLUMNS, KERNEL_SIZE, FLIPPED
                ),
            )
    start = tl.zeros((STRIPS, COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + channel).to(tl.float32)
    # A band also walks over the rows around it; a whole image needs none, its padding adds nothing.
    if BANDED:
        steps = band_rows + (KERNEL_SIZE - 1)
    else:
        steps = height

    for block in range(tl.program_id(0) // channels, tl.cdiv(strips, STRIPS), programs):
        exists, image, first_row, first_column = locate_strips(
            block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED
        )
        exists = exists[:, None]
        i = tl.arange(0, 16)[None, :]
        input_column = first_column[:, None] - OFFSET + i
        input_mask = exists & (input_column >= 0) & (input_column < WIDTH)
        output_column = first_column[:, None] + tl.arange(0, COLUMNS)[None, :]
        output_mask = exists & (output_column < WIDTH)
        input_base = plane_offset(
            image, input_image_stride, channel, input_channel_stride, ALIGNMENT
        )
        output_base = plane_offset(
            image, output_image_stride, channel, output_channel_stride, ALIGNMENT
        )
        if BANDED:
            first_row -= PADDING
            input_base += first_row.to(tl.int64) * INPUT_ROW_STRIDE
            output_base += first_row.to(tl.int64) * OUTPUT_ROW_STRIDE
        output_base -= BELOW * OUTPUT_ROW_STRIDE
        inputs = input_ptr + (input_base[:, None] + input_column.to(tl.int64) * INPUT_PIXEL_STRIDE)
        outputs = output_ptr + (
            output_base[:, None] + output_column.to(tl.int64) * OUTPUT_PIXEL_STRIDE
        )
        if WIDE:
            right_column = first_column[:, None] - OFFSET + 16 + i % 8
            right_mask = exists & (right_column < WIDTH)
            rights = input_ptr + (
                input_base[:, None]
                + right_column.to(tl.int64) * INPUT_PIXEL_STRIDE
                + (i // 8) * INPUT_ROW_STRIDE
            )

        sums = ()
        for _ in tl.static_range(KERNEL_SIZE - 1):
            sums = sums + (start,)
        for step in tl.range(0, tl.cdiv(steps, ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(0, ROWS, ADVANCE):
                row = step * ROWS + unrolled
                row_start = tl.cast(row, tl.int64) * INPUT_ROW_STRIDE
                mask = row_exists(row, first_row[:, None], height, BANDED, MASK_ROWS)
                window = tl.load(inputs + row_start, mask=input_mask & mask, other=0.0)
                if WIDE:
                    mask = row_exists(row + 1, first_row[:, None], height, BANDED, MASK_ROWS)
                    window_below = tl.load(
                        inputs + (row_start + INPUT_ROW_STRIDE), mask=input_mask & mask, other=0.0
                    )
                    mask = row_exists(row + i // 8, first_row[:, None], height, BANDED, MASK_ROWS)
                    right = tl.load(rights + row_start, mask=right_mask & mask, other=0.0)
                # Output rows in progress, the newest first.
                updated = ()
                for place in tl.static_range(KERNEL_SIZE - 1 + ADVANCE):
                    total = start
                    if place >= ADVANCE:
                        total = sums[place - ADVANCE]
                    if place >= ADVANCE - 1:
                        total = tl.dot(window, matrices[place - (ADVANCE - 1)], total)
                    if WIDE:
                        if place < KERNEL_SIZE:
                            total = tl.dot(window_below, matrices[place], total)
                        total = tl.dot(right, pairs[place], total)
                    updated = updated + (total,)
                sums = updated[: KERNEL_SIZE - 1]
                for done in tl.static_range(ADVANCE):
                    mask = _store_mask(
                        row + done, steps, first_row, height, KERNEL_SIZE, BELOW, BANDED, MASK_ROWS
                    )
                    tl.store(
                        outputs + tl.cast(row + done, tl.int64) * OUTPUT_ROW_STRIDE,
                        updated[KERNEL_SIZE - 2 + ADVANCE - done].to(element),
                        mask=output_mask & mask,
                    )
        if not BANDED:
            for remaining in tl.static_range(BELOW):
                row = tl.cdiv(steps, ROWS) * ROWS + remaining
                tl.store(
                    outputs + tl.cast(row, tl.int64) * OUTPUT_ROW_STRIDE,
                    sums[KERNEL_SIZE - 2 - remaining].to(element),
                    mask=output_mask & (row >= BELOW) & (row < height + BELOW),
                )


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def fma_kernel(
    input_ptr,
    filter_ptr,
    bias_ptr,
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
    WIDTH: tl.constexpr,
    INPUT_ROW_STRIDE: tl.constexpr,
    INPUT_PIXEL_STRIDE: tl.constexpr,
    OUTPUT_ROW_STRIDE: tl.constexpr,
    OUTPUT_PIXEL_STRIDE: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
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
        column = first_column[:, None] + tl.arange(0, COLUMNS)[None, :]
        input_base = (
            plane_offset(image, input_image_stride, channel, input_channel_stride, 1)
            + first_row.to(tl.int64) * INPUT_ROW_STRIDE
        )
        output_base = (
            plane_offset(image, output_image_stride, channel, output_channel_stride, 1)
            + (first_row - BELOW).to(tl.int64) * OUTPUT_ROW_STRIDE
        )
        inputs = input_ptr + (
            input_base[:, None] + (column - PADDING).to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        outputs = output_ptr + (output_base[:, None] + column.to(tl.int64) * OUTPUT_PIXEL_STRIDE)
        sums = ()
        for _ in tl.static_range(KERNEL_SIZE):
            sums = sums + (start,)
        for row in tl.range(0, steps):
            mask = exists & row_exists(row, first_row, height, BANDED, True)
            for tap in tl.static_range(KERNEL_SIZE):
                input_column = column + (tap - PADDING)
                value = tl.load(
                    inputs + (tl.cast(row, tl.int64) * INPUT_ROW_STRIDE + tap * INPUT_PIXEL_STRIDE),
                    mask=mask[:, None] & (input_column >= 0) & (input_column < WIDTH),
                    other=0.0,
                )
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    weight = load_tap(filter_ptr, filter_row, tap, KERNEL_SIZE, FLIPPED)
                    updated = updated + (sums[filter_row] + value * weight,)
                sums = updated
            mask = _store_mask(row, steps, first_row, height, KERNEL_SIZE, BELOW, BANDED, True)
            tl.store(
                outputs + tl.cast(row, tl.int64) * OUTPUT_ROW_STRIDE,
                sums[KERNEL_SIZE - 1] + bias,
                mask=exists[:, None] & (column < WIDTH) & mask,
            )
            sums = (start,) + sums[: KERNEL_SIZE - 1]


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) convolved with (C, 1, k, k), plus (C,): float32 sums, output like `input`."""
    return _convolve(input, weight, bias, flipped=False)


def input_gradient(grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `forward` with respect to its input, like `grad_output`."""
    return _convolve(grad_output, weight, None, flipped=True)


def _convolve(source: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    output = layout.empty_like_input(source)
    if source.numel() > 0:
        problem = Problem.of(source, output, weight.shape[-1])
        configuration = configurations.forward(problem, launching.device(source.device))
        with torch.cuda.device_of(source):
            launch(source, weight.contiguous(), bias, output, flipped, problem, configuration)
    return output


def launch(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    flipped: bool,
    problem: Problem,
    configuration: Configuration,
) -> None:
    """Runs a configuration on the current device; `weight` is contiguous."""
    kernel(problem)[(problem.channels * configuration.programs,)](
        source,
        weight,
        bias,
        output,
        *launching.sizes(source, output, problem, configuration),
        **constants(problem, configuration, flipped),
        **launching.options(configuration),
    )


def kernel(problem: Problem) -> Any:
    return tensor_core_kernel if problem.tensor_cores else fma_kernel


def constants(
    problem: Problem, configuration: Configuration, flipped: bool
) -> dict[str, int | bool]:
    """What the kernel is compiled for, besides types and alignment of its arguments."""
    size = problem.kernel_size
    common = {
        "WIDTH": problem.width,
        "INPUT_ROW_STRIDE": problem.row_strides[0],
        "INPUT_PIXEL_STRIDE": problem.pixel_strides[0],
        "OUTPUT_ROW_STRIDE": problem.row_strides[1],
        "OUTPUT_PIXEL_STRIDE": problem.pixel_strides[1],
        "KERNEL_SIZE": size,
        # An even filter has one row and column more below and right of its centre; turned by half
        # a turn, above and left.
        "PADDING": size // 2 if flipped else (size - 1) // 2,
        "FLIPPED": flipped,
        "STRIPS": configuration.strips,
        "COLUMNS": configurations.COLUMNS,
        "BANDED": configuration.banded,
    }
    if not problem.tensor_cores:
        return common
    return common | {
        "ALIGNMENT": problem.alignment,
        "OFFSET": problem.offset,
        "WIDE": problem.wide,
        "ROWS": configuration.rows,
        "STAGES": configuration.num_stages,
        "MASK_ROWS": configuration.mask_rows,
    }
