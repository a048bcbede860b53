"""Tiles of the images, their addresses, and the rows of them that exist.

A *tile* is eight adjacent output columns of one image, or of one of the row blocks into which the
image is cut. The tiles of a program are the rows (M) of its matrix products. No tile needs another,
and any batch size and any image size has enough of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import shape_key

TILE_COLUMNS = tl.constexpr(shape_key.TILE_COLUMNS)


class Planes(NamedTuple):
    """A planar tensor as the kernels address it; strides in elements.

    Args:
        pointer: first element, None for a tensor that is left out.
        width: distance of rows, a compile-time constant.
    """

    pointer: Any
    image_stride: Any
    channel_stride: Any
    width: Any


class Tiles(NamedTuple):
    """The tiles that a program works on at a time; each field is (TILES,).

    Args:
        exists: False for what is beyond the last tile.
        first_row: the row of the image that the program counts as its row 0.
    """

    exists: Any
    image: Any
    first_row: Any
    first_column: Any


def run_time_sizes(*tensors: str) -> tuple[str, ...]:
    """Name the integer parameters for whose values a kernel is not compiled anew.

    They are separate parameters because Triton specialises the members of a tuple whatever
    `do_not_specialize` says. The width is a constant instead, which saves an addition for every
    address in the main loop.
    """
    names = ["tiles", "channels", "height", "row_blocks", "block_rows", "splits"]
    for tensor in tensors:
        names += [f"{tensor}_image_stride", f"{tensor}_channel_stride"]
    return tuple(names)


@triton.jit
def locate_tiles(
    group,
    tiles,
    row_blocks,
    block_rows,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    HALO: tl.constexpr = 0,
):
    """Locate the TILES tiles of a group; row 0 of a row block is HALO rows above it."""
    TILES_ACROSS: tl.constexpr = (WIDTH + TILE_COLUMNS - 1) // TILE_COLUMNS
    tile = group * TILES + tl.arange(0, TILES)
    first_column = (tile % TILES_ACROSS).to(tl.int32) * TILE_COLUMNS
    image = tile // TILES_ACROSS
    first_row = tl.zeros((TILES,), dtype=tl.int32)
    if CUT_IMAGES:
        first_row += (image % row_blocks).to(tl.int32) * block_rows
        image = image // row_blocks
        if HALO > 0:
            first_row -= HALO
    return Tiles(tile < tiles, image.to(tl.int64), first_row, first_column)


@triton.jit
def locate_row_blocks(
    group,
    tiles,
    row_blocks,
    BLOCK_ROWS: tl.constexpr,
    row_step,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
):
    """Locate the TILES tiles of a group in row blocks of BLOCK_ROWS rows, `row_step` rows apart.

    The first `row_step` row blocks begin in the first `row_step` rows; some rows of a row block may
    be below the image.
    """
    located = locate_tiles(group, tiles, row_blocks, 1, WIDTH, TILES, True)
    block = located.first_row
    first_row = block % row_step + block // row_step * (BLOCK_ROWS * row_step)
    return Tiles(located.exists, located.image, first_row, located.first_column)


@triton.jit
def find_input_rows(first_row, height, padding, filter_rows, row_step, BLOCK_ROWS: tl.constexpr):
    """Find the input rows that meet the filter in some tile of `locate_row_blocks`.

    Input row t of a tile is `padding` rows above its first one and t * `row_step` further down. It
    meets row t - n of the filter in output row n of the tile.

    Returns:
        The first t and the one after the last.
    """
    lowest = tl.max(first_row, axis=0)
    highest = tl.min(first_row, axis=0)
    first = tl.cdiv(tl.maximum(padding - lowest, 0), row_step)
    last = tl.cdiv(tl.maximum(height + padding - highest, 0), row_step)
    return first, tl.minimum(last, filter_rows + (BLOCK_ROWS - 1))


@triton.jit
def row_offsets(planes, tiles, channel, ALIGNMENT: tl.constexpr, CUT_IMAGES: tl.constexpr):
    """Return the offsets of the first rows of the tiles, in elements: (TILES,).

    The compiler is told that planes begin, and rows lie, at multiples of ALIGNMENT.
    """
    offset = tl.multiple_of(
        tiles.image * planes.image_stride + channel * planes.channel_stride, [ALIGNMENT]
    )
    if CUT_IMAGES:
        offset += tiles.first_row.to(tl.int64) * planes.width
    return offset


@triton.jit
def tile_pointers(
    planes,
    tiles,
    channel,
    row,
    column,
    ALIGNMENT: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
):
    """Return pointers to row `row` (a number or (TILES, n)) and columns `column`: (TILES, n)."""
    offset = row_offsets(planes, tiles, channel, ALIGNMENT, CUT_IMAGES)
    offset = offset[:, None] + column.to(tl.int64)
    return planes.pointer + (offset + row * planes.width)


@triton.jit
def row_exists(row, first_row, height, CUT_IMAGES: tl.constexpr, MASK_ROWS: tl.constexpr):
    """Tell of each tile whether its row `row` is in the image: a scalar if all are alike."""
    if CUT_IMAGES:
        return (first_row + row >= 0) & (first_row + row < height)
    elif MASK_ROWS:
        return (row >= 0) & (row < height)
    else:
        return True


@triton.jit
def output_row_exists(
    row,
    steps,
    first_row,
    height,
    KERNEL_SIZE: tl.constexpr,
    PADDING_BELOW: tl.constexpr,
    CUT_IMAGES: tl.constexpr,
    MASK_ROWS: tl.constexpr,
):
    """Tell whether to store the output row that input row `row` completes, PADDING_BELOW above."""
    if CUT_IMAGES:
        inside = row_exists(row - PADDING_BELOW, first_row, height, CUT_IMAGES, MASK_ROWS)
        return (row >= KERNEL_SIZE - 1) & (row < steps) & inside
    elif MASK_ROWS:
        return (row >= PADDING_BELOW) & (row < height + PADDING_BELOW)
    else:
        return row >= PADDING_BELOW


@triton.jit
def sum_tiles(
    planes,
    channel,
    split,
    splits,
    tiles,
    height,
    WIDTH: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    TILES: tl.constexpr,
):
    """Sum in float32 all pixels of the images of which a split of a channel has the tiles."""
    sums = tl.zeros((TILES, TILE_COLUMNS), dtype=tl.float32)
    for group in range(split, tl.cdiv(tiles, TILES), splits):
        located = locate_tiles(group, tiles, 1, height, WIDTH, TILES, False)
        column = located.first_column[:, None] + tl.arange(0, TILE_COLUMNS)[None, :]
        mask = located.exists[:, None] & (column < WIDTH)
        pointers = tile_pointers(planes, located, channel, 0, column, ALIGNMENT, False)
        for row in range(height):
            row_start = tl.cast(row, tl.int64) * WIDTH
            sums += tl.load(pointers + row_start, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(tl.sum(sums, axis=1), axis=0)
