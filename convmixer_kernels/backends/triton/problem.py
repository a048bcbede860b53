"""What a choice of tile sizes depends on: the GPU, and the problem it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convmixer_kernels import architectures, layout

KERNEL_SIZES = (3, 5, 7, 8, 9, 11, 13, 15)
# Output columns of a strip: the smallest N of the tensor cores' matrix products.
COLUMNS = 8
_VECTOR_BYTES = 16


@dataclass(frozen=True)
class Device:
    """What a choice depends on of a GPU."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def shared_bytes(self) -> int:
        """Of a multiprocessor, 1 KB more than a block may have: what a block takes for itself."""
        return architectures.find(self.capability).shared_bytes + 1024


@dataclass(frozen=True)
class Problem:
    """One convolution or one of its gradients: tensors of equal shape that a kernel accesses.

    Args:
        row_strides, pixel_strides: of each tensor, in elements.
        alignment: the largest power of two, in elements and up to 16 bytes, that divides the width
            and every stride and address of all; 1 where neighbours in a row are not neighbours in
            memory.
        channels_last: whether all can be accessed by eight neighbouring channels at a time.
        fused: whether the kernel does more to its sums than to round them.
    """

    images: int
    channels: int
    height: int
    width: int
    kernel_size: int
    dtype: torch.dtype
    row_strides: tuple[int, ...]
    pixel_strides: tuple[int, ...]
    alignment: int
    channels_last: bool
    fused: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Tensor], kernel_size: int, fused: bool = False) -> Problem:
        images, channels, height, width = tensors[0].shape
        row_strides = tuple(_stride(tensor, 2, width) for tensor in tensors)
        pixel_strides = tuple(_stride(tensor, 3, 1) for tensor in tensors)
        alignment = math.gcd(width, _VECTOR_BYTES // tensors[0].element_size(), *row_strides)
        for tensor in tensors:
            position = _address(tensor) // tensor.element_size()
            alignment = math.gcd(alignment, _stride(tensor, 0, 0), _stride(tensor, 1, 0), position)
        if any(stride != 1 for stride in pixel_strides):
            alignment = 1
        return cls(
            images,
            channels,
            height,
            width,
            kernel_size,
            tensors[0].dtype,
            row_strides,
            pixel_strides,
            alignment,
            channels_last=all(map(_vectors_of_channels, tensors)),
            fused=fused,
        )

    @property
    def tensor_cores(self) -> bool:
        return self.dtype != torch.float32

    @property
    def wide(self) -> bool:
        """Whether eight output columns see more than 16 input columns."""
        return self.kernel_size > 9

    @property
    def offset(self) -> int:
        """Input columns in a window before the first output column, aligned like a strip."""
        return 8 if self.wide else 4

    @property
    def window(self) -> int:
        """Input columns of a window, rounded up to what a matrix product takes."""
        return 32 if self.wide else 16

    @property
    def strips_per_band(self) -> int:
        return self.images * math.ceil(self.width / COLUMNS)


def _vectors_of_channels(tensor: Tensor) -> bool:
    """Whether a tensor of 16-bit numbers is made of whole, aligned vectors of eight channels."""
    if tensor.element_size() != 2 or not layout.is_channels_last(tensor):
        return False
    strides = (_stride(tensor, dimension, 0) for dimension in (0, 2, 3))
    aligned = _address(tensor) % _VECTOR_BYTES == 0
    return math.gcd(8, tensor.shape[1], *strides) == 8 and aligned


def _address(tensor: Tensor) -> int:
    """0 for tensors that only describe a problem."""
    return 0 if tensor.is_meta else tensor.data_ptr()


def _stride(tensor: Tensor, dimension: int, of_one: int) -> int:
    """A stride, or `of_one` along a dimension of size 1, where it says nothing."""
    return tensor.stride(dimension) if tensor.shape[dimension] > 1 else of_one
