"""Weight gradient and bias gradient, summed in a fixed order.

For every row of the filter, products of input columns and output-gradient columns are summed over
all strips and rows, the inner dimension of the matrix products. The gradient of a tap is then the
sum along one diagonal of such a small matrix:

    products[filter row][i, j] = sum of input[row, i - OFFSET] * grad[row - filter row, j]
    weight gradient[filter row, tap] = sum over j of products[filter row][j + tap + shift, j]

An input row is read once; the rows of the output gradient that it meets stay in registers. Programs
that share a channel leave partial sums, which are added in a fixed order afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels.backends.triton import configurations, launching
from convmixer_kernels.backends.triton.configurations import Configuration, Problem
from convmixer_kernels.backends.triton.toeplitz import locate_strips, plane_offset, row_exists

_RUN_TIME_SIZES = (
    "strips",
    "channels",
    "height",
    "bands",
    "band_rows",
    "programs",
    "input_image_stride",
    "input_channel_stride",
    "grad_image_stride",
    "grad_channel_stride",
)


@triton.jit
def _diagonal_sums(products, SHIFT: tl.constexpr, WINDOW: tl.constexpr, COLUMNS: tl.constexpr):
    """(16,): for each tap the sum of its diagonal of `products`, (WINDOW, COLUMNS)."""
    row = tl.arange(0, 16)[:, None] + tl.arange(0, COLUMNS)[None, :] + SHIFT
    inside = row < WINDOW
    diagonals = tl.gather(products, tl.where(inside, row, 0), 0)
    return tl.sum(tl.where(inside, diagonals, 0.0), axis=1)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def tensor_core_kernel(
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
    ALIGNMENT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    OFFSET: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """float16 and bfloat16. Grid: channels * programs.

    Writes weight_sums[program, channel, row, column] and bias_sums[program, channel].
    """
    program = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    i = tl.arange(0, WINDOW)[:, None]
    j = tl.arange(0, COLUMNS)[None, :]
    products = ()
    for _ in tl.static_range(KERNEL_SIZE):
        products = products + (tl.zeros((WINDOW, COLUMNS), dtype=tl.float32),)
    # The bias gradient is one more matrix product: unpacking and adding costs four times as much.
    ones = tl.full((16, STRIPS), 1.0, dtype=grad_ptr.dtype.element_ty)
    bias_sums = tl.zeros((16, COLUMNS), dtype=tl.float32)
    if BANDED:
        steps = band_rows
    else:
        steps = height

    for block in range(program, tl.cdiv(strips, STRIPS), programs):
        exists, image, first_row, first_column = locate_strips(
            block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED
        )
        input_column = first_column[None, :] - OFFSET + i
        input_mask = exists[None, :] & (input_column >= 0) & (input_column < WIDTH)
        grad_column = first_column[:, None] + j
        grad_mask = exists[:, None] & (grad_column < WIDTH)
        input_base = plane_offset(
            image, input_image_stride, channel, input_channel_stride, ALIGNMENT
        )
        grad_base = plane_offset(image, grad_image_stride, channel, grad_channel_stride, ALIGNMENT)
        if BANDED:
            input_base += first_row.to(tl.int64) * INPUT_ROW_STRIDE
            grad_base += first_row.to(tl.int64) * GRAD_ROW_STRIDE
        inputs = input_ptr + (input_base[None, :] + input_column.to(tl.int64) * INPUT_PIXEL_STRIDE)
        grads = grad_ptr + (grad_base[:, None] + grad_column.to(tl.int64) * GRAD_PIXEL_STRIDE)
        # Rows of the output gradient that meet an input row, from the bottom up.
        recent = ()
        for back in tl.static_range(KERNEL_SIZE - 1):
            above = row_exists(PADDING - 1 - back, first_row[:, None], height, BANDED, True)
            recent = recent + (
                tl.load(
                    grads + (PADDING - 1 - back) * GRAD_ROW_STRIDE,
                    mask=grad_mask & above,
                    other=0.0,
                ),
            )
        for step in tl.range(0, tl.cdiv(steps, ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(ROWS):
                row = step * ROWS + unrolled
                mask = row_exists(row, first_row[None, :], height, BANDED, MASK_ROWS)
                window = tl.load(
                    inputs + tl.cast(row, tl.int64) * INPUT_ROW_STRIDE,
                    mask=input_mask & mask,
                    other=0.0,
                )
                row += PADDING
                mask = row_exists(row, first_row[:, None], height, BANDED, True)
                grad = tl.load(
                    grads + tl.cast(row, tl.int64) * GRAD_ROW_STRIDE,
                    mask=grad_mask & mask,
                    other=0.0,
                )
                recent = (grad,) + recent
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    updated = updated + (tl.dot(window, recent[filter_row], products[filter_row]),)
                products = updated
                if bias_sums_ptr is not None:
                    bias_sums = tl.dot(ones, recent[PADDING], bias_sums)
                recent = recent[: KERNEL_SIZE - 1]

    tap = tl.arange(0, 16)
    share = program * channels + channel
    weight_sums_ptr += share * (KERNEL_SIZE * KERNEL_SIZE)
    for filter_row in tl.static_range(KERNEL_SIZE):
        tl.store(
            weight_sums_ptr + filter_row * KERNEL_SIZE + tap,
            _diagonal_sums(products[filter_row], OFFSET - PADDING, WINDOW, COLUMNS),
            mask=tap < KERNEL_SIZE,
        )
    if bias_sums_ptr is not None:
        # All 16 rows of the product are the same.
        tl.store(bias_sums_ptr + share + tap, tl.sum(bias_sums, axis=1), mask=tap == 0)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
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
        input_base = (
            plane_offset(image, input_image_stride, channel, input_channel_stride, 1)
            + first_row.to(tl.int64) * INPUT_ROW_STRIDE
        )
        grad_base = (
            plane_offset(image, grad_image_stride, channel, grad_channel_stride, 1)
            + first_row.to(tl.int64) * GRAD_ROW_STRIDE
        )
        inputs = input_ptr + (
            input_base[:, None] + (column - PADDING).to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        grads = grad_ptr + (grad_base[:, None] + column.to(tl.int64) * GRAD_PIXEL_STRIDE)
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


def weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `depthwise_forward.forward` with respect to its weight and bias.

    Args:
        input: (N, C, H, W).
        grad_output: (N, C, H, W), any strides.

    Returns:
        (C, 1, k, k) and, if `with_bias`, (C,): both float32, the same bits for the same tensors.
    """
    channels = input.shape[1]
    shape = (channels, 1, kernel_size, kernel_size)
    if input.numel() == 0:
        weight_sums = torch.zeros(shape, dtype=torch.float32, device=input.device)
        return weight_sums, weight_sums.new_zeros(channels) if with_bias else None
    problem = Problem.of(input, grad_output, kernel_size)
    configuration = configurations.weight_gradient(problem, launching.device(input.device))
    programs = configuration.programs
    weight_sums = torch.empty((programs, *shape), dtype=torch.float32, device=input.device)
    bias_sums = weight_sums.new_empty((programs, channels)) if with_bias else None
    with torch.cuda.device_of(input):
        launch(input, grad_output, weight_sums, bias_sums, problem, configuration)
    if programs == 1:
        return weight_sums[0], bias_sums[0] if bias_sums is not None else None
    return weight_sums.sum(0), bias_sums.sum(0) if bias_sums is not None else None


