"""Which memory layouts the kernels read in place, and the layout of what they write."""

from __future__ import annotations

import torch
from torch import Tensor


def is_planar(tensor: Tensor) -> bool:
    """Whether every H x W plane is contiguous; image and channel strides are free.

    True for contiguous tensors, for CNHW (a logical NCHW tensor whose channels are outermost), for
    slices of images or channels of either, and for images expanded with stride 0.
    """
    height, width = tensor.shape[2:]
    return (width == 1 or tensor.stride(3) == 1) and (height == 1 or tensor.stride(2) == width)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of a pixel are adjacent (and the tensor is not planar as well)."""
    return tensor.stride(1) == 1 and not is_planar(tensor)


def planar(tensor: Tensor) -> Tensor:
    """`tensor` itself if it is planar, otherwise a contiguous copy."""
    return tensor if is_planar(tensor) else tensor.contiguous()


def empty_like_input(tensor: Tensor) -> Tensor:
    """An uninitialised dense tensor of the layout that an operation gives its output.

    Planar tensors keep their order of images and channels, channels_last stays channels_last, and
    anything else becomes contiguous. The kernels and the fake implementations of the operators both
    use it, so that strides seen while tracing are those seen when running.
    """
    images, channels, height, width = tensor.shape
    if (
        is_planar(tensor)
        and images > 1
        and channels > 1
        and 0 < tensor.stride(0) < tensor.stride(1)
    ):
        return tensor.new_empty((channels, images, height, width)).transpose(0, 1)
    if is_channels_last(tensor):
        return torch.empty_like(tensor, memory_format=torch.channels_last)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
