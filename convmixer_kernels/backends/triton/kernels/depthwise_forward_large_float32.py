"""Forward pass and input gradient of filters of any size and dilation in float32."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    find_input_rows,
    locate_row_blocks,
    row_exists,
    tile_pointers,
)

_RUN_TIME_SIZES = (
    *("tiles", "height", "row_blocks", "filter_height", "filter_width"),
    *("row_dilation", "column_dilation", "padding", "left_padding"),
    *("input_image_stride", "input_channel_stride", "output_image_stride", "output_channel_stride"),
)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def forward_large_float32_kernel(
    input_ptr,
    filter_ptr,
    bias_ptr,
    output_ptr,
    tiles,
    height,
    row_blocks,
    filter_height,
    filter_width,
    row_dilation,
    column_dilation,
    padding,
    left_padding,
    input_image_stride,
    input_channel_stride,
    output_image_stride,
    output_channel_stride,
    WIDTH: tl.constexpr,
    FLIPPED: tl.constexpr,
    TILES: tl.constexpr,
    OUTPUT_ROWS: tl.constexpr,
):
    """Convolve planes by multiply-adds. Grid: groups of tiles * channels.

    A program computes OUTPUT_ROWS rows of each tile, `row_dilation` rows apart. An input value is
    loaded once for all of them.
    """
    groups = tl.cdiv(tiles, TILES)
    group = tl.program_id(0) % groups
    channel = (tl.program_id(0) // groups).to(tl.int64)
    filter_ptr += channel * filter_height * filter_width
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    output = Planes(output_ptr, output_image_stride, output_channel_stride, WIDTH)
    located = locate_row_blocks(group, tiles, row_blocks, OUTPUT_ROWS, row_dilation, WIDTH, TILES)
    exists = located.exists[:, None]
    first_row = located.first_row[:, None] - padding
    column = located.first_column[:, None] + tl.arange(0, TILE_COLUMNS)[None, :]
    inputs = tile_pointers(input, located, channel, -padding, column - left_padding, 1, True)
    outputs = tile_pointers(output, located, channel, 0, column, 1, True)

    start = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + channel).to(tl.float32)
    sums = ()
    for _ in tl.static_range(OUTPUT_ROWS):
        sums = sums + (start,)
    first, last = find_input_rows(
        located.first_row, height, padding, filter_height, row_dilation, OUTPUT_ROWS
    )
    # Taps that meet the image for some column of it.
    first_tap = tl.cdiv(tl.maximum(left_padding - (WIDTH - 1), 0), column_dilation)
    last_tap = tl.minimum(tl.cdiv(left_padding + WIDTH, column_dilation), filter_width)
    for number in tl.range(first, last):
        row = number * row_dilation
        row_start = tl.cast(row, tl.int64) * WIDTH
        mask = exists & row_exists(row, first_row, height, True, True)
        for tap in tl.range(first_tap, last_tap):
            reach = tap * column_dilation
            input_column = column - left_padding + reach
            value = tl.load(
                inputs + (row_start + reach),
                mask=mask & (input_column >= 0) & (input_column < WIDTH),
                other=0.0,
            )
            updated = ()
            for output_row in tl.static_range(OUTPUT_ROWS):
                filter_row = number - output_row
                inside = (filter_row >= 0) & (filter_row < filter_height)
                index = filter_row * filter_width + tap
                if FLIPPED:
                    index = filter_height * filter_width - 1 - index
                weight = tl.load(filter_ptr + index, mask=inside, other=0.0)
                updated = updated + (sums[output_row] + value * weight,)
            sums = updated
    for output_row in tl.static_range(OUTPUT_ROWS):
        row = output_row * row_dilation
        inside = row_exists(row, located.first_row[:, None], height, True, True)
        tl.store(
            outputs + tl.cast(row, tl.int64) * WIDTH,
            sums[output_row],
            mask=exists & (column < WIDTH) & inside,
        )
