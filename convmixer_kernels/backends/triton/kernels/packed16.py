"""channels_last tiles as packed pairs of 16-bit numbers, and as matrices of single channels.

Memory is read by 16 bytes, eight channels of a pixel. A matrix product wants the opposite: two
neighbours along its inner dimension in one register. So the even and the odd neighbours are loaded
apart, as 32-bit words of two channels each; halves of words change places in registers; and what
passes through shared memory to reach the lanes of the product are whole words without bank
conflicts. (Left to itself, the compiler moves single 16-bit numbers, sixteen to a bank.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.tiles import row_offsets


@triton.jit
def pair_up(even, odd, dtype: tl.constexpr):
    """Return (CHANNELS, TILES, 2 * n) of `dtype`, given its even and its odd columns.

    Args:
        even, odd: (CHANNELS / 2, TILES, n) 32-bit words of two channels.
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
def locate_words(first_channel, channels, CHANNELS: tl.constexpr):
    """Locate the 32-bit words of two channels from `first_channel` on.

    Returns:
        Number of the word and whether its channels exist, each (CHANNELS / 2, 1, 1).
    """
    tl.static_assert(CHANNELS % 8 == 0, "memory is read by vectors of eight channels")
    word = tl.arange(0, CHANNELS // 2)
    exists = tl.max_constancy(first_channel + 2 * word < channels, [4])
    return word[:, None, None], exists[:, None, None]


@triton.jit
def word_pointers(planes, tiles, first_channel, word, column, CUT_IMAGES: tl.constexpr):
    """Return pointers to words of two channels in row 0 of the tiles: (CHANNELS / 2, TILES, n).

    Strides and offsets in elements are multiples of eight, and are halved to count words.
    """
    offset = row_offsets(planes, tiles, first_channel, 8, CUT_IMAGES) // 2
    tl.static_assert(planes.pointer.dtype.element_ty.primitive_bitwidth == 16, "two to a word")
    words = planes.pointer.to(tl.pointer_type(tl.int32), bitcast=True)
    return words + (offset[None, :, None] + column.to(tl.int64) * (planes.pixel_stride // 2) + word)
