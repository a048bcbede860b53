"""Strips of the image, where they lie in memory, and which of their rows exist.

A *strip* is a tile of adjacent columns in a band of rows of one image. Strips are the rows of the
matrix products: they need nothing of one another, and there are enough of them at any batch size
and any image size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_strips(
    block,
    strips,
    bands,
    band_rows,
    WIDTH: tl.constexpr,
    STRIPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BANDED: tl.constexpr,
    FIRST: tl.constexpr = 0,
    EVERY: tl.constexpr = 1,
):
    """The strips of a block: whether they exist, image, first row, first column; each (STRIPS,).

    With EVERY = 2 only the even (FIRST = 0) or the odd (FIRST = 1) ones, (STRIPS / 2,).
    """
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    strip = block * STRIPS + FIRST + EVERY * tl.arange(0, STRIPS // EVERY)
    first_column = (strip % TILES).to(tl.int32) * COLUMNS
    image = strip // TILES
    first_row = tl.zeros((STRIPS // EVERY,), dtype=tl.int32)
    if BANDED:
        first_row += (image % bands).to(tl.int32) * band_rows
        image = image // bands
    return strip < strips, image.to(tl.int64), first_row, first_column


@triton.jit
def strip_offset(
    image,
    image_stride,
    channel,
    channel_stride,
    first_row,
    ROW_STRIDE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BANDED: tl.constexpr,
):
    """Where the image rows `first_row` of a channel begin, in elements: (STRIPS,).

    The compiler is told that planes begin, and rows lie, at multiples of ALIGNMENT.
    """
    offset = tl.multiple_of(image * image_stride + channel * channel_stride, [ALIGNMENT])
    if BANDED:
        offset += first_row.to(tl.int64) * ROW_STRIDE
    return offset


@triton.jit
def row_exists(row, first_row, height, BANDED: tl.constexpr, MASK_ROWS: tl.constexpr):
    """Whether row `row` of each strip is in the image: (STRIPS,), or a scalar if all are alike."""
    if BANDED:
        return (first_row + row >= 0) & (first_row + row < height)
    elif MASK_ROWS:
        return (row >= 0) & (row < height)
    else:
        return True


@triton.jit
def store_mask(
    row,
    steps,
    first_row,
    height,
    KERNEL_SIZE: tl.constexpr,
    BELOW: tl.constexpr,
    BANDED: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Whether the output row that is done after input row `row`, BELOW rows above it, is wanted."""
    if BANDED:
        inside = row_exists(row - BELOW, first_row, height, BANDED, MASK_ROWS)
        return (row >= KERNEL_SIZE - 1) & (row < steps) & inside
    elif MASK_ROWS:
        return (row >= BELOW) & (row < height + BELOW)
    else:
        return row >= BELOW
