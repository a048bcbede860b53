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

from convmixer_kernels.backends.triton import (
    autotuning,
    configurations,
    depthwise_weight_gradient_channels_last,
    depthwise_weight_gradient_float32,
    launching,
)
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.problem import Problem
from convmixer_kernels.backends.triton.strips import locate_strips, row_exists, strip_offset


@triton.jit
def _diagonal_sums(products, SHIFT: tl.constexpr, WINDOW: tl.constexpr, COLUMNS: tl.constexpr):
    """(16,): for each tap the sum of its diagonal of `products`, (WINDOW, COLUMNS)."""
    row = tl.arange(0, 16)[:, None] + tl.arange(0, COLUMNS)[None, :] + SHIFT
    inside = row < WINDOW
    diagonals = tl.gather(products, tl.where(inside, row, 0), 0)
    return tl.sum(tl.where(inside, diagonals, 0.0), axis=1)


@triton.jit(do_not_specialize=launching.run_time_sizes("input", "grad"))
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
        input_offset = strip_offset(
            image,
            input_image_stride,
            channel,
            input_channel_stride,
            first_row,
            INPUT_ROW_STRIDE,
            ALIGNMENT,
            BANDED,
        )
        grad_offset = strip_offset(
            image,
            grad_image_stride,
            channel,
            grad_channel_stride,
            first_row,
            GRAD_ROW_STRIDE,
            ALIGNMENT,
            BANDED,
        )
        inputs = input_ptr + (
            input_offset[None, :] + input_column.to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        grads = grad_ptr + (grad_offset[:, None] + grad_column.to(tl.int64) * GRAD_PIXEL_STRIDE)
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
    problem = Problem.of((input, grad_output), kernel_size)

    def run(configuration: Configuration) -> tuple[Tensor, Tensor | None]:
        # What a single program leaves is returned as it is, so it must not be a view.
        shares = () if configuration.programs == 1 else (configuration.programs,)
        weight_sums = torch.empty((*shares, *shape), dtype=torch.float32, device=input.device)
        bias_sums = weight_sums.new_empty((*shares, channels)) if with_bias else None
        launch((input, grad_output, weight_sums, bias_sums), problem, configuration)
        if not shares:
            return weight_sums, bias_sums
        return weight_sums.sum(0), bias_sums.sum(0) if bias_sums is not None else None

    with torch.cuda.device_of(input):
        candidates = configurations.weight_gradient_candidates(
            problem, launching.device(input.device)
        )
        return run(autotuning.choose("weight_gradient", problem, candidates, run, input.device))


def launch(
    arguments: tuple[Tensor | None, ...], problem: Problem, configuration: Configuration
) -> None:
    """Runs a configuration on the current device, given the tensors in the kernels' order."""
    kernel(problem, configuration)[grid(problem, configuration)](
        *arguments,
        *launching.sizes(arguments[:2], problem, configuration),
        **constants(problem, configuration),
        **launching.options(configuration),
    )


def grid(problem: Problem, configuration: Configuration) -> tuple[int, int]:
    channel_groups = -(-problem.channels // configuration.channels)
    row_groups = 1
    if not problem.tensor_cores:
        row_groups = -(-problem.kernel_size // configuration.filter_rows)
    return channel_groups * configuration.programs, row_groups


def kernel(problem: Problem, configuration: Configuration) -> Any:
    if not problem.tensor_cores:
        return depthwise_weight_gradient_float32.fma_kernel
    if configuration.channels > 1:
        return depthwise_weight_gradient_channels_last.tensor_core_kernel
    return tensor_core_kernel


def constants(problem: Problem, configuration: Configuration) -> dict[str, Any]:
    """What the kernel is compiled for, besides types and alignment of its arguments."""
    values = launching.constants(("INPUT", "GRAD"), problem, configuration)
    values["PADDING"] = (problem.kernel_size - 1) // 2
    if not problem.tensor_cores:
        values["FILTER_ROWS"] = configuration.filter_rows
    return values
