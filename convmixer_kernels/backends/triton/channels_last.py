"""Tiles of tensors whose channels are adjacent: wide accesses, and matrices of single channels.

Memory is read by 16 bytes, eight channels of a pixel. A matrix product wants the opposite: two
neighbours along its inner dimension in one register. So the even and the odd neighbours are loaded
apart, as 32-bit words of two channels each; halves of words change places in registers; and what
passes through shared memory to reach the lanes of the product are whole words without bank
conflicts. (Left to itself, the compiler moves single 16-bit numbers, sixteen to a bank.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.toeplitz import load_tap


@triton.jit
def as_words(pointer):
    """The same address, of 32-bit words: offsets in elements must be halved."""
    return pointer.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def pair_up(even, odd, dtype: tl.constexpr):
    """(CHANNELS, STRIPS, 2 * n) of `dtype`, given its even and its odd columns.

    Args:
        even, odd: (CHANNELS / 2, STRIPS, n) 32-bit words of two channels.
    """
    CHANNELS: tl.constexpr = 2 * even.shape[0]
    ROWS: tl.constexpr = even.shape[1]
    PAIRS: tl.constexpr = even.shape[2]
    first = (even & 0xFFFF) | (odd << 16)
    second = ((even >> 16) & 0xFFFF) | (odd & -0x10000)
    words = tl.permute(tl.join(first, second), (0, 3, 1, 2))
    words = tl.reshape(words, (CHANNELS, ROWS, PAIRS))
    low = words.to(tl.int16).to(dtype, bitcast=True)
    high = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.reshape(tl.join(low, high), (CHANNELS, ROWS, 2 * PAIRS))


@triton.jit
def toeplitz_matrices(
    filter_ptr,
    channel,
    row: tl.constexpr,
    SHIFT: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """What WINDOW input columns add to each output: T[c, i, j] = filter[c, row, i - j - SHIFT].

    A tap is loaded for all channels at once and selected where it belongs: see
    `toeplitz.select_taps`.
    """
    tap = tl.arange(0, WINDOW)[None, :, None] - tl.arange(0, COLUMNS)[None, None, :] - SHIFT
    matrices = tl.zeros((channel.shape[0], WINDOW, COLUMNS), dtype=filter_ptr.dtype.element_ty)
    filters = filter_ptr + channel * (KERNEL_SIZE * KERNEL_SIZE)
    for column in tl.static_range(KERNEL_SIZE):
        value = load_tap(filters, row, column, KERNEL_SIZE, FLIPPED)
        matrices = tl.where(tap == column, value[:, None, None], matrices)
    return matrices
