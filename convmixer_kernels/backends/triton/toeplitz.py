"""Rows of a filter as banded Toeplitz matrices, input columns by output columns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tap(
    filter_ptr,
    row: tl.constexpr,
    column: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """One element of a filter, or of the filter turned by half a turn; or of several filters."""
    INDEX: tl.constexpr = row * KERNEL_SIZE + column
    if FLIPPED:
        return tl.load(filter_ptr + (KERNEL_SIZE * KERNEL_SIZE - 1 - INDEX))
    else:
        return tl.load(filter_ptr + INDEX)


@triton.jit
def select_taps(
    matrix,
    tap,
    filter_ptr,
    row: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """`matrix` with tap[i, j] of a filter row wherever tap[i, j] is one of its columns.

    Loading such a matrix as a tensor takes fewer instructions, but then the compiler keeps it in
    shared memory and reads it again for every row of the image. Selected from scalars, it stays in
    registers in the layout that the matrix product wants.
    """
    for column in tl.static_range(KERNEL_SIZE):
        matrix = tl.where(
            tap == column, load_tap(filter_ptr, row, column, KERNEL_SIZE, FLIPPED), matrix
        )
    return matrix


@triton.jit
def toeplitz_matrix(
    filter_ptr,
    row: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """What 16 input columns add to each output: T[i, j] = filter[row, i - j - SHIFT]."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, COLUMNS)[None, :]
    matrix = tl.zeros((16, COLUMNS), dtype=filter_ptr.dtype.element_ty)
    return select_taps(matrix, i - j - SHIFT, filter_ptr, row, KERNEL_SIZE, FLIPPED)


@triton.jit
def toeplitz_pair(
    filter_ptr,
    row: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """Eight input columns of filter row `row` above eight of row `row + 1`: (16, COLUMNS).

    Rows that the filter does not have are zero.
    """
    i = tl.arange(0, 16)[:, None]
    tap = i % 8 - tl.arange(0, COLUMNS)[None, :] - SHIFT
    matrix = tl.zeros((16, COLUMNS), dtype=filter_ptr.dtype.element_ty)
    if row >= 0:
        upper = tl.where(i < 8, tap, KERNEL_SIZE)
        matrix = select_taps(matrix, upper, filter_ptr, row, KERNEL_SIZE, FLIPPED)
    if row < KERNEL_SIZE - 1:
        lower = tl.where(i >= 8, tap, KERNEL_SIZE)
        matrix = select_taps(matrix, lower, filter_ptr, row + 1, KERNEL_SIZE, FLIPPED)
    return matrix
