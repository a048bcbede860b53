"""Bands of filters that are too large for them to stay in registers: written to memory once."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.bands import BAND_COLUMNS
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

    Writes bands[channel, row, j, i], a band of the module `bands` transposed, for windows that
    begin `margin` columns before the first tap of the first output. FLIPPED turns the filters by
    half a turn.
    """
    CHUNKS: tl.constexpr = (WINDOW + BAND_COLUMNS - 1) // BAND_COLUMNS
    tl.static_assert(CHUNKS * BAND_COLUMNS == WINDOW, "products would end beyond the window")
    i = tl.arange(0, BAND_COLUMNS)[None, None, :]
    j = tl.arange(0, TILE_COLUMNS)[None, :, None]
    band = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    row = band
    if FLIPPED:
        # The channel stays, its last row comes first.
        row = band - 2 * (band % filter_height) + (filter_height - 1)
    exists = band < bands
    for chunk in tl.static_range(CHUNKS):
        at = i + chunk * BAND_COLUMNS
        reach = at - j - margin
        column = reach // column_dilation
        is_tap = (reach >= 0) & (column < filter_width) & (reach % column_dilation == 0)
        if FLIPPED:
            column = filter_width - 1 - column
        tap = tl.load(filter_ptr + (row * filter_width + column), mask=exists & is_tap, other=0.0)
        tl.store(bands_ptr + ((band * TILE_COLUMNS + j) * WINDOW + at), tap, mask=exists)
