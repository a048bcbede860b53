"""Weight gradient and bias gradient where the channels of a pixel are adjacent in memory.

The matrix products of `depthwise_weight_gradient`, for CHANNELS channels at a time. Their inner
dimension runs over strips, so here the even and the odd strips are what is loaded apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import launching
from convmixer_kernels.backends.triton.channels_last import as_words, pair_up
from convmixer_kernels.backends.triton.strips import locate_strips, row_exists, strip_offset


@triton.jit
def _diagonal_sums(products, SHIFT: tl.constexpr):
    """(CHANNELS, 16): for each tap the sum of its diagonal of (CHANNELS, WINDOW, COLUMNS)."""
    CHANNELS: tl.constexpr = products.shape[0]
    WINDOW: tl.constexpr = products.shape[1]
    COLUMNS: tl.constexpr = products.shape[2]
    row = tl.arange(0, 16)[None, :, None] + tl.arange(0, COLUMNS)[None, None, :] + SHIFT
    row = tl.broadcast_to(row, (CHANNELS, 16, COLUMNS))
    inside = row < WINDOW
    diagonals = tl.gather(products, tl.where(inside, row, 0), 1)
    return tl.sum(tl.where(inside, diagonals, 0.0), axis=2)


@triton.jit
def _load_row(
    pointers,
    masks,
    row,
    first_rows,
    height,
    ROW_STRIDE: tl.constexpr,
    element: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """A row of the even and the odd strips, as a matrix for each channel: (CHANNELS, n, STRIPS)."""
    distance = tl.cast(row, tl.int64) * (ROW_STRIDE // 2)
    mask = row_exists(row, first_rows[0], height, BANDED, MASK_ROWS)
    even = tl.load(pointers[0] + distance, mask=masks[0] & mask, other=0)
    mask = row_exists(row, first_rows[1], height, BANDED, MASK_ROWS)
    odd = tl.load(pointers[1] + distance, mask=masks[1] & mask, other=0)
    return pair_up(tl.permute(even, (0, 2, 1)), tl.permute(odd, (0, 2, 1)), element)


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
    KERNEL_SIZE: tl.constexpr,
    PADDING: tl.constexpr,
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

    Writes weight_sums[program, channel, row, column] and bias_sums[program, channel].
    """
    element = input_ptr.dtype.element_ty
    groups = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0) // groups
    first_channel = (tl.program_id(0) % groups) * CHANNELS
    word = tl.arange(0, CHANNELS // 2)
    word_exists = tl.max_constancy(first_channel + 2 * word < channels, [4])[:, None, None]
    word = word[:, None, None]
    products = ()
    for _ in tl.static_range(KERNEL_SIZE):
        products = products + (tl.zeros((CHANNELS, WINDOW, COLUMNS), dtype=tl.float32),)
    ones = tl.full((CHANNELS, 16, STRIPS), 1.0, dtype=element)
    bias_sums = tl.zeros((CHANNELS, 16, COLUMNS), dtype=tl.float32)
    if BANDED:
        steps = band_rows
    else:
        steps = height

    for block in range(program, tl.cdiv(strips, STRIPS), programs):
        inputs = ()
        grads = ()
        input_masks = ()
        grad_masks = ()
        first_rows = ()
        for odd in tl.static_range(2):
            exists, image, first_row, first_column = locate_strips(
                block, strips, bands, band_rows, WIDTH, STRIPS, COLUMNS, BANDED, odd, 2
            )
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
            grad_offset = strip_offset(
                image,
                grad_image_stride,
                first_channel,
                grad_channel_stride,
                first_row,
                GRAD_ROW_STRIDE,
                8,
                BANDED,
            )
            exists = exists[None, :, None] & word_exists
            first_column = first_column[None, :, None]
            input_column = first_column - OFFSET + tl.arange(0, WINDOW)[None, None, :]
            grad_column = first_column + tl.arange(0, COLUMNS)[None, None, :]
            inputs = inputs + (
                as_words(input_ptr)
                + (
                    (input_offset // 2)[None, :, None]
                    + input_column.to(tl.int64) * (INPUT_PIXEL_STRIDE // 2)
                    + word
                ),
            )
            grads = grads + (
                as_words(grad_ptr)
                + (
                    (grad_offset // 2)[None, :, None]
                    + grad_column.to(tl.int64) * (GRAD_PIXEL_STRIDE // 2)
                    + word
                ),
            )
            input_masks = input_masks + (exists & (input_column >= 0) & (input_column < WIDTH),)
            grad_masks = grad_masks + (exists & (grad_column < WIDTH),)
            first_rows = first_rows + (first_row[None, :, None],)
        # Rows of the output gradient that meet an input row, from the bottom up.
        recent = ()
        for back in tl.static_range(KERNEL_SIZE - 1):
            recent = recent + (
                _load_row(
                    grads,
                    grad_masks,
                    PADDING - 1 - back,
                    first_rows,
                    height,
                    GRAD_ROW_STRIDE,
                    element,
                    BANDED,
                    True,
                ),
            )
        for step in tl.range(0, tl.cdiv(steps, ROWS), num_stages=STAGES):
            for unrolled in tl.static_range(ROWS):
                row = step * ROWS + unrolled
                window = _load_row(
                    inputs,
                    input_masks,
                    row,
                    first_rows,
                    height,
                    INPUT_ROW_STRIDE,
                    element,
                    BANDED,
                    MASK_ROWS,
                )
                grad = _load_row(
                    grads,
                    grad_masks,
                    row + PADDING,
                    first_rows,
                    height,
                    GRAD_ROW_STRIDE,
                    element,
                    BANDED,
                    True,
                )
                recent = (grad,) + recent
                updated = ()
                for filter_row in tl.static_range(KERNEL_SIZE):
                    updated = updated + (
                        tl.dot(
                            window,
                            tl.permute(recent[filter_row], (0, 2, 1)),
                            products[filter_row],
                        ),
                    )
                products = updated
                if bias_sums_ptr is not None:
                    bias_sums = tl.dot(ones, tl.permute(recent[PADDING], (0, 2, 1)), bias_sums)
                recent = recent[: KERNEL_SIZE - 1]

    channel = first_channel + tl.arange(0, CHANNELS)[:, None]
    tap = tl.arange(0, 16)[None, :]
    share = program.to(tl.int64) * channels + channel
    for filter_row in tl.static_range(KERNEL_SIZE):
        tl.store(
            weight_sums_ptr
            + (share * (KERNEL_SIZE * KERNEL_SIZE) + filter_row * KERNEL_SIZE + tap),
            _diagonal_sums(products[filter_row], OFFSET - PADDING),
            mask=(tap < KERNEL_SIZE) & (channel < channels),
        )
    if bias_sums_ptr is not None:
        # All 16 rows of the product are the same.
        tl.store(
            bias_sums_ptr + share + tap,
            tl.sum(bias_sums, axis=2),
            mask=(tap == 0) & (channel < channels),
        )
