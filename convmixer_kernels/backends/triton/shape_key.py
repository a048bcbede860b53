"""The shape key: those properties of the tensors on which the choice of tile sizes depends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    """One convolution or one of its gradients: planar tensors of equal shape.

    Args:
        kernel_size: of a square filter; of any other, the columns that it reaches over.
        alignment: the largest power of two, in elements and up to 16 bytes, that divides the width
            and every stride and address of all.
        fused: whether the epilogue does more than round.
    """

    images: int
    channels: int
    height: int
    width: int
    kernel_size: int
    dtype: torch.dtype
    alignment: int
    fused: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Tensor], kernel_size: int, fused: bool = False) -> ShapeKey:
        """Describe `tensors`, planar (N, C, H, W) of one dtype; meta tensors count as aligned."""
        images, channels, height, width = tensors[0].shape
        element_size = tensors[0].element_size()
        alignment = math.gcd(width, _VECTOR_BYTES // element_size)
        for tensor in tensors:
            position = 0 if tensor.is_meta else tensor.data_ptr() // element_size
            # The stride along a dimension of size 1 means nothing.
            image = tensor.stride(0) if images > 1 else 0
            channel = tensor.stride(1) if channels > 1 else 0
            alignment = math.gcd(alignment, image, channel, position)
        return cls(
            images,
            channels,
            height,
            width,
            kernel_size,
            tensors[0].dtype,
            alignment,
            fused,
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
