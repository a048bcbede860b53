"""Bands of filters that are too large for them to stay in registers: written to memory once."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import TILE_COLUMNS


@triton.jit(
    do_not_specialize=("bands", "filter_height", "filter_width", "column_dilation", "margin")
)
def expand_bands_kernel(
    filter_ptr,
    bands_ptr,
    bands,
    filter_height,
    filter_width,
    column_dilation,
    margin,
    FLIPPED: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the bands of all rows of all filters. Grid: groups of ROWS bands.

    A band is that of `bands`, (WINDOW, 8), transposed: bands[channel, row, j, i], where windows
    begin `margin` columns before the first tap of the first output. FLIPPED turns the filters by
    half a turn.
    """
    i = tl.arange(0, 16)[None, None, :]
    j = tl.arange(0, TILE_COLUMNS)[None, :, None]
    band = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    row = band
    if FLIPPED:
        # The channel stays, its last row comes first.
        row = band - 2 * (band % filter_height) + (filter_height - 1)
    for chunk in tl.static_range(WINDOW // 16):
        reach = i + 16 * chunk - j - margin
        column = reach // column_dilation
        is_tap = (reach >= 0) & (column < filter_width) & (reach % column_dilation == 0)
        if FLIPPED:
            column = filter_width - 1 - column
        exists = band < bands
        tap = tl.load(filter_ptr + (row * filter_width + column), mask=exists & is_tap, other=0.0)
        to = bands_ptr + (band * (TILE_COLUMNS * WINDOW) + j * WINDOW + (i + 16 * chunk))
        tl.store(to, tap, mask=exists)
