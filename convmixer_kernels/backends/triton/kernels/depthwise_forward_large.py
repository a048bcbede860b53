"""Forward pass and input gradient of filters of any height, up to 31 columns and any dilation."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import BAND_COLUMNS
from convmixer_kernels.backends.triton.kernels.tiles import (
    TILE_COLUMNS,
    Planes,
    find_input_rows,
    locate_row_blocks,
    row_exists,
    tile_pointers,
)

# Integer parameters for whose values the kernel is not compiled anew.
_RUN_TIME_SIZES = (
    *("tiles", "height", "row_blocks", "filter_rows", "row_dilation", "padding"),
    *("input_image_stride", "input_channel_stride", "output_image_stride", "output_channel_stride"),
)


@triton.jit
def _load_band(pointers, filter_row, filter_rows, CHUNKS: tl.constexpr):
    """Load the band of a row of the filter, (16, 8) for each 16 columns; zeros beside it."""
    inside = (filter_row >= 0) & (filter_row < filter_rows)
    start = tl.cast(filter_row, tl.int64) * (TILE_COLUMNS * BAND_COLUMNS * CHUNKS)
    band = ()
    for chunk in tl.static_range(CHUNKS):
        at = pointers + (start + chunk * BAND_COLUMNS)
        band = band + (tl.load(at, mask=inside, other=0.0),)
    return band


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def forward_large_kernel(
    input_ptr,
    bands_ptr,
    bias_ptr,
    output_ptr,
    tiles,
    height,
    row_blocks,
    filter_rows,
    row_dilation,
    padding,
    input_image_stride,
    input_channel_stride,
    output_image_stride,
    output_channel_stride,
    WIDTH: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    LEFT: tl.constexpr,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    OUTPUT_ROWS: tl.constexpr,
    UNROLLED_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Convolve planes. Grid: groups of tiles * channels.

    A program computes OUTPUT_ROWS rows of each tile, `row_dilation` rows apart, whose sums stay in
    registers. It reads every input row that they reach once, and multiplies it by the bands of
    OUTPUT_ROWS rows of the filter, of which each input row replaces one.
    """
    CHUNKS: tl.constexpr = (WINDOW + BAND_COLUMNS - 1) // BAND_COLUMNS
    tl.static_assert(CHUNKS * BAND_COLUMNS == WINDOW, "products would end beyond the window")
    groups = tl.cdiv(tiles, TILES)
    group = tl.program_id(0) % groups
    channel = (tl.program_id(0) // groups).to(tl.int64)
    input = Planes(input_ptr, input_image_stride, input_channel_stride, WIDTH)
    output = Planes(output_ptr, output_image_stride, output_channel_stride, WIDTH)
    located = locate_row_blocks(group, tiles, row_blocks, OUTPUT_ROWS, row_dilation, WIDTH, TILES)
    exists = located.exists[:, None]
    first_row = located.first_row[:, None]
    first_column = located.first_column[:, None]

    i = tl.arange(0, BAND_COLUMNS)[None, :]
    column = first_column - LEFT + i
    inputs = tile_pointers(input, located, channel, -padding, column, ALIGNMENT, True)
    masks = ()
    for chunk in tl.static_range(CHUNKS):
        at = column + chunk * BAND_COLUMNS
        masks = masks + (exists & (at >= 0) & (at < WIDTH),)
    j = tl.arange(0, TILE_COLUMNS)[None, :]
    column = first_column + j
    output_mask = exists & (column < WIDTH)
    outputs = tile_pointers(output, located, channel, 0, column, ALIGNMENT, True)
    # A band lies in memory as (8, WINDOW).
    band_pointers = (
        bands_ptr
        + channel * filter_rows * (TILE_COLUMNS * WINDOW)
        + (tl.arange(0, BAND_COLUMNS)[:, None] + j * WINDOW)
    )

    start = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + channel).to(tl.float32)
    sums = ()
    for _ in tl.static_range(OUTPUT_ROWS):
        sums = sums + (start,)
    first, last = find_input_rows(
        located.first_row, height, padding, filter_rows, row_dilation, OUTPUT_ROWS
    )
    first_row -= padding
    # The bands of the filter rows that an input row meets, from the bottom up.
    bands = ()
    for back in tl.static_range(1, OUTPUT_ROWS):
        bands = bands + (_load_band(band_pointers, first - back, filter_rows, CHUNKS),)
    for step in tl.range(0, tl.cdiv(last - first, UNROLLED_ROWS), num_stages=STAGES):
        for unrolled in tl.static_range(UNROLLED_ROWS):
            number = first + step * UNROLLED_ROWS + unrolled
            bands = (_load_band(band_pointers, number, filter_rows, CHUNKS),) + bands
            row = number * row_dilation
            inside = row_exists(row, first_row, height, True, True)
            row_start = tl.cast(row, tl.int64) * WIDTH
            for chunk in tl.static_range(CHUNKS):
                pointers = inputs + (row_start + chunk * BAND_COLUMNS)
                window = tl.load(pointers, mask=masks[chunk] & inside, other=0.0)
                updated = ()
                for output_row in tl.static_range(OUTPUT_ROWS):
                    total = tl.dot(window, bands[output_row][chunk], sums[output_row])
                    updated = updated + (total,)
                sums = updated
            bands = bands[: OUTPUT_ROWS - 1]
    for output_row in tl.static_range(OUTPUT_ROWS):
        row = output_row * row_dilation
        inside = row_exists(row, located.first_row[:, None], height, True, True)
        tl.store(
            outputs + tl.cast(row, tl.int64) * WIDTH,
            sums[output_row].to(output_ptr.dtype.element_ty),
            mask=output_mask & inside,
        )
