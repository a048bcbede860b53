"""From products of input windows and output-gradient tiles to the gradient of a filter row.

For a row of the filter, products of input columns and output-gradient columns are summed over all
tiles and rows, the inner dimension of the matrix products. The gradient of a tap is then the sum
along one diagonal of such a small matrix:

    products[filter row][i, j] = sum of input[row, i - LEFT] * grad[row - filter row, j]
    weight gradient[filter row, tap] = sum over j of products[filter row][j + tap + MARGIN, j]

LEFT and MARGIN = LEFT - padding are those of the forward pass, see `bands`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton import shape_key
from convmixer_kernels.backends.triton.kernels.bands import check_window

# Diagonals that are summed, a power of two; those from KERNEL_SIZE on are not stored.
MOST_TAPS = tl.constexpr(16)
# Those of filters that reach over more columns.
MOST_LARGE_TAPS = tl.constexpr(triton.next_power_of_2(shape_key.MOST_EXTENT))


@triton.jit
def sum_diagonals(products, MARGIN: tl.constexpr, KERNEL_SIZE: tl.constexpr):
    """Sum for each tap its diagonal of `products`.

    Args:
        products: (WINDOW, COLUMNS).

    Returns:
        (MOST_TAPS,).
    """
    WINDOW: tl.constexpr = products.shape[0]
    COLUMNS: tl.constexpr = products.shape[1]
    tl.static_assert(KERNEL_SIZE <= MOST_TAPS, "the gradients of further taps would be lost")
    check_window(WINDOW, MARGIN, KERNEL_SIZE)
    row = tl.arange(0, MOST_TAPS)[:, None] + tl.arange(0, COLUMNS)[None, :] + MARGIN
    inside = row < WINDOW
    diagonals = tl.gather(products, tl.where(inside, row, 0), 0)
    return tl.sum(tl.where(inside, diagonals, 0.0), axis=1)


@triton.jit
def sum_large_diagonals(chunks, margin):
    """Sum the diagonals of products that lie in chunks of their rows, a tuple of (n, COLUMNS).

    Returns:
        (MOST_LARGE_TAPS,), the sums for a window that begins `margin` columns before the first tap.
    """
    ROWS: tl.constexpr = chunks[0].shape[0]
    COLUMNS: tl.constexpr = chunks[0].shape[1]
    row = tl.arange(0, MOST_LARGE_TAPS)[:, None] + tl.arange(0, COLUMNS)[None, :] + margin
    total = tl.zeros((MOST_LARGE_TAPS,), dtype=tl.float32)
    for number in tl.static_range(len(chunks)):
        inside = (row >= number * ROWS) & (row < (number + 1) * ROWS)
        at = tl.where(inside, row - number * ROWS, 0)
        diagonals = tl.gather(chunks[number], at, 0)
        total += tl.sum(tl.where(inside, diagonals, 0.0), axis=1)
    return total
