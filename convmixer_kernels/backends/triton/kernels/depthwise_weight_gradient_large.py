"""Weight and bias gradient of filters that reach over up to 31 columns, summed in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import BAND_COLUMNS
from convmixer_kernels.backends.triton.kernels.diagonals import MOST_LARGE_TAPS, sum_large_diagonals
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    locate_tiles,
    row_exists,
    row_offsets,
    sum_tiles,
    tile_pointers,
)

_RUN_TIME_SIZES = (
    *("tiles", "channels", "height", "splits", "filter_height", "filter_width"),
    *("row_dilation", "column_dilation", "padding", "margin"),
    *("input_image_stride", "input_channel_stride", "grad_image_stride", "grad_channel_stride"),
)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def weight_gradient_large_kernel(
    input_ptr,
    grad_ptr,
    weight_sums_ptr,
    bias_sums_ptr,
    tiles,
    channels,
    height,
    splits,
    filter_height,
    filter_width,
    row_dilation,
    column_dilation,
    padding,
    margin,
    input_image_stride,
    input_channel_stride,
    grad_image_stride,
    grad_channel_stride,
    WIDTH: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    FILTER_ROWS: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sum the gradients. Grid: (channels * splits, groups of FILTER_ROWS rows of the filter).

    A program sums the products of its rows of the filter in registers. Rows of the image that are
    `row_dilation` apart meet the same rows of the gradient, so they follow one another.
    """
    CHUNKS: tl.constexpr = (WINDOW + BAND_COLUMNS - 1) // BAND_COLUMNS
    tl.static_assert(CHUNKS * BAND_COLUMNS == WINDOW, "products would end beyond the window")
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    grad = Planes(grad_ptr, grad_image_stride, grad_channel_stride, WIDTH)
    split = tl.program_id(0) // channels
    channel = (tl.program_id(0) % channels).to(tl.int64)
    first_filter_row = tl.program_id(1) * FILTER_ROWS
    i = tl.arange(0, BAND_COLUMNS)[:, None]
    j = tl.arange(0, TILE_COLUMNS)[None, :]
    products = ()
    for _ in tl.static_range(FILTER_ROWS * CHUNKS):
        products = products + (tl.zeros((BAND_COLUMNS, TILE_COLUMNS), dtype=tl.float32),)

    for group in range(split, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(group, tiles, 1, height, WIDTH, TILES, False)
        # The input window is loaded transposed, 16 columns at a time.
        column = located.first_column[None, :] - LEFT + i
        offset = row_offsets(input, located, channel, ALIGNMENT, False)
        inputs = input_ptr + (offset[None, :] + column.to(tl.int64))
        input_masks = ()
        for chunk in tl.static_range(CHUNKS):
            at = column + chunk * BAND_COLUMNS
            input_masks = input_masks + (located.exists[None, :] & (at >= 0) & (at < WIDTH),)
        column = located.first_column[:, None] + j
        grad_mask = located.exists[:, None] & (column < WIDTH)
        grads = tile_pointers(grad, located, channel, 0, column, ALIGNMENT, False)
        for phase in range(0, row_dilation):
            # Input row `phase + row_dilation * step` and row r of this program's meet in row
            # `newest + row_dilation * (step - r)` of the gradient.
            newest = phase + padding - first_filter_row * row_dilation
            first = tl.cdiv(tl.maximum(-newest, 0), row_dilation)
            last = tl.cdiv(tl.maximum(height - newest, 0), row_dilation) + (FILTER_ROWS - 1)
            last = tl.minimum(last, tl.cdiv(tl.maximum(height - phase, 0), row_dilation))
            # The rows of the gradient that an input row meets, from the bottom up.
            grad_rows = ()
            for back in tl.static_range(1, FILTER_ROWS):
                row = newest + (first - back) * row_dilation
                mask = row_exists(row, 0, height, False, True)
                row_start = tl.cast(row, tl.int64) * WIDTH
                grad_row = tl.load(grads + row_start, mask=grad_mask & mask, other=0.0)
                grad_rows = grad_rows + (grad_row,)
            for step in tl.range(0, tl.cdiv(last - first, UNROLLED_ROWS), num_stages=STAGES):
                for unrolled in tl.static_range(UNROLLED_ROWS):
                    advance = (first + step * UNROLLED_ROWS + unrolled) * row_dilation
                    row = newest + advance
                    mask = row_exists(row, 0, height, False, True)
                    row_start = tl.cast(row, tl.int64) * WIDTH
                    grad_row = tl.load(grads + row_start, mask=grad_mask & mask, other=0.0)
                    grad_rows = (grad_row,) + grad_rows
                    row = phase + advance
                    mask = row_exists(row, 0, height, False, True)
                    row_start = tl.cast(row, tl.int64) * WIDTH
                    window = ()
                    for chunk in tl.static_range(CHUNKS):
                        pointers = inputs + (row_start + chunk * BAND_COLUMNS)
                        loaded = tl.load(pointers, mask=input_masks[chunk] & mask, other=0.0)
                        window = window + (loaded,)
                    updated = ()
                    for filter_row in tl.static_range(FILTER_ROWS):
                        for chunk in tl.static_range(CHUNKS):
                            product = tl.dot(
                                window[chunk],
                                grad_rows[filter_row],
                                products[filter_row * CHUNKS + chunk],
                            )
                            updated = updated + (product,)
                    products = updated
                    grad_rows = grad_rows[: FILTER_ROWS - 1]

    entry = split * channels + channel
    reach = tl.arange(0, MOST_LARGE_TAPS)
    column = reach // column_dilation
    is_tap = (column < filter_width) & (reach % column_dilation == 0)
    for number in tl.static_range(FILTER_ROWS):
        filter_row = first_filter_row + number
        tl.store(
            weight_sums_ptr + ((entry * filter_height + filter_row) * filter_width + column),
            sum_large_diagonals(products[number * CHUNKS : (number + 1) * CHUNKS], margin),
            mask=is_tap & (filter_row < filter_height),
        )
    if bias_sums_ptr is not None and first_filter_row == 0:
        total = sum_tiles(grad, channel, split, splits, tiles, height, WIDTH, ALIGNMENT, TILES)
        tl.store(bias_sums_ptr + entry, total)
