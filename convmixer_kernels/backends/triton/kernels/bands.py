"""Bands: each row of a filter as a banded (Toeplitz) matrix, input columns by output columns.

The *input window* of a tile is the input columns that its outputs depend on, K of the matrix
products. It begins LEFT columns left of the tile, MARGIN = LEFT - padding columns before the first
tap of the first output: band[i, j] = filter[row, i - j - MARGIN].
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import TILE_COLUMNS

# Rows of a band that a matrix product takes at a time.
BAND_COLUMNS = tl.constexpr(16)


@triton.jit
def check_window(WINDOW: tl.constexpr, MARGIN: tl.constexpr, KERNEL_SIZE: tl.constexpr):
    """Refuse to compile a kernel whose window of WINDOW columns does not hold every tap."""
    tl.static_assert(MARGIN >= 0, "the input window begins right of the first tap")
    tl.static_assert(
        MARGIN + KERNEL_SIZE + TILE_COLUMNS - 2 < WINDOW,
        "the input window ends left of the last tap",
    )


@triton.jit
def load_tap(
    filter_ptr,
    row: tl.constexpr,
    column: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """Load a tap of a filter; FLIPPED turns the filter by half a turn."""
    INDEX: tl.constexpr = row * KERNEL_SIZE + column
    if FLIPPED:
        return tl.load(filter_ptr + (KERNEL_SIZE * KERNEL_SIZE - 1 - INDEX))
    else:
        return tl.load(filter_ptr + INDEX)


@triton.jit
def _select_taps(
    band,
    tap,
    filter_ptr,
    row: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """Set band[i, j] to tap[i, j] of a filter row wherever the row has such a tap.

    Loading a band as a tensor takes fewer instructions, but then the compiler keeps it in shared
    memory and reads it again for every row of the image. Selected from scalars, it stays in
    registers in the layout that the matrix product wants.
    """
    for column in tl.static_range(KERNEL_SIZE):
        band = tl.where(
            tap == column, load_tap(filter_ptr, row, column, KERNEL_SIZE, FLIPPED), band
        )
    return band


@triton.jit
def load_bands(filter_ptr, MARGIN: tl.constexpr, KERNEL_SIZE: tl.constexpr, FLIPPED: tl.constexpr):
    """Load a filter as the bands of its rows over 16 input columns: k times (16, 8)."""
    tl.static_assert(
        filter_ptr.dtype.element_ty.primitive_bitwidth == 16, "float32 would be rounded to tf32"
    )
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, TILE_COLUMNS)[None, :]
    bands = ()
    for row in tl.static_range(KERNEL_SIZE):
        band = tl.zeros((16, TILE_COLUMNS), dtype=filter_ptr.dtype.element_ty)
        band = _select_taps(band, i - j - MARGIN, filter_ptr, row, KERNEL_SIZE, FLIPPED)
        bands = bands + (band,)
    return bands


@triton.jit
def load_band_pairs(
    filter_ptr, MARGIN: tl.constexpr, KERNEL_SIZE: tl.constexpr, FLIPPED: tl.constexpr
):
    """Load a filter as bands over columns 16 to 23 of the window, two rows at a time.

    Pair p is eight input columns of filter row p - 1 above eight of row p, (16, 8); it has zeros in
    place of rows that the filter lacks.

    Returns:
        k + 1 pairs.
    """
    i = tl.arange(0, 16)[:, None]
    tap = i % 8 - tl.arange(0, TILE_COLUMNS)[None, :] - (MARGIN - 16)
    pairs = ()
    for row in tl.static_range(-1, KERNEL_SIZE):
        pair = tl.zeros((16, TILE_COLUMNS), dtype=filter_ptr.dtype.element_ty)
        if row >= 0:
            upper = tl.where(i < 8, tap, KERNEL_SIZE)
            pair = _select_taps(pair, upper, filter_ptr, row, KERNEL_SIZE, FLIPPED)
        if row < KERNEL_SIZE - 1:
            lower = tl.where(i >= 8, tap, KERNEL_SIZE)
            pair = _select_taps(pair, lower, filter_ptr, row + 1, KERNEL_SIZE, FLIPPED)
        pairs = pairs + (pair,)
    return pairs


@triton.jit
def multiply_row(window, bands, accumulators, start, KERNEL_SIZE: tl.constexpr):
    """Add what an input row contributes to the output rows in progress, the newest first.

    Args:
        accumulators: the k - 1 output rows in progress.
        start: the accumulator of the output row that begins with this input row.

    Returns:
        k accumulators, the last of them finished.
    """
    updated = ()
    for filter_row in tl.static_range(KERNEL_SIZE):
        total = start
        if filter_row > 0:
            total = accumulators[filter_row - 1]
        updated = updated + (tl.dot(window, bands[filter_row], total),)
    return updated


@triton.jit
def multiply_two_rows(
    upper, lower, right, bands, pairs, accumulators, start, KERNEL_SIZE: tl.constexpr
):
    """Add what two input rows contribute to the output rows in progress, the newest first.

    Args:
        upper, lower: the first 16 columns of the input windows of both rows.
        right: the last 8 columns of the upper row beside those of the lower row.

    Returns:
        k + 1 accumulators, the last two of them finished.
    """
    updated = ()
    for number in tl.static_range(KERNEL_SIZE + 1):
        total = start
        if number >= 2:
            total = accumulators[number - 2]
        if number >= 1:
            total = tl.dot(upper, bands[number - 1], total)
        if number < KERNEL_SIZE:
            total = tl.dot(lower, bands[number], total)
        total = tl.dot(right, pairs[number], total)
        updated = updated + (total,)
    return updated