def launch(
    input: Tensor,
    grad_output: Tensor,
    weight_sums: Tensor,
    bias_sums: Tensor | None,
    problem: Problem,
    configuration: Configuration,
) -> None:
    """Runs a configuration on the current device: (programs, C, 1, k, k) and (programs, C) sums."""
    grid: tuple[int, ...] = (problem.channels * configuration.programs,)
    if not problem.tensor_cores:
        grid += (-(-problem.kernel_size // configuration.filter_rows),)
    kernel(problem)[grid](
        input,
        grad_output,
        weight_sums,
        bias_sums,
        *launching.sizes(input, grad_output, problem, configuration),
        **constants(problem, configuration),
        **launching.options(configuration),
    )


def kernel(problem: Problem) -> Any:
    return tensor_core_kernel if problem.tensor_cores else fma_kernel


def constants(problem: Problem, configuration: Configuration) -> dict[str, int | bool]:
    """What the kernel is compiled for, besides types and alignment of its arguments."""
    common = {
        "WIDTH": problem.width,
        "INPUT_ROW_STRIDE": problem.row_strides[0],
        "INPUT_PIXEL_STRIDE": problem.pixel_strides[0],
        "GRAD_ROW_STRIDE": problem.row_strides[1],
        "GRAD_PIXEL_STRIDE": problem.pixel_strides[1],
        "KERNEL_SIZE": problem.kernel_size,
        "PADDING": (problem.kernel_size - 1) // 2,
        "STRIPS": configuration.strips,
        "COLUMNS": configurations.COLUMNS,
        "BANDED": configuration.banded,
    }
    if not problem.tensor_cores:
        return common | {"FILTER_ROWS": configuration.filter_rows}
    return common | {
        "ALIGNMENT": problem.alignment,
        "OFFSET": problem.offset,
        "WINDOW": problem.window,
        "ROWS": configuration.rows,
        "STAGES": configuration.num_stages,
        "MASK_ROWS": configuration.mask_rows,
    }
