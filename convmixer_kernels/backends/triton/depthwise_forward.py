"""Forward pass, and input gradient: the same convolution with the filter turned by half a turn.

Eight adjacent output columns depend on 16 input columns for kernel sizes up to 9, on 24 above. A
program walks down the rows of its strips. Every input row is read once and meets all rows of the
filter, each of which is a banded Toeplitz matrix (input columns by output columns) in registers:

    sums[row - filter row] += window[row] @ matrix[filter row]

Of the output rows in progress, one is finished with every input row. In the same registers it can
become an activation, be normalised, and have another tensor added to it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import (
    autotuning,
    configurations,
    depthwise_forward_channels_last,
    depthwise_forward_float32,
    launching,
)
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.epilogue import finish, load_addend, load_normalisation
from convmixer_kernels.backends.triton.problem import Problem
from convmixer_kernels.backends.triton.strips import (
    locate_strips,
    row_exists,
    store_mask,
    strip_offset,
)
from convmixer_kernels.backends.triton.toeplitz import toeplitz_matrix, toeplitz_pair


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
    ALIGNMENT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OFFSET: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """float16 and bfloat16. Grid: channels * programs; the programs of a channel share its strips.

    The window of a strip begins OFFSET columns before it. A wide one has 24 columns: the first 16
    are one matrix product a row; the last 8 of two successive rows are one product together.
    """
    WIDE: tl.constexpr = WINDOW > 16
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
    mean, scale, shift = load_normalisation(normalisation_ptr, channel, channels)
    # A band also walks over the rows around it; a whole image needs none, its padding adds nothing.
    if BANDED:
        steps = band_rows + (KERNEL_SIZE - 1)
    else:
        steps = height

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
            ALIGNMENT,
            BANDED,
        )
        output_offset = strip_offset(
            image,
            output_image_stride,
            channel,
            output_channel_stride,
            first_row,
            OUTPUT_ROW_STRIDE,
            ALIGNMENT,
            BANDED,
        )
        addend_offset = strip_offset(
            image,
            addend_image_stride,
            channel,
            addend_channel_stride,
            first_row,
            ADDEND_ROW_STRIDE,
            ALIGNMENT,
            BANDED,
        )
        exists = exists[:, None]
        first_row = first_row[:, None]
        i = tl.arange(0, 16)[None, :]
        input_column = first_column[:, None] - OFFSET + i
        input_mask = exists & (input_column >= 0) & (input_column < WIDTH)
        output_column = first_column[:, None] + tl.arange(0, COLUMNS)[None, :]
        output_mask = exists & (output_column < WIDTH)
        inputs = input_ptr + (
            input_offset[:, None] + input_column.to(tl.int64) * INPUT_PIXEL_STRIDE
        )
        outputs = output_ptr + (
            output_offset[:, None]
            + output_column.to(tl.int64) * OUTPUT_PIXEL_STRIDE
            - BELOW * OUTPUT_ROW_STRIDE
        )
        addends = output_mask
        if addend_ptr is not None:
            addends = addend_ptr + (
                addend_offset[:, None]
                + output_column.to(tl.int64) * ADDEND_PIXEL_STRIDE
                - BELOW * ADDEND_ROW_STRIDE
            )
        if WIDE:
            right_column = first_column[:, None] - OFFSET + 16 + i % 8
            right_mask = exists & (right_column < WIDTH)
            rights = input_ptr + (
                input_offset[:, None]
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
                mask = row_exists(row, first_row, height, BANDED, MASK_ROWS)
                window = tl.load(inputs + row_start, mask=input_mask & mask, other=0.0)
                if WIDE:
                    mask = row_exists(row + 1, first_row, height, BANDED, MASK_ROWS)
                    window_below = tl.load(
                        inputs + (row_start + INPUT_ROW_STRIDE), mask=input_mask & mask, other=0.0
                    )
                    mask = row_exists(row + i // 8, first_row, height, BANDED, MASK_ROWS)
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
                    mask = output_mask & store_mask(
                        row + done, steps, first_row, height, KERNEL_SIZE, BELOW, BANDED, MASK_ROWS
                    )
                    distance = tl.cast(row + done, tl.int64)
                    result = finish(
                        updated[KERNEL_SIZE - 2 + ADVANCE - done],
                        mean,
                        scale,
                        shift,
                        load_addend(addends + distance * ADDEND_ROW_STRIDE, mask, addend_ptr),
                        normalisation_ptr,
                        addend_ptr,
                        ACTIVATION,
                        False,
                    )
                    tl.store(outputs + distance * OUTPUT_ROW_STRIDE, result.to(element), mask=mask)
        if not BANDED:
            for remaining in tl.static_range(BELOW):
                row = tl.cdiv(steps, ROWS) * ROWS + remaining
                mask = output_mask & (row >= BELOW) & (row < height + BELOW)
                distance = tl.cast(row, tl.int64)
                result = finish(
                    sums[KERNEL_SIZE - 2 - remaining],
                    mean,
                    scale,
                    shift,
                    load_addend(addends + distance * ADDEND_ROW_STRIDE, mask, addend_ptr),
                    normalisation_ptr,
                    addend_ptr,
                    ACTIVATION,
                    False,
                )
                tl.store(outputs + distance * OUTPUT_ROW_STRIDE, result.to(element), mask=mask)


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) convolved with (C, 1, k, k), plus (C,): float32 sums, output like `input`."""
    return _convolve(input, weight, bias, None, None, "identity", flipped=False)


