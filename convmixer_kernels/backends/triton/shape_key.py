"""The shape key: those properties of the tensors on which the choice of tile sizes depends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convmixer_kernels import layout

KERNEL_SIZES = (3, 5, 7, 8, 9, 11, 13, 15)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Output columns of a tile: N of the smallest matrix product of the tensor cores.
TILE_COLUMNS = 8
# Input columns that a matrix product takes at a time: K.
_PRODUCT_COLUMNS = 16
_VECTOR_BYTES = 16
# The rows and columns that a filter may reach over: 32 diagonals are summed for its gradient.
MOST_EXTENT = 31


@dataclass(frozen=True)
class ShapeKey:
    """One convolution or one of its gradients: tensors of equal shape that a kernel accesses.

    Args:
        kernel_size: of a square filter; of any other, the columns that it reaches over.
        strides: (row, pixel) of each tensor, in elements.
        alignment: the largest power of two, in elements and up to 16 bytes, that divides the width
            and every stride and address of all; 1 where neighbours in a row are not neighbours in
            memory.
        channels_last: whether all can be accessed by eight neighbouring channels at a time.
        fused: whether the epilogue does more than round.
    """

    images: int
    channels: int
    height: int
    width: int
    kernel_size: int
    dtype: torch.dtype
    strides: tuple[tuple[int, int], ...]
    alignment: int
    channels_last: bool
    fused: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Tensor], kernel_size: int, fused: bool = False) -> ShapeKey:
        """Describe `tensors`, each (N, C, H, W) of one dtype; meta tensors count as aligned."""
        images, channels, height, width = tensors[0].shape
        strides = tuple((_stride(each, 2, width), _stride(each, 3, 1)) for each in tensors)
        element_size = tensors[0].element_size()
        alignment = math.gcd(width, _VECTOR_BYTES // element_size, *(row for row, _ in strides))
        for tensor in tensors:
            position = _address(tensor) // element_size
            alignment = math.gcd(alignment, _stride(tensor, 0, 0), _stride(tensor, 1, 0), position)
        if any(pixel != 1 for _, pixel in strides):
            alignment = 1
        return cls(
            images,
            channels,
            height,
            width,
            kernel_size,
            tensors[0].dtype,
            strides,
            alignment,
            channels_last=all(map(_has_vectors_of_channels, tensors)),
            fused=fused,
        )

    def of_rounded_batch(self) -> ShapeKey:
        """Return the key by which tiles are chosen: the number of images rounded to a power of two.

        Batches of any size take the kernels of a few, which are chosen and compiled once.
        """
        return replace(self, images=1 << (self.images - 1).bit_length())

    @property
    def tensor_cores(self) -> bool:
        return self.dtype != torch.float32

    @property
    def wide(self) -> bool:
        """True if the input window of a tile has more than 16 columns."""
        return self.kernel_size > 9

    @property
    def left(self) -> int:
        """Columns of the input window left of the tile; a multiple of 4, so that loads align."""
        return 4 * math.ceil(self.kernel_size // 2 / 4)

    @property
    def window(self) -> int:
        """Columns of the input window, rounded up to what matrix products take."""
        columns = self.left + TILE_COLUMNS + self.kernel_size // 2
        return _PRODUCT_COLUMNS * math.ceil(columns / _PRODUCT_COLUMNS)

    @property
    def tiles_across(self) -> int:
        return math.ceil(self.width / TILE_COLUMNS)


def _has_vectors_of_channels(tensor: Tensor) -> bool:
    """Tell whether a tensor holds 16-bit numbers in whole, aligned vectors of eight channels."""
    if tensor.element_size() != 2 or not layout.is_channels_last(tensor):
        return False
    strides = (_stride(tensor, dimension, 0) for dimension in (0, 2, 3))
    aligned = _address(tensor) % _VECTOR_BYTES == 0
    return math.gcd(8, tensor.shape[1], *strides) == 8 and aligned


def _address(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.data_ptr()


def _stride(tensor: Tensor, dimension: int, of_one: int) -> int:
    """A stride, or `of_one` along a dimension of size 1, whose stride means nothing."""
    return tensor.stride(dimension) if tensor.shape[dimension] > 1 else of_one