def forward_normalised(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
) -> Tensor:
    """`forward`, its activation, normalisation and the residual in one kernel, rounded once."""
    addend = input if residual else None
    return _convolve(input, weight, bias, normalisation, addend, activation, flipped=False)


def input_gradient(grad_output: Tensor, weight: Tensor, addend: Tensor | None = None) -> Tensor:
    """Gradient of `forward` with respect to its input, like `grad_output`; plus `addend`."""
    return _convolve(grad_output, weight, None, None, addend, "identity", flipped=True)


def _convolve(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor | None,
    addend: Tensor | None,
    activation: str,
    flipped: bool,
) -> Tensor:
    output = layout.empty_like_input(source)
    if source.numel() == 0:
        return output
    tensors = (source, output) if addend is None else (source, output, addend)
    fused = addend is not None or normalisation is not None
    problem = Problem.of(tensors, weight.shape[-1], fused)
    bias = None if bias is None else bias.contiguous()
    arguments = (source, weight.contiguous(), bias, normalisation, addend, output)

    def run(configuration: Configuration) -> None:
        launch(arguments, problem, configuration, flipped, activation)

    with torch.cuda.device_of(source):
        candidates = configurations.forward_candidates(problem, launching.device(source.device))
        run(autotuning.choose("forward", problem, candidates, run, source.device))
    return output


def launch(
    arguments: tuple[Tensor | None, ...],
    problem: Problem,
    configuration: Configuration,
    flipped: bool,
    activation: str,
) -> None:
    """Runs a configuration on the current device, given the tensors in the kernels' order."""
    source, *_, addend, output = arguments
    kernel(problem, configuration)[grid(problem, configuration)](
        *arguments,
        *launching.sizes((source, output, addend), problem, configuration),
        **constants(problem, configuration, flipped, activation),
        **launching.options(configuration),
    )


def grid(problem: Problem, configuration: Configuration) -> tuple[int]:
    groups = -(-problem.channels // configuration.channels)
    return (groups * configuration.programs,)


def kernel(problem: Problem, configuration: Configuration) -> Any:
    if not problem.tensor_cores:
        return depthwise_forward_float32.fma_kernel
    if configuration.channels > 1:
        return depthwise_forward_channels_last.tensor_core_kernel
    return tensor_core_kernel


def constants(
    problem: Problem, configuration: Configuration, flipped: bool, activation: str
) -> dict[str, Any]:
    """What the kernel is compiled for, besides types and alignment of its arguments."""
    size = problem.kernel_size
    return {
        **launching.constants(("INPUT", "OUTPUT", "ADDEND"), problem, configuration),
        # An even filter has one row and column more below and right of its centre; turned by half
        # a turn, above and left.
        "PADDING": size // 2 if flipped else (size - 1) // 2,
        "FLIPPED": flipped,
        "ACTIVATION": activation,
    }
